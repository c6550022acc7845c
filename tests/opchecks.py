"""What must hold of one call of an op. Each check returns what failed, one line each; an empty list is a pass.

The tests call these on drawn cases, and the mutation gate calls the same functions on broken gradients.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import torch

from reference.opdraw import Call, is_float, run_ours
from reference.ops_report import judge_call, judge_value

STEP = 2.0**-100  # a power of two: scaling by it is exact
COMPLEX = {np.float32: np.complex64, np.float64: np.complex128}
ANALYTIC = {  # continued from the real numbers without conjugates, which NumPy's own are not
    "sign": lambda x, sign=np.sign: sign(np.real(x)),
    "vecdot": lambda x, y: np.sum(x * y, -1),
}


def check_float64(case: Call) -> list[str]:
    """Output and gradients equal torch's, to 1e-10."""
    return [str(row) for row in judge_call(case, np.float64) if row.failed]


def check_float32(case: Call) -> list[str]:
    """Output and gradients are as near to the float64 truth as torch's own float32, luck apart."""
    return [str(row) for row in judge_call(case, np.float32) if row.failed]


def judge64(name: str, ours: Any, theirs: Any) -> list[str]:
    """A line if ours is not theirs by the float64 policy; where torch itself leaves float64, the bits must agree."""
    found = judge_value(name, ours, theirs, theirs, np.float64)
    return [str(found)] if found.failed else []


def judge32(name: str, ours: Any, theirs: Any, truth: Any) -> list[str]:
    """A line if ours misses the float32 policy; where torch itself leaves float32, the bits must agree."""
    found = judge_value(name, ours, theirs, truth, np.float32)
    return [str(found)] if found.failed else []


def check_adjoint(case: Call) -> list[str]:
    """⟨g, J v⟩ = ⟨Jᵀ g, v⟩ for each argument, J v = Im f(x + i h v) / h with h too small to matter (complex step)."""
    _, *gradients = run_ours(case)
    fails = []
    for i, gradient in zip(case.wrt, gradients):
        if gradient is None or gradient.shape != case.args[i].shape:
            fails.append(f"{case.op.args[i].name}: adjoint: got no gradient of shape {case.args[i].shape}")
            continue
        forward, backward = case.cotangent * tangent(case, i), gradient * case.directions[i]
        allowed = 1e-11 + 1e-10 * (np.abs(forward).sum() + np.abs(backward).sum())
        if not abs(forward.sum() - backward.sum()) <= allowed:
            fails.append(f"{case.op.args[i].name}: adjoint: got ⟨Jᵀg, v⟩ = {backward.sum()}, ⟨g, Jv⟩ = {forward.sum()}")
    return fails


def tangent(case: Call, i: int) -> np.ndarray:
    """J v: the derivative of the output when argument i moves along its direction. It takes no gradient: computed once."""
    if ("tangent", i) not in case.cache:
        case.cache["tangent", i] = _tangent(case, i)
    return case.cache["tangent", i]


def _tangent(case: Call, i: int) -> np.ndarray:
    args = [a.astype(np.complex128) if is_float(a) else a for a in case.args]
    args[i] = np.asarray(args[i] + 1j * STEP * case.directions[i])
    options = {name: COMPLEX.get(v, v) if isinstance(v, type) else v for name, v in case.options.items()}
    with mock.patch.multiple(np, **ANALYTIC):
        return np.imag(case.op(*args, **options)[0]).astype(np.float64) / STEP


class Bridge(torch.autograd.Function):
    """Our op as a torch function: torch's own gradcheck then judges our vjp by finite differences of our forward."""

    @staticmethod
    def forward(ctx: Any, case: Call, *tensors: torch.Tensor) -> torch.Tensor:
        args = list(case.args)
        for i, tensor in zip(case.wrt, tensors):
            args[i] = tensor.detach().numpy()
        out, ctx.vjp = case.op(*args, **case.options)
        ctx.wrt = case.wrt
        return torch.from_numpy(np.array(out))

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
        gradients = ctx.vjp(g.numpy())
        return None, *[torch.from_numpy(np.array(gradients[i])) for i in ctx.wrt]
