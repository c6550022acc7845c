"""@op: one declaration holds an op's formula, its shapes, its vjp and the PyTorch expression that it must equal.

    @op(x="~B", y="~B", torch="x * y")
    def mul(x, y):
        return x * y, lambda g: (g * y, g * x)

An op is a function of plain arrays that returns `(out, vjp)`; `vjp` maps a cotangent of `out` (same shape) to a tuple
with one gradient per array argument. What `vjp` closes over is what a graph keeps alive.

The shape string of an argument is its documentation, the check made at each call, and the generator of test inputs:

    *B            any leading axes, the same in every argument that has *B
    ~B            any leading axes, broadcast against every other ~B; the gradients are summed back by the declaration
    N  N>1  3     one axis: of any size, with a bound, of a fixed size. Equal letters are equal sizes
    int  int < V  integers (in [0, V), V an axis or an option); never differentiated
    bool          booleans; never differentiated
    in (a, b)     tests draw values from the open interval (a, b)
    != 0          tests draw values away from zero, where the op has a kink
    distinct      tests draw values without ties
    ?N            the argument may be None
    *A e.g. M N   calls may have any axes; tests draw axes M and N, which the options drawn refer to

An argument whose spec is a tuple of shape strings is variadic (`*tensors`); the tuple is an example of one call.
A declaration without `torch=` is refused at import: an op that is not cross-checked cannot exist.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tinygrad_llm.ops.errors import DtypeError, IndexRangeError, ShapeError

Vjp = Callable[[Any], tuple[Any, ...]]

_SPEC = re.compile(
    r"(?P<optional>\?)?(?P<dims>(?:(?:[*~]?[A-Z]\w*(?:>=?\d+)?|\d+)(?:\s+|$))*)"
    r"(?P<kind>int(?: < (?P<below>[A-Za-z]\w*))?|bool)?\s*"
    r"(?P<domain>in \((?P<low>[^,]+),(?P<high>[^)]+)\)|!= 0|distinct)?"
)
_DIM = re.compile(r"(?P<group>[*~])?(?P<name>[A-Z]\w*|\d+)(?P<bound>>=?\d+)?")
_TORCH_NAMES = {"torch", "F", "np", "getattr"}


@dataclass(frozen=True)
class Dim:
    """One token of a shape string: an axis, or a group of leading axes (`*B`, `~B`)."""

    name: str
    group: str = ""
    least: int = 0

    @classmethod
    def parse(cls, token: str) -> Dim:
        """`N>1` → Dim("N", least=2);  `*B` → Dim("B", group="*")."""
        match = _DIM.fullmatch(token)
        if match is None:
            raise ValueError(f"shape string: got axis {token!r}, expected such as N, N>1, 3, *B or ~B")
        bound = match["bound"] or ">=0"
        least = int(bound.lstrip(">=")) + (0 if ">=" in bound else 1)
        return cls(match["name"], match["group"] or "", least)


@dataclass(frozen=True)
class Arg:
    """One array argument of an op, as its shape string says: `dims` is what tests draw, `accepts` what calls may have."""

    name: str
    spec: str
    dims: tuple[Dim, ...]
    kind: str = "float"
    below: str | None = None
    interval: tuple[float, float] | None = None
    nonzero: bool = False
    distinct: bool = False
    optional: bool = False
    accepts: tuple[Dim, ...] | None = None

    @classmethod
    def parse(cls, name: str, spec: str) -> Arg:
        """Read a shape string; ValueError where it is not one."""
        accepted, _, example = spec.partition(" e.g. ")
        if example:
            drawn = cls.parse(name, example)
            return replace(drawn, spec=spec, accepts=cls.parse(name, accepted).dims)
        match = _SPEC.fullmatch(spec.strip())
        if match is None:
            raise ValueError(f"{name}: got shape string {spec!r}, expected the grammar of tinygrad_llm.ops.declare")
        dims = tuple(Dim.parse(token) for token in match["dims"].split())
        if any(dim.group for dim in dims[1:]):
            raise ValueError(f"{name}: got {spec!r}, expected a group of axes only in front")
        interval = (float(match["low"]), float(match["high"])) if match["low"] else None
        kind = (match["kind"] or "float").split()[0]
        domain = match["domain"]
        return cls(name, spec, dims, kind, match["below"], interval, domain == "!= 0", domain == "distinct",
                   bool(match["optional"]))

    @property
    def group(self) -> Dim | None:
        """The leading group of axes that a call may have, if the shape string has one."""
        dims = self._accepted
        return dims[0] if dims and dims[0].group else None

    @property
    def axes(self) -> tuple[Dim, ...]:
        """The trailing axes that a call must have, one by one."""
        return self._accepted[1:] if self.group else self._accepted

    @property
    def _accepted(self) -> tuple[Dim, ...]:
        return self.dims if self.accepts is None else self.accepts


@dataclass(frozen=True, eq=False)
class Op:
    """The record of one op. Calling it on arrays checks them and returns `(out, vjp)`.

    function     the body as written
    args         its array arguments; for a variadic op, the example that the declaration gives
    options      option name → values that a test draws; defaults stand in the body's signature
    torch        the PyTorch expression that it equals, in the names of its arguments and options
    definition   for a fused op: the same function in primitive NumPy calls, returning `out` alone
    """

    name: str
    function: Callable[..., tuple[Any, Vjp]]
    args: tuple[Arg, ...]
    options: Mapping[str, tuple[Any, ...]]
    torch: str
    definition: Callable[..., Any] | None = None
    variadic: bool = False
    _checked: dict[Any, bool] = field(default_factory=dict, repr=False)

    def __call__(self, *arrays: Any, **options: Any) -> tuple[Any, Vjp]:
        """Check shapes, dtypes and indices; run the body; make its gradients fit the arguments."""
        key = tuple([(a.shape, a.dtype) if hasattr(a, "shape") else type(a) for a in arrays])
        broadcasts = self._checked.get(key)
        if broadcasts is None:
            broadcasts = self._checked[key] = self._check(arrays)
        for arg, array in zip(self.args, arrays):
            if arg.below and not self.variadic:
                _check_range(self, arg, array, arrays, options)
        out, vjp = self.function(*arrays, **options)
        return out, _fitted(vjp, arrays) if broadcasts else vjp

    def __repr__(self) -> str:
        return f"<op {self.name}({', '.join(f'{a.name}: {a.spec}' for a in self.args)})>"

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__

    def _check(self, arrays: tuple[Any, ...]) -> bool:
        """Raise for shapes or dtypes that the declaration does not allow; return whether gradients must be summed."""
        if len(self._checked) > 4096:
            self._checked.clear()
        if self.variadic:
            return False
        if len(arrays) > len(self.args):
            raise TypeError(f"{self.name}: got {len(arrays)} arrays, expected {[a.name for a in self.args]}")
        sizes: dict[str, Any] = {}
        for arg, array in zip(self.args, arrays):
            _check_one(self, arg, array, sizes)
        _check_dtypes(self, arrays)
        return _must_sum(self, arrays, sizes)


REGISTRY: dict[str, Op] = {}


def op(
    *, torch: str = "", options: Mapping[str, tuple[Any, ...]] | None = None,
    definition: Callable[..., Any] | None = None, **args: str | tuple[str, ...],
) -> Callable[[Callable[..., tuple[Any, Vjp]]], Op]:
    """Declare an op (see the module's docstring). TypeError where the declaration is incomplete, naming what is missing."""

    def declare(function: Callable[..., tuple[Any, Vjp]]) -> Op:
        name = function.__name__
        if not torch:
            raise TypeError(f"op {name}: got no torch expression, expected torch='...', the PyTorch call that it must equal")
        if not function.__doc__:
            raise TypeError(f"op {name}: got no docstring, expected its formula")
        if name in REGISTRY:
            raise TypeError(f"op {name}: got a second declaration, expected one op in one place")
        variadic = any(isinstance(spec, tuple) for spec in args.values())
        parsed = tuple(Arg.parse(key, spec) for key, spec in _flat_specs(args))
        _check_declaration(name, function, list(args), options or {}, torch)
        REGISTRY[name] = record = Op(name, function, parsed, dict(options or {}), torch, definition, variadic)
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
    return op(*args, **options)[0]


def total(x: Any, axes: Iterable[int], keepdims: bool = False) -> Any:
    """Σ of x over axes, accurate in float32.

    NumPy adds pairwise along contiguous memory only; over a slow axis it adds one row after another, an error that
    grows with the number of rows. Leading axes go through products with ones, others are brought to the end first.
    """
    axes = tuple(sorted(axis % x.ndim for axis in axes))
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    if not axes:
        return x + 0
    if axes == tuple(range(len(axes))) and len(axes) < x.ndim:
        summed = _sum_rows(x.reshape((_size(x.shape[: len(axes)]), _size(x.shape[len(axes) :]))))
    elif axes == tuple(range(x.ndim - len(axes), x.ndim)):
        summed = _sum_last(x, axes)
    else:
        rest = tuple(i for i in range(x.ndim) if i not in axes)
        moved = np.transpose(x, rest + axes)
        summed = _sum_last(moved.reshape((*(x.shape[i] for i in rest), _size(x.shape[i] for i in axes))), -1)
    return summed.reshape(kept if keepdims else tuple(n for i, n in enumerate(x.shape) if i not in axes))


def _sum_rows(x: Any) -> Any:
    """Σ of the rows of a matrix, block by block: BLAS adds in order, and its error would grow with the number of rows."""
    rows, columns = x.shape
    if rows <= _BLOCK:
        return np.matmul(np.ones(rows, x.dtype), x)
    blocks, whole = rows // _BLOCK, rows - rows % _BLOCK
    sums = np.matmul(np.ones(_BLOCK, x.dtype), x[:whole].reshape((blocks, _BLOCK, columns)))
    return _sum_rows(np.concatenate((sums, x[whole:])) if whole < rows else sums)


def _sum_last(x: Any, axes: Any) -> Any:
    slow = isinstance(x, np.ndarray) and x.strides[-1] != x.itemsize
    return np.sum(np.copy(x, order="C") if slow else x, axes)


_BLOCK = 256  # as fast as one product, and 10 to 50 times more accurate


def sum_to(gradient: Any, like: Any) -> Any:
    """The transpose of broadcasting: sum a gradient over the axes along which `like` was repeated."""
    shape = like.shape
    extra = gradient.ndim - len(shape)
    repeated = [i for i in range(gradient.ndim) if i < extra or (shape[i - extra] == 1 != gradient.shape[i])]
    if repeated:
        gradient = total(gradient, repeated).reshape(shape)
    return gradient if gradient.dtype == like.dtype else gradient.astype(like.dtype)


class _Like:
    """Shape and dtype of an argument, so that a vjp need not keep the argument itself."""

    __slots__ = ("dtype", "shape")

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype = array.shape, array.dtype


def _fitted(vjp: Vjp, arrays: tuple[Any, ...]) -> Vjp:
    likes = [_Like(a) if hasattr(a, "shape") and a.dtype.kind in "fc" else None for a in arrays]

    def fitted(g: Any) -> tuple[Any, ...]:
        return tuple([d if like is None or d is None else sum_to(d, like) for d, like in zip(vjp(g), likes)])

    return fitted


def _size(sizes: Iterable[int]) -> int:
    return int(np.prod(list(sizes), dtype=np.int64))


def _flat_specs(args: Mapping[str, str | tuple[str, ...]]) -> Iterable[tuple[str, str]]:
    for name, spec in args.items():
        if isinstance(spec, tuple):
            yield from ((f"{name}{i}", one) for i, one in enumerate(spec))
        else:
            yield name, spec


def _check_declaration(name: str, function: Callable[..., Any], args: list[str], options: Mapping[str, Any], torch: str) -> None:
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


def _check_one(op: Op, arg: Arg, array: Any, sizes: dict[str, Any]) -> None:
    """Bind the axes of one argument to sizes; ShapeError where they disagree with those bound before."""
    if array is None or not hasattr(array, "shape"):
        _check_scalar(op, arg, array)
        return
    _check_kind(op, arg, array)
    axes, group = arg.axes, arg.group
    if array.ndim < len(axes) or (group is None and array.ndim != len(axes)):
        raise ShapeError(f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r}")
    lead = array.shape[: array.ndim - len(axes)]
    for dim, size in zip(axes, array.shape[len(lead) :]):
        _bind_axis(op, arg, array, dim, size, sizes)
    if group is not None:
        _bind_group(op, arg, array, group, lead, sizes)


def _bind_axis(op: Op, arg: Arg, array: Any, dim: Dim, size: int, sizes: dict[str, Any]) -> None:
    bound, owner = sizes.setdefault(dim.name, (int(dim.name) if dim.name.isdigit() else size, arg.name))
    if size != bound:
        raise ShapeError(
            f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r} with {dim.name} = {bound} as in {owner}"
        )
    if size < dim.least:
        raise ShapeError(f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r}: {dim.name} >= {dim.least}")


