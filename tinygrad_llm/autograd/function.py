"""Function: a differentiable function whose forward and backward are written by hand, in Python, as torch.autograd.Function."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd.errors import AutogradError, WriteError
from tinygrad_llm.autograd.graph import Node, where_it_was, written
from tinygrad_llm.autograd.modes import no_grad, records_graph
from tinygrad_llm.autograd.several import node_of_call
from tinygrad_llm.autograd.tensor import Tensor
from tinygrad_llm.autograd.writes import follow, go_on_keeping
from tinygrad_llm.ops.opaque import as_values
from tinygrad_llm.ops.sums import sum_to


class FunctionCtx:
    """What forward leaves for backward: `ctx.save_for_backward(tensors)`, and any attributes of one's own.

    needs_input_grad    for each argument of apply, whether its gradient is asked for
    """

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self._saved: tuple[Any, ...] = ()
        self._versions: list[tuple[Any, int]] = []
        self._places: list[Any] = []  # the nodes that made the saved tensors, which detach_() may take them away from
        self._outputs: dict[int, int] = {}  # which of the saved tensors are outputs, and which ones
        self._dirty: tuple[Tensor, ...] = ()
        self._constant: tuple[Tensor, ...] = ()
        self._zeros = True
        self._nodes: dict[int, weakref.ref[Node]] = {}

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep arguments or outputs for backward, which refuses if they were written to since. None may be among them."""
        for i, t in enumerate(tensors):
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(f"save_for_backward: tensors[{i}]: got a {type(t).__name__}, expected a Tensor or None; "
                                "anything else may be an attribute of ctx")
        self._saved = tensors

    save_for_forward = save_for_backward

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What save_for_backward was given. Errors: AutogradError where one was written to since, or backward has let it go."""
        if self._saved is None:
            raise AutogradError("saved_tensors: backward() has let go of them; call the first backward(retain_graph=True)")
        for i, (version, seen) in enumerate(self._versions):
            if version.count != seen:
                raise written(f"saved_tensors[{i}]", version, seen)
        return tuple([self._output(i, t) if i in self._outputs else where_it_was(t, place)
                      for i, (t, place) in enumerate(zip(self._saved, self._places))])

    def mark_dirty(self, *args: Tensor) -> None:
        """Arguments that forward has written to; it must return each of them."""
        self._dirty = args

    def mark_non_differentiable(self, *args: Tensor) -> None:
        """Outputs that take no gradient."""
        self._constant = args

    def set_materialize_grads(self, value: bool) -> None:
        """False: backward gets None, not zeros, for an output that nothing depends on."""
        self._zeros = bool(value)

    def _keep(self, outputs: list[Any]) -> None:
        """After forward: outputs are kept by their memory, for a graph that held its output would never be freed."""
        place = {id(out): k for k, out in enumerate(outputs)}
        self._outputs = {i: place[id(t)] for i, t in enumerate(self._saved) if t is not None and id(t) in place}
        self._versions = [(t._counter, t._counter.count) for t in self._saved if t is not None]
        self._places = [None if t is None or i in self._outputs else t._node for i, t in enumerate(self._saved)]
        self._saved = tuple([_alias(t) if i in self._outputs else t for i, t in enumerate(self._saved)])
        self._nodes = {k: weakref.ref(out._node) for k, out in enumerate(outputs) if isinstance(out, Tensor) and out._node}

    def _output(self, i: int, kept: Tensor) -> Tensor:
        again, ref = _alias(kept), self._nodes.get(self._outputs[i])
        if ref is not None and (node := ref()) is not None:
            again._node, again._requires_grad = node, True
        return again

    def _let_go(self) -> None:
        self._saved = None  # type: ignore[assignment]


class Function:
    """Subclass it with two static methods, and call `apply`:

        class Square(Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, g):
                x, = ctx.saved_tensors
                return 2 * x * g

        y = Square.apply(x)

    forward runs without recording and returns a tensor or a tuple; backward gets a gradient for each output and returns one
    for each argument of apply, None for what is no tensor. backward is recorded under create_graph=True, so that what is
    written in tensors can be differentiated again. forward(x) with `setup_context(ctx, inputs, output)` is taken too.
    """

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """forward(ctx, *args), or forward(*args) beside setup_context."""
        raise NotImplementedError("Function: got no forward, expected a subclass with a static method forward(ctx, ...)")

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        """Save for backward what forward(*inputs), which has no ctx, was given and gave."""
        raise NotImplementedError("Function: got no setup_context")

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Any) -> Any:
        """The gradient of each argument, for the gradients of the outputs."""
        raise NotImplementedError("Function: got no backward, expected a subclass with a static method backward(ctx, ...)")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """forward's result, with backward as its gradient. Errors: TypeError, AutogradError, WriteError, each with a name."""
        ctx = FunctionCtx(tuple([isinstance(a, Tensor) and a._requires_grad for a in args]))
        with no_grad():
            made = cls._forward(ctx, args)
        outputs = list(made) if isinstance(made, tuple) else [made]
        for t in ctx._dirty:
            t._counter.count += 1
        if not records_graph() or not any(ctx.needs_input_grad):
            return made
        _check_dirty(cls.__name__, ctx, args, outputs)
        own = [Tensor.wrap(out._array.copy()) if _is_argument(out, args, ctx) else out for out in outputs]
        floats = [out for out in own if isinstance(out, Tensor) and out.dtype.kind == "f" and not _is_in(out, ctx._constant)]
        recorded = list({id(out): out for out in floats}.values())
        parents = [a._node or a if needed else None for a, needed in zip(args, ctx.needs_input_grad)]
        before = [t._node for t in ctx._dirty]
        if recorded:
            _record(cls, ctx, args, parents, own, recorded)
        for t, node in zip(ctx._dirty, before):
            go_on_keeping(t, node)
            follow(t)
        return tuple(own) if isinstance(made, tuple) else own[0]

    @classmethod
    def _forward(cls, ctx: FunctionCtx, args: tuple[Any, ...]) -> Any:
        if cls.setup_context is Function.setup_context:
            return cls.forward(ctx, *args)
        made = cls.forward(*args)
        cls.setup_context(ctx, args, made)
        return made


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a backward that is not written in tensors' functions: to differentiate its result is refused, not wrong."""

    @functools.wraps(backward)
    def call(ctx: Any, *gradients: Any) -> Any:
        with no_grad():
            found = backward(ctx, *gradients)
        used = [g._node or g for g in (*gradients, *ctx.saved_tensors) if isinstance(g, Tensor) and g._requires_grad]
        if not used or not records_graph():
            return found
        return tuple([_final(g, used) for g in found]) if isinstance(found, tuple) else _final(found, used)

    return call


