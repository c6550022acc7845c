"""Arguments in torch's places: of every public name that torch has too, each parameter's name, place and default.

torch's signatures are Python's where torch is Python, else those of the stubs in its wheel, each overload by itself. What
differs is a line `callable: parameter: what`. The first names are tinygrad_llm's, found by walking it beside torch.
`python -m tests.signatures` prints how much was compared, and what differs with which reason.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from packaging.version import Version

import tinygrad_llm as tg

REQUIRED = "required"
STUBS = {"": ["_C/_VariableFunctions.pyi"], "nn.functional": ["_C/_nn.pyi", "nn/functional.pyi"], "Tensor": ["_C/__init__.pyi"]}
ELSEWHERE = {  # ours: torch's
    "autograd.checkpoint": "utils.checkpoint.checkpoint", "optim.clip_grad_norm_": "nn.utils.clip_grad_norm_",
    "grad": "autograd.grad", "detect_anomaly": "autograd.detect_anomaly", "autograd.is_grad_enabled": "is_grad_enabled",
    "autograd.RemovableHandle": "utils.hooks.RemovableHandle",
}
BUILT_IN = {"autograd.Function.apply": lambda *args, **kwargs: None}  # without a signature or a stub since torch 2.15
CORRECTED = {  # where there is no stub, or where it allows what torch refuses (test_signatures shows that it does)
    "tensor": ["data, *, dtype=None, device=None, requires_grad=False, pin_memory=False"],
    "as_tensor": ["data, *, dtype=None, device=None"],
    "Tensor.new_tensor": ["self, data, *, dtype=None, device=None, requires_grad=False, pin_memory=False"],
    "Tensor.new_ones": [f"self, {size}, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False"
                        for size in ("size, *", "*size")],
    "Tensor.requires_grad_": ["self, requires_grad=True"],
    "linalg.vector_norm": ["input, ord=2, dim=None, keepdim=False, *, dtype=None, out=None"],
}


class Parameter(NamedTuple):
    name: str
    place: int | None  # None: by name only
    default: Any = REQUIRED
    several: bool = False  # f(1, 2) for f((1, 2))
    named: bool = True


class Pair(NamedTuple):
    name: str
    ours: Any
    torchs: Any
    kind: str


# Reading -----------------------------------------------------------------------------------------------------------------


def of_python(function: Any, bound: bool = False) -> list[Parameter]:
    """The parameters of a Python function; of a method those after self. `*args` and `**options` only pass on."""
    several, found = _places_of_several(function), []
    for place, p in enumerate(inspect.signature(function).parameters.values()):
        if p.kind is not p.VAR_KEYWORD and place >= bound:
            default, many = REQUIRED if p.default is p.empty else p.default, p.kind is p.VAR_POSITIONAL
            at = None if p.kind is p.KEYWORD_ONLY else place - bound
            found.append(Parameter(p.name, at, default, many or (at is not None and place in several), not many))
    return found


def _places_of_several(function: Any) -> set[int]:
    """Where it, or what it wraps, takes any number of arguments."""
    found = set()
    while function is not None:
        code = getattr(function, "__code__", None)
        takes_any = code and code.co_flags & inspect.CO_VARARGS
        if takes_any and code.co_varnames[code.co_argcount + code.co_kwonlyargcount] != "args":
            found.add(code.co_argcount)
        function = getattr(function, "__wrapped__", None)
    return found


def of_stub(name: str, args: ast.arguments, bound: bool = False) -> list[Parameter]:
    """The parameters of a function in a stub."""
    plain = [*args.posonlyargs, *args.args]
    defaults = [*[None] * (len(plain) - len(args.defaults)), *args.defaults]
    found = [Parameter(a.arg, i - bound, _value(name, a.arg, d)) for i, (a, d) in enumerate(zip(plain, defaults))]
    if args.vararg:
        found.append(Parameter(args.vararg.arg, len(plain) - bound, several=True, named=False))
    return found[bound:] + [Parameter(a.arg, None, _value(name, a.arg, d)) for a, d in zip(args.kwonlyargs, args.kw_defaults)]


def _value(name: str, parameter: str, default: ast.expr | None) -> Any:
    if default is None:
        return REQUIRED
    try:
        found = ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)
    if found is not ...:
        return found
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return next((a.default_value for s in schemas for a in s.arguments if a.name == parameter and a.has_default_value()), None)


@functools.cache
def stub(path: str, within: str | None) -> dict[str, list[ast.arguments]]:
    """{name: its overloads} of a stub file, or of one class in it."""
    body = ast.parse((Path(torch.__file__).parent / path).read_text()).body
    if within:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == within)
    found: dict[str, list[ast.arguments]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(node.args)
    return found


def torchs_overloads(pair: Pair) -> list[list[Parameter]]:
    """Every way in which torch's function is called."""
    room, _, name = ELSEWHERE.get(pair.name, pair.name).rpartition(".")
    method = pair.kind == "method"
    if inspect.isbuiltin(pair.torchs) and pair.name in BUILT_IN:
        return [of_python(BUILT_IN[pair.name], method)]
    if pair.name in CORRECTED:
        parsed = [ast.parse(f"def f({text}): ...").body[0].args for text in CORRECTED[pair.name]]  # type: ignore[attr-defined]
        return [of_stub(name, args, method) for args in parsed]
    if inspect.isfunction(pair.torchs) or inspect.isclass(pair.torchs) or inspect.ismethod(pair.torchs):
        return [of_python(pair.torchs, method)]
    for path in STUBS[room]:
        if overloads := stub(path, "TensorBase" if room == "Tensor" else None).get(name):
            found = [of_stub(name, args, method) for args in overloads]
            return [o for o in found if len(found) == 1 or not _is_deprecated(o)]
    raise LookupError(f"{pair.name}: no stub")


