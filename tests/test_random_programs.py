"""Random programs against torch after every statement (see programs.py), and the machine that draws them checked itself."""

import functools
import importlib
import inspect
import types
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from programcalls import CALLS, WRITES, function_of
from programs import Program

import tinygrad_llm as tg
from reference.bugs import BUGS
from reference.bugs.patch import op_body, op_gradients, patched
from tinygrad_llm.autograd import AutogradError, writes
from tinygrad_llm.ops import REGISTRY, DtypeError, Op

backward, tensor = (importlib.import_module(f"tinygrad_llm.autograd.{name}") for name in ("backward", "tensor"))
pytestmark = pytest.mark.usefixtures("one_torch_thread")

GELU = REGISTRY["gelu"].function
SWEEPS = (0, 8, 100)  # seeds of the programs around one call; together they draw every call and every write
DRAWN = Counter()  # what all machines of this run did
seeds = st.integers(0, 2**32 - 1)


def names(calls, least, most):
    return st.lists(st.sampled_from(sorted(calls)), min_size=least, max_size=most)


class Machine(RuleBasedStateMachine):
    """A program that Hypothesis writes, statement by statement."""

    @initialize()
    def begin(self):
        self.program = Program()

    @rule(names=names(CALLS, 3, 6), seed=seeds)
    def calls(self, names, seed):
        for k, name in enumerate(names):
            self.program.call(name, seed + k)

    @rule(names=names(CALLS, 1, 2), seed=seeds)
    def calls_under_no_grad(self, names, seed):
        for k, name in enumerate(names):
            self.program.call(name, seed + k, recorded=False)

    @rule(names=names(WRITES, 1, 3), seed=seeds, recorded=st.sampled_from([True, True, False]))
    def writes(self, names, seed, recorded):
        for k, name in enumerate(names):
            self.program.write(name, seed + k, recorded)

    @rule(seed=seeds)
    def leaves(self, seed):
        self.program.leaf(seed)
        self.program.mixed(seed + 1)

    @rule(seed=seeds, names=names(CALLS, 1, 2))
    def differentiate(self, seed, names):
        self.program.differentiate(seed)
        for k, name in enumerate(names):
            self.program.call(name, seed + k)

    @rule(seed=seeds, retain=st.sampled_from([True, True, False]))
    def backward(self, seed, retain):
        self.program.backward(seed, retain)

    @rule()
    def zero_grad(self):
        self.program.zero_grad()

    def teardown(self):
        if hasattr(self, "program"):
            self.program.backward(0, everything=True)
            self.program.judge_float32()
            DRAWN.update(self.program.counts)
            DRAWN["programs"] += 1
            DRAWN["statements"] += len(self.program.log)
            event(f"{len(self.program.log) // 10 * 10} statements")


TestRandomPrograms = Machine.TestCase
TestRandomPrograms.settings = settings(max_examples=settings.default.max_examples, stateful_step_count=20)


# Every public function and every op takes part -----------------------------------------------------------------------------


def sweep(name, seed):
    """A program around one call or write: other calls feed it, take what it gives, and are differentiated through it."""
    program = Program()
    program.call("elementwise: sin", seed)
    for k in range(2):
        if name in WRITES:
            program.call("shapes: unsqueeze", seed + k)
            program.write(name, seed + k)
        else:
            program.call(name, seed + k)
        program.call("more: operators", seed + 2)
        program.mixed(seed + 3)
        program.backward(seed + 3)
        program.differentiate(seed + 4 + k)
    program.backward(seed + 6, everything=True)
    program.judge_float32()
    return program


@functools.cache
def swept(name):
    """(what the programs around a call did, the ops that they called)."""
    counts, ops, call = Counter(), set(), Op.__call__

    def counted(op, *args, **options):
        ops.add(op.name)
        return call(op, *args, **options)

    with patched(Op, "__call__", counted):
        for seed in SWEEPS:
            counts.update(sweep(name, seed).counts)
    return counts, ops


@pytest.mark.parametrize("name", [*sorted(CALLS), *sorted(WRITES)])
def test_programs_around_every_call(name):
    counts, _ = swept(name)
    assert counts[name] + counts["write refused"] >= 2 * len(SWEEPS)
    assert counts["backward", True] >= 2 * len(SWEEPS)


