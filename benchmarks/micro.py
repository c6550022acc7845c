"""Single ops, in the sizes of S1 to S4. One expression serves both sides, since the names and arguments are torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FORWARD, BOTH, STEP = "forward", "forward + backward", "step"
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Op:
    """call(F, **arguments), F being torch.nn.functional or ours; call None: a step of AdamW on `arguments`.

    arguments    name → shape; (shape, n) are integers below n, without a gradient
    work         what is timed → the operations (unit "flop") or the bytes (unit "byte") that it cannot do without:
                 each input read once, each result written once
    """

    name: str
    arguments: Mapping[str, Any]
    call: Callable[..., Any] | None
    unit: str
    work: Mapping[str, float]


def _products(name: str, call: Callable[..., Any], flops: float, **arguments: Any) -> Op:
    return Op(name, arguments, call, "flop", {FORWARD: flops, BOTH: 3 * flops})


def _streams(name: str, call: Callable[..., Any], forward: float, both: float, **arguments: Any) -> Op:
    return Op(name, arguments, call, "byte", {FORWARD: FLOAT * forward, BOTH: FLOAT * both})


def _linear(rows: int, into: int, out: int) -> Op:
    shapes = {"x": (rows, into), "weight": (out, into), "bias": (out,)}
    name = f"linear [{rows}, {into}] → {out}"
    return _products(name, lambda F, x, weight, bias: F.linear(x, weight, bias), 2 * rows * into * out, **shapes)


def _attention(b: int, h: int, t: int, d: int) -> Op:
    shape, flops = (b, h, t, d), 4 * b * h * d * t * (t + 1) / 2
    return _products(
        f"causal attention [{b}, {h}, {t}, {d}]",
        lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), flops, q=shape, k=shape, v=shape,
    )


def _pointwise(name: str, call: Callable[..., Any], *shape: int) -> Op:
    """Forward reads x and writes y; backward reads x (or y) and g, and writes dx."""
    n = int(np.prod(shape))
    return _streams(f"{name} {list(shape)}", call, 2 * n, 5 * n, x=shape)


def _layer_norm(rows: int, d: int) -> Op:
    n = rows * d
    return _streams(
        f"layer_norm [{rows}, {d}]", lambda F, x, weight, bias: F.layer_norm(x, (d,), weight, bias), 2 * n, 5 * n,
        x=(rows, d), weight=(d,), bias=(d,),
    )


def _cross_entropy(rows: int, v: int) -> Op:
    n = rows * v
    return _streams(
        f"cross_entropy [{rows}, {v}]", lambda F, x, target: F.cross_entropy(x, target), n, 3 * n,
        x=(rows, v), target=((rows,), v),
    )


def _embedding(rows: int, v: int, d: int) -> Op:
    """Backward reads g and writes the whole table's gradient."""
    return _streams(
        f"embedding [{v}, {d}], {rows} ids", lambda F, ids, weight: F.embedding(ids, weight),
        2 * rows * d, 3 * rows * d + v * d, ids=((rows,), v), weight=(v, d),
    )


def _adamw(*shape: int) -> Op:
    """Reads p, g, m, v and writes p, m, v."""
    return Op(f"AdamW {list(shape)}", {"p": shape}, None, "byte", {STEP: 7 * FLOAT * float(np.prod(shape))})


OPS = {op.name: op for op in (
    _linear(2048, 128, 512),
    _linear(3072, 384, 1536),
    _attention(32, 4, 64, 32),
    _attention(12, 6, 256, 64),
    _layer_norm(3072, 384),
    _pointwise("relu", lambda F, x: F.relu(x), 3072, 1536),
    _pointwise("gelu", lambda F, x: F.gelu(x), 3072, 1536),
    _pointwise("softmax", lambda F, x: F.softmax(x, dim=-1), 18432, 256),
    _cross_entropy(3072, 65),
    _cross_entropy(512, 50257),
    _embedding(1024, 50257, 256),
    _adamw(384, 1536),
    _adamw(50257, 256),
)}


def find_ops(names: list[str]) -> list[Op]:
    """The ops whose names begin so; all without names. Raises ValueError for a name that begins none."""
    for name in names:
        if not any(full.startswith(name) for full in OPS):
            raise ValueError(f"ops: got {name!r}, expected the beginning of one of {'; '.join(OPS)}")
    return [op for full, op in OPS.items() if not names or any(full.startswith(name) for name in names)]


def draw_arguments(op: Op, seed: int, dtype: str) -> dict[str, np.ndarray]:
    """name → array; N(0, 1), or integers below a bound."""
    rng = np.random.default_rng(seed)
    return {name: _draw(rng, shape, dtype) for name, shape in op.arguments.items()}


def _draw(rng: np.random.Generator, shape: Any, dtype: str) -> np.ndarray:
    if shape and isinstance(shape[0], tuple):
        return rng.integers(0, shape[1], shape[0])
    return rng.standard_normal(shape, np.float32).astype(dtype, copy=False)
