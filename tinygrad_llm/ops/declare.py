"""@op: one declaration holds an op's formula, its shapes, its vjp and the PyTorch expression that it must equal.

    @op(x="~B", y="~B", torch="x * y")
    def mul(x, y):
        return x * y, lambda g: (g * y, g * x)

An op is a function of plain arrays that returns `(out, vjp)`; `vjp` maps a cotangent of `out` (same shape) to a tuple
with one gradient per array argument. What `vjp` closes over is what a graph keeps alive, and what it watches for writes.
Where the gradients share nothing, `each(dx, dy)` is one function an argument: those that nobody wants are let go, with what
they close over, and cost no time. `x="~B"` is a shape string
(see tinygrad_llm.ops.spec); an argument whose spec is a tuple of shape strings is variadic (`*tensors`), and the tuple is
an example of one call. A declaration without `torch=` is refused at import: an op that is not cross-checked cannot exist.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinygrad_llm.ops.checks import check_call, check_range
from tinygrad_llm.ops.closures import Each, check_closure
from tinygrad_llm.ops.spec import Arg
from tinygrad_llm.ops.sums import sum_to

Vjp = Callable[[Any], tuple[Any, ...]]

_TORCH_NAMES = {"torch", "F", "np", "getattr"}


@dataclass(frozen=True, eq=False)
class Op:
    """The record of one op. Calling it on arrays checks them and returns `(out, vjp)`.

    function     the body as written
    args         its array arguments; for a variadic op, the example that the declaration gives
    options      option name → values that a test draws; defaults stand in the body's signature
    torch        the PyTorch expression that it equals, in the names of its arguments and options
    definition   for a fused op: the same function in primitive NumPy calls, returning `out` alone
    kinked       its slope is constant but for jumps: what is asked of a gradient's own gradient is zero
    owned        the gradients that its vjp makes are held by nothing else; of a user's op nobody knows
    """

    name: str
    function: Callable[..., tuple[Any, Vjp]]
    args: tuple[Arg, ...]
    options: Mapping[str, tuple[Any, ...]]
    torch: str
    definition: Callable[..., Any] | None = None
    variadic: bool = False
    kinked: bool = False
    owned: bool = True
    _checked: dict[Any, bool] = field(default_factory=dict, repr=False)

    def __call__(self, *arrays: Any, **options: Any) -> tuple[Any, Vjp]:
        """Check shapes, dtypes and indices; run the body; make its gradients fit the arguments."""
        key = tuple([(a.shape, a.dtype) if hasattr(a, "shape") else type(a) for a in arrays])
        known = self._checked.get(key)
        broadcasts = self._check(arrays) if known is None else known
        for arg, array in zip(self.args, arrays):
            if arg.below and not self.variadic:
                check_range(self, arg, array, arrays, options)
        out, vjp = self.function(*arrays, **options)
        if known is None:
            check_closure(self.name, vjp)
            self._checked[key] = broadcasts
        return out, _fitted(vjp, arrays) if broadcasts else vjp

    def __repr__(self) -> str:
        return f"<op {self.name}({', '.join(f'{a.name}: {a.spec}' for a in self.args)})>"

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__

    def _check(self, arrays: tuple[Any, ...]) -> bool:
        """Whether gradients must be summed, from checks that are made once for each combination of shapes and dtypes."""
        if len(self._checked) > 4096:
            self._checked.clear()
        return False if self.variadic else check_call(self, arrays)


REGISTRY: dict[str, Op] = {}


def op(
    *, torch: str = "", options: Mapping[str, tuple[Any, ...]] | None = None,
    definition: Callable[..., Any] | None = None, kinked: bool = False, **args: str | tuple[str, ...],
) -> Callable[[Callable[..., tuple[Any, Vjp]]], Op]:
    """Declare an op (see the module's docstring). TypeError where the declaration is incomplete, naming what is missing."""

    def declare(function: Callable[..., tuple[Any, Vjp]]) -> Op:
        name = function.__name__
        if not torch:
            raise TypeError(f"op {name}: got no torch expression, expected torch='...', the PyTorch call that it must equal")
        if not function.__doc__ and sys.flags.optimize < 2:  # python -OO takes them away
            raise TypeError(f"op {name}: got no docstring, expected its formula")
        if name in REGISTRY:
            raise TypeError(f"op {name}: got a second declaration, expected one op in one place")
        variadic = any(isinstance(spec, tuple) for spec in args.values())
        parsed = tuple(Arg.parse(key, spec) for key, spec in _flat_specs(args))
        _check_declaration(name, function, list(args), options or {}, torch)
        owned = (function.__module__ or "").startswith(f"{__package__.partition('.')[0]}.")
        REGISTRY[name] = record = Op(name, function, parsed, dict(options or {}), torch, definition, variadic, kinked, owned)
        return record

    return declare


def compute(op: Op, *args: Any, **options: Any) -> Any:
    """The output of an op inside another op's body, whether it runs on arrays or on objects that record what they do.

    The same idea as NumPy's `__array_function__`, for ops that NumPy does not have: an argument whose type has
    `__apply_op__` computes the call; ops know nothing of the engine behind it.
    """
    for arg in args:
        if hasattr(arg, "__apply_op__"):
            return arg.__apply_op__(op, *args, **options)
    return op.function(*args, **options)[0]  # the other op has checked what it was given


def _fitted(vjp: Vjp, arrays: tuple[Any, ...]) -> Vjp:
    """The vjp with each gradient in the shape and dtype of its argument, which it does not keep."""
    likes = [(a.shape, a.dtype) if hasattr(a, "shape") and a.dtype.kind in "fc" else None for a in arrays]
    if isinstance(vjp, Each):
        return Each([f if f is None or like is None else _fitted_one(f, like) for f, like in zip(vjp.functions, likes)])

    def fitted(g: Any) -> tuple[Any, ...]:
        return tuple([d if like is None or d is None else sum_to(d, *like) for d, like in zip(vjp(g), likes)])

    return fitted


def _fitted_one(function: Callable[[Any], Any], like: tuple[Any, Any]) -> Callable[[Any], Any]:
    return lambda g: sum_to(function(g), *like)


def _flat_specs(args: Mapping[str, str | tuple[str, ...]]) -> Iterable[tuple[str, str]]:
    for name, spec in args.items():
        if isinstance(spec, tuple):
            yield from ((f"{name}{i}", one) for i, one in enumerate(spec))
        else:
            yield name, spec


def _check_declaration(
    name: str, function: Callable[..., Any], args: list[str], options: Mapping[str, Any], torch: str
) -> None:
    parameters = list(inspect.signature(function).parameters)
    if parameters != args + list(options):
        raise TypeError(f"op {name}: got parameters {parameters}, expected the declared {args + list(options)}")
    try:
        tree = ast.parse(torch, mode="eval")
    except SyntaxError as error:
        raise TypeError(f"op {name}: got torch={torch!r}, expected one Python expression: {error.msg}") from None
    loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    if unknown := loaded - stored - _TORCH_NAMES - set(parameters):
        raise TypeError(f"op {name}: got torch={torch!r} with unknown {sorted(unknown)}, expected its arguments, torch, F, np")
