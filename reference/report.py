"""The comparisons as text for a terminal: pure functions from rows to a string."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

import numpy as np

from reference.equivalence import Comparison, TrainingComparison, geometric_mean_ratio

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"
HEADER = ("", "float64 error", "", "float32 error", "torch's", "ratio", "")


def format_rows(rows: Iterable[Comparison], colour: bool = False) -> str:
    """A line per quantity: its float64 error and verdict; its float32 error, torch's, their ratio, and the verdict."""
    by_name: dict[str, dict[str, Comparison]] = {}
    for row in rows:
        by_name.setdefault(row.name, {})[row.dtype] = row
    lines = [_line(name, pair) for name, pair in by_name.items()]
    return _table(HEADER, lines, left=(0, 2, 6), colour=colour)


def format_losses(losses: Mapping[str, np.ndarray], every: int = 1) -> str:
    """The losses of compare_training side by side, one line per step (or per `every` steps, and the last)."""
    count = len(next(iter(losses.values()), ()))
    shown = [step for step in range(count) if step % every == 0 or step == count - 1]
    lines = [[str(step + 1), *(f"{values[step]:.9f}" for values in losses.values())] for step in shown]
    return _table(("step", *losses), lines, left=())


def format_summary(rows: Sequence[Comparison], colour: bool = False) -> str:
    """How many comparisons passed, the mean ratio of the float32 errors, and the detail of each failure."""
    failed = [row for row in rows if not row.passed]
    ratio = geometric_mean_ratio(rows)
    lines = [f"{len(rows) - len(failed)} of {len(rows)} comparisons pass"]
    if not math.isnan(ratio):
        lines[0] += f"; float32 error, ours / torch's: geometric mean {ratio:.2f}"
    lines[0] = _paint(lines[0], not failed, colour)
    return "\n".join(lines + [_paint(f"FAILED  {row}", False, colour) for row in failed])


def print_report(
    rows: Sequence[Comparison], training: TrainingComparison | None = None, stream: TextIO | None = None
) -> None:
    """The whole report, coloured only where the stream is a terminal."""
    stream = stream or sys.stdout
    colour = stream.isatty()
    parts = [format_rows(rows, colour)]
    every = list(rows)
    if training is not None:
        parts += ["AdamW, side by side", format_losses(training.losses)]
        parts += ["After it. Errors of float32 weights are parts of the distance travelled, in the mean."]
        parts += [format_rows(training.rows, colour)]
        every += training.rows
    print("\n\n".join([*parts, format_summary(every, colour)]), file=stream)


def _line(name: str, pair: Mapping[str, Comparison]) -> list[str]:
    wide, narrow = pair.get("float64"), pair.get("float32")
    cells = [name, *((_number(wide.error), wide.verdict.value) if wide else ("", ""))]
    if narrow is None:
        return [*cells, "", "", "", ""]
    ratio = "" if narrow.ratio is None else f"{narrow.ratio:.2f}"
    return [*cells, _number(narrow.error), _number(narrow.torch_error), ratio, narrow.verdict.value]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[int], colour: bool = False) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines)]
    out = []
    for line in (header, *lines):
        cells = [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        text = "  ".join(cells).rstrip()
        failed = any(cell in ("different", "mismatch", "worse than torch") for cell in line)
        out.append(_paint(text, False, colour) if failed else text)
    return "\n".join(out)


def _paint(text: str, good: bool, colour: bool) -> str:
    return f"{GREEN if good else RED}{text}{PLAIN}" if colour else text
