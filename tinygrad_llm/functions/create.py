"""New tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.functions.base import sizes_of, taking, to
from tinygrad_llm.ops import ShapeError


@taking("device", "pin_memory")
def tensor(data: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new Tensor holding a copy of data: numbers, nested lists, an array or a tensor.

    Python floats become float32 and arrays keep their dtype, as in torch.tensor. Errors: ValueError for ragged data,
    TypeError for data that are not numbers, AutogradError for requires_grad with a dtype that is not floating.
    """
    return Tensor(data, requires_grad, dtype)


@taking("device")
def as_tensor(data: Any, *, dtype: Any = None) -> Tensor:
    """data itself where it is a tensor, its memory where it is an array, else a new tensor of it; dtype converts."""
    if isinstance(data, np.ndarray):
        data = from_numpy(data)
    if not isinstance(data, Tensor):
        return Tensor(data, dtype=dtype)
    return data if dtype is None else to(data, dtype)


def from_numpy(ndarray: np.ndarray, /) -> Tensor:
    """A Tensor that shares the array's memory."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: ndarray: got {type(ndarray).__name__}, expected a numpy.ndarray")
    return Tensor.from_array(ndarray)


def _sizes(name: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    sizes = sizes_of(name, "size", size)
    if sizes and min(sizes) < 0:
        raise ShapeError(f"{name}: size: got {sizes}, expected none below 0")
    return sizes


def _of_size(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """make(2, 3), make((2, 3)) and make(size=(2, 3)) mean the same."""

    @functools.wraps(make)
    def call(*size: Any, **options: Any) -> Tensor:
        if "size" in options:
            size = (*size, options.pop("size"))
        if not size:
            raise TypeError(f"{make.__name__}: size: got none, expected one; () makes a tensor without axes")
        return make(_sizes(make.__name__, size), **options)

    return call


@taking("device", "pin_memory")
@_of_size
def zeros(size: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the given shape, by default float32."""
    return Tensor(np.zeros(size, np.float32 if dtype is None else dtype), requires_grad)


@taking("device", "pin_memory")
def full(size: Any, fill_value: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """One value everywhere; a Python float gives float32, as in torch."""
    value = np.asarray(fill_value, dtype) if dtype is not None else Tensor(fill_value).numpy()
    return Tensor(np.full(_sizes("full", (size,)), value), requires_grad, value.dtype)


@taking("device", "pin_memory")
def zeros_like(input: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of input's shape and, by default, dtype."""
    return zeros(input.shape, dtype=input.dtype if dtype is None else dtype, requires_grad=requires_grad)


@taking("device", "pin_memory")
def ones_like(input: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of input's shape and, by default, dtype."""
    return ones(input.shape, dtype=input.dtype if dtype is None else dtype, requires_grad=requires_grad)


@taking("device", "pin_memory")
def arange(
    start: Any = None, end: Any = None, step: Any = 1, *, dtype: Any = None, requires_grad: bool = False
) -> Tensor:
    """start, start + step, … below end; arange(n) and arange(end=n) count from 0. Floats give float32, as in torch.

    Errors: TypeError for a step or a start without an end, ShapeError for a step that is 0 or leads away from end.
    """
    if end is None and (start is None or step != 1):
        raise TypeError(f"arange: end: got none beside start = {start} and step = {step}, expected a number")
    start, end = (0, start) if end is None else (0 if start is None else start, end)
    if dtype is not None and np.dtype(dtype) == np.int64:
        start, end, step = int(start), int(end), int(step)
    if step == 0 or (end - start) / step < 0:
        raise ShapeError(f"arange: step: got {step} from {start} to {end}, expected one that leads from start to end")
    values = np.arange(start, end, step)
    if dtype is not None and np.dtype(dtype).kind in "iu":  # without the fractions of start and step, as in torch
        values = int(start) + int(step) * np.arange(len(values))
    dtype = np.float32 if dtype is None and values.dtype.kind == "f" else dtype
    return Tensor(values, requires_grad, dtype)


@taking("device", "pin_memory")
@_of_size
def ones(size: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the given shape, by default float32."""
    return Tensor(np.ones(size, np.float32 if dtype is None else dtype), requires_grad)
