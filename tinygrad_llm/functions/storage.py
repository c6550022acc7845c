"""What torch's Tensor says of its memory and dtype: strides, casts, and new tensors like it. There is one device, "cpu"."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.functions import create, elementwise, reductions, shapes
from tinygrad_llm.functions.base import axis_of, dims_of, dtype_of, names_none, only, spelled, tensor_like, to, whole
from tinygrad_llm.ops import DtypeError
from tinygrad_llm.ops.opaque import as_values
from tinygrad_llm.ops.reduce import axes_of

CASTS = {"double": np.float64, "float": np.float32, "half": np.float16, "long": np.int64, "int": np.int32, "short": np.int16,
         "char": np.int8, "byte": np.uint8, "bool": np.bool_}


def cast(self: Tensor, *args: Any, **options: Any) -> Tensor:
    """x.to(dtype), x.to(other), x.to("cpu"), x.to("cpu", dtype): in another dtype; itself where nothing changes, unless copy.

    Behind these stand non_blocking and copy, by place or by name. Errors: ValueError for a device other than "cpu",
    TypeError for what names no dtype.
    """
    asked = dict(zip(_places_of(args), args))
    by_name = ("dtype", "device", "non_blocking", "copy", "memory_format")
    if wrong := [name for name in options if name in asked or name not in by_name]:
        raise TypeError(f"to: got {wrong[0]}={options[wrong[0]]!r} beside {len(args)} arguments by place, expected each of "
                        f"{', '.join(by_name)} once")
    asked |= options
    only("to", "device", asked.get("device"))
    wanted = asked["other"].dtype if "other" in asked else asked.get("dtype")
    out = self if wanted is None else to(self, dtype_of("to", wanted))
    return out.clone() if asked.get("copy") and out is self else out


def _places_of(args: tuple[Any, ...]) -> tuple[str, ...]:
    """What the arguments of to() by place are, which the first of them decides."""
    first = args[0] if args else None
    if isinstance(first, Tensor):
        names: tuple[str, ...] = ("other",)
    elif first is None or (isinstance(first, str) and not hasattr(np, first)) or type(first).__name__ == "device":
        names = ("device", "dtype")
    else:
        names = ("dtype",)
    names = (*names, "non_blocking", "copy")
    if len(args) > len(names):
        raise TypeError(f"to: got {len(args)} arguments by place, expected at most {len(names)}: {', '.join(names)}")
    return names


def _cast_to(dtype: Any) -> Callable[..., Tensor]:
    return lambda self, *, memory_format=None: to(self, dtype)  # a memory format would change strides alone


def type_(self: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """In another dtype; without one torch's name of this one, such as "FloatTensor"."""
    if dtype is not None:
        return to(self, dtype_of("type", dtype))
    found = [name for name, known in CASTS.items() if self.dtype == known]
    return f"{found[0].capitalize()}Tensor" if found else f"{self.dtype}"