def _is_deprecated(overload: list[Parameter]) -> bool:
    """add(x, 2, y): a factor by position."""
    return any(p.name in ("alpha", "beta") and p.place is not None for p in overload)


# Walking -----------------------------------------------------------------------------------------------------------------


def pairs() -> Iterator[Pair]:
    """Every public function, class, method and attribute of ours that torch has too, once."""
    seen = set()
    for pair in _of_module("", tg, torch):
        if (key := (id(pair.ours), id(pair.torchs))) not in seen or pair.kind in ("method", "attribute"):
            seen.add(key)
            yield pair


def _of_module(path: str, ours: Any, torchs: Any) -> Iterator[Pair]:
    for name in getattr(ours, "__all__", None) or [n for n in vars(ours) if not n.startswith("_")]:
        a, full = getattr(ours, name), f"{path}{name}"
        b = _lookup(ELSEWHERE[full]) if full in ELSEWHERE else getattr(torchs, name, None)
        if type(a) is types.ModuleType and a.__name__.startswith("tinygrad_llm") and type(b) is types.ModuleType:
            yield from _of_module(f"{full}.", a, b)
        elif not (callable(a) and callable(b) and getattr(a, "__module__", "").startswith("tinygrad_llm")):
            continue
        elif not inspect.isclass(a):
            yield Pair(full, a, b, "function")
        elif not issubclass(a, Exception) and full != "Generator":  # NumPy's, beside one of torch's own that is built in
            yield from _of_class(full, a, b)


def _lookup(path: str) -> Any:
    return functools.reduce(getattr, path.split("."), torch)


def _of_class(name: str, ours: Any, torchs: Any) -> Iterator[Pair]:
    if name != "Tensor":  # whose constructor has no signature in torch
        yield Pair(name, ours, torchs, "class")
    for member in vars(ours):
        if not member.startswith("_") and hasattr(torchs, member):
            a, b = getattr(ours, member), getattr(torchs, member)
            free = isinstance(inspect.getattr_static(ours, member), classmethod | staticmethod)
            yield Pair(f"{name}.{member}", a, b, "attribute" if not callable(a) else "function" if free else "method")


# Comparing ---------------------------------------------------------------------------------------------------------------


