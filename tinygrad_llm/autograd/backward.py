"""Reverse mode: cotangents flow from the outputs to the leaves, each node once, in topological order.

The walk is iterative: a chain of 100,000 ops is no deeper than one. A cotangent is an argument, held in a table for as
long as it waits for its node and popped when the node consumes it; no tensor but a leaf ever holds a gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.allocator import keep_freed
from tinygrad_llm.autograd.graph import AnomalyError, AutogradError, Node
from tinygrad_llm.autograd.hooks import run_hooks
from tinygrad_llm.autograd.modes import is_anomaly_check_nan_enabled, set_grad_enabled
from tinygrad_llm.ops import Op
from tinygrad_llm.ops.opaque import as_values

if TYPE_CHECKING:
    from tinygrad_llm.autograd.tensor import Tensor


def backward(
    tensors: Tensor | Sequence[Tensor], grad_tensors: Any = None, retain_graph: bool | None = None,
    create_graph: bool = False, inputs: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """Add d Σ⟨grad_tensor, tensor⟩ / d leaf to `.grad` of every leaf that requires grad, or only of `inputs`, which may
    be results of ops too. torch.autograd.backward's arguments; see Tensor.backward."""
    tensors = _as_list(tensors, 1)
    gradients, wanted = _as_list(grad_tensors, len(tensors)), _as_list(inputs, 0)
    if inputs is not None and not wanted:
        raise AutogradError("backward: inputs: got none, expected at least one tensor, or None for every leaf")
    _check_inputs("backward", wanted)
    holders = {id(_place(x)): x for x in wanted}
    with set_grad_enabled(create_graph):
        for place, gradient, owned in _walk(tensors, gradients, list(holders), retain_graph, create_graph):
            holder = holders.get(id(place), place)
            if not holder.retains_grad:  # or it has it already
                _accumulate(holder, gradient, owned, create_graph)


def grad(
    outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor], grad_outputs: Any = None,
    retain_graph: bool | None = None, create_graph: bool = False, allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of Σ⟨grad_output, output⟩ with respect to inputs, leaves or not, without touching `.grad`.

    Shapes are those of the inputs. torch.autograd.grad's arguments: an input that the outputs do not depend on gives None
    where allow_unused, zeros where materialize_grads. Errors: AutogradError for such an input otherwise.
    """
    outputs, inputs = _as_list(outputs, 1), _as_list(inputs, 1)
    _check_inputs("grad", inputs)
    found = gradients_at(outputs, _as_list(grad_outputs, len(outputs)), [_place(x) for x in inputs], retain_graph, create_graph)
    for i, g in enumerate(found):
        if g is None and not (materialize_grads if allow_unused is None else allow_unused):
            raise AutogradError(f"grad: inputs[{i}]: got a tensor that the outputs do not depend on, expected one they do "
                                "(or allow_unused=True)")
    zeros = [np.zeros(x.shape, x.dtype) if g is None and materialize_grads else g for g, x in zip(found, inputs)]
    return tuple([_as_tensor(g, x) for g, x in zip(zeros, inputs)])


def gradients_at(
    outputs: Sequence[Tensor], gradients: Sequence[Any], places: Sequence[Any], retain_graph: bool | None,
    create_graph: bool, beyond: bool = True,
) -> list[Any]:
    """The gradients that arrive at places (nodes or leaves), the caller's own; None where nothing does."""
    if not places:
        return []
    with set_grad_enabled(create_graph):
        walked = _walk(outputs, gradients, [id(p) for p in places], retain_graph, create_graph, beyond)
    reached = {id(place): g if owned or create_graph else _copied(g) for place, g, owned in walked}
    return [reached.get(id(place)) for place in places]


def _check_inputs(who: str, inputs: Sequence[Tensor]) -> None:
    for i, x in enumerate(inputs):
        if not x.requires_grad:
            raise AutogradError(f"{who}: inputs[{i}]: got a tensor that does not require grad, expected one that does")


