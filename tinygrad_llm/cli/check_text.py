"""What `check` prints: short tables for 80 columns, or, where `full`, every row."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinygrad_llm.cli.table import table
from tinygrad_llm.policy import Comparison, geometric_mean_ratio

WORDS = {"equal": "equal", "no worse than torch": "no worse", "exactly zero": "zero", "inconclusive": "inconclusive"}
SHOWN = 3  # gradients and ops with the largest errors


def ops(found: Any, full: bool) -> str:
    """Counts of verdicts, the geometric mean of ratios, and the worst rows."""
    narrow = [row for row in found.ops if row.dtype == "float32"]
    ratio = geometric_mean_ratio(Comparison(row.op, row.dtype, row.verdict, row.error, None, row.ratio) for row in narrow)
    lines = [f"OPS: {len({row.op for row in found.ops})}, each with random cotangents"]
    for dtype in ("float64", "float32"):
        rows = [row for row in found.ops if row.dtype == dtype]
        lines.append(f"  {dtype}  {_counts(rows)}")
    lines.append(f"  float32 error, ours / torch's: geometric mean {ratio:.2f}")
    shown = found.ops if full else sorted(narrow, key=lambda row: -(row.ratio or 0))[:SHOWN]
    shown = shown if full else [row for row in found.ops if row.failed] + [row for row in shown if not row.failed]
    return "\n".join(lines) + "\n\n" + _ops_table(shown)


def _ops_table(rows: Iterable[Any]) -> str:
    head = ("op", "dtype", "device", "error", "torch's", "ratio", "ULP p99", "")
    cells = [
        (row.op, row.dtype, row.device, _error(row.error), _error(row.torch_error), _ratio(row.ratio), f"{row.ulps.p99:.0f}",
         _word(row.verdict)) for row in rows
    ]  # fmt: skip
    return table([head, *cells], left=(0, 1, 2, 7))


def model(found: Any, full: bool) -> str:
    """Where activations and their gradients part, the errors of logits, loss and every gradient, how they grow, accuracy."""
    gradients = [row for row in found.model if row.name.startswith("grad ")]
    ratio = geometric_mean_ratio(gradients)
    return "\n".join([
        "MODEL", *_filled(found.activations.sentence), *_filled(found.activation_gradients.sentence),
        *_filled(f"float32 error ~ depth^{found.depth.slopes[0]:.2f} (torch's ^{found.depth.slopes[1]:.2f}), "
                 f"~ length of sums^{found.length.slopes[0]:.2f} (torch's ^{found.length.slopes[1]:.2f})"),
        *_filled(f"gradients, float32 error, ours / torch's: geometric mean {ratio:.2f} over {len(gradients) // 2}"),
        *_accuracy(found.accuracy),
        "", comparison_table([*(found.activations.rows + found.activation_gradients.rows if full else []), *found.model]),
    ])  # fmt: skip


def _accuracy(rows: Sequence[Any]) -> list[str]:
    """float32 gradients of three sizes of model: the median of many draws, its interval, and the draws' range."""
    if not rows:
        return []
    head = ("model", "draws", "median", "99 %", "all draws", "")
    cells = [
        (f"{row.size.name}, d {row.size.d_model}", str(len(row.ratios)), _ratio(row.median), _range(*row.interval),
         _range(min(row.ratios), max(row.ratios)), " ".join(row.verdict.split()[:2])) for row in rows
    ]  # fmt: skip
    note = f"draws at a kink (a relu unit that rounding switches, in ours or in torch): {sum(row.kinks for row in rows)}"
    lines = [*table([head, *cells], left=(0, 5)).splitlines(), note]
    return ["that is one draw of a noisy number; the same of random models and tokens:", *(f"  {line}" for line in lines)]


def _range(low: float, high: float) -> str:
    return f"{low:.2f} to {high:{'.2f' if high < 100 else '.0f'}}" if math.isfinite(low) else "unknown"


def _most_telling(rows: Sequence[Comparison]) -> list[Comparison]:
    """logits, loss, what failed, and the gradients with the largest float32 errors."""
    worst = sorted((row for row in rows if row.dtype == "float32" and row.name.startswith("grad ")), key=lambda r: -r.error)
    names = {"logits", "loss"} | {row.name for row in worst[:SHOWN]} | {row.name for row in rows if row.failed}
    return [row for row in rows if row.name in names]


def training(found: Any, full: bool) -> str:
    """The verdict on the long runs, and the losses of the strict steps, side by side."""
    lines = ["TRAINING"]
    if found.trajectories:
        lines += _filled(found.trajectories.sentence)
    if found.training:
        lines += _filled(f"{len(found.training.rows)} comparisons of losses and weights after AdamW steps side by side: "
                         f"{_counts(found.training.rows)}")  # fmt: skip
        lines += ["", _losses(found.training.losses)]
        failed = [row for row in found.training.rows if row.failed]
        lines += ["", comparison_table(found.training.rows if full else failed)] if full or failed else []
    return "\n".join(lines)


def _losses(losses: Mapping[str, Any]) -> str:
    rows = [(str(i), *(f"{loss:.9f}" for loss in step)) for i, step in enumerate(zip(*losses.values()), 1)]
    return table([("step", *losses), *rows], left=())


