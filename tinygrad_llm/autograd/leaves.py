"""What is given to a tensor from outside: the gradient that backward adds up for it, one that is assigned, other memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.autograd.errors import AutogradError
from tinygrad_llm.autograd.modes import active_recorder, check_write
from tinygrad_llm.autograd.views import View
from tinygrad_llm.ops.opaque import as_values

if TYPE_CHECKING:
    from tinygrad_llm.autograd.tensor import Tensor

_ADDING = threading.Lock()


def accumulate(leaf: Tensor, gradient: Any, owned: bool, create_graph: bool) -> None:
    """leaf.grad + gradient: in place, so that who holds the tensor sees it, unless a graph is to be made or was recorded.

    A gradient that something else may hold, or that lies in memory in another way than the leaf, is copied.
    """
    with _ADDING:
        before = leaf._grad
        if before is None:
            leaf._grad = _first(leaf, gradient, owned, create_graph)
        elif before.shape != gradient.shape or before.dtype != gradient.dtype:  # data of another shape were given meanwhile
            raise AutogradError(f"backward: got a gradient of shape {gradient.shape} and dtype {gradient.dtype}, expected "
                                f"{before.shape} and {before.dtype}, those of .grad; set it to None")
        elif create_graph:
            leaf._grad = before + gradient
        elif active_recorder() is not None or not before._array.flags.writeable:
            before._array = before._array + gradient
        else:
            np.add(before._array, gradient, out=before._array)
            before._counter.count += 1


def _first(leaf: Tensor, gradient: Any, owned: bool, create_graph: bool) -> Tensor:
    if create_graph:
        return gradient + 0
    own = leaf._array
    if isinstance(gradient, np.ndarray) and gradient.strides != own.strides and not own.flags.c_contiguous:
        laid_out = np.empty_like(own)
        np.copyto(laid_out, gradient)
        return leaf.wrap(laid_out)
    return leaf.wrap(as_values(gradient) if owned else copied(gradient))


def copied(g: Any) -> Any:
    """A gradient in memory of its own."""
    return np.copy(g) if hasattr(g, "__record_call__") else np.array(g)


def check_gradient(tensor: Tensor, gradient: Any) -> Any:
    """A gradient that is to be a tensor's `.grad`. Errors: TypeError, AutogradError where it does not fit."""
    if gradient is None:
        return None
    if not hasattr(gradient, "requires_grad"):
        raise TypeError(f"grad: got a {type(gradient).__name__}, expected a Tensor or None")
    if gradient is tensor:
        raise AutogradError("grad: got the tensor itself, expected another tensor")
    if gradient.shape != tensor.shape or gradient.dtype != tensor.dtype:
        raise AutogradError(f"grad: got a gradient of shape {gradient.shape} and dtype {gradient.dtype}, expected that of the "
                            f"tensor, {tensor.shape} and {tensor.dtype}")
    return gradient


def set_data(tensor: Tensor, value: Any) -> None:
    """tensor.data = value. A graph that needs the old values refuses, and views of the old memory are no views any more."""
    if not hasattr(value, "requires_grad"):
        raise TypeError(f"data: got a {type(value).__name__}, expected a Tensor")
    if value._array is tensor._array:  # of `x.data -= y`, which has written already
        return
    if tensor._requires_grad and value.dtype.kind != "f":
        raise AutogradError(f"data: got dtype {value.dtype} for a tensor that requires grad, expected a floating dtype")
    if tensor._node is not None and (value.shape, value.dtype) != (tensor.shape, tensor.dtype):
        raise AutogradError(f"data: got shape {value.shape} and dtype {value.dtype} for the result of an op, expected "
                            f"{tensor.shape} and {tensor.dtype}")
    check_write("data", tensor._array)
    for view in () if isinstance(tensor._alias, View) else tensor._alias or ():
        view._alias = None
    tensor._counter.count += 1
    changes.count += 1
    tensor._array, tensor._counter, tensor._alias = value._array, value._counter, None
