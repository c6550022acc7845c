"""What backward watches: indices, masks, targets, whatever a vjp holds. A write to them is refused, or changes nothing."""

import functools

import numpy as np
import pytest
import torch

import tinygrad_llm as tg
from tinygrad_llm.autograd import AutogradError, apply, saved_arrays
from tinygrad_llm.ops import REGISTRY, Op
from tinygrad_llm.ops.closures import each

X = np.array([0.5, -1.0, 2.0, 0.25])
PLACES = np.array([0, 3, 3])
BY_INDEX = {
    "x[i]": lambda m, x, i: x[i], "x[i, None]": lambda m, x, i: x[i, None], "x[[i]]": lambda m, x, i: x[i,],
    "gather": lambda m, x, i: m.gather(x, 0, i), "index_select": lambda m, x, i: x.index_select(0, i),
    "index_add": lambda m, x, i: x.index_add(0, i, x[:3] * 2), "scatter_add": lambda m, x, i: x.scatter_add(0, i, x[:3] * 3),
    "index_put": lambda m, x, i: x.index_put((i,), x[:3] * 2, accumulate=True),
    "embedding": lambda m, x, i: m.nn.functional.embedding(i, x.reshape(4, 1)),
    "cross_entropy": lambda m, x, i: m.nn.functional.cross_entropy(m.stack([x, x, x * 2]), i),
    "linear_cross_entropy": lambda m, x, i: m.nn.functional.linear_cross_entropy(m.stack([x, x, x]), m.stack([x] * 4), i),
    "setitem": lambda m, x, i: assigned(x * 1, i, 0.5),
    "take_along_dim": lambda m, x, i: m.take_along_dim(x, i, 0),
}
BY_MASK = {
    "x[k]": lambda m, x, k: x[k], "masked_select": lambda m, x, k: x.masked_select(k),
    "where": lambda m, x, k: m.where(k, x, x * 2),
    "masked_fill": lambda m, x, k: x.masked_fill(k, 0.0), "setitem": lambda m, x, k: assigned(x * 1, k, 0.0),
}


def assigned(x, index, value):
    x[index] = value
    return x


def gradient(call, index, write):
    """The gradient at x after a write to the index between forward and backward."""
    x = tg.tensor(X).requires_grad_()
    y = call(tg, x, index)
    write(index)
    return tg.grad(y, x, np.linspace(1, 2, y.numel()).reshape(y.shape))[0].numpy()


def torchs(call, index):
    x = torch.tensor(X).requires_grad_()
    y = call(torch, x, torch.tensor(index))
    return torch.autograd.grad(y, x, torch.linspace(1, 2, y.numel(), dtype=torch.float64).reshape(y.shape))[0].numpy()


@pytest.mark.parametrize(("call", "index"), [
    *[pytest.param(call, PLACES, id=name) for name, call in BY_INDEX.items()],
    *[pytest.param(call, X > 0, id=f"mask: {name}") for name, call in BY_MASK.items()],
])
def test_a_tensor_that_decides_where_a_gradient_goes_is_watched_and_an_array_is_copied(call, index):
    def write(i):
        i[:] = ~i if index.dtype == bool else 1

    with pytest.raises(AutogradError, match="modified in place"):
        gradient(call, tg.tensor(index), write)
    np.testing.assert_allclose(gradient(call, tg.tensor(index), lambda i: None), torchs(call, index), atol=1e-12)
    np.testing.assert_allclose(gradient(call, index.copy(), write), torchs(call, index), atol=1e-12)


@pytest.mark.parametrize("call", [lambda x, a: x * a, lambda x, a: x / a, lambda x, a: a / x, lambda x, a: x @ a,
                                  lambda x, a: x * tg.reshape(a, (2, 2)).T.reshape(4),
                                  lambda x, a: x * tg.broadcast_to(a, (2, 4))])
def test_an_array_beside_a_tensor_is_copied(call):
    array, x = X.copy() + 3, tg.tensor(X).requires_grad_()
    y = call(x, array)
    expected = tg.grad(y.sum(), x, retain_graph=True)[0].numpy()
    array *= 7
    np.testing.assert_array_equal(tg.grad(y.sum(), x)[0].numpy(), expected)


# Where a vjp may hold an array -------------------------------------------------------------------------------------------


def in_a_dict(x):
    kept = {"x": [x]}
    return x * x, lambda g: (2 * g * kept["x"][0],)


def in_a_default(x):
    def vjp(g, x=x):
        return (2 * g * x,)
    return x * x, vjp


def in_a_named_default(x):
    def vjp(g, *, x=x):
        return (2 * g * x,)
    return x * x, vjp


def in_a_partial(x):
    return x * x, functools.partial(lambda x, g: (2 * g * x,), x)


def in_a_function_beside(x):
    def slope():
        return 2 * x
    return x * x, lambda g: (g * slope(),)


def one_an_argument(x):
    return x * x, each(lambda g: 2 * g * x)


def applied(body, x):
    return apply(Op("doubtful", body, REGISTRY["neg"].args, {}, "x * x"), x)


HOLDERS = [in_a_dict, in_a_default, in_a_named_default, in_a_partial, in_a_function_beside, one_an_argument]


