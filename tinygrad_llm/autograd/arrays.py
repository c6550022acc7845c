"""Arrays of what users give for data: numbers, nested lists, arrays, tensors."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tinygrad_llm.autograd.modes import active_recorder
from tinygrad_llm.ops import ArgumentError
from tinygrad_llm.ops.errors import of_its_own


def as_array(data: Any, dtype: Any = None) -> np.ndarray:
    """A new array of the data. Python floats become float32, as in torch; arrays keep their dtype."""
    if hasattr(data, "__values__") and active_recorder() is None:
        return np.array(data._array, dtype=dtype)
    if hasattr(data, "__values__"):
        return data.__values__().astype(data.dtype if dtype is None else dtype)
    if hasattr(data, "__record_call__"):  # of a function that is being recorded
        return data.copy("K") if dtype is None else data.astype(dtype)
    data = _with_scalars(data)
    try:
        array = np.array(data, dtype=dtype)
    except OverflowError as error:
        raise ArgumentError(f"tensor: data: got {data!r:.80}, expected numbers that the dtype can hold: {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"tensor: data: got {type(data).__name__}, expected numbers in a regular nesting: {error}") from None
    if dtype is None and array.dtype.kind in "ufO" and not isinstance(data, np.ndarray | np.generic | float):
        array = _of_numbers(data, array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"tensor: data: got dtype {array.dtype}, expected "
                        f"{of_its_own('real numbers or booleans', array.dtype)}")
    if dtype is None and array.dtype.kind == "f" and isinstance(data, tuple | list):
        return array.astype(functools.reduce(np.promote_types, _float_dtypes(data), np.dtype(np.float16)))
    return array.astype(np.float32) if dtype is None and type(data) is float else array


def _with_scalars(data: Any) -> Any:
    """Nested lists with the only element of each tensor in them, as in torch. Errors: ArgumentError where one has more.

    Lists of nothing but numbers are looked through by their types alone.
    """
    if hasattr(data, "__values__"):
        if data.ndim and data.numel() != 1:
            raise ArgumentError(f"tensor: data: got a tensor of shape {data.shape} in a list, expected one element; "
                                "stack() makes a tensor of several")
        return data.detach().reshape(()) if data.ndim else data
    inner = set(map(type, data)) if isinstance(data, tuple | list) else ()
    if not any(issubclass(kind, tuple | list) or hasattr(kind, "__values__") for kind in inner):
        return data
    return [_with_scalars(part) for part in data]


def _of_numbers(data: Any, array: np.ndarray) -> np.ndarray:
    """The array; ArgumentError for integers beyond int64, which NumPy makes uint64, floats or objects of. Among floats they are
    some."""
    numbers = _leaves(data)
    if all(isinstance(n, int) for n in numbers) and (big := [n for n in numbers if not -(2**63) <= n < 2**63]):
        raise ArgumentError(f"tensor: data: got {big[0]}, expected integers that int64 can hold; a dtype says otherwise")
    return array.astype(np.float64) if array.dtype == object and all(isinstance(n, int | float) for n in numbers) else array


def _leaves(data: Any) -> list[Any]:
    return [n for part in data for n in _leaves(part)] if isinstance(data, tuple | list) else [data]


def _float_dtypes(data: Any) -> set[np.dtype]:
    """The floating dtypes of the elements of nested lists: float32 for Python's floats."""
    if isinstance(data, tuple | list):
        return set().union(*map(_float_dtypes, data)) or {np.dtype(np.float32)}
    if isinstance(data, float) and not isinstance(data, np.generic):
        return {np.dtype(np.float32)}
    dtype = getattr(data, "dtype", None)
    return {dtype} if dtype is not None and dtype.kind == "f" else set()
