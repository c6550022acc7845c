"""Functions that move elements without changing them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, apply, tensors_of, unwrap_index
from tinygrad_llm.functions.base import (
    Dim,
    as_array_like,
    axis_of,
    dims_of,
    dtype_of,
    names_none,
    no_view,
    result_type,
    spelled,
    to,
    variadic,
    whole,
    whole_tuple,
)
from tinygrad_llm.functions.elementwise import where
from tinygrad_llm.ops import ArgumentError, IndexRangeError, ShapeError
from tinygrad_llm.ops import shape as moves
from tinygrad_llm.ops.opaque import as_values
from tinygrad_llm.ops.reduce import axes_of


@variadic("shape")
def reshape(input: Any, shape: Any) -> Tensor:
    """The same elements in row-major order under another shape; one size may be −1."""
    if shape and min(shape) < -1:
        raise ShapeError(f"reshape: shape: got {shape}, expected sizes of at least 0, or −1 for one of them")
    return apply(moves.reshape, input, shape=shape)


@variadic("size", name="view")
def _view(input: Any, size: Any, dtype: Any = None) -> Tensor:
    if dtype is not None:
        return _reinterpreted(input, dtype_of("view", dtype))
    out = reshape(input, size)
    if not np.may_share_memory(as_values(out), as_values(input)) and np.size(out):
        raise ShapeError(f"view: size: got {size} for shape {input.shape} in memory of another order, expected one that is a "
                         "view of it; use reshape()")
    return out


@functools.wraps(_view, assigned=())
def view(input: Any, *size: Any, **named: Any) -> Tensor:
    """reshape, where no element needs to move: the result shares input's memory. Errors: ShapeError where it cannot.

    x.view(dtype) reads the same bytes as numbers of another dtype, without a gradient; where those are of another width
    the last axis is longer or shorter.
    """
    if len(size) == 1 and isinstance(size[0], str | type | np.dtype):
        return _view(input, dtype=size[0], **named)
    return _view(input, *size, **named)


def _reinterpreted(input: Tensor, dtype: np.dtype) -> Tensor:
    out = input.detach()
    try:
        out._array = input._array.view(dtype)
    except ValueError as error:
        raise ShapeError(f"view: dtype: got {dtype} for {input.dtype} of shape {input.shape}, expected one that divides the "
                         f"last axis: {error}") from None
    return out


@spelled
def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes start_dim to end_dim as one; where they are one already, the tensor itself, as in torch."""
    start, end = axis_of("flatten", input, start_dim, "start_dim"), axis_of("flatten", input, end_dim, "end_dim")
    if not input.ndim:
        return reshape(input, (1,))
    if start > end:
        raise ShapeError(f"flatten: start_dim: got {start_dim}, expected none after end_dim = {end_dim}")
    if start == end:
        return as_array_like(input)
    return reshape(input, (*input.shape[:start], math.prod(input.shape[start : end + 1]), *input.shape[end + 1 :]))


@spelled
def squeeze(input: Any, dim: Dim = None) -> Tensor:
    """Without the axes of size 1 (all, or those in dim)."""
    drop = axes_of("squeeze", input, dims_of("squeeze", input, dim)) if not names_none(dim) else ()
    return reshape(input, tuple(n for i, n in enumerate(input.shape) if i not in drop or n != 1))


@spelled
def unsqueeze(input: Any, dim: int) -> Tensor:
    """With a new axis of size 1 at dim."""
    if not -input.ndim - 1 <= (at := whole("unsqueeze", "dim", dim)) <= input.ndim:
        raise IndexRangeError(f"unsqueeze: dim: got {dim}, expected {-input.ndim - 1} to {input.ndim}")
    at %= input.ndim + 1
    return reshape(input, (*input.shape[:at], 1, *input.shape[at:]))


# Axes in another order ---------------------------------------------------------------------------------------------------


@variadic("dims")
def permute(input: Any, dims: Any) -> Tensor:
    """Axis i of the result is axis dims[i] of input."""
    return apply(moves.permute, input, dims=dims)


@spelled
def transpose(input: Any, dim0: int, dim1: int) -> Tensor:
    """Axes dim0 and dim1 exchanged."""
    first, second = axis_of("transpose", input, dim0, "dim0"), axis_of("transpose", input, dim1, "dim1")
    dims = list(range(input.ndim))
    if dims:
        dims[first], dims[second] = dims[second], dims[first]
    return permute(input, dims)


@spelled
def swapaxes(input: Any, axis0: int, axis1: int) -> Tensor:
    """NumPy's name of transpose."""
    return transpose(input, axis0, axis1)


@spelled
def t(input: Any) -> Tensor:
    """A matrix transposed; vectors and 0-d stay as they are."""
    if input.ndim > 2:
        raise ShapeError(f"t: input: got shape {input.shape}, expected at most 2 axes")
    return permute(input, tuple(reversed(range(input.ndim))))


