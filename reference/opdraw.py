"""Calls of an op, drawn from its record by a seed; the same call on our op and on the torch expression, on any device.

All values are float32 numbers, so that the float64 call is the truth of the float32 call. Sizes are those of a small
model, not of a smallest counterexample: the report wants error statistics.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tinygrad_llm.ops import Arg, Op

SIZES = (3, 24)  # of the axes that letters name
LEAD_SIZES = (2, 5)  # of leading axes
MOST_OPTIONS = 8  # combinations of options that are drawn; the others have as much right, but not the time


@dataclass(frozen=True)
class Call:
    """One call of an op: float64 arguments (None where left out), options, a random cotangent.

    wrt lists the arguments that have a gradient.
    """

    op: Op
    args: tuple[Any, ...]
    options: dict[str, Any]
    cotangent: np.ndarray
    wrt: tuple[int, ...]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)  # torch's results: the same for any bug of ours

    @property
    def names(self) -> list[str]:
        """What a run returns: the output, then a gradient for each argument in wrt."""
        return ["output", *[f"gradient of {self.op.args[i].name}" for i in self.wrt]]

    def inputs(self, dtype: Any) -> list[Any]:
        """The arguments, floating ones in dtype."""
        return [np.array(a, dtype) if a is not None and a.dtype.kind == "f" else a for a in self.args]


def draw_calls(op: Op, seed: int = 0, count: int = 4) -> list[Call]:
    """At least `count` calls, and one for each combination of options up to MOST_OPTIONS."""
    names, choices = list(op.options), list(itertools.product(*op.options.values()))
    step = max(1, len(choices) // MOST_OPTIONS)
    chosen = choices[::step][:MOST_OPTIONS]
    chosen = list(itertools.islice(itertools.cycle(chosen), max(count, len(chosen))))
    return [draw_call(op, dict(zip(names, options)), seed + i, i % 2 == 1) for i, options in enumerate(chosen)]


def draw_call(op: Op, options: dict[str, Any], seed: int, broadcast: bool = False) -> Call:
    """One call; with `broadcast`, leading axes that may broadcast differ, and arguments that may be None may be."""
    rng = np.random.default_rng([seed, *op.name.encode()])
    shapes = draw_shapes(op.args, rng, broadcast)
    args = tuple(_draw_argument(op, i, shapes, options, rng) for i in range(len(shapes)))
    out, vjp = op(*args, **options)
    cotangent = _float32_values(rng.standard_normal(out.shape))
    gradients = vjp(cotangent.astype(out.dtype))
    wrt = tuple(i for i, d in enumerate(gradients[: len(args)]) if d is not None)
    return Call(op, args, options, cotangent, wrt)


def draw_shapes(
    args: tuple[Arg, ...], rng: np.random.Generator, broadcast: bool = False, sizes: tuple[int, int] = SIZES
) -> list[tuple[int, ...] | None]:
    """A shape for each argument: equal letters are equal sizes."""
    bound: dict[str, Any] = {}
    return [None if broadcast and arg.optional else _draw_shape(arg, bound, rng, broadcast, sizes) for arg in args]


def draw_floats(arg: Arg, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """float32 values in a float64 array, in the argument's domain."""
    if arg.distinct:
        grid = (rng.permutation(max(1, int(np.prod(shape))))[: int(np.prod(shape))] + 0.5).reshape(shape)
        return _float32_values(8 * grid / max(1, grid.size) - 4)
    if arg.interval is not None:
        low, high = arg.interval
        return _float32_values(low + (high - low) * rng.uniform(0.02, 0.98, shape))
    values = rng.standard_normal(shape) * 1.5
    return _float32_values(np.where(values < 0, values - 0.01, values + 0.01))  # no entry at a kink


def run_ours(call: Call, dtype: Any) -> list[np.ndarray | None]:
    """The output and the gradients of our op, as in Call.names."""
    out, vjp = call.op(*call.inputs(dtype), **call.options)
    gradients = vjp(call.cotangent.astype(out.dtype))
    return [np.asarray(out), *[None if gradients[i] is None else np.asarray(gradients[i]) for i in call.wrt]]


