"""Drawn calls of every public function (those of nn.functional stand here), run in both libraries and compared."""

import warnings

import numpy as np
import torch
from functiondraws import GROUPS as TENSOR_GROUPS
from functiondraws import Draw, const
from opchecks import judge32, judge64

import tinygrad_llm as tg
from tinygrad_llm.autograd import grad


def nn_unary(name, **options):
    return lambda d: ((lambda m, x: getattr(m.nn.functional, name)(x, **options)), [2 * d.any()])


def softplus(d):
    beta, threshold = d.one(1, 0.5, 3), d.one(20, 1.0)
    return (lambda m, x: m.nn.functional.softplus(x, beta, threshold)), [3 * d.any()]


def softmin(d):
    x = d.any()
    dim = d.dim(x)
    return (lambda m, x: m.nn.functional.softmin(x, dim)), [x]


def normed(name, affine):
    def case(d):
        x = d.floats(*d.shape(0, 2), *[n + 1 for n in d.shape(1, 2)])
        size = x.shape[-d.int(1, min(2, x.ndim)) :]
        eps = d.one({}, {"eps": 1e-3})
        arrays = [x, *[d.floats(*size) for _ in range(affine if d.one(True, False) else 0)]]
        return (lambda m, x, *w: getattr(m.nn.functional, name)(x, size, *w, **eps)), arrays
    return case


def embedding(d):
    w, ids = d.floats(5, d.int(1, 4)), d.ints(5, *d.shape())
    pad = d.one(None, 0, -1, 3)
    return (lambda m, w: m.nn.functional.embedding(const(m, ids), w, padding_idx=pad)), [w]


def targets(d, probabilities=False):
    n, c, extra = d.int(1, 4), d.int(2, 5), d.shape(0, 2)
    shape = d.one((c,), (n, c, *extra))
    target = d.ints(c, *(shape[:0] if len(shape) == 1 else (n, *extra)))
    if target.size > 1:
        target.flat[0] = -100
    options = {"reduction": d.one("mean", "sum", "none")}
    weight = d.floats(c, positive=True) if d.one(True, False) else None
    return d.floats(*shape), target, weight, options


def nll_loss(d):
    x, target, weight, options = targets(d)
    def call(m, x):
        w = None if weight is None else const(m, weight, x)
        return m.nn.functional.nll_loss(m.log_softmax(x, 0 if x.ndim == 1 else 1), const(m, target), w, **options)
    return call, [x]


def cross_entropy(d):
    x, target, weight, options = targets(d)
    smoothing = d.one(0.0, 0.1)
    def call(m, x):
        w = None if weight is None else const(m, weight, x)
        return m.nn.functional.cross_entropy(x, const(m, target), w, label_smoothing=smoothing, **options)
    return call, [x]


def cross_entropy_soft(d):
    x, _, weight, options = targets(d)
    smoothing, y = d.one(0.0, 0.1), d.floats(*x.shape)
    def call(m, x, y):
        w = None if weight is None else const(m, weight, x)
        y = m.softmax(y, 0 if x.ndim == 1 else 1)
        return m.nn.functional.cross_entropy(x, y, w, label_smoothing=smoothing, **options)
    return call, [x, y]


def linear_cross_entropy(d):
    n, c, k, smoothing, weighted = d.int(1, 4), d.int(2, 5), d.int(1, 4), d.one(0.0, 0.0, 0.1), d.one(False, False, True)
    target, weight, options = d.ints(c, n), d.floats(c, positive=True), {"reduction": d.one("mean", "sum", "none")}
    arrays = [d.floats(n, k), d.floats(c, k), d.floats(c)][: d.one(2, 3)]
    def call(m, x, w, *bias):
        rest = {"linear_bias": bias[0] if bias else None, "weight": const(m, weight, x) if weighted else None}
        return m.nn.functional.linear_cross_entropy(x, w, const(m, target), label_smoothing=smoothing, **rest, **options)
    return call, arrays


def mse_loss(d):
    x = d.any()
    y, w, how = d.floats(*x.shape), abs(d.floats(*x.shape)) + 0.5, d.one("mean", "sum", "none")
    weighted = d.one(True, False)
    return (lambda m, x, y: m.nn.functional.mse_loss(x, y, reduction=how, weight=const(m, w, x) if weighted else None)), [x, y]


