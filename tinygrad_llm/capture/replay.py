"""Replay: the calls of a program bound to memory, one after another."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinygrad_llm.capture import kernels
from tinygrad_llm.capture.ir import Buffer, Call, Loop, Rows, View
from tinygrad_llm.capture.program import Program
from tinygrad_llm.ops import gaps

ALIGNMENT = 64
_DOT = 1 << 14
"""Bytes of a product that np.dot makes sooner than np.matmul: half a microsecond less, but it writes zeros first."""

_KEYWORD_OUT = {np.maximum, np.minimum}  # NumPy warns of a third argument


class Replay:
    """A program ready to run. inputs and outputs are its arrays: fill the former, `run()`, read the latter.

    outputs   for some outputs, the array that they are written into, by index
    steps     what run() calls, one after another; `origins`, the call that each is, in a loop on the rows of its turn
    """

    def __init__(self, program: Program, outputs: Mapping[int, np.ndarray] | None = None) -> None:
        self.program = program
        self.arena = aligned(program.arena)
        self.memory: dict[Buffer, np.ndarray] = {}
        self._arrays: dict[View, np.ndarray] = {}
        for i, array in (outputs or {}).items():
            self._give(program.outputs[i], array)
        self.inputs = [self.array(view) for view in program.inputs]
        self.outputs = [self.array(view) for view in program.outputs]
        self.steps: list[Callable[[], Any]] = []
        self.origins: list[Call] = []
        for item in program.calls:
            self._append(item)

    def run(self) -> None:
        """Every call, once."""
        with np.errstate(all="ignore"):
            for step in self.steps:
                step()

    def array(self, view: View) -> np.ndarray:
        """The memory of a view. Equal ones are one array: a call in place takes half the time where NumPy sees that it is."""
        if view not in self._arrays:
            memory = self._memory(view.buffer)
            self._arrays[view] = array_at(memory, memory.__array_interface__["data"][0] + view.offset, view)
        return self._arrays[view]

    def _append(self, item: Call | Loop) -> None:
        turns = [item] if isinstance(item, Call) else [
            _turn(call, start, min(start + item.step, item.rows))
            for start in range(0, item.rows, item.step) for call in item.calls]
        self.steps += [self.bind(call) for call in turns]
        self.origins += turns

    def bind(self, call: Call) -> Callable[[], Any]:
        """A call with its arrays."""
        args = [self.array(a) if isinstance(a, View) else a for a in call.args]
        if call.out is None:
            return functools.partial(call.function, *args, **call.options)
        out = self.array(call.out)
        if gaps.needs_copy(call.function, out):
            return functools.partial(gaps.copied, call.function, *args, out=out, **call.options)
        if call.function in _BINDERS:
            return _BINDERS[call.function](out, *args, **call.options)
        if call.kind == "reduce":
            return _bind_reduce(call.function, args[0], out, **call.options)
        if call.function is np.matmul and not call.options and _is_plain_product(args[0], args[1], out):
            return functools.partial(args[0].dot, args[1], out)  # the same call of BLAS
        if isinstance(call.function, np.ufunc) and not call.options:
            args = _without_numbers(call.function, args)
            if call.function not in _KEYWORD_OUT:  # by position: half the time of a call on a few elements
                return functools.partial(call.function, *args, out)
        return functools.partial(call.function, *args, out=out, **call.options)

    def _memory(self, buffer: Buffer) -> np.ndarray:
        if buffer.array is not None:
            return buffer.array
        if buffer not in self.memory:
            at = self.program.places.get(buffer)
            self.memory[buffer] = aligned(buffer.nbytes) if at is None else self.arena[at : at + buffer.nbytes]
        return self.memory[buffer]

    def _give(self, view: View, array: np.ndarray) -> None:
        if (array.shape, array.strides, array.dtype) != (view.shape, view.strides, view.dtype):
            raise ValueError(f"outputs: got {array.dtype} of shape {array.shape}, expected {view.dtype} of shape {view.shape}")
        self.memory[view.buffer] = array


def _bind_reduce(function: Any, x: Any, out: Any, axis: Any, keepdims: bool, dtype: Any = None, **initial: Any) -> Any:
    return functools.partial(function, x, axis, dtype, out, keepdims, *initial.values())


def _bind_where(out: Any, condition: Any, *values: Any) -> Any:
    x, y = (v if isinstance(v, np.ndarray) else np.asarray(v).astype(out.dtype) for v in values)
    return functools.partial(kernels.where, condition, x, y, out)


_BINDERS: dict[Any, Callable[..., Any]] = {
    kernels.copy: lambda out, x: functools.partial(operator.setitem, out, ..., x),
    kernels.where: _bind_where,
    kernels.take: lambda out, x, *parts, index: functools.partial(kernels.taken, x, kernels.fill(index, parts), out),
    kernels.put: lambda x, _, y, *parts, index: functools.partial(operator.setitem, x, kernels.fill(index, parts), y),
    np.take: lambda out, x, ids, axis, mode: functools.partial(x.take, ids, axis, out, mode),
}
"""For (out, *args, **options): what is called, with all that can be done beforehand."""


def _is_plain_product(x: Any, y: Any, out: np.ndarray) -> bool:
    """Whether it is one small product of matrices, or of a matrix and a vector, that lie in memory as BLAS takes them."""
    return (out.nbytes <= _DOT and (x.ndim, y.ndim) in ((1, 2), (2, 1), (2, 2)) and min(*x.shape, *y.shape) > 1
            and x.dtype == y.dtype == out.dtype and out.dtype.char in "fd" and out.flags.c_contiguous
            and all(_is_dense(a) for a in (x, y)))


def _is_dense(a: np.ndarray) -> bool:
    return bool(a.flags.c_contiguous or a.flags.f_contiguous)


def _without_numbers(ufunc: Any, args: list[Any]) -> list[Any]:
    """Python numbers as 0-d arrays of the dtype that the ufunc takes them in."""
    kinds = [a.dtype if hasattr(a, "dtype") else np.dtype(bool) if isinstance(a, bool) else type(a) for a in args]
    if not any(kind in (int, float) for kind in kinds):
        return args
    dtypes = ufunc.resolve_dtypes((*kinds, None))
    return [np.asarray(a, dtype) if type(a) in (int, float) else a for a, dtype in zip(args, dtypes)]


def _turn(call: Call, start: int, end: int) -> Call:
    """A call of a loop for some of its rows."""

    def part(x: Any) -> Any:
        if not isinstance(x, Rows):
            return x
        offset = x.offset if x.buffer.kind == "tile" else x.offset + start * x.strides[0]
        return View(x.buffer, offset, (end - start, *x.shape[1:]), x.strides, x.dtype)

    return call.but(args=tuple([part(a) for a in call.args]), out=part(call.out))


def aligned(nbytes: int) -> np.ndarray:
    """So many bytes, from the start of a cache line on."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + nbytes]


class _Memory:
    """Memory at an address, in NumPy's array interface; it keeps its owner alive."""

    def __init__(self, owner: np.ndarray, address: int, view: View) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": view.shape, "strides": view.strides,
                                    "typestr": view.dtype.str}


def array_at(owner: np.ndarray, address: int, view: View) -> np.ndarray:
    """A view as an ndarray, at an address inside of the owner's memory."""
    return np.asarray(_Memory(owner, address, view)) if view.size else np.empty(view.shape, view.dtype)
