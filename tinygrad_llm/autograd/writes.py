"""Writing into tensors: `x += y`, `x.mul_(y)`, `x[i] = v`, with the gradients that the new values have.

A write computes the new values as any op would, stores them in the tensor's memory, and lets the tensor take over the node
of the result. Nodes that still need the old values see that the version was bumped and refuse. A write through a view
gives its base a new node, `put`, and every view of that base, the written one too, is made again of the base: what torch
calls CopySlices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd.batching import at
from tinygrad_llm.autograd.errors import InferenceError, WriteError
from tinygrad_llm.autograd.hooks import hooks_of
from tinygrad_llm.autograd.indices import unwrap_index
from tinygrad_llm.autograd.modes import check_write, is_inference_mode_enabled, no_grad, records_graph
from tinygrad_llm.autograd.tensor import Tensor, apply, tensors_of
from tinygrad_llm.autograd.views import View, family
from tinygrad_llm.ops import DtypeError, IndexRangeError, ShapeError, Vjp, op
from tinygrad_llm.ops.errors import of_its_own
from tinygrad_llm.ops.numbers import held
from tinygrad_llm.ops.opaque import as_values, densely
from tinygrad_llm.ops.shape import check_unambiguous


@op(x="*B", torch="x.clone()")
def clone(x: Any) -> tuple[Any, Vjp]:
    """x in memory of its own.   dx = g"""
    return densely(as_values(x)), lambda g: (g,)


@op(x="*A e.g. 4 5 3", value="*C e.g. 3 2", options={"places": (np.array([[0, 7], [9, 30], [31, 59]]),)},
    torch="torch.put(x, torch.as_tensor(places), value)")
def put(x: Any, value: Any, places: np.ndarray) -> tuple[Any, Vjp]:
    """x with value at places, which count through x in row-major order; of a place named twice the last value stays.

    dx = g, 0 at places      dvalue = g at places, 0 where a later value took the place
    """
    out = as_values(x).astype(np.result_type(x.dtype, value.dtype), order="C")
    out.reshape(-1)[places] = value
    last = np.full(x.size, -1)
    last[places] = np.arange(places.size).reshape(places.shape)
    written, lost = (last >= 0).reshape(x.shape), last[places] != np.arange(places.size).reshape(places.shape)

    def vjp(g: Any) -> tuple[Any, Any]:
        taken = g.reshape((-1,))[places]
        return np.where(written, 0, g), np.where(lost, 0, taken) if lost.any() else taken

    return out, vjp


def inplace(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`add` → `add_`: the function's result, written into its first argument.

    Errors: ShapeError and DtypeError where the result does not fit the tensor; WriteError where a gradient would be lost.
    """
    name = f"{function.__name__.strip('_')}_"

    @functools.wraps(function, assigned=())
    def write(self: Tensor, *args: Any, **options: Any) -> Tensor:
        named = {key: value for key, value in options.items() if isinstance(value, Tensor)}  # operands as well

        def compute(x: Tensor, *operands: Any) -> Tensor:
            return function(x, *operands[: len(args)], **{**options, **dict(zip(named, operands[len(args) :]))})

        return rewrite(name, self, compute, *args, *named.values())

    write.__name__ = write.__qualname__ = name
    write.__doc__ = f"{function.__name__}, written into the tensor itself."
    return write


def rewrite(name: str, self: Tensor, compute: Callable[..., Tensor], *operands: Any) -> Tensor:
    """self ← compute(self, *operands), with its gradient where one will be wanted; returns self."""
    _check_memory(name, self)
    if not _is_recorded(self, operands):
        with no_grad():
            return _store(self, _fitting(name, self, compute(self, *operands)))
    _check_recordable(name, self)
    before = _as_it_was(self)
    new = _fitting(name, self, compute(before, *[before if o is self else o for o in operands]))
    _store(self, new)
    _take_over(self, new)
    return self


def _is_recorded(self: Tensor, operands: tuple[Any, ...]) -> bool:
    base = self._base
    wanted = [self, *operands] if base is None else [self, base, *operands]
    return records_graph() and any(isinstance(t, Tensor) and t._requires_grad for t in wanted)


def _check_memory(name: str, self: Tensor) -> None:
    check_write(name, self._array)
    if self.is_inference() and not is_inference_mode_enabled():
        raise InferenceError(f"{name}: got an inference tensor outside of inference_mode(), expected an ordinary one; write to "
                             "a clone()")
    if not self._array.flags.writeable:
        raise WriteError(f"{name}: got a tensor that repeats memory (expand, broadcast_to) or may only be read, "
                         "expected one with memory of its own; write to a clone()")


