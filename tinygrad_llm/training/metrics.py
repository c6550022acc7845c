"""What a run leaves for the eye: a JSON line for each step and each evaluation, and the loss curve."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_llm.checkpoint.file import write_whole


class MetricsFile:
    """JSON lines, each written through to the system at once, so that a killed process loses none.

    path        is created, with its folder, where it is not there
    step        what an uninterrupted run would have written up to there is kept, every later line removed
    evaluated   the last step whose evaluation is kept
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0, evaluated: int = 0) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            self._truncate(step, evaluated)
        except OSError as error:
            raise _told(error, self.path) from None

    def _open(self) -> None:
        _check_regular(self.path)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        self._status = os.fstat(self._file.fileno())

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; to a new file, with a warning, where this one was removed or renamed. Raises OSError, naming it."""
        line = json.dumps(record).encode() + b"\n"
        try:
            self._follow()
            if self._file.write(line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise _told(error, self.path) from None

    def _follow(self) -> None:
        """A line written to a file that has no name any more would be lost."""
        try:
            same = os.path.samestat(os.stat(self.path), self._status)
        except FileNotFoundError:
            same = not self.path.parent.is_dir()  # with its folder: no place for another
        if not same:
            self._file.close()
            self._open()
            warnings.warn(f"metrics: got {str(self.path)!r} removed or renamed by another program, expected it to stay; its "
                          "lines go on in a new file", RuntimeWarning, stacklevel=5)

    def sync(self) -> None:
        """Have the lines on disk: before a checkpoint, which must not know more than they do."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _truncate(self, step: int, evaluated: int) -> None:
        """Cut off from the first line of a later step on, and torn lines at the end. Others that cannot be read stay."""
        self._file.seek(0)
        end, whole, strange = 0, 0, 0
        last = {False: -1, True: -1}  # the step of the last line of training, of evaluation
        for line in io.BufferedReader(io.FileIO(self._file.fileno(), closefd=False)):
            record = _parsed(line)
            kind = record is not None and "test_loss" in record
            if record is not None and record["step"] > (evaluated if kind else step):
                break
            end += len(line)
            if record is None or record["step"] <= last[kind]:
                strange += 1
            else:
                whole, last[kind] = end, record["step"]
        if strange and whole:
            warnings.warn(f"metrics: got {strange} lines in {str(self.path)!r} that cannot be read or repeat a step, expected "
                          "JSON with a step and losses; those between good lines are kept", RuntimeWarning, stacklevel=5)
        os.ftruncate(self._file.fileno(), whole)


def _check_regular(path: Path) -> None:
    """A pipe may never begin, a device never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a folder, pipe or device is there")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for one that is torn or not ours."""
    try:
        record = json.loads(line.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return None
    if not line.endswith(b"\n") or not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    losses = [record[name] for name in ("loss", "test_loss") if name in record]
    return record if losses and all(type(loss) in (int, float) for loss in losses) else None


def _told(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, f"metrics: got {str(path)!r}, which cannot be written ({error.strerror})")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a metrics file, in order; those of evaluations have "test_loss". A torn line is left out.

    Raises OSError where there is no file to read.
    """
    _check_regular(Path(path))
    with open(path, "rb") as file:
        return [record for line in file if (record := _parsed(line)) is not None]


def plot_losses(metrics: str | os.PathLike[str], picture: str | os.PathLike[str]) -> str:
    """Draw the train and test loss of a metrics file as a PNG; returns one line saying where, or why there is none."""
    records = read_metrics(metrics)
    if not records:
        return f"no loss curve: {metrics} holds no record"
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "no loss curve: matplotlib is not installed (pip install matplotlib)"
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: the caller's figures and backend stay as they are
    _draw(figure.subplots(), records)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_whole(picture, image.getvalue())
    return f"loss curve: {picture}"


def _points(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """[N, 2]: step and value, each step once, in order."""
    return np.array(sorted({r["step"]: r[name] for r in records if name in r}.items()), float).reshape(-1, 2)


def _draw(axes: Any, records: list[dict[str, Any]]) -> None:
    train, test = (_points(records, name) for name in ("loss", "test_loss"))
    width = max(len(train) // 50, 1)
    axes.plot(*train.T, color="tab:blue", alpha=0.25 if width > 1 else 1, linewidth=0.8,
              label="train, each batch")
    if width > 1:
        mean = np.convolve(train[:, 1], np.ones(width) / width, "valid")
        axes.plot(train[width - 1 :, 0], mean, color="tab:blue", label=f"train, mean of {width} batches")
    if len(test):
        axes.plot(*test.T, color="tab:orange", marker="o", markersize=4, label="test")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
