"""Add an op: softplus(x) = ln(1 + eˣ), a smooth relu. One declaration makes it callable, documented and tested.

    python examples/03_add_an_op.py        (needs PyTorch: every op names the PyTorch expression that it must equal)

The tests of this project walk over the records in REGISTRY, and read from each how to draw its inputs and what it must
equal. Declare an op in tinygrad_llm/ops and they cover it: there is no test to write, and none to forget.
"""

import numpy as np
import torch
import torch.nn.functional as F

import tinygrad_llm as tg
from reference.equivalence import compare_float32, compare_float64
from tinygrad_llm.ops import REGISTRY, op

print("An op that does not name the PyTorch expression it must equal is refused, so no op can go unchecked:\n")
try:
    @op(x="~B")
    def softplus(x):
        """ln(1 + eˣ)"""
        return np.log(1 + np.exp(x)), lambda g: (g / (1 + np.exp(-x)),)
except TypeError as error:
    print(f"  TypeError: {error}\n")


# By default torch's softplus is not quite softplus: above threshold=20 it returns x. The check below sees that, in
# float64; take the threshold out and run it. So the declaration says which function is meant.
@op(x="~B in (-30, 30)", torch="F.softplus(x, threshold=50)")
def softplus(x):
    """ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|): nothing overflows.   dx = g · σ(x)"""
    small = np.exp(np.where(x < 0, x, -x))  # not np.abs, which has no meaning for the complex step of the tests

    def vjp(g):
        return (g * np.where(x >= 0, 1, small) / (1 + small),)

    return np.maximum(x, 0) + np.log1p(small), vjp


print(f"With it, the op is a record:\n\n  {softplus}\n  must equal {softplus.torch}\n  {softplus.__doc__}\n")


def check(record, rng):
    """What the tests do for every op, in short and for one argument. Nothing in here knows which op it checks."""
    x = rng.uniform(*record.args[0].interval, (5, 7)).astype(np.float32)
    g = rng.standard_normal(x.shape).astype(np.float32)  # a random cotangent: ones would hide many mistakes

    def ours(dtype):
        out, vjp = record(x.astype(dtype))
        return out, vjp(g.astype(dtype))[0]

    def theirs(dtype):
        t = torch.tensor(x.astype(dtype), requires_grad=True)
        out = eval(record.torch, {"torch": torch, "F": F, record.args[0].name: t})
        return out, torch.autograd.grad(out, t, torch.tensor(g.astype(dtype)))[0]

    for name, a, b, a32, b32 in zip(("output", "gradient"), ours("f8"), theirs("f8"), ours("f4"), theirs("f4")):
        for row in compare_float64(a, b, name), compare_float32(a32, b32, b, name):
            print(f"  {'pass' if row.passed else 'FAIL'}  {name:<10}{row.dtype:<9}{row.verdict}, error {row.error:.0e}")


print("Its test, read from the record:\n")
check(softplus, np.random.default_rng(0))

# lift makes a function of tensors out of an op. It broadcasts, because the shape string is ~B.
x = tg.tensor([-2.0, 0.0, 2.0], requires_grad=True)
y = tg.lift(softplus)(x)
y.sum().backward()
print(f"\nUsed on tensors:\n\n  x         {x.numpy()}\n  softplus  {y.numpy()}\n  gradient  {x.grad.numpy()}")

print("\nAnd a slip in the gradient, σ(−x) for σ(x), does not live long:\n")


@op(x="~B in (-30, 30)", torch="F.softplus(x, threshold=50)")
def hasty_softplus(x):
    """ln(1 + eˣ).   dx = g · σ(−x): wrong on purpose"""
    return np.log(1 + np.exp(x)), lambda g: (g / (1 + np.exp(x)),)


check(hasty_softplus, np.random.default_rng(0))

del REGISTRY["softplus"], REGISTRY["hasty_softplus"]  # these two were for show; an op of yours would stay
