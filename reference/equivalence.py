"""Our model beside PyTorch's: logits, loss, gradients, training; each judged by the policy of tinygrad_llm.policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from reference.bridge import load_numpy_state
from reference.model import Transformer
from reference.neighbours import excused
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.policy import (
    FLOAT32_RATIO,
    FLOAT32_ROUNDING,
    FLOAT32_TOL,
    SMALLEST_SCALE,
    ZERO,
    Comparison,
    Verdict,
    as_array,
    bounded_ratio,
    compare_float32,
    compare_float64,
    geometric_mean_ratio,
    judge,
    judge_zero,
    kind_differs,
    scale_of,
    specials_differ,
)

__all__ = [
    "FLOAT32_RATIO", "FLOAT32_TOL", "Comparison", "TrainingComparison", "Verdict", "as_array", "compare_float32",
    "compare_float64", "compare_models", "compare_training", "geometric_mean_ratio", "random_state",
]

GRADIENT_NOISE = {"float64": 1e-15, "float32": 1e-6}  # times s: what rounding may add to a gradient
GRADIENT = "grad "  # starts the name of a gradient's row

Arrays = dict[str, np.ndarray]


def random_state(config: TransformerConfig, seed: int = 0) -> Arrays:
    """float32 weights at which a comparison tells most: no bias is zero, no norm weight one, all values of order one.

    Matrices, lm_head and what is tied to it N(0, 1/columns), other embeddings N(0, 1), norm weights N(1, 0.1²), biases
    N(0, 0.1²). Tied to N(0, 1), the logits would be of order √d, every p nearly 0 or 1, and the gradients all noise.
    """
    rng = np.random.default_rng(seed)
    model = Transformer(config, device="meta")
    state = {name: _draw(rng, name, tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    if config.tie_embeddings:
        state["tok_embed.weight"] /= np.float32(math.sqrt(config.d_model))
        state["lm_head.weight"] = state["tok_embed.weight"]
    return {name: state[name] for name in model.state_dict()}


def compare_models(
    make_ours: Callable[[Any], Any],
    config: TransformerConfig,
    ids: Any,
    targets: Any,
    state: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    known: dict[str, Any] | None = None,
) -> list[Comparison]:
    """Logits, loss and every parameter gradient of our model against torch's: float64, and float32 judged by float64.

    make_ours(dtype) returns our model of this config in np.float32 or np.float64, with torch's interface:
    load_state_dict, eval, __call__, loss, named_parameters, .grad. Every model gets the same weights, state or
    random_state(config, seed), and no dropout. The gradient of attn.qkv_proj.bias is three rows, since the key's is
    exactly zero: a key bias adds the same number to all scores of a query, which softmax does not see. What torch's
    models gave is put into known, and taken from there by a later call with the same config, batch and weights. Where
    torch errs as much at weights one rounding away, the verdict is "inconclusive" (reference.neighbours).

    Raises ValueError where the two models' parameters have different names.
    """
    weights = random_state(config, seed) if state is None else state
    known = {} if known is None else known
    for dtype in () if known else ("float64", "float32"):
        known[dtype] = model_results(torch_model(config, weights, dtype), ids, targets)
    truth, theirs = known["float64"], known["float32"]
    ours64 = model_results(our_model(make_ours, weights, "float64"), ids, targets)
    ours32 = model_results(our_model(make_ours, weights, "float32"), ids, targets)
    _check_names(ours64, truth)
    _check_names(ours32, truth)
    gradient_scale = scale_of(value for name, value in truth.items() if name.startswith(GRADIENT))
    scales = {name: gradient_scale if name.startswith(GRADIENT) else scale_of([v]) for name, v in truth.items()}
    rows = []
    for name, value in truth.items():
        rows.append(compare_float64(ours64[name], value, name, scales[name]))
        rows.append(compare_float32(ours32[name], theirs[name], value, name, scales[name]))

    def run(near: Mapping[str, np.ndarray], dtype: str) -> Arrays:
        return model_results(torch_model(config, near, dtype), ids, targets)

    return excused(rows, weights, run, scales, known)


@dataclass(frozen=True)
class TrainingComparison:
    """losses: "ours float64", "torch float64", "ours float32", "torch float32" -> [steps]; rows: the comparisons."""

    losses: Arrays
    rows: list[Comparison]

    @property
    def passed(self) -> bool:
        """Whether every row is a pass."""
        return all(row.passed for row in self.rows)


def compare_training(
    make_ours: Callable[[Any], Any],
    make_optimizer: Callable[..., Any],
    config: TransformerConfig,
    batches: Sequence[tuple[Any, Any]],
    settings: Mapping[str, Any] | None = None,
    state: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    known: dict[str, Any] | None = None,
) -> TrainingComparison:
    """An AdamW step per (ids, targets) of batches, ours beside torch's from the same weights: losses, final weights.

    make_optimizer(parameters, **settings) is our AdamW; torch.optim.AdamW gets the same settings, torch's defaults
    where none is given. Losses answer to compare_float64 and compare_float32, and may be inconclusive as in
    compare_models. The weights cannot quite: Adam divides a gradient by its own size, so an entry whose true gradient
    is g, known with an error δ, moves by about lr · sign(g), wrongly by about lr · min(1, δ / (|g| + eps)). Therefore

    - an entry whose true gradient is zero at every step (the key bias; all of q and k where T = 1) moves as rounding
      noise decides: in float32 by up to ±lr, in torch as in ours. Neither path is the right one, and no loss depends on
      it. It has a row of its own and is held only to the farthest that Adam moves anything, 2 lr a step.
    - of the other entries a few have a gradient near the noise. The largest error over the entries is the luck of
      these few, and so is the mean square, as ∫ (δ/g)² dg diverges at 0; the mean of |error| hangs on them by a
      logarithm only. So in float32 a tensor's error is Σ|w − truth| / Σ|truth − start|, the mean error in units of the
      mean distance travelled. Allowed are 2e-5, and what rounding w and a δ of 1e-6 s may cost at each step by the
      formula above; or 4 times torch's error (on this tensor or over the whole model, whichever is larger: on a tensor
      of a few entries torch may be lucky). s is the largest gradient of the model so far, or 0.1.
    - in float64 every entry answers for itself, to 1e-11 + 1e-10 |w| and what a δ of 1e-15 s may cost.

    That holds for a model that trains. From weights at which every p is 0 or 1 the first gradients are noise in either
    dtype, and Adam makes whole steps of them: torch float32 was then seen to leave torch float64 by 5 % of the loss.

    known is filled and used as in compare_models.
    """
    chosen = {"lr": 1e-3, "eps": 1e-8, **(settings or {})}
    weights = random_state(config, seed) if state is None else state
    runs, known = {}, {} if known is None else known

    def train_torch(start: Mapping[str, np.ndarray], dtype: str) -> _Run:
        model = torch_model(config, start, dtype)
        return _train(model, torch.optim.AdamW(model.parameters(), **chosen), batches, chosen)

    for dtype in ("float64", "float32"):
        ours = our_model(make_ours, weights, dtype)
        parameters = [parameter for _, parameter in ours.named_parameters()]
        runs[f"ours {dtype}"] = _train(ours, make_optimizer(parameters, **chosen), batches, chosen)
        if dtype not in known:
            known[dtype] = train_torch(weights, dtype)
        runs[f"torch {dtype}"] = known[dtype]
    losses = f"losses of {len(batches)} steps"
    rows = excused(list(_loss_rows(losses, runs)), weights,
                   lambda near, dtype: {losses: train_torch(near, dtype).losses}, {losses: 1.0}, known)
    rows += _weight_rows(runs, weights, 2 * chosen["lr"] * len(batches))
    return TrainingComparison({name: run.losses for name, run in runs.items()}, rows)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape)
    if len(shape) == 1:
        values = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
    else:
        values = noise if "embed" in name else noise / math.sqrt(shape[1])
    return values.astype(np.float32)


def torch_model(config: TransformerConfig, weights: Mapping[str, np.ndarray], dtype: str) -> Transformer:
    model = Transformer(config, device="cpu", dtype=getattr(torch, dtype))
    load_numpy_state(model, _cast(weights, dtype))
    return model.eval()


def our_model(make_ours: Callable[[Any], Any], weights: Mapping[str, np.ndarray], dtype: str) -> Any:
    model = make_ours(getattr(np, dtype))
    model.load_state_dict(_cast(weights, dtype))
    model.eval()
    return model


def _cast(weights: Mapping[str, np.ndarray], dtype: str) -> Arrays:
    return {name: np.array(value, dtype) for name, value in weights.items()}


def _inputs(model: Any, *arrays: Any) -> list[Any]:
    arrays = tuple(np.array(array, np.int64) for array in arrays)
    if not isinstance(model, torch.nn.Module):
        return list(arrays)
    device = next(model.parameters()).device
    return [torch.tensor(array, device=device) for array in arrays]


def model_results(model: Any, ids: Any, targets: Any) -> Arrays:
    """logits, loss, "grad NAME": of our model or of torch's, on whatever device that is."""
    ids, targets = _inputs(model, ids, targets)
    loss = model.loss(ids, targets)
    loss.backward()
    results = {"logits": as_array(model(ids)), "loss": as_array(loss)}
    for name, gradient in _gradients(model).items():
        results |= _parts(GRADIENT + name, gradient)
    return results


