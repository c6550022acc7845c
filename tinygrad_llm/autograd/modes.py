"""Switches of the engine, each for the current thread: whether to record, whether results may ever meet a graph, and whether
to look for the first NaN."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY, NUMPY = f"{Path(__file__).resolve().parents[1]}{os.sep}", f"{Path(np.__file__).parent}{os.sep}"
"""What the files of this library and of NumPy begin with."""
_PATHS = sysconfig.get_paths()
STANDARD, SITE = [tuple({os.path.realpath(_PATHS[name]) + os.sep for name in names})
                  for names in (("stdlib", "platstdlib"), ("purelib", "platlib"))]
"""What those of Python's own modules begin with, and those of installed packages, which may stand among them."""


def is_inner(path: str) -> bool:
    """Whether a file is this library's, NumPy's, or one of Python's own."""
    return path.startswith(("<frozen", LIBRARY, NUMPY)) or (path.startswith(STANDARD) and not path.startswith(SITE))


class _Modes(threading.local):
    grad = True
    inference = False
    graph = True  # grad, and not inference: which inference_mode() takes away for good
    anomaly = False
    check_nan = True
    recorder: Any = None


current = _Modes()


def is_grad_enabled() -> bool:
    """Whether ops record what backward needs, outside of inference_mode()."""
    return current.grad


def records_graph() -> bool:
    """Whether ops record what backward needs: enable_grad() inside inference_mode() does not make them."""
    return current.graph


def is_anomaly_enabled() -> bool:
    """Whether each node remembers the line that called its op."""
    return current.anomaly


def is_anomaly_check_nan_enabled() -> bool:
    """Whether each result is searched for NaN and infinity."""
    return current.anomaly and current.check_nan


