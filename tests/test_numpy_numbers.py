"""NumPy's scalars and arrays without axes, wherever a number is asked for: they count as Python's, in values and in dtypes. And
NumPy's functions of tensors, which have NumPy's arguments and NumPy's meaning."""

import warnings

import numpy as np
import pytest
import torch

import tinygrad_llm as tg
from tinygrad_llm import nn
from tinygrad_llm.optim import AdamW, WarmupCosine, clip_grad_norm_, clip_grad_value_

F = tg.nn.functional
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def outcome(result):
    """dtype, shape and values of tensors, in tuples and lists too."""
    if isinstance(result, tuple | list):
        return [outcome(part) for part in result]
    return (str(result.dtype), result.shape, np.asarray(result.detach()).tolist()) if isinstance(result, tg.Tensor) else result


def same(call, number, plain):
    tg.manual_seed(0)
    wanted = outcome(call(plain))
    tg.manual_seed(0)
    assert outcome(call(number)) == wanted


# Fractions ---------------------------------------------------------------------------------------------------------------


def stepped(**settings):
    p = nn.Parameter(np.ones((2, 3), np.float32))
    optimizer = AdamW([p], **settings)
    for factor in (2, -30, 0.01):
        p.grad = tg.tensor(np.full((2, 3), factor, np.float32))
        optimizer.step()
    return p


def scheduled(ratio):
    optimizer = AdamW([nn.Parameter(np.ones(2, np.float32))], lr=0.3)
    schedule = WarmupCosine(optimizer, 2, 9, ratio)
    for _ in range(7):
        schedule.step()
    return optimizer.param_groups[0]["lr"]


def clipped(clip, *limits):
    p = nn.Parameter(ROWS)
    (p * 10).sum().backward()
    return clip([p], *limits), p.grad


FRACTIONS = {
    "lr": lambda v: stepped(lr=v), "eps of AdamW": lambda v: stepped(eps=v), "weight_decay": lambda v: stepped(weight_decay=v),
    "betas": lambda v: stepped(betas=(v, v)), "min_ratio": scheduled, "max_norm": lambda v: clipped(clip_grad_norm_, v),
    "norm_type": lambda v: clipped(clip_grad_norm_, 1.0, v), "clip_value": lambda v: clipped(clip_grad_value_, v),
    "dropout": lambda v: F.dropout(tg.tensor(ROWS), v), "Dropout": lambda v: nn.Dropout(v)(tg.tensor(ROWS)),
    "layer_norm": lambda v: F.layer_norm(tg.tensor(ROWS), (4,), eps=v),
    "LayerNorm": lambda v: nn.LayerNorm(4, eps=v)(tg.tensor(ROWS)),
    "rms_norm": lambda v: F.rms_norm(tg.tensor(ROWS), (4,), eps=v), "beta": lambda v: F.softplus(tg.tensor(ROWS), beta=v),
    "threshold": lambda v: F.softplus(tg.tensor(ROWS), threshold=v),
    "label_smoothing": lambda v: F.cross_entropy(tg.tensor(ROWS), np.arange(3), label_smoothing=v),
    "scale": lambda v: F.scaled_dot_product_attention(tg.tensor(ROWS), tg.tensor(ROWS), tg.tensor(ROWS), scale=v),
    "scale beside a mask": lambda v: F.scaled_dot_product_attention(*[tg.tensor(ROWS)] * 3, tg.zeros(3, 3), scale=v),
    "dropout_p": lambda v: F.scaled_dot_product_attention(*[tg.tensor(ROWS)] * 3, dropout_p=v),
    "max_norm of rows": lambda v: F.embedding(np.array([0, 2]), tg.tensor(ROWS), max_norm=v),
    "ord": lambda v: tg.linalg.vector_norm(tg.tensor(ROWS), v), "p": lambda v: tg.norm(tg.tensor(ROWS), v),
    "correction": lambda v: tg.var(tg.tensor(ROWS), correction=v),
    "alpha": lambda v: tg.add(tg.tensor(ROWS), tg.tensor(ROWS), alpha=v),
    "beta and alpha": lambda v: tg.addmm(tg.ones(3, 3), tg.tensor(ROWS), tg.tensor(ROWS).T, beta=v, alpha=v),
    "uniform_": lambda v: tg.tensor(ROWS).uniform_(0, v), "normal_": lambda v: tg.tensor(ROWS).normal_(0, v),
    "xavier": lambda v: nn.init.xavier_normal_(tg.tensor(ROWS), v), "full": lambda v: tg.full((2,), v),
    "+": lambda v: tg.tensor(ROWS) + v, "/": lambda v: tg.tensor(ROWS) / v, "**": lambda v: v ** tg.tensor(ROWS),
    "%": lambda v: tg.tensor(ROWS) % v, "clamp": lambda v: tg.clamp(tg.tensor(ROWS), v, None),
    "where": lambda v: tg.where(tg.tensor(ROWS) > 0, tg.tensor(ROWS), v), "fill_": lambda v: tg.tensor(ROWS).fill_(v),
}


