"""Functional transforms with torch.func's names: functions in, functions (or derivatives) out; they nest to any order.

Each call of a transform differentiates with respect to leaves of its own, so that transforms inside each other cannot take
one's variables for another's. A result stays part of a graph only where it depends on something outside of the call
that requires grad (an enclosing transform's variable, a parameter); otherwise it is a constant and the graph is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd.backward import gradients_at
from tinygrad_llm.autograd.batching import Batched, has_level, highest, one_by_one
from tinygrad_llm.autograd.errors import AutogradError
from tinygrad_llm.autograd.graph import Node
from tinygrad_llm.autograd.modes import recorded, records_graph
from tinygrad_llm.autograd.tensor import Tensor
from tinygrad_llm.autograd.trees import FormError, flatten, same_leaves, tree_map
from tinygrad_llm.autograd.vectorizing import alike, inside
from tinygrad_llm.ops.numbers import plain
from tinygrad_llm.ops.opaque import as_values

Function = Callable[..., Any]
Argnums = int | tuple[int, ...]


def grad(func: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """The function that computes ∂func/∂args[argnums], in the form of those arguments. func must return one element.

    has_aux: func returns (output, aux), and the result is (gradient, aux). Errors: AutogradError for other outputs.
    """
    def gradient(*args: Any, **kwargs: Any) -> Any:
        found, (_, *aux) = _gradient_and_value("grad", func, argnums, has_aux, args, kwargs)
        return (found, *aux) if has_aux else found

    return gradient


def grad_and_value(func: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """grad's function, returning (gradient, value), or (gradient, (value, aux)) where has_aux. torch.func's order."""
    def both(*args: Any, **kwargs: Any) -> Any:
        found, value = _gradient_and_value("grad_and_value", func, argnums, has_aux, args, kwargs)
        return found, value if has_aux else value[0]

    return both


def value_and_grad(func: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """grad_and_value in JAX's order: (value, gradient), or ((value, aux), gradient)."""
    return lambda *args, **kwargs: grad_and_value(func, argnums, has_aux)(*args, **kwargs)[::-1]


