"""The checks that the kill table lets loose on each bug. Each yields what failed; on the right library none yields anything.

    ops         drawn calls of the ops of a Transformer against torch; a vjp must leave its cotangent alone
    functions   nn.functional and its options against torch: kinks, masks, ±1e4 scores, every kind of cross entropy
    model       logits, loss, every gradient of some models (reference.equivalence.compare_models)
    replay      a captured training step of a model with dropout beside the same step without capture, as its weights change
    training    AdamW steps of a model beside torch's (compare_training)
    optimizer   AdamW, clipping and the schedule alone, on given gradients
    dropout     what is kept, its scale, its gradient, eval mode, fresh masks
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF

from reference import train
from reference.bugs.patch import patched
from reference.equivalence import compare_models, compare_training
from reference.opdraw import Call, draw_calls
from reference.ops_report import judge_call
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.ops import REGISTRY
from tinygrad_llm.policy import Comparison, compare_float32, compare_float64

OPS = (
    "add", "sub", "mul", "div", "matmul", "linear", "layer_norm", "attention", "softmax", "log_softmax", "cross_entropy",
    "embedding", "relu", "gelu", "tanh", "mean", "reshape", "permute", "getitem", "attention_qkvpacked", "linear_cross_entropy",
)  # fmt: skip
MODELS = (
    TransformerConfig(11, 6, 8, 2, 2, activation="gelu_tanh", positions="learned", tie_embeddings=True),
    TransformerConfig(11, 6, 8, 2, 2, norm_position="post"),
    TransformerConfig(600, 6, 8, 2, 1, activation="gelu"),  # two chunks of the vocabulary: see small_pieces
)
ADAMW: tuple[dict[str, Any], ...] = (
    {}, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}, {"amsgrad": True, "betas": (0.9, 0.6)}, {"maximize": True},
    {"eps": 1e-3},
)  # fmt: skip
STEPS = 6
FIRST_OF_CHUNK = 512
"""With small_pieces, the class at which the vocabulary's second chunk begins."""


@dataclass(frozen=True)
class Finding:
    """What a check saw first: the metric that failed, in which dtype, and its error."""

    metric: str
    dtype: str
    error: float
    detail: str = ""


def check_ops(library: Any) -> Iterator[Finding]:
    """Outputs and gradients of drawn calls; cotangents after the vjp."""
    for call in drawn_calls():
        for dtype in (np.float64, np.float32):
            for row in judge_call(call, dtype):
                if row.failed:
                    yield _finding(row, f"{call.op.name}: ")
        if not _leaves_cotangent(call):
            yield Finding(f"{call.op.name}: cotangent after the vjp", "float64", math.inf)


def check_functions(library: Any) -> Iterator[Finding]:
    """nn.functional with options, its values and gradients with a random cotangent, in both dtypes."""
    for name, (ours, theirs, inputs) in function_cases(library).items():
        results = _torch_results(name)
        if not results:
            results += [_run_torch(theirs, inputs, dtype) for dtype in (torch.float64, torch.float32)]
        truth, narrow = results
        for dtype in (np.float64, np.float32):
            got = _run_ours(library, ours, inputs, dtype)
            for i, part in enumerate(("output", "gradient")):
                row = _compared(f"{name}: {part}", got[i], narrow[i], truth[i], dtype)
                if row.failed:
                    yield _finding(row)


def check_model(library: Any) -> Iterator[Finding]:
    """Logits, loss and gradients of models that have every part between them."""
    for config in MODELS:
        make = functools.partial(_model, library, config)
        for row in compare_models(make, config, *_batches(config, 1)[0], known=_known("model", config)):
            if row.failed:
                yield _finding(row)


