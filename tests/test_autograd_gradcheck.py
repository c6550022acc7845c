"""The checker checked: wrong vjps from 0.1 % to 100 % off, noise, randomness, scales, float32; never a wrong verdict."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_llm as ours
from tinygrad_llm.autograd import (
    GradcheckError,
    InconclusiveError,
    Tensor,
    Verdict,
    apply,
    check_gradients,
    check_second_gradients,
    gradcheck,
    gradgradcheck,
    no_grad,
)
from tinygrad_llm.ops import REGISTRY, Op

OFF = (1e-3, 1e-2, 0.1, 0.5, 1.0)


def op_of(forward, vjp):
    """An op of one argument whose vjp says whatever it says."""
    record = Op("made up", lambda x: (forward(x), vjp(x)), REGISTRY["neg"].args, {}, "")
    return lambda x: apply(record, x)


def product(scale, off=0.0, entry=None):
    """scale · x eˣ, its gradient wrong by the fraction `off`, everywhere or at one entry."""
    def vjp(x):
        factor = np.ones(x.shape, x.dtype)
        factor[... if entry is None else entry] += x.dtype.type(off)
        return lambda g: (g * (scale * np.exp(x) * (1 + x)).astype(x.dtype) * factor,)

    return op_of(lambda x: (scale * x * np.exp(x)).astype(x.dtype) if x.dtype.kind == "f" else scale * x * np.exp(x), vjp)


def inputs(seed, dtype=np.float64, n=4):
    return Tensor.of(np.random.default_rng(seed).uniform(0.2, 2, n).astype(dtype), True)


@given(seed=st.integers(0, 2**32 - 1), off=st.sampled_from(OFF), sign=st.sampled_from([1, -1]),
       scale=st.sampled_from([1e-9, 1e-3, 1.0, 1e6, 1e12]), fast=st.booleans(), method=st.sampled_from(["central", "complex"]))
def test_float64_passes_the_right_and_fails_the_wrong_at_every_scale(seed, off, sign, scale, fast, method):
    options = {"fast_mode": fast, "method": method}
    assert check_gradients(product(scale), inputs(seed), **options).outcome == "pass"
    assert check_gradients(product(scale, sign * off), inputs(seed), **options).outcome == "fail"


@given(seed=st.integers(0, 2**32 - 1), off=st.sampled_from(OFF), entry=st.integers(0, 3))
def test_one_wrong_entry_is_found_and_named(seed, off, entry):
    verdict = check_gradients(product(1.0, off, entry), inputs(seed))
    assert verdict.outcome == "fail"
    assert f"output 0, input 0, entry ({entry}, {entry}): backward gives " in verdict.message
    assert verdict.error > verdict.tolerance


@given(seed=st.integers(0, 2**32 - 1), off=st.sampled_from((0.0, *OFF)), scale=st.sampled_from([1e-6, 1.0, 1e6]),
       eps=st.sampled_from([1e-6, 1e-4, 1e-2]), fast=st.booleans())
def test_float32_is_never_judged_wrongly(seed, off, scale, eps, fast):
    """With differences in float32 the answer may be that there is none; it is never the wrong one."""
    verdict = check_gradients(product(scale, off), inputs(seed, np.float32), eps=eps, fast_mode=fast)
    assert verdict.outcome in (("pass", "inconclusive") if off == 0 else ("fail", "inconclusive")), verdict


def test_float32_at_the_step_for_float64_is_inconclusive_and_says_why():
    message = r"noise or truncation of the differences may be .*, too much for a tolerance"
    with pytest.warns(UserWarning, match="float32, expected float64"), pytest.raises(InconclusiveError, match=message):
        gradcheck(product(1.0), inputs(0, np.float32))
    assert check_gradients(product(1.0, 1.0), inputs(0, np.float32)).outcome == "fail"


@pytest.mark.parametrize("off", OFF)
def test_the_complex_step_is_conclusive_in_float32_and_fine_in_float64(off):
    assert gradcheck(product(1.0), inputs(1, np.float32), method="complex")
    assert check_gradients(product(1.0, off), inputs(1, np.float32), method="complex").outcome == "fail"
    tight = {"method": "complex", "rtol": 1e-11, "atol": 1e-12}
    assert gradcheck(product(1.0), inputs(1), **tight)
    assert check_gradients(product(1.0, off * 1e-7), inputs(1), **tight).outcome == "fail"


def test_the_complex_step_goes_through_python_numbers_and_division():
    assert gradcheck(lambda x: (2.0 - x * 3) / 7 + 1 / x, inputs(0), method="complex", rtol=1e-10)


def test_a_function_without_complex_numbers_is_refused_or_inconclusive():
    with pytest.raises(ValueError, match="method: got 'complex' for a func that does not take complex numbers"):
        gradcheck(lambda x: Tensor.wrap(x.numpy().astype(np.float64)) * x, inputs(0), method="complex")
    modulus = op_of(lambda x: np.abs(x) * 2, lambda x: lambda g: (g * 2 * np.sign(x),))
    verdict = check_gradients(modulus, inputs(0), method="complex")
    assert verdict.outcome == "inconclusive"
    assert "complex step against differences" in verdict.message


@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([1e-9, 1e-8, 1e-6, 1e-4, 1.0]), off=st.sampled_from((0.0, *OFF)),
       fast=st.booleans())
def test_a_noisy_function_is_inconclusive_or_judged_rightly(seed, noise, off, fast):
    rng = np.random.default_rng(seed)
    noisy = op_of(lambda x: x * np.exp(x) + noise * rng.standard_normal(x.shape),
                  lambda x: lambda g: (g * np.exp(x) * (1 + x) * (1 + off),))
    outcome = check_gradients(noisy, inputs(seed), fast_mode=fast).outcome
    if off == 0 or noise >= 1e-4:
        assert outcome == "inconclusive"
    assert outcome != "pass"


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0])
def test_a_random_backward_fails_whatever_its_size_and_nondet_tol_forgives_it(size):
    rng = np.random.default_rng(0)
    random = op_of(np.sin, lambda x: lambda g: (g * np.cos(x) * (1 + size * rng.standard_normal(x.shape)),))
    with pytest.raises(GradcheckError, match="two backwards differ by"):
        gradcheck(random, inputs(0))
    verdict = check_gradients(random, inputs(0), nondet_tol=100.0)
    assert (verdict.outcome == "pass") == (size == 1e-12)


def test_a_gradient_of_zero_beside_others_passes_and_alone_is_inconclusive_below_the_noise():
    x, y = inputs(0), inputs(1)
    assert gradcheck(lambda x, y: (x * x).sum() + (y - y).sum() * 3, (x, y))
    assert gradcheck(lambda x: x.softmax(-1).sum() * 2 + (x * 3).sum(), x)
    assert gradcheck(lambda x: x.softmax(-1).sum(), x, atol=1e-5)
    assert check_gradients(lambda x: x.softmax(-1).sum() + 1e6, x).outcome == "inconclusive"


def test_a_step_that_does_not_move_the_input_is_inconclusive():
    x = Tensor.of(np.array([1e12, 2e12]), True)
    assert check_gradients(lambda x: x * 2, x).outcome == "inconclusive"
    assert gradcheck(lambda x: x * 2, x, eps=1e6)


def test_nan_and_infinity():
    nan = op_of(np.sin, lambda x: lambda g: (g * np.nan,))
    assert check_gradients(nan, inputs(0)).outcome == "fail"
    with np.errstate(all="ignore"):
        assert check_gradients(lambda x: x.log(), Tensor.of(np.array([0.0, 1.0]), True)).outcome != "pass"


@settings(max_examples=max(5, settings.default.max_examples // 10))
@given(seed=st.integers(0, 2**32 - 1), fast=st.booleans())
def test_several_inputs_and_outputs_and_gradgradcheck_as_torch(seed, fast):
    a, b = np.random.default_rng(seed).uniform(-1, 1, (2, 2, 3))
    f = lambda x, y: ((x * y).sin() * x, (x.exp() * y).sum(0))  # noqa: E731
    xs = (Tensor.of(a, True), Tensor.of(b, True))
    ts = (torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True))
    assert torch.autograd.gradcheck(f, ts, fast_mode=fast)
    assert torch.autograd.gradgradcheck(f, ts, fast_mode=fast)
    assert gradcheck(f, xs, fast_mode=fast)
    assert gradgradcheck(f, xs, fast_mode=fast)
    assert all(x.grad is None for x in xs)


@pytest.mark.parametrize("off", OFF)
def test_gradgradcheck_finds_a_gradient_that_is_right_and_a_second_that_is_not(off):
    """The vjp's value is right, but what it is made of is: its own derivative is off."""
    def vjp(x):
        slope = np.asarray(np.cos(np.asarray(x)))
        wrong = np.sin(x) * off - np.asarray(np.sin(np.asarray(x))) * off
        return lambda g: (g * (slope + wrong) if not hasattr(x, "grad") else g * (np.cos(x) + wrong),)

    f = op_of(np.sin, vjp)
    assert gradcheck(f, inputs(0))
    assert check_second_gradients(f, inputs(0)).outcome == "fail"
    assert gradgradcheck(op_of(np.sin, lambda x: lambda g: (g * np.cos(x),)), inputs(0))


