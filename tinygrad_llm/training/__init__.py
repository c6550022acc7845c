"""Training: the loop, evaluation, metrics, and runs that go on with the same bits after a kill.

    trainer      Trainer: one step, or fit() for the whole run
    fitting      what fit() does, step by step
    resuming     all that the next step depends on, to a checkpoint and back; load_model; contents, what must be in one
    evaluation   loss, perplexity, accuracy and bits per character on text that was not seen
    metrics      JSON lines and the loss curve
    signals      Ctrl-C between two steps, never inside one; the end of the program for a run in a thread
    workers      processes that share each step: Team; shards, what one of them does; flat and memory, where the arrays
                 stand; cores, how many are worth it
"""

from tinygrad_llm.training.evaluation import Evaluation, evaluate
from tinygrad_llm.training.fitting import FitResult
from tinygrad_llm.training.metrics import plot_losses, read_metrics
from tinygrad_llm.training.resuming import LoadedModel, load_model
from tinygrad_llm.training.signals import Interrupted
from tinygrad_llm.training.trainer import Trainer
from tinygrad_llm.training.workers import WorkerError

__all__ = [
    "Evaluation",
    "FitResult",
    "Interrupted",
    "LoadedModel",
    "Trainer",
    "WorkerError",
    "evaluate",
    "load_model",
    "plot_losses",
    "read_metrics",
]
