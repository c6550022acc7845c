"""Views: tensors that show the memory of another, their base, and how each is made of it.

A write through any of them changes all. The base therefore knows its views (weakly), and a view knows its base and the
steps from there, so that after a write each can be given the node that its new values deserve.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.modes import records_graph
from tinygrad_llm.ops import Op

if TYPE_CHECKING:
    from tinygrad_llm.autograd.tensor import Tensor


class View:
    """One step of a view: `op` with `options`, after the step `before`, from `base`. An op of None cannot be repeated.

    leaf    a view on the way that was made a leaf, if there is one: `row = table[0].requires_grad_()`
    """

    __slots__ = ("base", "before", "leaf", "op", "options", "recorded")

    recorded: bool

    def __init__(self, base: Tensor, before: View | None, op: Op | None, options: dict[str, Any], leaf: Tensor | None) -> None:
        self.base, self.before, self.op, self.options, self.leaf = base, before, op, options, leaf
        self.recorded = records_graph() and (before is None or before.recorded)

    @classmethod
    def of(cls, viewed: Tensor, op: Op | None, options: dict[str, Any]) -> View:
        """The step from a tensor that may be a view itself."""
        before = viewed._alias if isinstance(viewed._alias, View) else None
        if before is None:
            return cls(viewed, None, op, options, None)
        is_leaf = viewed._requires_grad and viewed._node is None
        return cls(before.base, before, op, options, viewed if is_leaf else before.leaf)

    def steps(self) -> list[tuple[Op | None, dict[str, Any]]]:
        """(op, options) from the base to the view."""
        found, step = [], self
        while step is not None:
            found.append((step.op, step.options))
            step = step.before  # type: ignore[assignment]
        return found[::-1]

    def places(self) -> np.ndarray:
        """For each element of the view, where it stands in the flat base."""
        index = np.arange(self.base.size).reshape(self.base.shape)
        for op, options in self.steps():
            assert op is not None
            index = op.function(index, **options)[0]
        return index

    def again(self, base: Tensor) -> Tensor:
        """The same view of the base as it is now, or of another."""
        out = base
        for op, options in self.steps():
            out = out.__apply_op__(op, out, **options)  # type: ignore[arg-type]
        return out


def family(base: Tensor) -> weakref.WeakSet[Tensor]:
    """The views of a base that are alive."""
    if base._alias is None:
        base._alias = weakref.WeakSet()
    return base._alias
