"""The report as one HTML file without any outside resource: tables that sort, a heat map, plots; light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from reference.accuracy import Accuracy
from reference.heatmap import gradient_heat_map
from reference.kill_checks import CHECKS
from reference.sections import Report, ops_ratio, verdict_counts
from reference.svg import line_plot, strip_plot
from reference.trajectories import MOST_TIMES
from tinygrad_llm.policy import Comparison, Verdict, geometric_mean_ratio

BADGES = {
    Verdict.EQUAL: "good", Verdict.NO_WORSE: "good", Verdict.EXACTLY_ZERO: "zero", Verdict.INCONCLUSIVE: "doubt",
    Verdict.WORSE: "bad", Verdict.DIFFERENT: "bad", Verdict.MISMATCH: "bad",
}  # fmt: skip


NUMBER = re.compile(r"[-\d.e+]+|∞")


def render(report: Report) -> str:
    """The page."""
    sections = [
        ("environment", "Environment", _environment(report)), ("ops", "Every op", _ops(report)),
        ("model", "The model", _model(report)), ("training", "Training", _training(report)),
        ("kills", "The kill table", _kills(report)),
    ]  # fmt: skip
    shown = [(key, title, body) for key, title, body in sections if body]
    links = " ".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "\n".join(f'<section id="{key}"><h2>{title}</h2>{text}</section>' for key, title, text in shown)
    here = files("reference")
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tinygrad-llm check</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f"<body><header><h1>Is it the same function as PyTorch’s?</h1>{_verdict(report)}<nav>{links}</nav></header>"
        f"<main>{body}</main><script>{script}</script></body></html>\n"
    )


def _verdict(report: Report) -> str:
    if report.passed:
        text, kind = "Yes: nothing was found that is not rounding.", "good"
    else:
        text, kind = f"No: {len(report.failures)} findings, listed here.", "bad"
    found = "".join(f"<li>{escape(line)}</li>" for line in report.failures)
    about = escape("; ".join(report.about.splitlines()))
    tiles = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in _tiles(report))
    return (
        f'<p class="verdict {kind}">{text}</p><ul class="failures">{found}</ul><p>{about}</p>'
        f'<div class="tiles">{tiles}</div>'
    )


def _tiles(report: Report) -> Iterable[tuple[str, str]]:
    if report.ops:
        yield "op × dtype × device", f"{len(report.ops)}"
        yield "ops: float32 error, ours / torch’s", f"{ops_ratio(report.ops):.2f}"
    if report.comparisons:
        yield "comparisons of the model", f"{len(report.comparisons)}"
        gradients = [row for row in report.model if row.name.startswith("grad")]
        yield "gradients: float32 error, ours / torch’s, this draw", f"{geometric_mean_ratio(gradients):.2f}"
    if report.accuracy:
        medians = sorted(row.median for row in report.accuracy)
        yield "the same, medians of random models of 3 sizes", f"{medians[0]:.2f} to {medians[-1]:.2f}"
    if report.trajectories:
        yield f"training: distance in units of control (bug: > {MOST_TIMES:.0f})", f"{report.trajectories.factor:.1f}"
    if report.kills:
        yield "seeded bugs killed", f"{sum(bool(k.killed_by) for k in report.kills)} of {len(report.kills)}"


def _environment(report: Report) -> str:
    rows = [(escape(name), escape(text)) for name, text in report.environment.items()]
    return _table((), rows, "plain") + f"<p class=note>{report.seconds:.0f} seconds.</p>"


def _ops(report: Report) -> str:
    if not report.ops:
        return ""
    head = ("op", "dtype", "device", "verdict", "our error", "torch’s", "ratio", "ULP median", "p99", "max", "torch’s max", "")
    rows = [
        (
            row.op, row.dtype, row.device, _badge(row.verdict), _number(row.error), _number(row.torch_error), _ratio(row.ratio),
            f"{row.ulps.median:.1f}", _number(row.ulps.p99), _number(row.ulps.max),
            _number(row.torch_ulps.max if row.torch_ulps else None), escape(row.detail),
        ) for row in report.ops
    ]  # fmt: skip
    said = (
        f"{verdict_counts(report.ops)}. Errors are the largest |x − truth| / (1 + |truth|) over outputs and gradients, the "
        "truth being torch in float64; ratio: the geometric mean of ours / torch’s in float32. ULPs decide nothing: near a "
        "zero of the truth they are huge, in torch as in ours. Click a heading to sort."
    )
    return f"<p>{said}</p>{_table(head, rows)}"


def _model(report: Report) -> str:
    parts = []
    if report.activations:
        parts.append(f"<p class=lead>Activations: {escape(report.activations.sentence)}.</p>")
    if report.activation_gradients:
        parts.append(f"<p class=lead>Their gradients: {escape(report.activation_gradients.sentence)}.</p>")
    if report.accuracy:
        parts.append("<h3>Accuracy of float32 gradients, ours / torch’s</h3>" + _accuracy(report.accuracy))
    if report.model:
        parts.append("<h3>Gradient error of every parameter, float32</h3>" + gradient_heat_map(report.model))
    if report.depth and report.length:
        parts.append('<div class="pair">')
        parts.append("<div><h3>Error by depth</h3>" + _growth(report.depth, "blocks passed") + "</div>")
        parts.append("<div><h3>Error by length of the sums</h3>" + _growth(report.length, "rows added up (batch × T)"))
        parts.append("</div></div>")
    if report.activations:
        parts.append(_folded("Activations, module by module", report.activations.rows))
    if report.activation_gradients:
        parts.append(_folded("d loss / d activation, from the last back", report.activation_gradients.rows))
    if report.model:
        parts.append(_folded("Logits, loss, gradients", report.model))
    return "".join(parts)


def _accuracy(rows: Sequence[Accuracy]) -> str:
    """A row per size: the median of the draws, its interval, and every draw as a dot."""
    head = ("model", "d_model", "blocks", "batch × T", "gradients", "draws", "median", "99 % interval", "below 1: ours", "")
    cells = [
        (
            row.size.name, f"{row.size.d_model}", f"{row.size.n_layers}", f"{row.size.batch} × {row.size.context_length}",
            f"{row.parameters}", f"{len(row.ratios)}", f"{row.median:.2f}", "{:.2f} to {:.2f}".format(*row.interval),
            strip_plot(row.ratios, row.interval), f'<span class="badge {"bad" if row.failed else "good"}">{row.verdict}</span>',
        ) for row in rows
    ]  # fmt: skip
    kinks = sum(row.kinks for row in rows)
    said = (
        "A dot is one draw of weights and tokens: the geometric mean, over the gradients of all parameters, of our largest "
        "error over torch’s, against float64. Left of the line at 1, ours is the smaller. The bar is the interval of the "
        "median. A single draw is noise."
    )
    if kinks:
        said += f" {kinks} at a kink (a relu unit that rounding switches, in ours or in torch), drawn at the edge where far."
    return f"{_table(head, cells, 'strips')}<p class=note>{said}</p>"


def _growth(growth: Any, label: str) -> str:
    ours, theirs = growth.slopes
    plot = line_plot({"ours": (growth.x, growth.ours), "torch": (growth.x, growth.torch)}, label, "relative float32 error",
                     log_x=True)  # fmt: skip
    return f"{plot}<p class=note>error ~ xᵏ: k = {ours:.2f} ours, {theirs:.2f} torch’s (0.5: rounding at random; 1: a bias)</p>"


def _training(report: Report) -> str:
    parts = []
    if found := report.trajectories:
        steps = range(1, len(found.paths["torch"].losses) + 1)
        lines = {name: (found.steps, path.distances) for name, path in found.paths.items() if name != "torch"}
        parts.append(f"<p class=lead>{escape(found.sentence[0].upper() + found.sentence[1:])}.</p>")
        parts.append("<h3>Distance of each run from torch’s float32 run</h3>")
        parts.append(line_plot(lines, "step", "distance of the logits"))
        losses = {name: (list(steps), found.paths[name].losses) for name in ("torch", "ours")}
        parts.append("<h3>Loss</h3>" + line_plot(losses, "step", "nats per token", log_y=False))
    if report.training:
        parts.append(_folded("AdamW steps side by side: losses, final weights", report.training.rows))
    return "".join(parts)


def _kills(report: Report) -> str:
    if not report.kills:
        return ""
    rows = []
    for kill in report.kills:
        first = kill.first
        seen = f"{escape(first.metric)} {first.dtype}" if first else "<b class=bad>SURVIVED</b>"
        marks = ["<span class=hit>●</span>" if kill.findings[name] else "" for name in CHECKS]
        error = first.error if first else None
        rows.append((escape(kill.part), escape(kill.bug), escape(kill.source), *marks, seen, _number(error)))
    head = ("part", "bug", "what it gets wrong", *CHECKS, "seen first in", "error")
    said = f"{len(rows)} seeded bugs, each put into the library in turn; ● a check that saw it."
    return f"<p>{said}</p>{_table(head, rows, 'kills')}"


def _folded(title: str, rows: Sequence[Comparison]) -> str:
    head = ("", "dtype", "verdict", "our error", "torch’s", "ratio", "")
    cells = [
        (escape(row.name), row.dtype, _badge(row.verdict), _number(row.error), _number(row.torch_error), _ratio(row.ratio),
         escape(row.detail)) for row in rows
    ]  # fmt: skip
    return f"<details><summary>{escape(title)}: {len(rows)} rows</summary>{_table(head, cells)}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "sortable") -> str:
    rows = list(rows)
    numeric = [kind != "plain" and any(NUMBER.fullmatch(cell) for cell in column) for column in zip(*rows)]
    top = "<thead><tr>" + "".join(_cell(*pair, tag="th") for pair in zip(head, numeric)) + "</tr></thead>" if head else ""
    body = "".join("<tr>" + "".join(map(_cell, row, numeric)) + "</tr>" for row in rows)
    return f'<div class="wide tall"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def _cell(text: str, numeric: bool, tag: str = "td") -> str:
    return f"<{tag} class=number>{text}</{tag}>" if numeric else f"<{tag}>{text}</{tag}>"


def _badge(verdict: Verdict) -> str:
    return f'<span class="badge {BADGES[verdict]}">{verdict.value}</span>'


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞"
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 or value >= 1e4 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