def check_replay(library: Any) -> Iterator[Finding]:
    """Losses and gradients of a replayed step, of which all but the first run see other weights and draw other masks."""
    config = dataclasses.replace(MODELS[1], n_layers=1, context_length=3, dropout=0.3)
    ours, eager = (library.Transformer(config, dtype=np.float64) for _ in range(2))
    capture = resolve_name(f"{library.__name__}.capture")
    steps = capture.compile(functools.partial(_gradients, ours)), functools.partial(_gradients, eager)
    for ids, targets in _batches(config, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what cannot be captured runs without it
            losses = [step(ids, targets).detach().numpy() for step in steps]
        found = [(*losses, "loss of a replay")]
        found += [(p.grad.numpy(), q.grad.numpy(), f"grad {name} of a replay")
                  for (name, p), q in zip(ours.named_parameters(), eager.parameters()) if q.grad is not None]
        for got, expected, name in found:
            row = compare_float64(got, expected, name)
            if row.failed:
                yield _finding(row)
        for p in (*ours.parameters(), *eager.parameters()):
            p.detach().mul_(0.9)
            p.grad = None


def _gradients(model: Any, ids: Any, targets: Any) -> Any:
    loss = model.loss(ids, targets)
    loss.backward()
    return loss


def check_training(library: Any) -> Iterator[Finding]:
    """Losses and weights over some AdamW steps."""
    for config in MODELS[1:2]:
        make = functools.partial(_model, library, config)
        run = functools.partial(compare_training, make, library.optim.AdamW, config, _batches(config, STEPS), {"lr": 1e-2})
        for row in run(known=_known("training", config)).rows:
            if row.failed:
                yield _finding(row, "after AdamW: " * (not row.name.startswith("loss")))


def check_optimizer(library: Any) -> Iterator[Finding]:
    """AdamW, clipping, zero_grad and the schedule without a model."""
    for settings in ADAMW:
        words = ", ".join(f"{k}={v}" for k, v in settings.items()) or "defaults"
        for dtype in (np.float64, np.float32):
            row = _compared(f"AdamW({words})", *_adamw_runs(library, settings, dtype), dtype)
            if row.failed:
                yield _finding(row)
    yield from _check_clipping(library)
    yield from _check_schedule(library)


def check_dropout(library: Any) -> Iterator[Finding]:
    """Kept entries are scaled, about 1 − p of them; the gradient has the same mask; eval is the identity; masks differ."""
    F, rng = library.nn.functional, np.random.default_rng(0)
    x = library.tensor(np.ones((100, 200), np.float32), requires_grad=True)
    out = F.dropout(x, 0.2, True, generator=rng)
    values = np.asarray(out.detach().numpy())
    if abs(float((values != 0).mean()) - 0.8) > 0.02:
        yield Finding("fraction kept at p = 0.2", "float32", abs(float((values != 0).mean()) - 0.8))
    if abs(float(values.max()) - 1.25) > 1e-6:
        yield Finding("scale of what is kept at p = 0.2", "float32", abs(float(values.max()) - 1.25))
    if np.array_equal(values, F.dropout(x, 0.2, True, generator=rng).detach().numpy()):
        yield Finding("mask of the next call", "float32", 0.0, "the same")
    if not np.array_equal(F.dropout(x, 0.2, False, generator=rng).detach().numpy(), np.ones((100, 200))):
        yield Finding("identity in eval", "float32", 1.0)


CHECKS: dict[str, Callable[[Any], Iterator[Finding]]] = {
    "ops": check_ops, "functions": check_functions, "model": check_model, "replay": check_replay,
    "training": check_training, "optimizer": check_optimizer, "dropout": check_dropout,
}  # fmt: skip


def first_finding(check: Callable[[Any], Iterator[Finding]], library: Any) -> Finding | None:
    """What the check sees first; an exception that it raises is seen too."""
    try:
        with np.errstate(all="ignore"), small_pieces(library):
            return next(check(library), None)
    except Exception as error:
        return Finding(f"raises: {str(error).splitlines()[0][:100] if str(error) else type(error).__name__}", "", math.inf)


@contextmanager
def small_pieces(library: Any) -> Iterator[None]:
    """Fused ops go by pieces so small that a small model has several: 4 query rows, FIRST_OF_CHUNK classes."""
    with patched(library.ops.attention, "_ROWS", 4), patched(library.ops.losses, "_CHUNK", 1):
        yield


@functools.cache
def drawn_calls() -> list[Call]:
    """Made before any bug is in place."""
    return [call for name in OPS if name in REGISTRY for call in draw_calls(REGISTRY[name], seed=7, count=2)]


@functools.cache
def _known(check: str, config: TransformerConfig) -> dict[str, Any]:
    """What torch gave, which no bug of ours changes."""
    return {}


def function_cases(library: Any) -> dict[str, tuple[Any, Any, list[np.ndarray]]]:
    """name -> (ours, torch's, floating inputs): the options and the corners that a model does not reach."""
    F, rng = library.nn.functional, np.random.default_rng(3)
    logits, target = 2 * rng.standard_normal((7, 5)), np.array([0, 4, -100, 2, 2, -100, 1])
    q, k, v = (rng.standard_normal((2, 3, 4)) for _ in range(3))
    mask = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0]], bool)
    cases: dict[str, tuple[Any, Any, list[np.ndarray]]] = {
        "relu at 0": (F.relu, TF.relu, [np.array([-1.0, 0.0, 2.0])]),
        "softmax of ±1e4": (
            lambda x: F.softmax(x, -1), lambda x: TF.softmax(x, -1), [np.array([[1e4, -1e4, 9999.0], [1e4, 1e4, 0.0]])],
        ),
        "attention with a mask": (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask),
            lambda q, k, v: TF.scaled_dot_product_attention(q, k, v, torch.from_numpy(mask)), [q, k, v],
        ),
    }  # fmt: skip
    border = torch.tensor([0, FIRST_OF_CHUNK - 1, FIRST_OF_CHUNK, 599, -100])
    cases["linear cross entropy over two chunks"] = (
        lambda x, w, b: F.linear_cross_entropy(x, w, border.numpy(), linear_bias=b),
        lambda x, w, b: TF.cross_entropy(TF.linear(x, w, b), border),
        [rng.standard_normal(s) for s in ((5, 3), (600, 3), (600,))],
    )  # fmt: skip
    for approximate in ("none", "tanh"):
        cases[f"gelu {approximate}"] = (
            functools.partial(F.gelu, approximate=approximate), functools.partial(TF.gelu, approximate=approximate), [logits],
        )  # fmt: skip
    for options in _cross_entropy_options():
        words = ", ".join(f"{k} {v}" for k, v in options.items())
        cases[f"cross entropy, {words}"] = (
            functools.partial(F.cross_entropy, target=target, **options),
            functools.partial(TF.cross_entropy, target=torch.from_numpy(target), **options), [logits],
        )  # fmt: skip
    return cases


