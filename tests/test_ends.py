"""Every function at the ends of its dtype, beside torch: 0 and −0, denormals, ∞ and nan, what overflows when it is squared.

A float64 result is torch's. One of float32 or float16 is torch's in that dtype, or the truth, what torch has in float64. Where
torch itself has no answer it says so here, by name.
"""

import math
import warnings

import numpy as np
import pytest
import torch

import tinygrad_llm as tg
import tinygrad_llm.optim
from tinygrad_llm.capture import compile

INF, NAN = math.inf, math.nan
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16], ids=lambda d: d.__name__)
RTOL = {np.float64: 1e-6, np.float32: 1e-5, np.float16: 4e-3}
ATOL = {np.float64: 1e-14, np.float32: 1e-6, np.float16: 1e-3}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def ends(dtype):
    """Both signs of what is special to a dtype, and of what lies between."""
    f = np.finfo(dtype)
    most, least, tiny = float(f.max), float(f.smallest_subnormal), float(f.tiny)
    sizes = [0, least, tiny / 4, tiny, math.sqrt(tiny) / 3, float(f.eps), 1e-3, 0.3, 0.5, 1, 1.5, 2, 3, 5.5, 8, 19.5, 20.5, 40,
             90, 200, 800, 1e4, 1.5 * most ** (1 / 3), 1.5 * math.sqrt(most), most / 2, most, INF]
    return np.array([*sizes, *[-s for s in sizes], NAN]).astype(dtype)


def slopes(m, call, *arrays):
    """[result, gradients] under cotangents of which some are larger than 1, as those of a loss that is scaled."""
    tensors = [m.tensor(a, requires_grad=True) for a in arrays]
    y = call(m, *tensors)
    if y.requires_grad:
        y.backward(m.tensor(np.resize([1.5, 0.5, -1.0, 1.25], y.shape).astype(arrays[0].dtype)))
    return [np.asarray(y.detach(), np.float64), *[None if t.grad is None else np.asarray(t.grad, np.float64) for t in tensors]]


def wrong(call, arrays, dtype, pardoned=lambda ours, theirs: False):
    """(result or gradient, place, ours, torch's) wherever ours is neither torch's nor the truth."""
    single = [a.astype(dtype) for a in arrays]
    ours, theirs = slopes(tg, call, *single), slopes(torch, call, *single)
    truth = theirs if dtype == np.float64 else slopes(torch, call, *[a.astype(np.float64) for a in single])
    found = []
    for i, (a, b, t) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert (a is None) == (b is None)
        if a is None:
            continue
        rounded = t.astype(dtype).astype(np.float64)  # beyond the dtype it is infinite
        right = close(a, b, dtype) | close(a, rounded, dtype) | (np.isnan(rounded) & close(a, b, dtype))
        places = map(tuple, np.argwhere(~right))
        found += [(i, place, a[place], b[place]) for place in places if not pardoned(a[place], b[place])]
    return found


def close(a, b, dtype):
    return (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= ATOL[dtype] + RTOL[dtype] * np.abs(b))


# Functions of one number -------------------------------------------------------------------------------------------------

