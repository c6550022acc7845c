"""Trainer.fit while its folder, its terminal, its clock or its program go away."""

import copy
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_training_fit import bits, fit, make

from tinygrad_llm import Transformer, TransformerConfig
from tinygrad_llm.checkpoint import CheckpointError, CheckpointFolder
from tinygrad_llm.optim import AdamW, WarmupCosine
from tinygrad_llm.training import Trainer, WorkerError, memory, plot_losses, read_metrics
from tinygrad_llm.training import metrics as metrics_module
from tinygrad_llm.training import trainer as trainer_module

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run of 12 steps leaves."""
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, 12)
    return bits(folder)


def disturbed(folder, step, do, steps=12):
    """A run during whose step something is done to its folder."""
    trainer, batches = make()
    work = trainer.step

    def stepping(*batch):
        if trainer.steps_done == step:
            do()
        return work(*batch)

    trainer.step = stepping
    return fit(folder, steps, (trainer, batches))


# The folder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["nothing", "an empty folder", "another run"])
@pytest.mark.parametrize("step", [0, 3, 7])
def test_a_folder_that_is_moved_ends_the_run_saved_where_it_is_now(tmp_path, whole, step, again):
    run, moved = tmp_path / "run", tmp_path / "moved"

    def move():
        os.rename(run, moved)
        if again != "nothing":
            run.mkdir()
        if again == "another run":
            fit(run, 2, make(seed=1))

    told = rf"run: got .* (there any more|in its place), .*; step {step + 1} is saved in .*moved, resume goes on there"
    with pytest.raises(CheckpointError, match=told):
        disturbed(run, step, move)
    assert len([r for r in read_metrics(moved / "metrics.jsonl") if "loss" in r]) == step + 1
    if run.exists():
        names = {path.name for path in run.iterdir() if path.name != ".lock"}
        assert names == (set() if again == "an empty folder" else set(names))
        assert again == "an empty folder" or CheckpointFolder(run).latest().metadata["step"] == 2
    fit(moved, 12, resume=True)
    assert bits(moved) == whole


def test_a_folder_that_is_removed_is_made_again_for_the_last_step(tmp_path, whole):
    told = r"run: got no folder there any more, .*; step 7 is saved in .*run, resume goes on there"
    with pytest.warns(RuntimeWarning, match=r"metrics: got .* removed"), pytest.raises(CheckpointError, match=told):
        disturbed(tmp_path / "run", 6, lambda: shutil.rmtree(tmp_path / "run"))
    fit(tmp_path / "run", 12, resume=True)
    assert bits(tmp_path / "run")[:2] == whole[:2]


def test_a_run_does_not_write_beside_one_that_took_its_folder(tmp_path, whole):
    """The second run goes on from the checkpoint of step 6, while the first is at step 7."""
    def take():
        (tmp_path / ".lock").unlink()
        fit(tmp_path, 12, resume=True)

    with pytest.raises(CheckpointError, match=r"got another \.lock than this run's: .*, expected one writer"):
        disturbed(tmp_path, 7, take)
    assert bits(tmp_path) == whole


def test_a_lock_that_is_removed_is_taken_again(tmp_path, whole):
    with pytest.warns(RuntimeWarning, match=r"got no \.lock any more"):
        disturbed(tmp_path, 7, (tmp_path / ".lock").unlink)
    assert bits(tmp_path) == whole


@pytest.mark.parametrize("do", [os.remove, lambda path: os.rename(path, f"{path}.1")])
def test_metrics_that_are_removed_or_renamed_go_on_in_a_new_file(tmp_path, whole, do):
    with pytest.warns(RuntimeWarning, match=r"metrics: got '.*metrics.jsonl' removed or renamed by another program"):
        disturbed(tmp_path, 5, lambda: do(tmp_path / "metrics.jsonl"))
    lines = [line for line in whole[3] if line["step"] > 5]
    assert bits(tmp_path) == (*whole[:3], lines)


# Metrics --------------------------------------------------------------------------------------------------------------


def test_metrics_of_another_program_are_no_losses(tmp_path, whole):
    """Doubled lines are dropped, texts and deep brackets are told and kept, and the picture is drawn."""
    fit(tmp_path, 8)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    strange = [*map(json.dumps, ({"step": 3, "loss": "x"}, {"step": 3}, {"step": 3, "test_loss": None})), "[" * 100_000]
    path.write_text("\n".join([*lines[:3], *strange, *lines[3:], *lines]) + "\n")
    assert len(read_metrics(path)) == 2 * len(lines)
    assert "loss curve" in plot_losses(path, tmp_path / "loss.png")
    with pytest.warns(RuntimeWarning, match=rf"metrics: got {len(strange) + len(lines)} lines in .* or repeat a step"):
        fit(tmp_path, 12, resume=True)
    assert bits(tmp_path) == whole
    assert path.read_text().splitlines()[3:7] == strange


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_metrics_are_a_file(tmp_path, kind):
    path = tmp_path / "m"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"metrics: got .*, which cannot be written .a folder, pipe or device is there"):
        fit(None, 3, metrics=path)
    with pytest.raises(OSError, match="a folder, pipe or device is there"):
        read_metrics(path)


# The terminal, the clock ----------------------------------------------------------------------------------------------


def test_a_terminal_that_is_gone_costs_no_run(tmp_path, whole, monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        fit(tmp_path, 12, progress=True)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert bits(tmp_path) == whole


@pytest.mark.parametrize("tick", [0.0, -1.0])
def test_a_clock_that_stands_still_or_goes_back_costs_no_run(tmp_path, whole, monkeypatch, tick):
    now = [0.0]

    def clock():
        now[0] += tick
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    _, result = fit(tmp_path, 12)
    assert bits(tmp_path) == whole
    assert result.seconds > 0


# The program ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("daemon", "end"), [(True, "pass"), (True, "signal.raise_signal(signal.SIGINT)"),
                                             (False, "signal.raise_signal(signal.SIGINT)")])  # fmt: skip
def test_a_run_in_a_thread_saves_when_the_program_ends(tmp_path, workers, daemon, end):
    script = f"""
        import signal, threading, time
        from test_training_fit import *
        def work():
            trainer, batches = make()
            trainer.accumulate, trainer.workers = 1, {workers}
            fit({str(tmp_path)!r}, 10**6, (trainer, batches), checkpoint_every=10**6, eval_every=10**6)
        if __name__ == "__main__":
            threading.Thread(target=work, daemon={daemon}).start()
            while not any(b'"step": 5,' in line for line in read_lines({str(tmp_path / 'metrics.jsonl')!r})):
                time.sleep(0.01)
            {end}
    """
    lines = "import os\ndef read_lines(path):\n    return open(path, 'rb') if os.path.exists(path) else ()\n"
    path = [str(ROOT), str(ROOT / "tests")]
    done = subprocess.run([sys.executable, "-c", lines + textwrap.dedent(script)], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(path)})  # fmt: skip
    assert ("KeyboardInterrupt" in done.stderr) == (end != "pass")
    step = CheckpointFolder(tmp_path).latest().metadata["step"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics_module.MetricsFile(tmp_path / "metrics.jsonl", step, 0).close()
    assert step == max(record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")) >= 5


def test_a_run_in_a_thread_outlives_a_main_thread_that_just_ends(tmp_path):
    script = f"""
        import threading
        from test_training_fit import *
        if __name__ == "__main__":
            threading.Thread(target=fit, args=({str(tmp_path)!r}, 12)).start()
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60, env=environment)
    assert CheckpointFolder(tmp_path).latest().metadata["step"] == 12