CONSTRUCTION = {"as_operand", "as_tensor", "lift", "result_type"} | {
    name for name in tg.functions.__all__
    if getattr(getattr(tg, name), "__module__", "") in ("tinygrad_llm.functions.create", "tinygrad_llm.functions.random")}


def test_every_public_function_and_every_op_is_drawn(record_property):
    public = {n for n in (*tg.functions.__all__, *tg.nn.functional.__all__)
              if inspect.isfunction(getattr(tg, n, getattr(tg.nn.functional, n, None)))}
    drawn = DRAWN + sum([swept(name)[0] for name in (*CALLS, *WRITES)], Counter())
    record_property("drawn", {str(name): n for name, n in drawn.items()})
    assert {name for name in (*CALLS, *WRITES) if not drawn[name]} == set()
    assert public - {function_of(name) for name in CALLS} - CONSTRUCTION == set()
    assert set(REGISTRY) - set().union(*[swept(name)[1] for name in (*CALLS, *WRITES)]) == set()


# The machine can fail ------------------------------------------------------------------------------------------------------


def scaled(name):
    """The op with each of its gradients a thousandth too large."""
    original = REGISTRY[name].function

    @functools.wraps(original)
    def body(*args, **options):
        out, vjp = original(*args, **options)
        return out, lambda g: tuple(None if d is None else d * 1.001 for d in vjp(g))

    return op_body(name, body)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_gradient_of_any_op_off_by_a_thousandth_is_seen(name):
    around = [call for call in (*CALLS, *WRITES) if name in swept(call)[1]]
    with scaled(name)(tg):
        for call in around:
            for seed in SWEEPS:
                try:
                    sweep(call, seed)
                except AssertionError:
                    return
    pytest.fail(f"{name}: no program around {around} saw it")


def run(examples):
    """The machine's programs, as many; raises where one is not torch's."""
    health = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(Machine, settings=settings(
        max_examples=examples, stateful_step_count=20, derandomize=True, database=None, deadline=None, print_blob=False,
        phases=(Phase.generate,), report_multiple_bugs=False, suppress_health_check=health))


always = types.SimpleNamespace(grad=True, graph=True, inference=False, anomaly=False, check_nan=True, recorder=None)


def only_the_written(self, new):
    """A write that gives its node to the tensor it was called on, and to no view or base of it."""
    self._node, self._requires_grad = new._node, new._requires_grad


def replaced(leaf, gradient, owned, create_graph):
    leaf.grad = tg.Tensor.from_array(np.array(gradient))


def shown(x, dims):
    return np.flip(x, dims), lambda g: (np.flip(g, dims),)


def widened(x, approximate="none"):
    out, vjp = GELU(x, approximate)
    return out.astype(np.float64), vjp


def bug(name):
    return next(one for one in BUGS if one.name == name).apply


MISTAKES = {  # and the call around which a program sees it; None: the machine's own programs do
    "mul ×1.001": (scaled("mul"), None), "getitem ×1.001": (scaled("getitem"), None),
    "broadcasting": (bug("broadcast: gradient of one repeat, not their sum"), None),
    "repeated index": (bug("index taken twice counted once"), None),
    "reshape": (bug("reshape: Fortran order in backward"), None),
    "gradients replaced": (lambda _: patched(backward, "accumulate", replaced), None),
    "no_grad ignored": (lambda _: patched(tensor, "current", always), None),
    "a copy that is a view": (op_body("flip", shown), None),
    "a view that keeps its node": (lambda _: patched(writes, "_take_over", only_the_written), "write: mul"),
    "put keeps the old gradient": (op_gradients("put", lambda d, g, *_: [g, d[1]]), "write: setitem"),
    "overwritten cotangent": (bug("cotangent overwritten by a vjp"), "nn.functional: linear"),
    "float64 inside": (op_body("gelu", widened), "nn.functional: gelu"),
}


@pytest.mark.parametrize(("apply", "around"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_seen(apply, around):
    with apply(tg), pytest.raises((AssertionError, DtypeError, AutogradError)):
        run(examples=50) if around is None else [sweep(around, seed) for seed in range(0, 400, 10)]
