"""New tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.functions.base import sizes_of
from tinygrad_llm.ops import ShapeError


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


def _sizes(name: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    sizes = sizes_of(name, "size", size)
    if sizes and min(sizes) < 0:
        raise ShapeError(f"{name}: size: got {sizes}, expected none below 0")
    return sizes


def zeros(*size: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Zeros of the given shape."""
    return Tensor(np.zeros(_sizes("zeros", size), dtype), requires_grad)


def full(size: Any, fill_value: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """One value everywhere; a Python float gives float32, as in torch."""
    value = np.asarray(fill_value, dtype) if dtype is not None else Tensor(fill_value).numpy()
    return Tensor(np.full(_sizes("full", (size,)), value), requires_grad, value.dtype)


def zeros_like(input: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of input's shape and, by default, dtype."""
    return zeros(input.shape, dtype=input.dtype if dtype is None else dtype, requires_grad=requires_grad)


def ones_like(input: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of input's shape and, by default, dtype."""
    return ones(input.shape, dtype=input.dtype if dtype is None else dtype, requires_grad=requires_grad)


def arange(
    start: float, end: float | None = None, step: float = 1, *, dtype: Any = None, requires_grad: bool = False
) -> Tensor:
    """start, start + step, … below end; arange(n) counts from 0. Floats give float32, as in torch."""
    values = np.arange(start) if end is None else np.arange(start, end, step)
    dtype = np.float32 if dtype is None and values.dtype.kind == "f" else dtype
    return Tensor(values, requires_grad, dtype)


def ones(*size: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Ones of the given shape."""
    return Tensor(np.ones(_sizes("ones", size), dtype), requires_grad)
