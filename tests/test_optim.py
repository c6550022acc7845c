"""AdamW, clipping and schedules against torch.optim, over drawn settings."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_llm
from reference.equivalence import compare_float32, compare_float64
from tinygrad_llm import nn
from tinygrad_llm.checkpoint import load_checkpoint, save_checkpoint
from tinygrad_llm.nn import Parameter
from tinygrad_llm.optim import (
    AdamW,
    WarmupCosine,
    clip_grad_norm_,
    clip_grad_value_,
    decay_groups,
    get_total_norm,
    warmup_cosine,
)
from tinygrad_llm.training import Trainer

SHAPES = [(3, 4), (5,), (), (2, 3, 2), (1, 1), (0, 3)]
SETTINGS = {
    "lr": st.sampled_from([0.0, 1e-4, 1e-3, 1e-2, 0.1]),
    "betas": st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.9, 0.999])),
    "eps": st.sampled_from([1e-8, 1e-6, 1e-2]),
    "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
    "amsgrad": st.booleans(),
    "maximize": st.booleans(),
}
settings_of_a_group = st.fixed_dictionaries({}, optional=SETTINGS)


@st.composite
def trajectories(draw):
    """Settings, parameter groups with settings of their own, and gradients per step: None where one is missing."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    cut = draw(st.integers(0, len(shapes)))
    groups = [g for g in ((shapes[:cut], draw(settings_of_a_group)), (shapes[cut:], draw(settings_of_a_group))) if g[0]]
    steps = draw(st.integers(1, 8))
    present = [[draw(st.sampled_from([True, True, True, False])) for _ in shapes] for _ in range(steps)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    start = [rng.standard_normal(shape) for shape in shapes]
    scales = 10.0 ** rng.integers(-4, 3, steps)
    grads = [[np.asarray(rng.standard_normal(shape) * scale) if there else None for shape, there in zip(shapes, row)]
             for row, scale in zip(present, scales)]
    return draw(st.fixed_dictionaries(SETTINGS)), groups, start, grads


def grouped(parameters, groups):
    left = iter(parameters)
    return [{"params": [next(left) for _ in shapes], **settings} for shapes, settings in groups]


def set_grads(parameters, grads, dtype):
    for p, g in zip(parameters, grads):
        p.grad = None if g is None else tinygrad_llm.tensor(g.astype(dtype))


def ours(settings, groups, start, grads, dtype):
    parameters = [Parameter(a, dtype=dtype) for a in start]
    optimizer = AdamW(grouped(parameters, groups), **settings)
    for row in grads:
        set_grads(parameters, row, dtype)
        optimizer.step()
    return [p.numpy() for p in parameters]


def theirs(settings, groups, start, grads, dtype):
    dtype = getattr(torch, dtype)
    parameters = [torch.nn.Parameter(torch.tensor(a, dtype=dtype)) for a in start]
    optimizer = torch.optim.AdamW(grouped(parameters, groups), **settings)
    for row in grads:
        for p, g in zip(parameters, row):
            p.grad = None if g is None else torch.tensor(g, dtype=dtype)
        optimizer.step()
    return parameters


@given(trajectories())
def test_adamw_goes_where_torch_goes(drawn):
    truth = theirs(*drawn, "float64")
    for a, b in zip(ours(*drawn, "float64"), truth):
        assert (row := compare_float64(a, b)).passed, row


@given(trajectories())
def test_adamw_in_float32_is_no_less_accurate_than_torch(drawn):
    settings, groups, start, grads = drawn
    start = [a.astype(np.float32) for a in start]
    grads = [[None if g is None else g.astype(np.float32) for g in row] for row in grads]
    drawn = settings, groups, start, grads
    truth = theirs(*drawn, "float64")
    for a, b, t in zip(ours(*drawn, "float32"), theirs(*drawn, "float32"), truth):
        assert (row := compare_float32(a, b, t)).passed, row


@pytest.mark.parametrize(("beta", "wanted"), [(0.0, 1e-7), (0.5, 500.0), (0.25, 250.0)])
def test_a_large_gradient_before_does_not_hide_a_small_one_where_the_first_beta_is_small(beta, wanted):
    p = Parameter(np.ones(1, np.float32))
    optimizer = AdamW([p], betas=(beta, 0.9))
    optimizer.state[p] = {"step": 1, "exp_avg": np.float32([1e3]), "exp_avg_sq": np.ones(1, np.float32)}
    p.grad = tinygrad_llm.tensor(np.float32([1e-7]))
    optimizer.step()
    np.testing.assert_allclose(optimizer.state[p]["exp_avg"], np.float32([wanted]), rtol=1e-6)


def test_torchs_defaults():
    default = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).defaults
    for name, value in AdamW([Parameter(np.zeros(1))]).defaults.items():
        assert default[name] == value, name


