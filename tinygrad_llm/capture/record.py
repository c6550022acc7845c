"""Recording: a function runs once on arrays without values, and each NumPy call that it makes is written down.

A Traced array knows shape, strides and dtype. Its `shadow` is an ndarray of that layout whose memory is never touched, so
NumPy itself says what a slice, a transpose or a broadcast of it looks like, and whether a reshape must copy. It is no
ndarray: what would read values (`float`, `bool`, `np.asarray`, a C function) fails instead of freezing one value into
the program.
"""

from __future__ import annotations

import functools
import gc
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.modes import LIBRARY, calling_line, records_graph
from tinygrad_llm.capture import numpy_calls
from tinygrad_llm.capture.ir import Buffer, Call, CaptureError, View
from tinygrad_llm.capture.program import Program


class Recorder:
    """Collects calls. `trace` makes an input; `lift` shows an array that exists, whose values may change between runs.

    Calls carry the names of the modules below `root` that make them, and with `lines` the line that called for them.
    """

    def __init__(self, root: Any = None, lines: bool = False) -> None:
        self._lines = lines
        self.calls: list[Call] = []
        self.op = self.layer = ""
        self.leaves: dict[int, tuple[Tensor, Tensor | None]] = {}  # with the gradient that each had before
        self.earlier: list[tuple[Tensor, Traced]] = []  # those gradients, where there were any: they are inputs
        self.grads: dict[int, Tensor] = {}  # what stands for them
        self._names: dict[int, str] = {} if root is None else {id(m): name for name, m in root.named_modules()}
        self.owners: dict[Buffer, Traced] = {}
        self._externs: dict[int, tuple[Buffer, Any]] = {}
        self.refused: CaptureError | None = None
        self.tensors: dict[int, Tensor] = {}  # all that it read
        self._errors, self.is_over = np.geterr(), False
        self._made: list[weakref.ref[Traced]] = []

    def left(self) -> list[Traced]:
        """The arrays that somebody still has, when the recorder is over and has let go of its own."""
        self.is_over = True
        self.owners.clear()
        self.leaves.clear()
        self.earlier.clear()
        self.grads.clear()
        for generation in range(3):
            if not any(ref() is not None for ref in self._made):
                break
            gc.collect(generation)
        return [array for ref in self._made if (array := ref()) is not None]

    # Arrays ----------------------------------------------------------------------------------------------------------

    def new(self, shadow: np.ndarray, kind: str = "temp", memory: np.ndarray | None = None) -> Traced:
        """An array of its own buffer, with the layout of a shadow that nothing else uses, in all of that or of `memory`."""
        memory = shadow if memory is None else memory
        array = Traced(self, Buffer(memory.nbytes, kind), shadow, memory)
        return self.owners.setdefault(array.buffer, array)

    def trace(self, like: np.ndarray) -> Traced:
        """An input with the layout of `like`, and its gaps."""
        shown = memory = np.empty_like(like)
        if shown.strides != like.strides and like.size:
            low, high = View(Buffer(0), 0, like.shape, like.strides, like.dtype).span()
            memory = np.empty(high - low, np.uint8)
            shown = np.ndarray(like.shape, like.dtype, memory, -low, like.strides)
        shown.flags.writeable = like.flags.writeable
        return self.new(shown, "input", memory)

    def lift(self, array: Any) -> Any:
        """An array that exists, read again at each run. What is traced already, or is no array, stays as it is."""
        if not isinstance(array, np.ndarray):
            return array
        root = memory_of(array)
        buffer, _ = self._externs.setdefault(id(root), (Buffer(root.nbytes, "extern", root), root))
        return Traced(self, buffer, array, root)

    def view(self, x: Any) -> Any:
        """What a call holds of an argument: the view of an array, anything else itself."""
        if type(x) is not Traced:
            return self.view(self.lift(x)) if isinstance(x, np.ndarray) else x
        if x.seen is None:
            offset = 0 if x.shadow is x.memory else _address(x.shadow) - _address(x.memory)
            x.seen = View(x.buffer, offset, x.shadow.shape, x.shadow.strides, x.shadow.dtype)
        return x.seen

    # Calls -----------------------------------------------------------------------------------------------------------

    def call(
        self, function: Callable[..., Any], kind: str, args: tuple[Any, ...], out: Any = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Write a call down; `out` is a Traced array, a shadow of the layout of a new one, or None. Returns the result."""
        if self.is_over:
            raise CaptureError(f"{getattr(function, '__name__', function)}: got an array of a recording that is over, expected "
                               "none: a cache that was filled while a function was recorded must be emptied")
        if (errors := np.geterr()) != self._errors and "raise" in errors.values():
            raise CaptureError(f"errstate: got one that raises around {getattr(function, '__name__', function)}, expected none")
        if isinstance(out, np.ndarray):
            out = self.new(out)
        if isinstance(out, Traced):
            _check_own(function, out)
        args = tuple([self.view(a) for a in args])
        self.calls.append(Call(function, kind, args, self.view(out), options or {}, self.op, self.layer,
                               calling_line() if self._lines else ""))
        return out

    def finish(self, inputs: list[Traced], outputs: list[Traced], order: str = "K") -> Program:
        """The program. Each output is copied into memory of its own, in its own order of axes ("K") or row-major ("C"); a pass
        takes out the copies that need not be."""
        own = [numpy_calls.copied(self, x, order=order) for x in outputs]
        for x in own:
            x.buffer.kind = "output"
        return Program([*self.calls], [self.view(x) for x in inputs], [self.view(x) for x in own])

    # What cannot be recorded ------------------------------------------------------------------------------------------

    def check_write(self, name: str, array: Any) -> None:
        """CaptureError for a write into an array with values: it would be made once, while recording."""
        if isinstance(array, np.ndarray):
            raise CaptureError(f"{name}: got a write into a tensor that is not the recorded function's own, expected it to "
                               "return its results")

    def check_effect(self, name: str) -> None:
        """CaptureError for what changes something for good: it would be done once, while recording."""
        raise CaptureError(f"{name}: got a call while a function is recorded, expected it outside of the function")

    def check_read(self, name: str) -> None:
        """CaptureError: values that are read while recording would be frozen into the program."""
        raise CaptureError(f"{name}() asks for values, expected a function whose calls depend on shapes alone: return the "
                           f"tensor, and call {name}() on what is returned")

    # Where calls come from -------------------------------------------------------------------------------------------

    def operands(self, op: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
        """The operands as an op is given them."""
        return args

    for_drawing = lift

    def run_op(self, op: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        """An op on tensors, whose memory is read at each run: its calls carry its name, and so do those of its vjp."""
        with self.scope(op.name, self.layer):
            out, vjp = op(*[self._lifted(a) for a in args], **options)
        out = self.lift(np.asarray(out) if isinstance(out, np.generic) else out)
        if out.number:  # a tensor is an array
            out = Traced(self, out.buffer, out.shadow, out.memory)
        return out, self._scoped(vjp, op.name + "ᵀ", self.layer)

    def _lifted(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        if not isinstance(a._array, Traced) and id(a) not in self.tensors:
            self._check(a)
            self.tensors[id(a)] = a
        if a.requires_grad:
            self.lift_gradient(a)
        return self.lift(a._array)

    def lift_gradient(self, a: Tensor) -> None:
        """A leaf's `.grad` of before is an input."""
        if a.is_leaf and id(a) not in self.leaves and (a._requires_grad or a._grad is not None):
            self.leaves[id(a)] = a, a._grad
            if a._grad is not None and isinstance(a._grad._array, np.ndarray):
                self.earlier.append((a, self.trace(a._grad._array)))
                a._grad = self.grads[id(a)] = Tensor.from_array(self.earlier[-1][1])  # type: ignore[arg-type]

    def meet(self, a: Tensor) -> None:
        """A leaf whose `.grad` the function is about to change."""
        if a.is_leaf and a.requires_grad and id(a) not in self.leaves:
            self.leaves[id(a)] = a, a._grad

    def _check(self, a: Tensor) -> None:
        if a._node is not None and a._requires_grad and records_graph():
            raise CaptureError(f"{a._node.op.name}: got the result of an op outside of the function, expected a leaf")
        if a._hooks is not None and a._hooks.are_there:
            raise CaptureError("hooks: got a tensor with hooks, which are called in each backward, expected none")

    def _scoped(self, vjp: Callable[[Any], Any], op: str, layer: str) -> Callable[[Any], Any]:
        def scoped(g: Any) -> Any:
            with self.scope(op, layer):
                return vjp(g)

        return scoped

    @contextmanager
    def scope(self, op: str, layer: str) -> Iterator[None]:
        """Calls inside carry these names."""
        before, (self.op, self.layer) = (self.op, self.layer), (op, layer)
        try:
            yield
        finally:
            self.op, self.layer = before

    def run_module(self, module: Any, args: Any, kwargs: Any) -> Any:
        """A module's forward: its calls carry the module's dotted name."""
        if id(module) not in self._names:
            self._names |= {id(m): name for name, m in module.named_modules()}
        with self.scope(self.op, self._names[id(module)]):
            return module.forward(*args, **kwargs)


F = TypeVar("F", bound=Callable[..., Any])


def _untraced(method: F) -> F:
    """A method that runs no code of the user's: what looks for such (capture.surroundings) need not see each of its frames."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracing = sys.gettrace()
        sys.settrace(None)
        try:
            return method(*args, **kwargs)
        finally:
            sys.settrace(tracing)

    return call  # type: ignore[return-value]


_LIBRARYS: set[str] = set()
"""Files of this library, as far as they have asked for the class of a Traced array."""


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """An array without values: ndarray's interface, as far as layout goes; every computation is recorded.

    number    it stands for a NumPy scalar, which nothing can write to: a sum of everything, an element
    """

    __slots__ = ("__weakref__", "buffer", "memory", "number", "recorder", "seen", "shadow")
    __array_priority__ = 1000

    def __init__(self, recorder: Recorder, buffer: Buffer, shadow: np.ndarray, memory: np.ndarray) -> None:
        self.recorder, self.buffer, self.shadow, self.memory, self.number = recorder, buffer, shadow, memory, False
        self.seen: View | None = None
        recorder._made.append(weakref.ref(self))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What isinstance() sees outside of this library: an array, or a scalar of NumPy's."""
        path = sys._getframe(1).f_code.co_filename
        if path in _LIBRARYS or path.startswith(LIBRARY):
            _LIBRARYS.add(path)
            return Traced
        return self.dtype.type if self.number else np.ndarray

    shape = property(operator.attrgetter("shadow.shape"))
    dtype = property(operator.attrgetter("shadow.dtype"))
    strides = property(operator.attrgetter("shadow.strides"))
    ndim = property(operator.attrgetter("shadow.ndim"))
    size = property(operator.attrgetter("shadow.size"))
    itemsize = property(operator.attrgetter("shadow.itemsize"))
    nbytes = property(operator.attrgetter("shadow.nbytes"))
    flags = property(operator.attrgetter("shadow.flags"))
    T = property(lambda self: self.show(self.shadow.T))
    mT = property(lambda self: self.show(self.shadow.mT))

    @property
    def base(self) -> Any:
        """The array that a view shows part of; None for others."""
        first = self.recorder.owners.setdefault(self.buffer, self)
        return None if first is self else first

    @property
    def is_new(self) -> bool:
        """Whether it is all of the memory of a result."""
        return self.shadow is self.memory and self.buffer.kind == "temp" and not self.number

    def show(self, shadow: np.ndarray) -> Traced:
        """Another view of the same buffer; of a number, of a copy."""
        buffer = numpy_calls.copied(self.recorder, self).buffer if self.number else self.buffer
        return Traced(self.recorder, buffer, shadow, self.memory)

    def __len__(self) -> int:
        return len(self.shadow)

    def __pow__(self, other: Any) -> Any:
        if self.dtype.kind in "cb":
            raise CaptureError(f"pow: got an array of {self.dtype}, whose power ndarray does not compute as numpy.power does")
        return np.power(self, other)

    def __repr__(self) -> str:
        return f"<traced {self.dtype} {self.shape}>"

    # Computation -----------------------------------------------------------------------------------------------------

    @_untraced
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Tensor) for x in inputs):
            return NotImplemented  # the tensor knows what to do
        return numpy_calls.record_ufunc(self.recorder, ufunc, method, inputs, kwargs)

    @_untraced
    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(issubclass(t, Tensor) for t in types):
            return NotImplemented
        return numpy_calls.record_function(self.recorder, function, args, kwargs)

    @_untraced
    def __record_call__(self, function: Any, like: Any, args: Any, options: Any, apart: bool) -> Any:
        return numpy_calls.record_opaque(self.recorder, function, like, args, options, apart)

    @_untraced
    def __getitem__(self, index: Any) -> Any:
        return numpy_calls.record_getitem(self, index)

    @_untraced
    def __setitem__(self, index: Any, value: Any) -> None:
        numpy_calls.record_setitem(self, index, value)

    @_untraced
    def reshape(self, *shape: Any, order: str = "C") -> Traced:
        """As ndarray.reshape."""
        return numpy_calls.reshaped(self, shape[0] if len(shape) == 1 else shape, order)

    @_untraced
    def astype(self, dtype: Any, *, copy: bool = True, **options: Any) -> Traced:
        """As ndarray.astype."""
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        return numpy_calls.same_kind(self, numpy_calls.copied(self.recorder, self, dtype, options.get("order", "K")))

    @_untraced
    def copy(self, order: str = "C") -> Traced:
        """As ndarray.copy."""
        return numpy_calls.copied(self.recorder, self, order=order)

    def view(self, dtype: Any = None) -> Traced:
        """As ndarray.view, without a dtype or with one of the same size."""
        if dtype is not None and np.dtype(dtype).itemsize != self.itemsize:
            raise CaptureError(f"view: got {np.dtype(dtype)} of an array of {self.dtype}, expected a dtype of the same size")
        return self.show(self.shadow.view() if dtype is None else self.shadow.view(dtype))

    @_untraced
    def transpose(self, *axes: Any) -> Traced:
        """As ndarray.transpose."""
        return self.show(self.shadow.transpose(*axes))

    @_untraced
    def swapaxes(self, first: int, second: int) -> Traced:
        """As ndarray.swapaxes."""
        return self.show(self.shadow.swapaxes(first, second))

    def squeeze(self, axis: Any = None) -> Traced:
        """As ndarray.squeeze."""
        return self.show(self.shadow.squeeze(axis))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def flatten(self, order: str = "C") -> Traced:
        """As ndarray.flatten."""
        return numpy_calls.reshaped(self.copy(order), -1, order)

    def conj(self) -> Any:
        """As ndarray.conj."""
        return np.conjugate(self)

    def fill(self, value: Any) -> None:
        """As ndarray.fill."""
        self[...] = value

    # Values, which it does not have ----------------------------------------------------------------------------------

    def _no_value(self, *args: Any, **kwargs: Any) -> Any:
        raise CaptureError(f"a value of an array {self.shape} was asked for, expected a function whose calls depend on shapes "
                           "alone: return what is asked for and look at it after the call; index tensors, not NumPy's arrays, "
                           "with arrays")

    __array__ = __bool__ = __float__ = __int__ = __index__ = __complex__ = __contains__ = _no_value
    __array_interface__ = property(_no_value)
    __hash__ = None  # type: ignore[assignment]
    __reduce_ex__ = __format__ = item = tolist = tobytes = nonzero = _no_value

    def __copy__(self) -> Traced:
        return self.copy("K")

    def __deepcopy__(self, memo: Any) -> Traced:
        return self.copy("K")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(name)
        raise CaptureError(f"ndarray.{name}: got a traced array, expected one of the methods that can be recorded")


def _method(name: str) -> Any:
    function = getattr(np, name)

    def method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, f"As ndarray.{name}."
    return method


Traced.__name__ = Traced.__qualname__ = "ndarray"  # what type(x).__name__ says of it

for _name in ("all", "any", "argmax", "argmin", "argsort", "clip", "cumprod", "cumsum", "diagonal", "dot", "max", "mean", "min",
              "prod", "ravel", "repeat", "round", "std", "sum", "take", "trace", "var"):
    setattr(Traced, _name, _method(_name))


def _check_own(function: Any, out: Traced) -> None:
    name = getattr(function, "__name__", function)
    if out.buffer.kind in ("extern", "input"):
        raise CaptureError(f"{name}: got a write into an array that is not the recorded function's own, expected it to "
                           "return its results")
    if not out.shadow.flags.writeable:
        raise ValueError(f"{name}: output array is read-only")


def memory_of(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view; of memory that no array owns, the outermost view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
