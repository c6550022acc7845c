"""What all functions share: operands, torch's promotion of dtypes, and the two spellings of axes."""

from __future__ import annotations

import functools
import inspect
import operator
import reprlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from tinygrad_llm.autograd import Tensor, apply, as_array
from tinygrad_llm.autograd.modes import records_graph
from tinygrad_llm.ops import ArgumentError, DtypeError, IndexRangeError, Op, elementwise
from tinygrad_llm.ops.errors import of_its_own
from tinygrad_llm.ops.numbers import wrapped
from tinygrad_llm.ops.opaque import as_values, densely

Dim = int | tuple[int, ...] | None
F = TypeVar("F", bound=Callable[..., Any])

INEXACT = "fc"  # complex numbers are for the complex step: torch's rules of floats hold for them
_SPELLINGS = {"axis": "dim", "keepdims": "keepdim"}


def spelled(function: F) -> F:
    """The function, with `axis` and `keepdims` taken for dim and keepdim, as torch takes them, and what NumPy takes for its
    first tensor. Errors: TypeError where that is nothing of numbers, where keepdim is no boolean, or dtype no dtype."""
    name, places = function.__name__, list(inspect.signature(function).parameters)
    keepdim = places.index("keepdim") if "keepdim" in places else len(places)
    first = places[0] if places[0] != "tensors" else None

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if options:
            options = {_SPELLINGS.get(name, name): value for name, value in options.items()}
            if options.get("dtype") is not None:
                options["dtype"] = dtype_of(name, options["dtype"])
            if "keepdim" in options:
                flag(name, "keepdim", options["keepdim"])
            if first in options:
                options[first] = tensor_like(name, first, options[first])
        if args and first is not None and not hasattr(args[0], "ndim"):
            args = (tensor_like(name, first, args[0]), *args[1:])
        if len(args) > keepdim:
            flag(name, "keepdim", args[keepdim])
        return function(*args, **options)

    return call  # type: ignore[return-value]


def flag(name: str, argument: str, value: Any) -> bool:
    """A boolean argument. Errors: TypeError for what is none, 1 too, as in torch."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name}: {argument}: got {value!r}, expected True or False")


def tensor_like(name: str, argument: str, value: Any) -> Any:
    """as_array_like. Errors: TypeError that names the argument."""
    if hasattr(value, "ndim"):
        return value
    try:
        return as_array_like(value)
    except TypeError as error:
        raise TypeError(f"{name}: {argument}: {str(error).removeprefix('operand: ')}") from None


def as_operand(value: Any) -> Any:
    """What apply takes: tensors, arrays, Python numbers, and NumPy's scalars as such; lists become constant tensors."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor | np.ndarray | float | bool) or value is None:
        return value
    return int(value) if isinstance(value, int) else as_array_like(value)


def as_array_like(value: Any) -> Any:
    """A tensor or an array as it is; anything else as a constant tensor, a float as float32.

    Errors: TypeError for what holds no numbers; also for a sequence of tensors (such as max(dim) returns), whose gradients
    would be lost.
    """
    if isinstance(value, Tensor | np.ndarray):
        return value
    if isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value):
        raise TypeError(f"operand: got a {type(value).__name__} of tensors, expected one tensor; stack() makes one of several")
    if hasattr(value, "__record_call__"):
        return Tensor.from_array(value)
    try:
        return Tensor.from_array(as_array(value))
    except TypeError:
        raise TypeError(f"operand: got {reprlib.repr(value)} of type {type(value).__name__}, expected a tensor, an array or "
                        "real numbers") from None


def no_view(result: Tensor) -> Tensor:
    """A result that shows the memory of an intermediate, which nobody else sees: for the caller it is no view."""
    result._alias = None
    return result


def to(input: Any, dtype: Any) -> Tensor:
    """input in another dtype; a gradient comes back in input's own."""
    dtype = dtype_of("to", dtype)
    if dtype == input.dtype:
        return input
    if input.dtype.kind == "V":
        raise DtypeError(f"operand: got dtype {input.dtype}, expected {of_its_own('numbers', input.dtype)}")
    if dtype.kind != "f" or input.dtype.kind != "f" or not (getattr(input, "requires_grad", False) and records_graph()):
        return Tensor.from_array(densely(as_values(input), dtype))
    return apply(elementwise.cast, input, dtype=dtype)