NUMBERS = (0.0, -0.0, 1e-7, 1e-40, 3.0, 1e5, INF, NAN)
POWERS = (0, 1, 2, 3, -1, -2, 0.5, -0.5, 1.5, 1 / 3, -1.5, INF, -INF, NAN, 1e-3, 100, -100)
BASES = (0, -0.0, 1, -1, 2, -2, 0.5, 10, INF, -INF, NAN, 1e-30)
ONE = {
    **{name: lambda m, x, name=name: getattr(m, name)(x) for name in (
        "neg", "abs", "relu", "exp", "expm1", "log", "log1p", "sqrt", "tanh", "sin", "cos", "sigmoid", "erf", "square",
        "reciprocal", "rsqrt", "sign")},
    **{name: lambda m, x, name=name: getattr(m.nn.functional, name)(x) for name in ("gelu", "silu", "softplus")},
    "gelu tanh": lambda m, x: m.nn.functional.gelu(x, approximate="tanh"),
    "softplus of twice": lambda m, x: m.nn.functional.softplus(x, 2.0, 5.0),
    "softplus of a tenth": lambda m, x: m.nn.functional.softplus(x, 0.1),
    "softplus of minus": lambda m, x: m.nn.functional.softplus(x, -1.0),
    **{f"x ** {p}": lambda m, x, p=p: x**p for p in POWERS},
    **{f"{b} ** x": lambda m, x, b=b: b**x for b in BASES},
    **{f"x / {c}": lambda m, x, c=c: x / c for c in NUMBERS}, **{f"{c} / x": lambda m, x, c=c: c / x for c in NUMBERS},
    **{f"x * {c}": lambda m, x, c=c: x * c for c in NUMBERS}, **{f"{c} - x": lambda m, x, c=c: c - x for c in NUMBERS},
    **{f"x // {c}": lambda m, x, c=c: m.div(x, c, rounding_mode="floor") for c in NUMBERS},
    **{f"x % {c}": lambda m, x, c=c: m.remainder(x, c) for c in NUMBERS},
    **{f"round to {n}": lambda m, x, n=n: x.round(decimals=n) for n in (0, 1, 3, 5, -1, -3)},
    **{f"clamp at {c}": lambda m, x, c=c: m.clamp(x, min=c) for c in (0.31, -0.71, 1e-4)},  # at bounds: test_torch_versions
}
NO_ANSWER = {  # where torch has nan, or 0, for want of an order of operations
    "/ x": "slopes of c / x at x near 0 and ∞", "x %": "the rest of what is larger than the quotient that a float holds",
    "gelu": "float32 infinity", "x ** 0.5": "float16's −∞, whose root is C's", "x ** -0.5": "as above", "x ** 1.5": "as above",
}


@DTYPES
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_number_are_torchs_at_the_ends(name, dtype):
    gives_up = any(part in name for part in NO_ANSWER)
    pardoned = lambda a, b: gives_up and (np.isnan(b) or (dtype == np.float16 and np.isnan(a)))  # noqa: E731
    assert wrong(ONE[name], [ends(dtype)], dtype, pardoned) == []


# Functions of two --------------------------------------------------------------------------------------------------------

TWO = {
    "mul": lambda m, x, y: x * y, "div": lambda m, x, y: x / y, "sub": lambda m, x, y: x - y, "pow": lambda m, x, y: x**y,
    "maximum": lambda m, x, y: m.maximum(x, y), "minimum": lambda m, x, y: m.minimum(x, y),
    "where": lambda m, x, y: m.where(x > y, x, y), "masked": lambda m, x, y: x.masked_fill(y > 0, 0.0),
    "mse_loss": lambda m, x, y: m.nn.functional.mse_loss(x, y, reduction="none"),
    "kl_div": lambda m, x, y: m.nn.functional.kl_div(x, y, reduction="none"),
    "kl_div of logs": lambda m, x, y: m.nn.functional.kl_div(x, y, reduction="none", log_target=True),
}


@DTYPES
@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_numbers_are_torchs_at_the_ends(name, dtype):
    """kl_div's slope in a target of 0, which torch has no value for, is that of the value 0."""
    x, y = [a.ravel() for a in np.meshgrid(ends(dtype), ends(dtype))]
    assert wrong(TWO[name], [x, y], dtype, lambda a, b: "kl_div" in name and np.isnan(b)) == []


# Functions of a row ------------------------------------------------------------------------------------------------------


