"""What a ratio may be called, and whether it is to be believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.sides import SIDES

Record = dict[str, Any]
INSTALLED, SAME, EVERYTHING = "installed", "same", "everything"
KINDS = {
    INSTALLED: "each library as installed",
    SAME: "the same instruction set",
    EVERYTHING: "torch with everything",
}
BUSY = 0.1  # cores that others keep busy: with more, a measurement is provisional
SPREAD = 1.5  # slowest round over fastest: with more, too
ROUNDS = 3  # with fewer, there is no spread to look at


def kinds(library: str, rival: bool, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Which of KINDS the ratio to a side of that library is; ours, theirs are what their engines say of themselves.

    As installed: nobody held either to other instructions, and the other is no rival. The same instruction set: both are
    known, equal, and the other is no rival. With everything: it is one. None of them where the other is not torch on a CPU.
    """
    if not library.startswith("torch cpu"):
        return []
    if rival:
        return [EVERYTHING]
    known = ours.get("instructions") is not None and theirs.get("instructions") is not None
    as_installed = not ours.get("told") and not theirs.get("told")
    same = known and ours["instructions"] == theirs["instructions"]
    return [INSTALLED] * as_installed + [SAME] * same


def three(ratios: Iterable[Record]) -> dict[str, Record]:
    """kind → the smallest ratio of that kind, of those that agree; the smallest kind first.

    Of one side, a ratio that is not provisional stands before any that is. With everything is also whatever is told that the
    processor is Intel's: large pages, and another way to the loss, need not be faster.
    """
    of_sides: dict[tuple[str, str], Record] = {}
    for r in sorted((r for r in ratios if r["agree"]), key=lambda r: (bool(doubts(r)), r["median"])):
        for kind in [*r.get("kinds", ()), *([EVERYTHING] if _is_told(r) else [])]:
            of_sides.setdefault((kind, r["against"]), r)
    found: dict[str, Record] = {}
    for (kind, _), r in sorted(of_sides.items(), key=lambda pair: pair[1]["median"]):
        found.setdefault(kind, r)
    return found


def _is_told(r: Record) -> bool:
    side = SIDES.get(r.get("against", ""))
    return side is not None and side.intel


def lacking(found: Mapping[str, Any]) -> list[str]:
    """The words for the kinds that were not measured."""
    return [words for kind, words in KINDS.items() if kind not in found]


def doubts(r: Record) -> list[str]:
    """Why a measurement (times or a ratio) is provisional; empty where nothing speaks against it."""
    found = []
    if (r.get("others_cores") or 0) > BUSY:
        found.append(f"other work kept {r['others_cores']:.2g} cores busy")
    rounds: Sequence[float] | None = r.get("rounds") or r.get("seconds")
    if rounds is not None and len(rounds) < ROUNDS:
        found.append(f"{len(rounds)} round{'s' * (len(rounds) > 1)}")
    if r.get("low") and r["high"] / r["low"] > SPREAD:
        found.append(f"the highest round is {r['high'] / r['low']:.1f} times the lowest")
    return found
