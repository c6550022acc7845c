"""What a tensor is given from outside, as torch has it: .grad, which is added to in place, .data, flags, inference."""

import warnings

import numpy as np
import pytest
import torch
from besidetorch import X, leaf, noted

import tinygrad_llm as tg
from tinygrad_llm.autograd import AutogradError, InferenceError, graph


def kept_gradient(m):
    x = leaf(m)
    (x * 2).sum().backward()
    g, before = x.grad, x.grad._version
    (x * 3).sum().backward()
    return [g, g is x.grad, g._version - before]


def flat_buffer(m):
    flat, ps = m.tensor(np.zeros(6)), [leaf(m), leaf(m)]
    for i, p in enumerate(ps):
        p.grad = flat[3 * i : 3 * i + 3]
    (ps[0] * 2 + ps[1] * ps[1]).sum().backward()
    flat[:3].zero_()
    (ps[0] * 4).sum().backward()
    return [flat, ps[0].grad]


def zeroed(m):
    x = leaf(m)
    (x * 2).sum().backward()
    g = x.grad.zero_()
    (x * 5).sum().backward()
    return [g, g is x.grad]


def gradient_with_a_graph(m):
    x = leaf(m)
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    (x * 3).sum().backward()
    kept = x.grad is first
    (x**2).sum().backward(create_graph=True)
    return [first, x.grad, kept, x.grad is first]


def frozen_later(m):
    x, y = leaf(m), leaf(m)
    z = (x * y).sum()
    x.requires_grad_(False)
    z.backward()
    return [x.grad, y.grad]


def forgotten(m):
    x = leaf(m)
    (x * 2).sum().backward()
    del x.grad
    first = x.grad
    (x * 3).sum().backward()
    x.grad = None
    return [first, x.grad]


def transposed(m):
    x = m.tensor(np.ones((2, 3))).t().requires_grad_()
    y = m.tensor(np.ones((2, 3, 4)).transpose(2, 0, 1)).requires_grad_()
    (x.sum() + (y * y).sum()).backward()
    return [tuple(x.grad.stride()), tuple(y.grad.stride()), x.grad, y.grad]


def data_in_a_cell(m):
    x = leaf(m)
    x.data -= 1
    first = x.detach().clone()
    x.data = m.tensor(np.arange(3.0))
    (x * x).sum().backward()
    shared = m.tensor(np.zeros(3))
    x.data = shared
    shared += 2
    return [first, x.grad, x, x.is_leaf]


def data_of_other_shape_and_dtype(m):
    x = leaf(m)
    x.data = m.tensor(np.ones((2, 2), np.float32))
    (x * 3).sum().backward()
    return [x.grad, str(x.dtype).split(".")[-1], tuple(x.shape)]


def accumulated_hooks(m):
    x, notes = leaf(m), []

    def step(t):
        notes.append(np.round(t.grad.detach().numpy(), 12).tolist())
        with m.no_grad():
            t.sub_(t.grad)
        t.grad = None

    x.register_hook(lambda g: g * 3)
    handle = x.register_post_accumulate_grad_hook(step)
    (x * 2).sum().backward()
    m.autograd.grad((x * 2).sum(), x)
    handle.remove()
    (x * 2).sum().backward()
    return [x, x.grad, *notes]


def node_hooks(m):
    x, notes = leaf(m), []
    y = x * 2
    y.grad_fn.register_prehook(lambda g: (g[0] * 2,))
    y.grad_fn.register_hook(lambda given, out: notes.append([np.round(g.numpy(), 12).tolist() for g in (given[0], out[0])]))
    y.grad_fn.register_hook(lambda given, out: (given[0] * 5, *given[1:]))
    y.sum().backward()
    return [x.grad, *notes]


def hooks_of_the_end(m):
    x, notes = leaf(m), []
    end = x.expand_as(x).grad_fn.next_functions[0][0]

    def seen(name):
        return lambda *given: notes.append([name, [[np.round(g.numpy(), 12).tolist() for g in part] for part in given],
                                            None if x.grad is None else np.round(x.grad.numpy(), 12).tolist()])

    handles = [end.register_hook(seen("after")), end.register_prehook(lambda g: (g[0] * 3,)),
               end.register_prehook(seen("before"))]
    x.register_hook(lambda g: g + 1)
    x.register_post_accumulate_grad_hook(lambda t: notes.append("accumulated"))
    (x * 2).sum().backward()
    (x * 2).sum().backward()
    m.autograd.grad((x * 2).sum(), x)
    for handle in handles:
        handle.remove()
    (x * 2).sum().backward()
    return [x.grad, *notes]


