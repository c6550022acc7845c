"""The public functions against torch's of the same name, outputs and gradients, over drawn shapes and arguments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from opcases import Drawn
from opchecks import judge64

import tinygrad_llm.functions as F
from reference.opdraw import draw_floats
from tinygrad_llm import nn
from tinygrad_llm.autograd import AutogradError, Tensor, grad, no_grad
from tinygrad_llm.functions import tensor
from tinygrad_llm.ops import IndexRangeError, ShapeError


def shapes(low=0, high=4, least=1, most=3):
    return st.lists(st.integers(least, most), min_size=low, max_size=high).map(tuple)


@st.composite
def arrays(draw, shape, i=0):
    """float64 values on a grid of float32 numbers, none of them at a kink, no two tied."""
    return draw_floats(Drawn(draw), shape, i, 3)


def agree(call, *inputs, seed=0):
    """The same call on our tensors and on torch's: equal dtypes, shapes, values and gradients."""
    ours, theirs = [tensor(a, requires_grad=True) for a in inputs], [torch.tensor(a, requires_grad=True) for a in inputs]
    out, like = call(F, *ours), call(torch, *theirs)
    assert isinstance(out, Tensor)
    assert judge64("output", out.numpy(), like.detach().numpy()) == []
    g = np.random.default_rng(seed).standard_normal(out.shape)
    found = grad(out, ours, g, allow_unused=True)
    wanted = torch.autograd.grad(like, theirs, torch.tensor(g), allow_unused=True)
    assert [a is None for a in found] == [b is None for b in wanted]
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(found, wanted) if a is not None]
    assert [fail for a, b in pairs for fail in judge64("gradient", a, b)] == []


@st.composite
def with_dims(draw, low=0, several=True):
    """(array, dim, keepdim): dim an int of either sign, a tuple, or None."""
    x = draw(shapes(low).flatmap(arrays))
    one = st.integers(-x.ndim, x.ndim - 1) if x.ndim else st.sampled_from([0, -1])
    some = st.lists(st.integers(0, x.ndim - 1), unique=True, min_size=1).map(tuple) if x.ndim and several else one
    return x, draw(one | some | (st.none() if several else one)), draw(st.booleans())


@pytest.mark.parametrize("name", ["sum", "mean"])
@given(case=with_dims())
def test_reductions(name, case):
    x, dim, keepdim = case
    agree(lambda m, t: getattr(m, name)(t, dim, keepdim), x)
    agree(lambda m, t: getattr(t, name)(dim=dim, keepdim=keepdim), x)
    agree(lambda m, t: getattr(m, name)(t, axis=dim, keepdims=keepdim), x)


@given(case=with_dims())
def test_amax_and_logsumexp(case):
    x, dim, keepdim = case
    every = tuple(range(x.ndim)) if dim is None else dim
    agree(lambda m, t: m.amax(t, every, keepdim), x)
    agree(lambda m, t: m.logsumexp(t, every, keepdim), x)


@given(case=with_dims(), correction=st.sampled_from([0, 1]))
def test_var(case, correction):
    x, dim, keepdim = case
    n = x.size if dim is None else math.prod(x.shape[d] for d in np.atleast_1d(dim)) if x.ndim else 1
    if n > correction:
        agree(lambda m, t: m.var(t, dim=dim, correction=correction, keepdim=keepdim), x)


def test_var_of_too_few_is_nan_or_inf_as_in_torch():
    with np.errstate(all="ignore"):
        assert np.isnan(F.var(tensor([1.0])).numpy())
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert np.isnan(torch.var(torch.tensor([1.0]), correction=1).numpy())


@given(case=with_dims(several=False))
def test_argmax(case):
    x, dim, keepdim = case
    for arguments in ({}, {"dim": dim}, {"dim": dim, "keepdim": keepdim}):
        out, like = F.argmax(tensor(x), **arguments), torch.argmax(torch.tensor(x), **arguments)
        np.testing.assert_array_equal(out.numpy(), like.numpy())
        assert out.dtype == np.int64


@given(case=with_dims(several=False))
def test_softmax_along_any_axis(case):
    x, dim, _ = case
    agree(lambda m, t: m.softmax(t, dim), x)
    agree(lambda m, t: m.log_softmax(t, dim=dim), x)
    agree(lambda m, t: t.softmax(dim), x)


@st.composite
def factors(draw):
    """Two arrays that matmul takes: vectors, matrices, and stacks that broadcast."""
    n, k, m = draw(st.tuples(*[st.integers(1, 3)] * 3))
    lead = draw(shapes(0, 2))
    cut = draw(st.integers(0, len(lead)))
    ones = tuple(1 if draw(st.booleans()) else size for size in lead[cut:])
    x = draw(st.sampled_from([(k,), (n, k), (*lead, n, k), (*ones, n, k)]))
    y = draw(st.sampled_from([(k,), (k, m), (*lead, k, m), (*ones, k, m)]))
    return draw(arrays(x, 0)), draw(arrays(y, 1))


