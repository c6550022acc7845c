"""Two functions of a user, one in NumPy or tinygrad_llm and one in PyTorch: is one wrong, or do both round?

Both are called on drawn inputs in float64 and float32. In float64 only formulas can differ. Where outputs agree there and a
gradient does not, the difference quotient of the function itself decides whose gradient is wrong. Where float64 agrees, the
float32 errors beside the float64 truth decide: one that is beyond the tolerance and more than 4 times the other's is wrong.

The first function may be
    a function of arrays            outputs are compared; gradients too where it can be traced with Tensors
    a function of tinygrad_llm Tensors
    a function that returns (out, vjp), as ops do: the hand-written vjp is what is compared
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reference.opdraw import MODEL, Seeded, draw_arguments
from reference.sections import finite
from tinygrad_llm.ops import Arg
from tinygrad_llm.policy import FLOAT32_RATIO, FLOAT32_TOL, Comparison, bounded_ratio, compare_float32, compare_float64

CALLS = 20
STEP = 1e-5  # of the central difference: its own error is about 1e-9
NUMERIC_TOL = 1e-5
CANCELLED = 30.0  # times nearer in extended precision, where NumPy has it: then rounding, and not the formula, was far
ROUND, YOURS, TORCH, NEITHER = "both round", "yours is wrong", "torch's is wrong", "both are wrong"


@dataclass(frozen=True)
class FunctionRow:
    """The output or one gradient: the largest difference in float64, the largest float32 errors, and the verdict."""

    name: str
    float64: float
    error: float
    torch_error: float
    ratio: float | None
    verdict: str
    detail: str = ""


@dataclass(frozen=True)
class FunctionReport:
    """rows, and what could not be compared."""

    rows: list[FunctionRow]
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether neither is wrong."""
        return all(row.verdict == ROUND for row in self.rows)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        wrong = [row for row in self.rows if row.verdict != ROUND]
        if not wrong:
            said = "Both round: the same function in float64, and in float32 neither is off by more than rounding"
        else:
            first = wrong[0]
            said = f"{first.verdict[0].upper()}{first.verdict[1:]}, in {', '.join(row.name for row in wrong)}: {first.detail}"
        return f"{said}.{' ' * bool(self.note)}{self.note}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return finite({"passed": self.passed, "sentence": self.sentence, "rows": [dataclasses.asdict(r) for r in self.rows]})


def compare_functions(functions: str, inputs: str, library: Any, seed: int = 0) -> FunctionReport:
    """functions: "module:ours,module:torch"; inputs: shape strings joined by ";"; library: the package tinygrad_llm.

    Raises ValueError or TypeError, in a line, where a function cannot be found or does not take the inputs.
    """
    ours, theirs = load_functions(functions)
    args = tuple(Arg.parse(f"argument {i}", spec) for i, spec in enumerate(inputs.split(";"), 1))
    return compare(ours, theirs, args, library, seed)


def compare(
    ours: Callable[..., Any], theirs: Callable[..., Any], args: tuple[Arg, ...], library: Any, seed: int = 0
) -> FunctionReport:
    """The same for functions and parsed shape strings."""
    found: dict[str, list[FunctionRow]] = {}
    traced = True
    for i in range(CALLS):
        source = Seeded(seed, i)
        values = draw_arguments(args, source, MODEL, {})
        cotangent = source.rng.standard_normal(_call_torch(theirs, values, np.float64).shape)
        truth, narrow = (_run_torch(theirs, values, cotangent, d) for d in (np.float64, np.float32))
        wide, mine = (_run_ours(ours, values, cotangent, d, library) for d in (np.float64, np.float32))
        traced = traced and len(wide) > 1
        names = ["output", *[f"gradient of {arg.name}" for arg in args if arg.kind == "float"]]
        for j, name in enumerate(names[: len(wide)]):
            row = _judged(name, wide[j], mine[j], narrow[j], truth[j])
            if row.verdict == NEITHER:
                row = _arbitrated(row, theirs, values, cotangent, j - 1, wide, truth)
                row = _softened(row, ours, values, wide, truth)
            found.setdefault(name, []).append(row)
    note = "" if traced else "Gradients were not compared: yours gives none."
    return FunctionReport([_worst(rows) for rows in found.values()], note)