@given(trajectories(), st.sampled_from(["float32", "float64"]), st.integers(0, 8), st.sampled_from(["dict", "file", "Fortran"]))
def test_a_saved_state_goes_on_with_the_same_bits(tmp_path_factory, drawn, dtype, cut, way):
    settings, groups, start, grads = drawn
    whole = ours(settings, groups, start, grads, dtype)

    first = [Parameter(a, dtype=dtype) for a in start]
    optimizer = AdamW(grouped(first, groups), **settings)
    for row in grads[:cut]:
        set_grads(first, row, dtype)
        optimizer.step()
    saved = optimizer.state_dict()
    frozen = copy.deepcopy(saved)
    if way == "Fortran":  # the same numbers, column by column in memory
        saved["state"] = {i: {name: np.asarray(value, order="F") if isinstance(value, np.ndarray) else value
                              for name, value in state.items()} for i, state in saved["state"].items()}
    if way == "file":
        path = tmp_path_factory.mktemp("adamw") / "state.safetensors"
        save_checkpoint(path, {}, {"optimizer": saved})
        saved = load_checkpoint(path)[1]["optimizer"]

    second = [Parameter(p.numpy().copy()) for p in first]
    other = AdamW([{"params": g["params"]} for g in grouped(second, groups)], lr=0.7)
    other.load_state_dict(saved)
    for row in grads[cut:]:
        set_grads(second, row, dtype)
        other.step()
    for a, b in zip(second, whole):
        assert a.numpy().tobytes() == b.tobytes()
        assert a.dtype == np.dtype(dtype)
    assert_same_tree(frozen, optimizer.state_dict())  # the copy's steps did not reach the original


@pytest.mark.parametrize("m", [tinygrad_llm, torch], ids=["ours", "torch"])
def test_a_loaded_state_has_groups_of_its_own(m):
    optimizer = m.optim.AdamW(m.nn.Linear(2, 2).parameters())
    (group,), saved = optimizer.param_groups, optimizer.state_dict()
    optimizer.load_state_dict(saved)
    group["lr"] = saved["param_groups"][0]["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert optimizer.param_groups[0]["params"][0] is group["params"][0]


@pytest.mark.parametrize(("state", "error", "message"), [
    (3, TypeError, "state_dict: got int, expected a dict"), ({}, KeyError, "state_dict: got none under the name param_groups"),
    ({"param_groups": []}, KeyError, "state_dict: got none under the name state"),
])
def test_what_is_no_state_is_refused(state, error, message):
    with pytest.raises(error, match=f"^AdamW: {message}"):
        AdamW([Parameter(np.ones(1))]).load_state_dict(state)


def assert_same_tree(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same_tree(a[key], b[key])
    elif isinstance(a, np.ndarray):
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b


def test_a_state_that_does_not_fit_is_refused_and_nothing_changed():
    def stepped(*shapes):
        parameters = [Parameter(np.ones(shape)) for shape in shapes]
        optimizer = AdamW(parameters, lr=0.1)
        set_grads(parameters, [np.ones(shape) for shape in shapes], "float64")
        optimizer.step()
        return optimizer

    optimizer = stepped((2, 3))
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, expected \[1\]"):
        optimizer.load_state_dict(stepped((2, 3), (4,)).state_dict())
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0: got shape \(3, 2\), expected \(2, 3\)"):
        optimizer.load_state_dict(stepped((3, 2)).state_dict())
    stray = stepped((2, 3)).state_dict()
    stray["state"][7] = stray["state"].pop(0)
    with pytest.raises(ValueError, match="parameter 7"):
        optimizer.load_state_dict(stray)
    assert_same_tree(before, optimizer.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1e-3}, "lr: got -0.001"),
        ({"lr": math.nan}, "lr: got nan"),
        ({"lr": math.inf}, "lr: got inf"),
        ({"lr": "0.1"}, "lr: got '0.1'"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]: got 1.0"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\]: got -0.1"),
        ({"betas": (0.9,)}, r"betas: got \(0.9,\)"),
        ({"betas": 0.9}, "betas: got 0.9"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1"),
        ({"weight_decay": None}, "weight_decay: got None"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=f"^AdamW: {message}, expected ") as error:
        AdamW([Parameter(np.ones(2))], **settings)
    assert "\n" not in str(error.value)


def test_parameters_that_cannot_be_are_refused():
    p = Parameter(np.ones(2))
    with pytest.raises(ValueError, match="params: got none"):
        AdamW([])
    with pytest.raises(ValueError, match="twice"):
        AdamW([p, p])
    with pytest.raises(ValueError, match="twice"):
        AdamW([{"params": [p]}, {"params": p}])
    with pytest.raises(TypeError, match=r"params\[0\]: got ndarray"):
        AdamW([np.ones(2)])
    for error in (TypeError, ValueError):
        with pytest.raises(error, match="expected a leaf"):
            AdamW([p * 2])
    with pytest.raises(ValueError, match="setting 'momentum'"):
        AdamW([{"params": [p], "momentum": 0.9}])


def test_zero_grad():
    p = Parameter(np.ones(2))
    optimizer = AdamW([p])
    p.grad = tinygrad_llm.tensor(np.ones(2))
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0, 0]
    optimizer.zero_grad()
    assert p.grad is None


