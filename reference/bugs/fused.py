"""Fused ops that are wrong where their pieces meet: chunks of the vocabulary, blocks of query rows, packed gradients.

Where the pieces begin and end is left to the library, so that a check sees these only if it has more than one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from reference.bugs.patch import Apply, Bug, method, op_body, op_gradients

MILAKOV = "Milakov & Gimelshein 2018: the online softmax"
DAO = "Dao et al. 2022: attention by blocks"


def chunked_loss(
    x: Any, weight: Any, target: Any, bias: Any = None, ignore_index: int = -100, reduction: str = "mean",
    *, chunks: Any, rescaled: bool = True, added: bool = True,
) -> tuple[Any, Any]:  # fmt: skip
    """linear_cross_entropy over a running maximum and sum, with switches for its mistakes; without one it is right."""
    n, places = len(x), chunks(len(x), len(weight))
    used, rows = target != ignore_index, np.arange(len(x))
    t, w = np.where(used, target, 0), used.astype(x.dtype)
    logits = np.matmul(x, weight.T) + (0 if bias is None else bias)
    largest, z = np.full(n, -np.inf, x.dtype), np.zeros(n, x.dtype)
    for a, b in places:
        before, largest = largest, np.maximum(largest, np.max(logits[:, a:b], -1))
        z = z * (np.exp(before - largest) if rescaled else 1) + np.sum(np.exp(logits[:, a:b] - largest[:, None]), -1)
    log_z = largest + np.log(z)
    row = w * (log_z - logits[rows, t])
    share = 1 / max(w.sum(), 1) if reduction == "mean" else x.dtype.type(1)

    def vjp(g: Any) -> tuple[Any, ...]:
        d = np.exp(logits - log_z[:, None])
        d[rows, t] -= 1
        d *= (w * g * share)[:, None]
        parts = [np.matmul(d[:, a:b], weight[a:b]) for a, b in places]
        return sum(parts) if added else parts[-1], np.matmul(d.T, x), None, None if bias is None else np.sum(d, 0)

    return row if reduction == "none" else np.sum(row) * share, vjp


def _chunked(**mistake: Any) -> Apply:
    def apply(library: Any) -> AbstractContextManager[None]:
        body = partial(chunked_loss, chunks=library.ops.losses._chunks, **mistake)
        return op_body("linear_cross_entropy", body)(library)

    return apply


def _moved_borders(original: Any, library: Any, by: int) -> Any:
    return lambda n, v: [(a, b if b == v else b + by) for a, b in original(n, v)]


def _in_every_chunk(original: Any, library: Any) -> Any:
    return lambda t, start, end: (np.ones(t.shape, bool), np.arange(t.size) * (end - start) + t % (end - start))


def _not_at_the_border(original: Any, library: Any) -> Any:
    return lambda t, start, end: original(np.where((t == start) & (start > 0), -1, t), start, end)


def _short_blocks(original: Any, library: Any) -> Any:
    def blocks(t: int, s: int, is_causal: bool) -> list[tuple[int, int, int]]:
        found = original(t, s, is_causal)
        return [(a, b, end - 1) for a, b, end in found[:-1]] + found[-1:]

    return blocks


def _mask(original: Any, library: Any, start_of: Any) -> Any:
    """A strip whose hidden keys start elsewhere, in every block but the first."""

    def strip(scores: Any, start: int) -> Any:
        return original(scores, start_of(start) if 0 < start < scores.shape[-1] else start)

    return strip


def _strip(start_of: Any) -> Apply:
    return method("ops.attention._softmax", partial(_mask, start_of=start_of))


BUGS = [
    Bug("fused", "chunk border: a class counted twice", "range(a, b + 1)",
        method("ops.losses._chunks", partial(_moved_borders, by=1))),
    Bug("fused", "chunk border: a class left out", "range(a, b - 1)",
        method("ops.losses._chunks", partial(_moved_borders, by=-1))),
    Bug("fused", "earlier chunks not rescaled to a new maximum", MILAKOV, _chunked(rescaled=False)),
    Bug("fused", "dx of the last chunk alone", "= in place of += over the chunks", _chunked(added=False)),
    Bug("fused", "target taken in every chunk", "its column modulo the chunk's size",
        method("ops.losses._place", _in_every_chunk)),
    Bug("fused", "target at a chunk's border not found", "t > start, not t ≥ start",
        method("ops.losses._place", _not_at_the_border)),
    Bug("fused", "a block's keys cut one short", DAO, method("ops.attention._blocks", _short_blocks)),
    Bug("fused", "mask of later blocks shifted by one", DAO, _strip(lambda start: start + 1)),
    Bug("fused", "mask of later blocks counted from key 0", DAO, _strip(lambda start: 0)),
    Bug("fused", "packed gradient: dQ and dK swapped", "the layout of qkv_proj",
        op_gradients("attention_qkvpacked", lambda d, g, qkv: [d[0][..., [1, 0, 2], :, :]])),
    Bug("fused", "packed gradient: none of V", "a slice not written",
        op_gradients("attention_qkvpacked", lambda d, g, qkv: [d[0] * np.array([1, 1, 0], g.dtype)[:, None, None]])),
]  # fmt: skip