@pytest.mark.parametrize(
    "number", [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5), np.array(0.5, np.float16)], ids=repr)
@pytest.mark.parametrize("name", FRACTIONS)
def test_a_fraction_of_numpys_is_pythons(name, number):
    same(FRACTIONS[name], number, 0.5)


def test_a_rate_that_is_set_later_is_pythons():
    """lr = float16(0.3) times a bias correction was rounded to float16: the step differed in its fourth digit."""
    def run(rate):
        p = nn.Parameter(np.ones(3, np.float32))
        optimizer = AdamW([p], lr=1.0)
        optimizer.param_groups[0]["lr"] = rate
        p.grad = tg.ones(3)
        optimizer.step()
        return p.tolist()

    assert run(np.float16(0.3)) == run(float(np.float16(0.3)))


# Whole numbers -----------------------------------------------------------------------------------------------------------

X = tg.tensor(ROWS)
WHOLE = {
    "sum": lambda v: X.sum(v), "sum of axes": lambda v: X.sum((0, v)), "max": lambda v: tg.max(X, v),
    "min": lambda v: X.min(v, True), "argmax": lambda v: X.argmax(v), "softmax": lambda v: X.softmax(v),
    "cumsum": lambda v: X.cumsum(v), "var": lambda v: tg.var(X, v), "norm": lambda v: tg.norm(X, 2, v),
    "squeeze": lambda v: X[:, :1].squeeze(v), "unsqueeze": lambda v: X.unsqueeze(v),
    "transpose": lambda v: X.transpose(0, v), "permute": lambda v: X.permute(v, 0), "reshape": lambda v: X.reshape(v, 12),
    "roll": lambda v: X.roll(v, v), "roll of all": lambda v: X.roll(v), "flip": lambda v: X.flip(v),
    "tril": lambda v: X.tril(v), "split": lambda v: X.split(v, v), "chunk": lambda v: X.chunk(v),
    "narrow": lambda v: X.narrow(v, v, v), "[]": lambda v: X[v, v:],
    "zeros": lambda v: tg.zeros(v, 2), "full": lambda v: tg.full((v,), 2.0), "expand": lambda v: X.expand(v, 3, 4),
    "repeat": lambda v: X.repeat(v, 2), "cat": lambda v: tg.cat([X, X], v), "stack": lambda v: tg.stack([X, X], v),
    "gather": lambda v: tg.gather(X, v, np.zeros((1, 1), int)), "diagonal": lambda v: X.diagonal(v),
    "unbind": lambda v: X.unbind(v), "flatten": lambda v: X.flatten(0, v),
    "movedim": lambda v: X.movedim(v, 0), "randint": lambda v: tg.randint(0, v + 5, (v,)),
    "arange": lambda v: tg.arange(v), "one_hot": lambda v: F.one_hot(np.array([0]), v), "size": lambda v: X.size(v),
    "ignore_index": lambda v: F.cross_entropy(X, np.arange(3), ignore_index=v),
    "padding_idx": lambda v: F.embedding(np.array([1]), X, padding_idx=v), "Linear": lambda v: nn.Linear(v, v).weight,
    "Embedding": lambda v: nn.Embedding(v, v).weight, "normalized_shape": lambda v: F.layer_norm(X[:, :1], v),
    "+": lambda v: X + v, "**": lambda v: X**v, "//": lambda v: X // v,
    "argnums": lambda v: tg.func.grad(lambda a, b: (a * b).sum(), v)(X, X), "argnums of hessian": lambda v: tg.func.hessian(
        lambda a, b: (a * b * b).sum(), (0, v))(X[0], X[1]),
    "in_dims": lambda v: tg.func.vmap(lambda a: a * 2, v, v)(X), "in_dims of two": lambda v: tg.func.vmap(
        lambda a, b: a * b, (v, None))(X, X[:, 0]),
    "chunk_size": lambda v: tg.func.vmap(lambda a: a * 2, chunk_size=v)(X),
    "backward": lambda v: (p := tg.tensor(ROWS, requires_grad=True), p.sum().backward(v), p.grad)[2],
    "alpha of integers": lambda v: tg.addmm(*[tg.ones(1, 1, dtype=int)] * 3, alpha=v),
}