def _walk(
    tensors: Sequence[Tensor], gradients: Sequence[Any], inputs: Sequence[int], retain_graph: bool | None,
    create_graph: bool, beyond: bool = True,
) -> list[tuple[Any, Any, bool]]:
    """Send cotangents back to the leaves, or to the places with the ids `inputs`, where given; list (leaf or node,
    gradient, whether it is ours).

    An input may lie upstream of another, so the walk goes on beyond the inputs, unless told that none does.
    """
    keep_freed()
    if len(gradients) != len(tensors):
        raise AutogradError(f"grad_outputs: got {len(gradients)}, expected {len(tensors)}, one for each output")
    retain = create_graph if retain_graph is None else retain_graph
    targets = set(inputs)
    table = _Cotangents(create_graph)
    for i, (tensor, gradient) in enumerate(zip(tensors, gradients)):
        table.add(_place(tensor), _first_cotangent(i, tensor, gradient, create_graph), owned=False)
    roots = _unique([_place(t) for t in tensors])
    waiting = _count_uses(roots, targets, beyond)
    ready = [place for place in roots if waiting.get(id(place)) == 0]
    results = []
    while ready:
        place = ready.pop()
        gradient, owned = table.pop(place)
        if gradient is not None and place._hooks is not None:
            gradient, owned = run_hooks(place, gradient, tensors[0].wrap), False
        if gradient is not None and (id(place) in targets if inputs else not isinstance(place, Node)):
            results.append((place, gradient, owned))
        parents = [p for p in place.parents if id(p) in waiting] if isinstance(place, Node) else []
        if not parents or (id(place) in targets and not beyond):
            continue
        _push(place, gradient, table, create_graph)
        if not retain:
            place.release()
        leaves: list[Any] = []
        for parent in parents:
            waiting[id(parent)] -= 1
            if waiting[id(parent)] == 0:
                (ready if isinstance(parent, Node) else leaves).append(parent)
        ready += leaves[::-1]  # before all nodes, in their order: so torch calls their hooks
    return results


class _Cotangents:
    """The cotangents that wait for their node. `owned` marks an array that nobody else can hold: only that is added to."""

    def __init__(self, create_graph: bool) -> None:
        self.slots: dict[int, tuple[Any, bool]] = {}
        self.create_graph = create_graph

    def add(self, place: Any, gradient: Any, owned: bool) -> None:
        before, mine = self.slots.get(id(place), (None, False))
        if before is None:
            self.slots[id(place)] = gradient, owned
        elif mine and not self.create_graph:
            out = before if isinstance(before, np.ndarray) else np.empty_like(before)  # a recorder gives it memory
            self.slots[id(place)] = np.add(before, gradient, out=out), True
        else:
            total = before + gradient
            self.slots[id(place)] = total, _is_new(total)  # of 0-d arrays NumPy makes a scalar

    def pop(self, place: Any) -> tuple[Any, bool]:
        return self.slots.pop(id(place), (None, False))


def _push(node: Node, gradient: Any, table: _Cotangents, create_graph: bool) -> None:
    """Call a node's vjp and hand each gradient to the parent that it belongs to."""
    if gradient is None:
        return
    if node.vjp is None:
        raise AutogradError(
            f"{node.op.name}: this graph was already used by backward() and let go of what it held; call the first "
            "backward(retain_graph=True) to use it twice"
        )
    node.check_saved(runs_again=create_graph)
    gradients = _differentiable_vjp(node, gradient) if create_graph else node.vjp(gradient)
    seen: list[Any] = [gradient]
    for i, (parent, g) in enumerate(zip(node.parents, gradients)):
        if parent is None or g is None:
            continue
        _check_fits(node, i, parent, g)
        owned = _is_new(g) and not any(g is other for other in seen)
        seen.append(g)
        table.add(parent, g, owned)


def _is_new(g: Any) -> bool:
    """Whether it is an array with memory of its own, also while it is recorded."""
    return g.base is None if isinstance(g, np.ndarray) else getattr(g, "is_new", False)


def _differentiable_vjp(node: Node, gradient: Tensor) -> tuple[Any, ...]:
    """The vjp as tensors that can be differentiated again.

    A vjp that closes over no floating array has constant coefficients: it runs on a Tensor as it is. Otherwise the
    op's own body runs once more, on Tensors in place of arrays, so that its NumPy calls become a graph; a fused op
    does so through its definition in primitives.
    """
    assert node.vjp is not None
    if node.inputs is None:
        return node.vjp(gradient)
    if node.op.definition is None:
        return node.op(*node.inputs, **node.options)[1](gradient)
    return _through_definition(node.op, node.inputs, node.options, gradient)


def _through_definition(op: Op, inputs: tuple[Any, ...], options: dict[str, Any], gradient: Tensor) -> tuple[Any, ...]:
    # Each input passes through an identity, where the inner walk stops; what it returns still depends on the input.
    stops = [a.__apply_op__(_identity, a) if getattr(a, "requires_grad", False) else a for a in inputs]
    wanted = [s for s, a in zip(stops, inputs) if getattr(a, "requires_grad", False)]
    filled = stops + [None] * (len(op.args) - len(stops))
    out = op.definition(*filled, **{**_defaults(op), **options})  # type: ignore[misc]
    places = [id(_place(x)) for x in wanted]
    reached = {id(place): g for place, g, _ in _walk([out], [gradient], places, True, True, beyond=False)}
    return tuple([reached.get(id(s._node)) if getattr(s, "requires_grad", False) else None for s in stops])


