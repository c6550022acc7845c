"""NumPy's functions on tensors: a tensor with a gradient, a constant where the derivative is zero, or a TypeError."""

import numpy as np
import pytest

import tinygrad_llm.functions as F
from tinygrad_llm.autograd import NUMPY, Tensor, grad
from tinygrad_llm.functions import tensor

A = np.random.default_rng(0).uniform(0.5, 1.5, (3, 4))
B = np.random.default_rng(1).uniform(0.5, 1.5, (3, 4))

CALLS = {
    **{f.__name__: (lambda a, b, f=f: f(a)) for f in (np.negative, np.exp, np.expm1, np.log, np.log1p, np.reciprocal,
                                                      np.sqrt, np.square, np.sin, np.cos, np.tanh, np.abs, np.sum,
                                                      np.mean, np.max, np.transpose, np.squeeze, np.fabs, np.positive,
                                                      np.min, np.prod, np.cumsum, np.var, np.std, np.ravel, np.copy, np.flip,
                                                      np.trace, np.diagonal, np.triu, np.tril, np.matrix_transpose)},
    **{f.__name__: (lambda a, b, f=f: f(a, b)) for f in (np.add, np.subtract, np.multiply, np.true_divide, np.maximum,
                                                         np.minimum, np.power, np.outer, np.vecdot, np.inner,
                                                         np.remainder, np.floor_divide)},
    "fabs negative": lambda a, b: np.fabs(-a),
    "clip": lambda a, b: np.clip(a, 0.7, 1.2), "clip min": lambda a, b: np.clip(a, min=1),
    "clip arrays": lambda a, b: np.clip(a, B / 2, b), "min axis": lambda a, b: np.min(a, axis=1, keepdims=True),
    "amin axis": lambda a, b: np.amin(a, 0), "prod axis": lambda a, b: np.prod(a, axis=1, keepdims=True),
    "prod axes": lambda a, b: np.prod(a, (0, 1)), "prod keepdims": lambda a, b: np.prod(a, keepdims=True),
    "cumsum axis": lambda a, b: np.cumsum(a, axis=1), "var axis": lambda a, b: np.var(a, axis=0, ddof=1, keepdims=True),
    "var correction": lambda a, b: np.var(a, axis=(0, 1), correction=2), "std axis": lambda a, b: np.std(a, 1, ddof=1),
    "norm": lambda a, b: np.linalg.norm(a), "norm rows": lambda a, b: np.linalg.norm(a, 3, axis=1, keepdims=True),
    "norm fro": lambda a, b: np.linalg.norm(a, "fro"), "norm inf": lambda a, b: np.linalg.norm(a, np.inf, axis=0),
    "norm of a vector": lambda a, b: np.linalg.norm(a[0], 1), "norm axes": lambda a, b: np.linalg.norm(a, axis=(0, 1)),
    "norm of many axes": lambda a, b: np.linalg.norm(np.reshape(a, (3, 2, 2))),
    "vector_norm": lambda a, b: np.linalg.vector_norm(a, axis=1, ord=1),
    "dot vectors": lambda a, b: np.dot(a[0], b[1]), "dot matrices": lambda a, b: np.dot(a, np.transpose(b)),
    "dot number": lambda a, b: np.dot(a, 2.0), "dot matrix vector": lambda a, b: np.dot(a, b[0]),
    "dot of more axes": lambda a, b: np.dot(np.stack([a, b]), np.stack([np.transpose(a), np.transpose(b)])),
    "inner vector": lambda a, b: np.inner(a, b[0]),
    "inner of more axes": lambda a, b: np.inner(np.stack([a, b]), np.stack([b, a])),
    "tensordot": lambda a, b: np.tensordot(a, b, axes=2), "tensordot axis": lambda a, b: np.tensordot(a, b, ([0], [0])),
    "tensordot ints": lambda a, b: np.tensordot(a, b, (1, -1)), "trace offset": lambda a, b: np.trace(a, 1),
    "expand_dims axes": lambda a, b: np.expand_dims(a, (0, -1)), "moveaxis": lambda a, b: np.moveaxis(a, 0, -1),
    "moveaxis axes": lambda a, b: np.moveaxis(a, (0, 1), (1, 0)), "flip axis": lambda a, b: np.flip(a, axis=1),
    "flip axes": lambda a, b: np.flip(a, (0, 1)), "roll": lambda a, b: np.roll(a, 5),
    "roll axis": lambda a, b: np.roll(a, -1, axis=1),
    "roll axes": lambda a, b: np.roll(a, 1, axis=(0, 1)), "tile": lambda a, b: np.tile(a, 2),
    "tile more axes": lambda a, b: np.tile(a, (2, 1, 2)), "triu k": lambda a, b: np.triu(a, k=1),
    "tril k": lambda a, b: np.tril(a, -1),
    "diagonal offset": lambda a, b: np.diagonal(a, offset=1), "take": lambda a, b: np.take(a, np.array([[0, 5], [11, 5]])),
    "take axis": lambda a, b: np.take(a, [2, 0, 2], axis=1), "take one": lambda a, b: np.take(a, 1, axis=-1),
    "take_along_axis": lambda a, b: np.take_along_axis(a, np.argsort(A, 1), axis=1),
    "hstack": lambda a, b: np.hstack([a, b]), "hstack vectors": lambda a, b: np.hstack([a[0], b[1], a[2]]),
    "vstack": lambda a, b: np.vstack([a, b]), "vstack vectors": lambda a, b: np.vstack((a[0], b[1])),
    "column_stack": lambda a, b: np.column_stack([a, b[:, 0]]),
    "split": lambda a, b: np.split(a, 2, axis=1)[1], "split at": lambda a, b: np.split(a, [1, 3], axis=1)[1],
    "split past the end": lambda a, b: np.split(a, [2, 9])[1], "array_split": lambda a, b: np.array_split(a, 3, axis=1)[0],
    "hsplit": lambda a, b: np.hsplit(a, 2)[0], "vsplit": lambda a, b: np.vsplit(a, [1])[1],
    "hsplit vector": lambda a, b: np.hsplit(a[0], 4)[3], "broadcast_arrays": lambda a, b: np.broadcast_arrays(a, b[:, :1])[0],
    "where integers": lambda a, b: np.where((A > 1).astype(int), a, b),
    "einsum": lambda a, b: np.einsum("ij,kj->ik", a, b),
    "matmul": lambda a, b: np.matmul(a, np.swapaxes(b, 0, 1)),
    "@": lambda a, b: a @ b.T,
    "sum axis": lambda a, b: np.sum(a, axis=0),
    "sum keepdims": lambda a, b: np.sum(a, 1, keepdims=True),
    "mean axes": lambda a, b: np.mean(a, (0, 1)),
    "max axis": lambda a, b: np.max(a, axis=-1, keepdims=True),
    "amax": lambda a, b: np.amax(a, 0),
    "where": lambda a, b: np.where(A > 1, a, b),
    "where number": lambda a, b: np.where(A > 1, a, 0.5),
    "reshape": lambda a, b: np.reshape(a, (4, 3)),
    "reshape -1": lambda a, b: np.reshape(a, -1),
    "transpose axes": lambda a, b: np.transpose(a, (1, 0)),
    "swapaxes": lambda a, b: np.swapaxes(a, 0, 1),
    "squeeze axis": lambda a, b: np.squeeze(np.expand_dims(a, 1), axis=1),
    "expand_dims": lambda a, b: np.expand_dims(a, axis=-1),
    "expand_dims positional": lambda a, b: np.expand_dims(a, 0),
    "broadcast_to": lambda a, b: np.broadcast_to(a, (2, 3, 4)),
    "concatenate": lambda a, b: np.concatenate([a, b], axis=1),
    "concatenate flat": lambda a, b: np.concatenate([a, b], axis=None),
    "concatenate first": lambda a, b: np.concatenate((a, b)),
    "stack": lambda a, b: np.stack([a, b], axis=1),
    "array on the left": lambda a, b: B * a + B / a - B**a,
    "array @": lambda a, b: B.T @ a,
    "scalar on the left": lambda a, b: np.float64(2) * a - np.float32(0.5) / a,
    "getitem": lambda a, b: a[1:, np.array([0, 2, 2])],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_numpy_call_gives_a_tensor_with_gradients(call):
    """The value is NumPy's own; the gradient is that of a central difference along random directions."""
    a, b = tensor(A, requires_grad=True), tensor(B, requires_grad=True)
    out = call(a, b)
    assert isinstance(out, Tensor)
    np.testing.assert_allclose(out.numpy(), call(A, B), rtol=1e-13)
    rng = np.random.default_rng(2)
    g, u, v, h = rng.standard_normal(out.shape), rng.standard_normal(A.shape), rng.standard_normal(A.shape), 1e-6
    slope = np.sum(g * (call(A + h * u, B + h * v) - call(A - h * u, B - h * v))) / (2 * h)
    da, db = grad(out, [a, b], g, allow_unused=True)
    found = np.sum(da.numpy() * u) + (0 if db is None else np.sum(db.numpy() * v))
    np.testing.assert_allclose(found, slope, rtol=1e-7, atol=1e-7)


def test_every_function_in_the_table_is_called_above():
    called = {name.split()[0] for name in CALLS} | {f.__name__ for f in (*COMPARISONS, *BITWISE)}
    assert {f.__name__ for f in NUMPY} - {"absolute", "divide", "amax"} <= called | {"abs"}


COMPARISONS = (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)
BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)


