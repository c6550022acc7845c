"""What stands in a cell of a table, on the console as in a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.cases import label
from benchmarks.verdicts import KINDS, doubts, lacking, three

Record = dict[str, Any]
WORDS = 40  # characters


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right, and what is longer than WORDS to the left."""
    rows = list(rows)
    left = [i == 0 or any(len(row[i]) > WORDS for row in rows) for i in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' if words else '--:' for words in left)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def verdict(r: Record | None, spread_too: bool = True) -> str:
    """A ratio with its rounds and the ratio of the fastest turns, or why there is none."""
    if r is None:
        return "–"
    if not r["agree"]:
        return f"refused: results differ ({r['why_not']})"
    return f"{spread(r) if spread_too else short(r['median'])}; {short(r['best'])}{mark(r)}"


def mark(r: Record) -> str:
    """A word where a measurement is provisional."""
    return " provisional" if doubts(r) else ""


def threes(ratios: Sequence[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    """(case, side of ours) → its three ratios."""
    keys = dict.fromkeys((name_of(r), r["ours"]) for r in ratios)
    return {key: three(r for r in ratios if (name_of(r), r["ours"]) == key) for key in keys}


def in_order(found: Mapping[str, Record]) -> str:
    """The ratios of `verdicts.three`, the smallest first."""
    return ", ".join(f"{short(r['median'])} {KINDS[kind]} ({r['against']}){mark(r)}" for kind, r in found.items()) or "–"


def not_measured(found: Mapping[str, Any]) -> str:
    """Those of the three ratios that `found` has not."""
    return ", ".join(lacking(found)) or "nothing"


def name_of(r: Record) -> str:
    """The case, or the op and its direction."""
    return label(r["case"]) if "case" in r else " ".join(filter(None, (r.get("name"), r.get("direction"))))


def spread(r: Record, factor: float = 1.0) -> str:
    """median (lowest–highest)"""
    return f"{short(factor * r['median'])} ({short(factor * r['low'])}–{short(factor * r['high'])})"


def short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def of(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of a kind."""
    return [r for r in records if r["kind"] == kind]
