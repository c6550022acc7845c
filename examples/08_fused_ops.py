"""Fused ops: what several NumPy calls compute, in fewer passes over memory, and equal to the plain formula.

    python examples/08_fused_ops.py

Each fused op carries its `definition`, the same function in primitive NumPy calls: read that first, then the op.
"""

import time
import tracemalloc

import numpy as np

import tinygrad_llm as tg
from tinygrad_llm.capture import compile
from tinygrad_llm.nn import functional as F
from tinygrad_llm.ops import REGISTRY

rng = np.random.default_rng(0)


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


CASES = {  # op: arguments, options
    "layer_norm": ([floats(4096, 256), floats(256), floats(256)], {"eps": 1e-5}),
    "rms_norm": ([floats(4096, 256), floats(256)], {"eps": 1e-5}),
    "softmax": ([floats(4096, 256)], {}),
    "gelu": ([floats(4096, 256)], {"approximate": "none"}),
    "attention": ([floats(4, 4, 512, 32) for _ in range(3)], {"is_causal": True, "scale": None}),
    "linear_cross_entropy": ([floats(512, 128), floats(20000, 128), rng.integers(0, 20000, 512), None],
                             {"ignore_index": -100, "reduction": "mean"}),
}


def measured(function):
    """(milliseconds, the fastest of five; megabytes that it takes at most, its result included)"""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return 1e3 * min(times), peak / 1e6


print("Forward, the fused op beside its definition, and how far each is from the definition in float64:\n")
print(f"  {'':<22}{'fused':>10}{'':>10}{'':>11}   {'definition':>10}")
print(f"  {'op':<22}{'ms':>10}{'MB':>10}{'error':>11}   {'ms':>10}{'MB':>10}{'error':>11}")
for name, (args, options) in CASES.items():
    op = REGISTRY[name]
    wide = [a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for a in args]
    truth = op.definition(*wide, *options.values())
    row = []
    for function in (lambda: op(*args, **options)[0], lambda: op.definition(*args, *options.values())):  # noqa: B023
        row.append((*measured(function), float(np.max(np.abs(function() - truth) / (1 + np.abs(truth))))))
    (a, b, c), (d, e, f) = row
    print(f"  {name:<22}{a:>10.2f}{b:>10.1f}{c:>11.1e}   {d:>10.2f}{e:>10.1f}{f:>11.1e}")

print("""
A fused op keeps what its gradient needs, so that forward may take more memory: layer_norm keeps x̂, attention P. The loss keeps
one array of N × V numbers; a graph of primitive calls would keep the logits, their exponentials and more.""")

# Large numbers --------------------------------------------------------------------------------------------------------

print("\nSafe at full speed: e^score overflows in float32 from 89 on, yet scores of ±10,000 are exact.\n")
sign = np.array([1, -1, 1, -1], np.float32)
query, key = 1e4 * sign[:, None], sign[:, None]  # each position looks for its own sign
value = np.arange(4, dtype=np.float32)[:, None]
with np.errstate(over="ignore", invalid="ignore"):
    e = np.exp(query @ key.T)
    print("  e / Σ e            ", (e / e.sum(-1, keepdims=True) @ value)[:, 0])
print("  attention          ", REGISTRY["attention"](query, key, value, scale=1.0)[0][:, 0])
loss, _ = REGISTRY["linear_cross_entropy"](query, key, np.array([1, 1, 1, 1]), reduction="none")
print("  linear_cross_entropy", loss)

# What is no op --------------------------------------------------------------------------------------------------------

up, down = (tg.nn.Linear(*sizes, generator=rng) for sizes in ((64, 256), (256, 64)))
print("""
Bias, activation and residual are no ops of their own: the pass row_tiles puts them into one loop, some rows at a time, so that
what a product has written is read from the cache. A feed-forward network, its input added, without gradients:
""")
with tg.no_grad():
    program = compile(lambda x: x + down(F.relu(up(x)))).program(floats(8192, 64))
print(program)
