"""BLAS uses one thread while products are small, and then as many as before."""

import os
import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import tinygrad_llm as tg
from tinygrad_llm import decoding, threads
from tinygrad_llm.decoding import Decoder
from tinygrad_llm.generation import generate
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer, evaluate

USERS = 3  # what the user has set


def count():
    return {library.get_num_threads() for library in ThreadpoolController().select(user_api="blas").lib_controllers}


@pytest.fixture(autouse=True)
def _users_threads():
    with threadpool_limits(USERS, "blas"):
        assert count() == {USERS}
        yield
        assert count() == {USERS}


@pytest.mark.parametrize(("size", "rows", "inside"), [
    (16 * 16, 64, 1), (64 * 64, 512, 1), (128 * 128, 512, USERS), (400 * 400, 1, 1), (1024 * 1024, 1, USERS), (0.0, 10**9, 1)
])
def test_small_products_have_one_thread(size, rows, inside):
    with threads.suited_to(size, rows):
        assert count() == {inside}
    assert count() == {USERS}


def test_the_size_is_that_of_a_matrix_in_the_mean():
    model = tg.nn.Linear(4, 6)
    assert threads.mean_size(model.parameters()) == 24
    assert threads.mean_size([model.bias]) == 0
    assert threads.mean_size([]) == 0


def test_blocks_nest_and_overlap_and_an_error_gives_back():
    with threads.one():
        with pytest.raises(KeyError), threads.one():
            raise KeyError
        assert count() == {1}
    assert count() == {USERS}
    inside, leave = threading.Event(), threading.Event()

    def other():
        with threads.one():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with threads.one():
        thread.start()
        inside.wait(10)
    assert count() == {1}
    leave.set()
    thread.join()
    assert count() == {USERS}


def test_one_thread_is_left_alone():
    with threadpool_limits(1, "blas"):
        with threads.one():
            assert count() == {1}
        assert count() == {1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a call of POSIX systems")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_inside_a_block_has_the_users_threads():
    reader, writer = os.pipe()
    with threads.one():
        if (child := os.fork()) == 0:
            ours = count() == {USERS}
            with threads.one():
                ours = ours and count() == {1}
            os.write(writer, b"y" if ours and count() == {USERS} else b"n")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 1) == b"y"
    os.close(reader)
    os.close(writer)


def test_a_process_that_leaves_a_block_of_before_the_fork_counts_on():
    limit = threads._Limit()
    limit.leave()
    assert limit.blocks == 0


def test_a_number_that_somebody_asks_for_inside_stays():
    with threads.one():
        for library in ThreadpoolController().select(user_api="blas").lib_controllers:
            threads._set(library, 2)
    assert count() == {2}
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        threads._set(library, USERS)


SMALL, LARGE = tg.TransformerConfig(11, 8, 8, 2, 1), tg.TransformerConfig(11, 8, 1024, 2, 1, d_ff=1024)
IDS = np.arange(16).reshape(2, 8) % 11


@pytest.mark.parametrize(("config", "inside"), [(SMALL, 1), (LARGE, USERS)], ids=["small", "large"])
@pytest.mark.parametrize("use", [
    lambda model: Trainer(model, AdamW(model.parameters())).step(IDS, IDS), lambda model: evaluate(model, [(IDS, IDS)]),
    lambda model: Decoder(model)(IDS[:1]), lambda model: list(generate(model, [1, 2], 2)),
], ids=["step", "evaluate", "decode", "generate"])
def test_training_evaluation_and_decoding_choose_by_the_model(config, inside, use, monkeypatch):
    seen = []

    def noting(function):
        return lambda *args: seen.append(count()) or function(*args)

    norm = decoding._norm
    monkeypatch.setattr(decoding, "_norm", lambda name, module: noting(norm(name, module)))
    monkeypatch.setattr(tg.Transformer, "features", noting(tg.Transformer.features))
    use(tg.Transformer(config))
    assert seen
    assert all(found == {inside} for found in seen)
