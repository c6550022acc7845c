"""The parent's end of the workers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks import machine, preload
from benchmarks.sides import Side, missing


class WorkerError(RuntimeError):
    """What a side could not do: its name, and why."""


class Worker:
    """One side in its own process. Leave the `with` block, and it is gone."""

    def __init__(self, side: Side, threads: int | None = None) -> None:
        """Raises WorkerError where the side cannot run here."""
        self.side = side
        if reason := missing(side):
            raise WorkerError(f"{side.name}: {reason}")
        environment = _environment(side, threads)
        self.stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        options = json.dumps({"threads": threads, **side.options})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", side.module, options], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.stderr, env=environment, encoding="utf-8",
        )
        try:
            self.receive()
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer. Raises WorkerError where there is none."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:
        """Asks, and does not wait; `receive` does."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise self._died() from None

    def receive(self) -> Any:
        """The answer to what was sent. Raises WorkerError where there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._died()
        message = json.loads(line)
        if "error" in message:
            error = WorkerError(f"{self.side.name}: {message['error']}")
            error.add_note(message["traceback"])
            raise error
        return message["answer"]

    def peak_mb(self) -> float | None:
        """Largest resident memory of its process tree so far, 1e6 bytes."""
        return machine.peak_mb(self.process.pid) or self.ask("memory")

    def close(self) -> None:
        """Ends the process, at once if it does not end by itself."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                _close(pipe)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _died(self) -> WorkerError:
        self.process.wait()
        self.stderr.seek(0)
        said = "".join(f": {line}" for line in self.stderr.read().strip().splitlines()[-1:])
        return WorkerError(f"{self.side.name}: ended with code {self.process.returncode}{said}")


class Workers(dict[str, Worker]):
    """Workers by the names of their sides; those that cannot run here are in `absent`, with the reason."""

    def __init__(self, sides: Sequence[Side], threads: int | None = None) -> None:
        super().__init__()
        self.absent: dict[str, str] = {}
        try:
            for side in sides:
                self._start(side, threads)
        except BaseException:
            self.close()
            raise

    def each(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answers by side. A side that gives none becomes absent."""
        answers = {}
        for name in list(self):
            try:
                answers[name] = self[name].ask(do, **arguments)
            except WorkerError as error:
                self._drop(name, error)
        return answers

    def close(self) -> None:
        """Ends all of them."""
        for worker in self.values():
            worker.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, side: Side, threads: int | None) -> None:
        try:
            self[side.name] = Worker(side, threads)
        except WorkerError as error:
            self.absent[side.name] = _reason(error)

    def _drop(self, name: str, error: WorkerError) -> None:
        self.pop(name).close()
        self.absent[name] = _reason(error)


def _reason(error: WorkerError) -> str:
    return str(error).partition(": ")[2]


def _environment(side: Side, threads: int | None) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(machine.ROOT), os.environ.get("PYTHONPATH")]))
    try:
        told = preload.environment() if side.intel else {}
    except OSError as error:
        raise WorkerError(f"{side.name}: {error}") from None
    return {**os.environ, "PYTHONPATH": path, **machine.thread_environment(threads), **side.environment, **told}


def _close(pipe: Any) -> None:
    with contextlib.suppress(OSError):
        pipe.close()
