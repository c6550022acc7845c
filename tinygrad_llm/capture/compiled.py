"""compile: a function that is recorded on its first call for each layout of its arguments, and replayed after that."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.modes import is_grad_enabled, recording
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
    """A function's program, and what its outputs are.

    results   for each leaf of the function's result: its output, or the leaf itself; and whether it was a tensor
    rebuild   makes the result of its leaves
    leaves    tensors whose `.grad` the function left, with the index of the output that it is
    """

    program: Program
    results: list[tuple[Any, bool]]
    rebuild: Callable[[list[Any]], Any]
    leaves: list[tuple[Tensor, int]]


def record(function: Callable[..., Any], args: Sequence[Any], root: Any = None) -> Recording:
    """Run a function once on arrays without values. args are arrays and tensors, whatever else is a constant.

    Calls carry the names of the modules below `root` that they come from.

    Errors: CaptureError where it asks for a value, or does what leaves no trace.
    """
    recorder = Recorder(root)
    inputs = [_traced(recorder, a) for a in args]
    try:
        with recording(recorder):
            leaves, rebuild = flatten(function(*[shown for _, shown in inputs]))
        left: list[tuple[Tensor, Any]] = [(t, t.grad._array) for t, _ in recorder.leaves.values()
                                           if t.grad is not None and _is_traced(t.grad)]
    finally:
        for tensor, before in recorder.leaves.values():
            tensor.grad = before
    outputs: list[Any] = [a for _, a in left]
    results: list[tuple[Any, bool]] = []
    for leaf in leaves:
        array = leaf._array if isinstance(leaf, Tensor) else leaf
        results.append((Output(len(outputs)) if isinstance(array, Traced) else leaf, isinstance(leaf, Tensor)))
        outputs += [array] if isinstance(array, Traced) else []
    own = {id(shown): a for (_, shown), a in zip(inputs, args)}
    program = recorder.finish([x for x, _ in inputs if x is not None], outputs)
    return Recording(program, results, rebuild, [(own.get(id(t), t), i) for i, (t, _) in enumerate(left)])


def _traced(recorder: Recorder, a: Any) -> tuple[Traced | None, Any]:
    """(an input, what the function is shown of it)."""
    if isinstance(a, Tensor):
        x = recorder.trace(a._array)
        shown = Tensor.from_array(x)  # type: ignore[arg-type]
        return x, shown.requires_grad_(a.requires_grad)
    if isinstance(a, np.ndarray):
        x = recorder.trace(a)
        return x, x
    return None, a


def _is_traced(tensor: Tensor) -> bool:
    return isinstance(tensor._array, Traced)


class Compiled:
    """A compiled function; see `compile`. `program(*args)` is the program for such arguments."""

    def __init__(self, function: Callable[..., Any], passes: Sequence[Pass] = DEFAULT, programs: int = PROGRAMS) -> None:
        self.function, self.passes, self.limit = function, tuple(passes), programs
        self.reason: str | None = None
        self._ready: OrderedDict[Any, tuple[Recording, Replay]] = OrderedDict()
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any) -> Any:
        """The function's result. Tensors in it are detached."""
        if self.reason is not None:
            return self.function(*args)
        leaves, rebuild = flatten(args)
        try:
            recording, replay = self._prepared(leaves, rebuild)
        except CaptureError as error:
            self.reason = str(error)
            warnings.warn(f"{_name(self.function)} runs without capture: {error}", RuntimeWarning, stacklevel=2)
            return self.function(*args)
        arrays = [a._array if isinstance(a, Tensor) else a for a in leaves if isinstance(a, Tensor | np.ndarray)]
        for place, array in zip(replay.inputs, arrays):
            np.copyto(place, array)
        replay.run()
        return self._results(recording, replay)

    def program(self, *args: Any) -> Program:
        """The optimized program for arguments of this layout: print it. Errors: CaptureError."""
        return self._prepared(*flatten(args))[1].program

    def _prepared(self, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> tuple[Recording, Replay]:
        key = (is_grad_enabled(), *[_layout(a) for a in leaves])
        if key not in self._ready:
            recording = record(lambda *flat: self.function(*rebuild(list(flat))), leaves)
            self._ready[key] = recording, Replay(optimize(recording.program, self.passes))
            if len(self._ready) > self.limit:
                self._ready.popitem(last=False)
        self._ready.move_to_end(key)
        return self._ready[key]

    def _results(self, recording: Recording, replay: Replay) -> Any:
        arrays = [np.copy(a) for a in replay.outputs]
        for tensor, i in recording.leaves:
            tensor.grad = Tensor.from_array(arrays[i] if tensor.grad is None else tensor.grad._array + arrays[i])
        return recording.rebuild([_shown(place, tensor, arrays) for place, tensor in recording.results])


def compile(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A function of arrays and tensors that does its work by replaying a program of NumPy calls.

        step = compile(loss_and_gradients)      step(ids, targets)

    The first call for each layout (shapes, strides, dtypes) of the arguments records the program, later ones replay it.
    Weights and other tensors that the function reads are read at each call; Python numbers, and what it computes with them,
    are constants. Gradients that it leaves in `.grad` are left there. It must return its results, and not depend on values:
    where it does, a RuntimeWarning says why, and it runs as it is.

    passes      which passes improve the program, tinygrad_llm.capture.passes.DEFAULT
    programs    how many layouts are kept
    """
    return (lambda f: Compiled(f, **options)) if function is None else Compiled(function, **options)


def _shown(place: Any, tensor: bool, arrays: list[np.ndarray]) -> Any:
    if not isinstance(place, Output):
        return place
    return Tensor.from_array(arrays[place.number]) if tensor else arrays[place.number]


def _layout(a: Any) -> Any:
    if isinstance(a, Tensor):
        return a.shape, a._array.strides, a.dtype, a.requires_grad
    return (a.shape, a.strides, a.dtype) if isinstance(a, np.ndarray) else a


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
