"""checkpoint: the same values with less memory, any order of derivatives, dropout drawn again, and no silent difference."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_llm.autograd import AutogradError, Tensor, checkpoint, grad, no_grad
from tinygrad_llm.nn import functional as F

A, W = np.random.default_rng(0).uniform(0.2, 1.0, (2, 3, 3))


def block(x, w, generator=None):
    h = (x @ w).tanh().exp() * x
    return F.dropout(h, 0.4, True, generator=generator) if generator else h


def deep(x, w, wrap, generator=None, depth=3):
    for _ in range(depth):
        x = wrap(block, x, w, generator) + x * w
    return (x * x * x).sum()


def plain(function, *args):
    return function(*args)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 4))
def test_the_same_with_and_without(seed, drops, depth):
    """Values, gradients of arguments and of what is closed over, and the state that the generator is left in."""
    rows = []
    for wrap in (plain, checkpoint, lambda f, x, w, g: checkpoint(lambda x: f(x, w, g), x, generators=[g] if g else [])):
        x, w = Tensor.of(A, True), Tensor.of(W, True)
        generator = np.random.default_rng(seed) if drops else None
        loss = deep(x, w, wrap, generator, depth)
        loss.backward()
        rows.append([loss.numpy(), x.grad.numpy(), w.grad.numpy(), np.array(generator.random() if drops else 0)])
    for row in rows[1:]:
        for i, (a, b) in enumerate(zip(rows[0], row)):
            np.testing.assert_allclose(a, b, rtol=1e-13 if i in (1, 2) else 0)  # gradients are added in another order


def test_second_and_third_order_are_torch():
    found = []
    for make, library, wrap in ((lambda a: Tensor.of(a, True), grad, checkpoint),
                                (lambda a: torch.tensor(a, requires_grad=True), torch.autograd.grad, plain)):
        x, w = make(A), make(W)
        value, levels = deep(x, w, wrap if library is grad else plain), []
        for _ in range(3):
            found_now = library(value, [x, w], create_graph=True)
            levels += [g.tolist() for g in found_now]
            value = sum([(g * g).sum() for g in found_now])
        found.append(levels)
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_several_outputs_in_a_tree_nested_and_of_views():
    def f(p):
        return {"a": p["x"].sin() * p["w"], "b": (p["x"][0], 3, p["w"])}

    rows = []
    for wrap in (plain, checkpoint, lambda g, p: checkpoint(checkpoint, g, p)):
        x, w = Tensor.of(A, True), Tensor.of(W, True)
        out = wrap(f, {"x": x * 1, "w": w * 1})
        assert out["b"][1] == 3
        loss = (out["a"] * out["b"][2]).sum() + (out["b"][0] * out["b"][0]).sum()
        rows.append([g.numpy() for g in grad(loss, [x, w])])
    for row in rows[1:]:
        np.testing.assert_allclose(row, rows[0], rtol=1e-14)


def test_memory_is_smaller():
    x = np.random.default_rng(1).standard_normal((1000, 64))
    ws = [Tensor.of(np.eye(64) * 0.5, True) for _ in range(8)]

    def peak(wrap):
        h = Tensor.of(x, True)
        tracemalloc.start()
        for w in ws:
            h = wrap(lambda h, w=w: (h @ w).tanh().exp().sin() * h, h)
        (h * h).sum().backward()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(checkpoint) < 0.5 * peak(plain)


def test_the_graph_is_freed_by_counting():
    gc.collect()
    gc.disable()
    try:
        x = Tensor.of(A, True) * 1
        held = weakref.ref(x)
        loss = checkpoint(block, x, Tensor.of(W, True)).sum()
        del x
        assert held() is not None
        del loss
        assert held() is None
    finally:
        gc.enable()


def test_a_generator_that_is_not_passed_is_noticed_not_wrong():
    generator, x = np.random.default_rng(0), Tensor.of(A, True)
    loss = checkpoint(lambda x: block(x, Tensor.of(W), generator), x).sum()
    with pytest.raises(AutogradError, match=r"^checkpoint: got other values from the second run .* \(generators=\)"):
        loss.backward()
    loss = checkpoint(lambda x: block(x, Tensor.of(W), generator), x, determinism_check="none").sum()
    loss.backward()


def test_a_write_to_an_input_or_a_parameter_is_refused():
    for i in (0, 1):
        x, w = Tensor.of(A, True), Tensor.of(W, True)
        loss = checkpoint(lambda x, w=w: block(x, w), x).sum()
        with no_grad():
            (x, w)[i].zero_()
        with pytest.raises(AutogradError, match=r"^checkpoint: backward needs a tensor that was modified in place"):
            loss.backward()


def test_without_a_gradient_it_is_a_call():
    x = Tensor.of(A)
    assert not checkpoint(block, x, Tensor.of(W)).requires_grad
    with no_grad():
        assert not checkpoint(block, Tensor.of(A, True), Tensor.of(W)).requires_grad


def test_refusals():
    x = Tensor.of(A, True)
    with pytest.raises(TypeError, match="checkpoint: function: got an output of int"):
        checkpoint(lambda x: 3, x)
    with pytest.raises(ValueError, match="determinism_check: got 'maybe'"):
        checkpoint(lambda x: x, x, determinism_check="maybe")
    loss = checkpoint(block, x, Tensor.of(W)).sum()
    loss.backward()
    with pytest.raises(AutogradError, match="already used"):
        loss.backward()
