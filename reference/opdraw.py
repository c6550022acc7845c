"""Calls of an op, drawn from its record; the same call on our op and on the torch expression, on any device.

The rules are functions of the record and of a source of choices: a seeded generator here, Hypothesis in the tests.
Values lie on a grid of one byte each, so that Hypothesis draws them quickly and shrinks them to zero, plus an offset
that is different for every entry of every argument: no entry is at a kink and no two are tied, by construction.
All values are float32 numbers, so that the float64 call is the truth of the float32 call.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from tinygrad_llm.ops import Arg, Dim, Op

GOLDEN = (5**0.5 - 1) / 2
MOST_OPTIONS = 8  # combinations of options in a report; the others have as much right, but not the time

Shape = tuple[int, ...]


class Source(Protocol):
    """Who makes the choices."""

    def integer(self, low: int, high: int) -> int:
        """One of low, …, high."""

    def bytes(self, n: int) -> bytes:
        """n bytes."""


class Seeded:
    """Choices made by a generator: the same case for the same seed, every time."""

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        """One of low, …, high."""
        return int(self.rng.integers(low, high + 1))

    def bytes(self, n: int) -> bytes:
        """n bytes."""
        return self.rng.bytes(n)


@dataclass(frozen=True)
class Sizes:
    """What shapes to draw: sizes of the axes that letters name, and number and sizes of leading axes.

    cut   whether leading axes `~B` may differ, some cut off and some of size 1
    none  one in so many of the arguments that may be None is; 0: no argument is
    """

    low: int = 1
    high: int = 4
    lead: tuple[int, int] = (0, 2)
    lead_low: int = 1
    lead_high: int = 3
    cut: bool = True
    none: int = 3


ANY = Sizes()
MODEL = Sizes(low=3, high=23, lead=(2, 2), lead_low=2, lead_high=4, cut=False, none=0)  # a small model's, for statistics


@dataclass(frozen=True)
class Call:
    """One call of an op: float64 arguments (None where left out), options, and a cotangent of the output.

    wrt lists the arguments that have a gradient; directions has a vector for each argument, for derivatives along it.
    """

    op: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    cotangent: np.ndarray
    wrt: tuple[int, ...]
    directions: tuple[Any, ...]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)  # torch's results: the same for any bug of ours

    @property
    def names(self) -> list[str]:
        """What a run returns: the output, then a gradient for each argument in wrt."""
        return ["output", *[f"gradient of {self.op.args[i].name}" for i in self.wrt]]

    def inputs(self, dtype: Any = np.float64) -> list[Any]:
        """The arguments, floating ones in dtype."""
        return [np.array(a, dtype) if is_float(a) else a for a in self.args]

    def __repr__(self) -> str:
        shapes = ", ".join("None" if a is None else f"{a.dtype}{list(a.shape)}" for a in self.args)
        return f"{self.op.name}({shapes}, {self.options})"


def is_float(a: Any) -> bool:
    """Whether a is an array of real or complex numbers."""
    return a is not None and a.dtype.kind in "fc"


def draw_calls(op: Op, seed: int = 0, count: int = 4) -> list[Call]:
    """At least `count` calls, and one for each combination of options up to MOST_OPTIONS.

    In every second one broadcast axes differ, and what may be None is.
    """
    choices = [dict(zip(op.options, values)) for values in itertools.product(*op.options.values())]
    chosen = choices[:: max(1, len(choices) // MOST_OPTIONS)][:MOST_OPTIONS]
    chosen = list(itertools.islice(itertools.cycle(chosen), max(count, len(chosen))))
    sizes = itertools.cycle([MODEL, replace(MODEL, cut=True, none=1)])
    return [draw_call(op, Seeded(seed + i, *op.name.encode()), s, o) for i, (s, o) in enumerate(zip(sizes, chosen))]


def draw_call(op: Op, source: Source, sizes: Sizes = ANY, options: dict[str, Any] | None = None) -> Call:
    """A call of op."""
    options = draw_options(op, source) if options is None else options
    args = tuple(draw_arguments(op.args, source, sizes, options))
    directions = tuple(draw_floats(source, a.shape, i, len(args)) if is_float(a) else None for i, a in enumerate(args))
    out, vjp = op(*args, **options)
    cotangent = draw_floats(source, out.shape, len(args), len(args) + 1)
    wrt = tuple(i for i, d in enumerate(vjp(cotangent.astype(out.dtype))[: len(args)]) if d is not None)
    return Call(op, args, options, cotangent, wrt, directions)


def draw_options(op: Op, source: Source) -> dict[str, Any]:
    """A value for each option."""
    return {name: values[source.integer(0, len(values) - 1)] for name, values in op.options.items()}


def draw_arguments(args: Sequence[Arg], source: Source, sizes: Sizes, options: dict[str, Any]) -> list[Any]:
    """Arrays, or None, that the shape strings allow together: equal letters are equal sizes."""
    bound: dict[str, Any] = {"indexed": {arg.below for arg in args}}
    shapes = [_draw_shape(arg, source, sizes, bound) for arg in args]
    return [_draw_values(args, i, shapes, source, options) for i in range(len(shapes))]


def draw_floats(source: Source, shape: Shape, i: int, n: int, interval: tuple[float, float] | None = None) -> np.ndarray:
    """Argument i of n: values in the interval, or in (−4, 4) at least 0.001 away from 0; float32 numbers in float64."""
    grid = _grid(source, shape)
    offset = 0.05 + 0.9 * ((1 + i + n * np.arange(grid.size)) * GOLDEN % 1).reshape(shape)
    if interval is None:
        values = (grid.astype(np.int8) + offset) / 32
    else:
        values = interval[0] + (interval[1] - interval[0]) * (grid + offset) / 256
    return np.array(np.asarray(values, np.float32), np.float64)


def _draw_shape(arg: Arg, source: Source, sizes: Sizes, bound: dict[str, Any]) -> Shape | None:
    if arg.optional and sizes.none and source.integer(0, sizes.none - 1) == 0:
        return None
    if arg.accepts:  # options are drawn that refer to these axes
        sizes = replace(sizes, low=max(1, sizes.low))
    shape: Shape = ()
    for dim in arg.dims:
        shape += _draw_lead(dim, source, sizes, bound) if dim.group else (_draw_axis(dim, source, sizes, bound),)
    return shape


def _draw_axis(dim: Dim, source: Source, sizes: Sizes, bound: dict[str, Any]) -> int:
    if dim.name.isdigit():
        return int(dim.name)
    if dim.name not in bound:
        least = max(sizes.low, dim.least, dim.name in bound["indexed"])
        bound[dim.name] = source.integer(least, max(sizes.high, least))
    return bound[dim.name]


def _draw_lead(dim: Dim, source: Source, sizes: Sizes, bound: dict[str, Any]) -> Shape:
    """Leading axes: of `*B` the same for every argument, of `~B` some cut off and some of size 1."""
    if dim.name not in bound:
        n = source.integer(*sizes.lead)
        bound[dim.name] = tuple(source.integer(sizes.lead_low, sizes.lead_high) for _ in range(n))
    full = bound[dim.name]
    if dim.group == "*" or not sizes.cut:
        return full
    kept = full[source.integer(0, len(full)) :]
    return tuple(1 if source.integer(0, 3) == 0 else n for n in kept)


def _draw_values(args: Sequence[Arg], i: int, shapes: list[Any], source: Source, options: dict[str, Any]) -> Any:
    arg, shape = args[i], shapes[i]
    if shape is None:
        return None
    if arg.kind == "bool":
        return np.asarray(_grid(source, shape) % 2, bool)
    if arg.kind == "int":
        return _draw_indices(args, i, shapes, source, options)
    return draw_floats(source, shape, i, len(shapes), arg.interval)


def _draw_indices(args: Sequence[Arg], i: int, shapes: list[Any], source: Source, options: dict[str, Any]) -> np.ndarray:
    """Indices below the axis or option that the shape string names; without one, below every axis that others have.

    An `int` without a bound also takes the values of integer options: such an option says which index is special.
    """
    arg, shape = args[i], shapes[i]
    if arg.below in options:
        return np.asarray(_grid(source, shape) % options[arg.below], np.int64)
    own = {dim.name for dim in arg.dims}
    names = [(dim.name, n) for a, s in zip(args, shapes) if s is not None for dim, n in zip(a.axes, _tail(s, a))]
    limit = min(n for name, n in names if (name == arg.below if arg.below else name not in own))
    values = np.asarray(_grid(source, shape) % limit, np.int64)
    special = [v for v in options.values() if type(v) is int]
    if arg.below or not special:
        return values
    return np.where(_grid(source, shape) % 4 == 0, special[0], values)


def _tail(shape: Shape, arg: Arg) -> Shape:
    return shape[len(shape) - len(arg.axes) :]


def _grid(source: Source, shape: Shape) -> np.ndarray:
    return np.frombuffer(source.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


# The same call, twice -------------------------------------------------------------------------------------------------


def run_ours(call: Call, dtype: Any = np.float64) -> list[np.ndarray | None]:
    """The output and the gradients of our op, as in Call.names."""
    out, vjp = call.op(*call.inputs(dtype), **call.options)
    gradients = vjp(call.cotangent.astype(out.dtype))
    return [np.asarray(out), *[None if gradients[i] is None else np.asarray(gradients[i]) for i in call.wrt]]


def run_torch(call: Call, dtype: Any = np.float64, device: str = "cpu") -> list[np.ndarray]:
    """The same of the torch expression on a device; computed once."""
    key = np.dtype(dtype).name, device
    if key not in call.cache:
        call.cache[key] = _run_torch(call, dtype, device)
    return call.cache[key]


def _run_torch(call: Call, dtype: Any, device: str) -> list[np.ndarray]:
    tensors: list[Any] = [None if a is None else torch.tensor(a, device=device) for a in call.inputs(dtype)]
    wanted = [tensors[i].requires_grad_() for i in call.wrt]
    with torch.device(device) if device != "cpu" else nullcontext():  # which costs as much as a call
        out = call_torch(call.op, tensors, call.options)
    cotangent = torch.from_numpy(call.cotangent).to(out.dtype).to(device)
    gradients = torch.autograd.grad(out, wanted, cotangent, allow_unused=True) if wanted else ()
    filled = [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, gradients)]
    return [value.numpy(force=True) for value in (out, *filled)]


def call_torch(op: Op, tensors: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
    """Evaluate the record's torch expression, in the names of the op's arguments and options."""
    names: dict[str, Any] = {"torch": torch, "F": F, "np": np, "getattr": getattr, **options}
    if op.variadic:
        names[variadic_name(op)] = list(tensors)
    else:
        names.update(zip([arg.name for arg in op.args], tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only index arrays
        return eval(_compiled(op.torch), names)


def variadic_name(op: Op) -> str:
    """The name of the argument that takes any number of arrays."""
    code = op.function.__code__
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount]


@functools.cache
def _compiled(expression: str) -> Any:
    return compile(expression, expression, "eval")