def stride(self: Tensor, dim: int | None = None) -> Any:
    """How many elements of memory lie between neighbours along each axis, or along dim."""
    steps = tuple([n // self.dtype.itemsize for n in self.numpy().strides])
    return steps if dim is None else steps[axis_of("stride", self, dim)]


def contiguous(self: Tensor) -> Tensor:
    """The tensor itself where its memory is in row-major order, else a copy that is, with its gradient."""
    return self if as_values(self).flags.c_contiguous else shapes.copied(self)


def ravel(self: Tensor) -> Tensor:
    """One axis: of the tensor's memory where that is in row-major order, else of a copy."""
    return shapes.reshape(contiguous(self), -1)


def _new(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def method(self: Tensor, *size: Any, **options: Any) -> Tensor:
        made = make(*size, **{**options, "dtype": self.dtype if options.get("dtype") is None else options["dtype"]})
        return made if make is create.tensor else create.for_each(made, self)

    own, this = inspect.signature(make), inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = own.replace(parameters=[this, *own.parameters.values()])  # type: ignore[attr-defined]
    method.__doc__ = f"{make.__name__}, by default in this tensor's dtype."
    return method


def masked_select(self: Tensor, mask: Any) -> Tensor:
    """The elements where mask, which broadcasts with the tensor, is True, as one axis."""
    mask = elementwise.as_mask("masked_select", "mask", mask)
    shape = elementwise.broadcast_shape("masked_select", input=self.shape, mask=mask.shape)
    wide = mask if mask.shape == shape else shapes.broadcast_to(mask, shape)
    return shapes.getitem(shapes.broadcast_to(self, shape), wide)


def _constant(function: Any) -> Callable[[Tensor], Tensor]:
    """A NumPy function without derivative, of an array, as a method."""
    return lambda self: Tensor.from_array(as_values(function(as_values(self))))


def _truth(name: str, function: Any) -> Callable[..., Tensor]:
    @spelled
    def method(self: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        axes = () if names_none(dim) else axes_of(name, self, dims_of(name, self, dim))
        found = as_values(function(as_values(self), axis=axes, keepdims=keepdim))
        return Tensor.from_array(found.astype(self.dtype) if self.dtype == np.uint8 else found)  # torch's only exception

    return method


def _rounded(function: Any) -> Callable[[Tensor], Tensor]:
    return lambda self: elementwise.without_slope(function(as_values(self)), self)


def round(self: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest number with so many decimals, the even one of two; negative decimals round to tens, hundreds, …"""
    x, decimals = as_values(self), whole("round", "decimals", decimals)
    if not decimals:
        return elementwise.without_slope(np.round(x), self)
    if self.dtype.kind != "f":
        raise DtypeError(f"round: decimals: got {decimals} for {self.dtype}, expected 0 for integers")
    wide = x.astype(np.float32 if x.dtype == np.float16 else x.dtype)
    scale = wide.dtype.type(10.0 ** abs(decimals) if abs(decimals) < 309 else np.inf)
    values = np.round(wide * scale) / scale if decimals > 0 else np.round(wide / scale) * scale
    values = np.where(np.isfinite(values), values, wide if np.isfinite(scale) or decimals > 0 else 0 * wide)
    return elementwise.without_slope(values.astype(x.dtype), self)  # what is too large for a fraction has none


def nonzero(self: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of what is not 0: a row each, or a tensor for each axis."""
    found = np.argwhere(np.asarray(self))
    return tuple([Tensor.from_array(i) for i in np.nonzero(np.atleast_1d(np.asarray(self)))]) if as_tuple else (
        Tensor.from_array(found))


METHODS: dict[str, Any] = {
    **{name: _cast_to(dtype) for name, dtype in CASTS.items()}, "to": cast, "type": type_, "astype": to,
    "type_as": lambda self, other: to(self, other.dtype), "cpu": lambda self: self, "device": property(lambda self: "cpu"),
    "is_floating_point": lambda self: self.dtype.kind == "f", "element_size": lambda self: self.dtype.itemsize,
    "itemsize": property(lambda self: self.dtype.itemsize), "nbytes": property(lambda self: self.numpy().nbytes),
    "nelement": Tensor.numel, "ndimension": Tensor.dim, "stride": stride, "contiguous": contiguous,
    "is_contiguous": lambda self: bool(self.numpy().flags.c_contiguous),
    "new_tensor": _new(create.tensor), "new_zeros": _new(create.zeros), "new_ones": _new(create.ones),
    "new_full": _new(create.full), "new_empty": _new(create.zeros),
    "view_as": lambda self, other: shapes.view(self, other.shape),
    "expand_as": lambda self, other: shapes.expand(self, other.shape),
    "reshape_as": lambda self, other: shapes.reshape(self, other.shape), "ravel": ravel,
    "moveaxis": shapes.movedim, "swapdims": shapes.transpose, "absolute": elementwise.abs, "negative": elementwise.neg,
    "multiply": elementwise.mul, "subtract": elementwise.sub, "divide": elementwise.div,
    "true_divide": lambda self, other: elementwise.div(self, other),
    "clip": elementwise.clamp, "clamp_min": lambda self, min: elementwise.clamp(self, min=min),
    "clamp_max": lambda self, max: elementwise.clamp(self, max=max), "masked_select": masked_select,
    "argmin": reductions.argmin, "floor": _rounded(np.floor), "ceil": _rounded(np.ceil), "trunc": _rounded(np.trunc),
    "round": round,
    "isnan": _constant(np.isnan), "isinf": _constant(np.isinf), "isfinite": _constant(np.isfinite),
    "any": _truth("any", np.any), "all": _truth("all", np.all), "nonzero": nonzero,
    "equal": lambda self, other: bool(
        np.array_equal(np.asarray(self), np.asarray(tensor_like("equal", "other", other)))),
    "allclose": lambda self, other, rtol=1e-5, atol=1e-8, equal_nan=False: bool(
        np.allclose(np.asarray(self), np.asarray(tensor_like("allclose", "other", other)), rtol, atol, equal_nan)),
}
