"""The NumPy functions that tensors stand in for: `np.clip(t, 0, 1)` gives a Tensor, with its gradient.

Each has NumPy's own arguments (axis, keepdims, ddof, …). Those that no op takes (out, dtype, where, initial) are refused.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from tinygrad_llm.autograd import NUMPY, Tensor
from tinygrad_llm.functions import contraction, elementwise, indexing, products, reductions, shapes
from tinygrad_llm.functions.base import as_operand, dims_of, floating, names_none
from tinygrad_llm.ops import ShapeError
from tinygrad_llm.ops.opaque import as_values
from tinygrad_llm.ops.reduce import axes_of

e, r, p, s, i = elementwise, reductions, products, shapes, indexing
Axis = int | tuple[int, ...] | None


def stands_for(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """@stands_for(np.f): the function is what np.f does to tensors."""

    def wrap(ours: Callable[..., Any]) -> Callable[..., Any]:
        NUMPY.update(dict.fromkeys(functions, _refusing(functions[0], ours)))
        return ours

    return wrap


def _refusing(function: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
    """ours, with an error that says so where an argument of NumPy's has no place in it."""
    signature = inspect.signature(ours)

    @functools.wraps(ours)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return ours(*args, **options)
        except TypeError:
            _check_arguments(function.__name__, signature, args, options)
            raise

    return call


