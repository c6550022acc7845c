"""How each NumPy function is recorded: what its result looks like, and which call writes it into memory that is there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.capture import kernels, library
from tinygrad_llm.capture.ir import CaptureError

if TYPE_CHECKING:
    from tinygrad_llm.capture.record import Recorder, Traced


# Ufuncs --------------------------------------------------------------------------------------------------------------


def record_ufunc(recorder: Recorder, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """ufunc(...) or ufunc.reduce(...)."""
    if method == "reduce":
        return _reduce(recorder, ufunc, *inputs, **kwargs)
    if method in ("accumulate", "outer", "reduceat"):
        return library.record_other(recorder, getattr(ufunc, method), inputs, kwargs)
    if method != "__call__" or ufunc.nout != 1:
        raise CaptureError(f"{ufunc.__name__}.{method}: got a traced array, expected a call that gives one result")
    out = _own(ufunc, kwargs.pop("out", (None,))[0])
    dtype = kwargs.pop("dtype", None)
    if kwargs:
        raise CaptureError(f"{ufunc.__name__}: got {sorted(kwargs)}, expected no such arguments while recording")
    operands = [_settled(x) for x in inputs]
    kind = "matmul" if ufunc.signature else "ufunc"
    if out is None:
        shadows, result = [shadow_of(x) for x in operands], _result_dtype(ufunc, operands, dtype)
        out = _core_shadow(shadows, result, ufunc) if ufunc.signature else _broadcast(shadows, result)
    options = {} if dtype is None else {"dtype": np.dtype(dtype)}
    return _number(recorder.call(ufunc, kind, tuple(operands), out, options), out)


def _own(function: Any, out: Any) -> Any:
    """Where a call writes to; a number is not written to, so that `total += x` makes another one."""
    if out is not None and not hasattr(out, "shadow"):
        raise CaptureError(f"{function.__name__}: got a write into an array that is not the recorded function's own, "
                           "expected it to return its results")
    return None if out is not None and out.number else out


def _number(result: Any, out: Any = None) -> Any:
    """The result of a computation, for which NumPy has a scalar where it has no axes."""
    result.number = not result.ndim and not hasattr(out, "number")
    return result


def same_kind(x: Traced, result: Traced) -> Traced:
    """The result, a number if x is one."""
    result.number = x.number
    return result


def _settled(x: Any) -> Any:
    """An operand; lists become arrays, and numbers of a class of their own, such as an IntEnum, as NumPy takes them; 0-d arrays
    and NumPy's scalars stay."""
    own = isinstance(x, int | float | complex) and type(x) not in (bool, int, float, complex) and not isinstance(x, np.generic)
    return np.asarray(x) if own or isinstance(x, list | tuple) else x


def _result_dtype(ufunc: np.ufunc, operands: Sequence[Any], dtype: Any) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    kinds = tuple([x.dtype if hasattr(x, "dtype") else np.dtype(bool) if isinstance(x, bool) else type(x) for x in operands])
    return ufunc.resolve_dtypes((*kinds, None))[-1]


def shadow_of(x: Any) -> Any:
    """The layout of an operand."""
    return x.shadow if hasattr(x, "shadow") else np.asarray(x)