def _final(gradient: Any, used: list[Any]) -> Any:
    """The gradient as a result of what it was made of, of which no gradient is to be had."""
    if not isinstance(gradient, Tensor):
        return gradient
    out = _alias(gradient)

    def refuse(_: Any) -> Any:
        raise AutogradError("once_differentiable: got a gradient to differentiate again, expected a backward without this mark")

    node_of_call("once_differentiable", used, refuse, [out])
    return out


def _record(
    cls: type[Function], ctx: FunctionCtx, args: tuple[Any, ...], parents: list[Any], outputs: list[Any], recorded: list[Tensor]
) -> None:
    """Give the recorded outputs their nodes."""
    shapes = [(a.shape, a.dtype) if isinstance(a, Tensor) else None for a in args]
    like = [(out.shape, out.dtype) if isinstance(out, Tensor) else None for out in outputs]
    places = {id(out): k for k, out in enumerate(outputs)}  # of one that is returned twice the last, as in torch
    numbers = [places[id(out)] for out in recorded]

    def vjp(cotangents: list[Any]) -> list[Any]:
        arrived = dict(zip(numbers, cotangents))
        found = cls.backward(ctx, *[_as_given(arrived.get(k), one if ctx._zeros else None) for k, one in enumerate(like)])
        return _gradients(cls.__name__, found, shapes, parents, plain=not records_graph())

    node = node_of_call(cls.__name__, parents, vjp, recorded)
    if ctx._saved:
        node.released = ctx._let_go
    else:
        node.kept = False
    ctx._keep(outputs)


def _as_given(cotangent: Any, like: tuple[Any, Any] | None) -> Any:
    """A cotangent as backward gets it: a tensor; zeros like the output where there is none, if any are wanted."""
    if cotangent is None:
        return None if like is None else Tensor.wrap(np.zeros(*like))
    return cotangent if isinstance(cotangent, Tensor) else Tensor.wrap(as_values(cotangent))


def _gradients(name: str, found: Any, shapes: list[Any], parents: list[Any], plain: bool) -> list[Any]:
    """What backward returned, as the walk takes it: broadcast gradients summed, dtypes those of the arguments."""
    several = list(found) if isinstance(found, tuple | list) else [found]
    if len(several) < len(shapes) or any(g is not None for g in several[len(shapes) :]):
        raise AutogradError(f"{name}.backward: got {len(several)} gradients, expected {len(shapes)}, one for each argument")
    out: list[Any] = []
    for i, (g, like, parent) in enumerate(zip(several, shapes, parents)):
        if g is not None and like is None:
            raise AutogradError(f"{name}.backward: gradient {i}: got a {type(g).__name__}, expected None: the argument is no "
                                "tensor")
        if g is None or parent is None:
            out.append(None)
            continue
        if not isinstance(g, Tensor):
            raise TypeError(f"{name}.backward: gradient {i}: got a {type(g).__name__}, expected a Tensor or None")
        try:
            fits = np.broadcast_shapes(g.shape, like[0]) == g.shape
        except ValueError:
            fits = False
        if not fits:
            raise AutogradError(f"{name}.backward: gradient {i}: got shape {g.shape}, expected {like[0]}, that of the argument")
        out.append(sum_to(g._array if plain else g, *like))
    return out


def _check_dirty(name: str, ctx: FunctionCtx, args: tuple[Any, ...], outputs: list[Any]) -> None:
    for t in ctx._dirty:
        if not _is_in(t, args) or not _is_in(t, outputs):
            raise AutogradError(f"{name}: mark_dirty: got a tensor that is no argument or no output, expected both")
        if t._base is not None or (t.is_leaf and t._requires_grad):
            raise WriteError(f"{name}: mark_dirty: got a {'leaf that requires grad' if t._base is None else 'view'}, "
                             "expected a tensor with memory of its own that is no leaf; write to a clone()")


def _is_argument(out: Any, args: tuple[Any, ...], ctx: FunctionCtx) -> bool:
    """Whether an output is an argument that was not written to: it keeps its place in the graph, and a copy is given."""
    return isinstance(out, Tensor) and _is_in(out, args) and not _is_in(out, ctx._dirty)


def _is_in(value: Any, values: Any) -> bool:
    return any(value is other for other in values)


def _alias(tensor: Tensor) -> Tensor:
    """Another tensor of the same memory, in no graph."""
    return tensor.detach()