def vjp(func: Function, *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """(output, vjp_fn) or, where has_aux, (output, vjp_fn, aux): vjp_fn(cotangents) = cotangentsᵀ · J, a tuple with one
    entry for each primal. cotangents has the form of the output; vjp_fn may be called many times."""
    call = _Call("vjp", func, tuple(range(len(primals))), primals, {}, has_aux)

    def vjp_fn(cotangents: Any, *more: Any) -> Any:
        if more:
            raise FormError(f"vjp: cotangents: got {1 + len(more)} arguments, expected one in the form of the output: a tuple "
                            "for several outputs")
        given = [_tangent("vjp: cotangents", c, o) for c, o in zip(same_leaves("vjp: cotangents", cotangents, call.out),
                                                                 call.outputs)]
        return call.in_form(call.pull(given))

    return (call.result(call.out), vjp_fn, *[call.result(a) for a in call.aux])


def jvp(
    func: Function, primals: tuple[Any, ...], tangents: tuple[Any, ...], *, strict: bool = False, has_aux: bool = False
) -> tuple[Any, ...]:
    """(output, J · tangents) or (output, J · tangents, aux), both in the form of the output.

    strict refuses outputs that do not depend on the primals.

    By two vjps: u ↦ uᵀJ is linear, so its own vjp at the tangents is J · tangents (Townsend 2017, "A new trick for
    calculating Jacobian vector products").
    """
    if not isinstance(primals, tuple) or not isinstance(tangents, tuple):
        raise FormError(f"jvp: got primals {type(primals).__name__} and tangents {type(tangents).__name__}, expected tuples")
    call = _Call("jvp", func, tuple(range(len(primals))), primals, {}, has_aux)
    given = same_leaves("jvp: tangents", tangents, primals)
    if strict and not all(call.own.intersection(_leaves_of([o])) for o in call.outputs):
        raise AutogradError("jvp: strict: got an output that does not depend on the primals, expected all to depend on them")
    pushed = call.push([_tangent("jvp: tangents", t, x) for t, x in zip(given, call.leaves)])
    return (call.result(call.out), call.rebuild_out(pushed), *[call.result(a) for a in call.aux])


def linearize(func: Function, *primals: Any) -> tuple[Any, Function]:
    """(output, jvp_fn): jvp_fn(*tangents) = J · tangents at the primals; func runs once, however often that is called."""
    call = _Call("linearize", func, tuple(range(len(primals))), primals, {}, False)
    units, pulled = call.linear()

    def jvp_fn(*tangents: Any) -> Any:
        given = same_leaves("linearize: tangents", tangents, primals)
        return call.rebuild_out(call.pushed(units, pulled, [_tangent("linearize: tangents", t, x)
                                                            for t, x in zip(given, call.leaves)]))

    return call.result(call.out), jvp_fn


def jacrev(
    func: Function, argnums: Argnums = 0, *, has_aux: bool = False, chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Function:
    """The function that computes the Jacobian ∂func/∂args[argnums], row by row: one backward for each element of the output.

    For an output of shape O and an argument of shape I its shape is O + I; of trees, a tree (of the output's form) of trees.
    chunk_size and _preallocate_and_copy are torch's, for how many rows at a time: here it is always one.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"jacrev: chunk_size: got {chunk_size}, expected None or at least 1")

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        call = _Call("jacrev", func, argnums, args, kwargs, has_aux)
        return call.jacobian([call.rows(k) for k in range(len(call.outputs))])

    return jacobian


def jacfwd(func: Function, argnums: Argnums = 0, has_aux: bool = False, *, randomness: str = "error") -> Function:
    """jacrev's function, column by column: one J · v for each element of the arguments.

    func runs once, so that random numbers are the same for all columns, whatever torch's argument randomness says.
    """
    if randomness not in ("error", "same", "different"):
        raise AutogradError(f"jacfwd: randomness: got {randomness!r}, expected 'error', 'same' or 'different'")

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        call = _Call("jacfwd", func, argnums, args, kwargs, has_aux)
        return call.jacobian(call.columns())

    return jacobian


def hessian(func: Function, argnums: Argnums = 0) -> Function:
    """The function that computes ∂²func/∂args[argnums]², of shape O + I + I: the Jacobian of the Jacobian."""
    return jacrev(jacrev(func, argnums), argnums)


def _gradient_and_value(who: str, func: Function, argnums: Argnums, has_aux: bool, args: Any, kwargs: Any) -> tuple[Any, Any]:
    call = _Call(who, func, argnums, args, kwargs, has_aux)
    if not isinstance(call.out, Tensor) or call.out.size != 1:
        got = f"shape {call.out.shape}" if isinstance(call.out, Tensor) else type(call.out).__name__
        raise AutogradError(f"{who}: func: got an output of {got}, expected a tensor of one element")
    found = call.in_form(call.pull([np.ones(call.out.shape, call.out.dtype)], once=True))
    return found, (call.result(call.out), *[call.result(a) for a in call.aux])


class _Call:
    """One call of a function with leaves of our own in place of args[argnums], recorded."""

    def __init__(
        self, who: str, func: Function, argnums: Argnums, args: tuple[Any, ...], kwargs: dict[str, Any], has_aux: bool
    ) -> None:
        self.who, outer = who, records_graph()
        places = _places(who, argnums, len(args))
        chosen = tuple(args[i] for i in places)
        given, rebuild = flatten(chosen)
        with recorded():
            self.leaves = [_fresh(who, x, outer) for x in given]
            fresh = dict(zip(places, rebuild(self.leaves)))
            made = func(*[fresh.get(i, a) for i, a in enumerate(args)], **kwargs)
        self.out, self.aux = _split_aux(who, made, has_aux)
        self.outputs, self.rebuild_out = flatten(self.out)
        self.in_form = lambda found: rebuild(found) if isinstance(argnums, tuple) else rebuild(found)[0]
        _check_outputs(who, self.outputs)
        self.own = {id(x) for x in self.leaves}
        self.live = outer and _reaches_beyond(self.outputs, self.own)

    def pull(self, cotangents: Sequence[Any], once: bool = False) -> list[Tensor]:
        """cotangentsᵀ · J for every leaf, zeros where nothing depends on it."""
        create = records_graph() and (self.live or _require_grad(cotangents))
        return [self.result(g) for g in self._pulled(self.outputs, cotangents, self.leaves, create, not once)]

    def push(self, tangents: Sequence[Any]) -> list[Tensor]:
        """J · tangents for every output."""
        units, pulled = self.linear()
        return self.pushed(units, pulled, tangents)

    def rows(self, k: int) -> list[Tensor]:
        """The Jacobian of output k with respect to every leaf."""
        out = self.outputs[k]
        found = [self.pull([e if i == k else np.zeros(o.shape, o.dtype) for i, o in enumerate(self.outputs)])
                 for e in _basis(out)]
        return [_stacked([row[j] for row in found], 0, out.shape + x.shape, x) for j, x in enumerate(self.leaves)]

    def columns(self) -> list[list[Tensor]]:
        """The Jacobians of every output with respect to every leaf."""
        units, pulled = self.linear()
        found = []
        for j, x in enumerate(self.leaves):
            given = [[e if i == j else None for i in range(len(self.leaves))] for e in _basis(x)]
            found.append([self.pushed(units, pulled, tangents) for tangents in given])
        return [[_stacked([column[k] for column in found[j]], -1, o.shape + x.shape, o) for j, x in enumerate(self.leaves)]
                for k, o in enumerate(self.outputs)]

    def jacobian(self, blocks: list[list[Tensor]]) -> Any:
        """blocks[output][leaf] in the form of the output, of the arguments within, and with the aux if there is one."""
        found = self.rebuild_out([self.in_form(row) for row in blocks])
        return (found, *[self.result(a) for a in self.aux]) if self.aux else found

    def result(self, tree: Any) -> Any:
        """A tree as the caller gets it: tensors that depend on nothing outside of this call are constants."""
        return tree_map(lambda t: t.detach() if isinstance(t, Tensor) and not self._stays(t) else t, tree)

    def _stays(self, t: Tensor) -> bool:
        return t._requires_grad and records_graph() and _reaches_beyond([t], self.own)

    def linear(self) -> tuple[list[Tensor], list[Any]]:
        """(u, uᵀJ): the second as a function of the first that can be differentiated."""
        units = [_own_leaf(np.ones_like(o._array)) for o in self.outputs]
        self.own |= {id(u) for u in units}
        with recorded():
            return units, self._pulled(self.outputs, units, self.leaves, True, True)

    def pushed(self, units: list[Tensor], pulled: list[Any], tangents: Sequence[Any]) -> list[Tensor]:
        """J · tangents for every output, of what linear() returned."""
        create = records_graph() and (self.live or _require_grad(tangents))
        pairs = [(g, t) for g, t in zip(pulled, tangents) if t is not None]
        return [self.result(g) for g in self._pulled([g for g, _ in pairs], [t for _, t in pairs], units, create, True)]

    def _pulled(
        self, outputs: Sequence[Any], cotangents: Sequence[Any], leaves: Sequence[Tensor], create: bool, retain: bool
    ) -> list[Tensor]:
        if not create and _are_apart(outputs, cotangents):
            found = one_by_one(lambda *cs: self._values(outputs, cs, leaves), [as_values(c) for c in cotangents], {})
            return [Tensor.wrap(g) for g in found]
        pairs = [(o, alike(c, o._array)) for o, c in zip(outputs, cotangents) if o._requires_grad]
        places = [x._node or x for x in leaves]
        found = gradients_at([o for o, _ in pairs], [c for _, c in pairs], places, retain or create, create) if pairs else []
        found = found or [None] * len(leaves)
        return [g if isinstance(g, Tensor) else Tensor.wrap(np.zeros(x.shape, x.dtype) if g is None else as_values(g))
                for g, x in zip(found, leaves)]


    def _values(self, outputs: Sequence[Any], cotangents: Sequence[Any], leaves: Sequence[Tensor]) -> list[Any]:
        return [g._array for g in self._pulled(outputs, cotangents, leaves, False, True)]


def _are_apart(outputs: Sequence[Any], cotangents: Sequence[Any]) -> bool:
    """Whether cotangents are batched, in a vmap that began after the outputs were made: each example is a row by itself."""
    given = [a for a in map(as_values, cotangents) if isinstance(a, Batched)]
    return bool(given) and not any(has_level(o._array, highest(given)) for o in outputs)


def _places(who: str, argnums: Argnums, n: int) -> list[int]:
    wanted = [plain(i) for i in (argnums if isinstance(argnums, tuple) else (argnums,))]
    if not wanted or any(not isinstance(i, int) or not -n <= i < n for i in wanted):
        raise FormError(f"{who}: argnums: got {argnums}, expected positions among {n} positional arguments")
    places = [i % n for i in wanted]
    if len(set(places)) < len(places):
        raise FormError(f"{who}: argnums: got {argnums}, expected each position once")
    return places


def _fresh(who: str, x: Any, outer: bool) -> Tensor:
    """A leaf of our own with x's values or, where something outside wants x's gradient, a copy that passes it on."""
    if not isinstance(x, Tensor) or x.dtype.kind != "f":
        got = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise FormError(f"{who}: argnums: got an argument of {got}, expected floating tensors (in tuples, lists or dicts)")
    x = inside(x)
    if outer and x._requires_grad:
        return x.clone()
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def _own_leaf(array: np.ndarray) -> Tensor:
    leaf = Tensor.wrap(array)
    leaf._requires_grad = True
    return leaf


def _split_aux(who: str, made: Any, has_aux: bool) -> tuple[Any, list[Any]]:
    if not has_aux:
        return made, []
    if not isinstance(made, tuple) or len(made) != 2:
        raise FormError(f"{who}: has_aux: got a function that returns {type(made).__name__}, expected (output, aux)")
    return made[0], [made[1]]


def _check_outputs(who: str, outputs: Iterable[Any]) -> None:
    for out in outputs:
        if not isinstance(out, Tensor):
            raise FormError(f"{who}: func: got an output of type {type(out).__name__}, expected tensors")


def _tangent(what: str, given: Any, like: Tensor) -> Any:
    array = given if isinstance(given, Tensor) else np.asarray(given, like.dtype)
    if array.shape != like.shape or array.dtype != like.dtype:
        raise FormError(f"{what}: got shape {array.shape} and dtype {array.dtype}, expected {like.shape} and {like.dtype}")
    return array


def _require_grad(values: Iterable[Any]) -> bool:
    return any(isinstance(v, Tensor) and v._requires_grad for v in values)


def _reaches_beyond(tensors: Iterable[Tensor], own: set[int]) -> bool:
    """Whether a leaf that is not our own lies upstream."""
    return any(leaf not in own for leaf in _leaves_of(tensors))


def _leaves_of(tensors: Iterable[Tensor]) -> Iterator[int]:
    """The ids of the leaves upstream."""
    stack = [t._node or t for t in tensors if t._requires_grad]
    seen = {id(p) for p in stack}
    while stack:
        place = stack.pop()
        if not isinstance(place, Node):
            yield id(place)
            continue
        new = [p for p in place.parents if p is not None and id(p) not in seen]
        seen.update(id(p) for p in new)
        stack += new


def _basis(x: Tensor) -> list[np.ndarray]:
    """The unit vectors of x's shape."""
    return list(np.eye(x.size, dtype=x.dtype).reshape((x.size, *x.shape)))


def _stacked(parts: list[Tensor], axis: int, shape: tuple[int, ...], like: Tensor) -> Any:
    if not parts:
        return Tensor.wrap(np.zeros(shape, like.dtype))
    return np.reshape(np.stack(parts, axis=axis), shape)