def _bind_group(op: Op, arg: Arg, array: Any, group: Dim, lead: tuple[int, ...], sizes: dict[str, Any]) -> None:
    bound, owner = sizes.setdefault(group.group + group.name, (lead, arg.name))
    if group.group == "*" and lead != bound:
        raise ShapeError(
            f"{op.name}: {arg.name}: got shape {array.shape}, expected {arg.spec!r} with leading axes {bound} as in {owner}"
        )
    if group.group == "~":
        try:
            sizes["~" + group.name] = (np.broadcast_shapes(bound, lead), owner)
        except ValueError:
            raise ShapeError(
                f"{op.name}: {arg.name}: got shape {array.shape}, expected leading axes that broadcast with {bound} of {owner}"
            ) from None


def _must_sum(op: Op, arrays: tuple[Any, ...], sizes: dict[str, Any]) -> bool:
    """Whether some argument with ~axes is smaller, or of another dtype, than what it is broadcast to."""
    pairs = [(arg, a) for arg, a in zip(op.args, arrays) if arg.group and arg.group.group == "~" and hasattr(a, "shape")]
    leads = [a.shape[: a.ndim - len(arg.axes)] != sizes["~" + arg.group.name][0] for arg, a in pairs if arg.group]
    return any(leads) or len({a.dtype for _, a in pairs}) > 1