GROUPS = {
    "one parameter": lambda m, p, q: m.optim.AdamW(p), "one dict": lambda m, p, q: m.optim.AdamW({"params": [p]}),
    "two groups": lambda m, p, q: m.optim.AdamW([{"params": [p]}, {"params": [p]}]),
    "a dict, then a parameter": lambda m, p, q: m.optim.AdamW([{"params": [p]}, q]),
    "a parameter, then a dict": lambda m, p, q: m.optim.AdamW([p, {"params": [q]}]),
    "no params": lambda m, p, q: m.optim.AdamW([{"lr": 1.0}]),
    "a set in a group": lambda m, p, q: m.optim.AdamW([{"params": {p}}]),
    "a list as a group": lambda m, p, q: m.optim.AdamW([p]).add_param_group([q]),
    "none": lambda m, p, q: m.optim.AdamW(iter([])),
    "a str": lambda m, p, q: m.optim.AdamW([p, "x"]), "not a leaf": lambda m, p, q: m.optim.AdamW([p * 2]),
    "two ways": lambda m, p, q: m.optim.AdamW([p], foreach=True, fused=True),
}


@pytest.mark.parametrize("call", GROUPS.values(), ids=GROUPS)
def test_groups_that_cannot_be_are_refused_as_in_torch(call):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        call(torch, *[torch.nn.Parameter(torch.ones(n)) for n in (2, 3)])
    with pytest.raises(theirs.type, match=r"^['\"]?AdamW: ") as ours:
        call(tinygrad_llm, *[Parameter(np.ones(n)) for n in (2, 3)])
    assert ", expected " in str(ours.value)


def test_a_set_is_refused():
    with pytest.raises(TypeError, match="params: got a set, expected a list"):
        AdamW({Parameter(np.ones(2))})


def test_torchs_ways_to_compute_a_step():
    p = Parameter(np.ones(2))
    for ways in ({"foreach": True}, {"fused": True}, {"foreach": False, "fused": None}, {"capturable": False}):
        assert AdamW([p], **ways).state_dict() == AdamW([p]).state_dict()
        assert AdamW([{"params": [p], **ways}]).state_dict() == AdamW([p]).state_dict()
    for way in ("capturable", "differentiable"):
        with pytest.raises(ValueError, match=rf"{way}: got True, expected one of .*: a step here is no graph"):
            AdamW([p], **{way: True})


