"""Batched: an array that stands for one example of a batch, and computes for all of them at once.

Its `data` has the batch in front; `shape`, `ndim` and axes leave it out, so that an op's body, written for one example, runs
unchanged, and so does its vjp. Each NumPy call is made once, on the data, where a rule below says how; any other is made for
one example after the other and its results stacked: slow, and always right, for it looks at nothing but its arguments.

Batched arrays nest: the data of one may be one of another level. The inner vmap, whose level has the higher number, is always
the outer wrapper. What is not batched at a level counts as the same for all of its examples.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from tinygrad_llm.autograd.errors import AutogradError
from tinygrad_llm.autograd.trees import flatten
from tinygrad_llm.ops import gaps

_NUMBERS = itertools.count()


class Level:
    """One call of vmap: how many examples, and what becomes of random numbers: "error", "same" or "different"."""

    def __init__(self, size: int, randomness: str) -> None:
        self.size, self.randomness, self.number, self.active = size, randomness, next(_NUMBERS), True


class Batched(np.lib.mixins.NDArrayOperatorsMixin):
    """ndarray's interface, for one example; see the module's docstring."""

    __slots__ = ("__weakref__", "base", "data", "level")
    __array_priority__ = 1000

    def __init__(self, data: Any, level: Level, base: Any = None) -> None:
        self.data, self.level, self.base = data, level, base  # base: of what shows the memory of another, that one

    shape = property(lambda self: self.data.shape[1:])
    strides = property(lambda self: self.data.strides[1:])
    ndim = property(lambda self: self.data.ndim - 1)
    size = property(lambda self: int(np.prod(self.data.shape[1:], dtype=np.int64)))
    dtype = property(lambda self: self.data.dtype)
    itemsize = property(lambda self: self.data.itemsize)
    nbytes = property(lambda self: self.size * self.itemsize)
    flags = property(lambda self: self.data.flags)
    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))
    is_new = property(lambda self: self.base is None and self.data.base is None)

    def _view(self, data: Any) -> Batched:
        """Of other data, that may show the same memory."""
        shows = data.base is not None and np.may_share_memory(data, self.data)
        return Batched(data, self.level, (self if self.base is None else self.base) if shows else None)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<batch of {self.level.size}: {self.data!r}>"

    # Computation -----------------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(hasattr(x, "__apply_op__") for x in inputs):
            return NotImplemented  # the tensor knows what to do
        return _ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(hasattr(t, "__apply_op__") for t in types):
            return NotImplemented
        if function in _NEW:
            made = function((self.level.size, *_sizes(args[0])), *args[1:], **kwargs, like=_plain(self.data))
            return Batched(made, self.level)
        found = _RULES[function](*args, **kwargs) if function in _RULES else NotImplemented
        return one_by_one(function, args, kwargs) if found is NotImplemented else found

    def __record_call__(self, function: Any, like: Any, args: Any, options: Any, apart: bool) -> Any:
        drawn = any(isinstance(a, np.random.Generator) for a in (*args, *options.values()))
        return draw(self.level, function, args, options) if drawn else one_by_one(function, args, options)

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(p, Batched) and p.dtype == np.bool_ for p in parts):
            self._no_value()
        if _is_apart(parts):
            return one_by_one(operator.getitem, (self, index), {})
        return self._view(self.data[(slice(None), *parts)])

    def __setitem__(self, index: Any, value: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        check_level(self, value)
        if _is_apart(parts):
            one_by_one(operator.setitem, (self, index, value), {})
            return
        place = (slice(None), *parts)
        self.data[place] = _aligned(value, self.level, self.data[place].ndim - 1)

    def reshape(self, *shape: Any, order: str = "C") -> Batched:
        """As ndarray.reshape."""
        if order != "C":
            return one_by_one(np.reshape, (self, shape[0] if len(shape) == 1 else shape), {"order": order})
        sizes = list(_sizes(shape[0] if len(shape) == 1 else shape))
        rest = int(np.prod([n for n in sizes if n != -1], dtype=np.int64))
        if sizes.count(-1) == 1 and rest:
            sizes[sizes.index(-1)] = self.size // rest
        if int(np.prod(sizes, dtype=np.int64)) != self.size or min(sizes, default=0) < 0:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {tuple(_sizes(shape))}")
        return self._view(self.data.reshape((self.level.size, *sizes)))

    def astype(self, dtype: Any, **options: Any) -> Batched:
        """As ndarray.astype."""
        return self._view(self.data.astype(dtype, **options))

    def copy(self, order: str = "C") -> Batched:
        """As ndarray.copy."""
        return Batched(self.data.copy(order), self.level)

    def view(self, *dtype: Any) -> Batched:
        """As ndarray.view."""
        return self._view(self.data.view(*dtype))

    def transpose(self, *axes: Any) -> Batched:
        """As ndarray.transpose."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int | np.integer) else axes
        dims = normalize_axis_tuple(order, self.ndim) if order else tuple(reversed(range(self.ndim)))
        return self._view(self.data.transpose((0, *[d + 1 for d in dims])))

    def swapaxes(self, first: int, second: int) -> Batched:
        """As ndarray.swapaxes."""
        return self._view(self.data.swapaxes(*[normalize_axis_index(d, self.ndim) + 1 for d in (first, second)]))

    def fill(self, value: Any) -> None:
        """As ndarray.fill."""
        self[...] = value

    # Values, of which it has one for each example --------------------------------------------------------------------

    def _no_value(self, *args: Any, **kwargs: Any) -> Any:
        raise AutogradError("vmap: got a question for the values of a batched tensor (item(), bool, tensor(x), a shape that "
                            "depends on values, a write into what is not batched), expected a function that asks for none: "
                            "where() chooses for each example")

    __array__ = __bool__ = __float__ = __int__ = __index__ = __complex__ = __contains__ = _no_value
    item = tolist = tobytes = nonzero = _no_value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(np.ndarray, name) or not hasattr(np, name):
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(np, name)(self, *args, **kwargs)


