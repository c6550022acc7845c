"""What torch refuses is refused, and what it takes is taken: every function on good and bad arguments in all combinations.

A row of TABLE is a function and, for each of its arguments, values that fit and values that do not: other ranks, sizes and
dtypes, dims out of range, indices out of bounds, floats for integers, None, strings. Each combination is called in both
libraries. Both take it, and then shapes, dtypes and values are equal; or both refuse it, ours in one line that says what it
got and what it expected. DIFFERENCES lists what is otherwise, each with its reason; none of them may be out of date.
"""

import contextlib
import itertools
import math
import warnings

import numpy as np
import pytest
import torch

import tinygrad_llm as tg

VALUES = {"f": lambda n: (n + 1).astype(np.float32) / 4, "d": lambda n: (n + 1) / 4, "i": lambda n: n % 2,
          "j": lambda n: n.astype(np.int32) % 5, "b": lambda n: n % 2 == 0, "n": lambda n: -1 - n % 2, "h": lambda n: 5 + n}


class Drawn:
    """A tensor of either library: kind f, d (float64), i, j (int32), b, n (negative integers) or h (large ones)."""

    def __init__(self, kind, *shape):
        self.kind, self.shape = kind, shape

    def of(self, m):
        return m.tensor(VALUES[self.kind](np.arange(math.prod(self.shape))).reshape(self.shape))

    def __repr__(self):
        return f"{self.kind}{list(self.shape)}"


def made(m, value):
    """The value, with m's tensors in place of drawn ones, also in a list or a tuple."""
    if isinstance(value, tuple | list):
        return type(value)([made(m, v) for v in value])
    return value.of(m) if isinstance(value, Drawn) else value


def T(text):
    """"f23 i" → [Drawn("f", 2, 3), Drawn("i")]; the sizes are digits."""
    return [Drawn(word[0], *map(int, word[1:])) for word in text.split()]


def one(text):
    return T(text)[0]


X = T("f23 f3 f f03 f223 i23 b23 j3")
FEW = T("f23 f f03 i23 b23")
PAIR = [*T("f23 f3 f f2 d23 d i23 b23 f03"), 2, 2.5, True]
DIM = [0, 1, -1, -2, 2, -3, 5, None, 1.0, "0"]
DIMS = [*DIM, (0,), (0, 1), (0, 0), (0, -2), (), (1, 5), [0], (0.5,)]
FLAG = [False, True]
INT = [0, 1, 2, 3, -1, -3, 7, 1.5, None]
SHAPES = [(6,), (3, 2), (-1,), (-1, 2), (-1, 4), (-1, -1), (2, -2), (), (1,), (0,), (0, -1), (3,), (2, 3), (1, 2, 3), (4, 2, 3),
          (5, 3), (2, 1), (1.5,), None, 6, (-1, 3), (2, -1), (3, -1, -1)]
ORDERS = [(0,), (1, 0), (0, 1), (-1, 0), (0, 0), (0, 2), (0, 1, 2), (2, 0, 1), (), 0, (0.5, 1), None, (1,)]
TIMES = [(1,), (2, 2), (0, 2), (2, -1), (1, 1, 1), (1, 2, 2), (), 2, (1.5, 2), None]
PLACES = T("i2 i i23 i0 n2 h2 f2 b2 j3 i13 i33 i21")
SOURCE = [*T("f23 f3 f f2 d23 i23 f33"), 2.0]
MATRICES = T("f23 f32 f3 f2 f f232 f223 d32 i32 b32 b23 d3 i3 f03 f30 f0")
BOUND = [None, 0, 1.5, True, *T("f f3 d3 i3 f4 b3 f223"), "0"]
LISTS = [list(p) for p in itertools.product([*T("f23 f3 f f0 f03 d23 i23"), 2.0], repeat=2)] + [[], T("f23"), one("f23")]
INDEX = [0, 1, -1, 2, -3, 5, None, ..., slice(0, 1), slice(None, None, 2), slice(0, 0), (0, 0), (0, 0, 0), (0, 5), (..., 0),
         (..., ...), True, False, 1.5, "x", [0, 1], [0, 5], [True, False], [True, False, True], [], *T("i22 b2 i23"),
         *[(t,) for t in T("i2 h2 n2 f2 b23 b3 b j2 i")], (0, [0, 1]), ([0, 1], [0, 1]), ([0, 1], [0, 1, 1]),
         (slice(None), [0, 1]), (None, 0), (0, None), slice(1.5), slice("a"), slice(2, None, -1), slice(0, 5, 0)]
