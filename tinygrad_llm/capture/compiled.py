"""compile: a function that is recorded on its first call for each layout of its arguments, and replayed after that."""

from __future__ import annotations

import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.modes import active_recorder, is_anomaly_enabled, recording, records_graph
from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.capture.ir import CaptureError
from tinygrad_llm.capture.passes import DEFAULT, Pass, optimize
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.record import Recorder, Traced
from tinygrad_llm.capture.replay import Replay

PROGRAMS = 8
"""How many programs a compiled function keeps: one for each layout of its arguments, the oldest unused is dropped."""


@dataclass(frozen=True)
class Output:
    """The place of an output in the result of a function."""

    number: int


@dataclass
class Recording:
    """A function's program, and what its inputs and outputs are.

    inputs    the numbers of the arguments that are the program's first inputs
    earlier   tensors, and arguments by their numbers, whose `.grad` of before the call are the others
    results   for each leaf of the function's result: its output, or the leaf itself; and whether it was a tensor
    rebuild   makes the result of its leaves
    leaves    tensors whose `.grad` the function left, with the number of the output that it is
    arguments the same for tensors among the arguments, by their numbers
    cleared   tensors, and arguments by their numbers, that it left without `.grad`
    seen      all that it met, if they want a gradient
    """

    program: Program
    inputs: list[int]
    earlier: list[int | Tensor]
    results: list[tuple[Any, bool]]
    rebuild: Callable[[list[Any]], Any]
    leaves: list[tuple[Tensor, int]]
    arguments: list[tuple[int, int]]
    cleared: list[int | Tensor]
    seen: list[int | Tensor]


def record(function: Callable[..., Any], args: Sequence[Any], root: Any = None) -> Recording:
    """Run a function once on arrays without values. args are arrays and tensors, whatever else is a constant.

    Calls carry the names of the modules below `root` that they come from.

    Errors: CaptureError where it asks for a value, or does what leaves no trace.
    """
    recorder = Recorder(root)
    given = _Arguments(recorder, args)
    try:
        with recording(recorder):
            leaves, rebuild = flatten(function(*given.shown))
        given.check()
        gradients: list[Tensor | None] = [t.grad for t, _ in recorder.leaves.values()]
    finally:
        for tensor, before in recorder.leaves.values():
            tensor.grad = before
    seen = [(given.number(t), g) for (t, _), g in zip(recorder.leaves.values(), gradients)]
    left = [(own, recorder.lift(g._array)) for own, g in seen if g is not None]  # of a plain sum, it is a constant
    outputs: list[Any] = [a for _, a in left]
    results: list[tuple[Any, bool]] = []
    for leaf in leaves:
        array = _array_of(leaf)
        results.append((Output(len(outputs)) if isinstance(array, Traced) else leaf, isinstance(leaf, Tensor)))
        outputs += [array] if isinstance(array, Traced) else []
    earlier = [(given.number(t), x) for t, x in recorder.earlier]
    program = recorder.finish([*given.traced.values(), *[x for _, x in earlier]], outputs)
    return Recording(
        program, list(given.traced), [own for own, _ in earlier], results, rebuild,
        [(t, i) for i, (t, _) in enumerate(left) if isinstance(t, Tensor)],
        [(n, i) for i, (n, _) in enumerate(left) if isinstance(n, int)],
        [own for own, after in seen if after is None], [own for own, _ in seen])


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
        if a.requires_grad and not a.is_leaf and records_graph():
            raise CaptureError("arguments: got a tensor with a graph of its own, expected a leaf or a detached tensor")
        self.traced[i] = self.recorder.trace(a._array)
        shown: Tensor = Tensor.from_array(self.traced[i])  # type: ignore[arg-type]
        shown.grad = a.grad if a.is_leaf else None
        return shown.requires_grad_(a.requires_grad)


