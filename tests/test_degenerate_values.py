"""Draws that random tests do not make, pinned against torch with their gradients in both dtypes: axes of one element, one
position, one class, nothing but ignored targets, scores of ±1e4, denormals; NaN and infinities through every op."""

import warnings
from dataclasses import replace

import functioncases
import numpy as np
import pytest

from reference.opdraw import draw_calls, is_float, run_ours, run_torch
from tinygrad_llm.ops import REGISTRY
from tinygrad_llm.policy import compare_float32, compare_float64

pytestmark = pytest.mark.usefixtures("one_torch_thread")

INF, NAN = np.inf, np.nan
ONE = np.array([[0.5], [-3.0], [0.0]])  # rows of one element
SCORES = np.array([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]])
TINY = {  # denormal in float32 alone, and in float64
    "float32": np.array([2.0**-149, -(2.0**-140), 0.0, 2.0**-127, 1.0]),
    "float64": np.array([2.0**-1074, -(2.0**-1060), 0.0, 2.0**-1023, 1.0]),
}


def nn(name, *args, **options):
    return lambda m, *x: getattr(m.nn.functional, name)(*x, *args, **options)


def attention(t, s, d, e, **options):
    rng = np.random.default_rng(t + 10 * s)
    shapes = [(2, t, d), (2, s, d), (2, s, e)]
    return nn("scaled_dot_product_attention", **options), *[rng.standard_normal(shape) for shape in shapes]


def cross_entropy(target, logits, weight=None, **options):
    def call(m, x):
        w = None if weight is None else m.tensor(weight, dtype=x.dtype)
        return m.nn.functional.cross_entropy(x, m.tensor(np.array(target)), w, **options)
    return call, logits


HOW = ("mean", "sum", "none")
IGNORED = [-100, -100, -100]
CALLS = {
    "layer_norm of one": (lambda m, x, w, b: m.nn.functional.layer_norm(x, (1,), w, b), ONE, [2.0], [0.5]),
    "layer_norm of one without affine": (nn("layer_norm", (1,)), ONE),
    "rms_norm of one": (lambda m, x, w: m.nn.functional.rms_norm(x, (1,), w), ONE, [2.0]),
    "softmax of one": (lambda m, x: m.softmax(x, 1), ONE), "log_softmax of one": (lambda m, x: m.log_softmax(x, 1), ONE),
    "logsumexp of one": (lambda m, x: m.logsumexp(x, 1), ONE), "mean of one": (lambda m, x: m.mean(x, 1), ONE),
    "var of one, correction 0": (lambda m, x: m.var(x, dim=1, correction=0), ONE),
    "amax of one": (lambda m, x: m.amax(x, 1), ONE),
    "prod of one": (lambda m, x: m.prod(x, 1), ONE), "cumsum of one": (lambda m, x: m.cumsum(x, 1), ONE),
    "norm of one": (lambda m, x: m.norm(x, 2, 1), ONE),
    **{f"attention T={t} S={s} D={d} E={e} {'causal' if causal else ''}".strip(): attention(t, s, d, e, is_causal=causal)
       for t, s, d, e in ((1, 1, 4, 4), (1, 3, 4, 2), (3, 1, 4, 4), (3, 3, 1, 1), (2, 4, 3, 3), (4, 2, 3, 3))
       for causal in (False, True)},
    "attention with scores of 1e4": (nn("scaled_dot_product_attention"), *[100 * a for a in attention(3, 3, 4, 4)[1:]]),
    "causal attention with scores of 1e4": (nn("scaled_dot_product_attention", is_causal=True),
                                            *[100 * a for a in attention(3, 3, 4, 4)[1:]]),
    **{f"attention, no position seen{', causal' if causal else ''}": (
        nn("scaled_dot_product_attention", is_causal=causal), np.ones((2, 3)),
        [[-INF] * 3, [-INF if not causal else 1.0, 0.5, 2.0]], [[1.0, 2.0], [3.0, -1.0]]) for causal in (False, True)},
    **{f"one class, {how}, smoothing {e}": cross_entropy([0, 0, -100], ONE, reduction=how, label_smoothing=e)
       for how in HOW for e in (0.0, 0.1)},
    **{f"all ignored, {how}, smoothing {e}": cross_entropy(IGNORED, SCORES / 1e4, reduction=how, label_smoothing=e)
       for how in HOW for e in (0.0, 0.1)},
    **{f"all ignored, weighted, {how}": cross_entropy(IGNORED, SCORES / 1e4, [1.0, 2.0, 0.5], reduction=how) for how in HOW},
    **{f"all of weight 0, smoothing {e}": cross_entropy([1, 1, 1], SCORES / 1e4, [1.0, 0.0, 0.5], label_smoothing=e)
       for e in (0.0, 0.1)},
    **{f"cross-entropy of scores ±1e4, {how}": cross_entropy([1, 0, 2], SCORES, reduction=how) for how in HOW},
    "cross-entropy of scores ±1e4, smoothed": cross_entropy([1, 0, 2], SCORES, label_smoothing=0.1),
    "cross-entropy of −∞ beside the target": cross_entropy([0, 1], [[1.0, -INF, 2.0], [-INF, 0.0, -INF]]),
    "softmax of scores ±1e4": (lambda m, x: m.softmax(x, -1), SCORES),
    "log_softmax of scores ±1e4": (lambda m, x: m.log_softmax(x, -1), SCORES),
    "logsumexp of scores ±1e4": (lambda m, x: m.logsumexp(x, -1), SCORES),
    "layer_norm of ±1e4": (nn("layer_norm", (3,)), SCORES), "rms_norm of ±1e4": (nn("rms_norm", (3,)), SCORES),
    "gelu of ±1e4": (nn("gelu"), SCORES), "gelu tanh of ±1e4": (nn("gelu", approximate="tanh"), SCORES),
    "amax of nan": (lambda m, x: m.amax(x, 1), [[1.0, NAN, 2.0], [3.0, 4.0, 4.0]]),
    "max of all with nan": (lambda m, x: m.max(x), [[1.0, NAN, 2.0], [3.0, INF, 4.0]]),
    "min of all with several nan": (lambda m, x: m.min(x), [[1.0, NAN, 2.0], [NAN, 4.0, 4.0]]),
    "max of all with ties": (lambda m, x: m.max(x), [[1.0, 4.0, 2.0], [3.0, 4.0, 4.0]]),
    "abs of nan": (lambda m, x: m.abs(x), [NAN, -NAN, INF, -INF, -0.0]),
}
OF_TINY = {
    **{name: (lambda m, x, name=name: getattr(m, name)(x)) for name in (
        "neg", "exp", "expm1", "square", "abs", "sin", "cos", "tanh", "sigmoid", "erf", "relu", "sqrt", "log1p", "reciprocal",
        "sum", "mean", "amax", "amin", "cumsum", "prod", "sign")},
    **{name: nn(name) for name in ("gelu", "silu", "softplus")}, "gelu tanh": nn("gelu", approximate="tanh"),
    "cumsum": lambda m, x: m.cumsum(x, 0), "softmax": lambda m, x: m.softmax(x, 0), "logsumexp": lambda m, x: m.logsumexp(x, 0),
    "log of |x|": lambda m, x: m.log(m.abs(x)), "layer_norm": nn("layer_norm", (5,)), "rms_norm": nn("rms_norm", (5,)),
    "rms_norm of the tiny": lambda m, x: m.nn.functional.rms_norm(x[:4], (4,)), "x / x": lambda m, x: x / (x + 1),
    "x · x": lambda m, x: x * (x + 1), "maximum": lambda m, x: m.maximum(x, x * 0),
    "where": lambda m, x: m.where(x > 0, x, 0.0),
    "pow": lambda m, x: m.abs(x) ** 0.5, "matmul": lambda m, x: x @ (x + 1),
}
CALLS |= {f"{name}, denormals of {dtype}": (call, x) for name, call in OF_TINY.items() for dtype, x in TINY.items()}