@pytest.mark.parametrize("body", HOLDERS, ids=[b.__name__ for b in HOLDERS])
def test_an_array_is_found_wherever_a_vjp_holds_it(body):
    x = tg.tensor(X).requires_grad_()
    h = x * 1
    y = applied(body, h).sum()
    assert any(a is h._array for a in saved_arrays(y.grad_fn.parents[0].vjp))
    np.testing.assert_allclose(tg.grad(y, x, retain_graph=True)[0].numpy(), 2 * X)
    h.mul_(10)
    with pytest.raises(AutogradError, match="doubtful: backward needs a tensor that was modified in place"):
        y.backward()


class Kept:
    def __init__(self, x):
        self.x = x

    def vjp(self, g):
        return (2 * g * self.x,)


def in_an_object(x):
    kept = Kept(x)
    return x * x, lambda g: (2 * g * kept.x,)


def in_a_function_attribute(x):
    def vjp(g):
        return (2 * g * vjp.x,)
    vjp.x = x
    return x * x, vjp


@pytest.mark.parametrize("body", [in_an_object, lambda x: (x * x, Kept(x).vjp), in_a_function_attribute],
                         ids=["object", "method", "function attribute"])
def test_an_array_in_an_attribute_is_refused_by_name(body):
    with pytest.raises(TypeError, match=r"op doubtful: vjp: got an array in the attribute '(x|vjp)'"):
        applied(body, tg.tensor(X).requires_grad_())


# What is let go of -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [lambda x, w: x * w, lambda x, w: w / x, lambda x, w: x @ w, tg.nn.functional.linear])
def test_beside_a_frozen_factor_nothing_of_the_other_is_kept(call):
    x, w = tg.tensor(np.ones((3, 3))).requires_grad_(), tg.tensor(np.full((3, 3), 2.0))
    if call(x, w)._node.op.name == "div":
        x, w = w.requires_grad_(), x.detach()
        y = call(w, x)
    else:
        y = call(x, w)
    assert not any(np.shares_memory(a, x._array) for a in saved_arrays(y.grad_fn.vjp))
    (g,) = tg.grad(y.sum(), x, create_graph=True)
    assert g.shape == x.shape


def test_the_gradient_of_a_frozen_weight_is_not_computed():
    calls = []
    body = lambda x, w: (x @ w, each(lambda g: g @ w.T, lambda g: calls.append(1) or x.T @ g))  # noqa: E731
    op = Op("product", body, REGISTRY["matmul"].args, {}, "x @ w")
    x, w = tg.tensor(np.ones((2, 2))).requires_grad_(), tg.tensor(np.ones((2, 2)))
    apply(op, x, w).sum().backward()
    assert calls == []
    w.requires_grad_()
    apply(op, x, w).sum().backward()
    assert calls == [1]


def masked_attention(m, x):
    q = x.reshape(1, 1, 2, 2)
    return m.nn.functional.scaled_dot_product_attention(q, q, q, m.tensor([[True, False], [True, True]]))


READ_BY_TORCH = {  # which of the input and the result torch's gradient reads
    "relu": (lambda m, x: m.relu(x), "result"), "sigmoid": (lambda m, x: m.sigmoid(x), "result"),
    "reciprocal": (lambda m, x: m.reciprocal(x), "result"), "rsqrt": (lambda m, x: m.rsqrt(x), "result"),
    "prod": (lambda m, x: x.prod(), "input result"), "prod of an axis": (lambda m, x: x.prod(0), "input result"),
    "amax": (lambda m, x: x.amax(0), "input result"), "amin": (lambda m, x: x.amin(), "input result"),
    "max": (lambda m, x: x.max(), "input result"), "min": (lambda m, x: x.min(), "input result"),
    "var": (lambda m, x: x.var(), "input"), "var of an axis": (lambda m, x: x.var(0), "input"),
    "std": (lambda m, x: x.std(), "input result"), "norm": (lambda m, x: m.norm(x), "input result"),
    "norm 1": (lambda m, x: m.norm(x, 1), "input result"), "norm inf": (lambda m, x: m.norm(x, float("inf")), "input result"),
    "norm 3": (lambda m, x: m.norm(x, 3), "input result"),
    "attention with a mask": (masked_attention, "input result"),
}


@pytest.mark.parametrize("written", ["input", "result"])
@pytest.mark.parametrize("name", READ_BY_TORCH)
def test_a_write_to_what_torchs_gradient_reads_is_refused_as_in_torch(name, written):
    call, read = READ_BY_TORCH[name]
    refused = []
    for m in (torch, tg):
        leaf = m.tensor([0.5, 1.5, 2.0, 0.25], requires_grad=True)
        x = leaf * 1
        y = call(m, x)
        with m.no_grad():
            (x if written == "input" else y).mul_(3)
        try:
            y.sum().backward()
            refused.append(False)
        except RuntimeError:
            refused.append(True)
    assert refused[0] == (written in read)
    assert refused[1] or not refused[0]  # the gradients of reciprocal and rsqrt read the operand here


def test_a_norm_with_p_0_has_no_gradient():
    for m in (torch, tg):
        x = m.tensor([0.0, 2.0], requires_grad=True)
        y = m.norm(x, 0)
        assert y.requires_grad
        assert y.item() == 1
        y.backward()
        assert x.grad is None