def wrong(x):
    y = x.clone()
    y.register_hook(lambda g: g * 1.5)
    return y


def random_slope(x):
    y, rng = x.clone(), np.random.default_rng(0)
    y.register_hook(lambda g: g * (1 + 1e-4 * rng.random()))
    return y


def grows(m):
    return lambda x: m.cat([x, x]) if bool((x >= 1).all()) else x


def narrows(m):
    return lambda x: (x.to(m.float32 if m is torch else np.float32) if bool((x >= 1).all()) else x)


def raises(x):
    raise KeyError("mine")


ASKED = {
    "right": lambda m, f, x: f(lambda x: x * x, (x,)),
    "wrong": lambda m, f, x: f(wrong, (x,)),
    "wrong, no exception": lambda m, f, x: f(wrong, (x,), raise_exception=False),
    "a list, an argument that is no tensor, an output that does not depend": lambda m, f, x: f(
        lambda x, k, y: (x * k, y * x, m.tensor(1.0)), [x, 3, x]),
    "an input that is not used": lambda m, f, x: f(lambda x, y: y * y, (x, m.tensor(np.ones(2), requires_grad=True))),
    "no output": lambda m, f, x: f(lambda x: (), (x,)),
    "a constant": lambda m, f, x: f(lambda x: m.tensor(np.ones(2)), (x,)),
    "detached": lambda m, f, x: f(lambda x: x.detach() * 2, (x,)),
    "detached, no exception": lambda m, f, x: f(lambda x: x.detach() * 2, (x,), raise_exception=False),
    "shape depends on values": lambda m, f, x: f(grows(m), (x,)),
    "dtype depends on values": lambda m, f, x: f(narrows(m), (x,), raise_exception=False),
    "random": lambda m, f, x: f(random_slope, (x,), raise_exception=False),
    "its own error": lambda m, f, x: f(raises, (x,), raise_exception=False),
    "nothing requires grad": lambda m, f, x: f(lambda x: x, (x.detach(),), raise_exception=False),
    "expanded": lambda m, f, x: f(lambda x: x * 2, (x.detach()[:1].expand(3).requires_grad_(),)),
    "dtypes": lambda m, f, x: f(lambda x: x * x, (x,), check_grad_dtypes=True, check_undefined_grad=False, masked=True),
    "batched": lambda m, f, x: f(lambda x: (x * x, x.sum()), (x,), check_batched_grad=True),
    "no direction": lambda m, f, x: f(lambda x: x, (x,), check_backward_ad=False),
    "fast": lambda m, f, x: f(lambda x: x.exp(), (x,), fast_mode=True),
}


