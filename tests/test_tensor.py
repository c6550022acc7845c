"""Tensor itself beside torch's: what it prints, its Python protocols, copies, pickles, and views that share memory."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opcases import OPS

import tinygrad_llm as ours
from reference.opdraw import Seeded, call_torch, draw_call, is_float
from tinygrad_llm.autograd import AutogradError, Tensor, apply
from tinygrad_llm.nn import Parameter
from tinygrad_llm.ops import ShapeError

SHAPES = [(), (1,), (3,), (0,), (2, 3), (2, 0), (1, 1), (2, 1, 3)]
DTYPES = [np.float32, np.float64, np.int64, np.bool_]


def pair(shape, dtype, seed=0):
    a = (np.random.default_rng(seed).integers(-3, 4, shape) * 0.5).astype(dtype)
    return ours.tensor(a), torch.tensor(a)


def outcome(function):
    """What it gives, as plain Python, or that it refuses."""
    try:
        value = function()
    except (TypeError, ValueError, RuntimeError, IndexError):
        return "refused"
    return plain(value)


def plain(value):
    if isinstance(value, Tensor | torch.Tensor):
        return str(value.dtype).replace("torch.", ""), tuple(value.shape), value.tolist()
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


LOOKS = {
    "tolist": lambda t: t.tolist(), "item": lambda t: t.item(), "len": len, "iter": list, "float": float, "int": int,
    "bool": bool, "shape": lambda t: tuple(t.shape), "ndim": lambda t: t.ndim, "dim": lambda t: t.dim(),
    "numel": lambda t: t.numel(), "T": lambda t: t.T if t.ndim == 2 else None, "mT": lambda t: t.mT if t.ndim > 1 else None,
    "index": lambda t: [10, 20, 30, 40][t] if t.dtype in (np.int64, torch.int64) else None,
    "is_leaf": lambda t: t.is_leaf, "contains": lambda t: 0.5 in t, "unpack": lambda t: (lambda *rows: list(rows))(*t),
    "format": lambda t: f"{t:.2f}" if t.ndim == 0 and t.dtype not in (np.bool_, torch.bool) else None,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_python_sees_what_it_sees_in_torch(look, shape, dtype):
    mine, theirs = pair(shape, dtype)
    assert outcome(lambda: look(mine)) == outcome(lambda: look(theirs))


COMPARE = {"==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
           ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}


@given(st.sampled_from(sorted(COMPARE)), st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(DTYPES),
       st.sampled_from(["tensor", "number", "left number"]), st.integers(0, 99))
def test_comparisons_are_torch(name, shape, dtype, other, kind, seed):
    (a, t), (b, u) = pair(shape, dtype, seed), pair(shape, other, seed + 1)
    compare = COMPARE[name]
    if kind == "tensor":
        assert plain(compare(a, b)) == plain(compare(t, u))
    elif kind == "number":
        assert plain(compare(a, 0.5)) == plain(compare(t, 0.5))
    else:
        assert plain(compare(1, a)) == plain(compare(1, t))


@pytest.mark.parametrize(("make", "text"), [
    (lambda: ours.tensor([1.0, 2.5]), "tensor([1. , 2.5])"),
    (lambda: ours.tensor(3), "tensor(3)"),
    (lambda: ours.tensor(np.ones(1)), "tensor([1.], dtype=float64)"),
    (lambda: ours.tensor([True]), "tensor([ True])"),
    (lambda: ours.tensor([1.0], requires_grad=True), "tensor([1.], requires_grad=True)"),
    (lambda: ours.tensor([1.0], requires_grad=True).exp(), "tensor([2.7183], grad_fn=<exp>)"),
    (lambda: ours.zeros(0, 3), "tensor([], size=(0, 3))"),
])
def test_repr_shows_values_dtype_and_what_made_it(make, text):
    assert repr(make()) == text


def test_repr_of_a_long_tensor_is_short():
    assert len(repr(ours.zeros(1000, 1000))) < 1000


def test_deepcopy_is_a_leaf_of_its_own():
    x = ours.ones(2, dtype=np.float64, requires_grad=True)
    (x * x).sum().backward()
    y, again = copy.deepcopy([x, x])
    assert y is again
    assert (y.requires_grad, y.tolist(), y.grad.tolist()) == (True, [1, 1], [2, 2])
    y.grad.numpy()[:] = 5
    y.detach().numpy()[:] = 5
    assert (x.tolist(), x.grad.tolist()) == ([1, 1], [2, 2])
    with pytest.raises(AutogradError, match=r"deepcopy: got the result of an op"):
        copy.deepcopy(x * 2)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("tensor", [
    ours.tensor([1.0, 2.0], requires_grad=True), Parameter(np.ones((2, 3))), ours.tensor(2), ours.zeros(0, 2),
                                    ours.tensor(np.arange(6.0).reshape(2, 3)).T])
def test_a_leaf_survives_pickling(tensor, protocol):
    back = pickle.loads(pickle.dumps(tensor, protocol))
    assert type(back) is type(tensor)
    assert (back.dtype, back.shape, back.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
    np.testing.assert_array_equal(back.numpy(), tensor.numpy())
    assert back.grad is None


def test_the_result_of_an_op_is_not_pickled():
    with pytest.raises(AutogradError, match=r"pickle: got the result of an op, expected a leaf"):
        pickle.dumps(ours.tensor([1.0], requires_grad=True) * 2)


@pytest.mark.parametrize("index", [
    0, -1, (0, 1), (0, slice(None)), (..., 0), (None, 0), slice(1, None), ours.tensor(1), np.int64(1),
])
def test_basic_indexing_gives_views_also_of_single_elements(index):
    mine, theirs = pair((2, 3), np.float64)
    other = 1 if isinstance(index, Tensor | np.integer) else index
    mine[index].add_(10)
    theirs[other].add_(10)
    assert mine.tolist() == theirs.tolist()


def test_iteration_gives_views():
    mine, theirs = pair((4,), np.float64)
    for t in (mine, theirs):
        for element in t:
            element.mul_(3)
    assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_what_shares_memory_in_torch_shares_it_here_and_nothing_else(op):
    """Or a write into a result would reach its argument in one of the two only."""
    for seed in range(20):
        case = draw_call(op, Seeded(seed))
        args = [Tensor.of(a) if is_float(a) else a for a in case.args]
        out = apply(op, *args, **case.options)
        if not out.size or not out.numpy().flags.writeable:
            continue
        theirs = [None if a is None else torch.tensor(a) for a in case.args]
        result = call_torch(op, theirs, case.options)
        shares = [t is not None and t.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for t in theirs]
        mine = [isinstance(t, Tensor) and np.shares_memory(t.numpy(), out.numpy()) for t in args]
        assert mine == shares or op.name == "cast"  # of which `to` makes no call where the dtype stays


def test_item_of_many_is_refused():
    with pytest.raises(ShapeError, match="expected one element"):
        ours.zeros(2).item()
