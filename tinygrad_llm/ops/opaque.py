"""@opaque: a function that a recorder of NumPy calls takes as one call, without looking into it.

Ops are plain NumPy, so that what they do can be recorded call by call (tinygrad_llm.capture). What cannot be: code that
looks at values (which index is out of range? which rows repeat?). Such a function says the shape and dtype of its result
beforehand, and can write it into an array that is there already:

    @opaque(lambda x, ids, rows: ((rows, x.shape[-1]), x.dtype))
    def add_rows(x, ids, rows, out=None): ...

The same idea as NumPy's `__array_function__`: an argument whose type has `__record_call__` takes the call over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.ops.errors import ArgumentError

Like = Callable[..., tuple[tuple[int, ...], Any]]


def opaque(like: Like | None, apart: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """like(*args, **options) is (shape, dtype) of the result; None for a function that only checks, and returns nothing.

    The arrays that it reads must be positional arguments; a result goes into its keyword argument `out`, where given.
    apart: the result has the first argument's shape, each of its matrices depends on the one in that place alone, and
    `out` may be that argument.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            for arg in args:
                if hasattr(arg, "__record_call__"):
                    return arg.__record_call__(function, like, args, options, apart)
            return function(*args, **options)

        return call

    return wrap


def densely(x: Any, dtype: Any = None) -> Any:
    """A copy that keeps the order of x's axes in memory; an axis that x repeats lies where the copy is nearest to row-major."""
    if 0 in x.strides:  # an iterator's order, which a copy is not given
        x = np.logical_or(x, x) if x.dtype == np.bool_ else np.positive(x)
        return x if dtype is None else x.astype(dtype)
    return x.copy("K") if dtype is None else x.astype(dtype)


def any_of(condition: Any) -> bool:
    """Whether a condition holds anywhere; True where values are not known yet, because calls are recorded. For leaving out what
    would change nothing."""
    return hasattr(condition, "__record_call__") or bool(condition.any())


def as_values(x: Any) -> Any:
    """x as an ndarray, or as it is where its calls are recorded; of a tensor, its array.

    Errors: ArgumentError for ragged lists.
    """
    if hasattr(x, "__record_call__"):
        return x
    if hasattr(x, "__values__"):
        return x.__values__()
    try:
        return np.asarray(x)
    except ValueError:
        raise ArgumentError(f"value: got {x!r:.80}, expected numbers in a regular nesting") from None
