#!/usr/bin/env bash
# torch 2.14.1: at x = bound the gradient of clamp is 0 if the bound is a number, and 1/2 if it is a tensor of that number.
# torch 2.13.0 gave x all of it in both. A guess is that a number and a tensor that holds it mean the same.
# If x, min and max are tensors that are all equal, x takes all of it again, though with each bound alone it takes half.
# Seen: 2.14.1: number 0.0, tensor 0.5, all equal 1.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch


def gradient(call):
    x = torch.tensor(1.0, requires_grad=True)
    call(x).backward()
    return x.grad.item()


one = torch.tensor(1.0)
found = {
    "number": gradient(lambda x: torch.clamp(x, 1.0)),
    "tensor": gradient(lambda x: torch.clamp(x, one)),
    "all equal": gradient(lambda x: torch.clamp(x, one, one)),
}
print(torch.__version__, found)
assert found == {"number": 0.0, "tensor": 0.5, "all equal": 1.0}
PY
