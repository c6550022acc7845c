"""Numbers at the ends: Python's beside small integers, float16 sums, slopes where 0 meets infinity, dtypes of what is made."""

import math
import warnings

import numpy as np
import pytest
import torch

import tinygrad_llm as tg
from tinygrad_llm.ops import ArgumentError, DtypeError

INF, NAN = math.inf, math.nan
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def outcome(call, m, x):
    """(dtype, values), or the word "refused"."""
    try:
        y = call(m, x)
    except (RuntimeError, OverflowError):
        return "refused"
    return str(y.dtype).removeprefix("torch."), y.tolist()


# Numbers beside integers -------------------------------------------------------------------------------------------------

CALLS = {
    "add": lambda m, x, n: x + n, "radd": lambda m, x, n: n + x, "sub": lambda m, x, n: x - n, "rsub": lambda m, x, n: n - x,
    "mul": lambda m, x, n: x * n, "rpow": lambda m, x, n: n**x, "add_": lambda m, x, n: x.add_(n), "and": lambda m, x, n: x & n,
    "or": lambda m, x, n: x | n, "xor": lambda m, x, n: x ^ n, "div": lambda m, x, n: x / n,
    "clamp min": lambda m, x, n: m.clamp(x, min=n), "clamp max": lambda m, x, n: m.clamp(x, max=n),
    "masked_fill": lambda m, x, n: x.masked_fill(x > 1, n), "where": lambda m, x, n: m.where(x > 1, x, n),
    "rwhere": lambda m, x, n: m.where(x > 1, n, x), "fill_": lambda m, x, n: x.fill_(n),
    "full": lambda m, x, n: m.full((2,), n, dtype=x.dtype), "new_full": lambda m, x, n: x.new_full((2,), n),
    "alpha": lambda m, x, n: m.add(x, x, alpha=n), "sub alpha": lambda m, x, n: m.sub(x, x, alpha=n),
    "setitem": lambda m, x, n: x.__setitem__(0, n) or x,
}


@pytest.mark.parametrize("number", [-1, -3, 100, 300, -300, 2**40])
@pytest.mark.parametrize("name", CALLS)
def test_numbers_beside_integers_are_torchs(name, number):
    for dtype in INTEGERS:
        if name.startswith("clamp") and np.array(number).astype(dtype) != number:
            continue  # in test_torch_versions
        wanted, got = [outcome(lambda m, x: CALLS[name](m, x, number), m, a) for m, a in (
            (torch, torch.tensor([1, 2], dtype=getattr(torch, dtype))), (tg, tg.tensor([1, 2], dtype=dtype)))]
        assert got == wanted, dtype


@pytest.mark.parametrize("call", [
    lambda x: tg.where(x > 1, x, -100), lambda x: x.masked_fill(x > 1, -100), lambda x: x + -1, lambda x: x * 70000,
    lambda x: x.clamp(max=-1), lambda x: x.clone().fill_(-1), lambda x: x.clone().__setitem__(0, 70000),
    lambda x: tg.full((2,), -1, dtype=x.dtype), lambda x: tg.add(x, x, alpha=-1), lambda x: tg.tensor([-1], dtype=x.dtype),
])
def test_numbers_that_uint16_cannot_hold_are_refused(call):
    tokens = tg.tensor(np.array([1, 2], np.uint16))
    with pytest.raises(ArgumentError, match=r"got .*, expected"):
        call(tokens)
    assert tokens.tolist() == [1, 2]


def test_integers_to_negative_integers_are_torchs():
    base, exponent = [-2, -1, 1, 2, -1, 3, 0], [-1, -3, -2, -5, -2, 2, 0]
    wanted = torch.tensor(base) ** torch.tensor(exponent)
    got = tg.tensor(base) ** tg.tensor(exponent)
    assert got.dtype == np.int64
    assert got.tolist() == wanted.tolist()
    with pytest.raises(ArgumentError, match="pow: exponent: got -1 for integers"):
        tg.tensor(base) ** -1


def test_bytes_are_no_index():
    for index in (tg.tensor([1, 0], dtype="uint8"), np.array([1, 0], np.uint8)):
        for call in (lambda x, i: x[i], lambda x, i: x.__setitem__(i, 0.0), lambda x, i: tg.index_put(x, (i,), tg.tensor(0.0))):
            with pytest.raises(DtypeError, match=r"index: got dtype uint8, .* expected int64 \(places\) or bool"):
                call(tg.ones(2), index)