EQUATIONS = ["ij->i", "ij", "ii", "i->", "ij,ij", "ij,jk", "i->ij", "ij->ii", "i!", "ij->k", "", "->", "i...->i", "...",
             "ij,->ij", 5, "i..j", "ij->j->i", "...i...", "i j->i"]
SIZES = [3, (3,), (2, 3), (2,), (), [3], None]
WEIGHTS = [None, *T("f3 f23 f2 d3 i3 f")]
LOGITS, TARGETS = T("f23 f3 f f232 i23 f03 d23 f20"), T("i2 i i22 n2 h2 f2 j2 b2 f23 f3 i23 i0 d23 i3")
CLASSES = [None, *T("f3 f2 d3 f13 i3")]
REDUCTION = ["mean", "sum", "none", "batchmean", "x", None]
QUERIES = T("f23 f3 f123 f223 d23 i23 f43 f24 f03")
Q = T("f23")
PUT = [*[(t,) for t in PLACES], *[tuple(T(text)) for text in ("i2 i2", "i2 i3", "b23", "b3", "", "i2 i2 i2")],
       (None, one("i2")), one("i2"), (1,)]


def each(names, *arguments):
    """Rows of the table for functions with the same arguments."""
    return dict.fromkeys(names.split(), arguments)


TABLE = {
    **each("abs neg relu exp expm1 log log1p sqrt rsqrt tanh sigmoid erf sin cos square reciprocal sign t "
           "F.relu F.gelu F.silu F.softplus F.sigmoid F.tanh", X),
    **each("add sub mul div maximum minimum pow matmul", PAIR, PAIR),
    **each("sum mean amax amin logsumexp", X, DIMS, FLAG),
    **each("max min prod argmax", X, DIM, FLAG),
    **each("var std squeeze", X, DIMS),
    **each("cumsum softmax log_softmax unbind unsqueeze F.softmax F.log_softmax F.softmin", X, DIM),
    "norm": (X, [1, 2, 0, 3.5, math.inf, "fro", "nuc", "x", None], [None, *DIMS]),
    "linalg.vector_norm": (X, [1, 2, 0, 3.5, math.inf, None, "x"], DIMS),
    **each("mm bmm mv dot outer", MATRICES, MATRICES),
    "matmul ": (MATRICES, MATRICES),
    "addmm": (T("f22 f2 f f3 d22 i22 f122"), T("f23 f3 i23"), T("f32 f23 d32 i32")),
    "baddbmm": (T("f222 f2 f f3 d22 i22 f122"), T("f223 f3 i223"), T("f232 f132 d232 i232")),
    **each("reshape .view broadcast_to .expand", X, SHAPES),
    **each("permute flip", X, ORDERS), **each("transpose swapaxes", X, DIM, DIM),
    "flatten": (X, INT, INT),
    "movedim": (X, [0, 1, -1, (0, 1), (0,), (0, 0), 5, None, (0.5,)], [0, 1, -1, (1, 0), (0,), (1, 1), 5, None]),
    "roll": (X, [0, 1, -5, (1, 2), (1,), None, 1.5, ()], [None, 0, 1, -1, (0, 1), (0,), (0, 0), 5, ()]),
    **each(".repeat tile", X, TIMES),
    **each("cat stack", LISTS, [0, 1, -1, 2, -3, None, 0.5]),
    "split": (X, [1, 2, 5, 0, -1, (1, 1), (1, 2), (2,), (3, -1), (), 1.5, None], [0, 1, -1, 2, None]),
    "chunk": (X, INT, [0, 1, -1, 2, None]), "select": (X, [0, 1, -1, 2, None], INT),
    "narrow": (FEW, [0, 1, -1, 2, None], [0, 1, 2, -1, -3, 5, 1.5], [0, 1, 2, -1, 5, 1.5]),
    "triu": (X, INT), "tril": (X, INT), "diagonal": (X, [0, 1, -1, 5, 1.5], [0, 1, -1, 3], [0, 1, -1, -2, 3]),
    "index_select": (X, [0, 1, -1, 2], PLACES), "gather": (X, [0, 1, -1, 2], PLACES),
    "take_along_dim": (X, PLACES, [None, 0, 1, -1, 2]), "scatter_add": (FEW, [0, 1, -1, 2], PLACES, SOURCE),
    "index_add": (FEW, [0, 1, -1, 2], PLACES, SOURCE), "index_put": (FEW, PUT, SOURCE, FLAG), "getitem": (X, INDEX),
    "masked_fill": (X, T("b23 b3 b f23 i23 b4 b423"), [1, 0.5, True, *T("f i f1 d"), None]),
    "where": ([*T("b23 b3 f23 i23 b4"), True], PAIR, PAIR), "clamp": (X, BOUND, BOUND), "einsum": (EQUATIONS, X),
    "einsum ": (["ij,ij->ij", "ij,j->i", "i,i", "ij,ik->jk", "ij"], T("f23 f3 d3 i3 i23"), T("f23 f3 d3 i3 f4")),
    "F.gelu ": (FEW, ["none", "tanh", "x", None]), "F.softplus ": (FEW, [1, 0, 2.5, -1, None, "1"], [20, 0, None]),
    "F.layer_norm": (X, SIZES, WEIGHTS, WEIGHTS), "F.rms_norm": (X, SIZES, WEIGHTS),
    "F.linear": (X, [*T("f43 f3 f34 d43 i43 f03 f f243"), None], [None, *T("f4 f3 f d4 f1 f24")]),
    "F.embedding": ([*PLACES, one("i22"), 1, None], T("f43 f4 i43 f03 f223 d43"), [None, 0, -1, -4, 4, -5, 1.5]),
    "F.one_hot": ([*PLACES, one("i22"), 2], [-1, 0, 1, 2, 6, 7, -2, 1.5, None]),
    **each("F.cross_entropy F.nll_loss", LOGITS, TARGETS, CLASSES),
    "F.linear_cross_entropy": (T("f23 f3 f i23 d23 f24 f223 f03"), T("f33 f3 f34 d33 f23 i33"), TARGETS),
    "F.linear_cross_entropy|reduction": (Q, T("f33"), T("i2"), REDUCTION),
    "F.linear_cross_entropy|linear_bias": (Q, T("f33"), T("i2 f23"), WEIGHTS),
    **each("F.cross_entropy|reduction F.nll_loss|reduction", Q, T("i2"), REDUCTION),
    "F.cross_entropy|label_smoothing": (Q, T("i2 f23"), [0, 1, -0.1, 1.1, None, "x"]),
    **each("F.cross_entropy|ignore_index F.nll_loss|ignore_index", Q, T("i2 n2 f23"), [0, 1, -1, 7, 1.5, None]),
    **each("F.mse_loss|reduction F.kl_div|reduction", PAIR, PAIR, REDUCTION),
    "F.mse_loss|weight": (FEW, T("f23 f3"), [None, *T("f23 f3 d23 i23"), 2.0]),
    "F.scaled_dot_product_attention": (QUERIES, QUERIES, QUERIES),
    "F.scaled_dot_product_attention|attn_mask": (T("f23 f123"), Q, Q, [None, *T("b22 f22 d22 i22 f23 f2 f b122 b322 b2")]),
    "F.scaled_dot_product_attention|dropout_p": (Q, Q, Q, [0.0, 0, -0.1, 1.5, None, "x"]),
    "F.scaled_dot_product_attention|scale": (Q, Q, Q, [None, 0.0, 1, -1.0, "x", one("f")]),
    "F.dropout|p": (FEW, [0.0, -0.1, 1.5, None, "x", 0]), "F.dropout|p|training": (FEW, [0.0, -0.1, 1.5, 0.5], [False]),
}


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, str)


