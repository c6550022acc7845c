"""The contract of capture, line by line: what a function reads beside its arguments is seen when it changes, what it does
besides giving results is not lost, and where neither can be had it runs as it is, with a warning that says why.

Each program is run as it is and captured, from the same start. It gets a wrapper for functions, or says with capture=... how
a Trainer runs.
"""

import copy
import dataclasses
import functools
import logging
import os
import pickle
import re
import types
import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest

import tinygrad_llm as tg
from tinygrad_llm.capture import CaptureMismatch, compile, passes
from tinygrad_llm.nn import functional as F
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer

X = np.arange(12, dtype=np.float32).reshape(3, 4) / 4
IDS = np.random.default_rng(0).integers(0, 9, (4, 7))
INPUTS, TARGETS = IDS[:, :-1], IDS[:, 1:]


class Toy(tg.nn.Module):
    def __init__(self):
        self.e, self.o = tg.nn.Embedding(9, 4), tg.nn.Linear(4, 9)

    def loss(self, ids, targets):
        return F.cross_entropy(self.o(self.e(ids)).reshape(-1, 9), targets.reshape(-1))


def calls(f, *given):
    """What a function gives, one call after another."""
    return [f(*one) if isinstance(one, tuple) else f(one) for one in given]


# What it reads ------------------------------------------------------------------------------------------------------------


def a_number_of_the_function_around(wrap):
    scale = 2.0
    f = wrap(lambda x: x * scale)
    first = f(X)
    scale = 3.0
    return first, f(X)


FACTOR = 2.0


def a_global(wrap):
    global FACTOR
    f = wrap(lambda x: x * FACTOR)
    first, FACTOR = f(X), 5.0
    try:
        return first, f(X)
    finally:
        FACTOR = 2.0


def a_function_that_is_replaced(wrap):
    tools = types.SimpleNamespace(act=lambda x: x * 2)
    f = wrap(lambda x: tools.act(x) + 1)
    first = f(X)
    tools.act = lambda x: x * 3
    return first, f(X)


def a_default(wrap):
    def f(x, *, options={"p": 2}):  # noqa: B006
        return x ** options["p"]

    f, inner = wrap(f), f
    first = f(X)
    inner.__kwdefaults__["options"]["p"] = 3
    return first, f(X)


def attributes_of_objects_and_classes(wrap):
    class Settings:
        gain = 2.0

    settings = Settings()
    f = wrap(lambda x: x * settings.gain)
    first = f(X)
    Settings.gain = 3.0
    second = f(X)
    settings.gain = 4.0
    return first, second, f(X)


def attributes_in_slots(wrap):
    @dataclasses.dataclass(slots=True)
    class Settings:
        gain: float = 2.0

    settings = Settings()
    f = wrap(lambda x: x * settings.gain)
    first = f(X)
    settings.gain = 3.0
    return first, f(X)


def lists_and_dicts(wrap):
    powers, names = [1, 2], {"a": 1.0}
    f = wrap(lambda x: sum(x**p for p in powers) * names["a"])
    first = f(X)
    powers.append(3)
    second = f(X)
    names["a"] = -1.0
    return first, second, f(X)


def arrays_outside(wrap):
    mask, weights = np.array([1, 1, 0, 1]), np.ones(4, np.float32)
    f = wrap(lambda x: (x * mask).sum() + (x * weights).sum() * weights.sum())
    t = tg.tensor(X)
    first = f(t)
    mask[:] = [0, 0, 1, 0]
    second = f(t)
    weights[0] = 7
    return first, second, f(t)


def a_mask_with_another_number_of_places(wrap):
    mask = np.array([True, False, True])
    f = wrap(lambda x: x[mask])
    first = f(np.arange(3.0))
    mask[:] = [False, True, False]
    return first, f(np.arange(3.0))


def a_read_only_array_that_is_unlocked(wrap):
    table = np.ones(4, np.float32)
    table.flags.writeable = False
    f = wrap(lambda x: x * table)
    first = f(X)
    table.flags.writeable = True
    table[:] = 5
    return first, f(X)


