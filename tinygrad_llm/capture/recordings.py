"""A recording: one run of a function as a program, with what goes in, what comes out, and what it must find around it."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.modes import current, recording, set_modes
from tinygrad_llm.autograd.trees import flatten, form_of
from tinygrad_llm.capture.ir import CaptureError
from tinygrad_llm.capture.outside import Effect
from tinygrad_llm.capture.places import NUMBERS, check_kind
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.record import Recorder, Traced
from tinygrad_llm.capture.surroundings import Surroundings, young

PATIENCE = 30.0
"""Seconds after which a thread that waits for its turn runs the function as it is."""
_ONE = threading.RLock()
"""One recording at a time: it stands in for functions of the whole process."""


@dataclass(frozen=True)
class Output:
    """The place of an output in the result of a function; whether it is a number, as NumPy's sums are."""

    number: int
    is_scalar: bool = False


@dataclass
class Recording:
    """A function's program, and what its inputs and outputs are.

    inputs    the numbers of the arguments that are the program's first inputs
    earlier   tensors, and arguments by their numbers, whose `.grad` of before the call are the others
    results   for each leaf of the function's result: its output, or the leaf itself; and what it was: an "array", a "tensor",
              one with a "graph", a "copy" of a tensor that the function made without computing; or the number of an earlier
              leaf, the "same" object
    rebuild   makes the result of its leaves
    left      tensors, and arguments by their numbers, whose `.grad` the function left, each with the number of the output that
              it is, and whether it was added to in place
    cleared   tensors, and arguments by their numbers, that it left without `.grad`
    seen      all that it met, if they want a gradient
    graph     of results that require grad: the leaves that they lead to besides arguments; True where backward has used it up
    drawn     the generators that it draws from
    around    what it must find around it
    """

    program: Program
    inputs: list[int]
    earlier: list[int | Tensor]
    results: list[tuple[Any, str]]
    rebuild: Callable[[list[Any]], Any]
    left: list[tuple[int | Tensor, int, bool]]
    cleared: list[int | Tensor]
    seen: list[int | Tensor]
    around: Surroundings
    graph: list[Tensor] | bool
    drawn: list[np.random.Generator]


def record(
    function: Callable[..., Any], args: Sequence[Any], root: Any = None, roots: Sequence[Any] = (), lines: bool = False,
    order: str = "K",
) -> Recording:
    """Run a function once on arrays without values. args are arrays and tensors, whatever else is a constant.

    Calls carry the names of the modules below `root` that they come from; roots are what the function reads, if a frame of
    this library stands before it. order is that of the axes of results in memory: "K" as they come, or "C".

    Errors: CaptureError where it asks for a value, or does what leaves no trace; Effect where it changes something, which is
    undone.
    """
    if not _ONE.acquire(timeout=PATIENCE):
        raise Effect("another thread records a function, expected it to end")
    recorder, around = Recorder(root, lines), Surroundings()
    try:
        for one in (function, *roots):
            around.visit("the function", one)
        found, made = _recorded(recorder, around, function, args, order)
        around.forget(made)
        _check_left(recorder)
        around.settle()
    except BaseException as error:
        around.restore()
        _forget_locals(error.__traceback__)
        if isinstance(error, Effect) and recorder.left():
            raise CaptureError(f"{error}; it cannot be taken back") from None
        raise
    finally:
        _ONE.release()
    return found


def _forget_locals(trace: TracebackType | None) -> None:
    """Let go of what the frames of an error hold. Before Python 3.13 they keep a copy of it, which looking again renews."""
    traceback.clear_frames(trace)
    for frame, _ in traceback.walk_tb(trace):
        frame.f_locals  # noqa: B018


