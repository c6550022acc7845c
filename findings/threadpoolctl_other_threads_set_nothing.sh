#!/usr/bin/env bash
# threadpoolctl 3.8.0, with NumPy's OpenBLAS: after one thread has called set_num_threads of a library's controller, the same call in
# another thread changes nothing, and says nothing. In 3.6.0 it changes the number, which is one for the whole process.
# A guess is that a setter sets, or raises.
# Seen: the main thread sets 2, another then 1: 3.8.0 stays at 2, 3.6.0 is at 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
for version in 3.6.0 3.8.0; do
  "$work/venv/bin/pip" install --quiet numpy==2.4.6 "threadpoolctl==$version"
  "$work/venv/bin/python" - <<'PY'
import threading

import numpy as np  # noqa: F401
import threadpoolctl

(library,) = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
library.set_num_threads(2)
other = threading.Thread(target=library.set_num_threads, args=(1,))
other.start()
other.join()
print(threadpoolctl.__version__, "after 2 here and 1 in another thread:", library.get_num_threads())
assert library.get_num_threads() == (1 if threadpoolctl.__version__ == "3.6.0" else 2)
PY
done
