"""Tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(lines: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns two spaces apart, aligned to the right but for those in `left`; the first line may be a header."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(_line(line, widths, left) for line in lines)


def _line(line: Sequence[str], widths: Sequence[int], left: Sequence[int]) -> str:
    cells = (cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
    return "  ".join(cells).rstrip()