def kinds(args):
    return [a.kind for a in args if isinstance(a, Drawn)]


def empty(args):
    return any(isinstance(a, Drawn) and 0 in a.shape for a in args)


DIFFERENCES = [  # (reason, functions, which of the arguments)
    ("a number is a tensor, as for NumPy", "maximum minimum pow stack index_put scatter_add index_add F.embedding F.one_hot "
     "F.mse_loss|reduction F.kl_div|reduction F.mse_loss|weight",
     lambda *a: any(is_number(v) or (isinstance(v, list) and any(map(is_number, v))) for v in a)),
    ("None is all axes, as for NumPy", "logsumexp max min prod squeeze", lambda x, dim, *_: dim is None),
    ("one size needs no parentheses, as in the methods", "reshape broadcast_to permute flip tile F.layer_norm F.rms_norm",
     lambda x, size, *_: isinstance(size, int)),
    ("a bound of numbers beside one of tensors", "clamp", lambda x, *bounds: is_number(bounds[0]) != is_number(bounds[1])),
    ("a Python boolean is a mask", "where", lambda mask, *_: mask is True),
    ("int32 indices are what NumPy programs have", "take_along_dim F.cross_entropy F.nll_loss F.linear_cross_entropy",
     lambda *a: "j" in kinds(a)),
    ("NumPy's negative steps", "getitem", lambda x, index: isinstance(index, slice) and index.step == -1),
    ("`approximate` by position too", "F.gelu", lambda x, *how: how in (("none",), ("tanh",))),
    ("a vector as the weight beside a bias", "F.linear", lambda x, w, b: b is not None and w is not None and len(w.shape) == 1),
    ("which of a boolean and a number is subtracted hangs on weight in torch", "F.mse_loss|weight",
     lambda x, *_: x.kind == "b"),
    ("torch's own error: the result of keepdim", "logsumexp", lambda x, dim, keepdim: dim == () and not keepdim),
    ("torch's own error: an internal assertion", "index_put", lambda x, index, *_: index == ()),
    ("no norms of matrices", "norm", lambda x, p, dim: p == "nuc"),
    ("booleans to the power of a Python boolean", "pow", lambda x, y: kinds([x]) == ["b"] and y is True),
    ("where there is nothing to move torch does not look at dims", "roll", lambda x, *_: empty([x])),
    ("torch looks at no dim where all have shape (0,)", "cat", lambda tensors, dim: isinstance(tensors, list) and all(
        isinstance(t, Drawn) and t.shape == (0,) for t in tensors)),
    ("torch does not check these indices, and may read anywhere", "take_along_dim", lambda x, i, dim: i.kind in "nh"),
    ("torch does not check indices into nothing", "index_add F.embedding", lambda *a: empty(a)),
    ("a fraction, put into integers through a mask, would be cut off", "index_put",
     lambda x, index, v, _: x.kind in "ib" and "b" in repr(index) and isinstance(v, Drawn) and v.kind == "f"),
    ("a weight with the right number of elements in two axes", "F.cross_entropy F.nll_loss", lambda x, t, w: w is not None and
     len(w.shape) == 2),
    ("no probability", "F.cross_entropy|label_smoothing F.scaled_dot_product_attention|dropout_p", lambda *a: a[-1] == -0.1),
    ("torch returns before it looks where something is empty", "F.scaled_dot_product_attention", lambda *a: empty(a)),
    ("`...` twice means one thing only where the second can stand for no axis", "getitem",
     lambda x, index: index == (..., ...)),
]


