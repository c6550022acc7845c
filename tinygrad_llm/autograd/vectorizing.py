"""vmap: a function of one example, run once for a whole batch.

While it runs, tensors hold Batched arrays, and ops run on these as on any other: see tinygrad_llm.autograd.batching. Four
linear ops, each the transpose of another, lead into the batch and out of it: so gradients come through vmap, and a gradient
inside of it is one for each example.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd import batching
from tinygrad_llm.autograd.batching import Batched, Level, has_level
from tinygrad_llm.autograd.errors import AutogradError
from tinygrad_llm.autograd.modes import active_recorder, recording, records_graph
from tinygrad_llm.autograd.tensor import Tensor, apply
from tinygrad_llm.autograd.trees import flatten, open_tree
from tinygrad_llm.ops import IndexRangeError, Op, Vjp
from tinygrad_llm.ops.declare import compute
from tinygrad_llm.ops.numbers import plain
from tinygrad_llm.ops.sums import total


def vmap(
    func: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0, randomness: str = "error", *, chunk_size: int | None = None
) -> Callable[..., Any]:
    """func, for every example of a batch: torch.func.vmap.

    in_dims     the axis of each argument that counts the examples, or None: one for all; an int, or a tree in their form
    out_dims    where that axis goes in each output; None for an output that does not depend on the example
    randomness  what functions that draw random numbers do: "error", "same" for all examples, or "different"
    chunk_size  how many examples at a time; None: all. Keyword arguments are the same for all.

    func sees tensors without that axis and runs once. Errors: AutogradError where it asks for values of an example (item(),
    bool, a mask as an index), or writes batched values into a tensor that is not; ValueError for in_dims and out_dims that
    do not fit.
    """
    if randomness not in ("error", "same", "different"):
        raise AutogradError(f"vmap: randomness: got {randomness!r}, expected 'error', 'same' or 'different'")
    chunk_size = plain(chunk_size)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"vmap: chunk_size: got {chunk_size}, expected None or at least 1")

    @functools.wraps(func, updated=())
    def batched(*args: Any, **kwargs: Any) -> Any:
        leaves, rebuild = flatten(args)
        dims = _in_dims(in_dims, args, leaves)
        size = _batch_size(leaves, dims)

        def run(part: list[Any], n: int) -> tuple[list[Any], list[Any], Callable[[list[Any]], Any]]:
            return _run(func, part, dims, rebuild, kwargs, Level(n, randomness), out_dims)

        if chunk_size is None or chunk_size >= size:
            outs, _, form = run(leaves, size)
            return form(outs)
        starts = range(0, size, chunk_size)
        parts = [run(_chunk(leaves, dims, start, chunk_size), min(chunk_size, size - start)) for start in starts]
        _, places, form = parts[0]
        return form([_joined([outs[k] for outs, *_ in parts], d) for k, d in enumerate(places)])

    return batched


class Vmapping:
    """What ops ask while a vmapped function runs: it brings operands that meet batched ones to their level."""

    def __init__(self, level: Level, outer: Any) -> None:
        if outer is not None and not isinstance(outer, Vmapping):
            raise AutogradError("vmap: got a function that is being recorded, expected vmap outside of compile() and capture")
        self.level, self.outer = level, outer

    def operands(self, op: Op, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
        """The operands, lifted to each level at which one of them, or an option, is batched."""
        if op in _CROSSINGS:
            return args
        if self.outer is not None:
            args = self.outer.operands(op, args, options)
        arrays = [a._array if isinstance(a, Tensor) else a for a in args]
        if any(has_level(a, self.level) for a in (*arrays, *flatten(options)[0])):
            return tuple([_lifted(a, self.level) for a in args])
        return args

    def run_op(self, op: Op, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Vjp]:
        """The op on the arrays of its operands."""
        arrays = [a._array if isinstance(a, Tensor) else a for a in args]
        if any(isinstance(x, Batched) for x in options.values()):
            return batching.op_one_by_one(op, arrays, options)
        out, vjp = op(*arrays, **options)
        return out if isinstance(out, Batched) else np.asarray(out), vjp

    def run_module(self, module: Any, args: Any, kwargs: Any) -> Any:
        """A module's forward."""
        return module.forward(*args, **kwargs)

    def lift(self, array: Any) -> Any:
        """What an op's caller sees of an array: itself."""
        return array

    def for_drawing(self, array: Any) -> Any:
        """An array for whose shape random numbers are drawn: batched, so that the drawing asks its level."""
        return batching.lift(array if self.outer is None else self.outer.for_drawing(array), self.level)

    def check_write(self, name: str, array: Any) -> None:
        """Any tensor may be written to; batching.check_level looks at what is written."""

    def meet(self, leaf: Tensor) -> None:
        """As outside: see modes.meet."""
        if self.outer is not None:
            self.outer.meet(leaf)

    def lift_gradient(self, leaf: Tensor) -> None:
        """As the outer recorder has it."""
        if self.outer is not None:
            self.outer.lift_gradient(leaf)

    def check_effect(self, name: str) -> None:
        """As outside: see modes.check_effect."""
        if self.outer is not None:
            self.outer.check_effect(name)

    def check_read(self, name: str) -> None:
        """Values may be read of what is not batched; a Batched array refuses by itself."""


