"""The library's own random generator: what a layer or a function draws from where it is given no other.

There is one for the process, and it moves on, so that no two draws are equal unless they were seeded so. A process that
never seeds starts from one fixed seed. Each draw holds the generator's lock: threads share it without drawing a number
twice, but which of them draws first is chance, so a thread that is to repeat itself needs a generator of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tinygrad_llm.autograd.modes import check_effect

FIRST_SEED = 67280421310721
"""torch.Generator()'s. (torch's process starts from another seed each time.)"""


class SeedError(ValueError, RuntimeError):
    """A seed that 64 bits do not hold."""


class Generator(np.random.Generator):
    """NumPy's Generator (PCG64) with the methods of torch's: torch.Generator().manual_seed(0) is NumPy's default_rng(0)."""

    def __init__(self, device: Any = "cpu") -> None:
        if device != "cpu":
            raise ValueError(f"Generator: device: got {device!r}, expected 'cpu'")
        super().__init__(np.random.PCG64(FIRST_SEED))
        self._seed = FIRST_SEED

    def manual_seed(self, seed: int) -> Generator:
        """Begin anew where this seed begins; itself. A seed below 0 counts from 2⁶⁴. Errors: SeedError beyond 64 bits."""
        check_effect("manual_seed")
        try:
            seed = int(seed)
        except (TypeError, ValueError, OverflowError) as error:
            wrong = TypeError if isinstance(error, TypeError) else SeedError
            raise wrong(f"manual_seed: seed: got {seed!r:.80}, expected an integer") from None
        if not -(2**63) <= seed < 2**64:
            raise SeedError(f"manual_seed: seed: got {seed}, expected -2**63 to 2**64 - 1")
        with self.bit_generator.lock:
            self._seed = seed % 2**64
            self.bit_generator.state = np.random.PCG64(self._seed).state
        return self

    def initial_seed(self) -> int:
        """The seed that it began from."""
        return self._seed

    def seed(self) -> int:
        """Begin anew from a seed that nobody knows beforehand; that seed."""
        return self.manual_seed(int(np.random.SeedSequence().generate_state(1, np.uint64)[0])).initial_seed()

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as plain values: what set_state takes."""
        with self.bit_generator.lock:
            return {**self.bit_generator.state, "initial_seed": self._seed}

    def set_state(self, new_state: Mapping[str, Any]) -> Generator:
        """Stand where get_state was asked; itself. Errors: TypeError, ValueError for what is no state of a PCG64."""
        if not isinstance(new_state, Mapping) or not {"bit_generator", "state"} <= set(new_state):
            raise TypeError(f"set_state: new_state: got {type(new_state).__name__}, expected what get_state() gives")
        try:
            seed, tried = operator.index(new_state.get("initial_seed", self._seed)), type(self.bit_generator)()
            tried.state = new_state
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"set_state: new_state: got one that {type(error).__name__}: {error} says is none, expected what "
                             "get_state() gives") from None
        with self.bit_generator.lock:
            self.bit_generator.state, self._seed = tried.state, seed
        return self

    def __reduce__(self) -> Any:
        return "default_generator" if self is default_generator else (_restored, (self.get_state(),))


def states_of(generators: Iterable[np.random.Generator]) -> list[tuple[Any, Any]]:
    """Where generators stand: what `rewind` takes."""
    return [(g.bit_generator, g.bit_generator.state) for g in generators]


def rewind(states: Iterable[tuple[Any, Any]]) -> None:
    """Let generators stand where states_of found them."""
    for bits, state in states:
        bits.state = state


def _restored(state: Mapping[str, Any]) -> Generator:
    return Generator().set_state(state)


default_generator = Generator()
"""Seeding changes it in place: whoever holds it, a recorded program too, goes on from the new seed."""


def manual_seed(seed: int) -> Generator:
    """Let the library's generator begin anew where this seed begins; that generator. torch.manual_seed"""
    return default_generator.manual_seed(seed)


def initial_seed() -> int:
    """The seed that the library's generator began from."""
    return default_generator.initial_seed()


def seed() -> int:
    """Let the library's generator begin anew from a seed that nobody knows beforehand; that seed."""
    return default_generator.seed()


def get_rng_state() -> dict[str, Any]:
    """Where the library's generator stands, as plain values."""
    return default_generator.get_state()


def set_rng_state(new_state: Mapping[str, Any]) -> None:
    """Let the library's generator stand where get_rng_state() was asked."""
    default_generator.set_state(new_state)


def chosen(argument: str, generator: Any) -> np.random.Generator:
    """The generator that was given, or the library's. Errors: TypeError for what is none of NumPy's."""
    if generator is None:
        return default_generator
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"{argument}: got {type(generator).__name__}, expected a numpy.random.Generator or None")
    return generator