@pytest.mark.parametrize("number", [np.int64(1), np.int32(1), np.uint8(1), np.int8(1)], ids=repr)
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_of_numpys_is_pythons(name, number):
    """max(x, np.int64(1)) had been maximum(x, 1)."""
    same(WHOLE[name], number, 1)


# Numbers that an integer's dtype makes others of -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "number"), [("uint8", 256), ("int8", 256), ("int8", -512), ("int16", 2**16), ("int32", 2**32)])
@pytest.mark.parametrize("call", [lambda x, n: x // n, lambda x, n: x % n, lambda x, n: x.clone().floor_divide_(n),
                                  lambda x, n: tg.div(x, n, rounding_mode="trunc")])
def test_nothing_is_divided_by_what_is_0_in_its_dtype(dtype, number, call):
    x = tg.tensor([1, 100], dtype=dtype)
    with pytest.raises(ValueError, match=rf"other: got {number} beside integers, where it is 0"):
        call(x, number)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        torch.tensor([1, 100], dtype=getattr(torch, dtype)) // number


@pytest.mark.parametrize(("dtype", "number"), [("uint8", 256), ("int8", 128), ("int16", 2**15), ("int32", 2**31)])
def test_no_integer_is_raised_to_what_its_dtype_cannot_hold(dtype, number):
    with pytest.raises(ValueError, match=rf"pow: exponent: got {number}, expected a number that {dtype} can hold"):
        tg.tensor([1, 2], dtype=dtype) ** number
    with pytest.raises(RuntimeError, match="overflow"):
        torch.tensor([1, 2], dtype=getattr(torch, dtype)) ** number


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("call", [lambda x: x.clamp(max=1e300), lambda x: x.clamp(min=-1e300),
                                  lambda x: tg.where(x > 0, x, 1e300), lambda x: x.masked_fill(x > 0, -1e300)])
def test_a_float_that_the_dtype_cannot_hold_is_no_bound_and_no_value(dtype, call):
    with pytest.raises(ValueError, match=rf"got -?1e\+300, expected a number that {dtype} can hold"):
        call(tg.tensor([1.0, -1.0], dtype=dtype))
    for infinite in (np.inf, -np.inf):
        assert tg.where(tg.tensor([False]), tg.zeros(1, dtype=dtype), infinite).tolist() == [infinite]


# NumPy's functions -------------------------------------------------------------------------------------------------------

