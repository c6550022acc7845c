"""Writes parity packs: what the torch model computes, float64 and float32.   docs/parity_pack.md"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from reference.bridge import numpy_gradients, numpy_state
from reference.equivalence import random_state, torch_model
from tinygrad_llm.checkpoint.pack import FILES, save_pack
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.policy import FLOAT32_RATIO, FLOAT32_TOL, FLOAT64_ATOL, FLOAT64_RTOL, as_array

ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-3, "weight_decay": 0.1}


def write_pack(
    path: str | os.PathLike[str], config: TransformerConfig, ids: np.ndarray, targets: np.ndarray,
    state: Mapping[str, np.ndarray] | None = None, seed: int = 0,
) -> int:  # fmt: skip
    """A pack of a model of this config; ids, targets int64 [1 + steps, B, T]. Returns the number of files.

    eps is 1e-3 and not 1e-8: Adam divides a gradient by its own size, so that with a small eps an entry whose gradient is
    rounding noise makes whole steps of it, in any implementation, and no tolerance could be stated for the final weights.
    """
    weights = random_state(config, seed) if state is None else state
    files = {d: _computed(config, weights, ids, targets, d) for d in ("float64", "float32")}
    files["inputs"] = {"ids": np.asarray(ids, np.int64), "targets": np.asarray(targets, np.int64)}
    about = {
        "config": config.to_dict(), "optimizer": ADAMW, "steps": len(ids) - 1, "seed": seed,
        "made_by": f"torch {torch.__version__}",
        "tolerance": {"float64": [FLOAT64_ATOL, FLOAT64_RTOL], "float32": [FLOAT32_TOL, FLOAT32_RATIO]},
    }  # fmt: skip
    save_pack(path, about, files)
    return len(FILES) + 1


def _computed(
    config: TransformerConfig, weights: Mapping[str, np.ndarray], ids: np.ndarray, targets: np.ndarray, dtype: str
) -> dict[str, np.ndarray]:
    model = torch_model(config, weights, dtype)
    out: dict[str, np.ndarray] = {f"weights.{name}": value for name, value in numpy_state(model).items()}
    pairs = [(torch.tensor(i), torch.tensor(t)) for i, t in zip(ids, targets)]
    loss = model.loss(*pairs[0])
    loss.backward()
    out |= {"logits": as_array(model(pairs[0][0])).copy(), "loss": as_array(loss).copy()}
    out |= {f"grad.{name}": value for name, value in numpy_gradients(model).items()}
    out["losses"] = _train(model, pairs[1:], dtype)
    return out | {f"after.{name}": as_array(p).copy() for name, p in model.named_parameters()}


def _train(model: Any, pairs: list[Any], dtype: str) -> np.ndarray:
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses = []
    for ids, targets in pairs:
        loss = model.loss(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses, dtype)
