"""docs/results.md from JSON lines: every number in it comes from a record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import GRID, label
from benchmarks.measure import fit_line, fit_power
from benchmarks.sides import SIDES

Record = dict[str, Any]
BUSY = 0.1  # cores that others keep busy: with more, times are provisional
YARDSTICK = "torch-sdpa"  # what all of our sides, and their memory, are compared with at a glance

INTRO = """# Results

Written by `python -m benchmarks report` from recorded runs; how to read and to repeat them:
[benchmarks.md](benchmarks.md). A ratio is time(other side) / time(ours), above 1 we are faster: the median of the
rounds (the lowest to the highest); then that of the fastest turns of both, which other work on the machine disturbs least.
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
    parts = [INTRO, *_glance(runs.values()), *sections, _not_measured(list(runs.values()))]
    out.write_text("\n".join(parts), encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i == 0 else "--:" for i in range(len(head))) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


# Sections -------------------------------------------------------------------------------------------------------------


def _glance(runs: Iterable[list[Record]]) -> list[str]:
    """A table for each setting of BLAS: of all its training runs, the medians."""
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for records in runs:
        if records[0]["run"] == "run":
            _add_medians(found.setdefault(_environment(records[0]), {}), records)
    parts = []
    for environment, rows in found.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        cells = ([case, *(", ".join(row.get(column, ["–"])) for column in columns)] for case, row in sorted(rows.items()))
        parts += [f"{environment}:\n", table(("case", *columns), cells)]
    return ["## At a glance\n", "Medians of the training runs below, in their order.\n", *parts] if parts else []


def _add_medians(rows: dict[str, dict[str, list[str]]], records: list[Record]) -> None:
    """Of a run, what our fastest side is compared with, and what any is compared with the yardstick."""
    ratios = [r for r in _of(records, "ratio") if r["agree"]]
    memory = {(_label(r), r["side"]): r["peak_mb"] for r in _of(records, "train") if r.get("peak_mb")}
    for r in ratios:
        case, ours, other, row = _label(r), r["ours"], r["against"], rows.setdefault(_label(r), {})
        if ours == ratios[0]["ours"] or other == YARDSTICK:
            row.setdefault(f"{other} / {ours}", []).append(_short(r["median"]))
        if ours == ratios[0]["ours"] and other == YARDSTICK and {(case, ours), (case, other)} <= memory.keys():
            row.setdefault(f"memory: {ours} / {other}", []).append(_short(memory[case, ours] / memory[case, other]))


def _sections(name: str, records: list[Record], folder: Path) -> list[str]:
    heading, *parts = SECTIONS[records[0]["run"]](records)
    title = records[0]["asked"].get("title")
    return [f"## {title}\n" if title else heading, _machine(records), *parts, *_figures(name, records, folder)]


def _training(records: list[Record]) -> list[str]:
    peaks = _peaks(records)
    runs = _of(records, "train")
    head = ("case", "side", "ms a step", "tokens/s", "GFLOP/s", "of GEMM peak", "peak memory, MB", "others, cores")
    return [
        "## Training\n", _case_table(runs), _side_table(runs), table(head, (_training_row(r, peaks) for r in runs)),
        _ratio_table(records), _peak_table(records, peaks),
    ]


def _training_row(r: Record, peaks: dict[str, float]) -> list[str]:
    rate = r["flops"] / r["median"] / 1e9
    part = f"{rate / peaks[r['library']]:.1%}" if r["library"] in peaks else "–"
    return [_label(r), r["side"], _spread(r, 1e3), f"{r['tokens'] / r['median']:,.0f}", _short(rate), part,
            _memory(r), _number(r["others_cores"])]


def _decoding(records: list[Record]) -> list[str]:
    rows = ([_label(r), r["side"], str(r["tokens"]), f"{r['tokens'] / r['median']:,.0f}",
             _spread(r, 1e3 / r["tokens"]), _memory(r)] for r in _of(records, "decode"))
    head = ("case", "side", "new tokens", "tokens/s", "ms a token", "peak memory, MB")
    note = ("Greedy, one sequence; a prompt of a few tokens is read, then each token is one step over the keys and values that "
            "both sides keep.\n")
    return ["## Greedy decoding\n", note, table(head, rows), _ratio_table(records)]