def load_functions(functions: str) -> list[Callable[..., Any]]:
    """The two functions; modules are found as `python -m` finds them, in the working folder too."""
    names = functions.split(",")
    if len(names) != 2 or not all(name.count(":") == 1 for name in names):
        raise ValueError(f"functions: got {functions!r}, expected two, such as mine:np_norm,mine:torch_norm")
    sys.path.insert(0, os.getcwd())
    try:
        return [_load(*name.split(":")) for name in names]
    finally:
        sys.path.remove(os.getcwd())


def _load(module: str, name: str) -> Callable[..., Any]:
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"functions: got {module}:{name}, expected a function that can be imported ({error})") from None
    if not callable(found):
        raise TypeError(f"functions: got {module}:{name}, a {type(found).__name__}, expected a function")
    return found


def _cast(values: list[np.ndarray], dtype: Any) -> list[np.ndarray]:
    return [v.astype(dtype) if v.dtype.kind == "f" else v for v in values]


def _call_torch(function: Any, values: list[np.ndarray], dtype: Any) -> torch.Tensor:
    return _result_of_torch(function, [torch.tensor(v) for v in _cast(values, dtype)])


def _result_of_torch(function: Any, tensors: list[torch.Tensor]) -> torch.Tensor:
    try:
        out = function(*tensors)
    except Exception as error:
        raise TypeError(f"functions: got {error!r} from the second function, expected it to take these inputs") from error
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"functions: got a {type(out).__name__} from the second function, expected one torch.Tensor")
    return out


def _run_torch(function: Any, values: list[np.ndarray], cotangent: np.ndarray, dtype: Any) -> list[np.ndarray]:
    tensors = [torch.tensor(v, requires_grad=v.dtype.kind == "f") for v in _cast(values, dtype)]
    out = _result_of_torch(function, tensors)
    wanted = [t for t in tensors if t.requires_grad]
    if not out.requires_grad:
        return [out.numpy(), *[np.zeros(tuple(t.shape), dtype) for t in wanted]]
    found = torch.autograd.grad(out, wanted, torch.from_numpy(cotangent).to(out.dtype), allow_unused=True)
    zeros = [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, found)]
    return [out.detach().numpy(), *[d.numpy() for d in zeros]]


def _run_ours(function: Any, values: list[np.ndarray], cotangent: np.ndarray, dtype: Any, library: Any) -> list[Any]:
    """[output, gradient, ...], or [output] where there are no gradients."""
    arrays = _cast(values, dtype)
    floats = [i for i, v in enumerate(values) if v.dtype.kind == "f"]
    plain = _attempt(function, arrays)
    if isinstance(plain, tuple) and len(plain) == 2 and callable(plain[1]):
        gradients = plain[1](cotangent.astype(plain[0].dtype))
        return [np.asarray(plain[0]), *[np.asarray(gradients[i]) for i in floats]]
    tensors = [library.tensor(a, requires_grad=i in floats) for i, a in enumerate(arrays)]
    traced = _attempt(function, tensors)
    if isinstance(traced, library.Tensor) and traced.requires_grad:
        traced.backward(library.tensor(cotangent.astype(traced.dtype)))
        output = traced.detach().numpy() if isinstance(plain, Exception | library.Tensor) else np.asarray(plain)
        zeros = [np.zeros(arrays[i].shape, dtype) if tensors[i].grad is None else tensors[i].grad.numpy() for i in floats]
        return [output, *zeros]
    if isinstance(plain, Exception):
        raise TypeError(f"functions: got {plain!r} from the first function, expected it to take these inputs") from plain
    return [np.asarray(plain)]


def _attempt(function: Any, arguments: list[Any]) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return error


def _judged(name: str, wide: Any, mine: Any, narrow: Any, truth: Any) -> FunctionRow:
    """NEITHER stands for "the formulas differ" until the arbiter has spoken."""
    same = compare_float64(wide, truth, name)
    found = compare_float32(mine, narrow, truth, name)
    theirs = found.torch_error if found.torch_error is not None else 0.0
    verdict, detail = _verdict(same, found, theirs)
    ratio = bounded_ratio(found.error, theirs) if np.isfinite(found.error) else None
    return FunctionRow(name, same.error, found.error, theirs, ratio, verdict, detail)


