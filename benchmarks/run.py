"""The runs. Each is a generator of records, one JSON line each; nothing is printed or written here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.cases import Case, label
from benchmarks.inputs import draw_prompt
from benchmarks.measure import disagreement, fitting_count, interleave, ratio_record, summary
from benchmarks.micro import Op
from benchmarks.process import Worker, WorkerError, Workers
from benchmarks.sides import SIDES, TRUTH, Side, missing
from benchmarks.verdicts import kinds

GEMM_SIZES = (1024, 2048, 3072)
GEMM_SECONDS = 0.5
PROMPT = 4
TURN_STEPS = 400
TRIES = 2  # the first step after a pause may take several times as long
TURN_TEXTS = 200

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long.

    rounds     turns of each side
    steps      timed steps in a turn; None: as many as fill `seconds` on the slowest side, but at most TURN_STEPS
    warmup     steps before the first turn
    threads    of each side; None: what its library takes by default
    tell       is told how many of the rounds of a case or op are done, of how many
    """

    rounds: int = 5
    steps: int | None = None
    seconds: float = 1.0
    warmup: int = 2
    threads: int | None = None
    seed: int = 0
    tell: Callable[[int, int], None] = lambda done, of: None


class Pair(NamedTuple):
    """One of ours and another side, and what their ratio may be called (`verdicts.kinds`)."""

    ours: str
    theirs: str
    kinds: list[str]


class Turns(NamedTuple):
    """What is left to judge when the turns of a case are over; the steps began with the so many-th."""

    pairs: list[Pair]
    busy: dict[str, Any]
    seconds: dict[str, list[float]]
    losses: dict[str, list[float]]
    first: int


def train(cases: Sequence[Case], sides: Sequence[Side], plan: Plan) -> Iterator[Record]:
    """Training steps of each case, all sides in turns, in fresh processes; and the peak of the matrix products, twice."""
    yield from _peaks(sides, plan)
    for case in cases:
        yield from _unit(_train_alone(case, sides, plan), "train", case)
    yield from _peaks(sides, plan)


def crossover(cases: Sequence[Case], sides: Sequence[Side], plan: Plan) -> Iterator[Record]:
    """The same over many cases, in the same processes, so without memory."""
    yield from _peaks(sides, plan)
    with Workers(sides, plan.threads) as workers:
        for case in cases:
            yield from _unit(_train_beside(case, workers, plan), "train", case)


def decode(cases: Sequence[Case], sides: Sequence[Side], plan: Plan, tokens: int) -> Iterator[Record]:
    """Greedy decoding after a prompt of PROMPT tokens; agreement is equality of the tokens."""
    yield from _peaks(sides, plan)
    for case in cases:
        with Workers(sides, plan.threads) as workers:
            yield from _unit(_decode_case(case, workers, plan, tokens), "decode", case)


def single_ops(ops: Sequence[Op], sides: Sequence[Side], plan: Plan) -> Iterator[Record]:
    """Each op forward, and forward + backward through the side's own autograd; agreement is that of sampled entries."""
    yield from _peaks(sides, plan)
    with Workers(sides, plan.threads) as workers:
        yield from _absent(workers, "op", name="all ops")
        for op in ops:
            yield from _op(op, workers, plan)
            yield {"kind": "done", "unit": op.name}


# Training -------------------------------------------------------------------------------------------------------------


def _train_alone(case: Case, sides: Sequence[Side], plan: Plan) -> Iterator[Record]:
    """The sides are gone when float64 begins: at GPT-2's size there is no room for both."""
    with Workers(sides, plan.threads) as workers:
        turns = yield from _train_case(case, workers, plan, memory=True)
    yield from _train_ratios(case, plan, turns)


def _train_beside(case: Case, workers: Workers, plan: Plan) -> Iterator[Record]:
    turns = yield from _train_case(case, workers, plan, memory=False)
    yield from _train_ratios(case, plan, turns)


