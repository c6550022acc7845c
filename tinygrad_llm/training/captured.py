"""The gradient of a worker's rows by replaying a program, recorded once for each shape, into the sum of all workers."""

from __future__ import annotations

import functools
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from tinygrad_llm.allocator import give_back_freed
from tinygrad_llm.autograd.modes import is_anomaly_enabled, is_grad_enabled, warn_user
from tinygrad_llm.autograd.randomness import rewind, states_of
from tinygrad_llm.capture.compiled import CaptureMismatch, are_bits
from tinygrad_llm.capture.ir import why_refused
from tinygrad_llm.capture.listing import first_difference
from tinygrad_llm.capture.outside import Effect
from tinygrad_llm.capture.passes import EXACT, FAST, Pass, optimize, plan_memory
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.rationing import Ration, Recent
from tinygrad_llm.capture.recordings import Recording, record
from tinygrad_llm.capture.replay import Replay
from tinygrad_llm.nn import Parameter
from tinygrad_llm.training.shards import EagerGradients, Part
from tinygrad_llm.training.turns import Sum, added, told

SHAPES, VARIANTS = 4, 4
"""For how many shapes of (ids, targets) programs are kept, the oldest unused is dropped; and how many each, of other modes."""


class CapturedGradients:
    """By replay. Where the model cannot be captured, a RuntimeWarning says why, and it is EagerGradients from then on."""

    def __init__(
        self, model: Any, trained: Sequence[Parameter], total: Sum, present: np.ndarray, passes: Sequence[Pass] = EXACT
    ) -> None:
        self.passes = tuple(step for step in passes if step is not plan_memory)  # which comes last, when the sums are there
        self.model, self.trained, self.total, self.present = model, trained, total, present
        alone = total.is_first and total.after is None
        self.checks = alone and passes is EXACT and os.environ.get("TINYGRAD_LLM_CAPTURE") == "check"
        self.refused = False
        self.ration: Any = None
        self._effects, self._asked = Recent(), Recent()
        self._key: Any = None
        self._programs: OrderedDict[Any, list[Step]] = OrderedDict()

    def __call__(self, parts: Sequence[Part]) -> list[float]:
        refused: Exception | None = None
        self.ration = self.ration or Ration(len(parts))
        began, recorded = perf_counter(), self.ration.recorded
        if not self.refused and not is_anomaly_enabled() and is_grad_enabled() and parts:
            try:
                steps: Any = [self._step(part, first=i == 0, alone=len(parts) == 1) for i, part in enumerate(parts)]
            except Exception as error:  # the model's own, if it raises one without capture as well
                refused = error
            else:
                began = began if self.ration.recorded == recorded else perf_counter()
                run = self._checked if self.checks else self._replayed
                if None not in steps and (losses := run(steps, parts)) is not None:
                    self.ration.add_replay(perf_counter() - began)
                    return losses
        began = perf_counter()
        losses = self._as_it_is(parts)
        self.ration.add_run(perf_counter() - began)
        if refused is not None:
            self._refuse(refused)
        return losses

    def _as_it_is(self, parts: Sequence[Part]) -> list[float]:
        return EagerGradients(self.model, self.trained, self.total, self.present)(parts)

    def _refuse(self, error: Exception) -> None:
        """No more capture; after an effect only if it is not done once for all, as a table that the model keeps."""
        if isinstance(error, Effect) and self._key not in self._effects:
            self._effects.add(self._key)
            return
        warn_user(f"training runs without capture: {why_refused(error)}")
        self.refused = True

    def _replayed(self, steps: Sequence[Step], parts: Sequence[Part]) -> list[float] | None:
        """The losses; None where a call has failed, which the model as it is may catch; not where other workers wait."""
        states = states_of([g for step in steps for g in step.drawn])
        try:
            return self._run(steps, parts)
        except Exception:
            if not self.total.is_first or self.total.after is not None:
                raise
            rewind(states)
            return None

    def _checked(self, steps: Sequence[Step], parts: Sequence[Part]) -> list[float] | None:
        """The same, after the model as it is has given the same bits. Errors: CaptureMismatch."""
        states = states_of([g for step in steps for g in step.drawn])
        if (losses := self._replayed(steps, parts)) is None:
            return None
        replayed, present = [np.copy(a) for a in self.total.arrays], self.present.copy()
        self.present[:] = 0
        rewind(states)
        expected = self._as_it_is(parts)
        names = {id(p): name for name, p in self.model.named_parameters()}
        wrong = ["loss"] if not np.array_equal(losses, expected, equal_nan=True) else []
        if math.isfinite(expected[-1]):
            wrong += [f"gradient of {names.get(id(p), p.shape)}" for p, a, b, was, now in
                      zip(self.trained, replayed, self.total.arrays, present, self.present)
                      if was != now or not are_bits(a, b)]
        if wrong:
            again = self._record(parts[0], lines=True)
            raise CaptureMismatch(f"training: {wrong[0]} of a replay is not that of the model: "
                                  f"{first_difference(steps[0].recorded, again.program)}")
        return expected

    def _run(self, steps: Sequence[Step], parts: Sequence[Part]) -> list[float]:
        losses: list[float] = []
        for step, part in zip(steps, parts):
            losses.append(step.run(part))
            if not math.isfinite(losses[-1]):
                return losses
            self.present |= step.present
        if len(parts) > 1 and not self.total.is_first:
            for i in np.flatnonzero(self.present).tolist():
                self.total.add(self._own[i], self.total.arrays[i])
        return losses

    @functools.cached_property
    def _own(self) -> list[np.ndarray]:
        """The sum of this worker's parts, where there are several: the first writes it into that of all."""
        arrays = self.total.arrays
        return list(arrays) if self.total.is_first else [np.zeros(a.shape, a.dtype) for a in arrays]

    def _step(self, part: Part, first: bool, alone: bool) -> Step | None:
        """The program of such a part; None where it is not worth recording one. The first of several writes this worker's sum,
        further ones add to it; one alone is added to that of all workers while it is made."""
        key = (part.ids.shape, part.targets.shape, part.ids.dtype, part.targets.dtype, first, alone)
        known, news, self._key = self._programs.get(key, []), f"a batch of shape {part.ids.shape}", key
        for step in known:
            if (why := step.around.changed()) is None:
                self._programs.move_to_end(key)
                return step
            news = why
        asked = key in self._asked
        self._asked.add(key)
        if not self.ration.allows(asked):
            if (said := self.ration.told(lambda: news)) is not None:
                warn_user(f"training: {said}")
            return None
        made: Step | None = None
        began = perf_counter()
        try:
            made = self._recorded(part, first, alone)
        finally:
            self.ration.add_recording(perf_counter() - began, made is not None)
        self._effects.discard(key)
        self._programs[key] = [made, *known][:VARIANTS]
        self._programs.move_to_end(key)
        if len(self._programs) > SHAPES:
            self._programs.popitem(last=False)
        return made

    def _recorded(self, part: Part, first: bool, alone: bool) -> Step:
        recording = self._record(part)
        index = {id(p): i for i, p in enumerate(self.trained)}
        found = {index[id(p)]: output for p, output, _ in recording.left if id(p) in index}
        program = optimize(recording.program, self.passes)
        step = (Step(recording, program, found, self.total) if alone
                else SumStep(recording, program, found, self._own, first))
        give_back_freed()
        return step

    def _record(self, part: Part, lines: bool = False) -> Recording:
        def loss_and_gradients(ids: Any, targets: Any, weight: Any) -> Any:
            loss = self.model.loss(ids, targets)
            loss.backward(np.reshape(weight, loss.shape).astype(loss.dtype))
            return loss

        args = [part.ids, part.targets, np.asarray(part.weight)]
        return record(loss_and_gradients, args, self.model, roots=[self.model, self.model.loss],
                      lines=lines, order="C")