def kill_table(found: Any, full: bool) -> str:
    """Bugs by the part that they break: how many, how many killed, and by which check."""
    checks = list(found.kills[0].findings)
    killed = sum(bool(kill.killed_by) for kill in found.kills)
    lines = [f"KILL TABLE: {killed} of {len(found.kills)} seeded bugs killed, {len(found.kills) - killed} survived", ""]
    if full:
        rows = [(k.bug[:44], *("x" if name in k.killed_by else "" for name in checks)) for k in found.kills]
        return "\n".join([*lines, table([("bug", *(name[:5] for name in checks)), *rows])])
    parts = list(dict.fromkeys(kill.part for kill in found.kills))
    rows = [_part(part, [kill for kill in found.kills if kill.part == part], checks) for part in parts]
    return "\n".join([*lines, table([("caught by", "bugs", "killed", *checks), *rows])])


def _part(part: str, kills: Sequence[Any], checks: Sequence[str]) -> tuple[str, ...]:
    counts = [sum(name in kill.killed_by for kill in kills) for name in checks]
    return part, str(len(kills)), str(sum(bool(kill.killed_by) for kill in kills)), *(str(n or "") for n in counts)


def environment(found: Any) -> str:
    """What it ran on, in a few lines."""
    shown = {name: found.environment[name] for name in ("NumPy", "PyTorch", "CPU", "threads", "devices", "precision")}
    return "\n".join(textwrap.shorten(f"{name:<10} {value}", 80, placeholder=" ...") for name, value in shown.items())


def verdict(found: Any, steps: int) -> str:
    """The last sentence."""
    if found.failures:
        first = next((row for row in found.comparisons if row.failed), None)
        named = f"the first is {first.name} in {first.dtype}" if first else f"the first: {found.failures[0]}"
        return textwrap.fill(f"{len(found.failures)} findings differ from PyTorch: {named}.", 80)
    rows = found.comparisons
    what = f"All {len(rows)} comparisons equal" if rows else "All equal"
    said = f"{what}: PyTorch's but for rounding in float64, and in float32 as near to that truth as the policy asks."
    return textwrap.fill(said + f" ({found.seconds:.0f} s)", 80)


def device(found: Any, full: bool) -> str:
    """Errors of torch on the CPU, of torch on the device and of ours, and which device is wrong."""
    head = ("float32 error of", "CPU", found.device, "ours", "ratio", "")
    rows = found.rows if full else found.worst(8)
    cells = [
        (row.name, _error(row.torch_error), _error(row.error), _error(found.ours.get(row.name)), _ratio(row.ratio),
         _word(row.verdict).replace("than torch", "than the CPU")) for row in rows
    ]  # fmt: skip
    lines = [table([head, *cells], left=(0, 5)), f"({len(found.rows)} in all; ratio: {found.device} / CPU)", ""]
    return "\n".join([*lines, f"precision: {found.precision}", *_filled(found.sentence)])


def functions(found: Any) -> str:
    """A line per output and gradient, and the verdict in words."""
    head = ("", "float64", "yours", "torch's", "ratio", "")
    cells = [
        (row.name, _error(row.float64), _error(row.error), _error(row.torch_error), _ratio(row.ratio), row.verdict)
        for row in found.rows
    ]
    note = "largest errors of float32 beside the float64 truth; float64: yours beside torch's"
    return "\n".join([table([head, *cells], left=(0, 5)), "", *_filled(note), "", *_filled(found.sentence)])


def pack(path: str, rows: Sequence[Comparison], full: bool) -> str:
    """Ours against a pack."""
    failed = [row for row in rows if row.failed]
    shown = rows if full else failed or _most_telling(rows)
    end = (
        f"{len(failed)} of {len(rows)} comparisons differ from {path}: the first is {failed[0]}" if failed
        else f"All {len(rows)} comparisons equal: ours is the model of {path} (PyTorch was not needed)."
    )  # fmt: skip
    return "\n".join([comparison_table(shown), "", *_filled(end)])


def comparison_table(rows: Iterable[Comparison]) -> str:
    """A line per quantity: its errors in float64 and float32, torch's in float32, and the worse verdict."""
    by_name: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_name.setdefault(row.name, {})[row.dtype] = row
    head = ("", "float64", "float32", "torch's", "ratio", "")
    return table([head, *(_row(*item) for item in by_name.items())], left=(0, 5))


def rows_to_json(rows: Iterable[Comparison]) -> Any:
    """Comparisons as JSON values."""
    rows = list(rows)
    kept = [{**dataclasses.asdict(row), "error": row.error if math.isfinite(row.error) else None} for row in rows]
    return {"passed": all(row.passed for row in rows), "comparisons": kept}


def _row(name: str, pair: Mapping[str, Any]) -> tuple[str, ...]:
    wide, narrow = pair.get("float64"), pair.get("float32")
    errors = [wide and wide.error, narrow and narrow.error, narrow and narrow.torch_error]
    shown = [row for row in (narrow, wide) if row]
    worst = next((row for row in shown if not row.passed), shown[0])
    short = name.replace("[zero gradient]", "(no grad)")
    return short, *map(_error, errors), _ratio(narrow and narrow.ratio), _word(worst.verdict)


def _counts(rows: Sequence[Any]) -> str:
    verdicts = [row.verdict.value for row in rows]
    return ", ".join(f"{verdicts.count(v)} {v if v in WORDS else v.upper()}" for v in dict.fromkeys(verdicts))


def _word(verdict: str) -> str:
    return WORDS.get(verdict, verdict.upper())


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, 80)