def _ops(records: list[Record]) -> list[str]:
    runs, ratios = _of(records, "op"), {(r["name"], r["direction"], r["ours"], r["against"]): r for r in _of(records, "ratio")}
    sides = list(dict.fromkeys(r["side"] for r in runs))
    pairs = list(dict.fromkeys((r["ours"], r["against"]) for r in ratios.values()))
    cells = {(r["name"], r["what"], r["side"]): r for r in runs}
    head = ("op", "what", *(f"{side}: ms, rate" for side in sides), *(f"{a} / {o}" for o, a in pairs))
    rows = ([name, what, *(_rate(cells.get((name, what, side))) for side in sides),
             *(_verdict(ratios.get((name, what, *pair))) for pair in pairs)]
            for name, what in dict.fromkeys((r["name"], r["what"]) for r in runs))
    note = ("Through each side's own autograd. GFLOP/s of matrix products; GB/s counts each input read once and each result "
            "written once, whatever was really moved.\n")
    return ["## Single ops\n", note, table(head, rows)]


def _crossover(records: list[Record]) -> list[str]:
    ratios = _of(records, "ratio")
    if not ratios:
        return ["## Crossover\n"]
    widths, contexts, batches = (sorted({r["case"][key] for r in ratios}) for key in ("d_model", "context", "batch"))
    parts = ["## Crossover\n", "Training steps of two layers, 256 tokens in the vocabulary, heads of 32 features.\n"]
    for ours, against in dict.fromkeys((r["ours"], r["against"]) for r in ratios):
        cells = {(r["case"]["d_model"], r["case"]["context"], r["case"]["batch"]): r
                 for r in ratios if (r["ours"], r["against"]) == (ours, against)}
        parts.append(_wins(ours, against, list(cells.values())))
        for b in batches:
            head = (f"{against} / {ours}, B = {b}", *(f"T = {t}" for t in contexts))
            rows = ([f"d = {d}", *(_verdict(cells.get((d, t, b)), spread=False) for t in contexts)] for d in widths)
            parts.append(table(head, rows))
    return parts


def _wins(ours: str, against: str, cells: Sequence[Record]) -> str:
    values = sorted(r["median"] for r in cells if r["agree"])
    if not values:
        return ""
    won = sum(value > 1 for value in values)
    return (f"{ours} is faster than {against} in {won} of {len(values)} cells; {against} / {ours} from {_short(values[0])} to "
            f"{_short(values[-1])}, {_short(statistics.geometric_mean(values))} in the geometric mean.\n")


def _scaling(records: list[Record]) -> list[str]:
    runs = _of(records, "train")
    sides, cases = (list(dict.fromkeys(values)) for values in ((r["side"] for r in runs), (_label(r) for r in runs)))
    cells = {(_label(r), r["side"]): r for r in runs}
    note = ("Training steps, d = 256, 4 heads, sequences of 128; 4 layers where the tokens grow, 4 sequences where the layers "
            "do. An exponent of 1 is a time proportional to the size; ± is the 95 % interval of the fit to the medians. "
            "Below it a line: a fixed cost, a cost of each token or layer, and how far from it the furthest median is.\n")
    times = ([case, *(_spread(cells[case, side], 1e3) if (case, side) in cells else "–" for side in sides)] for case in cases)
    return ["## Scaling\n", note, table(("ms a step", *sides), times), _fits(runs, sides), _ratio_table(records)]


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
    return f"{_short(1e3 * fit.start)} + {_short(1e3 * fit.slope)} n, {fit.worst:.0%}" if fit else "–"


SECTIONS = {"run": _training, "decode": _decoding, "ops": _ops, "crossover": _crossover, "scaling": _scaling}


def _machine(records: list[Record]) -> str:
    m, engines = records[0], {r["engine"]["about"]: r["engine"]["threads"] for r in records if "engine" in r}
    busy = [r["others_cores"] for r in records if r.get("others_cores") is not None]
    loads = [r[key] for r in records for key in ("load", "load_before", "load_after") if r.get(key) is not None]
    libraries = "; ".join(f"{about}, {threads} threads" for about, threads in engines.items())
    lines = [f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}, Python {m['python']}. {libraries}. "
             f"{_environment(m)}. {_when(_of(records, 'machine'))}, {m['asked']['rounds']} rounds.",
             _load(loads), *([_bystanders(busy, m["cores"])] if busy else [])]
    return "\n".join(filter(None, lines)) + "\n"


def _when(machines: Sequence[Record]) -> str:
    """Of a run and those that went on with it."""
    dates, commits = (list(dict.fromkeys(m[key] for m in machines)) for key in ("date", "commit"))
    return f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(map(str, commits))}"


