"""Products of matrices and vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, apply
from tinygrad_llm.functions.base import INEXACT, as_array_like, as_operand, no_view, to
from tinygrad_llm.functions.elementwise import add, mul, where
from tinygrad_llm.functions.reductions import sum
from tinygrad_llm.functions.shapes import broadcast_to, reshape
from tinygrad_llm.ops import DtypeError, ShapeError, linalg
from tinygrad_llm.ops.numbers import plain


def matmul(input: Any, other: Any) -> Tensor:
    """The matrix product over broadcast leading axes; a vector is a row on the left and a column on the right."""
    x, y = as_operand(input), as_operand(other)
    if not getattr(x, "ndim", 0) or not getattr(y, "ndim", 0):
        raise ShapeError(f"matmul: got shapes {np.shape(x)} and {np.shape(y)}, expected at least one axis each")
    if x.dtype == y.dtype == np.bool_:
        raise DtypeError("matmul: got booleans, expected numbers")
    left, right = x.ndim == 1, y.ndim == 1
    x = reshape(x, (1, -1)) if left else x
    y = reshape(y, (-1, 1)) if right else y
    out = _matmul_matrices(x, y)
    if not (left or right):
        return out
    return no_view(reshape(out, (*out.shape[:-2], *(() if left else out.shape[-2:-1]), *(() if right else out.shape[-1:]))))


def _matmul_matrices(x: Any, y: Any) -> Tensor:
    """Rows of a batch times one matrix are one product, not one for each member of the batch."""
    if x.ndim > 2 and y.ndim == 2 and x.shape[-1] == y.shape[0] and 0 not in x.shape:
        return no_view(reshape(apply(linalg.matmul, reshape(x, (-1, x.shape[-1])), y), (*x.shape[:-1], y.shape[-1])))
    return apply(linalg.matmul, x, y)


def mm(input: Any, mat2: Any) -> Tensor:
    """[N, K] [K, M] → [N, M]; nothing broadcasts."""
    return matmul(*_ranks("mm", input=(input, 2), mat2=(mat2, 2)))


def bmm(input: Any, mat2: Any) -> Tensor:
    """[B, N, K] [B, K, M] → [B, N, M]; nothing broadcasts."""
    x, y = _ranks("bmm", input=(input, 3), mat2=(mat2, 3))
    if x.shape[0] != y.shape[0]:
        raise ShapeError(f"bmm: mat2: got shape {y.shape}, expected {x.shape[0]} matrices as in input {x.shape}")
    return matmul(x, y)


def mv(input: Any, vec: Any) -> Tensor:
    """[N, K] [K] → [N]"""
    return matmul(*_ranks("mv", input=(input, 2), vec=(vec, 1)))


def dot(input: Any, tensor: Any) -> Tensor:
    """[N] [N] → 0-d: Σ xᵢ yᵢ"""
    x, y = _ranks("dot", input=(input, 1), tensor=(tensor, 1))
    if x.shape != y.shape or x.dtype != y.dtype:
        wrong = ShapeError if x.shape != y.shape else DtypeError
        raise wrong(f"dot: tensor: got {y.dtype} of shape {y.shape}, expected {x.dtype} of shape {x.shape} as input")
    return sum(mul(x, y)) if not x.shape[0] else matmul(x, y)


def outer(input: Any, vec2: Any) -> Tensor:
    """[N] [M] → [N, M]: xᵢ yⱼ"""
    x, y = _ranks("outer", input=(input, 1), vec2=(vec2, 1))
    return mul(reshape(x, (x.shape[0], 1)), y)


def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta · input + alpha · mat1 mat2; where beta is 0, input counts for nothing, were it nan."""
    return _scaled_sum("addmm", input, _ranks("addmm", mat1=(mat1, 2), mat2=(mat2, 2)), beta, alpha)


def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta · input + alpha · bmm(batch1, batch2); where beta is 0, input counts for nothing, were it nan."""
    return _scaled_sum("baddbmm", input, _ranks("baddbmm", batch1=(batch1, 3), batch2=(batch2, 3)), beta, alpha)


def _scaled_sum(name: str, input: Any, factors: list[Any], beta: float, alpha: float) -> Tensor:
    """Where alpha is 0, the product counts for nothing either."""
    beta, alpha = plain(beta), plain(alpha)
    x, half = as_array_like(input), all(a.dtype == np.float16 for a in factors)
    if half and x.dtype == np.float16:  # only the result is rounded
        return to(_scaled_sum(name, to(x, np.float32), [to(a, np.float32) for a in factors], beta, alpha), np.float16)
    product = bmm(*factors) if factors[0].ndim == 3 else matmul(*factors)
    if x.dtype != product.dtype:
        raise DtypeError(f"{name}: input: got dtype {x.dtype}, expected {product.dtype} as in the product")
    if x.dtype.kind not in INEXACT and (wrong := [f for f in (beta, alpha) if not isinstance(f, int)]):
        raise DtypeError(f"{name}: beta, alpha: got {wrong[0]} for {x.dtype}, expected integers")
    scaled = product if alpha == 1 else mul(product, alpha) if alpha else where(False, product, 0)
    x = broadcast_to(x, product.shape)
    if beta == 0:
        return where(False, x, scaled)
    return add(x if beta == 1 else mul(x, beta), scaled)


def _ranks(name: str, **operands: tuple[Any, int]) -> list[Any]:
    """The operands as tensors; ShapeError where one has another number of axes than stands beside it."""
    found = []
    for key, (value, ndim) in operands.items():
        x = as_array_like(value)
        if x.ndim != ndim:
            raise ShapeError(f"{name}: {key}: got shape {x.shape}, expected {ndim} axes")
        found.append(x)
    return found
