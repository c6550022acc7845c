"""Tensor: an ndarray that remembers how it was computed."""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.backward import backward
from tinygrad_llm.autograd.graph import AnomalyError, AutogradError, Node, Version, WriteError, root
from tinygrad_llm.autograd.hooks import Hooks, RemovableHandle, hooks_of
from tinygrad_llm.autograd.modes import (
    active_recorder,
    calling_line,
    check_read,
    check_write,
    is_anomaly_check_nan_enabled,
    is_grad_enabled,
)
from tinygrad_llm.autograd.views import View, family
from tinygrad_llm.ops import IndexRangeError, Op, ShapeError
from tinygrad_llm.ops.opaque import as_values


class Size(int):
    """How many elements a tensor has: NumPy's `size`. Called, it is torch's: x.size() the shape, x.size(dim) of one axis."""

    _shape: tuple[int, ...]

    def __call__(self, dim: int | None = None) -> Any:
        if dim is None:
            return self._shape
        if not -len(self._shape) <= dim < len(self._shape):
            raise IndexRangeError(f"size: dim: got {dim}, expected an axis of shape {self._shape}")
        return self._shape[dim]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """As an int, which is weak: a subclass of int would make float64 of float32 arrays."""
        return getattr(ufunc, method)(*[int(a) if isinstance(a, Size) else a for a in inputs], **kwargs)