@given(pair=factors())
def test_matmul(pair):
    agree(lambda m, x, y: m.matmul(x, y), *pair)
    agree(lambda m, x, y: x @ y, *pair)


@pytest.mark.parametrize(("x", "y"), [
    ((), (3,)), ((3,), ()), ((2,), (3,)), ((2, 3), (2, 3)), ((2, 3), (2,)), ((4, 2, 3), (5, 3, 2)), ((2, 2, 3), (4, 5)),
])
def test_matmul_refuses_what_does_not_fit(x, y):
    with pytest.raises(ShapeError, match=r"^matmul: .*got shape.*expected"):
        F.matmul(tensor(np.ones(x)), tensor(np.ones(y)))


@given(x=shapes(1).flatmap(arrays), data=st.data())
def test_transposes(x, data):
    dims = data.draw(st.permutations(range(x.ndim)))
    one, other = data.draw(st.tuples(*[st.integers(-x.ndim, x.ndim - 1)] * 2))
    agree(lambda m, t: m.permute(t, dims), x)
    agree(lambda m, t: t.permute(*dims), x)
    agree(lambda m, t: m.transpose(t, one, other), x)
    agree(lambda m, t: t.swapaxes(one, other), x)


@given(x=shapes(2, 2).flatmap(arrays))
def test_short_transposes(x):
    agree(lambda m, t: t.T, x)
    agree(lambda m, t: t.mT, x)


@given(x=shapes(most=2).flatmap(arrays), data=st.data())
def test_squeeze_unsqueeze_and_flatten(x, data):
    at = data.draw(st.integers(-x.ndim - 1, x.ndim))
    agree(lambda m, t: m.unsqueeze(t, at), x)
    agree(lambda m, t: m.squeeze(t), x)
    if x.ndim:
        dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
        several = tuple(data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True, min_size=1)))
        agree(lambda m, t: m.squeeze(t, dim), x)
        agree(lambda m, t: m.squeeze(t, several), x)
    start = data.draw(st.integers(0, max(x.ndim - 1, 0)))
    end = data.draw(st.integers(start, max(x.ndim - 1, start)))
    agree(lambda m, t: m.flatten(t), x)
    if x.ndim:
        agree(lambda m, t: m.flatten(t, start, end - x.ndim), x)


def test_flatten_where_there_is_nothing_to_flatten_is_the_tensor_itself_as_in_torch():
    ours, theirs = tensor(np.ones((2, 3)), requires_grad=True), torch.ones(2, 3, requires_grad=True)
    for module, x in ((F, ours), (torch, theirs)):
        assert module.flatten(x, 1) is x
        assert module.flatten(x, 0, 0) is x
        assert module.flatten(x) is not x


@given(x=shapes().flatmap(arrays), data=st.data())
def test_reshape_and_view(x, data):
    factors_of = data.draw(st.permutations(x.shape))
    split = data.draw(st.integers(0, len(factors_of)))
    shape = (math.prod(factors_of[:split]), -1)
    for wanted in (shape, tuple(factors_of), (-1,)):
        agree(lambda m, t, s=wanted: m.reshape(t, s), x)
        agree(lambda m, t, s=wanted: t.reshape(*s) if s else t.reshape(s), x)
        agree(lambda m, t, s=wanted: t.view(s), x)


@given(x=shapes(most=2).flatmap(arrays), lead=shapes(0, 2), data=st.data())
def test_expand_and_broadcast_to(x, lead, data):
    wide = tuple(3 if n == 1 and data.draw(st.booleans()) else n for n in x.shape)
    kept = tuple(-1 if n == old and data.draw(st.booleans()) else n for n, old in zip(wide, x.shape))
    agree(lambda m, t: m.broadcast_to(t, (*lead, *wide)), x)
    agree(lambda m, t: t.expand(*lead, *kept) if lead or kept else t.expand(()), x)


