"""Are our float32 gradients as accurate as PyTorch's?   Three sizes of model, many draws of each.

One draw is random weights and random tokens; its ratio is the geometric mean over all parameters of (our error / torch's),
both against torch in float64. One ratio is noise: the 64 rows of the small models give 0.75 to 1.2, in any order of the same
sums, and weights one rounding away give another. So the median of the draws is stated, with an interval that needs no
assumption about their distribution: the k-th smallest to the k-th largest, where fewer than k of n fair coins fall on
one side with a probability of 0.5 % at most. Medians, since one draw in a hundred meets the kink of a relu, where
rounding switches a unit on or off, and its ratio is then 10 or 1,000, or as little, by luck.

Ours is less accurate than torch where the whole interval lies above 1. Every gradient of every draw must also meet the
policy, or be one that torch misses as far at weights one rounding away (reference.neighbours): a kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from reference.equivalence import GRADIENT, model_results, our_model, random_state, torch_model
from reference.neighbours import excused
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.policy import (
    FLOAT32_RATIO,
    FLOAT32_TOL,
    Comparison,
    Verdict,
    compare_float32,
    geometric_mean_ratio,
    scale_of,
)

LEVEL = 0.99
MakeOurs = Callable[[TransformerConfig, Any], Any]


@dataclass(frozen=True)
class Size:
    """A model and its batch; it is drawn once where others are drawn `share` times, since it takes longer."""

    name: str
    d_model: int
    n_layers: int
    context_length: int
    batch: int
    share: int = 1

    def config(self, like: TransformerConfig) -> TransformerConfig:
        """This size, with 4 heads, 65 tokens and the choices (activation, norm, positions, ...) of another config."""
        return replace(like, vocab_size=65, context_length=self.context_length, d_model=self.d_model, n_heads=4,
                       n_layers=self.n_layers, d_ff=None, dropout=0.0)  # fmt: skip


SIZES = (Size("small", 16, 1, 16, 4), Size("default", 32, 2, 16, 4), Size("larger", 128, 4, 32, 4, share=2))
DRAWS = 24


@dataclass(frozen=True)
class Accuracy:
    """ratios   of each draw, the geometric mean over `parameters` gradients of our float32 error over torch's
    kinks    draws at a kink, ours or torch's by luck on its right side
    worse    gradients that miss the policy in float32, each with its draw
    """

    size: Size
    parameters: int
    ratios: list[float]
    kinks: int = 0
    worse: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the draws."""
        return float(np.median(self.ratios))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the median, at a confidence of 99 %."""
        return median_interval(self.ratios)

    @property
    def verdict(self) -> str:
        """Where the interval lies."""
        low, high = self.interval
        if self.worse:
            return "worse than torch"
        if math.isinf(low):
            return "too few draws"
        return "less accurate than torch" if low > 1 else "more accurate than torch" if high < 1 else "as accurate as torch"

    @property
    def failed(self) -> bool:
        """Whether ours is less accurate than torch, and not by the luck of these draws; or a gradient misses the policy."""
        return self.interval[0] > 1 or bool(self.worse)

    def __str__(self) -> str:
        low, high = self.interval
        what = f"float32 gradients, {self.size.name} model (d_model {self.size.d_model})"
        said = "; ".join([self.verdict, *self.worse[:3]])
        return f"{what}: error {self.median:.2f} of torch's ({low:.2f} to {high:.2f}, {len(self.ratios)} draws): {said}"


def compare_accuracy(
    make_ours: MakeOurs, like: TransformerConfig, seed: int = 0, draws: int = DRAWS, sizes: Sequence[Size] = SIZES
) -> list[Accuracy]:
    """A row per size. make_ours(config, dtype) gives our model; like: whose activation, norms, positions, ... to take."""
    return [_accuracy(make_ours, size, size.config(like), range(seed, seed + max(1, draws // size.share))) for size in sizes]


def median_interval(draws: Sequence[float]) -> tuple[float, float]:
    """The k-th smallest and the k-th largest draw, k the largest with a confidence of 99 %; −∞ to ∞ for fewer than 8."""
    n, ordered, tail, k = len(draws), sorted(draws), 0.0, 0
    while (tail := tail + math.comb(n, k) / 2**n) <= (1 - LEVEL) / 2:
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


def compare_gradients(make_ours: MakeOurs, config: TransformerConfig, batch: int, seed: int) -> list[Comparison]:
    """One draw: a float32 row per gradient."""
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(batch, config.context_length + 1))
    weights, sides = random_state(config, seed), (tokens[:, :-1], tokens[:, 1:])

    def run(near: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
        return model_results(torch_model(config, near, dtype), *sides)

    truth, theirs = run(weights, "float64"), run(weights, "float32")
    ours = model_results(our_model(partial(make_ours, config), weights, "float32"), *sides)
    names = [name for name in truth if name.startswith(GRADIENT)]
    scale = scale_of(truth[name] for name in names)
    rows = [compare_float32(ours[name], theirs[name], truth[name], name, scale) for name in names]
    return excused(rows, weights, run, dict.fromkeys(names, scale), {})


def _accuracy(make_ours: MakeOurs, size: Size, config: TransformerConfig, seeds: Iterable[int]) -> Accuracy:
    draws = {seed: compare_gradients(make_ours, config, size.batch, seed) for seed in seeds}
    ratios = [geometric_mean_ratio(rows) for rows in draws.values()]
    kinks = sum(_at_a_kink(rows) for rows in draws.values())
    worse = [f"seed {seed}: {row}" for seed, rows in draws.items() for row in rows if row.failed]
    parameters = max(sum(row.ratio is not None for row in rows) for rows in draws.values())
    return Accuracy(size, parameters, ratios, kinks, worse)


def _at_a_kink(rows: Sequence[Comparison]) -> bool:
    """Ours wrong as torch is one rounding away, or torch wrong where ours is right."""
    ours = any(row.verdict == Verdict.INCONCLUSIVE for row in rows)
    return ours or any((row.torch_error or 0.0) > max(FLOAT32_TOL, FLOAT32_RATIO * row.error) for row in rows)
