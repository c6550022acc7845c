#!/usr/bin/env bash
# NumPy 2.1.0 and 2.1.1: in every thread but the first, promotion follows NumPy 1's rules, which depend on values: a float32 array
# times np.float64(1) is float32, and np.float32(3) * 2.5 is float64. In the main thread both are as NumPy 2 promises: float64, float32.
# A guess is that one process has one set of rules, and that NumPy 2 has NumPy 2's. 2.0.2 and 2.1.3 do as promised.
# Seen in a thread: 2.1.1 ("float32", "float64"), 2.0.2 and 2.1.3 ("float64", "float32").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
for version in 2.0.2 2.1.1 2.1.3; do
  "$work/venv/bin/pip" install --quiet "numpy==$version"
  "$work/venv/bin/python" - <<'PY'
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def rules():
    return (np.ones(2, np.float32) * np.float64(1)).dtype.name, (np.float32(3) * 2.5).dtype.name


here = rules()
with ThreadPoolExecutor(1) as pool:
    there = pool.submit(rules).result()
print(np.__version__, "main thread", here, "another", there)
assert here == ("float64", "float32")
assert there == (("float32", "float64") if np.__version__ == "2.1.1" else here)
PY
done