TRAINERS = [{}, {"capture": True}, {"workers": 2}, {"workers": 2, "capture": True}]


def small(**options):
    model = Transformer(TransformerConfig(11, 6, 8, 2, 1), seed=1, dtype=np.float64)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    return Trainer(model, optimizer, schedule=WarmupCosine(optimizer, 2, 20), **options)


def batch(seed):
    return tuple(np.random.default_rng(seed).integers(0, 11, (2, 5, 6)))


@pytest.mark.parametrize("options", TRAINERS)
def test_copies_and_pickles_of_a_trainer_go_the_same_way_on_their_own(options):
    with small(**options) as trainer:
        trainer.step(*batch(0))
        others = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))]
        expected = [(trainer.step(*batch(seed)), trainer.grad_norm, trainer.lr) for seed in (1, 2)]
    for other in others:
        with other:
            assert [(other.step(*batch(seed)), other.grad_norm, other.lr) for seed in (1, 2)] == expected
            assert other.steps_done == 3


@pytest.mark.parametrize("options", TRAINERS)
def test_one_thread_at_a_time_takes_a_step(options):
    with small(**options) as trainer:
        trainer.step(*batch(0))
        inside, go_on = threading.Event(), threading.Event()
        advance = trainer.schedule.step
        trainer.schedule.step = lambda: (inside.set(), go_on.wait(10), advance())
        thread = threading.Thread(target=trainer.step, args=batch(1))
        thread.start()
        assert inside.wait(10)
        with pytest.raises(RuntimeError, match="step: got a call while another thread is in one, expected one at a time"):
            trainer.step(*batch(2))
        go_on.set()
        thread.join()
        trainer.schedule.step = advance
        trainer.step(*batch(2))
        assert trainer.steps_done == 3


@pytest.mark.parametrize("refused", ["Pipe", "memory"])
def test_what_the_system_refuses_to_workers_is_told_and_auto_goes_on_alone(monkeypatch, refused):
    def refuse(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(trainer_module, "choose_workers", lambda *_: 2)
    if refused == "Pipe":
        monkeypatch.setattr(multiprocessing.context.BaseContext, "Pipe", refuse)
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
        monkeypatch.setattr(memory, "RawArray", refuse)
    told = r"workers: got too little from the system for 2 \(Too many open files\), expected pipes and memory that they share"
    with small(workers=2) as trainer, pytest.raises(WorkerError, match=told):
        trainer.step(*batch(0))
    with small(workers="auto") as trainer, pytest.warns(RuntimeWarning, match=f"^training in one process: {told}"):
        trainer.step(*batch(0))
    assert trainer.workers == 1
