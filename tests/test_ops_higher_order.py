"""Gradients of gradients against torch and the complex step, and every fused kernel against its definition in primitives."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opcases import OPS
from opcases import cases as calls
from opchecks import check_adjoint, check_float32, check_float64, judge64
from opgradients import IN_PRIMITIVES, gradient_calls

import tinygrad_llm as tg
from reference.opdraw import Seeded, Sizes, draw_call, run_ours
from tinygrad_llm.autograd import Tensor, grad
from tinygrad_llm.ops import REGISTRY

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
every_fused_op = pytest.mark.parametrize("op", [op for op in OPS if op.definition], ids=lambda op: op.name)
fewer = settings(max_examples=max(5, settings.default.max_examples // 4))
SMALL = Sizes(high=3, lead=(0, 1), lead_high=2)


def drawn_gradient(data, call):
    """One of the gradients of a call, as a call."""
    return data.draw(st.sampled_from(gradient_calls(call)))


def finite_call(data, op):
    call = data.draw(calls(op, SMALL))
    assume(np.isfinite(run_ours(call)[0]).all())
    return call


@every_op
@given(data=st.data())
def test_second_order_is_torch(op, data):
    call = drawn_gradient(data, finite_call(data, op))
    assert check_float64(call) + check_float32(call) == []


@every_op
@fewer
@given(data=st.data())
def test_second_order_is_the_complex_step_of_the_vjp(op, data):
    assert check_adjoint(drawn_gradient(data, finite_call(data, op))) == []


@every_op
@fewer
@given(data=st.data())
def test_third_order_is_torch(op, data):
    call = drawn_gradient(data, drawn_gradient(data, finite_call(data, op)))
    assert check_float64(call) + check_float32(call) == []


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_of_the_tanh_gelu_keep_their_digits_where_it_is_nearly_x(order):
    """1 − tanh² u, of a tanh within rounding of 1, was wrong by up to 6e-5 in the third, torch's by 3e-6."""
    x = np.linspace(-7, 7, 401).astype(np.float32)
    found = [derivative(m, x.astype(dtype), order) for m, dtype in ((tg, "f4"), (torch, "f4"), (torch, "f8"))]
    ours, theirs = [np.abs(one - found[2]).max() for one in found[:2]]
    assert ours <= theirs


def derivative(m, x, order):
    t = m.tensor(x, requires_grad=True)
    y = m.nn.functional.gelu(t, approximate="tanh")
    for _ in range(order):
        (y,) = (grad if m is tg else torch.autograd.grad)(y.sum(), [t], create_graph=True)
    return y.detach().numpy()


@pytest.mark.parametrize("x", [1.0, 12.0, 60.0, -60.0])
def test_slopes_of_sigmoid_are_right_to_the_last_digits(x):
    """σ (1 − σ) would be 0 in float32 from 17 on; it is e⁻ˣ."""
    _, vjp = REGISTRY["sigmoid"](np.array(x, np.float32))
    wanted = 1 / (2 * np.cosh(x / 2)) ** 2
    np.testing.assert_allclose(vjp(np.float32(1))[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("name", IN_PRIMITIVES)
def test_torch_in_primitives_is_the_torch_expression(name):
    op = replace(REGISTRY[name], torch=IN_PRIMITIVES[name])
    for seed in range(20):
        assert check_float64(draw_call(op, Seeded(seed))) == []


@every_fused_op
@given(data=st.data())
def test_kernel_is_its_definition(op, data):
    case = data.draw(calls(op))
    kernel, *gradients = run_ours(case)
    args = [a if a is None or a.dtype.kind != "f" else Tensor.of(a, i in case.wrt) for i, a in enumerate(case.args)]
    out = op.definition(*args, **{**defaults(op), **case.options})
    assert judge64("output", np.asarray(op.definition(*case.args, **{**defaults(op), **case.options})), kernel) == []
    assert judge64("output", out.numpy(), kernel) == []
    found = grad(out, [args[i] for i in case.wrt], case.cotangent)
    assert [fail for d, g in zip(found, gradients) for fail in judge64("gradient", d.numpy(), g)] == []


def defaults(op):
    return {name: inspect.signature(op.function).parameters[name].default for name in op.options}
