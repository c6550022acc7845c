"""A parity pack on disk: what a model computes, for any other implementation to test itself against.   docs/parity_pack.md

    DIR/pack.json               format, version, config, optimizer, tolerances, the SHA-256 of each file and of itself
    DIR/inputs.safetensors      ids, targets: int64 [1 + steps, B, T]
    DIR/float64.safetensors     weights.NAME, logits, loss, grad.NAME, losses [steps], after.NAME
    DIR/float32.safetensors     the same, computed in float32
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_llm.checkpoint.file import CheckpointError, load_checkpoint, save_checkpoint, write_whole

FORMAT, VERSION = "tinygrad_llm.parity", 1
FILES = ("inputs", "float64", "float32")

Tensors = dict[str, np.ndarray]


def save_pack(path: str | os.PathLike[str], about: Mapping[str, Any], files: Mapping[str, Tensors]) -> None:
    """Write a pack into a folder. about: JSON values, at least config, optimizer and steps. Raises OSError."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=folder) as beside:  # until all is written, an older pack stays
        for name in FILES:
            save_checkpoint(Path(beside) / f"{name}.safetensors", files[name], {})
        digests = {f"{name}.safetensors": _digest((Path(beside) / f"{name}.safetensors").read_bytes()) for name in FILES}
        manifest = {"format": FORMAT, "version": VERSION, **about, "files": digests}
        manifest["sha256"] = _own_digest(manifest)
        write_whole(Path(beside) / "pack.json", json.dumps(manifest, indent=1) + "\n")
        for name in (*digests, "pack.json"):
            os.replace(Path(beside) / name, folder / name)


def load_pack(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """(pack.json, file -> tensors), every byte verified.

    Raises CheckpointError, naming the file, for a pack that is damaged, edited, or of another version; OSError.
    """
    folder = Path(path)
    manifest = _manifest(folder / "pack.json")
    for name in FILES:
        _check_file(folder / f"{name}.safetensors", manifest["files"])
    return manifest, {name: load_checkpoint(folder / f"{name}.safetensors")[0] for name in FILES}


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: got no such file, expected a parity pack")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: got something else, expected JSON of format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise CheckpointError(f"{path}: got version {manifest.get('version')!r:.40}, expected {VERSION}")
    if manifest.get("sha256") != _own_digest(manifest) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path}: got an edited file: its SHA-256 is not the one it was written with")
    return manifest


def _check_file(path: Path, digests: Mapping[str, str]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: got no such file, expected it beside pack.json")
    if _digest(path.read_bytes()) != digests.get(path.name):
        raise CheckpointError(f"{path}: got a file that is not the one of this pack: its SHA-256 differs")


def _own_digest(manifest: Mapping[str, Any]) -> str:
    """Over the manifest without its own digest, as JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return _digest(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
