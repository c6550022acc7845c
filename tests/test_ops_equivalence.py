"""Every op against three oracles: torch, the complex step, and torch's gradcheck over our vjp."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opcases import OPS
from opcases import cases as calls
from opchecks import Bridge, check_adjoint, check_float32, check_float64

from reference.opdraw import Seeded, Sizes, call_torch, draw_call, is_float, run_ours
from reference.ops_report import judge_call
from tinygrad_llm.policy import geometric_mean_ratio

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
few = settings(max_examples=max(4, settings.default.max_examples // 10))


@every_op
@given(data=st.data())
def test_float64_is_torch(op, data):
    case = data.draw(calls(op))
    assert check_float64(case) == []


@every_op
@given(data=st.data())
def test_float32_is_no_less_accurate_than_torch(op, data):
    case = data.draw(calls(op))
    assert check_float32(case) == []


@every_op
@given(data=st.data())
def test_vjp_is_the_adjoint_of_the_complex_step(op, data):
    case = data.draw(calls(op))
    assume(np.isfinite(run_ours(case)[0]).all())
    assert check_adjoint(case) == []


@every_op
@few
@given(data=st.data())
def test_gradcheck_over_our_vjp(op, data):
    case = data.draw(calls(op))
    out = run_ours(case)[0]
    assume(out.dtype == np.float64 and np.isfinite(out).all())
    tensors = [torch.from_numpy(case.args[i].copy()).requires_grad_() for i in case.wrt]
    assert torch.autograd.gradcheck(lambda *t: Bridge.apply(case, *t), tensors)


@every_op
def test_an_argument_without_gradient_is_one_that_torch_cannot_differentiate(op):
    case = draw_call(op, Seeded(0), Sizes(none=0))
    for i in set(range(len(case.args))) - set(case.wrt):
        if is_float(case.args[i]):
            tensors = [torch.from_numpy(a.copy()) for a in case.args]
            tensors[i].requires_grad_()
            with pytest.raises(RuntimeError, match="not differentiable"):
                call_torch(op, tensors, case.options)


def test_float32_errors_are_no_larger_than_torchs_on_average():
    """The geometric mean of error / torch's error over all ops, outputs and gradients."""
    ratios = []
    for op in OPS:
        for seed in range(20):
            case = draw_call(op, Seeded(seed), Sizes(low=2, high=8, lead=(1, 2)))
            ratios += [row for row in judge_call(case, np.float32) if row.torch_error is not None]
    assert len(ratios) > 20 * len(OPS)
    assert geometric_mean_ratio(ratios) <= 1.05  # the aim is 1; a BLAS may round a little otherwise
