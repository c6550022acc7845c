"""python -m benchmarks run | decode | ops | crossover | scaling | report | compare"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import machine, run
from benchmarks.cases import Case, find_cases, label, map_cases, scaling_cases
from benchmarks.compare import compare
from benchmarks.console import Console
from benchmarks.micro import Op, find_ops
from benchmarks.process import WorkerError
from benchmarks.report import read_records, write_report
from benchmarks.sides import Side, find_sides
from tinygrad_llm.cli.program import python_as_typed

SIDES = "numpy-fast,numpy,torch-sdpa,torch-compile,torch-intel,torch-best,torch-best-compile"
PAIR, FASTEST = "numpy,torch-sdpa,torch-intel,torch-best", "numpy-fast,torch-sdpa,torch-intel,torch-best"
MAY_DIFFER = "grid", "activation", "ops", "d_model", "context", "batch", "axes", "minutes", "resume", "title"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"arguments: got some that cannot be read ({message}), expected what {self.prog} --help lists")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. A mistake is one line on stderr and exit code 2; Ctrl-C is 130, and no process is left."""
    try:
        options = make_parser().parse_args(arguments)
        options.command(options)
    except (ValueError, OSError, WorkerError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser("python -m benchmarks", description="Who is faster, in how much memory. docs/benchmarks.md")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    _add_run(commands.add_parser("run", help="training steps over the grid"))
    _add_decode(commands.add_parser("decode", help="greedy decoding"))
    _add_ops(commands.add_parser("ops", help="single ops"))
    _add_crossover(commands.add_parser("crossover", help="who wins, over width × context × batch"))
    _add_scaling(commands.add_parser("scaling", help="time over tokens and over layers, and the fitted exponents"))
    _add_report(commands.add_parser("report", help="Markdown and plots from the files of the others"))
    _add_compare(commands.add_parser("compare", help="two files of one command: ratio of ratios, with the spread"))
    return parser


def _add_common(parser: Parser, command: Any, sides: str, rounds: int, seconds: float) -> None:
    parser.set_defaults(command=command)
    parser.add_argument("--sides", default=sides, help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=_count, default=rounds, help="turns of each side (default: %(default)s)")
    parser.add_argument("--seconds", type=_positive, default=seconds, help="about how long a turn is (default: %(default)s)")
    parser.add_argument("--threads", type=_count, help="of each side (default: what its library takes)")
    parser.add_argument("--title", help="of its section in the report")
    parser.add_argument("--minutes", type=_positive, default=float("inf"), help="begin nothing after so many; --resume goes on")
    parser.add_argument("--resume", action="store_true", help="add to the file what it lacks")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="a new file, unless --resume is given")


def _add_run(parser: Parser) -> None:
    parser.add_argument("--grid", default="S0,S1,S2", help="comma-separated, of S0 to S4 (default: %(default)s)")
    parser.add_argument("--activation", choices=("relu", "gelu"), default="relu")
    parser.add_argument("--steps", type=_count, help="in a turn, in place of --seconds")
    _add_common(parser, _run, SIDES, 5, 1.0)


def _add_decode(parser: Parser) -> None:
    parser.add_argument("--grid", default="S0,S1,S2", help="(default: %(default)s)")
    parser.add_argument("--tokens", type=_count, default=64, help="new tokens at most (default: %(default)s)")
    _add_common(parser, _decode, PAIR, 5, 1.0)


def _add_ops(parser: Parser) -> None:
    parser.add_argument("--ops", default="", help="comma-separated beginnings of names (default: all)")
    _add_common(parser, _ops, PAIR, 5, 0.1)


def _add_crossover(parser: Parser) -> None:
    parser.add_argument("--d-model", type=_counts, default=[32, 64, 128, 256, 512], help="(default: 32,64,128,256,512)")
    parser.add_argument("--context", type=_counts, default=[16, 64, 256], help="T (default: 16,64,256)")
    parser.add_argument("--batch", type=_counts, default=[1, 8, 32], help="B (default: 1,8,32)")
    _add_common(parser, _crossover, FASTEST, 3, 0.3)


def _add_scaling(parser: Parser) -> None:
    parser.add_argument("--axes", default="tokens,layers", help="(default: %(default)s)")
    _add_common(parser, _scaling, FASTEST, 5, 0.5)


def _add_report(parser: Parser) -> None:
    parser.set_defaults(command=_report)
    parser.add_argument("files", nargs="+", metavar="FILE.jsonl")
    parser.add_argument("--out", required=True, metavar="FILE.md", help="plots go beside it, into figures/")


def _add_compare(parser: Parser) -> None:
    parser.set_defaults(command=_compare)
    parser.add_argument("one", metavar="A.jsonl", help="the run before")
    parser.add_argument("two", metavar="B.jsonl", help="the run after")