def _gradients(model: Any) -> Arrays:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    if missing := [name for name, gradient in gradients.items() if gradient is None]:
        raise ValueError(f"{missing[0]}: got no gradient, expected one after backward")
    return {name: as_array(gradient) for name, gradient in gradients.items()}


def _parts(name: str, value: np.ndarray) -> Arrays:
    if not name.endswith("attn.qkv_proj.bias") or len(value) % 3:
        return {name: value}
    return {f"{name}[{part}]": piece for part, piece in zip("qkv", np.split(value, 3))}


def _check_names(ours: Arrays, theirs: Arrays) -> None:
    for name in ours.keys() ^ theirs.keys():
        where = "ours" if name in ours else "torch"
        raise ValueError(f"{name}: got it in {where} only, expected the same names in both models")


@dataclass(frozen=True)
class _Run:
    """losses [steps]; the final weights; the largest |gradient| of each entry; how far noise may have moved it."""

    losses: np.ndarray
    weights: Arrays
    peaks: Arrays
    wander: dict[str, Arrays]


def _train(model: Any, optimizer: Any, batches: Sequence[tuple[Any, Any]], settings: Mapping[str, Any]) -> _Run:
    run = _Run(np.zeros(0), {}, {}, {dtype: {} for dtype in GRADIENT_NOISE})
    losses = []
    for batch in batches:
        loss = model.loss(*_inputs(model, *batch))
        optimizer.zero_grad()
        loss.backward()
        for name, gradient in _gradients(model).items():
            run.peaks[name] = np.maximum(np.abs(gradient), run.peaks.get(name, 0.0))
        _add_wander(run, settings)
        optimizer.step()
        losses.append(as_array(loss).copy())
    weights = {name: as_array(parameter).copy() for name, parameter in model.named_parameters()}
    return replace(run, losses=np.array(losses), weights=weights)