# Dtypes ------------------------------------------------------------------------------------------------------------------


def dtype_of(name: str, dtype: Any) -> np.dtype:
    """An argument that names a dtype. Errors: TypeError for what names none, or none of numbers."""
    try:
        found = None if dtype is None or isinstance(dtype, Tensor | np.ndarray) else np.dtype(dtype)  # NumPy's None is float64
    except TypeError:
        found = None
    if found is None or found.kind not in "biufc":
        raise TypeError(f"{name}: dtype: got {dtype!r}, expected a dtype of NumPy's for numbers")
    return found


def result_type(*operands: Any) -> np.dtype:
    """torch.result_type: floats beat integers beat booleans; within a kind, tensors with axes beat 0-d ones beat numbers."""
    ranks: list[np.dtype | None] = [None, None, None]
    for a in operands:
        rank = (0 if a.ndim else 1) if hasattr(a, "ndim") else 2
        ranks[rank] = _wider(ranks[rank], a.dtype if rank < 2 else _number_dtype(a))
    found = _beats(ranks[0], _beats(ranks[1], ranks[2]))
    assert found is not None
    return found


def _number_dtype(number: Any) -> np.dtype:
    return np.dtype(np.bool_ if isinstance(number, bool) else np.int64 if isinstance(number, int) else np.float32)


def _wider(a: np.dtype | None, b: np.dtype | None) -> np.dtype | None:
    """The dtype that holds both; unlike NumPy's, a float beside an integer stays what it is."""
    if a is None or b is None:
        return b if a is None else a
    if (a.kind in INEXACT) != (b.kind in INEXACT):
        return a if a.kind in INEXACT else b
    return np.promote_types(a, b)


def _beats(strong: np.dtype | None, weak: np.dtype | None) -> np.dtype | None:
    if strong is None or weak is None:
        return weak if strong is None else strong
    if strong.kind in INEXACT:
        return strong
    return _wider(strong, weak) if strong.kind == "b" or weak.kind in INEXACT else strong


def promoted(*operands: Any) -> list[Any]:
    """The operands in their result type; Python numbers stay as they are, unless there is nothing else."""
    dtypes = {a.dtype for a in operands if hasattr(a, "dtype")}
    if len(dtypes) == 1 and next(iter(dtypes)).kind in INEXACT:
        return list(operands)
    dtype = result_type(*operands)
    if not dtypes:
        return [Tensor.from_array(np.asarray(a, dtype)) for a in operands]
    return [to(a, dtype) if hasattr(a, "dtype") else wrapped(a, dtype) for a in operands]


_HALF = np.dtype(np.float16)


