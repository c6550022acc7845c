"""Ours against a parity pack: the same comparison as with PyTorch beside us, without PyTorch.   docs/parity_pack.md"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tinygrad_llm.checkpoint.file import faults_of
from tinygrad_llm.checkpoint.pack import load_pack
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import Transformer
from tinygrad_llm.optim import AdamW
from tinygrad_llm.policy import Comparison, compare_float32, compare_float64, scale_of

Tensors = dict[str, np.ndarray]


def check_pack(path: str | os.PathLike[str]) -> list[Comparison]:
    """Logits, loss, gradients, losses and weights after AdamW, float64 and float32, against the pack in this folder.

    Raises CheckpointError, naming the file, for a pack that is damaged, edited, or of another version; OSError.
    """
    about, files = load_pack(path)
    with faults_of(path, "a pack that cannot be computed", "one of `check --write-pack`"):
        config, optimizer, inputs = TransformerConfig.from_dict(about["config"]), dict(about["optimizer"]), files["inputs"]
        AdamW(Transformer(config).parameters(), **optimizer)
        if {"ids", "targets"} - set(inputs) or set(files["float64"]) != set(files["float32"]):
            raise ValueError("tensors: got other names, expected ids and targets, and the same in float64 and float32")
    truth, theirs = files["float64"], files["float32"]
    ours = {d: compute(config, files[d], inputs, optimizer, np.dtype(d)) for d in ("float64", "float32")}
    return list(_rows(ours, truth, theirs))


def compute(
    config: TransformerConfig, given: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray],
    optimizer: Mapping[str, Any], dtype: np.dtype,
) -> Tensors:  # fmt: skip
    """What a pack holds, computed by our model from the pack's weights."""
    model = Transformer(config, dtype=dtype.type)
    prefix = "weights."
    model.load_state_dict({n.removeprefix(prefix): value for n, value in given.items() if n.startswith(prefix)})
    model.eval()
    batches = list(zip(inputs["ids"], inputs["targets"]))
    loss = model.loss(*batches[0])
    loss.backward()
    out = {"logits": model(batches[0][0]).numpy(), "loss": loss.numpy()}
    out |= {f"grad.{name}": p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
    out["losses"] = _train(model, batches[1:], optimizer)
    return out | {f"after.{name}": p.numpy().copy() for name, p in model.named_parameters()}


def _train(model: Transformer, batches: list[Any], settings: Mapping[str, Any]) -> np.ndarray:
    optimizer, losses = AdamW(model.parameters(), **settings), []
    for ids, targets in batches:
        loss = model.loss(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.numpy())
    return np.array(losses, model.dtype)


def _rows(ours: Mapping[str, Tensors], truth: Tensors, theirs: Tensors) -> Iterator[Comparison]:
    gradient_scale = scale_of(value for name, value in truth.items() if name.startswith("grad."))
    for name, value in truth.items():
        if name.startswith("weights."):
            continue
        scale = gradient_scale if name.startswith("grad.") else scale_of([value])
        label = name.replace("grad.", "grad ", 1) if name.startswith("grad.") else name
        nothing = np.zeros(0)
        yield compare_float64(ours["float64"].get(name, nothing), value, label, scale)
        yield compare_float32(ours["float32"].get(name, nothing), theirs[name], value, label, scale)
