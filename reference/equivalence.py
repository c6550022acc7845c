"""The one tolerance policy: when is our result equal to PyTorch's?   Used by the tests, by `check` and by benchmarks.

float64 is an equality of formulas:        |ours − torch| ≤ 1e-11 s + 1e-10 |torch|
float32 is judged by the float64 truth:    |ours − truth| ≤ 2e-5 (s + |truth|), or an error at most 4 times torch's

Errors are the largest of |x − truth| / (s + |truth|) over the entries. s, the scale, is 1 for values of order one.
Gradients of a mean loss are smaller than that, and a 1 would forgive too much; a gradient is linear in its cotangent,
so dividing s and the gradient by the same number is the same policy under another cotangent: compare_models takes the
largest true gradient of the model as s, where it is below 1, but no less than 0.1: a model that is sure of its answer
has gradients p − 1 that are all cancellation, as wrong as 1 is rounded, however small they are. NaN and infinities
must stand where torch (or, in float32, the truth) has them. Where the truth is zero but for rounding, only the
absolute part applies, with s = 1, and no ratio is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch

from reference.bridge import load_numpy_state
from reference.model import Transformer
from tinygrad_llm.config import TransformerConfig

FLOAT64_RTOL, FLOAT64_ATOL = 1e-10, 1e-11
FLOAT32_TOL, FLOAT32_RATIO = 2e-5, 4.0
FLOAT32_ROUNDING = 2.0**-24  # the relative error of one correct rounding
SMALLEST_SCALE = 0.1
ZERO = 1e-12  # times s: a smaller float64 truth is the rounding noise of a zero
GRADIENT_NOISE = {"float64": 1e-15, "float32": 1e-6}  # times s: what rounding may add to a gradient
GRADIENT = "grad "  # starts the name of a gradient's row

Arrays = dict[str, np.ndarray]


class Verdict(StrEnum):
    """What a comparison found. The first three are passes."""

    EQUAL = "equal"
    NO_WORSE = "no worse than torch"
    EXACTLY_ZERO = "exactly zero"
    WORSE = "worse than torch"
    DIFFERENT = "different"
    MISMATCH = "mismatch"


@dataclass(frozen=True)
class Comparison:
    """One quantity in one dtype: a row of the report.

    error        ours, largest |ours − truth| / (s + |truth|); infinite where nothing could be subtracted (MISMATCH)
    torch_error  the same of torch float32; None in float64, where torch is itself the truth
    ratio        error / torch_error, neither counted as less than one rounding; None where it would say nothing
    detail       what failed, and where
    """

    name: str
    dtype: str
    verdict: Verdict
    error: float
    torch_error: float | None = None
    ratio: float | None = None
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the verdict is one of the passes."""
        return self.verdict in (Verdict.EQUAL, Verdict.NO_WORSE, Verdict.EXACTLY_ZERO)

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}): {self.verdict}, error {self.error:.2g}; {self.detail}".rstrip("; ")


def as_array(value: Any) -> np.ndarray:
    """Whatever np.asarray takes, and torch tensors that require a gradient or live on a GPU."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def compare_float64(
    ours: Any, theirs: Any, name: str = "value", scale: float = 1.0, slack: float | np.ndarray = 0.0
) -> Comparison:
    """Equality of formulas: |ours − theirs| ≤ 1e-11 scale + 1e-10 |theirs|; float64 arrays or tensors of one shape.

    slack is a further absolute error, allowed where a caller can show that rounding alone makes it.
    """
    ours, truth = as_array(ours), as_array(theirs)
    if detail := _kind_differs(ours, truth, "float64") or _specials_differ(ours, truth):
        return Comparison(name, "float64", Verdict.MISMATCH, math.inf, detail=detail)
    finite = np.isfinite(truth)
    ours, truth = np.where(finite, ours, 0.0), np.where(finite, truth, 0.0)
    zero = finite.all() and _is_zero(truth, scale)
    scale = 1.0 if zero else scale
    error = _error(ours, truth, scale)
    if np.any(np.abs(ours - truth) > FLOAT64_ATOL * scale + FLOAT64_RTOL * np.abs(truth) + slack):
        return Comparison(name, "float64", Verdict.DIFFERENT, error, detail=_worst(ours, truth, scale))
    return Comparison(name, "float64", Verdict.EXACTLY_ZERO if zero else Verdict.EQUAL, error)


def compare_float32(ours: Any, theirs: Any, truth: Any, name: str = "value", scale: float = 1.0) -> Comparison:
    """Two float32 results of one shape, judged by the float64 truth: within 2e-5, or at most 4 times torch's error."""
    ours, theirs, truth = as_array(ours), as_array(theirs), as_array(truth)
    differs = _kind_differs(theirs, truth, "float32", "float64", "torch's ") or _kind_differs(ours, theirs, "float32")
    if detail := differs or _specials_differ(ours, theirs, truth):
        return Comparison(name, "float32", Verdict.MISMATCH, math.inf, detail=detail)
    settled = np.isfinite(truth) & np.isfinite(ours)
    zero = bool(np.isfinite(truth).all()) and _is_zero(truth, scale)
    ours, truth, scale = np.where(settled, ours, 0.0), np.where(settled, truth, 0.0), 1.0 if zero else scale
    error = _error(ours, truth, scale)
    torch_error = _error(np.where(settled & np.isfinite(theirs), theirs, truth), truth, scale)
    verdict = _judge_zero(error) if zero else _judge(error, torch_error)
    ratio = None if zero or not truth.size else _ratio(error, torch_error)
    detail = _worst(ours, truth, scale) if verdict == Verdict.WORSE else ""
    return Comparison(name, "float32", verdict, error, torch_error, ratio, detail)