def _add_wander(run: _Run, settings: Mapping[str, Any]) -> None:
    """Adds 2 lr min(1, δ / (|g| + eps)), with the largest |g| so far; nothing where that is 0."""
    largest = _largest(run.peaks)
    for dtype, noise in GRADIENT_NOISE.items():
        for name, peak in run.peaks.items():
            part = noise * largest / np.maximum(peak + settings["eps"], 1e-300)
            step = 2 * settings["lr"] * np.where(peak > 0, np.minimum(1.0, part), 0.0)
            run.wander[dtype][name] = run.wander[dtype].get(name, 0.0) + step


def _largest(peaks: Arrays) -> float:
    return max(SMALLEST_SCALE, *(float(peak.max(initial=0.0)) for peak in peaks.values()))


def _loss_rows(name: str, runs: Mapping[str, _Run]) -> Iterator[Comparison]:
    truth = runs["torch float64"].losses
    yield compare_float64(runs["ours float64"].losses, truth, name)
    yield compare_float32(runs["ours float32"].losses, runs["torch float32"].losses, truth, name)


def _weight_rows(runs: Mapping[str, _Run], start: Mapping[str, Any], farthest: float) -> Iterator[Comparison]:
    ours, theirs, truth = runs["ours float32"], runs["torch float32"], runs["torch float64"]
    _check_names(ours.weights, truth.weights)
    _check_names(runs["ours float64"].weights, truth.weights)
    ways = {name: _way(name, w, start[name], truth, theirs, ours) for name, w in truth.weights.items()}
    strayed = sum(way.stray(theirs.weights[name]) for name, way in ways.items())
    typical = strayed / (sum(way.distance for way in ways.values()) or 1.0)
    for name, way in ways.items():
        slack = truth.wander["float64"][name]
        yield compare_float64(runs["ours float64"].weights[name], way.truth, name, slack=slack)
        yield from way.rows(ours.weights[name], theirs.weights[name], typical, farthest)


