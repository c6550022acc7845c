"""The float32 gradient error of every parameter as a table of coloured cells: kinds of parameter down, blocks across."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape

from tinygrad_llm.policy import FLOAT32_TOL, Comparison, Verdict

SHADES = 9
LOWEST = 1e-8


def gradient_heat_map(rows: Sequence[Comparison]) -> str:
    """Shade: our error, from 1e-8 (pale) to the tolerance 2e-5 (full); number: ours / torch's error; outline: failed."""
    found = {row.name.removeprefix("grad "): row for row in rows if row.dtype == "float32" and row.name.startswith("grad ")}
    blocks = sorted({int(match[1]) for name in found if (match := re.match(r"blocks\.(\d+)\.", name))})
    kinds = list(dict.fromkeys(re.sub(r"^blocks\.\d+\.", "blocks.*.", name) for name in found))
    head = "<th></th>" + "".join(f"<th>block {i}</th>" for i in blocks)
    lines = "".join(_line(kind, blocks, found) for kind in kinds)
    legend = "".join(f'<i class="h{i}"></i>' for i in range(SHADES))
    return (
        f'<div class="wide"><table class="heat"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
        f'<p class="note scale">our error 1e-8 {legend} 2e-5 (the tolerance); the number: our error / torch’s; '
        f"0: the true gradient is exactly zero</p>"
    )


def _line(kind: str, blocks: Sequence[int], found: dict[str, Comparison]) -> str:
    label = f"<th scope=row>{escape(kind.removeprefix('blocks.*.'))}</th>"
    if "*" not in kind:
        return f"<tr>{label}{_cell(found.get(kind), len(blocks))}</tr>"
    return f"<tr>{label}{''.join(_cell(found.get(kind.replace('*', str(i)))) for i in blocks)}</tr>"


def _cell(row: Comparison | None, span: int = 1) -> str:
    if row is None:
        return "<td></td>"
    text = "0" if row.verdict == Verdict.EXACTLY_ZERO else "" if row.ratio is None else f"{row.ratio:.2f}"
    said = f"{row.name}: {row.verdict}, error {row.error:.1e}, torch's {row.torch_error or 0:.1e}"
    failed = " failed" if row.failed else ""
    return f'<td class="h{shade(row.error)}{failed}" colspan="{max(span, 1)}" title="{escape(said)}">{text}</td>'


def shade(error: float) -> int:
    """0 for 1e-8 and less, SHADES − 1 for the tolerance and more, evenly in the logarithm between."""
    if not error > LOWEST:
        return 0
    part = math.log(error / LOWEST) / math.log(FLOAT32_TOL / LOWEST)
    return SHADES - 1 if not math.isfinite(part) else min(SHADES - 1, int(part * SHADES))