def _plain(data: Any) -> Any:
    """The ndarray at the bottom, or what else is no Batched."""
    while isinstance(data, Batched):
        data = data.data
    return data


# Levels ------------------------------------------------------------------------------------------------------------------


def has_level(array: Any, level: Level) -> bool:
    """Whether an array, or what it is made of, is batched at a level."""
    while isinstance(array, Batched):
        if array.level is level:
            return True
        array = array.data
    return False


def enter(array: Any, axis: int, level: Level) -> Any:
    """The array with an axis of its own as the batch of a level."""
    if isinstance(array, Batched) and array.level.number > level.number:
        return Batched(enter(array.data, axis + 1, level), array.level)
    return Batched(_moved(array, axis, 0), level)


def leave(array: Any, axis: int, level: Level) -> Any:
    """The array with the batch of a level as an axis; of what is not batched at that level, repeated."""
    if not has_level(array, level):
        return _moved(np.broadcast_to(array, (level.size, *array.shape)), 0, axis)
    if array.level is not level:
        return Batched(leave(array.data, axis + 1, level), array.level)
    return _moved(array.data, 0, axis)


def lift(array: Any, level: Level) -> Any:
    """The array as the same for every example of a level. It cannot be written to."""
    return array if has_level(array, level) else enter(np.broadcast_to(array, (level.size, *array.shape)), 0, level)


def at(array: Any, index: Any) -> Any:
    """array[index], where the index may be batched and the array not."""
    leaves = [x for x in flatten(index)[0] if isinstance(x, Batched)]
    for level in sorted({x.level for x in leaves}, key=lambda level: level.number):
        array = lift(array, level)
    return array[index]


def check_level(target: Any, value: Any) -> None:
    """AutogradError where a value, or an index, has examples that what it is written into has not."""
    value = next((x for x in flatten(value)[0] if isinstance(x, Batched)), None)
    while isinstance(value, Batched):
        if not has_level(target, value.level):
            raise AutogradError("vmap: in-place write: got batched values for a tensor that is not batched, where each example "
                                "would overwrite the one before, expected a batched tensor, or a new one as the result")
        value = value.data


def _moved(array: Any, source: int, target: int) -> Any:
    if source == target:
        return array
    dims = [d for d in range(array.ndim) if d != source]
    dims.insert(target, source)
    return array.transpose(dims)


# One example after the other ---------------------------------------------------------------------------------------------


