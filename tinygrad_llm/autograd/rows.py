"""Gradients for a batch of cotangents: what torch's `grad(..., is_grads_batched=True)` computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd.trees import FormError


def gradients_of_rows(
    grad: Callable[..., tuple[Any, ...]], outs: Sequence[Any], wanted: Sequence[Any], given: Sequence[Any],
    retain_graph: bool | None, create_graph: bool, allow_unused: bool | None, materialize_grads: bool,
) -> tuple[Any, ...]:
    """grad of outs for each row of the cotangents given, whose first axis counts them, stacked: of shapes [rows, *input].

    One walk for each row: what an op's vjp computes is right for one cotangent, also where it looks at values or writes.
    An input that nothing depends on gives None, or where materialize_grads, zeros of its own shape, as in torch.
    Errors: FormError where shapes or numbers of rows do not fit; those of grad.
    """
    n = _number_of_rows(outs, given)
    unused = True if materialize_grads else allow_unused
    keep = create_graph if retain_graph is None else retain_graph
    found = [grad(outs, wanted, [g[i] for g in given], i < n - 1 or keep, create_graph, allow_unused=unused)
             for i in range(n)]
    return tuple([_stacked([row[j] for row in found], x, materialize_grads) for j, x in enumerate(wanted)])


def _number_of_rows(outs: Sequence[Any], given: Sequence[Any]) -> int:
    if len(given) != len(outs):
        raise FormError(f"grad: grad_outputs: got {len(given)}, expected {len(outs)}, one for each output")
    for i, (g, out) in enumerate(zip(given, outs)):
        if g is None or np.shape(g)[1:] != out.shape or not np.ndim(g):
            got = "None" if g is None else f"shape {np.shape(g)}"
            raise FormError(f"grad: grad_outputs[{i}]: got {got}, expected rows of shape {out.shape} (is_grads_batched=True)")
    if len({len(g) for g in given}) > 1:
        raise FormError(f"grad: grad_outputs: got {[len(g) for g in given]} rows, expected the same number for all outputs")
    return len(given[0])


def _stacked(rows: Sequence[Any], x: Any, materialize: bool) -> Any:
    if not rows:
        return x.wrap(np.zeros((0, *x.shape), x.dtype))
    if any(row is None for row in rows):
        return x.wrap(np.zeros(x.shape, x.dtype)) if materialize else None
    return np.stack(rows)