@given(shape=shapes(1), data=st.data())
def test_cat_stack_and_split(shape, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    at = dim % len(shape)
    others = [(*shape[:at], data.draw(st.integers(0, 3)), *shape[at + 1 :]) for _ in range(2)]
    x, y, z = data.draw(arrays(shape)), data.draw(arrays(others[0], 1)), data.draw(arrays(others[1], 2))
    agree(lambda m, *ts: m.cat(ts, dim), x, y, z)
    agree(lambda m, *ts: m.stack(ts, dim), x, x + 1)
    agree(lambda m, *ts: m.stack(ts, dim=len(shape)), x, x + 1)
    size = data.draw(st.integers(1, 4))
    for k in range(len(torch.split(torch.tensor(x), size, dim))):
        agree(lambda m, t, k=k: m.split(t, size, dim)[k], x)
    assert len(F.split(tensor(x), size, dim)) == len(torch.split(torch.tensor(x), size, dim))


@st.composite
def indices(draw, shape):
    """Basic and advanced indices: integers, slices, None, Ellipsis, integer lists and arrays, masks."""
    parts = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        ints = st.integers(-n, n - 1)
        slices = st.builds(slice, st.none() | ints, st.none() | ints, st.none() | st.integers(1, 2))
        lists = st.lists(st.integers(0, n - 1), min_size=2, max_size=2).map(np.array)
        parts.append(draw(ints | slices | lists))
        if draw(st.integers(0, 5)) == 0:
            parts.append(None)
    if draw(st.booleans()):
        parts.append(Ellipsis)
    return tuple(parts)


@given(x=shapes(1).flatmap(arrays), data=st.data())
def test_indexing(x, data):
    index = data.draw(indices(x.shape))
    if np.array_equal(x[index], torch.tensor(x)[index].numpy()):
        assume(not refused(x, index))
        agree(lambda m, t: t[index], x)
    else:
        assert refused(x, index)


def refused(x, index):
    """Whether our index is refused as one that NumPy and torch understand differently."""
    try:
        tensor(x)[index]
    except IndexRangeError as error:
        return "NumPy and torch differ" in str(error)
    return False


ZERO, TWO = 0, np.array([0, 1])


@pytest.mark.parametrize("index", [(ZERO, slice(None), TWO), (slice(None), TWO, slice(None), ZERO), (ZERO, None, TWO),
                                   (ZERO, ..., TWO), (slice(None), ZERO, None, TWO)])
def test_an_index_that_numpy_and_torch_read_differently_is_refused(index):
    x = np.arange(81.0).reshape(3, 3, 3, 3)
    assert x[index].shape != torch.tensor(x)[index].shape
    assert refused(x, index)


@pytest.mark.parametrize("index", [(TWO, slice(None), ZERO), (ZERO, TWO), (TWO, ZERO, slice(None)), (slice(None), TWO, ZERO),
                                   (TWO, slice(None), TWO), (slice(None), TWO, slice(None), TWO), (ZERO, slice(None), ZERO),
                                   (ZERO, TWO, slice(None), ZERO), (None, TWO), (..., TWO), (slice(None), ZERO, TWO)])
def test_any_other_is_not(index):
    x = np.arange(81.0).reshape(3, 3, 3, 3)
    assert not refused(x, index)
    agree(lambda m, t: t[index], x)


@given(x=shapes(1).flatmap(arrays), data=st.data())
def test_indexing_with_masks_and_tensors(x, data):
    mask = x > np.median(x)
    agree(lambda m, t: t[m.tensor(mask)], x)
    agree(lambda m, t: t[mask[..., 0]] if x.ndim > 1 else t[mask], x)
    rows = np.array(data.draw(st.lists(st.integers(0, len(x) - 1), max_size=4)), np.int64)
    agree(lambda m, t: t[m.tensor(rows)], x)


@given(x=shapes().flatmap(arrays), y=st.floats(0.5, 2))
def test_operators_with_numbers(x, y):
    for call in (lambda t: t + y, lambda t: y + t, lambda t: t - y, lambda t: y - t, lambda t: t * y, lambda t: y * t,
                 lambda t: t / y, lambda t: y / t, lambda t: abs(t) ** y, lambda t: y**t, lambda t: -t, abs):
        agree(lambda m, t, call=call: call(t), x)


@given(x=shapes().flatmap(arrays), data=st.data())
def test_where_and_masked_fill(x, data):
    mask = np.asarray(data.draw(st.binary(min_size=x.size, max_size=x.size).map(lambda b: np.frombuffer(b, np.uint8) % 2)))
    mask = mask.astype(bool).reshape(x.shape)
    y = data.draw(arrays(x.shape, 1))
    agree(lambda m, t, u: m.where(m.tensor(mask), t, u), x, y)
    agree(lambda m, t: m.where(m.tensor(mask), t, 0.5), x)
    agree(lambda m, t: m.masked_fill(t, m.tensor(mask), -1e9), x)
    agree(lambda m, t: t.masked_fill(m.tensor(mask), 2.0), x)


# Casts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [np.float32, np.float16])
def test_casts_bring_gradients_back_in_the_inputs_dtype(narrow):
    x = tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    y = F.to(x, narrow)
    assert y.dtype == narrow
    F.sum(y * y).backward()
    assert x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4, 6])