def run_torch(call: Call, dtype: Any, device: str = "cpu") -> list[np.ndarray]:
    """The same of the torch expression on a device; computed once."""
    key = np.dtype(dtype).name, device
    if key not in call.cache:
        call.cache[key] = _run_torch(call, dtype, device)
    return call.cache[key]


def _run_torch(call: Call, dtype: Any, device: str) -> list[np.ndarray]:
    tensors: list[Any] = [None if a is None else torch.tensor(a, device=device) for a in call.inputs(dtype)]
    wanted = [tensors[i].requires_grad_() for i in call.wrt]
    out = _evaluate(call.op, tensors, call.options, device)
    cotangent = torch.from_numpy(call.cotangent).to(out.dtype).to(device)
    gradients = torch.autograd.grad(out, wanted, cotangent, allow_unused=True) if wanted else ()
    filled = [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, gradients)]
    return [value.detach().cpu().numpy() for value in (out, *filled)]


def _evaluate(op: Op, tensors: list[Any], options: dict[str, Any], device: str) -> torch.Tensor:
    """The record's torch expression, in the names of the op's arguments and options."""
    names: dict[str, Any] = {"torch": torch, "F": F, "np": np, "getattr": getattr, **options}
    if op.variadic:
        code = op.function.__code__
        names[code.co_varnames[code.co_argcount + code.co_kwonlyargcount]] = tensors
    else:
        names.update(zip([arg.name for arg in op.args], tensors))
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only index arrays
        return eval(_compiled(op.torch), names)


@functools.cache
def _compiled(expression: str) -> Any:
    return compile(expression, expression, "eval")


def _draw_shape(
    arg: Arg, bound: dict[str, Any], rng: np.random.Generator, broadcast: bool, sizes: tuple[int, int]
) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for dim in arg.dims:
        if dim.group:
            lead = bound.setdefault(dim.name, tuple(int(rng.integers(*LEAD_SIZES)) for _ in range(2)))
            shape += _cut(lead, rng) if dim.group == "~" and broadcast else lead
        elif dim.name.isdigit():
            shape += (int(dim.name),)
        else:
            shape += (bound.setdefault(dim.name, max(dim.least, int(rng.integers(*sizes)))),)
    return shape


def _cut(lead: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    kept = lead[int(rng.integers(0, len(lead))) :]
    return tuple(1 if rng.integers(0, 3) == 0 else n for n in kept)


def _draw_argument(
    op: Op, i: int, shapes: list[tuple[int, ...] | None], options: dict[str, Any], rng: np.random.Generator
) -> Any:
    arg, shape = op.args[i], shapes[i]
    if shape is None:
        return None
    if arg.kind == "bool":
        return rng.random(shape) < 0.5
    if arg.kind == "int":
        return _draw_indices(op, arg, shape, shapes, options, rng)
    return draw_floats(arg, shape, rng)


def _draw_indices(
    op: Op, arg: Arg, shape: tuple[int, ...], shapes: list[Any], options: dict[str, Any], rng: np.random.Generator
) -> np.ndarray:
    """Below the axis or option that the shape string names; without one, below every axis that others have.

    Without a bound they also take the values of integer options: such an option says which index is special.
    """
    if arg.below in options:
        return rng.integers(0, options[arg.below], shape)
    values = rng.integers(0, index_limit(op.args, arg, shapes), shape)
    special = [v for v in options.values() if type(v) is int]
    return values if arg.below or not special else np.where(rng.random(shape) < 0.25, special[0], values)


def index_limit(args: tuple[Arg, ...], arg: Arg, shapes: list[Any]) -> int:
    """The size that indices stay below."""
    own = {dim.name for dim in arg.dims}
    sizes = {name: n for name, n in _named_sizes(args, shapes) if (name == arg.below if arg.below else name not in own)}
    return min(sizes.values())


def _named_sizes(args: tuple[Arg, ...], shapes: list[Any]) -> Iterator[tuple[str, int]]:
    for arg, shape in zip(args, shapes):
        if shape is not None:
            axes = [dim for dim in arg.dims if not dim.group]
            yield from ((dim.name, n) for dim, n in zip(axes, shape[len(shape) - len(axes) :]))


def _float32_values(x: Any) -> np.ndarray:
    return np.array(np.asarray(x, np.float32), np.float64)
