"""Trainer.fit: what it writes, when it stops, what it refuses."""

import errno
import hashlib
import io
import json
import math
import os
import re
import signal
import threading

import numpy as np
import pytest

from tinygrad_llm import Transformer, TransformerConfig
from tinygrad_llm.checkpoint import CheckpointError, CheckpointFolder, NewerVersionError, save_checkpoint
from tinygrad_llm.data import BatchLoader, CharTokenizer, SequenceDataset
from tinygrad_llm.optim import AdamW, WarmupCosine
from tinygrad_llm.training import Interrupted, Trainer, evaluate, load_model, plot_losses, read_metrics
from tinygrad_llm.training import metrics as metrics_module

TEXT = "she sells sea shells by the sea shore, he hears her cheer here; " * 12
TOKENIZER = CharTokenizer(TEXT)
IDS = TOKENIZER.encode(TEXT)
TEST = SequenceDataset(IDS[:100], 8)


def make(seed=0, lr=1e-2, batch_size=4, total=30, grad_clip=1.0, ids=IDS, weight_decay=0.01, **config):
    """A trainer and its batches, always the same."""
    config = {"dropout": 0.1, "d_model": 8, **config}
    model = Transformer(TransformerConfig(TOKENIZER.vocab_size, 8, n_heads=2, n_layers=1, **config), seed=seed)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    trainer = Trainer(model, optimizer, schedule=WarmupCosine(optimizer, 3, total), grad_clip=grad_clip, accumulate=2)
    return trainer, BatchLoader(SequenceDataset(ids, 8), batch_size, seed=5)


