"""Hooks: functions that see, and may replace, the gradient of a tensor on its way through backward."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.graph import AutogradError

if TYPE_CHECKING:
    from tinygrad_llm.autograd.tensor import Tensor

_IDS = itertools.count()


class Hooks:
    """The hooks of one place of the graph, in the order of registration, and the tensor that keeps its gradient."""

    __slots__ = ("calls", "keeper")

    def __init__(self) -> None:
        self.calls: dict[int, Callable[[Tensor], Any]] = {}
        self.keeper: weakref.ref[Tensor] | None = None


class RemovableHandle:
    """What register_hook returns: `remove()` takes the hook away, as does leaving `with handle:`."""

    def __init__(self, calls: dict[int, Callable[[Tensor], Any]], hook: Callable[[Tensor], Any]) -> None:
        self._calls, self.id = calls, next(_IDS)
        calls[self.id] = hook

    def remove(self) -> None:
        """Take the hook away; a second time does nothing."""
        self._calls.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()


def hooks_of(place: Any) -> Hooks:
    """The hooks of a node or of a leaf, made on first use."""
    if place._hooks is None:
        place._hooks = Hooks()
    return place._hooks


def run_hooks(place: Any, gradient: Any, wrap: Callable[[Any], Tensor]) -> Any:
    """The gradient of a place after its hooks, in their order; what keeps the gradient gets the last.

    Errors: AutogradError where a hook returns something of another type, shape or dtype, naming the hook.
    """
    hooks: Hooks = place._hooks
    plain = isinstance(gradient, np.ndarray | np.generic)
    tensor = wrap(np.asarray(gradient)) if plain else gradient
    for hook in list(hooks.calls.values()):
        given = hook(tensor)
        if given is not None:
            _check(place, hook, given)
            tensor = given
    if hooks.keeper is not None and (keeper := hooks.keeper()) is not None:
        keeper.grad = _copy(tensor) if keeper.grad is None else keeper.grad + tensor
    return tensor._array if plain else tensor


def _check(place: Any, hook: Any, given: Any) -> None:
    name = getattr(hook, "__name__", type(hook).__name__)
    if not hasattr(given, "requires_grad"):
        raise AutogradError(f"hook {name}: got a return value of type {type(given).__name__}, expected a Tensor or None")
    if given.shape != place.shape or given.dtype != place.dtype:
        raise AutogradError(f"hook {name}: got a return value of shape {given.shape} and dtype {given.dtype}, "
                            f"expected {place.shape} and {place.dtype}")


def _copy(tensor: Tensor) -> Tensor:
    return tensor + 0 if tensor.requires_grad else tensor.wrap(tensor._array.copy())
