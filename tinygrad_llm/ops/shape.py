"""Ops that move elements without changing them: each vjp moves the cotangent back."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_llm.ops.declare import Vjp, compute, op
from tinygrad_llm.ops.errors import DtypeError, IndexRangeError, ShapeError
from tinygrad_llm.ops.opaque import opaque
from tinygrad_llm.ops.sums import total

Shape = tuple[int, ...]


@op(x="*A e.g. 6 4", options={"shape": ((24,), (2, 12), (-1, 8), (3, 2, 4, 1))}, torch="torch.reshape(x, shape)")
def reshape(x: Any, shape: Shape) -> tuple[Any, Vjp]:
    """The same elements in row-major order under another shape; one size may be −1.   dx = g, reshaped back"""
    old = x.shape
    try:
        return x.reshape(shape), lambda g: (g.reshape(old),)
    except ValueError:
        raise ShapeError(f"reshape: shape: got {shape}, expected one with the {x.size} elements of {x.shape}") from None


@op(x="*A e.g. M N K", options={"dims": ((0, 1, 2), (2, 0, 1), (1, 0, 2), (-1, 0, 1))}, torch="torch.permute(x, dims)")
def permute(x: Any, dims: Shape) -> tuple[Any, Vjp]:
    """Axis i of the result is axis dims[i] of x.   dx = g under the inverse permutation"""
    if sorted(d % x.ndim if -x.ndim <= d < x.ndim else d for d in dims) != list(range(x.ndim)):
        raise ShapeError(f"permute: dims: got {dims}, expected each axis of shape {x.shape} once")
    back = tuple(int(i) for i in np.argsort([d % x.ndim for d in dims]))
    return np.transpose(x, dims), lambda g: (np.transpose(g, back),)


@op(x="*A e.g. 1 3 1", options={"shape": ((2, 3, 4), (2, 5, 3, 1), (1, 3, 1))}, torch="torch.broadcast_to(x, shape)")
def broadcast_to(x: Any, shape: Shape) -> tuple[Any, Vjp]:
    """x, repeated along new leading axes and along axes of size 1.   dx = g, summed over the repeats

    Where nothing repeats it is a reshape, whose result can be written to.
    """
    from_shape = x.shape
    lead = len(shape) - len(from_shape)
    repeated = tuple(i for i in range(len(shape)) if i < lead or (from_shape[i - lead] == 1 != shape[i]))
    try:
        out = x.reshape(shape) if shape == (1,) * lead + from_shape else np.broadcast_to(x, shape)
    except ValueError:
        raise ShapeError(f"broadcast_to: shape: got {shape}, expected one that {from_shape} broadcasts to") from None
    return out, lambda g: (total(g, repeated).reshape(from_shape) if repeated else g,)


@op(x="*A e.g. M N K", options={"dims": ((0,), (1, -1), ())}, torch="torch.flip(x, dims)")
def flip(x: Any, dims: Shape) -> tuple[Any, Vjp]:
    """The elements in reverse order along dims, in new memory.   dx = g, reversed"""
    return flipped(x, dims), lambda g: (flipped(g, dims),)


def flipped(x: Any, dims: Shape) -> Any:
    """flip inside another op's body, on arrays and on what records."""
    return compute(flip, x, dims=dims) if hasattr(x, "__apply_op__") else np.copy(np.flip(x, dims), order="C")


@op(x="*A e.g. 4 6 5", options={"offset": (0, 2, -3)}, torch="torch.diagonal(x, offset, -2, -1)")
def diagonal(x: Any, offset: int = 0) -> tuple[Any, Vjp]:
    """The elements [..., i, i + offset] as the last axis, in x's memory.   dx = zeros with g in those places"""
    shape, columns = x.shape, x.shape[-1]
    out = np.diagonal(x, offset, -2, -1)
    out.flags.writeable = x.flags.writeable  # NumPy's is for reading alone
    length, start = out.shape[-1], offset if offset >= 0 else -offset * columns
    end = start + (length - 1) * (columns + 1) + 1
    places, flat = (Ellipsis, slice(start, end, columns + 1) if length else slice(0, 0)), (*shape[:-2], shape[-2] * columns)
    return out, lambda g: (_reshaped(_scatter(g, places, flat), shape),)


def _reshaped(x: Any, shape: Shape) -> Any:
    return compute(reshape, x, shape=shape) if hasattr(x, "__apply_op__") else x.reshape(shape)


@op(tensors=("M N K", "M L K", "M 1 K"), options={"dim": (1, -2)}, torch="torch.cat(tensors, dim)")
def cat(*tensors: Any, dim: int = 0) -> tuple[Any, Vjp]:
    """The tensors one after another along dim.   dtensorᵢ = its slice of g"""
    axis = _cat_axis(tensors, dim)
    ends = np.cumsum([t.shape[axis] for t in tensors]).tolist()
    lead = (slice(None),) * axis

    def vjp(g: Any) -> tuple[Any, ...]:
        return tuple(g[(*lead, slice(start, end))] for start, end in zip([0, *ends], ends))

    return np.concatenate(tensors, axis), vjp


