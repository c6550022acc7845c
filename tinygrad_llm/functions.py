"""The public functions of tensors, with torch's names and arguments; `axis` and `keepdims` are taken for dim and keepdim.

At the bottom stand two tables: which functions are methods and operators of Tensor, and which NumPy functions they
stand for (`np.exp(t)` is `exp(t)`).
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd import NUMPY, Tensor, apply, as_array, inplace, is_grad_enabled, unwrap_index
from tinygrad_llm.ops import Op, ShapeError, elementwise, linalg, nn, reduce, shape
from tinygrad_llm.ops.reduce import axes_of

__all__ = [
    "abs", "add", "amax", "argmax", "broadcast_to", "cat", "cos", "div", "erf", "exp", "expand", "flatten", "from_numpy",
    "lift", "log", "log_softmax", "logsumexp", "masked_fill", "matmul", "maximum", "mean", "minimum", "mul", "neg", "ones",
    "permute", "pow", "relu", "reshape", "sigmoid", "sin", "softmax", "split", "sqrt", "square", "squeeze", "stack", "sub",
    "sum", "tanh", "tensor", "transpose", "unsqueeze", "var", "where", "zeros",
]

Dim = int | tuple[int, ...] | None


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """A new Tensor holding a copy of data: numbers, nested lists, an array or a tensor.

    Python floats become float32 and arrays keep their dtype, as in torch.tensor. Errors: ValueError for ragged data,
    TypeError for data that are not numbers, AutogradError for requires_grad with a dtype that is not floating.
    """
    return Tensor(data, requires_grad, dtype)


def from_numpy(array: np.ndarray) -> Tensor:
    """A Tensor that shares the array's memory."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: array: got {type(array).__name__}, expected a numpy.ndarray")
    return Tensor.from_array(array)