def rows(dtype):
    f = np.finfo(dtype)
    most, tiny, least = map(float, (f.max, f.tiny, f.smallest_subnormal))
    root = math.sqrt(tiny)
    return {
        "zeros": [0, 0, 0, 0], "both zeros": [-0.0, 0, -0.0, 0], "∞": [INF, 1, 2, 3], "−∞": [-INF, 1, 2, 3],
        "both ∞": [INF, -INF, 1, 2],
        "all −∞": [-INF] * 4, "all ∞": [INF] * 4, "nan": [NAN, 1, 2, 3], "all nan": [NAN] * 4, "nan and ∞": [NAN, INF, -INF, 1],
        "two −∞": [-INF, -INF, 0, 1], "two ∞": [INF, INF, 0, 1], "0 and ∞": [0, INF, 2, 1], "largest": [most, 1, 1, 1],
        "squares beyond": [2 * math.sqrt(most), 1, -3, 2], "tiny": [tiny, -tiny, tiny, 0],
        "denormal": [least, -least, least, least],
        "squares denormal": [root / 2, root / 3, root / 9, 0], "ties": [3, 3, 1, 3], "some 0": [0, 1, 0, 2],
        "one 0": [0, 3, 2, -5],
        "far off": [1e4, 1e4 + 8, 1e4 - 8, 1e4], "scores": [1e4, -1e4, 0, 1e4],
    }


def along(name, *args, **options):
    return lambda m, x: getattr(m, name)(x, *args, **options)


def ones(m, like, *size):
    return m.ones_like(like.detach()).reshape(*size)


def cross_entropy(target, **options):
    return lambda m, x: m.nn.functional.cross_entropy(x.reshape(1, 4), m.tensor([target]), **options)


ROW = {
    **{name: along(name) for name in ("sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std")},
    **{f"{name} of a row": along(name, -1)
       for name in ("amax", "prod", "std", "logsumexp", "softmax", "log_softmax", "cumsum")},
    **{f"norm {p}": lambda m, x, p=p: m.linalg.vector_norm(x, p, -1) for p in (0, 0.5, 1, 1.5, 2, 3, 10, -1, -2, INF, -INF)},
    **{f"var less {c}": lambda m, x, c=c: m.var(x, correction=c) for c in (0, 2, 0.5)},
    **{f"layer_norm {eps}": lambda m, x, eps=eps: m.nn.functional.layer_norm(x, (4,), eps=eps) for eps in (1e-5, 0.0)},
    **{f"rms_norm {eps}": lambda m, x, eps=eps: m.nn.functional.rms_norm(x, (4,), eps=eps) for eps in (1e-5, 0.0)},
    **{f"cross_entropy {t} {how} {e}": cross_entropy(t, reduction=how, label_smoothing=e)
       for t in (0, 3, -100) for how in ("mean", "sum", "none") for e in (0.0, 0.1, 1.0)},
    **{f"nll_loss {t}": lambda m, x, t=t: m.nn.functional.nll_loss(x.reshape(1, 4), m.tensor([t])) for t in (0, 3, -100)},
    "matmul": lambda m, x: x.reshape(2, 2) @ x.reshape(2, 2), "dot": lambda m, x: m.dot(x, x),
    "outer": lambda m, x: m.outer(x, x),
    "addmm without input": lambda m, x: m.addmm(x.reshape(2, 2), ones(m, x, 2, 2), ones(m, x, 2, 2), beta=0),
    "addmm without product": lambda m, x: m.addmm(ones(m, x, 2, 2), x.reshape(2, 2), x.reshape(2, 2), alpha=0),
    "attention": lambda m, x: m.nn.functional.scaled_dot_product_attention(ones(m, x, 4, 1), ones(m, x, 4, 1), x.reshape(4, 1)),
    "attention under a mask": lambda m, x: m.nn.functional.scaled_dot_product_attention(
        ones(m, x, 4, 1), ones(m, x, 4, 1), ones(m, x, 4, 1), attn_mask=x.reshape(1, 4)),
}
KNOWN = {  # docs/semantics.md says which, and why
    "prod": "the slope of a factor that is nan or infinite is the product of the others",
    "var": "slopes of a row with an infinity are nan", "std": "as var",
    "norm inf": "a nan is passed on", "norm -": "slopes of infinities are 0", "norm 0.5": "slope 0 at 0",
    "layer_norm": "rows whose squares overflow are 0", "rms_norm": "as layer_norm", "addmm without": "0 times what is ∞ is 0",
    "matmul": "∞ where BLAS adds in another order",
}