def kl_div(d):
    x = d.any(1)
    y, how, logs = d.floats(*x.shape), d.one("mean", "sum", "none", "batchmean"), d.one(True, False)
    def call(m, x, y):
        y = m.log_softmax(y, -1) if logs else m.softmax(y, -1)
        return m.nn.functional.kl_div(m.log_softmax(x, -1), y, reduction=how, log_target=logs)
    return call, [x, y]


def attention(d):
    groups, heads, t, s, e = d.one(1, 2, 3), d.int(1, 2), d.int(1, 4), d.int(1, 4), d.int(1, 4)
    lead, kind = d.shape(1, 1), d.one("none", "causal", "bool", "float")
    hidden, added = d.floats(t, s) > -0.5, d.floats(t, s)
    q, k, v = d.floats(*lead, heads * groups, t, 4), d.floats(*lead, heads, s, 4), d.floats(*lead, heads, s, e)
    def call(m, q, k, v):
        mask = {"bool": lambda: const(m, hidden), "float": lambda: const(m, added, q)}.get(kind, lambda: None)()
        return m.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal", enable_gqa=groups > 1)
    return call, [q, k, v]


def one_hot(d):
    i, n = d.ints(4, *d.shape(1)), d.one(-1, 6)
    return (lambda m: m.nn.functional.one_hot(const(m, i), n)), []


def linear(d):
    k, j = d.int(1, 4), d.int(1, 4)
    return (lambda m, *a: m.nn.functional.linear(*a)), [d.floats(*d.shape(0, 2), k), d.floats(j, k), d.floats(j)]


NN = {
    "relu": nn_unary("relu"), "gelu": nn_unary("gelu"), "gelu tanh": nn_unary("gelu", approximate="tanh"),
    "silu": nn_unary("silu"), "softplus": softplus, "softmin": softmin, "linear": linear,
    "layer_norm": normed("layer_norm", 2), "rms_norm": normed("rms_norm", 1), "embedding": embedding,
    "nll_loss": nll_loss, "cross_entropy": cross_entropy, "cross_entropy soft": cross_entropy_soft,
    "linear_cross_entropy": linear_cross_entropy, "mse_loss": mse_loss,
    "kl_div": kl_div, "scaled_dot_product_attention": attention, "one_hot": one_hot,
}

GROUPS = {**TENSOR_GROUPS, "nn.functional": NN}
CASES = {f"{group}: {name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


def results(m, call, arrays, dtype, seed=0):
    """Outputs and gradients, under random cotangents, as arrays; None for a gradient that is not there."""
    if m is torch:
        inputs, gradients = [torch.tensor(a.astype(dtype), requires_grad=True) for a in arrays], torch.autograd.grad
    else:
        inputs, gradients = [tg.tensor(a.astype(dtype), requires_grad=True) for a in arrays], grad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch
        out = call(m, *inputs)
    outs = list(out) if isinstance(out, tuple) else [out]
    rng = np.random.default_rng(seed)
    cotangents = [rng.standard_normal(tuple(o.shape)).astype(np.float32).astype(dtype) for o in outs]
    pairs = [(o, torch.tensor(c) if m is torch else c) for o, c in zip(outs, cotangents) if o.requires_grad]
    outputs, cotangents = [o for o, _ in pairs], [c for _, c in pairs]
    found = gradients(outputs, inputs, cotangents, allow_unused=True) if pairs else [None] * len(inputs)
    return [None if a is None else a.detach().numpy() for a in (*outs, *found)]


def compared(case, seed):
    """(ours, torch's) in float64, then (ours, torch's, truth) in float32, of each output and gradient."""
    call, arrays = case(Draw(seed))
    ours, theirs = (results(m, call, arrays, np.float64) for m in (tg, torch))
    ours32, theirs32 = (results(m, call, arrays, np.float32) for m in (tg, torch))
    return list(zip(ours, theirs, ours32, theirs32, strict=True))


def zeros_for_none(a, b):
    """A gradient that one of the two does not give is zero."""
    if a is None and b is not None:
        return np.zeros_like(b), b
    return a, np.zeros_like(a) if b is None and a is not None else b


def mistakes(case, seed):
    """A line for each thing that is not torch's."""
    fails = []
    for i, (a, b, c, d) in enumerate(compared(case, seed)):
        a, b = zeros_for_none(a, b)
        c, d = zeros_for_none(c, d)
        if a is not None:
            fails += judge64(f"result {i}", a, b) + judge32(f"result {i}", c, d, b)
    return fails
