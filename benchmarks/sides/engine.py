"""What a worker does when it is asked. A side fills in the hooks; only what stands between two clocks is timed."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.inputs import draw_batches, draw_state
from benchmarks.micro import BOTH, FORWARD, OPS, Op, draw_arguments

LR = 1e-4
SAMPLES = 64
Batch = tuple[np.ndarray, np.ndarray]


class Engine(ABC):
    """One side. Requests first; then the hooks. All arguments and answers of requests are JSON-able."""

    case: Case
    seed: int
    timed: dict[str, Callable[[], Any]]

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Versions, BLAS, threads, device."""

    def build(self, case: dict[str, Any], seed: int, dtype: str = "float32") -> dict[str, Any]:
        """A model of the case with the weights of the seed, and AdamW, as drawn by benchmarks.inputs."""
        self.case, self.seed = Case(**case), seed
        self.make(self.case, lambda shapes: draw_state(shapes, seed, dtype), dtype)
        return {}

    def train(self, first: int, count: int) -> dict[str, Any]:
        """`count` steps on the batches from `first` on: seconds for all of them, and the loss before each."""
        batches = draw_batches(self.case, self.seed, first, count)
        seconds, losses = self._clock(lambda: self.steps(batches))
        return {"seconds": seconds, "losses": losses}

    def decode(self, prompt: Sequence[int], count: int, times: int = 1) -> dict[str, Any]:
        """`count` tokens after the prompt, the likeliest each time: which, and seconds of reading and writing it all once."""
        seconds, tokens = self._clock(lambda: [self.continued(prompt, count) for _ in range(times)][-1])
        return {"seconds": seconds / times, "tokens": tokens}

    def gemm(self, size: int, at_least: float) -> dict[str, Any]:
        """The fastest of the float32 products of two size × size matrices within so many seconds, in GFLOP/s."""
        product, best, end = self.product(size), float("inf"), time.perf_counter() + at_least
        product()
        while best == float("inf") or time.perf_counter() < end:
            best = min(best, self._clock(product)[0])
        return {"gflops": 2e-9 * size**3 / best}

    def op(self, name: str, seed: int, dtype: str = "float32") -> dict[str, Any]:
        """Prepares an op. Returns, of its result and of every gradient, some entries evenly spread."""
        op = OPS[name]
        arrays = draw_arguments(op, seed, dtype)
        if op.call is None:
            return self._prepare_step(arrays["p"], np.random.default_rng(seed + 1))
        return self._prepare_call(op, arrays, np.random.default_rng(seed + 1))

    def op_time(self, what: str, count: int) -> dict[str, Any]:
        """Seconds of `count` calls of the prepared op."""
        work = self.timed[what]

        def repeat() -> None:
            for _ in range(count):
                work()

        return {"seconds": self._clock(repeat)[0]}

    def _clock(self, work: Callable[[], Any]) -> tuple[float, Any]:
        self.wait()
        start = time.perf_counter()
        result = work()
        self.wait()
        return time.perf_counter() - start, result

    def _prepare_call(self, op: Op, arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        arguments = {name: self.tensor(array, array.dtype.kind == "f") for name, array in arrays.items()}
        leaves = [tensor for name, tensor in arguments.items() if arrays[name].dtype.kind == "f"]
        assert op.call is not None
        call, functional = op.call, self.functional()
        shape = tuple(call(functional, **arguments).shape)
        g = self.tensor(rng.standard_normal(shape).astype(next(a.dtype for a in arrays.values() if a.dtype.kind == "f")))

        def forward() -> None:
            with self.no_grad():
                call(functional, **arguments)

        def both() -> Any:
            for leaf in leaves:
                leaf.grad = None
            out = call(functional, **arguments)
            out.backward(g)
            return out

        self.timed = {FORWARD: forward, BOTH: both}
        return {"values": [_sample(self.array(t)) for t in (both(), *(leaf.grad for leaf in leaves))]}

    def _prepare_step(self, array: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        p = self.tensor(array, requires_grad=True)
        p.grad = self.tensor(rng.standard_normal(array.shape).astype(array.dtype))
        step = self.adamw([p])
        step()
        self.timed = {"step": step}
        return {"values": [_sample(self.array(p))]}

    # Hooks ------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        """Makes the model with the weights draw({name: shape}), and AdamW with lr LR and torch's other defaults."""

    @abstractmethod
    def steps(self, batches: Sequence[Batch]) -> list[float]:
        """Forward, backward and AdamW on each batch; the losses."""

    @abstractmethod
    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        """Greedy decoding, with all that the side knows of keeping keys and values."""

    @abstractmethod
    def product(self, size: int) -> Callable[[], Any]:
        """Multiplies two float32 matrices into a third that is there already."""

    @abstractmethod
    def functional(self) -> Any:
        """The module of torch.nn.functional's functions."""

    @abstractmethod
    def tensor(self, array: np.ndarray, requires_grad: bool = False) -> Any:
        """A tensor of the side."""

    @abstractmethod
    def array(self, tensor: Any) -> np.ndarray:
        """The inverse of tensor."""

    @abstractmethod
    def adamw(self, parameters: list[Any]) -> Callable[[], Any]:
        """A step of AdamW."""

    @abstractmethod
    def no_grad(self) -> contextlib.AbstractContextManager[Any]:
        """In it, no graph is made."""

    def wait(self) -> None:  # noqa: B027
        """Until the device has done what it was given; nothing to do on a CPU."""


def _sample(array: np.ndarray) -> list[float]:
    flat = np.asarray(array).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(int)].tolist()
