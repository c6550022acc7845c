"""Worker processes: each computes the gradient of its rows, then updates its slice of the weights.

    main process                                      each other process
    ids, targets, seeds  ──────── gradients ────────▶ gradient of its rows
    gradient of its own rows ─ done with a piece ───▶ added to it (tinygrad_llm.training.turns)
    losses: finite?      ◀──────── answers ────────── losses of its rows
                         ────────── norm ───────────▶
    norm: finite? clip   ◀──────── answers ────────── ‖its slice‖²
                         ───────── update ──────────▶ AdamW on its slice

The main process is worker 0. A command is a few hundred bytes through a pipe; all arrays stand in shared memory.
"""

from __future__ import annotations

import atexit
import io
import math
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait  # imports util, whose function for exit must come after ours
from typing import Any

import numpy as np

from tinygrad_llm import threads
from tinygrad_llm.allocator import give_back_freed
from tinygrad_llm.nn import Module, Parameter
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training.flat import Flat, Layout, Lodging, clip_scale
from tinygrad_llm.training.shards import EagerGradients, Links, MakeGradients, Streams, Worker
from tinygrad_llm.training.signals import STOPPING

PATIENCE = 2.0  # seconds that a process has to end before it is killed


class WorkerError(RuntimeError):
    """A worker process ended, or could not be started.

    whole    whether weights and optimizer are those of a whole step; False where the end came during AdamW
    """

    def __init__(self, message: str, whole: bool = True) -> None:
        super().__init__(message)
        self.whole = whole