@pytest.mark.parametrize("name", CALLS)
def test_degenerate_calls_are_torchs(name):
    call, *arrays = CALLS[name]
    with np.errstate(all="ignore"):
        assert functioncases.mistakes(lambda _: (call, [np.array(a, np.float64) for a in arrays]), 0) == []


# NaN and infinities go where torch's do -------------------------------------------------------------------------------------

POISON = {"nan": NAN, "inf": INF, "-inf": -INF}
DIFFERENT = {  # (op, argument) → where it differs
    "layer_norm weight": "dx of a row with an infinite weight is ±∞ in places where torch, which adds b x + c with infinite "
                         "b and c, has nan",
}


def poisoned():
    for name, op in REGISTRY.items():
        for i, arg in enumerate(op.args):
            known = DIFFERENT.get(f"{name} {arg.name}")
            marks = [pytest.mark.xfail(reason=known, strict=False)] if known else []
            if arg.kind == "float":
                yield pytest.param(op, i, id=f"{name}-{arg.name}", marks=marks)


@pytest.mark.parametrize("value", POISON.values(), ids=POISON)
@pytest.mark.parametrize(("op", "i"), list(poisoned()))
def test_what_is_not_finite_spreads_as_in_torch(op, i, value):
    """One entry of one argument is NaN or infinite, for each of some drawn calls."""
    tried, fails = 0, []
    for call in draw_calls(op, seed=0, count=2):
        if call.args[i] is not None and call.args[i].size and is_float(call.args[i]):
            tried += 1
            fails += differences(with_entry(call, i, value))
    assert fails == []
    assert tried


def with_entry(call, i, value):
    changed = np.array(call.args[i])
    changed.flat[1 % changed.size] = value
    return replace(call, args=tuple(changed if k == i else a for k, a in enumerate(call.args)), cache={})


def differences(call):
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [run(call, dtype) for dtype in (np.float64, np.float32) for run in (run_ours, run_torch)]
    fails = []
    for ours, truth, narrow, theirs in zip(*results, strict=True):
        if ours is None or truth.dtype != np.float64 or theirs.dtype != np.float32:
            continue
        found = [compare_float64(ours, truth, "float64"), compare_float32(narrow, theirs, truth, "float32")]
        fails += [f"{call}: {row}" for row in found if not row.passed]
    return fails