@dataclass(frozen=True)
class _Way:
    """One tensor's way from start to truth, in float64; noise marks the entries that nothing but rounding moves.

    allowed is Σ of what float32 may stray from that way, over the other entries.
    """

    name: str
    truth: np.ndarray
    start: np.ndarray
    noise: np.ndarray
    allowed: float

    @property
    def distance(self) -> float:
        """Σ|truth − start| over the entries that are not noise."""
        return float(np.abs(self.truth - self.start)[~self.noise].sum())

    def stray(self, w: np.ndarray) -> float:
        """Σ|w − truth| over the entries that are not noise."""
        return float(np.abs(w - self.truth)[~self.noise].sum())

    def rows(self, ours: np.ndarray, theirs: np.ndarray, typical: float, farthest: float) -> Iterator[Comparison]:
        """The float32 rows: of the entries that have a gradient, and of those that have none."""
        if detail := kind_differs(ours, theirs, "float32") or specials_differ(ours, theirs, self.truth):
            yield Comparison(self.name, "float32", Verdict.MISMATCH, math.inf, detail=detail)
            return
        if not self.noise.all():
            yield self._judged(ours, theirs, typical)
        if self.noise.any():
            error = float(np.abs(ours - self.truth)[self.noise].max())
            verdict = judge_zero(error, farthest)
            yield Comparison(f"{self.name} [zero gradient]", "float32", verdict, error)

    def _judged(self, ours: np.ndarray, theirs: np.ndarray, typical: float) -> Comparison:
        distance = self.distance or FLOAT32_ROUNDING
        error, torch_error = self.stray(ours) / distance, self.stray(theirs) / distance
        tolerance = FLOAT32_TOL + self.allowed / distance
        verdict = judge(error, max(torch_error, typical), tolerance)
        said = f"a mean error of {error:.2g} of the way, torch's {torch_error:.2g}, allowed {tolerance:.2g}"
        detail = said if verdict == Verdict.WORSE else ""
        return Comparison(self.name, "float32", verdict, error, torch_error, bounded_ratio(error, torch_error), detail)


def _way(name: str, w: np.ndarray, start: Any, truth: _Run, *narrow: _Run) -> _Way:
    zero = truth.peaks[name] <= ZERO * _largest(truth.peaks)
    noise = zero & np.any([run.peaks[name] > 0 for run in narrow], axis=0)
    rounding = len(truth.losses) * FLOAT32_ROUNDING * np.abs(w)
    allowed = (rounding + truth.wander["float32"][name])[~noise].sum()
    return _Way(name, w, np.asarray(start, np.float64), noise, float(allowed))
