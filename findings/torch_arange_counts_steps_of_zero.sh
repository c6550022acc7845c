#!/usr/bin/env bash
# torch 2.14.1: arange(-0.5, 3, dtype=torch.int64) is [0, 1, 2, 3]: 3 is in it, though an end never is. How many there are is
# counted with the start -0.5, and then the start is cut to 0. In the same way arange(0, 3, 0.5, dtype=torch.int64) is six zeros.
# torch 2.13.0 gave [0, 1, 2], and raised "step must be nonzero" (for int64 alone: int32 gave six zeros).
# NumPy 2.4.6 gives four zeros and six zeros.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import numpy as np
import torch

steps = torch.arange(0, 3, 0.5, dtype=torch.int64).tolist()
start = torch.arange(-0.5, 3, dtype=torch.int64).tolist()
print("torch", torch.__version__, start, steps)
assert start == [0, 1, 2, 3]
assert steps == [0] * 6
theirs = [np.arange(*a, dtype=np.int64).tolist() for a in ((-0.5, 3), (0, 3, 0.5))]
print("NumPy", np.__version__, *theirs)
assert theirs == [[0] * 4, [0] * 6]
PY
