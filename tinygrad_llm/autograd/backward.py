"""Reverse mode: cotangents flow from the outputs to the leaves, each node once, in topological order.

The walk is iterative: a chain of 100,000 ops is no deeper than one. A cotangent is an argument, held in a table for as
long as it waits for its node and popped when the node consumes it; no tensor but a leaf ever holds a gradient.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.allocator import keep_freed
from tinygrad_llm.autograd.errors import AnomalyError, AutogradError
from tinygrad_llm.autograd.graph import AccumulateGrad, GradientEdge, Node, where_it_was
from tinygrad_llm.autograd.hooks import run_accumulated, run_before, run_hooks, run_node_hooks, walks
from tinygrad_llm.autograd.leaves import accumulate, copied
from tinygrad_llm.autograd.modes import is_anomaly_check_nan_enabled, set_grad_enabled
from tinygrad_llm.autograd.rows import gradients_of_rows
from tinygrad_llm.ops import Op
from tinygrad_llm.ops.numbers import plain
from tinygrad_llm.ops.opaque import as_values

if TYPE_CHECKING:
    from tinygrad_llm.autograd.tensor import Tensor


def backward(
    tensors: Tensor | Sequence[Tensor], grad_tensors: Any = None, retain_graph: bool | None = None,
    create_graph: bool = False, grad_variables: Any = None, inputs: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """Add d Σ⟨grad_tensor, tensor⟩ / d leaf to `.grad` of every leaf that requires grad, or only of `inputs`, which may
    be results of ops too. torch.autograd.backward's arguments; see Tensor.backward."""
    if grad_variables is not None:
        raise AutogradError("backward: grad_variables: got a value, expected grad_tensors, its name of today")
    tensors = _as_list(tensors, 1)
    gradients, wanted = _as_list(grad_tensors, len(tensors)), _as_list(inputs, 0)
    if create_graph:
        warnings.warn("backward: create_graph=True puts the graph into .grad, and the graph holds the leaf: set .grad to None "
                      "to free their memory, or use autograd.grad(), which makes no such cycle", UserWarning, stacklevel=3)
    if inputs is not None and not wanted:
        raise AutogradError("backward: inputs: got none, expected at least one tensor, or None for every leaf")
    _check_inputs("backward", wanted)
    if any(isinstance(x, Node) for x in wanted):
        raise AutogradError("backward: inputs: got the edge of a result, which has no .grad, expected tensors; use grad()")
    holders = {id(_place(x)): x for x in wanted}

    def arrive(place: Any, gradient: Any, owned: bool) -> None:
        holder = holders.get(id(place), place)
        if holder._requires_grad and (holder._node is None or not holder.retains_grad):  # or it has it already
            hooks = holder._hooks
            if hooks is not None and hooks.before and (gradient := run_before(holder, gradient, _tensor_of)) is None:
                return
            accumulate(holder, gradient, owned, create_graph)
            if hooks is not None:
                run_accumulated(holder, gradient, _tensor_of)

    with set_grad_enabled(create_graph):
        for found in _walk(tensors, gradients, list(holders), retain_graph, create_graph, early=arrive):
            arrive(*found)