# float16 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "mean", "max", "amax", "min", "amin", "var", "std", "norm", "layer_norm", "rms_norm",
])
def test_of_float16_only_the_result_is_rounded(name):
    many, large = np.ones(70000, np.float16), np.array([[40000, 40000, 30000], [300, -300, 0]], np.float16)
    F = {"layer_norm": lambda m, x: m.nn.functional.layer_norm(x, x.shape[-1:]),
         "rms_norm": lambda m, x: m.nn.functional.rms_norm(x, x.shape[-1:])}
    call = F.get(name) or (lambda m, x: getattr(m, name)(x))
    for a in (large,) if name in F else (many, large if name == "mean" else large / 512):
        x, t = tg.tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
        y, z = call(tg, x), call(torch, t)
        y.sum().backward()
        z.sum().backward()
        assert y.dtype == x.grad.dtype == np.float16
        np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), 2e-3, 1e-6)
        np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), 4e-3, 1e-6)


# Slopes ------------------------------------------------------------------------------------------------------------------

SLOPES = {
    **{f"{base} ** y": (lambda m, y, base=base: base**y, [-INF, -2.0, -1.0, 0.0, 0.5, 2.0, INF])
       for base in (0.0, -0.0, -2.0, -1.0, 1.0, 3.0, INF, NAN)},
    **{f"x ** {p}": (lambda m, x, p=p: x**p, [-INF, -2.0, -0.0, 0.0, 0.5, INF, NAN]) for p in (0.5, -0.5, 1.5, 0, -1, 2, 3)},
    "gelu tanh": (lambda m, x: m.nn.functional.gelu(x, approximate="tanh"), [2e13, -2e13, 1e15, -1e15, 0.0, 3.0]),
    "var": (lambda m, x: m.var(x, correction=x.numel()), [1.0, 2.0, 4.0]),
    "var of its mean": (lambda m, x: m.var(x, correction=3), [1.0, 2.0, 3.0]),
    "var beyond": (lambda m, x: m.var(x, correction=5), [1.0, 2.0, 4.0]),
    "var of equals": (lambda m, x: m.var(x, correction=3), [2.0, 2.0, 2.0]),
    "std": (lambda m, x: m.std(x, correction=3), [1.0, 2.0, 4.0]),
    "sign": (lambda m, x: m.sign(x), [NAN, INF, -INF, 0.0]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SLOPES)
def test_values_and_slopes_at_the_ends_are_torchs(name, dtype):
    call, at = SLOPES[name]
    x, t = tg.tensor(np.array(at, dtype), requires_grad=True), torch.tensor(np.array(at, dtype), requires_grad=True)
    y, z = call(tg, x), call(torch, t)
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), 1e-6)
    y.sum().backward()
    z.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), 1e-6)


def test_frequencies_scale_the_gradient_of_the_table_alone():
    def run(m):
        w = m.tensor(np.ones((4, 2)), requires_grad=True)
        rows = m.nn.functional.embedding(m.tensor([1, 1, 3]), w, scale_grad_by_freq=True)
        rows.retain_grad()
        (rows * m.tensor(np.arange(6.0).reshape(3, 2))).sum().backward()
        return rows.grad.tolist(), w.grad.tolist()

    assert run(tg) == run(torch)


# What is made ------------------------------------------------------------------------------------------------------------

f2, f4, f8, i4 = np.float16, np.float32, np.float64, np.int32


@pytest.mark.parametrize("data", [
    [f4(1), 2.0], [f2(1), 2.0], [f8(1), 2.0], [f2(1)], [f2(1), 1], [[f4(1)], [2.0]], [i4(1), 2.0], [i4(1), i4(2)], [2.0, 1],
    [True, 2], 3, 2.0, f8(3), True, [], [[]], np.ones(2), np.ones(2, f4), [True, 1.5], 2**63 - 1, -(2**63), [2**63, 1.0],
], ids=repr)
def test_dtypes_of_mixed_data_are_torchs(data):
    for make in ("tensor", "as_tensor"):
        assert f"torch.{getattr(tg, make)(data).dtype}" == str(getattr(torch, make)(data).dtype)


@pytest.mark.parametrize("value", [f8(1), f4(1), f2(1), i4(1), 1, 1.0, True])
def test_dtypes_of_full_are_torchs(value):
    assert f"torch.{tg.full((2,), value).dtype}" == str(torch.full((2,), value).dtype)


