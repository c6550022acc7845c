"""Python's numbers beside tensors of integers, which may be too small for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.ops.errors import ArgumentError, DtypeError

_TORCH_INTEGERS = {np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8")}


def plain(value: Any) -> Any:
    """NumPy's number, or that of an array without axes, as Python's; anything else as it is.

    Beside an array of float32 NumPy's float64 would make float64, and beside a Python number its float16 would round that.
    """
    return value.item() if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim) else value


def wrapped(number: Any, dtype: np.dtype) -> Any:
    """A number that takes part in arithmetic of this dtype: beside integers its lowest bits, as in torch (uint8: 300 is 44).

    Errors: ArgumentError where it is beyond uint16, uint32 or uint64, for which torch has no arithmetic, or beyond int64.
    """
    if dtype.kind not in "iu" or _fits(number, dtype):
        return number
    if dtype not in _TORCH_INTEGERS or not _fits(number, np.dtype(np.int64)):
        raise ArgumentError(f"operand: got {number}, expected a number that {dtype} can hold")
    return np.asarray(number, np.int64).astype(dtype).item()


def held(name: str, argument: str, number: Any, dtype: Any) -> Any:
    """A number that is stored in this dtype: without its fraction in integers, a negative one wraps in uint8, as in torch.

    Errors: ArgumentError where it is beyond the dtype, of floats too, TypeError where it is no number.
    """
    dtype = np.dtype(dtype)
    if not isinstance(number, int | float | np.number | np.bool_):
        raise DtypeError(f"{name}: {argument}: got {number!r}, expected a number")
    if dtype.kind not in "iu":
        size: Any = abs(number)
        if dtype.kind == "f" and float(np.finfo(dtype).max) < size != math.inf:
            raise ArgumentError(f"{name}: {argument}: got {number}, expected a number that {dtype} can hold")
        return number
    cut = int(number) if np.isfinite(number) else None
    if cut is not None and (_fits(cut, dtype) or (dtype == np.uint8 and -255 <= cut < 0)):
        return wrapped(cut, dtype)
    raise ArgumentError(f"{name}: {argument}: got {number}, expected a number that {dtype} can hold")


def _fits(number: int, dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return limits.min <= number <= limits.max
