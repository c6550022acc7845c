"""compile: a function that is recorded on its first call for each layout of its arguments, and replayed after that."""

from __future__ import annotations

import copy
import functools
import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.checkpointing import Segment
from tinygrad_llm.autograd.graph import Node
from tinygrad_llm.autograd.modes import active_recorder, is_anomaly_enabled, records_graph
from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.capture.ir import why_refused
from tinygrad_llm.capture.listing import first_difference
from tinygrad_llm.capture.passes import DEFAULT, Pass, optimize
from tinygrad_llm.capture.places import are_same
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.rationing import Ration
from tinygrad_llm.capture.recordings import Output, Recording, array_of, record
from tinygrad_llm.capture.replay import Replay
from tinygrad_llm.capture.surroundings import Effect
from tinygrad_llm.ops import Op

PROGRAMS = 8
"""How many programs a compiled function keeps: one for each layout of its arguments, the oldest unused is dropped."""

ASKED = 256
"""How many layouts without a program are remembered: what came twice may come again, and be worth a recording."""


class CaptureMismatch(AssertionError):
    """A replay gave something else than the function as it is: a fault of this library's, or a line that the contract lacks."""


@dataclass
class _Program:
    """A recording, ready to run, and which gradients there must be."""

    recording: Recording
    replay: Replay
    state: Any


