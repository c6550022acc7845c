"""The wrong input table: whatever a user does wrong is one line on stderr and exit code 2, and nothing is lost."""

import errno
import io
import os
import re
import shutil
import sys
import tomllib
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tinygrad_llm.checkpoint import CheckpointFolder, load_checkpoint, save_checkpoint
from tinygrad_llm.cli import main
from tinygrad_llm.cli.errors import notes_unless_refused, warnings_as_lines
from tinygrad_llm.data import CharTokenizer

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n" * 20
SMALL = "--context-length 8 --d-model 8 --n-heads 2 --n-layers 1 --batch-size 2 --steps 6 --checkpoint-every 2 --quiet"
TRAIN = f"train --corpus text {SMALL} --out new"


@dataclass(frozen=True)
class Row:
    """arguments, which are split at spaces, with a pattern of the one line; `before` may damage something first."""

    arguments: str
    line: str
    before: object = None
    more: tuple = ()
    id: str = field(default="")


def rows():
    """Every row by the name that says what is wrong."""
    return {
        # the command line itself
        "no command": Row("", r"command: got none, expected one of train, eval"),
        "unknown command": Row("trian", r"command: got 'trian', expected one of train, eval"),
        "unknown flag": Row("train --leraning-rate 1", r"arguments: got '--leraning-rate 1', expected an option that"),
        "misspelt flag": Row("train --n-layer 1", r"arguments: got '--n-layer 1', .* such as --n-layers"),
        "abbreviated flag": Row("train --warmup 1", r"arguments: got '--warmup 1'"),
        "flag without a value": Row("train --lr", r"--lr: got too few values, expected a value"),
        "one beta": Row(f"{TRAIN} --betas 0.9", r"--betas: got too few values, expected 2 values"),
        "two texts": Row("tokenize a b", r"arguments: got 'b'"),
        # numbers and words
        "--steps 0": Row(f"{TRAIN} --steps 0", r"--steps: got 0, expected an integer >= 1"),
        "a word for a number": Row(f"{TRAIN} --d-model big", r"--d-model: got 'big', expected an integer >= 1"),
        "a fraction of a layer": Row(f"{TRAIN} --n-layers 1.5", r"--n-layers: got '1\.5', expected an integer >= 1"),
        "no workers": Row(f"{TRAIN} --workers 0", r"--workers: got 0, expected auto, or an integer >= 1"),
        "a word for workers": Row(f"{TRAIN} --workers all", r"--workers: got 'all', expected auto, or an integer >= 1"),
        "workers beside torch": Row(f"{TRAIN} --backend torch --workers 2", r"--workers: got 2, expected 1 with --backend"),
        "negative learning rate": Row(f"{TRAIN} --lr -1", r"--lr: got -1\.0, expected a number > 0"),
        "NaN learning rate": Row(f"{TRAIN} --lr nan", r"--lr: got nan, expected a number > 0"),
        "infinite weight decay": Row(f"{TRAIN} --weight-decay inf", r"--weight-decay: got inf, expected a number >= 0"),
        "beta of 1": Row(f"{TRAIN} --betas 0.9 1", r"--betas: got '0\.9 1\.0', expected two numbers in \[0, 1\)"),
        "dropout of 1": Row(f"{TRAIN} --dropout 1", r"--dropout: got 1\.0, expected a number in \[0, 1\)"),
        "negative seed": Row(f"{TRAIN} --seed -1", r"--seed: got -1, expected an integer >= 0"),
        "seed beyond 64 bits": Row(f"{TRAIN} --seed {10**30}", rf"--seed: got {10**30}, expected .* < 2\^62"),
        "unknown activation": Row(f"{TRAIN} --activation swish", r"--activation: got 'swish', expected one of relu, g"),
        "unknown dtype": Row(f"{TRAIN} --dtype float16", r"--dtype: got 'float16', expected one of float32, float64"),
        "unknown preset": Row("train --preset huge", r"preset: got 'huge', expected one of tiny, demo, gpt2"),
        "test fraction of 1": Row(f"{TRAIN} --test-fraction 1", r"--test-fraction: got 1\.0, expected a number in \(0"),
        "wrong backend": Row(f"{TRAIN} --backend jax", r"--backend: got 'jax', expected one of numpy, torch"),
        "heads that do not divide": Row(f"{TRAIN} --d-model 9", r"n_heads: got 2, expected a divisor of d_model = 9"),
        "--top-p 2": Row("generate --checkpoint run --prompt the --top-p 2", r"--top-p: got 2\.0, expected .* \(0, 1"),
        "--top-k 0": Row("generate --checkpoint run --prompt the --top-k 0", r"--top-k: got 0, expected an integer >="),
        "negative temperature": Row("generate --checkpoint run --prompt the --temperature -1", r"--temperature: got -"),
        "empty stop": Row("generate --checkpoint run --prompt the --stop=", r"--stop: got '', expected texts"),
        "a device without torch": Row("eval --checkpoint run --device cuda", r"--device: got 'cuda', expected cpu, or"),
        "a device that is none": Row("eval --checkpoint run --backend torch --device abacus", r"device: got 'abacus'"),
        # text
        "no such corpus": Row(f"{TRAIN} --corpus nowhere", r"corpus: got 'nowhere', expected shakespeare, stdlib, aut"),
        "empty corpus": Row(f"{TRAIN} --corpus empty", r"corpus: got 'empty', which holds no text, expected at least "),
        "binary corpus": Row(f"{TRAIN} --corpus binary", r"text: got 'binary', which is not UTF-8 .* expected text"),
        "folder of nothing": Row(f"{TRAIN} --corpus hollow", r"corpus: got 'hollow', which holds no text"),
        "corpus shorter than the context": Row(f"{TRAIN} --corpus short", r"corpus: got 'short', of which 8 tokens are to tr"),
        "context longer than the text": Row(f"{TRAIN} --context-length 5000", r"corpus: .*, expected more than --context-len"),
        "corpus with little held out": Row(f"{TRAIN} --test-fraction 0.001", r"corpus: .*, of which \d tokens are held"),
        "a pipe for a corpus": Row(f"{TRAIN} --corpus pipe", r"corpus: got 'pipe', a pipe or device, expected a", pipe),
        "a pipe to tokenize": Row("tokenize --file pipe", r"corpus: got 'pipe', a pipe or device, expected a fold", pipe),
        "unknown tokenizer": Row(f"{TRAIN} --tokenizer bpe", r"tokenizer: got 'bpe', expected one of char, cl100k_base"),
        "nothing to tokenize": Row("tokenize", r"text: got none, expected a TEXT, - for standard input, --file or --c"),
        "empty text to tokenize": Row("tokenize", r"text: got '', expected a text that is not empty", more=("",)),
        "text and file to tokenize": Row("tokenize words --file text", r"text: got both a text and --file 'text'"),
        "missing file to tokenize": Row("tokenize --file nowhere", r"corpus: got './nowhere'|corpus: got 'nowhere'"),
        "character that no corpus has": Row("tokenize --tokenizer char --corpus text Ω", r"text: got character 'Ω' \("),
        "prompt of unknown characters": Row("generate --checkpoint run --prompt Ω", r"text: got character 'Ω' .* of t"),
        "empty prompt": Row("generate --checkpoint run --prompt=", r"--prompt: got '', expected a text that is not em"),
        "empty standard input": Row("generate --checkpoint run --prompt -", r"prompt: got no characters, expected at "),
        "no prompt": Row("generate --checkpoint run", r"--prompt: got none, expected a text to continue, or -"),
        "eval of one character": Row("eval --checkpoint run --corpus one", r"corpus: got a text of 1 tokens, expected at le"),
        "eval of unknown characters": Row("eval --checkpoint run --corpus greek", r"text: got character 'Ω' "),
        # checkpoints
        "no checkpoint": Row("eval", r"--checkpoint: got none, expected the folder of a run or a checkpoint file"),
        "missing checkpoint": Row("eval --checkpoint nowhere", r"nowhere: got no such file, expected a checkpoint"),
        "folder without a checkpoint": Row("eval --checkpoint hollow", r"hollow: got no good checkpoint .* found noth"),
        "text for a checkpoint": Row("eval --checkpoint text", r"text: got a file that is cut off or not in the safet"),
        "empty checkpoint": Row("eval --checkpoint empty", r"empty: got an empty file, expected a checkpoint"),
        "truncated checkpoint": Row("eval --checkpoint run/best.safetensors", r"best.safetensors: got a fil", truncate),
        "one bit flipped": Row("generate --checkpoint run/best.safetensors --prompt the", r"got a damaged or ed", flip),
        "every checkpoint damaged": Row("eval --checkpoint run", r"no good checkpoint .*\(.*best.safetensor", flip_all),
        "resume from damaged checkpoints": Row("train --resume --out run --quiet", r"no good checkpoint", flip_all),
        "checkpoint of another program": Row("eval --checkpoint other", r"other: got a safetensors file of some other"),
        "NaN in the weights, eval": Row("eval --checkpoint nan", r"evaluate: got a loss of nan, expected a finit", nan),
        "NaN in the weights, generate": Row("generate --checkpoint nan --prompt the", r"generate: got a logit of", nan),
        "weights of another shape": Row("eval --checkpoint reshaped", r"reshaped: got no model that can be b", reshape),
        "tokenizer of another vocabulary": Row("generate --checkpoint alien --prompt a", r"tokenizer: got .*3", alien),
        "ids outside the vocabulary": Row("eval --checkpoint alien --corpus text", r"got \d+, expected .", large_alien),
        "a model without a tokenizer": Row("generate --checkpoint mute --prompt a", r"checkpoint: got 'mute', which has", mute),
        "check of a damaged checkpoint": Row("check --checkpoint run/best.safetensors", r"got a damaged or edit", flip),
        "check of a checkpoint and a width": Row("check --checkpoint run --d-model 8", r"d_model: got a value beside "),
        # folders and disks
        "out is in use by a run": Row(f"{TRAIN} --out run", r"out: got 'run', which is not empty, expected a new fold"),
        "out holds other files": Row(f"{TRAIN} --out notes", r"out: got 'notes', which is not empty"),
        "out is locked": Row(f"{TRAIN} --out locked", r"locked: got a folder that this process writes in alread", lock),
        "out is a link to nothing": Row(f"{TRAIN} --out link", r"out: got 'link', a link to nothing, expected", dangle),
        "out is in the corpus": Row(f"{TRAIN} --corpus notes --out notes/a/b", r"out: got 'notes/a/b' in the folder of the"),
        "out is a pipe": Row(f"{TRAIN} --out pipe", r"out: got 'pipe', a file, expected a folder, or a name", pipe),
        "out is below a file": Row(f"{TRAIN} --out text/sub", r"text/sub: Not a directory"),
        "out is a file": Row(f"{TRAIN} --out text", r"out: got 'text', a file, expected a folder, or a name"),
        "out cannot be made": Row(f"{TRAIN} --out /proc/nowhere/out", r"/proc/nowhere.*: No such file or directory"),
        "no run to resume": Row("train --resume --out nowhere", r"out: got 'nowhere', where nothing is, expected the "),
        "resume of other files": Row("train --resume --out notes", r"out: got 'notes' with todo but no step to go on from"),
        "resume with another width": Row("train --resume --out run --d-model 16", r"--d-model: got 16, expected 8, th"),
        "resume with more steps": Row("train --resume --out run --steps 9", r"--steps: got 9, expected 6, that of the"),
        "resume with another text": Row("train --resume --out run --quiet", r"corpus: got 'text', whose text has ch", rewrite),
        "eval of a text that has changed": Row("eval --checkpoint run", r"corpus: got 'text', whose text has chang", rewrite),
        "resume with a corpus that is gone": Row("train --resume --out run", r"corpus: got 'text', expected s", remove),
        "report below a file": Row("check --json text/c.json", r"text/c.json: Not a directory"),
        "report into a pipe": Row("check --html pipe", r"pipe: got a pipe that nobody reads, expected a fil", pipe),
        "report that is a folder": Row("check --html .", r"\.: Is a directory"),
        "trace in no folder": Row("profile --trace nowhere/step.json", r"nowhere/step.json: No such file"),
        "resume in torch": Row("train --resume --out run --backend torch", r"--backend: got 'torch', expected 'numpy'"),
        "accumulate in torch": Row(f"{TRAIN} --backend torch --accumulate 2", r"--accumulate: got 2, expected 1 with "),
        "too large for the memory": Row(f"{TRAIN} --d-model 1000000000000", r"memory: got too little of it .* expecte"),
        "a learning rate that diverges": Row(f"{TRAIN} --lr 1e30 --grad-clip 0", r"step \d: got a loss of (nan|inf), "),
        # TOML
        "missing TOML": Row("train --config nowhere.toml", r"nowhere.toml: No such file or directory"),
        "pipe for TOML": Row("train --config pipe", r"pipe: got a named pipe, which may wait for ever, expected a file", pipe),
        "TOML without an end": Row("train --config /dev/zero", r"/dev/zero: got more than 1,048,576 bytes, expected"),
        "deep TOML": Row("train --config deep.toml", r"deep.toml: got a file that is not TOML \(maximum recursion"),
        "bad TOML": Row("train --config bad.toml", r"bad.toml: got a file that is not TOML \(.*\), expected lines suc"),
        "TOML that is no text": Row("train --config binary", r"binary: got a file that is not TOML"),
        "unknown TOML key": Row("train --config typo.toml", r"typo.toml: n_layer: got an unknown key, expected 'n_lay"),
        "TOML table": Row("train --config table.toml", r"table.toml: model: got a table, expected keys that"),
        "wrong TOML type": Row("train --config type.toml", r"type.toml: d_model: got '128', expected an integer >= 1"),
        "TOML truth for a number": Row("train --config truth.toml", r"truth.toml: steps: got True, expected an integer >= 1"),
        "TOML of another command": Row("generate --config type.toml", r"type.toml: d_model: got an unknown key"),
        "preset where there is none": Row("generate --config preset.toml", r"preset: got 'demo', expected none: this "),
    }  # fmt: skip