def _cross_entropy_options() -> Iterator[Mapping[str, Any]]:
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.1):
            yield {"reduction": reduction, "label_smoothing": smoothing}


@functools.cache
def _torch_results(name: str) -> list[Any]:
    return []


def _run_torch(function: Any, inputs: list[np.ndarray], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    tensors = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in inputs]
    out = function(*tensors)
    out.backward(torch.tensor(_cotangent(out.shape), dtype=dtype))
    return out.detach().numpy(), np.concatenate([t.grad.numpy().ravel() for t in tensors])  # type: ignore[union-attr]


def _run_ours(library: Any, function: Any, inputs: list[np.ndarray], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    tensors = [library.tensor(x.astype(dtype), requires_grad=True) for x in inputs]
    out = function(*tensors)
    out.backward(library.tensor(_cotangent(out.shape).astype(out.dtype)))
    return np.asarray(out.detach().numpy()), np.concatenate([t.grad.numpy().ravel() for t in tensors])


def _cotangent(shape: Any) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(tuple(shape)).astype(np.float32).astype(np.float64)


def _compared(name: str, ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray, dtype: Any) -> Comparison:
    return compare_float64(ours, truth, name) if dtype == np.float64 else compare_float32(ours, theirs, truth, name)


def _leaves_cotangent(call: Call) -> bool:
    out, vjp = call.op(*call.inputs(np.float64), **call.options)
    g = call.cotangent.astype(out.dtype)
    before = g.copy()
    vjp(g)
    return np.array_equal(before, g)


def _model(library: Any, config: TransformerConfig, dtype: Any) -> Any:
    return library.Transformer(config, dtype=dtype)


def _batches(config: TransformerConfig, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, config.vocab_size, (count, 3, config.context_length + 1))
    targets = tokens[:, :, 1:].copy()
    targets[:, 0, -1] = -100  # ignored
    targets[:, 1, -1] = min(FIRST_OF_CHUNK, config.vocab_size - 1)
    return list(zip(tokens[:, :, :-1], targets))


def _adamw_runs(library: Any, settings: Mapping[str, Any], dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights after STEPS of given gradients: ours in dtype, torch's in float32, torch's in float64."""
    rng = np.random.default_rng(2)
    start, gradients = rng.standard_normal((4, 3)), rng.standard_normal((STEPS, 4, 3))
    gradients *= 10.0 ** -np.arange(STEPS)[:, None, None]  # shrinking: amsgrad then differs
    start, gradients = (a.astype(np.float32).astype(np.float64) for a in (start, gradients))
    p = library.tensor(start.astype(dtype), requires_grad=True)
    optimizer = library.optim.AdamW([p], **settings)
    for g in gradients:
        optimizer.zero_grad()
        p.grad = library.tensor(g.astype(dtype) if p.grad is None else g.astype(dtype) + p.grad.numpy())
        optimizer.step()
    theirs, truth = (_torch_adamw(start, gradients, settings, t) for t in (torch.float32, torch.float64))
    return np.array(p.detach().numpy()), theirs, truth


def _torch_adamw(start: np.ndarray, gradients: np.ndarray, settings: Mapping[str, Any], dtype: Any) -> np.ndarray:
    p = torch.tensor(start, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.AdamW([p], **settings)
    for g in gradients:
        p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    return p.detach().numpy()


def _check_clipping(library: Any) -> Iterator[Finding]:
    rng = np.random.default_rng(4)
    gradients = [0.1 * rng.standard_normal(n) * (i + 1) for i, n in enumerate((6, 4, 8))]
    for max_norm in (0.05, 100.0):
        ours = [library.tensor(np.zeros_like(g), requires_grad=True) for g in gradients]
        theirs = [torch.zeros(len(g), dtype=torch.float64, requires_grad=True) for g in gradients]
        for p, q, g in zip(ours, theirs, gradients):
            p.grad, q.grad = library.tensor(g.copy()), torch.tensor(g)
        library.optim.clip_grad_norm_(ours, max_norm)
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        got = np.concatenate([p.grad.numpy() for p in ours])
        expected = torch.cat([p.grad for p in theirs if p.grad is not None])
        row = compare_float64(got, expected, f"clip_grad_norm_ to {max_norm}")
        if row.failed:
            yield _finding(row)


def _check_schedule(library: Any) -> Iterator[Finding]:
    settings = train.Settings(steps=50, warmup_steps=10)
    expected = np.array([train.lr_factor(step, settings) for step in range(50)])
    got = np.array([library.optim.warmup_cosine(step, 1.0, 10, 50, train.FINAL_LR) for step in range(50)])
    row = compare_float64(got, expected, "learning rate of 50 steps")
    if row.failed:
        yield _finding(row)


def _finding(row: Comparison, before: str = "") -> Finding:
    return Finding(before + row.name, row.dtype, row.error, row.detail)
