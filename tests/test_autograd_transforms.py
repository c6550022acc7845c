"""torch.func's transforms: every op of the registry against torch's, nested to third order, over trees, and whole models."""

import functools
import inspect

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opcases import OPS, cases
from torch.nn.attention import SDPBackend, sdpa_kernel

import tinygrad_llm as ours
from reference.model import Transformer as TorchTransformer
from reference.opdraw import Sizes, call_torch, run_ours
from tinygrad_llm import func
from tinygrad_llm.autograd import AutogradError, Tensor, apply, functional, gradgradcheck, no_grad
from tinygrad_llm.model import Transformer, TransformerConfig

SMALL = Sizes(high=3, lead=(0, 1), lead_high=2)
fewer = settings(max_examples=max(5, settings.default.max_examples // 10))
every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
every_primitive = pytest.mark.parametrize("op", [op for op in OPS if not op.definition], ids=lambda op: op.name)
every_fused_op = pytest.mark.parametrize("op", [op for op in OPS if op.definition], ids=lambda op: op.name)
few = settings(max_examples=max(4, settings.default.max_examples // 25))


def close(mine, other, rtol=1e-10, atol=1e-11):
    """Trees of ours and of torch's hold the same numbers."""
    if isinstance(mine, dict):
        assert list(mine) == list(other)
        mine, other = list(mine.values()), list(other.values())
    if isinstance(mine, tuple | list):
        assert type(mine) is type(other)
        assert len(mine) == len(other)
        for a, b in zip(mine, other):
            close(a, b, rtol, atol)
        return
    assert isinstance(mine, Tensor)
    assert mine.shape == tuple(other.shape)
    np.testing.assert_allclose(mine.numpy(), other.detach().numpy(), rtol=rtol, atol=atol)


# Every op -------------------------------------------------------------------------------------------------------------


def functions_of(case):
    """(the op as a function of its differentiable arguments, the torch expression as one, those arguments)."""
    def mine(*xs):
        found = dict(zip(case.wrt, xs))
        return apply(case.op, *[found.get(i, a) for i, a in enumerate(case.args)], **case.options)

    def theirs(*xs):
        found = dict(zip(case.wrt, xs))
        args = [found.get(i, None if a is None else torch.tensor(a)) for i, a in enumerate(case.args)]
        with sdpa_kernel(SDPBackend.MATH):
            return call_torch(case.op, args, case.options)

    return mine, theirs, [case.args[i] for i in case.wrt]


@every_op
@few
@given(data=st.data())
def test_vjp_jvp_and_hvp_of_every_op(op, data):
    """vjp and jvp against torch.autograd (whose jvp is by the same two vjps); H · v by two ways that must agree."""
    case = data.draw(cases(op, SMALL))
    assume(case.wrt and np.isfinite(run_ours(case)[0]).all())
    mine, theirs, arrays = functions_of(case)
    xs, ts = [Tensor.of(a) for a in arrays], tuple(torch.tensor(a) for a in arrays)
    vs = [case.directions[i] for i in case.wrt]
    out, pull = func.vjp(mine, *xs)
    assume(out.dtype == np.float64)
    pulled = pull(case.cotangent)
    expected = torch.autograd.functional.vjp(theirs, ts, torch.tensor(case.cotangent))
    close((out, pulled), (expected[0], tuple(expected[1])))
    _, pushed = func.jvp(mine, tuple(xs), tuple(vs))
    adjoint = sum(np.sum(g.numpy() * v) for g, v in zip(pulled, vs))
    np.testing.assert_allclose(np.sum(pushed.numpy() * case.cotangent), adjoint, rtol=1e-9, atol=1e-9)
    assert not any(t.requires_grad for t in (out, *pulled, pushed))


@every_primitive
@few
@given(data=st.data())
def test_third_derivatives_of_every_primitive_nest(op, data):
    """d/dt, d²/dt² and d³/dt³ of ⟨c, f(x + t v)⟩ at 0, by grad of grad of grad, against torch's."""
    case = data.draw(cases(op, SMALL))
    assume(case.wrt and np.isfinite(run_ours(case)[0]).all() and run_ours(case)[0].dtype == np.float64)
    mine, theirs, _ = functions_of(case)
    found, expected = nested(line(mine, Tensor.of, case)), nested_torch(line(theirs, torch.tensor, case))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@every_fused_op
@few
@given(data=st.data())
def test_third_derivatives_of_every_fused_op_are_its_definitions(op, data):
    """Not torch's here: the double backward of its layer_norm takes the saved mean and deviation for constants."""
    case = data.draw(cases(op, SMALL))
    assume(case.wrt and np.isfinite(run_ours(case)[0]).all())
    mine, _, _ = functions_of(case)
    filled = [None] * (len(op.args) - len(case.args))

    def definition(*xs):
        found = dict(zip(case.wrt, xs))
        args = [found.get(i, a) for i, a in enumerate(case.args)]
        return op.definition(*args, *filled, **{**defaults(op), **case.options})

    found, expected = [nested(line(f, Tensor.of, case)) for f in (mine, definition)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def defaults(op):
    return {name: inspect.signature(op.function).parameters[name].default for name in op.options}


def line(f, make, case):
    """t ↦ ⟨cotangent, f(x + t · direction)⟩."""
    xs, vs = [case.args[i] for i in case.wrt], [case.directions[i] for i in case.wrt]
    return lambda t: (f(*[make(x) + t * make(v) for x, v in zip(xs, vs)]) * make(case.cotangent)).sum()


def nested(f):
    t, first = Tensor.of(np.array(0.0)), func.grad(f)
    return [g(t).item() for g in (first, func.grad(first), func.grad(func.grad(first)))]


def nested_torch(f):
    t, levels = torch.tensor(0.0, dtype=torch.float64, requires_grad=True), []
    value = f(t)
    for _ in range(3):
        value = torch.autograd.grad(value, t, create_graph=True)[0] if value.requires_grad else torch.zeros(())
        levels.append(value.item())
    return levels


# The transforms against torch.func ------------------------------------------------------------------------------------


def wavy(x, y):
    return (x * y).sin() * x.exp() + (x * x).sum() * y


def scalar(x, y):
    return (wavy(x, y) * wavy(y, x)).sum()


def tree(p):
    return {"a": (p["w"] * p["b"][0]).tanh(), "b": [p["b"][1] * p["w"].sum(), (p["w"] * p["w"]).sum()]}


vectors = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(-1, 1, (2, 3)))


@fewer
@given(vectors)
def test_jacobians_and_hessians_are_torch_func(xy):
    xs, ts = [Tensor.of(a) for a in xy], [torch.tensor(a) for a in xy]
    for name in ("jacrev", "jacfwd"):
        for argnums in (0, 1, (0, 1), (1,), -1):
            if (name, argnums) != ("jacfwd", -1):  # there torch gives zeros
                close(getattr(func, name)(wavy, argnums)(*xs), getattr(torch.func, name)(wavy, argnums)(*ts))
    for argnums in (0, (0, 1)):
        close(func.hessian(scalar, argnums)(*xs), torch.func.hessian(scalar, argnums)(*ts))
        close(func.grad(scalar, argnums)(*xs), torch.func.grad(scalar, argnums)(*ts))
    close(func.jvp(wavy, tuple(xs), tuple(xs[::-1])), torch.func.jvp(wavy, tuple(ts), tuple(ts[::-1])))
    close(func.jacrev(func.jacfwd(func.grad(scalar)))(*xs), torch.func.jacrev(torch.func.jacfwd(torch.func.grad(scalar)))(*ts))


@given(vectors)
def test_trees_go_in_and_out(xy):
    p = {"w": Tensor.of(xy[0]), "b": [Tensor.of(xy[1][0]), Tensor.of(xy[1])]}
    q = {"w": torch.tensor(xy[0]), "b": [torch.tensor(xy[1][0]), torch.tensor(xy[1])]}
    close(func.jacrev(tree)(p), torch.func.jacrev(tree)(q))
    close(func.jacfwd(tree)(p), torch.func.jacfwd(tree)(q))
    close(func.grad(lambda p: tree(p)["b"][1])(p), torch.func.grad(lambda p: tree(p)["b"][1])(q))
    (out, pull), (out_t, pull_t) = func.vjp(tree, p), torch.func.vjp(tree, q)
    close(out, out_t)
    for _ in range(2):
        close(pull(out), pull_t(out_t))


@given(vectors)
def test_value_aux_and_hvp(xy):
    xs, ts = [Tensor.of(a) for a in xy], [torch.tensor(a) for a in xy]
    close(func.grad_and_value(scalar)(*xs), torch.func.grad_and_value(scalar)(*ts))
    close(func.value_and_grad(scalar, (0, 1))(*xs)[::-1], torch.func.grad_and_value(scalar, (0, 1))(*ts))
    with_aux = lambda x, y: (scalar(x, y), {"wavy": wavy(x, y)})  # noqa: E731
    close(func.grad(with_aux, has_aux=True)(*xs), torch.func.grad(with_aux, has_aux=True)(*ts))
    close(func.grad_and_value(with_aux, has_aux=True)(*xs), torch.func.grad_and_value(with_aux, has_aux=True)(*ts))
    close(func.jacrev(with_aux, has_aux=True)(*xs), torch.func.jacrev(with_aux, has_aux=True)(*ts))
    close(functional.hvp(scalar, tuple(xs), tuple(xs[::-1])),
          torch.autograd.functional.hvp(scalar, tuple(ts), tuple(ts[::-1])))
    close(functional.hvp(lambda x: scalar(x, x), xs[0], xs[1]),
          torch.autograd.functional.hvp(lambda x: scalar(x, x), ts[0], ts[1]))


@given(vectors)
def test_one_transforms_variable_is_not_anothers(xy):
    """Perturbation confusion: d/dx (x · d/dy (x y)) = 2x, to any depth and through what is closed over."""
    def inside(lib, x, y):
        return lib.grad(lambda x: (x * lib.grad(lambda y: (x * y * x.sin()).sum())(y)).sum())(x)

    close(inside(func, *[Tensor.of(a) for a in xy]), inside(torch.func, *[torch.tensor(a) for a in xy]))
    close(func.jacrev(functools.partial(inside, func))(*[Tensor.of(a) for a in xy]),
          torch.func.jacrev(functools.partial(inside, torch.func))(*[torch.tensor(a) for a in xy]))


def test_results_are_constants_unless_something_outside_wants_their_gradient():
    x, w = Tensor.of(np.array([0.3, 0.7])), Tensor.of(np.array([1.0, 2.0]), True)
    f = lambda x: (x * x * w).sum()  # noqa: E731
    assert not func.grad(lambda x: (x * x).sum())(x).requires_grad
    g = func.grad(f)(x)
    g.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * x.numpy())
    assert x.grad is None
    assert not func.grad(lambda x: (x * x).sum() + w.sum())(x).requires_grad
    with no_grad():
        assert not func.grad(f)(x).requires_grad
        np.testing.assert_allclose(func.grad(f)(x).numpy(), g.numpy())
    h = func.grad(lambda x: (x * x * x).sum())(w)
    h.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * x.numpy() + 6 * w.numpy())


def test_what_does_not_depend_has_gradient_zero():
    x, y = Tensor.of(np.ones(2)), Tensor.of(np.ones(3))
    close(func.grad(lambda x, y: (x * x).sum(), (0, 1))(x, y), (torch.full((2,), 2.0), torch.zeros(3)))
    close(func.grad(lambda x: ours.tensor(1.0))(x), torch.zeros(2))
    close(func.jvp(lambda x, y: x * 2, (x, y), (x, y))[1], torch.full((2,), 2.0))
    close(func.jacfwd(lambda x: y)(x), torch.zeros(3, 2))
    close(func.jacrev(lambda x: x[:0])(x), torch.zeros(0, 2))


def test_a_slope_of_infinity_is_no_nan_in_jvp():
    with np.errstate(divide="ignore"):
        assert func.jvp(lambda x: x.sqrt(), (Tensor.of(np.array([0.0, 4.0])),), (np.ones(2),))[1].tolist() == [np.inf, 0.25]


X = Tensor.of(np.ones(2))
REFUSED = {
    "not one element": (lambda: func.grad(lambda x: x)(X), AutogradError, r"^grad: func: got an output of shape \(2,\)"),
    "no tensor": (lambda: func.grad(lambda x: 3)(X), TypeError, "got an output of type int"),
    "argnums": (lambda: func.grad(scalar, 2)(X, X), ValueError, "argnums: got 2, expected positions among 2"),
    "argnums twice": (lambda: func.grad(scalar, (0, 0))(X, X), ValueError, "each position once"),
    "integers": (lambda: func.grad(lambda x: x.sum())(ours.tensor([1, 2])), TypeError, "got an argument of dtype int64"),
    "number": (lambda: func.vjp(lambda x: x, 2.0), TypeError, "got an argument of float"),
    "aux": (lambda: func.grad(lambda x: x.sum(), has_aux=True)(X), TypeError, r"expected \(output, aux\)"),
    "cotangent": (lambda: func.vjp(lambda x: x, X)[1](np.ones(3)), ValueError, r"cotangents: got shape \(3,\)"),
    "cotangent form": (lambda: func.vjp(lambda x: (x, x), X)[1](X), ValueError, "got a tree of 1 leaves"),
    "tangents": (lambda: func.jvp(lambda x: x, (X,), (np.ones(3),)), ValueError, r"tangents: got shape \(3,\)"),
    "primals": (lambda: func.jvp(lambda x: x, X, X), TypeError, "expected tuples"),
    "hvp": (lambda: func.hvp(lambda x: (x * x).sum(), X), AutogradError, "hvp: v: got None"),
    "functional_call": (lambda: func.functional_call(model(), {"nothing": X}), KeyError, "got 'nothing'"),
    "functional_call shape": (lambda: func.functional_call(model(), {"lm_head.weight": X}), ValueError, r"got shape \(2,\)"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Whole models ---------------------------------------------------------------------------------------------------------


def model(**options):
    return Transformer(TransformerConfig(vocab_size=7, context_length=5, d_model=8, n_heads=2, n_layers=2, **options),
                       dtype=np.float64)


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": True}, {"norm_position": "post", "activation": "relu"},
                                     {"positions": "learned", "activation": "gelu_tanh", "bias": False}])
@pytest.mark.parametrize("seed", range(3))
def test_hessian_vector_products_of_a_model_are_torch(options, seed):
    """H · v over all parameters, by functional_call and by two backwards of ours; torch by two backwards."""
    mine, rng = model(**options), np.random.default_rng(seed)
    theirs = TorchTransformer(mine.config).double()
    theirs.load_state_dict({name: torch.from_numpy(a) for name, a in mine.state_dict().items()})
    ids, targets = rng.integers(0, 7, (2, 2, 5))
    names = [name for name, _ in mine.named_parameters()]
    vs = {name: rng.standard_normal(p.shape) for name, p in mine.named_parameters()}

    def loss(*values):
        logits = func.functional_call(mine, dict(zip(names, values)), (ids,))
        return ours.nn.functional.cross_entropy(logits.reshape(-1, 7), targets.reshape(-1))

    value, products = functional.hvp(loss, tuple(p for _, p in mine.named_parameters()), tuple(vs[n] for n in names))
    own = dict(theirs.named_parameters())
    with sdpa_kernel(SDPBackend.MATH):
        logits = theirs(torch.tensor(ids)).reshape(-1, 7)
        torch_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).reshape(-1))
    first = torch.autograd.grad(torch_loss, [own[n] for n in names], create_graph=True)
    second = torch.autograd.grad(sum((g * torch.tensor(vs[n])).sum() for g, n in zip(first, names)), [own[n] for n in names],
                                 materialize_grads=True)
    np.testing.assert_allclose(value.item(), torch_loss.item(), rtol=1e-10)
    for name, a, b in zip(names, products, second):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-10, atol=1e-10, err_msg=name)
    assert all(p.grad is None for p in mine.parameters())