class Compiled:
    """A compiled function; see `compile`. `program(*args)` is the program for such arguments.

    reason    why it runs without capture, if it does
    """

    def __init__(self, function: Callable[..., Any], passes: Sequence[Pass] = DEFAULT, programs: int = PROGRAMS) -> None:
        self.function, self.passes, self.limit = function, tuple(passes), programs
        self.reason: str | None = None
        self._ready: OrderedDict[Any, dict[Any, tuple[Recording, Replay]]] = OrderedDict()
        self._lock = threading.RLock()
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's result. Tensors in it are detached."""
        if self.reason is not None or active_recorder() is not None or is_anomaly_enabled():
            return self.function(*args, **kwargs)
        with self._lock:
            leaves, rebuild = flatten((args, kwargs))
            try:
                recording, replay = self._prepared(leaves, rebuild)
            except Exception as error:  # the function's own, if it raises one without capture as well
                refused = error
            else:
                return self._run(recording, replay, leaves)
        result = self.function(*args, **kwargs)
        self.reason = str(refused) if isinstance(refused, CaptureError) else f"{type(refused).__name__}: {refused}"
        warnings.warn(f"{_name(self.function)} runs without capture: {self.reason}", RuntimeWarning, stacklevel=2)
        return result

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """The optimized program for arguments of this layout: print it. Errors: CaptureError."""
        return self._prepared(*flatten((args, kwargs)))[1].program

    def _prepared(self, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> tuple[Recording, Replay]:
        key = _key(leaves, rebuild)
        known = self._ready.get(key, {})  # by what gradients there are: all of them have seen the same tensors
        state = next((_gradients(recording.seen, leaves) for recording, _ in known.values()), None)
        if state not in known:
            recording = record(lambda *flat: _called(self.function, rebuild(list(flat))), leaves)
            fits = len(known) < self.limit and all(_are_same(r.seen, recording.seen) for r, _ in known.values())
            known = self._ready[key] = known if fits else {}
            state = _gradients(recording.seen, leaves) if state is None else state
            known[state] = recording, Replay(optimize(recording.program, self.passes))
        self._ready.move_to_end(key)
        if len(self._ready) > self.limit:
            self._ready.popitem(last=False)
        return known[state]

    def _run(self, recording: Recording, replay: Replay, leaves: list[Any]) -> Any:
        given = [*[leaves[n] for n in recording.inputs], *[t.grad for t in _tensors(recording.earlier, leaves)]]
        for place, a in zip(replay.inputs, given):
            np.copyto(place, _array_of(a))
        replay.run()
        arrays = [np.copy(a) for a in replay.outputs]
        for tensor, i in [*recording.leaves, *[(leaves[n], i) for n, i in recording.arguments]]:
            tensor.grad = Tensor.from_array(arrays[i])
        for tensor in _tensors(recording.cleared, leaves):
            tensor.grad = None
        return recording.rebuild([_shown(place, tensor, arrays) for place, tensor in recording.results])


def compile(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A function of arrays and tensors that does its work by replaying a program of NumPy calls.

        step = compile(loss_and_gradients)      step(ids, targets)

    The first call for each layout (shapes, strides, dtypes) of the arguments records the program, later ones replay it.
    Weights and other tensors that the function reads are read at each call; Python numbers, and what it computes without
    arguments and tensors, are constants. Gradients that it leaves in `.grad` are left there. It must return its results, and
    not depend on values: where it does, a RuntimeWarning says why, and it runs as it is. Tensors that it returns are detached,
    and share no memory with its arguments.

    passes      which passes improve the program, tinygrad_llm.capture.passes.DEFAULT
    programs    how many layouts are kept, the oldest unused is dropped
    """
    return (lambda f: Compiled(f, **options)) if function is None else Compiled(function, **options)


def _shown(place: Any, tensor: bool, arrays: list[np.ndarray]) -> Any:
    if not isinstance(place, Output):
        return place
    return Tensor.from_array(arrays[place.number]) if tensor else arrays[place.number]


def _array_of(a: Any) -> Any:
    return a._array if isinstance(a, Tensor) else a


def _called(function: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    return function(*arguments[0], **arguments[1])


def _key(leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Any:
    """Equal for calls that one program can serve: modes, the form of the arguments, layouts, constants, which are the same."""
    first: dict[int, int] = {}
    same = [first.setdefault(id(a), i) for i, a in enumerate(leaves) if isinstance(a, Tensor)]
    return records_graph(), repr(rebuild([None] * len(leaves))), *same, *[_layout(a) for a in leaves]


def _layout(a: Any) -> Any:
    """What a program depends on: of a constant its value; 1, 1.0 and True are equal, and yet not the same."""
    if isinstance(a, Tensor):
        return a.shape, a._array.strides, a.dtype, a.requires_grad
    if isinstance(a, np.ndarray):
        return a.shape, a.strides, a.dtype
    return type(a), repr(a) if isinstance(a, int | float | complex | np.generic) else a


def _are_same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b))


def _gradients(seen: list[int | Tensor], leaves: list[Any]) -> Any:
    """Which of the tensors that a program knows have a `.grad` already, and in which layout."""
    return tuple([None if t.grad is None else _layout(t.grad) for t in _tensors(seen, leaves)])


def _tensors(some: Sequence[int | Tensor], leaves: list[Any]) -> list[Tensor]:
    """Tensors as they are, arguments by their numbers."""
    return [leaves[own] if isinstance(own, int) else own for own in some]


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
