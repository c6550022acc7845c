"""A run that is killed by SIGKILL at any moment and resumed ends with the same bits as one that never was.

Every trial starts a run in a process of its own, kills it at a drawn moment, lets it go on, perhaps kills it again, and
compares what the last process leaves with what an uninterrupted run left: the last checkpoint byte by byte (weights,
AdamW, schedule, position, generators), the best model byte by byte, and the metrics but for their times.

    TINYGRAD_LLM_KILLS=20 pytest -s tests/test_training_resume.py      so many trials; says where the kills fell

Bits are the same where the arithmetic is: BLAS must use the same number of threads, so the runs are given one.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinygrad_llm import Transformer, TransformerConfig
from tinygrad_llm.checkpoint import CheckpointFolder, load_checkpoint
from tinygrad_llm.data import BatchLoader, CharTokenizer, SequenceDataset
from tinygrad_llm.optim import AdamW, WarmupCosine, decay_groups
from tinygrad_llm.training import Trainer, read_metrics

TRIALS = int(os.environ.get("TINYGRAD_LLM_KILLS", "4"))
STEPS = 120
TEXT = "the moment of the kill is drawn, and no moment may be the wrong one. " * 40


def main(folder):
    """The run: dropout, unequal tails (7 windows at an epoch's end), parts, clipping, schedule, everything often."""
    tokenizer = CharTokenizer(TEXT)
    ids = tokenizer.encode(TEXT)
    config = TransformerConfig(tokenizer.vocab_size, 16, 16, 2, 2, dropout=0.2)
    model = Transformer(config, seed=3)
    optimizer = AdamW(decay_groups(model, 0.1), lr=3e-3, amsgrad=True)
    with Trainer(model, optimizer, schedule=WarmupCosine(optimizer, 10, STEPS), grad_clip=0.5, accumulate=3) as trainer:
        print("starting", flush=True)
        trainer.fit(
            BatchLoader(SequenceDataset(ids[:-200], 16), 8, seed=1), STEPS, folder=folder, resume=True, eval_every=7,
            evaluate_on=SequenceDataset(ids[-200:], 16), checkpoint_every=5, tokenizer=tokenizer, plot=False, progress=False,
        )


def start(folder):
    """A process of the run, as soon as it starts to train."""
    root = Path(__file__).resolve().parents[1]
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(threads, "1"), "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"starting\n"
    return process


def finish(process):
    process.communicate(timeout=120)
    assert process.returncode == 0


def kill(process, after):
    """Whether it was still running."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def left(folder):
    lines = [{k: v for k, v in record.items() if k != "tokens_per_s"} for record in read_metrics(folder / "metrics.jsonl")]
    newest = CheckpointFolder(folder).steps()[-1]
    return newest.name, newest.read_bytes(), (folder / "best.safetensors").read_bytes(), lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the uninterrupted run leaves, and how long it trains, in seconds."""
    folder = tmp_path_factory.mktemp("whole")
    process, began = start(folder), time.perf_counter()
    finish(process)
    return left(folder), time.perf_counter() - began


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_killed_and_resumed_run_has_the_same_bits(tmp_path, whole, trial):
    expected, seconds = whole
    draw = random.Random(f"trial {trial}")
    moments, reached = [], []
    while not moments or (len(moments) < 5 and draw.random() < 0.5):
        moments.append(draw.random() * seconds)
        if not kill(start(tmp_path), moments[-1]):
            break
        reached.append(newest_step(tmp_path))
    finish(start(tmp_path))
    print(f"trial {trial}: killed {len(reached)} times, newest checkpoint then of step {reached}, bits the same")
    assert left(tmp_path) == expected


def newest_step(folder):
    steps = CheckpointFolder(folder).steps()
    return load_checkpoint(steps[-1])[1]["step"] if steps else None


if __name__ == "__main__":
    main(sys.argv[1])
