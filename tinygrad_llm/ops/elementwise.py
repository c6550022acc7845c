"""Ops that act on each element by itself. Where shapes differ they broadcast; the declaration sums the gradients back."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev

from tinygrad_llm.ops.closures import each
from tinygrad_llm.ops.declare import Vjp, compute, op
from tinygrad_llm.ops.errors import ArgumentError
from tinygrad_llm.ops.opaque import densely


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | complex)


def kept_where(g: Any, where: Any) -> Any:
    """g where a condition holds, else 0, though g be infinite there. Bits times 1 or 0: np.where takes twenty times as long."""
    if hasattr(g, "__apply_op__") or g.dtype.kind != "f":
        return np.where(where, g, 0)
    return (g.view(f"i{g.dtype.itemsize}") * where).view(g.dtype)


@op(x="~B", y="~B", torch="x + y")
def add(x: Any, y: Any) -> tuple[Any, Vjp]:
    """x + y.   dx = g,  dy = g"""
    return x + y, lambda g: (g, g)


@op(x="~B", y="~B", torch="x - y")
def sub(x: Any, y: Any) -> tuple[Any, Vjp]:
    """x − y.   dx = g,  dy = −g"""
    return x - y, lambda g: (g, -g)


@op(x="~B", y="~B", torch="x * y")
def mul(x: Any, y: Any) -> tuple[Any, Vjp]:
    """x · y.   dx = g · y,  dy = g · x"""
    if _is_number(y):
        return x * y, lambda g: (g * y, None)
    if _is_number(x):
        return x * y, lambda g: (None, g * x)
    return x * y, each(lambda g: g * y, lambda g: g * x)


@op(x="~B", y="~B != 0", torch="x / y")
def div(x: Any, y: Any) -> tuple[Any, Vjp]:
    """x / y.   dx = g / y,  dy = −g · x / y²"""
    if _is_number(y):
        return x / y, lambda g: (g / y, None)
    return x / y, each(lambda g: g / y, lambda g: -g * (x / y / y))


@op(x="~B", torch="-x")
def neg(x: Any) -> tuple[Any, Vjp]:
    """−x.   dx = −g"""
    return -x, lambda g: (-g,)


@op(x="~B in (-4, 4)", torch="torch.exp(x)")
def exp(x: Any) -> tuple[Any, Vjp]:
    """eˣ.   dx = g · eˣ"""
    out = np.exp(x)
    return out, lambda g: (g * out,)


@op(x="~B in (-4, 4)", torch="torch.expm1(x)")
def expm1(x: Any) -> tuple[Any, Vjp]:
    """eˣ − 1, without the loss of digits near 0.   dx = g · eˣ"""
    out = np.expm1(x)
    return out, lambda g: (g * (out + 1),)


@op(x="~B in (0.05, 8)", torch="torch.log(x)")
def log(x: Any) -> tuple[Any, Vjp]:
    """ln x, x > 0.   dx = g / x"""
    return np.log(x), lambda g: (g / x,)


@op(x="~B in (-0.9, 8)", torch="torch.log1p(x)")
def log1p(x: Any) -> tuple[Any, Vjp]:
    """ln(1 + x), x > −1, without the loss of digits near 0.   dx = g / (1 + x)"""
    return np.log1p(x), lambda g: (g / (1 + x),)


@op(x="~B in (0.05, 8)", torch="torch.sqrt(x)")
def sqrt(x: Any) -> tuple[Any, Vjp]:
    """√x, x ≥ 0.   dx = g / (2 √x)"""
    out = np.sqrt(x)
    return out, lambda g: (g / (2 * out),)


@op(x="~B", torch="torch.square(x)")
def square(x: Any) -> tuple[Any, Vjp]:
    """x².   dx = 2 g x"""
    return x * x, lambda g: (g * x * 2,)  # 2 g may be infinite where 2 g x is not


@op(x="~B in (0.2, 3)", y="~B in (-3, 3)", torch="torch.pow(x, y)")
def pow(x: Any, y: Any) -> tuple[Any, Vjp]:
    """xʸ.   dx = g · y · xʸ⁻¹ (0 where y = 0),  dy = g · xʸ · ln x (0 where x = 0 and y ≥ 0; nan where x < 0)"""
    out = _power(x, y)
    if _is_number(y):
        return out, lambda g: (g * (y * _power(x, y - 1)) if y != 0 else kept_where(g, False), None)
    if _is_number(x):
        slope = math.log(x) if x > 0 else -math.inf if x == 0 else math.nan
        return out, lambda g: (None, np.where(y >= 0, 0, g * out * slope) if x == 0 else g * out * slope)

    def vjp(g: Any) -> tuple[Any, Any]:
        dx = kept_where(g, y != 0) * np.where(y == 0, 0, y * x ** np.where(y == 0, 1, y - 1))
        safe = np.where((x == 0) & (y >= 0), 1, x)
        with np.errstate(invalid="ignore"):  # nan where x < 0, as in torch
            return dx, g * out * np.log(safe)

    return out, vjp


def _power(x: Any, y: Any) -> Any:
    """xʸ; 1/√x for y = −1/2, which is nan for −∞ and −∞ for −0 as √ makes it, in torch and for NumPy's own y = 1/2."""
    return 1 / np.sqrt(x) if _is_number(y) and y == -0.5 else x**y


