"""Node: what backward needs to know of one application of an op."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd.errors import AutogradError, InferenceError
from tinygrad_llm.autograd.hooks import Hooks, MultiGradHook, RemovableHandle, hooks_of
from tinygrad_llm.autograd.modes import calling_line, current
from tinygrad_llm.ops import Op, Vjp
from tinygrad_llm.ops.closures import Each, saved_arrays

__all__ = [
    "AccumulateGrad", "GradientEdge", "Node", "Unwatched", "Version", "get_gradient_edge", "increment_version",
    "register_multi_grad_hook", "root", "saved_arrays", "where_it_was",
]

_NUMBERS = itertools.count()


class Version:
    """How often the memory of a tensor was written to; views share it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Unwatched(Version):
    """The version of an inference tensor, whose writes nobody counts: no graph may need its values."""

    __slots__ = ()


class Node:
    """One application of an op: who made its inputs (parents) and how a cotangent goes back to them (vjp).

    It never holds its own output, so that a dropped loss frees its whole graph by reference counting. It holds its
    inputs only where a gradient could depend on them, for create_graph. Shape and dtype are those of the output.
    A node has a higher number than all that were made before it, so that its parents have lower ones.

    watched    tensors that decide where a gradient goes: indices, masks and targets, also those that a copy was made of
    """

    __slots__ = ("__weakref__", "_hooks", "dtype", "given", "inputs", "kept", "line", "number", "op", "options", "parents",
                 "saved", "shape", "vjp")

    _hooks: Hooks | None
    requires_grad = True

    def __init__(
        self, op: Op, vjp: Vjp, args: tuple[Any, ...], options: dict[str, Any], out: Any, watched: tuple[Any, ...] = ()
    ) -> None:
        self.op = op
        # who made a tensor, or the tensor itself where it is a leaf, or None for a constant
        self.parents = tuple([a._node or a if getattr(a, "_requires_grad", False) else None for a in args])
        vjp = vjp.only(self.parents) if isinstance(vjp, Each) else vjp
        self.vjp: Vjp | None = vjp
        self.options = options
        self.shape, self.dtype = out.shape, out.dtype
        saved = saved_arrays(vjp)
        self.kept = bool(saved)
        self.saved: tuple[tuple[Version, int], ...] = ()
        self.given: tuple[tuple[Version, int], ...] = ()
        self.inputs: tuple[Any, ...] | None = None
        if saved:
            self._hold(saved, args, out)
        if watched:
            self.watch(*watched)
        self.line = calling_line() if current.anomaly else None
        self.number, self._hooks = next(_NUMBERS), None

    def _hold(self, saved: list[Any], args: tuple[Any, ...], out: Any) -> None:
        """Note the versions of the tensors whose memory the vjp closes over, and what create_graph needs of the arguments."""
        roots, floats, plain = set(), False, isinstance(self.vjp, Each)
        for a in saved:
            floats = floats or a.dtype.kind == "f"
            if not isinstance(a, np.generic):
                roots.add(id(a if a.base is None else root(a)))
                plain = plain and isinstance(a, np.ndarray)
        held = [t if hasattr(t, "_counter") and id(root(t._array)) in roots else None for t in (*args, out)]
        self.saved = tuple([(t._counter, t._counter.count) for t in held if t is not None])
        if Unwatched in [type(version) for version, _ in self.saved]:
            raise InferenceError("backward: got an inference tensor to save for it, expected an ordinary one; make a clone() "
                                 "of it outside of inference_mode()")
        if floats:  # zeros that take no memory stand for arguments whose values no gradient that is wanted depends on
            self.inputs = args if not plain or held[-1] is not None else tuple([
                a if h is not None or not hasattr(a, "_counter") else _nothing(a.wrap, a.shape, a.dtype)
                for a, h in zip(args, held)])
            self.given = tuple([(a._counter, a._counter.count) for a in self.inputs if hasattr(a, "_counter")])

    def __repr__(self) -> str:
        return f"<{self.op.name} {self.shape}>"

    def name(self) -> str:
        """The op as torch would call its node: MulBackward0."""
        return "".join([part.capitalize() for part in self.op.name.split("_")]) + "Backward0"

    @property
    def next_functions(self) -> tuple[tuple[Node | AccumulateGrad | None, int], ...]:
        """(node, 0) of each argument: AccumulateGrad for a leaf, None where no gradient goes."""
        return tuple([(p if p is None or isinstance(p, Node) else AccumulateGrad(p), 0) for p in self.parents])

    def register_prehook(self, fn: Callable[[tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call fn((gradient,)) before the vjp; a tuple that it returns replaces the gradient."""
        return RemovableHandle(hooks_of(self).before, fn)

    def register_hook(self, fn: Callable[[tuple[Any, ...], tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call fn(gradients of the arguments, (gradient,)) after the vjp; a tuple that it returns replaces the first."""
        return RemovableHandle(hooks_of(self).passed, fn)

    def __call__(self, gradient: Any) -> Any:
        """The vjp by itself: the gradients of the arguments as tensors; of a single argument its gradient alone."""
        if self.vjp is None:
            raise AutogradError(f"{self.op.name}: this graph was already used by backward() and let go of what it held")
        self.check_saved()
        if not hasattr(gradient, "_array"):
            raise TypeError(f"{self.op.name}: gradient: got a {type(gradient).__name__}, expected a tensor")
        found = tuple([None if g is None else gradient.wrap(np.array(g)) for g in self.vjp(gradient._array)])
        return found[0] if len(found) == 1 else found

    def watch(self, *tensors: Any) -> None:
        """Refuse in backward where one of the tensors was written to since."""
        self.saved += tuple([(t._counter, t._counter.count) for t in tensors if hasattr(t, "_counter")])

    def check_saved(self, runs_again: bool = False) -> None:
        """AutogradError where an array that the vjp closes over, or an input if the op runs again, was written to since."""
        for version, seen in (*self.saved, *self.given) if runs_again else self.saved:
            if version.count != seen:
                raise written(self.op.name, version, seen, f"; its forward was called at {self.line}" if self.line else "")

    def release(self) -> None:
        """Let go of everything that only one backward needs; of nothing where no array is kept."""
        if self.kept:
            self.vjp, self.inputs, self.saved, self.given = None, None, (), ()


def written(what: str, version: Version, seen: int, where: str = "") -> AutogradError:
    """The error for what backward needs and was written to."""
    return AutogradError(f"{what}: backward needs a tensor that was modified in place: it is at version {version.count}, "
                         f"expected {seen}. Write to a copy, or call backward() before writing{where}")


class AccumulateGrad(NamedTuple):
    """Where a gradient ends: at the leaf `variable`, whose `.grad` it is added to."""

    variable: Any

    def name(self) -> str:
        """torch's name of this end."""
        return "torch::autograd::AccumulateGrad"

    @property
    def next_functions(self) -> tuple[()]:
        """None: it is the end."""
        return ()

    def register_prehook(self, fn: Callable[[tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call fn((gradient,)) before `.grad` is added to; a tuple that it returns replaces the gradient."""
        return RemovableHandle(hooks_of(self.variable).before, fn)

    def register_hook(self, fn: Callable[[tuple[()], tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call fn((), (gradient,)) after `.grad` was added to: there is no argument whose gradient it could replace."""
        return RemovableHandle(hooks_of(self.variable).passed, fn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccumulateGrad) and other.variable is self.variable

    def __hash__(self) -> int:
        return hash(self.variable)


class GradientEdge(NamedTuple):
    """A place of a graph, which grad() and backward() take in place of the tensor; it does not keep the tensor's values."""

    node: Node | AccumulateGrad
    output_nr: int = 0


def get_gradient_edge(tensor: Any) -> GradientEdge:
    """The place of the graph where a tensor's gradient arrives. Errors: AutogradError where it does not require grad."""
    if not tensor.requires_grad:
        raise AutogradError("get_gradient_edge: tensor: got one that does not require grad, expected one that does")
    return GradientEdge(tensor.grad_fn or AccumulateGrad(tensor))


def increment_version(tensor: Any) -> None:
    """Say that the memory of a tensor, or of each of several, was written to by other means than its methods."""
    for t in tensor if isinstance(tensor, tuple | list) else (tensor,):
        if not hasattr(t, "_counter"):
            raise TypeError(f"increment_version: tensor: got a {type(t).__name__}, expected a tensor")
        t._counter.count += 1


def register_multi_grad_hook(tensors: Any, fn: Callable[..., Any], *, mode: str = "all") -> MultiGradHook:
    """Call fn once in each backward: with the list of all gradients of the tensors when the last is there (mode "all"; None for
    one that this backward does not reach), or with the first that is there ("any").

    Errors: ValueError for another mode, AutogradError where a tensor does not require grad.
    """
    for t in tensors:
        get_gradient_edge(t)
    return MultiGradHook([t.grad_fn or t for t in tensors], fn, mode)


def where_it_was(tensor: Any, place: Any) -> Any:
    """A tensor that a graph keeps, at the node that made it when it was kept: detach_() may have taken it away since."""
    if not isinstance(place, Node) or tensor._node is place:
        return tensor
    again = tensor.detach()
    again._node, again._requires_grad = place, True
    return again


def root(array: Any) -> Any:
    """The array whose memory a view shows."""
    while isinstance(array.base, np.ndarray) or hasattr(array.base, "__record_call__"):
        array = array.base
    return array


@functools.lru_cache(256)
def _nothing(wrap: Callable[[Any], Any], shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A constant tensor of zeros that takes no memory and may only be read."""
    return wrap(np.broadcast_to(np.zeros((), dtype), shape))
