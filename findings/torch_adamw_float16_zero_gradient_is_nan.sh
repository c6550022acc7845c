#!/usr/bin/env bash
# torch 2.13.0 (CPU): AdamW makes nan of a float16 parameter whose gradient is exactly 0, at its first step and with its defaults:
# eps = 1e-8 is 0 in float16, and 0 / (0 + 0) is nan. fused=True gives the right number. A guess is that fused changes the speed
# alone, and that a zero gradient moves nothing but by the weight decay.
# Seen: default and foreach=True nan, fused=True 0.999.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import math

import torch


def stepped(**options):
    p = torch.ones(1, dtype=torch.float16, requires_grad=True)
    p.grad = torch.zeros(1, dtype=torch.float16)
    torch.optim.AdamW([p], lr=0.1, **options).step()
    return p.item()


found = {"default": stepped(), "foreach": stepped(foreach=True), "fused": stepped(fused=True)}
print(torch.__version__, found)
assert math.isnan(found["default"])
assert math.isnan(found["foreach"])
assert abs(found["fused"] - 0.999) < 1e-3
PY
