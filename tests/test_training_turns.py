"""The sum of all workers' gradients: in the order of the workers, piece by piece, wherever each of them cuts, or by slices."""

import itertools
from multiprocessing import Pipe, get_all_start_methods
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_llm import Transformer, TransformerConfig
from tinygrad_llm.ops import losses
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer, flat
from tinygrad_llm.training.captured import CapturedGradients
from tinygrad_llm.training.flat import Layout
from tinygrad_llm.training.shards import Part
from tinygrad_llm.training.turns import Sum

SIZE = 40
FORK = pytest.mark.skipif("fork" not in get_all_start_methods(), reason="needs fork, or the children would not see the patch")


def team(workers):
    """The same memory as each worker sees it."""
    memory, links = np.full(SIZE, np.nan, np.float32), [Pipe(duplex=False) for _ in range(workers - 1)]
    places = [memory[: SIZE // 2], memory[SIZE // 2 :]]
    before, after = [None, *(link[0] for link in links)], [*(link[1] for link in links), None]
    return memory, [Sum(places, *pair) for pair in zip(before, after)]


cuts = st.sets(st.integers(1, SIZE - 1), max_size=6).map(lambda inner: [0, *sorted(inner), SIZE])


@given(st.lists(st.tuples(cuts, st.randoms(use_true_random=False)), min_size=2, max_size=4), st.integers(1, 3))
def test_workers_add_in_their_order_however_they_cut(workers, steps):
    memory, sums = team(len(workers))
    parts = np.random.default_rng(0).standard_normal((steps, len(workers), SIZE)).astype(np.float32)
    found = []
    orders = [list(itertools.pairwise(at)) for at, _ in workers]
    for order, (_, random) in zip(orders, workers):
        random.shuffle(order)

    def work(rank, step):
        for start, stop in orders[rank]:
            sums[rank].add(parts[step, rank, start:stop], memory[start:stop])
        sums[rank].finish()

    for step in range(steps):
        threads = [Thread(target=work, args=(rank, step), daemon=True) for rank in reversed(range(len(workers)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        found.append(memory.copy())
    for step in range(steps):
        expected = parts[step, 0]
        for more in parts[step, 1:]:
            expected = expected + more
        assert found[step].tobytes() == expected.tobytes()


def test_nobody_adds_before_the_worker_before_is_done():
    memory, (first, second) = team(2)
    adding = Thread(target=second.add, args=(np.ones(8, np.float32), memory[4:12]), daemon=True)
    adding.start()
    for start, stop in ((0, 6), (20, 30), (8, 12)):
        first.add(5.0, memory[start:stop])
        adding.join(0.02)
        assert adding.is_alive()
    first.add(7.0, memory[6:8])
    adding.join(20)
    assert memory[:12].tolist() == [5.0] * 4 + [6.0] * 2 + [8.0] * 2 + [6.0] * 4


def test_a_worker_before_that_is_gone_is_an_error_and_no_endless_wait():
    memory, (first, second) = team(2)
    first.after.close()
    with pytest.raises(EOFError):
        second.add(1.0, memory[:4])


VOCAB = 1500


@pytest.fixture
def one_gradient(monkeypatch):
    """For all workers, however small it is."""
    monkeypatch.setattr(flat, "APART", 0)


def taken(rows, workers, capture, accumulate=1):
    model = Transformer(TransformerConfig(VOCAB, 6, 8, 2, 2), seed=1)
    with Trainer(model, AdamW(model.parameters(), lr=1e-2), workers=workers, capture=capture, accumulate=accumulate) as trainer:
        found = []
        for seed in range(3):
            ids, targets = np.random.default_rng(seed).integers(0, VOCAB, (2, rows, 6))
            found.append(trainer.step(ids, targets))
        program = next(iter(trainer._team.worker.compute._programs.values()))[0].replay.program if capture else None
    return found, model.state_dict(), program


@FORK
@pytest.mark.usefixtures("one_gradient")
@pytest.mark.parametrize("rows", [4, 5])  # with 5 the shares, and so the chunks of the head, are not alike
@pytest.mark.parametrize("workers", [2, 3])
def test_captured_workers_add_what_eager_ones_add_bit_by_bit(monkeypatch, rows, workers):
    monkeypatch.setattr(losses, "_CHUNK", 2**13)
    ours, theirs = taken(rows, workers, True), taken(rows, workers, False)
    assert ours[0] == theirs[0]
    for name, value in theirs[1].items():
        assert ours[1][name].tobytes() == value.tobytes(), name
    told = [call for call in ours[2].flat() if call.op == "sum of workers"]
    assert len(told) > len(ours[1])  # the head's gradient is passed on in several pieces


@FORK
@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("workers", [2, 3])
def test_gradients_apart_are_added_to_the_same_bits(monkeypatch, workers, capture):
    apart = taken(5, workers, capture)
    monkeypatch.setattr(flat, "APART", 0)
    in_turns = taken(5, workers, capture)
    assert apart[0] == in_turns[0]
    for name, value in in_turns[1].items():
        assert apart[1][name].tobytes() == value.tobytes(), name


@FORK
@pytest.mark.usefixtures("one_gradient")
def test_captured_workers_with_several_parts_add_in_turns_too():
    test_captured_workers_with_several_parts_each_go_where_one_process_goes()


@FORK
def test_captured_workers_with_several_parts_each_go_where_one_process_goes():
    ours, theirs = taken(8, 2, True, accumulate=2), taken(8, 1, False)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)


@FORK
@pytest.mark.usefixtures("one_gradient")
def test_of_an_embedding_further_workers_add_the_rows_that_they_have():
    model = Transformer(TransformerConfig(VOCAB, 6, 8, 2, 2), seed=1)
    ids, targets = np.random.default_rng(0).integers(0, VOCAB, (2, 4, 6))
    total = Sum([np.zeros(p.shape, p.dtype) for p in model.parameters()], Pipe(duplex=False)[0])
    total.all_ready = True
    compute = CapturedGradients(model, list(model.parameters()), total, np.zeros(len(total.arrays), np.uint8))
    compute([Part(ids, targets, 1.0)])
    names = [call.name for call in next(iter(compute._programs.values()))[0].replay.program.flat()]
    assert names.count("add_rows_in_turn") == 1
    assert "_add_rows" not in names
    model.loss(ids, targets).backward()
    for p, found in zip(model.parameters(), total.arrays):
        assert np.array_equal(found, p.grad.numpy())


def test_a_further_worker_needs_no_further_gradient_of_a_large_model(monkeypatch):
    parameters = list(Transformer(TransformerConfig(VOCAB, 6, 8, 2, 2)).parameters())
    monkeypatch.setattr(flat, "APART", 4 * sum(p.size for p in parameters) - 1)
    one, four = (Layout(parameters, [], workers, 24, amsgrad=False).nbytes for workers in (1, 4))
    assert four - one <= 3 * len(parameters) + 64
