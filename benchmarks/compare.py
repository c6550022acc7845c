"""Two runs beside each other: did a ratio change by more than its rounds differ?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.cells import mark, name_of, of, short, spread, table

Record = dict[str, Any]
MACHINE = "cpu", "cores", "memory_gb", "system", "python", "versions", "environment"


def compare(one: Sequence[Record], two: Sequence[Record], a: str, b: str) -> str:
    """Markdown: in what two runs named a and b differ, and each ratio that both have, b's over a's.

    Of a ratio of ratios the limits are those of the rounds: lowest of b / highest of a, to highest of b / lowest of a. It is
    a change where 1 is outside of them and neither run is provisional. Raises ValueError where they have no ratio in common.
    """
    before, after = (_ratios(records) for records in (one, two))
    common = [key for key in before if key in after]
    if not common:
        raise ValueError(f"{b}: got no ratio that {a} has too, expected some in common")
    head = ("what", "time / time", a, b, "B / A", "limits", "said of B")
    rows = ([key[0], f"{key[2]} / {key[1]}", _cell(before[key]), _cell(after[key]), *_change(before[key], after[key])]
            for key in common)
    left = len(before.keys() ^ after.keys())
    note = f"{left} further ratios are in one of the two alone.\n" if left else ""
    return "\n".join([f"# A = {a}, B = {b}\n", _differences(one, two), table(head, rows), note])


def _ratios(records: Sequence[Record]) -> dict[tuple[str, str, str], Record]:
    return {(name_of(r), r["ours"], r["against"]): r for r in of(records, "ratio") if r["agree"]}


def _cell(r: Record) -> str:
    return spread(r) + mark(r)


def _change(a: Record, b: Record) -> list[str]:
    low, high = b["low"] / a["high"], b["high"] / a["low"]
    said = "no more than the rounds differ"
    if not low <= 1 <= high:
        said = "larger: ours gained" if low > 1 else "smaller: ours lost"
        said += " (provisional)" if mark(a) or mark(b) else ""
    return [short(b["median"] / a["median"]), f"{short(low)}–{short(high)}", said]


def _differences(one: Sequence[Record], two: Sequence[Record]) -> str:
    """In words, whatever else than the code may be the reason of a change."""
    said = [f"- {name}: {x} in A, {y} in B" for name in MACHINE if (x := one[0].get(name)) != (y := two[0].get(name))]
    asked = sorted({*one[0]["asked"], *two[0]["asked"]} - {"title"})
    said += [f"- asked for {name}: {x} in A, {y} in B" for name in asked
             if (x := one[0]["asked"].get(name)) != (y := two[0]["asked"].get(name))]
    engines = [{r["side"]: r["engine"] for r in records if "side" in r and "engine" in r} for records in (one, two)]
    said += [f"- {side}: {x} in A, {y} in B" for side in engines[0].keys() & engines[1].keys() for name in ("about", "kernels")
             if (x := engines[0][side].get(name)) != (y := engines[1][side].get(name))]
    code = f"The code is that of commit {one[0]['commit']} in A, {two[0]['commit']} in B."
    return "\n".join([f"{code} Other things differ too:\n" if said else f"{code} All else is the same.", *said, ""])
