"""docs/results.md from JSON lines: every number in it comes from a record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import GRID
from benchmarks.cells import mark, name_of, not_measured, of, short, spread, table, threes, verdict
from benchmarks.glance import at_a_glance, environment, three_table
from benchmarks.measure import fit_line, fit_power
from benchmarks.sides import SIDES
from benchmarks.verdicts import BUSY, KINDS, doubts

Record = dict[str, Any]

INTRO = """# Results

Written by `python -m benchmarks report` from recorded runs; how to read and to repeat them:
[benchmarks.md](benchmarks.md). A ratio is time(other side) / time(ours), above 1 we are faster: the median of the
rounds (the lowest to the highest); then that of the fastest turns of both, which other work on the machine disturbs least.
*Provisional* is what other work disturbed, whose rounds differ by half, or of which there were fewer than three.
"""


def read_records(files: Iterable[str]) -> dict[str, list[Record]]:
    """The records of each file, by its name without the ending. Raises ValueError, naming the line, for what is not a record
    of ours."""
    runs: dict[str, list[Record]] = {}
    for path in map(Path, files):
        if path.stem in runs:
            raise ValueError(f"{path}: got a second file named {path.stem}, expected another name: plots are called by it")
        runs[path.stem] = _read(path)
    return runs


def write_report(runs: Mapping[str, list[Record]], out: Path) -> None:
    """Markdown, and the plots of run `name` as figures/…-name.svg beside it; without matplotlib, no plots."""
    sections = (section for name, records in runs.items() for section in _sections(name, records, out.parent))
    parts = [INTRO, *at_a_glance(runs.values()), *sections, _not_measured(list(runs.values()))]
    out.write_text("\n".join(parts), encoding="utf-8")


# Sections -------------------------------------------------------------------------------------------------------------


def _sections(name: str, records: list[Record], folder: Path) -> list[str]:
    heading, *parts = SECTIONS[records[0]["run"]](records)
    title = records[0]["asked"].get("title")
    return [f"## {title}\n" if title else heading, _machine(records), *parts, *_figures(name, records, folder)]


def _training(records: list[Record]) -> list[str]:
    peaks = _peaks(records)
    runs = of(records, "train")
    head = ("case", "side", "ms a step", "tokens/s", "GFLOP/s", "of GEMM peak", "peak memory, MB", "others, cores")
    return [
        "## Training\n", _case_table(runs), _side_table(records), table(head, (_training_row(r, peaks) for r in runs)),
        _ratio_table(records), three_table(of(records, "ratio")), _peak_table(records, peaks),
    ]


def _training_row(r: Record, peaks: dict[str, float]) -> list[str]:
    rate = r["flops"] / r["median"] / 1e9
    part = f"{rate / peaks[r['library']]:.1%}" if r["library"] in peaks else "–"
    return [name_of(r), r["side"], spread(r, 1e3) + mark(r), f"{r['tokens'] / r['median']:,.0f}", short(rate), part,
            _memory(r), _number(r["others_cores"])]


def _decoding(records: list[Record]) -> list[str]:
    rows = ([name_of(r), r["side"], str(r["tokens"]), f"{r['tokens'] / r['median']:,.0f}",
             spread(r, 1e3 / r["tokens"]) + mark(r), _memory(r)] for r in of(records, "decode"))
    head = ("case", "side", "new tokens", "tokens/s", "ms a token", "peak memory, MB")
    note = ("Greedy, one sequence; a prompt of a few tokens is read, then each token is one step over the keys and values that "
            "both sides keep.\n")
    return ["## Greedy decoding\n", note, _side_table(records), table(head, rows), _ratio_table(records),
            three_table(of(records, "ratio"))]


def _ops(records: list[Record]) -> list[str]:
    runs, ratios = of(records, "op"), {(r["name"], r["direction"], r["ours"], r["against"]): r for r in of(records, "ratio")}
    sides = list(dict.fromkeys(r["side"] for r in runs))
    pairs = list(dict.fromkeys((r["ours"], r["against"]) for r in ratios.values()))
    cells = {(r["name"], r["what"], r["side"]): r for r in runs}
    head = ("op", "what", *(f"{side}: ms, rate" for side in sides), *(f"{a} / {o}" for o, a in pairs))
    rows = ([name, what, *(_rate(cells.get((name, what, side))) for side in sides),
             *(verdict(ratios.get((name, what, *pair))) for pair in pairs)]
            for name, what in dict.fromkeys((r["name"], r["what"]) for r in runs))
    note = ("Through each side's own autograd. GFLOP/s of matrix products; GB/s counts each input read once and each result "
            "written once, whatever was really moved.\n")
    return ["## Single ops\n", note, _side_table(records), table(head, rows), _three_means(records)]


def _crossover(records: list[Record]) -> list[str]:
    ratios = of(records, "ratio")
    if not ratios:
        return ["## Crossover\n"]
    widths, contexts, batches = (sorted({r["case"][key] for r in ratios}) for key in ("d_model", "context", "batch"))
    note = "Training steps of two layers, 256 tokens in the vocabulary, heads of 32 features.\n"
    parts = ["## Crossover\n", note, _side_table(records), _three_means(records)]
    for ours, against in dict.fromkeys((r["ours"], r["against"]) for r in ratios):
        cells = {(r["case"]["d_model"], r["case"]["context"], r["case"]["batch"]): r
                 for r in ratios if (r["ours"], r["against"]) == (ours, against)}
        parts.append(_wins(ours, against, list(cells.values())))
        for b in batches:
            head = (f"{against} / {ours}, B = {b}", *(f"T = {t}" for t in contexts))
            rows = ([f"d = {d}", *(verdict(cells.get((d, t, b)), spread_too=False) for t in contexts)] for d in widths)
            parts.append(table(head, rows))
    return parts


def _wins(ours: str, against: str, cells: Sequence[Record]) -> str:
    values = sorted(r["median"] for r in cells if r["agree"])
    if not values:
        return ""
    won = sum(value > 1 for value in values)
    return (f"{ours} is faster than {against} in {won} of {len(values)} cells; {against} / {ours} from {short(values[0])} to "
            f"{short(values[-1])}, {short(statistics.geometric_mean(values))} in the geometric mean.\n")


def _scaling(records: list[Record]) -> list[str]:
    runs = of(records, "train")
    sides, cases = (list(dict.fromkeys(values)) for values in ((r["side"] for r in runs), (name_of(r) for r in runs)))
    cells = {(name_of(r), r["side"]): r for r in runs}
    note = ("Training steps, d = 256, 4 heads, sequences of 128; 4 layers where the tokens grow, 4 sequences where the layers "
            "do. An exponent of 1 is a time proportional to the size; ± is the 95 % interval of the fit to the medians. "
            "Below it a line: a fixed cost, a cost of each token or layer, and how far from it the furthest median is.\n")
    times = ([case, *(spread(cells[case, side], 1e3) if (case, side) in cells else "–" for side in sides)] for case in cases)
    return ["## Scaling\n", note, _side_table(records), table(("ms a step", *sides), times), _fits(runs, sides),
            _ratio_table(records), three_table(of(records, "ratio"))]


def _fits(runs: Sequence[Record], sides: Sequence[str]) -> str:
    rows = ([f"{name} over {axis}", *(fit(sizes(runs, axis, side)) for side in sides)]
            for axis in ("tokens", "layers") for name, fit in (("exponent", exponent), ("line, ms", line)))
    return table(("time", *sides), rows)


def sizes(runs: Sequence[Record], axis: str, side: str) -> list[tuple[float, float]]:
    """(tokens or layers, median seconds) of a side where that axis grows."""
    mine = [r for r in runs if r["case"]["about"] == axis and r["side"] == side]
    return sorted((r["tokens"] if axis == "tokens" else r["case"]["n_layers"], r["median"]) for r in mine)


def exponent(points: Sequence[tuple[float, float]]) -> str:
    """The fitted power and its uncertainty."""
    fit = fit_power(*zip(*points)) if points else None
    return f"{fit.exponent:.2f} ± {fit.half_width:.2f}" if fit else "–"


def line(points: Sequence[tuple[float, float]]) -> str:
    """The fitted line, and the largest distance from it."""
    fit = fit_line(*zip(*points)) if points else None
    return f"{short(1e3 * fit.start)} + {short(1e3 * fit.slope)} n, {fit.worst:.0%}" if fit else "–"


SECTIONS = {"run": _training, "decode": _decoding, "ops": _ops, "crossover": _crossover, "scaling": _scaling}


def _machine(records: list[Record]) -> str:
    m, engines = records[0], {r["engine"]["about"]: r["engine"]["threads"] for r in records if "engine" in r}
    busy = [r["others_cores"] for r in records if r["kind"] != "gemm" and r.get("others_cores") is not None]
    loads = [r[key] for r in records for key in ("load", "load_before", "load_after") if r.get(key) is not None]
    libraries = "; ".join(f"{about}, {threads} threads" for about, threads in engines.items())
    lines = [f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}, Python {m['python']}. {libraries}. "
             f"{environment(m)}. {_when(of(records, 'machine'))}, {m['asked']['rounds']} rounds.",
             _load(loads), *([_bystanders(busy, m["cores"])] if busy else []), _doubtful(records)]
    return "\n".join(filter(None, lines)) + "\n"


def _when(machines: Sequence[Record]) -> str:
    """Of a run and those that went on with it."""
    dates, commits = (list(dict.fromkeys(m[key] for m in machines)) for key in ("date", "commit"))
    return f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(map(str, commits))}"


def _load(loads: Sequence[float]) -> str:
    if not loads:
        return ""
    return f"Load average (ours included): {loads[0]} at the start, {loads[-1]} at the end, at most {max(loads)}."


def _bystanders(busy: Sequence[float], cores: int) -> str:
    range_ = f"{min(busy)} to {max(busy)} of the {cores} cores"
    if max(busy) <= BUSY:
        return f"Other processes kept {range_} busy during the rounds."
    return f"**Provisional**: other processes kept {range_} busy during the rounds."


def _doubtful(records: Sequence[Record]) -> str:
    """How many ratios are provisional, and the first reason of the worst."""
    ratios = [r for r in of(records, "ratio") if r["agree"]]
    found = [r for r in ratios if doubts(r)]
    if not found:
        return ""
    worst = max(found, key=lambda r: r["high"] / r["low"])
    return (f"**Provisional** are {len(found)} of {len(ratios)} ratios; {name_of(worst)} {worst['against']} / {worst['ours']}: "
            f"{', '.join(doubts(worst))}.")


def _case_table(runs: Sequence[Record]) -> str:
    cases = {name_of(r): r for r in runs}
    fields = ("batch", "context", "d_model", "n_heads", "n_layers", "vocab")
    head = ("case", "B", "T", "d", "heads", "layers", "vocabulary", "GFLOP a step", "stresses")
    rows = ([name, *(f"{r['case'][f]}" for f in fields), short(r["flops"] / 1e9), r["case"]["about"]]
            for name, r in cases.items())
    return table(head, rows)


def _side_table(records: Sequence[Record]) -> str:
    """What each side is, and with which kernels it ran; the rate is that of its library in large products."""
    runs, peaks = {r["side"]: r for r in records if "side" in r and "engine" in r}, _peaks(records)
    heads = {name: "; ".join(f"{name_of(r)}: {r['engine']['head']}" for r in of(records, "train")
                             if r["side"] == name and "head" in r["engine"]) for name in runs}
    rows = ([name, SIDES[name].about if name in SIDES else "–", r["engine"].get("kernels", "–"), heads[name] or "–",
             short(peaks[r["library"]]) if r["library"] in peaks else "–"] for name, r in runs.items())
    return table(("side", "what it is", "kernels of its matrix products", "chosen loss", "GFLOP/s in them"), rows)


def _three_means(records: Sequence[Record]) -> str:
    """The same where the cases are many: of each kind the geometric mean, of the best torch side in each cell."""
    found, rows = threes(of(records, "ratio")), []
    for ours in dict.fromkeys(ours for _, ours in found):
        cells = [cell for (_, one), cell in found.items() if one == ours]
        means = {kind: [cell[kind]["median"] for cell in cells if kind in cell] for kind in KINDS}
        said = sorted((statistics.geometric_mean(values), kind, len(values)) for kind, values in means.items() if values)
        rows.append([ours, ", ".join(f"{short(mean)} {KINDS[kind]} ({count})" for mean, kind, count in said) or "–",
                     not_measured({kind: mean for mean, kind, _ in said})])
    return table(("ours", "geometric means, the smallest first (of how many)", "not measured"), rows) if rows else ""


def _ratio_table(records: list[Record]) -> str:
    """A row a case; where more than one side is ours, a row a case and side."""
    ratios = of(records, "ratio")
    ours, against = (list(dict.fromkeys(r[key] for r in ratios)) for key in ("ours", "against"))
    if not ratios:
        return ""
    cells, several = {(name_of(r), r["ours"], r["against"]): r for r in ratios}, len(ours) > 1
    rows = ([name, *([one] if several else []), *(verdict(cells.get((name, one, other))) for other in against)]
            for name, one in dict.fromkeys((name_of(r), r["ours"]) for r in ratios))
    head = ("case", *(["ours"] if several else []), *(f"{other} / {'ours' if several else ours[0]}" for other in against))
    return table(head, rows)


def _peak_table(records: list[Record], peaks: dict[str, float]) -> str:
    gemm = of(records, "gemm")
    rows = ([library, short(peak), ", ".join(short(r["gflops"]) + mark(r) for r in gemm if r["library"] == library)]
            for library, peak in peaks.items())
    return table(("float32 matrix product", "peak, GFLOP/s", "each time"), rows) if peaks else ""


def _not_measured(runs: Sequence[list[Record]]) -> str:
    said: dict[str, list[str]] = {}
    for r in (r for records in runs for r in of(records, "absent")):
        said.setdefault(f"{r['side']}: {r['why']}", []).append(r.get("name") or name_of(r) or r["what"])
    lines = [f"- {reason} ({', '.join(dict.fromkeys(where))})" for reason, where in said.items()]
    trained = {r["case"]["name"] for records in runs for r in of(records, "train")}
    sides = {r["side"] for records in runs for r in records if "side" in r}
    left = [name for name in GRID if name not in trained and name != "toy"]
    lines += [f"- of the grid: {', '.join(left)}"] if left else []
    absent = [name for name in SIDES if name not in sides]
    lines += [f"- sides that no run asked for: {', '.join(absent)}"] if absent else []
    lines += [f"- `{name}`: no file was given" for name in SECTIONS if name not in {records[0]["run"] for records in runs}]
    lines += [f"- the file of `{records[0]['run']}` ends early: that run was stopped" for records in runs
              if records[-1]["kind"] != "end"]
    return "## Not measured\n\n" + "\n".join(lines or ["- nothing that was asked for"]) + "\n"


def _figures(name: str, records: list[Record], folder: Path) -> list[str]:
    try:
        from benchmarks import plots
    except ImportError:
        return []
    drawn = plots.draw(records, folder / "figures", name)
    return [f"![{about}](figures/{path.name})\n" for about, path in drawn]


# Cells ----------------------------------------------------------------------------------------------------------------


def _rate(r: Record | None) -> str:
    unit = "GFLOP/s" if r and r["unit"] == "flop" else "GB/s"
    return f"{short(1e3 * r['median'])}, {short(r['work'] / r['median'] / 1e9)} {unit}" if r else "–"


def _memory(r: Record) -> str:
    device = r["engine"].get("device_peak_mb")
    return _number(r.get("peak_mb"), ",.0f") + (f" + {device:,.0f} on the GPU" if device else "")


def _number(value: float | None, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def _peaks(records: Iterable[Record]) -> dict[str, float]:
    """library → the fastest product, GFLOP/s"""
    peaks: dict[str, float] = {}
    for r in of(records, "gemm"):
        peaks[r["library"]] = max(r["gflops"], peaks.get(r["library"], 0.0))
    return peaks


def _read(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            record["kind"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path.name}: line {number}: got {line[:40]!r}, expected a record of a run") from None
        records.append(record)
    if not records or records[0].get("run") not in SECTIONS:
        raise ValueError(f"{path.name}: got a file that no run wrote, expected a first record of kind machine")
    return records
