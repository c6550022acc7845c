"""AdamW, gradient clipping and learning-rate schedules, with torch.optim's names, defaults and semantics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd import Tensor, enable_grad, no_grad
from tinygrad_llm.autograd.modes import check_effect
from tinygrad_llm.nn import Module
from tinygrad_llm.nn.module import StateKeyError, forget_gradients
from tinygrad_llm.ops.numbers import plain
from tinygrad_llm.ops.opaque import as_values, opaque

CHUNK = 1 << 16
"""Elements that AdamW updates at a time: five arrays of them fit into a core's second-level cache."""
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
WAYS = {"foreach": (None, False, True), "fused": (None, False, True), "capturable": (False,), "differentiable": (False,)}
"""torch's ways to compute the same step. There is one here, to which the first two make no difference."""


class OptimError(TypeError, ValueError, RuntimeError):
    """What cannot be trained or clipped; torch's class differs from case to case."""


class AdamW:
    """Adam with decoupled weight decay.   Loshchilov & Hutter 2019, arXiv:1711.05101

        p ← p (1 − lr · weight_decay)
        m ← β₁ m + (1 − β₁) g          m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²         v̂ = v / (1 − β₂ᵗ)
        p ← p − lr · m̂ / (√v̂ + eps)

    params       parameters, or dicts {"params": [...], "lr": ..., ...} that override the defaults for a group
    maximize     climb instead of descend (g ← −g)
    amsgrad      use the largest v so far in place of v

    A parameter without a gradient is left alone. `state[p]` is what is kept of parameter p; a deepcopy or pickle of model and
    optimizer together goes on as they do. torch's foreach and fused are taken and change nothing; capturable (for graphs of a
    GPU) and differentiable are refused. Errors: ValueError, TypeError naming the argument.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:
        _check_ways({"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused})
        betas = tuple(map(plain, betas)) if isinstance(betas, tuple | list) else betas
        defaults = {"lr": plain(lr), "betas": betas, "eps": plain(eps), "weight_decay": plain(weight_decay), "amsgrad": amsgrad,
                    "maximize": maximize}
        if isinstance(params, Tensor | dict):
            raise TypeError(f"AdamW: params: got one {type(params).__name__}, expected an iterable of parameters or of dicts")
        params = _ordered("params", params)
        if not params:
            raise ValueError("AdamW: params: got none, expected at least one parameter")
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.defaults = defaults
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; what is not given is the default."""
        if not isinstance(param_group, dict):
            raise TypeError(f"AdamW: param_group: got {type(param_group).__name__}, expected a dict")
        if "params" not in param_group:
            raise KeyError("AdamW: param_group: got none under the name params, expected the parameters of the group")
        group = {name: value for name, value in param_group.items() if name not in WAYS}
        _check_ways(param_group)
        if unknown := sorted(set(group) - set(self.defaults) - {"params"}):
            raise ValueError(f"AdamW: params: got the setting {unknown[0]!r}, expected some of {', '.join(self.defaults)}")
        params = [group["params"]] if isinstance(group["params"], Tensor) else _ordered("params", group["params"])
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for i, p in enumerate(params):
            _check_trainable(i, p)
            if id(p) in known:
                raise ValueError(f"AdamW: params[{i}]: got a parameter of shape {p.shape} twice, expected each once")
            known.add(id(p))
        group = {**self.defaults, **{name: plain(value) for name, value in group.items()}, "params": params}
        if isinstance(group["betas"], tuple | list):
            group["betas"] = tuple(map(plain, group["betas"]))
        _check_settings(group)
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or write zeros into them."""
        forget_gradients(self._parameters(), set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        closure   makes the gradients, recording switched on, and returns the loss, which is returned
        """
        check_effect("AdamW.step")
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._update(p, p.grad.numpy(), group)
        return loss

    def _update(self, p: Tensor, g: np.ndarray, group: dict[str, Any]) -> None:
        state = self.state.get(p) or self._new_state(p, group)
        state["step"] += 1
        moments = [state[name] for name in MOMENTS if name in state]

        def write(array: np.ndarray) -> None:
            for pieces in _chunks(array, g, *moments):
                descend(*pieces, group, state["step"])

        p._write(write)

    def _new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        names = MOMENTS if group["amsgrad"] else MOMENTS[:2]
        state = self.state[p] = {"step": 0, **{name: np.zeros(p.shape, p.dtype) for name in names}}
        return state

    def state_dict(self) -> dict[str, Any]:
        """{"state": {index: {"step", "exp_avg", ...}}, "param_groups": [...]}: parameters by index, arrays copied."""
        index = {id(p): i for i, p in enumerate(self._parameters())}
        state = {index[id(p)]: {k: np.copy(v) if isinstance(v, np.ndarray) else v for k, v in value.items()}
                 for p, value in self.state.items()}
        groups = [{**group, "params": [index[id(p)] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The inverse of state_dict; checked before anything is changed. The groups are new dicts, as in torch.

        Errors: TypeError for what is no state dict, KeyError where it lacks a part, ValueError where it does not fit.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"AdamW: state_dict: got {type(state_dict).__name__}, expected a dict, as state_dict() gives it")
        if lacking := [part for part in ("param_groups", "state") if part not in state_dict]:
            raise StateKeyError(f"AdamW: state_dict: got none under the name {lacking[0]}, expected what state_dict() gives")
        params, groups = self._parameters(), state_dict["param_groups"]
        sizes, own = [len(g["params"]) for g in groups], [len(g["params"]) for g in self.param_groups]
        if sizes != own:
            raise ValueError(f"AdamW: state_dict: got groups of {sizes} parameters, expected {own}")
        for i, state in state_dict["state"].items():
            if not str(i).isdecimal() or not int(i) < len(params):
                raise ValueError(f"AdamW: state_dict: got the state of parameter {i}, expected one of {len(params)}")
            for name, value in state.items():
                if isinstance(value, np.ndarray | Tensor) and value.ndim and value.shape != params[int(i)].shape:
                    raise ValueError(f"AdamW: state_dict: {name} of parameter {i}: got shape {value.shape}, "
                                     f"expected {params[int(i)].shape}")
        new = {params[int(i)]: {k: _restored(k, v, params[int(i)]) for k, v in state.items()}
               for i, state in state_dict["state"].items()}
        self.param_groups = [{**group, **saved, "betas": tuple(saved.get("betas", group["betas"])), "params": group["params"]}
                             for group, saved in zip(self.param_groups, groups)]
        self.state = new

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

    With c = √(1 − β₂ᵗ):   m̂ / (√v̂ + eps) = c / (1 − β₁ᵗ) · m / (√v + c · eps), which saves a pass. Of float16 only what is kept
    is rounded: g² and eps are beyond it. Settings count as Python's numbers: NumPy's would round what they are multiplied with.
    """
    *largest, group, step = rest
    if p.dtype == np.float16:
        kept = p, m, v, *largest
        wide = [x.astype(np.float32) for x in (p, g, m, v, *largest)]
        descend(np.empty_like(wide[0]), *wide, group, step)
        for x, w in zip(kept, (wide[0], *wide[2:])):
            x[...] = w
        return
    b1, b2 = map(float, group["betas"])
    lr, eps, decay = map(float, (group["lr"], group["eps"], group["weight_decay"]))
    c = math.sqrt(1 - b2**step)
    g = -g if group["maximize"] else g
    np.subtract(g, m, out=a)
    if b1 > 0.5:
        m += np.multiply(a, 1 - b1, out=a)
    else:  # nearer to g: from there, as torch's lerp, or what is left of a large m hides a small g
        np.subtract(g, np.multiply(a, b1, out=a), out=m)
    v *= b2
    v += np.square(np.multiply(g, math.sqrt(1 - b2), out=a), out=a)  # g² alone may be infinite, and v would be so for ever
    np.sqrt(np.maximum(largest[0], v, out=largest[0]) if group["amsgrad"] else v, out=a)
    a += c * eps
    np.divide(m, a, out=a)
    a *= c * lr / (1 - b1**step)
    if decay:
        p *= 1 - lr * decay
    p -= a


def _restored(name: str, value: Any, p: Tensor) -> Any:
    """What a state dict has under a name: a count, or a moment, a tensor's values too."""
    if name == "step":
        return int(value)
    return np.array(value.detach() if isinstance(value, Tensor) else value, dtype=p.dtype, order="C")  # as memory is walked


def _ordered(name: str, params: Any) -> list[Any]:
    if isinstance(params, set | frozenset):
        raise TypeError(f"AdamW: {name}: got a set, expected a list: the order of a set is another one in each run")
    return list(params)


def _check_trainable(i: int, p: Any) -> None:
    if not isinstance(p, Tensor):
        raise TypeError(f"AdamW: params[{i}]: got {type(p).__name__}, expected a leaf tensor")
    if not p.is_leaf:
        raise OptimError(f"AdamW: params[{i}]: got the result of an op, expected a leaf tensor")
    if p.dtype.kind != "f":
        raise OptimError(f"AdamW: params[{i}]: got dtype {p.dtype}, expected a floating dtype")


def _check_ways(given: dict[str, Any]) -> None:
    """What there is of WAYS among the settings."""
    for name, allowed in WAYS.items():
        if given.get(name, allowed[0]) not in allowed:
            why = "a step here is no graph of a GPU's, and no gradient goes through it"
            raise ValueError(f"AdamW: {name}: got {given[name]!r}, expected one of {allowed}: {why}")
    if given.get("foreach") and given.get("fused"):
        raise OptimError("AdamW: foreach, fused: got both, expected at most one of them")


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


# Clipping ---------------------------------------------------------------------------------------------------------------

SHORT, ROW = 1 << 14, 1 << 10
"""Elements whose squares are added in their own dtype: of an array of up to SHORT at once, of a longer one by rows."""
SMALL = 1e-28
"""A sum of squares below which those of single float32 may have been rounded to zero."""


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients by min(1, max_norm / (‖g‖ + 1e-6)), ‖g‖ the norm of all of them together; return ‖g‖.

    The norm is a float64 tensor without axes: it is added up in float64, so that it is right for any number of elements.
    norm_type is its power, math.inf for the largest |g|; foreach is taken and changes nothing. Pascanu et al. 2013,
    arXiv:1211.5063. Errors: ValueError for max_norm ≤ 0, RuntimeError for a norm that is not finite where error_if_nonfinite.
    """
    max_norm = _number("clip_grad_norm_", "max_norm", max_norm)
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: max_norm: got {max_norm!r}, expected a number > 0")
    grads = _gradients("clip_grad_norm_", parameters)
    options = {"norm_type": norm_type, "error_if_nonfinite": error_if_nonfinite}
    norm = _total_norm(*map(as_values, grads), name="clip_grad_norm_", **options)
    if hasattr(norm, "__record_call__"):  # its value is not known yet
        scale = np.minimum(max_norm / (norm + 1e-6), 1.0)  # of nan it is nan
        for g in grads:
            g._write(lambda a: _multiply(a, scale.astype(np.float32 if a.dtype == np.float16 else a.dtype)))
        return Tensor.from_array(norm)
    scale = max_norm / (float(norm) + 1e-6)
    if scale < 1 or math.isnan(scale):
        for g in grads:
            g._write(lambda a: _multiply(a, scale))
    return Tensor.from_array(norm)


def _multiply(a: Any, scale: Any) -> None:
    """a ← a · scale. A scale may be 0 in float16 where a · scale is not."""
    if a.dtype == np.float16:
        a[...] = a.astype(np.float32) * scale
    else:
        np.multiply(a, scale, out=a)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Limit each number of the gradients to [−clip_value, clip_value]. foreach is taken and changes nothing."""
    limit = _number("clip_grad_value_", "clip_value", clip_value)
    for g in _gradients("clip_grad_value_", parameters):
        g._write(lambda a: np.clip(a, -limit, limit, out=a))


def _number(name: str, argument: str, value: Any) -> float:
    """A number, or a tensor's only element, as a float."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: {argument}: got {value!r}, expected a number")
    return float(value)


def get_total_norm(
    tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """The norm of all tensors together, as clip_grad_norm_ returns it."""
    arrays = map(as_values, [tensors] if isinstance(tensors, Tensor) else tensors)
    options = {"norm_type": norm_type, "error_if_nonfinite": error_if_nonfinite}
    return Tensor.from_array(_total_norm(*arrays, name="get_total_norm", **options))


def _gradients(name: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    given = list(parameters)
    if not given and not isinstance(parameters, Sequence):
        warnings.warn(f"{name}: parameters: got an iterator that gives none, expected parameters; is it used up?", stacklevel=3)
    return [p.grad for p in given if p.grad is not None]


@opaque(lambda *arrays, **options: ((), np.dtype(np.float64)))
def _total_norm(*arrays: np.ndarray, name: str, norm_type: float, error_if_nonfinite: bool, out: Any = None) -> np.ndarray:
    """The norm of all together, an array without axes; in a program one call."""
    p = float(norm_type)
    if wrong := [a.dtype for a in arrays if a.dtype.kind != "f"]:
        raise OptimError(f"{name}: tensors: got dtype {wrong[0]}, expected floating dtypes")
    norm = _norm(arrays, p) if arrays else 0.0
    if error_if_nonfinite and not math.isfinite(norm):
        raise OptimError(f"{name}: got a gradient norm of {norm}, expected a finite one")
    out = np.empty(()) if out is None else out
    out[...] = norm
    return out


def _norm(arrays: Sequence[np.ndarray], p: float) -> float:
    """The p-norm of each array's p-norm: of all elements, as long as none is of no elements or p is 0."""
    if p == 2:
        return math.sqrt(norm_squared(pieces_of(arrays)))
    with np.errstate(divide="ignore", over="ignore"):
        each = np.array([np.linalg.norm(np.asarray(a, np.float64).reshape(-1), p) if a.size else 0.0 for a in arrays])
        return float(np.linalg.norm(each, p))


class Pieces(NamedTuple):
    """Arrays as norm_squared adds them: short ones, rows of long ones, and those whose own dtype is too small for it."""

    short: list[np.ndarray]
    rows: list[np.ndarray]
    half: list[np.ndarray]


def pieces_of(arrays: Iterable[np.ndarray]) -> Pieces:
    """Views of all elements of all arrays (copies of those that are not contiguous)."""
    pieces = Pieces([], [], [])
    for flat in (a.reshape(-1) for a in arrays):
        cut = flat.size // ROW * ROW if flat.size > SHORT else 0
        if flat.dtype == np.float16:
            pieces.half.append(flat)
            continue
        if cut:
            pieces.rows.append(flat[:cut].reshape(-1, ROW))
        pieces.short.append(flat[cut:])
    return pieces


def norm_squared(pieces: Pieces) -> float:
    """Σ x²: of a short array or a row in its own dtype, of these in float64. All in float64 where squares leave the dtype."""
    short, rows, half = pieces
    total = sum(map(float, map(np.ndarray.dot, short, short))) + sum(float(np.vecdot(a, a).sum(dtype=np.float64)) for a in rows)
    if half or not SMALL < total < math.inf:
        total = sum(float(np.vdot(a, a)) for a in (np.asarray(a, np.float64) for group in pieces for a in group))
    return total


# Schedules --------------------------------------------------------------------------------------------------------------


def warmup_cosine(step: int, lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> float:
    """The learning rate at `step` (0 is the first): linear from lr/warmup to lr, then half a cosine down to min_lr.

    Loshchilov & Hutter 2017, arXiv:1608.03983
    """
    lr, min_lr = plain(lr), plain(min_lr)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupCosine:
    """Sets the learning rate of every group of an optimizer by `warmup_cosine`; call step() after optimizer.step()."""

    def __init__(self, optimizer: AdamW, warmup_steps: int, total_steps: int, min_ratio: float = 0.1) -> None:
        min_ratio = plain(min_ratio)
        if warmup_steps < 0 or total_steps < 1 or not 0 <= min_ratio <= 1:
            raise ValueError(f"WarmupCosine: got warmup_steps={warmup_steps}, total_steps={total_steps}, "
                             f"min_ratio={min_ratio}, expected warmup_steps >= 0, total_steps >= 1, min_ratio in [0, 1]")
        self.optimizer, self.warmup_steps, self.total_steps, self.min_ratio = optimizer, warmup_steps, total_steps, min_ratio
        self.base_lrs = [plain(group["lr"]) for group in optimizer.param_groups]
        self.last_step = 0
        self._set()

    def step(self) -> None:
        """Advance by one and set the rate of the next optimizer step."""
        check_effect("WarmupCosine.step")
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