@pytest.mark.parametrize("function", [*COMPARISONS, *BITWISE])
@pytest.mark.parametrize("left", [True, False])
def test_a_comparison_of_an_array_and_a_tensor_is_numpys(function, left):
    a, b = (np.random.default_rng(seed).integers(0, 3, (3, 4)) for seed in (0, 1))
    out = function(a, tensor(b)) if left else function(tensor(a), b)
    assert isinstance(out, Tensor)
    assert not out.requires_grad
    np.testing.assert_array_equal(out.numpy(), function(a, b), strict=True)


REFUSED = {
    "arctan": np.arctan, "sort": np.sort, "median": np.median, "diff": np.diff, "kron": lambda t: np.kron(t, t),
    "nuclear norm": lambda t: np.linalg.norm(t, "nuc"), "spectral norm": lambda t: np.linalg.norm(t, 2),
    "cumsum dtype": lambda t: np.cumsum(t, dtype=np.float32),
    "prod where": lambda t: np.prod(t, where=t.numpy() > 1),
    "var mean": lambda t: np.var(t, mean=0.0), "max initial": lambda t: np.max(t, initial=0.0),
    "inv": lambda t: np.linalg.inv(t[:, :3]),
    "reshape order": lambda t: np.reshape(t, -1, order="F"),
    "take mode": lambda t: np.take(t, [9], mode="wrap"),
    "floor_divide dtype": lambda t: np.floor_divide(t, t, dtype=np.float64),
    "fmod": lambda t: np.fmod(t.numpy(), t),
    "reduce": np.add.reduce, "accumulate": np.add.accumulate, "outer method": lambda t: np.multiply.outer(t, t),
    "dtype": lambda t: np.add(t, 1, dtype=np.float64), "keepdims": lambda t: np.exp(t, casting="no"),
    "sum dtype": lambda t: np.sum(t, 0, np.float64), "sum where": lambda t: np.sum(t, where=t.numpy() > 1),
    "modf": np.modf, "full_like": lambda t: np.full_like(t, 0.5), "interp": lambda t: np.interp(t.reshape(-1), [0, 1], [0, 1]),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_no_op_stands_for_is_refused(call):
    with pytest.raises(TypeError):
        call(tensor(A, requires_grad=True))


@pytest.mark.parametrize("call", [lambda t: np.sum(t, 0, np.float64), lambda t: np.std(t, where=True), np.arctan])
def test_the_refusal_says_what_to_use(call):
    with pytest.raises(TypeError, match=r"got .*expected .*or x\.numpy\(\) where no gradient is wanted"):
        call(tensor(A))


def test_the_refusal_says_what_to_do():
    with pytest.raises(TypeError, match=r"arctan: got a Tensor, .* x\.numpy\(\) where no gradient is wanted"):
        np.arctan(tensor(A))


@pytest.mark.parametrize("call", [
    lambda t: np.add(A.copy(), t, out=np.zeros((3, 4))), lambda t: np.exp(A, out=t), lambda t: np.exp(t, out=t),
    lambda t: np.copyto(t, B), lambda t: np.add.at(t, 0, 1.0), lambda t: np.put(t, [0], 1.0), lambda t: np.fill_diagonal(t, 0),
])
def test_numpy_does_not_write_into_tensors(call):
    t = tensor(A)
    with pytest.raises((TypeError, ValueError)):
        call(t)
    np.testing.assert_array_equal(t.numpy(), A)


def test_an_in_place_operator_of_an_array_is_refused_before_it_writes():
    a = np.ones((3, 4))
    with pytest.raises(TypeError, match="out"):
        a += tensor(A, requires_grad=True)
    assert (a == 1).all()


@pytest.mark.parametrize("call", [np.sign, np.floor, np.ceil, np.rint, np.trunc, np.ones_like, np.zeros_like,
                                  np.isnan, np.isfinite, lambda t: np.equal(t, 1), lambda t: np.argmax(t, 1),
                                  lambda t: np.any(t > 1), lambda t: np.less(B, t), lambda t: np.argsort(t)])
def test_what_has_derivative_zero_is_a_constant(call):
    out = call(tensor(A, requires_grad=True))
    np.testing.assert_array_equal(np.asarray(out), np.asarray(call(A)))
    assert isinstance(out, Tensor)
    assert not out.requires_grad


def test_what_is_no_array_stays_as_it_is():
    t = tensor(A, requires_grad=True)
    assert np.shape(t) == (3, 4)
    assert np.ndim(t) == 2
    assert np.size(t) == 12
    assert np.array_equal(t, A) is True
    assert np.allclose(t, A) is True


def test_a_tensor_becomes_an_array():
    t = tensor(A)
    assert np.asarray(t) is t.numpy()
    assert np.asarray(t, np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(t), t.numpy())
    assert type(np.array([t[0, 0].item()])) is np.ndarray
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, np.float32, copy=False)


