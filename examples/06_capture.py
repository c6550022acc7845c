"""Capture: a function runs once, and becomes a list of NumPy calls that can be read, shortened and run again.

    python examples/06_capture.py

Whoever knows CUDA graphs knows this: record once what a step does, then repeat it without asking Python again what to do.
"""

import time

import numpy as np

import tinygrad_llm as tg
from tinygrad_llm.capture import compile, passes

rng = np.random.default_rng(0)
layer = tg.nn.Linear(4, 3, generator=rng)


def step(x, y):
    """The mean squared error of a linear layer; its gradients are left in .grad."""
    error = layer(x) - y
    loss = (error * error).mean()
    loss.backward()
    return loss


x, y = (rng.standard_normal((8, n)).astype(np.float32) for n in (4, 3))

print("What the function does, recorded on arrays without values: a line for each NumPy call, with the bytes that it reads and")
print("writes, and the op that it comes from (ᵀ: its gradient).\n")
print(compile(step, passes=()).program(x, y))

replay = compile(step)
print("\nThe same after every pass of tinygrad_llm.capture.passes; @: the place in memory.\n")
print(replay.program(x, y))

print("\nBoth in numbers:\n")
before, after = (compile(step, passes=p).program(x, y).stats() for p in ((), passes.DEFAULT))
for name in ("calls", "flops", "bytes_moved", "buffers", "buffer_bytes", "arena_bytes"):
    print(f"  {name:<14}{before[name] or '-':>8}{after[name] or '-':>8}")


def gradients(function, *batch):
    layer.zero_grad()
    loss = function(*batch)
    return [loss.numpy(), *[p.grad.numpy() for p in layer.parameters()]]


batches = [[rng.standard_normal((8, n)).astype(np.float32) for n in (4, 3)] for _ in range(3)]
equal = all(np.array_equal(a, b) for batch in batches for a, b in zip(gradients(step, *batch), gradients(replay, *batch)))
print(f"\nLoss and gradients on three other batches, bit for bit as without capture: {equal}")


def microseconds(function):
    times = []
    for _ in range(300):
        start = time.perf_counter()
        function(x, y)
        times.append(time.perf_counter() - start)
        layer.zero_grad()
    return 1e6 * np.median(times)


print(f"A step takes {microseconds(step):.0f} µs without capture and {microseconds(replay):.0f} µs with it.")