def differences() -> Iterator[str]:
    """`callable: parameter: what` for each parameter that is not where torch has it."""
    for pair in pairs():
        if callable(pair.ours) != callable(pair.torchs):
            yield f"{pair.name}: {pair.name.rpartition('.')[2]}: {'a method' if callable(pair.ours) else 'no method'}"
        elif callable(pair.ours):
            ours = of_python(pair.ours, pair.kind == "method")
            yield from (f"{pair.name}: {parameter}: {what}" for parameter, what in between(ours, torchs_overloads(pair)))


def between(ours: list[Parameter], overloads: list[list[Parameter]]) -> Iterator[tuple[str, str]]:
    """(parameter, what differs) of each parameter of any overload of torch's, then of those that none of them has."""
    mine = {p.name: p for p in ours}
    names = list(dict.fromkeys(p.name for overload in overloads for p in overload))
    for name in names:
        theirs = [p for overload in overloads for p in overload if p.name == name]
        yield from ((name, what) for what in (_differs(mine[name], theirs, len(overloads)) if name in mine else ["missing"]))
    yield from ((p.name, "ours alone") for p in ours if p.name not in names)


def _differs(mine: Parameter, theirs: list[Parameter], overloads: int) -> Iterator[str]:
    places = sorted({p.place for p in theirs if p.place is not None})
    if set(places) - {mine.place}:
        yield f"place {mine.place}, in torch {' and '.join(map(str, places))}"
    if not places and mine.place is not None:
        yield "by position too"
    if any(p.several for p in theirs) and not mine.several:
        yield "one argument only"
    if any(p.named for p in theirs) and not mine.named:
        yield "not by name"
    defaults = [p.default for p in theirs if not p.several]
    for default in {repr(d): d for d in defaults if d is not REQUIRED}.values():
        if mine.default is REQUIRED or mine.default != default:
            yield f"default {mine.default!r}, in torch {default!r}"
    if mine.default is not REQUIRED and defaults == [REQUIRED] * overloads:
        yield "optional"


# Reasons -----------------------------------------------------------------------------------------------------------------