# Into the batch and out of it --------------------------------------------------------------------------------------------


def _enter_op(x: Any, axis: int, level: Level) -> tuple[Any, Vjp]:
    return batching.enter(x, axis, level), lambda g: (compute(_LEAVE, g, axis=axis, level=level),)


def _leave_op(x: Any, axis: int, level: Level) -> tuple[Any, Vjp]:
    return batching.leave(x, axis, level), lambda g: (compute(_ENTER, g, axis=axis, level=level),)


def _lift_op(x: Any, level: Level) -> tuple[Any, Vjp]:
    return batching.lift(x, level), lambda g: (compute(_SUM, g, level=level),)


def _sum_op(x: Any, level: Level) -> tuple[Any, Vjp]:
    if level.active:
        raise AutogradError("vmap: got backward() or grad() inside of the function for a tensor that is not batched, expected "
                            " func.grad or func.vjp inside, or backward() outside")
    return total(batching.leave(x, 0, level), (0,)), lambda g: (compute(_LIFT, g, level=level),)


_ENTER = Op("vmap_enter", _enter_op, (), {}, "x", variadic=True)
_LEAVE = Op("vmap_leave", _leave_op, (), {}, "x", variadic=True)
_LIFT = Op("vmap_lift", _lift_op, (), {}, "x", variadic=True)
_SUM = Op("vmap_sum", _sum_op, (), {}, "x", variadic=True)
_CROSSINGS = (_ENTER, _LEAVE, _LIFT, _SUM)


def _lifted(a: Any, level: Level) -> Any:
    """An operand as the same for all examples. It keeps its version: who writes to the original is found out."""
    if isinstance(a, np.ndarray | Batched):
        return batching.lift(a, level)
    if not isinstance(a, Tensor) or has_level(a._array, level):
        return a
    out = apply(_LIFT, a, level=level)
    out._counter = a._counter
    return out


def inside(x: Any) -> Any:
    """x, a tensor or an array, batched at every level of the vmaps that are running: a variable for each example."""
    recorder, levels = active_recorder(), []
    while isinstance(recorder, Vmapping):
        levels.append(recorder.level)
        recorder = recorder.outer
    for level in reversed(levels):
        x = _lifted(x, level)
    return x


def alike(x: Any, like: Any) -> Any:
    """x, a tensor or an array, batched at every level of an array."""
    levels = []
    while isinstance(like, Batched):
        levels.append(like.level)
        like = like.data
    for level in reversed(levels):
        x = _lifted(x, level)
    return x


def _run(
    func: Any, leaves: list[Any], dims: list[Any], rebuild: Any, kwargs: Any, level: Level, out_dims: Any
) -> tuple[list[Any], list[Any], Callable[[list[Any]], Any]]:
    """(the outputs, the axis of the examples in each, their form)."""
    with recording(Vmapping(level, active_recorder())):
        try:
            out = func(*rebuild([_entered(x, d, level) for x, d in zip(leaves, dims)]), **kwargs)
            outs, form = flatten(out)
            places = _out_dims(out_dims, out, outs)
            return [_left(x, d, level) for x, d in zip(outs, places)], places, form
        finally:
            level.active = False


def _entered(x: Any, dim: int | None, level: Level) -> Any:
    if dim is None:
        return x
    if x._requires_grad and records_graph():  # a write would reach x, and its gradient would not
        out = apply(_ENTER, x, axis=dim % x.ndim, level=level)
        out._array.data.flags.writeable = False  # type: ignore[attr-defined]
    else:
        out = Tensor.from_array(batching.enter(x._array, dim % x.ndim, level))
    out._counter = x._counter
    return out