def _check_scalar(op: Op, arg: Arg, value: Any) -> None:
    if value is None and arg.optional:
        return
    if isinstance(value, int | float | complex) and arg.group and not arg.axes:
        return
    raise TypeError(f"{op.name}: {arg.name}: got {value!r} of type {type(value).__name__}, expected a tensor {arg.spec!r}")


def _check_kind(op: Op, arg: Arg, array: Any) -> None:
    allowed = {"float": "biufc", "int": "iu", "bool": "b"}[arg.kind]
    if array.dtype.kind not in allowed:
        expected = {"float": "numbers", "int": "integers", "bool": "booleans"}[arg.kind]
        raise DtypeError(f"{op.name}: {arg.name}: got dtype {array.dtype}, expected {expected}")


def _check_dtypes(op: Op, arrays: tuple[Any, ...]) -> None:
    """Arguments that do not broadcast must share one floating dtype, as in torch."""
    floats = [
        (arg, array.dtype) for arg, array in zip(op.args, arrays)
        if arg.kind == "float" and hasattr(array, "dtype") and not (arg.group and arg.group.group == "~" and not arg.axes)
    ]
    for arg, dtype in floats[1:]:
        if dtype != floats[0][1]:
            raise DtypeError(f"{op.name}: {arg.name}: got dtype {dtype}, expected {floats[0][1]} as in {floats[0][0].name}")


def _check_range(op: Op, arg: Arg, array: Any, arrays: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """IndexRangeError where an index is outside [0, V), V the axis or the option that `int < V` names."""
    size = options[arg.below] if arg.below in op.options else _axis_size(op, arg.below, arrays)
    values = np.asarray(array)
    if values.size and (values.min() < 0 or values.max() >= size):
        bad = values[(values < 0) | (values >= size)].flat[0]
        raise IndexRangeError(f"{op.name}: {arg.name}: got {bad}, expected 0 to {size - 1}, as {arg.below} = {size}")


def _axis_size(op: Op, name: str | None, arrays: tuple[Any, ...]) -> int:
    return next(a.shape[a.ndim - len(arg.axes) + i] for arg, a in zip(op.args, arrays)
                for i, dim in enumerate(arg.axes) if dim.name == name and hasattr(a, "shape"))