# What is done before -------------------------------------------------------------------------------------------------


def truncate(folder):
    path = folder / "run" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder, name="best.safetensors"):
    path = folder / "run" / name
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 4
    path.write_bytes(damaged)


def flip_all(folder):
    for path in (folder / "run").glob("*.safetensors"):
        flip(folder, path.name)


def edited(name):
    """A function that saves the run's best model under `name`, with tensors and metadata edited by the decorated one."""

    def decorate(edit):
        def before(folder):
            tensors, metadata = load_checkpoint(folder / "run" / "best.safetensors")
            edit(tensors, metadata)
            save_checkpoint(folder / name, tensors, metadata)

        return before

    return decorate


@edited("nan")
def nan(tensors, metadata):
    tensors["lm_head.weight"][1, 1] = np.nan


@edited("reshaped")
def reshape(tensors, metadata):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()


@edited("alien")
def alien(tensors, metadata):
    metadata["tokenizer"] = CharTokenizer("abc").to_dict()


@edited("alien")
def large_alien(tensors, metadata):
    metadata["tokenizer"] = CharTokenizer(TEXT + "".join(map(chr, range(256, 600)))).to_dict()
    metadata["tokenizer"]["chars"] = "".join(map(chr, range(600)))


@edited("mute")
def mute(tensors, metadata):
    metadata["tokenizer"] = None


