#!/usr/bin/env bash
# torch 2.13.0 (CPU): the gradient of a float16 embedding row, or of a float16 element, that 5,000 places use is 2048, where each
# place adds 1: in float16 2048 + 1 is 2048. A guess from sum() and expand(), whose gradients are 5000, is that it is added in float32.
# Seen: embedding 2048, index 2048, expand 5000.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch


def gradient(shape, use):
    w = torch.zeros(shape, dtype=torch.float16, requires_grad=True)
    use(w).sum().backward()
    return w.grad.flatten()[0].item()


ids = torch.zeros(5000, dtype=torch.long)
found = {
    "embedding": gradient((3, 1), lambda w: torch.nn.functional.embedding(ids, w)),
    "index": gradient((3,), lambda w: w[ids]),
    "expand": gradient((1,), lambda w: w.expand(5000)),
}
print(torch.__version__, found)
assert found == {"embedding": 2048, "index": 2048, "expand": 5000}
PY
