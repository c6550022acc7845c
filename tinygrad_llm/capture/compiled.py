"""compile: a function that is recorded on its first call for each layout of its arguments, and replayed after that."""

from __future__ import annotations

import copy
import functools
import math
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from time import perf_counter
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.graph import Node
from tinygrad_llm.autograd.modes import active_recorder, is_anomaly_enabled, warn_user
from tinygrad_llm.autograd.randomness import rewind, states_of
from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.capture.ir import CaptureError, why_refused
from tinygrad_llm.capture.keys import described, key_of
from tinygrad_llm.capture.listing import first_difference
from tinygrad_llm.capture.methods import Bound, Method
from tinygrad_llm.capture.outside import Effect
from tinygrad_llm.capture.passes import DEFAULT, Pass, optimize, peepholes
from tinygrad_llm.capture.places import are_same
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.rationing import Ration, Recent
from tinygrad_llm.capture.recordings import PATIENCE, Output, Recording, array_of, record
from tinygrad_llm.capture.replay import Replay
from tinygrad_llm.ops import Op
from tinygrad_llm.ops.closures import slot_names

PROGRAMS = 8
"""How many programs a compiled function keeps: one for each layout of its arguments, the oldest unused is dropped."""

TRIED, SAMPLES = 16, 3
"""After how many replays the function runs as it is a few times, to see which is faster."""


class CaptureMismatch(AssertionError):
    """A replay gave something else than the function as it is: a fault of this library's, or a line that the contract lacks."""


_OTHER_GRADIENTS = "which tensors have a .grad"


class LeadsOutError(CaptureError):
    """Results have a graph, which a replay would not give them."""


class _ReplayError(Exception):
    """A call of a replay has failed: the function as it is says why, or catches it."""


@dataclass
class _Program:
    """A recording, ready to run, and which gradients there must be.

    replays, runs    the seconds of the fastest replay, and of the function as it is, and how many there were of each
    """

    recording: Recording
    replay: Replay
    state: Any
    replays: tuple[int, float] = (0, math.inf)
    runs: tuple[int, float] = (0, math.inf)