@op(x="~B", torch="torch.sin(x)")
def sin(x: Any) -> tuple[Any, Vjp]:
    """sin x, x in radians.   dx = g · cos x"""
    return np.sin(x), lambda g: (g * np.cos(x),)


@op(x="~B", torch="torch.cos(x)")
def cos(x: Any) -> tuple[Any, Vjp]:
    """cos x, x in radians.   dx = −g · sin x"""
    return np.cos(x), lambda g: (-g * np.sin(x),)


@op(x="~B", torch="torch.tanh(x)")
def tanh(x: Any) -> tuple[Any, Vjp]:
    """tanh x.   dx = g · (1 − tanh² x)"""
    out = np.tanh(x)
    return out, lambda g: (g * (1 - out * out),)


@op(x="~B", torch="torch.sigmoid(x)")
def sigmoid(x: Any) -> tuple[Any, Vjp]:
    """σ(x) = 1 / (1 + e⁻ˣ), written with e = e^−|x| so that nothing overflows.   dx = g · σ (1 − σ) = g · e / (1 + e)²

    The last form keeps its digits where σ is nearly 1, and so do its derivatives.
    """
    small = np.exp(np.where(x >= 0, -x, x))
    out = np.where(x >= 0, 1, small) / (1 + small)
    return out, lambda g: (g * (small / np.square(1 + small)),)


@op(x="~B", torch="F.silu(x)")
def silu(x: Any) -> tuple[Any, Vjp]:
    """x σ(x).   Elfwing et al. 2017, arXiv:1702.03118.   dx = g · (σ + x σ (1 − σ)), of which no part but g is ever large"""
    s = compute(sigmoid, x)
    return x * s, lambda g: (g * (s + x * s * (1 - s)),)


@op(x="~B != 0", kinked=True, torch="torch.abs(x)")
def abs(x: Any) -> tuple[Any, Vjp]:
    """|x|.   dx = g · sign x, 0 at 0 and at nan as in torch"""
    out = np.where(x < 0, -x, x) if x.dtype.kind == "c" else np.abs(x)
    return out, lambda g: (g * np.where(x == x, np.sign(x), 0),)


@op(x="~B", y="~B", torch="torch.maximum(x, y)")
def maximum(x: Any, y: Any) -> tuple[Any, Vjp]:
    """max(x, y).   The larger takes the gradient; where x = y each takes half, as in torch"""
    return np.maximum(x, y), lambda g: _shares(g, x == y, x < y, x > y)


