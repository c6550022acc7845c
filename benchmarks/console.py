"""What a run says while it goes on: a bar where stderr is a terminal, and a line for all that has been found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from benchmarks.cells import in_order, name_of, not_measured, short, spread, threes
from benchmarks.verdicts import doubts

Record = dict[str, Any]
MEASURED = "train", "decode", "op"
PREPARING = "building and warming up"


class Console:
    """With `units` cases or ops to come. Counts what was measured, and remembers why a side was not."""

    def __init__(self, units: int) -> None:
        self.bar = tqdm(total=units, disable=None, unit="case", leave=False, dynamic_ncols=True, file=sys.stderr,
                        bar_format="{l_bar}{bar}| {n:.1f} of {total} cases, {elapsed} so far, about {remaining} left{postfix}")
        self.done, self.measured, self.ratios = 0, 0, list[Record]()
        self.absent: dict[str, str] = {}
        self._move(0, PREPARING)

    def tell(self, rounds: int, of: int) -> None:
        """How far a case is."""
        self._move(self.done + rounds / (of + 1), f"round {rounds} of {of}")

    def say(self, record: Record) -> None:
        """What the record says, in a line; and at the end of a case, its three ratios."""
        self.measured += record["kind"] in MEASURED
        if record["kind"] == "ratio":
            self.ratios.append(record)
        if record["kind"] == "absent":
            self.absent[record["side"]] = record["why"]
        if line := LINES.get(record["kind"], lambda r: "")(record):
            tqdm.write(line, file=sys.stderr)
        if record["kind"] == "done":
            self._end_case()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def _end_case(self) -> None:
        for (name, ours), found in threes(self.ratios).items():
            tqdm.write(f"{name}: time / time of {ours}, the smallest first: {in_order(found)}. "
                       f"Not measured: {not_measured(found)}", file=sys.stderr)
        self.ratios.clear()
        self.done += 1
        self._move(self.done, PREPARING)

    def _move(self, to: float, postfix: str) -> None:
        self.bar.n = to
        self.bar.set_postfix_str(postfix)


def _machine(r: Record) -> str:
    set_ = ", ".join(f"{name}={value}" for name, value in r["environment"].items())
    return f"{r['cpu']}, {r['cores']} cores, load average {r['load']}; {set_ or 'no variable of BLAS is set'}"


def _timed(r: Record) -> str:
    what = {"train": "a step", "decode": "a text", "op": f"{r.get('what')}"}[r["kind"]]
    memory = f", {r['peak_mb']:,.0f} MB" if r.get("peak_mb") else ""
    return f"{name_of(r)} {r['side']}: {spread(r, 1e3)} ms {what}{memory}{_doubtful(r)}"


def _ratio(r: Record) -> str:
    value = f"{spread(r)}{_doubtful(r)}" if r["agree"] else f"refused: results differ ({r['why_not']})"
    return f"{name_of(r)} {r['against']} / {r['ours']}: {value}"


def _doubtful(r: Record) -> str:
    return f", provisional: {', '.join(found)}" if (found := doubts(r)) else ""


LINES: dict[str, Callable[[Record], str]] = {
    "machine": _machine,
    "gemm": lambda r: f"{r['library']}: {short(r['gflops'])} GFLOP/s in a matrix product; {r['engine'].get('kernels', '–')}"
                      + _doubtful(r),
    "train": _timed, "decode": _timed, "op": _timed, "ratio": _ratio,
    "absent": lambda r: f"{name_of(r) or r['what']} {r['side']}: not measured: {r['why']}",
}
