"""Gradients of gradients against torch, and every fused kernel against its definition in primitives."""

import functools
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opcases import OPS
from opcases import cases as calls
from opchecks import STEP, judge64
from torch.nn.attention import SDPBackend, sdpa_kernel

import tinygrad_llm.functions  # noqa: F401  gives Tensor its methods
from reference.opdraw import Sizes, call_torch, is_float, run_ours
from tinygrad_llm.autograd import Tensor, apply, grad

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
every_primitive = pytest.mark.parametrize("op", [op for op in OPS if not op.definition], ids=lambda op: op.name)
every_fused_op = pytest.mark.parametrize("op", [op for op in OPS if op.definition], ids=lambda op: op.name)
fewer = settings(max_examples=max(5, settings.default.max_examples // 4))
GRAPH = {"create_graph": True, "allow_unused": True}
SMALL = Sizes(high=3, lead=(0, 1), lead_high=2)


def our_orders(case, order):
    """[gradients of first order, of second order, ...] of our op; see _orders."""
    args = [a if a is None or a.dtype.kind != "f" else Tensor(a, i in case.wrt) for i, a in enumerate(case.args)]
    out = apply(case.op, *args, **case.options)
    cotangent = Tensor(case.cotangent.astype(out.dtype), True)
    inputs = [args[i] for i in case.wrt]
    found = _orders(case, order, out, inputs, cotangent, Tensor, functools.partial(grad, **GRAPH))
    return [[None if g is None else g.numpy() for g in level] for level in found]


def torch_orders(case, order):
    """The same of the torch expression."""
    args = [None if a is None else torch.tensor(a, requires_grad=i in case.wrt) for i, a in enumerate(case.args)]
    with sdpa_kernel(SDPBackend.MATH):  # torch's other kernels cannot be differentiated twice
        out = call_torch(case.op, args, case.options)
    cotangent = torch.tensor(case.cotangent, dtype=out.dtype, requires_grad=True)
    inputs = [args[i] for i in case.wrt]
    torch_grad = functools.partial(torch.autograd.grad, **GRAPH)
    found = _orders(case, order, out, inputs, cotangent, torch.tensor, torch_grad)
    return [[None if g is None else g.numpy(force=True) for g in level] for level in found]


def _orders(case, order, out, inputs, cotangent, constant, gradients_of):
    """Differentiate ⟨cotangent, out⟩, then Σ⟨gradient, direction⟩ of its gradients, and so on."""
    levels = [gradients_of(out, inputs, cotangent)]
    directions = directions_of(case)
    for _ in range(order - 1):
        terms = [(g * constant(v.astype(str(g.dtype).split(".")[-1]))).sum() for g, v in zip(levels[-1], directions)
                 if g is not None and g.requires_grad]
        levels.append(gradients_of(sum(terms[1:], terms[0]), [*inputs, cotangent], None) if terms else [])
    return levels


def directions_of(case):
    """A direction for each input and one for the cotangent."""
    return [case.directions[i] for i in case.wrt] + [np.flip(case.cotangent).copy()]


def compare(case, order):
    """Lines on every gradient of every order that is not torch's; a gradient that is not there is zero."""
    try:
        theirs = torch_orders(case, order)
    except RuntimeError:  # torch cannot: its layer_norm with a weight and no bias, or a bias and no weight
        assert case.op.definition
        return check_second_adjoint(case)
    ours = our_orders(case, order)
    shapes = [case.args[i] for i in case.wrt] + [case.cotangent]
    fails = []
    for level, (mine, other) in enumerate(zip(ours, theirs), 1):
        for k, like in enumerate(shapes[: max(len(mine), len(other))]):
            a, b = (np.zeros_like(like) if not found or found[k] is None else found[k] for found in (mine, other))
            fails += judge64(f"order {level}, input {k}", a, b) if a.dtype == b.dtype == np.float64 else []
    return fails


def check_second_adjoint(case):
    """Second order by complex step: ⟨∂S/∂x, v⟩ = Σ ⟨Im vjp(x + i h v) / h, u⟩ with S = Σ ⟨gradient, u⟩."""
    second, fails = our_orders(case, 2)[1], []
    for k, i in enumerate(case.wrt):
        args = [a.astype(np.complex128) if is_float(a) else a for a in case.args]
        args[i] = args[i] + 1j * STEP * case.directions[i]
        moved = case.op(*args, **case.options)[1](case.cotangent.astype(np.complex128))
        forward = sum(np.sum(np.imag(moved[j]) / STEP * case.directions[j]) for j in case.wrt)
        backward = 0.0 if second[k] is None else np.sum(second[k] * case.directions[i])
        fails += judge64(f"second order adjoint of {case.op.args[i].name}", np.asarray(backward), np.asarray(forward))
    return fails


@every_op
@given(data=st.data())
def test_second_order_is_torch(op, data):
    case = data.draw(calls(op, SMALL))
    assume(np.isfinite(run_ours(case)[0]).all())
    assert compare(case, 2) == []


@every_primitive
@fewer
@given(data=st.data())
def test_third_order_is_torch(op, data):
    case = data.draw(calls(op, SMALL))
    assume(np.isfinite(run_ours(case)[0]).all())
    assert compare(case, 3) == []


@every_fused_op
@fewer
@given(data=st.data())
def test_third_order_is_the_slope_of_the_second(op, data):
    """Not torch here: the double backward of its layer_norm takes the saved mean and deviation for constants."""
    case = data.draw(calls(op, SMALL))
    assume(np.isfinite(run_ours(case)[0]).all())
    third = our_orders(case, 3)[2] or [None] * len(case.wrt)
    for i, d in zip(case.wrt, third):
        terms = 0.0 if d is None else d * case.directions[i]
        slope = (second_sum(case, i, H) - second_sum(case, i, -H)) / (2 * H)
        assert abs(np.sum(terms) - slope) <= 1e-5 * (1 + np.sum(np.abs(terms)))


H = 1e-6


def second_sum(case, i, h):
    """Σ⟨second order gradient, direction⟩ with argument i moved by h along its direction."""
    args = tuple(a + h * case.directions[i] if k == i else a for k, a in enumerate(case.args))
    seconds = our_orders(replace(case, args=args, cache={}), 2)[1]
    return sum(np.sum(d * v) for d, v in zip(seconds, directions_of(case)) if d is not None)


@every_fused_op
@given(data=st.data())
def test_kernel_is_its_definition(op, data):
    case = data.draw(calls(op))
    kernel, *gradients = run_ours(case)
    args = [a if a is None or a.dtype.kind != "f" else Tensor(a, i in case.wrt) for i, a in enumerate(case.args)]
    out = op.definition(*args, **{**defaults(op), **case.options})
    assert judge64("output", np.asarray(op.definition(*case.args, **{**defaults(op), **case.options})), kernel) == []
    assert judge64("output", out.numpy(), kernel) == []
    found = grad(out, [args[i] for i in case.wrt], case.cotangent)
    assert [fail for d, g in zip(found, gradients) for fail in judge64("gradient", d.numpy(), g)] == []


def defaults(op):
    return {name: inspect.signature(op.function).parameters[name].default for name in op.options}
