"""What torch's Tensor says of its memory and dtype: strides, casts, and new tensors like it. There is one device, "cpu"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.functions import create, elementwise, reductions, shapes
from tinygrad_llm.functions.base import axis_of, to
from tinygrad_llm.ops.opaque import as_values

CASTS = {"double": np.float64, "float": np.float32, "half": np.float16, "long": np.int64, "int": np.int32, "short": np.int16,
         "char": np.int8, "byte": np.uint8, "bool": np.bool_}


def cast(self: Tensor, *args: Any, dtype: Any = None, device: Any = None, non_blocking: bool = False, copy: bool = False,
         memory_format: Any = None) -> Tensor:
    """x.to(dtype), x.to(other), x.to("cpu"), x.to("cpu", dtype): in another dtype; itself where nothing changes, unless copy.

    Errors: ValueError for a device other than "cpu", TypeError for what names no dtype.
    """
    for arg in args:
        if isinstance(arg, Tensor):
            dtype = arg.dtype
        elif isinstance(arg, str) and not hasattr(np, arg):
            device = arg
        elif not isinstance(arg, bool):
            dtype = arg
    if device not in (None, "cpu"):
        raise ValueError(f"to: device: got {device!r}, expected 'cpu'")
    out = self if dtype is None else to(self, _dtype("to", dtype))
    return out.clone() if copy and out is self else out


def _dtype(name: str, dtype: Any) -> np.dtype:
    try:
        return np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name}: dtype: got {dtype!r}, expected a dtype of NumPy's") from None


def _cast_to(dtype: Any) -> Callable[[Tensor], Tensor]:
    return lambda self: to(self, dtype)


def type_(self: Tensor, dtype: Any = None) -> Any:
    """In another dtype; without one torch's name of this one, such as "FloatTensor"."""
    if dtype is not None:
        return to(self, _dtype("type", dtype))
    found = [name for name, known in CASTS.items() if self.dtype == known]
    return f"{found[0].capitalize()}Tensor" if found else f"{self.dtype}"


def stride(self: Tensor, dim: int | None = None) -> Any:
    """How many elements of memory lie between neighbours along each axis, or along dim."""
    steps = tuple([n // self.dtype.itemsize for n in self.numpy().strides])
    return steps if dim is None else steps[axis_of("stride", self, dim)]


def contiguous(self: Tensor) -> Tensor:
    """The tensor itself where its memory is in row-major order, else a copy that is, with its gradient."""
    return self if self.numpy().flags.c_contiguous else shapes.copied(self)


def _new(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def method(self: Tensor, *args: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
        return make(*args, dtype=self.dtype if dtype is None else dtype, requires_grad=requires_grad)

    method.__doc__ = f"{make.__name__}, by default in this tensor's dtype."
    return method


def new_tensor(self: Tensor, data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor of the data, by default in this tensor's dtype."""
    return Tensor(data, requires_grad, self.dtype if dtype is None else dtype)


def masked_select(self: Tensor, mask: Any) -> Tensor:
    """The elements where mask, which broadcasts with the tensor, is True, as one axis."""
    mask = elementwise.as_mask("masked_select", "mask", mask)
    shape = elementwise.broadcast_shape("masked_select", input=self.shape, mask=mask.shape)
    return shapes.getitem(shapes.broadcast_to(self, shape), np.broadcast_to(np.asarray(mask), shape))


def _constant(function: Any) -> Callable[..., Tensor]:
    """A NumPy function without derivative, of arrays, as a method."""
    return lambda self, *args, **options: Tensor.from_array(as_values(function(as_values(self), *args, **options)))


def _truth(function: Any) -> Callable[..., Tensor]:
    def method(self: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        return Tensor.from_array(as_values(function(as_values(self), axis=dim, keepdims=keepdim)))

    return method


def _rounded(function: Any) -> Callable[[Tensor], Tensor]:
    return lambda self: elementwise.without_slope(function(as_values(self)), self)


METHODS: dict[str, Any] = {
    **{name: _cast_to(dtype) for name, dtype in CASTS.items()}, "to": cast, "type": type_, "astype": to,
    "type_as": lambda self, other: to(self, other.dtype), "cpu": lambda self: self, "device": property(lambda self: "cpu"),
    "is_floating_point": lambda self: self.dtype.kind == "f", "element_size": lambda self: self.dtype.itemsize,
    "itemsize": property(lambda self: self.dtype.itemsize), "nbytes": property(lambda self: self.numpy().nbytes),
    "nelement": Tensor.numel, "ndimension": Tensor.dim, "stride": stride, "contiguous": contiguous,
    "is_contiguous": lambda self: bool(self.numpy().flags.c_contiguous),
    "new_tensor": new_tensor, "new_zeros": _new(create.zeros), "new_ones": _new(create.ones), "new_full": _new(create.full),
    "new_empty": _new(create.zeros),
    "view_as": lambda self, other: shapes.view(self, other.shape),
    "expand_as": lambda self, other: shapes.expand(self, other.shape),
    "reshape_as": lambda self, other: shapes.reshape(self, other.shape), "ravel": lambda self: shapes.reshape(self, -1),
    "moveaxis": shapes.movedim, "swapdims": shapes.transpose, "absolute": elementwise.abs, "negative": elementwise.neg,
    "multiply": elementwise.mul, "subtract": elementwise.sub, "divide": elementwise.div, "true_divide": elementwise.div,
    "clip": elementwise.clamp, "clamp_min": lambda self, min: elementwise.clamp(self, min=min),
    "clamp_max": lambda self, max: elementwise.clamp(self, max=max), "masked_select": masked_select,
    "argmin": reductions.argmin, "floor": _rounded(np.floor), "ceil": _rounded(np.ceil), "trunc": _rounded(np.trunc),
    "round": _rounded(np.round),
    "isnan": _constant(np.isnan), "isinf": _constant(np.isinf), "isfinite": _constant(np.isfinite),
    "any": _truth(np.any), "all": _truth(np.all), "nonzero": lambda self: Tensor.from_array(np.argwhere(np.asarray(self))),
    "equal": lambda self, other: bool(np.array_equal(np.asarray(self), np.asarray(other))),
    "allclose": lambda self, other, rtol=1e-5, atol=1e-8, equal_nan=False: bool(
        np.allclose(np.asarray(self), np.asarray(other), rtol, atol, equal_nan)),
}
