"""Random tensors, and tensors filled at random: torch's names and arguments.

`generator` is one of NumPy's; without one the numbers come from the library's (tinygrad_llm.manual_seed). A recorded
program draws anew at each run. What is drawn has no slope: gradients of it are zero, as in torch.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.modes import active_recorder
from tinygrad_llm.autograd.randomness import chosen
from tinygrad_llm.autograd.writes import rewrite
from tinygrad_llm.functions.base import sizes_of, taking, whole
from tinygrad_llm.functions.elementwise import add, broadcast_shape, mul, without_slope
from tinygrad_llm.ops import DtypeError, ShapeError
from tinygrad_llm.ops.numbers import held, plain
from tinygrad_llm.ops.opaque import as_values, opaque

Fill = Callable[[np.random.Generator, tuple[int, ...], np.dtype], Any]


class RangeError(ValueError, RuntimeError):
    """Numbers between which nothing can be drawn."""


# Drawing -----------------------------------------------------------------------------------------------------------------


@opaque(lambda like, generator, fill: (like.shape, like.dtype))
def _drawn(like: Any, generator: np.random.Generator, fill: Fill, out: Any = None) -> Any:
    """fill's numbers in the shape and dtype of `like`: anew at each run of a program."""
    values = np.asarray(fill(generator, like.shape, like.dtype)).astype(like.dtype, copy=False)
    if out is None:
        return values
    out[...] = values
    return out


def _draw(name: str, shape: tuple[int, ...], dtype: Any, generator: Any, fill: Fill) -> Any:
    """An array of what fill draws, recorded where calls are."""
    like, recorder = np.broadcast_to(np.zeros((), dtype), shape), active_recorder()
    return _drawn(like if recorder is None else recorder.for_drawing(like), chosen(f"{name}: generator", generator), fill)


def _uniform(generator: Any, shape: tuple[int, ...], dtype: np.dtype, low: float = 0.0, high: float = 1.0) -> Any:
    """[low, high), also after rounding; float16 has 2¹¹ places in [0, 1), as in torch."""
    if dtype == np.float16:
        values = (generator.integers(0, 2**11, shape) / 2**11).astype(dtype)
    else:
        values = generator.random(shape, dtype=dtype.type)
    if (low, high) == (0, 1):
        return values
    values = (low + values * (high - low)).astype(dtype, copy=False)
    return np.minimum(values, np.nextafter(dtype.type(high), dtype.type(low))) if high > low else values


def _normal(generator: Any, shape: tuple[int, ...], dtype: np.dtype, mean: float = 0.0, std: float = 1.0) -> Any:
    values = generator.standard_normal(shape, dtype=np.float64 if dtype == np.float64 else np.float32)
    return values if (mean, std) == (0, 1) else mean + std * values


def _integers(generator: Any, shape: tuple[int, ...], dtype: np.dtype, low: int, high: int) -> Any:
    """[low, high); high may be 2⁶³."""
    return generator.integers(low, high - 1, shape, endpoint=True)


# New tensors -------------------------------------------------------------------------------------------------------------


def _made(
    name: str, size: tuple[Any, ...], generator: Any, dtype: Any, requires_grad: bool, fill: Fill
) -> Tensor:
    shape = sizes_of(name, "size", size)
    if min(shape, default=0) < 0:
        raise ShapeError(f"{name}: size: got {shape}, expected none below 0")
    return Tensor.from_array(_draw(name, shape, dtype, generator, fill)).requires_grad_(requires_grad)


def _floating(name: str, dtype: Any) -> np.dtype:
    dtype = np.float32 if dtype is None else dtype
    if np.dtype(dtype).kind != "f":
        raise DtypeError(f"{name}: dtype: got {np.dtype(dtype)}, expected a floating dtype")
    return np.dtype(dtype)


def _size(name: str, size: tuple[Any, ...], named: Any) -> tuple[Any, ...]:
    if named is None and not size:
        raise TypeError(f"{name}: size: got none, expected the sizes of the axes; () for a tensor without any")
    return size if named is None else (named,)


