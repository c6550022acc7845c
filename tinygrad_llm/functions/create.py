"""New tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.vectorizing import alike
from tinygrad_llm.functions.base import sizes_of, taking, tensor_like, to
from tinygrad_llm.ops import ArgumentError, ShapeError
from tinygrad_llm.ops.errors import of_its_own
from tinygrad_llm.ops.numbers import held, plain


@taking("device", "pin_memory")
def tensor(data: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new Tensor holding a copy of data: numbers, nested lists, an array or a tensor.

    Python floats become float32 and arrays keep their dtype, as in torch.tensor. Errors: ValueError for ragged data,
    TypeError for data that are not numbers, AutogradError for requires_grad with a dtype that is not floating.
    """
    return Tensor.of(data, requires_grad, dtype)


@taking("device")
def as_tensor(data: Any, *, dtype: Any = None) -> Tensor:
    """data as a tensor: itself where nothing changes, an array's memory where its dtype stays, else a copy.

    A tensor in another dtype keeps its gradient.
    """
    if isinstance(data, Tensor):
        return data if dtype is None else to(data, dtype)
    if isinstance(data, np.ndarray) and data.dtype.kind in "biuf" and (dtype is None or data.dtype == dtype):
        return Tensor.from_array(data)
    return Tensor.of(data, False, dtype)


def from_numpy(ndarray: np.ndarray, /) -> Tensor:
    """A Tensor that shares the array's memory."""
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"from_numpy: ndarray: got {type(ndarray).__name__}, expected a numpy.ndarray")
    if ndarray.dtype.kind not in "biufc":
        raise TypeError(f"from_numpy: ndarray: got dtype {ndarray.dtype}, expected {of_its_own('numbers', ndarray.dtype)}")
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
    """Zeros of the given shape, float32 by default."""
    return Tensor.from_array(np.zeros(size, np.float32 if dtype is None else dtype)).requires_grad_(requires_grad)


@taking("device", "pin_memory")
@_of_size
def ones(size: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the given shape, float32 by default."""
    return Tensor.from_array(np.ones(size, np.float32 if dtype is None else dtype)).requires_grad_(requires_grad)


@taking("device", "pin_memory")
def full(size: Any, fill_value: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """One value everywhere, a number or a tensor without axes; a Python float gives float32, as in torch.

    Errors: ArgumentError for a number that the dtype cannot hold.
    """
    value = fill_value.item() if isinstance(fill_value, Tensor) else plain(fill_value)
    if dtype is None:
        natural = np.float32 if isinstance(value, float) else Tensor.of(value).dtype
        dtype = fill_value.dtype if isinstance(fill_value, Tensor) else natural
    value = held("full", "fill_value", value, dtype)
    return Tensor.from_array(np.full(_sizes("full", (size,)), value, dtype)).requires_grad_(requires_grad)


@taking("device", "pin_memory")
def zeros_like(input: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of input's shape and, by default, dtype."""
    input = tensor_like("zeros_like", "input", input)
    return for_each(zeros(input.shape, dtype=input.dtype if dtype is None else dtype, requires_grad=requires_grad), input)


@taking("device", "pin_memory")
def ones_like(input: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of input's shape and, by default, dtype."""
    input = tensor_like("ones_like", "input", input)
    return for_each(ones(input.shape, dtype=input.dtype if dtype is None else dtype, requires_grad=requires_grad), input)


def for_each(new: Tensor, like: Any) -> Tensor:
    """A new tensor; beside one that vmap has batched, with memory for each example, so that these can be written into it."""
    array = alike(new._array, like._array if isinstance(like, Tensor) else like)
    if array is not new._array:
        new._array = array.copy()
    return new


@taking("device", "pin_memory")
def arange(start: Any = None, end: Any = None, step: Any = 1, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """start, start + step, … below end; arange(n) and arange(end=n) count from 0. Floats give float32, as in torch.

    Errors: TypeError for a step or a start without an end, ArgumentError where a bound is not finite, step is 0, or end
    lies on the other side of start.
    """
    start, end, step = [bound.item() if isinstance(bound, Tensor | np.ndarray) else bound for bound in (start, end, step)]
    if end is None and (start is None or step != 1):
        raise TypeError(f"arange: end: got none beside start = {start} and step = {step}, expected a number")
    start, end = (0, start) if end is None else (0 if start is None else start, end)
    if wrong := [bound for bound in (start, end, step) if not isinstance(bound, int | float | np.number)]:
        raise TypeError(f"arange: start, end, step: got {wrong[0]!r}, expected numbers")
    if not all(math.isfinite(bound) for bound in (start, end, step)) or step == 0:
        raise ArgumentError(f"arange: start, end, step: got {start}, {end}, {step}, expected finite numbers, and a step not 0")
    if (end - start) * step < 0:
        raise ArgumentError(f"arange: end: got {end} for start = {start} and step = {step}, expected one that steps lead to")
    if dtype is None:
        dtype = np.int64 if all(isinstance(bound, int | np.integer) for bound in (start, end, step)) else np.float32
    if np.dtype(dtype).kind in "iu":
        if wrong := [bound for bound in (start, step) if int(bound) != bound]:
            raise ArgumentError(f"arange: start, step: got {wrong[0]} for {np.dtype(dtype)}, expected whole numbers")
        start, end, step = int(start), math.ceil(end) if step > 0 else math.floor(end), int(step)
    counted = np.arange(start, end, step).astype(dtype)
    return Tensor.from_array(counted).requires_grad_(requires_grad)
