"""Line plots as inline SVG: no library, no script, colours from the page's CSS (--s0, --s1, ...)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 660, 300, 64, 14, 12, 42
Line = tuple[Sequence[float], Sequence[float]]
Place = Callable[[float, float], tuple[float, float]]


def line_plot(lines: Mapping[str, Line], x_label: str, y_label: str, log_x: bool = False, log_y: bool = True) -> str:
    """name -> (x, y) as lines with a legend below; points that a logarithm does not take are left out."""
    points = {name: _usable(line, log_x, log_y) for name, line in lines.items()}
    points = {name: found for name, found in points.items() if found}
    if not points:
        return "<p class=note>nothing to plot: all values are zero</p>"
    xs = _axis([x for found in points.values() for x, _ in found], log_x)
    ys = _axis([y for found in points.values() for _, y in found], log_y)
    place = _placer(xs, ys, log_x, log_y)
    parts = [*_grid(xs, ys, place, log_x, log_y), *_labels(x_label, y_label)]
    for i, (name, found) in enumerate(points.items()):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(x, y) for x, y in found))
        parts.append(f'<polyline class="line s{i % 7}" points="{path}"><title>{escape(name)}</title></polyline>')
    keys = "".join(f'<span><i class="key s{i % 7}"></i>{escape(name)}</span>' for i, name in enumerate(points))
    frame = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">{"".join(parts)}</svg>'
    return f'<figure>{frame}<figcaption class="legend">{keys}</figcaption></figure>'


def strip_plot(ratios: Sequence[float], interval: tuple[float, float], reach: float = 1.5) -> str:
    """Ratios as dots from 1/reach to reach, evenly in the logarithm, those beyond at the edge; a bar for an interval."""
    width, height = 300, 22

    def place(ratio: float) -> float:
        part = math.log(min(max(ratio, 1 / reach), reach)) / math.log(reach)
        return width / 2 + part * (width / 2 - 6)

    low, high = map(place, interval)
    dots = "".join(f'<circle class="dot" cx="{place(r):.1f}" cy="11" r="3.5"><title>{r:.3g}</title></circle>' for r in ratios)
    bar = f'<rect class="bar" x="{low:.1f}" y="3" width="{max(high - low, 1):.1f}" height="16"/>'
    one = f'<line class="one" x1="{place(1):.1f}" x2="{place(1):.1f}" y1="0" y2="{height}"/>'
    label = f"{len(ratios)} draws from {min(ratios):.2f} to {max(ratios):.2f}"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{bar}{one}{dots}</svg>'


def _usable(line: Line, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    return [
        (x, y) for x, y in zip(*line) if math.isfinite(y) and math.isfinite(x) and (y > 0 or not log_y) and (x > 0 or not log_x)
    ]


def _axis(values: Sequence[float], log: bool) -> list[float]:
    """Ticks; the first and the last are the ends of the axis."""
    low, high = min(values), max(values)
    if log:
        return _log_axis(low, high)
    gap = _round_step((high - low) / 5 or 1.0)
    start = math.floor(low / gap)
    return [gap * i for i in range(start, math.ceil(high / gap) + 1)] if high > low else [low, low + gap]


def _log_axis(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... over less than two decades, else powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if math.log10(high / low) < 2:
        fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        start = max(i for i, tick in enumerate(fine) if tick <= low * (1 + 1e-9))
        end = min(i for i, tick in enumerate(fine) if tick >= high * (1 - 1e-9))
        return fine[start : max(end, start + 1) + 1]
    step = max(1, math.ceil((last - first) / 6))
    return [10.0**e for e in range(first, last + step, step)]


def _round_step(raw: float) -> float:
    size = 10 ** math.floor(math.log10(raw))
    return next(size * m for m in (1, 2, 5, 10) if size * m >= raw)


def _placer(xs: list[float], ys: list[float], log_x: bool, log_y: bool) -> Place:
    def part(v: float, ticks: list[float], log: bool) -> float:
        low, high, v = (math.log10(t) if log else t for t in (ticks[0], ticks[-1], v))
        return (v - low) / (high - low)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = part(x, xs, log_x), part(y, ys, log_y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    return place


def _grid(xs: list[float], ys: list[float], place: Place, log_x: bool, log_y: bool) -> list[str]:
    parts = []
    for y in ys:
        _, py = place(xs[0], y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{_number(y, log_y)}</text>')
    for x in xs:
        px, _ = place(x, ys[0])
        parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(x, log_x)}</text>')
    return parts


def _labels(x_label: str, y_label: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="name" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]


def _number(value: float, log: bool) -> str:
    if not log or 1e-2 <= value < 1e4:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    front = round(value / 10.0**power)
    return f'{f"{front}·" if front > 1 else ""}10<tspan dy="-5" font-size="8">{power}</tspan>'