def in_single(function: F) -> F:
    """The function of a float16 operand made in float32, as torch's kernels make it: the result alone is rounded."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        first = args[0] if args else next(iter(options.values()), None)
        if getattr(first, "dtype", None) != _HALF:
            return function(*args, **options)
        given = [*args, *options.values()]
        if wider := [a for a in given if getattr(a, "dtype", _HALF).kind == "f" and getattr(a, "dtype", _HALF) != _HALF]:
            raise DtypeError(f"{function.__name__}: got {wider[0].dtype} beside float16, expected one dtype")
        single = [to(a, np.float32) if getattr(a, "dtype", None) == _HALF else a for a in given]
        return to(function(*single[: len(args)], **dict(zip(options, single[len(args) :]))), _HALF)

    return call  # type: ignore[return-value]


def _of_halves(op: Op, x: Any, y: Any) -> Tensor:
    """An op of float16; a number beside it, or a tensor without axes in another dtype, is not rounded to float16 first."""
    numbers = [not hasattr(a, "dtype") or (not a.ndim and a.dtype != _HALF) for a in (x, y)]
    if not any(numbers):
        return apply(op, *promoted(x, y))
    return to(apply(op, *[to(a, np.float32) if hasattr(a, "dtype") else a for a in (x, y)]), _HALF)


def floating(input: Any) -> Any:
    """An operand of a function of real numbers: integers and booleans as float32, as in torch."""
    x = input if isinstance(input, Tensor | np.ndarray) else as_array_like(input)
    return x if x.dtype.kind in INEXACT else to(x, np.float32)


def numeric(name: str, input: Any) -> Any:
    """An operand, or DtypeError where it is of booleans, which torch refuses to negate or to order."""
    x = tensor_like(name, "input", input)
    if x.dtype == np.bool_:
        raise DtypeError(f"{name}: input: got dtype bool, expected numbers")
    return x


def only_floats(name: str, input: Any) -> Any:
    """An operand, or DtypeError where it is not floating: torch refuses the mean of integers."""
    x = tensor_like(name, "input", input)
    if x.dtype.kind not in INEXACT:
        raise DtypeError(f"{name}: input: got dtype {x.dtype}, expected {of_its_own('floats', x.dtype)}")
    return x


def summable(name: str, input: Any, dtype: Any = None) -> Any:
    """An operand of a sum: integers and booleans are added as int64, as in torch, unless a dtype is asked for.

    Errors: DtypeError for a dtype that is not floating where a gradient would be lost.
    """
    x = as_array_like(input)
    if dtype is None and x.dtype.kind in "biu":
        dtype = np.int64
    elif dtype is not None and np.dtype(dtype).kind not in INEXACT and records_graph() and getattr(x, "requires_grad", False):
        raise DtypeError(f"{name}: dtype: got {np.dtype(dtype)} for an input that requires grad, expected a floating dtype")
    return x if dtype is None else to(x, dtype)


def guarded(*what: str) -> Callable[[F], F]:
    """@guarded("input", "result"): backward refuses where the operands, or the result, were written to since.

    torch's gradient reads them, and torch refuses. The gradient here does not, and would be right. It is refused all the
    same, so that what runs here runs in torch.
    """

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Tensor:
            out: Tensor = function(*args, **options)
            if out._node is not None:
                out._node.watch(*(args or options.values()) if "input" in what else (), *(out,) if "result" in what else ())
            return out

        return call  # type: ignore[return-value]

    return wrap


# Ops as functions --------------------------------------------------------------------------------------------------------


def lift(op: Op) -> Callable[..., Tensor]:
    """An op as a function of tensors: `lift(op)(x, y, option=...)`."""

    def function(*args: Any, **options: Any) -> Tensor:
        return apply(op, *_promoted_floats([as_operand(a) for a in args]), **options)

    return _named(function, op)


def _promoted_floats(operands: list[Any]) -> list[Any]:
    """The operands with integers in the dtype of the floats beside them, or float32: what an op of any kind can take."""
    kinds = {a.dtype.kind for a in operands if hasattr(a, "dtype")}
    if not kinds & {"i", "u"}:
        return operands
    floats = [a for a in operands if hasattr(a, "dtype") and a.dtype.kind in INEXACT]
    dtype = result_type(*floats) if floats else np.dtype(np.float32)
    return [to(a, dtype) if hasattr(a, "dtype") and a.dtype.kind in "iu" else a for a in operands]


def unary(op: Op, real: bool = False) -> Callable[[Any], Tensor]:
    """An op of one operand as a function; `real` makes float32 of integers, and others take no booleans."""

    def function(input: Any) -> Tensor:
        return apply(op, floating(input) if real else numeric(op.name, input))

    return _named(function, op)


def binary(op: Op, exact: bool = False) -> Callable[[Any, Any], Tensor]:
    """An op of two operands that broadcast as a function, with torch's promotion. exact: float16 times or over a number has the
    number as it is, as in torch, and not rounded to float16."""

    def function(input: Any, other: Any) -> Tensor:
        x, y = promoted(as_operand(input), as_operand(other))
        if exact and (getattr(x, "dtype", None) is _HALF or getattr(y, "dtype", None) is _HALF):
            return _of_halves(op, as_operand(input), as_operand(other))
        return apply(op, x, y)

    return _named(function, op)


def _named(function: F, op: Op) -> F:
    function.__name__ = function.__qualname__ = op.name
    function.__doc__ = op.__doc__
    return function


# Arguments with one value ------------------------------------------------------------------------------------------------

_ONE_VALUE: dict[str, tuple[Any, ...]] = {
    "device": (None, "cpu"), "pin_memory": (False, None), "sparse": (False,), "sparse_grad": (False,),
}


def taking(*names: str) -> Callable[[F], F]:
    """@taking("device", "pin_memory"): the function takes these of torch's arguments too, by name, where they change nothing.

    Errors: ValueError for another value than that of NumPy's memory, such as pin_memory=True; TypeError for a dtype that
    names none.
    """

    def wrap(function: F) -> F:
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            for name in names:
                if name in options:
                    only(called, name, options.pop(name))
            if options.get("dtype") is not None:
                options["dtype"] = dtype_of(called, options["dtype"])
            return function(*args, **options)

        own = inspect.signature(function)
        taken = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_ONE_VALUE[name][0]) for name in names]
        call.__signature__ = own.replace(parameters=[*own.parameters.values(), *taken])  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return wrap


def only(name: str, argument: str, value: Any) -> None:
    """Nothing. Errors: ValueError where the argument has another value than the one there is."""
    allowed = _ONE_VALUE[argument]
    if value not in allowed and not (argument == "device" and str(value) in ("cpu", "cpu:0")):  # torch.device("cpu") too
        raise ArgumentError(f"{name}: {argument}: got {value!r}, expected {allowed[-1] or allowed[0]!r}")


# Axes --------------------------------------------------------------------------------------------------------------------


def whole(name: str, argument: str, value: Any) -> int:
    """An integer argument as an int. Errors: TypeError for what is none, 1.0 and True too, as in torch; ArgumentError for one
    of more than 64 bits."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            number = operator.index(value)
            if -(1 << 63) <= number <= 1 << 63:
                return number
            raise ArgumentError(f"{name}: {argument}: got {value!r}, expected an integer of at most 64 bits")
    raise TypeError(f"{name}: {argument}: got {value!r}, expected an integer")


