"""Checkpoints: exact round trips, every damaged byte refused, and a good file in the folder whatever happens."""

import errno
import fcntl
import gc
import hashlib
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinygrad_llm.checkpoint.folder as folder_module
from tinygrad_llm.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    flatten_state,
    load_checkpoint,
    save_checkpoint,
    unflatten_state,
    verify_checkpoint,
)
from tinygrad_llm.checkpoint.file import write_whole
from tinygrad_llm.checkpoint.pack import save_pack

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ["f8", "f4", "f2", "c8", "b1", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"]
LAYOUTS = {
    "as it is": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: a.T,
    "reversed": lambda a: a[::-1] if a.ndim else a,
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape)),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}
TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(2.5), "empty": np.zeros((0, 3))}
METADATA = {"step": 7, "config": {"d_model": 8, "activation": "relu"}, "note": "Größe √2"}


def same(a, b):
    """Equal in every bit, type by type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return (math.isnan(a) and math.isnan(b)) or a.hex() == b.hex() if isinstance(a, float) else a == b


def native(array):
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def one_line(error):
    return "\n" not in str(error.value)


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", TENSORS, METADATA)
    return tmp_path / "x.safetensors"


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────────────────────

arrays = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
keys = st.text(max_size=5) | st.integers() | st.sampled_from(["$tensor", "$dict", "$", "a/b", "a"])
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | arrays
    | hnp.arrays(st.sampled_from(["f4", "f8", "i8", ">i4", "b1"]), ()).map(lambda a: a[()])
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda t: st.lists(t, max_size=3) | st.tuples(t, t) | st.just(()) | st.dictionaries(keys, t, max_size=3),
)


@given(st.dictionaries(st.text(max_size=8), st.tuples(arrays, st.sampled_from(sorted(LAYOUTS))), max_size=4))
def test_tensors_round_trip_in_every_dtype_shape_and_layout(tmp_path_factory, drawn):
    tensors = {name: LAYOUTS[layout](array) for name, (array, layout) in drawn.items()}
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    save_checkpoint(path, tensors, {})
    loaded, metadata = load_checkpoint(path)
    assert metadata == {}
    assert same(loaded, {name: native(array) for name, array in tensors.items()})
    assert all(array.flags.writeable and array.flags.c_contiguous for array in loaded.values())
    by_the_library = safetensors.numpy.load_file(path)
    assert set(by_the_library) == set(tensors)
    assert all(same(by_the_library[name], loaded[name]) for name in tensors)


@given(st.dictionaries(keys, trees, max_size=4))
def test_state_trees_round_trip_through_flatten_state_and_as_metadata(tmp_path_factory, tree):
    tensors, encoded = flatten_state(tree)
    assert same(unflatten_state(tensors, json.loads(json.dumps(encoded, allow_nan=False))), tree)
    path = tmp_path_factory.mktemp("tree") / "x.safetensors"
    save_checkpoint(path, {"metadata/a": np.ones(2)}, tree)
    loaded, metadata = load_checkpoint(path)
    assert same(metadata, tree)
    assert same(loaded, {"metadata/a": np.ones(2)})


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_a_random_generator_continues_where_it_was(tmp_path, kind):
    source = np.random.Generator(getattr(np.random, kind)(5))
    source.integers(0, 10, size=3, dtype=np.int32)  # leaves half a word in the buffer
    save_checkpoint(tmp_path / "x", {}, {"rng": source.bit_generator.state})
    copy = np.random.Generator(getattr(np.random, kind)(0))
    copy.bit_generator.state = load_checkpoint(tmp_path / "x")[1]["rng"]
    for draw in (lambda g: g.integers(0, 10, size=9, dtype=np.int32), lambda g: g.normal(size=9)):
        assert same(draw(source), draw(copy))


def test_the_same_content_gives_the_same_bytes_and_tensors_are_aligned(tmp_path):
    tensors = {"odd": np.ones(3, np.int8), "wide": np.ones(2), "half": np.ones(1, np.float16)}
    save_checkpoint(tmp_path / "a", tensors, METADATA)
    save_checkpoint(tmp_path / "b", tensors, METADATA)
    raw = (tmp_path / "a").read_bytes()
    assert raw == (tmp_path / "b").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % tensors[name].itemsize == 0


def test_arrays_in_metadata_have_readable_names_that_never_collide(tmp_path):
    tensors, _ = flatten_state({"a": {"b": np.ones(1)}, "a/b": np.ones(2), "c": [np.ones(3)]})
    assert {name: array.size for name, array in tensors.items()} == {"a/b": 1, "a/b'": 2, "c/0": 3}


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_byte_that_changes_is_noticed(saved):
    good = saved.read_bytes()
    for at in range(len(good)):
        for flip in (0x01, 0x20, 0x29, 0x80, 0xFF):  # 0x20: case; 0x29: space ↔ tab
            saved.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
            with pytest.raises(CheckpointError, match=r"x\.safetensors: got") as error:
                load_checkpoint(saved)
            assert one_line(error)


@given(st.data())
def test_any_edit_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("edit") / "x"
    save_checkpoint(path, TENSORS, METADATA)
    good = path.read_bytes()
    begin = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(begin, len(good)))
    bad = good[:begin] + data.draw(st.binary(max_size=40)) + good[end:]
    path.write_bytes(bad)
    if bad != good:
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)


def test_a_file_cut_off_anywhere_is_refused(saved):
    good = saved.read_bytes()
    for length in range(len(good)):
        saved.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=r"empty|cut off|damaged"):
            load_checkpoint(saved)
    saved.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="after its end"):
        load_checkpoint(saved)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**40, 10**9, 100_000_000])
def test_a_corrupt_length_allocates_nothing(tmp_path, length):
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b'{"a":1}')
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="cut off"):
            load_checkpoint(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


WRONG_KINDS = {
    "empty": (b"", "an empty file"),
    "text": (b"ROMEO: But soft, what light" * 9, "not in the safetensors format"),
    "zip": (b"PK\x03\x04" + bytes(60), "not in the safetensors format"),
    "pickle": (b"\x80\x04\x95" + bytes(60), "not in the safetensors format"),
    "JSON list": (struct.pack("<Q", 2) + b"[]", "not in the safetensors format"),
    "deep JSON": (struct.pack("<Q", 90_000) + b"[" * 90_000, "not in the safetensors format"),
    "no metadata": (struct.pack("<Q", 2) + b"{}", "some other kind"),
    "foreign": (safetensors.numpy.save({"a": np.ones(2)}, metadata={"format": "pt"}), "some other kind"),
}


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, kind):
    content, says = WRONG_KINDS[kind]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as error:
        load_checkpoint(tmp_path / "x")
    assert one_line(error)
    assert str(tmp_path / "x") in str(error.value)


def test_folders_pipes_and_missing_files_are_refused_without_waiting(tmp_path):
    with pytest.raises(CheckpointError, match="a folder"):
        load_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe"):
        load_checkpoint(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="got no such file"):
        load_checkpoint(tmp_path / "missing")


def forge(path, change):
    """Rewrite the header by `change`, with a checksum that is right: what is then refused, the checks refuse."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    forged = struct.pack("<Q", len(text)) + text + raw[8 + length :]
    path.write_bytes(forged.replace(b"0" * 64, hashlib.sha256(forged).hexdigest().encode(), 1))