def _check_arguments(name: str, signature: inspect.Signature, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise TypeError(f"{name}: {error}: got an argument that is for ndarrays alone, expected some of {names}. "
                        "Use tinygrad_llm's functions, or x.numpy() where no gradient is wanted") from None


def _as_tuple(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, tuple | list) else (axis,)


def _listed(sizes: Any) -> Any:
    """Sizes that NumPy takes as an array, too."""
    return sizes.tolist() if isinstance(sizes, np.ndarray) else sizes


# Elementwise (ufuncs, called by position) --------------------------------------------------------------------------------

NUMPY.update({
    np.add: e.add, np.subtract: e.sub, np.multiply: e.mul, np.true_divide: e.div, np.negative: e.neg, np.exp: e.exp,
    np.expm1: e.expm1, np.log: e.log, np.log1p: e.log1p, np.sqrt: e.sqrt, np.square: e.square, np.sin: e.sin, np.cos: e.cos,
    np.tanh: e.tanh, np.abs: e.abs, np.fabs: e.abs, np.positive: lambda x: x, np.maximum: e.maximum, np.minimum: e.minimum,
    np.remainder: e.remainder, np.floor_divide: e.floor_divide, np.power: e.pow, np.matmul: p.matmul,
    np.reciprocal: e.reciprocal, np.vecdot: lambda x1, x2: r.sum(e.mul(x1, x2), -1),
    np.einsum: contraction.einsum,
})


@stands_for(np.where)
def _where(condition: Any, x: Any = None, y: Any = None) -> Any:
    return e.where(condition if as_values(condition).dtype == np.bool_ else as_values(condition).astype(bool), x, y)


@stands_for(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    low, high = a_min if min is None else min, a_max if max is None else max
    return a.clone() if low is None and high is None else e.clamp(a, low, high)


@stands_for(np.copy)
def _copy(a: Any) -> Tensor:
    return a.clone()


# Reductions --------------------------------------------------------------------------------------------------------------


def _over(axis: Axis, reduce: Callable[[Any, Any], Tensor], a: Any) -> Tensor:
    """reduce(a, axis). `axis=()` means no axis to NumPy and all to torch: then it is a new axis of size 1 that is reduced."""
    if not names_none(axis):
        return reduce(a, axis)
    return s.reshape(reduce(s.unsqueeze(a, 0), 0), a.shape)


@stands_for(np.sum)
def _sum(a: Any, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return _over(axis, lambda a, axis: r.sum(a, axis, keepdims), a)


@stands_for(np.mean)
def _mean(a: Any, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return _over(axis, lambda a, axis: r.mean(a, axis, keepdims), a)


@stands_for(np.max, np.amax)
def _max(a: Any, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return _over(axis, lambda a, axis: r.amax(a, axis, keepdims), a)


@stands_for(np.min, np.amin)
def _min(a: Any, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return _over(axis, lambda a, axis: r.amin(a, axis, keepdims), a)


@stands_for(np.var)
def _var(a: Any, axis: Axis = None, *, ddof: float = 0, keepdims: bool = False, correction: float | None = None) -> Tensor:
    less = ddof if correction is None else correction
    return _over(axis, lambda a, axis: r.var(a, axis, keepdim=keepdims, correction=less), a)


@stands_for(np.std)
def _std(a: Any, axis: Axis = None, *, ddof: float = 0, keepdims: bool = False, correction: float | None = None) -> Tensor:
    less = ddof if correction is None else correction
    return _over(axis, lambda a, axis: r.std(a, axis, keepdim=keepdims, correction=less), a)


@stands_for(np.prod)
def _prod(a: Any, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    if axis is None:
        return r.prod(a, None, keepdims)
    for dim in reversed(() if names_none(axis) else axes_of("prod", a, dims_of("prod", a, axis))):
        a = r.prod(a, dim, keepdims)
    return a


@stands_for(np.cumsum)
def _cumsum(a: Any, axis: int | None = None) -> Tensor:
    return r.cumsum(s.reshape(a, -1), 0) if axis is None else r.cumsum(a, axis)


@stands_for(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Axis = None, keepdims: bool = False) -> Tensor:
    matrices = x.ndim == 2 if axis is None else len(_as_tuple(axis)) == 2
    if ord is not None and ((ord != "fro") if matrices else (isinstance(ord, str) or (axis is None and x.ndim > 2))):
        raise TypeError(f"norm: ord: got {ord!r} for shape {x.shape} and axis {axis}, expected None, 'fro' for matrices, or a "
                        "number for vectors")
    return r.vector_norm(floating(x), 2 if ord is None or isinstance(ord, str) else ord, axis, keepdims)


@stands_for(np.linalg.vector_norm)
def _vector_norm(x: Any, /, *, axis: Axis = None, keepdims: bool = False, ord: float | None = 2) -> Tensor:
    return r.vector_norm(floating(x), 2 if ord is None else ord, axis, keepdims)


# Products ----------------------------------------------------------------------------------------------------------------


@stands_for(np.dot)
def _dot(a: Any, b: Any) -> Tensor:
    """Σ over the last axis of a and the last but one of b."""
    a, b = as_operand(a), as_operand(b)
    if not np.ndim(a) or not np.ndim(b):
        return e.mul(a, b)
    if b.ndim <= 2:
        return p.matmul(a, b)
    rows, columns = s.reshape(a, -1, a.shape[-1]), s.reshape(s.movedim(b, -2, 0), b.shape[-2], -1)
    return s.reshape(p.matmul(rows, columns), (*a.shape[:-1], *b.shape[:-2], b.shape[-1]))


@stands_for(np.inner)
def _inner(a: Any, b: Any) -> Tensor:
    """Σ over the last axes."""
    a, b = as_operand(a), as_operand(b)
    return _dot(a, b) if min(np.ndim(a), np.ndim(b)) == 0 or b.ndim == 1 else _dot(a, s.transpose(b, -1, -2))


@stands_for(np.outer)
def _outer(a: Any, b: Any) -> Tensor:
    return p.outer(s.reshape(a, -1), s.reshape(b, -1))


@stands_for(np.tensordot)
def _tensordot(a: Any, b: Any, axes: Any = 2) -> Tensor:
    if isinstance(axes, int | np.integer):
        axes = range(a.ndim - axes, a.ndim), range(axes)
    left, right = [[d % x.ndim for d in (_as_tuple(d) if isinstance(d, int | np.integer) else d)] for x, d in zip((a, b), axes)]
    names = {d: k for k, d in zip(left, right)}
    others = [a.ndim + d if d not in names else names[d] for d in range(b.ndim)]
    kept = [k for k in range(a.ndim) if k not in left] + [a.ndim + d for d in range(b.ndim) if d not in names]
    return contraction.einsum(a, list(range(a.ndim)), b, others, kept)


@stands_for(np.trace)
def _trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    return r.sum(s.diagonal(a, offset, axis1, axis2), -1)


# Shapes ------------------------------------------------------------------------------------------------------------------


@stands_for(np.reshape)
def _reshape(a: Any, shape: Any) -> Tensor:
    return s.reshape(a, _listed(shape))


@stands_for(np.ravel)
def _ravel(a: Any) -> Tensor:
    return a.ravel()


@stands_for(np.squeeze)
def _squeeze(a: Any, axis: Axis = None) -> Tensor:
    """Unlike torch's, it refuses an axis that is not of size 1."""
    axes = () if axis is None or names_none(axis) else axes_of("squeeze", a, dims_of("squeeze", a, axis))
    if any(a.shape[d] != 1 for d in axes):
        raise ShapeError(f"squeeze: axis: got {axis} for shape {a.shape}, expected axes of size 1")
    return s.squeeze(a, axis)


@stands_for(np.expand_dims)
def _expand_dims(a: Any, axis: Any) -> Tensor:
    dims = _as_tuple(axis)
    for dim in dims if len(dims) == 1 else sorted(normalize_axis_tuple(dims, a.ndim + len(dims))):
        a = s.unsqueeze(a, dim)
    return a


@stands_for(np.transpose)
def _transpose(a: Any, axes: Any = None) -> Tensor:
    return s.permute(a, tuple(reversed(range(a.ndim))) if axes is None else tuple(axes))


@stands_for(np.matrix_transpose)
def _matrix_transpose(x: Any, /) -> Tensor:
    return s.transpose(x, -1, -2)


@stands_for(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> Tensor:
    return s.transpose(a, axis1, axis2)


@stands_for(np.moveaxis)
def _moveaxis(a: Any, source: Any, destination: Any) -> Tensor:
    return s.movedim(a, source, destination)


@stands_for(np.broadcast_to)
def _broadcast_to(array: Any, shape: Any) -> Tensor:
    return s.broadcast_to(array, shape)


@stands_for(np.flip)
def _flip(m: Any, axis: Axis = None) -> Tensor:
    return s.flip(m, tuple(range(m.ndim)) if axis is None else _as_tuple(axis))


@stands_for(np.roll)
def _roll(a: Any, shift: Any, axis: Axis = None) -> Tensor:
    """Several shifts along one axis, or of all axes, add up; one goes along each axis that is given."""
    shifts, axes = _as_tuple(shift), (None,) if axis is None else _as_tuple(axis)
    if len(axes) == 1:
        return s.roll(a, sum(shifts), axes[0])
    return s.roll(a, shifts * len(axes) if len(shifts) == 1 else shifts, axes)


@stands_for(np.tile)
def _tile(A: Any, reps: Any) -> Tensor:
    return s.tile(A, _as_tuple(_listed(reps)))


@stands_for(np.triu)
def _triu(m: Any, k: int = 0) -> Tensor:
    return s.triu(m, k)


@stands_for(np.tril)
def _tril(m: Any, k: int = 0) -> Tensor:
    return s.tril(m, k)


@stands_for(np.diagonal)
def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    return s.diagonal(a, offset, axis1, axis2)


@stands_for(np.take)
def _take(a: Any, indices: Any, axis: int | None = None) -> Tensor:
    if axis is None:
        return s.getitem(s.reshape(a, -1), indices)
    return s.getitem(a, (slice(None),) * (axis % a.ndim) + (indices,))


@stands_for(np.take_along_axis)
def _take_along_axis(arr: Any, indices: Any, axis: int | None = -1) -> Tensor:
    return i.take_along_dim(arr, indices, axis)


# Together and apart ------------------------------------------------------------------------------------------------------


@stands_for(np.concatenate)
def _concatenate(arrays: Any, axis: int | None = 0) -> Tensor:
    return s.cat([s.reshape(a, -1) for a in arrays] if axis is None else list(arrays), axis or 0)


@stands_for(np.stack)
def _stack(arrays: Any, axis: int = 0) -> Tensor:
    return s.stack(list(arrays), axis)


def _with_axes(x: Any, ndim: int) -> Any:
    """x with axes of size 1 in front, as np.atleast_1d and np.atleast_2d give it."""
    return x if x.ndim >= ndim else s.reshape(x, (1,) * (ndim - x.ndim) + x.shape)


@stands_for(np.vstack)
def _vstack(tup: Any) -> Tensor:
    return s.cat([_with_axes(x, 2) for x in tup], 0)


@stands_for(np.hstack)
def _hstack(tup: Any) -> Tensor:
    parts = [_with_axes(x, 1) for x in tup]
    return s.cat(parts, 0 if parts[0].ndim == 1 else 1)


@stands_for(np.column_stack)
def _column_stack(tup: Any) -> Tensor:
    return s.cat([s.reshape(x, -1, 1) if x.ndim < 2 else x for x in tup], 1)


@stands_for(np.array_split)
def _array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    """Parts that begin at the indices; or a number of parts, of which the first are larger by one."""
    n = ary.shape[axis]
    if not np.ndim(indices_or_sections):
        if indices_or_sections <= 0:
            raise ShapeError(f"array_split: indices_or_sections: got {indices_or_sections}, expected a number above 0")
        size, extra = divmod(n, indices_or_sections)
        return list(s.split(ary, [size + (k < extra) for k in range(indices_or_sections)], axis))
    ends = [0, *[slice(None, end).indices(n)[1] for end in indices_or_sections], n]
    return [s.narrow(ary, axis, start, max(end - start, 0)) for start, end in pairwise(ends)]


@stands_for(np.split)
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Tensor]:
    if not np.ndim(indices_or_sections) and (indices_or_sections <= 0 or ary.shape[axis] % indices_or_sections):
        raise ShapeError(f"split: indices_or_sections: got {indices_or_sections}, expected one that divides {ary.shape[axis]}")
    return _array_split(ary, indices_or_sections, axis)


@stands_for(np.hsplit)
def _hsplit(ary: Any, indices_or_sections: Any) -> list[Tensor]:
    return _split(ary, indices_or_sections, 0 if ary.ndim == 1 else 1)


@stands_for(np.vsplit)
def _vsplit(ary: Any, indices_or_sections: Any) -> list[Tensor]:
    return _split(ary, indices_or_sections, 0)


@stands_for(np.broadcast_arrays)
def _broadcast_arrays(*args: Any) -> tuple[Tensor, ...]:
    shape = e.broadcast_shape("broadcast_arrays", **{f"args[{k}]": np.shape(x) for k, x in enumerate(args)})
    return tuple([s.broadcast_to(x, shape) for x in args])