class Compiled:
    """A compiled function; see `compile`. `program(*args)` is the program for such arguments.

    reason    why it runs without capture, if it does
    """

    def __init__(
        self, function: Callable[..., Any], passes: Sequence[Pass] = DEFAULT, programs: int = PROGRAMS, check: int | str = 0
    ) -> None:
        if check != "always" and (not isinstance(check, int) or check < 0):
            raise ValueError(f"compile: check: got {check!r}, expected 'always' or a number of calls")
        self.function, self.passes, self.limit = function, tuple(passes), programs
        self.check = 1 if check == "always" or os.environ.get("TINYGRAD_LLM_CAPTURE") == "check" else int(check)
        self.reason: str | None = None
        self._effects: list[Any] = []
        self._methods: dict[int, Compiled] = {}
        self.ration = Ration()
        self._asked: OrderedDict[Any, None] = OrderedDict()
        self._ready: OrderedDict[Any, list[_Program]] = OrderedDict()
        self._lock = threading.RLock()
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's result."""
        if self.reason is not None or active_recorder() is not None or is_anomaly_enabled() or _raises():
            return self.function(*args, **kwargs)
        with self._lock:
            leaves, rebuild = flatten((args, kwargs))
            refused: Exception | None = None
            try:
                key = _key(leaves, rebuild)
                program = self._prepared(key, leaves, rebuild)
            except Exception as error:  # the function's own, if it raises one without capture as well
                refused = error
            else:
                if program is not None:
                    return self._replayed(program, leaves, rebuild)
        began = perf_counter()
        result = self.function(*args, **kwargs)
        self.ration.add_run(perf_counter() - began)
        if isinstance(refused, Effect) and key not in self._effects:
            self._effects = [key, *self._effects][:ASKED]  # what it did is done now, perhaps for good: a table that it keeps
        elif refused is not None:
            self.reason = why_refused(refused)
            warnings.warn(f"{_name(self.function)} runs without capture: {self.reason}", RuntimeWarning, stacklevel=2)
        return result

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        """As a method: each object has programs of its own."""
        if owner is None:
            return self
        key = id(owner)
        if key not in self._methods:
            self._methods[key] = Compiled(_Method(self.function, owner), self.passes, self.limit, self.check)
            weakref.finalize(owner, self._methods.pop, key, None)
        return self._methods[key]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Compiled, (self.function, self.passes, self.limit, self.check)

    def _record(self, leaves: list[Any], rebuild: Callable[[list[Any]], Any], lines: bool = False) -> Recording:
        own = self.function
        roots = [own.function, own.owner()] if isinstance(own, _Method) else [own]
        return record(lambda *flat: _called(own, rebuild(list(flat))), leaves, roots=roots, lines=lines)

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """The optimized program for arguments of this layout: print it. Errors: CaptureError."""
        leaves, rebuild = flatten((args, kwargs))
        found = self._prepared(_key(leaves, rebuild), leaves, rebuild, always=True)
        assert found is not None
        return found.replay.program

    def _prepared(
        self, key: Any, leaves: list[Any], rebuild: Callable[[list[Any]], Any], always: bool = False
    ) -> _Program | None:
        """The program for these arguments and for what is around the function now; None where it is not worth recording one."""
        known, news = self._ready.get(key, []), "arguments of another kind"
        for program in known:
            if program.state == _gradients(program.recording.seen, leaves):
                why = program.recording.around.changed()
                if why is None:
                    self._ready.move_to_end(key)
                    return program
                news = why
        if not (always or self._is_worth_it(key, news)):
            return None
        made: _Program | None = None
        began = perf_counter()
        try:
            recording = self._record(leaves, rebuild)
            made = _Program(recording, Replay(optimize(recording.program, self.passes)), _gradients(recording.seen, leaves))
        finally:
            self.ration.add_recording(perf_counter() - began, made is not None)
        self._ready[key] = [made, *known][: self.limit]
        self._ready.move_to_end(key)
        if len(self._ready) > self.limit:
            self._ready.popitem(last=False)
        return made

    def _is_worth_it(self, key: Any, news: str) -> bool:
        """Whether to record once more: at first, and then what has been seen before, where it does not take too long."""
        known, self._asked[key] = key in self._asked, None
        self._asked.move_to_end(key)
        if len(self._asked) > ASKED:
            self._asked.popitem(last=False)
        if self.ration.allows(known):
            return True
        if (said := self.ration.told(news)) is not None:
            warnings.warn(f"{_name(self.function)}: {said}", RuntimeWarning, stacklevel=4)
        return False

    def _replayed(self, program: _Program, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Any:
        began = perf_counter()
        if self.check and (self.ration.replayed + 1) % self.check == 0:
            result = self._checked(program, leaves, rebuild)
        else:
            result = self._run(program, leaves, rebuild)
        self.ration.add_replay(perf_counter() - began)
        return result

    def _checked(self, program: _Program, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Any:
        """The result, after the function as it is has given the same bits. Errors: CaptureMismatch."""
        recording = program.recording
        tensors, drawn = _tensors(recording.seen, leaves), [g.bit_generator for g in recording.drawn]
        before, states = [_copied(t._grad) for t in tensors], [bits.state for bits in drawn]
        replayed = [_copied(a) for a in flatten(self._run(program, leaves, rebuild))[0]] + [_copied(t._grad) for t in tensors]
        for t, gradient in zip(tensors, before):
            t._grad = gradient
        for bits, state in zip(drawn, states):
            bits.state = state
        args, kwargs = rebuild(leaves)
        result = self.function(*args, **kwargs)
        expected = flatten(result)[0] + [t._grad for t in tensors]
        if len(replayed) != len(expected) or not all(map(_are_bits, replayed, expected)):
            wrong = next((i for i, pair in enumerate(zip(replayed, expected)) if not _are_bits(*pair)), -1)
            again = self._record(leaves, rebuild, lines=True)
            results = len(expected) - len(tensors)
            what = f"result {wrong}" if wrong < results else f"gradient {wrong - results}"
            raise CaptureMismatch(f"{_name(self.function)}: {what} of a replay is not that of the function: "
                                  f"{first_difference(recording.program, again.program)}")
        return result

    def _run(self, program: _Program, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Any:
        recording, replay = program.recording, program.replay
        segment = None
        if isinstance(recording.graph, list):
            kept = _Kept(_tensors(recording.seen, leaves))
            segment = Segment(self.function, leaves, rebuild, recording.drawn, False, kept)
        given = [*[leaves[n] for n in recording.inputs], *[t._grad for t in _tensors(recording.earlier, leaves)]]
        for place, a in zip(replay.inputs, given):
            np.copyto(place, array_of(a))
        replay.run()
        arrays = [np.copy(a) for a in replay.outputs]
        for tensor, i in [*recording.leaves, *[(leaves[n], i) for n, i in recording.arguments]]:
            tensor.grad = Tensor.from_array(arrays[i])
        for tensor in _tensors(recording.cleared, leaves):
            tensor.grad = None
        results = [_shown(place, kind, arrays) for place, kind in recording.results]
        if recording.graph is not False:
            self._lead(recording, segment, results)
        return recording.rebuild(results)

    def _lead(self, recording: Recording, segment: Segment | None, results: list[Any]) -> None:
        """Results with a graph get one: backward runs the function as it is. With a graph that is used up, one that says so."""
        made = [t for t, (place, kind) in zip(results, recording.results) if kind == "graph" and isinstance(place, Output)]
        if segment is not None:
            places: list[Any] = recording.graph  # type: ignore[assignment]
            segment.given += [(p._counter, p._counter.count) for p in places]
            segment.lead("compiled", made, places)
            return
        for t in made:
            t._node, t._requires_grad = _spent(t, [x for x in recording.seen if isinstance(x, Tensor)]), True


def compile(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A function of arrays and tensors that does its work by replaying a program of NumPy calls.

        step = compile(loss_and_gradients)      step(ids, targets)

    The first call for each layout (shapes, strides, dtypes) of the arguments records the program, later ones replay it.
    Tensors that the function reads are read at each call; where anything else that its names lead to has changed (a number, an
    attribute, a mode, an array outside) it is recorded anew. Gradients that it leaves in `.grad` are left there. It must return
    its results, and not depend on values: where it does, a RuntimeWarning says why, and it runs as it is. What it returns
    shares no memory with its arguments. A module gives a module. docs/capture.md has the contract.

    check       "always", or after how many calls one is checked: the function is run as it is as well, and where the bits are
                not the same, a CaptureMismatch names the first call that differs. TINYGRAD_LLM_CAPTURE=check checks all
    passes      which passes improve the program, tinygrad_llm.capture.passes.DEFAULT
    programs    how many layouts are kept, the oldest unused is dropped
    """
    if function is None:
        return lambda f: compile(f, **options)
    compiled = Compiled(function, **options)
    return _as_module(compiled, function) if hasattr(function, "named_modules") else compiled


class CompiledModule:
    """Before a module's class: a module whose call replays, and whose parameters, modes and attributes are the module's own."""

    __slots__ = ("compiled",)

    compiled: Compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(*args, **kwargs)

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """See Compiled.program."""
        return self.compiled.program(*args, **kwargs)

    @property
    def reason(self) -> str | None:
        """Why it runs without capture, if it does."""
        return self.compiled.reason

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return compile(copy.deepcopy(self.compiled.function, memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return compile, (self.compiled.function,)


def _as_module(compiled: Compiled, module: Any) -> Any:
    kind = type(module)
    made: Any = object.__new__(type(kind.__name__, (CompiledModule, kind), {"__slots__": (), "__module__": kind.__module__}))
    object.__setattr__(made, "__dict__", vars(module))
    object.__setattr__(made, "compiled", compiled)
    return made


class _Method:
    """A method of an object that it does not keep alive."""

    def __init__(self, function: Callable[..., Any], owner: Any) -> None:
        self.function, self.owner = function, weakref.ref(owner)
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.owner(), *args, **kwargs)


class _Kept:
    """A block that leaves the `.grad` of tensors as it was: for a function that runs once more, with a backward inside."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __enter__(self) -> None:
        self.before = [t._grad for t in self.tensors]
        for t in self.tensors:
            t._grad = None

    def __exit__(self, *exception: Any) -> None:
        for t, gradient in zip(self.tensors, self.before):
            t._grad = gradient


_SPENT = Op("compiled", lambda x: (x, lambda g: (g,)), (), {}, "", variadic=True)


def _spent(result: Tensor, parents: Sequence[Tensor]) -> Node:
    """The node of a result whose graph was used up by a backward inside of the function."""
    node = Node(_SPENT, lambda g: (g,), tuple(parents), {}, result)
    node.vjp = None
    return node


def _shown(place: Any, kind: str, arrays: list[np.ndarray]) -> Any:
    if not isinstance(place, Output):
        return place.copy() if isinstance(place, np.ndarray) else place
    array = arrays[place.number]
    return Tensor.from_array(array) if kind != "array" else array[()] if place.is_scalar else array


def _copied(a: Any) -> Any:
    if isinstance(a, Tensor):
        return a.wrap(a._array.copy("K"))
    return a.copy("K") if isinstance(a, np.ndarray) else a


def _are_bits(a: Any, b: Any) -> bool:
    """Whether two results are the same: of arrays and tensors all bits, but for those of a nan."""
    if isinstance(a, Tensor | np.ndarray) and isinstance(b, Tensor | np.ndarray):
        a, b = array_of(a), array_of(b)
        same = a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        return bool(same and (a.dtype.kind != "f" or np.array_equal(np.signbit(a[a == a]), np.signbit(b[b == b]))))
    return bool(a is b or (type(a) is type(b) and repr(a) == repr(b)) or not isinstance(a, np.generic | int | float | str))


def _raises() -> bool:
    """Whether NumPy's errors are to be heard of: a program is silent."""
    return not {"raise", "call", "log", "print"}.isdisjoint(np.geterr().values())


def _called(function: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """The function's result. Errors: Effect where it put something into its arguments."""
    before = flatten(arguments)[0]
    result = function(*arguments[0], **arguments[1])
    if not are_same(flatten(arguments)[0], before):
        raise Effect("arguments: got a list or dictionary that the function changes, expected it to return its results")
    return result


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


def _gradients(seen: list[int | Tensor], leaves: list[Any]) -> Any:
    """Which of the tensors that a program knows have a `.grad` already, and in which layout."""
    return tuple([None if t._grad is None else _layout(t._grad) for t in _tensors(seen, leaves)])


def _tensors(some: Sequence[int | Tensor], leaves: list[Any]) -> list[Tensor]:
    """Tensors as they are, arguments by their numbers."""
    return [leaves[own] if isinstance(own, int) else own for own in some]


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