def call(m, name, args):
    """The function of that name; arguments after | are given by name."""
    path, *keywords = name.strip().split("|")
    args = [made(m, a) for a in args]
    if path == "getitem":
        return args[0][args[1]]
    if path.startswith("."):
        return getattr(args[0], path[1:])(*args[1:])
    function = m
    for part in path.replace("F.", "nn.functional.").split("."):
        function = getattr(function, part)
    n = len(args) - len(keywords)
    return function(*args[:n], **dict(zip(keywords, args[n:])))


def outcome(m, name, args):
    """(result, None) or (None, the error)."""
    try:
        return plain(call(m, name, args)), None
    except Exception as error:  # torch has errors of every kind
        return None, error


def plain(out):
    if isinstance(out, tuple | list):
        return [plain(o) for o in out]
    return str(out.dtype).removeprefix("torch."), np.asarray(out.detach())


def mistake(name, args):
    """A line that says what is not torch's; "" for nothing."""
    (ours, refusal), (theirs, theirs_refusal) = [outcome(m, name, args) for m in (tg, torch)]
    if (refusal is None) != (theirs_refusal is None):
        return f"{'taken' if refusal is None else f'refused ({refusal})'}, by torch not so: {theirs_refusal}"
    if refusal is None:
        return "" if same(ours, theirs) else f"{ours} for torch's {theirs}"
    message = str(refusal)
    fits = isinstance(refusal, TypeError | ValueError | IndexError) and "\n" not in message
    return "" if fits and "got " in message and "expected " in message else f"refused by {refusal!r}"


