"""The gradient of a worker's rows by replaying a program, recorded once for each shape, into the flat buffer."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd.modes import is_anomaly_enabled, is_grad_enabled
from tinygrad_llm.capture import CaptureError
from tinygrad_llm.capture.compiled import Recording, record
from tinygrad_llm.capture.passes import optimize
from tinygrad_llm.capture.replay import Replay
from tinygrad_llm.nn import Parameter
from tinygrad_llm.training.shards import EagerGradients, Gradients, Part

SHAPES = 4
"""For how many shapes of (ids, targets) a program is kept; the oldest unused is dropped."""


class CapturedGradients:
    """By replay. Where the model cannot be captured, a RuntimeWarning says why, and it is EagerGradients from then on."""

    def __init__(self, model: Any, trained: Sequence[Parameter], gradients: Sequence[np.ndarray], present: np.ndarray) -> None:
        self.model, self.trained, self.gradients, self.present = model, trained, gradients, present
        self.modules, self.parameters = list(model.modules()), list(model.parameters())
        self.eager: Gradients | None = None
        self._programs: OrderedDict[Any, Step] = OrderedDict()

    def __call__(self, parts: Sequence[Part]) -> list[float]:
        if self.eager is None and not is_anomaly_enabled() and is_grad_enabled():
            try:
                steps = [self._step(part, first=i == 0) for i, part in enumerate(parts)]
            except CaptureError as error:
                warnings.warn(f"training runs without capture: {error}", RuntimeWarning, stacklevel=2)
                self.eager = EagerGradients(self.model, self.trained, self.gradients, self.present)
            else:
                return self._run(steps, parts)
        eager = self.eager or EagerGradients(self.model, self.trained, self.gradients, self.present)
        return eager(parts)

    def _run(self, steps: Sequence[Step], parts: Sequence[Part]) -> list[float]:
        losses: list[float] = []
        for step, part in zip(steps, parts):
            losses.append(step.run(part))
            if not math.isfinite(losses[-1]):
                break
            self.present |= step.present
        return losses

    def _step(self, part: Part, first: bool) -> Step:
        """The program of such a part. Further parts add to the gradient, and so have one of their own."""
        modes = bytes([m.training for m in self.modules]), bytes([p.requires_grad for p in self.parameters])
        key = (part.ids.shape, part.targets.shape, first, modes)
        step = self._programs.get(key)
        if step is None:
            step = self._programs[key] = Step(self._record(part), self.trained, self.gradients, first)
            if len(self._programs) > SHAPES:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return step

    def _record(self, part: Part) -> Recording:
        def loss_and_gradients(ids: Any, targets: Any, weight: Any) -> Any:
            loss = self.model.loss(ids, targets)
            loss.backward(weight)
            return loss

        dtype = next(iter(self.parameters)).dtype
        return record(loss_and_gradients, [part.ids, part.targets, np.asarray(part.weight, dtype)], self.model)


class Step:
    """A planned program bound to the flat gradient (first), or to memory of its own that is then added to it."""

    def __init__(
        self, recording: Recording, trained: Sequence[Parameter], gradients: Sequence[np.ndarray], first: bool
    ) -> None:
        index = {id(p): i for i, p in enumerate(trained)}
        found = {index[id(p)]: output for p, output in recording.leaves if id(p) in index}
        self.replay = Replay(optimize(recording.program), {found[i]: gradients[i] for i in found} if first else {})
        self.loss = self.replay.outputs[recording.results[0][0].number]
        self.present = np.array([i in found for i in range(len(trained))], np.uint8)
        self.absent = [g for i, g in enumerate(gradients) if i not in found] if first else []
        self.sums = [] if first else [(gradients[i], self.replay.outputs[output]) for i, output in found.items()]

    def run(self, part: Part) -> float:
        """Loss of the part; the gradient of its weighted loss is written, or added."""
        for place, value in zip(self.replay.inputs, part):
            place[...] = value
        self.replay.run()
        for absent in self.absent:
            absent.fill(0)
        for total, more in self.sums:
            np.add(total, more, out=total)
        return float(self.loss)