def _left(x: Any, dim: int | None, level: Level) -> Any:
    if dim is None:
        if isinstance(x, Tensor) and has_level(x._array, level):
            raise ValueError("vmap: out_dims: got None for an output that is batched, expected an axis")
        return x
    if not isinstance(x, Tensor):
        raise ValueError(f"vmap: func: got an output of type {type(x).__name__}, expected tensors (or out_dims=None for it)")
    if not -x.ndim - 1 <= dim <= x.ndim:
        raise IndexRangeError(f"vmap: out_dims: got {dim} for an output of shape {x.shape}, expected {-x.ndim - 1} to {x.ndim}")
    out = apply(_LEAVE, x, axis=dim % (x.ndim + 1), level=level)
    out._counter = x._counter  # their memory is one, perhaps that of an argument
    return out


# Axes in trees -----------------------------------------------------------------------------------------------------------


def _in_dims(in_dims: Any, args: tuple[Any, ...], leaves: list[Any]) -> list[Any]:
    """The axis of each leaf of the arguments. Errors: ValueError where the two trees, or axis and shape, do not fit."""
    in_dims = plain(in_dims)
    if not isinstance(in_dims, int | tuple) or isinstance(in_dims, bool):
        raise ValueError(f"vmap: in_dims: got {in_dims!r} of type {type(in_dims).__name__}, expected an int or a tuple in the "
                         "form of the arguments")
    if not args:
        raise ValueError("vmap: got no positional arguments, expected at least one to map over")
    dims = _spread("in_dims", in_dims, args)
    for x, d in zip(leaves, dims):
        if d is None:
            continue
        if not isinstance(d, int) or isinstance(d, bool):
            raise ValueError(f"vmap: in_dims: got {d!r}, expected an int or None for each argument")
        if not isinstance(x, Tensor):
            raise ValueError(f"vmap: in_dims: got {d} for an argument of type {type(x).__name__}, expected a tensor (or None)")
        if not -x.ndim <= d < x.ndim:
            raise ValueError(f"vmap: in_dims: got {d} for an argument of shape {x.shape}, expected an axis of it")
    return dims


def _batch_size(leaves: list[Any], dims: list[Any]) -> int:
    sizes = [x.shape[d] for x, d in zip(leaves, dims) if d is not None]
    if not sizes:
        raise ValueError("vmap: in_dims: got None for every argument, expected at least one tensor to map over")
    if len(set(sizes)) > 1:
        raise ValueError(f"vmap: in_dims: got axes of sizes {sizes}, expected the same size in all")
    return sizes[0]


def _out_dims(out_dims: Any, out: Any, outs: list[Any]) -> list[Any]:
    if isinstance(out_dims, tuple) and len(out_dims) == 1 and isinstance(out, Tensor):
        out_dims = out_dims[0]
    dims = _spread("out_dims", out_dims, out)
    for d in dims:
        if d is not None and (not isinstance(d, int) or isinstance(d, bool)):
            raise ValueError(f"vmap: out_dims: got {d!r}, expected an int or None for each output")
    return dims


def _spread(what: str, dims: Any, tree: Any) -> list[Any]:
    """An axis for each leaf of a tree: those of `dims`, a tree of the same form or an upper part of one."""
    inner, build = open_tree(dims)
    if build is None:
        return [plain(dims)] * len(flatten(tree)[0])
    children, _ = open_tree(tree)
    alike = type(dims) is type(tree) and len(inner) == len(children)
    if not alike or (isinstance(dims, dict) and dims.keys() != tree.keys()):
        raise ValueError(f"vmap: {what}: got {dims!r}, expected an int, None or the form of what it is for: "
                         f"{type(tree).__name__} of {len(children)}")
    pairs = [(dims[key], tree[key]) for key in tree] if isinstance(dims, dict) else zip(inner, children)
    return [d for own, child in pairs for d in _spread(what, own, child)]


# In parts ----------------------------------------------------------------------------------------------------------------


def _chunk(leaves: list[Any], dims: list[Any], start: int, n: int) -> list[Any]:
    return [x if d is None else x[(slice(None),) * (d % x.ndim) + (slice(start, start + n),)] for x, d in zip(leaves, dims)]


def _joined(parts: list[Any], dim: int | None) -> Any:
    return parts[0] if dim is None else np.concatenate(parts, dim)
