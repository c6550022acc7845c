"""The mutation gate: are the checks of the ops able to fail?

Every gradient of every op is broken in every way below, on a seeded case for each combination of options, and each of
the three checks (torch float64, torch float32, complex-step adjoint) must see each break. So is every gradient of every
gradient, and every gradient of those (tests/opgradients.py), for the checks that judge them. A mutation that changes
nothing on a case, as reversing an axis along which the gradient is constant, is no mutant there, and is counted apart;
the basic ones must change something on some case of every gradient, else the cases are too tame. A gradient that is zero
on all cases, as the second of a linear op, has no such mutants but those that make it anything else.
"""

import functools
import importlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from opcases import OPS
from opchecks import check_adjoint, check_float32, check_float64
from opgradients import gradient_calls

from reference.opdraw import Call, Seeded, Sizes, draw_call, is_float, run_ours, run_torch
from tinygrad_llm.ops import Op

CHECKS = {  # by order
    1: (check_float64, check_float32, check_adjoint),
    2: (check_float64, check_adjoint),  # four times torch's float32 error may be more than the smallest of the mutations
    3: (check_float64,),  # a complex step would need complex tensors
}
PER_GRADIENT = {1: None, 2: None, 3: max(2, settings.default.max_examples // 50)}  # cases of each gradient; None: all
SIZES = Sizes(low=3, high=4, lead=(1, 1), lead_low=3, lead_high=4, cut=False, none=0)
BROADCAST = Sizes(low=3, high=3, lead=(2, 2), lead_low=3, lead_high=3, none=0)
BASIC = {"zero", "negate", "scale", "noise", "shift", "drop", "missing"}
BASIC_OF_ZERO = {"noise", "shift"}
VISIBLE = 5e-5  # times 1 + |gradient|: what the float32 policy must see


def scaled(d: Any) -> Any:
    return d * d.dtype.type(1.001)


def noisy(d: Any) -> Any:
    """A little more at one entry, by 1e-4."""
    bump = np.zeros_like(d)
    bump.flat[np.argmin(np.abs(d))] = 1e-4
    return d + bump * (1 + np.abs(d))


def shifted(d: Any) -> Any:
    return d + d.dtype.type(1)


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
    yield from {"zero": np.zeros_like, "negate": np.negative, "scale": scaled, "noise": noisy, "shift": shifted,
                "drop": dropped, "permute": permuted, "swap entries": swapped_pair, "missing": lambda _: None}.items()
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
class Remembered:
    """An op on the arguments of one call: its gradients are computed once in each dtype, and broken many times."""

    op: Any
    found: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        key = tuple(a.dtype for a in args if is_float(a))
        if key not in self.found:
            self.found[key] = self.op(*args, **options)
        out, vjp = self.found[key]
        return out, functools.partial(self._gradients, key, vjp)

    def _gradients(self, key: Any, vjp: Any, g: Any) -> Any:
        if ("gradients", key) not in self.found:
            self.found["gradients", key] = vjp(g)
        return self.found["gradients", key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


@dataclass(frozen=True)
class Broken:
    """An op whose vjp returns changed gradients."""

    op: Any
    change: Callable[[list[Any]], list[Any]]

    def __call__(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        out, vjp = self.op(*args, **options)
        return out, lambda g: tuple(self.change(list(vjp(g))))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)


def changes(case: Call, gradients: list[Any]) -> Iterator[tuple[int, str, Callable[[list[Any]], list[Any]]]]:
    """(argument, name, change of the list of gradients) of everything that can be broken in a case."""
    for i, d in zip(case.wrt, gradients):
        for name, mutate in mutations(d):
            if name != "missing" or order_of(case) == 1:  # of a graph a gradient that is not there is zero
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


@functools.cache
def calls_of_order(op: Op, order: int) -> list[Call]:
    """The cases of an op, or the gradients of the calls of the order below, so many of each as there is time for."""
    calls = mutant_cases(op) if order == 1 else [g for call in calls_of_order(op, order - 1) for g in gradient_calls(call)]
    by_gradient = itertools.groupby(sorted(calls, key=lambda call: call.op.name), key=lambda call: call.op.name)
    return [call for _, found in by_gradient for call in itertools.islice(found, PER_GRADIENT[order])]


def order_of(call: Call) -> int:
    """Of the derivatives that the call's vjp gives."""
    return getattr(call.op, "order", 1)


@dataclass
class Tally:
    """The mutants of one op in one order.

    made, killed      how many, and by which check
    survivors         by name
    kinds             which mutation was made of which gradient; a gradient is (name of the call's op, argument)
    gradients, zeros  every gradient, and those that are zero on every case
    unseen            mutations that change nothing on a case, and so are no mutants, by whether the gradient is zero
    """

    made: int = 0
    killed: Counter = field(default_factory=Counter)
    survivors: list[str] = field(default_factory=list)
    kinds: set[tuple[Any, str]] = field(default_factory=set)
    gradients: set[Any] = field(default_factory=set)
    zeros: set[Any] = field(default_factory=set)
    unseen: Counter = field(default_factory=Counter)


@functools.cache
def gate(op: Op, order: int) -> Tally:
    """Break each gradient of an order of an op in each way and count who notices."""
    tally, nonzero = Tally(), set()
    for call in calls_of_order(op, order):
        assert [fail for check in CHECKS[order] for fail in check(call)] == [], "the op itself must pass"
        call = replace(call, op=Remembered(call.op))
        gradients = dict(zip(call.wrt, run_ours(call)[1:]))
        tally.gradients |= {(call.op.name, i) for i in call.wrt}
        nonzero |= {(call.op.name, i) for i, d in gradients.items() if np.any(d)}
        for i, name, change in changes(call, list(gradients.values())):
            broken = replace(call, op=Broken(call.op, change))
            if differs(call, broken):
                _judge(tally, broken, i, name)
            else:
                tally.unseen["not zero" if np.any(gradients[i]) else "zero"] += 1
    tally.zeros = tally.gradients - nonzero
    return tally


def _judge(tally: Tally, broken: Call, i: int, name: str) -> None:
    tally.made += 1
    tally.kinds.add(((broken.op.name, i), name))
    for check in CHECKS[order_of(broken)]:
        if check(broken):
            tally.killed[check.__name__] += 1
        else:
            tally.survivors.append(f"{check.__name__} passed {name} of the gradient of argument {i} of {broken}")


def basic(order: int, zero: bool) -> set[str]:
    """The mutations that must be seen on some case of each gradient."""
    return BASIC_OF_ZERO if zero else BASIC - ({"missing"} if order > 1 else set())


@pytest.mark.parametrize("order", CHECKS)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_mutant_is_killed_by_every_check(op, order, record_property):
    tally = gate(op, order)
    record_property("mutants", tally.made)
    assert tally.survivors == []
    assert set(tally.killed.values()) == {tally.made}
    wanted = {(d, name) for d in tally.gradients for name in basic(order, d in tally.zeros)}
    assert wanted <= tally.kinds, "a basic mutation changed nothing on any case"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_vjp_whose_values_are_right_and_whose_derivative_is_not_is_seen(op, monkeypatch):
    """The engine taking what a vjp closes over for constants: first derivatives stay right, only second ones are wrong."""
    curved = [call for call in calls_of_order(op, 2) if any(np.any(d) for d in run_torch(call)[1:-1])]
    assert [fail for call in curved for fail in check_float64(call)] == []
    engine = importlib.import_module("tinygrad_llm.autograd.backward")
    monkeypatch.setattr(engine, "_differentiable_vjp", lambda node, g: node.vjp(g))
    assert all(check_float64(call) for call in curved)


@pytest.mark.parametrize("order", CHECKS)
def test_totals(order, capsys, record_property):
    tallies = [gate(op, order) for op in OPS]
    made, unseen = sum(t.made for t in tallies), sum((t.unseen for t in tallies), Counter())
    killed = sum((t.killed for t in tallies), Counter())
    record_property("mutants", {"order": order, "made": made, **killed})
    gradients, zeros = sum(len(t.gradients) for t in tallies), sum(len(t.zeros) for t in tallies)
    kills = ", ".join(f"{name} killed {n}" for name, n in killed.items())
    with capsys.disabled():
        print(f"\nmutation gate, order {order}: {made} mutants of {gradients} gradients of {len(OPS)} ops; {kills}; "
              f"{unseen['zero']} changes of a gradient that is zero ({zeros} always are) and {unseen['not zero']} of others "
              "change nothing, and are no mutants")
    assert made > 20 * len(OPS)
    assert set(killed.values()) == {made}
