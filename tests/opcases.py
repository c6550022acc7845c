"""From an op's record to calls of it: drawn shapes, values and options; the same call on our op and on torch.

Values lie on a grid of one byte each, so that Hypothesis draws them quickly and shrinks them to zero, plus an offset
that is different for every entry of every argument: no entry is at a kink and no two are tied, by construction.
All values are float32 numbers, so that the float64 call is the truth of the float32 call.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from tinygrad_llm.ops import REGISTRY, Arg, Dim, Op

OPS = [REGISTRY[name] for name in sorted(REGISTRY)]
GOLDEN = (5**0.5 - 1) / 2


class Drawn:
    """Choices made by Hypothesis."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def bytes(self, n: int) -> bytes:
        return self.draw(st.binary(min_size=n, max_size=n))


class Seeded:
    """Choices made by a seeded generator: the same case every time."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def bytes(self, n: int) -> bytes:
        return self.rng.bytes(n)


@dataclass(frozen=True)
class Sizes:
    """What shapes to draw: sizes of the axes that letters name, and number and sizes of leading axes."""

    low: int = 1
    high: int = 4
    lead: tuple[int, int] = (0, 2)
    lead_low: int = 1
    lead_high: int = 3
    cut: bool = True
    none: bool = True


ANY = Sizes()


@dataclass(frozen=True)
class Case:
    """One call of an op: float64 arguments, options, and a cotangent of the output.

    wrt lists the arguments that have a gradient; directions has a vector for each argument, for derivatives along it.
    """

    op: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    cotangent: np.ndarray
    wrt: tuple[int, ...]
    directions: tuple[Any, ...]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)  # what torch made of it: the same for every mutant

    def inputs(self, dtype: Any = np.float64) -> list[Any]:
        """The arguments, floating ones in dtype."""
        return [np.array(a, dtype) if is_float(a) else a for a in self.args]

    def __repr__(self) -> str:
        shapes = ", ".join("None" if a is None else f"{a.dtype}{list(a.shape)}" for a in self.args)
        return f"{self.op.name}({shapes}, {self.options})"


def is_float(a: Any) -> bool:
    return a is not None and a.dtype.kind in "fc"


def make_case(op: Op, source: Any, sizes: Sizes = ANY, options: dict[str, Any] | None = None) -> Case:
    """Draw a call of op."""
    options = draw_options(op, source) if options is None else options
    bound: dict[str, Any] = {"indexed": {arg.below for arg in op.args}}
    shapes = [_draw_shape(arg, source, sizes, bound) for arg in op.args]
    args = tuple(_draw_values(op, i, shapes[i], shapes, source, options) for i in range(len(shapes)))
    directions = tuple(_floats(source, a.shape, i, len(args)) if is_float(a) else None for i, a in enumerate(args))
    out, vjp = op(*args, **options)
    cotangent = _floats(source, out.shape, len(args), len(args) + 1)
    wrt = tuple(i for i, d in enumerate(vjp(cotangent.astype(out.dtype))[: len(args)]) if d is not None)
    return Case(op, args, options, cotangent, wrt, directions)


def cases(op: Op, sizes: Sizes = ANY) -> st.SearchStrategy[Case]:
    """A Hypothesis strategy of calls of op."""
    return st.composite(lambda draw: make_case(op, Drawn(draw), sizes))()


def draw_options(op: Op, source: Any) -> dict[str, Any]:
    return {name: values[source.integer(0, len(values) - 1)] for name, values in op.options.items()}


def _draw_shape(arg: Arg, source: Any, sizes: Sizes, bound: dict[str, Any]) -> tuple[int, ...] | None:
    if arg.optional and sizes.none and source.integer(0, 2) == 0:
        return None
    if arg.accepts:  # options are drawn that refer to these axes
        sizes = replace(sizes, low=max(1, sizes.low))
    shape: tuple[int, ...] = ()
    for dim in arg.dims:
        shape += _draw_lead(dim, source, sizes, bound) if dim.group else (_draw_axis(dim, source, sizes, bound),)
    return shape


def _draw_axis(dim: Dim, source: Any, sizes: Sizes, bound: dict[str, Any]) -> int:
    if dim.name.isdigit():
        return int(dim.name)
    if dim.name not in bound:
        least = max(sizes.low, dim.least, dim.name in bound["indexed"])
        bound[dim.name] = source.integer(least, max(sizes.high, least))
    return bound[dim.name]


def _draw_lead(dim: Dim, source: Any, sizes: Sizes, bound: dict[str, Any]) -> tuple[int, ...]:
    """Leading axes: of `*B` the same for every argument, of `~B` some cut off and some of size 1."""
    if dim.name not in bound:
        n = source.integer(*sizes.lead)
        bound[dim.name] = tuple(source.integer(sizes.lead_low, sizes.lead_high) for _ in range(n))
    full = bound[dim.name]
    if dim.group == "*" or not sizes.cut:
        return full
    kept = full[source.integer(0, len(full)) :]
    return tuple(1 if source.integer(0, 3) == 0 else n for n in kept)


def _draw_values(op: Op, i: int, shape: Any, shapes: list[Any], source: Any, options: dict[str, Any]) -> Any:
    arg = op.args[i]
    if shape is None:
        return None
    if arg.kind == "bool":
        return np.asarray(_grid(source, shape) % 2, bool)
    if arg.kind == "int":
        return draw_index(op, arg, shape, shapes, source, options)
    return _floats(source, shape, i, len(shapes), arg.interval)


def draw_index(op: Op, arg: Arg, shape: Any, shapes: list[Any], source: Any, options: dict[str, Any]) -> np.ndarray:
    """Indices below the axis or option that the shape string names; without one, below every axis that others have.

    An `int` without a bound also takes the values of integer options: such an option says which index is special.
    """
    if arg.below in options:
        return np.asarray(_grid(source, shape) % options[arg.below], np.int64)
    own = {dim.name for dim in arg.dims}
    names = [(dim.name, n) for a, s in zip(op.args, shapes) if s is not None for dim, n in zip(a.axes, _tail(s, a))]
    limit = min(n for name, n in names if (name == arg.below if arg.below else name not in own))
    values = np.asarray(_grid(source, shape) % limit, np.int64)
    special = [v for v in options.values() if type(v) is int]
    if arg.below or not special:
        return values
    return np.where(_grid(source, shape) % 4 == 0, special[0], values)


def _tail(shape: tuple[int, ...], arg: Arg) -> tuple[int, ...]:
    return shape[len(shape) - len(arg.axes) :]


def _grid(source: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(source.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


def _floats(source: Any, shape: Any, i: int, n: int, interval: tuple[float, float] | None = None) -> np.ndarray:
    """Values in the interval, or in (−4, 4) at least 0.002 away from 0; float32 numbers in a float64 array."""
    grid = _grid(source, shape)
    offset = 0.05 + 0.9 * ((1 + i + n * np.arange(grid.size)) * GOLDEN % 1).reshape(shape)
    if interval is None:
        values = (grid.astype(np.int8) + offset) / 32
    else:
        values = interval[0] + (interval[1] - interval[0]) * (grid + offset) / 256
    return np.array(np.asarray(values, np.float32), np.float64)


# The same call, twice -------------------------------------------------------------------------------------------------


def run_ours(case: Case, dtype: Any = np.float64) -> tuple[Any, list[Any]]:
    """(output, gradients of case.wrt) of our op."""
    out, vjp = case.op(*case.inputs(dtype), **case.options)
    gradients = vjp(case.cotangent.astype(out.dtype))
    return np.asarray(out), [None if gradients[i] is None else np.asarray(gradients[i]) for i in case.wrt]


def run_torch(case: Case, dtype: Any = np.float64) -> tuple[Any, list[Any]]:
    """(output, gradients of case.wrt) of the torch expression, as arrays."""
    if dtype not in case.cache:
        case.cache[dtype] = _run_torch(case, dtype)
    return case.cache[dtype]


def _run_torch(case: Case, dtype: Any) -> tuple[Any, list[Any]]:
    tensors = [None if a is None else torch.tensor(a) for a in case.inputs(dtype)]
    for i in case.wrt:
        tensors[i].requires_grad_()
    out = call_torch(case.op, tensors, case.options)
    cotangent = torch.from_numpy(case.cotangent).to(out.dtype)
    wanted = [tensors[i] for i in case.wrt]
    gradients = torch.autograd.grad(out, wanted, cotangent, allow_unused=True) if wanted else ()
    zeros = [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, gradients)]
    return out.detach().numpy(), [d.numpy() for d in zeros]


def call_torch(op: Op, tensors: list[Any], options: dict[str, Any]) -> torch.Tensor:
    """Evaluate the record's torch expression, in the names of the op's arguments and options."""
    names: dict[str, Any] = {"torch": torch, "F": F, "np": np, "getattr": getattr, **options}
    if op.variadic:
        names[variadic_name(op)] = list(tensors)
    else:
        names.update(zip([arg.name for arg in op.args], tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only index arrays
        return eval(_compiled(op.torch), names)


@functools.cache
def _compiled(expression: str) -> Any:
    return compile(expression, expression, "eval")


def variadic_name(op: Op) -> str:
    """The name of the argument that takes any number of arrays."""
    code = op.function.__code__
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