def _defaults(op: Op) -> dict[str, Any]:
    parameters = inspect.signature(op.function).parameters
    return {name: parameters[name].default for name in op.options}


_identity = Op("identity", lambda x: (x, lambda g: (g,)), (), {}, "x", variadic=True)


def _check_fits(node: Node, i: int, parent: Any, g: Any) -> None:
    if g.shape != parent.shape or g.dtype != parent.dtype:
        raise AutogradError(
            f"{node.op.name}: the gradient of argument {i} has shape {g.shape} and dtype {g.dtype}, "
            f"expected {parent.shape} and {parent.dtype}"
        )
    if is_anomaly_check_nan_enabled() and not np.isfinite(np.asarray(g)).all():
        what = "nan" if np.isnan(np.asarray(g)).any() else "inf"
        where = f"called at {node.line}" if node.line else "outside of detect_anomaly(), so that its line is not known"
        raise AnomalyError(f"backward of {node.op.name} gave {what} for argument {i}; its forward was {where}")


def _place(tensor: Tensor) -> Any:
    return tensor._node or tensor


def _unique(places: Sequence[Any]) -> list[Any]:
    return list({id(p): p for p in places}.values())


def _count_uses(roots: Sequence[Any], targets: set[int], beyond: bool) -> dict[int, int]:
    """How many nodes will send a cotangent to each place; where there are targets, only of places that lead to one."""
    users: dict[int, list[Node]] = {id(root): [] for root in roots}
    stack = list(roots)
    while stack:
        place = stack.pop()
        if not isinstance(place, Node) or (id(place) in targets and not beyond):
            continue
        for parent in place.parents:
            if parent is not None:
                if id(parent) not in users:
                    users[id(parent)] = []
                    stack.append(parent)
                users[id(parent)].append(place)
    if not targets:
        return {place: len(nodes) for place, nodes in users.items()}
    wanted = _downstream(targets & users.keys(), users)
    return {place: sum([id(node) in wanted for node in users[place]]) for place in wanted}


def _downstream(places: set[int], users: dict[int, list[Node]]) -> set[int]:
    """The places, and all that use them, directly or not."""
    found, stack = set(places), list(places)
    while stack:
        new = {id(node) for node in users[stack.pop()]} - found
        found |= new
        stack += new
    return found


def _first_cotangent(i: int, tensor: Tensor, gradient: Any, create_graph: bool) -> Any:
    if not tensor.requires_grad:
        raise AutogradError("backward: got a tensor that does not require grad, expected one made from a tensor that does")
    if gradient is None:
        if tensor.size != 1:
            raise AutogradError(f"backward: gradient: got None for a tensor of shape {tensor.shape}, expected a gradient "
                                "of that shape (it is implied for a single element only)")
        gradient = np.ones(tensor.shape, tensor.dtype)
    array = as_values(gradient) if hasattr(gradient, "dtype") else np.asarray(gradient, dtype=tensor.dtype)
    if array.shape != tensor.shape:
        raise AutogradError(f"backward: gradient: got shape {array.shape}, expected {tensor.shape}")
    if array.dtype != tensor.dtype:
        raise AutogradError(f"backward: gradient: got dtype {array.dtype}, expected {tensor.dtype}")
    if not create_graph:
        return array
    return gradient if hasattr(gradient, "requires_grad") else _as_tensor(array, tensor)


def _as_tensor(g: Any, like: Tensor) -> Any:
    """An array as a tensor; a tensor or None as it is."""
    return g if g is None or hasattr(g, "requires_grad") else like.wrap(as_values(g))


def _copied(g: Any) -> Any:
    return np.copy(g) if hasattr(g, "__record_call__") else np.array(g)


def _as_list(gradients: Any, n: int) -> list[Any]:
    if gradients is None:
        return [None] * n
    if isinstance(gradients, tuple | list):
        return list(gradients)
    return [gradients]


def _accumulate(leaf: Tensor, gradient: Any, owned: bool, create_graph: bool) -> None:
    """leaf.grad + gradient. A gradient that something else may hold is copied; nothing is added to in place."""
    if leaf.grad is not None:
        gradient = (leaf.grad if create_graph else leaf.grad._array) + gradient
    elif create_graph:
        gradient = gradient + 0
    elif not owned:
        gradient = _copied(gradient)
    leaf.grad = _as_tensor(gradient, leaf)
