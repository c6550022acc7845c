"""Every command that the project gives is run by a shell as it is written, in a folder that has what it names."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import givencommands
import pytest
import torch
from givencommands import ROOT
from hypothesis import settings

from tinygrad_llm.cli.program import NAME, as_typed, python_as_typed

GIVEN = givencommands.given()
NO_COMMANDS = {  # names of commands, and texts that only begin like one
    "python -m tinygrad_llm", "python -m benchmarks", "python -m",
    "python -m benchmarks run | decode | ops | crossover | scaling | report | compare", "python -m benchmarks decode",
    "python -m benchmarks report", "tinygrad-llm generate",
    "make the gradients part of a graph, so that they can be differentiated again",
}
TINY = "--d-model 8 --context-length 4 --vocab-size 11 --draws 0 --steps 5"
SMALL = "--d-model 8 --n-heads 2 --n-layers 1 --context-length 8 --batch-size 2"
QUICK = "--rounds 1 --seconds 0.02"
SHORTER = [  # what is added, so that a run takes seconds, unless nightly; the first pattern that is found counts
    (r"train --resume| --print-config", ""), (r"tinygrad-llm train", "--steps 2 --eval-tokens 100"),
    (r"tinygrad-llm generate", "--max-new-tokens 5"),
    (r"tinygrad-llm profile", f"{SMALL} --vocab-size 11 --runs 1"), (r" --functions | --pack ", ""), (r" --device cuda", ""),
    (r"tinygrad-llm check .*--checkpoint", "--draws 0 --steps 5"), (r" --write-pack| --ops", TINY),
    (r"tinygrad-llm check", f"--model {TINY}"), (r"reference.train", f"--steps 2 {SMALL}"),
    (r"benchmarks run .*torch-ddp", f"{QUICK} --grid S0 --sides numpy-fast,numpy-workers"),
    (r"benchmarks run", f"{QUICK} --grid S0 --sides numpy-fast,numpy"),
    (r"benchmarks decode", f"{QUICK} --grid S0 --sides numpy"),
    (r"benchmarks ops", f"{QUICK} --ops relu --sides numpy"),
    (r"benchmarks crossover", f"{QUICK} --d-model 16 --context 8 --batch 1 --sides numpy-fast,numpy --minutes 9"),
    (r"benchmarks scaling", f"{QUICK} --minutes 0.001 --sides numpy-fast,numpy"),
]
BOOK = "It was a dark and stormy night; the rain fell in torrents. ROMEO: To be? JULIET: What else.\n" * 60
MINE = """
import torch

def np_norm(x, w, b=0):
    return (x - x.mean(-1, keepdims=True)) * w + b

def torch_norm(x, w, b=0):
    return (x - x.mean(-1, keepdim=True)) * w + b
