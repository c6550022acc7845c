"""checkpoint: keep a function's inputs instead of all that its graph would keep, and run it again in backward."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from tinygrad_llm.autograd.backward import gradients_at
from tinygrad_llm.autograd.errors import AutogradError
from tinygrad_llm.autograd.graph import Node
from tinygrad_llm.autograd.modes import enable_grad, records_graph
from tinygrad_llm.autograd.randomness import default_generator, rewind, states_of
from tinygrad_llm.autograd.several import node_of_call
from tinygrad_llm.autograd.tensor import Tensor
from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.ops import Op

_OP = Op("checkpoint", lambda *x: (x, lambda g: g), (), {}, "torch.utils.checkpoint.checkpoint", variadic=True)


def noop_context_fn() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts that do nothing, for the first run of a checkpointed function and for the others."""
    return nullcontext(), nullcontext()


def checkpoint(
    function: Callable[..., Any], *args: Any, use_reentrant: bool | None = None,
    context_fn: Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]] = noop_context_fn,
    determinism_check: str = "default", debug: bool = False, early_stop: bool = True, preserve_rng_state: bool = True,
    generators: Iterable[np.random.Generator] = (), **kwargs: Any,
) -> Any:
    """function(*args, **kwargs), of which the graph holds the inputs only: backward runs it again.

    What the function closes over (parameters) gets its gradient too, and derivatives of any order are right.
    context_fn           makes two contexts: the function's first run is inside one, those of backward inside the other
    determinism_check    "default": backward compares what the function gives then with what it gave, bit by bit; "none"
    preserve_rng_state   the library's generator, those among the arguments, and those in `generators` draw again what they drew
    use_reentrant, debug, early_stop   torch's switches, which change no result here: there is one form, the non-reentrant

    torch.utils.checkpoint. Chen et al. 2016, arXiv:1604.06174. Errors: TypeError for an output that holds no tensor,
    AutogradError in backward where the function gave something else the second time.
    """
    if determinism_check not in ("default", "none"):
        raise ValueError(f"checkpoint: determinism_check: got {determinism_check!r}, expected 'default' or 'none'")
    first, again = context_fn()
    with first:
        if not records_graph():
            return function(*args, **kwargs)
        leaves, rebuild = flatten((args, kwargs))
        used = (default_generator, *leaves, *generators) if preserve_rng_state else ()
        drawn = [g for g in used if isinstance(g, np.random.Generator)]
        return Segment(function, leaves, rebuild, drawn, determinism_check == "default", again).run()


