"""AdamW, gradient clipping and learning-rate schedules, with torch.optim's names, defaults and semantics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, no_grad
from tinygrad_llm.nn import Module, Parameter

CHUNK = 1 << 16
"""Elements that AdamW updates at a time: five arrays of them fit into a core's second-level cache."""
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class AdamW:
    """Adam with decoupled weight decay.   Loshchilov & Hutter 2019, arXiv:1711.05101

        p ← p (1 − lr · weight_decay)
        m ← β₁ m + (1 − β₁) g          m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²         v̂ = v / (1 − β₂ᵗ)
        p ← p − lr · m̂ / (√v̂ + eps)

    params       parameters, or dicts {"params": [...], "lr": ..., ...} that override the defaults for a group
    maximize     climb instead of descend (g ← −g)
    amsgrad      use the largest v so far in place of v

    A parameter without a gradient is left alone. Errors: ValueError, TypeError naming the argument.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
    ) -> None:
        betas = tuple(betas) if isinstance(betas, list) else betas
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
                    "maximize": maximize}
        params = list(params)
        if not params:
            raise ValueError("AdamW: params: got none, expected at least one parameter")
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, dict[str, Any]] = {}
        self.defaults = defaults
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; what is not given is the default."""
        if unknown := sorted(set(group) - set(self.defaults) - {"params"}):
            raise ValueError(f"AdamW: params: got the setting {unknown[0]!r}, expected some of {', '.join(self.defaults)}")
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor) or not p.is_leaf:
                raise TypeError(f"AdamW: params[{i}]: got {type(p).__name__}, expected a leaf tensor")
            if id(p) in known:
                raise ValueError(f"AdamW: params[{i}]: got a parameter of shape {p.shape} twice, expected each once")
            known.add(id(p))
        group = {**self.defaults, **group, "params": params}
        _check_settings(group)
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zero."""
        for p in self._parameters():
            p.grad = None if set_to_none or p.grad is None else Tensor.from_array(np.zeros(p.shape, p.dtype))

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        with no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._update(p, p.grad.numpy(), group)

    def _update(self, p: Tensor, g: np.ndarray, group: dict[str, Any]) -> None:
        state = self.state.setdefault(id(p), {}) or self._new_state(p, group)
        state["step"] += 1
        moments = [state[name] for name in MOMENTS if name in state]

        def write(array: np.ndarray) -> None:
            for pieces in _chunks(array, g, *moments):
                descend(*pieces, group, state["step"])

        p._write(write)

    def _new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        names = MOMENTS if group["amsgrad"] else MOMENTS[:2]
        state = self.state[id(p)] = {"step": 0, **{name: np.zeros(p.shape, p.dtype) for name in names}}
        return state

    def state_dict(self) -> dict[str, Any]:
        """{"state": {index: {"step", "exp_avg", ...}}, "param_groups": [...]}: parameters by index, arrays copied."""
        index = {id(p): i for i, p in enumerate(self._parameters())}
        state = {index[key]: {k: np.copy(v) if isinstance(v, np.ndarray) else v for k, v in value.items()}
                 for key, value in self.state.items()}
        groups = [{**group, "params": [index[id(p)] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of state_dict; checked before anything is changed. Errors: ValueError where it does not fit."""
        params, groups = self._parameters(), state_dict["param_groups"]
        sizes, own = [len(g["params"]) for g in groups], [len(g["params"]) for g in self.param_groups]
        if sizes != own:
            raise ValueError(f"AdamW: state_dict: got groups of {sizes} parameters, expected {own}")
        for i, state in state_dict["state"].items():
            if not 0 <= int(i) < len(params):
                raise ValueError(f"AdamW: state_dict: got the state of parameter {i}, expected one of {len(params)}")
            for name, value in state.items():
                if isinstance(value, np.ndarray) and value.ndim and value.shape != params[int(i)].shape:
                    raise ValueError(f"AdamW: state_dict: {name} of parameter {i}: got shape {value.shape}, "
                                     f"expected {params[int(i)].shape}")
        for group, saved in zip(self.param_groups, groups):
            group.update({k: tuple(v) if k == "betas" else v for k, v in saved.items() if k != "params"})
        self.state = {id(params[int(i)]): {k: _restored(v, params[int(i)]) for k, v in state.items()}
                      for i, state in state_dict["state"].items()}

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _chunks(p: np.ndarray, g: np.ndarray, *moments: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Scratch memory, and the same pieces of each array, flat and small enough to stay in the cache together."""
    if not p.flags.c_contiguous:
        yield [np.empty_like(p), p, g, *moments]
        return
    flat = [np.ascontiguousarray(a).reshape(-1) for a in (p, g, *moments)]
    scratch = np.empty(min(CHUNK, p.size), p.dtype)
    for start in range(0, p.size, CHUNK):
        pieces = [f[start : start + CHUNK] for f in flat]
        yield [scratch[: pieces[0].size], *pieces]


def descend(a: np.ndarray, p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, *rest: Any) -> None:
    """AdamW's update of one piece, in place, with a as scratch; rest: the largest v so far (amsgrad), settings, step.

    With c = √(1 − β₂ᵗ):   m̂ / (√v̂ + eps) = c / (1 − β₁ᵗ) · m / (√v + c · eps), which saves a pass.
    """
    *largest, group, step = rest
    b1, b2 = group["betas"]
    c = math.sqrt(1 - b2**step)
    g = -g if group["maximize"] else g
    np.subtract(g, m, out=a)
    if b1 > 0.5:
        m += np.multiply(a, 1 - b1, out=a)
    else:  # nearer to g: from there, as torch's lerp, or what is left of a large m hides a small g
        np.subtract(g, np.multiply(a, b1, out=a), out=m)
    v *= b2
    v += np.multiply(np.square(g, out=a), 1 - b2, out=a)
    np.sqrt(np.maximum(largest[0], v, out=largest[0]) if group["amsgrad"] else v, out=a)
    a += c * group["eps"]
    np.divide(m, a, out=a)
    a *= c * group["lr"] / (1 - b1**step)
    if group["weight_decay"]:
        p *= 1 - group["lr"] * group["weight_decay"]
    p -= a


def _restored(value: Any, p: Tensor) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == p.ndim and value.shape == p.shape:
        return np.array(value, dtype=p.dtype, order="C")  # the update walks along memory
    return int(value)


def _check_settings(group: dict[str, Any]) -> None:
    if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
        raise TypeError(f"AdamW: betas: got {group['betas']!r}, expected two numbers in [0, 1)")
    for name in ("lr", "eps", "weight_decay"):
        _check_number(name, group[name], math.inf, "a finite number >= 0")
    for i, beta in enumerate(group["betas"]):
        _check_number(f"betas[{i}]", beta, 1.0, "a number in [0, 1)")


def _check_number(name: str, value: Any, below: float, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"AdamW: {name}: got {value!r}, expected {expected}")
    if not 0 <= value < below:
        raise ValueError(f"AdamW: {name}: got {value!r}, expected {expected}")


def decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which only tensors of two or more axes decay: biases and norms keep their scale."""
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float, error_if_nonfinite: bool = False) -> float:
    """Scale all gradients by min(1, max_norm / (‖g‖₂ + 1e-6)), ‖g‖₂ the norm of all of them together; return ‖g‖₂.

    Pascanu et al. 2013, arXiv:1211.5063. Errors: ValueError for max_norm ≤ 0, RuntimeError for a norm that is not
    finite where error_if_nonfinite.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: max_norm: got {max_norm!r}, expected a number > 0")
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(_norm_squared(g.numpy()) for g in grads))
    if not math.isfinite(norm) and error_if_nonfinite:
        raise RuntimeError(f"clip_grad_norm_: got a gradient norm of {norm}, expected a finite one")
    scale = max_norm / (norm + 1e-6)
    if scale < 1 or math.isnan(scale):
        for g in grads:
            g._write(lambda a: np.multiply(a, scale, out=a))
    return norm


def _norm_squared(g: np.ndarray) -> float:
    flat = g.reshape(-1)
    return float(np.dot(flat, flat))


def warmup_cosine(step: int, lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> float:
    """The learning rate at `step` (0 is the first): linear from lr/warmup to lr, then half a cosine down to min_lr.

    Loshchilov & Hutter 2017, arXiv:1608.03983
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupCosine:
    """Sets the learning rate of every group of an optimizer by `warmup_cosine`; call step() after optimizer.step()."""

    def __init__(self, optimizer: AdamW, warmup_steps: int, total_steps: int, min_ratio: float = 0.1) -> None:
        if warmup_steps < 0 or total_steps < 1 or not 0 <= min_ratio <= 1:
            raise ValueError(f"WarmupCosine: got warmup_steps={warmup_steps}, total_steps={total_steps}, "
                             f"min_ratio={min_ratio}, expected warmup_steps >= 0, total_steps >= 1, min_ratio in [0, 1]")
        self.optimizer, self.warmup_steps, self.total_steps, self.min_ratio = optimizer, warmup_steps, total_steps, min_ratio
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.last_step = 0
        self._set()

    def step(self) -> None:
        """Advance by one and set the rate of the next optimizer step."""
        self.last_step += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The rate that each group has now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands."""
        return {"last_step": self.last_step, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.last_step, self.base_lrs = int(state["last_step"]), [float(lr) for lr in state["base_lrs"]]
        self._set()

    def _set(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = warmup_cosine(self.last_step, lr, self.warmup_steps, self.total_steps, lr * self.min_ratio)
