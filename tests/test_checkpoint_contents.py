"""Files whose checksum is right and whose contents are not: loading, going on, measuring and writing say so in one line."""

import copy
import hashlib
import json
import random
import re
import shutil
import struct
import warnings
from contextlib import suppress

import pytest

from tinygrad_llm.checkpoint import CheckpointError, CheckpointFolder, load_checkpoint, save_checkpoint, verify_checkpoint
from tinygrad_llm.cli import main
from tinygrad_llm.training import load_model

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n" * 20
SMALL = ["--context-length", "8", "--d-model", "8", "--n-heads", "2", "--n-layers", "1", "--batch-size", "2", "--steps", "6",
         "--checkpoint-every", "2", "--quiet"]  # fmt: skip
DEEP = 50_000
OTHERS = [None, True, 7, -3, 0.5, "x", [1], {"x": 1}, {"$tuple": 7}, {"$scalar": [1]}, {"$tensor": [1]}, {"$dict": [[[], 1]]}]
GONE = object()


def sealed(header, body):
    """The bytes of a checkpoint, its checksum made anew."""
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    made = bytearray(struct.pack("<Q", len(raw)) + raw) + body
    place = made.find(b'"sha256":"') + 10
    made[place : place + 64] = b"0" * 64
    made[place : place + 64] = hashlib.sha256(made).hexdigest().encode()
    return made


class Forger:
    """A checkpoint taken apart, to be put together with other metadata."""

    def __init__(self, path):
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        self.header, self.body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        self.metadata = json.loads(self.header["__metadata__"]["metadata"])

    def with_metadata(self, text):
        header = copy.deepcopy(self.header)
        header["__metadata__"]["metadata"] = text
        return sealed(header, self.body)

    def edited(self, where, new):
        """The metadata with another value at a place, or without it."""
        whole = [copy.deepcopy(self.metadata)]
        *above, last = (0, *where)
        inside = whole
        for key in above:
            inside = inside[key]
        if new is GONE:
            del inside[last]
        else:
            inside[last] = new
        return self.with_metadata(json.dumps(whole[0]))


def places(value, where=()):
    yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*where, key))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder to stand in, with a text and a run of it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "text").write_text(TEXT)
        assert main(["train", "--corpus", "text", *SMALL, "--out", "run"]) == 0
        yield folder


@pytest.fixture
def forger(run):
    """What the checkpoint of step 4 is made of; a forgery of it is all that the folder `forged` holds."""
    return Forger(run / "run" / "step-00000004.safetensors")


def put(run, content):
    shutil.rmtree(run / "forged", ignore_errors=True)
    (run / "forged").mkdir()
    shutil.copy(run / "run" / "metrics.jsonl", run / "forged")
    path = run / "forged" / "step-00000004.safetensors"
    path.write_bytes(content)
    verify_checkpoint(path)
    return path


COMMANDS = {
    "resume": ["train", "--resume", "--quiet", "--out", "forged"],
    "eval": ["eval", "--checkpoint", "forged", "--max-tokens", "8"],
    "generate": ["generate", "--checkpoint", "forged/step-00000004.safetensors", "--prompt", "the", "--max-new-tokens", "2"],
}


def answer(capsys, command):
    """The one line in which a command refuses what it is given; "" where it does not."""
    capsys.readouterr()
    code = main(COMMANDS[command])
    error = capsys.readouterr().err
    notes = [line for line in error.splitlines() if not line.startswith("tinygrad-llm: note: ")]
    assert (code, len(notes)) in ((0, 0), (2, 1)), error
    assert code == 0 or ": got " in error
    return "".join(notes)


def test_whatever_stands_at_any_place_is_taken_or_refused_in_one_line(run, forger, capsys):
    draw, refused = random.Random(0), 0
    for where in places(forger.metadata):
        new = draw.choice([*OTHERS, *[GONE] * bool(where)])
        path = put(run, forger.edited(where, new))
        of_run = where[:1] == ("run",)
        for command in ["resume"] if of_run else COMMANDS:
            told = answer(capsys, command)
            refused += bool(told)
            if of_run and told:
                assert "step-00000004.safetensors" in told, (where, new, told)
        if not of_run:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for load in (load_model, lambda path: CheckpointFolder(path.parent).latest()):
                    with suppress(CheckpointError):
                        load(path)
    assert refused > 200


@pytest.mark.parametrize(("where", "new", "told"), [
    ((), [1], r"metadata: got \[1\], expected a dict"),
    (("step",), -5, "step: got -5, expected an integer >= 0"),
    (("tokenizer",), {"kind": "nonsense"}, "kind: got 'nonsense', expected one of char, tiktoken"),
    (("evaluation",), {"x": 1}, r"evaluation: got \['x'\], expected loss, perplexity"),
    (("about", "settings", "steps"), "sixty", "settings: steps: got 'sixty', expected an integer >= 1"),
    (("about", "settings", "corpus"), 7, "settings: corpus: got 7, expected a text that is not empty"),
    (("about", "settings"), 7, None),
    (("about",), [], r"about: got \[\], expected a dict"),
    (("config", "d_model"), "x", "d_model: got 'x', expected an integer"),
    (("run", "best"), 7, "run.best: got 7, expected a step and its test_loss, or None"),
    (("run", "evaluated"), 9, "run.evaluated: got 9, expected one of 0 to 4"),
    (("run", "identity", "workers"), 1, "run.identity.workers: got 1, expected an integer > 1 or None"),
    (("run", "optimizer"), GONE, "run.optimizer: got None, expected state, param_groups"),
    (("run", "optimizer", "param_groups", 0, "eps"), "x", "eps: got 'x', expected a number"),
    (("run", "optimizer", "param_groups", 0, "weight_decay"), 0.7, "param_groups: weight_decay: got 0.7, expected 0.1"),
    (("run", "optimizer", "state", "$dict", 0, 1, "step"), -3, "parameter 0.step: got -3, expected an integer"),
    (("run", "generators", "(library)", "state", "inc"), "x", r"\(library\).state.inc: got 'x', expected an integer"),
    (("run", "schedule", "base_lrs"), [1], "run.schedule.base_lrs: got .1., expected 2 values"),
    (("run", "batches", "epoch"), -1, "run.batches.epoch: got -1, expected an integer"),
])
def test_the_place_is_named(run, forger, capsys, where, new, told):
    put(run, forger.edited(where, new))
    lines = [answer(capsys, command) for command in COMMANDS]
    named = [line for line in lines if "forged/step-00000004.safetensors" in line]
    assert any(re.search(told, line) for line in named) if told else any(lines), lines


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * DEEP, "{", "", '{"step": NaN}'])
def test_metadata_that_is_no_json_or_too_deep_is_refused(run, forger, text, capsys):
    path = put(run, forger.with_metadata(text))
    if "NaN" not in text:
        with pytest.raises(CheckpointError, match="got metadata that cannot be read"):
            load_checkpoint(path)
    assert all(answer(capsys, command) for command in COMMANDS)


def test_what_another_program_saved_without_a_step_is_a_model_all_the_same(run, capsys):
    tensors, metadata = load_checkpoint(run / "run" / "best.safetensors")
    save_checkpoint(run / "few", tensors, {name: metadata[name] for name in ("config", "tokenizer")})
    assert main(["eval", "--checkpoint", "few", "--corpus", "text", "--max-tokens", "8"]) == 0
    assert main(["eval", "--checkpoint", "few"]) == 2
    assert "--corpus: got none" in capsys.readouterr().err
