"""What every function of this folder asks of its arguments: one clear line, `name: got X, expected Y`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


def check_text(name: str, value: object) -> str:
    """value itself, a str with at least one character; otherwise TypeError or ValueError."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a str")
    if not value:
        raise ValueError(f"{name}: got no characters, expected at least one")
    return value


def check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """value as a plain int in [low, high]; a bool or a float is a TypeError, a number outside is a ValueError."""
    expected = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: got {value}, expected {expected}")
    return int(value)


def check_bool(name: str, value: object) -> bool:
    """value itself, True or False; otherwise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected True or False")
    return value


def check_path(name: str, value: object) -> Path:
    """value, a str or path that is not empty, as a Path; otherwise TypeError or ValueError."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a path")
    if not os.fspath(value):
        raise ValueError(f"{name}: got an empty path, expected the path of a file or folder")
    return Path(value)


def as_integers(name: str, values: Any, ndims: tuple[int, ...] = (1,)) -> np.ndarray:
    """values as an array of integers whose number of axes is in ndims; an integer array is not copied.

    Raises TypeError for what is not an integer (a bool, a float, and so NaN), ValueError for ragged or wrong axes.
    """
    try:
        array = np.asanyarray(values)
    except ValueError:
        raise ValueError(f"{name}: got rows of unequal length, expected one length for all") from None
    if array.size == 0 and not isinstance(values, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: got {_dtype_word(array)}, expected integers")
    if array.ndim not in ndims:
        axes = " or ".join(f"{n}-D" for n in ndims)
        raise ValueError(f"{name}: got shape {array.shape}, expected {axes}")
    return array


def check_ids(name: str, ids: np.ndarray, vocab_size: int) -> None:
    """IndexError, naming the first position, unless every id of a 1-D array is in [0, vocab_size)."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        where = int(np.argmax((ids < 0) | (ids >= vocab_size)))
        raise IndexError(f"{name}[{where}]: got {ids[where]}, expected an id in [0, {vocab_size})")


def _dtype_word(array: np.ndarray) -> str:
    words = {"b": "booleans", "U": "strings", "O": "objects"}
    return words.get(array.dtype.kind, str(array.dtype))
