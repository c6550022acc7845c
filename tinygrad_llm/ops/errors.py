"""The errors that an op raises. Each is both NumPy's and torch's type, so that code written for either catches it."""

import numpy as np


def of_its_own(expected: str, dtype: np.dtype) -> str:
    """What is expected in place of an array; of a dtype that is none of NumPy's, such as bfloat16, with what to write."""
    return f"{expected}, of a dtype of NumPy's own, such as x.astype(np.float32)" if dtype.kind == "V" else expected


class ShapeError(ValueError, RuntimeError):
    """An argument has a shape that the op does not take (NumPy: ValueError, torch: RuntimeError)."""


class DtypeError(TypeError, RuntimeError):
    """An argument has a dtype that the op does not take (NumPy: TypeError, torch: RuntimeError)."""


class IndexRangeError(IndexError, ValueError, RuntimeError):
    """An index lies outside the axis that it indexes (NumPy: IndexError; torch: that, or RuntimeError where it gathers)."""


class ArgumentError(ValueError, RuntimeError):
    """An argument has a value that the function does not take (NumPy: ValueError, torch: mostly RuntimeError)."""
