"""The inside of the model: activations module by module, and how errors grow with depth and with the length of sums.

Both models run on the same weights and tokens, and what each module returns is kept: by a forward hook in torch, by a
wrapper around `forward` in ours, matched by the module's name. A tensor diverges where it misses the tolerance policy; the
first that does, in the order of the calls, is where to look, since all later ones inherit its error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from reference.equivalence import our_model, random_state, torch_model
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.policy import Comparison, as_array, compare_float32, compare_float64

Arrays = dict[str, np.ndarray]
MakeOurs = Callable[[TransformerConfig, Any], Any]


@dataclass(frozen=True)
class Activations:
    """rows: float64 and float32, in the order of the calls; first: the first failing row; bits: the first tensor of which
    ours and torch's float32 differ at all, however little.
    """

    rows: list[Comparison]
    first: Comparison | None
    bits: str

    @property
    def sentence(self) -> str:
        """Where the two models part."""
        if self.first is not None:
            return f"first diverging tensor: {self.first}"
        where = f"float32 bits first differ in {self.bits}, by rounding" if self.bits else "all float32 bits are the same"
        return f"no tensor diverges; {where}"


@dataclass(frozen=True)
class Growth:
    """How errors grow: at each x (blocks passed, or numbers added up) the float32 error, ours and torch's."""

    x: list[int]
    ours: list[float]
    torch: list[float]

    @property
    def slopes(self) -> tuple[float, float]:
        """Exponents of error ~ xᵏ, ours and torch's: 0.5 is a random walk, 1 a bias."""
        logs = np.log(np.maximum(self.x, 1))
        ours, theirs = (np.polyfit(logs, np.log(np.maximum(e, 1e-12)), 1)[0] for e in (self.ours, self.torch))
        return float(ours), float(theirs)


def compare_activations(
    make_ours: MakeOurs, config: TransformerConfig, ids: Any, state: Mapping[str, np.ndarray] | None = None, seed: int = 0
) -> Activations:
    """Every module's output in both models, float64 and float32. make_ours(config, dtype) gives our model."""
    runs = record_all(make_ours, config, ids, state, seed)
    names = [name for name in runs["torch float64"] if name in runs["ours float64"]]
    rows = []
    for name in names:
        truth = runs["torch float64"][name]
        rows.append(compare_float64(runs["ours float64"][name], truth, name))
        rows.append(compare_float32(runs["ours float32"][name], runs["torch float32"][name], truth, name))
    differing = (n for n in names if not np.array_equal(runs["ours float32"][n], runs["torch float32"][n], equal_nan=True))
    return Activations(rows, next((row for row in rows if row.failed), None), next(differing, ""))


def growth_with_depth(make_ours: MakeOurs, config: TransformerConfig, ids: Any, blocks: int = 12, seed: int = 0) -> Growth:
    """Root mean square error after each block, over the root mean square of the residual stream."""
    deep = replace(config, n_layers=blocks)
    runs = record_all(make_ours, deep, ids, None, seed)
    names = [f"blocks.{i}" for i in range(blocks)]
    sides = [[_relative(runs[f"{who} float32"][n], runs["torch float64"][n]) for n in names] for who in ("ours", "torch")]
    return Growth(list(range(1, blocks + 1)), sides[0], sides[1])


def growth_with_length(
    make_ours: MakeOurs, config: TransformerConfig, lengths: Sequence[int] = (8, 32, 128, 512), batch: int = 4, seed: int = 0
) -> Growth:
    """Relative error of all parameter gradients of one block, each a sum over batch · T rows."""
    ours, theirs = [], []
    for length in lengths:
        long = replace(config, n_layers=1, context_length=length)
        tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(batch, length + 1))
        weights = random_state(long, seed)
        truth = _gradient(torch_model(long, weights, "float64"), tokens)
        theirs.append(_relative(_gradient(torch_model(long, weights, "float32"), tokens), truth))
        ours.append(_relative(_gradient(our_model(partial(make_ours, long), weights, "float32"), tokens), truth))
    return Growth([batch * n for n in lengths], ours, theirs)


def record_all(
    make_ours: MakeOurs, config: TransformerConfig, ids: Any, state: Mapping[str, np.ndarray] | None, seed: int
) -> dict[str, Arrays]:
    """"ours float64", "torch float64", "ours float32", "torch float32" -> activations by name."""
    weights, runs = random_state(config, seed) if state is None else state, {}
    for dtype in ("float64", "float32"):
        runs[f"ours {dtype}"] = record_ours(our_model(partial(make_ours, config), weights, dtype), np.asarray(ids))
        runs[f"torch {dtype}"] = record_torch(torch_model(config, weights, dtype), torch.from_numpy(np.array(ids)))
    return runs


def record_ours(model: Any, ids: Any) -> Arrays:
    """What each module of our model returns, by its name; a module called again has #2, #3, ... after its name."""
    kept: Arrays = {}
    with watched([(name, module) for name, module in model.named_modules() if name], partial(_watching, kept)):
        kept["logits"] = as_array(model(ids)).copy()
    return kept


def record_torch(model: torch.nn.Module, ids: torch.Tensor) -> Arrays:
    """The same of the torch model, by forward hooks."""
    kept: Arrays = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: _keep(kept, name, out))
        for name, module in model.named_modules() if name
    ]  # fmt: skip
    try:
        with torch.no_grad():
            kept["logits"] = as_array(model(ids)).copy()
    finally:
        for hook in hooks:
            hook.remove()
    return kept


@contextmanager
def watched(modules: Sequence[tuple[str, Any]], watching: Callable[[Callable[..., Any], str], Any]) -> Iterator[None]:
    """Inside, each module's forward is watching(forward, name)."""
    for name, module in modules:
        vars(module)["forward"] = watching(module.forward, name)
    try:
        yield
    finally:
        for _, module in modules:
            del vars(module)["forward"]


def _watching(kept: Arrays, forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    def kept_forward(*args: Any, **options: Any) -> Any:
        out = forward(*args, **options)
        _keep(kept, name, out)
        return out

    return kept_forward


def _keep(kept: Arrays, name: str, out: Any) -> None:
    count = sum(other.partition("#")[0] == name for other in kept)
    kept[f"{name}#{count + 1}" if count else name] = as_array(out).copy()


def _gradient(model: Any, tokens: np.ndarray) -> np.ndarray:
    """All parameter gradients as one vector."""
    sides = [tokens[:, :-1], tokens[:, 1:]]
    model.loss(*[torch.from_numpy(s) if isinstance(model, torch.nn.Module) else s for s in sides]).backward()
    return np.concatenate([as_array(p.grad).ravel() for _, p in model.named_parameters()])


def _relative(x: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64) - truth) / np.linalg.norm(truth))
