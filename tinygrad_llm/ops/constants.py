"""Constants as arrays that are made once and that nobody can write into: a recorder may rely on their values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def constant(make: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """A function of hashable arguments that makes an array: each is made once, read-only, and the newest 64 are kept."""

    @functools.lru_cache(maxsize=64)
    def made(*args: Any) -> np.ndarray:
        array = make(*args)
        array.flags.writeable = False
        return array

    functools.update_wrapper(made, make)
    return made


@constant
def full(n: int, value: float, dtype: Any) -> np.ndarray:
    """n times the same number."""
    return np.full(n, value, dtype)