def hooks_of_several(m):
    x, y, z, notes = leaf(m), leaf(m), leaf(m), []
    everything = m.autograd.graph.register_multi_grad_hook((x, y, z), lambda gs: notes.append([g is None for g in gs]))
    first = m.autograd.graph.register_multi_grad_hook((x, y), lambda g: notes.append(g.sum().item()), mode="any")
    (x * y).sum().backward()
    (x * y * z).sum().backward()
    everything.remove()
    first.remove()
    (x * y * z).sum().backward()
    return notes


def edges(m):
    x = leaf(m)
    h = x * 2
    y = (h * h).sum()
    at_x, at_h = (m.autograd.graph.get_gradient_edge(t) for t in (x, h))
    graph = [len(y.grad_fn.next_functions), y.grad_fn.next_functions[0][0].next_functions[0][0] is h.grad_fn,
             type(h.grad_fn.next_functions[0][0]).__name__, h.grad_fn.next_functions[0][0].variable is x, h.grad_fn.name()]
    return [*m.autograd.grad(y, (at_x, at_h)), *graph]


def called_node(m):
    x = leaf(m)
    nodes = [(x * leaf(m)).grad_fn, x.exp().grad_fn]
    with m.no_grad():  # outside, torch's gradients have a graph
        return [*nodes[0](m.tensor(np.ones(3))), nodes[1](m.tensor(np.zeros(3)))]


def losses_of_one_trunk(m):
    x, b = leaf(m), leaf(m)
    trunk = (x + b).reshape(3, 1).sum(1)
    (trunk * 2).sum().backward()
    (trunk + 1).sum().backward()
    trunk.sum().backward()
    return [x.grad, b.grad]


def zeros_with_a_graph(m):
    x, a = leaf(m), leaf(m)
    (d,) = m.autograd.grad((x * a).sum(), x, create_graph=True)
    (d2,) = m.autograd.grad(d.sum(), x, create_graph=True, materialize_grads=True)
    (d3,) = m.autograd.grad(d2.sum(), x, materialize_grads=True)
    return [d, d2, d3]


def batched_cotangents(m):
    x = leaf(m)
    y, v = x * x, m.tensor(np.eye(3))
    g, h = m.autograd.grad((y, y.sum()), (x, y), (v, m.tensor(np.arange(3.0))), is_grads_batched=True, create_graph=True)
    return [g, h, *m.autograd.grad(g.sum(), x)]


def penalty_of_piecewise_linear(m):
    x, w = leaf(m), leaf(m, [2.0, -1.0, 0.5])
    found = []
    for f in (m.relu, m.abs, lambda t: m.norm(t, 1), lambda t: t.clamp(-0.7, 1.5), lambda t: m.norm(t, float("inf"))):
        (g,) = m.autograd.grad(f(x).sum(), x, create_graph=True)
        found.append(g)
        if g.requires_grad:
            found += m.autograd.grad(g.sum(), x, retain_graph=True)
        (g,) = m.autograd.grad(f(x * w).sum(), x, create_graph=True)
        found += [g, *m.autograd.grad((g**2).sum(), w)]
    return found