def modes(wrap):
    drop = tg.nn.Dropout(0.5)
    f = wrap(drop)
    first = f(tg.ones(4))
    drop.eval()
    return first, f(tg.ones(4)), drop.training


def freezing(wrap):
    m = tg.nn.Linear(4, 1)
    f = wrap(lambda x: m(x).sum().backward())
    f(X)
    m.zero_grad()
    m.weight.requires_grad_(False)
    f(X)
    return m.weight.grad, m.bias.grad


def a_parameter_and_a_module_that_are_replaced(wrap):
    m = Toy()
    f = wrap(lambda *batch: m.loss(*batch).detach())
    first = f(INPUTS, TARGETS)
    m.o.weight = tg.nn.Parameter(tg.zeros(9, 4))
    second = f(INPUTS, TARGETS)
    m.o = tg.nn.Linear(4, 9, bias=False)
    return first, second, f(INPUTS, TARGETS)


def weights_that_a_trainer_moves(capture):
    m = Toy()
    def ev(*batch):
        return m.loss(*batch).detach()

    ev = compile(ev) if capture else ev
    first = ev(INPUTS, TARGETS).item()
    with Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture) as trainer:
        trainer.step(INPUTS, TARGETS)
        inside = ev(INPUTS, TARGETS).item()
    return first, inside, ev(INPUTS, TARGETS).item()


def data_of_a_weight(wrap):
    w = tg.nn.Parameter(tg.ones(4))
    f = wrap(lambda x: (w * x).sum().detach())
    first = f(X)
    w.data = tg.ones(4) * 3
    return first, f(X)


# What it does besides -----------------------------------------------------------------------------------------------------


def a_table_made_at_first_use(capture):
    class Net(Toy):
        table = None

        def loss(self, ids, targets):
            if self.table is None:
                self.table = tg.cos(tg.arange(16) * 0.1)
            n = ids.shape[1]
            h = self.e(ids) * self.table[:n].reshape(1, n, 1)
            return F.cross_entropy(self.o(h).reshape(-1, 9), targets.reshape(-1))

    m = Net()
    trainer = Trainer(m, AdamW(m.parameters(), lr=0.01), capture=capture)
    return [trainer.step(INPUTS[:, :n], TARGETS[:, :n]) for n in (6, 5, 6, 4)], m.table


def a_running_mean(wrap):
    class Centre(tg.nn.Module):
        mean = 0.0

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
            return x - self.mean

    m = Centre()
    f = wrap(m.forward)
    return calls(f, *[tg.ones(2, 2) * i for i in (1, 2, 3)]), m.mean


def a_counter(wrap):
    class Counting(tg.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    m = Counting()
    f = wrap(m.forward)
    return calls(f, X, X, X), m.calls


def lists_that_are_filled(wrap):
    log, seen = [], {}

    def f(x, out):
        log.append(x.sum())
        seen[len(seen)] = 1
        out["mean"] = x.mean()
        return x * 2

    f, outs = wrap(f), [{}, {}]
    return calls(f, *[(X, out) for out in outs]), log, seen, outs


def the_last_loss(capture):
    class Net(Toy):
        def loss(self, ids, targets):
            self.last = super().loss(ids, targets).detach()
            return super().loss(ids, targets)

    m = Net()
    trainer = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture)
    return [(trainer.step(INPUTS, TARGETS), m.last.item()) for _ in range(3)]


def objects_as_results(wrap):
    @dataclasses.dataclass
    class Out:
        loss: object

    f = wrap(lambda x: Out(x.sum()))
    return [float(f(X).loss), float(f(X * 2).loss)]


def generators_and_maps_as_results(wrap):
    f = wrap(lambda x: (row * 2 for row in x))
    return list(f(X)), list(f(X))


def drawn_by_numpy(wrap):
    rng = np.random.default_rng(0)
    np.random.seed(0)  # noqa: NPY002
    f = wrap(lambda x: x + rng.random() + np.random.random())  # noqa: NPY002
    return calls(f, X, X)