"""


def shell(line, folder):
    """(exit code, stdout, stderr) of a line, where the shell finds this Python and its programs, and Python this checkout."""
    environment = os.environ | {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")} | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), "PYTHONPATH": str(ROOT), "S": "numpy"}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the texts, functions, settings, runs and packs that the commands name."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "notes").mkdir()
    for name in ("mybook.txt", "notes.txt", "sonnets.txt", "notes/a.txt"):
        (folder / name).write_text(BOOK)
    (folder / "mine.py").write_text(MINE)
    lines = [shorter(f"{NAME} train --corpus mybook.txt {SMALL} --out runs/demo"), "cp -r runs/demo runs/mine",
             f"{NAME} train --preset tiny --print-config > my.toml", shorter(f"{NAME} check --write-pack pack"),
             shorter("python -m benchmarks run --out records.jsonl")]
    for line in lines:
        code, _, err = shell(line, folder)
        assert code == 0, err
    return folder


def shorter(text):
    if settings.default.max_examples > 1000:
        return text
    more = next((more for pattern, more in SHORTER if re.search(pattern, text)), "")
    command, into, file = text.partition(" > ")
    return f"{command} {more}{into}{file}"


def run_as_given(text, place, folder):
    here = shutil.copytree(place, folder / "here")
    if "benchmarks report" in text or "benchmarks compare" in text:
        (here / "docs").mkdir()
        for name in re.findall(r"\S+\.jsonl", text):
            shutil.copy(here / "records.jsonl", here / name)
    if "--write-pack" in text:
        shutil.rmtree(here / "pack")
    if " train" in text and "--resume" not in text:
        shutil.rmtree(here / "runs")
    return shell(shorter(text), here)


RUN = [one for one in GIVEN if one.text not in NO_COMMANDS
       and re.search(r"\btinygrad-llm |python -m (tinygrad_llm|reference|benchmarks)", one.text)]


@pytest.mark.parametrize("one", RUN, ids=[one.text for one in RUN])
def test_it_runs(one, place, tmp_path):
    code, out, err = run_as_given(one.text, place, tmp_path)
    if "--device cuda" in one.text and not torch.cuda.is_available():
        assert code == 2, err
        assert re.fullmatch(r"(tinygrad-llm|error): device: got 'cuda', expected .*\n", err)
    else:
        assert code == 0, err
        assert out or " > " in one.text


def test_no_command_is_left_out():
    others = {one.text for one in GIVEN} - {one.text for one in RUN}
    assert others >= NO_COMMANDS
    elsewhere = r"make |pip install|python examples/"
    assert [text for text in others - NO_COMMANDS if not re.match(elsewhere, text)] == []
    assert len(RUN) > 40


@pytest.mark.parametrize("text", sorted({one.text for one in GIVEN if one.text.startswith("make ")} - NO_COMMANDS))
def test_it_is_a_target(text):
    done = subprocess.run(["make", "--dry-run", text.split()[1]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", sorted({one.text for one in GIVEN if one.text.startswith("python examples/")}))
def test_it_is_an_example(text):
    """test_examples runs all of them."""
    assert (ROOT / text.split()[1]).is_file()


@pytest.mark.parametrize("text", sorted({one.text for one in GIVEN if one.text.startswith("pip install")}))
def test_what_is_to_be_installed_is_declared(text):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "requirements-corpus.txt").read_text().split()
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for word in [word for word in text.split()[2:] if word not in ("--no-deps", "-r")]:
        assert word == "." or (ROOT / word).is_file() or any(
            re.match(rf"{re.escape(word)}\b", line) for line in [*project["dependencies"], *extras, *pins])


def test_what_a_run_says_can_be_typed(place, tmp_path):
    here = shutil.copytree(place, tmp_path / "here")
    _, out, _ = shell(shorter(f"{NAME} train --corpus mybook.txt {SMALL} --out 'runs/with a space'"), here)
    again = re.search(r"try it +(.*)", out)[1]
    assert again.startswith(f"{NAME} generate --checkpoint 'runs/with a space'")
    code, out, err = shell(f"{again} --max-new-tokens 5", here)
    assert (code, err) == (0, "")
    _, out, _ = shell(shorter(f"{NAME} check --write-pack another"), here)
    code, out, err = shell(out.splitlines()[-1], here)
    assert code == 0, err


# How the program is called ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("started", "found", "typed"), [
    ("bin/tinygrad-llm", "bin", NAME), (".venv/bin/tinygrad-llm", "bin", ".venv/bin/tinygrad-llm"),
    ("/a b/tinygrad-llm", "", "'/a b/tinygrad-llm'"), ("bin/pytest", "bin", NAME), ("-c", "", NAME), ("", "", NAME),
    ("bin/tinygrad-llm.exe", "", "bin/tinygrad-llm.exe"),
])
def test_the_program_is_called_as_it_was_started(started, found, typed, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / NAME).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    assert as_typed(started, path=str(tmp_path / found) if found else "") == typed


def test_the_module_is_called_by_this_python(tmp_path, monkeypatch):
    module = ROOT / "tinygrad_llm" / "__main__.py"
    assert as_typed(str(module), path=str(Path(sys.executable).parent)) == "python -m tinygrad_llm"
    monkeypatch.chdir(Path(sys.executable).parents[1])
    assert python_as_typed(path="") == f"bin/{Path(sys.executable).name}"
    monkeypatch.chdir(tmp_path)
    assert python_as_typed(path="") == sys.executable