def whole_tuple(name: str, argument: str, values: Any) -> tuple[int, ...]:
    """Several integers as a tuple. Errors: TypeError for what is no tuple or list of integers."""
    if not isinstance(values, tuple | list):
        raise TypeError(f"{name}: {argument}: got {values!r}, expected a tuple of integers")
    return tuple([whole(name, argument, value) for value in values])


def axis_of(name: str, input: Any, dim: int, argument: str = "dim") -> int:
    """`dim` as an axis in [0, input.ndim); 0 for 0-d. Errors: IndexRangeError where out of range, TypeError for no integer."""
    d, n = whole(name, argument, dim), max(input.ndim, 1)
    if not -n <= d < n:
        raise IndexRangeError(f"{name}: {argument}: got {dim}, expected {-n} to {n - 1} for shape {input.shape}")
    return d % n


def dims_of(name: str, input: Any, dim: Any) -> Any:
    """`dim` as the ops take it: None, or an int or a tuple of ints in range, each axis once."""
    if dim is None or type(dim) is int:
        return dim
    dims = whole_tuple(name, "dim", dim) if isinstance(dim, tuple | list) else whole(name, "dim", dim)
    if not input.ndim and isinstance(dims, tuple) and len({axis_of(name, input, d) for d in dims}) < len(dims):
        raise ArgumentError(f"{name}: dim: got {dim}, expected each axis once")
    return dims


def names_none(dims: Any) -> bool:
    """Whether dims is an empty tuple or list, which names no axis to NumPy and, of a reduction, all to torch."""
    return isinstance(dims, tuple | list) and not dims


def sizes_of(name: str, argument: str, size: Sequence[Any]) -> tuple[int, ...]:
    """The sizes of f(2, 3), f((2, 3)) and f([2, 3]), which mean the same."""
    return whole_tuple(name, argument, size[0] if len(size) == 1 and isinstance(size[0], tuple | list) else size)


def variadic(argument: str, name: str | None = None) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """f(x, 2, 3), f(x, (2, 3)) and f(x, argument=(2, 3)) mean the same: the function is given one tuple of integers."""

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        called = name or function.__name__

        @functools.wraps(function)
        def call(input: Any, *sizes: Any, **options: Any) -> Tensor:
            if argument in options:
                sizes = (*sizes, options.pop(argument))
            if not hasattr(input, "ndim"):
                input = tensor_like(called, "input", input)
            return function(input, sizes_of(called, argument, sizes), **options)

        return call

    return wrap
