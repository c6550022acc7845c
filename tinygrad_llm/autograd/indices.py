"""Indices as NumPy takes them, of what users give: integers, slices, arrays, tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tinygrad_llm.autograd.modes import active_recorder, records_graph
from tinygrad_llm.autograd.tensor import Tensor, unwrapped
from tinygrad_llm.ops import DtypeError
from tinygrad_llm.ops.opaque import as_values


def as_index(value: Any) -> Any:
    """An index as an array: of a tensor its own memory, which is watched; of an array a copy, for nobody would see a write."""
    own = isinstance(value, np.ndarray) and records_graph() and active_recorder() is None
    return value.copy() if own else as_values(value)


def unwrap_index(index: Any) -> Any:
    """An index as NumPy takes it: tensors become arrays. Of integers alone, or of nothing, it gets an ellipsis, or the element
    that it names would be a copy, where torch gives a view. A list of more than numbers is a tuple, as in torch."""
    if isinstance(index, list) and any(not isinstance(p, int | float | np.generic) for p in index):
        warnings.warn("index: got a list of sequences, taken for a tuple, as torch does and NumPy does not; write a tuple, or "
                      "an array", UserWarning, stacklevel=4)
        index = tuple(index)
    if not isinstance(index, tuple):
        return unwrap_index((index,)) if _is_integer(index) else _part(index)
    parts = tuple([int(p) if _is_integer(p) else _part(p) for p in index])
    return (*parts, ...) if all(type(p) is int for p in parts) else parts


def _part(part: Any) -> Any:
    """Part of an index: an array as as_index has it, tensors in lists too.

    Errors: DtypeError for an array of uint8, which is a mask to torch and places to NumPy.
    """
    if isinstance(part, slice):
        return slice(*[int(end) if isinstance(end, Tensor) else end for end in (part.start, part.stop, part.step)])
    if isinstance(part, list):
        return [int(p) if isinstance(p, Tensor) and not p.ndim else p for p in part]
    part = as_index(part) if isinstance(part, np.ndarray) else unwrapped([part])[0]
    if getattr(part, "dtype", None) == np.uint8:
        raise DtypeError("index: got dtype uint8, a mask to torch and places to NumPy, expected int64 (places) or bool (mask)")
    return part


def _is_integer(part: Any) -> bool:
    if isinstance(part, Tensor | np.ndarray):
        number = part if isinstance(part, np.ndarray) else part._array  # a batched one stays: it is another for each example
        return not part.ndim and part.dtype.kind in "iu" and not hasattr(number, "__record_call__")
    return isinstance(part, int | np.integer) and not isinstance(part, bool)