def geometric_mean_ratio(rows: Iterable[Comparison]) -> float:
    """exp(mean log ratio) over the rows that have one; NaN where none has. At most 1: no less accurate than torch."""
    logs = [math.log(row.ratio) for row in rows if row.ratio is not None]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


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
) -> list[Comparison]:
    """Logits, loss and every parameter gradient of our model against torch's: float64, and float32 judged by float64.

    make_ours(dtype) returns our model of this config in np.float32 or np.float64, with torch's interface:
    load_state_dict, eval, __call__, loss, named_parameters, .grad. Every model gets the same weights, state or
    random_state(config, seed), and no dropout. The gradient of attn.qkv_proj.bias is three rows, since the key's is
    exactly zero: a key bias adds the same number to all scores of a query, which softmax does not see.

    Raises ValueError where the two models' parameters have different names.
    """
    weights = random_state(config, seed) if state is None else state
    truth = _results(_torch_model(config, weights, "float64"), ids, targets)
    theirs = _results(_torch_model(config, weights, "float32"), ids, targets)
    ours64 = _results(_our_model(make_ours, weights, "float64"), ids, targets)
    ours32 = _results(_our_model(make_ours, weights, "float32"), ids, targets)
    _check_names(ours64, truth)
    _check_names(ours32, truth)
    gradient_scale = _scale(value for name, value in truth.items() if name.startswith(GRADIENT))
    rows = []
    for name, value in truth.items():
        scale = gradient_scale if name.startswith(GRADIENT) else _scale([value])
        rows.append(compare_float64(ours64[name], value, name, scale))
        rows.append(compare_float32(ours32[name], theirs[name], value, name, scale))
    return rows


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
) -> TrainingComparison:
    """An AdamW step per (ids, targets) of batches, ours beside torch's from the same weights: losses, final weights.

    make_optimizer(parameters, **settings) is our AdamW; torch.optim.AdamW gets the same settings, torch's defaults
    where none is given. Losses answer to compare_float64 and compare_float32. The weights cannot quite: Adam divides
    a gradient by its own size, so an entry whose true gradient is g, known with an error δ, moves by about
    lr · sign(g), wrongly by about lr · min(1, δ / (|g| + eps)). Therefore

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
    """
    chosen = {"lr": 1e-3, "eps": 1e-8, **(settings or {})}
    weights = random_state(config, seed) if state is None else state
    runs = {}
    for dtype in ("float64", "float32"):
        ours, theirs = _our_model(make_ours, weights, dtype), _torch_model(config, weights, dtype)
        parameters = [parameter for _, parameter in ours.named_parameters()]
        runs[f"ours {dtype}"] = _train(ours, make_optimizer(parameters, **chosen), batches, chosen)
        optimizer = torch.optim.AdamW(theirs.parameters(), **chosen)
        runs[f"torch {dtype}"] = _train(theirs, optimizer, batches, chosen)
    rows = [*_loss_rows(runs), *_weight_rows(runs, weights, 2 * chosen["lr"] * len(batches))]
    return TrainingComparison({name: run.losses for name, run in runs.items()}, rows)


def _kind_differs(got: np.ndarray, like: np.ndarray, dtype: str, like_dtype: str = "", whose: str = "") -> str:
    if got.shape != like.shape:
        return f"{whose}shape: got {got.shape}, expected {like.shape}"
    if like.dtype != (like_dtype or dtype):
        return f"reference dtype: got {like.dtype}, expected {like_dtype or dtype}"
    return "" if got.dtype == dtype else f"{whose}dtype: got {got.dtype}, expected {dtype}"


def _specials_differ(ours: np.ndarray, *accepted: np.ndarray) -> str:
    """Says where ours is NaN, ∞, −∞ or finite and none of the accepted arrays is the same there."""
    agree = np.any([_special(ours) == _special(other) for other in accepted], axis=0)
    if np.all(agree):
        return ""
    where = tuple(int(i) for i in np.argwhere(~agree)[0])
    return f"at {where}: got {ours[where]}, expected {accepted[0][where]}"


