"""New tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.functions.base import sizes_of, to
from tinygrad_llm.ops import ArgumentError, ShapeError
from tinygrad_llm.ops.numbers import held


def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False
) -> Tensor:
    """A new Tensor holding a copy of data: numbers, nested lists, an array or a tensor.

    Python floats become float32 and arrays keep their dtype, as in torch.tensor. Errors: ValueError for ragged data or
    another device than "cpu", TypeError for data that are not numbers, AutogradError for requires_grad with a dtype that
    is not floating.
    """
    check_device("tensor", device)
    return Tensor.of(data, requires_grad, dtype)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """data as a tensor: itself where nothing changes, an array's memory where its dtype stays, else a copy.

    A tensor in another dtype keeps its gradient.
    """
    check_device("as_tensor", device)
    if isinstance(data, Tensor):
        return data if dtype is None else to(data, dtype)
    if isinstance(data, np.ndarray) and data.dtype.kind in "biuf" and dtype in (None, data.dtype):
        return Tensor.from_array(data)
    return Tensor.of(data, False, dtype)


def check_device(name: str, device: Any) -> None:
    """ValueError for another device than "cpu"."""
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise ValueError(f"{name}: device: got {device!r}, expected 'cpu'")


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


def _new(name: str, array: np.ndarray, device: Any, requires_grad: bool) -> Tensor:
    check_device(name, device)
    return Tensor.from_array(array).requires_grad_(requires_grad)


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the given shape, float32 by default."""
    return _new("zeros", np.zeros(_sizes("zeros", size), np.float32 if dtype is None else dtype), device, requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the given shape, float32 by default."""
    return _new("ones", np.ones(_sizes("ones", size), np.float32 if dtype is None else dtype), device, requires_grad)


def full(size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """One value everywhere, a number or a tensor without axes; a Python float gives float32, as in torch.

    Errors: ArgumentError for a number that the dtype cannot hold.
    """
    value = fill_value.item() if isinstance(fill_value, Tensor | np.generic) else fill_value
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, Tensor) else Tensor.of(value).dtype
    value = held("full", "fill_value", value, dtype)
    return _new("full", np.full(_sizes("full", (size,)), value, dtype), device, requires_grad)


def zeros_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of input's shape and, by default, dtype."""
    return zeros(input.shape, dtype=input.dtype if dtype is None else dtype, device=device, requires_grad=requires_grad)


def ones_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of input's shape and, by default, dtype."""
    return ones(input.shape, dtype=input.dtype if dtype is None else dtype, device=device, requires_grad=requires_grad)


def arange(
    start: float = 0, end: float | None = None, step: float = 1, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … below end; arange(n) counts from 0. Floats give float32, as in torch.

    Errors: ArgumentError where a bound is not finite, step is 0, or end lies on the other side of start.
    """
    start, end = (0, start) if end is None else (start, end)
    if not all(math.isfinite(bound) for bound in (start, end, step)) or step == 0:
        raise ArgumentError(f"arange: start, end, step: got {start}, {end}, {step}, expected finite numbers, and a step not 0")
    if (end - start) * step < 0:
        raise ArgumentError(f"arange: end: got {end} for start = {start} and step = {step}, expected one that steps lead to")
    if dtype is None:
        dtype = np.int64 if all(isinstance(bound, int | np.integer) for bound in (start, end, step)) else np.float32
    return _new("arange", _counted(start, end, step, np.dtype(dtype)), device, requires_grad)


def _counted(start: float, end: float, step: float, dtype: np.dtype) -> np.ndarray:
    """start, start + step, … as torch counts: of integers without their fractions; those of int64 say how many, too."""
    if dtype.kind not in "iu":
        return np.arange(start, end, step).astype(dtype)
    whole_start, whole_step = int(start), int(step)
    if dtype == np.int64:
        start, end, step = whole_start, int(end), whole_step
    if not step:
        raise ArgumentError(f"arange: step: got a fraction for {dtype}, expected an integer")
    return (whole_start + whole_step * np.arange(math.ceil((end - start) / step))).astype(dtype)
