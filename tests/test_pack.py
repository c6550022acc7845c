"""Parity packs: ours passes those of torch, without torch; what is damaged, edited or foreign is refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinygrad_llm
from tinygrad_llm.checkpoint import CheckpointError
from tinygrad_llm.checkpoint.pack import _own_digest, load_pack, save_pack
from tinygrad_llm.cli import main
from tinygrad_llm.parity import check_pack

WORDS = ["check", "--d-model", "8", "--context-length", "4", "--vocab-size", "11", "--steps", "5"]
MODELS = {
    "default": [],
    "tied, post-norm": ["--tie-embeddings", "--norm-position", "post", "--activation", "gelu", "--positions", "learned"],
    "no bias": ["--no-bias", "--activation", "gelu_tanh", "--seed", "3"],
}


@pytest.fixture(scope="module", params=MODELS)
def pack(request, tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("pack") / "pack"
    assert main([*WORDS, *MODELS[request.param], "--write-pack", str(folder)]) == 0
    return folder


def test_ours_passes(pack):
    rows = check_pack(pack)
    assert [str(row) for row in rows if not row.passed] == []
    names = {row.name for row in rows}
    assert {"logits", "loss", "losses", "grad blocks.0.norm1.weight", "after.blocks.1.attn.qkv_proj.weight"} <= names
    assert {row.dtype for row in rows} == {"float64", "float32"}


def test_a_pack_holds_what_its_page_says(pack):
    about, files = load_pack(pack)
    assert (about["format"], about["version"], about["steps"]) == ("tinygrad_llm.parity", 1, 5)
    assert files["inputs"]["ids"].shape == (6, 4, 4)
    for dtype in ("float64", "float32"):
        tensors = files[dtype]
        assert {str(value.dtype) for value in tensors.values()} == {dtype}
        weights = {name.removeprefix("weights.") for name in tensors if name.startswith("weights.")}
        after = {name.removeprefix("after.") for name in tensors if name.startswith("after.")}
        assert after <= weights
        assert after == {name.removeprefix("grad.") for name in tensors if name.startswith("grad.")}
    assert all(np.array_equal(files["float32"][n], v) for n, v in files["float64"].items() if n.startswith("weights."))


def test_the_command_passes_where_there_is_no_torch(pack, tmp_path):
    code = "import sys; sys.modules['torch'] = None; from tinygrad_llm.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "check", "--pack", str(pack), "--json", str(tmp_path / "out.json")]
    root = Path(tinygrad_llm.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "comparisons equal" in done.stdout
    assert "PyTorch was not needed" in " ".join(done.stdout.split())
    assert json.loads((tmp_path / "out.json").read_text())["passed"]


def test_a_bug_of_ours_is_found_by_a_pack(pack, monkeypatch, capsys):
    from tinygrad_llm.model import Transformer

    real = Transformer.loss
    monkeypatch.setattr(Transformer, "loss", lambda self, ids, targets: real(self, ids, targets) * 1.001)
    assert main(["check", "--pack", str(pack)]) == 1
    assert "the first is loss (float64)" in " ".join(capsys.readouterr().out.split())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def copy(tmp_path):
    import shutil

    pytest.importorskip("torch")
    assert main([*WORDS, "--steps", "1", "--write-pack", str(tmp_path / "made")]) == 0
    return shutil.copytree(tmp_path / "made", tmp_path / "copy")


def refused(folder, capsys):
    capsys.readouterr()
    assert main(["check", "--pack", str(folder)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("name", ["inputs", "float64", "float32"])
def test_a_flipped_bit_is_refused(copy, capsys, name):
    flip(copy / f"{name}.safetensors")
    assert f"{name}.safetensors: got a file that is not the one of this pack" in refused(copy, capsys)


def test_an_edited_manifest_is_refused(copy, capsys):
    path = copy / "pack.json"
    path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 0.002'))
    assert "pack.json: got an edited file" in refused(copy, capsys)


@pytest.mark.parametrize(
    ("edit", "said"),
    [({"version": 2}, "got version 2, expected 1"), ({"format": "other"}, "got something else, expected JSON of format"),
     (None, "got something else")],
)  # fmt: skip
def test_a_foreign_pack_is_refused(copy, capsys, edit, said):
    path = copy / "pack.json"
    path.write_text("not JSON" if edit is None else json.dumps({**json.loads(path.read_text()), **edit}))
    assert said in refused(copy, capsys)


def test_what_is_missing_is_refused(copy, tmp_path, capsys):
    (copy / "float32.safetensors").unlink()
    assert "float32.safetensors: got no such file" in refused(copy, capsys)
    assert "pack.json: got no such file" in refused(tmp_path / "nowhere", capsys)


def test_a_file_of_another_pack_is_refused(copy, tmp_path):
    assert main([*WORDS, "--steps", "1", "--seed", "1", "--write-pack", str(tmp_path / "other")]) == 0
    (tmp_path / "other" / "float32.safetensors").replace(copy / "float32.safetensors")
    with pytest.raises(CheckpointError, match="not the one of this pack"):
        load_pack(copy)


OTHERS = [None, True, -3, 0.5, "x", [1], {"x": 1}]


@pytest.mark.parametrize(("name", "other"), [
    *[(name, other) for name in ("config", "optimizer", "files") for other in OTHERS],
    *[("config", {"d_model": other}) for other in OTHERS], *[("optimizer", {"lr": other}) for other in OTHERS if other != 0.5],
    ("inputs", {}), ("float32", {}),
])
def test_right_digests_over_wrong_contents_are_refused_in_one_line(copy, name, other):
    about, files = load_pack(copy)
    if name in files:
        files[name] = other
    save_pack(copy, {**about, name: other}, files)
    if name == "files":  # is written anew
        manifest = json.loads((copy / "pack.json").read_text()) | {"files": other}
        (copy / "pack.json").write_text(json.dumps(manifest | {"sha256": _own_digest(manifest)}))
    with pytest.raises((CheckpointError, OSError), match=": got ") as told:
        check_pack(copy)
    assert str(copy) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_manifest_of_brackets_is_refused(copy):
    (copy / "pack.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"pack.json: got something else, expected JSON of format"):
        check_pack(copy)