EVERYWHERE = {  # `parameter: what` of any callable
    "out: missing": "torch refuses it where a gradient is wanted; x.add_(y) and x[...] = y write, with their gradients",
    "layout: missing": "an array has strides, and no other layout to name",
    "memory_format: missing": "as layout",
    "memory_format: ours alone": "torch takes it in casts, x.float(memory_format=...), where its stubs leave it out",
    "names: missing": "named tensors, which torch calls a prototype",
    "out_dtype: missing": "of CUDA's products of halves",
    "generator: ours alone": "a drawing function can be given NumPy's generator",
    "self: missing": "torch's slip: a number in place of the tensor is called self by name, and input by every other overload",
}
HERE = {
    "Tensor.size: size: no method": "an int that can be called: NumPy's x.size and torch's x.size(0), both are daily",
    "Tensor.to": "three overloads told apart by the first argument; test_everyday calls each",
    "Tensor.view: dtype: place 1, in torch 0": "a dtype is told from sizes in the same place",
    **{f"{name}: other: place None, in torch {place}": "a tensor in the place of dim is other"
       for name, place in [("max", 1), ("min", 1), ("Tensor.max", 0), ("Tensor.min", 0)]},
    **{f"{name}: unbiased: {what}": "True or False in the place of dim is unbiased; None says that correction may be given"
       for name, before in [("var", 1), ("std", 1), ("Tensor.var", 0), ("Tensor.std", 0)]
       for what in (f"place {before + 1}, in torch {before} and {before + 1}", "default None, in torch True")},
    "Tensor.expand: implicit: missing": "of torch's own compiler",
    "arange: end: place 1, in torch 0 and 1": "one number is the end",
    "arange: end: optional": "one number is the end",
    **{f"einsum: {rest}": "torch's Python takes *args; its documentation has our names"
       for rest in ("args: missing", "equation: ours alone", "operands: ours alone")},
    "norm: dtype: place None, in torch 5": "behind out",
    "result_type": "takes any number of operands",
    **{f"{name}: {rest}": "two numbers in torch's places, of which either may be left out: random_(to), random_(from, to)"
       for name in ("Tensor.uniform_", "Tensor.random_") for rest in ("from_: missing", "to: missing", "bounds: ours alone")},
    **{f"{name}: {rest}": "rand(2, 3), rand((2, 3)) and rand(size=(2, 3)), as in torch, by one *argument"
       for name in ("rand", "randn")
       for rest in ("size: place None, in torch 0", "size: one argument only", "sizes: ours alone")},
    **{f"{name}: {rest}": "one number is the end; the others are told apart by what they are" for name, rest in [
        ("randint", "high: place 1, in torch 0 and 1"), ("randint", "high: optional"),
        ("randint", "size: place 2, in torch 1 and 2"), ("randint", "size: optional"),
        ("randint_like", "high: place 2, in torch 1 and 2"), ("randint_like", "high: optional")]},
    "normal: mean: optional": "torch's overloads have it by position only where std is a tensor",
    "autograd.Function: args: missing": "torch's constructor only refuses: a Function is applied, not made",
    "autograd.checkpoint: context_fn": "each library's own function that does nothing",
    "autograd.checkpoint: generators: ours alone": "NumPy's generators that the function draws from",
    "autograd.gradcheck": "torch's tolerances cannot see an error of 0.1 %; method is ours",
    "autograd.gradgradcheck": "passes what it does not name on to gradcheck",
    "autograd.graph.GradientEdge": "a place has one output here, and keeps its node by itself",
    "autograd.graph.Node": "made by apply, not by users",
    "autograd.no_grad: orig_func: ours alone": "torch takes it in __new__: @no_grad without parentheses",
    **{f"nn.{name}: {rest}": "there is one device, and a dtype is given by name"
       for name, place in [("Embedding", 10), ("LayerNorm", 5), ("Linear", 4), ("RMSNorm", 4)]
       for rest in (f"device: place None, in torch {place - 1}", f"dtype: place None, in torch {place}")},
    "nn.Module: args: missing": "torch's takes none either, and says so later",
    **{f"nn.Module.forward: {rest}": "torch's is a stub of the name" for rest in ("input: missing", "args: ours alone")},
    **{f"nn.Module.state_dict: {rest}: missing": "its arrays are copies, in a dict of their own"
       for rest in ("args", "destination", "keep_vars")},
    "nn.Module.load_state_dict: assign: missing": "values are copied, so that optimizers keep their parameters",
    "nn.Module.modules: remove_duplicate: missing": "each module comes once; named_modules has the argument",
    "nn.ModuleList.pop: key: optional": "as a list's: the last",
    "nn.Parameter: data: default 'required', in torch None": "a parameter has values",
    "nn.Parameter: dtype: ours alone": "of values that are no tensor yet",
    **{f"nn.RMSNorm.forward: {rest}": "input, as in every other layer" for rest in ("x: missing", "input: ours alone")},
    "autograd.RemovableHandle": "made by register_hook and not by users",
}
# checkpoint's signature is another one since torch 2.15
HERE |= {
    "autograd.checkpoint: function": "torch makes a decorator without one",
    "autograd.checkpoint: respect_saved_tensors_hooks": "there are no saved_tensors_hooks",
} if Version(torch.__version__).release >= (2, 15) else {
    "autograd.checkpoint: preserve_rng_state: ours alone": "torch takes it among **kwargs",
}
REASONS = {**{f"*: {key}": reason for key, reason in EVERYWHERE.items()}, **HERE}


def reason_of(line: str) -> str | None:
    """The key in REASONS under which a difference is listed."""
    name, _, rest = line.partition(": ")
    return next((key for key in (line, f"*: {rest}", f"{name}: {rest.partition(': ')[0]}", name) if key in REASONS), None)


def main() -> None:
    """Print how much was compared, and the differences by reason."""
    kinds = Counter(pair.kind for pair in pairs())
    found = Counter(reason_of(line) or f"NOT LISTED: {line}" for line in differences())
    print(", ".join(f"{n} of kind {kind}" for kind, n in sorted(kinds.items())), "compared with torch", torch.__version__)
    print(f"{found.total()} differences:")
    for key, n in found.most_common():
        print(f"{n:5}  {key}  ({REASONS.get(key, '!')})")


if __name__ == "__main__":
    sys.exit(main())