def _recorded(
    recorder: Recorder, around: Surroundings, function: Callable[..., Any], args: Sequence[Any], order: str
) -> tuple[Recording, set[int]]:
    given, modes = _Arguments(recorder, args), _modes()
    try:
        with recording(recorder), around.watching():
            result = _in_context(function, given.shown)
            leaves, rebuild = flatten(result)
            form_of(result)
            drawn = _generators_of(recorder.calls)
            made = young()
        if recorder.refused is not None:
            raise recorder.refused
        given.check()
        if any(id(tree) not in made and around.knows(tree) for tree in _containers(result)):
            raise CaptureError("results: got a list or dictionary from outside of the function, expected one that it makes")
        if any(id(generator) in made for generator in drawn):
            raise CaptureError("generator: got one that the function makes, expected one from outside, which draws on")
        gradients: list[Tensor | None] = [t._grad for t, _ in recorder.leaves.values()]
    finally:
        for tensor, before in recorder.leaves.values():
            tensor._grad = before
        _restore_modes(modes)
    around.look_at(recorder.tensors.values(), drawn)
    graph = _graph_of(leaves)
    seen = [(given.number(t), g, g is recorder.grads.get(id(t))) for (t, _), g in zip(recorder.leaves.values(), gradients)]
    left = [(own, recorder.lift(g._array), added) for own, g, added in seen if g is not None]  # of a plain sum, a constant
    outputs: list[Any] = [a for _, a, _ in left]
    results: list[tuple[Any, str]] = []
    first: dict[int, int] = {}
    for i, leaf in enumerate(leaves):
        array = array_of(leaf)
        if isinstance(leaf, Tensor | np.ndarray) and first.setdefault(id(leaf), i) != i:
            results.append((first[id(leaf)], "same"))
        elif isinstance(array, Traced):
            kind = "array" if not isinstance(leaf, Tensor) else "graph" if leaf._requires_grad else "tensor"
            results.append((Output(len(outputs), array.number), kind))
            outputs.append(array)
        elif (isinstance(leaf, Tensor) and not leaf._requires_grad) or not _may_be_made(leaf):
            made_here = id(leaf) in made or (isinstance(leaf, np.ndarray) and not around.knows(leaf))
            results.append((leaf, "copy" if made_here else "constant"))
        elif id(leaf) in made:
            raise CaptureError(f"results: got a {type(leaf).__name__}, expected arrays and tensors, in lists, dictionaries and "
                               "tuples")
        else:
            results.append((leaf, "constant"))
    earlier = [(given.number(t), x) for t, x in recorder.earlier]
    program = recorder.finish([*given.traced.values(), *[x for _, x in earlier]], outputs, order)
    found = Recording(
        program, list(given.traced), [own for own, _ in earlier], results, rebuild,
        [(own, i, added) for i, (own, _, added) in enumerate(left)],
        [own for own, after, _ in seen if after is None], [own for own, _, _ in seen], around,
        [t for t in graph if isinstance(given.number(t), Tensor)] if isinstance(graph, list) else graph, drawn)
    return found, made