@DTYPES
@pytest.mark.parametrize("name", ROW)
def test_functions_of_a_row_are_torchs_at_the_ends(name, dtype):
    known = any(name.startswith(part) for part in KNOWN)
    pardoned = lambda a, b: known and (not b or not abs(b) < 1e300)  # noqa: E731
    found = {row: wrong(ROW[name], [np.array(a).astype(dtype)], dtype, pardoned) for row, a in rows(dtype).items()}
    assert {row: f for row, f in found.items() if f} == {}


# Cotangents that are infinite, or nearly ----------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(("call", "wanted"), [
    (lambda x: x**0, [0, 0, 0, 0]), (lambda x: x ** tg.zeros_like(x), [0, 0, 0, 0]), (lambda x: tg.max(x), [0, 0, 0, INF]),
    (lambda x: tg.min(x), [INF, 0, 0, 0]), (lambda x: tg.amax(x, 0), [0, 0, 0, INF]), (lambda x: tg.amin(x, 0), [INF, 0, 0, 0]),
    (lambda x: x.relu(), [0, 0, INF, INF]), (lambda x: x.clamp(0.5, 2.0), [0, 0, INF, 0]),
    (lambda x: tg.max(x, 0)[0], [0, 0, 0, INF]),
    (lambda x: tg.where(x > 0, x, 1.0), [0, 0, INF, INF]), (lambda x: tg.maximum(x, tg.zeros_like(x) + 2), [0, 0, 0, INF]),
])
def test_what_takes_no_gradient_takes_none_of_an_infinite_one(call, wanted, dtype):
    """0 · ∞ is nan: of torch's functions amax and amin have it there."""
    x = tg.tensor(np.array([-1, 0, 1, 3], dtype), requires_grad=True)
    y = call(x)
    y.backward(tg.ones_like(y) * INF)
    assert x.grad.tolist() == wanted


@DTYPES
def test_twice_the_largest_cotangent_times_nothing_is_nothing(dtype):
    x = tg.tensor(np.array([0, -0.25, 0.25], dtype), requires_grad=True)
    most = float(np.finfo(dtype).max)
    tg.square(x).backward(tg.ones_like(x) * most)
    assert x.grad.tolist() == [0, -most / 2, most / 2]


# Where float64 decides, eager and recorded --------------------------------------------------------------------------------

SQUARES = {
    "norm": lambda x: tg.norm(x), "norms of rows": lambda x: tg.norm(x, 2, -1),
    "3-norms": lambda x: tg.linalg.vector_norm(x, 3, -1),
    "std": lambda x: tg.std(x, -1), "var": lambda x: tg.var(x, -1), "silu": lambda x: tg.nn.functional.silu(x),
    "addmm": lambda x: tg.addmm(x, x, x, alpha=0),
}


@pytest.mark.parametrize("name", SQUARES)
def test_a_recorded_step_chooses_the_dtype_that_an_eager_one_does(name):
    p = tg.nn.Parameter(np.ones((5, 5), np.float32))

    def step():
        y = SQUARES[name](p)
        y.sum().backward()
        return y.detach()

    compiled = compile(step)
    rng, many = np.random.default_rng(0), np.arange(5) + np.zeros((5, 1))
    for values in (rng.standard_normal((5, 5)), np.zeros((5, 5)), 1e30 * (many + 1), 1e-30 * many, [
                   [1, 2, 3, 4, 5], [0] * 5, [1e30] * 5, [1e-30, 0, 0, 0, 1e-30], [INF, 1, 1, 1, 1]]):
        with tg.no_grad():
            p.copy_(np.array(values, np.float32))
        found = []
        for run in (step, compiled):
            p.grad = None
            found.append([run().numpy().tobytes(), p.grad.numpy().tobytes()])
        assert found[0] == found[1]
    assert compiled.reason is None