def _run(options: argparse.Namespace) -> None:
    cases = find_cases(options.grid.split(","), options.activation)
    _write(options, cases, lambda left, sides, plan: run.train(left, sides, plan))


def _decode(options: argparse.Namespace) -> None:
    cases = find_cases(options.grid.split(","))
    _write(options, cases, lambda left, sides, plan: run.decode(left, sides, plan, options.tokens))


def _ops(options: argparse.Namespace) -> None:
    _write(options, find_ops([name for name in options.ops.split(",") if name]), run.single_ops)


def _crossover(options: argparse.Namespace) -> None:
    _write(options, map_cases(options.d_model, options.context, options.batch), run.crossover)


def _scaling(options: argparse.Namespace) -> None:
    _write(options, scaling_cases(options.axes.split(",")), run.crossover)


def _report(options: argparse.Namespace) -> None:
    write_report(read_records(options.files), Path(options.out))
    print(f"{options.out} is written, with its plots in {Path(options.out).parent / 'figures'}")


def _compare(options: argparse.Namespace) -> None:
    one, two = (next(iter(read_records([path]).values())) for path in (options.one, options.two))
    print(compare(one, two, Path(options.one).name, Path(options.two).name), end="")


def _write(
    options: argparse.Namespace, units: Sequence[Any],
    records: Callable[[list[Any], Sequence[Side], run.Plan], Iterator[dict[str, Any]]],
) -> None:
    """The lines of a unit (a case, an op) at once when it is done: what was measured before an error or Ctrl-C stays.

    Raises ValueError where nothing could be measured; a file that has nothing else is gone then.
    """
    sides, out = find_sides(options.sides.split(",")), Path(options.out)
    if (old := out.exists()) and not options.resume:
        raise ValueError(f"out: got {options.out!r}, which is there already, expected a new file (or --resume)")
    head = _head(options)
    done = _done(out, head) if old else set()
    left = [unit for unit in units if _unit(unit) not in done]
    with out.open("a", encoding="utf-8") as file, Console(len(left)) as console:
        plan = run.Plan(options.rounds, getattr(options, "steps", None), options.seconds, threads=options.threads,
                        tell=console.tell)
        framed = _framed(head, records(left, sides, plan), len(left), options.minutes) if left else ()
        for lines in _together(framed, console):
            file.write("".join(json.dumps(record) + "\n" for record in lines))
            file.flush()
    if left and not console.measured:
        if not old:
            out.unlink()
        raise ValueError(f"sides: got none that could be measured ({_reasons(console.absent)}), expected one at least")
    print(_next(options, console.done < len(left)))


def _reasons(absent: dict[str, str]) -> str:
    return "; ".join(f"{side}: {why}" for side, why in absent.items())


def _next(options: argparse.Namespace, more: bool) -> str:
    """The command that comes after a run."""
    if more:
        return "time was up; next: the same command with --resume"
    report = Path(options.out).with_suffix(".md")
    return f"next: {python_as_typed()} -m benchmarks report {shlex.quote(options.out)} --out {shlex.quote(str(report))}"


def _head(options: argparse.Namespace) -> dict[str, Any]:
    asked = {name: value for name, value in vars(options).items() if name not in ("command", "out", "resume", "minutes")}
    return {"kind": "machine", "asked": asked, "run": options.command.__name__.strip("_"), "load": machine.load(),
            **machine.describe()}


def _done(out: Path, head: dict[str, Any]) -> set[str]:
    """The units that the file has. Raises ValueError where it was measured otherwise than is asked now."""
    (records,) = read_records([str(out)]).values()
    for name, now, before in [(name, head[name], records[0][name]) for name in ("run", "cpu", "cores")] + [
        (name, value, records[0]["asked"].get(name)) for name, value in head["asked"].items() if name not in MAY_DIFFER
    ]:
        if now != before:
            raise ValueError(f"resume: got {name} {now!r}, expected {before!r} as in {out.name}")
    return {record["unit"] for record in records if record["kind"] == "done"}


def _unit(unit: Case | Op) -> str:
    return unit.name if isinstance(unit, Op) else label(unit.to_dict())


def _framed(
    head: dict[str, Any], records: Iterator[dict[str, Any]], units: int, minutes: float
) -> Iterator[dict[str, Any]]:
    """Between the machine and the end; without an end where time was up before the last unit."""
    stop = time.monotonic() + 60 * minutes
    yield head
    for record in records:
        yield record
        if record["kind"] == "done":
            units -= 1
            if units and time.monotonic() > stop:
                return
    yield {"kind": "end", "load": machine.load()}


def _together(records: Iterable[dict[str, Any]], console: Console) -> Iterator[list[dict[str, Any]]]:
    """The records up to each that ends something."""
    lines = []
    for record in records:
        console.say(record)
        lines.append(record)
        if record["kind"] in ("machine", "gemm", "done", "end"):
            yield lines
            lines = []


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer >= 1")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number > 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
