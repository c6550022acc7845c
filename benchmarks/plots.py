"""The plots of a report, as SVG: the same records give the same bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks.cases import label
from benchmarks.measure import fit_power
from benchmarks.report import exponent, sizes
from benchmarks.verdicts import KINDS, doubts

Record = dict[str, Any]
STYLE: dict[Any, Any] = {"svg.hashsalt": "tinygrad_llm", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


class PlainLog(LogFormatter):
    """0.2 in place of 2e-01"""

    def __call__(self, x: float, pos: Any = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def draw(records: Sequence[Record], folder: Path, run: str) -> list[tuple[str, Path]]:
    """(what it shows, file) of each plot of a run of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        return [(about, _saved(figure, folder / f"{name}-{run}.svg")) for name, about, figure in
                PLOTS.get(records[0]["run"], lambda _: [])(records)]


def _training(records: Sequence[Record]) -> list[tuple[str, str, Figure]]:
    """Ratios of the fastest of ours, which is named first: a bar for each of the others. Memory: axes for each case."""
    agreed = [r for r in records if r["kind"] == "ratio" and r["agree"]]
    ratios = sorted((r for r in agreed if r["ours"] == agreed[0]["ours"]), key=_typical(agreed))
    runs = [r for r in records if r["kind"] == "train" and r.get("peak_mb")]
    found = []
    if ratios:
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        axes = figure.add_subplot(ylabel="time of the other / time of ours, times\nabove 1 we are faster", yscale="log")
        _plain(axes.yaxis)
        _bars(axes, ratios, _pair, lambda r: r["median"], 1.0)
        axes.axhline(1.0, color="black", linewidth=0.8)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, title=_hatched(ratios))
        found.append(("training-ratio", "Time of a training step, the other side / ours", figure))
    if runs:
        found.append(("training-memory", "Peak memory of training", _memory(runs)))
    return found


def _memory(runs: Sequence[Record]) -> Figure:
    cases = sorted({label(r["case"]) for r in runs})
    figure = Figure(figsize=(10, 2 + 0.2 * len({r["side"] for r in runs})), layout="constrained")
    for i, case in enumerate(cases):
        axes = figure.add_subplot(1, len(cases), i + 1, ylabel="" if i else "peak memory of the process tree, MB")
        _bars(axes, [r for r in runs if label(r["case"]) == case], lambda r: r["side"], lambda r: r["peak_mb"], 0.0)
    handles = {text: bars for axes in figure.axes for bars, text in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _crossover(records: Sequence[Record]) -> list[tuple[str, str, Figure]]:
    ratios = [r for r in records if r["kind"] == "ratio" and r["agree"]]
    found = []
    for ours, against in dict.fromkeys((r["ours"], r["against"]) for r in ratios):
        cells = [r for r in ratios if (r["ours"], r["against"]) == (ours, against)]
        about = f"Time of {against} / {ours}; beyond the black line {against} is faster"
        found.append((f"crossover-{ours}-{against}", about, _map(cells)))
    return found


def _scaling(records: Sequence[Record]) -> list[tuple[str, str, Figure]]:
    runs = [r for r in records if r["kind"] == "train"]
    if not runs:
        return []
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    for i, axis in enumerate(("tokens", "layers")):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.set(xlabel=axis, ylabel="" if i else "seconds a step", xscale="log", yscale="log")
        for side in dict.fromkeys(r["side"] for r in runs):
            _power(axes, sizes(runs, axis, side), side)
        doubtful = [point for side in dict.fromkeys(r["side"] for r in runs)
                    for point in sizes([r for r in runs if doubts(r)], axis, side)]
        if doubtful:
            axes.plot(*zip(*doubtful), "o", markersize=2, color="white")
            axes.set_xlabel(f"{axis} (hollow: provisional)")
        _plain(axes.yaxis)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, title="exponent", title_fontsize=8)
    return [("scaling", "Time of a training step over tokens and over layers, with fitted powers", figure)]


def _power(axes: Axes, points: Sequence[tuple[float, float]], side: str) -> None:
    """The points, and the power law through them."""
    if not points:
        return
    x, y = zip(*points)
    fit = fit_power(x, y)
    (drawn,) = axes.plot(x, y, "o", markersize=4, label=f"{side}: {exponent(points)}")
    if fit:
        axes.plot(x, [fit.scale * at**fit.exponent for at in x], color=drawn.get_color(), linewidth=1)
    axes.set_xticks(x, [f"{at:,}" for at in x])
    axes.set_xticks([], minor=True)