@taking("device", "pin_memory")
def rand(*sizes: Any, size: Any = None, generator: Any = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Numbers from [0, 1), each as likely as the other."""
    return _made("rand", _size("rand", sizes, size), generator, _floating("rand", dtype), requires_grad, _uniform)


@taking("device", "pin_memory")
def randn(*sizes: Any, size: Any = None, generator: Any = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Numbers from N(0, 1)."""
    return _made("randn", _size("randn", sizes, size), generator, _floating("randn", dtype), requires_grad, _normal)


@taking("device", "pin_memory")
def randint(
    low: Any = None, high: Any = None, size: Any = None, *, generator: Any = None, dtype: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Integers from low to below high: randint(low, high, size), or randint(high, size) from 0."""
    if isinstance(high, tuple | list) and size is None:
        low, high, size = None, low, high
    elif high is None:
        low, high = None, low
    if not isinstance(size, tuple | list):
        raise TypeError(f"randint: size: got {size!r}, expected a tuple of integers")
    dtype = np.dtype(np.int64 if dtype is None else dtype)
    bounds = _bounds("randint", dtype, 0 if low is None else low, high)
    return _made("randint", (size,), generator, dtype, requires_grad, partial(_integers, low=bounds[0], high=bounds[1]))


@taking("device", "pin_memory")
def randperm(n: int, *, generator: Any = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """0 to n − 1 in some order."""
    if whole("randperm", "n", n) < 0:
        raise RangeError(f"randperm: n: got {n}, expected none below 0")
    dtype = np.int64 if dtype is None else dtype
    held("randperm", "n", max(n - 1, 0), dtype)
    return _made("randperm", (n,), generator, dtype, requires_grad, lambda g, shape, dtype: g.permutation(shape[0]))


def _like(name: str, input: Any, dtype: Any) -> tuple[tuple[Any, ...], Any]:
    if not hasattr(input, "dtype"):
        raise TypeError(f"{name}: input: got {type(input).__name__}, expected a tensor")
    return (tuple(input.shape),), input.dtype if dtype is None else dtype


@taking("device", "pin_memory")
def rand_like(input: Any, *, generator: Any = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """rand of input's shape and, by default, dtype."""
    size, dtype = _like("rand_like", input, dtype)
    return rand(*size, generator=generator, dtype=dtype, requires_grad=requires_grad)


@taking("device", "pin_memory")
def randn_like(input: Any, *, generator: Any = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """randn of input's shape and, by default, dtype."""
    size, dtype = _like("randn_like", input, dtype)
    return randn(*size, generator=generator, dtype=dtype, requires_grad=requires_grad)


@taking("device", "pin_memory")
def randint_like(
    input: Any, low: Any = None, high: Any = None, *, generator: Any = None, dtype: Any = None, requires_grad: bool = False
) -> Tensor:
    """randint of input's shape and, by default, dtype: randint_like(input, low, high), or randint_like(input, high)."""
    size, dtype = _like("randint_like", input, dtype)
    low, high = (0, low) if high is None else (0 if low is None else low, high)
    return randint(low, high, *size, generator=generator, dtype=dtype, requires_grad=requires_grad)


def bernoulli(input: Any, p: Any = None, *, generator: Any = None) -> Tensor:
    """1 with the probability that input has there, else 0; with p given, input lends its shape and dtype alone."""
    if not isinstance(input, Tensor | np.ndarray):
        raise TypeError(f"bernoulli: input: got {type(input).__name__}, expected a tensor")
    if p is None:
        _floating("bernoulli", input.dtype)
    values = _coins("bernoulli", input, input if p is None else p, generator)
    return without_slope(values.astype(input.dtype), input)


def _coins(name: str, like: Any, p: Any, generator: Any) -> Any:
    """True with probability p."""
    if isinstance(p, Tensor | np.ndarray):
        _check_probabilities(as_values(p), name)
    elif not isinstance(p, int | float | np.number) or not 0 <= p <= 1:
        raise RangeError(f"{name}: p: got {p!r}, expected a probability in [0, 1]")
    return _draw(name, like.shape, np.float64, generator, _uniform) < (as_values(p) if hasattr(p, "shape") else p)


@opaque(None)
def _check_probabilities(p: Any, name: str) -> None:
    if not ((p >= 0) & (p <= 1)).all():
        raise RangeError(f"{name}: p: got {p[~((p >= 0) & (p <= 1))][0]}, expected probabilities in [0, 1]")


@taking("device", "pin_memory")
def normal(
    mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, generator: Any = None, dtype: Any = None, requires_grad: bool = False
) -> Tensor:
    """Numbers from N(mean, std²): of a size, or of the shape to which the tensors mean and std broadcast."""
    given = [x for x in (mean, std) if isinstance(x, Tensor | np.ndarray)]
    if isinstance(size, tuple | list) and not given:
        _check_std("normal", std)
        fill = partial(_normal, mean=mean, std=std)
        return _made("normal", (size,), generator, _floating("normal", dtype), requires_grad, fill)
    if not given or size is not None:  # torch takes no size beside tensors, nor what follows
        raise TypeError(f"normal: size: got {size!r}, expected a size beside two numbers, and none beside a tensor")
    if dtype is not None or requires_grad:
        raise TypeError(f"normal: dtype, requires_grad: got {dtype}, {requires_grad} beside a tensor, expected neither")
    return _normal_of("normal", mean, std, given, generator)


def _normal_of(name: str, mean: Any, std: Any, given: list[Any], generator: Any) -> Tensor:
    dtype = _floating(name, given[0].dtype)
    shape = broadcast_shape(name, mean=np.shape(mean), std=np.shape(std))
    _check_std(name, std)
    m, s = (x.detach() if isinstance(x, Tensor) else x for x in (mean, std))
    drawn = Tensor.from_array(_draw(name, shape, dtype, generator, _normal))
    return without_slope(add(mul(drawn, s), m), *given)


def _check_std(name: str, std: Any) -> None:
    if isinstance(std, Tensor | np.ndarray):
        _check_stds(as_values(std), name)
    elif not isinstance(std, int | float | np.number) or not std >= 0:
        raise RangeError(f"{name}: std: got {std!r}, expected a number >= 0")


@opaque(None)
def _check_stds(std: Any, name: str) -> None:
    if not (std >= 0).all():
        raise RangeError(f"{name}: std: got {std.min()}, expected none below 0")


def _bounds(name: str, dtype: np.dtype, low: Any, high: Any) -> tuple[int, int]:
    """(low, high) as integers. Errors: RangeError where there is nothing between them, or where the dtype does not hold it."""
    low, high = whole(name, "low", low), whole(name, "high", high)
    if low >= high:
        raise RangeError(f"{name}: low, high: got {low} and {high}, expected the first below the second")
    first, last = _exact(dtype)
    if dtype.kind == "f" and (low < first or high - 1 > last):
        warnings.warn(f"{name}: got bounds {low} and {high}, expected those between which {dtype} holds every integer, "
                      f"{first} to {last}", stacklevel=4)
    elif low < first or high - 1 > last:
        raise RangeError(f"{name}: low, high: got {low} and {high}, expected integers that {dtype} holds")
    return low, high


def _exact(dtype: np.dtype) -> tuple[int, int]:
    """The range in which a dtype holds every integer."""
    if dtype.kind == "f":
        most = 2 ** (np.finfo(dtype).nmant + 1)
        return -most, most
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


# Filling tensors ---------------------------------------------------------------------------------------------------------


def _filled(name: str, self: Tensor, draw: Callable[[], Any]) -> Tensor:
    """self with what draw() gives written into it."""
    return rewrite(name, self, lambda x: without_slope(draw().astype(self.dtype), x))


def uniform_(self: Tensor, *bounds: Any, generator: Any = None, **named: Any) -> Tensor:
    """Fill with numbers from [from, to), by default [0, 1): x.uniform_(from, to)."""
    low, high = map(plain, _named("uniform_", ("from", "to"), (0.0, 1.0), bounds, named))
    _floating("uniform_", self.dtype)
    if not all(isinstance(b, numbers.Real) and math.isfinite(b) for b in (low, high)) or low > high:
        raise RangeError(f"uniform_: from, to: got {low!r} and {high!r}, expected numbers, the first not above the second")
    if max(-low, high, high - low) > (most := float(np.finfo(self.dtype).max)):
        raise RangeError(f"uniform_: from, to: got {low!r}, {high!r} for {self.dtype}, expected ones at most {most:.4g} apart")
    fill = partial(_uniform, low=low, high=high)
    return _filled("uniform_", self, lambda: _draw("uniform_", self.shape, self.dtype, generator, fill))


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with numbers from N(mean, std²)."""
    _floating("normal_", self.dtype)
    _check_std("normal_", std)
    fill = partial(_normal, mean=mean, std=std)
    return _filled("normal_", self, lambda: _draw("normal_", self.shape, self.dtype, generator, fill))


def bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    """Fill with 1 with probability p, a number or a tensor that broadcasts, else with 0."""
    if hasattr(p, "shape") and broadcast_shape("bernoulli_", self=self.shape, p=p.shape) != self.shape:
        raise ShapeError(f"bernoulli_: p: got shape {p.shape}, expected one that broadcasts to {self.shape}")
    return _filled("bernoulli_", self, lambda: _coins("bernoulli_", self, p, generator))


def random_(self: Tensor, *bounds: Any, generator: Any = None, **named: Any) -> Tensor:
    """Fill with integers: x.random_(from, to) below to, x.random_(to) from 0, x.random_() all that the dtype counts from 0."""
    if len(bounds) == 1 and not named:
        bounds = (0, *bounds)
    low, high = _named("random_", ("from", "to"), (0, None), bounds, named)
    low, high = _bounds("random_", self.dtype, low, _exact(self.dtype)[1] + 1 if high is None else high)
    fill = partial(_integers, low=low, high=high)
    return _filled("random_", self, lambda: _draw("random_", self.shape, self.dtype, generator, fill))


def _named(name: str, names: tuple[str, ...], defaults: tuple[Any, ...], given: tuple[Any, ...], named: Any) -> list[Any]:
    """Arguments under names that Python keeps for itself (`from`)."""
    found = dict(zip(names, given))
    if len(given) > len(names) or set(named) - set(names) or set(named) & set(found):
        raise TypeError(f"{name}: got {len(given)} arguments and {sorted(named)}, expected {', '.join(names)} and generator=")
    return [{**found, **named}.get(key, default) for key, default in zip(names, defaults)]


METHODS: dict[str, Any] = {"uniform_": uniform_, "normal_": normal_, "bernoulli_": bernoulli_, "random_": random_,
                           "bernoulli": bernoulli}
