"""AdamW, clipping and schedules that are wrong."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from reference.bugs.patch import Apply, Bug, method

ADAM = "Kingma & Ba 2015, algorithm 1"
ADAMW = "Loshchilov & Hutter 2019, algorithm 2"


def _step(original: Any, library: Any, **mistake: Any) -> Any:
    """AdamW.step with one mistake."""

    def step(self: Any) -> None:
        with library.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        _update(self.state.setdefault(p, {}), p, np.array(p.grad.numpy()), group, **mistake)

    return step


def _update(
    state: dict[str, Any], p: Any, g: np.ndarray, group: dict[str, Any], *, steps_off: int = 0, correct: bool = True,
    eps: str = "outside", decay: str = "decoupled", swap: bool = False, amsgrad: str = "before", climb: bool = True,
    second: str = "square", mix: bool = True,
) -> None:  # fmt: skip
    """One AdamW update with switches for its mistakes; without one it is right."""
    w = np.array(p.numpy())
    if not state:
        state.update(step=0, exp_avg=np.zeros_like(w), exp_avg_sq=np.zeros_like(w), max_exp_avg_sq=np.zeros_like(w))
    state["step"] += 1
    t, lr, decayed = state["step"] + steps_off, group["lr"], group["weight_decay"]
    b1, b2 = group["betas"][::-1] if swap else group["betas"]
    g = -g if group["maximize"] and climb else g
    g = g + decayed * w if decay == "coupled" else g
    w = w * (1 - {"decoupled": lr * decayed, "without lr": decayed}.get(decay, 0.0))
    state["exp_avg"] = b1 * state["exp_avg"] + (1 - b1 if mix else 1) * g
    state["exp_avg_sq"] = b2 * state["exp_avg_sq"] + (1 - b2) * (g * g if second == "square" else np.abs(g))
    c1, c2 = (1 - b1**t, 1 - b2**t) if correct else (1.0, 1.0)
    w = w - lr * (state["exp_avg"] / c1) / _root(state, c2, group, eps, amsgrad)
    w = w * (1 - lr * decayed) if decay == "after" else w
    p.copy_(w.astype(p.dtype))


def _root(state: dict[str, Any], c2: float, group: dict[str, Any], eps: str, amsgrad: str) -> Any:
    """√v̂ + eps, or one of its mistakes."""
    v = state["exp_avg_sq"]
    if group["amsgrad"] and amsgrad == "before":
        v = state["max_exp_avg_sq"] = np.maximum(state["max_exp_avg_sq"], v)
    v = v / c2
    if group["amsgrad"] and amsgrad == "after":
        v = state["max_exp_avg_sq"] = np.maximum(state["max_exp_avg_sq"], v)
    if eps == "inside":
        return np.sqrt(v + group["eps"])
    factor = {"outside": 1.0, "hat": 1 / math.sqrt(c2), "none": 1e-20}[eps]
    return np.sqrt(v) + factor * group["eps"]


def _adamw(**mistake: Any) -> Apply:
    return method("optim.AdamW.step", partial(_step, **mistake))


def _clip(original: Any, library: Any, how: str) -> Any:
    """clip_grad_norm_ with one mistake."""

    def clip(parameters: Any, max_norm: float, *rest: Any, **options: Any) -> float:
        grads = [p.grad for p in parameters if p.grad is not None]
        norms = [float(np.linalg.norm(g.numpy())) for g in grads]
        total = math.sqrt(sum(n * n for n in norms))
        for g, norm in zip(grads, norms):
            g.copy_(_clipped(g.numpy(), norm if how == "each" else sum(norms) if how == "sum" else total, max_norm, how))
        return total

    return clip


def _clipped(g: np.ndarray, norm: float, max_norm: float, how: str) -> np.ndarray:
    if how == "value":
        return np.clip(g, -max_norm, max_norm)
    scale = max_norm / (norm + (0 if how == "no eps" else 1e-6))
    return g * g.dtype.type(scale if how == "always" else min(1.0, scale))


def _clipping(how: str) -> Apply:
    return method("optim.clip_grad_norm_", partial(_clip, how=how))


def _late_schedule(original: Any, library: Any) -> Any:
    return lambda step, lr, warmup_steps, *rest, **options: original(step + 1, lr, warmup_steps, *rest, **options)


BUGS = [
    Bug("AdamW", "bias correction off by one", "t counts from 1", _adamw(steps_off=1)),
    Bug("AdamW", "no bias correction", ADAM, _adamw(correct=False)),
    Bug("AdamW", "eps inside the root", "√v̂ + eps", _adamw(eps="inside")),
    Bug("AdamW", "eps before the bias correction", "ε̂ of Kingma & Ba 2015, end of section 2", _adamw(eps="hat")),
    Bug("AdamW", "no eps", ADAM, _adamw(eps="none")),
    Bug("AdamW", "decay coupled to the gradient", f"{ADAMW}: L2 is not weight decay", _adamw(decay="coupled")),
    Bug("AdamW", "decay without the learning rate", "torch: p (1 − lr λ)", _adamw(decay="without lr")),
    Bug("AdamW", "decay after the step", "torch decays first", _adamw(decay="after")),
    Bug("AdamW", "no decay", ADAMW, _adamw(decay="none")),
    Bug("AdamW", "betas swapped", ADAM, _adamw(swap=True)),
    Bug("AdamW", "|g| in place of g²", ADAM, _adamw(second="absolute")),
    Bug("AdamW", "momentum without 1 − β₁", "SGD's momentum", _adamw(mix=False)),
    Bug("AdamW", "amsgrad: largest v after its correction", "Reddi et al. 2018; torch: before", _adamw(amsgrad="after")),
    Bug("AdamW", "amsgrad ignored", "Reddi et al. 2018", _adamw(amsgrad="never")),
    Bug("AdamW", "maximize ignored", "g ← −g", _adamw(climb=False)),
    Bug("AdamW", "stale gradients: zero_grad does nothing", "gradients of all steps add up",
        method("optim.AdamW.zero_grad", lambda original, library: lambda self, set_to_none=True: None)),
    Bug("clipping", "each tensor by its own norm", "Pascanu et al. 2013: one norm of all", _clipping("each")),
    Bug("clipping", "entries, not the norm", "clip_grad_value_", _clipping("value")),
    Bug("clipping", "the sum of norms, not the root of squares", "‖g‖₂ of all together", _clipping("sum")),
    Bug("clipping", "small gradients scaled up", "min(1, ·) forgotten", _clipping("always")),
    Bug("clipping", "no 1e-6 in the denominator", "torch: max_norm / (‖g‖ + 1e-6)", _clipping("no eps")),
    Bug("schedule", "warm-up off by one", "the first step has lr / warmup", method("optim.warmup_cosine", _late_schedule)),
]  # fmt: skip
