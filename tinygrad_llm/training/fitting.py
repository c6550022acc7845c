"""One call of Trainer.fit: steps, evaluations, checkpoints, metrics, progress."""

from __future__ import annotations

import reprlib
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tinygrad_llm.checkpoint import CheckpointError, CheckpointFolder, FolderMovedError
from tinygrad_llm.checkpoint.file import faults_of
from tinygrad_llm.data import Tokenizer
from tinygrad_llm.training.contents import check_metadata, check_run
from tinygrad_llm.training.evaluation import Batch, Evaluation, Stopped, evaluate
from tinygrad_llm.training.metrics import MetricsFile, plot_losses
from tinygrad_llm.training.resuming import check_same_run, describe_model, identity, restore, training_state
from tinygrad_llm.training.signals import Interrupted, StopSignals
from tinygrad_llm.training.workers import ChildTraceback, WorkerError

CLOCK_TICK = 1e-9  # seconds, for a clock that stood still or was set back

if TYPE_CHECKING:
    from tinygrad_llm.training.trainer import Trainer


@dataclass(frozen=True)
class FitResult:
    """What Trainer.fit did.

    steps        optimizer steps done in all
    losses       the training loss of each step of this call, nats per token
    evaluation   the last one; None without a test split
    best         {"step", "test_loss"} of the best evaluation; None without one
    tokens       targets trained on in this call, in so many seconds (evaluations and checkpoints not counted)
    """

    steps: int
    losses: list[float] = field(repr=False)
    evaluation: Evaluation | None
    best: dict[str, Any] | None
    tokens: int
    seconds: float
    folder: Path | None


@dataclass(frozen=True)
class Options:
    """The arguments of Trainer.fit, checked."""

    steps: int
    evaluate_on: Any
    eval_every: int
    eval_tokens: int | None
    tokenizer: Tokenizer | None
    folder: str | PathLike[str] | None
    checkpoint_every: int
    keep: int
    resume: bool
    metrics: str | PathLike[str] | None
    plot: bool
    progress: bool
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "eval_tokens", "checkpoint_every"):
            value = getattr(self, name)
            if not (value is None and name == "eval_tokens") and (type(value) is not int or value < 1):
                raise ValueError(f"{name}: got {value!r}, expected an integer >= 1")
        if self.resume and self.folder is None:
            raise ValueError("resume: got True without a folder, expected the folder of the run to go on with")