def one_by_one(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The results of a function for each example, stacked; what is no array must be the same for all."""
    leaves, rebuild = flatten((tuple(args), dict(kwargs)))
    level = highest(leaves)
    found = []
    for i in range(max(level.size, 1)):
        own, options = rebuild([_example(x, i, level) for x in leaves])
        found.append(flatten(function(*own, **options)))
    form = found[0][1]
    return form([_stacked(function, [leaves[k] for leaves, _ in found], level) for k in range(len(found[0][0]))])


def highest(leaves: Any) -> Level:
    """The level of the innermost vmap at which one of some values is batched."""
    return max([x.level for x in leaves if isinstance(x, Batched)], key=lambda level: level.number)


def _example(x: Any, i: int, level: Level) -> Any:
    if not isinstance(x, Batched) or x.level is not level:
        return x
    return x.data[i, ...] if level.size else np.zeros_like(x.data, shape=x.shape)


def _stacked(function: Any, results: list[Any], level: Level) -> Any:
    first, name = results[0], getattr(function, "__name__", function)
    if not isinstance(first, np.ndarray | np.generic | Batched):
        if any(r is not first and r != first for r in results):
            raise AutogradError(f"vmap: {name}: got {first!r} for one example and another answer for others, expected one")
        return first
    if any(r.shape != first.shape or r.dtype != first.dtype for r in results):
        raise AutogradError(f"vmap: {name}: got results whose shapes or dtypes depend on the values of an example, such as "
                            f"{first.dtype} {first.shape}, expected the same for all")
    return Batched(np.concatenate([r[None] for r in results])[: level.size], level)


def draw(level: Level, function: Callable[..., Any], args: Any, options: Any) -> Any:
    """Random numbers: for each example its own, the same for all, or AutogradError, as the level says."""
    if level.randomness == "error":
        raise AutogradError("vmap: randomness: got 'error' and a function that draws random numbers, expected 'same' or "
                            "'different', or a function that draws none")
    if level.randomness == "different":
        return one_by_one(function, args, options)
    return function(*[_example(a, 0, level) for a in args], **options)


def op_one_by_one(op: Any, args: Any, options: Any) -> tuple[Any, Callable[[Any], Any]]:
    """An op for each example: (the outputs stacked, a vjp that calls each one's)."""
    leaves, rebuild = flatten((tuple(args), options))
    level = highest(leaves)
    calls = []
    for i in range(max(level.size, 1)):
        own, named = rebuild([_example(x, i, level) for x in leaves])
        calls.append(op(*own, **named))

    def vjp(g: Any) -> Any:
        found = [pull(_example(g, i, level)) for i, (_, pull) in enumerate(calls)]
        return tuple([_stacked(op.name, list(parts), level) for parts in zip(*found)])

    return _stacked(op.name, [out for out, _ in calls], level), vjp


# Rules -------------------------------------------------------------------------------------------------------------------


def _aligned(x: Any, level: Level, ndim: int) -> Any:
    """An operand that broadcasts with others of ndim axes: axes of size 1 between the batch and its own."""
    if isinstance(x, Batched) and x.level is level:
        return x.data if x.ndim >= ndim else x.data[(slice(None), *[None] * (ndim - x.ndim))]
    extra = np.ndim(x) - ndim
    return x if extra <= 0 else np.reshape(x, x.shape[extra:])  # NumPy lets a value have axes of size 1 in front


def _ufunc(ufunc: Any, method: str, inputs: Any, kwargs: Any) -> Any:
    (out,) = kwargs.pop("out", (None,))
    level = highest([*inputs, out])
    ndim = max(np.ndim(x) for x in inputs)
    cores = {np.matmul: 2, np.vecdot: 1, **({} if ufunc.signature else {ufunc: 0})}
    if method != "__call__" or kwargs.keys() & {"axis", "axes", "where"} or min(map(np.ndim, inputs)) < cores.get(ufunc, 99):
        return one_by_one(getattr(ufunc, method), inputs, kwargs if out is None else {**kwargs, "out": out})
    operands = [_aligned(x, level, ndim) for x in inputs]
    if out is None or not has_level(out, level):  # `a *= b` binds a to what comes back
        found = ufunc(*operands, **kwargs)
        return tuple([Batched(f, level) for f in found]) if isinstance(found, tuple) else Batched(found, level)
    gaps.call(ufunc, *operands, out=_aligned(out, level, out.ndim), **kwargs)
    return out


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple([operator.index(n) for n in shape]) if isinstance(shape, tuple | list) else (operator.index(shape),)


def _axes(x: Batched, axis: Any) -> Any:
    if axis is None:
        return tuple(range(1, x.ndim + 1))
    if isinstance(axis, tuple):
        return tuple([d + 1 for d in normalize_axis_tuple(axis, x.ndim)])
    return normalize_axis_index(axis, x.ndim) + 1


def _along(function: Any, none: bool) -> Callable[..., Any]:
    """A rule for function(x, axis, ...), with or without a meaning for an axis of None that a tuple can say."""

    def rule(a: Any, axis: Any = None, **options: Any) -> Any:
        if not isinstance(a, Batched) or (axis is None and not none) or options.keys() - {"keepdims", "dtype", "ddof"}:
            return NotImplemented
        return Batched(function(a.data, axis=_axes(a, axis), **options), a.level)

    return rule


def _broadcasting(function: Any) -> Callable[..., Any]:
    """A rule for a function whose arguments broadcast as a ufunc's do."""

    def rule(*args: Any, **options: Any) -> Any:
        if len(args) < 2 or options:
            return NotImplemented
        level, ndim = highest(args), max(np.ndim(x) for x in args)
        return Batched(function(*[_aligned(x, level, ndim) for x in args]), level)

    return rule


def _like(function: Any) -> Callable[..., Any]:
    def rule(a: Any, *args: Any, **options: Any) -> Any:
        if "shape" in options or len(args) > 1 or any(isinstance(x, Batched) for x in args):
            return NotImplemented
        return Batched(function(a.data, *args, **options), a.level)

    return rule


def _broadcast_to(array: Batched, shape: Any) -> Batched:
    sizes = _sizes(shape)
    if len(sizes) < array.ndim:
        raise ValueError(f"cannot broadcast shape {array.shape} to {sizes}")
    return array._view(np.broadcast_to(_aligned(array, array.level, len(sizes)), (array.level.size, *sizes)))


def _concatenate(arrays: Any, axis: int | None = 0, **options: Any) -> Any:
    if axis is None or options:
        return NotImplemented
    level = highest(arrays)
    parts = [lift(np.asarray(a) if np.isscalar(a) else a, level) for a in arrays]
    return Batched(np.concatenate([p.data for p in parts], _axes(parts[0], axis)), level)


def _copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> Any:
    check_level(dst, src)
    if where is not True:
        return NotImplemented
    return np.copyto(dst.data, _aligned(src, dst.level, dst.ndim), casting=casting)


def _squeezed(a: Any, axis: Any = None) -> Any:
    drop = range(a.ndim) if axis is None else normalize_axis_tuple(axis, a.ndim)
    return a.reshape(tuple([n for d, n in enumerate(a.shape) if d not in drop or n != 1]))


def _is_apart(parts: tuple[Any, ...]) -> bool:
    """Whether an index holds batched parts, or arrays that NumPy would put in front of the batch."""
    arrays = [k for k, p in enumerate(parts) if not (p is None or p is Ellipsis or isinstance(p, slice | int | np.integer))]
    advanced = [k for k, p in enumerate(parts) if k in arrays or isinstance(p, int | np.integer)]
    batched = any(isinstance(leaf, Batched) for k in arrays for leaf in flatten(parts[k])[0])
    return batched or bool(arrays and advanced != list(range(advanced[0], advanced[-1] + 1)))


_NEW = (np.empty, np.zeros, np.ones, np.full)
_RULES: dict[Any, Callable[..., Any]] = {
    **{f: _along(f, True) for f in (np.sum, np.mean, np.max, np.min, np.amax, np.amin, np.prod, np.any, np.all, np.var, np.std,
                                    np.flip)},
    **{f: _along(f, False) for f in (np.argmax, np.argmin, np.cumsum, np.cumprod, np.argsort)},
    **{f: _broadcasting(f) for f in (np.where, np.clip)},
    **{f: _like(f) for f in (np.empty_like, np.zeros_like, np.ones_like, np.full_like, np.copy)},
    np.broadcast_to: _broadcast_to, np.concatenate: _concatenate, np.copyto: _copyto, np.squeeze: _squeezed,
    np.reshape: lambda a, shape, **options: a.reshape(shape, **options),
    np.diagonal: lambda a, offset, axis1, axis2: a._view(np.diagonal(a.data, offset, axis1, axis2)),
    np.transpose: lambda a, axes=None: a.transpose(*() if axes is None else (tuple(axes),)),
    np.swapaxes: lambda a, axis1, axis2: a.swapaxes(axis1, axis2),
    np.shape: lambda a: a.shape, np.ndim: lambda a: a.ndim, np.size: lambda a: a.size,
    np.may_share_memory: lambda a, b, *rest: np.may_share_memory(_plain(a), _plain(b)),
    np.array2string: lambda a, *args, **options: np.array2string(a.data, *args, **options),
}