def an_optimizer_inside(wrap):
    m = Toy()
    o = AdamW(m.parameters(), lr=0.1)

    def step(x, y):
        o.zero_grad()
        loss = m.loss(x, y)
        loss.backward()
        o.step()
        return loss.detach()

    return calls(wrap(step), *[(INPUTS, TARGETS)] * 3), [s["step"] for s in o.state.values()]


def zeros_inside(wrap):
    m = tg.nn.Linear(4, 1)

    def step(x):
        m.zero_grad(set_to_none=False)
        m(x).sum().backward()

    calls(wrap(step), *[X] * 4)
    return m.weight.grad


def gradients_cleared_that_are_not_used(wrap):
    a, b = tg.nn.Linear(4, 1), tg.nn.Linear(4, 1)

    def step(x):
        a.zero_grad()
        b.zero_grad()
        a(x).sum().backward()

    f = wrap(step)
    calls(f, X, X)
    b(X).sum().backward()
    f(X)
    return a.weight.grad, b.weight.grad


def a_hook(capture):
    m = Toy()
    m.e.weight.register_hook(lambda g: g * 0.5)
    trainer = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture)
    return [trainer.step(INPUTS, TARGETS) for _ in range(3)]


def a_write_that_backward_must_not_see(wrap):
    w = tg.nn.Parameter(np.ones(4, np.float32))

    def f(x):
        z = (w * x).exp()
        z.add_(1)
        z.sum().backward()

    wrap(f)(X)


# What arrays look like ----------------------------------------------------------------------------------------------------


def what_isinstance_says(wrap):
    def f(a):
        x = a / 255 if isinstance(a, np.ndarray) else a
        total = x.sum()
        return x * (2 if isinstance(total, np.floating | float) and np.isscalar(total) else 3)

    return calls(wrap(f), X, X)


def what_type_says(wrap):
    return calls(wrap(lambda x: x * 2 if type(x) is np.ndarray else x), X, X, X)


def what_is_logged(wrap):
    def f(x):
        logging.getLogger("of a test").debug("called")
        return x * 2

    logging.getLogger("of a test").setLevel(logging.DEBUG)
    return calls(wrap(f), X, X, X), calls(wrap(f), X, X)


def what_is_printed(wrap):
    def f(x):
        print(x.shape, end="")
        return x * 2

    return calls(wrap(f), X, X, X)


def the_environment(wrap):
    f = wrap(lambda x: x * float(os.environ.get("GAIN_OF_A_TEST", "1")))
    first = f(X)
    os.environ["GAIN_OF_A_TEST"] = "3"
    try:
        return first, f(X)
    finally:
        del os.environ["GAIN_OF_A_TEST"]


def copies(wrap):
    def f(x):
        a = x * 2
        t, c, d = tg.tensor(a), copy.copy(a), copy.deepcopy(a)
        t += 1
        c *= 5
        return a, t, c, d

    return calls(wrap(f), X, X + 1)


def numbers_as_results(wrap):
    f = wrap(lambda x: x.sum())
    history = [f(X)]
    total = history[0]
    total += 1
    return history, {f(X): 1}


def constants_as_results(wrap):
    f = wrap(lambda x: (x * 2, np.zeros(2), "name"))
    total = f(X)[1]
    total += 5
    return f(X)[1:]


def strides(wrap):
    big = np.random.default_rng(0).standard_normal((600, 800)).astype(np.float32)
    f = wrap(lambda x: (x.sum(), x.sum(0), x.flags.c_contiguous))
    return calls(f, big[::-1], big[:, ::2], big.T, np.broadcast_to(big[0], (3, 800)))


def an_axis_that_is_not_there(wrap):
    return wrap(lambda x: x.sum(axis=2))(X)


def repeats_among_the_arguments(wrap):
    f = wrap(lambda x, n: np.repeat(x, n))
    return f(np.ones(2), np.array([1, 2])), f(np.ones(2), np.array([2, 2]))


def rows_that_numpy_shuffles(wrap):
    def f(x):
        a = x * 1
        np.random.default_rng(0).shuffle(a)
        return a[:, 0]

    return calls(wrap(f), X, X)


