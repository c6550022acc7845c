"""Functions that reduce axes. `dim` is None (all axes), an int or several; `keepdim` keeps reduced axes with size 1."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd import Tensor, apply
from tinygrad_llm.functions.base import (
    Dim,
    as_array_like,
    as_operand,
    axis_of,
    dims_of,
    floating,
    guarded,
    in_single,
    no_view,
    numeric,
    only_floats,
    spelled,
    summable,
    to,
    whole,
)
from tinygrad_llm.functions.elementwise import abs, maximum, minimum, mul, pow, sqrt, square, where
from tinygrad_llm.functions.indexing import take_along_dim
from tinygrad_llm.functions.shapes import cat, copied, reshape, squeeze, transpose
from tinygrad_llm.ops import ArgumentError, IndexRangeError, Op, Vjp, elementwise, nn, reduce
from tinygrad_llm.ops.numbers import plain
from tinygrad_llm.ops.opaque import any_of, as_values
from tinygrad_llm.ops.reduce import axes_of


class ValuesIndices(NamedTuple):
    """What max and min over one dim return: torch.return_types.max."""

    values: Tensor
    indices: Tensor


@in_single
def _reduced(x: Any, op: Op, dim: Dim, keepdim: bool) -> Tensor:
    return apply(op, x, dim=dims_of(op.name, x, dim), keepdim=keepdim)


def _in(dtype: Any, x: Tensor) -> Tensor:
    """x in the dtype that was asked for: NumPy adds small integers as int64."""
    return x if dtype is None else to(x, dtype)


@spelled
def sum(input: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Σ over dim (None: over all axes); 0 over nothing. Integers and booleans give int64."""
    return _in(dtype, _reduced(summable("sum", input, dtype), reduce.sum, dim, keepdim))


