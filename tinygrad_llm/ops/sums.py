"""Sums that are accurate in float32, and the transpose of broadcasting, which is one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tinygrad_llm.ops.constants import full

_HALF = np.dtype(np.float16)
_BLOCK = 64  # as fast as 256 and as one product; errors 0.8 to 0.95 of torch's, with 256 rows 1.05 to 1.16, naively 2 to 9


def total(x: Any, axes: Iterable[int], keepdims: bool = False) -> Any:
    """Σ of x over axes, accurate in float32.

    NumPy adds pairwise along contiguous memory only; over a slow axis it adds one row after another, an error that
    grows with the number of rows. Leading axes go through products with ones, others are brought to the end first.
    """
    if x.dtype == _HALF:  # what is added up may be beyond it where the sum is not
        return total(x.astype(np.float32), axes, keepdims).astype(np.float16)
    shape, n = x.shape, x.ndim
    axes = tuple(sorted([axis % n for axis in axes]))
    count = len(axes)
    if not count:
        return x + 0
    if axes == tuple(range(count)) and count < n:
        summed = _sum_rows(x.reshape((math.prod(shape[:count]), math.prod(shape[count:]))))
    elif axes == tuple(range(n - count, n)):
        summed = _sum_last(x, axes)
    else:
        rest = tuple([i for i in range(n) if i not in axes])
        moved = np.transpose(x, rest + axes)
        summed = _sum_last(moved.reshape((*[shape[i] for i in rest], math.prod([shape[i] for i in axes]))), -1)
    return summed.reshape(tuple([1 if i in axes else size for i, size in enumerate(shape) if keepdims or i not in axes]))


def _sum_rows(x: Any) -> Any:
    """Σ of the rows of a matrix, block by block: BLAS adds in order, and its error would grow with the number of rows."""
    rows, columns = x.shape
    if rows <= _BLOCK:
        return np.matmul(full(rows, 1, x.dtype), x)
    blocks, whole = rows // _BLOCK, rows - rows % _BLOCK
    sums = np.matmul(full(_BLOCK, 1, x.dtype), x[:whole].reshape((blocks, _BLOCK, columns)))
    return _sum_rows(np.concatenate((sums, x[whole:])) if whole < rows else sums)


def _sum_last(x: Any, axes: Any) -> Any:
    slow = isinstance(x, np.ndarray) and x.strides[-1] != x.itemsize
    return np.sum(np.copy(x, order="C") if slow else x, axes)


def sum_to(gradient: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The transpose of broadcasting: sum a gradient over the axes along which an array of this shape was repeated."""
    extra = gradient.ndim - len(shape)
    repeated = [i for i in range(gradient.ndim) if i < extra or (shape[i - extra] == 1 != gradient.shape[i])]
    if repeated:
        gradient = total(gradient, repeated).reshape(shape)
    return gradient if gradient.dtype == dtype else gradient.astype(dtype)
