"""Elements taken from, and written to, places that integers name. Nothing is written to in place: the result is new."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, apply, as_index, unwrap_index
from tinygrad_llm.functions.base import as_array_like, axis_of, flag, no_view, only, spelled
from tinygrad_llm.functions.elementwise import add, broadcast_shape, mul, where
from tinygrad_llm.functions.shapes import broadcast_to, copied, getitem, reshape
from tinygrad_llm.ops import DtypeError, IndexRangeError, ShapeError, shape
from tinygrad_llm.ops.checks import check_below


@spelled
def gather(input: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Tensor:
    """out[i, j, k] = input[i, index[i, j, k], k] for dim 1; index may be smaller than input along the other axes."""
    only("gather", "sparse_grad", sparse_grad)
    i = _integers("gather", index)
    if not i.size:
        axis_of("gather", input, dim)
        return no_view(reshape(getitem(reshape(input, -1), slice(0, 0)), i.shape))
    if max(i.ndim, input.ndim) <= 1:  # 0-d counts as one axis of size 1
        input, size, i = reshape(input, -1), i.shape, i.reshape(-1)
        return no_view(reshape(_taken(input, _mesh("gather", input, dim, i), index), size))
    return _taken(input, _mesh("gather", input, dim, i), index)


@spelled
def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Tensor:
    """gather, where input and indices broadcast along the other axes; without dim, of both flattened.

    Unlike gather's, indices may count from the end, as in torch.
    """
    i = _integers("take_along_dim", indices)
    if dim is None:
        flat = _from_start(i, int(input.size)).reshape(-1)
        return _taken(reshape(input, -1), _mesh("take_along_dim", reshape(input, -1), 0, flat), indices)
    if i.ndim != input.ndim:
        raise ShapeError(f"take_along_dim: indices: got shape {i.shape}, expected {input.ndim} axes as of input {input.shape}")
    if not input.ndim:
        raise ShapeError("take_along_dim: input: got a tensor without axes, expected at least one")
    axis = axis_of("take_along_dim", input, dim)
    own, asked = [(*size[:axis], 1, *size[axis + 1 :]) for size in (input.shape, i.shape)]
    others = broadcast_shape("take_along_dim", input=own, indices=asked)
    wide, taken = [(*others[:axis], *size[axis : axis + 1], *others[axis + 1 :]) for size in (input.shape, i.shape)]
    i = np.broadcast_to(_from_start(i, input.shape[axis]), taken)
    x = input if input.shape == wide else broadcast_to(input, wide)
    return _taken(x, _mesh("take_along_dim", x, axis, i), indices) if i.size else gather(x, axis, i)


def _from_start(index: Any, size: int) -> Any:
    """Indices from −size on as indices from 0 on."""
    return np.where(index < 0, index + size, index)


@spelled
def index_select(input: Any, dim: int, index: Any) -> Tensor:
    """The slices of input at the places index [n] along dim."""
    axis, i = axis_of("index_select", input, dim), _index_vector("index_select", input, dim, index)
    if input.ndim:
        return _taken(input, (slice(None),) * axis + (i,), index)
    if i.size != 1:
        raise ShapeError(f"index_select: index: got {i.size} places, expected one, for input has no axes")
    return copied(input)


@spelled
def index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Tensor:
    """input with alpha · source[..., k, ...] added at place index[k] along dim; repeated places add up."""
    axis, i = axis_of("index_add", input, dim), _index_vector("index_add", input, dim, index)
    expected = (*input.shape[:axis], i.size, *input.shape[axis + 1 :])
    values = _like("index_add", "source", input, source)
    if not input.ndim and values.size == i.size == 1:
        return add(input, reshape(mul(values, alpha), ()))
    if values.shape != expected:
        raise ShapeError(f"index_add: source: got shape {values.shape}, expected {expected}")
    scaled = values if alpha == 1 else mul(values, alpha)
    return add(input, _placed(scaled, (slice(None),) * axis + (i,), input.shape, index))


@spelled
def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Tensor:
    """input with src[i, j, k] added at [i, index[i, j, k], k] for dim 1; repeated places add up."""
    values, i = _like("scatter_add", "src", input, src), _integers("scatter_add", index)
    if not i.size:
        axis_of("scatter_add", input, dim)
        none = getitem(reshape(values, -1), slice(0, 0))
        return add(input, reshape(_placed(none, slice(0, 0), (input.size,)), input.shape))
    if max(values.ndim, i.ndim, input.ndim) == 1 and input.ndim * i.ndim * values.ndim == 0:  # 0-d counts as one axis of size 1
        return no_view(reshape(scatter_add(reshape(input, -1), dim, reshape(index, -1), reshape(values, -1)), input.shape))
    places, size = _mesh("scatter_add", input, dim, i), i.shape
    if values.ndim != len(size) or any(n < m for n, m in zip(values.shape, size)):
        raise ShapeError(f"scatter_add: src: got shape {values.shape}, expected at least that of index, {size}")
    if values.shape != size:
        values = getitem(values, tuple(slice(0, n) for n in size))
    return add(input, _placed(values, places, input.shape, index))


@spelled
def index_put(input: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Tensor:
    """input with values, broadcast to input[indices], in those places; or added there, repeated places adding up.

    Without accumulate the last value of a repeated place stays, and takes the whole gradient.
    """
    flag("index_put", "accumulate", accumulate)
    if not isinstance(indices, tuple | list) or any(i is None for i in indices):
        raise TypeError(f"index_put: indices: got {reprlib.repr(indices)}, expected a tuple of tensors")
    index = unwrap_index(tuple(indices))
    places = _positions("index_put", input.shape, index)
    given = broadcast_to(_like("index_put", "values", input, values), places.shape)
    if accumulate or not places.size:
        return add(input, _placed(given, index, input.shape, *indices))
    last = np.full(int(np.prod(input.shape)), -1)
    last[places.reshape(-1)] = np.arange(places.size)
    chosen = _taken(reshape(given, -1), np.maximum(last, 0).reshape(input.shape), *indices)
    return where(last.reshape(input.shape) >= 0, chosen, input)


def _taken(input: Any, index: Any, *given: Any) -> Tensor:
    """input[index], an index that was made of what was given."""
    return apply(shape.getitem, input, index=index, watched=given)


def _placed(values: Tensor, index: Any, size: tuple[int, ...], *given: Any) -> Tensor:
    """Zeros with values added at index, which was made of what was given."""
    return apply(shape.scatter, values, index=index, shape=size, watched=given)


def _positions(name: str, size: tuple[int, ...], index: Any) -> Any:
    """The place of each element of x[index] in the flattened x of this size."""
    all_places = np.arange(int(np.prod(size))).reshape(size)
    shape.check_unambiguous(all_places, index, name)
    try:
        return all_places[index]
    except IndexError as error:
        shown = " ".join(repr(index).split())
        raise IndexRangeError(f"{name}: indices: got {shown} for shape {size}, expected ones inside: {error}") from None


def _like(name: str, argument: str, input: Any, values: Any) -> Any:
    x = as_array_like(values)
    if x.dtype != input.dtype:
        raise DtypeError(f"{name}: {argument}: got dtype {x.dtype}, expected {input.dtype} as of input")
    return x


def _integers(name: str, index: Any) -> Any:
    i = as_index(index)
    if i.dtype.kind not in "iu" and i.size:
        raise DtypeError(f"{name}: index: got dtype {i.dtype}, expected integers")
    return i.astype(np.int64, copy=False)


def _index_vector(name: str, input: Any, dim: int, index: Any) -> Any:
    i = _integers(name, index)
    if i.ndim > 1:
        raise ShapeError(f"{name}: index: got shape {i.shape}, expected one axis")
    check_below(i, input.shape[axis_of(name, input, dim)] if input.ndim else 1, f"{name}: index", "size of the axis")
    return i.reshape(-1)


def _mesh(name: str, input: Any, dim: int, index: Any) -> tuple[Any, ...]:
    """The index of input that takes index[...] along dim and each element's own place along the other axes."""
    i, axis = _integers(name, index), axis_of(name, input, dim)
    if i.ndim != input.ndim or any(n > m for k, (n, m) in enumerate(zip(i.shape, input.shape)) if k != axis):
        raise ShapeError(f"{name}: index: got shape {i.shape}, expected none longer than {input.shape} but along axis {axis}")
    check_below(i, input.shape[axis] if input.ndim else 1, f"{name}: index", "size of the axis")
    own = np.ogrid[tuple(slice(n) for n in i.shape)] if i.ndim else ()
    return tuple(i if k == axis else own[k] for k in range(i.ndim))
