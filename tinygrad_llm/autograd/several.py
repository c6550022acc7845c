"""Calls with several outputs: each output has a node of its own, and all of these lead to the node of the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tinygrad_llm.autograd.graph import Node
from tinygrad_llm.ops import Op

if TYPE_CHECKING:
    from tinygrad_llm.autograd.tensor import Tensor


class Parts:
    """The cotangents of some outputs of a call, by number: what is added up for the node of the call."""

    __slots__ = ("values",)
    shape = dtype = None

    def __init__(self, values: dict[int, Any]) -> None:
        self.values = values

    def __add__(self, other: Parts) -> Parts:
        both = {i: self.values[i] + other.values[i] for i in self.values.keys() & other.values.keys()}
        return Parts({**self.values, **other.values, **both})


class CallNode(Node):
    """The node of a call, or of one of its outputs. `released` is told when it lets go of what only one backward needs."""

    __slots__ = ("released",)

    released: Callable[[], None]

    def name(self) -> str:
        """As torch calls the node of a Function: SquareBackward of one named Square."""
        return f"{self.op.name}Backward"

    def release(self) -> None:
        """Let go of what only one backward needs; of nothing where none is kept."""
        super().release()
        if self.kept and hasattr(self, "released"):
            self.released()


def node_of_call(
    name: str, parents: Sequence[Any], vjp: Callable[[list[Any]], Sequence[Any]], outputs: Sequence[Tensor],
    owned: bool = False,
) -> CallNode:
    """The node of a call, of whose outputs each is given one that leads to it.

    vjp    a cotangent or None for each output → a gradient or None for each parent
    owned  whether nothing else holds these gradients; a user's function may keep them

    The node does not hold the outputs, and is let go of after its backward.
    """
    op = Op(name, lambda *x: (x, lambda g: g), (), {}, name, variadic=True, owned=owned)
    n = len(outputs)
    hub = CallNode(op, lambda parts: tuple(vjp([parts.values.get(i) for i in range(n)])), (), {}, outputs[0])
    hub.parents, hub.kept = tuple(parents), True
    if n == 1:  # no need for a second one
        hub.vjp = lambda g: tuple(vjp([g]))
        return _given(outputs[0], hub)
    hub.shape = hub.dtype = None
    for i, out in enumerate(outputs):
        node = CallNode(op, _part(i), (), {}, out)
        node.parents = (hub,)
        _given(out, node)
    return hub


def _given(out: Tensor, node: CallNode) -> CallNode:
    out._node, out._requires_grad = node, True
    return node


def _part(i: int) -> Callable[[Any], tuple[Parts]]:
    return lambda g: (Parts({i: g}),)