class Segment:
    """One checkpointed call: its inputs, the states of its generators, and what it gave."""

    def __init__(
        self, function: Any, leaves: list[Any], rebuild: Any, drawn: list[Any], compare: bool, again: Any
    ) -> None:
        self.function, self.leaves, self.rebuild, self.compare = function, leaves, rebuild, compare
        self.again = again
        self.originals = [x for x in leaves if isinstance(x, Tensor) and x._requires_grad]  # at backward it may be frozen
        self.states = states_of(drawn)
        self.given = [(x._counter, x._counter.count) for x in leaves if isinstance(x, Tensor)]

    def run(self) -> Any:
        """The outputs, with nodes that remember this segment in place of the graph."""
        started = _now()
        out, inside = self._call(lambda x: x.view_as(x))
        tensors, rebuild = flatten(out)
        wanted = _recorded(tensors)
        if not any(isinstance(t, Tensor) for t in tensors):
            raise TypeError(f"checkpoint: function: got an output of {type(out).__name__}, expected tensors")
        places = _outside(wanted, inside, started)
        self.given += [(p._counter, p._counter.count) for p in places if isinstance(p, Tensor)]
        self.prints = [_print(t) for t in wanted]
        made = {id(t): self._own(t) for t in wanted}
        if made:
            parents = [*[x._node or x for x in self.originals], *places]
            node = node_of_call("checkpoint", parents, lambda g: self.pull(g, places), list(made.values()), owned=True)
            node.saved = tuple(self.given)
        return rebuild([made.get(id(t), t) for t in tensors])

    def _own(self, tensor: Tensor) -> Tensor:
        """An output outside of the graph that it was made in; in memory of its own where it showed that of something else."""
        if tensor._base is not None or any(tensor._counter is version for version, _ in self.given):
            return Tensor.wrap(tensor._array.copy())
        own = Tensor.wrap(tensor._array)
        own._counter = tensor._counter
        return own

    def _call(self, link: Callable[[Tensor], Tensor] | None = None) -> tuple[Any, list[Tensor]]:
        """(output, what stands for the inputs that require grad): link(x) of each, or else leaves."""
        with enable_grad():
            inside = [link(x) if link and x._requires_grad else x.detach().requires_grad_() for x in self.originals]
            stands = dict(zip([id(x) for x in self.originals], inside))
            args, kwargs = self.rebuild([stands.get(id(x), x) for x in self.leaves])
            return self.function(*args, **kwargs), inside

    def pull(self, cotangents: Sequence[Any], places: Sequence[Any]) -> list[Any]:
        """The gradients of the inputs and of what the function closes over, from a second run.

        Hooks of places do not run here: backward brings each its whole gradient, of which this is a part.
        """
        create_graph = any(isinstance(c, Tensor) for c in cotangents)
        started = _now()
        with _replayed(self.states), self.again:
            out, inside = self._call((lambda x: x.clone()) if create_graph else None)
        wanted = _recorded(flatten(out)[0])
        if len(wanted) != len(cotangents) or (self.compare and [_print(t) for t in wanted] != self.prints):
            raise AutogradError("checkpoint: got other values from the second run of the function, expected the same; pass the "
                                "generators that it draws from (generators=), and change nothing that it reads")
        found, expected = ({id(p) for p in ends if p.requires_grad} for ends in (_outside(wanted, inside, started), places))
        if found != expected:
            raise AutogradError("checkpoint: got a second run of the function that uses other tensors, expected those of the "
                                "first: their gradients would be lost; pass them as arguments")
        pairs = [(t, c) for t, c in zip(wanted, cotangents) if c is not None]
        ends = [x._node or x for x in inside] + list(places)
        return gradients_at([t for t, _ in pairs], [c for _, c in pairs], ends, create_graph, create_graph, beyond=False,
                            silent=places)


def _recorded(outputs: Iterable[Any]) -> list[Tensor]:
    """The outputs that require grad, each once."""
    return list({id(t): t for t in outputs if isinstance(t, Tensor) and t._requires_grad}.values())


def _now() -> int:
    """A number above those of all nodes so far."""
    return Node(_OP, lambda g: g, (), {}, np.empty(0)).number


def _outside(outputs: Iterable[Tensor], inside: Iterable[Tensor], started: int) -> list[Any]:
    """What the graph of the outputs reaches that was there before, other than what stands for the inputs."""
    own = {id(x._node or x) for x in inside}
    stack: list[Any] = [t._node or t for t in outputs]
    seen, found = {id(p) for p in stack}, []
    while stack:
        place = stack.pop()
        if id(place) in own:
            continue
        if isinstance(place, Node) and place.number > started:
            new = {id(p): p for p in place.parents if p is not None and id(p) not in seen}  # w * w has w twice
            seen |= new.keys()
            stack += new.values()
        else:
            found.append(place)
    return found


def _print(tensor: Tensor) -> tuple[Any, ...]:
    known = not hasattr(tensor._array, "__record_call__")  # while calls are recorded, values are not
    return tensor.shape, tensor.dtype, zlib.crc32(tensor._array.tobytes()) if known else None


@contextmanager
def _replayed(states: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Inside the block the generators draw from the given states; after it, from where they were."""
    before = [(bits, bits.state) for bits, _ in states]
    try:
        rewind(states)
        yield
    finally:
        rewind(before)
