"""torch.autograd.functional: the same functions at the same points in both libraries: values, forms, flags and refusals."""

import functools
import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_llm as ours
from tinygrad_llm.autograd import AutogradError, Tensor, functional, no_grad

few = settings(max_examples=max(5, settings.default.max_examples // 5))
NAMES = ("vjp", "jvp", "vhp", "hvp", "jacobian", "hessian")
SCALAR = {
    "cubes": lambda x, y: (x**3 * y).sum(),
    "one argument": lambda x, y: (x.exp() * x).sum(),
    "apart": lambda x, y: (x**2).sum() + (y**4).sum(),
    "linear": lambda x, y: (2 * x).sum() + (y**2).sum(),
    "linear in all": lambda x, y: x.sum() - y.sum(),
    "detached": lambda x, y: (x.detach() * y).sum(),
    "shape (1, 1)": lambda x, y: (x * y.tanh()).sum().reshape(1, 1),
}
VECTOR = {
    "product": lambda x, y: x * y,
    "one argument": lambda x, y: x.sin(),
    "two": lambda x, y: (x * y, x.exp().sum()),
    "one in a tuple": lambda x, y: (y**2,),
    "apart": lambda x, y: (x * 2, y.tanh()),
    "matrix": lambda x, y: x.reshape(-1, 1) @ y.reshape(1, -1),
    "detached": lambda x, y: (x.detach() * 3, y * x),
}


def same(mine, theirs):
    """Trees of the same form and numbers. What requires grad here does there; where torch alone says so, what it depends on
    is multiplied by zero: differentiable_alike sees that."""
    if isinstance(theirs, tuple):
        assert type(mine) is tuple
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            same(a, b)
        return
    assert mine.shape == tuple(theirs.shape)
    assert mine.requires_grad <= theirs.requires_grad
    np.testing.assert_allclose(mine.detach().numpy(), theirs.detach().numpy(), rtol=1e-10, atol=1e-11)


def outcome(call):
    """What a call returns, or the error that it raises."""
    try:
        return call(), None
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        return None, error


def agree(mine, theirs):
    """Both return the same, or ours raises an error of torch's class."""
    (a, refused), (b, error) = outcome(mine), outcome(theirs)
    if error is None:
        assert refused is None, refused
        same(a, b)
        return a, b
    assert isinstance(refused, type(error)), (refused, error)
    assert "expected" in str(refused)
    return None


def world(seed, requires_grad, shape=(3,)):
    """Two inputs and two vectors of their shape, in either library."""
    arrays = np.random.default_rng(seed).uniform(0.3, 1.5, (4, *shape))
    return [ours.tensor(a, requires_grad=requires_grad and i < 2) for i, a in enumerate(arrays)], \
           [torch.tensor(a, requires_grad=requires_grad and i < 2) for i, a in enumerate(arrays)]


def given_to(function, tensors, single):
    """(function, inputs, vectors): both inputs as tuples, or the first alone."""
    x, y, v, w = tensors
    return (lambda t: function(t, y), x, v) if single else (function, (x, y), (v, w))


def test_the_signatures_are_torchs():
    for name in NAMES:
        mine, theirs = (inspect.signature(getattr(lib, name)) for lib in (functional, torch.autograd.functional))
        assert [str(p).split(":")[0] for p in mine.parameters.values()] == list(theirs.parameters)
        assert [p.default for p in mine.parameters.values()] == [p.default for p in theirs.parameters.values()]


@pytest.mark.parametrize("name", ["vhp", "hvp", "hessian"])
@pytest.mark.parametrize("function", SCALAR.values(), ids=SCALAR)
@few
@given(seed=st.integers(0, 2**32 - 1), create=st.booleans(), strict=st.booleans(), requires_grad=st.booleans(),
       single=st.booleans(), vectorize=st.booleans())
def test_products_with_and_whole_hessians(name, function, seed, create, strict, requires_grad, single, vectorize):
    def call(lib, tensors):
        f, inputs, vectors = given_to(function, tensors, single)
        return lambda: getattr(lib, name)(f, inputs, *(() if name == "hessian" else (vectors,)), create_graph=create,
                                          strict=strict, **({"vectorize": vectorize} if name == "hessian" else {}))

    mine, theirs = world(seed, requires_grad)
    found = agree(call(functional, mine), call(torch.autograd.functional, theirs))
    if found and create and requires_grad:
        differentiable_alike(*found, mine, theirs)


@pytest.mark.parametrize("name", ["vjp", "jvp", "jacobian"])
@pytest.mark.parametrize("function", VECTOR.values(), ids=VECTOR)
@few
@given(seed=st.integers(0, 2**32 - 1), create=st.booleans(), strict=st.booleans(), requires_grad=st.booleans(),
       single=st.booleans(), vectorize=st.booleans())
def test_products_with_and_whole_jacobians(name, function, seed, create, strict, requires_grad, single, vectorize):
    def call(lib, tensors, make):
        f, inputs, vectors = given_to(function, tensors, single)
        if name == "jacobian":
            return lambda: lib.jacobian(f, inputs, create, strict, vectorize)
        if name == "vjp":
            outs = function(*tensors[:2])
            rng = np.random.default_rng(seed)
            made = tuple([make(rng.standard_normal(tuple(o.shape))) for o in (outs if isinstance(outs, tuple) else (outs,))])
            vectors = made if isinstance(outs, tuple) else made[0]
        return lambda: getattr(lib, name)(f, inputs, vectors, create, strict)

    mine, theirs = world(seed, requires_grad)
    found = agree(call(functional, mine, ours.tensor), call(torch.autograd.functional, theirs, torch.tensor))
    if found and create and requires_grad:
        differentiable_alike(*found, mine, theirs)


def flat(tree):
    return list(itertools.chain.from_iterable(map(flat, tree))) if isinstance(tree, tuple) else [tree]


def differentiable_alike(mine, theirs, xs, ts):
    """Σ sin of all that came back has the same gradient at the inputs."""
    a, b = [[r.sin().sum() for r in flat(found) if r.requires_grad] for found in (mine, theirs)]
    first = ours.autograd.grad(sum(a), xs[:2], allow_unused=True) if a else (None, None)
    second = torch.autograd.grad(sum(b), ts[:2], allow_unused=True) if b else (None, None)
    for p, q in zip(first, second):
        np.testing.assert_allclose(0 if p is None else p.numpy(), 0 if q is None else q.numpy(), rtol=1e-9, atol=1e-10)


@few
@given(seed=st.integers(0, 2**32 - 1), several=st.booleans())
def test_column_by_column(seed, several):
    """strategy "forward-mode", with vectorize."""
    (x, y, *_), (t, u, *_) = world(seed, False)
    for f in VECTOR.values():
        of_x, of_t = (f, f) if several else (functools.partial(f, y=y), functools.partial(f, y=u))
        same(functional.jacobian(of_x, (x, y) if several else x, vectorize=True, strategy="forward-mode"),
             torch.autograd.functional.jacobian(of_t, (t, u) if several else t))
    for f in SCALAR.values():
        same(functional.hessian(f, (x, y), vectorize=True, outer_jacobian_strategy="forward-mode"),
             torch.autograd.functional.hessian(f, (t, u)))


def test_shapes_of_jacobians_with_axes_and_without_elements():
    x, t = ours.tensor(np.arange(6.0).reshape(2, 3)), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    for f in (lambda x: x.sum(0), lambda x: x.sum(), lambda x: (x.T, x[0, 0]), lambda x: x * 2):
        same(functional.jacobian(f, x), torch.autograd.functional.jacobian(f, t))
    assert functional.jacobian(lambda x: x[:0], x).shape == (0, 3, 2, 3)
    same(functional.hessian(lambda x: (x**3).sum(), x), torch.autograd.functional.hessian(lambda x: (x**3).sum(), t))


def test_no_grad_around_and_leaves_of_the_caller():
    """The derivative is taken all the same, the results are constants, and .grad of the inputs stays as it was."""
    x = ours.tensor(np.array([1.0, 2.0]), requires_grad=True)
    with no_grad():
        value, product = functional.hvp(lambda x: (x**3).sum(), x, ours.tensor(np.ones(2)))
        assert functional.jacobian(lambda x: x * x, x).tolist() == [[2, 0], [0, 4]]
    assert (value.item(), product.tolist(), product.requires_grad, x.grad) == (9.0, [6.0, 12.0], False, None)


def test_a_vector_that_requires_grad_is_differentiated_through():
    """With create_graph the products are linear in v."""
    for lib, make in ((functional, ours.tensor), (torch.autograd.functional, torch.tensor)):
        x, v = make(np.array([1.0, 2.0])), make(np.array([3.0, 4.0]), requires_grad=True)
        for name, f, slope in (("vjp", lambda x: x**2, [2.0, 4.0]), ("jvp", lambda x: x**2, [2.0, 4.0]),
                               ("vhp", lambda x: (x**3).sum(), [6.0, 12.0]), ("hvp", lambda x: (x**3).sum(), [6.0, 12.0])):
            v.grad = None
            getattr(lib, name)(f, x, v, create_graph=True)[1].sum().backward()
            assert v.grad.tolist() == slope


# A batch of cotangents ------------------------------------------------------------------------------------------------


def rows_in_torch(outputs, inputs, rows, **options):
    return torch.autograd.grad(outputs, inputs, rows, is_grads_batched=True, **options)


@few
@given(seed=st.integers(0, 2**32 - 1), create=st.booleans(), n=st.integers(1, 4))
def test_gradients_of_rows_of_cotangents(seed, create, n):
    def run(make, rows_of):
        rng = np.random.default_rng(seed)
        x, y, unused = (make(a, requires_grad=True) for a in rng.standard_normal((3, 2, 3)))
        outs = [x.sin() * y, (x * x).sum(1)]
        rows = [make(rng.standard_normal((n, *o.shape)), requires_grad=create) for o in outs]
        found = rows_of(outs, [x, y, unused], rows, create_graph=create, allow_unused=True)
        if create:
            sum((g * g).sum() for g in found if g is not None).backward()
        return [*found, *([x.grad, y.grad, rows[0].grad] if create else [])]

    mine = run(ours.tensor, functools.partial(ours.autograd.grad, is_grads_batched=True))
    for a, b in zip(mine, run(torch.tensor, rows_in_torch), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            same(a, b)


def test_rows_of_cotangents_leave_the_graph_only_where_asked():
    mine = functools.partial(ours.autograd.grad, is_grads_batched=True)
    for make, rows_of in ((ours.tensor, mine), (torch.tensor, rows_in_torch)):
        x = make(X, requires_grad=True)
        y, rows = x.exp(), make(np.eye(2))
        assert [g.tolist() for g in rows_of(y, x, rows, retain_graph=True)] == [np.diag(np.exp(X)).tolist()]
        rows_of(y, x, rows)
        with pytest.raises(RuntimeError):
            rows_of(y, x, rows)
        unused = make(X, requires_grad=True)
        assert rows_of(x * 2, [x, unused], rows, materialize_grads=True)[1].tolist() == [0.0, 0.0]
        for wrong, kind in ((rows[0], RuntimeError), (None, ValueError), ([rows, rows[:1]], ValueError)):
            with pytest.raises(kind):
                rows_of([x * 2, x * 3] if isinstance(wrong, list) else (x * 2).sum() if wrong is None else x * 2, x, wrong)
        with pytest.raises(RuntimeError):
            rows_of(x * 2, [x, unused], rows)


X = np.array([1.0, 2.0])
REFUSED = {
    "vjp without v": lambda f, x, n: f.vjp(lambda x: x * 2, x),
    "vjp without v, two outputs": lambda f, x, n: f.vjp(lambda x: (x.sum(), x.sum()), x),
    "jvp without v": lambda f, x, n: f.jvp(lambda x: x.sum(), x),
    "hvp without v": lambda f, x, n: f.hvp(lambda x: (x * x).sum(), x),
    "shape of v": lambda f, x, n: f.hvp(lambda x: (x * x).sum(), x, x[:1]),
    "number of v": lambda f, x, n: f.vhp(lambda x, y: (x * y).sum(), (x, x), (x,)),
    "more v than outputs": lambda f, x, n: f.vjp(lambda x: x, x, (x, x)),
    "vector output": lambda f, x, n: f.vhp(lambda x: x, x, x),
    "two outputs": lambda f, x, n: f.hessian(lambda x: (x.sum(), x.sum()), x),
    "output in a tuple": lambda f, x, n: f.hvp(lambda x: (x.sum(),), x, x),
    "hessian of a vector": lambda f, x, n: f.hessian(lambda x: x, x),
    "output no tensor": lambda f, x, n: f.jacobian(lambda x: 3.0, x),
    "outputs no tensors": lambda f, x, n: f.vjp(lambda x: (x, 3.0), x, (x, x)),
    "inputs in a list": lambda f, x, n: f.jacobian(lambda x: x, [x]),
    "input no tensor": lambda f, x, n: f.jacobian(lambda x: x, 2.0),
    "v in a list": lambda f, x, n: f.hvp(lambda x: (x * x).sum(), (x,), [x]),
    "strategy": lambda f, x, n: f.jacobian(lambda x: x, x, strategy="sideways"),
    "outer strategy": lambda f, x, n: f.hessian(lambda x: x.sum(), x, outer_jacobian_strategy="sideways"),
    "forward without vectorize": lambda f, x, n: f.jacobian(lambda x: x, x, strategy="forward-mode"),
    "forward with create_graph": lambda f, x, n: f.jacobian(lambda x: x, x, True, vectorize=True, strategy="forward-mode"),
    "forward and strict": lambda f, x, n: f.jacobian(lambda x: x, x, strict=True, vectorize=True, strategy="forward-mode"),
    "vectorize and strict": lambda f, x, n: f.jacobian(lambda x: x, x, strict=True, vectorize=True),
    "integers": lambda f, x, n: f.jacobian(lambda x: x, n),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_refusals_are_of_torchs_class(call):
    with pytest.raises((RuntimeError, TypeError, AssertionError, NotImplementedError)) as theirs:
        call(torch.autograd.functional, torch.tensor(X), torch.tensor([1, 2]))
    with pytest.raises(theirs.type, match=r"got .* expected") as mine:
        call(functional, Tensor.of(X), ours.tensor([1, 2]))
    assert "\n" not in str(mine.value)


def test_strict_says_what_does_not_depend_on_what():
    x = Tensor.of(X)
    with pytest.raises(AutogradError, match=r"vjp: strict: got the outputs do not depend on inputs\[1\]"):
        functional.vjp(lambda x, y: x, (x, x), x, strict=True)
    with pytest.raises(AutogradError, match=r"jacobian: strict: got outputs\[1\] that does not require grad"):
        functional.jacobian(lambda x: (x, ours.tensor(1.0)), x, strict=True)
    with pytest.raises(AutogradError, match=r"hessian: strict: .* not linear in it"):
        functional.hessian(lambda x: x.sum(), x, strict=True)