def _cat_axis(tensors: tuple[Any, ...], dim: int) -> int:
    if not tensors:
        raise ShapeError("cat: tensors: got none, expected at least one")
    ndim = tensors[0].ndim
    if not -ndim <= dim < ndim:
        raise IndexRangeError(f"cat: dim: got {dim}, expected {-ndim} to {ndim - 1} for shape {tensors[0].shape}")
    axis = dim % ndim
    for i, t in enumerate(tensors):
        if t.ndim != ndim or t.shape[:axis] + t.shape[axis + 1 :] != tensors[0].shape[:axis] + tensors[0].shape[axis + 1 :]:
            raise ShapeError(f"cat: tensors[{i}]: got shape {t.shape}, expected {tensors[0].shape} but for axis {axis}")
        if t.dtype != tensors[0].dtype:
            raise DtypeError(f"cat: tensors[{i}]: got dtype {t.dtype}, expected {tensors[0].dtype} as in tensors[0]")
    return axis


_INDICES = (
    1, -1, slice(1, None), (Ellipsis, 0), (slice(None), None, 2), (slice(None, None, 2), slice(1, 4)),
    np.array([0, 2, 2, 1]), (np.array([0, 2, 2]), np.array([1, 1, 1])), (slice(None), np.array([[0, 3], [3, 3]])),
)


@op(x="*A e.g. 4 5 3", options={"index": _INDICES}, torch="x[index]")
def getitem(x: Any, index: Any) -> tuple[Any, Vjp]:
    """x[index], basic or advanced.   dx = zeros with g added at index, as often as an element was taken"""
    check_unambiguous(x, index)
    try:
        out = x[index]
    except (IndexError, TypeError, ValueError) as error:
        shown = " ".join(repr(index).split())
        raise IndexRangeError(f"getitem: index: got {shown} for shape {x.shape}, expected one inside: {error}") from None
    shape = x.shape
    return out, lambda g: (compute(scatter, g, index=index, shape=shape),)


def check_unambiguous(x: Any, index: Any, name: str = "getitem") -> None:
    """Refuse x[0, :, array]: NumPy puts the array's axes first, torch where the array stands."""
    parts = index if isinstance(index, tuple) else ()
    if all(map(_is_basic, parts)):
        return
    taken = sum([0 if p is None or p is Ellipsis else getattr(p, "ndim", 1) if getattr(p, "dtype", None) == np.bool_ else 1
                 for p in parts])
    word = "".join(["i" if isinstance(p, int | np.integer) else "s" * (x.ndim - taken) or "e" if p is Ellipsis else
                    "s" if _is_basic(p) else "a" for p in parts])
    if _place_of_arrays(word.replace("i", "").replace("e", "")) != _place_of_arrays(word.replace("i", "a")):
        raise IndexRangeError(f"{name}: index: got an array after a slice, and an integer or an ellipsis apart from it, for "
                              f"shape {x.shape}, where NumPy and torch differ; expected two steps, first the integer")


def _place_of_arrays(word: str) -> int:
    """How many axes stand before those of the arrays (a): none where slices (s), or an ellipsis of no axes (e), part these."""
    return 0 if "s" in word.replace("e", "s").strip("s") else word[: word.index("a")].count("s")


@op(x="*A e.g. 3 5 3", options={"index": (slice(1, None), np.array([0, 2, 2])), "shape": ((4, 5, 3),)},
    torch="torch.zeros(shape, dtype=x.dtype).index_put((torch.arange(4)[index],), x, accumulate=True)")
def scatter(x: Any, index: Any, shape: Shape) -> tuple[Any, Vjp]:
    """Zeros of the given shape with x added at index; repeated places add up.   dx = g[index]"""
    return _scatter(x, index, shape), lambda g: (g[index],)


def _scatter(x: Any, index: Any, shape: Shape) -> Any:
    return compute(scatter, x, index=index, shape=shape) if hasattr(x, "__apply_op__") else _added_at(x, index, shape)


@opaque(lambda x, index, shape: (shape, x.dtype))
def _added_at(x: Any, index: Any, shape: Shape, out: Any = None) -> Any:
    out = np.empty(shape, x.dtype) if out is None else out
    out[...] = 0
    if _is_basic(index):
        out[index] = x
        return out
    places = np.arange(out.size).reshape(shape)[index]  # flat, because ufunc.at is fast in one dimension only
    flat = out.reshape(-1) if x.dtype != np.float16 else np.zeros(out.size, np.float32)  # of float16, 2048 + 1 is 2048
    np.add.at(flat, places.reshape(-1), x.reshape(-1))
    if not np.may_share_memory(flat, out):
        out[...] = flat.reshape(shape)
    return out


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, int | np.integer | slice) for part in parts)
