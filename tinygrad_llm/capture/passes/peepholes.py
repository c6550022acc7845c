"""peepholes: calls become faster ones that give the same but for rounding. Not among the exact passes.

    m = vecdot(x, v)    [2048, 128] · [128]        →        m = matmul(x, v)

vecdot asks BLAS for one dot product a row, a product with one vector is asked for once: in half of the time, in a third
where rows are few. BLAS adds up several rows side by side, so a row's last bit may depend on how many there are.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tinygrad_llm.capture.ir import Call, Loop, Rows, View, c_strides
from tinygrad_llm.capture.program import Program


def peepholes(program: Program) -> Program:
    """The program with each call that a rule fits replaced, those of loops too."""
    items: list[Call | Loop] = [
        dataclasses.replace(item, calls=[_improved(c) for c in item.calls]) if isinstance(item, Loop) else _improved(item)
        for item in program.calls]
    return dataclasses.replace(program, calls=items)


def _improved(call: Call) -> Call:
    if not _has_one_vector(call):
        return call
    rows, vector = call.args
    assert call.out is not None
    if not any(isinstance(v, Rows) or not v.is_contiguous() for v in (rows, call.out)):  # then all axes of rows are one
        n = math.prod(rows.shape[:-1])
        return call.but(function=np.matmul, args=(_seen_as(rows, (n, vector.size)), vector),
                                   out=_seen_as(call.out, (n,)))
    return call.but(function=np.matmul)


def _seen_as(view: View, shape: tuple[int, ...]) -> View:
    return dataclasses.replace(view, shape=shape, strides=c_strides(shape, view.dtype.itemsize))


def _has_one_vector(call: Call) -> bool:
    """Whether it is vecdot of rows, whose elements lie one after another, with one vector."""
    if call.function is not np.vecdot or call.options:
        return False
    rows, vector = call.args
    return (isinstance(rows, View) and isinstance(vector, View) and rows.ndim > 1 and vector.ndim == 1
            and rows.dtype == vector.dtype and rows.dtype.kind == "f"
            and all(v.strides[-1] == v.dtype.itemsize for v in (rows, vector)))
