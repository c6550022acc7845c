"""The commands where their output, their corpus or their pipes are not what they expect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli_commands import FLAGS, TEXT, run

from tinygrad_llm.checkpoint import CheckpointFolder
from tinygrad_llm.cli import main
from tinygrad_llm.cli.errors import message

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a corpus of two files and a run that has learned it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / "texts" / name).write_text(f"{name}: {TEXT}")
    assert main(["train", "--corpus", str(folder / "texts"), *FLAGS, "--quiet", "--out", str(folder / "run")]) == 0
    return folder


def bash(command, folder, **environment):
    """(exit code, stdout, stderr) of `command`, in which P stands for the program."""
    command = command.replace("P ", f"{sys.executable} -m tinygrad_llm ")
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                               **environment})  # fmt: skip
    return done.returncode, done.stdout, done.stderr


# Output ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version", "train --help", "train --print-config", "tokenize --tokenizer char a",
                                   "eval --checkpoint run --json", "generate --checkpoint run --prompt a"])  # fmt: skip
def test_a_full_disk_behind_standard_output_is_named(trained, words, unbuffered):
    code, _, error = bash(f"P {words} > /dev/full", trained, PYTHONUNBUFFERED=unbuffered)
    assert (code, error) == (2, "tinygrad-llm: standard output: cannot be written: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("end", ["2> /dev/full", "2> >(exit)"])
def test_a_run_goes_on_where_nobody_sees_its_progress(trained, tmp_path, end, unbuffered):
    train = f"P train --corpus {trained}/texts {' '.join(FLAGS)} --out run"
    code, out, _ = bash(f"{train} {end}", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert (code, "try it" in out) == (0, True)
    newest, other = (CheckpointFolder(folder / "run").latest() for folder in (tmp_path, trained))
    assert newest.metadata["step"] == 20
    assert all((newest.tensors[name] == other.tensors[name]).all() for name in other.tensors)
    assert bash(f"P train --nonsense {end}", tmp_path, PYTHONUNBUFFERED=unbuffered)[0] == 2


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
])
def test_training_and_profiles_are_shown_where_the_terminal_has_few_characters(tmp_path, environment):
    (tmp_path / "text").write_text("Äpfel, Öl und “naïve” 😀 日本語\n" * 60)
    for words, shown in (
        (f"train --corpus text {' '.join(FLAGS)} --out run", "--prompt '\\xc4pfel, \\xd6l'"),
        ("profile --preset toy --runs 1", "1024 \\xd7 1024"), ("check --help", "\\xb7"),
        ("tokenize --tokenizer char Öl", "\\xd6"), ("generate --checkpoint run --prompt Öl --max-new-tokens 3", "\\xd6l"),
    ):
        code, out, error = bash(f"P {words}", tmp_path, **environment)
        assert code == 0, error
        assert shown in out


def test_a_text_without_words_has_no_prompt_to_try(tmp_path, capsys):
    (tmp_path / "text").write_text(" " * 1000)
    code, out, _ = run(capsys, "train", "--corpus", tmp_path / "text", *FLAGS, "--out", tmp_path / "run")
    assert (code, "try it" in out, "loss curve" in out) == (0, False, True)


def test_memory_that_ends_without_a_word_has_one():
    assert message(MemoryError()) == "memory: got too little of it (no more), expected enough for this model and batch"


# Pipes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipe", ["P train --config <(echo lr = 0.5) --print-config",
                                  "echo lr = 0.5 | P train --config /dev/stdin --print-config"])  # fmt: skip
def test_settings_may_come_out_of_a_command(tmp_path, pipe):
    code, out, error = bash(pipe, tmp_path)
    assert (code, error) == (0, "")
    assert "\nlr = 0.5\n" in out


def test_a_report_may_go_into_a_pipe_that_somebody_reads(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code, _, error = bash("cat pipe > copy & P profile --preset toy --runs 1 --trace pipe; rc=$?; wait; exit $rc", tmp_path)
    assert code == 0, error
    assert json.loads((tmp_path / "copy").read_text())["traceEvents"]


def test_settings_with_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbflr = 0.5\n")
    assert "\nlr = 0.5\n" in bash("P train --config c.toml --print-config", tmp_path)[1]


def test_a_clock_that_stands_still_is_no_measurement(capsys, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 7.0)
    code, _, error = run(capsys, "profile", "--preset", "toy", "--runs", 1)
    assert (code, error) == (2, "tinygrad-llm: clock: got a step of 0.0 s, expected a clock that runs forward\n")


# The corpus -----------------------------------------------------------------------------------------------------------


def measured(capsys, *words):
    code, out, error = run(capsys, "eval", "--json", *words)
    return json.loads(out) if code == 0 else error


def test_eval_splits_the_text_of_training_under_any_name(trained, tmp_path, capsys):
    os.symlink(trained / "texts", tmp_path / "same")
    its_own = measured(capsys, "--checkpoint", trained / "run")
    other_name = measured(capsys, "--checkpoint", trained / "run", "--corpus", tmp_path / "same")
    assert its_own["tokens"] == other_name["tokens"] < len(TEXT)
    assert its_own["loss"] == other_name["loss"]


def test_a_corpus_that_has_grown_is_no_longer_the_text_of_the_run(trained, capsys):
    added = trained / "texts" / "c.txt"
    added.write_text(TEXT)
    try:
        told = measured(capsys, "--checkpoint", trained / "run")
        assert "texts', whose text has changed since training, expected it as it was" in told
        whole = measured(capsys, "--checkpoint", trained / "run", "--test-fraction", 1)
        assert whole["tokens"] > 3 * len(TEXT)
        code, _, error = run(capsys, "train", "--resume", "--out", trained / "run")
        assert code == 2
        assert "texts', whose text has changed since the run began, expected it as it was" in error
    finally:
        added.unlink()


def test_a_run_may_lie_in_a_hidden_folder_of_its_corpus(trained, capsys):
    words = ["train", "--corpus", trained / "texts", *FLAGS, "--quiet", "--out"]
    code, _, error = run(capsys, *words, trained / "texts" / "a" / ".." / "run")
    assert code == 2
    assert "run' in the folder of the corpus, expected one outside of" in error
    assert not (trained / "texts" / "run").exists()
    assert run(capsys, *words, trained / "texts" / ".run")[0] == 0
    assert run(capsys, "train", "--resume", "--quiet", "--out", trained / "texts" / ".run")[0] == 0
