#!/usr/bin/env bash
# numpy 2.4.6: `x ** 2` and `numpy.power(x, 2)` are not the same function, for booleans and for complex numbers.
#
# The operator first looks whether the exponent is a Python number such as 2, 0.5 or -1, and then calls square, sqrt or reciprocal.
# numpy.power does so in loops of its own, and only for some dtypes. So the dtype of a power of booleans is int8 by the operator and
# int64 by the function, and squares and roots of complex numbers differ in their last bits: about 15 % of squares of random complex64,
# and most roots. For float16, float32 and float64 all bits were the same. Whoever records, traces or dispatches `**` as numpy.power (the
# mixin numpy.lib.mixins.NDArrayOperatorsMixin does) gives other results than an array of NumPy's.
#
# Seen:
#   bool: int8 by the operator, int64 by the function
#   complex64 ** 2: some differ, ** 0.5: some differ, ** -1: none, ** 3: none
#   float64 ** 2: none, ** 0.5: none, ** -1: none, ** 3: none
#   mixin: power
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet numpy==2.4.6
"$folder/venv/bin/python" - > "$folder/seen" <<'PY'
import numpy as np

flags = np.array([True, False])
print(f"bool: {(flags ** 2).dtype} by the operator, {np.power(flags, 2).dtype} by the function")
real = np.abs(np.random.default_rng(0).standard_normal(10_000)) + 0.1
for x in ((real * (1 + 2j)).astype(np.complex64), real):
    counts = [(e, np.count_nonzero(x**e != np.power(x, e))) for e in (2, 0.5, -1, 3)]
    print(f"{x.dtype} " + ", ".join(f"** {e}: {'some differ' if n else 'none'}" for e, n in counts))


class Named(np.lib.mixins.NDArrayOperatorsMixin):
    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return ufunc.__name__


print("mixin:", Named() ** 2)
PY
cat "$folder/seen"
diff "$folder/seen" <(printf '%s\n' "bool: int8 by the operator, int64 by the function" \
  "complex64 ** 2: some differ, ** 0.5: some differ, ** -1: none, ** 3: none" \
  "float64 ** 2: none, ** 0.5: none, ** -1: none, ** 3: none" "mixin: power")
