#!/usr/bin/env bash
# torch 2.13.0 (CPU): one no_grad() object that is entered inside itself leaves recording switched off for good.
# The object keeps a single mode of before, which the inner block overwrites. A guess from contextlib's reentrant
# context managers, or from two objects, would be that the mode is as before after the outer block.
# Seen: "after: False", where two objects print "after: True".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import torch

block = torch.no_grad()
with block:
    with block:
        pass
after_one = torch.is_grad_enabled()
torch.set_grad_enabled(True)
with torch.no_grad():
    with torch.no_grad():
        pass
after_two = torch.is_grad_enabled()
print("after:", after_one, "with two objects:", after_two)
assert (after_one, after_two) == (False, True)
PY
