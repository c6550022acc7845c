"""Layer norms and activations that are wrong."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from reference.bugs.patch import Apply, Bug, op_body, op_gradients, op_output
from tinygrad_llm.ops import REGISTRY

BA = "Ba et al. 2016: dx = (ĝ − mean ĝ − x̂ mean(ĝ x̂)) / σ"


def layer_norm(
    x: Any, weight: Any, bias: Any, eps: float = 1e-5, *, second: int = 1, third: int = 1, outside: bool = False,
    ddof: int = 0, axis: int = -1, weighted: bool = True, weight_from_x: bool = False, uncentred: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """Layer norm with switches for its mistakes; without one it is right."""
    centred = x - (0 if uncentred else np.mean(x, axis, keepdims=True))
    variance = np.sum(centred * centred, axis, keepdims=True) / max(x.shape[axis] - ddof, 1)
    scale = 1 / (np.sqrt(variance) + eps) if outside else 1 / np.sqrt(variance + eps)
    scale = scale.astype(x.dtype)
    normal = centred * scale
    out = normal if weight is None else normal * weight
    rows = tuple(range(x.ndim - 1))

    def vjp(g: Any) -> tuple[Any, ...]:
        gw = g if weight is None or not weighted else g * weight
        inner = second * np.mean(gw, axis, keepdims=True) + third * normal * np.mean(gw * normal, axis, keepdims=True)
        dweight = None if weight is None else np.sum(g * (x if weight_from_x else normal), rows)
        return scale * (gw - inner), dweight, None if bias is None else np.sum(g, rows)

    return (out if bias is None else out + bias), vjp


def _norm(**mistake: Any) -> Apply:
    return op_body("layer_norm", partial(layer_norm, **mistake))


def _small_eps(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> tuple[Any, Any]:
    return layer_norm(x, weight, bias, eps / 10)


def _gelu(always: str) -> Apply:
    original = REGISTRY["gelu"].function
    return op_body("gelu", lambda x, approximate="none": original(x, always))


def _gelu_constant(x: Any, approximate: str = "none") -> tuple[Any, Any]:
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.44715 * x * x * x))
    slope = c * (1 + 3 * 0.44715 * x * x)
    return 0.5 * x * (1 + t), lambda g: (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope),)


def _gelu_without_density(gradients: list[Any], g: Any, x: Any, *rest: Any) -> list[Any]:
    return [g * (np.asarray(x) > 0)]


BUGS = [
    Bug("layer norm", "dx without its third term", BA, _norm(third=0)),
    Bug("layer norm", "dx without mean ĝ", BA, _norm(second=0)),
    Bug("layer norm", "dx that takes σ for a constant", "no gradient through the statistics", _norm(second=0, third=0)),
    Bug("layer norm", "dx that forgets the weight", "ĝ = g · weight", _norm(weighted=False)),
    Bug("layer norm", "eps outside the root", "√(Var + eps), not √Var + eps", _norm(outside=True)),
    Bug("layer norm", "eps 1e-6 for 1e-5", "other frameworks' default", op_body("layer_norm", _small_eps)),
    Bug("layer norm", "unbiased variance (N − 1)", "torch.var's default is not layer_norm's", _norm(ddof=1)),
    Bug("layer norm", "statistics over the wrong axis", "over T in place of d", _norm(axis=-2)),
    Bug("layer norm", "mean not subtracted", "RMS norm, Zhang & Sennrich 2019", _norm(uncentred=True)),
    Bug("layer norm", "weight's gradient from x, not x̂", "dweight = Σ g x̂", _norm(weight_from_x=True)),
    Bug("activation", "GELU: exact where tanh was asked for", "Hendrycks & Gimpel 2016; GPT-2 has tanh", _gelu("none")),
    Bug("activation", "GELU: tanh where exact was asked for", "Hendrycks & Gimpel 2016", _gelu("tanh")),
    Bug("activation", "GELU: 0.44715 for 0.044715", "a digit", op_body("gelu", _gelu_constant)),
    Bug("activation", "GELU with the gradient of ReLU", "Φ + x φ(x)", op_gradients("gelu", _gelu_without_density)),
    Bug("activation", "relu′(0) = 1", "torch: 0 at the kink",
        op_gradients("relu", lambda d, g, x: [np.where(np.asarray(x) >= 0, g, 0).astype(g.dtype)])),
    Bug("activation", "relu's gradient from its cotangent's sign", "x ≤ 0 masks, not g ≤ 0",
        op_gradients("relu", lambda d, g, x: [np.where(g > 0, g, 0).astype(g.dtype)])),
    Bug("activation", "GELU in float64 inside", "a NumPy float64 scalar promotes",
        op_output("gelu", lambda out, x, **options: out.astype(np.float64))),
]  # fmt: skip