@pytest.mark.parametrize("call", ASKED.values(), ids=ASKED)
def test_gradcheck_answers_as_torchs(call):
    """True, False, or an error of torch's class."""
    def answer(m, gradcheck):
        x = m.tensor(np.ones(2), requires_grad=True)
        try:
            return call(m, gradcheck, x)
        except Exception as error:
            return error
        finally:
            assert x.grad is None

    mine, theirs = answer(ours, gradcheck), answer(torch, torch.autograd.gradcheck)
    if isinstance(theirs, Exception):
        assert isinstance(mine, RuntimeError if isinstance(theirs, RuntimeError) else type(theirs))
        assert isinstance(theirs, torch.autograd.gradcheck.__globals__["GradcheckError"]) <= isinstance(mine, GradcheckError)
    else:
        assert mine is theirs


def test_gradcheck_under_no_grad_is_refused_as_in_torch():
    with no_grad(), pytest.raises(GradcheckError, match="got no_grad"):
        gradcheck(lambda x: x * x, inputs(0))


def test_second_gradients_with_cotangents_that_have_gaps():
    for options in ({}, {"gen_non_contig_grad_outputs": True}, {"grad_outputs": inputs(1)}):
        assert gradgradcheck(lambda x: x**3, inputs(0), **options) is True
    assert gradgradcheck(lambda x: x.detach() * 0, inputs(0)) is True


def test_there_is_no_forward_mode_to_check():
    for options in ({"check_forward_ad": True}, {"check_batched_forward_grad": True}):
        with pytest.raises(NotImplementedError, match="gradcheck: check_forward_ad: got True, expected False"):
            gradcheck(lambda x: x, inputs(0), **options)
    with pytest.raises(NotImplementedError, match="gradgradcheck: check_forward_ad"):
        gradgradcheck(lambda x: x, inputs(0), check_fwd_over_rev=True)


def test_a_verdict_is_true_only_where_it_passed():
    assert [bool(Verdict(outcome, "", 0, 0, 0)) for outcome in ("pass", "fail", "inconclusive")] == [True, False, False]
    assert issubclass(InconclusiveError, GradcheckError)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: gradcheck(lambda x: x, Tensor.of(np.ones(2))), "inputs: got none that requires grad"),
    (lambda: gradcheck(lambda x: x, inputs(0), method="forward"), "method: got 'forward', expected"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"^gradcheck: {message}"):
        call()
