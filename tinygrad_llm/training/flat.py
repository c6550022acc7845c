"""All weights of a model end to end in one memory, and what AdamW keeps beside them; the step on any slice of it.

    weights │ exp_avg │ exp_avg_sq │ gradient of worker 0 │ gradient of worker 1 │ ... │ ids │ targets

A parameter's array becomes a view of its place, and the optimizer's state holds views too, so that all that reads them
(state_dict, checkpoints, evaluation) needs to know nothing of it. The update is elementwise and in the order of
AdamW.step, so that its bits are the same, wherever the slices are cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd import Tensor, no_grad
from tinygrad_llm.optim import CHUNK, MOMENTS, AdamW, descend
from tinygrad_llm.training.memory import ALIGNMENT, SharedMemory


class Place(NamedTuple):
    """Elements start:stop of the flat array of a dtype; the next parameter's begin at a multiple of 64 bytes."""

    dtype: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """Where the next one starts."""
        return _aligned(self.stop, self.dtype)


class Run(NamedTuple):
    """Neighbours that AdamW treats alike: one group's settings, and as many steps done before."""

    dtype: str
    start: int
    stop: int
    settings: dict[str, Any]
    step: int


class Layout:
    """Where everything stands. Plain numbers, the same in each process.

    trained    the optimizer's parameters, group by group; `others`, the model's further ones, follow as weights only
    workers    each has a gradient of its own, and a byte per trained parameter that says whether it has one
    batch      how many ids and how many targets there is room for
    """

    def __init__(self, trained: Sequence[Tensor], others: Sequence[Tensor], workers: int, batch: int, amsgrad: bool) -> None:
        self.sizes: dict[str, int] = {}
        self.places = [self._place(p) for p in trained]
        self.trained, self.trained_sizes = len(trained), dict(self.sizes)
        self.places += [self._place(p) for p in others]
        self.workers, self.batch = workers, batch
        self.moments = MOMENTS if amsgrad else MOMENTS[:2]
        self.offsets: dict[tuple[str, str], int] = {}
        self.nbytes = 0
        for role in ("weights", *self.moments, *(f"gradient {rank}" for rank in range(workers))):
            for dtype, size in (self.sizes if role == "weights" else self.trained_sizes).items():
                self._room(role, dtype, size)
        self._room("present", "u1", workers * self.trained)
        self._room("ids", "i8", batch)
        self._room("targets", "i8", batch)

    def _place(self, p: Tensor) -> Place:
        start = self.sizes.get(p.dtype.str, 0)
        place = Place(p.dtype.str, start, start + p.size, p.shape)
        self.sizes[place.dtype] = place.end
        return place

    def _room(self, role: str, dtype: str, size: int) -> None:
        self.offsets[role, dtype] = self.nbytes
        self.nbytes += _aligned(size, dtype) * np.dtype(dtype).itemsize