@op(x="~B", y="~B", torch="torch.minimum(x, y)")
def minimum(x: Any, y: Any) -> tuple[Any, Vjp]:
    """min(x, y).   The smaller takes the gradient; where x = y each takes half, as in torch"""
    return np.minimum(x, y), lambda g: _shares(g, x == y, x > y, x < y)


def _shares(g: Any, tie: Any, x_loses: Any, y_loses: Any) -> tuple[Any, Any]:
    share = np.where(tie, g / 2, g)  # beside a nan neither loses: both take the gradient, as in torch
    return kept_where(share, ~x_loses), kept_where(share, ~y_loses)


@op(x="~B", options={"min": (-1.5, None), "max": (2.0,)}, torch="torch.clamp(x, min, max)")
def clamp(x: Any, min: float | None = None, max: float | None = None) -> tuple[Any, Vjp]:
    """min(max(x, min), max).   dx = g where min < x < max, else 0 (at the bounds too, as in torch since 2.14)"""
    inside = x < max if min is None else x > min if max is None else (x > min) & (x < max)
    return np.clip(x, min, max), lambda g: (kept_where(g, inside),)


@op(condition="~B bool", x="~B", y="~B", torch="torch.where(condition, x, y)")
def where(condition: Any, x: Any, y: Any) -> tuple[Any, Vjp]:
    """x where condition holds, else y.   dx = g where condition,  dy = g where not"""
    return np.where(condition, x, y), lambda g: (None, kept_where(g, condition), kept_where(g, np.logical_not(condition)))


@op(x="*B", options={"dtype": (np.float32, np.float64)}, torch="x.to(getattr(torch, np.dtype(dtype).name))")
def cast(x: Any, dtype: Any) -> tuple[Any, Vjp]:
    """x in another floating dtype.   dx = g in the dtype of x"""
    back = x.dtype
    return densely(x, dtype), lambda g: (g.astype(back),)


@op(x="~B != 0", kinked=True, torch="torch.relu(x)")
def relu(x: Any) -> tuple[Any, Vjp]:
    """max(x, 0).   dx = g where x > 0, else 0 (at 0 too, as in torch)"""
    out = np.clip(x, 0, np.inf) if x.dtype.kind == "f" else np.maximum(x, 0)  # with a number, twice as fast as maximum
    live = out != 0  # where x is nan too
    return out, lambda g: (kept_where(g, live),)


@op(x="~B", torch="torch.erf(x)")
def erf(x: Any) -> tuple[Any, Vjp]:
    """erf x = 2/√π ∫₀ˣ e^(−t²) dt.   dx = g · 2/√π · e^(−x²)

    |x| < 1: x · p(x²).  |x| ≥ 1: 1 − t · exp(−x² + q(t)), t = 2/(2 + |x|)  (the form of Numerical Recipes, 6.2.2);
    p and q are Chebyshev fits to the C library's erf and erfc, made on first use, accurate to a few ulp of float64.
    """
    return _erf(x), lambda g: (g * (2 / math.sqrt(math.pi) * np.exp(-x * x)),)


def _erf(x: Any) -> Any:
    if hasattr(x, "__apply_op__"):
        return compute(erf, x)
    near, far = _erf_fits(6, 9) if x.dtype == np.float32 else _erf_fits(12, 18)
    magnitude = np.where(x < 0, -x, x) if x.dtype.kind == "c" else np.abs(x)
    inside, z = np.minimum(magnitude, 1), np.minimum(magnitude, 6)  # erf is 1 to the last bit from 5.93 on
    t = 2 / (2 + z)
    tail = 1 - t * np.exp(_horner(far, (t - _MIDDLE) / _HALF) - z * z)
    head = inside * _horner(near, 2 * inside * inside - 1)
    out = (magnitude < 1) * head + ~(magnitude < 1) * tail
    return np.where(x < 0, -out, out) if x.dtype.kind == "c" else np.copysign(out, x)


_MIDDLE, _HALF = 0.46, 0.22  # t of |x| in [0.94, 6.33]


