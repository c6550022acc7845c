"""Functions of each element by itself; two operands broadcast and are promoted as in torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, apply
from tinygrad_llm.functions.base import (
    as_array_like,
    as_operand,
    binary,
    floating,
    guarded,
    in_single,
    promoted,
    result_type,
    to,
    unary,
)
from tinygrad_llm.ops import ArgumentError, DtypeError, Op, ShapeError, Vjp, elementwise, reduce, shape
from tinygrad_llm.ops.numbers import held, plain
from tinygrad_llm.ops.opaque import any_of, as_values

neg, abs, relu = unary(elementwise.neg), unary(elementwise.abs), guarded("result")(unary(elementwise.relu))
exp, expm1 = unary(elementwise.exp, real=True), unary(elementwise.expm1, real=True)
log, log1p = unary(elementwise.log, real=True), unary(elementwise.log1p, real=True)
sqrt, tanh = unary(elementwise.sqrt, real=True), unary(elementwise.tanh, real=True)
sin, cos = unary(elementwise.sin, real=True), unary(elementwise.cos, real=True)
sigmoid, erf = guarded("result")(in_single(unary(elementwise.sigmoid, real=True))), in_single(unary(elementwise.erf, real=True))

mul, maximum, minimum = binary(elementwise.mul, exact=True), binary(elementwise.maximum), binary(elementwise.minimum)
_add, _sub, _div = binary(elementwise.add), binary(elementwise.sub), binary(elementwise.div, exact=True)
_BOOL = np.dtype(np.bool_)


def add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input + alpha · other."""
    return _add(input, other if alpha == 1 else _multiple("add", input, other, alpha))


def _multiple(name: str, input: Any, other: Any, alpha: float) -> Tensor:
    """alpha · other, in the result type of input and other."""
    x, y = promoted(as_operand(input), as_operand(other))
    dtype, alpha = result_type(x, y), plain(alpha)
    if dtype.kind in "biu" and not isinstance(alpha, int):
        raise DtypeError(f"{name}: alpha: got {alpha} for {dtype}, expected an integer")
    if isinstance(alpha, bool) and dtype != np.bool_:
        raise DtypeError(f"{name}: alpha: got {alpha} for {dtype}, expected a number")
    return mul(as_array_like(y), bool(alpha) if dtype == np.bool_ else held(name, "alpha", alpha, dtype))


def sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input − alpha · other. Errors: DtypeError for booleans, as in torch."""
    x, y = as_operand(input), as_operand(other)
    if _BOOL in (getattr(x, "dtype", None), getattr(y, "dtype", None)) or isinstance(x, bool) or isinstance(y, bool):
        raise DtypeError("sub: got booleans, expected numbers (or ~x, x ^ y)")
    return _sub(x, y if alpha == 1 else _multiple("sub", x, y, alpha))


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """input / other; integers give float32. rounding_mode "floor" or "trunc" rounds, and lets no gradient through.

    Errors: ArgumentError for integers that are rounded and divided by 0.
    """
    x, y = as_operand(input), as_operand(other)
    if rounding_mode is None:
        return apply(elementwise.div, floating(x), floating(y)) if result_type(x, y).kind in "biu" else _div(x, y)
    if rounding_mode not in ("floor", "trunc"):
        raise ArgumentError(f"div: rounding_mode: got {rounding_mode!r}, expected None, 'floor' or 'trunc'")
    x, y = _divided("div", x, y)
    dtype = result_type(x, y)
    a, b = [as_values(v).astype(np.float32 if dtype == np.float16 else dtype, copy=False) for v in (x, y)]
    if rounding_mode == "floor":
        found = np.floor_divide(a, b)
    else:
        found = np.trunc(a / b) if a.dtype.kind == "f" else np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b)
    return without_slope(found.astype(dtype, copy=False), x, y)


def floor_divide(input: Any, other: Any) -> Tensor:
    """⌊input / other⌋, through which no gradient goes: what `//` means. Errors: ArgumentError for integers over 0."""
    return div(input, other, rounding_mode="floor")


def remainder(input: Any, other: Any) -> Tensor:
    """input − other · ⌊input / other⌋, with other's sign: what `%` means.   dinput = g,  dother = −g · ⌊input / other⌋

    Errors: ArgumentError for integers over 0.
    """
    x, y = _divided("remainder", input, other)
    dtype, size = result_type(x, y), broadcast_shape("remainder", input=np.shape(x), other=np.shape(y))
    x, y = [to(a, dtype) if hasattr(a, "dtype") else Tensor.from_array(np.asarray(a, dtype)) for a in (x, y)]
    return apply(_REMAINDER, *[a if a.shape == size else apply(shape.broadcast_to, a, shape=size) for a in (x, y)])


def _divided(name: str, input: Any, other: Any) -> list[Any]:
    """The operands, promoted. Errors: ArgumentError for integers over 0, or over a number that their dtype makes 0 of."""
    x, y = promoted(as_operand(input), as_operand(other))
    if result_type(x, y).kind in "biu" and any_of(as_values(y) == 0):
        given = 0 if hasattr(other, "dtype") else other
        raise ArgumentError(f"{name}: other: got {given} beside integers, where it is 0, expected none")
    return [x, y]


def _remainder(x: Any, y: Any) -> tuple[Any, Vjp]:
    """fmod(x, y), which has x's sign, and y more where y's is another."""
    rest, quotient = np.fmod(x, y), np.floor_divide(x, y)
    return np.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest), lambda g: (g, -g * quotient)


_REMAINDER = Op("remainder", _remainder, (), {}, "", variadic=True, kinked=True)


def pow(input: Any, exponent: Any) -> Tensor:
    """input to the power of exponent.

    Errors: DtypeError for booleans to the power of booleans, ArgumentError for integers to a negative number: neither are
    integers.
    """
    x, y = as_operand(input), as_operand(exponent)
    integers = result_type(x, y).kind in "biu"
    if integers and isinstance(y, int) and y < 0:
        raise ArgumentError(f"pow: exponent: got {y} for integers, expected a floating dtype, or none below 0")
    if integers and isinstance(y, int) and hasattr(x, "dtype") and x.dtype != np.bool_:
        y = held("pow", "exponent", y, x.dtype)  # its lowest bits would be another power
    x, y = promoted(x, y)
    if _BOOL in (getattr(x, "dtype", None), getattr(y, "dtype", None)):
        raise DtypeError("pow: got booleans to the power of booleans, expected numbers")
    return Tensor.from_array(_integer_power(x, y)) if integers else apply(elementwise.pow, x, y)


def _integer_power(x: Any, y: Any) -> Any:
    """xʸ of integers; where y < 0 what is left of a fraction, ±1 for x = ±1 and else 0, as in torch."""
    dtype = result_type(x, y)
    a, b = [as_values(v) if hasattr(v, "dtype") else dtype.type(v) for v in (x, y)]
    below = b < 0
    if not any_of(below):
        return as_values(np.power(a, b))
    odd_ones = np.where(b % 2 == 0, 1, a)
    return as_values(np.where(below, np.where(np.abs(a) == 1, odd_ones, 0), np.power(a, np.where(below, 0, b))).astype(dtype))


def square(input: Any) -> Tensor:
    """x². Booleans give int64, as a power of theirs does."""
    x = as_array_like(input)
    return apply(elementwise.square, to(x, np.int64) if x.dtype == np.bool_ else x)


@guarded("result")
def reciprocal(input: Any) -> Tensor:
    """1 / x.   dx = −g / x²"""
    return div(1.0, floating(input))


@guarded("result")
@in_single
def rsqrt(input: Any) -> Tensor:
    """1 / √x.   dx = −g / (2 x √x)"""
    return div(1.0, sqrt(input))


def sign(input: Any) -> Tensor:
    """−1, 0 or 1, of nan 0 as in torch. The gradient is zero everywhere."""
    x = as_array_like(input)
    values = as_values(x)
    if x.dtype.kind == "f":
        return without_slope(np.where(values == values, np.sign(values), 0), x)
    return without_slope(values if x.dtype == np.bool_ else np.sign(values), x)


def without_slope(values: Any, *inputs: Any) -> Tensor:
    """The values as a function of the inputs whose gradient is zero: to add the sum of none of x changes nothing."""
    out = Tensor.from_array(as_values(values))
    for x in inputs:
        if getattr(x, "requires_grad", False):
            nothing = apply(shape.getitem, apply(shape.reshape, x, shape=(-1,)), index=slice(0, 0))
            out = apply(elementwise.add, out, apply(reduce.sum, nothing))
    return out


def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """min(max(x, min), max); bounds are numbers, or tensors that broadcast.

    dx = g where min < x < max. At a bound that is a number dx = 0, at one that is a tensor x and the bound take half each,
    as in torch since 2.14; in earlier versions x took all of it.
    """
    if min is None and max is None:
        raise ArgumentError("clamp: got neither min nor max, expected at least one of them")
    if wrong := [bound for bound in (min, max) if isinstance(bound, str)]:
        raise TypeError(f"clamp: min, max: got {wrong[0]!r}, expected numbers or tensors")
    x, low, high = as_operand(input), as_operand(min), as_operand(max)
    bounds = [a for a in (low, high) if a is not None]
    dtype = result_type(x, *bounds)
    low, high = _within(dtype, "min", low), _within(dtype, "max", high)
    if dtype == np.bool_ and not (len(bounds) == 1 and hasattr(bounds[0], "dtype")):  # one tensor: the maximum, of booleans too
        raise DtypeError("clamp: input: got booleans, expected numbers")
    if hasattr(low, "dtype") or hasattr(high, "dtype"):
        broadcast_shape("clamp", input=np.shape(x), min=np.shape(low), max=np.shape(high))
        x = x if low is None else maximum(x, low)
        return x if high is None else minimum(x, high)
    return apply(elementwise.clamp, to(as_array_like(x), dtype), min=low, max=high)


def _within(dtype: np.dtype, name: str, bound: Any) -> Any:
    """A bound as this dtype holds it; of integers, one beyond all of them is the last of them. Errors: one that none keeps."""
    if bound is None or hasattr(bound, "dtype") or dtype.kind not in "iuf":
        return bound
    if dtype.kind == "f":
        return held("clamp", name, bound, dtype)
    limits = np.iinfo(dtype)
    if (bound > limits.max) if name == "min" else (bound < limits.min):
        raise ArgumentError(f"clamp: {name}: got {bound}, expected a bound that {dtype} can hold")
    return held("clamp", name, min(max(bound, limits.min), limits.max), dtype)


def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """input where condition holds, else other; all three broadcast. With condition alone: the indices where it holds."""
    if input is None and other is None:
        return tuple(Tensor.from_array(i) for i in np.nonzero(np.atleast_1d(np.asarray(condition))))
    x, y = as_operand(input), as_operand(other)
    dtype = result_type(x, y)
    if dtype.kind in "iuf":
        x, y = [a if hasattr(a, "dtype") else held("where", name, a, dtype) for name, a in (("input", x), ("other", y))]
    return apply(elementwise.where, as_mask("where", "condition", condition), *promoted(x, y))


def masked_fill(input: Any, mask: Any, value: Any) -> Tensor:
    """input with value, a number or a 0-d tensor, wherever mask is True; the dtype stays input's, as in torch."""
    if isinstance(value, complex) or getattr(getattr(value, "dtype", None), "kind", "") == "c":
        raise DtypeError(f"masked_fill: value: got {value}, expected a real number")
    x, fill = as_array_like(input), as_operand(value)
    if np.ndim(fill):
        raise ArgumentError(f"masked_fill: value: got shape {np.shape(fill)}, expected a number or a 0-d tensor")
    if hasattr(fill, "dtype"):
        fill = to(fill, x.dtype)
    elif fill is not None:
        fill = bool(fill) if x.dtype == np.bool_ else held("masked_fill", "value", fill, x.dtype)
    return where(as_mask("masked_fill", "mask", mask), fill, x)


def as_mask(name: str, argument: str, mask: Any) -> Any:
    """A mask as an operand. Errors: DtypeError where it is of numbers, as in torch: which of them are true is not said."""
    found = mask if hasattr(mask, "dtype") else np.asarray(mask)
    if found.dtype != np.bool_:
        raise DtypeError(f"{name}: {argument}: got dtype {found.dtype}, expected booleans")
    return found


def broadcast_shape(name: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """What the shapes of the arguments broadcast to. Errors: ShapeError, which names the first that does not fit."""
    shape: tuple[int, ...] = ()
    for argument, size in shapes.items():
        try:
            shape = np.broadcast_shapes(shape, size)
        except ValueError:
            raise ShapeError(f"{name}: {argument}: got shape {size}, expected one that broadcasts with {shape}") from None
    return shape