def lock(folder):
    held = CheckpointFolder(folder / "locked")
    held.lock()
    return held


def pipe(folder):
    os.mkfifo(folder / "pipe")


def dangle(folder):
    (folder / "link").symlink_to(folder / "nowhere")


def rewrite(folder):
    (folder / "text").write_text(TEXT.replace("fox", "cat"))


def remove(folder):
    (folder / "text").unlink()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with a finished run and every kind of file that may be in the wrong place."""
    folder = tmp_path_factory.mktemp("template")
    files = {"text": TEXT, "empty": "", "short": "few words", "one": "t", "greek": "Ωμέγα", "notes/todo": "keep me"}
    tomls = {"bad": "d_model = = 3", "typo": "n_layer = 3", "table": "[model]\nd_model = 3", "type": 'd_model = "128"',
             "truth": "steps = true", "deep": f"lr = {'[' * 100_000}", "preset": 'preset = "demo"'}  # fmt: skip
    for name in ("hollow", "notes"):
        (folder / name).mkdir()
    for name, text in (files | {f"{name}.toml": text for name, text in tomls.items()}).items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(f"train --corpus text {SMALL} --out run".split()) == 0
        save_numpy = pytest.importorskip("safetensors.numpy").save_file
        save_numpy({"weight": np.zeros(3, np.float32)}, folder / "other")
    return folder


@pytest.fixture
def folder(template, tmp_path, monkeypatch):
    """A copy of it to stand in."""
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return tmp_path / "here"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, arguments, pattern):
    """The command ends as a user's mistake should: one line, exit code 2."""
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    assert (code, captured.err.count("\n")) == (2, 1), captured.err
    assert re.match(r"tinygrad-llm: \S", captured.err)
    assert re.search(pattern, captured.err), captured.err
    return captured