def _containers(tree: Any) -> Iterator[Any]:
    """All lists and dictionaries of a result."""
    if isinstance(tree, list | dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        yield from _containers(child)


def _may_be_made(leaf: Any) -> bool:
    """Whether a leaf of a result may be an object that each call makes anew: no number, text, array or the like."""
    return not isinstance(leaf, (*NUMBERS, np.generic, np.ndarray, np.dtype, type)) and not isinstance(array_of(leaf), Traced)


def _in_context(function: Callable[..., Any], args: Sequence[Any]) -> Any:
    """The function's result. Context variables that it sets are as they were afterwards; Effect where it sets any."""
    context = copy_context()
    before = dict(context.items())
    result = context.run(function, *args)
    if set(map(id, before.values())) != set(map(id, context.values())):
        raise Effect("a context variable is set, expected a function that leaves all but its results as it was")
    return result


def _modes() -> tuple[dict[str, bool], Any]:
    return {name: getattr(current, name) for name in ("grad", "inference", "anomaly")}, np.geterr()


def _restore_modes(before: tuple[dict[str, bool], Any]) -> None:
    """Errors: CaptureError where the function has changed a mode for what comes after it."""
    if (now := _modes()) != before:
        set_modes(before[0])
        np.seterr(**before[1])
        if sys.exc_info()[0] is None:
            raise CaptureError(f"modes: got a function that changes one for good, to {now}, expected a with statement")


def _graph_of(results: Sequence[Any]) -> list[Tensor] | bool:
    """The leaves that results which require grad lead to; True where backward has let go of their graph; False without any."""
    stack = [t._node or t for t in results if isinstance(t, Tensor) and t._requires_grad and isinstance(t._array, Traced)]
    if not stack:
        return False
    seen, leaves = {id(place) for place in stack}, []
    while stack:
        place = stack.pop()
        if isinstance(place, Tensor):
            leaves.append(place)
            continue
        if place.vjp is None:
            return True
        new = {id(p): p for p in place.parents if p is not None and id(p) not in seen}
        seen |= new.keys()
        stack += new.values()
    return leaves


def _generators_of(calls: Sequence[Any]) -> list[np.random.Generator]:
    found = [a for call in calls for a in (*call.args, *call.options.values()) if isinstance(a, np.random.Generator)]
    return list({id(g): g for g in found}.values())


def _check_left(recorder: Recorder) -> None:
    """Effect where an array of the recording is still somewhere: in an attribute, a list, a result of another kind."""
    if left := recorder.left():
        raise Effect(f"an array {left[0].shape} of {left[0].dtype} is kept after the call, expected it among the results: "
                     "lists, dictionaries and tuples of arrays and tensors")


class _Arguments:
    """What a function is shown of its arguments. A tensor that is given twice is one tensor."""

    def __init__(self, recorder: Recorder, args: Sequence[Any]) -> None:
        self.recorder, self.args = recorder, args
        self.traced: dict[int, Traced] = {}  # by number
        self._shown: dict[int, Any] = {}
        self.shown = [self._show(i, a) for i, a in enumerate(args)]
        self._numbers = {id(shown): i for i, shown in reversed(list(enumerate(self.shown)))}

    def number(self, tensor: Tensor) -> int | Tensor:
        """Of what the function was shown, the number; any other tensor itself."""
        return self._numbers.get(id(tensor), tensor)

    def check(self) -> None:
        """CaptureError where the function got a tensor with a gradient in two ways."""
        if any(isinstance(a, Tensor) and id(a) in self.recorder.leaves for a in self.args):
            raise CaptureError("arguments: got a tensor that the function reads by itself as well, expected one or the other")
        if any(isinstance(a, Tensor) and self._shown[id(a)]._requires_grad != a._requires_grad for a in self.args):
            raise CaptureError("arguments: got a tensor whose requires_grad the function changes, expected it as it was")
        if any(isinstance(a, Tensor) and not a.is_leaf and self._shown[id(a)]._grad is not None for a in self.args):
            raise CaptureError("arguments: got a backward() through one with a graph of its own, expected a leaf")

    def _show(self, i: int, a: Any) -> Any:
        if not isinstance(a, Tensor | np.ndarray):
            return a
        if id(a) not in self._shown:
            self._shown[id(a)] = self._tensor(i, a) if isinstance(a, Tensor) else self._traced(i, a)
        return self._shown[id(a)]

    def _traced(self, i: int, array: np.ndarray) -> Traced:
        check_kind(f"argument {i}", array)
        self.traced[i] = self.recorder.trace(array)
        return self.traced[i]

    def _tensor(self, i: int, a: Tensor) -> Tensor:
        shown: Tensor = type(a).from_array(self._traced(i, a._array))  # type: ignore[arg-type]
        shown.grad = a._grad if a.is_leaf else None
        return shown.requires_grad_(a.requires_grad)


def array_of(a: Any) -> Any:
    """A tensor's array; anything else as it is."""
    return a._array if isinstance(a, Tensor) else a