def zeros(*size: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Zeros of the given shape."""
    return Tensor(np.zeros(_sizes(size), dtype), requires_grad)


def ones(*size: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Ones of the given shape."""
    return Tensor(np.ones(_sizes(size), dtype), requires_grad)


def lift(op: Op) -> Callable[..., Tensor]:
    """An op as a function of tensors: `lift(op)(x, y, option=...)`."""

    def function(*args: Any, **options: Any) -> Tensor:
        operands = [as_operand(a) for a in args]
        kinds = {a.dtype.kind for a in operands if hasattr(a, "dtype")}
        if not kinds & {"i", "u"}:
            return apply(op, *operands, **options)
        return _with_integers(op, operands, options)

    function.__name__ = function.__qualname__ = op.name
    function.__doc__ = op.__doc__
    return function


def _with_integers(op: Op, operands: list[Any], options: dict[str, Any]) -> Tensor:
    """torch's promotion, where NumPy's ends in float64: integers take the dtype of the floats beside them, or float32."""
    floats = [a.dtype for a in operands if hasattr(a, "dtype") and a.dtype.kind == "f"]
    if floats:
        dtype = np.result_type(*floats)
        operands = [np.asarray(a, dtype) if hasattr(a, "dtype") and a.dtype.kind in "iu" else a for a in operands]
    out = apply(op, *operands, **options)
    return out if floats or out.dtype != np.float64 else to(out, np.float32)


def as_operand(value: Any) -> Any:
    """What apply takes: tensors, arrays, Python numbers, and NumPy's scalars as such; lists become constant tensors."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor | np.ndarray | int | float) or value is None:
        return value
    return Tensor.from_array(as_array(value))


# Element by element ------------------------------------------------------------------------------------------------------

add, sub, mul, div = lift(elementwise.add), lift(elementwise.sub), lift(elementwise.mul), lift(elementwise.div)
neg, exp, log, sqrt, square = (
    lift(elementwise.neg), lift(elementwise.exp), lift(elementwise.log), lift(elementwise.sqrt), lift(elementwise.square)
)
sin, cos, tanh = lift(elementwise.sin), lift(elementwise.cos), lift(elementwise.tanh)
sigmoid, erf, relu, abs = lift(elementwise.sigmoid), lift(elementwise.erf), lift(elementwise.relu), lift(elementwise.abs)
maximum, minimum, pow = lift(elementwise.maximum), lift(elementwise.minimum), lift(elementwise.pow)
_where = lift(elementwise.where)


def where(condition: Any, input: Any, other: Any) -> Tensor:
    """input where condition holds, else other; all three broadcast."""
    mask = condition if getattr(condition, "dtype", None) == np.bool_ else np.asarray(condition, dtype=bool)
    return _where(mask, input, other)


def masked_fill(input: Tensor, mask: Any, value: float) -> Tensor:
    """input with value wherever mask is True."""
    return where(mask, value, input)


# Reductions --------------------------------------------------------------------------------------------------------------


def sum(input: Tensor, dim: Dim = None, keepdim: bool = False, *, axis: Dim = None, keepdims: bool = False) -> Tensor:
    """Σ over dim (None: over all axes)."""
    return apply(reduce.sum, input, dim=_dim(dim, axis), keepdim=keepdim or keepdims)


def mean(input: Tensor, dim: Dim = None, keepdim: bool = False, *, axis: Dim = None, keepdims: bool = False) -> Tensor:
    """The mean over dim (None: over all axes)."""
    return apply(reduce.mean, input, dim=_dim(dim, axis), keepdim=keepdim or keepdims)


def amax(input: Tensor, dim: Dim = None, keepdim: bool = False, *, axis: Dim = None, keepdims: bool = False) -> Tensor:
    """The largest over dim; ties share the gradient."""
    return apply(reduce.amax, input, dim=_dim(dim, axis), keepdim=keepdim or keepdims)


def logsumexp(input: Tensor, dim: Dim, keepdim: bool = False, *, axis: Dim = None, keepdims: bool = False) -> Tensor:
    """ln Σ eˣ over dim, without overflow."""
    return apply(reduce.logsumexp, input, dim=_dim(dim, axis), keepdim=keepdim or keepdims)


def var(input: Tensor, dim: Dim = None, correction: int = 1, keepdim: bool = False) -> Tensor:
    """Σ (x − mean)² / (n − correction) over dim."""
    n = int(np.prod([input.shape[i] for i in axes_of("var", input, dim)]))
    centred = input - mean(input, dim, True)
    return sum(square(centred), dim, keepdim) / builtins.max(n - correction, 0)


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the largest; the first of equals. No gradient."""
    return Tensor.from_array(np.asarray(np.argmax(np.asarray(input), axis=dim, keepdims=keepdim)))


def softmax(input: Tensor, dim: int = -1) -> Tensor:
    """eˣ / Σ eˣ along dim."""
    return _along_last(nn.softmax, input, dim)


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """x − ln Σ eˣ along dim."""
    return _along_last(nn.log_softmax, input, dim)


# Products ----------------------------------------------------------------------------------------------------------------


def matmul(input: Any, other: Any) -> Tensor:
    """The matrix product over broadcast leading axes; a vector is a row on the left and a column on the right."""
    x, y = as_operand(input), as_operand(other)
    if not getattr(x, "ndim", 0) or not getattr(y, "ndim", 0):
        raise ShapeError(f"matmul: got shapes {np.shape(x)} and {np.shape(y)}, expected at least one axis each")
    left, right = x.ndim == 1, y.ndim == 1
    x = reshape(x, (1, -1)) if left else x
    y = reshape(y, (-1, 1)) if right else y
    out = _matmul_matrices(x, y)
    if not (left or right):
        return out
    return reshape(out, (*out.shape[:-2], *(() if left else out.shape[-2:-1]), *(() if right else out.shape[-1:])))


def _matmul_matrices(x: Any, y: Any) -> Tensor:
    """Rows of a batch times one matrix are one product, not one for each member of the batch."""
    if x.ndim > 2 and y.ndim == 2 and x.shape[-1] == y.shape[0] and x.size:
        return reshape(apply(linalg.matmul, reshape(x, (-1, x.shape[-1])), y), (*x.shape[:-1], y.shape[-1]))
    return apply(linalg.matmul, x, y)


# Shapes ------------------------------------------------------------------------------------------------------------------


def reshape(input: Any, *shape_: Any) -> Tensor:
    """The same elements in row-major order under another shape; one size may be −1."""
    return apply(shape.reshape, input, shape=_sizes(shape_))


def permute(input: Tensor, *dims: Any) -> Tensor:
    """Axis i of the result is axis dims[i] of input."""
    return apply(shape.permute, input, dims=_sizes(dims))


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Axes dim0 and dim1 exchanged."""
    first, second = axes_of("transpose", input, dim0)[0], axes_of("transpose", input, dim1)[0]
    dims = list(range(input.ndim))
    dims[first], dims[second] = dims[second], dims[first]
    return permute(input, dims)


def squeeze(input: Tensor, dim: Dim = None, *, axis: Dim = None) -> Tensor:
    """Without the axes of size 1 (all, or those in dim)."""
    drop = [i for i in axes_of("squeeze", input, _dim(dim, axis)) if input.shape[i] == 1]
    return reshape(input, tuple(n for i, n in enumerate(input.shape) if i not in drop))


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new axis of size 1 at dim."""
    if not -input.ndim - 1 <= dim <= input.ndim:
        raise IndexError(f"unsqueeze: dim: got {dim}, expected {-input.ndim - 1} to {input.ndim}")
    at = dim % (input.ndim + 1)
    return reshape(input, (*input.shape[:at], 1, *input.shape[at:]))


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim to end_dim as one."""
    if not input.ndim:
        return reshape(input, (1,))
    start, end = axes_of("flatten", input, start_dim)[0], axes_of("flatten", input, end_dim)[0]
    middle = int(np.prod(input.shape[start : end + 1]))
    return reshape(input, (*input.shape[:start], middle, *input.shape[end + 1 :]))


def broadcast_to(input: Any, shape_: Sequence[int]) -> Tensor:
    """input repeated along new leading axes and along axes of size 1."""
    return apply(shape.broadcast_to, input, shape=tuple(shape_))


def expand(input: Tensor, *sizes: Any) -> Tensor:
    """broadcast_to, with −1 for a size that stays."""
    wanted = _sizes(sizes)
    kept = (1,) * (len(wanted) - input.ndim) + input.shape
    return broadcast_to(input, tuple(old if new == -1 else new for new, old in zip(wanted, kept)))


def cat(tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """The tensors one after another along dim."""
    return apply(shape.cat, *[as_operand(t) for t in tensors], dim=dim if axis is None else axis)


def stack(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """The tensors side by side along a new axis dim."""
    dim = dim if axis is None else axis
    return cat([unsqueeze(t, dim) for t in tensors], dim)


def split(tensor: Tensor, split_size: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces of split_size along dim; the last may be smaller."""
    at = axes_of("split", tensor, dim)[0]
    if split_size < 1:
        raise ValueError(f"split: split_size: got {split_size}, expected at least 1")
    lead = (slice(None),) * at
    return tuple(tensor[(*lead, slice(i, i + split_size))] for i in range(0, tensor.shape[at], split_size))


def getitem(input: Tensor, index: Any) -> Tensor:
    """input[index], basic or advanced."""
    return apply(shape.getitem, input, index=unwrap_index(index))


# Casts -------------------------------------------------------------------------------------------------------------------


def to(input: Tensor, dtype: Any) -> Tensor:
    """input in another dtype; a gradient comes back in input's own."""
    dtype = np.dtype(dtype)
    if dtype == input.dtype:
        return input
    if dtype.kind != "f" or input.dtype.kind != "f" or not (input.requires_grad and is_grad_enabled()):
        return Tensor.from_array(np.asarray(input).astype(dtype))
    return apply(elementwise.cast, input, dtype=dtype)


# Helpers and tables ------------------------------------------------------------------------------------------------------


def _along_last(op: Op, x: Any, dim: int) -> Tensor:
    x = as_operand(x)
    if not x.ndim:
        return reshape(apply(op, reshape(x, (1,))), ())
    at = axes_of(op.name, x, dim)[0]
    if at == x.ndim - 1:
        return apply(op, x)
    return transpose(apply(op, transpose(x, at, -1)), at, -1)


def _dim(dim: Dim, axis: Dim) -> Dim:
    return tuple(chosen) if isinstance(chosen := axis if dim is None else dim, list) else chosen


def _sizes(size: tuple[Any, ...]) -> tuple[int, ...]:
    """f(2, 3), f((2, 3)) and f([2, 3]) mean the same."""
    return tuple(size[0]) if len(size) == 1 and isinstance(size[0], tuple | list) else size


def _reversed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: function(other, self)


def _compare(ufunc: Any) -> Callable[..., Tensor]:
    return lambda self, other: Tensor.from_array(np.asarray(ufunc(np.asarray(self), np.asarray(other))))


_METHODS: dict[str, Any] = {
    "__add__": add, "__radd__": _reversed(add), "__sub__": sub, "__rsub__": _reversed(sub), "__mul__": mul,
    "__rmul__": _reversed(mul), "__truediv__": div, "__rtruediv__": _reversed(div), "__pow__": pow,
    "__rpow__": _reversed(pow), "__matmul__": matmul, "__rmatmul__": _reversed(matmul), "__neg__": neg,
    "__abs__": abs, "__getitem__": getitem,
    "__eq__": _compare(np.equal), "__ne__": _compare(np.not_equal), "__lt__": _compare(np.less),
    "__le__": _compare(np.less_equal), "__gt__": _compare(np.greater), "__ge__": _compare(np.greater_equal),
    "__and__": _compare(np.bitwise_and), "__or__": _compare(np.bitwise_or), "__xor__": _compare(np.bitwise_xor),
    "__invert__": lambda self: Tensor.from_array(np.asarray(~np.asarray(self))),
    "T": property(lambda self: permute(self, tuple(reversed(range(self.ndim))))),
    "mT": property(lambda self: transpose(self, -1, -2)),
    "view": reshape, "astype": to, "max": amax, "swapaxes": transpose, "size": Tensor.size,
    "float": lambda self: to(self, np.float32), "double": lambda self: to(self, np.float64),
}
for _function in (
    add, sub, mul, div, neg, exp, log, sqrt, square, sin, cos, tanh, sigmoid, erf, relu, abs, maximum, minimum, pow, where,
    masked_fill, sum, mean, amax, logsumexp, var, argmax, softmax, log_softmax, matmul, reshape, permute, transpose, squeeze,
    unsqueeze, flatten, broadcast_to, expand, split, to,
):
    _METHODS[_function.__name__] = _function
del _METHODS["where"]
_INPLACE = (  # `add_` and so on, where there is an `add`
    "abs", "add", "addbmm", "addmm", "baddbmm", "clamp", "clip", "cos", "cumsum", "div", "erf", "exp", "expm1", "index_add",
    "index_put", "log", "log1p", "masked_fill", "mul", "neg", "pow", "reciprocal", "relu", "rsqrt", "scatter_add", "sigmoid",
    "sign", "sin", "sqrt", "square", "sub", "tanh", "tril", "triu",
)
_METHODS |= {f"{name}_": inplace(_METHODS[name]) for name in _INPLACE if name in _METHODS}
_METHODS |= {f"__i{name}__": inplace(_METHODS[f"__{name}__"]) for name in (
    "add", "sub", "mul", "truediv", "pow", "and", "or", "xor",
)}
for _name, _function in _METHODS.items():
    setattr(Tensor, _name, _function)

NUMPY.update({
    np.add: add, np.subtract: sub, np.multiply: mul, np.true_divide: div, np.negative: neg, np.exp: exp, np.log: log,
    np.sqrt: sqrt, np.square: square, np.sin: sin, np.cos: cos, np.tanh: tanh, np.abs: abs, np.maximum: maximum,
    np.minimum: minimum, np.power: pow, np.matmul: matmul, np.where: where, np.stack: stack,
    # NumPy's own arguments, where their order or names differ
    np.sum: lambda a, axis=None, *, keepdims=False: sum(a, axis, keepdims),
    np.mean: lambda a, axis=None, *, keepdims=False: mean(a, axis, keepdims),
    np.max: lambda a, axis=None, *, keepdims=False: amax(a, axis, keepdims),
    np.amax: lambda a, axis=None, *, keepdims=False: amax(a, axis, keepdims),
    np.reshape: lambda a, shape: reshape(a, shape),
    np.squeeze: lambda a, axis=None: squeeze(a, axis),
    np.expand_dims: lambda a, axis: unsqueeze(a, axis),
    np.swapaxes: lambda a, axis1, axis2: transpose(a, axis1, axis2),
    np.broadcast_to: lambda array, shape: broadcast_to(array, shape),
    np.concatenate: lambda arrays, axis=0: cat([reshape(a, -1) for a in arrays] if axis is None else arrays, axis or 0),
    np.transpose: lambda a, axes=None: permute(a, tuple(axes) if axes is not None else tuple(reversed(range(a.ndim)))),
})
