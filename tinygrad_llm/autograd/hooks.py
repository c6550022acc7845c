"""Hooks: functions that see, and may replace, the gradient of a tensor on its way through backward."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.autograd.errors import AutogradError

if TYPE_CHECKING:
    from tinygrad_llm.autograd.tensor import Tensor

_IDS = itertools.count()


class Hooks:
    """The hooks of one place of the graph, in the order of registration, and the tensor that keeps its gradient.

    calls        with the whole gradient of the place
    before       of a node, with its gradient, before its vjp; of a leaf, before its `.grad` is added to
    passed       of a node, with the gradients of its arguments and its own, after its vjp; of a leaf, after all others
    accumulated  of a leaf, with the leaf, after its `.grad` was added to
    """

    __slots__ = ("accumulated", "before", "calls", "keeper", "passed")

    def __init__(self) -> None:
        self.calls: dict[int, Callable[[Tensor], Any]] = {}
        self.before: dict[int, Callable[..., Any]] = {}
        self.passed: dict[int, Callable[..., Any]] = {}
        self.accumulated: dict[int, Callable[[Tensor], None]] = {}
        self.keeper: weakref.ref[Tensor] | None = None

    @property
    def are_there(self) -> bool:
        """Whether any of them will be called."""
        return bool(self.calls) or self.see_grad

    @property
    def see_grad(self) -> bool:
        """Whether any of them, of a leaf, waits for its `.grad`."""
        return bool(self.accumulated or self.before or self.passed)


class RemovableHandle:
    """What register_hook returns: `remove()` takes the hook away, as does leaving `with handle:`."""

    def __init__(self, calls: dict[int, Any], hook: Callable[..., Any]) -> None:
        self._calls, self.id = calls, next(_IDS)
        calls[self.id] = hook
        changes.count += 1

    def remove(self) -> None:
        """Take the hook away; a second time does nothing."""
        self._calls.pop(self.id, None)
        changes.count += 1

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()


class _Walks(threading.local):
    now: Collection[int] = ()  # ids of the places that the present walk will reach


walks = _Walks()


class MultiGradHook:
    """A hook of several places; see tinygrad_llm.autograd.graph.register_multi_grad_hook. `remove()` takes it away."""

    def __init__(self, places: list[Any], fn: Callable[..., Any], mode: str) -> None:
        if mode not in ("all", "any"):
            raise ValueError(f"register_multi_grad_hook: mode: got {mode!r}, expected 'all' or 'any'")
        self.places, self.fn, self.mode = places, fn, mode
        self._found: dict[int, Tensor] = {}
        self._walk: Any = None
        self._handles = [RemovableHandle(hooks_of(p).calls, functools.partial(self._arrived, i)) for i, p in enumerate(places)]

    def remove(self) -> None:
        """Take the hook away; a second time does nothing."""
        for handle in self._handles:
            handle.remove()

    def _arrived(self, i: int, gradient: Tensor) -> None:
        if self._walk is not walks.now:
            self._walk, self._found = walks.now, {}
        self._found[i] = gradient
        if self.mode == "any" and len(self._found) == 1:
            self.fn(gradient)
        if self.mode == "all" and len(self._found) == sum(id(p) in self._walk for p in self.places):
            self.fn([self._found.get(k) for k in range(len(self.places))])


def hooks_of(place: Any) -> Hooks:
    """The hooks of a node or of a leaf, made on first use."""
    if place._hooks is None:
        place._hooks = Hooks()
    return place._hooks


def run_hooks(place: Any, gradient: Any, owned: bool, wrap: Callable[[Any], Tensor]) -> Any:
    """The gradient of a place after its hooks, in their order; what keeps the gradient gets the last. One that something else
    may hold is copied for them, so that a hook may write to it.

    Errors: AutogradError where a hook returns something of another type, shape or dtype, naming the hook.
    """
    hooks: Hooks = place._hooks
    plain = isinstance(gradient, np.ndarray | np.generic)
    tensor = wrap(np.asarray(gradient) if owned or not hooks.calls else np.array(gradient)) if plain else gradient
    for hook in list(hooks.calls.values()):
        given = hook(tensor)
        if given is not None:
            _check(place, hook, given)
            tensor = given
    if hooks.keeper is not None and (keeper := hooks.keeper()) is not None:
        keeper._grad = _copy(tensor) if keeper._grad is None else keeper._grad + tensor
    return tensor._array if plain else tensor


def run_accumulated(leaf: Any, gradient: Any, wrap: Callable[[Any], Tensor]) -> None:
    """Tell the hooks of a leaf that its `.grad` was added to. Errors: AutogradError where one returns something."""
    for hook in list(leaf._hooks.accumulated.values()):
        if (given := hook(leaf)) is not None:
            raise AutogradError(f"hook {_name(hook)}: got a return value of type {type(given).__name__}, expected None, "
                                "for .grad was added to already")
    if leaf._hooks.passed:
        run_node_hooks(leaf, (), gradient, wrap)


def run_before(node: Any, gradient: Any, wrap: Callable[[Any], Tensor]) -> Any:
    """The gradient of a node, or None, after the hooks that run before its vjp."""
    plain = isinstance(gradient, np.ndarray | np.generic)
    tensor = wrap(np.array(gradient)) if plain else gradient
    for hook in list(node._hooks.before.values()):
        given = hook((tensor,))
        if given is not None:
            if not isinstance(given, tuple) or len(given) != 1:
                raise AutogradError(f"hook {_name(hook)}: got a return value {given!r:.60}, expected None or a tuple of 1")
            if given[0] is None:
                return None
            _check(node, hook, given[0])
            tensor = given[0]
    return tensor._array if plain else tensor


def run_node_hooks(
    node: Any, gradients: tuple[Any, ...], gradient: Any, wrap: Callable[[Any], Tensor]
) -> tuple[Any, ...]:
    """The gradients of a node's arguments after its own hooks, in their order, which may replace them all."""
    plain = isinstance(gradient, np.ndarray | np.generic)
    shown, whole = [g if g is None or not plain else wrap(np.array(g)) for g in (*gradients, gradient)], len(gradients)
    found, out = tuple(shown[:whole]), (shown[whole],)
    for hook in list(node._hooks.passed.values()):
        given = hook(found, out)
        if given is not None:
            if not isinstance(given, tuple) or len(given) != whole:
                raise AutogradError(f"hook {_name(hook)}: got a return value {type(given).__name__}, expected None or a "
                                    f"tuple of {whole} gradients")
            for g in given:
                if g is not None and not hasattr(g, "requires_grad"):
                    raise AutogradError(f"hook {_name(hook)}: got a tuple with a {type(g).__name__}, expected tensors or None")
            found = given
    return tuple([g if g is None or not plain else g._array for g in found])


def _name(hook: Any) -> str:
    return getattr(hook, "__name__", type(hook).__name__)


def _check(place: Any, hook: Any, given: Any) -> None:
    name = _name(hook)
    if not hasattr(given, "requires_grad"):
        raise AutogradError(f"hook {name}: got a return value of type {type(given).__name__}, expected a Tensor or None")
    if given.shape != place.shape or given.dtype != place.dtype:
        raise AutogradError(f"hook {name}: got a return value of shape {given.shape} and dtype {given.dtype}, "
                            f"expected {place.shape} and {place.dtype}")


def _copy(tensor: Tensor) -> Tensor:
    return tensor + 0 if tensor.requires_grad else tensor.wrap(tensor._array.copy())