def test_casts_to_the_same_dtype_or_to_integers():
    x = tensor([1.5, -2.5], requires_grad=True)
    assert x.to(np.float32) is x
    assert x.astype(np.int64).tolist() == [1, -2]
    assert not x.astype(np.int64).requires_grad
    assert x.double().dtype == np.float64
    assert x.double().float().dtype == np.float32
    assert x.double().grad_fn is not None
    with no_grad():
        assert x.double().grad_fn is None
    assert tensor([1, 2]).to(np.float32).dtype == np.float32


# New tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 3), ((2, 3),), ([2, 3],)])
def test_zeros_and_ones(size):
    for ours, theirs in ((F.zeros, torch.zeros), (F.ones, torch.ones)):
        assert ours(*size).tolist() == theirs(*size).tolist()
        assert ours(*size).dtype == np.float32
        assert ours(*size, dtype=np.float64, requires_grad=True).requires_grad


def test_a_new_tensor_is_a_copy():
    a = np.ones(3)
    t = tensor(a, requires_grad=True)
    a[0] = 5
    assert t.tolist() == [1, 1, 1]
    assert tensor(t).is_leaf
    with pytest.raises(AutogradError, match="expected a floating dtype"):
        tensor([1], requires_grad=True)


# Errors ---------------------------------------------------------------------------------------------------------------

X = tensor(np.ones((2, 3), np.float32))
WRONG = {
    "sum dim": lambda: F.sum(X, 2), "sum dims": lambda: X.mean((0, 0)), "softmax dim": lambda: F.softmax(X, 2),
    "transpose dim": lambda: X.transpose(0, 2), "permute": lambda: X.permute(0), "unsqueeze": lambda: X.unsqueeze(4),
    "squeeze": lambda: X.squeeze(2), "flatten": lambda: X.flatten(0, 2), "reshape": lambda: X.reshape(4),
    "cat": lambda: F.cat([X, X.T]), "cat none": lambda: F.cat([]), "cat dim": lambda: F.cat([X, X], 2),
    "expand": lambda: X.expand(2, 4), "broadcast_to": lambda: F.broadcast_to(X, (2,)), "split dim": lambda: F.split(X, 1, 2),
    "split size": lambda: F.split(X, 0), "index": lambda: X[2], "index array": lambda: X[np.array([0, 5])],
    "index many": lambda: X[0, 0, 0], "add": lambda: X + X.T, "matmul": lambda: X @ X, "stack": lambda: F.stack([X, X.T]),
    "max of none": lambda: F.zeros(0, 3).max(0),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_in_one_line(call):
    with pytest.raises((ValueError, IndexError)) as caught:
        call()
    assert "got " in str(caught.value)
    assert "expected " in str(caught.value)
    assert "\n" not in str(caught.value)


DTYPES = {
    "zeros": lambda d: F.zeros(2, dtype=d), "full": lambda d: F.full((2,), 1.0, dtype=d),
    "arange": lambda d: F.arange(3, dtype=d), "tensor": lambda d: tensor([1.0], dtype=d), "rand": lambda d: F.rand(2, dtype=d),
    "randn": lambda d: F.randn(2, dtype=d), "randperm": lambda d: F.randperm(3, dtype=d),
    "randint": lambda d: F.randint(3, (2,), dtype=d), "to": lambda d: X.to(dtype=d),
    "sum": lambda d: X.sum(dtype=d), "cumsum": lambda d: X.cumsum(0, dtype=d), "softmax": lambda d: F.softmax(X, 0, d),
    "new_ones": lambda d: X.new_ones((2,), dtype=d), "Linear": lambda d: nn.Linear(2, 2, dtype=d),
    "Embedding": lambda d: nn.Embedding(2, 2, dtype=d), "LayerNorm": lambda d: nn.LayerNorm(2, dtype=d),
}


@pytest.mark.parametrize("dtype", [str, object, "float33", 3.5, "M8"], ids=repr)
@pytest.mark.parametrize("call", DTYPES.values(), ids=DTYPES)
def test_what_is_no_dtype_of_numbers_is_refused(call, dtype):
    with pytest.raises(TypeError, match=r"dtype: got .*expected a dtype"):
        call(dtype)


@pytest.mark.parametrize("call", [call for name, call in DTYPES.items() if name != "to"], ids=[n for n in DTYPES if n != "to"])
def test_none_is_the_dtype_by_default(call):
    made = call(None)
    dtypes = {p.dtype for p in made.parameters()} if isinstance(made, nn.Module) else {made.dtype}
    assert dtypes in ({np.dtype(np.float32)}, {np.dtype(np.int64)})


def test_cat_of_two_dtypes_has_the_wider_and_gradients_keep_their_own():
    x, y = tensor(np.ones(2, np.float32), requires_grad=True), tensor(np.ones(3), requires_grad=True)
    out = F.cat([x, tensor([1, 2]), F.zeros(0), y])
    assert out.dtype == np.float64
    (out * 2).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)
