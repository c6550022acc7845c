"""tinygrad-llm train | eval | generate | tokenize | check | profile

Exit codes: 0 success; 1 a check found a difference; 2 a user's mistake, told in one line (errors.py decides what is
one); 70 a bug of ours, told with its traceback; 130 Ctrl-C; 141 the reader of our output went away.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tinygrad_llm.cli import check, evaluate, generate, profile, tokenize, train
from tinygrad_llm.cli.command import parse, prepare
from tinygrad_llm.cli.errors import (
    UserError,
    end_of_stderr,
    is_mistake,
    message,
    named_output,
    open_closed_streams,
    say,
    warnings_as_lines,
    write_anything,
)
from tinygrad_llm.cli.program import python_as_typed

COMMANDS = (train.COMMAND, evaluate.COMMAND, generate.COMMAND, tokenize.COMMAND, check.COMMAND, profile.COMMAND)
BUG, INTERRUPTED, BROKEN_PIPE = 70, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_closed_streams()
    write_anything()
    try:
        with warnings_as_lines(), named_output():
            return _run(words)
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        say("stopped")
        return INTERRUPTED
    except Exception as error:
        return _refuse(error, "--debug" in words)
    finally:
        end_of_stderr()


def _run(words: list[str]) -> int:
    try:
        command, flags = parse(COMMANDS, words)
    except SystemExit as done:  # --help, --version
        return int(done.code or 0)
    job = prepare(command, flags, reference_package)
    if isinstance(job, str):
        print(job, end="")
        return 0
    return command.run(job)


def _refuse(error: Exception, debug: bool) -> int:
    mistake = is_mistake(error)
    if debug or not mistake:
        with suppress(OSError):
            traceback.print_exception(error)
    if mistake:
        say(message(error))
        return 2
    say("this is a bug in the program, not a mistake of yours; please report it with the lines above")
    return BUG


def reference_package() -> Any:
    """The package `reference`, loaded with PyTorch; the one place where tinygrad_llm reaches for either."""
    try:
        import reference.accuracy
        import reference.activation_gradients
        import reference.activations
        import reference.bridge
        import reference.decoding
        import reference.devices
        import reference.environment
        import reference.equivalence
        import reference.functions
        import reference.html
        import reference.killtable
        import reference.model
        import reference.ops_report
        import reference.pack
        import reference.report
        import reference.sections
        import reference.train
        import reference.trajectories
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise UserError(f"torch: got no PyTorch, expected it here: {python_as_typed()} -m pip install 'torch>=2.13'") from None
    return reference
