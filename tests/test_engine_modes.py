"""no_grad and anomaly mode: as blocks, as decorators, nested, through exceptions, one per thread."""

import asyncio
import inspect
import threading

import numpy as np
import pytest
import torch

import tinygrad_llm as tg
import tinygrad_llm.functions as F
from tinygrad_llm.autograd import (
    AnomalyError,
    AutogradError,
    apply,
    detect_anomaly,
    enable_grad,
    is_anomaly_enabled,
    is_grad_enabled,
    no_grad,
    set_detect_anomaly,
    set_grad_enabled,
)
from tinygrad_llm.functions import tensor
from tinygrad_llm.ops import REGISTRY, Op


def leaf(*values):
    return tensor(np.array(values or (1.0, 2.0, 3.0)), requires_grad=True)


def test_nothing_is_recorded_inside_no_grad():
    x = leaf()
    with no_grad():
        y = F.exp(x)
    assert (y.requires_grad, y.grad_fn, y.is_leaf) == (False, None, True)
    assert F.exp(x).requires_grad
    with pytest.raises(AutogradError, match="does not require grad"):
        F.sum(y).backward()


def test_modes_nest():
    with no_grad():
        with enable_grad():
            assert is_grad_enabled()
            assert F.exp(leaf()).requires_grad
        assert not is_grad_enabled()
        with set_grad_enabled(True):
            assert is_grad_enabled()
        with no_grad():
            pass
        assert not is_grad_enabled()
    assert is_grad_enabled()


@pytest.mark.parametrize(("mode", "asks"), [(no_grad, is_grad_enabled), (detect_anomaly, is_anomaly_enabled)])
def test_modes_are_restored_after_an_exception(mode, asks):
    def inside():
        with mode():
            assert asks() is not before
            raise KeyError

    before = asks()
    with pytest.raises(KeyError):
        inside()
    assert asks() is before


def test_modes_as_decorators_apply_at_each_call():
    @no_grad()
    def frozen(x, depth=2):
        assert not is_grad_enabled()
        return F.exp(x) if depth == 0 else frozen(x, depth - 1)

    @enable_grad()
    def recorded(x):
        return F.exp(x)

    for _ in range(2):
        assert not frozen(leaf()).requires_grad
        assert is_grad_enabled()
    with no_grad():
        assert recorded(leaf()).requires_grad


def test_modes_belong_to_their_thread():
    seen = {}

    def other():
        seen["grad"], seen["anomaly"] = is_grad_enabled(), is_anomaly_enabled()
        seen["recorded"] = F.exp(leaf()).requires_grad

    with no_grad(), detect_anomaly():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == {"grad": True, "anomaly": False, "recorded": True}


def test_backward_itself_records_nothing_and_works_inside_no_grad():
    seen = []
    spy = Op("spy", lambda x: (x * 2, lambda g: (seen.append(is_grad_enabled()) or g * 2,)), REGISTRY["neg"].args, {}, "")
    x = leaf()
    y = F.sum(apply(spy, x))
    with no_grad():
        y.backward()
    assert seen == [False]
    assert is_grad_enabled()
    assert not x.grad.requires_grad


def line_of(offset):
    """What anomaly mode says of a line of the caller: file and line, and its text."""
    frame = inspect.currentframe().f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno + offset}: "


@pytest.mark.parametrize(("values", "what"), [((-1.0, 1.0), "nan"), ((0.0, 1.0), "inf")])
def test_anomaly_mode_names_op_and_line_of_a_forward(values, what):
    x = leaf(*values)
    with np.errstate(all="ignore"), detect_anomaly():
        where = line_of(2)
        with pytest.raises(AnomalyError) as caught:
            F.log(x)
    assert str(caught.value) == f"forward of log gave {what}, called at {where}F.log(x)"


def test_anomaly_mode_names_op_and_line_of_the_forward_in_backward():
    x = leaf(0.0, 1.0)
    with np.errstate(all="ignore"), detect_anomaly():
        where = line_of(1)
        y = F.sqrt(x)
        with pytest.raises(AnomalyError) as caught:
            F.sum(y).backward()
    called = f"its forward was called at {where}y = F.sqrt(x)"
    assert str(caught.value) == f"backward of sqrt gave inf for argument 0; {called}"
    assert x.grad is None