@spelled
def movedim(input: Any, source: Dim, destination: Dim) -> Tensor:
    """The axes `source` at the places `destination`; the others keep their order."""
    several = isinstance(source, tuple | list), isinstance(destination, tuple | list)
    ends: list[Any] = [d if isinstance(d, tuple | list) else (d,) for d in (source, destination)]
    if len(ends[0]) != len(ends[1]) or several[0] != several[1]:
        raise ShapeError(f"movedim: destination: got {destination}, expected as many axes as source = {source}")
    from_ = [axis_of("movedim", input, d, "source") for d in ends[0]]
    to_ = [axis_of("movedim", input, d, "destination") for d in ends[1]]
    if len(set(from_)) < len(from_) or len(set(to_)) < len(to_):
        raise ShapeError(f"movedim: source: got {source} to {destination}, expected each axis once")
    rest = iter([i for i in range(input.ndim) if i not in from_])
    placed = dict(zip(to_, from_))
    return permute(input, [placed[i] if i in placed else next(rest) for i in range(input.ndim)])


def copied(input: Any) -> Tensor:
    """The same elements in row-major order, in memory of their own."""
    return apply(moves.flip, input, dims=())  # reversed along no axis


@variadic("dims")
def flip(input: Any, dims: Any) -> Tensor:
    """The elements in reverse order along dims."""
    return apply(moves.flip, input, dims=axes_of("flip", input, dims_of("flip", input, dims)) if dims else ())


@spelled
def roll(input: Any, shifts: int | tuple[int, ...], dims: Dim = ()) -> Tensor:
    """Elements moved by shifts along dims, those that fall off coming in at the other end; without dims, as if flattened."""
    by = whole_tuple("roll", "shifts", shifts if isinstance(shifts, tuple | list) else (shifts,))
    if (dims is None or names_none(dims)) and len(by) == 1:
        return no_view(reshape(roll(reshape(input, -1), by, 0), input.shape))
    along: Any = dims if isinstance(dims, tuple | list) else (dims,)
    if len(by) != len(along) or not by:
        raise ShapeError(f"roll: shifts: got {shifts}, expected one for each of dims = {dims}")
    x = input
    for shift, dim in zip(by, along):
        n = x.shape[_split_axis("roll", x, dim)]
        cut = -shift % max(n, 1)
        x = cat([narrow(x, dim, cut, n - cut), narrow(x, dim, 0, cut)], dim) if cut else x
    return copied(x) if x is input or not as_values(x).flags.c_contiguous else x


# Repeated ----------------------------------------------------------------------------------------------------------------


@variadic("size")
def broadcast_to(input: Any, size: Any) -> Tensor:
    """input repeated along new leading axes and along axes of size 1; −1 stands for a size that stays."""
    return apply(moves.broadcast_to, input, shape=_kept_sizes("broadcast_to", input, size) if -1 in size else size)


@variadic("size")
def expand(input: Any, size: Any) -> Tensor:
    """torch.Tensor's name of broadcast_to."""
    return apply(moves.broadcast_to, input, shape=_kept_sizes("expand", input, size))


