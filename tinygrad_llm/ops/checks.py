"""The checks of a call: every argument against its shape string, in errors that say which, what it was, and what it may be."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.ops.errors import DtypeError, IndexRangeError, ShapeError, of_its_own
from tinygrad_llm.ops.opaque import as_values, opaque
from tinygrad_llm.ops.spec import Arg, Dim

if TYPE_CHECKING:
    from tinygrad_llm.ops.declare import Op


def check_call(op: Op, arrays: tuple[Any, ...]) -> bool:
    """Raise for shapes or dtypes that the declaration does not allow; return whether gradients must be summed."""
    if len(arrays) > len(op.args):
        raise TypeError(f"{op.name}: got {len(arrays)} arrays, expected {[a.name for a in op.args]}")
    sizes: dict[str, Any] = {}
    for arg, array in zip(op.args, arrays):
        _check_one(op, arg, array, sizes)
    _check_dtypes(op, arrays)
    return _must_sum(op, arrays, sizes)


def _check_one(op: Op, arg: Arg, array: Any, sizes: dict[str, Any]) -> None:
    """Bind the axes of one argument to sizes; ShapeError where they disagree with those bound before."""
    if array is None or not hasattr(array, "shape"):
        _check_scalar(op, arg, array)
        return
    _check_kind(op, arg, array)
    axes, group = arg.axes, arg.group
    if array.ndim < len(axes) or (group is None and array.ndim != len(axes)):
        raise ShapeError(f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r}")
    lead = array.shape[: array.ndim - len(axes)]
    for dim, size in zip(axes, array.shape[len(lead) :]):
        _bind_axis(op, arg, array, dim, size, sizes)
    if group is not None:
        _bind_group(op, arg, array, group, lead, sizes)


def _bind_axis(op: Op, arg: Arg, array: Any, dim: Dim, size: int, sizes: dict[str, Any]) -> None:
    bound, owner = sizes.setdefault(dim.name, (int(dim.name) if dim.name.isdigit() else size, arg.name))
    if size != bound:
        raise ShapeError(
            f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r} with {dim.name} = {bound} as in {owner}"
        )
    if size < dim.least:
        raise ShapeError(f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r}: {dim.name} >= {dim.least}")


def _bind_group(op: Op, arg: Arg, array: Any, group: Dim, lead: tuple[int, ...], sizes: dict[str, Any]) -> None:
    bound, owner = sizes.setdefault(group.group + group.name, (lead, arg.name))
    if group.group == "*" and lead != bound:
        raise ShapeError(
            f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r} with leading axes {bound} as in {owner}"
        )
    if group.group == "~":
        try:
            sizes["~" + group.name] = (np.broadcast_shapes(bound, lead), owner)
        except ValueError:
            raise ShapeError(
                f"{op.name}: {arg.name}: got shape {array.shape}, expected leading axes that broadcast with {bound} of {owner}"
            ) from None


def _must_sum(op: Op, arrays: tuple[Any, ...], sizes: dict[str, Any]) -> bool:
    """Whether some argument with ~axes is smaller, or of another dtype, than what it is broadcast to."""
    pairs = [(arg, a) for arg, a in zip(op.args, arrays) if arg.group and arg.group.group == "~" and hasattr(a, "shape")]
    leads = [a.shape[: a.ndim - len(arg.axes)] != sizes["~" + arg.group.name][0] for arg, a in pairs if arg.group]
    return any(leads) or len({a.dtype for _, a in pairs}) > 1


def _check_scalar(op: Op, arg: Arg, value: Any) -> None:
    if value is None and arg.optional:
        return
    if isinstance(value, int | float | complex) and arg.group and not arg.axes:
        return
    raise TypeError(f"{op.name}: {arg.name}: got {value!r} of type {type(value).__name__}, expected a tensor {arg.spec!r}")


def _check_kind(op: Op, arg: Arg, array: Any) -> None:
    allowed = {"float": "biufc", "int": "iu", "bool": "b"}[arg.kind]
    if array.dtype.kind not in allowed:
        expected = {"float": "numbers", "int": "integers", "bool": "booleans"}[arg.kind]
        raise DtypeError(f"{op.name}: {arg.name}: got dtype {array.dtype}, expected {of_its_own(expected, array.dtype)}")


def _check_dtypes(op: Op, arrays: tuple[Any, ...]) -> None:
    """Arguments that do not broadcast must share one floating dtype, as in torch."""
    floats = [
        (arg, array.dtype) for arg, array in zip(op.args, arrays)
        if arg.kind == "float" and hasattr(array, "dtype") and not (arg.group and arg.group.group == "~" and not arg.axes)
    ]
    for arg, dtype in floats[1:]:
        if dtype != floats[0][1]:
            raise DtypeError(f"{op.name}: {arg.name}: got dtype {dtype}, expected {floats[0][1]} as in {floats[0][0].name}")


def check_range(op: Op, arg: Arg, array: Any, arrays: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """IndexRangeError where an index is outside [0, V), V the axis or the option that `int < V` names."""
    assert arg.below is not None
    size = options[arg.below] if arg.below in op.options else _axis_size(op, arg.below, arrays)
    check_below(as_values(array), size, f"{op.name}: {arg.name}", arg.below)


def unsigned(values: Any) -> Any:
    """Integers with the negative ones as very large ones, so that one comparison finds them too."""
    return values.view(_unsigned_of(values.dtype)) if values.dtype.kind == "i" else values


@functools.cache
def _unsigned_of(dtype: np.dtype) -> np.dtype:
    return np.dtype(dtype.str.replace("i", "u"))


@opaque(None)
def check_below(values: Any, size: int, what: str, limit: str) -> None:
    """IndexRangeError where a value is outside [0, size)."""
    if values.size and np.maximum.reduce(unsigned(values), None) >= size:
        bad = values[(values < 0) | (values >= size)].flat[0]
        raise IndexRangeError(f"{what}: got {bad}, expected 0 to {size - 1}, as {limit} = {size}")


def _axis_size(op: Op, name: str, arrays: tuple[Any, ...]) -> int:
    return next(a.shape[a.ndim - len(arg.axes) + i] for arg, a in zip(op.args, arrays)
                for i, dim in enumerate(arg.axes) if dim.name == name and hasattr(a, "shape"))
