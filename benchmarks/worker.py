"""A side in a process of its own: reads a JSON request a line, writes a JSON answer a line.

    python -m benchmarks.worker benchmarks.sides.numpy_eager '{"threads": 2}'
    {"do": "gemm", "size": 1024, "at_least": 0.5}
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any, TextIO

REQUESTS = ("describe", "build", "train", "decode", "gemm", "op", "op_time", "memory")


def main(module: str, options: str) -> None:
    """Until stdin ends. The first answer says that the side has been imported."""
    answers = _take_stdout()
    try:
        engine = importlib.import_module(module).Engine(**json.loads(options))
    except Exception as error:
        _say(answers, {"error": _line(error), "traceback": traceback.format_exc()})
        return
    _say(answers, {"answer": {}})
    for line in sys.stdin:
        _say(answers, answer(engine, json.loads(line)))


def answer(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    """{"answer": ...} or {"error": one line, "traceback": ...}"""
    name = request.pop("do")
    try:
        return {"answer": peak_mb() if name == "memory" else getattr(engine, REQUESTS[REQUESTS.index(name)])(**request)}
    except Exception as error:
        return {"error": _line(error), "traceback": traceback.format_exc()}


def peak_mb() -> float | None:
    """Largest resident memory of this process and of its largest child, where there is no /proc to ask from outside."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit / 1e6


def _take_stdout() -> TextIO:
    """The pipe to the parent; what libraries print goes to stderr from now on."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def _say(pipe: TextIO, message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


if __name__ == "__main__":
    main(*sys.argv[1:])
