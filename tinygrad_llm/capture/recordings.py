"""A recording: one run of a function as a program, with what goes in, what comes out, and what it must find around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.modes import recording
from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.capture.ir import CaptureError
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.record import Recorder, Traced
from tinygrad_llm.capture.surroundings import Effect, Surroundings


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
              or one with a "graph"
    rebuild   makes the result of its leaves
    leaves    tensors whose `.grad` the function left, with the number of the output that it is
    arguments the same for tensors among the arguments, by their numbers
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
    leaves: list[tuple[Tensor, int]]
    arguments: list[tuple[int, int]]
    cleared: list[int | Tensor]
    seen: list[int | Tensor]
    around: Surroundings
    graph: list[Tensor] | bool
    drawn: list[np.random.Generator]


def record(
    function: Callable[..., Any], args: Sequence[Any], root: Any = None, roots: Sequence[Any] = (), lines: bool = False
) -> Recording:
    """Run a function once on arrays without values. args are arrays and tensors, whatever else is a constant.

    Calls carry the names of the modules below `root` that they come from; roots are what the function reads, if a frame of
    this library stands before it.

    Errors: CaptureError where it asks for a value, or does what leaves no trace; Effect where it changes something, which is
    undone.
    """
    recorder, around = Recorder(root, lines), Surroundings()
    for one in (function, *roots):
        around.visit("the function", one)
    try:
        found = _recorded(recorder, around, function, args)
        around.forget()
        _check_left(recorder)
        around.settle()
    except BaseException:
        around.restore()
        raise
    return found


def _recorded(recorder: Recorder, around: Surroundings, function: Callable[..., Any], args: Sequence[Any]) -> Recording:
    given = _Arguments(recorder, args)
    try:
        with recording(recorder), around.watching():
            leaves, rebuild = flatten(function(*given.shown))
        if recorder.refused is not None:
            raise recorder.refused
        given.check()
        gradients: list[Tensor | None] = [t.grad for t, _ in recorder.leaves.values()]
    finally:
        for tensor, before in recorder.leaves.values():
            tensor.grad = before
    around.look_at(recorder.tensors.values())
    graph = _graph_of(leaves)
    seen = [(given.number(t), g) for (t, _), g in zip(recorder.leaves.values(), gradients)]
    left = [(own, recorder.lift(g._array)) for own, g in seen if g is not None]  # of a plain sum, it is a constant
    outputs: list[Any] = [a for _, a in left]
    results: list[tuple[Any, str]] = []
    for leaf in leaves:
        array = array_of(leaf)
        traced = isinstance(array, Traced)
        kind = "array" if not isinstance(leaf, Tensor) else "graph" if leaf._requires_grad else "tensor"
        results.append((Output(len(outputs), array.number) if traced else leaf, kind))
        outputs += [array] if traced else []
    earlier = [(given.number(t), x) for t, x in recorder.earlier]
    program = recorder.finish([*given.traced.values(), *[x for _, x in earlier]], outputs)
    return Recording(
        program, list(given.traced), [own for own, _ in earlier], results, rebuild,
        [(t, i) for i, (t, _) in enumerate(left) if isinstance(t, Tensor)],
        [(n, i) for i, (n, _) in enumerate(left) if isinstance(n, int)],
        [own for own, after in seen if after is None], [own for own, _ in seen], around,
        [t for t in graph if isinstance(given.number(t), Tensor)] if isinstance(graph, list) else graph,
        _generators_of(recorder.calls))


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
        self._tensors: dict[int, Tensor] = {}
        self.shown = [self._show(i, a) for i, a in enumerate(args)]
        self._numbers = {id(shown): i for i, shown in reversed(list(enumerate(self.shown)))}

    def number(self, tensor: Tensor) -> int | Tensor:
        """Of what the function was shown, the number; any other tensor itself."""
        return self._numbers.get(id(tensor), tensor)

    def check(self) -> None:
        """CaptureError where the function got a tensor with a gradient in two ways."""
        if any(isinstance(a, Tensor) and id(a) in self.recorder.leaves for a in self.args):
            raise CaptureError("arguments: got a tensor that the function reads by itself as well, expected one or the other")
        if any(isinstance(a, Tensor) and not a.is_leaf and self._tensors[id(a)].grad is not None for a in self.args):
            raise CaptureError("arguments: got a backward() through one with a graph of its own, expected a leaf")

    def _show(self, i: int, a: Any) -> Any:
        if isinstance(a, Tensor):
            if id(a) not in self._tensors:
                self._tensors[id(a)] = self._tensor(i, a)
            return self._tensors[id(a)]
        if isinstance(a, np.ndarray):
            self.traced[i] = self.recorder.trace(a)
            return self.traced[i]
        return a

    def _tensor(self, i: int, a: Tensor) -> Tensor:
        self.traced[i] = self.recorder.trace(a._array)
        shown: Tensor = Tensor.from_array(self.traced[i])  # type: ignore[arg-type]
        shown.grad = a.grad if a.is_leaf else None
        return shown.requires_grad_(a.requires_grad)


def array_of(a: Any) -> Any:
    """A tensor's array; anything else as it is."""
    return a._array if isinstance(a, Tensor) else a