def _verdict(same: Comparison, found: Comparison, theirs: float) -> tuple[str, str]:
    if not same.passed:
        return NEITHER, f"float64 already differs, {same.detail}"
    if not np.isfinite(found.error):
        return YOURS, f"in float32, {found.detail}"
    if found.failed:
        return YOURS, f"in float32 its error is {found.error:.1e}, torch's {theirs:.1e}, with the same formula in float64"
    if theirs > FLOAT32_TOL and theirs > FLOAT32_RATIO * found.error:
        return TORCH, f"in float32 its error is {theirs:.1e}, yours {found.error:.1e}, with the same formula in float64"
    return ROUND, ""


def _arbitrated(
    row: FunctionRow, theirs: Any, values: list[np.ndarray], cotangent: np.ndarray, which: int, wide: list[Any],
    truth: list[Any],
) -> FunctionRow:  # fmt: skip
    """Whose formula is wrong: the output's by definition yours, as torch is the reference; a gradient's by differences."""
    if which < 0 or not compare_float64(wide[0], truth[0]).passed:
        return dataclasses.replace(row, verdict=YOURS, detail=f"another function than torch's: {row.detail}")
    numeric, direction = _difference_quotient(theirs, values, cotangent, which)
    right = [_near(gradient, direction, numeric) for gradient in (wide[which + 1], truth[which + 1])]
    verdict = {(False, True): YOURS, (True, False): TORCH, (False, False): NEITHER}.get((right[0], right[1]), YOURS)
    said = f"the difference quotient of the function says {numeric:.6g} along a random direction; {row.detail}"
    return dataclasses.replace(row, verdict=verdict, detail=said)


def _softened(row: FunctionRow, ours: Any, values: list[np.ndarray], wide: list[Any], truth: list[Any]) -> FunctionRow:
    """Says so where yours is not another formula but one that cancels: with more digits its output comes near torch's."""
    digits = _attempt(ours, _cast(values, np.longdouble))
    digits = digits[0] if isinstance(digits, tuple) else digits
    if not isinstance(digits, np.ndarray) or digits.dtype != np.longdouble or digits.shape != truth[0].shape:
        return row
    far, near = (float(np.max(np.abs(x - truth[0]), initial=0.0)) for x in (wide[0], digits))
    if not near * CANCELLED < far:
        return row
    said = f"it cancels: even in float64 it is off by {far:.1e}, with more digits by {near:.1e}"
    return dataclasses.replace(row, detail=f"torch's function, but {said}")


def _difference_quotient(theirs: Any, values: list[np.ndarray], cotangent: np.ndarray, which: int) -> tuple[float, np.ndarray]:
    """⟨cotangent, (f(x + h v) − f(x − h v)) / 2h⟩ for floating argument number `which`, and v."""
    index = [i for i, v in enumerate(values) if v.dtype.kind == "f"][which]
    direction = np.random.default_rng(0).standard_normal(values[index].shape)
    ends = []
    for h in (STEP, -STEP):
        moved = [v + h * direction if i == index else v for i, v in enumerate(values)]
        ends.append(_call_torch(theirs, moved, np.float64).detach().numpy())
    return float(np.sum(cotangent * (ends[0] - ends[1])) / (2 * STEP)), direction


def _near(gradient: Any, direction: np.ndarray, numeric: float) -> bool:
    if gradient.shape != direction.shape:
        return False
    terms = gradient * direction
    return bool(abs(terms.sum() - numeric) <= NUMERIC_TOL * (1 + np.abs(terms).sum()))


def _worst(rows: list[FunctionRow]) -> FunctionRow:
    order = (ROUND, TORCH, NEITHER, YOURS)
    worst = max(rows, key=lambda row: (order.index(row.verdict), row.error))
    largest = {key: max(getattr(row, key) for row in rows) for key in ("float64", "error", "torch_error")}
    logs = [np.log(row.ratio) for row in rows if row.ratio]
    return dataclasses.replace(worst, **largest, ratio=float(np.exp(np.mean(logs))) if logs else None)
