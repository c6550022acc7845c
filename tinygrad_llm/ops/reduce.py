"""Ops that reduce axes. `dim` is None (all axes), an int, or a tuple of ints; `keepdim` keeps reduced axes with size 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.ops.declare import Vjp, compute, op
from tinygrad_llm.ops.elementwise import kept_where
from tinygrad_llm.ops.errors import ArgumentError, IndexRangeError
from tinygrad_llm.ops.shape import flipped
from tinygrad_llm.ops.sums import total

Dims = int | tuple[int, ...] | None

_DIMS = {"dim": (None, 0, -1, (0, 2), (0, 1, 2)), "keepdim": (False, True)}


def axes_of(name: str, x: Any, dim: Dims) -> tuple[int, ...]:
    """`dim` as a sorted tuple of axes in [0, x.ndim). Errors: IndexRangeError out of range, ArgumentError where repeated."""
    if dim is None or (isinstance(dim, tuple | list) and len(dim) == 0):
        return tuple(range(x.ndim))
    dims = (dim,) if isinstance(dim, int | np.integer) else tuple(dim)
    for d in dims:
        if not -max(x.ndim, 1) <= d < max(x.ndim, 1):
            raise IndexRangeError(f"{name}: dim: got {d}, expected {-x.ndim} to {x.ndim - 1} for shape {x.shape}")
    axes = tuple(sorted(d % x.ndim for d in dims)) if x.ndim else ()
    if len(set(axes)) != len(axes):
        raise ArgumentError(f"{name}: dim: got {dim}, expected each axis once")
    return axes


def _kept(x: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


@op(x="*A e.g. M N K", options=_DIMS, torch="torch.sum(x, dim, keepdim)")
def sum(x: Any, dim: Dims = None, keepdim: bool = False) -> tuple[Any, Vjp]:
    """Σ x over dim.   dx = g, repeated along dim"""
    axes = axes_of("sum", x, dim)
    kept, shape = _kept(x, axes), x.shape
    return total(x, axes, keepdim), lambda g: (np.broadcast_to(g.reshape(kept), shape),)


@op(x="*A e.g. M N K", options=_DIMS, torch="torch.mean(x, dim, keepdim)")
def mean(x: Any, dim: Dims = None, keepdim: bool = False) -> tuple[Any, Vjp]:
    """Σ x / n over dim, n the number of elements added.   dx = g / n, repeated along dim"""
    axes = axes_of("mean", x, dim)
    kept, shape = _kept(x, axes), x.shape
    n = math.prod([shape[i] for i in axes])
    with np.errstate(invalid="ignore", divide="ignore"):  # the mean of nothing is nan, as in torch
        return total(x, axes, keepdim) / n, lambda g: (np.broadcast_to(g.reshape(kept) / n, shape),)


@op(x="*A e.g. M N K distinct", options=_DIMS, torch="torch.amax(x, () if dim is None else dim, keepdim)")
def amax(x: Any, dim: Dims = None, keepdim: bool = False) -> tuple[Any, Vjp]:
    """max x over dim.   dx = g at the largest, shared equally among ties, as in torch.amax"""
    return _extreme("amax", np.max, x, dim, keepdim)


@op(x="*A e.g. M N K distinct", options=_DIMS, torch="torch.amin(x, () if dim is None else dim, keepdim)")
def amin(x: Any, dim: Dims = None, keepdim: bool = False) -> tuple[Any, Vjp]:
    """min x over dim.   dx = g at the smallest, shared equally among ties, as in torch.amin"""
    return _extreme("amin", np.min, x, dim, keepdim)


@op(x="*A e.g. M N K distinct", torch="torch.max(x)")
def max_of_all(x: Any) -> tuple[Any, Vjp]:
    """max x.   dx = g at the largest, shared equally among ties, or among those that are nan, as in torch.max"""
    return _extreme("max_of_all", np.max, x, None, False, takes_nan=True)


@op(x="*A e.g. M N K distinct", torch="torch.min(x)")
def min_of_all(x: Any) -> tuple[Any, Vjp]:
    """min x.   dx = g at the smallest, shared equally among ties, or among those that are nan, as in torch.min"""
    return _extreme("min_of_all", np.min, x, None, False, takes_nan=True)


def _extreme(name: str, find: Any, x: Any, dim: Dims, keepdim: bool, takes_nan: bool = False) -> tuple[Any, Vjp]:
    axes = axes_of(name, x, dim)
    if any(x.shape[i] == 0 for i in axes):
        raise IndexRangeError(f"{name}: input: got shape {x.shape}, expected at least one element along dim {dim}")
    kept = _kept(x, axes)
    found = find(x, axes, keepdims=True)
    here = (x == found) | (x != x) if takes_nan else x == found

    def vjp(g: Any) -> tuple[Any]:
        count = np.sum(here, axis=axes, keepdims=True, dtype=g.dtype)
        nobody = count == 0  # beside a nan none is the largest: all are nan, as in torch
        share = np.where(nobody, math.nan, g.reshape(kept) / np.maximum(count, 1))
        return (kept_where(share, here | nobody),)

    return found if keepdim else found.reshape(tuple(n for i, n in enumerate(x.shape) if i not in axes)), vjp


@op(x="*A e.g. M N K", options={"dim": (0, 1, -1)}, torch="torch.cumsum(x, dim)")
def cumsum(x: Any, dim: int) -> tuple[Any, Vjp]:
    """yᵢ = Σ x₀ … xᵢ along dim, added up in float64 as in torch.   dxᵢ = Σ gᵢ … gₙ, the same from the other end"""
    axis = axes_of("cumsum", x, dim)
    return _cumsum(x, axis), lambda g: (flipped(_cumsum(flipped(g, axis), axis), axis),)


def _cumsum(x: Any, axis: tuple[int, ...]) -> Any:
    if hasattr(x, "__apply_op__"):
        return compute(cumsum, x, dim=axis[0] if axis else 0)
    wide = np.result_type(x.dtype, np.float64) if x.dtype.kind in "fc" else x.dtype
    return np.cumsum(x, axis[0], dtype=wide).astype(x.dtype) if axis else x + 0


@op(x="*A e.g. M N K", options=_DIMS, torch="torch.logsumexp(x, (0, 1, 2) if dim is None else dim, keepdim)")
def logsumexp(x: Any, dim: Dims = None, keepdim: bool = False) -> tuple[Any, Vjp]:
    """ln Σ eˣ over dim, with the largest taken out first so that nothing overflows.   dx = g · softmax(x)"""
    axes = axes_of("logsumexp", x, dim)
    kept = _kept(x, axes)
    largest = np.max(x, axes, keepdims=True) if x.size else np.full(kept, -np.inf, x.dtype)
    shift = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):  # ln Σ over nothing is −∞
        out = shift + np.log(total(np.exp(x - shift), axes, keepdims=True))
    shape = kept if keepdim else tuple(n for i, n in enumerate(x.shape) if i not in axes)
    return out.reshape(shape), lambda g: (g.reshape(kept) * np.exp(x - out),)