FORGERIES = {
    "a newer version": (lambda h: h["__metadata__"].update(version="2"), "a newer tinygrad_llm wrote it"),
    "a silly version": (lambda h: h["__metadata__"].update(version="9" * 5000), "got version"),
    "no metadata": (lambda h: h["__metadata__"].pop("metadata"), "expected both"),
    "metadata not JSON": (lambda h: h["__metadata__"].update(metadata="{"), "cannot be read"),
    "metadata too deep": (lambda h: h["__metadata__"].update(metadata="[" * 10**5), "cannot be read"),
    "metadata with a strange tag": (lambda h: h["__metadata__"].update(metadata='{"$eval":"1"}'), "strange|tag"),
    "metadata naming no tensor": (lambda h: h["__metadata__"].update(metadata='{"a":{"$tensor":"q"}}'), "no tensor"),
    "metadata naming a list": (lambda h: h["__metadata__"].update(metadata='{"a":{"$tensor":[]}}'), "cannot be read"),
    "overlap": (lambda h: h["a.weight"].update(data_offsets=[0, 24]), "one after the other"),
    "a gap": (lambda h: h.pop("b"), "one after the other"),
    "too few bytes named": (lambda h: h.pop("a.weight"), "after its end"),
    "a hundred exabytes": (lambda h: h["a.weight"].update(shape=[10**20], data_offsets=[8, 8 + 4 * 10**20]), "cut off"),
    "a wrong shape": (lambda h: h["b"].update(shape=[2]), "damaged header"),
    "a negative shape": (lambda h: h["a.weight"].update(shape=[-2, -3]), "damaged header"),
    "a fractional shape": (lambda h: h["a.weight"].update(shape=[2.0, 3]), "damaged header"),
    "a boolean shape": (lambda h: h["empty"].update(shape=[False, 3]), "damaged header"),
    "no bytes, endless axes": (lambda h: h["empty"].update(shape=[0, 10**30]), "that NumPy can make"),
    "no bytes, 99 axes": (lambda h: h["empty"].update(shape=[0] * 99), "that NumPy can make"),
    "an unknown dtype": (lambda h: h["a.weight"].update(dtype="BF16"), "damaged header"),
    "fields missing": (lambda h: h["b"].clear(), "damaged header"),
    "no fields": (lambda h: h.update(b=None), "damaged header"),
}


