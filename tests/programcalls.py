"""What a random program may do with its members: the drawn calls of every public function, more that are methods and
operators, and all of them that can write into their first argument."""

import numpy as np
from functioncases import CASES

from tinygrad_llm.functions.methods import _INPLACE

# Inputs of these are spread out: they have kinks, or are steep where values meet or vanish.
KINKED = {
    "relu", "abs", "sign", "maximum", "minimum", "clamp", "amax", "amin", "argmax", "argmin", "max", "min", "norm",
    "linalg.vector_norm", "softplus", "div", "std", "var", "layer_norm", "rms_norm", "comparison",
}
POSITIVE = {"log", "sqrt", "rsqrt", "reciprocal", "log1p", "pow"}  # the first input of these is made positive


def function_of(name):
    """The function that a case calls: "elementwise: add alpha" → "add"."""
    return name.split(": ")[-1].split()[0]


def index_of(d, shape):
    """An index of any kind that NumPy and torch read alike."""
    kept = shape[: d.int(0, len(shape))]
    at = d.int(0, len(kept)) if d.one(True, False) else len(kept)  # where an array stands, if anywhere
    parts = []
    for k, n in enumerate(kept):
        start = d.int(-n, n - 1)
        basic = d.one(slice(None), slice(start, None), slice(None, None, 2), *([start] if at == len(kept) else []))
        parts.append(d.ints(n, 2) if k == at else basic)
    return tuple(parts if at < len(kept) else d.one([None, *parts], [*parts, ...], parts))


def getitem(d):
    x = d.any()
    index = index_of(d, x.shape)
    return (lambda m, x: x[tensors(m, index)]), [x]


def tensors(m, index):
    return tuple(m.tensor(p) if isinstance(p, np.ndarray) else p for p in index)


def operators(d):
    x, y = d.pair()
    a = d.one(2, 0.5)
    return d.one(lambda m, x, y: a + x - y * a, lambda m, x, y: (a - x) * y, lambda m, x, y: -x / a + abs(a) * y,
                 lambda m, x, y: x**2 + y, lambda m, x, y: (1 + x * x) ** 0.5 * y, lambda m, x, y: a**x - y,
                 lambda m, x, y: x - 2 / (1 + y * y)), [x, y]


def comparison(d):
    x, y = d.pair()
    how = d.one(lambda x, y: x > y, lambda x, y: (x <= y) ^ (x < 0), lambda x, y: ~(x >= y) | (y == y), lambda x, y: x != y,
                lambda x, y: (x < y) & (y > 0))
    return d.one(lambda m, x, y: m.where(how(x, y), x, y), lambda m, x, y: how(x, y)), [x, y]


def promotion(d):
    """Beside constants of other dtypes, with axes and without: the result has torch's dtype, a gradient that of its leaf."""
    x, name = d.any(), d.one("add", "mul", "where")
    dtype = d.one(np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    constant = d.ints(3, *d.one((), x.shape)).astype(dtype)
    if name == "where":
        return (lambda m, x: m.where(m.tensor(x.detach().numpy() < 0), m.tensor(constant), x)), [x]
    return (lambda m, x: getattr(m, name)(m.tensor(constant), x)), [x]


def method(name, low=0, high=3):
    def case(d):
        return (lambda m, x: getattr(x, name)()), [d.any(low, high=high)]
    return case


def swapped(name, low, high):
    def case(d):
        return (lambda m, x: getattr(x, name)), [d.any(low, high=high)]
    return case


def dropout(d):
    p, training = d.one((0.0, True), (0.5, False))
    return (lambda m, x: m.nn.functional.dropout(x, p, training)), [d.any()]


def view(d):
    return (lambda m, x: x.view(tuple(x.shape))), [d.any()]


def to(d):
    return (lambda m, x: x.to(x.dtype)), [d.any()]


def packed_attention(d):
    x, causal = d.floats(*d.shape(0, 1), d.int(1, 3), 3, d.int(1, 2), d.int(1, 3)), d.one(True, False)
    def call(m, x):
        if hasattr(m.nn.functional, "attention_qkvpacked"):
            return m.nn.functional.attention_qkvpacked(x, is_causal=causal)
        q, k, v = x.transpose(-4, -2).unbind(-3)
        return m.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(-3, -2)
    return call, [x]


MORE = {
    "attention_qkvpacked": packed_attention, "argmin": lambda d: ((lambda m, x: m.argmin(x)), [d.any()]),
    "getitem": getitem, "operators": operators, "comparison": comparison, "promotion": promotion, "clone": method("clone"),
    "detach": method("detach"), "T": swapped("T", 2, 2), "mT": swapped("mT", 2, 3), "dropout": dropout, "view": view, "to": to,
}
CALLS = {**CASES, **{f"more: {name}": case for name, case in MORE.items()}}


def setitem(d):
    x = d.any()
    index = tuple(np.unique(p) if isinstance(p, np.ndarray) else p for p in index_of(d, x.shape))
    shape = x[index].shape
    return (lambda m, x, y: m.setitem(x, index, y)), [x, d.floats(*shape[d.int(0, len(shape)) :])]


def filled(d):
    return d.one(lambda m, x: m.fill(x, 0.5), lambda m, x: m.zero(x)), [d.any()]


def copied(d):
    x = d.any()
    return (lambda m, x, y: m.copy(x, y)), [x, d.floats(*x.shape[d.int(0, x.ndim) :])]


WRITES = {
    **{f"write: {name.split(': ')[1]}": case for name, case in CASES.items()
       if function_of(name) in _INPLACE and not name.startswith("nn")},
    "write: setitem": setitem, "write: fill": filled, "write: copy": copied,
}