@pytest.mark.parametrize("norm", [lambda x: tg.norm(x), lambda x: np.linalg.norm(x), lambda x: tg.std(x, correction=0)])
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-20, 1e20, 1e30])
def test_a_norm_of_float32_is_right_where_squares_are_not(norm, size):
    x = tg.tensor(np.array([3, -3, 3, -3]) * size, dtype=np.float32, requires_grad=True)
    y = norm(x)
    y.backward()
    many = 3 if norm(tg.tensor([3.0, -3.0, 3.0, -3.0])).item() == 3 else 6
    np.testing.assert_allclose(y.item() / size, many, 1e-5)
    np.testing.assert_allclose(x.grad.numpy(), np.array([1, -1, 1, -1]) * many / 12, 1e-5)


def test_one_large_gradient_does_not_stop_adamw_for_ever():
    """g² of float32 is infinite from 1.8e19 on, (1 − β₂) g² is not."""
    found = []
    for m, adamw, parameter in ((tg, tg.optim.AdamW, tg.nn.Parameter), (torch, torch.optim.AdamW, torch.nn.Parameter)):
        p = parameter(m.ones(2))
        optimizer = adamw([p], lr=0.1, weight_decay=0.0, betas=(0.0, 0.5))
        for g in ([2e19, -5e19], [1.0, 1.0], *[[1.0, 1.0]] * 80):
            p.grad = m.tensor(g)
            optimizer.step()
        found.append(p.detach().numpy())
    np.testing.assert_allclose(*found, 1e-4)
    assert (np.abs(found[0]) > 0.2).all()


# What is rounded and drawn -----------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("decimals", [40, 320, 2**40])
def test_more_decimals_than_a_dtype_has_change_nothing(decimals, dtype):
    """torch has nan, for its scale is infinite."""
    x = tg.tensor(ends(dtype)[[10, 20, -10, -1, -2, 0]])
    np.testing.assert_allclose(x.round(decimals=decimals).numpy(), x.numpy(), 1e-15 if dtype == np.float64 else 1e-6)
    assert tg.tensor([1.0, -7e3]).to(dtype).round(decimals=-decimals).tolist() == [0, 0]


def test_decimals_are_counted():
    with pytest.raises(TypeError, match=r"round: decimals: got 0\.5, expected an integer"):
        tg.ones(2).round(decimals=0.5)


@pytest.mark.parametrize(
    "options", [{"mean": NAN}, {"mean": INF}, {"std": INF}, {"std": NAN}, {"std": 0}, {"a": NAN}, {"b": NAN}])
def test_what_has_no_distribution_is_refused(options):
    with pytest.raises(ValueError, match=r"^trunc_normal_: .*: got .*, expected"):
        tg.nn.init.trunc_normal_(tg.ones(2), **options)


@pytest.mark.parametrize(("options", "low", "high"), [
    ({"a": -INF, "b": INF}, -9, 9), ({"a": 1e308, "b": 1e308}, 1e308, 1e308), ({"std": 1e-320, "mean": 5.0}, 2, 2),
    ({"a": 1e200, "b": 1e201}, 1e200, 1e200), ({"a": -1e308, "b": -1e300}, -1e300, -1e300), ({"std": 1e-300}, -1e-298, 1e-298),
])
def test_normal_numbers_between_any_bounds_end(options, low, high):
    x = tg.nn.init.trunc_normal_(tg.zeros(9, dtype=np.float64), **options)
    assert ((x >= low) & (x <= high)).all()


@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", -3.4e38, 3.4e38), ("float32", 0, 1e300), ("float16", -4e4, 4e4),
                                                    ("float16", 0, 7e4), ("float64", -1e308, 1e308)])
def test_a_range_that_the_dtype_cannot_span_is_refused(dtype, low, high):
    """It had given the upper end each time, or nan."""
    with pytest.raises(ValueError, match=r"uniform_: from, to: got .*, .* for float.., expected ones at most .* apart"):
        tg.zeros(2, dtype=dtype).uniform_(low, high)
    with pytest.raises(RuntimeError):
        torch.zeros(2, dtype=getattr(torch, dtype)).uniform_(low, high)