def test_a_forgery_that_changes_nothing_is_accepted(saved):
    forge(saved, lambda header: None)
    assert same(load_checkpoint(saved), (TENSORS, METADATA))


@pytest.mark.parametrize("kind", FORGERIES)
def test_headers_that_make_no_sense_are_refused_even_if_the_checksum_is_right(saved, kind):
    change, says = FORGERIES[kind]
    forge(saved, change)
    with pytest.raises(CheckpointError, match=says) as error:
        load_checkpoint(saved)
    assert one_line(error)


# ── saving that fails ────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "objects": ({"w": np.array([None])}, {}, TypeError, r"tensors\['w'\]: got dtype object"),
    "strings": ({"w": np.array(["a"])}, {}, TypeError, "got dtype <U1"),
    "records": ({"w": np.zeros(1, "i4,i4")}, {}, TypeError, "got dtype"),
    "complex128": ({"w": np.zeros(1, "c16")}, {}, TypeError, "got dtype complex128"),
    "a list": ({"w": [1.0]}, {}, TypeError, "got list, expected a NumPy array"),
    "a number as a name": ({1: np.ones(1)}, {}, ValueError, "got the name 1"),
    "the reserved name": ({"__metadata__": np.ones(1)}, {}, ValueError, "__metadata__"),
    "a name that is no text": ({"\ud800": np.ones(1)}, {}, ValueError, "not Unicode"),
    "metadata not a dict": ({}, [1], TypeError, "metadata: got list"),
    "a set": ({}, {"a": {"b": {1}}}, TypeError, "metadata/a/b: got set"),
    "an object array in metadata": ({}, {"a": np.array([{}])}, TypeError, "metadata/a"),
    "a tuple as a key": ({}, {"a": {(1, 2): 3}}, TypeError, r"metadata/a: got the key \(1, 2\)"),
    "a bool as a key": ({}, {True: 3}, TypeError, "metadata: got the key True"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stored_is_refused_before_the_disk_is_touched(tmp_path, kind):
    tensors, metadata, error_type, says = REFUSED[kind]
    with pytest.raises(error_type, match=says) as error:
        save_checkpoint(tmp_path / "x", tensors, metadata)
    assert one_line(error)
    assert list(tmp_path.iterdir()) == []


def full_after(writes, real=os.write):
    def write(fd, data):
        nonlocal writes
        writes -= 1
        if writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[: max(1, len(data) // 2)])  # a short write, as the system may do

    return write


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("function", "replacement"),
    [("write", full_after(0)), ("write", full_after(3)), ("fsync", no_space), ("replace", no_space)],
)
def test_a_full_disk_leaves_the_previous_file_and_nothing_else(saved, monkeypatch, function, replacement):
    before = saved.read_bytes()
    monkeypatch.setattr(os, function, replacement)
    with pytest.raises(OSError, match="cannot be saved: No space left") as error:
        save_checkpoint(saved, {"new": np.ones(100)}, {})
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert one_line(error)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_short_writes_are_continued(saved, monkeypatch):
    monkeypatch.setattr(os, "write", full_after(10**6))
    save_checkpoint(saved, TENSORS, {"again": True})
    assert same(load_checkpoint(saved)[0], TENSORS)


def test_ctrl_c_while_writing_leaves_the_previous_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, {"new": np.ones(100)}, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_places_that_cannot_be_written_are_one_clear_error(saved):
    os.mkfifo(saved.parent / "pipe")
    (saved.parent / "folder").mkdir()
    before = sorted(saved.parent.iterdir())
    for name in ("x.safetensors/under a file", "no such folder/x", "pipe", "folder"):
        path = saved.parent / name
        with pytest.raises(OSError, match="cannot be saved") as error:
            save_checkpoint(path, TENSORS, {})
        assert one_line(error)
        assert str(path) in str(error.value)
    with pytest.raises(OSError, match="file"):
        CheckpointFolder(saved / "under a file").save(1, TENSORS, {})
    assert sorted(saved.parent.iterdir()) == before


def test_the_file_and_its_folder_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (events.append(name), real(*args))[1])
    save_checkpoint(tmp_path / "x", {"w": np.ones(3)}, {})
    assert events == ["write", "write", "fsync", "replace", "fsync"]


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(tmp_path):
    """A folder with the good checkpoints of steps 1, 2 and 3."""
    folder = CheckpointFolder(tmp_path / "run", keep=3)
    for step in (1, 2, 3):
        folder.save(step, {"w": np.full(4, step)}, {"step": step})
    yield folder
    folder.close()


def names(folder):
    return sorted(path.name for path in folder.folder.iterdir() if path.name != ".lock")


def spoil(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_a_folder_keeps_the_newest_and_the_best(tmp_path):
    with CheckpointFolder(tmp_path / "a" / "run", keep=2) as folder:
        for step in (5, 100, 123_456_789):
            folder.save(step, {"w": np.full(2, step)}, {"step": step})
            folder.save_best({"w": np.zeros(2)}, {"best": 5})
        assert names(folder) == ["best.safetensors", "step-00000100.safetensors", "step-123456789.safetensors"]
        assert folder.latest().metadata == {"step": 123_456_789}
        assert folder.latest().path == folder.folder / "step-123456789.safetensors"
        assert folder.best().metadata == {"best": 5}


def cut(path):
    path.write_bytes(path.read_bytes()[:50])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [spoil, cut, empty])
def test_a_damaged_newest_file_is_skipped_with_a_warning_that_names_it(run, harm):
    harm(run.folder / "step-00000003.safetensors")
    with pytest.warns(RuntimeWarning, match="step-00000003.safetensors: got .*; looking for an older") as caught:
        assert run.latest().metadata == {"step": 2}
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_no_good_checkpoint_is_an_error_that_lists_what_was_found(run, tmp_path):
    for path in run.steps():
        spoil(path)
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match=r"no good checkpoint.*step-00000001.*003"):
        run.latest()
    for empty in (tmp_path / "missing", tmp_path):
        with pytest.raises(CheckpointError, match="found nothing"):
            CheckpointFolder(empty).latest()
        assert CheckpointFolder(empty).steps() == []
    assert not (tmp_path / "missing").exists()
    with pytest.raises(FileNotFoundError):
        CheckpointFolder(tmp_path).best()


