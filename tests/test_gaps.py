"""Arrays with gaps and negative strides, where NumPy 2.4 goes wrong or gives other last bits: tensors give the values of a
copy, and a replay the bits of the function."""

import warnings

import numpy as np
import pytest
from numpyprograms import same
from test_capture_programs import replayed, small

import tinygrad_llm as tg
from tinygrad_llm.autograd import apply
from tinygrad_llm.capture import passes
from tinygrad_llm.capture.recordings import record
from tinygrad_llm.capture.replay import Replay
from tinygrad_llm.ops import Op, gaps

VIEWS = {
    "reversed": lambda a: a[::-1], "every fourth row": lambda a: a[::4], "every other column": lambda a: a[:, ::2],
    "columns reversed": lambda a: a[:, ::-1], "every third column from the end": lambda a: a[:, ::-3],
    "transposed": lambda a: a.T, "transposed and reversed": lambda a: a.T[::-1], "one column": lambda a: a[:, 3],
    "without a border": lambda a: a[1:-1, 1:-1],
    "flat and reversed": lambda a: a.reshape(-1)[::-1], "every fourth": lambda a: a.reshape(-1)[::4],
    "every eighth": lambda a: a.reshape(-1)[::8], "both reversed": lambda a: a[::-1, ::-1],
}
views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
floats = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def values(dtype):
    """[37, 16] between 0 and 1, some nan, ∞ or negative."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0.05, 0.95, (37, 16)).astype(dtype)
    a[rng.random(a.shape) < 0.2] = rng.choice([np.nan, np.inf, -np.inf, -0.0, -0.5])
    return a


@floats
@views
@pytest.mark.parametrize("function", sorted(gaps.DENSE, key=str), ids=lambda f: f.__name__)
def test_what_goes_wrong_into_gaps_is_made_in_one_piece(function, view, dtype):
    x = view(values(dtype))
    wanted = function(x.copy())
    out = view(np.zeros((37, 16), wanted.dtype))
    gaps.call(function, x, out=out)
    assert same(out, wanted)


@floats
@views
def test_writes_into_views_with_gaps_are_those_of_a_copy(view, dtype):
    for name in ("neg_", "abs_", "square_", "relu_"):
        a = values(dtype)
        wanted, inside = view(a.copy()), np.zeros(a.shape, bool)
        view(inside)[...] = True
        wanted = getattr(tg.tensor(wanted), name)().numpy()
        t = tg.tensor(a)
        getattr(tg.from_numpy(view(t.numpy())), name)()
        assert same(view(t.numpy()), wanted)
        assert same(t.numpy()[~inside], a[~inside])


@floats
@views
def test_questions_about_views_are_those_of_a_copy(view, dtype):
    x = view(values(dtype))
    for call in (lambda t: t.isnan(), lambda t: t.isinf(), lambda t: t.isfinite(), lambda t: -t, lambda t: t == t, np.isnan):
        assert same(call(tg.from_numpy(x)).numpy(), call(tg.tensor(x.copy())).numpy())


@pytest.mark.parametrize("call", [
    lambda t, a: np.isnan(t, out=np.zeros((4, 3), bool)[:, ::2]), lambda t, a: np.negative(a, out=t),
    lambda t, a: np.negative(t, out=a), lambda t, a: np.add(a, t, out=a),
])
def test_no_numpy_function_writes_a_tensor_into_an_array_or_the_reverse(call):
    with pytest.raises(TypeError, match=r"got an ndarray to write a tensor's values into \(out=, or \+=\), expected none"):
        call(tg.ones(4, 2), np.ones((4, 2), np.float32))


@floats
def test_vmap_writes_into_gaps(dtype):
    def negated(x):
        out = np.stack([x, x], -1)
        np.negative(x, out=out[..., 0])
        return out[..., 0], lambda g: (-g,)

    x = values(dtype)
    op = Op("negated", negated, (), {}, "", variadic=True)
    for like in (x, x.T, x[:, ::4], x.reshape(-1)[::8, None]):
        assert same(tg.func.vmap(lambda row: apply(op, row))(tg.from_numpy(like)).numpy(), -like.copy())


# Last bits ---------------------------------------------------------------------------------------------------------------

LAST_BITS = ("exp", "expm1", "log", "log1p", "exp2", "log2", "log10", "tan", "arctan", "arcsin", "arccos", "arctanh", "cbrt",
             "sinh", "cosh", "arcsinh", "sin", "cos", "tanh", "sqrt", "power")


@floats
@views
@pytest.mark.parametrize("name", LAST_BITS)
def test_replays_have_the_bits_of_the_function_in_any_layout(name, view, dtype):
    """With AVX-512 most of these have other last bits of a view with gaps or a negative stride than of its copy."""
    f = (lambda a: np.power(a, a)) if name == "power" else getattr(np, name)
    x = view(np.random.default_rng(0).uniform(0.05, 0.95, (37, 16)).astype(dtype))
    for function in (lambda x: [f(x), f(x * 1)], lambda x: [f((x * 1)[::-1]) * 2],
                     lambda x: [np.concatenate([f(x * 1), x[::-1]])]):
        recording, wanted = record(function, [x]), function(x)
        for plan in ((), passes.EXACT, small(300)):
            replay = Replay(passes.optimize(recording.program, plan))
            assert replay.inputs[0].strides == x.strides
            found = replayed(recording, replay, [x])
            assert all(same(a, b) for a, b in zip(wanted, found, strict=True)), plan