def _special(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


def _errors(x: np.ndarray, truth: np.ndarray, scale: float) -> np.ndarray:
    """|x − truth| / (scale + |truth|), in float64."""
    return np.abs(x.astype(np.float64) - truth) / (scale + np.abs(truth))


def _error(x: np.ndarray, truth: np.ndarray, scale: float) -> float:
    return float(_errors(x, truth, scale).max(initial=0.0))


def _worst(x: np.ndarray, truth: np.ndarray, scale: float) -> str:
    at = np.unravel_index(np.argmax(_errors(x, truth, scale)), truth.shape)
    return f"at {tuple(map(int, at))}: got {x[at]!s}, expected {truth[at]!s}"


def _is_zero(truth: np.ndarray, scale: float) -> bool:
    return truth.size > 0 and bool(np.all(np.abs(truth) <= ZERO * scale))


def _judge(error: float, torch_error: float, tolerance: float = FLOAT32_TOL) -> Verdict:
    if error <= tolerance:
        return Verdict.EQUAL
    return Verdict.NO_WORSE if error <= FLOAT32_RATIO * torch_error else Verdict.WORSE


def _judge_zero(error: float, tolerance: float = FLOAT32_TOL) -> Verdict:
    return Verdict.EXACTLY_ZERO if error <= tolerance else Verdict.WORSE


def _ratio(error: float, torch_error: float) -> float:
    return max(error, FLOAT32_ROUNDING) / max(torch_error, FLOAT32_ROUNDING)


def _scale(values: Iterable[np.ndarray]) -> float:
    """The largest finite entry, held between 0.1 and 1; 1 where all are but the noise of zeros."""
    peak = max((float(np.abs(value[np.isfinite(value)]).max(initial=0.0)) for value in values), default=0.0)
    return 1.0 if peak <= 100 * ZERO else min(1.0, max(SMALLEST_SCALE, peak))


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape)
    if len(shape) == 1:
        values = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
    else:
        values = noise if "embed" in name else noise / math.sqrt(shape[1])
    return values.astype(np.float32)


def _torch_model(config: TransformerConfig, weights: Mapping[str, np.ndarray], dtype: str) -> Transformer:
    model = Transformer(config, device="cpu", dtype=getattr(torch, dtype))
    load_numpy_state(model, _cast(weights, dtype))
    return model.eval()


def _our_model(make_ours: Callable[[Any], Any], weights: Mapping[str, np.ndarray], dtype: str) -> Any:
    model = make_ours(getattr(np, dtype))
    model.load_state_dict(_cast(weights, dtype))
    model.eval()
    return model


def _cast(weights: Mapping[str, np.ndarray], dtype: str) -> Arrays:
    return {name: np.array(value, dtype) for name, value in weights.items()}


def _inputs(model: Any, *arrays: Any) -> list[Any]:
    arrays = tuple(np.asarray(array, np.int64) for array in arrays)
    return [torch.tensor(array) if isinstance(model, torch.nn.Module) else array for array in arrays]


def _results(model: Any, ids: Any, targets: Any) -> Arrays:
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


def _loss_rows(runs: Mapping[str, _Run]) -> Iterator[Comparison]:
    truth = runs["torch float64"].losses
    name = f"losses of {len(truth)} steps"
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
        if detail := _kind_differs(ours, theirs, "float32") or _specials_differ(ours, theirs, self.truth):
            yield Comparison(self.name, "float32", Verdict.MISMATCH, math.inf, detail=detail)
            return
        if not self.noise.all():
            yield self._judged(ours, theirs, typical)
        if self.noise.any():
            error = float(np.abs(ours - self.truth)[self.noise].max())
            verdict = _judge_zero(error, farthest)
            yield Comparison(f"{self.name} [zero gradient]", "float32", verdict, error)

    def _judged(self, ours: np.ndarray, theirs: np.ndarray, typical: float) -> Comparison:
        distance = self.distance or FLOAT32_ROUNDING
        error, torch_error = self.stray(ours) / distance, self.stray(theirs) / distance
        tolerance = FLOAT32_TOL + self.allowed / distance
        verdict = _judge(error, max(torch_error, typical), tolerance)
        said = f"a mean error of {error:.2g} of the way, torch's {torch_error:.2g}, allowed {tolerance:.2g}"
        detail = said if verdict == Verdict.WORSE else ""
        return Comparison(self.name, "float32", verdict, error, torch_error, _ratio(error, torch_error), detail)


def _way(name: str, w: np.ndarray, start: Any, truth: _Run, *narrow: _Run) -> _Way:
    zero = truth.peaks[name] <= ZERO * _largest(truth.peaks)
    noise = zero & np.any([run.peaks[name] > 0 for run in narrow], axis=0)
    rounding = len(truth.losses) * FLOAT32_ROUNDING * np.abs(w)
    allowed = (rounding + truth.wander["float32"][name])[~noise].sum()
    return _Way(name, w, np.asarray(start, np.float64), noise, float(allowed))