class Tensor:
    """An array with torch's interface. Make one with `tinygrad_llm.tensor`; ops make the others.

    `requires_grad` asks backward for `.grad`; `grad_fn` is the Node that made it, None for a leaf. Operators and methods
    (`x + y`, `x.sum(dim)`) are the public functions of `tinygrad_llm.functions`, installed there by name.
    """

    __slots__ = ("__weakref__", "_alias", "_array", "_hooks", "_node", "_requires_grad", "_version", "grad")
    __hash__ = object.__hash__

    _array: np.ndarray
    _node: Node | None
    _requires_grad: bool
    _version: Version
    _alias: Any  # of a view: its View; of what has views: the set of them; else None
    _hooks: Hooks | None
    grad: Tensor | None

    if TYPE_CHECKING:  # what tinygrad_llm.functions installs

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None) -> None:
        self._begin(as_array(data, dtype))
        self.requires_grad_(requires_grad)

    def _begin(self, array: np.ndarray) -> None:
        self._array, self._node, self._requires_grad, self._version, self.grad = array, None, False, Version(), None
        self._alias = self._hooks = None

    @classmethod
    def from_array(cls, array: np.ndarray) -> Tensor:
        """Wrap an array without copying it: torch.from_numpy."""
        self = object.__new__(cls)
        self._begin(array)
        return self

    @staticmethod
    def wrap(array: np.ndarray) -> Tensor:
        """A plain Tensor of the array, whatever class asks."""
        return Tensor.from_array(array)

    # What it is ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        """NumPy's dtype of the elements."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._array.ndim

    @property
    def size(self) -> Size:
        """Number of elements, as in NumPy; called, torch's size(): the shape, or the size of one axis."""
        size = Size(self._array.size)
        size._shape = self._array.shape
        return size

    def numel(self) -> int:
        """Number of elements."""
        return self._array.size

    def dim(self) -> int:
        """Number of axes."""
        return self._array.ndim

    @property
    def grad_fn(self) -> Node | None:
        """The node that made this tensor; None for a leaf."""
        return self._node

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded op made it: only leaves receive `.grad`."""
        return self._node is None

    @property
    def requires_grad(self) -> bool:
        """Whether backward computes a gradient for it or through it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for `.grad`, or no longer. Errors: TypeError where the dtype is no float, AutogradError for a non-leaf."""
        if requires_grad and self.dtype.kind != "f":
            raise AutogradError(f"requires_grad: got a tensor of dtype {self.dtype}, expected a floating dtype")
        if self._node is not None and not requires_grad:
            raise AutogradError("requires_grad: got False for the result of an op, expected a leaf; use detach()")
        self._requires_grad = bool(requires_grad)
        return self

    # Its values ------------------------------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The values as an ndarray that shares memory with the tensor."""
        return self.__values__()

    def __values__(self) -> Any:
        recorder = active_recorder()
        return self._array if recorder is None else recorder.lift(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        check_read("array")
        return np.array(self._array, dtype=dtype, copy=copy)

    @property
    def data(self) -> Tensor:
        """The same memory, outside every graph."""
        return self.detach()

    def detach(self) -> Tensor:
        """The same memory, outside every graph; writes to either are seen by both, and by backward's checks."""
        out = Tensor.from_array(self._array)
        out._version = self._version
        return out

    def item(self) -> Any:
        """The only element, as a Python number. Errors: ShapeError where there is not exactly one."""
        if self._array.size != 1:
            raise ShapeError(f"item: got a tensor of shape {self.shape}, expected one element")
        check_read("item")
        return self._array.item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        check_read("tolist")
        return self._array.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len: got a tensor without axes, expected at least one")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __format__(self, spec: str) -> str:
        return format(self.item() if not self.ndim else self, spec) if spec else str(self)

    def __contains__(self, value: Any) -> bool:
        return bool((self._array == np.asarray(value)).any())

    def __repr__(self) -> str:
        shown = self._array if self._array.size else self._array.reshape(-1)
        values = np.array2string(shown, separator=", ", prefix="tensor(", precision=4, threshold=200)
        made_by = f", grad_fn=<{self._node.op.name}>" if self._node else ", requires_grad=True" * self._requires_grad
        dtype = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        size = f", size={self.shape}" if not self._array.size and self.ndim > 1 else ""
        return f"tensor({values}{size}{dtype}{made_by})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise AutogradError("deepcopy: got the result of an op, expected a leaf; use detach() first")
        out = self.__class__.from_array(self._array.copy())
        out._requires_grad = self._requires_grad
        out.grad = copy.deepcopy(self.grad, memo)
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._node is not None:
            raise AutogradError("pickle: got the result of an op, expected a leaf; use detach() first")
        return _unpickled, (self.__class__, np.ascontiguousarray(self._array).reshape(self.shape), self._requires_grad)

    # Differentiation -------------------------------------------------------------------------------------------------

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False,
        inputs: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        """Add the gradient of ⟨gradient, self⟩ to `.grad` of every leaf that self depends on.

        gradient      cotangent of self's shape and dtype; None means 1 and is allowed for one element only
        retain_graph  keep the graph for another backward; by default it is let go (and kept if create_graph)
        create_graph  make the gradients part of a graph, so that they can be differentiated again
        inputs        the tensors, leaves or not, whose `.grad` is added to; None means every leaf

        Errors: AutogradError where self does not require grad, where the graph was used before, or where a tensor
        that it needs was written to.
        """
        backward([self], [gradient], retain_graph, create_graph, inputs)

    def register_hook(self, hook: Callable[[Tensor], Any]) -> RemovableHandle:
        """Call hook(gradient) whenever backward has this tensor's whole gradient; what it returns replaces the gradient.

        Hooks run in order of registration, before `.grad` is set or the gradient travels on, and must not write into what
        they are given. After an in-place write, earlier hooks still see the gradient of the old values, as in torch.
        Returns a handle with `remove()`. Errors: AutogradError where the tensor does not require grad.
        """
        if not self._requires_grad:
            raise AutogradError("register_hook: got a tensor that does not require grad, expected one that does")
        return RemovableHandle(hooks_of(self._node or self).calls, hook)

    def retain_grad(self) -> None:
        """Let the result of an op have `.grad` too, after its hooks; a leaf has it anyway."""
        if not self._requires_grad:
            raise AutogradError("retain_grad: got a tensor that does not require grad, expected one that does")
        if self._node is not None:
            hooks_of(self._node).keeper = weakref.ref(self)

    @property
    def retains_grad(self) -> bool:
        """Whether backward sets `.grad` of this result of an op."""
        hooks = self._node._hooks if self._node else None
        return hooks is not None and hooks.keeper is not None

    # Views and writing (the methods that write are installed by tinygrad_llm.autograd.writes) --------------------------

    @property
    def _base(self) -> Tensor | None:
        """The tensor whose memory this one shows; None where the memory is its own."""
        return self._alias.base if isinstance(self._alias, View) else None

    def _write(self, write: Callable[[np.ndarray], Any]) -> Tensor:
        """Write into the array, outside of every graph, and say so to each that still needs the old values."""
        if self._requires_grad and is_grad_enabled():
            raise WriteError("in-place write: got a tensor that requires grad, expected no_grad() or a detached tensor")
        check_write("in-place write", self._array)
        write(self._array)
        self._version.count += 1
        return self

    # NumPy -----------------------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and ufunc in NUMPY and not kwargs:
            return NUMPY[ufunc](*inputs)
        if "out" in kwargs:
            raise TypeError(f"{ufunc.__name__}: out: got {kwargs['out']}, expected none: a gradient cannot follow a write")
        plain = _plain(inputs, _read_only)
        result = getattr(ufunc, method)(*plain, **kwargs)
        return _constant(ufunc, result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function in NUMPY:
            return NUMPY[function](*args, **kwargs)
        plain, options = _plain(args, _read_only), _plain(kwargs, _read_only)
        return _constant(function, function._implementation(*plain, **options))

    def __apply_op__(self, op: Op, *args: Any, **options: Any) -> Tensor:
        return apply(op, *args, **options)


def apply(op: Op, *args: Any, **options: Any) -> Tensor:
    """Call an op on tensors (arrays and Python numbers are constants) and record it where a gradient will be wanted."""
    recorder = active_recorder()
    if recorder is None:
        out, vjp = op(*[a._array if isinstance(a, Tensor) else a for a in args], **options)
        if type(out) is not np.ndarray:
            out = as_values(out)
    else:
        args = recorder.operands(op, args, options)
        out, vjp = recorder.run_op(op, args, options)
    result = Tensor.from_array(out)
    if out.base is not None:
        _note_view(result, op, args, options)
    if is_grad_enabled() and out.dtype.kind == "f" and any(isinstance(a, Tensor) and a._requires_grad for a in args):
        result._node, result._requires_grad = Node(op, vjp, args, options, result), True
    if is_anomaly_check_nan_enabled() and out.dtype.kind == "f" and not np.isfinite(out).all():
        _check_anomaly(op, args, out)
    return result


def _check_anomaly(op: Op, args: tuple[Any, ...], out: np.ndarray) -> None:
    """AnomalyError for a NaN or an infinity; but a −∞ that was given, as masks have it, is passed on."""
    nan = bool(np.isnan(out).any())
    if nan or np.isposinf(out).any() or not any(a is not None and np.isneginf(np.asarray(a)).any() for a in args):
        raise AnomalyError(f"forward of {op.name} gave {'nan' if nan else 'inf'}, called at {calling_line()}")


def _unpickled(kind: type[Tensor], array: np.ndarray, requires_grad: bool) -> Tensor:
    return kind.from_array(array).requires_grad_(requires_grad)


def _note_view(result: Tensor, op: Op, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A view shares the version of what it views, and knows how it was made of it, so that writes can follow."""
    memory = root(result._array)
    for a in args:
        if isinstance(a, Tensor) and root(a._array) is memory:
            result._version = a._version
            result._alias = View.of(a, op if len(args) == 1 else None, options)
            if is_grad_enabled():
                family(result._alias.base).add(result)


NUMPY: dict[Any, Callable[..., Any]] = {}
"""NumPy function → the function of tensors that it stands for; filled by tinygrad_llm.functions."""

_FLAT = {np.sign, np.floor, np.ceil, np.rint, np.trunc, np.ones_like, np.zeros_like}


def _constant(function: Any, result: Any) -> Any:
    """A result whose derivative is zero everywhere; refuse any other, for its gradient would be lost without a word."""
    values = result if isinstance(result, tuple) else (result,)
    if function not in _FLAT and any(as_values(v).dtype.kind in "fc" for v in values):
        raise TypeError(f"{function.__name__}: got a Tensor, expected an ndarray: no op stands for this NumPy function. "
                        "Use tinygrad_llm's functions, or x.numpy() where no gradient is wanted")
    is_array = isinstance(result, np.ndarray | np.generic) or hasattr(result, "__record_call__")
    return Tensor.from_array(as_values(result)) if is_array else result


def _plain(values: Any, show: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> Any:
    """Arrays in place of tensors, as `show` shows them, also inside tuples, lists and dictionaries."""
    if isinstance(values, dict):
        return {k: _plain(v, show) for k, v in values.items()}
    if isinstance(values, tuple | list):
        return type(values)([_plain(v, show) for v in values])
    return show(values._array) if isinstance(values, Tensor) else values


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view that NumPy cannot write through: such a write would not be seen by backward's checks."""
    view = array.view()
    view.flags.writeable = False
    return view


def unwrap_index(index: Any) -> Any:
    """An index as NumPy takes it: tensors become arrays. Of integers alone, or of nothing, it gets an ellipsis, or the element
    that it names would be a copy, where torch gives a view."""
    if not isinstance(index, tuple):
        return unwrap_index((index,)) if _is_integer(index) else _plain([index])[0]
    parts = tuple([int(p) if _is_integer(p) else _plain([p])[0] for p in index])
    return (*parts, ...) if all(type(p) is int for p in parts) else parts


def _is_integer(part: Any) -> bool:
    if isinstance(part, Tensor | np.ndarray):
        number = part if isinstance(part, np.ndarray) else part._array  # a batched one stays: it is another for each example
        return not part.ndim and part.dtype.kind in "iu" and not hasattr(number, "__record_call__")
    return isinstance(part, int | np.integer) and not isinstance(part, bool)


def as_array(data: Any, dtype: Any = None) -> np.ndarray:
    """A new array of the data. Python floats become float32, as in torch; arrays keep their dtype."""
    if isinstance(data, Tensor) and active_recorder() is None:
        return np.array(data._array, dtype=dtype)
    if isinstance(data, Tensor):
        return data.__values__().astype(data.dtype if dtype is None else dtype)
    if hasattr(data, "__record_call__"):  # of a function that is being recorded: a copy would be dropped anyway
        return data if dtype is None else data.astype(dtype)
    try:
        array = np.array(data, dtype=dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(f"tensor: data: got {type(data).__name__}, expected numbers in a regular nesting: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"tensor: data: got dtype {array.dtype}, expected real numbers or booleans")
    if dtype is None and array.dtype == np.float64 and not isinstance(data, np.ndarray | np.generic) and not _has_arrays(data):
        array = array.astype(np.float32)
    return array


def _has_arrays(data: Any) -> bool:
    if isinstance(data, tuple | list):
        return any(_has_arrays(d) for d in data)
    return isinstance(data, np.ndarray | np.generic | Tensor)
