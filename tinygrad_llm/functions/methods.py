"""Which functions are methods and operators of Tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, inplace
from tinygrad_llm.autograd.tensor import NUMPY
from tinygrad_llm.functions import elementwise, indexing, products, random, reductions, shapes, storage
from tinygrad_llm.functions.base import as_operand, promoted, result_type
from tinygrad_llm.functions.elementwise import broadcast_shape
from tinygrad_llm.ops import DtypeError
from tinygrad_llm.ops.opaque import as_values

e, r, p, s, i = elementwise, reductions, products, shapes, indexing


def _reversed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, other: function(other, self)


def _compare(ufunc: Any) -> Callable[..., Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        if _is_no_number(other):
            raise TypeError(f"{ufunc.__name__}: other: got {other!r}, expected a tensor or a number")
        x, y = promoted(as_operand(self), as_operand(other))
        try:
            return Tensor.from_array(as_values(ufunc(*[as_values(a) if hasattr(a, "dtype") else a for a in (x, y)])))
        except ValueError:
            broadcast_shape(ufunc.__name__, input=np.shape(x), other=np.shape(y))
            raise

    return method


def _is_no_number(other: Any) -> bool:
    return other is None or isinstance(other, str)


def _operator(method: Callable[..., Tensor]) -> Callable[..., Any]:
    """A method as an operator: beside what is no number it is Python's, which says False, True or TypeError."""
    return lambda self, other: NotImplemented if _is_no_number(other) else method(self, other)


def _bitwise(name: str, ufunc: Any) -> Callable[..., Tensor]:
    def method(self: Tensor, other: Any) -> Tensor:
        x, y = promoted(as_operand(self), as_operand(other))
        if (dtype := result_type(x, y)).kind not in "biu":
            raise DtypeError(f"{name}: got {dtype}, expected integers or booleans")
        return Tensor.from_array(as_values(ufunc(*[as_values(a) if hasattr(a, "dtype") else dtype.type(a) for a in (x, y)])))

    return method


def _not(self: Tensor) -> Tensor:
    if self.dtype.kind not in "biu":
        raise DtypeError(f"bitwise_not: got {self.dtype}, expected integers or booleans")
    return Tensor.from_array(as_values(~as_values(self)))


COMPARISONS = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
NUMPY.update({ufunc: _compare(ufunc) for ufunc in COMPARISONS.values()})
NUMPY.update({ufunc: _bitwise(ufunc.__name__, ufunc) for ufunc in BITWISE})
_and, _or, _xor = [_operator(NUMPY[ufunc]) for ufunc in BITWISE]
METHODS: dict[str, Any] = {
    "__add__": e.add, "__radd__": _reversed(e.add), "__sub__": e.sub, "__rsub__": _reversed(e.sub), "__mul__": e.mul,
    "__rmul__": _reversed(e.mul), "__truediv__": e.div, "__rtruediv__": _reversed(e.div), "__pow__": e.pow,
    "__rpow__": _reversed(e.pow), "__matmul__": p.matmul, "__rmatmul__": _reversed(p.matmul), "__neg__": e.neg,
    "__abs__": e.abs, "__getitem__": s.getitem,
    "__mod__": _operator(e.remainder), "__rmod__": _operator(_reversed(e.remainder)),
    "__floordiv__": _operator(e.floor_divide), "__rfloordiv__": _operator(_reversed(e.floor_divide)),
    **{f"__{name}__": _operator(NUMPY[ufunc]) for name, ufunc in COMPARISONS.items()},
    "__and__": _and, "__or__": _or, "__xor__": _xor, "__rand__": _and, "__ror__": _or, "__rxor__": _xor,
    "__invert__": _not,
    "T": property(lambda self: s.permute(self, tuple(reversed(range(self.ndim))))),
    "mT": property(lambda self: s.transpose(self, -1, -2)),
    "__pos__": lambda self: self, "view": s.view, "size": Tensor.size,
    "where": lambda self, condition, other: e.where(condition, self, other),
}
for _function in (
    e.abs, e.add, e.clamp, e.cos, e.div, e.erf, e.exp, e.expm1, e.floor_divide, e.remainder, e.log, e.log1p,
    e.masked_fill, e.maximum, e.minimum,
    e.mul, e.neg, e.pow, e.reciprocal, e.relu, e.rsqrt, e.sigmoid, e.sign, e.sin, e.sqrt, e.square, e.sub, e.tanh,
    r.amax, r.amin, r.argmax, r.cumsum, r.log_softmax, r.logsumexp, r.max, r.mean, r.min, r.norm, r.prod, r.softmax,
    r.std, r.sum, r.var, p.addmm, p.baddbmm, p.bmm, p.dot, p.matmul, p.mm, p.mv, p.outer, s.broadcast_to, s.chunk,
    s.diagonal, s.expand, s.flatten, s.flip, s.movedim, s.narrow, s.permute, s.repeat, s.reshape, s.roll, s.select,
    s.split, s.squeeze, s.swapaxes, s.t, s.tile, s.transpose, s.tril, s.triu, s.unbind, s.unsqueeze, i.gather,
    i.index_add, i.index_put, i.index_select, i.scatter_add, i.take_along_dim,
):
    METHODS[_function.__name__] = _function


@functools.wraps(s.squeeze)
def _squeeze(self: Tensor, *dim: Any, **named: Any) -> Tensor:
    return s.squeeze(self, dim, **named) if len(dim) > 1 else s.squeeze(self, *dim, **named)


METHODS |= {  # whose arguments are not the function's
    "squeeze": _squeeze,
    "split": lambda self, split_size, dim=0: s.split(self, split_size, dim),
    "norm": lambda self, p="fro", dim=None, keepdim=False, dtype=None: r.norm(self, p, dim, keepdim, dtype=dtype),
}
METHODS |= storage.METHODS | random.METHODS | {name: NUMPY[ufunc] for name, ufunc in COMPARISONS.items()}
_INPLACE = (  # `add_` and so on, where there is an `add`
    "abs", "add", "addmm", "baddbmm", "clamp", "cos", "cumsum", "div", "erf", "exp", "expm1", "index_add", "index_put", "log",
    "log1p", "masked_fill", "mul", "neg", "pow", "reciprocal", "relu", "rsqrt", "scatter_add", "sigmoid", "sign", "sin", "sqrt",
    "square", "sub", "tanh", "tril", "triu", "floor_divide", "remainder",
)
METHODS |= {f"{name}_": inplace(METHODS[name]) for name in _INPLACE}
METHODS |= {f"__i{name}__": inplace(METHODS[f"__{name}__"]) for name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor",
)}
for _name, _method in METHODS.items():
    setattr(Tensor, _name, _method)
for _name, _method in vars(Tensor).items():  # Python's errors call a method by its name
    if isinstance(_method, FunctionType) and _method.__name__ in ("<lambda>", "method", f"_{_name}", f"{_name}_"):
        _method.__name__ = _method.__qualname__ = _name