def test_functional_call_leaves_the_module_as_it_was():
    mine, ids = model(tie_embeddings=True), np.array([[1, 2, 3]])
    before = mine(ids).numpy()
    zeros = {name: ours.zeros(*p.shape, dtype=np.float64) for name, p in mine.named_parameters()}
    assert not func.functional_call(mine, zeros, (ids,)).numpy().any()
    with pytest.raises(TypeError):
        func.functional_call(mine, zeros, (ids, 1, 2, 3, 4, 5))
    np.testing.assert_array_equal(mine(ids).numpy(), before)


def tied(m, same_module=False):
    """x Aᵀ + 10 x Bᵀ, B tied to A, all ones; and a buffer that is added."""

    class Net(m.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = m.nn.Linear(2, 2, bias=False), m.nn.Linear(2, 2, bias=False)
            self.b = self.a if same_module else self.b
            self.b.weight = self.a.weight = m.nn.Parameter(m.ones(2, 2))
            self.register_buffer("c", m.zeros(2))

        def forward(self, x, more=0):
            return self.a(x) + 10 * self.b(x) + self.c + more

    return Net()


CALLS = {
    "one": lambda m, call: call(tied(m), {"a.weight": 2 * m.ones(2, 2)}, m.ones(1, 2)),
    "one, other name": lambda m, call: call(tied(m), {"b.weight": 2 * m.ones(2, 2)}, (m.ones(1, 2),)),
    "one, apart": lambda m, call: call(tied(m), {"a.weight": 2 * m.ones(2, 2)}, m.ones(1, 2), tie_weights=False),
    "both": lambda m, call: call(tied(m), {"a.weight": m.ones(2, 2), "b.weight": 2 * m.ones(2, 2)}, m.ones(1, 2)),
    "both, apart": lambda m, call: call(tied(m), {"a.weight": m.ones(2, 2), "b.weight": 2 * m.ones(2, 2)}, m.ones(1, 2),
                                        tie_weights=False),
    "both, one tensor": lambda m, call: call(tied(m), dict.fromkeys(["a.weight", "b.weight"], 3 * m.ones(2, 2)), m.ones(1, 2)),
    "one module": lambda m, call: call(tied(m, True), {"b.weight": 2 * m.ones(2, 2)}, m.ones(1, 2)),
    "one module, both": lambda m, call: call(tied(m, True), {"a.weight": m.ones(2, 2), "b.weight": 2 * m.ones(2, 2)},
                                             m.ones(1, 2)),
    "buffer": lambda m, call: call(tied(m), {"c": m.ones(2)}, m.ones(1, 2)),
    "several": lambda m, call: call(tied(m), ({"a.weight": m.ones(2, 2)}, {"c": m.ones(2)}), m.ones(1, 2)),
    "a list": lambda m, call: call(tied(m), [{"c": m.ones(2)}], m.ones(1, 2)),
    "twice": lambda m, call: call(tied(m), ({"c": m.ones(2)}, {"c": m.ones(2)}), m.ones(1, 2)),
    "no dicts": lambda m, call: call(tied(m), ({"c": m.ones(2)}, 3), m.ones(1, 2)),
    "a number": lambda m, call: call(tied(m), 3, m.ones(1, 2)),
    "an array": lambda m, call: call(tied(m), {"c": np.ones(2)}, m.ones(1, 2)),
    "strict": lambda m, call: call(tied(m), {"a.weight": m.ones(2, 2)}, m.ones(1, 2), strict=True),
    "strict, all": lambda m, call: call(tied(m), {"a.weight": m.ones(2, 2), "c": m.ones(2)}, m.ones(1, 2), strict=True),
    "strict, apart": lambda m, call: call(tied(m), {"a.weight": m.ones(2, 2), "c": m.ones(2)}, m.ones(1, 2), tie_weights=False,
                                          strict=True),
    "strict, unknown": lambda m, call: call(tied(m), {"a.weight": m.ones(2, 2), "c": m.ones(2), "d": m.ones(2)}, m.ones(1, 2),
                                            strict=True),
    "kwargs": lambda m, call: call(tied(m), {}, m.ones(1, 2), {"more": 1}),
    "kwargs alone": lambda m, call: call(tied(m), {}, kwargs={"x": m.ones(1, 2)}),
    "kwargs by position": lambda m, call: call(tied(m), {}, None, {"x": m.ones(1, 2)}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functional_call_is_torchs(call):
    try:
        wanted = call(torch, torch.func.functional_call).tolist()
    except Exception as error:
        wanted = type(error)
    if isinstance(wanted, list):
        assert call(ours, func.functional_call).tolist() == wanted
    else:
        with pytest.raises(wanted, match=r"functional_call: .*got .*, expected "):
            call(ours, func.functional_call)


def test_gradients_of_tied_parameters_reach_the_given_tensor():
    w = ours.ones(2, 2, requires_grad=True)
    func.functional_call(tied(ours), {"a.weight": w, "b.weight": w}, ours.ones(1, 2)).sum().backward()
    assert w.grad.tolist() == [[11, 11], [11, 11]]


def test_gradients_of_transforms_pass_gradgradcheck():
    assert gradgradcheck(lambda x: func.jvp(lambda y: (y * y * x).sin(), (x,), (x,))[1], Tensor.of(np.array([0.3, 0.9]), True))


def test_float32_stays_float32():
    x, f = ours.tensor([0.5, 1.5]), lambda x: (x * x).sum()
    for t in (func.grad(f)(x), func.hessian(f)(x), func.jacfwd(lambda x: x.sin())(x)):
        assert t.dtype == np.float32
