"""The beginning of a report: of all its training runs, the three ratios and the medians."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cells import in_order, mark, name_of, not_measured, of, short, table, threes
from benchmarks.verdicts import EVERYTHING

Record = dict[str, Any]
YARDSTICK = "torch-sdpa"  # what all of our sides, and their memory, are compared with
THREE = """Time of torch / time of ours, the smallest first: *as installed*, *the same instruction set* in the matrix products
of both, and *torch with everything* that is known to make it faster. Of several torch sides and runs, the best for torch.
"""


def environment(m: Record) -> str:
    """What the environment told BLAS, and how many threads were asked for."""
    named = ", ".join(f"{name}={value}" for name, value in m["environment"].items()) or "No variable of BLAS was set"
    asked = m["asked"].get("threads")
    return f"{named}; --threads {asked}" if asked else named


def at_a_glance(runs: Iterable[list[Record]]) -> list[str]:
    """For each setting of BLAS the three ratios of every case, and the medians of all its training runs."""
    found: dict[str, list[list[Record]]] = {}
    for records in runs:
        if records[0]["run"] == "run":
            found.setdefault(environment(records[0]), []).append(records)
    parts = []
    for said, mine in found.items():
        ratios = sorted((r for records in mine for r in _fastest(records)), key=name_of)
        parts += [f"{said}:\n", three_table(ratios), _medians(mine)]
    return ["## At a glance\n", THREE, *parts] if parts else []


def three_table(ratios: Sequence[Record]) -> str:
    """A row for each case and side of ours."""
    rows = [[case, ours, in_order(found), not_measured(found)] for (case, ours), found in threes(ratios).items()]
    return table(("case", "ours", "the three ratios, the smallest first", "not measured"), rows) if rows else ""


def _medians(runs: Sequence[list[Record]]) -> str:
    rows: dict[str, dict[str, list[str]]] = {}
    for records in runs:
        _add_medians(rows, records)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = ([case, *(", ".join(row.get(column, ["–"])) for column in columns)] for case, row in sorted(rows.items()))
    return "Medians of the training runs below, in their order:\n\n" + table(("case", *columns), cells)


def _fastest(records: Sequence[Record]) -> list[Record]:
    ratios = of(records, "ratio")
    return [r for r in ratios if r["agree"] and r["ours"] == ratios[0]["ours"]]


def _add_medians(rows: dict[str, dict[str, list[str]]], records: list[Record]) -> None:
    """Of a run, what our fastest side is compared with, and what any is compared with the yardstick. Memory, with the
    yardstick and the rivals."""
    ratios = [r for r in of(records, "ratio") if r["agree"]]
    memory = {(name_of(r), r["side"]): r["peak_mb"] for r in of(records, "train") if r.get("peak_mb")}
    for r in ratios:
        case, ours, other, row = name_of(r), r["ours"], r["against"], rows.setdefault(name_of(r), {})
        if ours == ratios[0]["ours"] or other == YARDSTICK:
            row.setdefault(f"{other} / {ours}", []).append(short(r["median"]) + mark(r))
        yardstick = other == YARDSTICK or EVERYTHING in r.get("kinds", ())
        if ours == ratios[0]["ours"] and yardstick and {(case, ours), (case, other)} <= memory.keys():
            row.setdefault(f"memory: {ours} / {other}", []).append(short(memory[case, ours] / memory[case, other]))