def test_damaged_files_do_not_count_among_those_kept(run):
    spoil(run.folder / "step-00000003.safetensors")
    run.keep = 2
    run.save(4, {}, {"step": 4})
    assert [path.name for path in run.steps()] == [f"step-0000000{step}.safetensors" for step in (2, 3, 4)]
    run.save(5, {}, {"step": 5})
    assert [path.name for path in run.steps()] == [f"step-0000000{step}.safetensors" for step in (4, 5)]


def test_a_run_cannot_hide_behind_the_later_checkpoints_of_another(run):
    before = names(run)
    with pytest.raises(ValueError, match="step: got 2, expected 3 or more") as error:
        run.save(2, {}, {})
    assert one_line(error)
    assert names(run) == before
    run.save(3, {}, {"again": True})
    assert run.latest().metadata == {"again": True}
    spoil(run.folder / "step-00000003.safetensors")
    run.save(2, {}, {"after": "a fall back"})
    with pytest.warns(RuntimeWarning):
        assert run.latest().metadata == {"after": "a fall back"}


def test_leftovers_of_a_killed_writer_are_ignored_and_removed_by_the_next_save(run):
    for name in (".step-00000004.safetensors.99-abc.tmp", ".best.safetensors.99-abc.tmp"):
        (run.folder / name).write_bytes(b"half")
    (run.folder / "notes.tmp").write_text("mine")
    (run.folder / "step-last.safetensors").write_text("mine")
    assert run.latest().metadata == {"step": 3}
    run.save(4, {}, {})
    assert [name for name in names(run) if "tmp" in name or "last" in name] == ["notes.tmp", "step-last.safetensors"]


def test_a_reader_whose_file_is_pruned_meanwhile_looks_again(run, monkeypatch):
    def load(path, calls=[]):  # noqa: B006
        if not calls.append(path) and len(calls) == 1:
            run.save(4, {}, {"step": 4})
            path.unlink()
        return load_checkpoint(path)

    monkeypatch.setattr(folder_module, "load_checkpoint", load)
    assert CheckpointFolder(run.folder).latest().metadata == {"step": 4}


def test_wrong_arguments_are_refused(tmp_path):
    for keep in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="keep: got"):
            CheckpointFolder(tmp_path, keep=keep)
    for step in (-1, 1.0, True, "1"):
        with pytest.raises(ValueError, match="step: got"):
            CheckpointFolder(tmp_path).save(step, {}, {})
    assert list(tmp_path.iterdir()) == []


