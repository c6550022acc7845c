"""Random functions of arrays, as lists of NumPy calls: views, in-place writes through them, reductions, products, indices.

A function is drawn by running it: each step picks operands among the values so far, and is kept where NumPy takes them.
Choices come from a source (reference.opdraw): Hypothesis, so that failures shrink, or a seeded generator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIZES = (1, 2, 3, 4, 5, 8, 17, 33, 130)
MOST = 6000  # elements of an array
SCALARS = (2, -1, 3, 0.5, 2.0, -0.0, 0.0, 1e3, True, np.float32(0.3), np.float64(1.7), np.int64(2))
DTYPES = (np.float32, np.float64, np.int64, np.int32, np.bool_)

UNARY = ("negative", "absolute", "exp", "sqrt", "square", "tanh", "sin", "log", "floor", "sign", "isnan", "logical_not",
         "reciprocal", "isfinite", "exp2", "log1p", "expm1", "cos", "positive", "rint", "signbit")
BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "less", "equal", "greater_equal", "logical_and",
          "arctan2", "copysign", "hypot", "not_equal", "logaddexp", "fmax", "logical_or")
OPERATORS = ("add", "sub", "mul", "truediv", "lt", "pow")
IN_PLACE = ("iadd", "isub", "imul", "itruediv")
REDUCTIONS = ("sum", "max", "min", "any", "all", "prod", "mean")


@dataclass
class Step:
    """values.append(call(values)); what a write writes to is appended, too."""

    text: str
    call: Callable[[list[Any]], Any]
    wrote: int | None = None  # x += y gives a value of its own where x is a number


@dataclass
class Drawn:
    """A function of arrays, and the arrays of its first call."""

    inputs: list[np.ndarray]
    steps: list[Step] = field(default_factory=list)
    results: list[int] = field(default_factory=list)

    def __call__(self, *inputs: Any) -> Any:
        values = self.values(*inputs)
        return [values[i] for i in self.results]

    def values(self, *inputs: Any) -> list[Any]:
        """The inputs, and what each step gives."""
        values = list(inputs)
        for step in self.steps:
            _take(step, values)
        return values

    def __repr__(self) -> str:
        lines = [f"v{i}: {a.dtype}{list(a.shape)} strides {a.strides}" for i, a in enumerate(self.inputs)]
        lines += [f"v{len(self.inputs) + i} = {step.text}" for i, step in enumerate(self.steps)]
        return "\n".join([*lines, f"return {', '.join(f'v{i}' for i in self.results)}"])

    def batch(self, seed: int) -> list[np.ndarray]:
        """Other arrays of the same layout."""
        rng = np.random.default_rng(seed)
        return [laid_out(a, rng) for a in self.inputs]


def _take(step: Step, values: list[Any]) -> None:
    values.append(step.call(values))
    if step.wrote is not None:
        values[step.wrote] = values[-1]


def laid_out(like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random values in the layout of an array."""
    out = np.empty_like(like)
    if like.dtype == bool:
        out[...] = rng.integers(0, 2, like.shape)
    elif like.dtype.kind == "i":
        out[...] = rng.integers(0, 4, like.shape)
    else:
        out[...] = 2 * rng.standard_normal(like.shape)
        out[rng.random(like.shape) < 0.02] = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan])
    return out


