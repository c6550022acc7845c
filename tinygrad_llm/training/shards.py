"""What one process does of a step: the gradient of its rows, added to that of all, then AdamW on its slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinygrad_llm.nn import Module, Parameter
from tinygrad_llm.training.evaluation import IGNORED
from tinygrad_llm.training.flat import Flat, Run
from tinygrad_llm.training.resuming import generators
from tinygrad_llm.training.turns import Sum


class Part(NamedTuple):
    """Rows that are computed at once, int [b, T] each, and the weight of their mean loss in that of the batch."""

    ids: np.ndarray
    targets: np.ndarray
    weight: float


class Gradients(Protocol):
    """The gradient of Σ weight · loss over parts, added to the sum of all workers that it was made with; `present`, zeros
    before, says which parameters have one. The first worker writes zeros for those that have none."""

    def __call__(self, parts: Sequence[Part]) -> list[float]:
        """The loss of each part; a loss that is not finite is the last, and leaves the sum undefined."""


def split(ids: np.ndarray, targets: np.ndarray, count: int, whole: int) -> Iterator[Part]:
    """Parts of rows that differ by one at most, without those in which no target counts; the weights are shares of
    `whole`, the number of targets that count in all."""
    for rows, wanted in zip(np.array_split(ids, count), np.array_split(targets, count)):
        if counted := count_targets(wanted):
            yield Part(rows, wanted, counted / whole)


def count_targets(targets: np.ndarray) -> int:
    """How many of them count."""
    return int(np.count_nonzero(targets != IGNORED))


MakeGradients = Callable[[Any, Sequence[Parameter], Sum, np.ndarray], Gradients]
"""(model, trained parameters, sum of their gradients, present) → Gradients. Each process makes its own; to be sent to one
that starts afresh, it must be a class or a function of a module."""


class EagerGradients:
    """By model.loss and backward. `present` [parameters] is set to whether a parameter has a gradient."""

    def __init__(self, model: Any, trained: Sequence[Parameter], total: Sum, present: np.ndarray) -> None:
        self.model, self.trained, self.total, self.present = model, trained, total, present

    def __call__(self, parts: Sequence[Part]) -> list[float]:
        losses: list[float] = []
        self._forget()
        try:
            for part in parts:
                loss = self.model.loss(part.ids, part.targets)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    return losses
                loss.backward(np.full(loss.shape, part.weight, loss.dtype))
            self._collect()
        finally:
            self._forget()
        return losses

    def _collect(self) -> None:
        for i, (p, place) in enumerate(zip(self.trained, self.total.arrays)):
            self.present[i] = p.grad is not None
            if p.grad is not None or self.total.is_first:
                self.total.add(0 if p.grad is None else p.grad.numpy(), place)

    def _forget(self) -> None:
        self.model.zero_grad()
        for p in self.trained:
            p.grad = None


class Streams:
    """Random numbers of a step, other ones in each worker: each generator of the model gives a seed for all workers,
    so that the generators' states, which a checkpoint holds, decide everything."""

    def __init__(self, model: Module) -> None:
        self.generators = [generator.bit_generator for _, generator in generators(model)]
        self.saved = self.states()

    def states(self) -> list[Any]:
        """Where the generators stand."""
        return [bits.state for bits in self.generators]

    def rewind(self, states: Sequence[Any]) -> None:
        """Set them back."""
        for bits, state in zip(self.generators, states):
            bits.state = state

    def draw(self) -> list[int]:
        """A seed from each."""
        return [int(np.random.Generator(bits).integers(2**63)) for bits in self.generators]

    def start(self, seeds: Sequence[int], rank: int) -> None:
        """Set each where worker `rank` begins."""
        for bits, seed in zip(self.generators, seeds):
            bits.state = type(bits)(np.random.SeedSequence([seed, rank])).state


Links = tuple[Connection | None, Connection | None]


class Worker:
    """One process's part in a step. Its methods are the commands: what is not an argument is in the shared memory.

    rank          0 is the main process, whose generators and modules are the originals
    links         from the worker before and to the one after; see Sum
    parameters    of the model, those of the optimizer first, as the layout of `flat` has them
    """

    def __init__(
        self, rank: int, links: Links, model: Module, parameters: Sequence[Parameter], flat: Flat, accumulate: int,
        compute: MakeGradients,
    ) -> None:
        trained, places = parameters[: flat.layout.trained], range(flat.layout.trained)
        self.rank, self.flat, self.accumulate, self.parameters = rank, flat, accumulate, parameters
        self.modules, self.streams = list(model.modules()), Streams(model)
        self.present = flat.present()[rank]
        names = flat.layout.gradients
        apart = len(names) > 1
        self.total = Sum([flat.view(names[rank if apart else 0], i) for i in places], *(() if apart else links))
        self.compute = compute(model, trained, self.total, self.present)

    def modes(self) -> tuple[bytes, bytes]:
        """Which modules are in training mode and which parameters require a gradient, now."""
        return bytes(m.training for m in self.modules), bytes(p.requires_grad for p in self.parameters)

    def gradients(
        self, shape: tuple[int, ...], seeds: Sequence[int] | None, modes: tuple[bytes, bytes]
    ) -> list[tuple[float, float]]:
        """(loss, weight) of each part of its rows; the gradient of their weighted sum is added to that of all."""
        self._follow(modes)
        if seeds is not None:
            self.streams.start(seeds, self.rank)
        self.present.fill(0)
        parts = self._parts(*self.flat.batch(shape))
        try:
            losses = self.compute(parts)
        finally:
            self.total.finish()
        return [(loss, part.weight) for loss, part in zip(losses, parts)]

    def norm(self) -> float:
        """‖·‖² of its slice of the gradient, the sum of all workers'."""
        self.flat.gather(self.rank)
        return self.flat.norm_squared(self.rank)

    def update(self, runs: Sequence[Run], scale: float) -> None:
        """AdamW on its slice."""
        self.flat.update(self.rank, runs, scale)

    def _parts(self, ids: np.ndarray, targets: np.ndarray) -> list[Part]:
        alone = self.flat.layout.workers == self.accumulate == 1
        if alone or not (whole := count_targets(targets)):  # where no target counts, a loss that is not finite is to be seen
            return [Part(ids, targets, 1.0)] if self.rank == 0 else []
        rows, wanted = (np.array_split(a, self.flat.layout.workers)[self.rank] for a in (ids, targets))
        return list(split(rows, wanted, min(self.accumulate, len(rows)) or 1, whole))

    def _follow(self, modes: tuple[bytes, bytes]) -> None:
        if self.rank and modes != self.modes():
            for module, training in zip(self.modules, modes[0]):
                module.training = bool(training)
            for p, requires_grad in zip(self.parameters, modes[1]):
                p.requires_grad_(bool(requires_grad))