# ── locks and kills ──────────────────────────────────────────────────────────────────────────────────────────────────


def start(code, *args):
    script = "import sys\nimport numpy as np\nfrom tinygrad_llm.checkpoint import *\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", script, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


HOLDER = """
    import time
    folder = CheckpointFolder(sys.argv[1])
    folder.save(4, {}, {"by": "other"})
    print("saved", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_write_in_one_folder_and_a_dead_one_holds_no_lock(run):
    run.close()
    other = start(HOLDER, run.folder)
    try:
        assert other.stdout.readline() == "saved\n"
        with pytest.raises(CheckpointError, match=f"process {other.pid} writes in") as error:
            run.save(5, {}, {})
        assert one_line(error)
        assert run.latest().metadata == {"by": "other"}  # anyone may read
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    run.save(5, {}, {})


def test_one_process_cannot_write_twice_in_one_folder_either(run, tmp_path):
    second = CheckpointFolder(tmp_path / "nowhere" / ".." / "run")
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(CheckpointError, match="this process writes in already"):
        second.save(4, {}, {})
    run.close()
    run.close()
    second.save(4, {}, {})
    del second
    gc.collect()
    run.save(5, {}, {})  # a folder that is no longer used holds no lock


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "fcntl", lambda *_: no_locks())
    monkeypatch.setattr(fcntl, "flock", lambda *_: no_locks())
    with pytest.warns(UserWarning, match="cannot be locked"), CheckpointFolder(tmp_path) as folder:
        folder.save(1, {}, {})


def no_locks():
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


WRITER = """
    folder = CheckpointFolder(sys.argv[1], keep=2)
    step = folder.latest().metadata["step"] if folder.steps() else 0
    print("ready", flush=True)
    while True:
        step += 1
        tensors = {"w": np.full(200_000, step), "b": np.full((), step)}
        folder.save(step, tensors, {"step": step})
        folder.save_best(tensors, {"step": step})
"""


def test_sigkill_at_any_moment_leaves_a_good_newest_checkpoint(tmp_path):
    moments = random.Random(0)
    last = 0
    for _ in range(10):
        writer = start(WRITER, tmp_path)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.02, 0.25))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # not one file may be torn
            folder = CheckpointFolder(tmp_path)
            if not folder.steps():
                continue
            tensors, metadata, _ = folder.latest()
        assert tensors["w"].tolist() == [metadata["step"]] * 200_000
        assert metadata["step"] >= last
        last = metadata["step"]
        assert len(folder.steps()) <= 3
    assert last > 10
    CheckpointFolder(tmp_path).save(last, {}, {})
    assert not list(tmp_path.glob(".*.tmp"))


@settings(max_examples=settings.default.max_examples // 5)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=8), st.integers(1, 3))
def test_latest_is_the_newest_undamaged_save_after_any_history(tmp_path_factory, history, keep):
    """A model: the steps saved, of which some are damaged afterwards; the newest `keep` good ones stay."""
    good: list[int] = []
    with CheckpointFolder(tmp_path_factory.mktemp("history"), keep) as folder:
        for step, damage in history:
            if good and step < good[-1]:
                continue
            path = folder.save(step, {"w": np.full(3, step)}, {"step": step})
            good = [*[s for s in good if s != step], step][-keep:]
            if damage:
                spoil(path)
                good.pop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if good:
                assert folder.latest().metadata == {"step": good[-1]}
            else:
                with pytest.raises(CheckpointError):
                    folder.latest()


# Other files ---------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_whole(path, "old é")
    assert path.read_bytes() == "old é".encode()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tinygrad_llm.checkpoint.file._write_all", full)
        with pytest.raises(OSError, match=r"No space left on device: .*report\.html"):
            write_whole(path, "new")
    assert path.read_bytes() == "old é".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        write_whole(tmp_path / "nowhere" / "report.html", b"new")


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "real").read_bytes()) == (True, b"new")
    write_whole("/dev/null", b"new")
    here, there = os.pipe()
    write_whole(f"/dev/fd/{there}", b"new")
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        assert pipe.read() == b"new"


def test_a_pack_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    files = {name: {"w": np.ones(3)} for name in ("inputs", "float64", "float32")}
    about = {"config": {}, "optimizer": {}, "steps": 1}
    save_pack(tmp_path, about, files)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path, *arguments):
        if "float32" in str(path):
            raise OSError(28, "No space left on device")
        return save_checkpoint(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("tinygrad_llm.checkpoint.pack.save_checkpoint", full)
        with pytest.raises(OSError, match="No space left"):
            save_pack(tmp_path, about, {name: {"w": np.zeros(3)} for name in files})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
