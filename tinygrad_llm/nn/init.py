"""Initial values, written into a tensor that is there: torch.nn.init.

Each gives its tensor back, and draws from `generator`, by default from the library's (tinygrad_llm.manual_seed).
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from tinygrad_llm.autograd import Tensor, no_grad
from tinygrad_llm.autograd.randomness import chosen
from tinygrad_llm.functions.random import RangeError
from tinygrad_llm.ops import ShapeError
from tinygrad_llm.ops.numbers import plain

__all__ = [
    "calculate_gain", "constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "trunc_normal_", "uniform_",
    "xavier_normal_", "xavier_uniform_", "zeros_",
]

Random = np.random.Generator | None
GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Random = None) -> Tensor:
    """U(a, b)"""
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Random = None) -> Tensor:
    """N(mean, std²)"""
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """val everywhere"""
    with no_grad():
        return tensor.fill_(val)


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere"""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere"""
    return constant_(tensor, 0.0)


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, generator: Random = None
) -> Tensor:
    """N(mean, std²), but drawn again where it lies outside [a, b]."""
    mean, std, a, b = map(plain, (mean, std, a, b))
    if not a <= b or not 0 < std < math.inf:
        raise RangeError(f"trunc_normal_: std, a, b: got {std}, {a} and {b}, expected std > 0 and a <= b")
    if not math.isfinite(mean):
        raise RangeError(f"trunc_normal_: mean: got {mean}, expected a finite number")
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(f"trunc_normal_: mean: got {mean}, expected one that is at most 2 std from [{a}, {b}]: values pile up at "
                      "its ends", stacklevel=2)
    random = chosen("trunc_normal_: generator", generator)
    low, high = [min(max((end - mean) / std, -1e300), 1e300) for end in (a, b)]
    values = mean + std * _truncated(random, tensor.numel(), low, high)
    with no_grad():
        return tensor.copy_(np.clip(values, a, b).astype(tensor.dtype).reshape(tensor.shape))


def _truncated(generator: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    """count numbers from N(0, 1), each drawn again until it lies in [low, high].

    Where N(0, 1) hardly ever does, x is drawn uniformly and kept with probability e^((m² − x²) / 2), m the point of
    [low, high] nearest to 0: from no farther than 40 / (1 + |m|) beyond m, past which there is less than e⁻⁴⁰ of it.
    """
    found, m = np.empty(0), min(max(low, 0.0), high)
    often, reach = high - low > 1 and abs(m) < 1, 40 / (1 + abs(m))
    low, high = max(low, m - reach), min(high, m + reach)
    while len(found) < count:
        n = 2 * (count - len(found)) + 16
        x = generator.standard_normal(n) if often else generator.uniform(low, high, n)
        kept = (x >= low) & (x <= high) if often else generator.random(n) <= np.exp((m - x) * (m / 2 + x / 2))
        found = np.concatenate([found, x[kept]])
    return found[:count]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the scale of what goes through a nonlinearity; param is leaky_relu's slope."""
    if nonlinearity in GAINS:
        return GAINS[nonlinearity]
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity in ("linear", "sigmoid"):
        return 1.0
    raise ValueError(f"calculate_gain: nonlinearity: got {nonlinearity!r}, expected one of leaky_relu, linear, sigmoid, "
                     f"{', '.join(GAINS)}")


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Random = None) -> Tensor:
    """U(−a, a), a = gain √(6 / (fan_in + fan_out)).   Glorot & Bengio 2010"""
    a = plain(gain) * math.sqrt(6 / sum(_fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -a, a, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Random = None) -> Tensor:
    """N(0, σ²), σ = gain √(2 / (fan_in + fan_out)).   Glorot & Bengio 2010"""
    return normal_(tensor, 0.0, plain(gain) * math.sqrt(2 / sum(_fans("xavier_normal_", tensor))), generator)


def kaiming_uniform_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Random = None
) -> Tensor:
    """U(−b, b), b = gain √(3 / fan); a is leaky_relu's slope.   He et al. 2015, arXiv:1502.01852"""
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu", generator: Random = None
) -> Tensor:
    """N(0, σ²), σ = gain / √fan; a is leaky_relu's slope.   He et al. 2015, arXiv:1502.01852"""
    return normal_(tensor, 0.0, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity), generator)


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: mode: got {mode!r}, expected 'fan_in' or 'fan_out'")
    if not tensor.numel():
        warnings.warn(f"{name}: tensor: got shape {tensor.shape}, expected elements: there is nothing to fill", stacklevel=3)
        return 0.0
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans(name, tensor)[mode == "fan_out"])


def _fans(name: str, tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight [out, in, ...]."""
    if tensor.ndim < 2:
        raise ShapeError(f"{name}: tensor: got shape {tensor.shape}, expected at least 2 axes")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field