@pytest.mark.parametrize("view", [np.asarray, lambda t: t.numpy(), lambda t: (t * 1).numpy()])
def test_the_array_of_what_requires_grad_may_only_be_read(view):
    t = tensor(A, requires_grad=True)
    shown = view(t)
    np.testing.assert_array_equal(shown, A)
    with pytest.raises(ValueError, match="read-only"):
        shown += 1
    t.detach().numpy()[0, 0] = 7
    assert t.numpy(force=True)[0, 0] == t.numpy()[0, 0] == 7


def test_an_array_that_a_tensor_is_added_to_says_what_to_write_instead():
    array = A.copy()
    with pytest.raises(TypeError, match=r"add: got an ndarray to write .*use a \+ b"):
        array += tensor(A)
    np.testing.assert_array_equal(array, A)


def test_an_array_on_the_left_is_no_array_of_objects():
    one = tensor(np.ones(3), requires_grad=True)
    for out in (np.ones(3) * one, np.ones(3) == one, np.ones(3) < one):
        assert isinstance(out, Tensor)
        assert out.dtype != object


def test_comparisons_and_masks():
    t = tensor([1.0, 2.0, 3.0])
    assert ((t > 1) & (t < 3)).tolist() == [False, True, False]
    assert ((t <= 1) | ~(t >= 2)).tolist() == [True, False, False]
    assert ((t == 1) ^ (t != 3)).tolist() == [False, True, False]
    assert F.where(t > 1, t, 0.0).tolist() == [0, 2, 3]


