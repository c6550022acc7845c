"""Where drawn values do not go: kinks and ties as torch chooses, overflow, infinities, and sums of a million rows."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from opchecks import judge32, judge64

from reference.opdraw import call_torch
from tinygrad_llm.ops import REGISTRY
from tinygrad_llm.ops.sums import total

INF, NAN = math.inf, math.nan
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])

KINKS = [
    ("relu", [[0.0, -0.0, 1.0, -1.0, NAN]]),
    ("abs", [[0.0, -0.0, 2.0, -2.0]]),
    ("maximum", [[0.0, 1.0, 2.0, -1.0], [0.0, 1.0, 1.0, 3.0]]),
    ("minimum", [[0.0, 1.0, 2.0, -1.0], [0.0, 1.0, 1.0, 3.0]]),
    ("maximum", [[NAN, 1.0], [1.0, NAN]]),
    ("amax", [[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]], {"dim": 1}),
    ("amax", [[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]], {"dim": None, "keepdim": True}),
    ("pow", [[0.0, 0.0, 0.0, 2.0], [2.0, 1.0, 0.0, 0.0]]),
    ("pow", [[-2.0, -2.0, -1.5], [2.0, 3.0, 0.0]]),
    ("square", [[0.0, -0.0]]),
    ("tanh", [[0.0, 1e4, -1e4]]),
    ("sigmoid", [[0.0, 1e4, -1e4, 90.0, -90.0, 745.0, -745.0]]),
    ("erf", [[0.0, 1e4, -1e4, INF, -INF, NAN, 1e-30]]),
    ("gelu", [[0.0, 50.0, -50.0, -8.0]], {"approximate": "none"}),
    ("gelu", [[1e4, -1e4, 6.0, -6.0, 5.9, -5.9, 1e18, 1e-30]], {"approximate": "none"}),
    ("gelu", [[0.0, 50.0, -50.0, -8.0]], {"approximate": "tanh"}),
    ("softmax", [[[1e4, -1e4, 0.0], [-INF, 0.0, 1.0]]]),
    ("log_softmax", [[[1e4, -1e4, 0.0], [3.0, 3.0, 3.0]]]),
    ("logsumexp", [[[1e4, -1e4, 0.0], [-INF, 0.0, 1.0]]], {"dim": -1}),
    ("layer_norm", [[[2.0, 2.0, 2.0], [100.0, 100.0, 100.0]], [1.0, 2.0, 3.0], [0.5, 0.5, 0.5]], {"eps": 1e-5}),
    ("where", [[True, False], [INF, 1.0], [2.0, NAN]]),
    ("cross_entropy", [[[1e4, -1e4], [-1e4, 1e4]], [1, 1]]),
]


@pytest.mark.parametrize(("name", "args", "options"), [(k[0], k[1], k[2] if len(k) > 2 else {}) for k in KINKS])
def test_special_values_are_torchs(name, args, options):
    op = REGISTRY[name]
    truth, theirs = torch_call(op, args, options, np.float64), torch_call(op, args, options, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours64, ours32 = our_call(op, args, options, np.float64), our_call(op, args, options, np.float32)
    assert [fail for a, t in zip(ours64, truth, strict=True) for fail in judge64(name, a, t)] == []
    assert [fail for a, b, t in zip(ours32, theirs, truth, strict=True) for fail in judge32(name, a, b, t)] == []


HIDDEN = [
    ("relu", [[-1.0, 0.0, -0.0, -2.0, 1.0, NAN]]),
    ("clamp", [[-3.0, 3.0, -3.0, 5.0, -1.0, 1.0]], {"min": -1.5, "max": 2.0}),
    ("where", [[True, False, True, False, True, False], [1.0] * 6, [2.0] * 6]),
    ("maximum", [[0.0, 1.0, 2.0, -1.0, 1.0, NAN], [1.0, 0.0, 2.0, 0.0, 0.0, 1.0]]),
    ("minimum", [[0.0, 1.0, 2.0, -1.0, 1.0, NAN], [1.0, 0.0, 2.0, 0.0, 0.0, 1.0]]),
]


@dtypes
@pytest.mark.parametrize(("name", "args", "options"), [(k[0], k[1], k[2] if len(k) > 2 else {}) for k in HIDDEN])
def test_what_a_condition_hides_takes_no_gradient_though_it_be_infinite(name, args, options, dtype):
    """0 · ∞ is nan: a product with a mask is not enough."""
    g = np.array([INF, -INF, NAN, -1.0, INF, -2.0], dtype)
    ours, theirs = our_call(REGISTRY[name], args, options, dtype, g), torch_call(REGISTRY[name], args, options, dtype, g)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.signbit(a[b == 0]), np.signbit(b[b == 0]))


@dtypes
@pytest.mark.parametrize("condition", [True, False])
def test_where_takes_a_condition_that_is_no_array(condition, dtype):
    _, vjp = REGISTRY["where"](condition, np.ones(2, dtype), np.ones(2, dtype))
    _, dx, dy = vjp(np.array([2, -3], dtype))
    np.testing.assert_array_equal(dx, [2, -3] if condition else [0, 0])
    np.testing.assert_array_equal(dy, [0, 0] if condition else [2, -3])


def our_call(op, args, options, dtype, g=None):
    """[output, gradients...] under a cotangent."""
    out, vjp = op(*[np.array(a, dtype) if is_floats(a) else np.array(a) for a in args], **options)
    return [np.asarray(a) for a in (out, *vjp(cotangent(out.shape, dtype) if g is None else g)) if a is not None]


def torch_call(op, args, options, dtype, g=None):
    parameters = inspect.signature(op.function).parameters
    options = {name: options.get(name, parameters[name].default) for name in op.options}
    tensors = [torch.tensor(np.array(a, dtype), requires_grad=True) if is_floats(a) else torch.tensor(a) for a in args]
    wanted = [t for t in tensors if t.requires_grad]
    out = call_torch(op, tensors + [None] * (len(op.args) - len(tensors)), options)
    gradients = torch.autograd.grad(out, wanted, torch.tensor(cotangent(out.shape, dtype) if g is None else g))
    return [out.detach().numpy(), *[g.numpy() for g in gradients]]


def cotangent(shape, dtype):
    return np.linspace(0.5, 1.5, math.prod(shape)).reshape(shape).astype(np.float32).astype(dtype)


def is_floats(values):
    return np.array(values).dtype.kind == "f"


@dtypes
def test_erf_is_the_c_librarys_over_its_whole_range(dtype):
    x = np.concatenate([np.linspace(-7, 7, 20011), np.geomspace(1e-300 if dtype == np.float64 else 1e-37, 1, 500)])
    x = x.astype(dtype)
    truth = np.array([math.erf(v) for v in x.astype(np.float64)])
    out = REGISTRY["erf"](x)[0]
    assert np.all(np.abs(out - truth) <= 8 * np.finfo(dtype).eps * np.abs(truth))


def test_gelu_is_no_less_accurate_than_torchs_over_its_whole_range():
    x = np.linspace(-9, 9, 20011, dtype=np.float32)
    truth = torch.nn.functional.gelu(torch.tensor(x.astype(np.float64))).numpy()
    ours, theirs = (np.abs(y - truth) / (1 + np.abs(truth)) for y in (REGISTRY["gelu"](x)[0], gelu32(x)))
    assert ours.mean() <= theirs.mean()
    assert ours.max() <= max(theirs.max(), 4e-7)


def gelu32(x):
    return torch.nn.functional.gelu(torch.tensor(x)).numpy()


def test_a_nan_in_one_row_stays_in_its_row():
    x = np.array([[1.0, NAN], [1.0, 2.0]])
    for name in ("softmax", "log_softmax"):
        out, vjp = REGISTRY[name](x)
        assert np.isnan(out[0]).all()
        assert np.isfinite(out[1]).all()
        assert np.isfinite(vjp(np.ones((2, 2)))[0][1]).all()


def test_embedding_gradients_add_repeated_rows():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 7, (50, 40))
    g = rng.standard_normal((50, 40, 3))
    truth = np.zeros((9, 3))
    for row, one in zip(ids.reshape(-1), g.reshape(-1, 3)):
        truth[row] += one
    (d, none) = REGISTRY["embedding"](np.zeros((9, 3)), ids)[1](g)
    assert none is None
    np.testing.assert_allclose(d, truth, rtol=1e-12, atol=1e-12)
    assert not d[7:].any()


def test_getitem_gradients_add_repeated_places():
    x, index = np.zeros((4, 3)), (np.array([0, 2, 2, 0]), np.array([1, 1, 1, 0]))
    (d,) = REGISTRY["getitem"](x, index=index)[1](np.array([1.0, 10.0, 100.0, 1000.0]))
    assert d.tolist() == [[1000, 1, 0], [0, 0, 0], [0, 110, 0], [0, 0, 0]]


ROWS = 1_000_000


@pytest.fixture(scope="module")
def many():
    """A million rows of float32 around 0.1: where adding one row after another loses three digits."""
    return np.random.default_rng(0).uniform(0, 0.2, (ROWS, 4)).astype(np.float32)


def relative_error(found, exact):
    return float(np.max(np.abs(np.asarray(found, np.float64) - exact) / np.abs(exact)))


def test_float32_sums_over_slow_axes_are_as_accurate_as_pairwise(many):
    exact = many.sum(0, dtype=np.float64)
    pairwise = relative_error(np.ascontiguousarray(many.T).sum(1), exact)
    naive = relative_error(many.sum(0), exact)
    allowed = 4 * pairwise + 4 * np.finfo(np.float32).eps
    assert naive > 4 * allowed, "the test must be able to fail"
    assert relative_error(total(many, (0,)), exact) <= allowed
    assert relative_error(REGISTRY["sum"](many, dim=0)[0], exact) <= allowed
    assert relative_error(REGISTRY["mean"](many, dim=0)[0] * ROWS, exact) <= allowed
    assert relative_error(total(many.reshape(10, 25, ROWS // 250, 4), (1, 0, 2)), exact) <= allowed
    assert relative_error(total(many.reshape(1, ROWS, 4), (1,))[0], exact) <= allowed
    assert relative_error(total(many.T, (1,)), exact) <= allowed
    assert relative_error(total(many[::2].T, (1,)), many[::2].sum(0, dtype=np.float64)) <= allowed
    spread = np.log(many.astype(np.float64)).astype(np.float32)
    assert relative_error(np.exp(REGISTRY["logsumexp"](spread, dim=0)[0].astype(np.float64)), exact) <= 3 * allowed


def test_gradients_of_repeated_arguments_are_summed_as_accurately(many):
    """The bias of linear, the affine of layer_norm, a broadcast addend, broadcast_to: all sum a cotangent over rows."""
    exact = many.sum(0, dtype=np.float64)
    allowed = 8 * np.finfo(np.float32).eps
    bias, x = np.zeros(4, np.float32), np.ones((ROWS, 4), np.float32)
    found = {
        "add": REGISTRY["add"](x, bias)[1](many)[1],
        "linear": REGISTRY["linear"](x[:, :1], bias[:, None], bias)[1](many)[2],
        "layer_norm": REGISTRY["layer_norm"](x, bias, bias)[1](many)[2],
        "broadcast_to": REGISTRY["broadcast_to"](bias, shape=(ROWS, 4))[1](many)[0],
        "embedding": REGISTRY["embedding"](np.zeros((3, 4), np.float32), np.ones(ROWS, np.int64))[1](many)[0][1],
    }
    errors = {name: relative_error(d, exact) for name, d in found.items()}
    assert {name: error for name, error in errors.items() if error > allowed} == {}


@dtypes
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_total_is_sum(dtype, axes, keepdims):
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype)
    for like in (x, x.transpose(2, 0, 1), x[:, ::-1], x[:0], x[:, :0]):
        out = total(like, axes, keepdims)
        assert out.dtype == dtype
        np.testing.assert_allclose(out, like.sum(axes, keepdims=keepdims), rtol=1e-5, atol=1e-5)
        assert out.shape == like.sum(axes, keepdims=keepdims).shape