@pytest.mark.parametrize("name", rows())
def test_a_mistake_is_one_line_and_loses_nothing(name, folder, capsys):
    row = rows()[name]
    if "torch" in row.arguments or row.arguments.startswith("check --steps"):
        pytest.importorskip("torch")
    held = row.before(folder) if row.before else None
    before = contents(folder)
    captured = refused(capsys, [*row.arguments.split(), *row.more], row.line)
    if not captured.err.rstrip().endswith(("directory", "exists")):
        assert ": got " in captured.err
        assert "expected" in captured.err or "safetensors" in captured.err
    after = contents(folder)
    assert {path: after.get(path) for path in before} == before
    del held


def test_the_table_is_long_enough():
    assert len(rows()) >= 30


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_still_loads(call, folder, capsys, monkeypatch):
    """The disk fills while step 4 is saved: step 2 is there, whole, and the run goes on from it to the same bits."""
    work, full = getattr(os, call), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    saved = folder / "new" / "step-00000002.safetensors"

    def until_full(fd, *rest):
        if saved.exists() and "step-00000004" in os.readlink(f"/proc/self/fd/{fd}"):
            raise full
        return work(fd, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, until_full)
        captured = refused(capsys, TRAIN.split(), r"step-00000004.safetensors: cannot be saved: No space left on device")
    assert "Traceback" not in captured.err
    assert CheckpointFolder(folder / "new").latest().metadata["step"] == 2
    assert not list(folder.rglob("*.tmp"))
    assert main(["train", "--resume", "--quiet", "--out", "new"]) == 0
    ours, wanted = CheckpointFolder(folder / "new").latest(), CheckpointFolder(folder / "run").latest()
    assert all(np.array_equal(ours.tensors[name], wanted.tensors[name]) for name in wanted.tensors)