class Switch:
    """Modes of the current thread, set inside a block or inside a decorated function, and put back after it.

    It may be entered again, also inside itself. A decorated generator or coroutine has the modes while its own body runs,
    and its caller has the caller's.
    """

    def __init__(self, **modes: bool) -> None:
        self._set = modes
        self._before: list[dict[str, bool]] = []

    def __enter__(self) -> None:
        self._before.append({name: getattr(current, name) for name in self._set})
        set_modes(self._set)

    def __exit__(self, *exception: Any) -> None:
        set_modes(self._before.pop())

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the modes inside each of its calls."""
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"grad mode: got {function!r} to decorate, expected a function; decorate a class's methods")
        return functools.wraps(function)(_wrapped(function, self._set))


class Statement(Switch):
    """Modes that are set from here on; as a block or a decorator, inside it only."""

    def __init__(self, **modes: bool) -> None:
        super().__init__(**modes)
        self.__enter__()
        self._outside = self._before.pop()

    def __exit__(self, *exception: Any) -> None:
        self._before.pop()
        set_modes(self._outside)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        set_modes(self._outside)
        return super().__call__(function)


def set_modes(modes: dict[str, bool]) -> None:
    """Set these modes of the current thread, until others are."""
    for name, value in modes.items():
        setattr(current, name, value)
    current.graph = current.grad and not current.inference


def _wrapped(function: Callable[..., Any], modes: dict[str, bool]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(function):
        return lambda *args, **kwargs: _stepwise(modes, function(*args, **kwargs))
    if inspect.iscoroutinefunction(function):
        return _coroutine(modes, function)
    if inspect.isasyncgenfunction(function):
        return lambda *args, **kwargs: _async_generator(modes, function(*args, **kwargs))

    def call(*args: Any, **kwargs: Any) -> Any:
        with Switch(**modes):
            return function(*args, **kwargs)

    return call


def _stepwise(modes: dict[str, bool], generator: Any) -> Generator[Any, Any, Any]:
    """The generator, which has the modes in each of its steps and not between them."""
    go_on, value = generator.send, None
    while True:
        with Switch(**modes):
            try:
                out = go_on(value)
            except StopIteration as stop:
                return stop.value
        try:
            go_on, value = generator.send, (yield out)
        except GeneratorExit:
            with Switch(**modes):
                generator.close()
            raise
        except BaseException as error:
            go_on, value = generator.throw, error


class _Steps:
    """An awaitable that has the modes in each of its steps."""

    def __init__(self, modes: dict[str, bool], awaitable: Any) -> None:
        self.modes, self.awaitable = modes, awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        return _stepwise(self.modes, self.awaitable.__await__())


def _coroutine(modes: dict[str, bool], function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await _Steps(modes, function(*args, **kwargs))

    return call


async def _async_generator(modes: dict[str, bool], generator: Any) -> AsyncGenerator[Any, Any]:
    go_on, value = generator.asend, None
    try:
        while True:
            try:
                out = await _Steps(modes, go_on(value))
            except StopAsyncIteration:
                return
            try:
                go_on, value = generator.asend, (yield out)
            except Exception as error:
                go_on, value = generator.athrow, error
    finally:
        await _Steps(modes, generator.aclose())


def set_grad_enabled(mode: bool) -> Statement:
    """Record (True) or do not record (False): from this statement on, inside the block, or inside the decorated function.

        set_grad_enabled(False)                     from here on
        with set_grad_enabled(training): ...        in the block
        @set_grad_enabled(False)                    in the function

    Errors: TypeError for a mode that is no bool.
    """
    return Statement(grad=_checked("set_grad_enabled", "mode", mode))


def no_grad(orig_func: Callable[..., Any] | None = None) -> Any:
    """Record nothing inside the block or the decorated function: results do not require grad, and no graph is kept alive.

    `@no_grad` and `@no_grad()` mean the same.
    """
    switch = Switch(grad=False)
    return switch if orig_func is None else switch(orig_func)


def enable_grad(orig_func: Callable[..., Any] | None = None) -> Any:
    """Record inside the block or the decorated function, also within no_grad."""
    switch = Switch(grad=True)
    return switch if orig_func is None else switch(orig_func)


def recorded() -> Switch:
    """Record inside the block, wherever it stands: for a transform, whose leaves are its own."""
    return Switch(grad=True, inference=False)


def inference_mode(mode: bool | Callable[..., Any] = True) -> Any:
    """no_grad for results that no graph will ever meet: no gradient can be asked of them later, and nothing can save them.

    What is made inside is an inference tensor, also after the block. Outside it cannot be written to, cannot require grad
    and cannot be saved for backward: each is an error that says so, and `clone()` outside makes an ordinary tensor of it.
    inference_mode(False) is a block without it. `@inference_mode` and `@inference_mode()` mean the same.
    """
    if callable(mode):
        return Switch(grad=False, inference=True)(mode)
    return Switch(grad=not _checked("inference_mode", "mode", mode), inference=mode)


def is_inference_mode_enabled() -> bool:
    """Whether tensors that are made are inference tensors."""
    return current.inference


def detect_anomaly(check_nan: bool = True) -> Switch:
    """Raise AnomalyError at the first NaN or infinity, naming the op and the line that called it, forward or backward.

    A −∞ that an op was given, as a mask has it, is no anomaly; one that it made is. check_nan=False looks at no values and
    only remembers the lines, which other errors of backward then name. A block or a decorator.
    """
    return Switch(anomaly=True, check_nan=bool(check_nan))


def set_detect_anomaly(mode: bool, check_nan: bool = True) -> Statement:
    """detect_anomaly where mode is True, from this statement on or inside the block; without it where mode is False."""
    return Statement(anomaly=bool(mode), check_nan=bool(check_nan))


def _checked(name: str, argument: str, mode: Any) -> bool:
    if not isinstance(mode, bool):
        raise TypeError(f"{name}: {argument}: got {mode!r} of type {type(mode).__name__}, expected a bool")
    return mode


def active_recorder() -> Any:
    """What records the NumPy calls of this thread (tinygrad_llm.capture), or None."""
    return current.recorder


def check_write(name: str, array: Any) -> None:
    """The recorder's error for a write that it cannot record."""
    if current.recorder is not None:
        current.recorder.check_write(name, array)


def check_read(name: str) -> None:
    """The recorder's error where values are asked for that a program would not ask for again."""
    if current.recorder is not None:
        current.recorder.check_read(name)


def meet(leaf: Any) -> None:
    """Tell the recorder of a leaf whose `.grad` is about to change."""
    if current.recorder is not None:
        current.recorder.meet(leaf)


def read_gradient(leaf: Any) -> None:
    """Tell the recorder of a tensor whose `.grad` is asked for."""
    if current.recorder is not None:
        current.recorder.lift_gradient(leaf)


def check_effect(name: str) -> None:
    """The recorder's error for what changes something for good, before it is changed."""
    if current.recorder is not None:
        current.recorder.check_effect(name)


@contextmanager
def recording(recorder: Any) -> Iterator[None]:
    """Inside, ops run on the arrays of a recorder: see tinygrad_llm.capture.record."""
    before, current.recorder = current.recorder, recorder
    try:
        yield
    finally:
        current.recorder = before


def warn_user(text: str) -> None:
    """A RuntimeWarning at the innermost line outside of this package."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARY):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=depth - 1)


def calling_line() -> str:
    """`file:line: source` of the innermost caller outside this package, NumPy and what Python itself runs."""
    for frame in reversed(traceback.extract_stack()):
        if not is_inner(frame.filename):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "?"