@cache
def _erf_fits(p_degree: int, q_degree: int) -> tuple[list[float], list[float]]:
    """Coefficients, lowest power first, of p in 2x² − 1 and of q in (t − middle) / half: both on [−1, 1]."""

    def p(u: float) -> float:
        x = math.sqrt((u + 1) / 2)
        return math.erf(x) / x if x > 1e-6 else 2 / math.sqrt(math.pi)

    def q(u: float) -> float:
        t = _MIDDLE + _HALF * u
        z = 2 / t - 2
        return math.log(math.erfc(z) / t) + z * z

    return _fit(p, p_degree), _fit(q, q_degree)


def _fit(f: Callable[[float], float], degree: int) -> list[float]:
    """Power-basis coefficients of the Chebyshev interpolant of f on [−1, 1]."""
    return chebyshev.cheb2poly(chebyshev.chebinterpolate(np.vectorize(f), degree)).tolist()


def _horner(coefficients: list[float], x: Any) -> Any:
    out = x * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        out *= x
        out += c
    return out


def _gelu(x: Any, approximate: str) -> Any:
    if approximate == "tanh":  # (1 + tanh u) / 2 = σ(2u)
        return x * compute(sigmoid, 2 * _CUBIC[0] * (x + _CUBIC[1] * (x * x * x)))
    return 0.5 * x * (1 + _erf(x * math.sqrt(0.5)))


_CUBIC = math.sqrt(2 / math.pi), 0.044715


@op(x="~B", options={"approximate": ("none", "tanh")}, definition=_gelu, torch="F.gelu(x, approximate=approximate)")
def gelu(x: Any, approximate: str = "none") -> tuple[Any, Vjp]:
    """x Φ(x), Φ the normal distribution function.   Hendrycks & Gimpel 2016, arXiv:1606.08415

    "none": Φ = (1 + erf(x/√2)) / 2,  dx = g · (Φ + x φ(x)),  φ(x) = e^(−x²/2) / √(2π)
    "tanh": Φ ≈ (1 + tanh u) / 2,  u = √(2/π) (x + 0.044715 x³),  dx = g · (Φ + 2 x Φ (1 − Φ) u′)
    """
    if approximate == "tanh":
        c, cubic = _CUBIC
        normal = 0.5 * np.tanh((x * x * (c * cubic) + c) * x) + 0.5
        return x * normal, lambda g: (g * (normal + normal * (1 - normal) * x * (x * x * (6 * c * cubic) + 2 * c)),)
    if approximate != "none":
        raise ArgumentError(f"gelu: approximate: got {approximate!r}, expected 'none' or 'tanh'")
    normal = _normal(x)
    return x * normal, lambda g: (g * (normal + np.exp(x * x * -0.5) * x * (1 / math.sqrt(2 * math.pi))),)


def _normal(x: Any) -> Any:
    """Φ(x). In float32, where |x| > 6 is 6: (1 + tanh(x p(x²))) / 2, tanh being one quick call that is near to Φ."""
    if x.dtype != np.float32:
        return 0.5 * (1 + _erf(x * math.sqrt(0.5)))
    held = np.clip(x, -6, 6)
    return 0.5 * np.tanh(_horner(_normal_fit(), held * held) * held) + 0.5


@cache
def _normal_fit() -> list[float]:
    """Coefficients of p, lowest power first: least squares weighted by what Φ feels of p, made to 2e-8 of Φ."""
    x = 6 * np.sqrt(0.5 + 0.5 * chebyshev.chebpts1(200))
    beyond = np.vectorize(math.erfc)(x / math.sqrt(2)) / 2
    p = np.log((1 - beyond) / beyond) / (2 * x)
    fit = np.polynomial.Chebyshev.fit(x * x, p, 6, [0, 36], w=x * beyond * (1 - beyond))
    return fit.convert(kind=np.polynomial.Polynomial).coef.tolist()
