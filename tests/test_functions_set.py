"""The whole set of public functions: that each is where torch has it, drawn calls, degenerate ones, dtypes and errors."""

import itertools
import math
import warnings

import functioncases
import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from opchecks import judge64

import tinygrad_llm as tg
from tinygrad_llm.autograd import grad
from tinygrad_llm.nn import functional as F

INF, NAN = math.inf, math.nan
some = settings(max_examples=max(5, settings.default.max_examples // 4))
few = settings(max_examples=max(3, settings.default.max_examples // 20))


@pytest.mark.parametrize("case", functioncases.CASES.values(), ids=functioncases.CASES)
@some
@given(seed=st.integers(0, 2**32 - 1))
def test_a_drawn_call_is_torchs(case, seed):
    assert functioncases.mistakes(case, seed) == []


@pytest.mark.parametrize("case", functioncases.CASES.values(), ids=functioncases.CASES)
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_second_derivatives_are_torchs(case, seed):
    call, arrays = case(functioncases.Draw(seed))
    found = [second(m, call, arrays) for m in (tg, torch)]
    assert [fail for a, b in zip(*found, strict=True) for fail in judge64("second order", a, b)] == []


@pytest.mark.parametrize("case", functioncases.CASES.values(), ids=functioncases.CASES)
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_a_result_is_a_view_only_where_torchs_is_one(case, seed):
    """Of what others see: a view of an intermediate could not leave the graph, nor be written to once made under no_grad."""
    call, arrays = case(functioncases.Draw(seed))
    for a, b in zip(*[[out] if hasattr(out, "shape") else out for out in (made(m, call, arrays) for m in (tg, torch))]):
        assert a._base is None or b._base is not None
        if a._base is None:
            assert a.detach_() is a


def made(m, call, arrays):
    with warnings.catch_warnings(), m.no_grad():
        warnings.simplefilter("ignore")
        return call(m, *[m.tensor(a) * 1 for a in arrays])


def second(m, call, arrays):
    """The gradient of Σ⟨gradient, cos(gradient's place)⟩ with respect to each input; zeros where there is none."""
    gradients = torch.autograd.grad if m is torch else grad
    with warnings.catch_warnings(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        warnings.simplefilter("ignore", UserWarning)
        inputs = [torch.tensor(a, requires_grad=True) if m is torch else tg.tensor(a, requires_grad=True) for a in arrays]
        out = call(m, *inputs)
        outs = [o for o in (out if isinstance(out, tuple) else [out]) if o.requires_grad]
        loss = sum([(o * o * waves(m, o.shape)).sum() for o in outs])
        first = gradients(loss, inputs, create_graph=True, allow_unused=True) if outs else []
        twice = [(g * waves(m, g.shape)).sum() for g in first if g is not None and g.requires_grad]
        found = gradients(sum(twice), inputs, allow_unused=True) if twice else [None] * len(inputs)
    return [np.zeros_like(a) if g is None else g.detach().numpy() for a, g in zip(arrays, found)]


def waves(m, shape):
    return m.tensor(np.cos(np.arange(math.prod(shape))).reshape(tuple(shape)))


# Every name is where torch has it ----------------------------------------------------------------------------------------

NAMES = [
    "abs", "add", "addmm", "amax", "amin", "argmax", "baddbmm", "bmm", "broadcast_to", "cat", "chunk", "clamp", "cos",
    "cumsum", "diagonal", "div", "dot", "einsum", "erf", "exp", "expm1", "flatten", "flip", "gather", "index_add",
    "index_put", "index_select", "log", "log1p", "log_softmax", "logsumexp", "masked_fill", "matmul", "max", "maximum",
    "mean", "min", "minimum", "mm", "movedim", "mul", "mv", "narrow", "neg", "norm", "outer", "permute", "pow", "prod",
    "reciprocal", "reshape", "roll", "rsqrt", "scatter_add", "select", "sigmoid", "sign", "sin", "softmax", "split", "sqrt",
    "square", "squeeze", "stack", "std", "sub", "sum", "swapaxes", "t", "take_along_dim", "tanh", "tile", "transpose",
    "tril", "triu", "unbind", "unsqueeze", "var", "where", "relu",
]
METHODS = [*[name for name in NAMES if name not in ("cat", "einsum", "stack")], "expand", "repeat", "view", "to"]
FUNCTIONAL = [
    "cross_entropy", "dropout", "embedding", "gelu", "kl_div", "layer_norm", "linear", "linear_cross_entropy",
    "log_softmax", "mse_loss", "nll_loss", "one_hot", "relu", "rms_norm", "scaled_dot_product_attention", "sigmoid", "silu",
    "softmax", "softmin", "softplus", "tanh",
]


@pytest.mark.parametrize("name", NAMES)
def test_function_is_where_torch_has_it(name):
    """Its arguments: tests/signatures.py."""
    assert callable(getattr(torch, name))
    assert callable(getattr(tg, name))


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_nn_function_is_where_torch_has_it(name):
    assert callable(getattr(TF, name))
    assert callable(getattr(F, name))


def test_linalg_has_vector_norm():
    assert tg.linalg.vector_norm(tg.tensor([3.0, 4.0])).item() == 5


@pytest.mark.parametrize("name", METHODS)
def test_method_is_where_torch_has_it(name):
    assert callable(getattr(torch.Tensor, name))
    assert callable(getattr(tg.Tensor, name))


def test_functions_are_tested():
    drawn = {name.split(": ")[1].split()[0] for name in functioncases.CASES}
    assert set(NAMES) | set(FUNCTIONAL) <= drawn | {"dropout", "sigmoid", "tanh"}


# Kinks and degenerate inputs ---------------------------------------------------------------------------------------------

TIES = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]
EMPTY = np.zeros((2, 0, 3))
ROWS = [[3.0, 4.0, 0.0], [0.3, 0.4, 0.0], [1.0, 1.0, 1.0]]
IDS = np.array([[0, 1], [2, 0]])
CLASSES = np.array([0, 2])
OLD = [(None, None), (True, None), (False, None), (None, True), (None, False), (False, True), (True, False)]
ARGUMENTS = {  # arguments beyond those that are drawn
    **{f"{name} {args}": (lambda m, x, name=name, args=args: getattr(m, name)(x, *args), TIES)
       for name in ("var", "std") for args in ((False,), (True,), (1, False), (0, True, True), ((0, 1), False))},
    "var unbiased": (lambda m, x: m.var(x, 1, unbiased=False, keepdim=True), TIES),
    "x.std(unbiased)": (lambda m, x: x.std(0, unbiased=False), [[1.0, 2.0], [4.0, 8.0]]),
    "var correction": (lambda m, x: m.var(x, correction=2), TIES),
    **{f"F.{name} of {n} axes": (lambda m, x, name=name: getattr(m.nn.functional, name)(x), np.arange(16.0).reshape(shape))
       for name in ("softmax", "log_softmax", "softmin")
       for n, shape in [(1, (16,)), (2, (4, 4)), (3, (2, 2, 4)), (4, (2, 2, 2, 2))]},
    "F.softmax dtype": (lambda m, x: m.nn.functional.softmax(x, 0, 3, x.dtype), [1.0, 2.0]),
    **{f"F.mse_loss {old}": (lambda m, x, y, old=old: m.nn.functional.mse_loss(x, y, *old), TIES, ROWS[:2]) for old in OLD},
    **{f"F.kl_div {old}": (lambda m, x, old=old: m.nn.functional.kl_div(x, x.detach() + 2, *old), TIES) for old in OLD},
    **{f"F.nll_loss {old}": (lambda m, x, old=old: m.nn.functional.nll_loss(
        x, m.tensor(CLASSES), None, old[0], -100, old[1]), TIES) for old in OLD},
    **{f"F.cross_entropy {old}": (lambda m, x, old=old: m.nn.functional.cross_entropy(
        x, m.tensor(CLASSES), None, old[0], 2, old[1]), TIES) for old in OLD},
    "F.embedding scale_grad_by_freq": (lambda m, w: m.nn.functional.embedding(m.tensor(IDS), w, scale_grad_by_freq=True), ROWS),
    "F.embedding scale and pad": (lambda m, w: m.nn.functional.embedding(m.tensor(IDS), w, 1, None, 2.0, True), ROWS),
    **{f"F.embedding max_norm {p}": (lambda m, w, p=p: m.nn.functional.embedding(
        m.tensor(IDS[0]), w.detach().clone(), None, 1.0, p), ROWS) for p in (1.0, 2.0, 3.0, INF)},
    **{f"F.{name} in place": (lambda m, x, name=name: getattr(m.nn.functional, name)(x * 2, inplace=True), [-1.0, 0.0, 2.0])
       for name in ("relu", "silu")},
    "F.linear of a vector": (lambda m, x, w: m.nn.functional.linear(x, w), TIES, [1.0, 2.0, 3.0]),
    "F.linear, one bias": (lambda m, x, w, b: m.nn.functional.linear(x, w, b), TIES, ROWS, 0.5),
    "F.linear, a bias for each row": (lambda m, x, w, b: m.nn.functional.linear(x, w, b), TIES, ROWS, [[1.0], [2.0]]),
    "attention over one set of keys": (lambda m, q, k: m.nn.functional.scaled_dot_product_attention(q, k, k),
                                       np.arange(12.0).reshape(2, 2, 3) / 9, TIES),
    **{f"{name} by name": (call, TIES) for name, call in {
        "reshape": lambda m, x: m.reshape(x, shape=(3, 2)), "permute": lambda m, x: m.permute(x, dims=(1, 0)),
        "flip": lambda m, x: m.flip(x, dims=[0]), "tile": lambda m, x: m.tile(x, dims=(2,)),
        "expand": lambda m, x: x.expand(size=(2, 2, 3)), "repeat": lambda m, x: x.repeat(repeats=(1, 2)),
        "view": lambda m, x: x.view(size=(6,)), "broadcast_to -1": lambda m, x: m.broadcast_to(x, (2, -1, 3)),
    }.items()},
}
DEGENERATE = {
    "sum of nothing": (lambda m, x: m.sum(x, 1), EMPTY), "sum of all of nothing": (lambda m, x: m.sum(x), EMPTY),
    "mean of nothing": (lambda m, x: m.mean(x, 1), EMPTY), "prod of nothing": (lambda m, x: m.prod(x, 1), EMPTY),
    "prod of all of nothing": (lambda m, x: m.prod(x), EMPTY), "norm of nothing": (lambda m, x: m.norm(x, 2, 1), EMPTY),
    "logsumexp of nothing": (lambda m, x: m.logsumexp(x, 1), EMPTY), "cumsum of nothing": (lambda m, x: m.cumsum(x, 1), EMPTY),
    "var of nothing": (lambda m, x: m.var(x, 1), EMPTY), "std of one": (lambda m, x: m.std(x), [2.0]),
    "softmax of nothing": (lambda m, x: m.softmax(x, 1), EMPTY),
    "einsum of nothing": (lambda m, x: m.einsum("ijk->ik", x), EMPTY),
    "max of empty rows": (lambda m, x: tuple(m.max(x, 1)), np.zeros((0, 3))),
    "amax ties": (lambda m, x: m.amax(x, 1), TIES), "amin ties": (lambda m, x: m.amin(x, 0), TIES),
    "max of all, ties": (lambda m, x: m.max(x), TIES), "min of all, ties": (lambda m, x: m.min(x), TIES),
    "max ties": (lambda m, x: tuple(m.max(x, 1)), TIES), "min ties": (lambda m, x: tuple(m.min(x, 1, True)), TIES),
    "max of nan": (lambda m, x: tuple(m.max(x, 1)), [[1.0, NAN, 3.0], [NAN, NAN, 0.0]]),
    "max of 0-d": (lambda m, x: m.max(x), 3.0),
    "max of two": (lambda m, x: m.max(x, m.tensor([2.0, 2.0, 2.0])), TIES),
    "max 0-d dim": (lambda m, x: tuple(m.max(x, 0)), 3.0),
    "pow 0": (lambda m, x: m.pow(x, 0), [0.0, -2.0, 3.0]), "pow 1": (lambda m, x: m.pow(x, 1), [0.0, -2.0]),
    "pow 2": (lambda m, x: m.pow(x, 2), [0.0, -2.0]), "pow half": (lambda m, x: m.pow(x, 0.5), [0.0, 4.0]),
    "pow -1": (lambda m, x: m.pow(x, -1), [0.0, 4.0]), "0 to powers": (lambda m, x: m.pow(0.0, x), [0.0, 2.0, 0.5]),
    "2 to powers": (lambda m, x: 2**x, [0.0, 2.0, -1.0]),
    "pow tensors": (lambda m, x, y: m.pow(x, y), [0.0, 0.0, 0.0, -2.0], [0.0, 1.0, 2.0, 2.0]),
    "prod one zero": (lambda m, x: m.prod(x), [2.0, 0.0, 3.0]),
    "prod two zeros": (lambda m, x: m.prod(x), [2.0, 0.0, 0.0, 5.0]),
    "prod rows": (lambda m, x: m.prod(x, 1), [[0.0, 2.0], [0.0, 0.0], [1.0, 3.0]]),
    "prod of 0-d": (lambda m, x: m.prod(x), 3.0),
    **{f"norm {p} at 0": (lambda m, x, p=p: m.norm(x, p, 1), [[0.0, 0.0], [0.0, 2.0], [-3.0, 4.0]])
       for p in (0, 0.5, 1, 1.5, 2, 3, INF, -INF)},
    "vector_norm 0 over the first axis": (lambda m, x: m.linalg.vector_norm(x, 0, 0), TIES),
    "vector_norm at 0": (lambda m, x: m.linalg.vector_norm(x), [0.0, 0.0]), "norm of 0-d": (lambda m, x: m.norm(x), -3.0),
    "std of equals": (lambda m, x: m.std(x, 1), [[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]]),
    "var of equals": (lambda m, x: m.var(x, 1), [[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]]),
    "var of one": (lambda m, x: m.var(x), [2.0]),
    "std without correction": (lambda m, x: m.std(x, correction=0), [2.0]),
    "clamp": (lambda m, x: m.clamp(x, -1, 1), [-2.0, 0.0, 2.0, NAN, INF]),
    "clamp crossed": (lambda m, x: m.clamp(x, 2, 1), [0.0, 1.5, 3.0]),
    "clamp one": (lambda m, x: m.clamp(x, max=0), [-1.0, 1.0]),
    "clamp tensors": (lambda m, x, y: m.clamp(x, y), [2.0, 0.0], [1.0, 1.0]),
    "where numbers": (lambda m, x: m.where(x > 0, 1.0, 0.5) * x, [1.0, -1.0]),
    "where number": (lambda m, x: m.where(x > 0, x, 0), [1.0, -1.0, NAN]),
    "where 0-d": (lambda m, x: m.where(x > 0, x, x), 3.0),
    "logsumexp of -inf": (lambda m, x: m.logsumexp(x, 1), [[-INF, -INF], [-INF, 1.0]]),
    "logsumexp of inf": (lambda m, x: m.logsumexp(x, 1), [[INF, 1.0], [1e4, 1e4]]),
    "sign": (lambda m, x: m.sign(x), [0.0, -2.0, 3.0, INF]), "abs at 0": (lambda m, x: m.abs(x), [0.0, -0.0]),
    "rsqrt at 0": (lambda m, x: m.rsqrt(x), [0.0, INF, 4.0]), "reciprocal at 0": (lambda m, x: m.reciprocal(x), [0.0, INF]),
    "log1p": (lambda m, x: m.log1p(x), [-1.0, 0.0, 1e-20, INF]), "expm1": (lambda m, x: m.expm1(x), [-1e3, 0.0, 1e-20, 1e3]),
    "div floor": (lambda m, x, y: m.div(x, y, rounding_mode="floor"), [7.0, -7.0], [2.0, 2.0]),
    "div trunc": (lambda m, x, y: m.div(x, y, rounding_mode="trunc"), [7.0, -7.0], [2.0, 2.0]),
    "cumsum of 0-d": (lambda m, x: m.cumsum(x, 0), 3.0), "softmax of 0-d": (lambda m, x: m.softmax(x, 0), 3.0),
    "addmm without input": (lambda m, x, y: m.addmm(m.tensor(NAN, dtype=y.dtype), x, y, beta=0), [[1.0]], [[2.0]]),
    "mm of nothing": (lambda m, x, y: m.mm(x, y), np.zeros((2, 0)), np.zeros((0, 3))),
    "dot of nothing": (lambda m, x, y: m.dot(x, y), np.zeros(0), np.zeros(0)),
    "cat of nothing": (lambda m, x, y: m.cat([x, y], 1), EMPTY, np.ones((2, 2, 3))),
    "cat with shape (0,)": (lambda m, x, y: m.cat([x, y]), np.zeros(0), np.ones((2, 3))),
    "flip of nothing": (lambda m, x: m.flip(x, (0, 1)), EMPTY), "roll of nothing": (lambda m, x: m.roll(x, 1, 1), EMPTY),
    "roll of 0-d": (lambda m, x: m.roll(x, 1), 3.0), "chunk of nothing": (lambda m, x: tuple(m.chunk(x, 3, 1)), EMPTY),
    "split of nothing": (lambda m, x: tuple(m.split(x, 3, 1)), EMPTY),
    "diagonal too far": (lambda m, x: m.diagonal(x, 9), TIES),
    "transpose of 0-d": (lambda m, x: m.transpose(x, 0, -1), 3.0), "t of 0-d": (lambda m, x: m.t(x), 3.0),
    "tile of 0-d": (lambda m, x: m.tile(x, (2, 2)), 3.0), "repeat no times": (lambda m, x: x.repeat(0, 2), TIES),
    "gather repeated": (lambda m, x: m.gather(x, 1, m.tensor(np.array([[2, 2, 2], [0, 0, 1]]))), TIES),
    "index_select none": (lambda m, x: m.index_select(x, 1, m.tensor(np.zeros(0, np.int64))), TIES),
    "index_put nowhere": (lambda m, x: m.index_put(x, (m.tensor(np.zeros(0, np.int64)),), m.tensor(1.0, dtype=x.dtype)), TIES),
    "softplus past its threshold": (lambda m, x: m.nn.functional.softplus(x), [20.0, 20.5, 1e4, -1e4, 0.0]),
    "silu": (lambda m, x: m.nn.functional.silu(x), [0.0, -1e4, 1e4]),
    "rms_norm of zeros": (lambda m, x: m.nn.functional.rms_norm(x, (2,)), [[0.0, 0.0], [1e-20, 1.0]]),
    "kl_div of zeros": (lambda m, x: m.nn.functional.kl_div(x, m.tensor([0.0, 1.0], dtype=x.dtype), reduction="sum"),
                        [-1.0, -2.0]),
    **{f"nll_loss, all ignored, {how}": (lambda m, x, how=how: m.nn.functional.nll_loss(
        x, m.tensor(np.full(2, -100)), reduction=how), TIES) for how in ("mean", "sum", "none")},
    "nll_loss of -inf at an ignored row": (lambda m, x: m.nn.functional.nll_loss(x, m.tensor(np.array([1, -100]))),
                                           [[-1.0, -2.0], [-INF, -INF]]),
    "mse_loss of nothing": (lambda m, x: m.nn.functional.mse_loss(x, x * 2), EMPTY),
    "attention that sees nothing": (lambda m, x: m.nn.functional.scaled_dot_product_attention(
        x, x, x, m.tensor(np.array([[False, False], [True, False]]))), [[[1.0, 2.0], [3.0, 4.0]]]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_calls_are_torchs(name):
    call, *arrays = DEGENERATE[name]
    with np.errstate(all="ignore"):
        assert functioncases.mistakes(lambda _: (call, [np.array(a, np.float64) for a in arrays]), 0) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_further_arguments_are_torchs(name):
    call, *arrays = ARGUMENTS[name]
    assert functioncases.mistakes(lambda _: (call, [np.array(a, np.float64) for a in arrays]), 0) == []


def test_what_torch_calls_deprecated_warns():
    x = tg.tensor(TIES)
    with pytest.warns(UserWarning, match="use reduction='sum'"):
        F.mse_loss(x, x, size_average=False)
    with pytest.warns(UserWarning, match="softmax: dim: got none"):
        F.softmax(x)


def test_max_norm_shortens_the_rows_themselves():
    for m in (tg, torch):
        w = m.tensor(ROWS)
        m.nn.functional.embedding(m.tensor([0, 1]), w, max_norm=1)
        np.testing.assert_allclose(w.numpy(), [[0.6, 0.8, 0], ROWS[1], ROWS[2]], rtol=1e-6)


def test_in_place_writes_into_the_input():
    for m in (tg, torch):
        x = m.tensor([-1.0, 2.0])
        assert m.nn.functional.relu(x, inplace=True) is x
        assert m.nn.ReLU(inplace=True)(x) is x
        assert x.tolist() == [0, 2]
    y = tg.ones(1000)
    assert tg.nn.Dropout(0.5, inplace=True, generator=np.random.default_rng(0))(y) is y
    assert set(y.tolist()) == {0, 2}


def test_view_shares_memory_or_is_refused():
    x = np.arange(6.0).reshape(2, 3)
    for m, error in ((tg, ValueError), (torch, RuntimeError)):
        t = m.tensor(x)
        t.view(3, 2).zero_()
        assert not t.numpy().any()
        with pytest.raises(error):
            t.T.view(6)
        assert tuple(t.T.reshape(6).shape) == tuple(t.T.view(3, 1, 2).reshape(-1).shape) == (6,)


# Dtypes ------------------------------------------------------------------------------------------------------------------

DTYPES = [np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]
BINARY = ["add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "comparison"]
UNARY = ["neg", "exp", "sqrt", "square", "abs", "sign", "sum", "mean", "prod", "amax", "cumsum", "logsumexp", "softmax", "var",
         "sigmoid", "argmax", "norm", "log1p", "relu", "reciprocal", "clamp"]


def outcome(call):
    """(dtype name, values), or None where the call is refused."""
    try:
        out = call()
    except (TypeError, RuntimeError, ValueError):
        return None
    return str(out.dtype).removeprefix("torch."), np.asarray(out.detach().numpy() if hasattr(out, "detach") else out)


def same_outcome(call):
    ours, theirs = outcome(lambda: call(tg)), outcome(lambda: call(torch))
    if theirs is None or ours is None:
        assert ours is theirs
    else:
        assert ours[0] == theirs[0]
        np.testing.assert_allclose(ours[1].astype(np.float64), theirs[1].astype(np.float64), rtol=2e-3)


operands = st.one_of(
    st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (2,), (2, 2)])), st.sampled_from([2, 2.5, True]),
)


@settings(max_examples=2 * settings.default.max_examples)
@given(name=st.sampled_from(BINARY), one=operands, other=operands)
def test_dtypes_of_two_operands_are_torchs(name, one, other):
    """Floats beat integers beat booleans; 0-d tensors and Python numbers count only where they are of a higher kind."""
    if not isinstance(one, tuple) and not isinstance(other, tuple):
        return
    if name in ("maximum", "minimum") and not (isinstance(one, tuple) and isinstance(other, tuple)):
        return  # torch takes tensors only, where NumPy takes numbers too
    if name == "pow" and isinstance(other, bool) and one[0] == np.bool_:
        return  # of all powers of booleans torch takes that of a Python boolean only
    def made(m, x, start):
        if not isinstance(x, tuple):
            return x
        dtype, shape = x
        return m.tensor((np.arange(start, start + math.prod(shape)).reshape(shape) % 2 + 1).astype(dtype))
    def call(m):
        x, y = made(m, one, 0), made(m, other, 1)
        if name == "where":
            return m.where(m.tensor(np.array([True, False])), x, y)
        return x * 1 == y if name == "comparison" else getattr(m, name)(x, y)
    same_outcome(call)


@pytest.mark.parametrize(("name", "dtype"), list(itertools.product(UNARY, DTYPES)))
def test_dtypes_of_one_operand_are_torchs(name, dtype):
    more = {"cumsum": (0,), "logsumexp": (0,), "softmax": (0,), "clamp": (0, 1)}.get(name, ())
    same_outcome(lambda m: getattr(m, name)(m.tensor(np.array([1, 0, 2]).astype(dtype)), *more))


# Errors ------------------------------------------------------------------------------------------------------------------

X = np.arange(6.0, dtype=np.float32).reshape(2, 3)
REFUSED = {
    "sum dim": lambda m, x: m.sum(x, 2), "max dim": lambda m, x: m.max(x, 2), "argmax dim": lambda m, x: m.argmax(x, -3),
    "prod dim": lambda m, x: m.prod(x, 2), "cumsum dim": lambda m, x: m.cumsum(x, 2), "mm ranks": lambda m, x: m.mm(x, x[0]),
    "mm sizes": lambda m, x: m.mm(x, x), "bmm ranks": lambda m, x: m.bmm(x, x), "bmm batch": lambda m, x: m.bmm(
        m.zeros(2, 1, 1), m.zeros(3, 1, 1)), "dot ranks": lambda m, x: m.dot(x, x), "mv": lambda m, x: m.mv(x, x),
    "dot sizes": lambda m, x: m.dot(x[0], x[0][:2]), "outer": lambda m, x: m.outer(x, x), "addmm": lambda m, x: m.addmm(
        x, x, x), "baddbmm": lambda m, x: m.baddbmm(x, x, x), "clamp nothing": lambda m, x: m.clamp(x),
    "einsum count": lambda m, x: m.einsum("ij,jk", x), "einsum rank": lambda m, x: m.einsum("ijk", x),
    "einsum sizes": lambda m, x: m.einsum("ij,ij", x, x.T), "einsum output": lambda m, x: m.einsum("ij->k", x),
    "einsum twice": lambda m, x: m.einsum("ij->ii", x), "einsum letter": lambda m, x: m.einsum("i!->i", x),
    "t": lambda m, x: m.t(m.zeros(2, 2, 2)), "movedim": lambda m, x: m.movedim(x, (0, 1), (0,)),
    "movedim twice": lambda m, x: m.movedim(x, (0, 0), (0, 1)), "flip dim": lambda m, x: m.flip(x, (2,)),
    "flip twice": lambda m, x: m.flip(x, (0, 0)), "roll": lambda m, x: m.roll(x, (1, 2), 0), "tril": lambda m, x: m.tril(x[0]),
    "repeat": lambda m, x: x.repeat(2), "chunk": lambda m, x: m.chunk(x, 0), "split sizes": lambda m, x: m.split(x, [1, 3]),
    "narrow": lambda m, x: m.narrow(x, 0, 1, 2), "narrow length": lambda m, x: m.narrow(x, 0, 0, -1),
    "select": lambda m, x: m.select(x, 1, 3), "diagonal": lambda m, x: m.diagonal(x, 0, 1, 1), "stack": lambda m, x: m.stack(
        [x, x.T]), "stack none": lambda m, x: m.stack([]), "unbind 0-d": lambda m, x: m.unbind(m.tensor(1.0)),
    "gather high": lambda m, x: m.gather(x, 1, m.tensor(np.array([[3]]))), "gather low": lambda m, x: m.gather(
        x, 1, m.tensor(np.array([[-1]]))), "gather rank": lambda m, x: m.gather(x, 1, m.tensor(np.array([0]))),
    "gather size": lambda m, x: m.gather(x, 1, m.tensor(np.zeros((3, 1), np.int64))), "gather floats": lambda m, x: m.gather(
        x, 1, x), "index_select high": lambda m, x: m.index_select(x, 0, m.tensor(np.array([2]))),
    "index_select rank": lambda m, x: m.index_select(x, 0, m.tensor(np.array([[0]]))),
    "index_add size": lambda m, x: m.index_add(x, 0, m.tensor(np.array([0, 1, 1])), x),
    "index_add dtype": lambda m, x: m.index_add(x, 0, m.tensor(np.array([0, 1])), m.tensor(np.ones((2, 3)))),
    "scatter_add size": lambda m, x: m.scatter_add(x, 1, m.tensor(np.zeros((2, 4), np.int64)), x),
    "index_put": lambda m, x: m.index_put(x, (m.tensor(np.array([5])),), m.tensor(1.0)),
    "index_put shape": lambda m, x: m.index_put(x, (m.tensor(np.array([0])),), m.zeros(2)),
    "masked_fill": lambda m, x: m.masked_fill(x, x > 0, x), "norm nuc": lambda m, x: m.norm(x[0], "nuc"),
    "mean of integers": lambda m, x: m.mean(m.tensor([1, 2])), "pow of integers": lambda m, x: m.pow(m.tensor([2]), -1),
    "sub of booleans": lambda m, x: m.sub(x > 0, x > 0), "rms_norm": lambda m, x: m.nn.functional.rms_norm(x, (2,)),
    "rounding_mode": lambda m, x: m.div(x, x, rounding_mode="up"), "nll_loss class": lambda m, x: m.nn.functional.nll_loss(
        x, m.tensor(np.array([0, 3]))), "nll_loss shape": lambda m, x: m.nn.functional.nll_loss(x, m.tensor(np.array([0]))),
    "nll_loss reduction": lambda m, x: m.nn.functional.nll_loss(x, m.tensor(np.array([0, 0])), reduction="max"),
    "mse_loss reduction": lambda m, x: m.nn.functional.mse_loss(x, x, reduction="max"),
    "one_hot low": lambda m, x: m.nn.functional.one_hot(m.tensor([-1])), "one_hot high": lambda m, x: m.nn.functional.one_hot(
        m.tensor([3]), 3), "one_hot none": lambda m, x: m.nn.functional.one_hot(m.tensor(np.zeros(0, np.int64))),
    "one_hot floats": lambda m, x: m.nn.functional.one_hot(x), "padding_idx": lambda m, x: m.nn.functional.embedding(
        m.tensor([0]), x, padding_idx=2), "gqa": lambda m, x: m.nn.functional.scaled_dot_product_attention(
        m.zeros(1, 3, 2, 2), m.zeros(1, 2, 2, 2), m.zeros(1, 2, 2, 2), enable_gqa=True),
    "silu of integers": lambda m, x: m.nn.functional.silu(m.tensor([1])), "a pair": lambda m, x: x + m.max(x, 0),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_torch_refuses_is_refused_in_one_line(call):
    with pytest.raises((RuntimeError, IndexError, TypeError, ValueError, AssertionError)):
        call(torch, torch.tensor(X))
    with pytest.raises((RuntimeError, IndexError, TypeError, ValueError)) as caught:
        call(tg, tg.tensor(X))
    message = str(caught.value)
    assert "got " in message
    assert "expected " in message
    assert "\n" not in message


def test_slices_with_negative_steps_are_numpys():
    """torch refuses them; NumPy does not, and nothing about them is ambiguous."""
    x = tg.tensor(X, requires_grad=True)
    np.testing.assert_array_equal(x[::-1, 2:0:-1].numpy(), X[::-1, 2:0:-1])
    g = np.arange(4.0, dtype=np.float32).reshape(2, 2)
    (d,) = grad(x[::-1, 2:0:-1], x, g)
    np.testing.assert_array_equal(d.numpy(), [[0, 3, 2], [0, 1, 0]])


@pytest.mark.parametrize("x", [-0.0 * X, X != 0], ids=["-0.0", "bool"])
def test_flip_and_roll_copy_bit_by_bit(x):
    """In torch they are no views: a later write into the input does not show."""
    t = tg.tensor(x)
    moved = tg.flip(t, 0), tg.roll(t, 0, 0), tg.roll(t, 1, 0)
    t.fill_(5)
    for a, b in zip(moved, (x[::-1], x, np.roll(x, 1, 0))):
        assert a.numpy().tobytes() == b.tobytes()


def test_the_last_value_of_a_repeated_place_stays_and_takes_the_gradient():
    x, y = tg.tensor([1.0, 2.0], requires_grad=True), tg.tensor([3.0, 4.0], requires_grad=True)
    out = tg.index_put(x, (tg.tensor([0, 0]),), y)
    assert out.tolist() == [4, 2]
    (out * tg.tensor([5.0, 7.0])).sum().backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([0, 7], [0, 5])


def test_modules_are_torchs():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    made = [(m.nn.RMSNorm(4), m.nn.RMSNorm((3, 4), 1e-3), m.nn.RMSNorm(4, elementwise_affine=False), m.nn.GELU(),
             m.nn.GELU("tanh"), m.nn.SiLU(), m.nn.ReLU()) for m in (tg, torch)]
    for ours, theirs in zip(*made):
        np.testing.assert_allclose(ours(tg.tensor(x)).numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6)
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def test_the_padding_row_is_zero_and_stays_so():
    layer = tg.nn.Embedding(5, 3, padding_idx=-1)
    assert not layer.weight.numpy()[-1].any()
    layer(np.array([4, 0, 4])).sum().backward()
    assert layer.weight.grad.numpy().any(1).tolist() == [True, False, False, False, False]