def _environment(m: Record) -> str:
    named = ", ".join(f"{name}={value}" for name, value in m["environment"].items()) or "No variable of BLAS was set"
    asked = m["asked"].get("threads")
    return f"{named}; --threads {asked}" if asked else named


def _load(loads: Sequence[float]) -> str:
    if not loads:
        return ""
    return f"Load average (ours included): {loads[0]} at the start, {loads[-1]} at the end, at most {max(loads)}."


def _bystanders(busy: Sequence[float], cores: int) -> str:
    range_ = f"{min(busy)} to {max(busy)} of the {cores} cores"
    if max(busy) <= BUSY:
        return f"Other processes kept {range_} busy during the rounds."
    return f"**Provisional**: other processes kept {range_} busy during the rounds."


def _case_table(runs: Sequence[Record]) -> str:
    cases = {_label(r): r for r in runs}
    fields = ("batch", "context", "d_model", "n_heads", "n_layers", "vocab")
    head = ("case", "B", "T", "d", "heads", "layers", "vocabulary", "GFLOP a step", "stresses")
    rows = ([name, *(f"{r['case'][f]}" for f in fields), _short(r["flops"] / 1e9), r["case"]["about"]]
            for name, r in cases.items())
    return table(head, rows)


def _side_table(runs: Sequence[Record]) -> str:
    names = dict.fromkeys(r["side"] for r in runs)
    return table(("side", "what it is"), ([name, SIDES[name].about if name in SIDES else "–"] for name in names))


def _ratio_table(records: list[Record]) -> str:
    """A row a case; where more than one side is ours, a row a case and side."""
    ratios = _of(records, "ratio")
    ours, against = (list(dict.fromkeys(r[key] for r in ratios)) for key in ("ours", "against"))
    if not ratios:
        return ""
    cells, several = {(_label(r), r["ours"], r["against"]): r for r in ratios}, len(ours) > 1
    rows = ([name, *([one] if several else []), *(_verdict(cells.get((name, one, other))) for other in against)]
            for name, one in dict.fromkeys((_label(r), r["ours"]) for r in ratios))
    head = ("case", *(["ours"] if several else []), *(f"{other} / {'ours' if several else ours[0]}" for other in against))
    return table(head, rows)


def _peak_table(records: list[Record], peaks: dict[str, float]) -> str:
    gemm = _of(records, "gemm")
    rows = ([library, _short(peak), ", ".join(_short(r["gflops"]) for r in gemm if r["library"] == library)]
            for library, peak in peaks.items())
    return table(("float32 matrix product", "peak, GFLOP/s", "each time"), rows) if peaks else ""


def _not_measured(runs: Sequence[list[Record]]) -> str:
    said: dict[str, list[str]] = {}
    for r in (r for records in runs for r in _of(records, "absent")):
        said.setdefault(f"{r['side']}: {r['why']}", []).append(r.get("name") or _label(r) or r["what"])
    lines = [f"- {reason} ({', '.join(dict.fromkeys(where))})" for reason, where in said.items()]
    trained = {r["case"]["name"] for records in runs for r in _of(records, "train")}
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


def _verdict(r: Record | None, spread: bool = True) -> str:
    if r is None:
        return "–"
    if not r["agree"]:
        return f"refused: results differ ({r['why_not']})"
    return f"{_spread(r)}; {_short(r['best'])}" if spread else f"{_short(r['median'])}; {_short(r['best'])}"


def _rate(r: Record | None) -> str:
    unit = "GFLOP/s" if r and r["unit"] == "flop" else "GB/s"
    return f"{_short(1e3 * r['median'])}, {_short(r['work'] / r['median'] / 1e9)} {unit}" if r else "–"


def _label(r: Record) -> str:
    return label(r["case"]) if "case" in r else ""


def _spread(r: Record, factor: float = 1.0) -> str:
    return f"{_short(factor * r['median'])} ({_short(factor * r['low'])}–{_short(factor * r['high'])})"


def _memory(r: Record) -> str:
    device = r["engine"].get("device_peak_mb")
    return _number(r.get("peak_mb"), ",.0f") + (f" + {device:,.0f} on the GPU" if device else "")


def _number(value: float | None, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _of(records: Iterable[Record], kind: str) -> list[Record]:
    return [r for r in records if r["kind"] == kind]


def _peaks(records: Iterable[Record]) -> dict[str, float]:
    """library → the fastest product, GFLOP/s"""
    peaks: dict[str, float] = {}
    for r in _of(records, "gemm"):
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