def _kept_sizes(name: str, input: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes with those of input in place of −1."""
    kept = (-1,) * (len(sizes) - input.ndim) + input.shape
    found = tuple([old if new == -1 else new for new, old in zip(sizes, kept)]) + sizes[len(kept) :]
    if found and min(found) < 0:
        raise ShapeError(f"{name}: size: got {sizes} for shape {input.shape}, expected −1 only for axes that there are")
    return found


@variadic("repeats")
def repeat(input: Any, repeats: Any) -> Tensor:
    """input laid side by side repeats[i] times along axis i, new axes in front: torch.Tensor.repeat, numpy.tile."""
    times = repeats
    if len(times) < input.ndim or min(times, default=0) < 0:
        raise ShapeError(f"repeat: repeats: got {times}, expected numbers for at least {input.ndim} axes")
    sizes = (1,) * (len(times) - input.ndim) + input.shape
    single = reshape(input, tuple(n for size in sizes for n in (1, size)))
    wide = broadcast_to(single, tuple(n for pair in zip(times, sizes) for n in pair))
    return no_view(reshape(copied(wide), tuple(n * size for n, size in zip(times, sizes))))


@variadic("dims")
def tile(input: Any, dims: Any) -> Tensor:
    """repeat, where leading axes may be left out of dims."""
    return repeat(input, (1,) * (input.ndim - len(dims)) + dims)


# Together and apart ------------------------------------------------------------------------------------------------------


@spelled
def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """The tensors one after another along dim, in their result type. As in torch, ones of shape (0,) fit everywhere."""
    parts, dim = _parts("cat", tensors), whole("cat", "dim", dim)
    if any(x.ndim == 0 for x in parts):
        raise ShapeError("cat: tensors: got one without axes, expected at least one axis each; stack() makes one")
    if len({(x.ndim, x.dtype) for x in parts}) > 1:
        dtype, like = result_type(*parts), next((x for x in parts if x.shape != (0,)), parts[0])
        none = tuple([0 if i == axis_of("cat", like, dim) else n for i, n in enumerate(like.shape)])
        parts = [to(reshape(x, none) if x.shape == (0,) else x, dtype) for x in parts]
    return apply(moves.cat, *parts, dim=dim)


@spelled
def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """The tensors side by side along a new axis dim."""
    parts = _parts("stack", tensors)
    for i, x in enumerate(parts):
        if x.shape != parts[0].shape:
            raise ShapeError(f"stack: tensors[{i}]: got shape {x.shape}, expected {parts[0].shape} as of tensors[0]")
    return cat([unsqueeze(x, dim) for x in parts], dim)


def _parts(name: str, tensors: Any) -> list[Any]:
    if not isinstance(tensors, tuple | list):
        raise TypeError(f"{name}: tensors: got {type(tensors).__name__}, expected a tuple or list of tensors")
    return [as_array_like(x) for x in tensors]


@spelled
def split(tensor: Any, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces of one size along dim, the last may be smaller; or pieces of the sizes that a list gives."""
    axis, sizes = _split_axis("split", tensor, dim), split_size_or_sections
    n, lead = tensor.shape[axis], (slice(None),) * axis
    if isinstance(sizes, tuple | list):
        sizes = whole_tuple("split", "split_sizes", sizes)
    else:
        sizes = whole("split", "split_size", sizes)
        if sizes < (n > 0):
            raise ArgumentError(f"split: split_size: got {sizes}, expected at least 1")
        sizes = [min(sizes, n - at) for at in range(0, n, sizes)] if n else [0]
    if sum(sizes) != n or min(sizes, default=0) < 0:
        raise ShapeError(f"split: split_sizes: got {tuple(sizes)}, expected sizes that add up to {n}")
    ends = list(itertools.accumulate(sizes))
    return tuple(getitem(tensor, (*lead, slice(end - size, end))) for end, size in zip(ends, sizes))


@spelled
def chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` pieces of equal size along dim, the last may be smaller."""
    if (chunks := whole("chunk", "chunks", chunks)) < 1:
        raise ArgumentError(f"chunk: chunks: got {chunks}, expected at least 1")
    n = input.shape[_split_axis("chunk", input, dim)]
    return split(input, -(-n // chunks) if n else [0] * chunks, dim)


@spelled
def unbind(input: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along dim, without that axis."""
    return tuple(select(input, dim, i) for i in range(input.shape[_split_axis("unbind", input, dim)]))


def _split_axis(name: str, x: Any, dim: int, argument: str = "dim") -> int:
    if not x.ndim:
        raise IndexRangeError(f"{name}: input: got a tensor without axes, expected at least one")
    return axis_of(name, x, dim, argument)


@spelled
def narrow(input: Any, dim: int, start: int, length: int) -> Tensor:
    """Elements start to start + length along dim."""
    axis = _split_axis("narrow", input, dim)
    n = input.shape[axis]
    start, length = whole("narrow", "start", start), whole("narrow", "length", length)
    first = start + n if start < 0 else start
    if length < 0 or not 0 <= first <= n - length:
        raise IndexRangeError(f"narrow: start: got {start} and length {length}, expected a part of axis {axis} of size {n}")
    return getitem(input, (slice(None),) * axis + (slice(first, first + length),))


@spelled
def select(input: Any, dim: int, index: int) -> Tensor:
    """The slice at index along dim, without that axis."""
    axis = _split_axis("select", input, dim)
    return getitem(input, (slice(None),) * axis + (whole("select", "index", index),))


def getitem(input: Any, index: Any) -> Tensor:
    """input[index], basic or advanced; unlike torch, slices may have negative steps."""
    return apply(moves.getitem, input, index=unwrap_index(index), watched=tensors_of(index))


# Parts of matrices -------------------------------------------------------------------------------------------------------


@spelled
def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements [..., i, i + offset] of axes dim1 and dim2, as the last axis, in input's memory."""
    one, two = _split_axis("diagonal", input, dim1, "dim1"), axis_of("diagonal", input, dim2, "dim2")
    offset = whole("diagonal", "offset", offset)
    if one == two:
        raise ShapeError(f"diagonal: dim2: got {dim2}, expected another axis than dim1 = {dim1}")
    return apply(moves.diagonal, movedim(input, (one, two), (-2, -1)), offset=offset)


@spelled
def triu(input: Any, diagonal: int = 0) -> Tensor:
    """The elements [..., i, j] with j − i ≥ diagonal; the others 0."""
    least = whole("triu", "diagonal", diagonal)
    return _part("triu", input, lambda ahead: ahead >= least)


@spelled
def tril(input: Any, diagonal: int = 0) -> Tensor:
    """The elements [..., i, j] with j − i ≤ diagonal; the others 0."""
    most = whole("tril", "diagonal", diagonal)
    return _part("tril", input, lambda ahead: ahead <= most)


def _part(name: str, x: Any, keep: Any) -> Tensor:
    if x.ndim < 2:
        raise ShapeError(f"{name}: input: got shape {x.shape}, expected at least 2 axes")
    return where(keep(np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]), x, False)
