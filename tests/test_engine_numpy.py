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
                                                      np.mean, np.max, np.transpose, np.squeeze)},
    **{f.__name__: (lambda a, b, f=f: f(a, b)) for f in (np.add, np.subtract, np.multiply, np.true_divide, np.maximum,
                                                         np.minimum, np.power)},
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
    a, b = tensor(A, True), tensor(B, True)
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
    called = {name.split()[0] for name in CALLS}
    assert {f.__name__ for f in NUMPY} - {"absolute", "divide", "amax"} <= called | {"abs"}


REFUSED = {
    "arctan": np.arctan, "cumsum": np.cumsum, "sort": np.sort, "var": np.var, "prod": np.prod, "median": np.median,
    "clip": lambda t: np.clip(t, 0, 1), "dot": lambda t: np.dot(t, t.T),
    "outer": lambda t: np.outer(t, t), "norm": np.linalg.norm, "floor_divide": lambda t: t.numpy() // t,
    "mod": lambda t: t.numpy() % t,
    "reduce": np.add.reduce, "accumulate": np.add.accumulate, "outer method": lambda t: np.multiply.outer(t, t),
    "dtype": lambda t: np.add(t, 1, dtype=np.float64), "keepdims": lambda t: np.exp(t, casting="no"),
    "sum dtype": lambda t: np.sum(t, 0, np.float64), "sum where": lambda t: np.sum(t, where=t.numpy() > 1),
    "modf": np.modf, "full_like": lambda t: np.full_like(t, 0.5), "interp": lambda t: np.interp(t.reshape(-1), [0, 1], [0, 1]),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_no_op_stands_for_is_refused(call):
    with pytest.raises(TypeError):
        call(tensor(A, True))


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
        a += tensor(A, True)
    assert (a == 1).all()


@pytest.mark.parametrize("call", [np.sign, np.floor, np.ceil, np.rint, np.trunc, np.ones_like, np.zeros_like,
                                  np.isnan, np.isfinite, lambda t: np.equal(t, 1), lambda t: np.argmax(t, 1),
                                  lambda t: np.any(t > 1), lambda t: np.less(B, t), lambda t: np.argsort(t)])
def test_what_has_derivative_zero_is_a_constant(call):
    out = call(tensor(A, True))
    np.testing.assert_array_equal(np.asarray(out), np.asarray(call(A)))
    assert isinstance(out, Tensor)
    assert not out.requires_grad


def test_what_is_no_array_stays_as_it_is():
    t = tensor(A, True)
    assert np.shape(t) == (3, 4)
    assert np.ndim(t) == 2
    assert np.size(t) == 12
    assert np.array_equal(t, A) is True
    assert np.allclose(t, A) is True


def test_a_tensor_becomes_an_array():
    t = tensor(A, True)
    assert np.asarray(t) is t.numpy()
    assert np.asarray(t, np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(t), t.numpy())
    assert type(np.array([t[0, 0].item()])) is np.ndarray
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, np.float32, copy=False)


def test_an_array_on_the_left_is_no_array_of_objects():
    for out in (np.ones(3) * tensor(np.ones(3), True), np.ones(3) == tensor(np.ones(3)), np.ones(3) < tensor(np.ones(3))):
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
    assert repr(tensor([1.0], True)) == "tensor([1.], requires_grad=True)"
    assert repr(tensor([1.0], True) * 2) == "tensor([2.], grad_fn=<mul>)"
    for wrong in (bool, float, lambda x: x.item()):
        with pytest.raises(ValueError, match=r"item: got a tensor of shape \(2, 2\), expected one element"):
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
