"""What a compiled function promises: the same as the function itself, for any layout, or a word that it cannot."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpyprograms import same
from test_capture_programs import plans

import tinygrad_llm as tg
from tinygrad_llm.autograd import detect_anomaly, no_grad
from tinygrad_llm.autograd.modes import active_recorder
from tinygrad_llm.capture import CaptureError, compile, passes
from tinygrad_llm.capture.recordings import record
from tinygrad_llm.capture.replay import Replay
from tinygrad_llm.model import Transformer, TransformerConfig
from tinygrad_llm.nn import functional as F
from tinygrad_llm.ops import IndexRangeError
from tinygrad_llm.optim import AdamW


@pytest.fixture
def _recorded_freely(monkeypatch):
    """As often as anything is new."""
    monkeypatch.setattr("tinygrad_llm.capture.rationing.FREE", 1000)


def floats(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# When it is recorded --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_recorded_freely")
def test_one_program_for_each_layout_and_constant():
    double = compile(lambda x, n=2: x * n)
    x = floats(4, 4)
    calls = [(x, 2), (x.T, 2), (x[:3], 2), (x.astype(np.float64), 2), (x, 2.0), (x, True), (x, -0.0), (x, 0.0)]
    for _ in range(2):
        for a, n in calls:
            assert same(double(a, n), a * n)
    assert double.ration.recorded == len(calls)
    assert same(double(x, n=2), x * 2)
    assert double.reason is None


def test_the_form_of_arguments_is_part_of_the_layout():
    def add(pairs, more):
        return [len(pairs), sum(pairs[1:], pairs[0]) * 2 + sum(more)]

    twice, (a, b, c) = compile(add), floats(3, 5)
    for first, second in [([a], [b, c]), ([a, b], [c]), ([a, b, c], [])]:
        n, found = twice(first, second)
        assert n == len(first)
        assert same(found, add(first, second)[1])


@pytest.mark.usefixtures("_recorded_freely")
def test_the_oldest_unused_program_is_dropped():
    step = compile(lambda x: x + 1, programs=2)
    for n in (1, 2, 1, 3):
        step(floats(n))
    assert step.ration.recorded == 3
    step(floats(1))
    assert step.ration.recorded == 3
    step(floats(2))
    assert step.ration.recorded == 4
    assert len(step._ready) == 2


def test_grad_mode_is_part_of_the_key():
    w = tg.tensor(floats(3), requires_grad=True)

    def loss(x):
        y = (w * x).sum()
        if y.requires_grad:
            y.backward()
        return y

    step, x = compile(loss), floats(3, seed=1)
    with no_grad():
        step(x)
    assert w.grad is None
    step(x)
    assert same(w.grad.numpy(), x)


def test_threads_do_not_share_memory_while_they_run():
    step, failures = compile(lambda x: np.exp(x) * 2 - x), []

    def many(seed):
        for i in range(60):
            x = floats(40, 40, seed=100 * seed + i)
            if not same(step(x), np.exp(x) * 2 - x):
                failures.append(i)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Weights and gradients ------------------------------------------------------------------------------------------------


def test_weights_written_in_place_are_seen():
    layer = tg.nn.Linear(3, 2)
    step, x = compile(lambda x: layer(x)), tg.tensor(floats(4, 3))
    before = step(x)
    layer.load_state_dict({name: np.asarray(p) * 2 + 1 for name, p in layer.state_dict().items()})
    assert not same(step(x).numpy(), before.numpy())
    assert same(step(x).numpy(), layer(x).numpy())
    with no_grad():
        layer.weight += 1
    assert same(step(x).numpy(), layer(x).numpy())


@pytest.mark.parametrize("before", [None, 0.25], ids=["none", "some"])
def test_gradients_are_added_as_backward_adds_them(before):
    def loss(x, y):
        for part in (x, y):
            (part * w * w).sum().backward()

    found = []
    for run in (loss, compile(loss)):
        w, rounds = tg.tensor(floats(3), requires_grad=True), []
        w.grad = None if before is None else tg.tensor(np.full(3, before, np.float32))
        for seed in (1, 2, 3):
            run(floats(3, seed=seed), floats(3, seed=seed + 9))
            rounds.append(w.grad.numpy().copy())
        w.grad = None
        run(floats(3, seed=4), floats(3, seed=5))
        assert getattr(run, "reason", None) is None
        found.append([*rounds, w.grad.numpy()])
    assert all(map(same, *found))


def test_gradients_that_the_function_takes_away_are_gone():
    layer = tg.nn.Linear(3, 2)

    def step(x, last):
        layer.zero_grad()
        layer(x).sum().backward()
        if last:
            layer.zero_grad()

    replay, x = compile(step), floats(4, 3)
    for _ in range(3):
        replay(tg.tensor(x), False)
        assert same(layer.bias.grad.numpy(), np.full(2, 4, np.float32))
    replay(tg.tensor(x), True)
    assert layer.bias.grad is None
    assert replay.ration.recorded == 3  # with gradients of before and without, but not last


def test_arguments_get_their_gradients_each_call_its_own():
    step = compile(lambda x: (x * x).sum().backward())
    inputs = [tg.tensor(floats(3, seed=i), requires_grad=True) for i in range(3)]
    for x in inputs:
        step(x)
    assert all(same(x.grad.numpy(), 2 * x.numpy()) for x in inputs)
    step(inputs[0])
    assert same(inputs[0].grad.numpy(), 4 * inputs[0].numpy())


def test_a_gradient_that_is_a_constant():
    """That of the bias under a sum: no call of the program makes it."""
    layer, x = tg.nn.Linear(3, 2), floats(4, 3)
    step = compile(lambda x: layer(x).sum().backward())
    for n in (1, 2, 3):
        step(tg.tensor(x))
        assert same(layer.bias.grad.numpy(), np.full(2, 4 * n, np.float32))


def test_a_tensor_given_twice_is_one():
    def loss(x, y):
        (x.exp() * y * x).sum().backward()

    a, b, step = floats(5), floats(5, seed=1), compile(loss)
    for same_one in (True, False, True):
        x, y = tg.tensor(a, requires_grad=True), tg.tensor(b, requires_grad=True)
        p, q = tg.tensor(a, requires_grad=True), tg.tensor(b, requires_grad=True)
        step(x, x if same_one else y)
        loss(p, p if same_one else q)
        assert same(x.grad.numpy(), p.grad.numpy())
        assert (y.grad is None) == (q.grad is None)


def test_gradients_of_an_index_that_is_an_argument():
    table = tg.tensor(floats(6, 3), requires_grad=True)

    def loss(ids):
        out = (table[ids] * table[ids]).sum()
        out.backward()
        return out

    step = compile(loss)
    for seed in range(3):
        ids, table.grad = np.random.default_rng(seed).integers(0, 6, (4, 2)), None
        found, g = step(ids).numpy(), table.grad.numpy()
        table.grad = None
        assert same(found, loss(ids).numpy())
        assert same(g, table.grad.numpy())


def test_gradients_that_meet_in_two_layouts():
    w = tg.tensor(floats(40, 30), requires_grad=True)

    def loss(x):
        y = w * x
        z = y.t().exp() * 0.5
        (z.t() * y + y.t().cos().t() + (y.softmax(0) @ x.T)[:, :30]).sum(0).exp().sum().backward()
        return y

    step, x = compile(loss), floats(40, 30, seed=3) * 0.1
    step(x)
    found, w.grad = w.grad.numpy(), None
    loss(x)
    assert same(found, w.grad.numpy())


# Results --------------------------------------------------------------------------------------------------------------


def test_trees_go_in_and_out():
    def swap(pair, *, scale):
        return {"sum": pair["a"] + pair["b"][0], "rest": [pair["b"][0] * scale, "word", None, 3], "own": (pair["a"],)}

    a, b = floats(2, 3), floats(2, 3, seed=1)
    step = compile(swap)
    for scale in (2, 3):
        found, wanted = (f({"a": a, "b": [b]}, scale=scale) for f in (step, swap))
        assert found.keys() == wanted.keys()
        assert same(found["sum"], wanted["sum"])
        assert same(found["rest"][0], wanted["rest"][0])
        assert found["rest"][1:] == ["word", None, 3]
        assert same(found["own"][0], a)


def test_inputs_views_and_repeated_results_are_arrays_of_their_own():
    step, x = compile(lambda x: [x, x[::-1], x.T, (y := x + 1), y, y[0]]), floats(3, 3)
    first = step(x)
    kept = [np.copy(a) for a in first]
    second = step(x * 2)
    assert all(map(same, first, kept))
    assert not any(np.shares_memory(a, b) for i, a in enumerate(first) for b in [*first[:i], *second, x])
    assert same(second[2], 2 * x.T)


def test_results_that_lead_to_parameters_are_made_as_they_are():
    w = tg.tensor(floats(3), requires_grad=True)
    f, x = compile(lambda x: (w * x).sum()), floats(3)
    with pytest.warns(RuntimeWarning, match=r"for such arguments: its results lead to parameters.* or a call under no_grad"):
        (f(x) * 2).backward()
    (f(x) * 2).backward()
    assert same(w.grad.numpy(), x * 4)
    with tg.no_grad():
        for _ in range(3):
            assert not f(x).requires_grad
    assert f.ration.replayed == 3
    assert "lead to parameters" in f.reason


def test_a_graph_that_was_used_up_inside_is_used_up_outside():
    w = tg.tensor(floats(3), requires_grad=True)

    def step(x):
        loss = (w * w * x).sum()
        loss.backward()
        return loss

    out = compile(step)(floats(3))
    assert out.requires_grad
    with pytest.raises(tg.autograd.AutogradError, match=r"compiled: this graph was already used"):
        (out + 1).backward()


def test_a_weight_that_is_returned_is_the_weight():
    w = tg.tensor(floats(3), requires_grad=True)
    assert compile(lambda x: (w, (w * x).detach()))(floats(3))[0] is w


def test_random_numbers_of_a_generator_are_drawn_at_each_call():
    def noisy(x):
        return F.dropout(x, 0.5, generator=generator)

    runs = []
    for function in (noisy, compile(noisy)):
        generator = np.random.default_rng(1)
        runs.append([function(tg.tensor(floats(50))).numpy() for _ in range(3)])
    assert all(map(same, *runs))


def test_a_training_program_inside_of_another_is_part_of_it():
    inner = compile(lambda x: x * 2)
    outer, x = compile(lambda x: inner(x) + 1), floats(4)
    assert same(outer(x), x * 2 + 1)
    assert (inner.reason, outer.reason) == (None, None)
    assert [call.name for call in outer.program(x).flat()] == ["multiply", "add"]


# In-place writes while recording --------------------------------------------------------------------------------------


def test_writes_into_results_of_the_function_are_recorded():
    w = tg.tensor(floats(4, 3), requires_grad=True)

    def loss(x):
        y = w * x
        y[1:].mul_(3)
        y += x
        y[0] = y[1] * 2
        part = y.t()[0]
        part.add_(1)
        out = (y * y).sum()
        out.backward()
        return y.detach(), out

    step = compile(loss)
    for seed in range(2):
        x = tg.tensor(floats(4, 3, seed=seed))
        w.grad = None
        found, g = step(x), w.grad.numpy()
        w.grad = None
        assert all(same(a.numpy(), b.numpy()) for a, b in zip(found, loss(x)))
        assert same(g, w.grad.numpy())
    assert step.reason is None


# What cannot be captured ----------------------------------------------------------------------------------------------

WEIGHT = tg.tensor(np.ones(3, np.float32))
ARRAY = np.zeros(3, np.float32)


def assigns(array):
    def write(x):
        array[:] = x
        return x

    return write


def adds_to(array):
    def write(x):
        nonlocal array
        array += x
        return x

    return write


def steps(x):
    layer = tg.nn.Linear(3, 1)
    layer(tg.tensor(np.ones((2, 3), np.float32)) * x).sum().backward()
    AdamW(layer.parameters()).step()
    return x


REFUSED = {
    "float": lambda x: x * float(x.sum()), "int": lambda x: x[: int(x[0])], "bool": lambda x: x if x.sum() > 0 else -x,
    "array": lambda x: np.asarray(x) + 1, "item": lambda x: x * x.sum().item(), "tolist": lambda x: x * x.tolist()[0],
    "mask": lambda x: x[x > 0], "nonzero": lambda x: np.flatnonzero(x), "unique": lambda x: np.unique(x),
    "tensor item": lambda x: x * WEIGHT.sum().item(), "tensor float": lambda x: x * float(WEIGHT[0]),
    "tensor array": lambda x: x * np.asarray(WEIGHT), "assigns": assigns(ARRAY), "adds to": adds_to(ARRAY),
    "out": lambda x: np.add(x, 1, out=ARRAY), "own argument": lambda x: np.add(x, 1, out=x),
    "add_": lambda x: x + WEIGHT.add_(1).sum(), "fill_": lambda x: WEIGHT.fill_(1) * x,
    "setitem": lambda x: WEIGHT.__setitem__(0, 2) or x, "optimizer": steps, "modf": lambda x: np.modf(x)[0],
    "view by a value": lambda x: np.stack([x, x])[np.argmax(x[:2])],
    "method": lambda x: x.searchsorted(x), "add.at": lambda x: np.add.at(ARRAY, [0], x[:1]) or x,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_says_so_once_and_runs_as_it_is(name):
    function = REFUSED[name]
    step, x = compile(function), np.array([1, -2, 3.5], np.float32)
    ARRAY[:] = 0
    with no_grad():
        WEIGHT.fill_(1)
    with pytest.warns(RuntimeWarning, match="runs without capture: .+"):
        found = step(x.copy())
    ARRAY[:] = 0
    with no_grad():
        WEIGHT.fill_(1)
    wanted = function(x.copy())
    assert same(getattr(found, "numpy", lambda: found)(), getattr(wanted, "numpy", lambda: wanted)())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(x.copy())
    assert step.reason
    with pytest.raises((CaptureError, AttributeError)):
        compile(function).program(x)
    assert active_recorder() is None


def test_a_tensor_with_a_graph_is_no_argument():
    x = tg.tensor(floats(3), requires_grad=True)
    step = compile(lambda y: (y * y).sum().backward())
    with pytest.warns(RuntimeWarning, match="graph of its own"):
        step(x * 2)
    assert same(x.grad.numpy(), 8 * x.numpy())


def test_errors_of_the_function_are_its_own_and_leave_nothing_behind():
    w = tg.tensor(floats(3), requires_grad=True)

    def broken(x, fail):
        (w * x).sum().backward()
        if fail:
            raise KeyError("mine")
        return (w * x).detach()

    step, x = compile(broken), floats(3, seed=1)
    with pytest.raises(KeyError, match="mine"):
        step(x, True)
    assert active_recorder() is None
    assert same(w.grad.numpy(), x)  # as it would be without capture
    w.grad = None
    assert same(step(x, False).numpy(), w.numpy() * x)
    assert same(w.grad.numpy(), x)
    assert step.reason is None


def test_indices_out_of_range_raise_what_they_raise_without_capture():
    table = tg.tensor(floats(5, 3), requires_grad=True)

    def loss(ids, targets):
        return F.cross_entropy(F.embedding(ids, table), targets)

    step, good, bad = compile(loss), np.array([0, 1, 2]), np.array([0, 1, 7])
    step(good, good)
    for ids, targets in ((bad, good), (good, bad), (-bad, good)):
        with pytest.raises(IndexRangeError) as wanted:
            loss(ids, targets)
        with pytest.raises(IndexRangeError) as found:
            step(ids, targets)
        assert str(found.value) == str(wanted.value)
    assert same(step(good, good).numpy(), loss(good, good).numpy())


def test_anomalies_are_looked_for_without_capture():
    step = compile(lambda x: x.log())
    step(tg.tensor(floats(3) ** 2 + 1))
    with detect_anomaly(), np.errstate(all="ignore"), pytest.raises(RuntimeError, match="forward of log"):
        step(tg.tensor(np.array([-1, 1, 1], np.float32)))
    assert step.reason is None


NUMPY = {
    "cumsum": lambda x: np.cumsum(x, 1), "sort": lambda x: np.sort(x, 0), "argmax": lambda x: np.argmax(x, -1),
    "argsort": lambda x: x.argsort(), "var": lambda x: x.var(0, keepdims=True), "std": lambda x: np.std(x),
    "einsum": lambda x: np.einsum("ij,kj->ik", x, x), "roll": lambda x: np.roll(x, 2, 1), "tril": lambda x: np.tril(x),
    "repeat": lambda x: x.repeat(2, axis=0), "pad": lambda x: np.pad(x, 1), "outer": lambda x: np.outer(x[0], x[1]),
    "ufunc outer": lambda x: np.subtract.outer(x[0], x[1]), "accumulate": lambda x: np.maximum.accumulate(x, axis=1),
    "dot": lambda x: x.dot(x.T), "norm": lambda x: np.linalg.norm(x, axis=1), "percentile": lambda x: np.percentile(x, 30, 0),
    "take_along_axis": lambda x: np.take_along_axis(x, np.argsort(x, 1), 1), "clip": lambda x: x.clip(-0.5, 0.5),
    "mean of ints": lambda x: np.mean(np.argsort(x, 1), 0), "concatenate": lambda x: np.concatenate([x.T, x.T], axis=None),
    "rows": lambda x: np.stack([row * 2 for row in x]), "split": lambda x: np.split(x, 2, 1)[1], "round": lambda x: x.round(1),
}


@pytest.mark.parametrize("name", NUMPY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_of_numpy(name, dtype):
    function, x = NUMPY[name], floats(4, 6, dtype=dtype)
    step = compile(lambda x: function(x * 2))
    for seed in range(3):
        for a in (floats(4, 6, seed=seed, dtype=dtype), floats(6, 4, seed=seed, dtype=dtype).T):
            assert same(step(a), function(a * 2))
    assert step.reason is None
    assert step(x).dtype == function(x * 2).dtype


# Listing, numbers, passes ---------------------------------------------------------------------------------------------


def scaled(x):
    """Seven calls, of which one is repeated and one is not needed."""
    np.exp(x)
    y = x * 2 + (x * 2)
    out = np.zeros_like(x)
    out[1:] = y[1:] - 1
    return out * y


def test_listing_of_a_small_program():
    program = compile(scaled, passes=()).program(floats(3, 2))
    found = [re.sub(r" {2,}", "  ", line) for line in str(program).splitlines()]
    assert found == [
        "inputs  in0",
        "%1: f32[3,2] = exp(in0)  48 B",
        "%2: f32[3,2] = multiply(in0, 2)  48 B",
        "%3: f32[3,2] = multiply(in0, 2)  48 B",
        "%4: f32[3,2] = add(%2, %3)  72 B",
        "%5: f32[3,2] = copy(0)  24 B",
        "%6: f32[2,2] = subtract(%4+8[2,2], 1)  32 B",
        "%5+8[2,2]: f32[2,2] = copy(%6)  32 B",
        "%7: f32[3,2] = multiply(%5, %4)  72 B",
        "out8: f32[3,2] = copy(%7)  48 B",
        "outputs  out8",
    ]
    program = compile(scaled).program(floats(3, 2))
    assert [re.sub(r" {2,}", "  ", line) for line in str(program).splitlines()] == [
        "inputs  in0",
        "%1: f32[3,2] @0 = multiply(in0, 2)  48 B",
        "%1: f32[3,2] @0 = add(%1, %1)  72 B",
        "%2: f32[3,2] @64 = copy(0)  24 B",
        "%2+8[2,2]: f32[2,2] @64 = subtract(%1+8[2,2], 1)  32 B",
        "out3: f32[3,2] = multiply(%2, %1)  72 B",
        "outputs  out3",
    ]


CONFIG = TransformerConfig(vocab_size=11, d_model=8, n_heads=2, n_layers=2, context_length=6, dropout=0.0)


def training_program(chosen=passes.DEFAULT):
    model = Transformer(CONFIG, seed=0)

    def step(ids):
        loss = model.loss(ids, ids)
        loss.backward()
        return loss

    return passes.optimize(record(step, [np.zeros((2, 6), np.int64)], model).program, chosen)


@pytest.mark.parametrize("chosen", [(), passes.EXACT], ids=["recorded", "planned"])
def test_every_line_of_a_big_listing_has_its_parts(chosen):
    program = training_program(chosen)
    calls = list(program.flat())
    first, *lines, last = [line for line in str(program).splitlines() if not line.startswith("for rows")]
    assert first.startswith("inputs   in")
    assert last.startswith("outputs  out")
    assert len(lines) == len(calls)
    for line, call in zip(lines, calls):
        name = re.escape(call.name)
        result = r"(%|~|out)\d+\S*: \w+\[[\d,]*\](?P<place> @\d+)? = " if call.out is not None else ""
        found = re.match(rf" *{result}{name}\(.*\) +[\d,]+ B *(?P<rest>.*)$", line)
        assert found, line
        assert found["rest"].split() == [part for part in (call.op, call.layer) if part]
        if chosen and call.out is not None:
            assert bool(found["place"]) == (call.out.buffer.kind in ("temp", "tile"))
    assert {call.op for call in calls} >= {"embedding", "layer_norm", "layer_normᵀ"}
    assert {call.layer for call in calls} >= {"tok_embed", "blocks.0.norm1", "blocks.1.attn"}


def test_stats_of_a_program_counted_by_hand():
    def function(x, w):
        return np.matmul(x, w) + 1

    stats = compile(function, passes=()).program(floats(3, 4), floats(4, 5)).stats()
    assert stats["calls"] == 3  # matmul, add, copy
    assert stats["flops"] == 2 * 3 * 4 * 5 + 15
    assert stats["bytes_moved"] == 4 * ((12 + 20 + 15) + (15 + 15) + (15 + 15))
    assert (stats["buffers"], stats["buffer_bytes"], stats["arena_bytes"]) == (2, 120, None)
    assert (stats["input_bytes"], stats["output_bytes"]) == (4 * 32, 60)
    stats = compile(function).program(floats(3, 4), floats(4, 5)).stats()
    assert (stats["calls"], stats["buffers"], stats["buffer_bytes"], stats["arena_bytes"]) == (2, 1, 60, 60)


def numbers(function, chosen, *shapes):
    program = compile(function, passes=chosen).program(*[floats(*shape) for shape in shapes])
    stats = program.stats()
    return stats["calls"], stats["buffer_bytes"], program.arena, len(program.calls)


def rows(x):
    return np.sum(np.exp(x * 2) - 1, 1)


def test_what_each_pass_saves():
    shape = (8, 16)  # 512 bytes
    plain = numbers(scaled, (), shape)
    assert plain == (9, 6 * 512 + 448, 0, 9)
    assert numbers(scaled, (passes.dead_calls,), shape)[:2] == (8, 5 * 512 + 448)
    assert numbers(scaled, (passes.common_calls,), shape)[:2] == (8, 5 * 512 + 448)
    assert numbers(scaled, (passes.sink_copies,), shape)[:2] == (7, 5 * 512)
    assert numbers(scaled, (passes.plan_memory,), shape)[0] == 9
    assert 0 < numbers(scaled, (passes.plan_memory,), shape)[2] <= 4 * 512
    assert numbers(rows, (), shape)[3] == 5
    tiled = numbers(rows, (lambda p: passes.row_tiles(p, tile=128),), shape)
    assert tiled[3] == 1  # one loop
    assert tiled[1] == 3 * 128 + 8  # two rows each, and two sums
    assert tiled[0] == 5
    flops = [compile(rows, passes=p).program(floats(*shape)).stats()["flops"] for p in ((), plans(128)[2])]
    assert flops == [4 * 128, 4 * 128]


def test_peepholes_make_of_products_with_one_vector_one_product():
    def dots(x, v):
        return np.vecdot(x, v), np.vecdot(v, x), np.vecdot(x, x), np.vecdot(x[..., ::2], v[::2]), np.vecdot(x.astype(float), v)

    given = [(5, 7, 32), (32,)]
    names = [[call.name for call in compile(dots, passes=chosen).program(*[floats(*shape) for shape in given]).flat()
              if call.name != "copy"] for chosen in (passes.EXACT, passes.FAST)]
    assert names[0] == ["vecdot"] * 5
    assert names[1] == ["matmul", *["vecdot"] * 4]
    for chosen in (passes.EXACT, passes.FAST):
        arrays = [floats(*shape, seed=1) for shape in given]
        for found, want in zip(compile(dots, passes=chosen)(*arrays), dots(*arrays), strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_with_a_vector_has_numpys_bits(dtype):
    """Of two axes, replay asks BLAS for it by another way; of more, only peepholes make one product of them."""
    def products(x, v, w):
        return x @ v, w @ x, x[None] @ v

    for n, m in [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (16, 32), (17, 33), (64, 64), (65, 127), (300, 257), (1000, 96)]:
        arrays = [floats(*shape, dtype=dtype) for shape in ((n, m), (m,), (n,))]
        for found, want in zip(compile(products)(*arrays), products(*arrays), strict=True):
            assert found.tobytes() == want.tobytes(), (n, m)


def test_what_nobody_can_write_into_is_copied_once_and_for_all():
    constant, weight = np.arange(8, dtype=np.float32), np.arange(8, dtype=np.float32)
    constant.flags.writeable = False
    seen = weight.view()
    seen.flags.writeable = False  # but its owner may
    step, x = compile(lambda x: [x * constant, x * seen]), floats(4, 8)
    assert [call.name for call in step.program(x).flat()] == ["multiply", "copy", "multiply"]
    weight += 1
    for found, factor in zip(step(x), (constant, weight)):
        assert np.array_equal(found, x * factor)


def used_late(x):
    shifted, mask = x * 2 + 1, x > 0
    most = np.concatenate([np.exp(shifted), shifted, shifted])
    return np.sum(most) + np.sum(shifted * mask)


def test_recompute_makes_again_what_is_cheap_and_needed_late():
    def planned(*more):
        program = compile(used_late, passes=(*more, passes.plan_memory)).program(floats(64, 64))
        return program.arena, sum(call.name == "multiply" for call in program.flat())

    assert planned(passes.recompute) == planned()  # not worth it for so few bytes
    (before, twice), (after, thrice) = planned(), planned(lambda p: passes.recompute(p, large=0))
    assert after <= before - 64 * 64 * 4  # the mask, and `shifted`, of which the sum reads one
    assert (twice, thrice) == (2, 3)


PAGE = (Path(__file__).parents[1] / "docs" / "capture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("chosen", [(), passes.DEFAULT], ids=["recorded", "planned"])
def test_the_page_shows_what_is_printed(chosen):
    source = re.search(r"<!-- softmax -->\n```python\n(.*?)```", PAGE, re.S)[1]
    names = {"np": np}
    exec(source, names)
    printed = str(compile(names["softmax"], passes=chosen).program(np.zeros((4096, 256), np.float32)))
    assert f"```\n{printed}\n```" in PAGE


def test_the_example_of_the_page_runs(capsys):
    exec(re.search(r"```python\n(import numpy.*?)```", PAGE, re.S)[1], {})
    assert "outputs  out" in capsys.readouterr().out


def test_the_page_names_every_pass():
    assert all(f"**`{p.__name__}`**" in PAGE for p in passes.FAST)


def test_replay_writes_where_it_is_told():
    recording = record(lambda x: [x + 1, x * 2], [floats(3)])
    place = np.zeros(3, np.float32)
    replay = Replay(passes.optimize(recording.program), {1: place})
    replay.inputs[0][...] = 5
    replay.run()
    assert place.tolist() == [10, 10, 10]
    with pytest.raises(ValueError, match="outputs: got"):
        Replay(recording.program, {0: np.zeros(4, np.float32)})