def same(ours, theirs):
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours[0] == theirs[0] and ours[1].shape == theirs[1].shape and np.allclose(
        ours[1].astype(float), theirs[1].astype(float), 1e-5, 1e-6, equal_nan=True)


def reasons(name, args):
    found = []
    for why, names, which in DIFFERENCES:
        with contextlib.suppress(AttributeError):  # of an argument that is no tensor
            found += [why] if name.strip() in names.split() and which(*args) else []
    return found


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", TABLE)
def test_what_torch_refuses_is_refused_and_what_it_takes_is_taken(name):
    fails = [f"{args}: {line}" for args in itertools.product(*TABLE[name])
             if (line := mistake(name, args)) and not reasons(name, args)]
    assert fails == []


STRANGE = ["a", b"a", None, {}, {"a": 1}, object(), [None], [object()], print, float, 0.5]


@pytest.mark.parametrize("name", TABLE)
def test_what_is_no_argument_at_all_is_refused_by_its_name(name):
    good = next(args for args in itertools.product(*TABLE[name]) if not empty(args) and outcome(tg, name, args)[1] is None)
    is_method, is_random = name.startswith((".", "getitem")), "dropout" in name
    fails = []
    for place, strange in itertools.product(range(is_method, len(good)), STRANGE):
        args = (*good[:place], strange, *good[place + 1 :])
        line = mistake(name, args)
        as_tensor = strange == 0.5 and isinstance(good[place], Drawn | None)
        known = (as_tensor and line.startswith("taken")) or (strange is None and reasons(name, args)) or (is_random and place)
        if line and not known:
            fails.append(f"{place}: {strange!r}: {line}")
    assert fails == []


@pytest.mark.parametrize(("why", "names", "which"), DIFFERENCES, ids=[d[0] for d in DIFFERENCES])
def test_no_difference_is_out_of_date(why, names, which):
    rows = [(name, args) for name in TABLE if name.strip() in names.split() for args in itertools.product(*TABLE[name])]
    assert any(mistake(name, args) for name, args in rows if which(*args))


def test_an_integer_that_no_array_could_have_is_refused():
    for call_it in (lambda: tg.ones(2, 3).split(1 << 70), lambda: tg.zeros(1 << 70), lambda: tg.ones(2).select(0, -1 << 64)):
        with pytest.raises(ValueError, match=r"got -?\d+, expected an integer of at most 64 bits"):
            call_it()


def test_every_function_is_in_the_table():
    from test_functions_set import FUNCTIONAL, NAMES
    called = {name.strip().split("|")[0] for name in TABLE}
    assert set(NAMES) <= called
    assert {f"F.{name}" for name in FUNCTIONAL} <= called
