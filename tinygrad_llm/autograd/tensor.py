"""Tensor: an ndarray that remembers how it was computed."""

from __future__ import annotations

import copy
import numbers
import operator
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.arrays import as_array
from tinygrad_llm.autograd.backward import backward
from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.autograd.copying import Memory, array_at, place_of
from tinygrad_llm.autograd.errors import AnomalyError, AutogradError, InferenceError, WriteError
from tinygrad_llm.autograd.graph import Node, Unwatched, Version, root
from tinygrad_llm.autograd.hooks import Hooks, RemovableHandle, hooks_of
from tinygrad_llm.autograd.leaves import check_gradient, set_data
from tinygrad_llm.autograd.modes import (
    active_recorder,
    calling_line,
    check_read,
    check_write,
    current,
    is_inference_mode_enabled,
    meet,
    read_gradient,
    records_graph,
)
from tinygrad_llm.autograd.views import View, family
from tinygrad_llm.ops import DtypeError, IndexRangeError, Op, ShapeError
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

    __slots__ = ("__weakref__", "_alias", "_array", "_counter", "_grad", "_hooks", "_node", "_requires_grad")
    __hash__ = object.__hash__

    _array: np.ndarray
    _node: Node | None
    _requires_grad: bool
    _counter: Version
    _alias: Any  # of a view: its View; of what has views: the set of them; else None
    _hooks: Hooks | None
    _grad: Tensor | None

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

    def __init__(self, data: Any = (), *sizes: Any, device: Any = None) -> None:
        """torch.Tensor(data): float32, whatever the data are; of a tensor, its memory. `tensor` is what keeps dtypes.

        Errors: TypeError for a number, which torch takes for a size.
        """
        if sizes or device not in (None, "cpu") or isinstance(data, int | float | np.generic):
            given = ", ".join(map(repr, (data, *sizes)))
            raise TypeError(f"Tensor: data: got {given}, expected a sequence or an array, on 'cpu'; "
                            f"use tensor() for a number, zeros({given}) for a size")
        self._begin(data._array if isinstance(data, Tensor) else as_array(data, np.float32))
        if isinstance(data, Tensor):
            self._counter = data._counter

    @classmethod
    def of(cls, data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
        """A copy of the data as a leaf: what `tensor` makes."""
        return cls.from_array(as_array(data, dtype)).requires_grad_(requires_grad)

    def _begin(self, array: np.ndarray) -> None:
        self._array, self._node, self._requires_grad = array, None, False
        self._counter = Unwatched() if current.inference else Version()
        self._grad = self._alias = self._hooks = None

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
        """Ask for `.grad`, or no longer: a graph that was made before then leaves it as it is.

        Errors: AutogradError where the dtype is no float, for a result of an op, and for an inference tensor; DtypeError for
        what is no bool.
        """
        if type(requires_grad) is not bool:
            raise DtypeError(f"requires_grad: got {requires_grad!r:.80}, expected True or False")
        if requires_grad and self.dtype.kind != "f":
            raise AutogradError(f"requires_grad: got a tensor of dtype {self.dtype}, expected a floating dtype")
        if requires_grad and self.is_inference() and not is_inference_mode_enabled():
            raise InferenceError("requires_grad: got an inference tensor, expected an ordinary one; make a clone() of it")
        if self._node is not None and not requires_grad:
            raise AutogradError("requires_grad: got False for the result of an op, expected a leaf; use detach()")
        if self._requires_grad is not requires_grad:
            self._requires_grad = requires_grad
            changes.count += 1
        return self

    def is_inference(self) -> bool:
        """Whether it was made in inference_mode(), and can never be part of a graph."""
        return isinstance(self._counter, Unwatched)

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward has added up for this leaf, or for a result after retain_grad(); None before.

        A backward without create_graph adds to the tensor that is there, in place. One that is assigned must be None or a
        tensor of the same shape and dtype. Errors: TypeError, AutogradError naming what differs.
        """
        read_gradient(self)
        if self._grad is None and self._node is not None and not self.retains_grad:
            warnings.warn("grad: got a result of an op, whose .grad backward does not set, expected a leaf; call retain_grad() "
                          "on it before backward() to have it", UserWarning, stacklevel=2)
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        meet(self)
        self._grad = check_gradient(self, value)

    @grad.deleter
    def grad(self) -> None:
        meet(self)
        self._grad = None

    # Its values ------------------------------------------------------------------------------------------------------

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The values as an ndarray that shares memory with the tensor.

        Of a tensor that requires grad it may only be read: backward would not see that it was written to. Write to
        detach().numpy(), or ask with force=True, for the same.
        """
        values = self.__values__()
        return _read_only(values) if self._requires_grad and not force and isinstance(values, np.ndarray) else values

    def __values__(self) -> Any:
        recorder = active_recorder()
        return self._array if recorder is None else recorder.lift(self._array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        check_read("array")
        return np.array(_read_only(self._array) if self._requires_grad else self._array, dtype=dtype, copy=copy)

    @property
    def data(self) -> Tensor:
        """The same memory, outside every graph; what is assigned gives the tensor its memory, and is then shared with it.

        A graph that was made before still has the old values. Errors: TypeError for what is no tensor, AutogradError where
        the dtype cannot have the gradient that the tensor requires, or the shape is not that of a result of an op.
        """
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        set_data(self, value)

    def detach(self) -> Tensor:
        """The same memory, outside every graph; writes to either are seen by both, and by backward's checks."""
        out = Tensor.from_array(self._array)
        out._counter = self._counter
        return out

    def item(self) -> Any:
        """The only element, as a Python number. Errors: ShapeError where there is not exactly one."""
        return self._only("item")

    def _only(self, name: str) -> Any:
        if self._array.size != 1:
            raise ShapeError(f"{name}: got a tensor of shape {self.shape}, expected one element")
        check_read(name)
        return self._array.item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        check_read("tolist")
        return self._array.tolist()

    def __float__(self) -> float:
        return float(self._only("float"))

    def __int__(self) -> int:
        return int(self._only("int"))

    def __index__(self) -> int:
        return operator.index(self._only("index"))

    def __bool__(self) -> bool:
        return bool(self._only("bool"))

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len: got a tensor without axes, expected at least one")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if not self.ndim else object.__format__(self, spec)

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, Tensor | np.ndarray | np.generic | numbers.Number):
            raise RuntimeError(f"in: got {value!r} of type {type(value).__name__}, expected a number or a tensor")
        return bool(np.any(as_values(self == value)))

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
        make, state = self.__reduce_ex__(4)
        out = make(*copy.deepcopy(state, memo))
        out.grad = copy.deepcopy(self.grad, memo)
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._node is not None:
            raise AutogradError("pickle: got the result of an op, expected a leaf; use detach() first")
        return _copied, (self.__class__, self._requires_grad, getattr(self, "__dict__", None),
                         *place_of(self._array, self._counter))

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
        backward([self], [gradient], retain_graph, create_graph, inputs=inputs)

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

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call hook(self) whenever backward has added to `.grad` of this leaf: to step and to forget it there and then.

        Errors: AutogradError for a result of an op, and where a hook returns something.
        """
        if self._node is not None:
            raise AutogradError("register_post_accumulate_grad_hook: got a result of an op, expected a leaf")
        if not self._requires_grad:
            raise AutogradError("register_post_accumulate_grad_hook: got no tensor that requires grad, expected one that does")
        return RemovableHandle(hooks_of(self).accumulated, hook)

    # Views and writing (the methods that write are installed by tinygrad_llm.autograd.writes) --------------------------

    @property
    def _version(self) -> int:
        """How often the memory was written to, through this tensor or one that shares it."""
        if self.is_inference():
            raise InferenceError("_version: got an inference tensor, whose writes are not counted")
        return self._counter.count

    @property
    def _base(self) -> Tensor | None:
        """The tensor whose memory this one shows; None where the memory is its own."""
        return self._alias.base if isinstance(self._alias, View) else None

    def _write(self, write: Callable[[np.ndarray], Any]) -> Tensor:
        """Write into the array, outside of every graph, and say so to each that still needs the old values."""
        if self._requires_grad and records_graph():
            raise WriteError("in-place write: got a tensor that requires grad, expected no_grad() or a detached tensor")
        check_write("in-place write", self._array)
        write(self._array)
        self._counter.count += 1
        return self

    # NumPy -----------------------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and ufunc in NUMPY and not kwargs:
            return NUMPY[ufunc](*inputs)
        if "out" in kwargs:
            raise TypeError(f"{ufunc.__name__}: got an ndarray to write a tensor's values into (out=, or +=), expected none: "
                            "a gradient cannot follow; use a + b")
        return _constant(ufunc, getattr(ufunc, method)(*unwrapped(inputs, _read_only), **kwargs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function in NUMPY:
            return NUMPY[function](*args, **kwargs)
        plain, options = unwrapped(args, _read_only), unwrapped(kwargs, _read_only)
        return _constant(function, function._implementation(*plain, **options))

    def __apply_op__(self, op: Op, *args: Any, **options: Any) -> Tensor:
        return apply(op, *args, **options)


def apply(op: Op, *args: Any, watched: tuple[Any, ...] = (), **options: Any) -> Tensor:
    """Call an op on tensors (arrays and Python numbers are constants) and record it where a gradient will be wanted.

    Of an array that is recorded a copy is kept: nobody could see that it is written to before backward.
    watched    tensors among them decide where a gradient goes (index, mask, target): backward refuses when they were written to
    """
    wanted = current.graph and True in [a._requires_grad for a in args if isinstance(a, Tensor)]
    if current.recorder is None:
        if wanted:
            args = tuple([a.copy("K") if isinstance(a, np.ndarray) else a for a in args])
        out, vjp = op(*[a._array if isinstance(a, Tensor) else a for a in args], **options)
        if type(out) is not np.ndarray:
            out = as_values(out)
        elif out.base is not None and not wanted and current.graph:
            out = _of_own_memory(op, args, options, out)
    else:
        args = current.recorder.operands(op, args, options)
        out, vjp = current.recorder.run_op(op, args, options)
    result = Tensor.from_array(out)
    if out.base is not None:
        _note_view(result, op, args, options)
    if wanted and out.dtype.kind == "f":
        result._node = Node(op, vjp, args, options, result, tensors_of(watched) if watched else ())
        result._requires_grad = True
    if current.anomaly and current.check_nan and out.dtype.kind == "f" and not np.isfinite(out).all():
        _check_anomaly(op, args, out)
    return result


def _of_own_memory(op: Op, args: tuple[Any, ...], options: dict[str, Any], out: np.ndarray) -> np.ndarray:
    """A view of a tensor as it is; of an array that is no tensor's, the view of a copy."""
    memory = root(out)
    if not any(isinstance(a, np.ndarray) and root(a) is memory for a in args):
        return out
    return op(*[a.copy("K") if isinstance(a, np.ndarray) else a for a in args], **options)[0]


def _check_anomaly(op: Op, args: tuple[Any, ...], out: np.ndarray) -> None:
    """AnomalyError for a NaN or an infinity; but a −∞ that was given, as masks have it, is passed on."""
    nan = bool(np.isnan(out).any())
    if nan or np.isposinf(out).any() or not any(a is not None and np.isneginf(np.asarray(a)).any() for a in args):
        raise AnomalyError(f"forward of {op.name} gave {'nan' if nan else 'inf'}, called at {calling_line()}")


def _copied(kind: type[Tensor], requires_grad: bool, attributes: dict[str, Any] | None, memory: Memory, *place: Any) -> Tensor:
    out = kind.from_array(array_at(memory, *place)).requires_grad_(requires_grad)
    out._counter = memory.version
    if attributes:
        vars(out).update(attributes)
    return out


def _note_view(result: Tensor, op: Op, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A view shares the version of what it views, and knows how it was made of it, so that writes can follow."""
    memory = root(result._array)
    for a in args:
        if isinstance(a, Tensor) and root(a._array) is memory:
            result._counter = a._counter
            result._alias = View.of(a, op if len(args) == 1 else None, options)
            if records_graph():
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


def unwrapped(values: Any, show: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> Any:
    """Arrays in place of tensors, as `show` shows them, also inside tuples, lists and dictionaries."""
    if isinstance(values, dict):
        return {k: unwrapped(v, show) for k, v in values.items()}
    if isinstance(values, tuple | list):
        return type(values)([unwrapped(v, show) for v in values])
    return show(values._array) if isinstance(values, Tensor) else values


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view that NumPy cannot write through: such a write would not be seen by backward's checks."""
    view = array.view()
    view.flags.writeable = False
    return view


def tensors_of(index: Any) -> tuple[Tensor, ...]:
    """The tensors of an index."""
    parts = index if isinstance(index, tuple | list) else (index,)
    return tuple([p for p in parts if isinstance(p, Tensor)])