def grad(
    outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor], grad_outputs: Any = None,
    retain_graph: bool | None = None, create_graph: bool = False, only_inputs: bool = True,
    allow_unused: bool | None = None, is_grads_batched: bool = False, materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of Σ⟨grad_output, output⟩ with respect to inputs, leaves or not, without touching `.grad`.

    Shapes are those of the inputs. torch.autograd.grad's arguments: an input that the outputs do not depend on gives None
    where allow_unused, zeros where materialize_grads. is_grads_batched: grad_outputs are several cotangents along a first axis,
    and so are the gradients. Errors: AutogradError for such an input otherwise, and for no inputs.
    """
    if not only_inputs:
        raise AutogradError("grad: only_inputs: got False, expected True; backward() is for all leaves")
    outputs, inputs = _as_list(outputs, 1), _as_list(inputs, 1)
    cotangents = _as_list(grad_outputs, len(outputs))
    if is_grads_batched:
        return gradients_of_rows(
            grad, outputs, inputs, cotangents, retain_graph, create_graph, allow_unused, materialize_grads)
    if not inputs:
        raise AutogradError("grad: inputs: got none, expected at least one tensor")
    if materialize_grads and allow_unused is False:
        raise ValueError("grad: allow_unused: got False together with materialize_grads=True, expected True or None")
    _check_inputs("grad", inputs)
    found = gradients_at(outputs, cotangents, [_place(x) for x in inputs], retain_graph, create_graph)
    for i, g in enumerate(found):
        if g is None and not (materialize_grads if allow_unused is None else allow_unused):
            raise AutogradError(f"grad: inputs[{i}]: got a tensor that the outputs do not depend on, expected one they do "
                                "(or allow_unused=True)")
    return tuple([_zeros(x, create_graph) if g is None and materialize_grads else _as_tensor(g)
                  for g, x in zip(found, inputs)])


def _zeros(like: Tensor, requires_grad: bool) -> Tensor:
    return _tensor_of(np.zeros(like.shape, like.dtype)).requires_grad_(requires_grad)


def gradients_at(
    outputs: Sequence[Tensor], gradients: Sequence[Any], places: Sequence[Any], retain_graph: bool | None,
    create_graph: bool, beyond: bool = True, silent: Collection[Any] = (),
) -> list[Any]:
    """The gradients that arrive at places (nodes or leaves), the caller's own; None where nothing does.

    silent     places whose hooks do not run: an outer walk will bring them the whole gradient
    """
    if not places:
        return []
    with set_grad_enabled(create_graph):
        quiet = {id(p) for p in silent}
        walked = _walk(outputs, gradients, [id(p) for p in places], retain_graph, create_graph, beyond, quiet)
    reached = {id(place): g if owned or create_graph else copied(g) for place, g, owned in walked}
    return [reached.get(id(place)) for place in places]


def _check_inputs(who: str, inputs: Sequence[Any]) -> None:
    for i, x in enumerate(inputs):
        if not hasattr(x, "requires_grad"):
            raise TypeError(f"{who}: inputs[{i}]: got a {type(x).__name__}, expected a tensor")
        if not x.requires_grad:
            raise AutogradError(f"{who}: inputs[{i}]: got a tensor that does not require grad, expected one that does")


def _walk(
    tensors: Sequence[Tensor], gradients: Sequence[Any], inputs: Sequence[int], retain_graph: bool | None,
    create_graph: bool, beyond: bool = True, silent: Collection[int] = (),
    early: Callable[[Any, Any, bool], None] | None = None,
) -> list[tuple[Any, Any, bool]]:
    """Send cotangents back to the leaves, or to the places with the ids `inputs`, where given; list (leaf or node,
    gradient, whether it is ours). Of the nodes that have their whole cotangent, the one that was made last goes first.

    An input may lie upstream of another, so the walk goes on beyond the inputs, unless told that none does. What is found is
    listed and not used at once, so that an error on the way leaves every `.grad` as it was; but a leaf whose hooks wait for
    its `.grad` is given to `early` there and then, for they may let go of it.
    """
    if not tensors:
        return []
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
    leaves: list[Any] = []
    ready: list[tuple[int, Any]] = []
    for place in roots:
        if waiting.get(id(place)) == 0:
            _make_ready(place, leaves, ready)
    results = []
    before, walks.now = walks.now, waiting
    try:
        while leaves or ready:
            place = leaves.pop() if leaves else heappop(ready)[1]
            gradient, owned = table.pop(place)
            if gradient is not None and place._hooks is not None and id(place) not in silent:
                gradient, owned = run_hooks(place, gradient, owned, _tensor_of), False
            if gradient is not None and (id(place) in targets if inputs else not isinstance(place, Node)):
                if early is not None and place._hooks is not None and place._hooks.see_grad:
                    early(place, gradient, owned)
                else:
                    results.append((place, gradient, owned))
            parents = [p for p in place.parents if id(p) in waiting] if isinstance(place, Node) else []
            if not parents or (id(place) in targets and not beyond):
                continue
            _push(place, gradient, table, create_graph)
            if not retain:
                place.release()
            for parent in parents:
                waiting[id(parent)] -= 1
                if waiting[id(parent)] == 0:
                    _make_ready(parent, leaves, ready)
            leaves.reverse()  # before all nodes, in their order: so torch calls their hooks
    finally:
        walks.now = before
    return results


def _make_ready(place: Any, leaves: list[Any], nodes: list[tuple[int, Any]]) -> None:
    if isinstance(place, Node):
        heappush(nodes, (-place.number, place))
    else:
        leaves.append(place)


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
    if gradient is not None and node._hooks is not None and node._hooks.before:
        gradient = run_before(node, gradient, _tensor_of)
    if gradient is None:
        return
    if node.vjp is None:
        raise AutogradError(
            f"{node.op.name}: this graph was already used by backward() and let go of what it held; call the first "
            "backward(retain_graph=True) to use it twice"
        )
    node.check_saved(runs_again=create_graph)
    gradients, mine = _differentiable_vjp(node, gradient) if create_graph else node.vjp(gradient), node.op.owned
    if node._hooks is not None and node._hooks.passed:
        gradients, mine = run_node_hooks(node, gradients, gradient, _tensor_of), False
    seen: list[Any] = [gradient]
    for i, (parent, g) in enumerate(zip(node.parents, gradients)):
        if parent is None or g is None:
            continue
        _check_fits(node, i, parent, g)
        owned = mine and _is_new(g) and not any(g is other for other in seen)
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
    if node.op.kinked:
        return tuple([_at_kinks(p, g, gradient) for p, g in zip(node.parents, node.vjp(gradient))])
    if node.inputs is None:
        return node.vjp(gradient)
    inputs = tuple([where_it_was(a, parent) for a, parent in zip(node.inputs, node.parents)])
    if node.op.definition is None:
        return node.op(*inputs, **node.options)[1](gradient)
    return _through_definition(node.op, inputs, node.options, gradient)


def _at_kinks(parent: Any, g: Any, like: Tensor) -> Any:
    """g as a function of what is upstream of parent as well: the slope is 0, and it is no error to ask for it."""
    if parent is None or g is None:
        return g
    out = like.wrap(as_values(g))
    node = Node(_KINKED, lambda h: (h, np.zeros(h.shape, h.dtype)), (g,), {}, out)
    node.parents = (*node.parents, parent)
    out._node, out._requires_grad = node, True
    return out


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


_KINKED = Op("kinked", lambda x: (x, lambda g: (g,)), (), {}, "x", variadic=True)
_identity = Op("identity", lambda x: (x, lambda g: (g,)), (), {}, "x", variadic=True)


def _check_fits(node: Node, i: int, parent: Any, g: Any) -> None:
    if g.shape != parent.shape or g.dtype != parent.dtype:
        raise AutogradError(
            f"{node.op.name}: the gradient of argument {i} has shape {g.shape} and dtype {g.dtype}, "
            f"expected {parent.shape} and {parent.dtype}"
        )
    if is_anomaly_check_nan_enabled() and g.dtype is not None and not np.isfinite(np.asarray(g)).all():
        what = "nan" if np.isnan(np.asarray(g)).any() else "inf"
        where = f"called at {node.line}" if node.line else "outside of detect_anomaly(), so that its line is not known"
        raise AnomalyError(f"backward of {node.op.name} gave {what} for argument {i}; its forward was {where}")


def _place(tensor: Any) -> Any:
    if not hasattr(tensor, "requires_grad"):
        raise TypeError(f"backward: tensors: got a {type(tensor).__name__}, expected tensors")
    return tensor if isinstance(tensor, Node) else tensor._node or tensor


def _at_edge(x: Any) -> Any:
    """A tensor as it is; of an edge the node, or the leaf."""
    if not isinstance(x, GradientEdge):
        return x
    return x.node.variable if isinstance(x.node, AccumulateGrad) else x.node


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


def _first_cotangent(i: int, tensor: Any, gradient: Any, create_graph: bool) -> Any:
    if not hasattr(tensor, "requires_grad"):
        raise TypeError(f"backward: tensors[{i}]: got a {type(tensor).__name__}, expected a tensor")
    if not tensor.requires_grad:
        raise AutogradError("backward: got a tensor that does not require grad, expected one made from a tensor that does")
    if gradient is None:
        if math.prod(tensor.shape or ()) != 1:
            raise AutogradError(f"backward: gradient: got None for a tensor of shape {tensor.shape}, expected a gradient "
                                "of that shape (it is implied for a single element only)")
        gradient = np.ones(tensor.shape, tensor.dtype)
    gradient = plain(gradient) if isinstance(gradient, np.generic) else gradient
    try:
        array = as_values(gradient) if hasattr(gradient, "dtype") else np.asarray(gradient, dtype=tensor.dtype)
    except (TypeError, ValueError):
        raise AutogradError(f"backward: gradient: got {gradient!r}, expected numbers of shape {tensor.shape}") from None
    if array.shape != tensor.shape:
        raise AutogradError(f"backward: gradient: got shape {array.shape}, expected {tensor.shape}")
    if array.dtype != tensor.dtype:
        raise AutogradError(f"backward: gradient: got dtype {array.dtype}, expected {tensor.dtype}")
    if not create_graph:
        return array
    return gradient if hasattr(gradient, "requires_grad") else _as_tensor(array)


def _as_tensor(g: Any) -> Any:
    """An array as a tensor; a tensor or None as it is."""
    return g if g is None or hasattr(g, "requires_grad") else _tensor_of(as_values(g))


def _tensor_of(array: Any) -> Tensor:
    from tinygrad_llm.autograd.tensor import Tensor  # which imports this module

    return Tensor.from_array(array)


def _as_list(values: Any, n: int) -> list[Any]:
    """A tensor, or several in any iterable, as a list; None as often as it is meant."""
    if values is None:
        return [None] * n
    several = isinstance(values, Iterable) and not isinstance(values, GradientEdge | str) and not hasattr(values, "dtype")
    return [_at_edge(v) for v in values] if several else [_at_edge(values)]