def _check_recordable(name: str, self: Tensor) -> None:
    """WriteError where the gradient would be lost."""
    view = self._alias if isinstance(self._alias, View) else None
    owners = [(self, "a leaf"), *([(view.base, "a view of a leaf"), (view.leaf, "a view of a leaf")] if view else [])]
    what = next((what for owner, what in owners if owner is not None and owner._requires_grad and owner._node is None), None)
    if what is not None:
        raise WriteError(f"{name}: got {what} that requires grad, expected no_grad() or a detached tensor, or a clone()")
    if self.dtype.kind != "f":
        raise WriteError(f"{name}: got a value that requires grad for a tensor of dtype {self.dtype}, where it would be lost, "
                         "expected a floating dtype or a detached value")
    if view and not view.recorded:
        raise WriteError(f"{name}: got a view made under no_grad(), expected one that its base's gradient can follow; "
                         "write under no_grad() too, or make the view outside of it")
    if view and any(op is None for op, _ in view.steps()):
        raise WriteError(f"{name}: got a view of one of several arguments of an op, expected a clone()")


def _as_it_was(tensor: Tensor) -> Tensor:
    """The tensor before the write, over an array that stays. A view is made of its base anew: its hooks are for what it was."""
    view = tensor._alias if isinstance(tensor._alias, View) else None
    made_of = _shown(tensor) if view is None else view.again(_shown(view.base))
    before = Tensor.from_array(tensor._array.copy())
    before._node, before._requires_grad = made_of._node, made_of._requires_grad
    return before


def _shown(tensor: Tensor) -> Tensor:
    """Another tensor with the same memory and the same node."""
    other = Tensor.from_array(tensor._array)
    other._node, other._requires_grad = tensor._node, tensor._requires_grad
    return other


def _fitting(name: str, self: Tensor, new: Tensor) -> Tensor:
    if new.shape != self.shape:
        raise ShapeError(f"{name}: got a result of shape {new.shape}, expected {self.shape}, that of the tensor written to")
    if not np.can_cast(new.dtype, self.dtype, "same_kind"):
        raise DtypeError(f"{name}: got a result of dtype {new.dtype}, expected one that {self.dtype} can hold, "
                         "that of the tensor written to")
    return new if new.dtype == self.dtype else new.to(self.dtype)


def _store(self: Tensor, new: Tensor) -> Tensor:
    np.copyto(self._array, new._array)
    self._counter.count += 1
    return self


def _take_over(self: Tensor, new: Tensor) -> None:
    """Give the written tensor, its base and all views of that base the nodes of the new values."""
    view = self._alias if isinstance(self._alias, View) else None
    if view is None:
        _give_node(self, new)
    else:
        base = view.base
        _give_node(base, apply(put, _shown(base), new, places=view.places()))
    follow(view.base if view else self)


def follow(owner: Tensor) -> None:
    """Give all views of a tensor the nodes of its new values."""
    for other in list(family(owner)) if owner._alias else ():
        view = other._alias  # set_data() may have taken it away
        if isinstance(view, View) and view.base is owner and view.recorded and all(op is not None for op, _ in view.steps()):
            _give_node(other, view.again(owner))


def _give_node(tensor: Tensor, new: Tensor) -> None:
    """The node of new, and with it the wish to keep the gradient."""
    old, node = tensor._node, new._node
    tensor._node, tensor._requires_grad = node, new._requires_grad
    go_on_keeping(tensor, old)


def go_on_keeping(tensor: Tensor, old: Any) -> None:
    """Let go of the wish to keep the gradient at the old node, for the new one."""
    node = tensor._node
    if old is not None and old._hooks is not None and old._hooks.keeper is not None and node is not None:
        old._hooks.keeper = None
        tensor.retain_grad()


# What is written without being computed -------------------------------------------------------------------------------


def _set(name: str, self: Tensor, places: np.ndarray, value: Any, index: Any = ()) -> Tensor:
    """Write value, broadcast and cast, at the flat places that an index named."""
    tensor: Any = value if isinstance(value, Tensor) else Tensor.from_array(np.asarray(_held(name, self, value), self.dtype))
    if tensor.dtype != self.dtype and self.dtype.kind == "f":
        tensor = tensor.to(self.dtype)
    if (kept := _trimmed(name, tensor.shape, places.shape)) != tensor.shape:
        tensor = np.reshape(tensor, kept)
    if tensor.shape != places.shape:
        tensor = np.broadcast_to(tensor, places.shape)
    return rewrite(name, self, lambda x, v: apply(put, x, v, places=places, watched=tensors_of(index)), tensor)