@pytest.mark.parametrize("data", [[1, 2], np.ones(2), np.ones(2, int), (True, False), []], ids=repr)
def test_the_class_makes_float32(data):
    ours, theirs = tg.Tensor(data), torch.Tensor(data)
    assert (f"torch.{ours.dtype}", ours.tolist()) == (str(theirs.dtype), theirs.tolist())
    ours.requires_grad_()


def test_the_class_takes_no_number_and_keeps_a_tensors_memory():
    for number in (3, 2.0, True, f4(1)):
        with pytest.raises(TypeError, match=r"Tensor: data: got .*, expected a sequence"):
            tg.Tensor(number)
    x = tg.tensor([1, 2])
    tg.Tensor(x)[0] = 5
    assert x.tolist() == [5, 2]


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: tg.tensor(2**63), "tensor: data: got 9223372036854775808, expected integers that int64 can hold"),
    (lambda x: tg.Tensor(2, 3), r"Tensor: data: got 2, 3, expected a sequence .* zeros\(2, 3\) for a size"),
    (lambda x: x.fill_(None), "fill_: value: got None, expected numbers that float32 can hold"),
    (lambda x: x.requires_grad_(np.True_), "requires_grad: got np.True_, expected True or False"),
    (lambda x: ~x, "bitwise_not: got float32, expected integers or booleans"),
    (lambda x: x.split(), r"split\(\) missing 1 required positional argument: 'split_size'"),
    (lambda x: x.eq(), r"eq\(\) missing 1 required positional argument: 'other'"),
    (lambda x: x.clone(1), r"clone\(\) takes 1 positional argument but 2 were given"),
    (lambda x: x.view("a"), "view: dtype: got 'a', expected a dtype of NumPy's for numbers"),
])
def test_mistakes_are_called_by_name(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call(tg.ones(2))


def test_a_dtype_may_ask_for_large_integers():
    assert tg.tensor(2**63, dtype=np.uint64).item() == 2**63
    assert tg.tensor([2**63], dtype=np.float32).tolist() == [2.0**63]
    assert tg.tensor(np.array([2**63], np.uint64)).dtype == np.uint64


def test_options_of_tensor_are_named():
    with pytest.raises(TypeError):
        tg.tensor([1.0], np.float64)
    with pytest.raises(ValueError, match="tensor: device: got 'cuda', expected 'cpu'"):
        tg.tensor([1.0], device="cuda")
    x = tg.tensor([1, 2], dtype=np.float64, device="cpu", requires_grad=True, pin_memory=False)
    assert (x.dtype, x.requires_grad) == (np.float64, True)


def test_as_tensor_shares_what_it_can():
    array = np.zeros(2, np.float32)
    x = tg.as_tensor(array)
    x[0] = 1.0
    assert isinstance(x, tg.Tensor)
    assert array.tolist() == [1, 0]
    assert tg.as_tensor(x) is x is tg.as_tensor(x, dtype=np.float32)
    tg.as_tensor(array, dtype=np.float64)[0] = 7.0
    assert array.tolist() == [1, 0]
    leaf = tg.tensor([1.0], requires_grad=True)
    tg.as_tensor(leaf, dtype=np.float64).sum().backward()
    assert leaf.grad.tolist() == [1]


# NumPy's names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [np.sum, np.mean, np.max, np.min, np.var, np.std, np.prod])
@pytest.mark.parametrize("keepdims", [False, True])
def test_no_axes_reduce_nothing_under_numpys_names(f, keepdims):
    a = np.arange(6.0).reshape(2, 3)
    x = tg.tensor(a, requires_grad=True)
    y = f(x, axis=(), keepdims=keepdims)
    np.testing.assert_array_equal(y.detach().numpy(), f(a, axis=(), keepdims=keepdims))
    y.sum().backward()
    assert x.grad.shape == a.shape


@pytest.mark.parametrize("order", [np.int64(1), np.int32(3), np.float32(1), np.float64(2), 2, INF, None])
def test_norms_take_numpys_numbers(order):
    v = np.array([3.0, -4.0, 1.0])
    assert abs(np.linalg.norm(tg.tensor(v), ord=order).item() - np.linalg.norm(v, ord=order)) < 1e-12


def test_an_array_plus_equals_a_tensor_says_what_to_write():
    a = np.ones(2)
    with pytest.raises(TypeError, match=r"add: got an ndarray .*, expected none.*use a \+ b"):
        a += tg.ones(2)
