"""Sequence pairs and their order: what is a pair, what comes next, and what comes next after a restart."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_llm.data import BatchLoader, PairDataset, SequenceDataset

INPUT, TARGET = [1, 5, 2, 6, 3, 7, 4, 8], [5, 2, 6, 3, 7, 4, 8, 9]


def as_lists(pair):
    return pair[0].tolist(), pair[1].tolist()


def loader_of(length, **options):
    return BatchLoader(PairDataset(np.arange(length)[:, None], np.arange(length)[:, None]), **options)


def take(loader, count):
    return [next(loader)[0][:, 0].tolist() for _ in range(count)]


class TestSequenceDataset:
    def test_the_given_sample(self):
        dataset = SequenceDataset([1, 5, 2, 6, 3, 7, 4, 8, 9], context_length=8)
        assert len(dataset) == 1
        assert as_lists(dataset[0]) == (INPUT, TARGET)
        assert dataset[0][0].dtype == dataset[0][1].dtype == np.int64

    @given(st.integers(1, 9), st.integers(1, 9), st.data())
    def test_is_every_window_that_fits(self, length, stride, data):
        tokens = data.draw(st.lists(st.integers(0, 99), min_size=length + 1, max_size=60))
        starts = [at for at in range(0, len(tokens), stride) if at + length < len(tokens)]
        expected = [(tokens[at : at + length], tokens[at + 1 : at + length + 1]) for at in starts]
        dataset = SequenceDataset(np.array(tokens, np.uint16), length, stride)
        assert len(dataset) == len(expected)
        assert [as_lists(pair) for pair in dataset] == expected
        assert as_lists(dataset[-1]) == expected[-1]

    @given(st.integers(1, 9), st.integers(10, 200))
    def test_the_default_stride_makes_every_token_a_target_once(self, length, count):
        dataset = SequenceDataset(np.arange(count), length)
        targets = np.concatenate([target for _, target in dataset])
        assert targets.tolist() == list(range(1, len(targets) + 1))
        assert count - 1 - len(targets) < length

    def test_batch_stacks_pairs_that_are_copies(self):
        tokens = np.arange(20)
        ids, targets = SequenceDataset(tokens, 4, stride=3).batch([2, -1, 0])
        assert ids.tolist() == [[6, 7, 8, 9], [15, 16, 17, 18], [0, 1, 2, 3]]
        assert targets.tolist() == (ids + 1).tolist()
        ids[:] = 0
        assert targets[0].tolist() == [7, 8, 9, 10]
        targets[:] = 0
        assert tokens.tolist() == list(range(20))


class TestPairDataset:
    def test_the_given_sample(self):
        for dataset in (PairDataset(INPUT, TARGET), PairDataset([INPUT], [TARGET])):
            assert len(dataset) == 1
            assert dataset.context_length == 8
            assert as_lists(dataset[0]) == (INPUT, TARGET)

    def test_targets_may_be_ignored(self):
        assert PairDataset([[1, 2]], [[2, -100]])[0][1].tolist() == [2, -100]

    def test_pairs_are_copies(self):
        dataset = PairDataset(INPUT, TARGET)
        dataset[0][0][:] = 0
        assert as_lists(dataset[0]) == (INPUT, TARGET)


loaders = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 7),
        "seed": st.integers(0, 2**70),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
    }
)


class TestBatchLoader:
    @given(st.integers(7, 40), loaders)
    def test_an_epoch_is_every_pair_once(self, length, options):
        loader = loader_of(length, **options)
        batches = [ids for ids, _ in loader.one_epoch()]
        assert len(batches) == len(loader)
        assert all(ids.dtype == np.int64 for ids in batches)
        seen = np.concatenate(batches)[:, 0].tolist()
        assert len(set(seen)) == len(seen) == length - (length % options["batch_size"] if options["drop_last"] else 0)
        assert (loader.epoch, loader.batch_index) == (1, 0)
        if not options["shuffle"]:
            assert seen == list(range(len(seen)))

    @given(st.integers(7, 30), loaders, st.integers(0, 80))
    def test_resumes_at_every_point(self, length, options, steps):
        whole = take(loader_of(length, **options), steps + 25)
        first, second = loader_of(length, **options), loader_of(length, **options)
        take(first, steps)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert take(second, 25) == take(first, 25) == whole[steps:]

    def test_a_state_saved_in_the_loop_body_is_the_next_batch(self):
        loader = loader_of(10, batch_size=3, seed=5)
        states, batches = [], []
        for ids, _ in loader:
            batches.append(ids.tolist())
            states.append(loader.state_dict())
            if len(batches) == 12:
                break
        for at, state in enumerate(states[:-1]):
            loader.load_state_dict(state)
            assert next(loader)[0].tolist() == batches[at + 1]

    def test_state_is_plain_integers(self):
        state = loader_of(10, batch_size=3, seed=np.int64(5)).state_dict()
        assert {type(value) for value in state.values()} == {int}
        assert state == {
            "epoch": 0, "batch": 0, "seed": 5, "dataset_length": 10, "batch_size": 3, "shuffle": 1, "drop_last": 0
        }  # fmt: skip

    def test_order_is_a_function_of_seed_and_epoch(self):
        def epoch(seed, number):
            loader = loader_of(50, batch_size=50, seed=seed)
            loader.seek(number)
            return tuple(take(loader, 1)[0])

        orders = {(seed, number): epoch(seed, number) for seed in (0, 1, 2**32, 2**64) for number in (0, 1, 2)}
        assert len(set(orders.values())) == len(orders)
        assert all(epoch(*key) == order for key, order in orders.items())

    @given(st.integers(7, 40), loaders)
    def test_a_for_is_one_epoch_and_the_next_for_the_next(self, length, options):
        loader, other = loader_of(length, **options), loader_of(length, **options)
        epochs = [[ids[:, 0].tolist() for ids, _ in loader] for _ in range(3)]
        assert [len(epoch) for epoch in epochs] == [len(loader)] * 3
        assert [batch for epoch in epochs for batch in epoch] == take(other, 3 * len(loader))
        if options["shuffle"] and length > 20 and not options["drop_last"]:
            assert [*itertools.chain(*epochs[0])] != [*itertools.chain(*epochs[1])]
            assert sorted(itertools.chain(*epochs[0])) == sorted(itertools.chain(*epochs[1]))

    def test_a_for_that_was_left_goes_on_where_it_was(self):
        loader = loader_of(10, batch_size=2)
        for i, _ in enumerate(loader):
            if i == 2:
                break
        assert (loader.epoch, loader.batch_index) == (0, 3)
        twin = loader_of(10, batch_size=2)
        twin.load_state_dict(loader.state_dict())
        assert [ids.tolist() for ids, _ in twin] == [ids.tolist() for ids, _ in loader.one_epoch()]
        assert len(list(loader)) == 5

    def test_forever_has_no_end_and_moves_the_same_position(self):
        loader, other = loader_of(10, batch_size=4), loader_of(10, batch_size=4)
        found = [ids[:, 0].tolist() for ids, _ in itertools.islice(loader.forever(), 8)]
        assert found == take(other, 8)
        assert loader.state_dict() == other.state_dict()

    def test_global_numpy_seed_plays_no_part(self):
        before = np.random.get_state()[1].tolist()  # noqa: NPY002
        take(loader_of(10, batch_size=2), 7)
        assert np.random.get_state()[1].tolist() == before  # noqa: NPY002

    @pytest.mark.parametrize(
        ("field", "other"),
        [("seed", {"seed": 1}), ("batch_size", {"batch_size": 3}), ("shuffle", {"shuffle": False}),
         ("drop_last", {"drop_last": True}), ("dataset_length", {"length": 11})],
    )  # fmt: skip
    def test_refuses_the_state_of_another_loader(self, field, other):
        mine = {"length": 10, "batch_size": 2, "seed": 0}
        loader = loader_of(**mine)
        take(loader, 2)
        with pytest.raises(ValueError, match=f"state: got {field} .*, expected .*, that of this loader"):
            loader.load_state_dict(loader_of(**{**mine, **other}).state_dict())
        assert (loader.epoch, loader.batch_index) == (0, 2)
