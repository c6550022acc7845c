"""NumPy functions that are recorded as they are, as one call each: sorts, running sums, statistics, joins, …

The shape of their result must follow from the shapes of their arguments. It is found by calling them on zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.capture.ir import CaptureError
from tinygrad_llm.capture.kernels import Hole

if TYPE_CHECKING:
    from tinygrad_llm.capture.record import Recorder

NAMES = """
    argmax argmin argpartition argsort around average convolve correlate count_nonzero cov cross cumprod cumsum diff
    digitize dot einsum inner interp isclose kron median nan_to_num nanargmax nanargmin nanmax nanmean nanmin
    nanstd nansum nanvar outer pad partition percentile ptp quantile repeat roll round searchsorted select sort std take
    take_along_axis tensordot tile trace tril triu var
"""
FUNCTIONS = {getattr(np, name) for name in NAMES.split()} | {
    np.linalg.norm, np.linalg.vector_norm, np.linalg.matrix_norm, np.linalg.multi_dot}
_SIZED = {np.repeat, np.tile, np.pad}
"""Functions whose further arguments decide the size of the result."""


class Other:
    """A function with all of its arguments but the arrays, wherever among them these stand.

    writes    whether it takes `out`
    """

    def __init__(
        self, function: Callable[..., Any], leaves: list[Any], rebuild: Callable[[list[Any]], Any], writes: bool
    ) -> None:
        self.function, self.leaves, self.rebuild, self.writes = function, leaves, rebuild, writes
        self.__name__ = function.__name__

    @classmethod
    def of(cls, function: Callable[..., Any], args: Any, kwargs: Any, writes: bool = False) -> tuple[Other, tuple[Any, ...]]:
        """(the function with the rest of its arguments, the arrays among them)"""
        parts: list[Any] = []
        leaves, rebuild = flatten((args, kwargs))
        return cls(function, [_hole(a, parts) for a in leaves], rebuild, writes), tuple(parts)

    def __call__(self, *parts: Any, out: Any = None) -> Any:
        args, kwargs = self.rebuild([parts[a.number] if isinstance(a, Hole) else a for a in self.leaves])
        if self.writes:
            return self.function(*args, **kwargs, out=out)
        result = self.function(*args, **kwargs)
        if out is not None:
            out[...] = result
        return result


def record_other(recorder: Recorder, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A call of any function, which must give one new array."""
    if kwargs.get("out") is not None:
        raise CaptureError(f"{function.__name__}: got out, expected none while recording")
    other, parts = Other.of(function, args, kwargs)
    if function in _SIZED and any(hasattr(a, "shadow") for a in flatten((args[1:], kwargs))[0]):
        raise CaptureError(f"{function.__name__}: got a traced array that says how large the result is, expected numbers")
    like = other(*[stand_in(p) for p in parts])
    if not isinstance(like, np.ndarray | np.generic):
        raise CaptureError(f"{function.__name__}: got a call that gives {type(like).__name__}, expected one array")
    result = recorder.call(other, "opaque", parts, np.empty_like(like))
    result.number = isinstance(like, np.generic)
    return result


def _hole(a: Any, parts: list[Any]) -> Any:
    if not hasattr(a, "shadow") and not isinstance(a, np.ndarray):
        return a
    parts.append(a)
    return Hole(len(parts) - 1)


def stand_in(part: Any) -> Any:
    """Zeros of its layout; what is no traced array itself. A number is one: NumPy treats arrays without axes otherwise."""
    if not hasattr(part, "shadow"):
        return part
    return np.zeros((), part.dtype)[()] if part.number else np.zeros_like(part.shadow)