def test_anomaly_mode_says_when_it_came_too_late_for_the_line():
    y = F.sum(F.sqrt(leaf(0.0, 1.0)))
    with np.errstate(all="ignore"), detect_anomaly(), pytest.raises(AnomalyError, match=r"backward of sqrt .* not known"):
        y.backward()


def test_without_anomaly_mode_nan_flows_on():
    x = leaf(-1.0, 1.0)
    with np.errstate(all="ignore"):
        F.sum(F.log(x)).backward()
    assert np.array_equal(x.grad.numpy(), [-1, 1])


def test_anomaly_mode_is_silent_where_all_is_finite():
    x = leaf()
    with detect_anomaly():
        F.sum(F.log(x) * F.softmax(x, -1)).backward()
    assert np.isfinite(x.grad.numpy()).all()


# As torch has them -----------------------------------------------------------------------------------------------------------


def asked(m):
    """What each way of setting the grad mode makes of it, in order."""
    s, on = [], m.is_grad_enabled

    @m.no_grad
    def bare():
        return on()

    @m.enable_grad()
    def steps(n):
        for _ in range(n):
            got = yield on()
            s.append((got, on()))
        return "end"

    def outer():
        s.append((yield from steps(2)))

    @m.set_grad_enabled(False)
    def never():
        return on()

    s += [bare(), never(), on()]
    with m.no_grad():
        s += [value for one in outer() for value in (one, on())]
        walk = steps(3)
        s += [next(walk), on(), walk.send(5), on()]
        walk.close()
    block = m.no_grad()
    for _ in range(2):
        with block:
            s.append(on())
        s.append(on())
    with m.set_grad_enabled(False):
        m.set_grad_enabled(True)
        s.append(on())
    s.append(on())
    m.set_grad_enabled(False)
    s.append(on())
    m.set_grad_enabled(True)
    with m.inference_mode():
        s += [on(), m.is_inference_mode_enabled()]
        with m.inference_mode(False):
            s += [on(), m.is_inference_mode_enabled()]
    return s, bare.__name__, steps.__name__


def test_blocks_decorators_and_statements_are_torchs():
    assert asked(tg) == asked(torch)


@pytest.mark.parametrize("mode", [1, None, "x", 0.0])
def test_a_mode_is_a_bool(mode):
    for m in (torch, tg):
        with pytest.raises(TypeError):
            m.set_grad_enabled(mode)
        assert m.is_grad_enabled()


def test_one_object_may_be_entered_inside_itself():
    """torch's own keeps one mode of before, and leaves recording off then."""
    block = no_grad()
    with block:
        with block:
            assert not is_grad_enabled()
        assert not is_grad_enabled()
    assert is_grad_enabled()


def test_coroutines_have_the_mode_while_they_run_and_their_callers_between():
    seen = []

    async def pause():
        await asyncio.sleep(0)
        seen.append(("other", is_grad_enabled()))

    @no_grad()
    async def work():
        for _ in range(2):
            seen.append(("work", is_grad_enabled()))
            await pause_apart()
        return is_grad_enabled()

    async def pause_apart():
        await asyncio.sleep(0)

    @no_grad
    async def numbers():
        try:
            for i in range(2):
                seen.append(("numbers", is_grad_enabled()))
                yield i
        finally:
            seen.append(("closed", is_grad_enabled()))

    async def main():
        found, _, _ = await asyncio.gather(work(), pause(), pause())
        async for _ in numbers():
            seen.append(("caller", is_grad_enabled()))
        return found

    assert asyncio.run(main()) is False
    assert {name: {on for n, on in seen if n == name} for name, _ in seen} == {
        "work": {False}, "other": {True}, "numbers": {False}, "caller": {True}, "closed": {False}}


def test_an_error_thrown_into_a_generator_reaches_it_with_its_mode():
    seen = []

    @no_grad()
    def catching():
        try:
            yield
        except KeyError:
            seen.append(is_grad_enabled())
            yield "caught"

    walk = catching()
    next(walk)
    assert walk.throw(KeyError()) == "caught"
    assert seen == [False]
    with pytest.raises(TypeError, match="decorate a class's methods"):
        no_grad(type("Some", (), {}))


def test_anomaly_mode_as_a_statement():
    x = leaf(0.0)
    y = F.sum(F.sqrt(x) * 0)
    set_detect_anomaly(True)
    try:
        with np.errstate(all="ignore"), pytest.raises(AnomalyError, match="backward of sqrt"):
            y.backward()
    finally:
        set_detect_anomaly(False)
    assert not is_anomaly_enabled()
