"""Ufuncs of NumPy 2.4 that go wrong where their result has gaps: it is made in one piece, and copied."""

from __future__ import annotations

from typing import Any

import numpy as np

DENSE = {np.isnan, np.isinf, np.isfinite, np.signbit, np.negative}
"""With AVX-512 isfinite and its like write 4 of each 16 elements; of every fourth float (eighth double) negative reads the
first ones and their neighbours."""


def needs_copy(function: Any, out: Any) -> bool:
    """Whether the function may not write into `out` itself."""
    return function in DENSE and isinstance(out, np.ndarray) and not (out.flags.c_contiguous or out.flags.f_contiguous)


def call(function: Any, *args: Any, out: Any, **options: Any) -> None:
    """function(..., out=out)"""
    if needs_copy(function, out):
        copied(function, *args, out=out, **options)
    else:
        function(*args, out=out, **options)


def copied(function: Any, *args: Any, out: Any, **options: Any) -> None:
    """out = function(...), made elsewhere."""
    out[...] = function(*args, **options)
