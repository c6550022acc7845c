"""Is a gradient right? Four ways to check one, and how to judge a difference in float32.

    python examples/02_check_a_gradient.py        (needs PyTorch: the fourth way is a comparison with it)

The function: mean cross-entropy of N rows of V logits,  L = −1/N Σ_n ln softmax(z_n)[t_n].
"""

import numpy as np
import torch

import tinygrad_llm as tg
from reference.equivalence import compare_float32
from tinygrad_llm.nn import functional as F
from tinygrad_llm.ops.losses import cross_entropy

rng = np.random.default_rng(0)
N, V = 4, 6
z, target = rng.standard_normal((N, V)), rng.integers(0, V, N)

logits = tg.tensor(z, requires_grad=True)
F.cross_entropy(logits, target).backward()
ours = logits.grad.numpy()

# 1. The formula, by hand:  dL/dz = (softmax(z) − onehot(t)) / N
p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
by_hand = (p - np.eye(V)[target]) / N

# 2. and 3. look at L from outside, one entry of z at a time.
units = np.eye(N * V).reshape(-1, N, V)


def loss(values):
    return cross_entropy(values, target)[0]  # the op itself: a function of plain arrays, real or complex


def finite_difference(h, dtype=np.float64):
    """(L(z + h e) − L(z − h e)) / 2h for each unit vector e."""
    plus, minus = (z + h * units).astype(dtype), (z - h * units).astype(dtype)
    return np.array([(loss(a) - loss(b)) / dtype(2 * h) for a, b in zip(plus, minus)]).reshape(N, V)


def complex_step(h=1e-30):
    """Im L(z + ih e) / h, as L(z + ih) = L(z) + ih L'(z) + O(h²). Nothing is subtracted, so h can be tiny."""
    return np.array([loss(z + 1j * h * e).imag / h for e in units]).reshape(N, V)


# 4. Another program: PyTorch in float64.
theirs = torch.tensor(z, requires_grad=True)
torch.nn.functional.cross_entropy(theirs, torch.tensor(target)).backward()

print("Largest difference between our gradient and\n")
checks = {"the formula by hand": by_hand, "finite differences, h = 1e-5": finite_difference(1e-5),
          "the complex step, h = 1e-30": complex_step(), "PyTorch in float64": theirs.grad.numpy()}
for name, other in checks.items():
    print(f"  {name:<32}{np.abs(ours - other).max():.1e}")

print("\nWhy finite differences are the weak one: their formula is wrong by about h², their subtraction by ε / h.")
print("So the best h is near the cube root of ε, and no h gives more than two thirds of the digits. (In float32, from")
print("h = 1e-08 on, z + h is z, and what is left is the size of the gradient itself.)\n")
print("  step h   error in float64                error in float32")
for k in range(1, 13):
    errors = [np.abs(by_hand - finite_difference(10.0**-k, dtype)).max() for dtype in (np.float64, np.float32)]
    bars = ["▆" * max(0, round(14 + np.log10(e + 1e-14))) for e in errors]
    print(f"  1e-{k:02}    {errors[0]:.0e}  {bars[0]:<25}{errors[1]:.0e}  {bars[1]}")

# In float32 two correct programs differ. Layer norm far from zero, where the mean cancels most of the digits:
x = (1000 + rng.standard_normal((64, 256))).astype(np.float32)
ours32 = F.layer_norm(tg.tensor(x), 256).numpy()
torch32 = torch.nn.functional.layer_norm(torch.tensor(x), (256,)).numpy()
print("\nLayer norm of float32 numbers near 1000, whose own rounding is already 3e-5:\n")
print(f"  ours and PyTorch differ by up to   {np.abs(ours32 - torch32).max():.1e}")
print(f"  np.allclose(ours, torch, 2e-5)     {np.allclose(ours32, torch32, rtol=2e-5, atol=2e-5)}  - but who is right?")
truth = F.layer_norm(tg.tensor(x, dtype=np.float64), 256).numpy()  # of the same numbers: what both should have found
print(f"  ours is wrong by up to             {np.abs(ours32 - truth).max():.1e}")
print(f"  PyTorch is wrong by up to          {np.abs(torch32 - truth).max():.1e}")
print(f"  the verdict of this project:       {compare_float32(ours32, torch32, truth, 'layer norm').verdict}")