class ChildTraceback(Exception):
    """The cause of an error that was raised in a worker process: where it was raised there."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class Team:
    """`count` processes, this one among them, that train a model together; a context in which BLAS has one thread each.

    gradients, norm and update, in this order, are one step. Until update nothing is changed.

    batch     how many ids a batch may have
    method    how processes are started: fork, spawn, forkserver; None: what Python does on this system
    compute   makes what computes gradients, of (model, trained parameters, their flat gradients, present)

    Alone (count 1) it is a flat optimizer: BLAS keeps its threads, and the generators run on as without a team.

    Raises WorkerError where a process cannot be started or has ended; then all have ended.
    """

    def __init__(
        self, model: Module, optimizer: AdamW, count: int, batch: int, accumulate: int = 1, method: str | None = None,
        compute: MakeGradients = EagerGradients,
    ) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        known = {id(p) for p in trained}
        parameters: list[Any] = trained + [p for p in model.parameters() if id(p) not in known]
        self.model, self.optimizer, self.step = model, optimizer, 0
        self.updating = self.closed = False
        layout = Layout(trained, parameters[len(trained) :], count, batch, any(g["amsgrad"] for g in optimizer.param_groups))
        context = multiprocessing.get_context(method)
        with _told_by_the_system(count):  # before anything is moved
            links = [context.Pipe(duplex=False) for _ in range(count - 1)]
            self.flat = Flat(layout)
        self.lodging = Lodging(optimizer, parameters, self.flat)
        self.lodging.enter()
        give_back_freed()
        self.streams = Streams(model)
        self.worker = Worker(0, (None, links[0][1] if links else None), model, parameters, self.flat, accumulate, compute)
        self.present = self.flat.present()
        self.children: list[Child] = []
        self.signature = self._signature()
        _end_at_exit(self)
        try:
            with _told_by_the_system(count):
                self._start(context, links, (model, parameters, self.flat, accumulate, compute))
        except BaseException:
            self.close()
            raise

    def _start(self, context: Any, links: Sequence[tuple[Connection, Connection]], given: tuple[Any, ...]) -> None:
        forked = context.get_start_method() == "fork"
        if links and not forked:
            resource_tracker.ensure_running()  # or it would undo _deferred
            model, parameters, *rest = given
            given = (_without_values(model, parameters), None, *rest)
        with _deferred(STOPPING), _forking_workers():
            for rank in range(1, len(links) + 1):
                self.children.append(Child(context, rank, links, given, self.children if forked else ()))
        for before, after in links:
            before.close()
            if after is not self.worker.total.after:
                after.close()
        self.flat.memory.seal()
        self._collect()

    def is_of(self, model: Module, optimizer: AdamW, accumulate: int) -> bool:
        """Whether it was made for these."""
        return self.model is model and self.optimizer is optimizer and self.worker.accumulate == accumulate

    def fits(self, size: int) -> bool:
        """Whether model and optimizer have the parameters that they had, and a batch of so many ids has room."""
        return size <= self.flat.layout.batch and self.signature == self._signature()

    def _signature(self) -> tuple[Any, ...]:
        groups = [(group["amsgrad"], list(map(id, group["params"]))) for group in self.optimizer.param_groups]
        alone = self.flat.layout.workers == 1
        return groups, None if alone else [(id(p), p.shape, p.dtype) for p in self.model.parameters()]

    # A step ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def one_step(self, step: int) -> Iterator[None]:
        """`step` is its number. Where it fails before update, the random generators are set back."""
        self.step, self.updating = step, False
        self.lodging.enter()
        states = self.streams.states()
        try:
            with threads.one() if self.children else nullcontext():
                yield
        except BaseException as error:
            if not self.updating:
                self.streams.rewind(states)
            if isinstance(error, WorkerError) or not isinstance(error, Exception):
                self.close()  # answers that nobody waited for would be taken for those to the next command
            raise
        finally:
            self.lodging.send_home()

    def gradients(self, ids: np.ndarray, targets: np.ndarray) -> list[tuple[float, float]]:
        """(loss, weight) of the parts of a batch, int [B, T] each, in their order.

        Raises what the model raises, in whichever process.
        """
        for room, values in zip(self.flat.batch(ids.shape), (ids, targets)):
            np.copyto(room, values)
        if not self.children:
            return self.worker.gradients(ids.shape, None, (b"", b""))
        seeds, states = self.streams.draw(), self.streams.states()
        try:
            answers = self._all("gradients", ids.shape, seeds, self.worker.modes())
        finally:
            self.streams.rewind(states)
        return [pair for answer in answers for pair in answer]

    def is_finite(self) -> bool:
        """Whether this process, where it is alone, is sure that the norm is finite, without having made it."""
        return not self.children and self.flat.is_finite()

    def norm(self) -> float:
        """‖gradient‖₂ of the batch."""
        return math.sqrt(sum(self._all("norm"))) if self.present.any() else 0.0

    def update(self, norm: float, max_norm: float | None) -> None:
        """AdamW, with the gradient clipped to max_norm."""
        some = self.present[0] if len(self.present) == 1 else np.asarray(self.present.any(0))
        if not some.any():
            return
        self.updating = True
        runs = self.lodging.advance(some)
        try:
            self._all("update", runs, clip_scale(norm, max_norm))
        except WorkerError:
            raise
        except Exception as error:
            raise WorkerError(self._told(f"{type(error).__name__} ({error}) in AdamW"), whole=False) from error
        self.updating = False

    def _all(self, command: str, *arguments: Any) -> list[Any]:
        """Every worker's answer, by rank. An error is raised once all have answered, so that they can be asked again."""
        for child in self.children:
            try:
                child.pipe.send((command, arguments))
            except OSError:
                raise self._lost(child) from None
        error: Exception | None = None
        answer = None
        try:
            answer = getattr(self.worker, command)(*arguments)
        except Exception as own:
            error = own
        answers = self._collect()
        if error is not None:
            raise error
        return [answer, *answers]

    def _collect(self) -> list[Any]:
        answers = [self._answer(child) for child in self.children]
        for _, error, text in answers:
            if error is not None:
                raise error from ChildTraceback(text)
        return [answer for answer, _, _ in answers]

    def _answer(self, child: Child) -> Any:
        try:
            return child.pipe.recv()
        except (EOFError, OSError):
            raise self._lost(child) from None

    # The end ---------------------------------------------------------------------------------------------------------

    def _lost(self, child: Child) -> WorkerError:
        child.process.join(PATIENCE)
        return WorkerError(self._told(f"the end of worker {child.rank} ({_reason(child.process.exitcode)})"), not self.updating)

    def _told(self, what: str) -> str:
        if not self.step:
            return (f"workers: got {what} before it was ready, expected it to start; where Python starts processes afresh "
                    "(spawn, forkserver), a program must run under `if __name__ == \"__main__\":`")
        state = (f"weights and optimizer are half-way from step {self.step - 1} to {self.step}, so go on from the last "
                 "checkpoint" if self.updating else f"weights and optimizer are those of step {self.step - 1}")
        return f"workers: got {what} in step {self.step}, expected it to answer; {state}"

    def close(self) -> None:
        """End the other processes, and give weights and moments memory of their own again."""
        self.closed = True
        if self.worker.total.after is not None:
            self.worker.total.after.close()
        end(self.children)
        self.flat.memory.seal()
        self.lodging.leave()


    def part(self) -> None:
        """In a process that was forked from this one, and is no worker: it has weights and moments of its own from now on."""
        self.closed = True
        self.lodging.leave()


@contextmanager
def _told_by_the_system(count: int) -> Iterator[None]:
    """What it refuses (descriptors, shared memory) is said with what it was for."""
    try:
        yield
    except OSError as error:
        raise WorkerError(f"workers: got too little from the system for {count} ({error.strerror or error}), expected pipes "
                          "and memory that they share; fewer need less") from error


class Child:
    """One of the other processes, and the pipe to it."""

    def __init__(
        self, context: Any, rank: int, links: Sequence[tuple[Connection, Connection]], given: tuple[Any, ...],
        older: Sequence[Child],
    ) -> None:
        self.rank, self.owner = rank, os.getpid()
        self.pipe, theirs = context.Pipe()
        own = links[rank - 1][0], links[rank][1] if rank < len(links) else None
        forked = context.get_start_method() == "fork"
        inherited = [self.pipe, *(other.pipe for other in older), *(end for link in links for end in link)] if forked else []
        arguments = (rank, theirs, own, [end for end in inherited if end not in own], np.geterr(), *given)
        self.process = context.Process(target=_serve, args=arguments, name=f"worker {rank}", daemon=True)
        try:
            self.process.start()
        except (OSError, AssertionError) as error:  # the second: a daemon may have no children
            raise WorkerError(f"workers: got no process from the system ({error}), expected one more") from error
        finally:
            theirs.close()