@pytest.mark.parametrize("record", [True, False])
def test_a_closure_runs_with_recording_and_its_loss_is_returned(record):
    def run(m, p):
        optimizer, losses = m.optim.AdamW([p], lr=0.1), []

        def closure():
            optimizer.zero_grad()
            loss = (p * p).sum()
            loss.backward()
            return loss

        with m.set_grad_enabled(record):
            losses = [float(optimizer.step(closure)) for _ in range(3)]
        assert optimizer.step() is None
        return losses, p.tolist()

    ours, theirs = run(tinygrad_llm, Parameter(np.ones(2))), run(torch, torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
    for a, b in zip(ours, theirs):
        assert a == pytest.approx(b, rel=1e-12)


def test_the_state_of_a_parameter_is_found_by_the_parameter():
    p = Parameter(np.ones(2))
    optimizer = AdamW([p])
    assert p not in optimizer.state
    p.grad = tinygrad_llm.tensor(np.ones(2))
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


# Clipping -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4), st.floats(0.01, 100), st.integers(0, 2**32 - 1),
    st.floats(-6, 6), st.booleans(),
)
def test_clipping_is_torchs(shapes, max_norm, seed, exponent, skip_first):
    rng = np.random.default_rng(seed)
    grads = [np.asarray(rng.standard_normal(shape) * 10**exponent) for shape in shapes]
    mine = [Parameter(np.zeros(shape)) for shape in shapes]
    others = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    for p, q, g in list(zip(mine, others, grads))[skip_first:]:
        p.grad, q.grad = tinygrad_llm.tensor(g), torch.tensor(g)
    norm, expected = clip_grad_norm_(mine, max_norm), torch.nn.utils.clip_grad_norm_(others, max_norm)
    assert norm.item() == pytest.approx(float(expected), rel=1e-12)
    for p, q in zip(mine, others):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-10, atol=1e-300)


def test_a_small_gradient_keeps_its_bits_and_no_limit_is_allowed():
    p, g = Parameter(np.zeros(3)), np.array([0.1, -0.2, 0.3])
    p.grad = tinygrad_llm.tensor(g.copy())
    for limit in (1.0, math.inf):
        assert float(clip_grad_norm_([p], limit)) == pytest.approx(np.linalg.norm(g))
        assert p.grad.numpy().tobytes() == g.tobytes()


def test_clipping_refuses_what_cannot_be():
    p = Parameter(np.zeros(2))
    p.grad = tinygrad_llm.tensor(np.array([np.inf, 1.0]))
    with pytest.raises(RuntimeError, match="norm of inf, expected a finite one"):
        clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm: got"):
            clip_grad_norm_([p], bad)


def both_with(grads, dtype):
    """Parameters of ours and of torch's with these gradients."""
    ours = [Parameter(np.zeros(g.shape, dtype)) for g in grads]
    theirs = [torch.nn.Parameter(torch.zeros(g.shape, dtype=getattr(torch, dtype))) for g in grads]
    for p, q, g in zip(ours, theirs, grads):
        p.grad, q.grad = tinygrad_llm.tensor(g.astype(dtype)), torch.tensor(g.astype(dtype))
    return ours, theirs


@pytest.mark.parametrize("norm_type", [1, 2, 3.5, math.inf, 0, -1, -math.inf, "inf", 0.5])
def test_every_norm_is_torchs(norm_type):
    grads = [np.random.default_rng(i).standard_normal((3, i + 1)) for i in range(3)]
    ours, theirs = both_with(grads, "float64")
    norm = clip_grad_norm_(ours, 0.5, norm_type, foreach=True)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.5, norm_type)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-12)
    total = torch.nn.utils.get_total_norm([torch.tensor(g) for g in grads], norm_type).item()
    assert get_total_norm([tinygrad_llm.tensor(g) for g in grads], norm_type).item() == pytest.approx(total, rel=1e-12)
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-10)


def test_one_tensor_is_one_parameter():
    for call, wanted in ((lambda p: clip_grad_norm_(p, 1.0), 24.494897), (lambda p: clip_grad_value_(p, 4.0), None)):
        (p,), _ = both_with([np.full((2, 3), 10.0)], "float32")
        norm = call(p)
        assert norm is None if wanted is None else norm.item() == pytest.approx(wanted)
        np.testing.assert_allclose(p.grad.numpy(), 4.0 if wanted is None else 6**-0.5, rtol=1e-6)
    assert get_total_norm(tinygrad_llm.tensor([3.0, 4.0])).item() == 5


def test_the_norm_is_a_tensor_and_a_number():
    (p,), _ = both_with([np.array([3.0, 4.0])], "float32")
    norm = clip_grad_norm_([p], 10.0)
    assert (f"{norm:.2f}", float(norm), norm.item(), norm > 4, math.isfinite(norm)) == ("5.00", 5.0, 5.0, True, True)
    assert clip_grad_norm_([], 1.0).item() == 0
    with pytest.warns(UserWarning, match="got an iterator that gives none"):
        clip_grad_norm_(iter([]), 1.0)


def test_values_are_clipped_as_in_torch():
    for limit in (1, 0.25, -1):
        ours, theirs = both_with([np.array([[3.0, -4.0, 0.5]]), np.array([0.1, np.inf])], "float32")
        assert clip_grad_value_(ours, limit) is torch.nn.utils.clip_grad_value_(theirs, limit)
        assert [p.grad.tolist() for p in ours] == [q.grad.tolist() for q in theirs]