def _train_case(case: Case, workers: Workers, plan: Plan, memory: bool) -> Generator[Record, None, Turns]:
    workers.each("build", case=case.to_dict(), seed=plan.seed)
    workers.each("train", first=0, count=plan.warmup)
    once = [workers.each("train", first=plan.warmup + i, count=1) for i in range(TRIES)]
    first = plan.warmup + TRIES
    yield from _absent(workers, "train", case=case.to_dict())
    slowest = max((min(answers[name]["seconds"] for answers in once) for name in workers), default=1.0)
    count = plan.steps or fitting_count(slowest, plan.seconds, TURN_STEPS)
    turns, busy = _turns(workers, plan, lambda i: {"do": "train", "first": first + i * count, "count": count})
    seconds = {name: [turn["seconds"] / count for turn in turns[name]] for name in turns}
    losses = {name: [loss for turn in turns[name] for loss in turn["losses"]] for name in turns}
    for name in turns:
        took = {"case": case.to_dict(), "flops": case.flops, "steps": count, "losses": losses[name]}
        yield _timed("train", workers[name], seconds[name], memory, busy, **took, tokens=case.tokens)
    return Turns(_pairs(workers), busy, seconds, losses, first)


def _train_ratios(case: Case, plan: Plan, turns: Turns) -> Iterator[Record]:
    if not turns.pairs:
        return
    truth = _true_losses(case, plan, turns.first, len(next(iter(turns.losses.values()))))
    for pair in turns.pairs:
        why_not = disagreement(turns.losses[pair.ours], turns.losses[pair.theirs], truth)
        yield _ratio(pair, turns.seconds, turns.busy, why_not, what="train", case=case.to_dict())


def _true_losses(case: Case, plan: Plan, first: int, count: int) -> list[float]:
    """The losses of the same steps in float64."""
    side = next(SIDES[name] for name in TRUTH if missing(SIDES[name]) is None)
    with Worker(side, plan.threads) as worker:
        worker.ask("build", case=case.to_dict(), seed=plan.seed, dtype="float64")
        worker.ask("train", first=0, count=first)
        return worker.ask("train", first=first, count=count)["losses"]


# The rest -------------------------------------------------------------------------------------------------------------


def _decode_case(case: Case, workers: Workers, plan: Plan, tokens: int) -> Iterator[Record]:
    count = max(1, min(tokens, case.context - PROMPT))
    request: dict[str, Any] = {"do": "decode", "prompt": draw_prompt(case, PROMPT, plan.seed), "count": count}
    workers.each("build", case=case.to_dict(), seed=plan.seed)
    once = workers.each(**request)
    said = {name: answer["tokens"] for name, answer in once.items()}
    yield from _absent(workers, "decode", case=case.to_dict())
    slowest = max((answer["seconds"] for answer in once.values()), default=1.0)
    times = fitting_count(slowest, plan.seconds, TURN_TEXTS)
    turns, busy = _turns(workers, plan, lambda i: request | {"times": times})
    seconds = {name: [turn["seconds"] for turn in turns[name]] for name in turns}
    for name in turns:
        yield _timed("decode", workers[name], seconds[name], True, busy, case=case.to_dict(), tokens=count)
    for pair in _pairs(workers):
        why_not = None if said[pair.ours] == said[pair.theirs] else "the tokens differ"
        yield _ratio(pair, seconds, busy, why_not, what="decode", case=case.to_dict())


def _op(op: Op, workers: Workers, plan: Plan) -> Iterator[Record]:
    before = set(workers)
    values = {name: _flat(answer) for name, answer in workers.each("op", name=op.name, seed=plan.seed).items()}
    truth = _true_values(op, plan)
    for what, work in op.work.items():
        once = [workers.each("op_time", what=what, count=1) for _ in range(3)][-1]
        count = fitting_count(max((a["seconds"] for a in once.values()), default=1.0), plan.seconds, 10_000)
        turns, busy = _turns(workers, plan, lambda i: {"do": "op_time", "what": what, "count": count})  # noqa: B023
        seconds = {name: [turn["seconds"] / count for turn in turns[name]] for name in turns}
        about = {"name": op.name, "what": what, "unit": op.unit, "work": work}
        for name in turns:
            yield _timed("op", workers[name], seconds[name], False, busy, **about)
        for pair in _pairs(workers):
            why_not = disagreement(values[pair.ours], values[pair.theirs], truth)
            yield _ratio(pair, seconds, busy, why_not, **{**about, "what": "op", "direction": what})
    yield from ({"kind": "absent", "what": "op", "name": op.name, "side": s, "why": workers.absent[s]}
                for s in before - set(workers))