class Drawing:
    """Draws a function."""

    def __init__(self, source: Any, steps: int) -> None:
        self.source = source
        self.function = Drawn([self.array() for _ in range(self.int(1, 3))])
        self.values: list[Any] = [a.copy("K") for a in self.function.inputs]
        for _ in range(steps):
            self.step()
        self.finish()

    def int(self, low: int, high: int) -> int:
        return self.source.integer(low, high)

    def one(self, choices: Any) -> Any:
        return choices[self.int(0, len(choices) - 1)]

    def shape(self, low: int = 0) -> tuple[int, ...]:
        shape: tuple[int, ...] = ()
        for _ in range(self.int(low, 3)):
            n = self.one(SIZES)
            shape += (n if np.prod(shape, dtype=int) * n <= MOST else 2,)
        return shape

    def array(self) -> np.ndarray:
        shape = self.shape(1)
        order = list(range(len(shape)))
        if self.int(0, 2) == 0:
            order = order[::-1]
        plain = np.empty([shape[i] for i in order], self.one(DTYPES) if self.int(0, 2) == 0 else np.float32)
        return laid_out(plain.transpose(np.argsort(order)), np.random.default_rng(self.int(0, 9)))

    def finish(self) -> None:
        n = len(self.values)
        own = [i for i in range(len(self.function.inputs), n) if hasattr(self.values[i], "shape")]
        chosen = [n - 1 - self.int(0, min(6, n - 1)) for _ in range(self.int(1, 3))]
        self.function.results = [i for i in chosen if i in own] or own[-1:] or [0]

    # Operands ----------------------------------------------------------------------------------------------------------

    def pick(self, fits: Callable[[Any], bool] = lambda v: True) -> int:
        """The number of a value, the newest ones first."""
        able = [i for i, v in enumerate(self.values) if fits(v)]
        if not able:
            raise ValueError
        return able[-1 - min(self.int(0, 7), self.int(0, len(able) - 1), len(able) - 1)]

    def own(self) -> int:
        """An array that the function may write to."""
        inputs = len(self.function.inputs)
        shared = self.values[:inputs]
        free = {i for i, v in enumerate(self.values) if i >= inputs and isinstance(v, np.ndarray) and v.flags.writeable
                and not any(np.may_share_memory(v, s) for s in shared)}
        return self.pick_of(free)

    def pick_of(self, numbers: set[int]) -> int:
        if not numbers:
            raise ValueError
        able = sorted(numbers)
        return able[-1 - self.int(0, len(able) - 1)]

    def beside(self, i: int) -> int | None:
        """A value that broadcasts with value i into its shape; None for a number."""
        if self.int(0, 3) == 0:
            return None
        shape = np.shape(self.values[i])

        def fits(v: Any) -> bool:
            try:
                return np.broadcast_shapes(np.shape(v), shape) == shape
            except ValueError:
                return False

        return self.pick(fits)

    # Steps -------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One more step, where the one that is drawn can be made."""
        kinds = (self.unary, self.binary, self.binary, self.operate, self.reduce, self.reduce, self.view, self.view, self.view,
                 self.write, self.write, self.write_in_place, self.write_in_place, self.out, self.join, self.where, self.take,
                 self.put, self.product, self.product, self.copy, self.fresh, self.shift)
        try:
            step = self.one(kinds)()
            with np.errstate(all="ignore"):
                result = step.call(self.values)
        except (ValueError, TypeError, IndexError, OverflowError):
            return
        if np.size(result) > MOST and step.wrote is None:
            return
        self.function.steps.append(step)
        self.values.append(result)
        if step.wrote is not None:
            self.values[step.wrote] = result

    def unary(self) -> Step:
        name, i = self.one(UNARY), self.pick()
        if name == "reciprocal" and np.asarray(self.values[i]).dtype.kind != "f":
            raise ValueError  # 1 / 0 of integers is anything
        return Step(f"np.{name}(v{i})", lambda v: getattr(np, name)(v[i]))

    def binary(self) -> Step:
        name, i = self.one(BINARY), self.pick()
        j, s, swap = self.beside(i), self.one(SCALARS), self.int(0, 1)
        other = f"v{j}" if j is not None else repr(s)

        def call(v: list[Any]) -> Any:
            y = s if j is None else v[j]
            return getattr(np, name)(y, v[i]) if swap else getattr(np, name)(v[i], y)

        return Step(f"np.{name}({other}, v{i})" if swap else f"np.{name}(v{i}, {other})", call)

    def operate(self) -> Step:
        name, i, j, s = self.one(OPERATORS), self.pick(), self.int(0, 1), self.one(SCALARS)
        if name == "pow":  # of a number it is the C library's, whose last bit is not always np.power's
            i = self.pick(lambda v: np.ndim(v) > 0 and v.dtype.kind == "f")
        other = self.beside(i) if j else None
        if name == "pow" and other is not None and np.asarray(self.values[other]).dtype.kind != "f":
            other = None
        text = f"v{other}" if other is not None else repr(s)
        return Step(f"{name}(v{i}, {text})", lambda v: getattr(operator, name)(v[i], s if other is None else v[other]))

    def reduce(self) -> Step:
        name, keep = self.one(REDUCTIONS), bool(self.int(0, 1))
        i = self.pick(lambda v: np.ndim(v) > 0 and (name != "mean" or v.dtype.kind == "f"))
        axes = sorted({self.int(0, np.ndim(self.values[i]) - 1) for _ in range(self.int(1, 2))})
        axis = None if self.int(0, 4) == 0 else tuple(axes) if len(axes) > 1 else axes[0]
        return Step(f"np.{name}(v{i}, {axis}, keepdims={keep})", lambda v: getattr(np, name)(v[i], axis, keepdims=keep))

    def view(self, of: Callable[[], int] | None = None) -> Step:
        i = (of or (lambda: self.pick(lambda v: isinstance(v, np.ndarray))))()
        x = self.values[i]
        kind = self.int(0, 7)
        if kind <= 2 and x.ndim:
            index = tuple([self.part(n) for n in x.shape])
            return Step(f"v{i}[{index}]", lambda v: v[i][index])
        if kind == 3:
            order = tuple(np.argsort([self.int(0, 9) for _ in x.shape], kind="stable").tolist())
            return Step(f"v{i}.transpose({order})", lambda v: v[i].transpose(order))
        if kind == 4:
            shape = self.other_shape(x.shape)
            return Step(f"v{i}.reshape({shape})", lambda v: v[i].reshape(shape))
        if kind == 5:
            shape = (self.one((1, 2, 3)), *[self.one((2, 4)) if n == 1 else n for n in x.shape])
            return Step(f"np.broadcast_to(v{i}, {shape})", lambda v: np.broadcast_to(v[i], shape))
        if kind == 6:
            return Step(f"np.flip(v{i})", lambda v: np.flip(v[i]))
        axis = self.int(0, x.ndim)
        return Step(f"np.expand_dims(v{i}, {axis})", lambda v: np.expand_dims(v[i], axis))

    def part(self, n: int) -> Any:
        kind = self.int(0, 5)
        if kind <= 1:
            return slice(None)
        if kind == 2:
            return self.int(0, n - 1)
        if kind == 3:
            return slice(None, None, -1)
        start = self.int(0, n - 1)
        return slice(start, self.int(start + 1, n), self.one((None, None, 2)))

    def other_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        size, axes = int(np.prod(shape)), []
        for _ in range(self.int(0, 2)):
            n = self.one([d for d in range(1, size + 1) if size % d == 0])
            axes.append(n)
            size //= n
        return (*axes, size)

    def write(self) -> Step:
        """Part of an array of its own = a value."""
        i = self.own()
        index = tuple([self.part(n) for n in self.values[i].shape])
        index = index if index else ...
        shape = np.shape(self.values[i][index])
        j = self.pick(lambda v: _fits(np.shape(v), shape)) if self.int(0, 4) else None
        s = self.one(SCALARS)
        if self.values[i].dtype.kind == "i" and j is not None and isinstance(self.values[j], np.floating | np.integer):
            raise ValueError  # of a NaN, or of a number too large, NumPy makes an error

        def call(v: list[Any]) -> Any:
            v[i][index] = s if j is None else v[j]
            return v[i]

        return Step(f"v{i}[{index}] = {s if j is None else f'v{j}'}", call)

    def write_in_place(self) -> Step:
        i = self.pick_of({self.own(), self.own()} | {k for k in self.numbers() if self.int(0, 3) == 0})
        name, j, s = self.one(IN_PLACE), self.beside(i), self.one(SCALARS)

        def call(v: list[Any]) -> Any:
            return getattr(operator, name)(v[i], s if j is None else v[j])

        return Step(f"{name}(v{i}, {s if j is None else f'v{j}'})", call, wrote=i)

    def numbers(self) -> list[int]:
        return [i for i, v in enumerate(self.values) if isinstance(v, np.generic)]

    def out(self) -> Step:
        """A ufunc that writes into an array of its own, or into a part of it."""
        i = self.own()
        name, j, k = self.one(("add", "multiply", "subtract", "maximum")), self.beside(i), self.beside(i)
        if j is None and k is None:
            raise ValueError
        a, s = (j, k), self.one(SCALARS)

        def call(v: list[Any]) -> Any:
            return getattr(np, name)(*[s if n is None else v[n] for n in a], out=v[i])

        return Step(f"np.{name}({a}, {s}, out=v{i})", call)

    def shift(self) -> Step:
        """Rows of an array onto its own next rows."""
        i = self.own()
        n = self.values[i].shape[0] if np.ndim(self.values[i]) else 0
        if n < 2:
            raise ValueError
        d, name, up = self.int(1, n - 1), self.one(IN_PLACE), self.int(0, 1)

        def call(v: list[Any]) -> Any:
            low, high = v[i][: n - d], v[i][d:]
            low, high = (low, high) if up else (high, low)
            getattr(operator, name)(low, high)
            return v[i]

        return Step(f"{name}(v{i}[:{n - d}], v{i}[{d}:]), {'up' if up else 'down'}", call)

    def join(self) -> Step:
        i = self.pick(lambda v: np.ndim(v) > 0)
        shape, stack = self.values[i].shape, self.int(0, 1)
        axis = self.int(0, len(shape) - 1 + stack)
        cut = [n for k, n in enumerate(shape) if stack or k != axis]

        def fits(v: Any) -> bool:
            return np.ndim(v) == len(shape) and [n for k, n in enumerate(v.shape) if stack or k != axis] == cut

        parts, name = [i, *[self.pick(fits) for _ in range(self.int(0, 2))]], "stack" if stack else "concatenate"
        return Step(f"np.{name}({parts}, {axis})", lambda v: getattr(np, name)([v[k] for k in parts], axis))

    def where(self) -> Step:
        i = self.pick()
        j, k, s = self.beside(i), self.pick(lambda v: np.asarray(v).dtype == bool and np.ndim(v)), self.one(SCALARS)
        if self.values[i].dtype.kind == "f" and self.int(0, 1):
            bits, dtype = f"i{self.values[i].itemsize}", self.values[i].dtype
            return Step(f"(v{i}.view('{bits}') * v{k}).view('{dtype}')", lambda v: (v[i].view(bits) * v[k]).view(dtype))
        return Step(f"np.where(v{k}, v{i}, {s if j is None else f'v{j}'})",
                    lambda v: np.where(v[k], v[i], s if j is None else v[j]))

    def indices(self, i: int) -> tuple[int, int, Any]:
        """(number of an integer array, how it is made an index, the axis)."""
        axis = self.int(0, self.values[i].ndim - 1)
        able = np.ndarray | np.generic if self.values[i].ndim == 1 else np.ndarray  # a number gives a view: refused
        j = self.pick(lambda v: isinstance(v, able) and v.dtype.kind == "i" and v.size <= 200)
        return j, self.values[i].shape[axis], axis

    def take(self) -> Step:
        i = self.pick(lambda v: np.ndim(v) > 0)
        j, n, axis = self.indices(i)
        index = lambda v: (*[slice(None)] * axis, v[j] % n)  # noqa: E731
        return Step(f"v{i}[{', '.join([':'] * axis + [f'v{j} % {n}'])}]", lambda v: v[i][index(v)])

    def put(self) -> Step:
        i = self.own()
        if not np.ndim(self.values[i]):
            raise ValueError
        j, n, axis = self.indices(i)
        k = self.beside(j) if axis == 0 and np.ndim(self.values[i]) == 1 else None
        s = self.one(SCALARS)
        if k is not None and isinstance(self.values[k], np.floating):
            raise ValueError

        def call(v: list[Any]) -> Any:
            v[i][(*[slice(None)] * axis, v[j] % n)] = s if k is None else v[k]
            return v[i]

        return Step(f"v{i}[…{axis} v{j} % {n}] = {s if k is None else f'v{k}'}", call)

    def product(self) -> Step:
        name = self.one(("matmul", "matmul", "vecdot", "dot2", "square"))
        i = self.pick(lambda v: np.ndim(v) >= 1 and v.dtype.kind == "f")
        x = self.values[i]
        if name == "square":
            return Step(f"np.matmul(v{i}, v{i}.T)", lambda v: np.matmul(v[i], np.swapaxes(v[i], -1, -2)))
        j = self.pick(lambda v: np.ndim(v) >= 1 and v.dtype.kind == "f" and _multiplies(name, x, v))
        function = np.vecdot if name == "vecdot" else np.matmul
        flipped = name == "dot2"
        return Step(f"np.{function.__name__}(v{i}, v{j}{'.T' if flipped else ''})",
                    lambda v: function(v[i], np.swapaxes(v[j], -1, -2) if flipped else v[j]))

    def copy(self) -> Step:
        i, dtype, order = self.pick(lambda v: isinstance(v, np.ndarray)), self.one(DTYPES[:3]), self.one("KC")
        if self.int(0, 1):
            return Step(f"v{i}.astype({dtype.__name__})", lambda v: v[i].astype(dtype))
        return Step(f"np.copy(v{i}, {order})", lambda v: np.copy(v[i], order))

    def fresh(self) -> Step:
        i, s = self.pick(lambda v: isinstance(v, np.ndarray)), self.one(SCALARS)
        kind = self.int(0, 2)
        if kind == 0:
            return Step(f"np.zeros_like(v{i})", lambda v: np.zeros_like(v[i]))

        def filled(v: list[Any]) -> Any:
            out = np.empty_like(v[i], dtype=np.float32)
            np.copyto(out, v[i] if kind == 1 else s, casting="unsafe")
            return out

        return Step(f"np.full({s if kind == 2 else ''} like v{i})", filled)


def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, into) == into
    except ValueError:
        return False


def _multiplies(name: str, x: Any, y: Any) -> bool:
    try:
        function = np.vecdot if name == "vecdot" else np.matmul
        function(x, np.swapaxes(y, -1, -2) if name == "dot2" else y)
    except ValueError:
        return False
    return True


def same(a: Any, b: Any) -> bool:
    """Equal bits, but for which NaN a NaN is."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    nan = np.isnan(a)
    return bool(np.array_equal(nan, np.isnan(b)) and np.array_equal(np.where(nan, 0, a), np.where(nan, 0, b))
                and np.array_equal(np.signbit(a) & ~nan, np.signbit(b) & ~nan))