def counters_and_defaults(wrap):
    f = wrap(lambda x, c: (x * c["a"], defaultdict(list, a=x), Counter(a=2)))
    x, made, counter = f(np.ones(2), Counter(a=3))
    return x, made["a"], made["b"], counter


def a_refusal_that_is_swallowed(wrap):
    def f(x):
        try:
            big = float(x.max()) > 1
        except Exception:
            big = False
        return x / 10 if big else x

    return calls(wrap(f), X, X)


def errors_of_numpy(wrap):
    with np.errstate(all="raise"):
        return wrap(np.log)(np.zeros(2))


def errors_of_numpy_inside(wrap):
    def f(x):
        with np.errstate(divide="raise"):
            return np.log(x)

    return wrap(f)(np.zeros(2))


# How it is called ---------------------------------------------------------------------------------------------------------


def a_module_inside_of_a_module(wrap):
    class Net(tg.nn.Module):
        def __init__(self):
            self.body, self.head = wrap(tg.nn.Linear(4, 4)), tg.nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x))

    m = Net()
    m(X).sum().backward()
    names, grads = list(m.state_dict()), [p.grad for p in m.parameters()]
    m.eval()
    twin = copy.deepcopy(m)
    return names, grads, m.body.training, twin(X).detach(), len(list(m.modules())), type(m.body).__name__


def a_method(wrap):
    class Net(tg.nn.Module):
        def __init__(self, k):
            self.k = k

        @wrap
        def forward(self, x):
            return x * self.k

    a, b = Net(2), Net(3)
    return a(X), b(X), a(X + 1), functools.partial(a.forward, X)()


def transforms(wrap):
    def cube(x):
        return (x**3).sum()

    x, f = tg.tensor([1.0, 2.0]), wrap(cube)
    twice = tg.func.grad(tg.func.grad(wrap(lambda x: x**3)))
    return tg.func.grad(f)(x), tg.func.hessian(f)(x), tg.func.vmap(f)(tg.ones(3, 2)), twice(tg.tensor(2.0))


def a_gradient_through_it(wrap):
    m, drop = tg.nn.Linear(4, 2), tg.nn.Dropout(0.5)
    f, x = wrap(lambda x: drop(m(x)).relu()), tg.tensor(X, requires_grad=True)
    total = sum((f(x * k) ** 2).sum() for k in (1, 2))
    total.backward()
    return x.grad, m.weight.grad, total.requires_grad


def a_graph_that_begins_outside(wrap):
    w = tg.nn.Parameter(np.ones(4, np.float32))
    h = w * 2
    wrap(lambda x: (h * x).sum().backward())(X)
    return w.grad


def pickled(wrap):
    return pickle.loads(pickle.dumps(wrap(np.tanh)))(X)


def an_optimizer_that_is_replaced(capture):
    m = Toy()
    trainer = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture)
    trainer.step(INPUTS, TARGETS)
    before = m.e.weight.detach().clone()
    trainer.optimizer = AdamW(m.parameters(), lr=0.0)
    trainer.step(INPUTS, TARGETS)
    return trainer.lr, (m.e.weight - before).abs().max().item()


def a_step_of_its_own(capture):
    m, steps = Toy(), []
    o = AdamW(m.parameters(), lr=0.1)
    old = o.step
    o.step = lambda: (old(), steps.append(1))
    trainer = Trainer(m, o, capture=capture)
    return [trainer.step(INPUTS, TARGETS) for _ in range(2)], steps


def a_part_that_is_replaced(capture):
    m = Toy()
    trainer = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture)
    first = trainer.step(INPUTS, TARGETS)
    m.o = tg.nn.Linear(4, 9)
    return first, trainer.step(INPUTS, TARGETS), trainer.step(INPUTS, TARGETS)


def numbers_of_the_model(capture):
    class Net(Toy):
        scale = 1.0

        def loss(self, ids, targets):
            return super().loss(ids, targets) * self.scale

    m = Net()
    trainer, losses = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture), []
    for scale in (1.0, 2.0, 1.0):
        m.scale = scale
        losses.append(trainer.step(INPUTS, TARGETS))
    return losses