FastGradients = functools.partial(CapturedGradients, passes=FAST)


class Step:
    """A program, planned, and bound to a worker's inputs, and to the sum of all workers' gradients.

    found    parameter → output of the program, of those that have a gradient
    """

    def __init__(self, recording: Recording, program: Program, found: dict[int, int], total: Sum) -> None:
        if not total.is_first:
            program = added(program, found, total)
        elif total.after is not None:
            program = told(program, found, total)
        outputs = {found[i]: total.arrays[i] for i in found} if total.is_first else {}
        self._bind(recording, program, outputs, found, len(total.arrays))
        self.zero = [a for i, a in enumerate(total.arrays) if i not in found] if total.is_first else []

    def _bind(self, recording: Recording, program: Program, outputs: Any, found: dict[int, int], parameters: int) -> None:
        self.around, self.drawn, self.recorded = recording.around, recording.drawn, recording.program
        self.replay = Replay(plan_memory(program), outputs)
        self.loss = self.replay.outputs[recording.results[0][0].number]
        self.present = np.array([i in found for i in range(parameters)], np.uint8)

    def run(self, part: Part) -> float:
        """Loss of the part; the gradient of its weighted loss goes to its place."""
        for place, value in zip(self.replay.inputs, part):
            place[...] = value
        self.replay.run()
        for absent in self.zero:
            absent.fill(0)
        return float(self.loss.item())


class SumStep(Step):
    """The same for one of several parts: it writes (first) the worker's own sum of gradients, or adds to it."""

    def __init__(
        self, recording: Recording, program: Program, found: dict[int, int], own: Sequence[np.ndarray], first: bool
    ) -> None:
        self._bind(recording, program, {found[i]: own[i] for i in found} if first else {}, found, len(own))
        self.zero = [a for i, a in enumerate(own) if i not in found] if first else []
        self.sums = [] if first else [(own[i], self.replay.outputs[output]) for i, output in found.items()]

    def run(self, part: Part) -> float:
        loss = super().run(part)
        for total, more in self.sums:
            np.add(total, more, out=total)
        return loss
