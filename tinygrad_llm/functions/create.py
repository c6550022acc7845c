"""New tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.functions.base import sizes_of


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """A new Tensor holding a copy of data: numbers, nested lists, an array or a tensor.

    Python floats become float32 and arrays keep their dtype, as in torch.tensor. Errors: ValueError for ragged data,
    TypeError for data that are not numbers, AutogradError for requires_grad with a dtype that is not floating.
    """
    return Tensor(data, requires_grad, dtype)


def from_numpy(array: np.ndarray) -> Tensor:
    """A Tensor that shares the array's memory."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: array: got {type(array).__name__}, expected a numpy.ndarray")
    return Tensor.from_array(array)


def zeros(*size: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Zeros of the given shape."""
    return Tensor(np.zeros(sizes_of("zeros", "size", size), dtype), requires_grad)


def ones(*size: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Ones of the given shape."""
    return Tensor(np.ones(sizes_of("ones", "size", size), dtype), requires_grad)
