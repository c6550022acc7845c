"""torch's own sample inputs (OpInfo, of torch.testing), run through torch and through us, and compared.

    python -m tests.opinfo [names of ops]      a table: what passes, what is refused and why, what fails

A sample passes where values, dtype and shape are torch's, and so are the gradients under random cotangents: float64 and
float32 by the policy of tinygrad_llm.policy, float16 by the same rule with its own rounding, other dtypes exactly. It is
refused where we raise an error that REFUSED lists with its reason. Everything else is a failure.
"""

from __future__ import annotations

import re
import sys
import types
import unittest
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import tinygrad_llm as tg
from tinygrad_llm.functions import METHODS
from tinygrad_llm.policy import compare_float32, compare_float64, specials_differ

try:
    import expecttest  # noqa: F401
except ImportError:  # torch's test utilities import it for a TestCase of theirs, which nothing here uses
    sys.modules["expecttest"] = types.ModuleType("expecttest")
    sys.modules["expecttest"].TestCase = unittest.TestCase  # type: ignore[attr-defined]
from torch.testing._internal.common_methods_invocations import op_db

DTYPES = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
HALF_TOL, RATIO = 2.0**-9, 4.0  # four roundings of float16; or at most 4 times torch's own error


def method(name: str) -> Callable[..., Any]:
    return lambda x, *args, **options: getattr(x, name)(*args, **options)


# How we spell what is no function, nn.functional function or method of the same name and order of arguments
SPELLINGS: dict[str, Callable[..., Any]] = {
    "T": lambda x: x.T, "mT": lambda x: x.mT, "to": method("to"), "where": method("where"), "__ror__": lambda x, y: y | x,
    "einsum": lambda tensors, equation: tg.einsum(equation, tensors), "zero_": lambda x: x.clone().zero_(),
    "nn.functional.embedding": lambda weight, ids, **options: tg.nn.functional.embedding(ids, weight, **options),
    "linalg.vector_norm": tg.linalg.vector_norm,
    "positive": lambda x: +x, "bitwise_not": lambda x: ~x, "bitwise_and": lambda x, y: x & y,
    "bitwise_or": lambda x, y: x | y, "bitwise_xor": lambda x, y: x ^ y, "__rdiv__": lambda x, y: y / x,
}

