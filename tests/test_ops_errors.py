"""A wrong call is refused where it is made, in one line that names the op, the argument, what it was and what was expected.

The wrong calls are derived from each record: one case, then one thing wrong with it.
"""

import re

import numpy as np
import pytest
from opcases import OPS

from reference.opdraw import Seeded, Sizes, draw_call
from tinygrad_llm.ops import REGISTRY, DtypeError, IndexRangeError, ShapeError, op
from tinygrad_llm.ops.spec import Arg

SIZES = Sizes(low=2, high=4, lead=(1, 1), lead_low=2, cut=False, none=0)
WRONG_KIND = {"float": np.array("words"), "int": np.float32, "bool": np.int64}


def good(op):
    case = draw_call(op, Seeded(0), SIZES)
    return list(case.args), case.options


def wrong_ranks(op):
    """Too few axes, and too many where the shape string has no group."""
    for i, arg in enumerate(op.args):
        args, options = good(op)
        lead = args[i].shape[: args[i].ndim - len(arg.axes)]
        if arg.axes:
            yield arg.name, [a if k != i else a[(0,) * (len(lead) + 1)] for k, a in enumerate(args)], options
        if not arg.group:
            yield arg.name, [a if k != i else a[None] for k, a in enumerate(args)], options


def wrong_sizes(op):
    """One axis longer than the letter it is bound to, or than the fixed size; leading axes that do not fit."""
    for i, arg in enumerate(op.args):
        args, options = good(op)
        n_lead = args[i].ndim - len(arg.axes)
        for j, dim in enumerate(arg.axes):
            if sum(dim.name == other.name for a in op.args for other in a.axes) > 1 or dim.name.isdigit():
                longer = np.concatenate([args[i], args[i]], axis=n_lead + j)
                yield dim.name, [a if k != i else longer for k, a in enumerate(args)], options
        if arg.group and sum(a.group == arg.group for a in op.args) > 1:
            longer = np.concatenate([args[i], args[i]], axis=0)
            yield arg.name, [a if k != i else longer for k, a in enumerate(args)], options


def below_bound(op):
    """An axis shorter than its bound."""
    for i, arg in enumerate(op.args):
        for j, dim in enumerate(arg.axes):
            if dim.least:
                args, options = good(op)
                at = args[i].ndim - len(arg.axes) + j
                short = np.take(args[i], range(dim.least - 1), axis=at)
                yield arg.name, [a if k != i else short for k, a in enumerate(args)], options


def wrong_kinds(op):
    """Words for numbers, floats for integers, integers for booleans."""
    for i, arg in enumerate(op.args):
        args, options = good(op)
        wrong = WRONG_KIND[arg.kind]
        bad = np.full(args[i].shape, wrong) if isinstance(wrong, np.ndarray) else args[i].astype(wrong)
        yield arg.name, [a if k != i else bad for k, a in enumerate(args)], options


def mixed_floats(op):
    """float32 beside float64 where nothing broadcasts."""
    floats = [i for i, a in enumerate(op.args) if a.kind == "float"]
    for i in floats[1:]:
        args, options = good(op)
        if all(op.args[k].axes or not op.args[k].spec.startswith("~") for k in floats):
            yield op.args[i].name, [a if k != i else a.astype(np.float32) for k, a in enumerate(args)], options


def no_arrays(op):
    """A list, and None where the argument is not optional."""
    for i, arg in enumerate(op.args):
        for bad in ([1.0], "x", *([] if arg.optional else [None])):
            args, options = good(op)
            yield arg.name, [a if k != i else bad for k, a in enumerate(args)], options


def out_of_range(op):
    """Indices just outside on both sides."""
    for i, arg in enumerate(op.args):
        for bad in (-1, 10**6) if arg.below else ():
            args, options = good(op)
            args[i] = args[i].copy()
            args[i].flat[-1] = bad
            yield arg.name, args, options


