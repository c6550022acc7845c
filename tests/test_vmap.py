"""func.vmap: every function that there is against a loop over the examples, programs against torch's vmap, and refusals."""

import numpy as np
import pytest
import torch
from functioncases import CASES
from functiondraws import Draw
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_llm as ours
from tinygrad_llm import func
from tinygrad_llm.autograd import AutogradError, Tensor, functional, grad, no_grad
from tinygrad_llm.capture import compile
from tinygrad_llm.nn import Linear

few = settings(max_examples=max(4, settings.default.max_examples // 10))
seeds = st.integers(0, 2**32 - 1)
BATCH = 3


def listed(tree):
    return list(tree) if isinstance(tree, tuple | list) else [tree]


def drawn(name, seed):
    """(the call, its arrays with an axis of examples in front where `which` says so, which)."""
    call, arrays = CASES[name](Draw(seed))
    which = np.random.default_rng(seed).integers(0, 4, len(arrays)) > 0
    which |= not which.any()
    return (lambda *xs: call(ours, *xs)), [np.stack([a * (1 + 0.1 * k) for k in range(BATCH)]) if b else a
                                           for a, b in zip(arrays, which)], which


def looped(f, xs, which):
    """f for one example after the other, stacked."""
    each = [listed(f(*[x[k] if b else x for x, b in zip(xs, which)])) for k in range(BATCH)]
    return [np.stack(parts) for parts in zip(*each)]


def vmapped(f, xs, which):
    return listed(func.vmap(f, tuple(0 if b else None for b in which))(*xs))


def with_gradients(run, f, arrays, which, seed):
    """Outputs, the gradients of all arrays through them, gradients of Σ f² for each example, and gradients through these."""
    xs, rng = [Tensor.of(a, True) for a in arrays], np.random.default_rng(seed)
    outs = run(f, xs, which)
    pairs = [(o, rng.standard_normal(o.shape).astype(o.dtype)) for o in outs if o.requires_grad]
    through = grad([o for o, _ in pairs], xs, [c for _, c in pairs], materialize_grads=True) if pairs else []
    squares = lambda *ys: sum([(o * o).sum() for o in listed(f(*ys)) if o.dtype.kind == "f"], Tensor.of(np.zeros(())))  # noqa: E731
    own = run(func.grad(squares, tuple(range(len(xs)))), xs, which)
    second = [(g.sin().sum()) for g in own if g.requires_grad]
    return [*outs, *through, *own, *(grad(second, xs, materialize_grads=True) if second else [])]


@pytest.mark.parametrize("name", CASES)
@few
@given(seed=seeds)
def test_every_function_is_a_loop_over_the_examples(name, seed):
    f, arrays, which = drawn(name, seed)
    if not arrays:
        assert which.size == 0
        return
    mine = with_gradients(vmapped, f, arrays, which, seed)
    expected = with_gradients(looped, f, arrays, which, seed)
    assert [(a.shape, a.dtype) for a in mine] == [(b.shape, b.dtype) for b in expected]
    for a, b in zip(mine, expected):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-9, atol=1e-10)


# Programs, in both libraries ------------------------------------------------------------------------------------------


def leaf(t):
    return t.detach().clone().requires_grad_()


def loss(w, x, y):
    return (((x @ w).tanh() - y) ** 2).mean()


def gradient_of(m, out, *xs):
    return m.autograd.grad((out * out).sum(), xs)


def through(m, F, w, x, y):
    w, x = leaf(w), leaf(x)
    return gradient_of(m, F.vmap(loss, (None, 0, 0))(w, x, y), w, x)


def through_gradients(m, F, w, x, y):
    w, x = leaf(w), leaf(x)
    return gradient_of(m, F.vmap(F.grad(loss), (None, 0, 0))(w, x, y), w, x)


def through_what_is_closed_over(m, F, w, x, y):
    w = leaf(w)
    return gradient_of(m, F.vmap(lambda x: F.vmap(lambda y: (x @ w * y).sin())(y))(x), w)


def written(m, F, w, x, y):
    def f(x, y):
        z = x * 2
        z.mul_(x)
        z[1:3] = y[:2] * x[0]
        z[0] += z[3]
        return (z * x).sum()
    return F.vmap(F.grad(f, argnums=(0, 1)))(x, y)


def written_constants(m, F, w, x, y):
    def f(x, i):
        z = x * 1
        z[i] = x[0] * 5
        z[1:2].copy_(x[2:3])
        z[3].fill_(2.0)
        return z
    return F.vmap(f)(x, places(m))


def places(m):
    return m.tensor([1, 2, 3, 0, 1])


def classes(m, F, w, x, y):
    per_example = F.vmap(F.grad(lambda x, i: m.nn.functional.cross_entropy(x[None], i[None])))
    return per_example(x, places(m))


def embedded(m, F, w, x, y):
    f = lambda w, i: (m.nn.functional.embedding(i, w) ** 2).sum()  # noqa: E731
    return F.vmap(F.grad(f), (None, 0))(w, m.tensor([[1, 2], [3, 3], [0, 1]]))


def attention(m, F, w, x, y):
    q = (x[:, :, None, None] * w).sin()
    f = lambda k, q: m.nn.functional.scaled_dot_product_attention(q, k, q * q, is_causal=True).exp().sum()  # noqa: E731
    return F.vmap(F.grad(f, argnums=(0, 1)), (None, 0))(q[0], q)


def normed(m, F, w, x, y):
    f = lambda w, b, x: (m.nn.functional.layer_norm(x @ w, (3,), b, b) ** 3).sum()  # noqa: E731
    return F.vmap(F.grad(f, argnums=(0, 1)), (None, None, 0))(w, y[0], x)


def rows_of_a_vjp(m, F, w, x, y):
    out, pull = F.vjp(lambda w: m.nn.functional.scaled_dot_product_attention(w, w.flip(0), w * w, is_causal=True), w)
    return F.vmap(pull)((x[:, :, None] * out).cos())


PROGRAMS = {
    "per-example gradients": lambda m, F, w, x, y: F.vmap(F.grad(loss), (None, 0, 0))(w, x, y),
    "gradient through vmap": through,
    "gradient through per-example gradients": through_gradients,
    "gradient of what is closed over": through_what_is_closed_over,
    "func.grad of vmap of grad": lambda m, F, w, x, y: F.grad(
        lambda w: (F.vmap(F.grad(loss), (None, 0, 0))(w, x, y) ** 2).sum())(w),
    "hessian of vmap": lambda m, F, w, x, y: F.hessian(
        lambda b: F.vmap(lambda x: (x @ w + b).sin().sum())(x).exp().sum())(y[0]),
    "hessians": lambda m, F, w, x, y: F.vmap(F.hessian(lambda x: (x**3).sum() * x[0]))(x),
    "jacobians by rows": lambda m, F, w, x, y: F.vmap(F.jacrev(lambda x: x.sin() * x.sum()))(x),
    "jacobians by columns": lambda m, F, w, x, y: F.vmap(F.jacfwd(lambda x: (x @ w).exp()))(x),
    "jvp": lambda m, F, w, x, y: F.vmap(lambda x, v: F.jvp(lambda x: (x * x).cumsum(0), (x,), (v,)))(x, x.cos()),
    "jvp along what is not batched": lambda m, F, w, x, y: F.vmap(
        lambda x: F.jvp(lambda x: x.exp() * x[0], (x,), (w[:, 0],))[1])(x),
    "rows of a vjp": rows_of_a_vjp,
    "rows of a vjp, nested": lambda m, F, w, x, y: F.vmap(
        lambda x: F.vmap(F.vjp(lambda x: (x.sin() * x.sum()) @ w, x)[1])(y))(x),
    "grad and value, aux": lambda m, F, w, x, y: F.vmap(F.grad_and_value(lambda x: ((x**2).sum(), x * 3), has_aux=True))(x),
    "nested": lambda m, F, w, x, y: F.vmap(lambda a: F.vmap(lambda b: (a[:3] * b).sum())(y))(x),
    "nested with a gradient between": lambda m, F, w, x, y: F.vmap(F.grad(
        lambda b: F.vmap(lambda x, y: ((x @ w + b).sin() * y).sum())(x, y).sum()))(y),
    "nested, out_dims": lambda m, F, w, x, y: F.vmap(lambda a: F.vmap(lambda b: m.outer(a, b), out_dims=2)(y), out_dims=1)(x),
    "vmap of vmap": lambda m, F, w, x, y: F.vmap(F.vmap(lambda a, b: a * b, (0, None)), (0, 0))(x, y[:, 0]),
    "negative axes": lambda m, F, w, x, y: F.vmap(lambda x, w: x * w.sum(), (-1, 0), -1)(x, w),
    "trees": lambda m, F, w, x, y: F.vmap(
        lambda d, t: {"a": d["p"] @ t[0], "b": [t[1] * 2, d["q"].sum()]}, ({"p": 0, "q": 1}, (None, 0)),
        {"a": 1, "b": [0, 0]})({"p": x, "q": y.T}, (w, y)),
    "an upper part of the tree": lambda m, F, w, x, y: F.vmap(
        lambda t, w: (t[0].sum() + t[1] @ w.T, t[0] @ w), (0, None), 0)((x, y), w),
    "out_dims None": lambda m, F, w, x, y: F.vmap(lambda x: (x * 2, w * 2), out_dims=(0, None))(x),
    "keyword arguments": lambda m, F, w, x, y: F.vmap(lambda x, w: x @ w)(x, w=w),
    "chunks": lambda m, F, w, x, y: F.vmap(lambda x: (x * 2, x.sum()), chunk_size=2, out_dims=(1, 0))(x),
    "a loop over the axes": lambda m, F, w, x, y: F.vmap(lambda x: m.cat([x[i : i + 1] * len(x) ** i for i in range(4)]))(x),
    "places": lambda m, F, w, x, y: F.vmap(lambda x, i: x[i] * 2)(x, places(m)),
    "gather": lambda m, F, w, x, y: F.vmap(F.grad(lambda x, i: x.gather(0, i[None]).sum() * x.sum()))(x, places(m)),
    "index_add": lambda m, F, w, x, y: F.vmap(F.grad(
        lambda x, i: (x.index_add(0, i[None], x[:1] * x[1]) * x).sum()))(x, places(m)),
    "values and indices": lambda m, F, w, x, y: tuple(F.vmap(lambda x: x.max(0))(x)),
    "reductions": lambda m, F, w, x, y: F.vmap(F.grad(lambda x: x.std() + x.norm() + x.prod() * x.max() * x.logsumexp(0)))(x),
    "views": lambda m, F, w, x, y: F.vmap(lambda x: x.view(2, 2).t().reshape(-1))(x),
    "einsum": lambda m, F, w, x, y: F.vmap(lambda x: m.einsum("i,ij->j", x, w))(x),
    "no slope": lambda m, F, w, x, y: F.vmap(
        lambda x: (x.floor(), x.isnan(), x.all(0), m.div(x, 0.3, rounding_mode="floor")))(x),
    "no examples": lambda m, F, w, x, y: F.vmap(lambda x: (x.sin() @ w, x.sum()))(x[:0]),
    "writes": written,
    "writes without gradients": written_constants,
    "classes": classes,
    "embedding": embedded,
    "attention": attention,
    "layer_norm": normed,
}


def same(mine, theirs):
    if isinstance(theirs, dict):
        assert list(mine) == list(theirs)
        mine, theirs = list(mine.values()), list(theirs.values())
    if isinstance(theirs, tuple | list):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            same(a, b)
        return
    assert mine.shape == tuple(theirs.shape)
    np.testing.assert_allclose(mine.detach().numpy(), theirs.detach().numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
@few
@given(seed=seeds)
def test_programs_give_what_torch_gives(program, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in ((4, 3), (5, 4), (5, 3))]
    same(program(ours, func, *map(ours.tensor, arrays)), program(torch, torch.func, *map(torch.tensor, arrays)))


def scaled_ensemble(m):
    class Scaled(m.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.weight = m.nn.Parameter(m.ones(2) * scale)
            self.register_buffer("scale", m.tensor([scale, 3.0]))

        def forward(self, x):
            return x * self.weight * self.scale

    models = [Scaled(s) for s in (2.0, 5.0)]
    parameters, buffers = m.func.stack_module_state(models)
    run = lambda p, b, x: m.func.functional_call(models[0], (p, b), (x,))  # noqa: E731
    out = m.func.vmap(run, (0, 0, None))(parameters, buffers, m.ones(2))
    return buffers["scale"].tolist(), buffers["scale"].requires_grad, out.tolist()


def test_an_ensembles_buffers_are_stacked_too():
    assert scaled_ensemble(ours) == scaled_ensemble(torch)


def test_an_ensemble_of_modules():
    models = [Linear(3, 2, dtype=np.float64) for _ in range(4)]
    stacked, _ = func.stack_module_state(models)
    x = Tensor.of(np.random.default_rng(0).standard_normal((5, 3)))
    run = lambda p, x: func.functional_call(models[0], p, (x,))  # noqa: E731
    out = func.vmap(run, (0, None))(stacked, x)
    np.testing.assert_allclose(out.detach().numpy(), np.stack([m(x).detach().numpy() for m in models]))
    out.square().sum().backward()
    for k, model in enumerate(models):
        model(x).square().sum().backward()
        np.testing.assert_allclose(stacked["weight"].grad.numpy()[k], model.weight.grad.numpy())
    with pytest.raises(AutogradError, match="stack_module_state: models: got 2 of 2 kinds"):
        func.stack_module_state([models[0], Linear(2, 2)])
    per_example = func.vmap(func.grad(lambda p, x: (run(p, x) ** 2).sum()), (None, 0))(dict(model.named_parameters()), x)
    np.testing.assert_allclose(per_example["weight"].detach().numpy().sum(0), model.weight.grad.numpy(), rtol=1e-12)


def test_capture_and_vmap():
    """A compiled function is vmapped as it is; a function with vmap inside runs without capture, and says why."""
    x = ours.tensor(np.arange(6.0).reshape(2, 3))
    assert func.vmap(compile(lambda x: x * x.sum()))(x).tolist() == [[0, 3, 6], [36, 48, 60]]
    with pytest.warns(RuntimeWarning, match="vmap: got a function that is being recorded"):
        assert compile(func.vmap(lambda x: x * x.sum()))(x).tolist() == [[0, 3, 6], [36, 48, 60]]


def test_derivatives_of_autograd_functional_inside():
    x = ours.tensor(np.arange(6.0).reshape(2, 3))
    f = lambda t: (t**3).sum()  # noqa: E731
    expected = np.stack([np.diag(6 * row) for row in x.numpy()])
    assert func.vmap(lambda x: functional.hvp(f, x, x)[1])(x).tolist() == (6 * x * x).tolist()
    assert func.vmap(lambda x: functional.hessian(f, x))(x).tolist() == expected.tolist()


# Randomness, memory ---------------------------------------------------------------------------------------------------


def test_random_numbers_are_refused_shared_or_drawn_for_each_example():
    drop = lambda x: ours.nn.functional.dropout(x, generator=rng)  # noqa: E731
    x, rng = ours.tensor(np.ones((4, 50))), np.random.default_rng(0)
    with pytest.raises(AutogradError, match="vmap: randomness: got 'error' and a function that draws"):
        func.vmap(drop)(x)
    with pytest.raises(AutogradError, match="vmap: randomness: got 'error'"):
        func.vmap(lambda x: x * drop(ours.tensor(np.ones(50))))(x)
    for f in (drop, lambda x: x * drop(ours.tensor(np.ones(50)))):
        shared, each = (func.vmap(f, randomness=how)(x).numpy() for how in ("same", "different"))
        assert (shared == shared[0]).all()
        assert (each != each[0]).any(1)[1:].all()
        assert set(np.unique(each)) == {0.0, 2.0}
    assert func.vmap(lambda x: ours.nn.functional.dropout(x, training=False))(x).tolist() == x.tolist()


DRAWS = {
    "rand": lambda m, x: x + m.rand(50), "randn": lambda m, x: m.randn(50),
    "normal": lambda m, x: x + m.normal(0.0, 1.0, (50,)), "normal of a mean": lambda m, x: x + m.normal(m.zeros(50), 1.0),
    "randint": lambda m, x: x + m.randint(0, 900, (50,)), "randperm": lambda m, x: m.randperm(50),
    "bernoulli": lambda m, x: m.bernoulli(m.full((50,), 0.5)),
    "rand_like": lambda m, x: m.rand_like(x), "randn_like": lambda m, x: x + m.randn_like(x),
    "randint_like": lambda m, x: m.randint_like(x, 0, 900), "uniform_": lambda m, x: x.clone().uniform_(),
    "normal_": lambda m, x: x.clone().normal_(), "bernoulli_": lambda m, x: x.clone().bernoulli_(),
    "random_": lambda m, x: x.clone().random_(0, 900), "init": lambda m, x: m.nn.init.normal_(m.zeros_like(x)),
    "uniform_ of one": lambda m, x: m.zeros(50).uniform_(), "normal_ of one": lambda m, x: m.zeros(50).normal_(),
    "bernoulli_ of one": lambda m, x: m.zeros(50).bernoulli_(), "random_ of one": lambda m, x: m.zeros(50).random_(0, 900),
}


@pytest.mark.parametrize("how", ["error", "same", "different"])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_drawing_functions_do_what_randomness_says(draw, how):
    def rows(m):
        try:
            found = np.asarray(m.func.vmap(lambda x: draw(m, x), randomness=how)(m.full((3, 50), 0.5)))
        except RuntimeError:
            return "refused"
        return [(row == found[0]).all() for row in found]

    assert rows(ours) == rows(torch)


@pytest.mark.parametrize("f", [
    lambda m, x: m.zeros_like(x).add_(x), lambda m, x: m.ones_like(x).mul_(x), lambda m, x: x.new_zeros(4).add_(x),
    lambda m, x: x.new_full((4,), 2.0).mul_(x), lambda m, x: m.func.vmap(lambda a: m.zeros_like(a).add_(a * x.sum()))(x),
])
def test_new_tensors_like_a_batched_one_can_be_written_to(f):
    x = np.arange(12.0).reshape(3, 4)
    mine, theirs = (m.func.vmap(lambda t: f(m, t))(m.tensor(x)) for m in (ours, torch))  # noqa: B023
    assert mine.tolist() == theirs.tolist()


def test_a_write_into_an_argument_reaches_the_callers_tensor_and_backward_knows():
    x = ours.tensor(np.ones((2, 3)))
    y = ours.tensor(np.ones((2, 3)), requires_grad=True) * x
    func.vmap(lambda x: x.add_(1))(x)
    assert x.tolist() == [[2.0] * 3] * 2
    with pytest.raises(AutogradError, match="modified in place"):
        y.sum().backward()


@pytest.mark.parametrize("write", [lambda x, w, z: x.add_(1), lambda x, w, z: w.mul_(2), lambda x, w, z: None])
def test_what_is_written_to_between_vmap_and_backward_is_found_out(write):
    x, w = ours.tensor(np.ones((2, 3))), ours.tensor(np.ones(3), requires_grad=True)
    z = func.vmap(lambda x: (x * (w * w)).sum())(x)
    with no_grad():
        write(x, w, z)
    if write(x.detach(), w.detach(), z) is None:
        z.sum().backward()
        assert w.grad.tolist() == [4.0] * 3
        return
    with pytest.raises(AutogradError, match="modified in place"):
        z.sum().backward()


def test_a_value_that_backward_needs_is_not_written_over_inside():
    def f(x):
        y = x * 2
        z = y * y
        y.add_(1)
        return z.sum()

    with pytest.raises(AutogradError, match="modified in place"):
        func.vmap(func.grad(f))(ours.tensor(np.ones((2, 3))))


def test_an_argument_that_is_returned_shares_its_memory_and_backward_knows():
    for m, vmap in ((torch, torch.func.vmap), (ours, func.vmap)):
        x, w = m.tensor(np.ones((2, 3))), m.tensor(np.ones(3), requires_grad=True)
        y = (x * w).sum()
        vmap(lambda x: x.reshape(3, 1))(x).add_(1)
        assert x.tolist() == [[2.0] * 3] * 2
        with pytest.raises(RuntimeError, match="modified"):
            y.backward()


# Refusals -------------------------------------------------------------------------------------------------------------

X = np.arange(6.0).reshape(2, 3)
REFUSED = {
    "item": lambda m, v, x: v(lambda x: x.sum().item())(x),
    "control flow": lambda m, v, x: v(lambda x: x if x.sum() > 0 else -x)(x),
    "a number": lambda m, v, x: v(lambda x: m.tensor([float(x[0])]))(x),
    "a new tensor of it": lambda m, v, x: v(lambda x: m.tensor([x.sum(), 1.0]))(x),
    "nonzero": lambda m, v, x: v(lambda x: x.nonzero())(x),
    "mask as index": lambda m, v, x: v(lambda x: x[x > 0])(x),
    "add_ to what is not batched": lambda m, v, x: v(lambda y: (x[0] * 1).add_(y))(x),
    "copy_ to what is not batched": lambda m, v, x: v(lambda y: (x[0] * 1).copy_(y))(x),
    "setitem of what is not batched": lambda m, v, x: v(lambda y: (x[0] * 1).__setitem__(0, y[0]))(x),
    "backward inside": lambda m, v, x: v(lambda y: (y * (x[0] * 1).requires_grad_()).sum().backward())(x),
    "grad inside": lambda m, v, x: v(
        lambda y: (lambda w: m.autograd.grad((y * w).sum(), w)[0])((x[0] * 1).requires_grad_()))(x),
    "number as output": lambda m, v, x: v(lambda x: 3.0)(x),
    "None as output": lambda m, v, x: v(lambda x: None)(x),
    "out_dims None for a batched output": lambda m, v, x: v(lambda x: x, out_dims=None)(x),
    "out_dims too many": lambda m, v, x: v(lambda x: x, out_dims=(0, 0))(x),
    "out_dims out of range": lambda m, v, x: v(lambda x: x, out_dims=5)(x),
    "out_dims no int": lambda m, v, x: v(lambda x: x, out_dims=1.0)(x),
    "number as argument": lambda m, v, x: v(lambda x: x)(3.0),
    "0-d argument": lambda m, v, x: v(lambda x, y: x)(x, x.sum()),
    "in_dims a list": lambda m, v, x: v(lambda x: x, in_dims=[0])(x),
    "in_dims None": lambda m, v, x: v(lambda x: x, in_dims=None)(x),
    "in_dims None for all": lambda m, v, x: v(lambda x: x, in_dims=(None,))(x),
    "in_dims out of range": lambda m, v, x: v(lambda x: x, in_dims=2)(x),
    "in_dims a float": lambda m, v, x: v(lambda x: x, in_dims=(1.0,))(x),
    "in_dims too few": lambda m, v, x: v(lambda x, y: x, in_dims=(0,))(x, x),
    "in_dims of another tree": lambda m, v, x: v(lambda x: x, in_dims=({"a": 0},))({"b": x}),
    "sizes": lambda m, v, x: v(lambda x, y: x)(x, x.T),
    "no arguments": lambda m, v, x: v(lambda: x)(),
    "randomness": lambda m, v, x: v(lambda x: x, randomness="some"),
    "chunk_size": lambda m, v, x: v(lambda x: x, chunk_size=0)(x),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refusals_are_of_torchs_class(call):
    with pytest.raises((RuntimeError, ValueError, IndexError)) as theirs:
        call(torch, torch.func.vmap, torch.tensor(X))
    with pytest.raises(theirs.type, match=r"^vmap: .*expected") as mine:
        call(ours, func.vmap, ours.tensor(X))
    assert "\n" not in str(mine.value)