def test_one_damaged_checkpoint_is_noted_and_the_one_before_is_used(folder, capsys):
    flip(folder)
    capsys.readouterr()
    assert main(["eval", "--checkpoint", "run"]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"tinygrad-llm: note: .*best.safetensors: got a damaged.* instead\n", captured.err)
    assert "step-00000006.safetensors" in captured.out


@pytest.mark.parametrize("arguments", ["check", "eval --checkpoint run --backend torch", f"{TRAIN} --backend torch"])
def test_without_torch_a_line_says_what_to_install(arguments, folder, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "reference"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    captured = refused(capsys, arguments.split(), r"torch: got no PyTorch, expected it here: \S+ -m pip install 'torch>=2.13'$")
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["torch"] == ["torch>=2.13"]
    assert captured.out == ""
    assert not Path("new").exists()


def test_an_abandoned_start_leaves_the_folder_usable(folder, capsys):
    """A run that was refused after it locked its folder must not make the next one say that the folder is in use."""
    refused(capsys, f"{TRAIN} --lr 1e30 --grad-clip 0".split(), "expected a finite number")
    shutil.rmtree("new")
    assert main(TRAIN.split()) == 0


def test_a_warning_is_one_line(capsys):
    with warnings_as_lines():
        warnings.warn("text\nin two lines", stacklevel=1)
    assert capsys.readouterr().err == "tinygrad-llm: note: text in two lines\n"


def test_notes_are_given_where_nothing_is_refused(capsys):
    with notes_unless_refused():
        warnings.warn("look", stacklevel=1)
    assert capsys.readouterr().err == "tinygrad-llm: note: look\n"
