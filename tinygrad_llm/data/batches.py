"""Batches in an order that a seed decides, from any position that was saved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tinygrad_llm.data._checks import check_bool, check_int
from tinygrad_llm.data.datasets import Dataset, Pair


class BatchLoader:
    """Batches of a dataset, an epoch at a time or without end.

    dataset      has len, and batch(indices) -> (ids [B, T], targets [B, T]), int64
    batch_size   B, pairs in a batch
    seed         decides the order, together with the number of the epoch
    shuffle      False: every epoch goes through the dataset in its own order
    drop_last    leave out the last batch of an epoch when it is smaller than B (torch's default: keep it)

    The order of epoch e is default_rng(SeedSequence(seed, spawn_key=(e,))).permutation(len(dataset)): two integers
    decide it. So a position is a few integers too, and no generator's state and no order needs saving.

        for ids, targets in loader: ...            to the end of the epoch, len(loader) batches where it stands at its start
        for ids, targets in loader.forever(): ...  epoch after epoch
        ids, targets = next(loader)                one batch; after the last of an epoch, the first of the next

    All three move the same position: a second `for` is the next epoch, and one that was left goes on where it was. Raises
    TypeError or ValueError, naming the argument.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        if not hasattr(dataset, "batch") or not hasattr(dataset, "__len__"):
            raise TypeError(f"dataset: got {type(dataset).__name__}, expected a SequenceDataset or PairDataset")
        self.dataset = dataset
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.seed = check_int("seed", seed, 0)
        self.shuffle = check_bool("shuffle", shuffle)
        self.drop_last = check_bool("drop_last", drop_last)
        if len(self) == 0:
            what = f"at most {len(dataset)}, the pairs in dataset, or drop_last=False"
            raise ValueError(f"batch_size: got {batch_size}, expected {what if len(dataset) else 'a dataset of pairs'}")
        self.epoch, self.batch_index = 0, 0
        self._order_of, self._indices = -1, np.arange(0)

    def __len__(self) -> int:
        """Batches in an epoch, as len(torch.utils.data.DataLoader) counts them."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Pair]:
        """The batches from here to the end of this epoch: all of it, unless the loader stands inside one."""
        epoch = self.epoch
        while self.epoch == epoch:
            yield next(self)

    def __next__(self) -> Pair:
        """(ids, targets), int64 [B, T] each. The position moves first: a state saved in a loop body is the next one."""
        start = self.batch_index * self.batch_size
        batch = self.dataset.batch(self._order()[start : start + self.batch_size])
        self.batch_index += 1
        if self.batch_index == len(self):
            self.epoch, self.batch_index = self.epoch + 1, 0
        return batch

    def one_epoch(self) -> Iterator[Pair]:
        """What a `for` over the loader gives."""
        return iter(self)

    def forever(self) -> Iterator[Pair]:
        """The batches from here on, epoch after epoch without end."""
        while True:
            yield next(self)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Stand before that batch of that epoch, both counted from 0."""
        self.epoch, self.batch_index = check_int("epoch", epoch, 0), check_int("batch", batch, 0, len(self) - 1)

    def state_dict(self) -> dict[str, int]:
        """The position (epoch, and batch: the one that comes next) and what it is a position in, as plain ints."""
        return {"epoch": self.epoch, "batch": self.batch_index, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Stand where the loader stood that gave state: the next batch is the one that would have come.

        Raises ValueError when state is of a loader with another seed, dataset length, batch size, shuffle or drop_last.
        """
        if not isinstance(state, dict):
            raise TypeError(f"state: got {type(state).__name__}, expected the dict that state_dict() gives")
        expected = self.state_dict()
        if differing := sorted(set(state) ^ set(expected)):
            raise ValueError(f"state: got fields that differ in {differing[0]!r}, expected {', '.join(expected)}")
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(f"state: got {name} {state[name]!r}, expected {value}, that of this loader")
        self.seek(state["epoch"], state["batch"])

    def __repr__(self) -> str:
        return (
            f"BatchLoader({len(self):,} batches of {self.batch_size} from {self.dataset!r}, "
            f"at epoch {self.epoch}, batch {self.batch_index})"
        )

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "dataset_length": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
        }

    def _order(self) -> np.ndarray:
        """Indices into the dataset in the order of this epoch; made once an epoch, and only for speed kept."""
        if self._order_of != self.epoch:
            self._indices, self._order_of = self._make_order(), self.epoch
        return self._indices

    def _make_order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.dataset))
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        return generator.permutation(len(self.dataset))
