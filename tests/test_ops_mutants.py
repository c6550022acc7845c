"""The mutation gate: are the checks of the ops able to fail?

Every gradient of every op is broken in every way below, on a seeded case for each combination of options, and each of
the three checks (torch float64, torch float32, complex-step adjoint) must see each break. A mutation that changes
nothing on a case, as reversing an axis along which the gradient is constant, is no mutant there; the basic ones must
change something on some case of every gradient, else the cases are too tame.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from opcases import OPS
from opchecks import check_adjoint, check_float32, check_float64

from reference.opdraw import Call, Seeded, Sizes, draw_call, run_ours
from tinygrad_llm.ops import Op

CHECKS = (check_float64, check_float32, check_adjoint)
SIZES = Sizes(low=3, high=4, lead=(1, 1), lead_low=3, lead_high=4, cut=False, none=0)
BROADCAST = Sizes(low=3, high=3, lead=(2, 2), lead_low=3, lead_high=3, none=0)
BASIC = {"zero", "negate", "scale", "noise", "drop", "missing"}
VISIBLE = 5e-5  # times 1 + |gradient|: what the float32 policy must see


def scaled(d: Any) -> Any:
    return d * d.dtype.type(1.001)


def noisy(d: Any) -> Any:
    """A little more at one entry, by 1e-4."""
    bump = np.zeros_like(d)
    bump.flat[np.argmin(np.abs(d))] = 1e-4
    return d + bump * (1 + np.abs(d))


def dropped(d: Any) -> Any:
    return np.where(np.abs(d) == np.max(np.abs(d)), 0, d).astype(d.dtype)


def permuted(d: Any) -> Any:
    return np.roll(d.reshape(-1), 1).reshape(d.shape)


def swapped_pair(d: Any) -> Any:
    """The largest and the smallest entry exchanged."""
    out = np.array(d)
    out.flat[[np.argmax(d), np.argmin(d)]] = out.flat[[np.argmin(d), np.argmax(d)]]
    return out


def mutations(d: np.ndarray) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """(name, mutation) of one gradient."""
    yield from {"zero": np.zeros_like, "negate": np.negative, "scale": scaled, "noise": noisy, "drop": dropped,
                "permute": permuted, "swap entries": swapped_pair, "missing": lambda _: None}.items()
    for axis in range(d.ndim):
        yield f"reverse axis {axis}", functools.partial(np.flip, axis=axis)
        yield f"sum over axis {axis}", functools.partial(_summed, axis=axis)
        yield f"first of axis {axis}", functools.partial(_first, axis=axis)
        yield f"size doubled on axis {axis}", functools.partial(np.repeat, repeats=2, axis=axis)
    for one, other in itertools.combinations(range(d.ndim), 2):
        if d.shape[one] == d.shape[other]:
            yield f"transpose {one} {other}", functools.partial(np.swapaxes, axis1=one, axis2=other)


def _summed(d: Any, axis: int) -> Any:
    """Summed where it should not be, and repeated back to the right shape."""
    return np.broadcast_to(np.sum(d, axis, keepdims=True), d.shape).astype(d.dtype)


def _first(d: Any, axis: int) -> Any:
    """The first of an axis in place of all: what a missing sum over a repeated axis looks like."""
    return np.broadcast_to(np.take(d, [0], axis), d.shape).astype(d.dtype)


@dataclass(frozen=True)
class Broken:
    """An op whose vjp returns changed gradients."""

    op: Op
    change: Callable[[list[Any]], list[Any]]

    def __call__(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        out, vjp = self.op(*args, **options)
        return out, lambda g: tuple(self.change(list(vjp(g))))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


def changes(case: Call) -> Iterator[tuple[int, str, Callable[[list[Any]], list[Any]]]]:
    """(argument, name, change of the list of gradients) of everything that can be broken in a case."""
    _, *gradients = run_ours(case)
    for i, d in zip(case.wrt, gradients):
        for name, mutate in mutations(d):
            yield i, name, functools.partial(_replaced, i=i, mutate=mutate)
    for (i, one), (j, other) in itertools.combinations(zip(case.wrt, gradients), 2):
        if one.shape == other.shape:
            yield i, f"swap with argument {j}", functools.partial(_exchanged, i=i, j=j)


def _replaced(gradients: list[Any], i: int, mutate: Callable[[Any], Any]) -> list[Any]:
    return [mutate(d) if k == i else d for k, d in enumerate(gradients)]


def _exchanged(gradients: list[Any], i: int, j: int) -> list[Any]:
    gradients[i], gradients[j] = gradients[j], gradients[i]
    return gradients


def differs(case: Call, broken: Call) -> bool:
    """Whether the change can be seen: in shape, or in some entry by more than rounding in float32 could do."""
    for a, b in zip(run_ours(case)[1:], run_ours(broken)[1:]):
        if b is None or a.shape != b.shape or np.any(np.abs(a - b) > VISIBLE * (1 + np.abs(a))):
            return True
    return False


def mutant_cases(op: Op) -> list[Call]:
    """A seeded case for each combination of options, one with broadcasting, and more where options are few."""
    combinations = [dict(zip(op.options, values)) for values in itertools.product(*op.options.values())]
    combinations *= max(1, 4 // len(combinations))
    found = [draw_call(op, Seeded(seed), sizes, options)
             for seed, options in enumerate(combinations) for sizes in (SIZES, BROADCAST)]
    return [case for case in found if np.isfinite(run_ours(case)[0]).all()]


@dataclass
class Tally:
    """Mutants made and killed of one op, by check; survivors by name; which mutation was made of which argument."""

    made: int
    killed: Counter
    survivors: list[str]
    kinds: set[tuple[int, str]]
    gradients: set[int]


@functools.cache
def gate(op: Op) -> Tally:
    """Break each gradient of an op in each way and count who notices."""
    tally = Tally(0, Counter(), [], set(), set())
    for case in mutant_cases(op):
        assert [fail for check in CHECKS for fail in check(case)] == [], "the op itself must pass"
        tally.gradients |= set(case.wrt)
        for i, name, change in changes(case):
            broken = replace(case, op=Broken(op, change))
            if differs(case, broken):
                _judge(tally, broken, i, name)
    return tally


def _judge(tally: Tally, broken: Call, i: int, name: str) -> None:
    tally.made += 1
    tally.kinds.add((i, name))
    for check in CHECKS:
        if check(broken):
            tally.killed[check.__name__] += 1
        else:
            tally.survivors.append(f"{check.__name__} passed {broken.op.op} with {name} of argument {i}: {broken}")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_mutant_is_killed_by_every_check(op, record_property):
    tally = gate(op)
    record_property("mutants", tally.made)
    assert tally.survivors == []
    assert set(tally.killed.values()) == {tally.made}
    missing = {(i, name) for i in tally.gradients for name in BASIC} - tally.kinds
    assert not missing, "a basic mutation changed nothing on any case"


def test_totals(capsys, record_property):
    tallies = [gate(op) for op in OPS]
    made, killed = sum(t.made for t in tallies), sum((t.killed for t in tallies), Counter())
    record_property("mutants", {"made": made, **killed})
    with capsys.disabled():
        gradients = sum(len(t.gradients) for t in tallies)
        kills = ", ".join(f"{name} killed {n}" for name, n in killed.items())
        print(f"\nmutation gate: {made} mutants of {gradients} gradients of {len(OPS)} ops; {kills}")
    assert made > 20 * len(OPS)
    assert set(killed.values()) == {made}