def end(children: list[Child]) -> None:
    """A closed pipe tells them; whoever is deep in a computation is killed."""
    if children and children[0].owner != os.getpid():  # in a process that was forked since
        return
    for child in children:
        child.pipe.close()
    for child in children:
        child.process.join(PATIENCE)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
    children.clear()


_TEAMS: weakref.WeakSet[Team] = weakref.WeakSet()


def _end_at_exit(team: Team) -> None:
    """Its processes end when the team is forgotten, and before multiprocessing waits for them at exit."""
    _TEAMS.add(team)
    weakref.finalize(team, end, team.children).atexit = False


_STARTING: set[int] = set()
"""Threads that fork workers just now, which share the memory of their team; any other fork gets memory of its own."""


@contextmanager
def _forking_workers() -> Iterator[None]:
    _STARTING.add(threading.get_ident())
    try:
        yield
    finally:
        _STARTING.discard(threading.get_ident())


def _part() -> None:
    """In a process that was forked from this one."""
    for team in () if threading.get_ident() in _STARTING else list(_TEAMS):
        if team.flat.layout.workers > 1:  # else its memory is this process's anyway
            team.part()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part)


@atexit.register
def _end_all() -> None:
    for team in list(_TEAMS):
        end(team.children)


@contextmanager
def _deferred(signals: set[signal.Signals]) -> Iterator[None]:
    """Ctrl-C waits until the block is left; a process that is started in it never gets one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reason(code: int | None) -> str:
    """What an exit code says."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}: the system may have run out of memory" if name == "SIGKILL" else name
    return f"exit code {code}; what it said is above"


# In the other processes -----------------------------------------------------------------------------------------------


def _serve(
    rank: int, pipe: Connection, links: Links, inherited: Sequence[Connection], errors: dict[str, Any], model: Any,
    parameters: Sequence[Parameter] | None, flat: Flat, accumulate: int, compute: MakeGradients,
) -> None:
    """The life of a worker: commands, one after the other, until the pipe is closed or the main process is gone.

    Ctrl-C and its like reach the whole group of processes: what they mean is for the main one to decide.
    """
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    for other in inherited:
        other.close()
    warnings.simplefilter("ignore")  # the main process runs the same code, and warns
    np.seterr(**errors)
    with threads.one():
        if parameters is None:
            model, parameters = _with_values(model, flat)
        worker = Worker(rank, links, model, parameters, flat, accumulate, compute)
        try:
            pipe.send((None, None, ""))
            while (command := _next(pipe)) is not None:
                pipe.send(_outcome(worker, *command))
        except OSError:
            pass  # nobody listens any more


def _next(pipe: Connection) -> Any:
    parent: Any = multiprocessing.parent_process()
    if pipe not in wait([pipe, parent.sentinel]):
        return None
    try:
        return pipe.recv()
    except EOFError:
        return None


def _outcome(worker: Worker, command: str, arguments: tuple[Any, ...]) -> tuple[Any, Exception | None, str]:
    """(answer, None, "") or (None, error, its traceback)"""
    try:
        return getattr(worker, command)(*arguments), None, ""
    except Exception as error:
        return None, _sendable(error), traceback.format_exc()


def _sendable(error: Exception) -> Exception:
    """The error, or what it says where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Pickler(pickle.Pickler):
    """Puts a number in place of each parameter."""

    def __init__(self, file: Any, parameters: Sequence[Parameter]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.numbers = {id(p): i for i, p in enumerate(parameters)}

    def persistent_id(self, value: Any) -> int | None:
        return self.numbers.get(id(value))


class _Unpickler(pickle.Unpickler):
    """Puts the parameters back."""

    def __init__(self, file: Any, parameters: Sequence[Parameter]) -> None:
        super().__init__(file)
        self.parameters = parameters

    def persistent_load(self, number: int) -> Parameter:
        return self.parameters[number]


def _without_values(model: Module, parameters: Sequence[Parameter]) -> bytes:
    """The model pickled, but for its parameters: they stand in the shared memory."""
    file = io.BytesIO()
    try:
        _Pickler(file, parameters).dump(model)
    except Exception as error:
        raise WorkerError(f"workers: got a model that cannot be pickled ({error}), expected one that can, where Python "
                          "starts processes afresh (spawn, forkserver)") from error
    return file.getvalue()


def _with_values(pickled: bytes, flat: Flat) -> tuple[Module, list[Any]]:
    """The inverse: the model, and its parameters in the order of the shared memory."""
    parameters: list[Any] = [Parameter.from_array(flat.view("weights", i)) for i in range(len(flat.layout.places))]
    return _Unpickler(io.BytesIO(pickled), parameters).load(), parameters