class Fitting:
    """A run while it runs. Its loop can stop after any step and go on, in another process, as if it had not."""

    def __init__(self, trainer: Trainer, batches: Iterable[Batch], options: Options) -> None:
        self.trainer, self.options = trainer, options
        if not isinstance(batches, Iterable) and not hasattr(batches, "__next__"):
            raise TypeError(f"batches: got {type(batches).__name__}, expected a BatchLoader, or an iterable of (ids, targets)")
        self.batches: Any = batches if hasattr(batches, "__next__") else iter(batches)  # a BatchLoader's next() has no end
        self.losses: list[float] = []
        self.tokens, self.seconds = 0, 0.0
        self.evaluation: Evaluation | None = None
        self.best: dict[str, Any] | None = None
        self.evaluated, self.saved = 0, -1  # steps
        self.folder = None if options.folder is None else CheckpointFolder(options.folder, options.keep)
        self.metrics: MetricsFile | None = None
        self.moved: FolderMovedError | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Fitting:
        with ExitStack() as stack:
            if self.folder is not None:
                self._describe()
                stack.enter_context(self.folder)
                self._begin(self.folder)
            self._check_steps()
            if self.metrics_path is not None:
                self.metrics = MetricsFile(self.metrics_path, self.trainer.steps_done, self.evaluated)
                stack.callback(self.metrics.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def metrics_path(self) -> Path | None:
        """Where the JSON lines go."""
        if self.options.metrics is not None:
            return Path(self.options.metrics)
        return None if self.folder is None else self.folder.folder / "metrics.jsonl"

    # The loop --------------------------------------------------------------------------------------------------------

    def run(self) -> FitResult:
        """Steps until all are done or a signal comes; what is due after a step is done before the next."""
        self.trainer.model.train()
        with StopSignals() as stop, self._bar() as bar:
            while True:
                self._evaluate_if_due(stop)
                self._save_if_due(stop)
                if stop or self.moved or self.trainer.steps_done >= self.options.steps:
                    break
                self._step(bar)
        if self.moved and self.folder is not None:
            raise CheckpointError(f"{self.moved}; step {self.saved} is saved in {self.folder.folder}, resume goes on there")
        self._plot()
        if stop:
            raise Interrupted(self._farewell(stop.signum), stop.signum, self._result())
        return self._result()

    def _step(self, bar: tqdm) -> None:
        began = time.perf_counter()
        position = self.batches.state_dict() if self.folder is not None else None
        ids, targets = self._next_batch()
        try:
            loss = self.trainer.step(ids, targets)
        except Exception as error:
            self._save_what_is_whole(error, position)
            raise
        seconds, tokens = max(time.perf_counter() - began, CLOCK_TICK), int(np.size(targets))
        self.losses.append(loss)
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self._write({"step": self.trainer.steps_done, "loss": loss, "lr": self.trainer.lr,
                     "grad_norm": self.trainer.grad_norm, "tokens_per_s": round(tokens / seconds, 1)})
        bar.set_postfix_str(f"loss {loss:.3f}, {self.tokens / self.seconds:,.0f} tokens/s", refresh=False)
        bar.update()

    def _next_batch(self) -> Batch:
        try:
            batch = next(self.batches)
        except StopIteration:
            raise ValueError(f"batches: got an end after {self.trainer.steps_done} steps, expected enough for "
                             f"{self.options.steps}; a BatchLoader has no end") from None
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batches: got {reprlib.repr(batch)}, expected (ids, targets), int [B, T] each")
        return batch[0], batch[1]

    # What is due -----------------------------------------------------------------------------------------------------

    def _evaluate_if_due(self, stop: StopSignals) -> None:
        step = self.trainer.steps_done
        if self.evaluated == step or not self._is_due(step, self.options.eval_every):
            return
        if self.options.evaluate_on is not None:
            try:
                self.evaluation = self._evaluate(stop)
            except Stopped:  # by a signal; whoever goes on evaluates first
                return
            self._record(step, self.evaluation)
        self.evaluated = step
        self._tell(step)

    def _evaluate(self, stop: StopSignals) -> Evaluation:
        options, step = self.options, self.trainer.steps_done
        try:
            return evaluate(
                self.trainer.model, options.evaluate_on, batch_size=getattr(self.batches, "batch_size", 32),
                tokenizer=options.tokenizer, max_tokens=options.eval_tokens, should_stop=lambda: stop,
            )
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step}: {error}") from None

    def _record(self, step: int, evaluation: Evaluation) -> None:
        values = evaluation.to_dict()
        self._write({"step": step, "test_loss": values.pop("loss"), **values})
        if self.best is None or evaluation.loss < self.best["test_loss"]:
            self.best = {"step": step, "test_loss": evaluation.loss}
            if self.folder is not None:
                self.folder.save_best(self.trainer.model.state_dict(), self._about_model())

    def _save_if_due(self, stop: StopSignals) -> None:
        step = self.trainer.steps_done
        if self.folder is None or self.saved == step:
            return
        if stop or self.moved or self.saved < 0 or self._is_due(step, self.options.checkpoint_every):
            self._save(step, self.folder)

    def _watch(self, folder: CheckpointFolder) -> None:
        """A folder that is moved or removed ends the run, saved: before a line or a file goes into another one in its place."""
        try:
            folder.check()
        except FolderMovedError as moved:
            before = folder.folder
            folder.follow(moved)
            self.moved = moved
            if self.metrics is not None and self.metrics.path.parent == before:
                self.metrics.path = folder.folder / self.metrics.path.name

    def _save(self, step: int, folder: CheckpointFolder) -> None:
        self._keep_metrics(lambda metrics: metrics.sync())
        folder.save(step, self.trainer.model.state_dict(), {**self._about_model(), "run": self._run_state()})
        self.saved = step

    def _save_what_is_whole(self, error: Exception, position: Any) -> None:
        """A worker's end, or what was raised in one, is no fault of the weights: the run can go on from here."""
        fine = error.whole if isinstance(error, WorkerError) else isinstance(error.__cause__, ChildTraceback)
        if fine and self.folder is not None and self.saved != self.trainer.steps_done:
            self.batches.load_state_dict(position)
            self._save(self.trainer.steps_done, self.folder)

    def _is_due(self, step: int, every: int) -> bool:
        return step > 0 and (step % every == 0 or step >= self.options.steps)

    # Starting and going on -------------------------------------------------------------------------------------------

    def _describe(self) -> None:
        if not hasattr(self.batches, "state_dict"):
            raise TypeError(f"batches: got {type(self.batches).__name__} with a folder, expected a BatchLoader, whose "
                            "position can be saved")
        self._model = describe_model(self.trainer.model, self.options.tokenizer, self.options.about)
        self._settle_workers()
        self._identity = identity(self.trainer, self.batches, self.options.evaluate_on, self._model)

    def _settle_workers(self) -> None:
        """Before the first step, as the number of workers belongs to the identity of the run."""
        rows, dataset = getattr(self.batches, "batch_size", None), getattr(self.batches, "dataset", None)
        if rows is not None:
            self.trainer.settle_workers(rows, rows * getattr(dataset, "context_length", 1))

    def _begin(self, folder: CheckpointFolder) -> None:
        """Go on where the folder stands; an empty one gets the checkpoint of step 0, so a bad disk is known at once."""
        if not folder.steps():
            return
        if not self.options.resume:
            raise ValueError(f"folder: got {str(folder.folder)!r}, which holds a run ({folder.steps()[-1].name}), "
                             "expected an empty folder, or resume=True to go on with it")
        tensors, metadata, path = folder.latest()
        contents = partial(faults_of, path, "contents that no run can go on from", "those of Trainer.fit")
        with contents():
            check_metadata(metadata)
            run = metadata.get("run") or {"identity": {}, "evaluated": 0, "best": None}
            check_run(run, metadata["step"])
        if self.trainer.automatic:  # here or on another machine: the bits are those of the number that began the run
            self._identity["workers"] = run["identity"].get("workers")
            self.trainer.workers = self._identity["workers"] or 1
        check_same_run(run["identity"], self._identity, path)
        with contents():
            restore(self.trainer, self.batches, tensors, run, metadata["step"])
        self.saved, self.evaluated, self.best = metadata["step"], run["evaluated"], run["best"]
        saved = metadata.get("evaluation")
        self.evaluation = Evaluation(**saved) if saved else None
        if self.evaluation is None and self.evaluated and self.options.evaluate_on is not None:  # it is not there: made again
            self.evaluated = -1

    def _check_steps(self) -> None:
        if self.options.steps < self.trainer.steps_done:
            raise ValueError(f"steps: got {self.options.steps}, expected at least the {self.trainer.steps_done} done")

    def _about_model(self) -> dict[str, Any]:
        evaluation = self.evaluation.to_dict() if self.evaluation is not None else None
        return {"step": self.trainer.steps_done, **self._model, "evaluation": evaluation}

    def _run_state(self) -> dict[str, Any]:
        self._identity["workers"] = None if self.trainer.workers == 1 else self.trainer.workers
        return {**training_state(self.trainer, self.batches), "identity": self._identity, "evaluated": self.evaluated,
                "best": self.best}

    # What is shown ---------------------------------------------------------------------------------------------------

    def _bar(self) -> tqdm:
        # None means: only on a terminal.
        return tqdm(total=self.options.steps, initial=self.trainer.steps_done, unit="step", dynamic_ncols=True,
                    disable=None if self.options.progress else True)

    def _tell(self, step: int) -> None:
        train = f"  train loss {np.mean(self.losses[-50:]):.3f}" if self.losses else ""
        found = self.evaluation
        if found is None:
            return self._say(f"step {step:,}{train}")
        test = f"test loss {found.loss:.3f}  perplexity {found.perplexity:.2f}  accuracy {found.accuracy:.1%}"
        return self._say(f"step {step:,}{train}  {test}")

    def _say(self, line: str) -> None:
        if self.options.progress:
            with suppress(OSError):  # a terminal that is gone, a pipe that nobody reads, a full disk: not worth a run
                tqdm.write(line, file=sys.stderr)

    def _write(self, record: dict[str, Any]) -> None:
        self._keep_metrics(lambda metrics: metrics.write(record))

    def _keep_metrics(self, do: Callable[[MetricsFile], None]) -> None:
        """A line of metrics is not worth a run: where it cannot be written, a warning says so, and no more is tried."""
        if self.folder is not None:
            self._watch(self.folder)
        if self.metrics is not None:
            try:
                do(self.metrics)
            except OSError as error:
                self.metrics = None
                warnings.warn(f"{error}; the run goes on without metrics", RuntimeWarning, stacklevel=2)

    def _plot(self) -> None:
        """A picture is not worth a run: where it cannot be written, a line says so."""
        if self.folder is not None and self.options.plot and self.metrics is not None:
            try:
                self._say(plot_losses(self.metrics.path, self.folder.folder / "loss.png"))
            except OSError as error:
                self._say(f"no loss curve: {error}")

    def _farewell(self, signum: int) -> str:
        where = "" if self.folder is None else f"; saved in {self.folder.folder}, resume goes on there"
        return f"stopped by {signal.Signals(signum).name} after step {self.trainer.steps_done}{where}"

    def _result(self) -> FitResult:
        folder = None if self.folder is None else self.folder.folder
        done = self.trainer.steps_done
        return FitResult(done, self.losses, self.evaluation, self.best, self.tokens, self.seconds, folder)
