"""The inside of backward: d loss / d activation, from the last back to the embedding, ours beside torch's.

Of every module two gradients are kept: of what it returned, "d NAME", and of what it was given, "d NAME.input", by way of this
module alone. Backward meets them in the reverse order of the calls. Where the first is right and the second is wrong,
the vjp inside of this module is wrong: a layer norm with a wrong vjp is named by its own input, not by whatever shares
the residual stream with it. What stands between modules (attention itself, the residual sums, the loss) shows in the
gradient of the module before it: attention's in "d attn.qkv_proj", that of the loss (in ours one op with lm_head, without
logits) in "d final_norm". Where an activation was wrong already, its gradient inherits that: see reference.activations first.

The loss is the sum over all tokens, not the mean: gradients are then of order one, as are the activations, and the policy of
tinygrad_llm.policy applies as it is written there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from reference.activations import watched
from reference.equivalence import our_model, random_state, torch_model
from reference.neighbours import excused
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.policy import Comparison, as_array, compare_float32, compare_float64, scale_of

Arrays = dict[str, np.ndarray]
MakeOurs = Callable[[TransformerConfig, Any], Any]


@dataclass(frozen=True)
class ActivationGradients:
    """rows: float64 and float32, in the order of backward; first: the first of them that fails."""

    rows: list[Comparison]
    first: Comparison | None

    @property
    def sentence(self) -> str:
        """Where the two backward passes part."""
        if self.first is None:
            return f"no gradient of an activation diverges ({len(self.rows) // 2} compared, from the last back)"
        return f"first diverging gradient, from the last back: {self.first}"


def compare_activation_gradients(
    make_ours: MakeOurs, config: TransformerConfig, ids: Any, targets: Any, state: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> ActivationGradients:  # fmt: skip
    """Gradients of every module's output and input in both models, float64 and float32. make_ours(config, dtype) is ours."""
    weights = random_state(config, seed) if state is None else state
    run_torch = partial(_torch_gradients, config, ids, targets)
    ours = {d: gradients_of(our_model(partial(make_ours, config), weights, d), ids, targets) for d in ("float64", "float32")}
    truth, theirs = run_torch(weights, "float64"), run_torch(weights, "float32")
    names = [name for name in truth if name in ours["float64"]]
    scale = scale_of(truth.values())
    rows = []
    for name in names:
        rows.append(compare_float64(ours["float64"][name], truth[name], name, scale))
        rows.append(compare_float32(ours["float32"][name], theirs[name], truth[name], name, scale))
    rows = excused(rows, weights, run_torch, dict.fromkeys(names, scale), {})
    return ActivationGradients(rows, next((row for row in rows if row.failed), None))


def gradients_of(model: Any, ids: Any, targets: Any) -> Arrays:
    """"d NAME" and "d NAME.input" of our model or of torch's, in the order of backward; a second call is NAME#2, and so on."""
    is_torch = isinstance(model, torch.nn.Module)
    passed: list[tuple[str, Any]] = []
    ids, targets = (torch.tensor(np.array(a)) if is_torch else np.array(a) for a in (ids, targets))
    with _torch_watched(model, passed) if is_torch else watched(list(_named(model)), partial(_watching, passed)):
        loss = model.loss(ids, targets) * float(np.prod(ids.shape))
    loss.backward()
    return {f"d {name}": as_array(tensor.grad).copy() for name, tensor in reversed(passed) if tensor.grad is not None}


def _torch_gradients(
    config: TransformerConfig, ids: Any, targets: Any, weights: Mapping[str, np.ndarray], dtype: str
) -> Arrays:
    return gradients_of(torch_model(config, weights, dtype), ids, targets)


@contextmanager
def _torch_watched(model: torch.nn.Module, passed: list[tuple[str, Any]]) -> Iterator[None]:
    handles = []
    for name, module in _named(model):
        handles.append(module.register_forward_pre_hook(
            lambda _, args, name=name: (_entering(passed, name, args[0]), *args[1:])
        ))  # fmt: skip
        handles.append(module.register_forward_hook(lambda _, __, out, name=name: _leaving(passed, name, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watching(passed: list[tuple[str, Any]], forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    def marked_forward(x: Any, *args: Any, **options: Any) -> Any:
        return _leaving(passed, name, forward(_entering(passed, name, x), *args, **options))

    return marked_forward


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules that are called: the list of blocks is not; the model itself returns the logits."""
    return ((name or "logits", module) for name, module in model.named_modules() if name != "blocks")


def _entering(passed: list[tuple[str, Any]], name: str, x: Any) -> Any:
    """x, through a view of its own, so that its gradient is what comes through this module and no other."""
    if not getattr(x, "requires_grad", False):
        return x
    return _kept(passed, f"{name}.input", x.reshape(x.shape) if not isinstance(x, torch.Tensor) else x.view_as(x))


def _leaving(passed: list[tuple[str, Any]], name: str, out: Any) -> Any:
    return _kept(passed, name, out) if getattr(out, "requires_grad", False) else out


def _kept(passed: list[tuple[str, Any]], name: str, tensor: Any) -> Any:
    tensor.retain_grad()
    stem, dot, end = name.partition(".input")
    count = sum(other.partition("#")[0].removesuffix(".input") == stem and other.endswith(".input") == bool(dot)
                for other, _ in passed)  # fmt: skip
    passed.append((f"{stem}#{count + 1}{dot}{end}" if count else name, tensor))
    return tensor
