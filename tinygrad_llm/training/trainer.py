"""Trainer: forward, backward, clip, step; once, or until a run is done."""

from __future__ import annotations

import functools
import math
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np

from tinygrad_llm import threads
from tinygrad_llm.data import Tokenizer
from tinygrad_llm.nn import Module
from tinygrad_llm.optim import AdamW, WarmupCosine, clip_grad_norm_
from tinygrad_llm.training.captured import CapturedGradients, FastGradients
from tinygrad_llm.training.cores import choose_workers
from tinygrad_llm.training.evaluation import Batch
from tinygrad_llm.training.fitting import FitResult, Fitting, Options
from tinygrad_llm.training.shards import EagerGradients, MakeGradients, count_targets, split
from tinygrad_llm.training.workers import Team, WorkerError

COMPUTE: dict[Any, MakeGradients] = {False: EagerGradients, True: CapturedGradients, "fast": FastGradients}


class Trainer:
    """Trains a model whose `loss(ids, targets)` is the mean over the targets, int [B, T], that are not −100.

    schedule     has step(), called after each optimizer step
    grad_clip    largest L2 norm of all gradients together; None: no limit
    accumulate   split each batch into so many parts, one after the other, to need less memory. The gradient is that of
                 the whole batch, whatever the sizes of the parts; only the rounding differs, and the masks of dropout
    workers      so many processes, this one among them, share the rows of each batch and the update, BLAS with one
                 thread in each; "auto": one for each core, or 1 where a step is too short to be worth sharing, decided by
                 the first batch. For each number the bits are always the same; between numbers the rounding differs,
                 and the masks of dropout. See docs/workers.md
    capture      record the step as a program of NumPy calls and replay it: to the same bits, in less time and memory; "fast":
                 in less time yet, but other rounding. Where the model cannot be captured, a RuntimeWarning says why.
                 See docs/capture.md
    start_method how processes are started: fork, spawn or forkserver; None: what Python does on this system

        trainer = Trainer(model, AdamW(model.parameters(), lr=1e-3), grad_clip=1.0)
        loss = trainer.step(ids, targets)            for a loop of one's own
        result = trainer.fit(loader, steps=1000)     for everything else
        trainer.close()                              ends the worker processes; so does leaving `with Trainer(...)`

    After a step: `steps_done`, `lr` (of the first parameter group, in that step), `grad_norm` (before clipping).
    Raises TypeError or ValueError, naming the argument.
    """

    def __init__(
        self, model: Module, optimizer: AdamW, *, schedule: WarmupCosine | None = None, grad_clip: float | None = None,
        accumulate: int = 1, workers: int | str = 1, capture: bool | str = False,
        start_method: str | None = None,
    ) -> None:
        if not hasattr(model, "loss"):
            raise TypeError(f"model: got {type(model).__name__}, expected a module with loss(ids, targets)")
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected an optimizer such as AdamW")
        if schedule is not None and not hasattr(schedule, "step"):
            raise TypeError(f"schedule: got {schedule!r}, expected a schedule such as WarmupCosine, or None")
        if grad_clip is not None and not (isinstance(grad_clip, int | float | np.number) and 0 < grad_clip < math.inf):
            raise ValueError(f"grad_clip: got {grad_clip!r}, expected a number > 0, or None for no limit")
        if type(accumulate) is not int or accumulate < 1:
            raise ValueError(f"accumulate: got {accumulate!r}, expected an integer >= 1")
        if workers != "auto" and (type(workers) is not int or workers < 1):
            raise ValueError(f"workers: got {workers!r}, expected an integer >= 1, or 'auto'")
        if not isinstance(capture, bool | str) or capture not in COMPUTE:
            raise ValueError(f"capture: got {capture!r}, expected True, False or 'fast'")
        if start_method not in (None, *multiprocessing.get_all_start_methods()):
            raise ValueError(f"start_method: got {start_method!r}, expected None or one of "
                             f"{', '.join(multiprocessing.get_all_start_methods())}")
        if workers not in ("auto", 1) and not _steps_plainly(optimizer):
            raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected AdamW with more than one worker")
        if capture and not _is_adamw(optimizer):
            raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected AdamW with capture")
        self.model: Any = model
        self.optimizer, self.schedule, self.grad_clip, self.accumulate = optimizer, schedule, grad_clip, accumulate
        self.workers, self.automatic, self.start_method = workers, workers == "auto", start_method
        self.capture, self._told, self._stepping = capture, False, False
        self._team: Team | None = None
        self.steps_done, self.lr = 0, math.nan
        self._grad_norm: float | None = math.nan

    def step(self, ids: Any, targets: Any) -> float:
        """One optimizer step on a batch, int [B, T] each; returns the loss before it, in nats per token.

        Raises FloatingPointError, naming the step, where the loss or the gradient is not finite: then weights and
        optimizer are as they were before this step. WorkerError where a worker process has ended: it says how they are.
        RuntimeError where another thread is in a step of this trainer.
        """
        if self._stepping:
            raise RuntimeError("step: got a call while another thread is in one, expected one at a time")
        ids, targets = _as_rows(ids), _as_rows(targets if targets is not ids else np.array(targets))
        self._stepping = True
        try:
            self._zero_grad()
            team = self._prepared(ids, targets)
            with threads.suited_to(self._matrix_size, ids.size // self.accumulate):
                loss = self._step(ids, targets) if team is None else self._step_together(team, ids, targets)
            if self.schedule is not None:
                self.schedule.step()
            self.steps_done += 1
        finally:
            self._zero_grad()
            self._stepping = False
        return loss

    def fit(
        self,
        batches: Iterable[Batch],
        steps: int,
        *,
        evaluate_on: Any = None,
        eval_every: int = 250,
        eval_tokens: int | None = None,
        tokenizer: Tokenizer | None = None,
        folder: str | PathLike[str] | None = None,
        checkpoint_every: int = 250,
        keep: int = 2,
        resume: bool = False,
        metrics: str | PathLike[str] | None = None,
        plot: bool = True,
        progress: bool = True,
        about: Mapping[str, Any] | None = None,
    ) -> FitResult:
        """Train until `steps` optimizer steps are done in all, those before this call included.

        batches            a BatchLoader; without a folder, any iterable of (ids, targets), int [B, T] each
        evaluate_on        the test split: a dataset, evaluated every `eval_every` steps and at the end
        eval_tokens        evaluate on about so many of its tokens, evenly spread; None: on all
        tokenizer          is saved with the model, and gives the evaluation its bits per character
        folder             where the run is kept: checkpoints every `checkpoint_every` steps, the newest `keep` of them,
                           and the best by test loss; metrics.jsonl; loss.png. One process at a time
        resume             go on where the newest good checkpoint in folder stands, or start where there is none: the
                           same bits as a run that was never stopped, if BLAS uses as many threads; "auto" stands for the
                           number of workers that began it. False: a folder with a run in it is refused
        metrics            where the JSON lines go; None: folder/metrics.jsonl
        plot               draw folder/loss.png at the end
        progress           a bar on a terminal, and a line for each evaluation
        about              anything JSON-able to be kept with the model

        Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGXCPU ends it after the current step: everything is saved, then Interrupted (a
        KeyboardInterrupt) is raised; a second one does not wait. Outside the main thread no signal is caught: there
        it ends so when Ctrl-C has ended the main thread, and in a daemon thread whenever the program ends.
        Raises FloatingPointError, naming the step, for a loss or gradient that is not finite, and saves nothing more;
        ValueError for a folder of another run, naming what differs. A WorkerError, or what a model raises in a worker, ends it
        too, saved unless the error says that weights are half-way; and so does a folder that is moved or removed:
        CheckpointError says where it is saved.
        """
        options = Options(steps, evaluate_on, eval_every, eval_tokens, tokenizer, folder, checkpoint_every, keep,
                          resume, metrics, plot, progress, about or {})
        with Fitting(self, batches, options) as fitting:
            return fitting.run()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no processes yet, and no programs: its first step makes them."""
        return {**vars(self), "_team": None, "_stepping": False, "_grad_norm": self.grad_norm}

    def settle_workers(self, rows: int, tokens: int) -> int:
        """How many workers there are for batches of so many rows and tokens; what "auto" means is decided only once."""
        if self.workers == "auto":
            parameters = sum(p.size for p in self._parameters())
            self.workers = choose_workers(rows, tokens, parameters) if _steps_plainly(self.optimizer) else 1
        return int(self.workers)

    @property
    def grad_norm(self) -> float:
        """‖gradient‖₂ in the last step, before clipping; nan where there was none."""
        if self._grad_norm is None:  # only now does somebody want to know it
            assert self._team is not None
            self._grad_norm = self._team.norm()
        return self._grad_norm

    def close(self) -> None:
        """End the worker processes. A further step starts them again."""
        if self._team is not None:
            self._grad_norm = self.grad_norm
            self._team.close()
            self._team = None

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # One step --------------------------------------------------------------------------------------------------------

    def _step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        loss = self._gradients(ids, targets)
        self._grad_norm = self._clip()
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        return loss

    def _gradients(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """Fills .grad with the gradient of the mean loss of the batch; returns that loss."""
        if self.accumulate == 1 or ids.ndim != 2 or ids.shape != targets.shape:
            return self._part(ids, targets, None)
        parts = list(split(ids, targets, min(self.accumulate, len(ids)) or 1, count_targets(targets)))
        return sum([self._part(*part) for part in parts]) if parts else self._part(ids, targets, None)

    def _part(self, ids: np.ndarray, targets: np.ndarray, weight: float | None) -> float:
        """Adds the gradient of weight · loss; a part is weighted by its share of the targets that count."""
        loss = self.model.loss(ids, targets)
        self._refuse_nonfinite("loss", loss.item())
        loss.backward(None if weight is None else np.asarray(weight, dtype=loss.dtype))
        return loss.item() * (1.0 if weight is None else weight)

    def _clip(self) -> float:
        norm = float(clip_grad_norm_(self._parameters(), self.grad_clip or math.inf))
        self._refuse_nonfinite("gradient norm", norm)
        return norm

    @functools.cached_property
    def _matrix_size(self) -> float:
        return threads.mean_size(self._parameters())

    def _parameters(self) -> Iterator[Any]:
        return (p for group in self.optimizer.param_groups for p in group["params"])

    # The same with workers -------------------------------------------------------------------------------------------

    def _prepared(self, ids: np.ndarray, targets: np.ndarray) -> Team | None:
        """The team, at work, if only of this process; None where it works alone and without a program."""
        if self.workers == 1 and (not self.capture or not self._can_be_captured(ids, targets)):
            self.close()
            return None
        if not self.capture or self.workers != 1:  # else it has been looked at
            _check_batch(self.model, ids, targets)
        if (count := self.settle_workers(len(ids), ids.size)) == 1 and not self.capture:
            return None
        made_for = self.model, self.optimizer, self.accumulate
        if self._team is None or self._team.closed or not (self._team.is_of(*made_for) and self._team.fits(ids.size)):
            self.close()
            try:
                self._team = Team(self.model, self.optimizer, count, ids.size, self.accumulate, self.start_method,
                                  COMPUTE[self.capture])
            except (WorkerError, OSError) as error:
                if not self.automatic:
                    raise
                warnings.warn(f"training in one process: {error}", RuntimeWarning, stacklevel=3)
                self.workers = 1
        return self._team

    def _can_be_captured(self, ids: np.ndarray, targets: np.ndarray) -> bool:
        """Whether a step is what a program repeats: on a batch that has rows, with AdamW's own step."""
        why = None
        if not _steps_plainly(self.optimizer):
            why = f"got {type(self.optimizer).__name__} with a step of its own, expected AdamW's"
        elif not _has_rows(ids, targets):
            why = (f"got ids of shape {ids.shape} and {ids.dtype}, and targets of {targets.shape} and {targets.dtype}, "
                   "expected integers [batch, time]")
        if why is not None and not self._told:
            self._told = True
            warnings.warn(f"training runs without capture: {why}", RuntimeWarning, stacklevel=4)
        return why is None

    def _step_together(self, team: Team, ids: np.ndarray, targets: np.ndarray) -> float:
        self._grad_norm = math.nan
        with team.one_step(self.steps_done + 1):
            losses = team.gradients(ids, targets)
            for loss, _ in losses:
                self._refuse_nonfinite("loss", loss)
            norm = None if self.grad_clip is None and team.is_finite() else team.norm()
            self._refuse_nonfinite("gradient norm", norm or 0.0)
            self._grad_norm, self.lr = norm, self.optimizer.param_groups[0]["lr"]
            team.update(norm or 0.0, self.grad_clip)
        return sum([loss * weight for loss, weight in losses])

    def _zero_grad(self) -> None:
        if self._team is not None:
            for p in self._team.lodging.parameters:
                p._grad = None
            return
        self.model.zero_grad()
        self.optimizer.zero_grad()

    def _refuse_nonfinite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"step {self.steps_done + 1}: got a {what} of {value}, expected a finite number; "
                f"weights and optimizer are those of step {self.steps_done}"
            )