A = np.arange(24.0).reshape(2, 3, 4) - 5
I1, I2 = np.int64(1), np.int64(2)
REDUCED = (np.sum, np.mean, np.max, np.min, np.var, np.std, np.prod)
AXES = ((), None, 0, -1, I1, (0, I2), (1,), np.array(1), (0, 1, 2), (0, 0), 3, -4, (0, 3), 1.0, True)
NUMPYS = {
    **{f"{f.__name__} {axis!r} {keep}": lambda a, f=f, axis=axis, keep=keep: f(a, axis=axis, keepdims=keep)
       for f in REDUCED for axis in AXES for keep in (False, True)},
    **{f"norm {order!r} {axis!r}": lambda a, order=order, axis=axis: np.linalg.norm(a, order, axis)
       for order in (None, 0, 1, I2, 3, -1, np.inf, -np.inf, np.float32(np.inf), np.float64(3)) for axis in (0, I1, (1,))},
    **{f"vector_norm {order!r} {axis!r}": lambda a, order=order, axis=axis: np.linalg.vector_norm(a, ord=order, axis=axis)
       for order in (None, 1, I2, np.inf) for axis in (None, 0, I1, (0, 1), (I1, 0))},
    **{f"squeeze {axis!r}": lambda a, axis=axis: np.squeeze(a[:1, :, :1], axis)
       for axis in ((), None, 0, np.int64(0), (0, I2), 1, (0, 1), 5, (0, 0))},
    **{f"expand_dims {axis!r}": lambda a, axis=axis: np.expand_dims(a, axis)
       for axis in (0, I1, -1, (0, I2), (), (0, 0), 5, (0, 7))},
    **{f"flip {axis!r}": lambda a, axis=axis: np.flip(a, axis) for axis in (None, (), 0, I1, (0, I2), 3)},
    **{f"roll {by!r} {axis!r}": lambda a, by=by, axis=axis: np.roll(a, by, axis)
       for by in (1, -2, I2, (1, 2)) for axis in (None, 0, I1, (0, 1), (0, 0))},
    **{f"tile {n!r}": lambda a, n=n: np.tile(a, n) for n in (2, I2, (2, 1), (), np.array([2, 1]))},
    **{f"reshape {n!r}": lambda a, n=n: np.reshape(a, n)
       for n in (-1, (4, 6), (I2, 12), np.array([4, 6]), np.int64(24), (5, 5))},
    **{f"tensordot {n!r}": lambda a, n=n: np.tensordot(a, a.T, n) for n in (1, I1, 0, ([1], [1]), ((2, 1), (0, 1)))},
    **{f"split {n!r} {axis!r}": lambda a, n=n, axis=axis: np.split(a, n, axis)
       for n in (1, I2, 0, [1], np.array([1, 2]), (I1,)) for axis in (0, I2)},
    **{f"array_split {n!r}": lambda a, n=n: np.array_split(a, n, 2) for n in (3, np.int64(3), 0, [1, 3], np.array([2]))},
    **{f"clip {low!r} {high!r}": lambda a, low=low, high=high: np.clip(a, low, high)
       for low, high in ((0, 1), (None, np.int64(3)), (np.array(0.0), None), (np.float32(0), 2), (5, 0), (None, None))},
    **{f"take {axis!r}": lambda a, axis=axis: np.take(a, [0, -1, 1], axis) for axis in (None, 0, I1, -1)},
    **{f"concatenate {axis!r}": lambda a, axis=axis: np.concatenate((a, a), axis) for axis in (None, 0, I1, -1, 3)},
}


@pytest.mark.parametrize("name", NUMPYS)
def test_numpys_functions_have_numpys_meaning(name):
    try:
        wanted = NUMPYS[name](A)
    except (ValueError, TypeError, IndexError, ZeroDivisionError):
        with pytest.raises((ValueError, TypeError, IndexError)):
            NUMPYS[name](tg.tensor(A))
        return
    found = NUMPYS[name](tg.tensor(A))
    for w, f in zip(*[part if isinstance(part, list) else [part] for part in (wanted, found)], strict=True):
        assert f.dtype == w.dtype
        np.testing.assert_allclose(f.numpy(), w, 1e-12)
        assert f.shape == w.shape