def writes_to_frozen_partners(m):
    x, c = leaf(m), m.tensor(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    found = []
    for f in (lambda h: h * c[:, 0], lambda h: h / c[:, 0], lambda h: h @ c, lambda h: m.nn.functional.linear(h, c.T)):
        h = x * 1
        y = f(h)
        h.mul_(7)
        found += m.autograd.grad((y * y).sum(), x)
    return found


PROGRAMS = [kept_gradient, flat_buffer, zeroed, gradient_with_a_graph, frozen_later, forgotten, transposed, data_in_a_cell,
            data_of_other_shape_and_dtype, accumulated_hooks, node_hooks, hooks_of_the_end, hooks_of_several, edges,
            called_node, losses_of_one_trunk, zeros_with_a_graph, batched_cotangents, penalty_of_piecewise_linear,
            writes_to_frozen_partners]


@pytest.mark.parametrize("program", PROGRAMS, ids=[p.__name__ for p in PROGRAMS])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_is_torchs(program):
    assert noted(program(tg)) == noted(program(torch))


NEITHER = {"allow_unused": False, "materialize_grads": True}
REFUSED = {
    "a number": (lambda x: setattr(x, "grad", 0), TypeError, "grad: got a int"),
    "an array": (lambda x: setattr(x, "grad", np.zeros(3)), TypeError, "grad: got a ndarray"),
    "a shape": (lambda x: setattr(x, "grad", tg.tensor(np.zeros((3, 1)))), AutogradError, r"shape \(3, 1\)"),
    "a dtype": (lambda x: setattr(x, "grad", tg.zeros(3)), AutogradError, "dtype float32"),
    "itself": (lambda x: setattr(x, "grad", x), AutogradError, "got the tensor itself"),
    "data: array": (lambda x: setattr(x, "data", np.zeros(3)), TypeError, "data: got a ndarray"),
    "data: integers": (lambda x: setattr(x, "data", tg.tensor([1, 2, 3])), AutogradError, "data: got dtype int64"),
    "data: result": (lambda x: setattr(x * 1, "data", tg.tensor(np.zeros(2))), AutogradError, r"data: got shape \(2,\)"),
    "hook of a result": (lambda x: (x * 1).register_post_accumulate_grad_hook(print), AutogradError, "got a result of an op"),
    "hook of a constant": (lambda x: tg.ones(2).register_post_accumulate_grad_hook(print), AutogradError, "requires grad"),
    "hook that returns": (lambda x: (x.register_post_accumulate_grad_hook(lambda t: 1), x.sum().backward()), AutogradError,
                          "expected None"),
    "node hook": (lambda x: ((y := x * 2).grad_fn.register_hook(lambda g, o: g[0]), y.sum().backward()), AutogradError,
                  "expected None or a tuple of 2"),
    "edge": (lambda x: graph.get_gradient_edge(tg.ones(2)), AutogradError, "does not require grad"),
    "mode": (lambda x: graph.register_multi_grad_hook((x,), print, mode="some"), ValueError, "mode: got 'some'"),
    "no inputs": (lambda x: tg.grad(x.sum(), []), AutogradError, "inputs: got none"),
    "no tensors": (lambda x: tg.grad(x.sum(), {"x": x}), TypeError, r"inputs\[0\]: got a str"),
    "unused": (lambda x: tg.grad(x.sum(), x, **NEITHER), ValueError, "allow_unused: got False"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_change_nothing(call, error, message):
    x = leaf(tg)
    with pytest.raises(error, match=message):
        call(x)
    np.testing.assert_array_equal(x.detach().numpy(), X)


def test_a_graph_that_needs_what_data_replaced_refuses():
    x = leaf(tg)
    y, view = (x * x).sum(), x.detach()[:2]
    x.data = tg.tensor(np.zeros(3))
    with pytest.raises(AutogradError, match="modified in place"):
        y.backward()
    view += 1
    np.testing.assert_array_equal(x.detach().numpy(), np.zeros(3))


def test_grad_of_a_result_warns_unless_it_is_kept():
    x = leaf(tg)
    y, z = x * 2, x * 3
    z.retain_grad()
    with pytest.warns(UserWarning, match="retain_grad"):
        assert y.grad is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (x.grad, z.grad) == (None, None)
    with pytest.warns(UserWarning, match=r"create_graph=True puts the graph into \.grad"):
        (x * x).sum().backward(create_graph=True)


# Inference -----------------------------------------------------------------------------------------------------------------


def inference(m):
    x, w = leaf(m), m.tensor(np.ones(3))
    with m.inference_mode():
        y, made, view = x * 2, m.ones(2), w[:2]
        y.mul_(2)
        view.add_(1)
        inner = m.is_inference_mode_enabled()
        with m.inference_mode(False):
            z = x * 2
    found = [y, y.is_inference(), made.is_inference(), view.is_inference(), z, z.is_inference(), w, inner, m.is_grad_enabled()]
    c = y.clone()
    (x + y).sum().backward()  # nothing of y is saved
    return [*found, c.is_inference(), (c * x).requires_grad, x.grad, y.detach().is_inference()]


def test_inference_mode_is_torchs():
    assert noted(inference(tg)) == noted(inference(torch))


@pytest.mark.parametrize("call", [
    lambda m, y, x: y.add_(1), lambda m, y, x: y.requires_grad_(), lambda m, y, x: x * y, lambda m, y, x: y._version,
    lambda m, y, x: y.__setitem__(0, 1.0), lambda m, y, x: x @ y,
], ids=["write", "requires_grad_", "saved", "_version", "setitem", "saved by matmul"])
def test_what_an_inference_tensor_cannot_be(call):
    for m in (torch, tg):
        x = leaf(m)
        with m.inference_mode():
            y = x * 2
        with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
            call(m, y, x)
    assert issubclass(InferenceError, AutogradError)