def fit(folder, steps=10, made=None, **options):
    trainer, batches = made or make()
    settings = {"evaluate_on": TEST, "eval_every": 4, "checkpoint_every": 3, "tokenizer": TOKENIZER, "progress": False,
                "plot": False, **options}
    return trainer, trainer.fit(batches, steps, folder=folder, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def bits(folder):
    """What an uninterrupted run and a resumed one have in common: all but times, and older checkpoints."""
    lines = [{k: v for k, v in record.items() if k != "tokens_per_s"} for record in read_metrics(folder / "metrics.jsonl")]
    newest = CheckpointFolder(folder).steps()[-1]
    return newest.name, newest.read_bytes(), (folder / "best.safetensors").read_bytes(), lines


# What it writes -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_checkpoints_metrics_and_a_model_to_load(tmp_path):
    trainer, result = fit(tmp_path / "run", about={"corpus": "shells"})
    names = set(contents(tmp_path / "run"))
    assert names == {"best.safetensors", "metrics.jsonl", "step-00000009.safetensors", "step-00000010.safetensors"}
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [r for r in records if "loss" in r]
    tests = [r for r in records if "test_loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 11))
    assert set(steps[0]) == {"step", "loss", "lr", "grad_norm", "tokens_per_s"}
    assert [r["loss"] for r in steps] == result.losses
    assert [r["step"] for r in tests] == [4, 8, 10]
    assert {"perplexity", "accuracy", "bits_per_char", "tokens"} <= set(tests[0])
    assert result.steps == trainer.steps_done == 10
    assert result.evaluation == evaluate(trainer.model, TEST, batch_size=4, tokenizer=TOKENIZER)
    assert result.best == min(({"step": r["step"], "test_loss": r["test_loss"]} for r in tests),
                              key=lambda r: r["test_loss"])
    assert result.tokens == 10 * 4 * 8

    model, tokenizer, metadata = load_model(tmp_path / "run" / "step-00000010.safetensors")
    assert tokenizer == TOKENIZER
    assert not model.training
    assert metadata["step"] == 10
    assert metadata["about"] == {"corpus": "shells"}
    assert "run" not in metadata
    for name, value in trainer.model.state_dict().items():
        assert model.state_dict()[name].tobytes() == value.tobytes()
    best = load_model(tmp_path / "run")
    assert best.metadata["step"] == result.best["step"]
    assert best.metadata["evaluation"]["loss"] == result.best["test_loss"]
    assert evaluate(best.model, TEST, batch_size=4).loss == result.best["test_loss"]


def test_the_best_model_is_the_one_of_the_lowest_test_loss(tmp_path):
    """The rate is so high that the model gets worse; the best is an early one."""
    _, result = fit(tmp_path, 12, make(lr=3.0), eval_every=1)
    tests = {r["step"]: r["test_loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if "test_loss" in r}
    best = min(tests, key=tests.get)
    assert result.best == {"step": best, "test_loss": tests[best]}
    assert load_model(tmp_path).metadata["step"] == best != 12


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, result = fit(None)
    assert len(result.losses) == 10
    assert not list(tmp_path.iterdir())


def test_any_batches_will_do_without_a_folder_but_there_must_be_enough():
    trainer, batches = make()
    some = [next(batches) for _ in range(5)]
    assert trainer.fit(some, 3, progress=False).steps == 3
    with pytest.raises(ValueError, match=r"^batches: got an end after 8 steps, expected enough for 20"):
        trainer.fit(some, 20, progress=False)


def test_steps_are_counted_in_all():
    trainer, batches = make()
    assert trainer.fit(batches, 3, progress=False).steps == 3
    assert len(trainer.fit(batches, 5, progress=False).losses) == 2
    assert trainer.fit(batches, 5, progress=False).losses == []


def test_metrics_alone(tmp_path):
    fit(None, metrics=tmp_path / "some" / "lines.jsonl")
    assert len(read_metrics(tmp_path / "some" / "lines.jsonl")) == 13


def test_a_line_for_each_evaluation_is_printed(tmp_path, capsys):
    fit(tmp_path, progress=True, plot=True)
    told = capsys.readouterr()
    assert not told.out
    lines = [line for line in told.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["4", "8", "10"]
    assert "train loss" in lines[0]
    assert "accuracy" in lines[0]
    assert max(map(len, lines)) <= 80
    assert "loss curve: " in told.err


# The loss curve -------------------------------------------------------------------------------------------------------


def test_the_loss_curve_is_a_picture(tmp_path):
    fit(tmp_path, plot=True)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_loss_curve_has_its_units_and_both_curves(tmp_path):
    from matplotlib.figure import Figure

    fit(tmp_path, 120, eval_every=30)
    axes = Figure().subplots()
    metrics_module._draw(axes, read_metrics(tmp_path / "metrics.jsonl"))
    assert axes.get_xlabel() == "optimizer step"
    assert axes.get_ylabel() == "loss (nats per token)"
    labels = [line.get_label() for line in axes.lines]
    assert [label.split(",")[0] for label in labels] == ["train", "train", "test"]
    assert axes.lines[-1].get_xdata().tolist() == [30, 60, 90, 120]


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    fit(tmp_path, plot=True, progress=True)
    assert [line for line in capsys.readouterr().err.splitlines() if "matplotlib" in line] == [
        "no loss curve: matplotlib is not installed (pip install matplotlib)"]
    assert not (tmp_path / "loss.png").exists()


def test_no_record_no_picture(tmp_path):
    (tmp_path / "empty").touch()
    assert plot_losses(tmp_path / "empty", tmp_path / "x.png").startswith("no loss curve")


# Going on -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, 12)
    return bits(folder)


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_run_stopped_at_any_step_and_resumed_has_the_same_bits(tmp_path, whole, cut):
    """Stopped without warning: what comes after the last checkpoint is lost, but for its lines of metrics."""
    trainer, batches = make()
    step, taken = trainer.step, []

    def dies(*batch):
        if len(taken) == cut:
            raise MemoryError
        taken.append(batch)
        return step(*batch)

    trainer.step = dies
    if cut < 12:
        with pytest.raises(MemoryError):
            fit(tmp_path, 12, (trainer, batches))
    else:
        fit(tmp_path, 12, (trainer, batches))
    fit(tmp_path, 12, resume=True)
    assert bits(tmp_path) == whole


def test_the_best_so_far_is_remembered(tmp_path):
    """The rate is so high that an early model is the best; a resumed run must not take a later one for it."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    _, result = fit(once, 12, make(lr=3.0), eval_every=1)
    fit(twice, 9, make(lr=3.0), eval_every=1)
    _, resumed = fit(twice, 12, make(lr=3.0), eval_every=1, resume=True)
    assert resumed.best == result.best
    assert result.best["step"] < 9
    assert bits(twice) == bits(once)


def test_a_finished_run_resumed_does_nothing_and_knows_its_result(tmp_path):
    _, result = fit(tmp_path)
    before = contents(tmp_path)
    _, again = fit(tmp_path, resume=True)
    assert (again.steps, again.losses, again.evaluation, again.best) == (10, [], result.evaluation, result.best)
    assert contents(tmp_path) == before


def test_a_torn_newest_checkpoint_costs_steps_but_no_bits(tmp_path, whole):
    fit(tmp_path, 12)
    newest = CheckpointFolder(tmp_path).steps()[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "lo')
    with pytest.warns(RuntimeWarning, match="looking for an older checkpoint"):
        fit(tmp_path, 12, resume=True)
    assert bits(tmp_path) == whole


def test_resume_in_an_empty_folder_starts(tmp_path, whole):
    fit(tmp_path / "new", 12, resume=True)
    assert bits(tmp_path / "new") == whole


def test_a_run_can_go_further_than_was_first_asked(tmp_path, whole):
    fit(tmp_path, 8)  # ends with an evaluation at 8, as the whole run has
    fit(tmp_path, 12, resume=True)
    assert bits(tmp_path) == whole


@pytest.mark.parametrize(("signum", "cut"), [
    *[(signum, cut) for signum in (signal.SIGINT, signal.SIGTERM) for cut in (2, 4, 6)],
    *[(getattr(signal, name), 4) for name in ("SIGHUP", "SIGUSR1", "SIGXCPU") if hasattr(signal, name)],
])
def test_a_signal_saves_and_ends_and_the_run_goes_on_with_the_same_bits(tmp_path, whole, cut, signum):
    trainer, batches = make()
    step = trainer.step

    def interrupted(*batch):
        loss = step(*batch)
        if trainer.steps_done == cut:
            signal.raise_signal(signum)
        return loss

    trainer.step = interrupted
    before = signal.getsignal(signum)
    with pytest.raises(KeyboardInterrupt) as told:
        fit(tmp_path, 12, (trainer, batches))
    assert isinstance(told.value, Interrupted)
    assert told.value.signum == signum
    assert told.value.result.steps == cut
    assert f"stopped by {signal.Signals(signum).name} after step {cut}; saved in {tmp_path}" in str(told.value)
    assert signal.getsignal(signum) == before
    assert CheckpointFolder(tmp_path).latest().metadata["step"] == cut
    fit(tmp_path, 12, resume=True)
    assert bits(tmp_path) == whole


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
def test_signals_of_the_program_stay_its_own(tmp_path):
    heard, (trainer, batches) = [], make()
    step = trainer.step

    def interrupted(*batch):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGHUP)
        return step(*batch)

    trainer.step = interrupted
    before = [signal.signal(signal.SIGUSR1, lambda *_: heard.append(1)), signal.signal(signal.SIGHUP, signal.SIG_IGN)]  # nohup
    try:
        fit(tmp_path, 3, (trainer, batches))
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert heard == [1, 1, 1]


@pytest.mark.parametrize("damage", ["a mark at the start", "a line in the middle", "half a line at the end", "deep brackets"])
def test_a_line_of_metrics_that_cannot_be_read_costs_no_other(tmp_path, whole, damage):
    fit(tmp_path, 8)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    good = [record["step"] for record in read_metrics(path)]
    if damage == "a mark at the start":
        lines[0] = b"\xef\xbb\xbf" + lines[0]
    elif damage == "half a line at the end":
        lines.append(lines[-1][:7])
    else:
        lines.insert(3, b"\x00\x00lost\n" if damage == "a line in the middle" else b"[" * 100_000 + b"\n")
    path.write_bytes(b"".join(lines))
    if damage in ("a line in the middle", "deep brackets"):
        with pytest.warns(RuntimeWarning, match=r"metrics: got 1 lines in .* that cannot be read"):
            fit(tmp_path, 12, resume=True)
    else:
        fit(tmp_path, 12, resume=True)
    found = [record["step"] for record in read_metrics(path)]
    assert found[: len(good)] == good
    assert found.count(12) == [r["step"] for r in read_metrics(path)].count(12) >= 1
    assert set(range(1, 13)) <= set(found)


def test_a_checkpoint_of_a_newer_version_is_not_gone_past_nor_written_over(tmp_path):
    fit(tmp_path, 8)
    newest = CheckpointFolder(tmp_path).steps()[-1]
    raw = newest.read_bytes()
    forged = raw.replace(b'"version":"1"', b'"version":"2"', 1)
    assert forged != raw
    blank = re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b"0" * 64 + b'"', forged, count=1)
    newest.write_bytes(blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1))
    before = newest.read_bytes()
    with pytest.raises(NewerVersionError, match="a newer tinygrad_llm wrote it, which can go on with it"):
        fit(tmp_path, 12, resume=True)
    with CheckpointFolder(tmp_path) as folder, pytest.raises(NewerVersionError):
        folder.save(8, {"w": np.zeros(2)}, {})
    assert newest.read_bytes() == before


def test_a_signal_during_an_evaluation_leaves_it_to_the_resumed_run(tmp_path, whole):
    trainer, batches = make()
    forward = trainer.model.forward

    def interrupted(ids):
        if not trainer.model.training:
            signal.raise_signal(signal.SIGINT)
        return forward(ids)

    trainer.model.forward = interrupted
    with pytest.raises(Interrupted):
        fit(tmp_path, 12, (trainer, batches))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert not any("test_loss" in r for r in records)
    killed, batches = make()
    killed.step = lambda *batch: batch[2]  # dies once the evaluation is made up for
    with pytest.raises(IndexError):
        fit(tmp_path, 12, (killed, batches), resume=True)
    assert "test_loss" in read_metrics(tmp_path / "metrics.jsonl")[-1]
    fit(tmp_path, 12, resume=True)
    assert bits(tmp_path) == whole


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    trainer, batches = make()

    def hasty(*batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    trainer.step = hasty
    with pytest.raises(KeyboardInterrupt) as told:
        fit(tmp_path, 12, (trainer, batches))
    assert not isinstance(told.value, Interrupted)
    assert CheckpointFolder(tmp_path).latest().metadata["step"] == 0


def test_an_ignored_signal_stays_ignored_and_other_threads_catch_none(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer, batches = make()
        step = trainer.step
        trainer.step = lambda *batch: (signal.raise_signal(signal.SIGINT), step(*batch))[1]
        assert fit(None, 3, (trainer, batches))[1].steps == 3
    finally:
        signal.signal(signal.SIGINT, before)
    done = []
    thread = threading.Thread(target=lambda: done.append(fit(None, 3)))
    thread.start()
    thread.join()
    assert done[0][1].steps == 3


def test_a_loss_that_is_not_finite_stops_the_run_and_overwrites_nothing(tmp_path):
    fit(tmp_path, 7)
    before = contents(tmp_path)
    trainer, batches = make()
    loss = trainer.model.loss
    trainer.model.loss = lambda ids, targets: loss(ids, targets) * (math.nan if trainer.steps_done == 8 else 1.0)
    with pytest.raises(FloatingPointError, match=r"^step 9: got a loss of nan"):
        fit(tmp_path, 12, (trainer, batches), resume=True, checkpoint_every=100, eval_every=100)
    after = contents(tmp_path)
    assert after.pop("metrics.jsonl").startswith(before.pop("metrics.jsonl"))
    assert after == before


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 2e-2}, r"schedule.base_lrs = \[0.02\] \(saved: \[0.01\]\)"),
        ({"batch_size": 5}, r"batches.batch_size = 5 \(saved: 4\)"),
        ({"d_model": 16}, r"config.d_model = 16 \(saved: 8\)"),
        ({"dropout": 0.2}, r"config.dropout = 0.2 \(saved: 0.1\)"),
        ({"total": 31}, r"schedule.total_steps = 31 \(saved: 30\)"),
        ({"grad_clip": None}, r"grad_clip = None \(saved: 1.0\)"),
        ({"weight_decay": 0.2}, r"optimizer.group.0.weight_decay = 0.2 \(saved: 0.01\)"),
        ({"ids": IDS[::-1].copy()}, r"train.sha256 = '.*\.\.\. \(saved: '"),
        ({"ids": IDS[:-1]}, r"train.tokens = 767 \(saved: 768\)"),
    ],
)
def test_going_on_as_another_run_is_refused_naming_what_differs(tmp_path, changes, message):
    fit(tmp_path, 3)
    before = contents(tmp_path)
    made = make(**changes)
    state = made[0].model.state_dict()
    with pytest.raises(ValueError, match=rf"^resume: got .*{message}.*, expected the settings of the run in ") as told:
        fit(tmp_path, 6, made, resume=True)
    assert "\n" not in str(told.value)
    assert contents(tmp_path) == before
    assert all(np.array_equal(state[name], value) for name, value in made[0].model.state_dict().items())


def test_going_on_with_another_test_split_or_tokenizer_is_refused(tmp_path):
    fit(tmp_path, 3)
    with pytest.raises(ValueError, match=r"test\.tokens = 90 \(saved: 100\)"):
        fit(tmp_path, 6, evaluate_on=SequenceDataset(IDS[:90], 8), resume=True)
    with pytest.raises(ValueError, match=r"tokenizer = 'char .*saved: 'char "):
        fit(tmp_path, 6, tokenizer=CharTokenizer(TEXT + "#"), resume=True)


def test_a_run_is_not_overwritten(tmp_path):
    fit(tmp_path, 3)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"^folder: got .*, which holds a run \(step-00000003.safetensors\), expected"):
        fit(tmp_path, 3)
    with pytest.raises(ValueError, match=r"^steps: got 2, expected at least the 3 done"):
        fit(tmp_path, 2, resume=True)
    assert contents(tmp_path) == before


def test_a_folder_of_damaged_checkpoints_is_not_a_new_run(tmp_path):
    (tmp_path / "step-00000003.safetensors").write_bytes(b"nonsense")
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="no good checkpoint"):
        fit(tmp_path, 3, resume=True)


def test_one_process_at_a_time(tmp_path):
    with CheckpointFolder(tmp_path), pytest.raises(CheckpointError, match="expected one writer"):
        fit(tmp_path, 3)
    fit(tmp_path, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected an integer >= 1"),
        ({"steps": 2.5}, "steps: got 2.5"),
        ({"eval_every": 0}, "eval_every: got 0"),
        ({"eval_tokens": 0}, "eval_tokens: got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every: got -1"),
        ({"keep": 0}, "keep: got 0"),
        ({"folder": None, "resume": True}, "resume: got True without a folder"),
        ({"about": {"a": {1, 2}}}, "about"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, options, message):
    settings = {"folder": tmp_path / "run", "steps": 3, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        fit(**settings)
    assert not list(tmp_path.glob("run/step*"))


def test_batches_whose_position_cannot_be_saved_are_refused_with_a_folder(tmp_path):
    trainer, batches = make()
    with pytest.raises(TypeError, match=r"^batches: got list_iterator with a folder, expected a BatchLoader"):
        trainer.fit([next(batches)], 1, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").touch()
    trainer, batches = make()
    with pytest.raises(OSError, match="file"):
        fit(tmp_path / "file" / "run", 3, (trainer, batches))
    assert trainer.steps_done == 0


def test_a_full_disk_is_told_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    trainer, batches = make()
    step = trainer.step

    def filling(*batch):
        if trainer.steps_done == 5:
            def full(fd, data):
                raise OSError(errno.ENOSPC, "No space left on device")
            monkeypatch.setattr("os.write", full)
        return step(*batch)

    trainer.step = filling
    with pytest.raises(OSError, match="cannot be saved: No space left on device"):
        fit(tmp_path, 12, (trainer, batches), evaluate_on=None)
    monkeypatch.undo()
    assert CheckpointFolder(tmp_path).latest().metadata["step"] == 3


def test_metrics_that_cannot_be_written_are_told(tmp_path):
    with pytest.raises(OSError, match=r"^\[Errno .*metrics: got .*, which cannot be written"):
        fit(None, 3, metrics=tmp_path)


class FullDisk(io.FileIO):
    """A file whose disk is full."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", [1, 7])
def test_metrics_that_can_no_longer_be_written_cost_no_run(tmp_path, whole, monkeypatch, when):
    write, count = metrics_module.MetricsFile.write, []

    def filling(self, record):
        count.append(1)
        if len(count) >= when:
            self._file = FullDisk(self.path, "a")
        write(self, record)

    monkeypatch.setattr(metrics_module.MetricsFile, "write", filling)
    with pytest.warns(RuntimeWarning, match=r"metrics: got .*, which cannot be written .*; the run goes on without metrics"):
        fit(tmp_path, 12)
    assert len(count) == when
    assert bits(tmp_path)[:3] == whole[:3]


# Loading a model ------------------------------------------------------------------------------------------------------


def test_a_damaged_best_model_gives_the_newest_and_says_so(tmp_path):
    fit(tmp_path, 6)
    best = tmp_path / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="taking the newest good checkpoint instead"):
        assert load_model(tmp_path).metadata["step"] == 6
    with pytest.raises(CheckpointError, match="best"):
        load_model(best)


def test_without_a_test_split_the_newest_model_is_loaded(tmp_path):
    fit(tmp_path, 4, evaluate_on=None, tokenizer=None)
    model, tokenizer, metadata = load_model(str(tmp_path))
    assert metadata["step"] == 4
    assert tokenizer is None
    assert model.config.d_model == 8


def test_float64_weights_make_a_float64_model(tmp_path):
    model = Transformer(TransformerConfig(5, 4, 8, 2, 1, tie_embeddings=True), dtype=np.float64)
    save_checkpoint(tmp_path / "m.safetensors", model.state_dict(), {"config": model.config.to_dict()})
    assert load_model(tmp_path / "m.safetensors").model.dtype == np.float64


@pytest.mark.parametrize("metadata", [{}, {"config": None}, {"config": {"d_model": 3}}, {"config": {"mood": 3}}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path, metadata):
    save_checkpoint(tmp_path / "m.safetensors", {"w": np.ones(2)}, metadata)
    with pytest.raises(CheckpointError, match="got no model that can be built") as told:
        load_model(tmp_path / "m.safetensors")
    assert "\n" not in str(told.value)


def test_nothing_to_load_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="found nothing"):
        load_model(tmp_path)


def test_metrics_lines_are_strict_json(tmp_path):
    fit(tmp_path, 4)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
