"""Trainer.step: one step is torch's loop, in parts or in one, and a step that cannot be taken changes nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.bridge import load_numpy_state
from reference.model import Transformer as Reference
from tinygrad_llm import Transformer, TransformerConfig
from tinygrad_llm.nn import Parameter
from tinygrad_llm.optim import AdamW, WarmupCosine, clip_grad_norm_, decay_groups, warmup_cosine
from tinygrad_llm.training import Trainer

CONFIG = TransformerConfig(11, 6, 8, 2, 1)


def batch(rows=5, seed=0, ignored=0.0):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, 11, (rows, 6)), rng.integers(0, 11, (rows, 6))
    targets[rng.random(targets.shape) < ignored] = -100
    return ids, targets


def trainer(dtype=np.float64, **options):
    model = Transformer(CONFIG, seed=1, dtype=dtype)
    return Trainer(model, AdamW(model.parameters(), lr=1e-2), **options)


def weights(trainer):
    return {name: value.copy() for name, value in trainer.model.state_dict().items()}


def test_a_step_is_the_loop_that_one_would_write():
    auto, model = trainer(grad_clip=0.3), Transformer(CONFIG, seed=1, dtype=np.float64)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for seed in range(4):
        optimizer.zero_grad()
        loss = model.loss(*batch(seed=seed))
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        assert auto.step(*batch(seed=seed)) == loss.item()
        assert auto.grad_norm == norm
    assert auto.steps_done == 4
    for name, value in model.state_dict().items():
        assert value.tobytes() == weights(auto)[name].tobytes(), name


@given(st.integers(1, 9), st.integers(2, 12), st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 1000))
def test_accumulated_parts_are_the_whole_batch(rows, parts, ignored, seed):
    ids, targets = batch(rows, seed, ignored)
    targets[0, 0] = 3  # at least one counts
    whole, split = trainer(), trainer(accumulate=parts)
    losses, norms = [], []
    for each in (whole, split):
        losses.append(each._gradients(ids, targets))
        norms.append(each._clip())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert norms[1] == pytest.approx(norms[0], rel=1e-10)
    for (name, a), (_, b) in zip(split.model.named_parameters(), whole.model.named_parameters()):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-10, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("parts", [2, 3, 5, 50])
def test_accumulated_steps_go_where_whole_steps_go(parts):
    whole, split = trainer(grad_clip=0.5), trainer(grad_clip=0.5, accumulate=parts)
    for seed in range(6):
        ids, targets = batch(7, seed, 0.2)
        assert split.step(ids, targets) == pytest.approx(whole.step(ids, targets), rel=1e-10)
    for name, value in weights(split).items():
        np.testing.assert_allclose(value, weights(whole)[name], rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"accumulate": 2}, {"workers": 2, "start_method": "spawn"}], ids=str)
def test_fast_programs_go_where_eager_steps_go(options):
    eager, fast = trainer(np.float32), trainer(np.float32, capture="fast", **options)
    with fast:
        for seed in range(4):
            ids, targets = batch(7, seed, 0.2)
            assert fast.step(ids, targets) == pytest.approx(eager.step(ids, targets), rel=1e-5)
            assert fast.grad_norm == pytest.approx(eager.grad_norm, rel=1e-4)
    for name, value in weights(fast).items():
        np.testing.assert_allclose(value, weights(eager)[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_norm_of_a_captured_step_is_there_when_it_is_asked_for():
    eager, captured = trainer(), trainer(capture=True)
    assert math.isnan(captured.grad_norm)
    for seed in range(3):
        eager.step(*batch(seed=seed))
        captured.step(*batch(seed=seed))
        if seed != 1:
            assert captured.grad_norm == captured.grad_norm == eager.grad_norm
    captured.step(*batch(seed=3))
    captured.close()
    eager.step(*batch(seed=3))
    assert captured.grad_norm == eager.grad_norm


def test_the_schedule_sets_the_rate_of_each_step():
    model = Transformer(CONFIG, seed=1)
    optimizer = AdamW(model.parameters(), lr=0.1)
    scheduled = Trainer(model, optimizer, schedule=WarmupCosine(optimizer, 2, 10, 0.0))
    rates = []
    for _ in range(4):
        scheduled.step(*batch())
        rates.append(scheduled.lr)
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1 * (1 + math.cos(math.pi / 8)) / 2])


def test_the_gradient_of_a_frozen_parameter_does_not_pile_up():
    model = Transformer(CONFIG, seed=1)
    rest = [p for name, p in model.named_parameters() if name != "tok_embed.weight"]
    part = Trainer(model, AdamW(rest))
    part.step(*batch())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_what_is_not_finite_stops_before_anything_is_changed(what):
    failing = trainer(grad_clip=1.0)
    failing.step(*batch())
    state, optimizer = weights(failing), failing.optimizer.state_dict()
    loss = failing.model.loss

    def bad(ids, targets):
        out = loss(ids, targets)
        if what == "loss":
            return out * math.nan
        return out + (failing.model.final_norm.weight.sum() * 0).sqrt()  # √0 = 0, with a slope that is not finite

    failing.model.loss = bad
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=f"^step 2: got a {what} of (nan|inf)") as told:
        failing.step(*batch())
    assert "weights and optimizer are those of step 1" in str(told.value)
    assert failing.steps_done == 1
    for name, value in weights(failing).items():
        assert value.tobytes() == state[name].tobytes()
    after = failing.optimizer.state_dict()
    assert all(after["state"][i]["step"] == optimizer["state"][i]["step"] for i in after["state"])
    assert all(p.grad is None for p in failing.model.parameters())


def test_a_model_learns_the_given_sample():
    ids, targets = np.array([[1, 5, 2, 6, 3, 7, 4, 8]]), np.array([[5, 2, 6, 3, 7, 4, 8, 9]])
    model = Transformer(TransformerConfig(10, 8, 16, 2, 1), seed=0)
    with Trainer(model, AdamW(model.parameters(), lr=1e-2)) as learning:
        losses = [learning.step(ids, targets) for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]
    assert (model(ids).numpy().argmax(-1) == targets).all()


def test_torchs_training_mode_is_left_to_the_caller():
    each = trainer()
    each.model.eval()
    each.step(*batch())
    assert not each.model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grad_clip": 0.0}, "grad_clip: got 0.0, expected a number > 0"),
        ({"grad_clip": -1.0}, "grad_clip: got -1.0"),
        ({"grad_clip": math.nan}, "grad_clip: got nan"),
        ({"accumulate": 0}, "accumulate: got 0, expected an integer >= 1"),
        ({"accumulate": 2.0}, "accumulate: got 2.0"),
        ({"capture": "quick"}, "capture: got 'quick', expected True, False or 'fast'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        trainer(**options)


@pytest.mark.parametrize("options", [{"capture": True}, {"workers": 2}])
def test_parameters_that_share_memory_are_not_moved_apart(options):
    model = Transformer(CONFIG)
    names = [name for name, p in model.named_parameters() if p.ndim == 1][:2]
    path, _, name = names[1].rpartition(".")
    setattr(model.get_submodule(path), name, Parameter(model.get_parameter(names[0]).detach()))
    with Trainer(model, AdamW(model.parameters()), **options) as each, pytest.raises(ValueError, match="that share memory"):
        each.step(*batch())


def test_what_is_no_model_and_no_optimizer_is_refused():
    model = Transformer(CONFIG)
    with pytest.raises(TypeError, match=r"^model: got list, expected a module with loss"):
        Trainer([], AdamW(model.parameters()))
    with pytest.raises(TypeError, match=r"^optimizer: got generator"):
        Trainer(model, model.parameters())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_that_does_not_fit_is_refused(accumulate):
    each = trainer(accumulate=accumulate)
    ids, targets = batch()
    for bad in ((ids, targets[:, :-1]), (ids + 100, targets), (ids.astype(float), targets), (ids[0], targets[0])):
        with pytest.raises((ValueError, IndexError, TypeError)) as told:
            each.step(*bad)
        assert "\n" not in str(told.value)
    assert each.steps_done == 0


def test_torch_takes_the_same_steps():
    model = Transformer(CONFIG, seed=1, dtype=np.float64)
    optimizer = AdamW(decay_groups(model, 0.1), lr=1e-2)
    ours = Trainer(model, optimizer, schedule=WarmupCosine(optimizer, 3, 8), grad_clip=0.5, accumulate=2)
    theirs = Reference(CONFIG, dtype=torch.float64)
    load_numpy_state(theirs, model.state_dict())
    groups = [{"params": [p for p in theirs.parameters() if (p.dim() > 1) == wide], "weight_decay": 0.1 * wide}
              for wide in (True, False)]
    adamw = torch.optim.AdamW(groups, lr=1e-2)
    for step in range(8):
        ids, targets = batch(5, seed=step)
        for group in adamw.param_groups:
            group["lr"] = warmup_cosine(step, 1e-2, 3, 8, 1e-3)
        adamw.zero_grad()
        loss = theirs.loss(torch.tensor(ids), torch.tensor(targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adamw.step()
        assert ours.step(ids, targets) == pytest.approx(loss.item(), rel=1e-9)