def _true_values(op: Op, plan: Plan) -> list[float]:
    side = next(SIDES[name] for name in TRUTH if missing(SIDES[name]) is None)
    with Worker(side, plan.threads) as worker:
        return _flat(worker.ask("op", name=op.name, seed=plan.seed, dtype="float64"))


def _flat(answer: dict[str, Any]) -> list[float]:
    return [x for values in answer["values"] for x in values]


def _peaks(sides: Sequence[Side], plan: Plan) -> Iterator[Record]:
    """For each library the fastest of a few large float32 products."""
    for side in {side.library: side for side in reversed(sides)}.values() if GEMM_SIZES else ():
        try:
            with Worker(side, plan.threads) as worker:
                others = machine.Bystanders([worker.process.pid])
                sizes = _product_rates(worker)
                yield {"kind": "gemm", "library": side.library, "gflops": max(sizes.values()), "sizes": sizes,
                       "load": machine.load(), "others_cores": others.read(), **_who(worker)}
        except WorkerError as error:
            yield {"kind": "absent", "what": "gemm", "side": side.name, "why": str(error).partition(": ")[2]}


def _product_rates(worker: Worker) -> dict[int, float]:
    """size → GFLOP/s; nothing larger than the first size that takes long, for a slow library would take minutes."""
    rates: dict[int, float] = {}
    for n in GEMM_SIZES:
        rates[n] = worker.ask("gemm", size=n, at_least=GEMM_SECONDS)["gflops"]
        if 2e-9 * n**3 / rates[n] > GEMM_SECONDS:
            break
    return rates


def _turns(
    workers: Workers, plan: Plan, request: Callable[[int], dict[str, Any]]
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The answers of each side, in turns; and how busy the machine was with other work."""
    before, others = machine.load(), machine.Bystanders([worker.process.pid for worker in workers.values()])
    turns = {name: _asking(worker, request) for name, worker in workers.items()}
    results = interleave(turns, plan.rounds, tell=plan.tell)
    return results, {"load_before": before, "load_after": machine.load(), "others_cores": others.read()}


def _asking(worker: Worker, request: Callable[[int], dict[str, Any]]) -> Callable[[int], Any]:
    return lambda number: worker.ask(**request(number))


def _timed(
    kind: str, worker: Worker, seconds: Sequence[float], memory: bool, busy: dict[str, Any], **about: Any
) -> Record:
    peak = {"peak_mb": worker.peak_mb()} if memory else {}
    return {"kind": kind, "side": worker.side.name, "library": worker.side.library, **about, **_who(worker),
            "seconds": list(seconds), **summary(seconds), **busy, **peak}


def _ratio(
    pair: Pair, seconds: dict[str, list[float]], busy: dict[str, Any], why_not: str | None, **about: Any
) -> Record:
    return {**ratio_record(pair.ours, pair.theirs, seconds, why_not, **about), "kinds": pair.kinds,
            "others_cores": busy["others_cores"]}


def _unit(records: Iterator[Record], what: str, case: Case) -> Iterator[Record]:
    """The records of a case, and that it is done; where a side fails in the middle of its turns, that is the last."""
    try:
        yield from records
    except WorkerError as error:
        side, _, why = str(error).partition(": ")
        yield {"kind": "absent", "what": what, "case": case.to_dict(), "side": side, "why": why}
    yield {"kind": "done", "unit": label(case.to_dict())}


def _who(worker: Worker) -> dict[str, Any]:
    return {"engine": worker.ask("describe")}


def _absent(workers: Workers, what: str, **about: Any) -> Iterator[Record]:
    yield from ({"kind": "absent", "what": what, "side": name, "why": why, **about} for name, why in workers.absent.items())


def _pairs(workers: Workers) -> list[Pair]:
    """One of ours and another side, for every ratio that is wanted."""
    ours = [name for name, worker in workers.items() if worker.side.ours]
    engines = {name: worker.ask("describe") for name, worker in workers.items()}

    def kinds_of(one: str, name: str) -> list[str]:
        side = workers[name].side
        return kinds(side.library, side.rival, engines[one], engines[name])

    return [Pair(one, name, kinds_of(one, name)) for one in ours for name in workers if name not in ours[: ours.index(one) + 1]]
