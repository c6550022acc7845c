"""The public functions of tensors, with torch's names and arguments; `axis` and `keepdims` are taken for dim and keepdim."""

from tinygrad_llm.functions import dispatch, linalg
from tinygrad_llm.functions.base import as_operand, as_tensor, lift, result_type, to
from tinygrad_llm.functions.contraction import einsum
from tinygrad_llm.functions.create import from_numpy, ones, tensor, zeros
from tinygrad_llm.functions.elementwise import (
    abs,
    add,
    clamp,
    cos,
    div,
    erf,
    exp,
    expm1,
    log,
    log1p,
    masked_fill,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    reciprocal,
    relu,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sqrt,
    square,
    sub,
    tanh,
    where,
)
from tinygrad_llm.functions.indexing import gather, index_add, index_put, index_select, scatter_add, take_along_dim
from tinygrad_llm.functions.methods import METHODS
from tinygrad_llm.functions.products import addmm, baddbmm, bmm, dot, matmul, mm, mv, outer
from tinygrad_llm.functions.reductions import (
    amax,
    amin,
    argmax,
    cumsum,
    log_softmax,
    logsumexp,
    max,
    mean,
    min,
    norm,
    prod,
    softmax,
    std,
    sum,
    var,
)
from tinygrad_llm.functions.shapes import (
    broadcast_to,
    cat,
    chunk,
    diagonal,
    expand,
    flatten,
    flip,
    getitem,
    movedim,
    narrow,
    permute,
    repeat,
    reshape,
    roll,
    select,
    split,
    squeeze,
    stack,
    swapaxes,
    t,
    tile,
    transpose,
    tril,
    triu,
    unbind,
    unsqueeze,
)

__all__ = [
    "METHODS", "abs", "add", "addmm", "amax", "amin", "argmax", "as_operand", "as_tensor", "baddbmm", "bmm", "broadcast_to",
    "cat", "chunk", "clamp", "cos", "cumsum", "diagonal", "dispatch", "div", "dot", "einsum", "erf", "exp", "expand", "expm1",
    "flatten", "flip", "from_numpy", "gather", "getitem", "index_add", "index_put", "index_select", "lift", "linalg", "log",
    "log1p", "log_softmax", "logsumexp", "masked_fill", "matmul", "max", "maximum", "mean", "min", "minimum", "mm", "movedim",
    "mul", "mv", "narrow", "neg", "norm", "ones", "outer", "permute", "pow", "prod", "reciprocal", "relu", "repeat", "reshape",
    "result_type", "roll", "rsqrt", "scatter_add", "select", "sigmoid", "sign", "sin", "softmax", "split", "sqrt", "square",
    "squeeze", "stack", "std", "sub", "sum", "swapaxes", "t", "take_along_dim", "tanh", "tensor", "tile", "to", "transpose",
    "tril", "triu", "unbind", "unsqueeze", "var", "where", "zeros",
]
