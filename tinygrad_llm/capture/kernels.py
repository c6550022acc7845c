"""What a program calls where NumPy has no function that writes its result into a given array."""

from __future__ import annotations

from typing import Any

import numpy as np


def copy(x: Any, out: Any) -> None:
    """out = x, in the dtype of out."""
    np.copyto(out, x, casting="unsafe")


def where(condition: Any, x: Any, y: Any, out: Any) -> None:
    """out = x where condition holds, else y."""
    np.copyto(out, y, "unsafe")
    np.copyto(out, x, "unsafe", condition)


def clip(x: Any, low: Any, high: Any, out: Any) -> None:
    """out = min(max(x, low), high)."""
    np.clip(x, low, high, out=out)


class _Itself:
    """Gives the ufunc that is called with it, by NumPy's own protocol."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *args: Any, **options: Any) -> np.ufunc:
        return ufunc


CLIP: np.ufunc = np.zeros(1).clip(_Itself(), 1)  # type: ignore[call-overload]
"""What np.clip calls in the end, a fifth of its time on a few elements; NumPy has no name for it."""


def take(x: Any, *parts: Any, index: Any, out: Any) -> None:
    """out = x[index]; the arrays of the index are arguments, their places in it are Holes."""
    out[...] = x[fill(index, parts)]


def taken(x: Any, index: Any, out: Any) -> None:
    """out = x[index]"""
    out[...] = x[index]


def put(x: Any, value: Any, *parts: Any, index: Any, out: Any) -> None:
    """x[index] = value; out is x."""
    out[fill(index, parts)] = value


class Hole:
    """The place of an array in a recorded index."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"#{self.number}"


def fill(index: Any, parts: tuple[Any, ...]) -> Any:
    """The index with its arrays."""
    if isinstance(index, tuple):
        return tuple([fill(i, parts) for i in index])
    return parts[index.number] if isinstance(index, Hole) else index