def test_python_protocols():
    t = tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(t) == 2
    assert [row.tolist() for row in t] == [[1, 2], [3, 4]]
    assert 3.0 in t
    assert float(t[0, 0]) == 1.0
    assert [10, 20, 30][tensor(1)] == 20
    assert bool(tensor(True))
    assert repr(tensor([1.0], requires_grad=True)) == "tensor([1.], requires_grad=True)"
    assert repr(tensor([1.0], requires_grad=True) * 2) == "tensor([2.], grad_fn=<mul>)"
    for name, wrong in (("bool", bool), ("float", float), ("int", int), ("item", lambda x: x.item())):
        with pytest.raises(ValueError, match=rf"^{name}: got a tensor of shape \(2, 2\), expected one element"):
            wrong(t)
    with pytest.raises(TypeError, match="without axes"):
        len(tensor(1.0))


@pytest.mark.parametrize(("data", "dtype"), [
    (1.0, "float32"), ([1.0, 2.0], "float32"), (1, "int64"), ([True], "bool"), (np.ones(2), "float64"),
    (np.float64(1), "float64"), ([np.ones(2)], "float64"), ([], "float32"), (np.ones(2, np.float32), "float32"),
])
def test_dtypes_of_new_tensors(data, dtype):
    assert tensor(data).dtype == dtype
    assert tensor(data, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize(("data", "error"), [([[1.0], [1.0, 2.0]], ValueError), ("abc", TypeError), ([1j], TypeError),
                                             ({"a": 1}, TypeError), (None, TypeError)])
def test_data_that_are_no_numbers_are_refused_in_one_line(data, error):
    with pytest.raises(error, match=r"^tensor: data: got .*expected") as caught:
        tensor(data)
    assert "\n" not in str(caught.value)
