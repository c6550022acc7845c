"""Copies of tensors: those that shared memory share the copy's, within one deepcopy or one pickle, as torch's storages do.

Both know an object that they have met by its identity. So what is copied is a Memory, one object for all tensors that show
the same array; each of them is a place in it.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from tinygrad_llm.autograd.graph import Version, root

_IN_USE: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
Place = tuple["Memory", int, tuple[int, ...], tuple[int, ...], np.dtype]


class Memory:
    """The elements of an array end to end, in the order of memory, and the version that its tensors share."""

    __slots__ = ("__weakref__", "flat", "version")

    def __init__(self, flat: np.ndarray, version: Version | None = None) -> None:
        self.flat, self.version = flat, version or Version()

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return Memory(self.flat.copy())

    def __reduce__(self) -> Any:
        return Memory, (self.flat,)


def place_of(array: np.ndarray, version: Version) -> Place:
    """(memory, first element, shape, steps in elements, dtype): what `array_at` makes the array of, or one just like it."""
    owner = root(array)
    if not _is_dense(owner) or any(step % array.itemsize for step in array.strides) or owner.dtype != array.dtype:
        owner = array = np.array(array, order="C")  # memory that no array owns, or that is read in another way: its own copy
    memory = _IN_USE.get(id(owner))
    if memory is None:
        order = sorted(range(owner.ndim), key=lambda axis: -owner.strides[axis])
        memory = _IN_USE[id(owner)] = Memory(owner.transpose(order).reshape(-1), version)
    first = (_address(array) - _address(owner)) // array.itemsize if array.size else 0
    return memory, first, array.shape, tuple([step // array.itemsize for step in array.strides]), array.dtype


def array_at(memory: Memory, first: int, shape: tuple[int, ...], steps: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array at a place; one that repeats memory may only be read."""
    repeats = 0 not in shape and any(step == 0 and n > 1 for step, n in zip(steps, shape))
    strides = [step * dtype.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(memory.flat[first:], shape, strides, writeable=not repeats)


def _is_dense(owner: np.ndarray) -> bool:
    """Whether its elements fill its memory, which is no mapped file: of that only the part is copied."""
    step = owner.itemsize
    for size, stride in sorted(zip(owner.shape, owner.strides), key=lambda axis: axis[1]):
        if size != 1 and stride != step:
            return False
        step *= size
    return not isinstance(owner, np.memmap)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
