"""Which device is wrong, and by how much: torch on a device beside torch on the CPU, both against float64 on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reference.environment import precision
from reference.equivalence import model_results, random_state, torch_model
from reference.opdraw import draw_calls, run_ours, run_torch
from reference.sections import finite
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.ops import REGISTRY
from tinygrad_llm.policy import (
    FLOAT32_RATIO,
    FLOAT32_TOL,
    Comparison,
    compare_float32,
    geometric_mean_ratio,
    scale_of,
)


@dataclass(frozen=True)
class DeviceReport:
    """A row per op and per quantity of the model; in a row, `error` is the device's and `torch_error` the CPU's.

    ours: the float32 error of our own op, by the name of the row.
    """

    device: str
    precision: str
    rows: list[Comparison]
    ours: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether neither device was found wrong."""
        return not self.wrong and not self.wrong_cpu

    @property
    def wrong(self) -> list[Comparison]:
        """Where the device is wrong, the worst first."""
        return sorted((row for row in self.rows if row.failed), key=lambda row: -row.error)

    @property
    def wrong_cpu(self) -> list[Comparison]:
        """Where the CPU is wrong: beyond the tolerance, and more than 4 times as far off as the device."""
        wrong = [row for row in self.rows if row.torch_error is not None and row.torch_error > FLOAT32_TOL]
        return [row for row in wrong if (row.torch_error or 0) > FLOAT32_RATIO * row.error]

    @property
    def sentence(self) -> str:
        """The answer in words."""
        blamed = ((self.device, self.wrong), ("cpu", self.wrong_cpu))
        said = [_blame(name, found, self.device) for name, found in blamed if found]
        ratio = f"float32 error {self.device} / CPU: geometric mean {geometric_mean_ratio(self.rows):.2f}"
        return "; ".join([*(said or ["Neither device is wrong"]), ratio]) + "."

    def worst(self, count: int) -> list[Comparison]:
        """What failed, then the rows with the largest ratios."""
        rest = sorted((row for row in self.rows if not row.failed), key=lambda row: -(row.ratio or 0))
        return (self.wrong + rest)[: max(count, len(self.wrong))]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return finite({"passed": self.passed, "sentence": self.sentence, **dataclasses.asdict(self)})


def compare_device(
    device: str, config: TransformerConfig, ids: np.ndarray, targets: np.ndarray, seed: int = 0,
    state: Mapping[str, np.ndarray] | None = None,
) -> DeviceReport:  # fmt: skip
    """Every op, and the model's logits, loss and gradients. The device must exist (reference.train.find_device)."""
    rows, ours = _op_rows(device, seed)
    weights = random_state(config, seed) if state is None else state
    return DeviceReport(device, precision(), rows + _model_rows(device, config, weights, ids, targets), ours)


def _op_rows(device: str, seed: int) -> tuple[list[Comparison], dict[str, float]]:
    rows, ours = [], {}
    for name in sorted(REGISTRY):
        found, errors = [], [0.0]
        for call in draw_calls(REGISTRY[name], seed):
            truth, cpu, there = run_torch(call, np.float64), run_torch(call, np.float32), run_torch(call, np.float32, device)
            mine = run_ours(call, np.float32)
            for i, what in enumerate(call.names):
                if truth[i].dtype == np.float64 and cpu[i].dtype == np.float32:
                    found.append(compare_float32(there[i], cpu[i], truth[i], f"{name}: {what}"))
                    errors.append(compare_float32(mine[i], cpu[i], truth[i]).error)
        if found:
            worst = max(found, key=lambda row: (row.failed, row.error))
            rows.append(dataclasses.replace(worst, name=name))
            ours[name] = max(errors)
    return rows, ours


def _model_rows(
    device: str, config: TransformerConfig, weights: Mapping[str, np.ndarray], ids: np.ndarray, targets: np.ndarray
) -> list[Comparison]:
    truth = model_results(torch_model(config, weights, "float64"), ids, targets)
    cpu = model_results(torch_model(config, weights, "float32"), ids, targets)
    there = model_results(torch_model(config, weights, "float32").to(torch.device(device)), ids, targets)
    scale = scale_of(value for name, value in truth.items() if name.startswith("grad "))
    return [
        compare_float32(there[name], cpu[name], value, name, scale if name.startswith("grad ") else scale_of([value]))
        for name, value in truth.items()
    ]


def _blame(name: str, found: list[Comparison], device: str) -> str:
    worst = found[0]
    errors = {device: worst.error, "cpu": worst.torch_error or 0.0}
    other = next((n for n in errors if n != name), "cpu")
    return (
        f"{name} is wrong in {len(found)} quantities, worst in {worst.name}: "
        f"error {errors[name]:.1e}, that of {other} {errors[other]:.1e}"
    )