WRONG = [
    (ShapeError, wrong_ranks), (ShapeError, wrong_sizes), (ShapeError, below_bound), (DtypeError, wrong_kinds),
    (DtypeError, mixed_floats), (TypeError, no_arrays), (IndexRangeError, out_of_range),
]
CASES = [
    pytest.param(error, op, name, args, options, id=f"{op.name}-{wrong.__name__}-{n}")
    for error, wrong in WRONG for op in OPS if not op.variadic for n, (name, args, options) in enumerate(wrong(op))
]


@pytest.mark.parametrize(("error", "op", "name", "args", "options"), CASES)
def test_a_wrong_call_is_refused_in_one_line(error, op, name, args, options):
    with pytest.raises(error) as caught:
        op(*args, **options)
    message = str(caught.value)
    assert message.startswith(f"{op.name}: ")
    assert re.search(rf"\b{name}\b", message)
    assert "got " in message
    assert "expected " in message
    assert "\n" not in message


def test_every_op_has_wrong_calls():
    assert {param.values[1] for param in CASES} | {op for op in OPS if op.variadic} == set(OPS)
    assert len(CASES) > 5 * len(OPS)


@pytest.mark.parametrize("op", [op for op in OPS if not op.variadic], ids=lambda op: op.name)
def test_too_many_arrays_are_refused(op):
    args, options = good(op)
    with pytest.raises(TypeError, match=f"{op.name}: got {len(args) + 1} arrays, expected"):
        op(*args, args[0], **options)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_error_once_is_an_error_again(op):
    """Shapes that passed are remembered, those that did not must not be."""
    for _ in range(2):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            op(*[np.zeros((7, 6, 5, 4, 3), np.complex64) if arg.kind == "float" else object() for arg in op.args], 1, 2)


@pytest.mark.parametrize(("name", "args", "options", "error"), [
    ("sum", [np.zeros((2, 3))], {"dim": 2}, IndexRangeError),
    ("sum", [np.zeros((2, 3))], {"dim": (0, -2)}, ValueError),
    ("amax", [np.zeros((0, 3))], {"dim": 0}, ValueError),
    ("reshape", [np.zeros((2, 3))], {"shape": (4,)}, ShapeError),
    ("permute", [np.zeros((2, 3))], {"dims": (0, 0)}, ShapeError),
    ("permute", [np.zeros((2, 3))], {"dims": (0,)}, ShapeError),
    ("permute", [np.zeros((2, 3))], {"dims": (0, 5)}, ShapeError),
    ("broadcast_to", [np.zeros((2, 3))], {"shape": (2, 4)}, ShapeError),
    ("broadcast_to", [np.zeros((2, 3))], {"shape": (3,)}, ShapeError),
    ("cat", [], {"dim": 0}, ShapeError),
    ("cat", [np.zeros((2, 3)), np.zeros((2, 4))], {"dim": 0}, ShapeError),
    ("cat", [np.zeros((2, 3)), np.zeros(3)], {"dim": 0}, ShapeError),
    ("cat", [np.zeros((2, 3)), np.zeros((2, 3))], {"dim": 2}, IndexRangeError),
    ("getitem", [np.zeros((2, 3))], {"index": 2}, IndexRangeError),
    ("getitem", [np.zeros((2, 3))], {"index": (0, 0, 0)}, IndexRangeError),
    ("getitem", [np.zeros((2, 3))], {"index": np.array([0, 5])}, IndexRangeError),
    ("gelu", [np.zeros(3)], {"approximate": "sigmoid"}, ValueError),
    ("cross_entropy", [np.zeros((2, 3)), np.array([0, 3])], {}, IndexRangeError),
    ("cross_entropy", [np.zeros((2, 3)), np.array([0, -1])], {}, IndexRangeError),
    ("cross_entropy", [np.zeros((2, 3)), np.array([0, 1])], {"reduction": "max"}, ValueError),
    ("linear_cross_entropy", [np.zeros((2, 3)), np.zeros((4, 3)), np.array([0, 4])], {}, IndexRangeError),
    ("linear_cross_entropy", [np.zeros((2, 3)), np.zeros((4, 3)), np.array([0, 1])], {"reduction": "max"}, ValueError),
])
def test_a_wrong_option_is_refused_in_one_line(name, args, options, error):
    with pytest.raises(error) as caught:
        REGISTRY[name](*args, **options)
    assert str(caught.value).startswith(f"{name}: ")
    assert "got " in str(caught.value)
    assert "expected " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="aproximate"):
        REGISTRY["gelu"](np.zeros(3), aproximate="tanh")