def _broadcast(shadows: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    """Untouched memory for an element-by-element result, its axes in the order that NumPy gives them."""
    flags: Any = [["readonly"]] * len(shadows) + [["writeonly", "allocate", "no_broadcast"]]
    operands: Any = [*shadows, None]
    return np.nditer(operands, ["zerosize_ok"], flags, [*[s.dtype for s in shadows], dtype]).operands[-1]


def _core_shadow(shadows: Sequence[np.ndarray], dtype: Any, ufunc: np.ufunc) -> np.ndarray:
    """The same for ufuncs with core axes: matmul, vecdot, matvec, vecmat."""
    inputs, output = _signature(ufunc, tuple([s.ndim for s in shadows]))
    sizes: dict[Any, int] = {}
    for shadow, axes in zip(shadows, inputs):
        for axis, n in zip(axes, shadow.shape[shadow.ndim - len(axes) :]):
            if sizes.setdefault(axis, n) != n:
                raise ValueError(f"{ufunc.__name__}: got shapes {[s.shape for s in shadows]}, whose axes {axis} differ")
    core = tuple([sizes[axis] for axis in output])
    if all(s.ndim == len(axes) for s, axes in zip(shadows, inputs)):
        return np.empty(core, dtype)
    loops = [np.lib.stride_tricks.as_strided(s, s.shape[: s.ndim - len(a)], s.strides[: s.ndim - len(a)])
             for s, a in zip(shadows, inputs)]
    order = _broadcast(loops, dtype)
    outer_first = sorted(range(order.ndim), key=lambda i: (-abs(order.strides[i]), i))
    out = np.empty((*[order.shape[i] for i in outer_first], *core), dtype)
    back = [outer_first.index(i) for i in range(order.ndim)]
    return out.transpose(*back, *range(order.ndim, out.ndim))


@functools.cache
def _signature(ufunc: np.ufunc, ndims: tuple[int, ...]) -> tuple[list[list[str]], list[str]]:
    """([["n", "k"], ["k", "m"]], ["n", "m"]) for "(n?,k),(k,m?)->(n?,m?)"; an axis n? that an operand lacks is in none."""
    assert ufunc.signature is not None
    left, right = ufunc.signature.split("->")
    inputs = [_axes(part) for part in left.split("),(")]
    lacking = {a for axes, ndim in zip(inputs, ndims) if ndim < len(axes) for a in axes if a.endswith("?")}
    return [[a for a in axes if a not in lacking] for axes in inputs], [a for a in _axes(right) if a not in lacking]


def _axes(part: str) -> list[str]:
    return [a for a in part.strip("()").split(",") if a]


def _reduce(
    recorder: Recorder, ufunc: np.ufunc, x: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False,
    initial: Any = None, where: Any = True,
) -> Any:
    if where is not True or out is not None:
        raise CaptureError(f"{ufunc.__name__}.reduce: got where or out, expected neither while recording")
    dims = tuple(range(x.ndim)) if axis is None else normalize_axis_tuple(axis, x.ndim)
    result = _reduced_dtype(ufunc, x.dtype, dtype)
    options = {"axis": dims, "keepdims": bool(keepdims)} | ({} if initial in (None, np._NoValue) else {"initial": initial})
    if dtype is not None:
        options["dtype"] = np.dtype(dtype)
    return _number(recorder.call(ufunc.reduce, "reduce", (x,), _reduced(x.shadow, dims, bool(keepdims), result), options))


def _reduced_dtype(ufunc: np.ufunc, dtype: np.dtype, wanted: Any) -> np.dtype:
    return ufunc.reduce(np.ones(1, dtype), dtype=wanted).dtype


def _reduced(shadow: np.ndarray, dims: tuple[int, ...], keepdims: bool, dtype: Any) -> np.ndarray:
    """Untouched memory for a reduction, its axes in the order that NumPy gives them."""
    kept = iter(range(shadow.ndim))
    axes = [-1 if i in dims else next(kept) for i in range(shadow.ndim)]
    flags: Any = ["reduce_ok", "zerosize_ok"]
    own: Any = [["readwrite", "allocate"], ["readonly"]]
    operands: Any = [None, shadow]
    if not shadow.size:
        left = np.empty([n for i, n in enumerate(shadow.shape) if i not in dims], dtype)
    else:
        left = np.nditer(operands, flags, own, [dtype, shadow.dtype], op_axes=[axes, list(range(shadow.ndim))]).operands[0]
    return np.expand_dims(left, sorted(dims)) if keepdims else left


# Functions -----------------------------------------------------------------------------------------------------------

Handler = Callable[..., Any]
_HANDLERS: dict[Any, Handler] = {}


def record_function(recorder: Recorder, function: Any, args: Any, kwargs: Any) -> Any:
    """A NumPy function that is no ufunc: by its handler, as a view, or refused."""
    if function in _HANDLERS:
        return _HANDLERS[function](recorder, *args, **kwargs)
    if function in _VIEWS:
        return _as_view(function, args, kwargs)
    if function in _SHAPES:
        return function(*[shadow_of(a) if hasattr(a, "shadow") else a for a in args], **kwargs)
    if function in library.FUNCTIONS:
        return library.record_other(recorder, function, args, kwargs)
    raise CaptureError(f"{function.__name__}: got a traced array, expected one of the NumPy functions that can be recorded")


_VIEWS = {np.transpose, np.swapaxes, np.moveaxis, np.broadcast_to, np.expand_dims, np.squeeze, np.flip, np.diagonal,
          np.split, np.array_split, np.atleast_1d, np.matrix_transpose}
_SHAPES = {np.shape, np.ndim, np.size, np.result_type, np.broadcast_shapes, np.iscomplexobj, np.isrealobj, np.can_cast}


def _as_view(function: Any, args: Any, kwargs: Any) -> Any:
    x, *rest = args
    result = function(x.shadow, *rest, **kwargs)
    return [x.show(part) for part in result] if isinstance(result, list | tuple) else x.show(result)


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """The handler of these functions: handler(recorder, *args, **kwargs)."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def copied(recorder: Recorder, x: Any, dtype: Any = None, order: Any = "K") -> Traced:
    """A copy, in another dtype if one is given."""
    layout = np.empty_like(shadow_of(x), dtype=dtype, order=order)
    return recorder.call(kernels.copy, "copy", (x,), layout)


def reshaped(x: Traced, shape: Any, order: str = "C") -> Traced:
    """A view where one is possible, else a view of a copy."""
    try:
        return x.show(np.reshape(x.shadow, shape, order=order, copy=False))  # type: ignore[call-overload]
    except ValueError:
        if order != "C":
            raise
        sizes = np.lib.stride_tricks.as_strided(np.empty(0, bool), x.shape, (0,) * x.ndim).reshape(shape).shape
        contiguous = copied(x.recorder, x, order="C")
        return contiguous.show(contiguous.shadow.reshape(sizes))


@handles(np.reshape)
def _reshape(recorder: Recorder, x: Any, shape: Any, order: str = "C", **options: Any) -> Any:
    return reshaped(x, shape, order)


@handles(np.copy)
def _copy(recorder: Recorder, x: Any, order: str = "K", subok: bool = False) -> Any:
    return copied(recorder, x, order=order)


@handles(np.astype)
def _astype(recorder: Recorder, x: Any, dtype: Any, **options: Any) -> Any:
    return x.astype(dtype, **options)


@handles(np.ravel)
def _ravel(recorder: Recorder, x: Any, order: str = "C") -> Any:
    return reshaped(x, -1, order)


@handles(np.sum)
def _sum(recorder: Recorder, x: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    return _reduce(recorder, np.add, x, axis, dtype, out, keepdims)


@handles(np.prod)
def _prod(recorder: Recorder, x: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    return _reduce(recorder, np.multiply, x, axis, dtype, out, keepdims)


@handles(np.max, np.amax)
def _max(recorder: Recorder, x: Any, axis: Any = None, out: Any = None, keepdims: Any = False, initial: Any = None) -> Any:
    return _reduce(recorder, np.maximum, x, axis, None, out, keepdims, initial)


@handles(np.min, np.amin)
def _min(recorder: Recorder, x: Any, axis: Any = None, out: Any = None, keepdims: Any = False, initial: Any = None) -> Any:
    return _reduce(recorder, np.minimum, x, axis, None, out, keepdims, initial)


@handles(np.any)
def _any(recorder: Recorder, x: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    return _reduce(recorder, np.logical_or, x, axis, None, out, keepdims)


@handles(np.all)
def _all(recorder: Recorder, x: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    return _reduce(recorder, np.logical_and, x, axis, None, out, keepdims)


@handles(np.may_share_memory)
def _may_share_memory(recorder: Recorder, a: Any, b: Any, max_work: Any = None) -> bool:
    x, y = recorder.view(a), recorder.view(b)
    return x.buffer is y.buffer and np.may_share_memory(shadow_of(a), shadow_of(b))


@handles(np.mean)
def _mean(recorder: Recorder, x: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    """Σ x / n, as NumPy does it; float16 and integers it adds up in another dtype, of complex numbers it divides otherwise."""
    if x.dtype.kind != "f" or x.dtype == np.float16 or dtype is not None or out is not None:
        return library.record_other(recorder, np.mean, (x, axis, dtype), {"keepdims": keepdims, "out": out})
    total = _reduce(recorder, np.add, x, axis, None, out, keepdims)
    n = x.size // max(total.size, 1)
    return np.true_divide(total, n)


@handles(np.where)
def _where(recorder: Recorder, condition: Any, x: Any, y: Any) -> Any:
    dtype = np.result_type(*[getattr(v, "dtype", v) for v in (x, y)])
    layout = _broadcast([shadow_of(v) for v in (condition, x, y)], dtype)
    return recorder.call(kernels.where, "where", (condition, x, y), layout)


@handles(np.clip)
def _clip(recorder: Recorder, x: Any, a_min: Any = None, a_max: Any = None, **options: Any) -> Any:
    if (a_min is None and a_max is None) or options:
        raise CaptureError("clip: got no bound, or further arguments, expected bounds alone while recording")
    if a_min is None or a_max is None:
        return np.minimum(x, a_max) if a_min is None else np.maximum(x, a_min)
    bounds = [getattr(v, "dtype", v) for v in (x, a_min, a_max)]
    layout = _broadcast([shadow_of(v) for v in (x, a_min, a_max)], np.result_type(*bounds))
    plain = all(b == layout.dtype if isinstance(b, np.dtype) else layout.dtype.kind == "f" for b in bounds)
    return recorder.call(kernels.CLIP if plain else kernels.clip, "ufunc", (x, a_min, a_max), layout)


@handles(np.take)
def _take(recorder: Recorder, x: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    """With a mode that never raises, NumPy writes the result where it is to go."""
    if mode == "raise" or axis is None or out is not None or not hasattr(x, "shadow"):
        return library.record_other(recorder, np.take, (x, indices, axis), {"out": out, "mode": mode})
    layout = np.empty(np.take(np.broadcast_to(np.empty((), x.dtype), x.shape), library.stand_in(indices), axis).shape, x.dtype)
    return recorder.call(np.take, "index", (x, indices), layout, {"axis": axis, "mode": mode})


@handles(np.concatenate)
def _concatenate(recorder: Recorder, arrays: Any, axis: Any = 0) -> Any:
    """One copy for each part."""
    if axis is None:
        arrays, axis = [reshaped(a, -1) if hasattr(a, "shadow") else np.ravel(a) for a in arrays], 0
    shadows = [shadow_of(a) for a in arrays]
    shape = list(np.concatenate([np.broadcast_to(np.empty((), bool), s.shape) for s in shadows], axis).shape)
    out = recorder.new(_in_order(shape, np.result_type(*[s.dtype for s in shadows]), _joint_order(shadows)))
    start = 0
    for a, s in zip(arrays, shadows):
        place = [slice(None)] * len(shape)
        place[axis] = slice(start, start := start + s.shape[axis])
        recorder.call(kernels.copy, "copy", (a,), out.show(out.shadow[tuple(place)]))
    return out


def _joint_order(arrays: Sequence[np.ndarray]) -> list[int]:
    """The axes from the slowest to the fastest, as concatenate finds them: those of the arrays, in doubt row-major order."""
    order: list[int] = []
    for axis in range(arrays[0].ndim):
        at = len(order)
        for i in reversed(range(len(order))):
            steps = [(abs(a.strides[axis]), abs(a.strides[order[i]])) for a in arrays
                     if 1 not in (a.shape[axis], a.shape[order[i]])]
            if steps and all(own > other for own, other in steps):
                at = i
            elif steps:
                break
        order.insert(at, axis)
    return order


def _in_order(shape: Sequence[int], dtype: Any, order: Sequence[int]) -> np.ndarray:
    """Untouched memory whose axes, from the slowest to the fastest, are those of `order`."""
    return np.empty([shape[i] for i in order], dtype).transpose(np.argsort(order))


@handles(np.stack)
def _stack(recorder: Recorder, arrays: Any, axis: int = 0) -> Any:
    return _concatenate(recorder, [np.expand_dims(a, axis) for a in arrays], axis)


@handles(np.empty)
def _empty(recorder: Recorder, shape: Any, dtype: Any = float, order: str = "C", **options: Any) -> Any:
    return recorder.new(np.empty(shape, dtype, order))  # type: ignore[call-overload]


@handles(np.zeros)
def _zeros(recorder: Recorder, shape: Any, dtype: Any = float, order: str = "C", **options: Any) -> Any:
    return recorder.call(kernels.copy, "copy", (0,), np.empty(shape, dtype, order))  # type: ignore[call-overload]


@handles(np.full)
def _full(recorder: Recorder, shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", **options: Any) -> Any:
    dtype = np.asarray(fill_value).dtype if dtype is None else dtype
    return recorder.call(kernels.copy, "copy", (fill_value,), np.empty(shape, dtype, order))  # type: ignore[call-overload]


@handles(np.empty_like)
def _empty_like(recorder: Recorder, x: Any, dtype: Any = None, **options: Any) -> Any:
    return recorder.new(np.empty_like(shadow_of(x), dtype=dtype, **options))


@handles(np.zeros_like)
def _zeros_like(recorder: Recorder, x: Any, dtype: Any = None, **options: Any) -> Any:
    return recorder.call(kernels.copy, "copy", (0,), np.empty_like(shadow_of(x), dtype=dtype, **options))


@handles(np.ones_like)
def _ones_like(recorder: Recorder, x: Any, dtype: Any = None, **options: Any) -> Any:
    return recorder.call(kernels.copy, "copy", (1,), np.empty_like(shadow_of(x), dtype=dtype, **options))


@handles(np.copyto)
def _copyto(recorder: Recorder, dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    if where is not True or not hasattr(dst, "shadow"):
        raise CaptureError("copyto: got where, or an array that is not traced, expected neither while recording")
    recorder.call(kernels.copy, "copy", (src,), dst)


# Indices and opaque functions ----------------------------------------------------------------------------------------


def record_getitem(x: Traced, index: Any) -> Any:
    """x[index]: a view, or for an index with arrays a call."""
    if is_basic(index):
        shadow = x.shadow[index]
        return x.show(shadow) if isinstance(shadow, np.ndarray) else _number(copied(x.recorder, x[(*_tuple(index), ...)]))
    template, parts = _template(index)
    layout = x.shadow[kernels.fill(template, tuple([library.stand_in(p) for p in parts]))]
    if isinstance(layout, np.ndarray) and np.may_share_memory(layout, x.shadow):
        raise CaptureError("index: got an integer with a value that is not known, of which NumPy makes a view, expected "
                           "np.take, which makes a copy")
    result = x.recorder.call(kernels.take, "index", (x, *parts), np.empty_like(layout), {"index": template})
    result.number = not isinstance(layout, np.ndarray)
    return result


def record_setitem(x: Traced, index: Any, value: Any) -> None:
    """x[index] = value."""
    if x.number:
        raise TypeError("'number' object does not support item assignment")
    if is_basic(index):
        place = record_getitem(x, index if ... in _tuple(index) else (*_tuple(index), ...))
        if x.recorder.view(value) != x.recorder.view(place):  # x[i] += y has written there already
            x.recorder.call(kernels.copy, "copy", (value,), place)
        return
    template, parts = _template(index)
    x.recorder.call(kernels.put, "index", (x, value, *parts), x, {"index": template})


def record_opaque(recorder: Recorder, function: Any, like: Any, args: Any, options: Any, apart: bool) -> Any:
    """A function that is not looked into; see tinygrad_llm.ops.opaque."""
    layout = None if like is None else np.empty(*like(*args, **options))
    if any(hasattr(a, "shadow") for a in flatten(([a for a in args if not hasattr(a, "shadow")], options))[0]):
        function, args = library.Other.of(function, args, options, writes=like is not None)
        options = {}
    kind = "check" if layout is None else "apart" if apart else "opaque"
    return recorder.call(function, kind, args, layout, options)


def is_basic(index: Any) -> bool:
    """Whether an index is made of slices, integers, None and ... alone."""
    return all(i is None or i is Ellipsis or (isinstance(i, int | np.integer | slice) and not isinstance(i, bool))
               for i in _tuple(index))


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _template(index: Any) -> tuple[Any, list[Any]]:
    parts: list[Any] = []

    def hole(i: Any) -> Any:
        i = np.asarray(i) if isinstance(i, list) else i
        if not hasattr(i, "shape"):
            return i
        if i.dtype.kind == "b" and hasattr(i, "shadow"):
            raise CaptureError("capture: got a mask as an index, expected integers: how many it takes depends on its values")
        parts.append(i)
        return kernels.Hole(len(parts) - 1)

    return (tuple([hole(i) for i in index]) if isinstance(index, tuple) else hole(index)), parts
