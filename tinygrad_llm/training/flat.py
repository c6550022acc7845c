"""All weights of a model end to end in one memory, and what AdamW keeps beside them; the step on any slice of it.

    weights │ exp_avg │ exp_avg_sq │ gradient │ gradient of worker 1 │ ... │ ids │ targets

A parameter's array becomes a view of its place, and the optimizer's state holds views too, so that all that reads them
(state_dict, checkpoints, evaluation) needs to know nothing of it. Where somebody else has that array, as `p.detach()` or
`p.numpy()` of before, it stays the parameter's: it is copied to its place for the time of a step, and back. The update is
elementwise and in the order of AdamW.step, so that its bits are the same, wherever the slices are cut.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.optim import CHUNK, MOMENTS, AdamW, descend, norm_squared, pieces_of
from tinygrad_llm.training.memory import ALIGNMENT, SharedMemory

APART = 2**24
"""Bytes of a gradient up to which each worker has one of its own: they need not wait for each other, but it takes memory."""


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
    workers    each has a slice to update, and a byte per trained parameter that says whether its rows gave a gradient
    gradients  names of the workers' gradients: one for each, the first of which becomes the sum, or one for all
    batch      how many ids and how many targets there is room for
    """

    def __init__(self, trained: Sequence[Tensor], others: Sequence[Tensor], workers: int, batch: int, amsgrad: bool) -> None:
        self.sizes: dict[str, int] = {}
        self.places = [self._place(p) for p in trained]
        self.trained, self.trained_sizes = len(trained), dict(self.sizes)
        self.places += [self._place(p) for p in others]
        self.workers, self.batch = workers, batch
        self.moments = MOMENTS if amsgrad else MOMENTS[:2]
        nbytes = sum(size * np.dtype(dtype).itemsize for dtype, size in self.trained_sizes.items())
        self.gradients = ["gradient", *(f"gradient {rank}" for rank in range(1, workers if nbytes <= APART else 1))]
        self.offsets: dict[tuple[str, str], int] = {}
        self.nbytes = 0
        for role in ("weights", *self.moments, *self.gradients):
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
    """The memory of a layout, and what is done with it. Each process remembers its arrays: making them takes as long as a
    step of a small model."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.memory = layout, SharedMemory(layout.nbytes, alone=layout.workers == 1)
        self.made: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "made": {}}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    # Looking at it ---------------------------------------------------------------------------------------------------

    def whole(self, role: str, dtype: str) -> np.ndarray:
        """What the trained parameters of a dtype have in a role, one after the other."""
        place = self.layout.offsets[role, dtype], (self.layout.trained_sizes[dtype],), dtype
        return self._once((role, dtype), lambda: self.memory.array(*place))

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
        return self._once(shape, lambda: tuple(self.memory.array(self.layout.offsets[role, "i8"], shape, "i8")
                                               for role in ("ids", "targets")))

    # One worker's slice of a step ------------------------------------------------------------------------------------

    def gather(self, rank: int) -> None:
        """Add up, on the slice of worker `rank`, what each worker has of the gradient, in their order."""
        for total, *others in self._once(("shares", rank), lambda: list(self._shares(rank))):
            for other in others:
                np.add(total, other, out=total)

    def _shares(self, rank: int) -> Iterator[list[np.ndarray]]:
        """The same few elements of all gradients."""
        for dtype in self.layout.trained_sizes:
            low, high = self._slice(dtype, rank)
            for start in range(low, high, CHUNK):
                yield [self.whole(role, dtype)[start : min(start + CHUNK, high)] for role in self.layout.gradients]

    def is_finite(self) -> bool:
        """Whether all gradients are finite, and their squares too."""
        wholes = self._once("gradients", lambda: [self.whole("gradient", dtype) for dtype in self.layout.trained_sizes])
        return all(math.isfinite(whole.dot(whole)) for whole in wholes)

    def norm_squared(self, rank: int) -> float:
        """‖gradient‖² on the slice of worker `rank`."""
        return norm_squared(self._once(("pieces", rank), lambda: pieces_of(self._pieces(rank))))

    def update(self, rank: int, runs: Iterable[Run], scale: float) -> None:
        """AdamW on the slice of worker `rank`, with `scale` times the gradient."""
        for run in runs:
            key = "chunks", rank, *run[:3], run.settings["amsgrad"]
            if key not in self.made:
                self.made[key] = list(self._chunks(rank, run))
            for pieces in self.made[key]:
                if scale != 1:
                    np.multiply(pieces[2], scale, out=pieces[2])
                descend(*pieces, run.settings, run.step)

    def _chunks(self, rank: int, run: Run) -> Iterator[list[np.ndarray]]:
        """Scratch, weights, gradients and moments of a run on a worker's slice, a cache's fill at a time."""
        low, high = self._slice(run.dtype, rank)
        moments = MOMENTS if run.settings["amsgrad"] else MOMENTS[:2]
        arrays = [self.whole(role, run.dtype) for role in ("weights", "gradient", *moments)]
        scratch = self._once(("scratch", run.dtype), lambda: np.empty(CHUNK, run.dtype))
        for start in range(max(low, run.start), min(high, run.stop), CHUNK):
            stop = min(start + CHUNK, high, run.stop)
            yield [scratch[: stop - start], *[a[start:stop] for a in arrays]]

    def _slice(self, dtype: str, rank: int) -> tuple[int, int]:
        """Equal shares, cut at multiples of 64 bytes, so that no two workers write into one cache line."""
        size, workers = self.layout.trained_sizes[dtype], self.layout.workers
        low, high = (min(_aligned(size * r // workers, dtype), size) for r in (rank, rank + 1))
        return low, high

    def _pieces(self, rank: int) -> Iterator[np.ndarray]:
        """A worker's share of each parameter's gradient, in the order of the optimizer."""
        slices = {dtype: self._slice(dtype, rank) for dtype in self.layout.trained_sizes}
        arrays = {dtype: self.whole("gradient", dtype) for dtype in slices}
        for place in self.layout.places[: self.layout.trained]:
            low, high = slices[place.dtype]
            if max(low, place.start) < min(high, place.stop):
                yield arrays[place.dtype][max(low, place.start) : min(high, place.stop)]


class Lodging:
    """The parameters of a model and the state of its optimizer, moved into a Flat and, by `leave`, out again."""

    def __init__(self, optimizer: AdamW, parameters: Sequence[Tensor], flat: Flat) -> None:
        _check_apart(parameters)
        layout = flat.layout
        self.optimizer, self.parameters, self.layout = optimizer, parameters, layout
        self.weights = [flat.view("weights", i) for i in range(len(parameters))]
        self.views = [[(name, flat.view(name, i)) for name in layout.moments] for i in range(layout.trained)]
        self.owners = [group for group in optimizer.param_groups for _ in group["params"]]
        self.known: tuple[Any, int] = None, 0
        self.states: list[dict[str, Any] | None] = []
        self.held: list[tuple[dict[str, Any], str, np.ndarray]] = []
        self.plans: dict[Any, list[tuple[Place, int, int]]] = {}
        self.guests: list[tuple[Tensor, np.ndarray, np.ndarray]] = []

    def enter(self) -> None:
        """Take in whatever is not in its place: all at first, and later what load_state_dict and the like have replaced."""
        for p, view in zip(self.parameters, self.weights):
            if p._array is not view:
                array = p._array
                np.copyto(view, array)
                if _is_held(array):
                    self.guests.append((p, view, array))
                p._array = view
                changes.count += 1
        known = self.optimizer.state, len(self.optimizer.state)
        if known[0] is not self.known[0] or known[1] != self.known[1]:
            self.known, self.states = known, [self.optimizer.state.get(p) for p in self.parameters[: self.layout.trained]]
            self.held = [(state, *moment) for state, views in zip(self.states, self.views) if state for moment in views]
        for state, name, view in self.held:
            if state.get(name, view) is not view:
                np.copyto(view, state[name])
                state[name] = view

    def send_home(self) -> None:
        """After a step: what somebody else holds, too, goes back to where it was."""
        for p, view, array in self.guests:
            if p._array is view:
                np.copyto(array, view)
                p._array = array
                changes.count += 1
        self.guests.clear()

    def leave(self) -> None:
        """Give each array memory of its own."""
        for p, view in zip(self.parameters, self.weights):
            if p._array is view:
                p._array = view.copy()
                changes.count += 1
        for state in self.optimizer.state.values():
            for name in state.keys() & set(self.layout.moments):
                state[name] = np.array(state[name])
        self.known = None, 0

    def advance(self, present: np.ndarray) -> list[Run]:
        """Count one more step for the parameters that have a gradient; how AdamW is to treat them. present [trained]"""
        steps = [0] * len(present)
        for i, here in enumerate(present.tolist()):
            if here:
                state = self.states[i]
                if state is None or len(state) <= len(self.views[i]):
                    state = self._begun(i)
                state["step"] += 1
                self.parameters[i]._counter.count += 1  # a graph made before the step must not be used after it
                steps[i] = state["step"]
        settings = [{name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups]
        newest, alike = max(steps), [(settings.index(s), bool(s["eps"])) for s in settings]
        key = tuple([newest - step if step else -1 for step in steps]), tuple(alike)
        if key not in self.plans:
            self.plans[key] = self._plan(steps, settings)
        return [Run(place.dtype, place.start, place.stop, settings[group], newest - behind)
                for place, group, behind in self.plans[key]]

    def _begun(self, i: int) -> dict[str, Any]:
        """The state of a parameter, with what AdamW needs the first time."""
        state = self.states[i]
        if state is None:
            state = self.states[i] = self.optimizer.state[self.parameters[i]] = {"step": 0}
        for name, view in self.views[i]:
            if name not in state and (name != MOMENTS[2] or self.owners[i]["amsgrad"]):
                view.fill(0)
                state[name] = view
        return state

    def _plan(self, steps: list[int], settings: list[dict[str, Any]]) -> list[tuple[Place, int, int]]:
        """(place, number of the group, steps behind the newest) of each run of neighbours with equal settings and steps.

        The zeros between neighbours take part: AdamW leaves them zero. Where eps is 0 it would divide zero by zero.
        """
        numbers = [n for n, group in enumerate(self.optimizer.param_groups) for _ in group["params"]]
        runs: list[tuple[Place, int, int]] = []
        for place, number, step in zip(self.layout.places, numbers, steps):
            if not step:
                continue
            behind = max(steps) - step
            before, other, other_behind = runs[-1] if runs else (place, number, -1)
            if ((before.dtype, before.end, other_behind) == (place.dtype, place.start, behind)
                    and settings[number] == settings[other] and settings[number]["eps"]):
                place = place._replace(start=runs.pop()[0].start)
            runs.append((place, number, behind))
        return runs


def _is_held(array: np.ndarray) -> bool:
    """Whether anybody but one parameter has an array, or the memory that it shows."""
    return sys.getrefcount(array) > _OWN or (array.base is not None and sys.getrefcount(array.base) > _BASE)


class _Holder:
    """A parameter's array, and how many references to it `Lodging.enter` finds when nobody else has it."""

    def __init__(self) -> None:
        self._array = np.empty((1, 1))

    def count(self) -> int:
        """As _is_held counts them."""
        array = self._array
        return self._counted(array)

    @staticmethod
    def _counted(array: np.ndarray) -> int:
        return sys.getrefcount(array)


_OWN, _BASE = _Holder().count(), sys.getrefcount(np.empty((1, 1))[0].base)


def _check_apart(parameters: Sequence[Tensor]) -> None:
    """ValueError for two parameters that show the same memory: moved, each would have its own."""
    arrays = sorted((p._array for p in parameters if p.size), key=lambda a: byte_bounds(a)[0])
    for a, b in itertools.pairwise(arrays):
        if np.shares_memory(a, b):
            raise ValueError(f"Trainer: model: got parameters of shapes {a.shape} and {b.shape} that share memory, expected "
                             "memory of their own, or one Parameter under both names")


def clip_scale(norm: float, max_norm: float | None) -> float:
    """What clip_grad_norm_ multiplies gradients by."""
    return min(1.0, (max_norm or math.inf) / (norm + 1e-6))


def _aligned(count: int, dtype: str) -> int:
    """The next number of elements that fills whole cache lines."""
    per_line = ALIGNMENT // np.dtype(dtype).itemsize
    return -(-count // per_line) * per_line
