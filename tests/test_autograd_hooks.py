"""Hooks, retain_grad, backward(inputs=) and retain_graph against torch, over drawn programs of hooks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_llm.autograd import AutogradError, Tensor, backward, grad

A, B = np.random.default_rng(0).uniform(0.5, 1.5, (2, 3))


def network(make):
    """[leaves and results] of a small graph with a diamond."""
    x, w = make(A), make(B)
    h = x * w
    a, b = h.sin(), h * x
    return [x, w, h, a, b, (a * b).sum()]


def both():
    return network(lambda a: Tensor.of(a, True)), network(lambda a: torch.tensor(a, requires_grad=True))


HOOKS = {
    "look": lambda seen: lambda g: seen.append(np.array(g.tolist())),
    "double": lambda seen: lambda g: g * 2,
    "clip": lambda seen: lambda g: g.clamp(-0.5, 0.5),
    "zero": lambda seen: lambda g: g * 0,
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # torch of .grad of results, and of create_graph
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([*HOOKS, "retain"]), st.booleans()), max_size=8),
       st.sampled_from(["backward", "grad", "grad of results", "inputs"]), st.booleans())
def test_drawn_hooks_are_torch(program, how, create_graph):
    """On leaves and results, in any order, some removed again: what they see, what flows on, and every .grad."""
    results = []
    for nodes, wrap in zip(both(), (lambda f: f, lambda f: f)):
        seen = []
        for i, kind, stays in program:
            if kind == "retain":
                nodes[i].retain_grad()
                continue
            handle = nodes[i].register_hook(wrap(HOOKS[kind](seen)))
            if not stays:
                handle.remove()
                handle.remove()
        results.append([*run(nodes, how, create_graph), *seen])
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        np.testing.assert_allclose(np.zeros(1) if a is None else a, np.zeros(1) if b is None else b, rtol=1e-12)


def run(nodes, how, create_graph):
    found = []
    if how == "backward":
        nodes[-1].backward(create_graph=create_graph)
    elif how == "inputs":
        nodes[-1].backward(create_graph=create_graph, inputs=[nodes[1], nodes[2]])
    else:
        library = grad if isinstance(nodes[0], Tensor) else torch.autograd.grad
        wanted = nodes[:2] if how == "grad" else nodes[3:5]  # of inputs upstream of others torch gives some before their hooks
        found = [np.array(g.tolist()) for g in library(nodes[-1], wanted, create_graph=create_graph)]
    return found + [None if n.grad is None else np.array(n.grad.tolist()) for n in nodes[:5]]


def test_a_hook_sees_the_whole_gradient_once():
    (x, *_, loss), seen = both()[0], []
    x.register_hook(lambda g: seen.append(g.tolist()))
    loss.backward()
    assert seen == [x.grad.tolist()]


def test_what_hook_and_grad_hold_is_not_written_to_later():
    x = Tensor.of(A, True)
    kept = []
    x.register_hook(kept.append)
    y = x * 2
    y.retain_grad()
    for n in (1, 2):
        (y * y).sum().backward(retain_graph=True)
        np.testing.assert_allclose(kept[0].numpy(), 8 * A)
        np.testing.assert_allclose(x.grad.numpy(), 8 * A * n)
        np.testing.assert_allclose(y.grad.numpy(), 4 * A * n)
    assert not np.shares_memory(kept[0].numpy(), x.grad.numpy())


def test_hooks_can_be_differentiated_through():
    x, t = Tensor.of(A, True), torch.tensor(A, requires_grad=True)
    found = []
    for v, library in ((x, grad), (t, torch.autograd.grad)):
        y = v * v
        y.register_hook(lambda g: g * g * g)
        (g,) = library((y * y).sum(), v, create_graph=True)
        found.append(library((g * g).sum(), v)[0])
    np.testing.assert_allclose(found[0].numpy(), found[1].numpy(), rtol=1e-12)


def test_after_a_write_old_hooks_see_the_old_values_gradient_and_retain_grad_the_new():
    x, t = Tensor.of(A, True), torch.tensor(A, requires_grad=True)
    rows = []
    for v in (x, t):
        seen, y = [], v * 1
        y.retain_grad()
        y.register_hook(lambda g, seen=seen: seen.append(g.tolist()))
        y.mul_(3)
        y.register_hook(lambda g, seen=seen: seen.append(g.tolist()))
        (y * y).sum().backward()
        rows.append([*seen, y.grad.tolist(), v.grad.tolist()])
    np.testing.assert_allclose(*rows, rtol=1e-12)


def test_a_handle_is_a_context():
    (x, *_, loss), seen = both()[0], []
    with x.register_hook(seen.append):
        loss.backward(retain_graph=True)
    loss.backward()
    assert len(seen) == 1


@pytest.mark.parametrize(("hook", "message"), [
    (lambda g: g[:1], r"hook <lambda>: got a return value of shape \(1,\) and dtype float64, expected \(3,\)"),
    (lambda g: Tensor.of(np.ones(3, np.float32)), "dtype float32, expected .* float64"),
    (lambda g: 3.0, "hook <lambda>: got a return value of type float, expected a Tensor or None"),
])
def test_a_hook_that_returns_something_else_is_refused(hook, message):
    x, *_, loss = both()[0]
    x.register_hook(hook)
    with pytest.raises(AutogradError, match=message):
        loss.backward()


def test_refusals():
    constant = Tensor.of(A)
    loss = both()[0][-1]
    for method in (lambda: constant.register_hook(print), constant.retain_grad, lambda: backward(loss, inputs=constant)):
        with pytest.raises(AutogradError, match=r"got a tensor that does not require grad"):
            method()
    with pytest.raises(AutogradError, match=r"backward: inputs: got none"):
        both()[0][-1].backward(inputs=[])


def test_backward_of_inputs_leaves_the_others_alone():
    mine, theirs = both()
    for nodes in (mine, theirs):
        nodes[-1].backward(inputs=nodes[1])
        assert nodes[0].grad is None
    np.testing.assert_allclose(mine[1].grad.numpy(), theirs[1].grad.numpy())


@pytest.mark.parametrize("retain", [None, False, True])
@pytest.mark.parametrize("create", [False, True])
def test_retain_graph_in_every_combination(retain, create):
    """The graph is kept where asked for and, if nothing is said, where create_graph is; the gradient's own graph lives on."""
    for nodes in both():
        nodes[-1].backward(retain_graph=retain, create_graph=create)
        again = create if retain is None else retain
        first = nodes[0].grad
        nodes[0].grad = None
        if create:
            (first * first).sum().backward(retain_graph=True) if again else None
        if again:
            nodes[0].grad = None
            nodes[-1].backward()
            np.testing.assert_allclose(nodes[0].grad.tolist(), first.tolist())
        else:
            with pytest.raises(RuntimeError):
                nodes[-1].backward()


def test_materialized_gradients():
    x, unused = Tensor.of(A, True), Tensor.of(B[:2], True)
    g, zero = grad(x.sum(), [x, unused], materialize_grads=True)
    assert (g.tolist(), zero.tolist()) == ([1, 1, 1], [0, 0])