def losses_of_other_kinds(capture):
    class Double(Toy):
        def loss(self, ids, targets):
            return super().loss(ids, targets).double()

    class OneAxis(Toy):
        def loss(self, ids, targets):
            return super().loss(ids, targets).reshape(1)

    return [Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture).step(INPUTS, TARGETS) for m in (Double(), OneAxis())]


def values_in_a_loss(capture):
    class Net(Toy):
        def loss(self, ids, targets):
            return super().loss(ids, targets) / len(set(targets.reshape(-1).tolist()))

    m = Net()
    trainer = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture)
    return [trainer.step(INPUTS, TARGETS) for _ in range(2)]


def inputs_that_are_no_ids(capture):
    class Net(tg.nn.Module):
        def __init__(self):
            self.l = tg.nn.Linear(3, 1)

        def loss(self, a, b):
            return ((self.l(a) - b) ** 2).mean()

    m = Net()
    trainer = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture)
    return [trainer.step(np.ones((5, 3), np.float32), np.ones((5, 1), np.float32)) for _ in range(2)]


CAPTURED = (
    a_number_of_the_function_around, a_global, a_function_that_is_replaced, a_default, attributes_of_objects_and_classes,
    attributes_in_slots,
    lists_and_dicts, arrays_outside, a_mask_with_another_number_of_places, a_read_only_array_that_is_unlocked, modes, freezing,
    a_parameter_and_a_module_that_are_replaced, weights_that_a_trainer_moves, data_of_a_weight, a_table_made_at_first_use,
    gradients_cleared_that_are_not_used, what_isinstance_says, copies, numbers_as_results, constants_as_results, strides,
    a_method, pickled, an_optimizer_that_is_replaced,
    the_environment, a_part_that_is_replaced, numbers_of_the_model, losses_of_other_kinds, counters_and_defaults,
)
FALLS_BACK = {
    a_running_mean: "kept after the call", a_counter: r"Counting\.calls", lists_that_are_filled: "kept after|changes|entries",
    the_last_loss: "kept after the call", objects_as_results: "results: got a Out",
    generators_and_maps_as_results: "results: got a generator",
    drawn_by_numpy: "drawn from", an_optimizer_inside: r"AdamW\.step: got a call while", zeros_inside: "zero_: got a write",
    a_module_inside_of_a_module: "lead to parameters", transforms: "lead to parameters",
    a_gradient_through_it: "lead to parameters",
    a_hook: "hooks: got a tensor with hooks", repeats_among_the_arguments: "how large the result is",
    rows_that_numpy_shuffles: r"calls warn\(\)", a_refusal_that_is_swallowed: "a value of an array",
    a_graph_that_begins_outside: "outside of the function", a_step_of_its_own: "a step of its own",
    what_is_logged: "writes to a log", what_type_says: "compares type", what_is_printed: "calls print",
    values_in_a_loss: "a value of an array|tolist",
    inputs_that_are_no_ids: r"expected integers \[batch, time\]",
}
ERRORS = (a_write_that_backward_must_not_see, an_axis_that_is_not_there, errors_of_numpy, errors_of_numpy_inside)


def run(program, captured):
    """(what it gives, the warnings that say that something is not captured)"""
    tg.manual_seed(0)
    by_name = "capture" in program.__code__.co_varnames[:1]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = program(captured if by_name else compile if captured else lambda f: f)
    return found, [str(w.message) for w in heard if "without capture" in str(w.message)]


def same(a, b):
    """Bit by bit, type by type."""
    assert type(a) is type(b), (type(a), type(b))
    if isinstance(a, tg.Tensor):
        assert a.requires_grad == b.requires_grad
        a, b = a.detach().numpy(), b.detach().numpy()
    if isinstance(a, np.ndarray | np.generic):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, dict):
        assert list(a) == list(b)
        same(list(a.values()), list(b.values()))
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        list(map(same, a, b))
    else:
        assert a == b


@pytest.mark.parametrize("check", ["", "check"])
@pytest.mark.parametrize("program", CAPTURED, ids=lambda program: program.__name__)
def test_it_is_captured_and_right(program, check, monkeypatch):
    monkeypatch.setenv("TINYGRAD_LLM_CAPTURE", check)
    found, heard = run(program, True)
    same(found, run(program, False)[0])
    assert heard == []