# Declarations ---------------------------------------------------------------------------------------------------------


def twice(x):
    """2 x.   dx = 2 g"""
    return 2 * x, lambda g: (2 * g,)


def undocumented(x):
    return x, lambda g: (g,)


def mul(x):
    """A name that is taken."""
    return x, lambda g: (g,)


@pytest.mark.parametrize(("declaration", "function", "message"), [
    ({"x": "~B"}, twice, "op twice: got no torch expression, expected torch="),
    ({"x": "~B", "torch": "x"}, undocumented, "op undocumented: got no docstring, expected its formula"),
    ({"x": "~B", "torch": "x"}, mul, "op mul: got a second declaration, expected one op in one place"),
    ({"x": "~B", "torch": "2 * y"}, twice, r"op twice: got torch='2 \* y' with unknown \['y'\]"),
    ({"x": "~B", "torch": "open(x)"}, twice, r"with unknown \['open'\]"),
    ({"x": "~B", "torch": "2 *"}, twice, "expected one Python expression"),
    ({"x": "~B", "torch": "import os"}, twice, "expected one Python expression"),
    ({"y": "~B", "torch": "2 * y"}, twice, r"got parameters \['x'\], expected the declared \['y'\]"),
    ({"x": "~B", "options": {"eps": (1,)}, "torch": "x"}, twice, r"expected the declared \['x', 'eps'\]"),
    ({"torch": "1"}, twice, r"got parameters \['x'\], expected the declared \[\]"),
])
def test_an_incomplete_declaration_is_refused_at_import(declaration, function, message):
    before = dict(REGISTRY)
    with pytest.raises(TypeError, match=message):
        op(**declaration)(function)
    assert before == REGISTRY


@pytest.mark.parametrize("spec", ["n", "N *B", "B*", "N >1", "int < ", "N in (1)", "N in (a, b)", "~B ~C", "N; M", "float",
                                  "N != 1", "N int float"])
def test_a_bad_shape_string_is_refused(spec):
    with pytest.raises(ValueError, match=r"got|could not convert"):
        op(x=spec, torch="2 * x")(twice)
    assert "twice" not in REGISTRY


@pytest.mark.parametrize(("spec", "expected"), [
    ("*B N>1 3", {"least": [0, 2, 0], "names": ["B", "N", "3"], "kind": "float"}),
    ("?V in (0.1, 2)", {"least": [0], "names": ["V"], "kind": "float"}),
    ("*B int < V", {"least": [0], "names": ["B"], "kind": "int"}),
    ("N>=2 bool", {"least": [2], "names": ["N"], "kind": "bool"}),
])
def test_shape_strings_are_read(spec, expected):
    arg = Arg.parse("x", spec)
    found = {"least": [d.least for d in arg.dims], "names": [d.name for d in arg.dims], "kind": arg.kind}
    assert found == expected
    assert (arg.optional, arg.interval) == (spec.startswith("?"), (0.1, 2.0) if "in (" in spec else None)


def test_records_print_as_their_declaration():
    assert repr(REGISTRY["matmul"]) == "<op matmul(x: ~B N K, y: ~B K M)>"
    assert all(op.__doc__ and op.torch for op in OPS)
