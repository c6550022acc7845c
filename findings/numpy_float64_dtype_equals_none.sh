#!/usr/bin/env bash
# numpy 2.4.6: a dtype of float64 equals None, and no other dtype does.
#
# Comparing a dtype with anything first makes a dtype of the other side, and np.dtype(None) is float64. So `dtype in (None, x.dtype)`,
# written for "none was given, or the one there is already", also lets float64 through where x is float32: a cast that was
# asked for is left out without a word. `dtype is None or dtype == x.dtype` is right. The same holds for `==` and `!=`, and for the
# class numpy.float64 it does not: only an instance of numpy.dtype compares so.
#
# Seen:
#   float64 True True
#   float32 False False
#   int64 False False
#   class False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet numpy==2.4.6
"$folder/venv/bin/python" - > "$folder/seen" <<'PY'
import numpy as np

for name in ("float64", "float32", "int64"):
    dtype = np.dtype(name)
    print(name, dtype == None, dtype in (None, np.dtype("int8")))  # noqa: E711
print("class", np.float64 == None)  # noqa: E711
PY
cat "$folder/seen"
diff "$folder/seen" <(printf '%s\n' "float64 True True" "float32 False False" "int64 False False" "class False")
