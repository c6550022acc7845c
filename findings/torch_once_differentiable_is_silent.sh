#!/usr/bin/env bash
# torch 2.13.0 (CPU): a backward marked once_differentiable gives a constant, without an error, for a gradient penalty whose
# incoming gradient has no graph (the loss is linear in the function's result). The mark looks at the incoming gradients only,
# not at what was saved. A guess from its name is that every second derivative is refused.
# Seen: d/dx of (x² as a Function).sum() does not require grad, so the penalty's own gradient lacks its term 2 x · 2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch
from torch.autograd.function import once_differentiable


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


x = torch.tensor([3.0], requires_grad=True)
(slope,) = torch.autograd.grad(Square.apply(x).sum(), x, create_graph=True)
loss = (x * 5).sum() + (slope**2).sum()  # d/dx = 5 + 8 x = 29
loss.backward()
print("slope requires grad:", slope.requires_grad, "gradient:", x.grad.item(), "right: 29.0")
assert not slope.requires_grad
assert x.grad.item() == 5.0
PY