@pytest.mark.parametrize("program", FALLS_BACK, ids=lambda program: program.__name__)
def test_it_is_right_and_says_why_it_is_not_captured(program):
    found, heard = run(program, True)
    same(found, run(program, False)[0])
    assert len(heard) == (2 if program in (what_is_logged, transforms, a_module_inside_of_a_module) else 1)
    assert re.search(FALLS_BACK[program], heard[0]), heard


@pytest.mark.parametrize("program", ERRORS, ids=lambda program: program.__name__)
def test_it_raises_what_it_raises_uncaptured(program):
    with pytest.raises(Exception) as plain:  # noqa: PT011
        run(program, False)
    with pytest.raises(plain.type):
        run(program, True)


def test_a_check_names_the_line_that_differs(monkeypatch):
    monkeypatch.delenv("TINYGRAD_LLM_CAPTURE", raising=False)

    class Settings:
        pass

    settings, kind = Settings(), "a"
    vars(settings)["gain_" + kind] = 2.0

    def f(x):
        gain = getattr(settings, "gain_" + kind)  # which no name leads to
        return (tg.tensor(x) * gain).sum()

    blind, seeing = compile(f), compile(f, check=2)
    first = blind(X)
    same([seeing(X), seeing(X)], [first, first])
    vars(settings)["gain_" + kind] = 3.0
    same([blind(X), seeing(X)], [first, first])
    with pytest.raises(CaptureMismatch, match=r"result 0 .* call that differs is multiply of mul at .*\* gain.* 2\.0.* 3\.0"):
        seeing(X)


def test_a_check_finds_what_a_pass_does_wrong():
    def wrong(program):
        return dataclasses.replace(program, calls=program.calls[1:])

    f = compile(lambda x: np.exp(x) * 2, passes=(wrong, passes.plan_memory), check="always")
    with pytest.raises(CaptureMismatch, match=r"a pass or the replay changed their bits"):
        f(X + 1)


def test_the_environment_checks_everything(monkeypatch):
    monkeypatch.setenv("TINYGRAD_LLM_CAPTURE", "check")
    drop = tg.nn.Dropout(0.5)
    f, runs = compile(lambda x: drop(x)), tg.default_generator.get_state()
    first = [f(tg.ones(50)) for _ in range(3)]
    tg.default_generator.set_state(runs)
    same(first, [drop(tg.ones(50)) for _ in range(3)])
    assert f.check == 1


def test_the_environment_checks_training(monkeypatch):
    monkeypatch.setenv("TINYGRAD_LLM_CAPTURE", "check")

    class Net(Toy):
        def __init__(self):
            super().__init__()
            self.drop, self.settings, self.kind = tg.nn.Dropout(0.3), Settings(), "a"

        def loss(self, ids, targets):
            gain = getattr(self.settings, "gain_" + self.kind)  # which no name leads to
            return super().loss(ids, targets) * gain + self.drop(self.o.weight).sum() * 0.0

    class Settings:
        def __init__(self):
            vars(self)["gain_" + "a"] = 2.0

    def losses(capture, accumulate):
        tg.manual_seed(0)
        m = Net()
        trainer = Trainer(m, AdamW(m.parameters(), lr=0.1), capture=capture, accumulate=accumulate)
        found = [trainer.step(INPUTS, TARGETS) for _ in range(3)]
        return trainer, m, found

    assert losses(True, 1)[2] == losses(False, 1)[2]
    assert losses(True, 2)[2] == losses(False, 2)[2]
    trainer, m, _ = losses(True, 1)
    vars(m.settings)["gain_" + m.kind] = 3.0
    with pytest.raises(CaptureMismatch, match=r"training: loss of a replay is not that of the model: the first call that"):
        trainer.step(INPUTS, TARGETS)


@pytest.mark.parametrize("check", ["often", -1, None])
def test_a_check_is_a_number_of_calls(check):
    with pytest.raises(ValueError, match=r"check: got .*, expected 'always' or a number of calls"):
        compile(np.tanh, check=check)
