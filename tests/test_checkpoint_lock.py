"""One writer in a folder, whatever becomes of the lock, the process, or the folder."""

import copy
import fcntl
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tinygrad_llm.checkpoint import CheckpointError, CheckpointFolder, FolderMovedError
from tinygrad_llm.checkpoint import lock as lock_module

ROOT = Path(__file__).parents[1]
TAKE = "import sys; from tinygrad_llm.checkpoint import CheckpointFolder; CheckpointFolder(sys.argv[1]).lock()"


def another_can_write(folder):
    done = subprocess.run([sys.executable, "-c", TAKE, str(folder)], env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 or "expected one writer" in done.stderr
    return done.returncode == 0


def in_a_fork(do):
    """What `do` raises in a forked child, as text; "" for nothing."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            do()
            os.write(writer, b"")
        except CheckpointError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as told:
        return told.read()


@pytest.fixture(params=["of the open file", "flock"])
def folder(request, tmp_path, monkeypatch):
    """A locked one, by each kind of lock."""
    if request.param == "flock":
        monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    with CheckpointFolder(tmp_path / "run") as locked:
        yield locked


def test_a_copy_of_the_folder_by_the_same_process_does_not_free_it(folder, tmp_path):
    shutil.copytree(folder.folder, tmp_path / "backup")
    with open(folder.folder / ".lock"):
        pass
    with pytest.raises(CheckpointError, match="this process writes in already"):
        CheckpointFolder(folder.folder).lock()


def test_another_process_is_refused_until_it_is_freed(tmp_path):
    with CheckpointFolder(tmp_path) as folder:
        shutil.copytree(tmp_path, tmp_path / "backup")
        assert not another_can_write(tmp_path)
        folder.save(0, {}, {})
    assert another_can_write(tmp_path)


def test_locks_of_older_versions_and_ours_exclude_each_other(tmp_path):
    with CheckpointFolder(tmp_path):
        old = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", old, tmp_path / ".lock"], capture_output=True, text=True)
    assert "BlockingIOError" in done.stderr


def test_a_forked_child_cannot_write_nor_free_nor_keep_the_lock(folder):
    folder.save(0, {}, {})
    told = in_a_fork(lambda: folder.save(1, {}, {}))
    assert f"process {os.getpid()} writes in, expected one writer, and not a fork of it" in told
    assert in_a_fork(folder.close) == ""
    with pytest.raises(CheckpointError, match="writes in already"):
        CheckpointFolder(folder.folder).lock()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:  # outlives the parent's lock
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    folder.close()
    CheckpointFolder(folder.folder).lock()
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)


def test_a_child_may_write_once_the_parent_does_not(folder):
    folder.close()

    def write():
        folder.save(3, {}, {})

    assert in_a_fork(write) == ""
    assert folder.latest().path.name == "step-00000003.safetensors"


def test_copies_and_pickles_do_not_hold_the_lock(folder):
    for other in (copy.deepcopy(folder), copy.copy(folder), pickle.loads(pickle.dumps(folder))):
        with pytest.raises(CheckpointError, match="this process writes in already"):
            other.lock()
        del other
    folder.save(0, {}, {})


def test_a_lock_file_that_was_removed_is_made_again(folder):
    folder.save(0, {}, {})
    (folder.folder / ".lock").unlink()
    with pytest.warns(RuntimeWarning, match=r"run: got no \.lock any more, expected it to stay"):
        folder.save(1, {}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder.save(2, {}, {})
    with pytest.raises(CheckpointError, match="this process writes in already"):
        CheckpointFolder(folder.folder).lock()


def test_whoever_took_a_removed_lock_is_the_writer(folder):
    folder.save(0, {}, {})
    (folder.folder / ".lock").unlink()
    told = r"run: got another \.lock than this run's: another program has written there"
    with CheckpointFolder(folder.folder) as other:
        for _ in range(2):
            with pytest.raises(CheckpointError, match=told):
                folder.save(1, {}, {})
        other.save(1, {}, {"by": "other"})
    assert folder.latest().metadata == {"by": "other"}


@pytest.mark.parametrize("place", ["nothing", "a folder", "a file"])
def test_a_folder_that_was_moved_is_noticed_and_found(folder, tmp_path, place):
    folder.save(0, {}, {})
    os.rename(folder.folder, tmp_path / "moved")
    if place == "a folder":
        folder.folder.mkdir()
    if place == "a file":
        folder.folder.touch()
    told = r"run: got (no folder there any more|another .*), expected the one that"
    for write in (folder.check, lambda: folder.save(1, {}, {}), lambda: folder.save_best({}, {})):
        with pytest.raises(FolderMovedError, match=told) as error:
            write()
        assert error.value.now == tmp_path / "moved"
    folder.follow(error.value)
    assert folder.save(1, {}, {}) == tmp_path / "moved" / "step-00000001.safetensors"
    assert not (tmp_path / "run").is_dir() or not list((tmp_path / "run").iterdir())


def test_a_folder_that_was_removed_is_made_again_but_none_in_its_place_is_written_in(folder, tmp_path):
    shutil.rmtree(folder.folder)
    with pytest.raises(FolderMovedError, match="got no folder there any more") as error:
        folder.save(0, {}, {})
    assert error.value.now is None
    folder.follow(error.value)
    folder.save(0, {}, {})
    shutil.rmtree(folder.folder)
    (tmp_path / "run").mkdir()
    with pytest.raises(FolderMovedError, match="got another folder in its place") as error:
        folder.save(1, {}, {})
    with pytest.raises(FolderMovedError):
        folder.follow(error.value)
    assert not list((tmp_path / "run").iterdir())


def test_a_system_that_does_not_know_locks_of_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "F_OFD_SETLK", 12345)  # EINVAL
    with CheckpointFolder(tmp_path), pytest.raises(CheckpointError, match="writes in already"):
        CheckpointFolder(tmp_path).lock()


def test_the_request_is_as_long_as_the_system_reads():
    assert len(struct.pack("hhqqi0q", 1, 0, 0, 0, 0)) == 32


def test_without_locks_folders_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "fcntl", None)
    with CheckpointFolder(tmp_path) as folder:
        folder.save(0, {}, {})


def test_a_name_that_is_taken_is_told(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, what in (("file", "a file"), ("link", "a link to nothing")):
        with pytest.raises(CheckpointError, match=f"{name}: got {what}, expected a folder, or a name that is free"):
            CheckpointFolder(tmp_path / name).save(0, {}, {})


def test_a_checkpoint_that_cannot_be_removed_costs_one_warning(tmp_path, monkeypatch):
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == "step-00000000.safetensors":
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with CheckpointFolder(tmp_path, keep=1) as folder:
        folder.save(0, {}, {})
        with pytest.warns(RuntimeWarning, match=r"0.safetensors: cannot be removed \(Operation not permitted\); it stays"):
            folder.save(1, {}, {})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            folder.save(2, {}, {})
    assert [path.name for path in folder.steps()] == ["step-00000000.safetensors", "step-00000002.safetensors"]
