#!/usr/bin/env bash
# threadpoolctl 3.4.0: with the wheels of NumPy 2 it finds no BLAS at all, so threadpool_limits(1) limits nothing and says nothing:
# the library's file is called libscipy_openblas64_ there. threadpoolctl 3.5.0 finds it.
# A guess is that a limit limits, or that one which finds nothing to limit warns.
# Seen with NumPy 2.3.0: 3.4.0 [], 3.5.0 ["libscipy_openblas"].
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
for version in 3.4.0 3.5.0; do
  "$work/venv/bin/pip" install --quiet numpy==2.3.0 "threadpoolctl==$version"
  "$work/venv/bin/python" - <<'PY'
import numpy as np  # noqa: F401
import threadpoolctl

with threadpoolctl.threadpool_limits(1):
    found = [library["prefix"] for library in threadpoolctl.threadpool_info()]
print(threadpoolctl.__version__, found)
assert found == ([] if threadpoolctl.__version__ == "3.4.0" else ["libscipy_openblas"])
PY
done