def _is_adamw(optimizer: Any) -> bool:
    """Whether its class steps as AdamW does."""
    return getattr(type(optimizer), "step", None) is AdamW.step


def _steps_plainly(optimizer: Any) -> bool:
    """Whether its step is AdamW's, and not wrapped on the instance."""
    return _is_adamw(optimizer) and "step" not in vars(optimizer)


def _as_rows(given: Any) -> np.ndarray:
    """Integers as int64 in row-major order, as all processes are shown them. Others as they are."""
    array = np.asarray(given)
    return np.ascontiguousarray(array, np.int64) if array.dtype.kind in "iu" else array


def _has_rows(ids: np.ndarray, targets: np.ndarray) -> bool:
    are_integers = ids.dtype.kind in "iu" and targets.dtype.kind in "iu"
    return ids.ndim == 2 and ids.shape == targets.shape and are_integers and ids.size > 0


def _check_batch(model: Any, ids: np.ndarray, targets: np.ndarray) -> None:
    """Workers share rows. What has none is shown to the model, whose error says more."""
    if not _has_rows(ids, targets):
        model.loss(ids, targets)
        raise TypeError(f"ids: got shape {ids.shape} of {ids.dtype}, and targets {targets.shape} of {targets.dtype}, "
                        "expected integers [batch, time] to be shared by workers")