class Compiled:
    """A compiled function; see `compile`. `program(*args)` is the program for such arguments.

    reason    why it runs without capture, if it does, at least for some arguments
    """

    def __init__(
        self, function: Callable[..., Any], passes: Sequence[Pass] = DEFAULT, programs: int = PROGRAMS, check: int | str = 0
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"compile: function: got {function!r}, expected a function, a method or a module")
        if isinstance(passes, str) or not all(map(callable, passes)):
            raise TypeError(f"compile: passes: got {passes!r}, expected functions such as those of tinygrad_llm.capture.passes")
        if not isinstance(programs, int) or programs < 1:
            raise ValueError(f"compile: programs: got {programs!r}, expected an integer >= 1")
        if check != "always" and (not isinstance(check, int) or check < 0):
            raise ValueError(f"compile: check: got {check!r}, expected 'always' or a number of calls")
        self.function, self.passes, self.limit = function, tuple(passes), programs
        checked = os.environ.get("TINYGRAD_LLM_CAPTURE") == "check" and peepholes not in self.passes
        self.check = 1 if check == "always" or checked else int(check)
        self.reason: str | None = None
        self.ration = Ration()
        self._told = self._is_off = False
        self._asked, self._effects, self._plain = Recent(), Recent(), Recent()
        self._ready: OrderedDict[Any, list[_Program]] = OrderedDict()
        self._methods: OrderedDict[int, Compiled] = OrderedDict()
        self._lock = threading.RLock()
        functools.update_wrapper(self, function, updated=())
        self.__isabstractmethod__ = getattr(function, "__isabstractmethod__", False)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """The function's result."""
        if self._is_off or active_recorder() is not None or is_anomaly_enabled() or not self.ration.looks():
            return self.function(*args, **kwargs)
        refused: Exception | None = None
        program: _Program | None = None
        began, key = perf_counter(), None
        if not self._lock.acquire(timeout=PATIENCE):  # who has it waits perhaps for what this thread has
            return self.function(*args, **kwargs)
        try:
            try:
                leaves, rebuild = flatten((args, kwargs))
                key, recorded = key_of(leaves, (args, kwargs)), self.ration.recorded
                program = None if key is None else self._prepared(key, leaves, rebuild)
                began = began if self.ration.recorded == recorded else perf_counter()
            except Exception as error:  # the function's own, if it raises one without capture as well
                refused = error
            if program is not None and not self._doubts(program):
                try:
                    return self._replayed(began, program, leaves, rebuild)
                except _ReplayError:
                    pass
        finally:
            self._lock.release()
        began = perf_counter()
        result = self.function(*args, **kwargs)
        self._count_run(perf_counter() - began, program, key)
        if refused is not None:
            self._refuse(refused, key)
        return result

    def _refuse(self, error: Exception, key: Any) -> None:
        """Run as it is from now on: after an effect only if it is not done once for all, as a table that the function keeps;
        where results have a graph, for such arguments."""
        if isinstance(error, Effect) and key not in self._effects:
            self._effects.add(key)
            return
        why = why_refused(error)
        if isinstance(error, LeadsOutError):
            self._run_plainly(key, why)
            return
        self.reason, self._is_off = why, True
        warn_user(f"{_name(self.function)} runs without capture: {why}")

    def _run_plainly(self, key: Any, why: str) -> None:
        """No program for such arguments; why is said once."""
        self._ready.pop(key, None)
        self._plain.add(key)
        if not self._told:
            self._told, self.reason = True, why
            warn_user(f"{_name(self.function)} runs without capture for such arguments: {why}")

    def _doubts(self, program: _Program) -> bool:
        """Whether the function is to run as it is a few times, to see whether replays are faster at all."""
        return not self.check and program.replays[0] >= TRIED and program.runs[0] < SAMPLES

    def _count_run(self, seconds: float, program: _Program | None, key: Any) -> None:
        self.ration.add_run(seconds)
        if program is None:
            return
        program.runs = program.runs[0] + 1, min(program.runs[1], seconds)
        if program.runs[0] == SAMPLES and program.runs[1] < program.replays[1]:
            times = f"{program.replays[1] * 1e6:,.0f} µs, and the function as it is {program.runs[1] * 1e6:,.0f}"
            self._run_plainly(key, f"a replay takes {times}. Before each, what its names lead to is compared: "
                                   f"{program.recording.around.longest()}")

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        """As a method: each object has programs of its own."""
        return self if owner is None else Bound(self, owner)

    def of(self, owner: Any) -> Compiled:
        """The method of an object."""
        key = id(owner)
        if key not in self._methods:
            method = Method(self.function, owner)
            self._methods[key] = Compiled(method, self.passes, self.limit, self.check)
            if not method.keeps:
                weakref.finalize(owner, self._methods.pop, key, None)
            elif len(self._methods) > 100 * self.limit:
                self._methods.popitem(last=False)
        return self._methods[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "function" not in vars(self):
            raise AttributeError(name)
        return getattr(self.function, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        found: Any = sys.modules.get(getattr(self, "__module__", ""))
        for name in getattr(self, "__qualname__", "").split("."):
            found = getattr(found, name, None)
        if found is self:  # a function that was decorated: by its name, as functions are
            return self.__qualname__
        return Compiled, (self.function, self.passes, self.limit, self.check)

    def _record(self, leaves: list[Any], rebuild: Callable[[list[Any]], Any], lines: bool = False) -> Recording:
        own = self.function
        roots = [own.function, own.owner()] if isinstance(own, Method) else [own]
        return record(lambda *flat: _called(own, rebuild(list(flat))), leaves, roots=roots, lines=lines)

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """The optimized program for arguments of this layout: print it. Errors: CaptureError."""
        leaves, rebuild = flatten((args, kwargs))
        found = self._prepared(key_of(leaves, (args, kwargs)), leaves, rebuild, always=True)
        assert found is not None
        return found.replay.program

    def _prepared(
        self, key: Any, leaves: list[Any], rebuild: Callable[[list[Any]], Any], always: bool = False
    ) -> _Program | None:
        """The program for these arguments and for what is around the function now; None where it is not worth recording one."""
        known, news = self._ready.get(key, []), ""
        for program in known:
            news = news or _OTHER_GRADIENTS
            if program.state == _gradients(program.recording.seen, leaves):
                why = program.recording.around.changed()
                if why is None:
                    self._ready.move_to_end(key)
                    return program
                news = why
        if key in self._plain and not always:
            self.ration.add_stranger()
            return None
        twin = news == _OTHER_GRADIENTS and len(self._ready) == 1
        if not always and not self._is_worth_it(key, lambda: news or self._new_in(key), twin):
            return None
        made: _Program | None = None
        began = perf_counter()
        try:
            recording = self._record(leaves, rebuild)
            if isinstance(recording.graph, list):
                raise LeadsOutError("its results lead to parameters, whose gradients a replay does not know, expected "
                                    "backward() inside, in a step that is compiled as a whole, or a call under no_grad(), or "
                                    "results that are detached")
            made = _Program(recording, Replay(optimize(recording.program, self.passes)), _gradients(recording.seen, leaves))
        finally:
            self.ration.add_recording(perf_counter() - began, made is not None)
        self._effects.discard(key)
        self._ready[key] = [made, *known][: self.limit]
        self._ready.move_to_end(key)
        if len(self._ready) > self.limit:
            self._ready.popitem(last=False)
        return made

    def _new_in(self, key: Any) -> str:
        """What differs from the arguments of a program that there is."""
        for other in reversed(self._ready):
            for i, (old, new) in enumerate(zip(other.layouts, key.layouts)):
                if old != new and len(other.layouts) == len(key.layouts):
                    hint = " (of numpy.array(x) the value is read at each call)" if issubclass(new[0], Number) else ""
                    return f"argument {i} was {described(old)} and is {described(new)}{hint}"
        return "arguments of another form"

    def _is_worth_it(self, key: Any, news: Callable[[], str], twin: bool) -> bool:
        """Whether to record once more: at first, and then what has been seen before, where it does not take too long."""
        known = key in self._asked
        self._asked.add(key)
        if self.ration.allows(known, twin):
            return True
        if (said := self.ration.told(news)) is not None:
            warn_user(f"{_name(self.function)}: {said}")
        return False

    def _replayed(
        self, began: float, program: _Program, leaves: list[Any], rebuild: Callable[[list[Any]], Any]
    ) -> Any:
        if self.check and (self.ration.replayed + 1) % self.check == 0:
            result = self._checked(program, leaves, rebuild)
        else:
            result = self._run(program, leaves)
        seconds = perf_counter() - began
        program.replays = program.replays[0] + 1, min(program.replays[1], seconds)
        self.ration.add_replay(seconds)
        return result

    def _checked(self, program: _Program, leaves: list[Any], rebuild: Callable[[list[Any]], Any]) -> Any:
        """The result, after the function as it is has given the same bits. Errors: CaptureMismatch."""
        recording = program.recording
        tensors, states = _tensors(recording.seen, leaves), states_of(recording.drawn)
        before = [(t._grad, _copied(t._grad)) for t in tensors]
        result = self._run(program, leaves)
        replayed = [_copied(a) for a in flatten(result)[0]] + [_copied(t._grad) for t in tensors]
        for t, (gradient, values) in zip(tensors, before):
            t._grad = gradient
            if gradient is not None:
                gradient._array = values._array
        rewind(states)
        args, kwargs = rebuild(leaves)
        expected = flatten(self.function(*args, **kwargs))[0] + [t._grad for t in tensors]
        if len(replayed) != len(expected) or not all(map(are_bits, replayed, expected)):
            wrong = next((i for i, pair in enumerate(zip(replayed, expected)) if not are_bits(*pair)), -1)
            again = self._record(leaves, rebuild, lines=True)
            results = len(expected) - len(tensors)
            what = f"result {wrong}" if wrong < results else f"gradient {wrong - results}"
            raise CaptureMismatch(f"{_name(self.function)}: {what} of a replay is not that of the function: "
                                  f"{first_difference(recording.program, again.program)}")
        return result

    def _run(self, program: _Program, leaves: list[Any]) -> Any:
        """The results of a replay. Errors: _ReplayError where a call fails; then nothing has been changed."""
        recording, replay = program.recording, program.replay
        given = [*[leaves[n] for n in recording.inputs], *[t._grad for t in _tensors(recording.earlier, leaves)]]
        for place, a in zip(replay.inputs, given):
            np.copyto(place, array_of(a))
        states = states_of(recording.drawn)
        try:
            replay.run()
        except Exception as error:
            rewind(states)
            raise _ReplayError from error
        arrays = [np.copy(a) for a in replay.outputs]
        for tensor, (_, i, is_added) in zip(_tensors([own for own, *_ in recording.left], leaves), recording.left):
            _set_gradient(tensor, arrays[i], is_added)
        for tensor in _tensors(recording.cleared, leaves):
            tensor.grad = None
        results: list[Any] = []
        for place, kind in recording.results:
            results.append(results[place] if kind == "same" else _shown(place, kind, arrays))
        if recording.graph is True:  # used up by a backward inside
            for t, (_, kind) in zip(results, recording.results):
                if kind == "graph":
                    t._node, t._requires_grad = _spent(t, [x for x in recording.seen if isinstance(x, Tensor)]), True
        return recording.rebuild(results)


def compile(
    function: Callable[..., Any] | None = None, *, passes: Sequence[Pass] = DEFAULT, programs: int = PROGRAMS,
    check: int | str = 0,
) -> Any:
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
        return functools.partial(compile, passes=passes, programs=programs, check=check)
    if isinstance(function, staticmethod | classmethod):
        return type(function)(compile(function.__func__, passes=passes, programs=programs, check=check))
    compiled = Compiled(function, passes, programs, check)
    return _as_module(compiled, function) if hasattr(function, "named_modules") else compiled


class CompiledModule:
    """Before a module's class: a module whose call replays, and whose parameters, modes and attributes are the module's own."""

    __slots__ = ("compiled",)

    compiled: Compiled

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(*args, **kwargs)

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """See Compiled.program."""
        return self.compiled.program(*args, **kwargs)

    @property
    def reason(self) -> str | None:
        """Why it runs without capture, if it does."""
        return self.compiled.reason

    def __copy__(self) -> Any:
        return self._again(copy.copy(self.compiled.function))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._again(copy.deepcopy(self.compiled.function, memo))

    def _again(self, module: Any) -> Any:
        compiled = self.compiled
        return compile(module, passes=compiled.passes, programs=compiled.limit, check=compiled.check)

    def __reduce_ex__(self, protocol: Any) -> Any:
        compiled = self.compiled
        options = {"passes": compiled.passes, "programs": compiled.limit, "check": compiled.check}
        return functools.partial(compile, **options), (compiled.function,)


def _as_module(compiled: Compiled, module: Any) -> Any:
    kind = type(module)
    if slot_names(kind):
        raise TypeError(f"compile: function: got a {kind.__name__}, a module with __slots__, expected one without")
    made: Any = object.__new__(type(kind.__name__, (CompiledModule, kind), {"__slots__": (), "__module__": kind.__module__}))
    object.__setattr__(made, "__dict__", vars(module))
    object.__setattr__(made, "compiled", compiled)
    return made


_SPENT = Op("compiled", lambda x: (x, lambda g: (g,)), (), {}, "", variadic=True)


def _spent(result: Tensor, parents: Sequence[Tensor]) -> Node:
    """The node of a result whose graph was used up by a backward inside of the function."""
    node = Node(_SPENT, lambda g: (g,), tuple(parents), {}, result)
    node.vjp = None
    return node


def _set_gradient(tensor: Tensor, gradient: np.ndarray, is_added: bool) -> None:
    """A tensor's new `.grad`: in the memory of the one that it has, where backward has added to that."""
    before = tensor._grad
    if is_added and before is not None and before._array.flags.writeable:
        np.copyto(before._array, gradient)
        before._counter.count += 1
    else:
        tensor._grad = Tensor.from_array(gradient)


def _shown(place: Any, kind: str, arrays: list[np.ndarray]) -> Any:
    if not isinstance(place, Output):
        return _copied(place) if kind == "copy" else place
    array = arrays[place.number]
    return Tensor.from_array(array) if kind != "array" else array[()] if place.is_scalar else array


def _copied(a: Any) -> Any:
    if isinstance(a, Tensor):
        return a.wrap(a._array.copy("K"))
    return a.copy("K") if isinstance(a, np.ndarray) else a


def are_bits(a: Any, b: Any) -> bool:
    """Whether two results are the same: of arrays and tensors all bits, but for those of a nan."""
    if isinstance(a, Tensor | np.ndarray) and isinstance(b, Tensor | np.ndarray):
        a, b = array_of(a), array_of(b)
        same = a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        return bool(same and (a.dtype.kind != "f" or np.array_equal(np.signbit(a[a == a]), np.signbit(b[b == b]))))
    return bool(a is b or (type(a) is type(b) and repr(a) == repr(b)) or not isinstance(a, np.generic | int | float | str))


def _called(function: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """The function's result. Errors: Effect where it put something into its arguments."""
    before = flatten(arguments)[0]
    result = function(*arguments[0], **arguments[1])
    if not are_same(flatten(arguments)[0], before):
        raise Effect("arguments: got a list or dictionary that the function changes, expected it to return its results")
    return result


def _gradients(seen: list[int | Tensor], leaves: list[Any]) -> Any:
    """Which of the tensors that a program knows have a `.grad` already, and in which layout."""
    return tuple([None if (g := t._grad) is None else (g.shape, g._array.strides, g.dtype, g._requires_grad)
                  for t in _tensors(seen, leaves)])


def _tensors(some: Sequence[int | Tensor], leaves: list[Any]) -> list[Tensor]:
    """Tensors as they are, arguments by their numbers."""
    return [leaves[own] if isinstance(own, int) else own for own in some]


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