def _held(name: str, self: Tensor, value: Any) -> np.ndarray:
    """value as an array. Errors: ArgumentError for a number that the tensor's dtype cannot hold: NumPy would cut it off;
    DtypeError for what is no number, or none that is real."""
    number = held(name, "value", value, self.dtype) if isinstance(value, int | float) and self.dtype.kind in "iuf" else value
    array = as_values(number)
    if array.dtype.kind not in ("biufc" if self.dtype.kind == "c" else "biuf"):
        expected = of_its_own(f"numbers that {self.dtype} can hold", array.dtype)
        raise DtypeError(f"{name}: value: got {value!r:.80}, expected {expected}")
    return array


def setitem(self: Tensor, index: Any, value: Any) -> None:
    """self[index] = value, broadcast and cast, with the gradients of both."""
    given, index = index, unwrap_index(index)
    _check_memory("setitem", self)
    if not _is_recorded(self, (value,)):
        _assign(self, index, value)
        self._counter.count += 1
        return
    _set("setitem", self, _index("setitem", np.arange(self.size).reshape(self.shape), index), value, given)


def _assign(self: Tensor, index: Any, value: Any) -> None:
    array = (as_values(value) if isinstance(value, Tensor) else _held("setitem", self, value)).astype(self.dtype, copy=False)
    _trimmed("setitem", array.shape, _index("setitem", self._array, index).shape)
    self._array[index] = array


def _trimmed(name: str, shape: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading axes of size 1 that the target lacks. Errors: ShapeError where it does not broadcast."""
    extra = max(len(shape) - len(target), 0)
    fits = zip(shape[::-1], target[::-1])
    if any(n != 1 for n in shape[:extra]) or any(n not in (1, m) for n, m in fits):
        raise ShapeError(f"{name}: got a value of shape {shape}, expected one that broadcasts to {target}")
    return shape[extra:]


def _index(name: str, array: np.ndarray, index: Any) -> Any:
    check_unambiguous(array, index, name)
    try:
        return as_values(at(array, index))
    except IndexError as error:
        raise IndexRangeError(f"{name}: index: got {index!r} for shape {array.shape}, expected one inside: {error}") from None


def copy_(self: Tensor, other: Any, non_blocking: bool = False) -> Tensor:
    """Write the values of other, broadcast and cast within their kind (floats to floats), into this tensor."""
    dtype = as_values(other).dtype
    if not np.can_cast(dtype, self.dtype, "same_kind"):
        raise DtypeError(f"copy_: other: got dtype {dtype}, expected one that {self.dtype} can hold")
    return _fill("copy_", self, other)


def fill_(self: Tensor, value: Any) -> Tensor:
    """Write one value everywhere. Errors: ShapeError where it has axes."""
    if np.ndim(value):
        raise ShapeError(f"fill_: value: got shape {np.shape(value)}, expected a number or a tensor without axes")
    return _fill("fill_", self, value)


def zero_(self: Tensor) -> Tensor:
    """Write zeros."""
    return _fill("zero_", self, 0)


def _fill(name: str, self: Tensor, value: Any) -> Tensor:
    _check_memory(name, self)
    if _is_recorded(self, (value,)):
        return _set(name, self, np.arange(self.size).reshape(self.shape), value)
    array = _held(name, self, value)
    np.copyto(self._array, array.reshape(_trimmed(name, array.shape, self.shape)), casting="unsafe")
    self._counter.count += 1
    return self


def detach_(self: Tensor) -> Tensor:
    """Leave the graph. Errors: WriteError for a view, whose base would stay in it."""
    if self._base is not None:
        raise WriteError("detach_: got a view, expected a tensor with memory of its own; use detach()")
    if self._node is not None and self._node._hooks is not None:
        hooks_of(self).calls = self._node._hooks.calls  # they stay the tensor's
    self._node, self._requires_grad = None, False
    return self


def _clone(self: Tensor) -> Tensor:
    """The values in memory of their own, with their gradient."""
    return apply(clone, self)


for _name, _function in {"__setitem__": setitem, "copy_": copy_, "fill_": fill_, "zero_": zero_, "detach_": detach_,
                         "clone": _clone}.items():
    setattr(Tensor, _name, _function)
