"""The same weights and batches for every side: functions of a seed, drawn with NumPy, outside of what is timed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from benchmarks.cases import Case

INIT_STD = 0.02


def draw_state(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """name → array: matrices N(0, 0.02²), the token table N(0, 1), norm weights 1, biases 0; float32 numbers in dtype."""
    return {name: _draw(name, shape, seed).astype(dtype, copy=False) for name, shape in shapes.items()}


def draw_batches(case: Case, seed: int, first: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, targets), int64 [B, T] each, of the steps first, first + 1, ...: frequencies ∝ 1 / rank, as words have."""
    frequency = 1 / np.arange(1, case.vocab + 1)
    up_to = np.cumsum(frequency) / frequency.sum()
    return [_batch(case, up_to, np.random.default_rng([seed, step])) for step in range(first, first + count)]


def draw_prompt(case: Case, length: int, seed: int) -> list[int]:
    """Token ids [length]"""
    return np.random.default_rng(seed).integers(0, case.vocab, length).tolist()


def _batch(case: Case, up_to: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    ids = np.searchsorted(up_to[:-1], rng.random((case.batch, case.context + 1)))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if len(shape) == 1:
        return np.zeros(shape, np.float32) if name.endswith("bias") else np.ones(shape, np.float32)
    std = np.float32(1.0 if name == "tok_embed.weight" else INIT_STD)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # of the name: the order of parameters is no matter
    return rng.standard_normal(shape, np.float32) * std
