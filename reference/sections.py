"""The report as data: everything that one run of `check` found. Terminal, HTML and JSON are views of it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from reference.accuracy import Accuracy
from reference.activation_gradients import ActivationGradients
from reference.activations import Activations, Growth
from reference.equivalence import TrainingComparison
from reference.killtable import Kill
from reference.ops_report import OpRow
from reference.trajectories import Trajectories
from tinygrad_llm.policy import Comparison, geometric_mean_ratio


@dataclass
class Report:
    """One run. A section that was not asked for is None or empty.

    environment   name -> text
    about         what was compared, in a line or two
    config        of the model
    ops           a row per op, dtype and device
    model         logits, loss, gradients
    training      AdamW steps side by side
    accuracy      float32 gradients of three sizes of model, over many draws
    """

    environment: Mapping[str, str]
    about: str
    config: Mapping[str, Any]
    ops: list[OpRow] = field(default_factory=list)
    model: list[Comparison] = field(default_factory=list)
    training: TrainingComparison | None = None
    activations: Activations | None = None
    activation_gradients: ActivationGradients | None = None
    accuracy: list[Accuracy] = field(default_factory=list)
    depth: Growth | None = None
    length: Growth | None = None
    trajectories: Trajectories | None = None
    kills: list[Kill] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def comparisons(self) -> list[Comparison]:
        """Rows of the strict comparisons of the model."""
        inside = [part.rows for part in (self.activations, self.activation_gradients) if part]
        return [*self.model, *chain(*inside), *(self.training.rows if self.training else ())]

    @property
    def failures(self) -> list[str]:
        """What was found wrong, a line each; empty means equal."""
        failed = [f"{row.op} ({row.dtype}, {row.device}): {row.verdict}; {row.detail}" for row in self.ops if row.failed]
        failed += [str(row) for row in self.comparisons if row.failed]
        failed += [str(row) for row in self.accuracy if row.failed]
        if self.trajectories and not self.trajectories.like_rounding:
            failed.append(self.trajectories.sentence)
        return failed + [f"kill table: {kill.part}: {kill.bug}: survived" for kill in self.kills if not kill.killed_by]

    @property
    def passed(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The whole as JSON values; infinities and NaN, which JSON does not know, become null."""
        losses = {name: values.tolist() for name, values in self.training.losses.items()} if self.training else {}
        rows = [{**dataclasses.asdict(row), "passed": row.passed} for row in self.comparisons]
        data = {
            "passed": self.passed, "failures": self.failures, "seconds": self.seconds, "environment": dict(self.environment),
            "config": dict(self.config), "comparisons": rows, "losses": losses,
            "ops": [dataclasses.asdict(row) for row in self.ops],
            "first_diverging": _first(self.activations), "first_diverging_gradient": _first(self.activation_gradients),
            "accuracy": [_accuracy(row) for row in self.accuracy],
            "depth": self.depth and dataclasses.asdict(self.depth), "length": self.length and dataclasses.asdict(self.length),
            "trajectories": self.trajectories and _trajectories(self.trajectories),
            "kill_table": [{**dataclasses.asdict(kill), "killed_by": kill.killed_by} for kill in self.kills],
        }  # fmt: skip
        return finite(data)


def verdict_counts(rows: list[OpRow]) -> str:
    """ "57 equal, 2 inconclusive" """
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(row.verdict.value for row in rows).most_common())


def ops_ratio(rows: list[OpRow]) -> float:
    """The geometric mean over ops of ours / torch's float32 error; NaN where there is none."""
    return geometric_mean_ratio(Comparison(row.op, row.dtype, row.verdict, row.error, None, row.ratio) for row in rows)


def finite(value: Any) -> Any:
    """The same tree with None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first(part: Any) -> str | None:
    return part.first.name if part and part.first else None


def _accuracy(found: Accuracy) -> dict[str, Any]:
    said = {"median": found.median, "interval": found.interval}
    return {**dataclasses.asdict(found), **said, "verdict": found.verdict, "passed": not found.failed}


def _trajectories(found: Trajectories) -> dict[str, Any]:
    verdict = {"like_rounding": found.like_rounding, "rule_bites": found.rule_bites, "sentence": found.sentence}
    return {**dataclasses.asdict(found), **verdict}