PLOTS: dict[str, Callable[[Sequence[Record]], list[tuple[str, str, Figure]]]] = {
    "run": _training, "crossover": _crossover, "scaling": _scaling,
}


def _map(cells: Sequence[Record]) -> Figure:
    """A heat map d_model × T for each batch, with a line between the cells where one and where the other is faster."""
    widths, contexts, batches = (sorted({r["case"][key] for r in cells}) for key in ("d_model", "context", "batch"))
    value = {(r["case"]["d_model"], r["case"]["context"], r["case"]["batch"]): math.log2(r["median"]) for r in cells}
    doubtful = {(r["case"]["d_model"], r["case"]["context"], r["case"]["batch"]) for r in cells if doubts(r)}
    limit = max(1.0, *map(abs, value.values()))
    figure = Figure(figsize=(2.6 * len(batches) + 1, 3), layout="constrained")
    for i, b in enumerate(batches):
        axes = figure.add_subplot(1, len(batches), i + 1)
        grid = [[value.get((d, t, b), math.nan) for t in contexts] for d in widths]
        image = axes.imshow(grid, vmin=-limit, vmax=limit, cmap="RdBu", origin="lower", aspect="auto")
        _write_cells(axes, grid, limit, [["*" * ((d, t, b) in doubtful) for t in contexts] for d in widths])
        _separate(axes, grid)
        axes.set_xticks(range(len(contexts)), map(str, contexts))
        axes.set_yticks(range(len(widths)), map(str, widths))
        axes.set(title=f"B = {b} sequences", xlabel="T, tokens", ylabel="d_model, features" if i == 0 else "")
    ticks = [power for power in range(-10, 11) if abs(power) <= limit]
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, ticks=ticks)
    bar.set_ticklabels([f"{2.0**power:g}" for power in ticks])
    bar.set_label("time / time of ours, times" + "\n*: provisional" * bool(doubtful))
    return figure


def _write_cells(axes: Axes, grid: Sequence[Sequence[float]], limit: float, marks: Sequence[Sequence[str]]) -> None:
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            color = "white" if abs(value) > 0.7 * limit else "black"
            axes.text(x, y, f"{2**value:.2g}{marks[y][x]}", ha="center", va="center", fontsize=8, color=color)


def _separate(axes: Axes, grid: Sequence[Sequence[float]]) -> None:
    """The edges between neighbours that differ in who is faster (in the sign of the logarithm; NaN was not measured)."""
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            if x and row[x - 1] * value < 0:
                axes.plot([x - 0.5] * 2, [y - 0.5, y + 0.5], color="black", linewidth=2)
            if y and grid[y - 1][x] * value < 0:
                axes.plot([x - 0.5, x + 0.5], [y - 0.5] * 2, color="black", linewidth=2)


def _bars(
    axes: Axes, records: Sequence[Record], by: Callable[[Record], str], height: Callable[[Record], float], start: float,
) -> None:
    """Groups of bars from `start` on: a group for each case, a colour for each value of `by`. Ratios have a thin line from
    the lowest round to the highest, and are hatched where they are provisional."""
    cases, kinds = sorted({label(r["case"]) for r in records}), list(dict.fromkeys(map(by, records)))
    width = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        mine = [r for r in records if by(r) == kind]
        at = [cases.index(label(r["case"])) + (i - (len(kinds) - 1) / 2) * width for r in mine]
        bars = axes.bar(at, [height(r) - start for r in mine], width * 0.95, bottom=start, label=kind)
        for bar, x, r in zip(bars, at, mine):
            if r["kind"] == "ratio":
                axes.vlines(x, r["low"], r["high"], color="black", linewidth=0.8)
                bar.set(hatch="////" if doubts(r) else None)
    axes.set_xticks(range(len(cases)), cases)


def _hatched(ratios: Sequence[Record]) -> str | None:
    return "hatched: provisional" if any(map(doubts, ratios)) else None


def _plain(axis: Axis) -> None:
    axis.set_major_formatter(PlainLog())
    axis.set_minor_formatter(PlainLog(minor_thresholds=(2, 0.5)))


def _pair(r: Record) -> str:
    return f"{r['against']} / {r['ours']}" + "".join(f"\n  {KINDS[kind]}" for kind in r.get("kinds", ()))


def _typical(ratios: Sequence[Record]) -> Callable[[Record], float]:
    """The geometric mean of a pair's ratios: the pair with the smallest stands first."""
    mine: dict[str, list[float]] = {}
    for r in ratios:
        mine.setdefault(_pair(r), []).append(r["median"])
    return lambda r: statistics.geometric_mean(mine[_pair(r)])


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path
