"""dense_operands: a call on few elements is given all of its operands in full, one element after another.

    b = a · s    [16, 32] · [16, 1]        →        c = s    [16, 32] ← [16, 1]        b = a · c

Where shapes, layouts or dtypes differ, a ufunc sets up an iterator: 0.65 µs, as long as 5,000 products take. An assignment,
0.2 µs, does without, and so do calls on arrays that lie alike. A scattered result is made in one piece, then copied. Of an
array that nobody can write into the copy is made here, once and for all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tinygrad_llm.capture import kernels
from tinygrad_llm.capture.ir import Call, Loop, View, c_strides, fresh, whole_of
from tinygrad_llm.capture.passes.calls import writes
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.replay import array_at

FEW = 4096
"""Elements of a result, at most: with 16,384 the copies take as long as the iterator."""

FUNCTIONS = {np.add, np.subtract, np.multiply, np.divide}
"""Those whose bits do not depend on the layout: IEEE 754 says what each is."""


def dense_operands(program: Program, few: int = FEW) -> Program:
    """The program with operands of small calls copied where they do not lie as the result does; once for all calls."""
    writers = writes(program)
    copies: dict[Any, View] = {}
    calls: list[Call | Loop] = []
    for call in program.calls:
        if isinstance(call, Loop) or not _is_slow(call, few):
            calls.append(call)
            continue
        assert call.out is not None
        args: list[Any] = []
        for a in call.args:
            if not _differs(a, call.out):
                args.append(a)
                continue
            key = a, call.out.shape, call.out.dtype
            if key not in copies and _is_constant(a):
                copies[key] = whole_of(np.array(np.broadcast_to(_array(a), call.out.shape), call.out.dtype, order="C"))
            elif key not in copies or writers[a.buffer] > 1:
                copies[key] = fresh(call.out.shape, call.out.dtype)
                calls.append(call.but(function=kernels.copy, kind="copy", args=(a,), out=copies[key]))
            args.append(copies[key])
        out = call.out if _is_dense(call.out) else fresh(call.out.shape, call.out.dtype)
        calls.append(call.but(args=tuple(args), out=out))
        if out is not call.out:
            calls.append(call.but(function=kernels.copy, kind="copy", args=(out,), out=call.out))
    return dataclasses.replace(program, calls=calls)


def _is_slow(call: Call, few: int) -> bool:
    """Whether it is one of these functions, on few numbers that do not lie alike."""
    out = call.out
    if call.function not in FUNCTIONS or call.options or out is None or not 1 < out.size <= few or out.dtype.kind not in "fi":
        return False
    if not call.reads or np.result_type(*[v.dtype for v in call.reads]) != out.dtype:
        return False  # it works in another dtype than that of the result
    return not _is_dense(out) or any(_differs(a, out) for a in call.args)


def _differs(a: Any, out: View) -> bool:
    """Whether an operand of several elements is not what a result in one piece is, element by element."""
    return isinstance(a, View) and a.size > 1 and not (a.shape == out.shape and a.dtype == out.dtype and _is_dense(a))


def _is_dense(view: View) -> bool:
    """Whether its elements lie one after another; where there is but one, strides say nothing."""
    return all(n == 1 or s == c for n, s, c in zip(view.shape, view.strides, c_strides(view.shape, view.dtype.itemsize)))


def _is_constant(view: View) -> bool:
    """Whether nobody can write into its memory."""
    array = view.buffer.array
    return array is not None and array.base is None and not array.flags.writeable


def _array(view: View) -> np.ndarray:
    """The array that a view of somebody else's memory shows."""
    assert view.buffer.array is not None
    return array_at(view.buffer.array, view.buffer.array.__array_interface__["data"][0] + view.offset, view)
