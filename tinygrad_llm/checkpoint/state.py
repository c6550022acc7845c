"""State trees: nested dicts, lists, arrays and plain values, taken apart into tensors and JSON, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]


def flatten_state(state: Any) -> tuple[Tensors, Any]:
    """A tree of dicts, lists, tuples, arrays and plain values → (name → array, the rest as JSON values).

    Exact both ways: integers of any size, NaN, ±inf and -0.0, NumPy scalars with their dtype, tuples as tuples, dict
    keys str or int. Any Mapping comes back as a dict; an array that occurs twice comes back as two. Arrays are not
    copied. Raises TypeError at anything else, naming its place in the tree.
    """
    tensors: Tensors = {}
    return tensors, encode(state, "", tensors)


def unflatten_state(tensors: Mapping[str, np.ndarray], encoded: Any) -> Any:
    """The inverse of flatten_state. Raises ValueError where a tensor is missing or the encoding is not ours."""
    return decode(encoded, dict(tensors))


def encode(value: Any, where: str, tensors: Tensors) -> Any:
    """`value` as JSON values; its arrays go into `tensors`, named by their place, which starts with `where`."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.ndarray):
        return {"$tensor": _store(value, where or "state", tensors)}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {"$scalar": [value.dtype.str, value.tobytes().hex()]}
    if kind in (list, tuple):
        items = [encode(item, _under(where, i), tensors) for i, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if isinstance(value, Mapping):
        return _encode_mapping(value, where, tensors)
    expected = "None, bool, int, float, str, list, tuple, dict or a NumPy array"
    raise TypeError(f"{where or 'state'}: got {kind.__name__}, expected {expected}")


def _encode_mapping(value: Mapping[Any, Any], where: str, tensors: Tensors) -> dict[str, Any]:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"{where or 'state'}: got the key {key!r}, expected keys that are str or int")
    items = [(key, encode(item, _under(where, key), tensors)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return dict(items)
    return {"$dict": [list(item) for item in items]}


def _store(array: np.ndarray, name: str, tensors: Tensors) -> str:
    while name in tensors:
        name += "'"
    tensors[name] = array
    return name


def _under(where: str, key: object) -> str:
    return f"{where}/{key}" if where else str(key)


def decode(value: Any, tensors: Tensors) -> Any:
    """The inverse of encode; takes the arrays out of `tensors`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: decode(item, tensors) for key, item in value.items()}
    if tag not in _DECODERS or len(value) != 1:
        raise ValueError(f"state: got the tag {tag!r}, expected one of {', '.join(_DECODERS)}")
    return _DECODERS[tag](value[tag], tensors)


def _take(name: str, tensors: Tensors) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"state: got no tensor {name!r}, expected it beside the metadata that names it")
    return tensors.pop(name)


_DECODERS: dict[str, Any] = {
    "$float": lambda body, _: float(body),
    "$tensor": _take,
    "$scalar": lambda body, _: np.frombuffer(bytes.fromhex(body[1]), dtype=body[0])[0],
    "$tuple": lambda body, tensors: tuple(decode(body, tensors)),
    "$dict": lambda body, tensors: {key: decode(item, tensors) for key, item in body},
}