# (name of an op or *, pattern of our error, why it is refused, or is of another class)
REFUSED = [
    ("norm", "'nuc'", "there is no singular value decomposition"),
    ("arange", "start, step: got .* for u?int", "torch cuts the fraction off, and its versions count differently"),
    ("baddbmm", "beta, alpha: got .* for u?int", "torch cuts the fraction of a factor off, without a word"),
    ("*", "unexpected keyword argument 'layout'", "an array has strides, and no other layout to name"),
    ("*", "unexpected keyword argument 'out'", "results are new: nothing takes out="),
]
# (name of an op or *, pattern of a sample, why we take what torch refuses)
TAKEN = [
    ("*", r"^\((2|tensor\(\[1, 2, 3\]\)), (2|3|tensor\(\[1, 2, 3\]\)), {}\)$", "numbers are operands too"),
    ("narrow", r"tensor\(True\)", "True is an integer to Python"),
    ("masked_fill", r"tensor\(0\.\+1\.j\)", "complex numbers are not read at all"),
]
# What they return is not determined, or drawn: shape and dtype are compared
UNDETERMINED: dict[str, Callable[..., Any]] = {
    **{name: lambda *args, **options: True for name in (
        "new_empty", "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "normal", "bernoulli", "uniform")},
    "nn.functional.dropout": lambda x, p=0.5, training=True, **options: training and 0 < p < 1,
    "nn.functional.scaled_dot_product_attention": lambda *args, dropout_p=0.0, **options: dropout_p > 0,
}


@dataclass(frozen=True)
class Outcome:
    """What became of one sample."""

    op: str
    dtype: str
    sample: str
    verdict: str  # pass, refused or fail
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.op} {self.dtype} {self.sample[:160]}: {self.detail[:300]}"


def function_of(name: str) -> Callable[..., Any] | None:
    """Our function of the op's name; None where there is none."""
    if name in SPELLINGS:
        return SPELLINGS[name]
    short = name.removeprefix("nn.functional.")
    if short != name:
        return getattr(tg.nn.functional, short, None)
    found = getattr(tg.functions, name, None)
    if isinstance(found, types.FunctionType):
        return found
    return method(name) if name in METHODS or hasattr(tg.Tensor, name) else None


OPS = [op for op in op_db if function_of(op.name) and op.variant_test_name != "in_place"]  # that one is normal_


def label(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


# Samples -----------------------------------------------------------------------------------------------------------------


def mapped(tree: Any, leaf: Callable[[Any], Any], known: dict[int, Any] | None = None) -> Any:
    """The tree of tuples, lists and dictionaries with leaf(x) in place of each x, the same one for the same x."""
    known = {} if known is None else known
    if isinstance(tree, dict):
        return {key: mapped(value, leaf, known) for key, value in tree.items()}
    if isinstance(tree, tuple | list) and type(tree) in (tuple, list):
        return type(tree)([mapped(value, leaf, known) for value in tree])
    if id(tree) not in known:
        known[id(tree)] = leaf(tree)
    return known[id(tree)]


def leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    mapped(tree, found.append)
    return found


def carried(x: Any) -> Any:
    """A leaf of a sample as ours: tensors with their strides, dtypes as NumPy's, devices and memory formats by name."""
    if isinstance(x, torch.Tensor):
        ours = tg.Tensor.from_array(np.array(x.detach().numpy(), order="K"))
        return ours.requires_grad_() if x.requires_grad else ours
    if isinstance(x, torch.dtype):
        return str(x).removeprefix("torch.")
    if isinstance(x, torch.Size):
        return tuple(x)
    return str(x) if isinstance(x, torch.device | torch.memory_format | torch.layout) else x


def widened(x: Any) -> Any:
    """A leaf of a sample for the float64 truth."""
    if isinstance(x, torch.Tensor) and x.dtype in (torch.float32, torch.float16):
        return x.detach().double().requires_grad_(x.requires_grad)
    if isinstance(x, torch.Tensor):
        return x.detach()
    return torch.float64 if x in (torch.float32, torch.float16) and isinstance(x, torch.dtype) else x


def samples_of(op: Any, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    """(input, *args, kwargs) of each sample, the same ones at every call."""
    torch.manual_seed(0)
    wants = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
    for sample in op.sample_inputs("cpu", dtype, requires_grad=wants):
        yield (sample.input, *sample.args, sample.kwargs)


# Running and comparing ---------------------------------------------------------------------------------------------------


def run(function: Callable[..., Any], sample: tuple[Any, ...], cotangents: list[Any]) -> tuple[list[Any], list[Any]]:
    """(results, gradients of what requires grad), of either library; cotangents are made where there are none yet."""
    *args, options = sample
    results = leaves_of_result(function(*args, **options))
    live = [y for y in results if getattr(y, "requires_grad", False)]
    if not cotangents:
        cotangents += [np.random.default_rng(0).standard_normal(tuple(y.shape)) for y in live]
    inputs = [x for x in leaves(sample) if getattr(x, "requires_grad", False)]
    for x in inputs:
        x.grad = None  # samples may share tensors
    library, pairs = (torch if any(isinstance(y, torch.Tensor) for y in live) else tg), zip(cotangents, live, strict=True)
    if live:
        library.autograd.backward(live, [library.as_tensor(g).to(y.dtype) for g, y in pairs])
    return results, [x.grad for x in inputs]


def leaves_of_result(result: Any) -> list[Any]:
    if isinstance(result, tuple | list):
        return [leaf for part in result for leaf in leaves_of_result(part)]
    return [result]


def values(x: Any) -> Any:
    return x.detach().numpy() if isinstance(x, torch.Tensor | tg.Tensor) else np.asarray(x)


def differs(ours: Any, theirs: Any, truth: Any, what: str) -> str:
    """Says in what ours is not torch's; an empty text where it is equal by the policy."""
    if theirs is None and ours is not None and not np.any(values(ours)):
        return ""  # torch has no gradient where it is zero everywhere
    if (ours is None or theirs is None) and ours is not theirs:
        return f"{what}: got {ours}, expected {theirs}"
    if ours is None:
        return ""
    if isinstance(theirs, torch.Tensor) != isinstance(ours, tg.Tensor):
        return f"{what}: got {type(ours).__name__}, expected {type(theirs).__name__}"
    if getattr(ours, "requires_grad", False) != getattr(theirs, "requires_grad", False):
        return f"{what}: got requires_grad {ours.requires_grad}, expected {theirs.requires_grad}"
    a, b = values(ours), values(theirs)
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{what}: got {a.dtype} of shape {a.shape}, expected {b.dtype} of shape {b.shape}"
    found = _values_differ(a, b, values(truth))
    return f"{what}: {found}" if found else ""


def _values_differ(a: np.ndarray, b: np.ndarray, truth: np.ndarray) -> str:
    if a.dtype == np.float64:
        found = compare_float64(a, b)
    elif a.dtype == np.float32 and truth.dtype.kind == "f":
        found = compare_float32(a, b, truth.astype(np.float64))
    elif a.dtype == np.float16:
        return _halves_differ(a, b, truth.astype(np.float64))
    else:
        return "" if np.array_equal(a, b) else f"got {a.tolist()!r:.100}, expected {b.tolist()!r:.100}"
    return "" if found.passed else f"{found.verdict}, {found.detail}"


def _halves_differ(a: np.ndarray, b: np.ndarray, truth: np.ndarray) -> str:
    if found := specials_differ(a, b, truth):
        return found
    settled = np.isfinite(a) & np.isfinite(b) & np.isfinite(truth)
    x, y, z = [np.where(settled, v, 0).astype(np.float64) for v in (a, b, truth)]
    allowed = np.maximum(HALF_TOL, RATIO * np.abs(y - z).max(initial=0) / (1 + np.abs(z)))
    wrong = np.abs(x - z) > allowed * (1 + np.abs(z))
    return f"got {a[wrong][0]}, expected {truth[wrong][0]} (torch: {b[wrong][0]})" if wrong.any() else ""


def verdict_of(op: Any, dtype: torch.dtype, sample: tuple[Any, ...]) -> Outcome | None:
    """What becomes of one sample; None where torch itself refuses it."""
    cotangents: list[Any] = []
    mine = mapped(sample, carried)
    try:
        theirs = run(op.op, sample, cotangents)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    try:
        with np.errstate(all="ignore"):
            ours = run(function_of(op.name), mine, cotangents)  # type: ignore[arg-type]
    except Exception as error:  # whatever it is, the report shows it
        why = reason(op.name, error)
        return _outcome(op, dtype, sample, "refused" if why else "fail", why or f"{type(error).__name__}: {error}")
    if UNDETERMINED.get(op.name, lambda *args, **options: False)(*sample[:-1], **sample[-1]):
        mine, others = [[(str(y.dtype).removeprefix("torch."), tuple(y.shape), y.requires_grad) for y in found[0]]
                        for found in (ours, theirs)]
        detail = "" if mine == others else f"got {mine}, expected {others}"
    else:
        detail = _all_differ(ours, theirs, _truth(op, sample, cotangents, theirs))
    return _outcome(op, dtype, sample, "fail" if detail else "pass", detail)


def _outcome(op: Any, dtype: torch.dtype, sample: tuple[Any, ...], verdict: str, detail: str) -> Outcome:
    shown = "" if verdict == "pass" else re.sub(r"\s+", " ", repr(sample))
    return Outcome(label(op), str(dtype).removeprefix("torch."), shown, verdict, detail)


def _truth(op: Any, sample: tuple[Any, ...], cotangents: list[Any], otherwise: Any) -> Any:
    """Results and gradients in float64, or what torch has found where all of it is of other dtypes than float32 and 16."""
    if not any(getattr(y, "dtype", None) in (torch.float32, torch.float16) for found in otherwise for y in found):
        return otherwise
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = run(op.op, mapped(sample, widened), cotangents)
        alike = [len(a) == len(b) and all(np.shape(x) == np.shape(y) for x, y in zip(a, b)) for a, b in zip(found, otherwise)]
        return found if all(alike) else otherwise
    except (RuntimeError, TypeError, ValueError):
        return otherwise
    finally:
        torch.set_default_dtype(before)


def _all_differ(ours: Any, theirs: Any, truth: Any) -> str:
    for kind, mine, others, exact in zip(("result", "gradient"), ours, theirs, truth):
        if len(mine) != len(others):
            return f"got {len(mine)} {kind}s, expected {len(others)}"
        for i, (x, y, z) in enumerate(zip(mine, others, exact)):
            if detail := differs(x, y, z, f"{kind} {i}"):
                return detail
    return ""


def reason(op: str, error: Exception) -> str:
    """Why an error of ours is no failure; empty where REFUSED does not say."""
    return next((why for name, pattern, why in REFUSED if name in ("*", op) and re.search(pattern, str(error))), "")


def outcomes(op: Any, dtype: torch.dtype, most: int = sys.maxsize) -> Iterator[Outcome]:
    """What becomes of the samples that torch has for the op in this dtype, of no more than `most`, from all over the list."""
    if dtype not in op.supported_dtypes("cpu"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(samples_of(op, dtype))
        for sample in samples[:: max(1, -(-len(samples) // most))]:
            if found := verdict_of(op, dtype, sample):
                yield found


# What torch refuses ------------------------------------------------------------------------------------------------------


def error_outcomes(op: Any) -> Iterator[Outcome]:
    """Whether we refuse what torch refuses, by a class that is at least torch's, in words that say what was expected."""
    if op.error_inputs_func is None:
        return
    torch.manual_seed(0)
    for one in op.error_inputs("cpu"):
        sample = (one.sample_input.input, *one.sample_input.args, one.sample_input.kwargs)
        if any(isinstance(x, torch.Tensor) and x.ndim > 64 for x in leaves(sample)):  # which NumPy cannot hold
            continue
        verdict, detail = _error_verdict(op, sample, one.error_type)
        yield Outcome(label(op), "error", "" if verdict == "pass" else re.sub(r"\s+", " ", repr(sample)), verdict, detail)


def _error_verdict(op: Any, sample: tuple[Any, ...], expected: type[Exception]) -> tuple[str, str]:
    try:
        with np.errstate(all="ignore"):
            *args, options = mapped(sample, carried)
            function_of(op.name)(*args, **options)  # type: ignore[misc]
    except Exception as error:
        if not isinstance(sample[0], torch.Tensor) and isinstance(error, AttributeError):
            return "pass", ""  # a method, which numbers do not have
        if why := reason(op.name, error):
            return "refused", why
        said = f"{type(error).__name__}: {error}"
        if not isinstance(error, expected):
            return "fail", f"{said}; torch's is {expected.__name__}"
        return ("pass", "") if re.search(r"got .*\bexpected", str(error), re.S) else ("fail", f"obscure: {said}")
    why = next((why for name, what, why in TAKEN if name in ("*", op.name) and re.search(what, repr(sample), re.S)), "")
    return ("refused", why) if why else ("fail", f"taken; torch raises {expected.__name__}")


def main(names: list[str]) -> int:
    """Print the report; 1 where something fails."""
    table: dict[str, Counter[str]] = {}
    bad: list[Outcome] = []
    for op in OPS:
        if names and op.name not in names and label(op) not in names:
            continue
        found = [one for dtype in DTYPES for one in outcomes(op, dtype)] + list(error_outcomes(op))
        for one in found:
            table.setdefault(one.dtype, Counter())[one.verdict] += 1
        bad += [one for one in found if one.verdict == "fail"]
    print(*bad, sep="\n")
    print(f"{'dtype':10}{'pass':>8}{'refused':>8}{'fail':>8}")
    for dtype, counts in table.items():
        print(f"{dtype:10}{counts['pass']:8}{counts['refused']:8}{counts['fail']:8}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