@spelled
def mean(input: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean over dim (None: over all axes); nan over nothing."""
    x = only_floats("mean", input if dtype is None else to(as_array_like(input), dtype))
    return _reduced(x, reduce.mean, dim, keepdim)


@spelled
@guarded("input", "result")
def amax(input: Any, dim: Dim = (), keepdim: bool = False) -> Tensor:
    """The largest over dim; ties share the gradient."""
    return _reduced(as_array_like(input), reduce.amax, dim, keepdim)


@spelled
@guarded("input", "result")
def amin(input: Any, dim: Dim = (), keepdim: bool = False) -> Tensor:
    """The smallest over dim; ties share the gradient."""
    return _reduced(as_array_like(input), reduce.amin, dim, keepdim)


@spelled
def max(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    """The largest of all; over one dim (values, indices), where the first of equals takes the gradient; or maximum(x, y)."""
    if other is not None or (hasattr(dim, "dtype") and not isinstance(dim, np.generic)):
        return maximum(input, dim if other is None else other)
    x = as_array_like(input)
    return _of_all(x, reduce.max_of_all, keepdim) if dim is None else _chosen("max", np.argmax, x, dim, keepdim)


@spelled
def min(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    """The smallest of all; over one dim (values, indices), where the first of equals takes the gradient; or minimum(x, y)."""
    if other is not None or (hasattr(dim, "dtype") and not isinstance(dim, np.generic)):
        return minimum(input, dim if other is None else other)
    x = as_array_like(input)
    return _of_all(x, reduce.min_of_all, keepdim) if dim is None else _chosen("min", np.argmin, x, dim, keepdim)


@guarded("input", "result")
@in_single
def _of_all(x: Any, op: Op, keepdim: bool) -> Tensor:
    return no_view(reshape(apply(op, x), (1,) * x.ndim)) if keepdim else apply(op, x)


def _chosen(name: str, find: Any, x: Any, dim: int, keepdim: bool) -> ValuesIndices:
    """The values that `find` points at along dim, and where they are."""
    axis = axis_of(name, x, dim)
    if not x.ndim:
        return ValuesIndices(copied(x), Tensor.from_array(np.zeros((), np.int64)))
    _need_elements(name, x, axis)
    at = Tensor.from_array(find(as_values(x), axis, keepdims=True))
    values = take_along_dim(x, at, axis)
    return ValuesIndices(*[a if keepdim else no_view(squeeze(a, axis)) for a in (values, at)])


def _need_elements(name: str, x: Any, axis: int | None) -> None:
    if (x.size if axis is None or not x.ndim else x.shape[axis]) == 0:
        raise IndexError(f"{name}: input: got shape {x.shape}, expected at least one element"
                         + ("" if axis is None else f" along dim {axis}"))


@spelled
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the largest; the first of equals. No gradient."""
    return _index_of("argmax", np.argmax, input, dim, keepdim)


@spelled
def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the smallest; the first of equals. No gradient."""
    return _index_of("argmin", np.argmin, input, dim, keepdim)


def _index_of(name: str, find: Any, input: Any, dim: int | None, keepdim: bool) -> Tensor:
    x = as_values(numeric(name, input))
    axis = None if dim is None else axis_of(name, x, dim)
    _need_elements(name, x, axis)
    return Tensor.from_array(as_values(find(x, axis=axis if x.ndim else None, keepdims=keepdim)))


@spelled
@guarded("result")
def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Π over dim (None: over all axes); 1 over nothing. Integers and booleans give int64.

    Halves are multiplied with each other until one factor is left: each gradient is then the product of all the others,
    also where some of them are zero.
    """
    return _prod(summable("prod", input, dtype), dim, keepdim)


@in_single
def _prod(x: Any, dim: int | None, keepdim: bool) -> Tensor:
    axis = 0 if dim is None else axis_of("prod", x, dim)
    if dim is None or not x.ndim:
        return no_view(reshape(_halved(reshape(x, -1)), (1,) * x.ndim if keepdim else ()))
    out = transpose(_halved(transpose(x, axis, -1)), axis, -1)
    return no_view(out if keepdim else squeeze(out, axis))


def _halved(x: Any) -> Any:
    """[..., n] → [..., 1], the product of the last axis, in memory of its own."""
    if x.shape[-1] == 1:
        return copied(x)
    while (n := x.shape[-1]) > 1:
        half = n // 2
        odd = x[..., 2 * half :]
        x = mul(x[..., :half], x[..., half : 2 * half])
        x = cat([x, odd], -1) if n % 2 else x
    return x if x.shape[-1] else sum(x, -1, True) + 1


@spelled
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Tensor:
    """Σ of the elements so far, along dim. Integers and booleans give int64."""
    return _in(dtype, apply(reduce.cumsum, summable("cumsum", input, dtype), dim=whole("cumsum", "dim", dim)))


@spelled
def logsumexp(input: Any, dim: Dim, keepdim: bool = False) -> Tensor:
    """ln Σ eˣ over dim, without overflow; −∞ over nothing."""
    return _reduced(floating(input), reduce.logsumexp, dim, keepdim)


@spelled
@guarded("input")
def var(
    input: Any, dim: Dim = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None
) -> Tensor:
    """Σ (x − mean)² / (n − correction) over dim; nan where n is not larger than correction and all are equal.

    correction is 1 by default. torch's older spellings of correction=0 hold too: var(x, dim, False), var(x, False).
    """
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if unbiased is not None and correction is not None:
        raise TypeError(f"var: correction: got {correction!r} beside unbiased = {unbiased!r}, expected one of them")
    less: float = unbiased in (None, True) if correction is None else plain(correction)
    if not isinstance(less, numbers.Real):
        raise TypeError(f"var: correction: got {correction!r}, expected a number")
    return _var(only_floats("var", input), dim, less, keepdim)


@in_single
def _var(x: Any, dim: Dim, less: float, keepdim: bool) -> Tensor:
    dim = dims_of("var", x, dim)
    n = math.prod([x.shape[i] for i in axes_of("var", x, dim)])
    if n > less:
        return _or_in_double(lambda x: _squares(x, mean(x, dim, True), dim, keepdim) / (n - less), x, least=-1)
    centre = mean(x, dim, True)
    squares = _squares(x, centre, dim, keepdim)
    return _undetermined(squares, x, as_values(x) == as_values(centre), dim, keepdim)


def _squares(x: Any, centre: Tensor, dim: Dim, keepdim: bool) -> Tensor:
    return sum(square(x - centre), dim, keepdim)


def _or_in_double(function: Callable[[Any], Tensor], x: Any, least: float = 1e-14) -> Tensor:
    """function(x), which adds up squares, which may have left float32 where it is not between least and ∞: then in float64."""
    found = function(x)
    if x.dtype != np.float32:
        return found
    values = as_values(found)
    beyond = ~((values > least) & (values < math.inf))
    return where(beyond, to(function(to(x, np.float64)), np.float32), found) if any_of(beyond) else found


def _undetermined(squares: Tensor, x: Any, central: Any, dim: Dim, keepdim: bool) -> Tensor:
    """Σ (x − mean)² / 0: nan where all are equal, else ∞, without torch's warning. So is its slope where x is the mean."""
    change = x - x.detach()
    if change.requires_grad:
        change.register_hook(lambda g: g * np.where(central, math.nan, math.inf).astype(x.dtype))
    with np.errstate(divide="ignore", invalid="ignore"):
        return squares.detach() / 0 + sum(change, dim, keepdim)


@spelled
@guarded("input", "result")
def std(
    input: Any, dim: Dim = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float | None = None
) -> Tensor:
    """√var. Where it is 0 its gradient is 0, as in torch."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return _std(only_floats("std", input), dim, unbiased, keepdim, correction)


@in_single
def _std(x: Any, dim: Dim, unbiased: bool | None, keepdim: bool, correction: float | None) -> Tensor:
    return _or_in_double(lambda x: _root(var(x, dim, unbiased, keepdim, correction=correction), 2), x)


def _root(x: Tensor, p: float) -> Tensor:
    """x to the power of 1/p, with slope 0 at 0: what norms and deviations have there, as in torch."""
    zero = as_values(x) == 0
    if not any_of(zero):
        return sqrt(x) if p == 2 else pow(x, 1 / p)
    rest = where(zero, 1.0, x)
    return where(zero, x.detach() if p > 0 else math.inf, sqrt(rest) if p == 2 else pow(rest, 1 / p))


@spelled
def softmax(input: Any, dim: int, dtype: Any = None) -> Tensor:
    """eˣ / Σ eˣ along dim."""
    return along_last(nn.softmax, input if dtype is None else to(as_array_like(input), dtype), dim)


@spelled
def log_softmax(input: Any, dim: int, dtype: Any = None) -> Tensor:
    """x − ln Σ eˣ along dim."""
    return along_last(nn.log_softmax, input if dtype is None else to(as_array_like(input), dtype), dim)


def along_last(op: Op, input: Any, dim: int) -> Tensor:
    """An op of the last axis, along another."""
    return _along_last(only_floats(op.name, as_operand(input)), op, dim)


@in_single
def _along_last(x: Any, op: Op, dim: int) -> Tensor:
    at = axis_of(op.name, x, dim)
    if not x.ndim:
        return no_view(reshape(apply(op, reshape(x, (1,))), ()))
    if 0 in x.shape:
        return apply(elementwise.mul, x, 1.0)
    return apply(op, x) if at == x.ndim - 1 else no_view(transpose(apply(op, transpose(x, at, -1)), at, -1))


# Norms -------------------------------------------------------------------------------------------------------------------


@spelled
@guarded("result")
def vector_norm(input: Any, ord: float = 2, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """(Σ |x|ᵖ)^(1/p) over dim, p = ord: torch.linalg.vector_norm. ±∞: the largest or smallest |x|; 0: how many are not 0.

    At 0 the gradient is 0, as in torch.
    """
    x = only_floats("vector_norm", input if dtype is None else to(as_array_like(input), dtype))
    if not isinstance(plain(ord), numbers.Real):
        raise TypeError(f"vector_norm: ord: got {ord!r}, expected a number")
    return _vector_norm(x, float(ord), dim, keepdim)


@in_single
def _vector_norm(x: Any, ord: float, dim: Dim, keepdim: bool) -> Tensor:
    dim = dims_of("vector_norm", x, dim)
    if ord == 0:
        return apply(_NOT_ZERO, x, dim=dim, keepdim=keepdim)
    if math.isinf(ord):
        return (amax if ord > 0 else amin)(abs(x), dim, keepdim)
    if ord == 1:
        return sum(abs(x), dim, keepdim)
    if ord < 0 and not math.prod([x.shape[i] for i in axes_of("vector_norm", x, dim)]):
        raise IndexRangeError(f"vector_norm: input: got shape {x.shape}, expected at least one element where ord is below 0")
    if ord == 2:
        return _or_in_double(lambda x: _root(sum(square(x), dim, keepdim), 2), x)
    return _power_norm(x, ord, dim, keepdim)


@guarded("input")
def _power_norm(x: Any, p: float, dim: Dim, keepdim: bool) -> Tensor:
    """In float64: powers of float32 are soon beyond it."""
    return to(_root(sum(_powers(abs(to(x, np.float64)), p), dim, keepdim), p), x.dtype)


def _not_zero(x: Any, dim: Dim, keepdim: bool) -> tuple[Any, Vjp]:
    """How many are not 0. It has no gradient, as in torch: not one of zeros."""
    return np.sum(x != 0, axes_of("vector_norm", x, dim), keepdims=keepdim).astype(x.dtype), lambda g: (None,)


_NOT_ZERO = Op("not_zero", _not_zero, (), {}, "", variadic=True)


def _powers(x: Tensor, p: float) -> Tensor:
    """xᵖ, x ≥ 0, with slope 0 at 0."""
    zero = as_values(x) == 0
    if not any_of(zero):
        return pow(x, p)
    return where(zero, 0.0 if p > 0 else math.inf, pow(where(zero, 1.0, x), p))


@spelled
def norm(input: Any, p: float | str | None = "fro", dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """vector_norm over dim, or over all axes; "fro" and None mean 2. Errors: ValueError for a norm of matrices ("nuc")."""
    if isinstance(p, str) and p != "fro":
        raise ArgumentError(f"norm: p: got {p!r}, expected a number or 'fro'")
    return vector_norm(input, 2 if p is None or isinstance(p, str) else p, dim, keepdim, dtype=dtype)