@pytest.mark.parametrize("make", [lambda n: np.random.default_rng(0).standard_normal(n, dtype=np.float32),
                                  lambda n: np.full(n, 0.1, np.float32)])
@pytest.mark.parametrize("n", [20_000_000, 1_000_003, 16_385])
def test_the_norm_of_many_float32_is_right(make, n):
    """At 20 million torch's own is off by 1e-3 (randn), and one np.dot by 5e-5; ours adds rows of 1,024 in float64."""
    g = make(n)
    truth = math.sqrt(math.fsum(float(np.dot(b, b)) for b in np.array_split(g.astype(np.float64), 1000)))
    assert abs(get_total_norm(tinygrad_llm.from_numpy(g)).item() / truth - 1) < 6e-8
    assert abs(tinygrad_llm.linalg.vector_norm(tinygrad_llm.from_numpy(g)).item() / truth - 1) < 1.2e-7


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e30), ("float32", 1e-30), ("float16", 300.0), ("float16", 1e-4)])
def test_squares_beyond_the_dtype_do_not_spoil_the_norm(dtype, size):
    g = np.full(90_000, size, dtype)
    assert get_total_norm([tinygrad_llm.from_numpy(g)]).item() == pytest.approx(300 * float(g[0]), rel=1e-6)


def test_clipping_in_eager_and_in_recorded_steps_uses_one_norm():
    """More elements than one block, so that the blocks must be the same too."""
    config = tinygrad_llm.TransformerConfig(2000, 8, 64, 2, 1)
    ids, found = np.arange(16).reshape(2, 8), []
    for capture in (False, True):
        model = tinygrad_llm.Transformer(config)
        with Trainer(model, AdamW(model.parameters()), grad_clip=1e-3, capture=capture) as trainer:
            trainer.step(ids, ids + 1)
            found.append((trainer.grad_norm, model.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


# Schedules ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10), st.integers(1, 30), st.floats(0, 1), st.lists(st.floats(1e-5, 1), min_size=1, max_size=2))
def test_warmup_cosine_is_its_formula_and_torchs_lambda_lr(warmup, total, ratio, lrs):
    def factor(t):
        if t < warmup:
            return (t + 1) / warmup
        if t >= total:
            return ratio
        return ratio + (1 - ratio) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2

    schedule = WarmupCosine(AdamW([{"params": [Parameter(np.ones(1))], "lr": lr} for lr in lrs]), warmup, total, ratio)
    others = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs]
    optimizer = torch.optim.AdamW(others)
    theirs = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for t in range(total + 3):
        assert schedule.get_last_lr() == pytest.approx(theirs.get_last_lr(), rel=1e-12, abs=1e-15)
        assert schedule.get_last_lr()[0] == pytest.approx(lrs[0] * factor(t), rel=1e-12, abs=1e-15)
        assert warmup_cosine(t, lrs[0], warmup, total, lrs[0] * ratio) == schedule.get_last_lr()[0]
        schedule.step()
        optimizer.step()
        theirs.step()


@given(st.integers(0, 20))
def test_a_schedule_goes_on_where_it_was_saved(cut):
    def fresh():
        return WarmupCosine(AdamW([Parameter(np.ones(1))], lr=0.3), 5, 20)

    whole, first = fresh(), fresh()
    for _ in range(cut):
        whole.step()
        first.step()
    second = fresh()
    second.load_state_dict(first.state_dict())
    for _ in range(25 - cut):
        assert second.get_last_lr() == whole.get_last_lr()
        whole.step()
        second.step()


@pytest.mark.parametrize("arguments", [(-1, 10), (0, 0), (1, 10, 1.5), (1, 10, -0.1)])
def test_schedules_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match=r"^WarmupCosine: got warmup_steps="):
        WarmupCosine(AdamW([Parameter(np.ones(1))]), *arguments)


def test_decay_groups_leave_biases_and_norms_alone():
    class Net(nn.Module):
        def __init__(self):
            self.linear, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

    net = Net()
    decayed, rest = decay_groups(net, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(net.linear.weight)]
    assert decayed["weight_decay"] == 0.1
    assert {id(p) for p in rest["params"]} == {id(net.linear.bias), id(net.norm.weight), id(net.norm.bias)}
    assert rest["weight_decay"] == 0.0
    assert len(decay_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