class Flat:
    """The memory of a layout, and what is done with it."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.memory = layout, SharedMemory(layout.nbytes)

    # Looking at it ---------------------------------------------------------------------------------------------------

    def whole(self, role: str, dtype: str) -> np.ndarray:
        """What the trained parameters of a dtype have in a role, one after the other."""
        return self.memory.array(self.layout.offsets[role, dtype], (self.layout.trained_sizes[dtype],), dtype)

    def view(self, role: str, index: int) -> np.ndarray:
        """What one parameter has in a role, in its shape."""
        place = self.layout.places[index]
        offset = self.layout.offsets[role, place.dtype] + place.start * np.dtype(place.dtype).itemsize
        return self.memory.array(offset, place.shape, place.dtype)

    def present(self) -> np.ndarray:
        """[workers, trained]: whether a worker's gradient has anything for a parameter."""
        return self.memory.array(self.layout.offsets["present", "u1"], (self.layout.workers, self.layout.trained), "u1")

    def batch(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Room for ids and targets, int64 [B, T] each."""
        ids, targets = (self.memory.array(self.layout.offsets[role, "i8"], shape, "i8") for role in ("ids", "targets"))
        return ids, targets

    # One worker's slice of a step ------------------------------------------------------------------------------------

    def reduce(self, rank: int, ranks: Sequence[int]) -> float:
        """Add the gradients of `ranks`, in this order, into the first's, on the slice of worker `rank`; ‖sum‖² there."""
        for dtype in self.layout.trained_sizes:
            start, stop = self._slice(dtype, rank)
            total, *others = [self.whole(f"gradient {r}", dtype)[start:stop] for r in ranks]
            for at in range(0, total.size, CHUNK):
                piece = total[at : at + CHUNK]
                for other in others:
                    np.add(piece, other[at : at + CHUNK], out=piece)
        return sum(float(np.dot(piece, piece)) for piece in self._pieces(rank, ranks[0]))

    def update(self, rank: int, source: int, runs: Iterable[Run], scale: float) -> None:
        """AdamW on the slice of worker `rank`, with `scale` times the gradient that stands in worker `source`'s."""
        for run in runs:
            low, high = self._slice(run.dtype, rank)
            roles = ("weights", f"gradient {source}", *self._moments_of(run.settings))
            arrays = [self.whole(role, run.dtype) for role in roles]
            scratch = np.empty(CHUNK, run.dtype)
            for start in range(max(low, run.start), min(high, run.stop), CHUNK):
                stop = min(start + CHUNK, high, run.stop)
                pieces = [a[start:stop] for a in arrays]
                if scale != 1:
                    np.multiply(pieces[1], scale, out=pieces[1])
                descend(scratch[: stop - start], *pieces, run.settings, run.step)

    def _moments_of(self, settings: dict[str, Any]) -> Sequence[str]:
        return MOMENTS if settings["amsgrad"] else MOMENTS[:2]

    def _slice(self, dtype: str, rank: int) -> tuple[int, int]:
        """Equal shares, cut at multiples of 64 bytes, so that no two workers write into one cache line."""
        size, workers = self.layout.trained_sizes[dtype], self.layout.workers
        low, high = (min(_aligned(size * r // workers, dtype), size) for r in (rank, rank + 1))
        return low, high

    def _pieces(self, rank: int, source: int) -> Iterator[np.ndarray]:
        """A worker's share of each parameter's gradient, in the order of the optimizer."""
        slices = {dtype: self._slice(dtype, rank) for dtype in self.layout.trained_sizes}
        arrays = {dtype: self.whole(f"gradient {source}", dtype) for dtype in slices}
        for place in self.layout.places[: self.layout.trained]:
            low, high = slices[place.dtype]
            if max(low, place.start) < min(high, place.stop):
                yield arrays[place.dtype][max(low, place.start) : min(high, place.stop)]


class Lodging:
    """The parameters of a model and the state of its optimizer, moved into a Flat and, by `leave`, out again."""

    def __init__(self, optimizer: AdamW, parameters: Sequence[Tensor], flat: Flat) -> None:
        layout = flat.layout
        self.optimizer, self.parameters, self.layout = optimizer, parameters, layout
        self.weights = [flat.view("weights", i) for i in range(len(parameters))]
        self.moments = {name: [flat.view(name, i) for i in range(layout.trained)] for name in layout.moments}

    def enter(self) -> None:
        """Take in whatever is not in its place: all at first, and later what load_state_dict and the like have replaced."""
        for p, view in zip(self.parameters, self.weights):
            if p._array is not view:
                np.copyto(view, p._array)
                p._array = view
        for i, p in enumerate(self.parameters[: self.layout.trained]):
            state = self.optimizer.state.get(id(p), {})
            for name in state.keys() & self.moments.keys():
                if state[name] is not self.moments[name][i]:
                    np.copyto(self.moments[name][i], state[name])
                    state[name] = self.moments[name][i]

    def leave(self) -> None:
        """Give each array memory of its own."""
        for p, view in zip(self.parameters, self.weights):
            if p._array is view:
                p._array = view.copy()
        for state in self.optimizer.state.values():
            for name in state.keys() & self.moments.keys():
                state[name] = np.array(state[name])

    def advance(self, present: np.ndarray) -> list[Run]:
        """Count one more step for the parameters that have a gradient; how AdamW is to treat them. present [trained]"""
        owners = [group for group in self.optimizer.param_groups for _ in group["params"]]
        runs: list[Run] = []
        for i, (p, group) in enumerate(zip(self.parameters, owners)):
            if present[i]:
                self._append(runs, self.layout.places[i], group, self._count(i, p, group))
        return runs

    def _count(self, i: int, p: Tensor, group: dict[str, Any]) -> int:
        state = self.optimizer.state.setdefault(id(p), {"step": 0})
        for name in MOMENTS if group["amsgrad"] else MOMENTS[:2]:
            if name not in state:
                state[name] = self.moments[name][i]
                state[name].fill(0)
        state["step"] += 1
        with no_grad():
            p._write(_nothing)  # a graph made before the step must not be used after it
        return state["step"]

    def _append(self, runs: list[Run], place: Place, group: dict[str, Any], step: int) -> None:
        """The zeros between neighbours take part: AdamW leaves them zero. Where eps is 0 it would divide zero by zero."""
        settings = {name: value for name, value in group.items() if name != "params"}
        if runs and runs[-1][:1] + runs[-1][3:] == (place.dtype, settings, step) and settings["eps"]:
            last = runs.pop()
            if _aligned(last.stop, last.dtype) == place.start:
                place = place._replace(start=last.start)
            else:
                runs.append(last)
        runs.append(Run(place.dtype, place.start, place.stop, settings, step))


def clip_scale(norm: float, max_norm: float | None) -> float:
    """What clip_grad_norm_ multiplies gradients by."""
    return min(1.0, (max_norm or math.inf) / (norm + 1e-6))


def _nothing(array: np.ndarray) -> None:
    pass


def _aligned(count: int, dtype: str) -> int:
    """The next number of elements that fills whole cache lines."""
    per_line = ALIGNMENT // np.dtype(dtype).itemsize
    return -(-count // per_line) * per_line
