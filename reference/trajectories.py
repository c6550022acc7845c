"""Training side by side for hundreds of steps: do the two part as rounding parts, or as a bug does?

Training is chaotic. Two float32 runs that differ in one bit part, slowly at first and then as fast as the loss surface
bends. So a distance says nothing without another that is known to be rounding alone. The runs, from the same weights, on the
same batches:

    torch        the reference, float32
    ours         float32
    one ULP      torch again, every weight moved to the next float32 number up or down
    threads      torch again, with another number of threads: sums in another order; the first 50 steps
    float64      torch and ours
    1 % lr       torch with a learning rate 1 % off: the smallest bug that we want to see

The distance of a run from torch's is that of their logits on one probe batch, root mean square over root mean square: what
the models compute, and not the entries that no loss depends on (a key bias walks at random in every run).

Decision rule: with c(t) the largest distance of any control (one ULP, threads, torch's own float64) up to step t, ours diverges
    like rounding   where its distance is at most 10 c(t) at every step, and in float64 ours stays within 1e-6 of torch
    like a bug      otherwise.
torch float64 is among the controls since the kink of a relu, met by one run and not by another, moves a run by a thousand
roundings at once, sooner or later in each. The rule is itself tested in each report: the run with 1 % more learning rate must
be called a bug.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reference.equivalence import our_model, random_state, torch_model
from reference.neighbours import one_ulp_away
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.policy import as_array

MOST_TIMES = 10.0
MOST_FLOAT64 = 1e-6
PROBES = 20  # about so many measurements over a run
CONTROL, POSITIVE = "torch, one ULP away", "torch, 1 % more lr"



@dataclass(frozen=True)
class Path:
    """One run: the loss of every step, and the distance from torch's logits on the probe batch at the measured steps."""

    name: str
    losses: list[float]
    distances: list[float]


@dataclass(frozen=True)
class Trajectories:
    """steps at which distances were measured; paths by name; factor: the largest distance of ours in units of the control."""

    steps: list[int]
    paths: dict[str, Path]
    factor: float
    positive_factor: float
    float64_distance: float

    @property
    def like_rounding(self) -> bool:
        """The decision rule."""
        return self.factor <= MOST_TIMES and self.float64_distance <= MOST_FLOAT64

    @property
    def rule_bites(self) -> bool:
        """Whether the rule calls the seeded bug a bug."""
        return self.positive_factor > MOST_TIMES

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        how = "like rounding" if self.like_rounding else "LIKE A BUG"
        return (
            f"ours leaves torch {how}: at most {self.factor:.1f} times as far as torch's own controls go "
            f"(a bug: over {MOST_TIMES:.0f} times; a learning rate 1 % off: {self.positive_factor:.0f} times); "
            f"in float64 {self.float64_distance:.1e} apart"
        )


def compare_trajectories(
    make_ours: Callable[[Any], Any], make_optimizer: Callable[..., Any], config: TransformerConfig, steps: int = 200,
    batch: int = 4, lr: float = 1e-3, seed: int = 0, state: Mapping[str, np.ndarray] | None = None,
    thread_steps: int = 50,
) -> Trajectories:  # fmt: skip
    """All runs of this page. make_ours(dtype) gives our model, make_optimizer(parameters, lr=...) our AdamW.

    The control with other threads stops after thread_steps (0: none): where cores are busy, threads that wait for each other
    take many times as long.
    """
    weights = random_state(config, seed) if state is None else state
    batches, probe = markov_batches(config, steps, batch, seed)
    every = max(1, steps // PROBES)

    def torch_run(
        dtype: str = "float32", start: Mapping[str, np.ndarray] = weights, factor: float = 1.0, steps: int = steps
    ) -> Any:
        model = torch_model(config, start, dtype)
        return _run(model, torch.optim.AdamW(model.parameters(), lr=lr * factor), batches[:steps], probe, every)

    def our_run(dtype: str) -> Any:
        model = our_model(make_ours, weights, dtype)
        return _run(model, make_optimizer([p for _, p in model.named_parameters()], lr=lr), batches, probe, every)

    runs = {"torch": torch_run(), "ours": our_run("float32"), CONTROL: torch_run(start=one_ulp_away(weights, seed))}
    if thread_steps:
        with other_threads() as threads:
            runs[f"torch, {threads} threads"] = torch_run(steps=max(thread_steps, every))
    runs |= {POSITIVE: torch_run(factor=1.01), "torch float64": torch_run("float64"), "ours float64": our_run("float64")}
    return judge_runs(runs, list(range(every, steps + 1, every)))


def judge_runs(runs: Mapping[str, Any], steps: list[int]) -> Trajectories:
    """The verdict on runs: name -> (losses, logits at the measured steps)."""
    paths = {name: Path(name, run[0], _distances(run[1], runs["torch"][1])) for name, run in runs.items()}
    control = np.full(len(steps), np.finfo(np.float32).eps, np.float64)
    for name, path in paths.items():
        if name.startswith("torch") and name != POSITIVE:
            control[: len(path.distances)] = np.maximum(control[: len(path.distances)], path.distances)
    control = np.maximum.accumulate(control)
    ours, positive = (float(np.max(np.asarray(paths[name].distances) / control)) for name in ("ours", POSITIVE))
    wide = max(_distances(runs["ours float64"][1], runs["torch float64"][1]))
    return Trajectories(steps, paths, ours, positive, wide)


def markov_batches(
    config: TransformerConfig, count: int, batch: int, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """(batches of ids and targets, a probe batch of ids) of a text that can be learned: each token allows four others."""
    rng = np.random.default_rng(seed)
    follow = rng.integers(config.vocab_size, size=(config.vocab_size, 4))
    tokens = [rng.integers(config.vocab_size, size=(count + 1, batch))]
    for _ in range(config.context_length):
        tokens.append(follow[tokens[-1], rng.integers(4, size=(count + 1, batch))])
    text = np.stack(tokens, -1)
    return [(t[:, :-1], t[:, 1:]) for t in text[1:]], text[0, :, :-1]


@contextmanager
def other_threads() -> Any:
    """torch with another number of threads: 2 where it has one, else 1."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _run(
    model: Any, optimizer: Any, batches: Sequence[tuple[np.ndarray, np.ndarray]], probe: np.ndarray, every: int
) -> tuple[list[float], list[np.ndarray]]:
    is_torch = isinstance(model, torch.nn.Module)
    losses, logits = [], []
    for step, pair in enumerate(batches, 1):
        loss = model.loss(*[torch.from_numpy(a) for a in pair] if is_torch else pair)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(as_array(loss)))
        if step % every == 0:
            logits.append(as_array(model(torch.from_numpy(probe) if is_torch else probe)).astype(np.float64))
    return losses, logits


def _distances(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, theirs)]
