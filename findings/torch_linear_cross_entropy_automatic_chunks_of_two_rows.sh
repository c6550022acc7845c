#!/usr/bin/env bash
# torch 2.13.0 (CPU): linear_cross_entropy with LinearCrossEntropyOptions() and nothing chosen goes through 1,024 rows two at a time,
# where there are 100,277 classes of 256 numbers, and takes several times as long as linear and cross_entropy do. A guess is that
# the automatic choice is no slower than no choice. With batch_chunk_size=256 it is about as fast as they are.
# Seen: on two cores 4 to 8 times as long.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import time

import torch
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy

torch.manual_seed(0)
x = torch.randn(1024, 256, requires_grad=True)
w = (torch.randn(100_277, 256) / 16).requires_grad_()
t = torch.randint(100_277, (1024,))
ways = {
    "plain": lambda: cross_entropy(linear(x, w), t),
    "automatic": lambda: linear_cross_entropy(x, w, t, options=torch.nn.LinearCrossEntropyOptions()),
    "256 rows": lambda: linear_cross_entropy(x, w, t, options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)),
}
best = dict.fromkeys(ways, float("inf"))
losses = {}
for _ in range(3):
    for name, way in ways.items():
        x.grad = w.grad = None
        began = time.perf_counter()
        loss = way()
        loss.backward()
        best[name] = min(best[name], time.perf_counter() - began)
        losses[name] = loss.item()
ratios = {name: round(seconds / best["plain"], 2) for name, seconds in best.items()}
print(torch.__version__, "time over plain", ratios, losses)
assert max(losses.values()) - min(losses.values()) < 1e-3
assert ratios["automatic"] > 2 * ratios["256 rows"]
assert ratios["automatic"] > 2
PY
