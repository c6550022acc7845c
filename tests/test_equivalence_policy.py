"""The policy itself is tested: seeded bugs must be refused, correct but rounded results accepted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from reference.equivalence import (
    Comparison,
    Verdict,
    compare_float32,
    compare_float64,
    compare_models,
    compare_training,
    geometric_mean_ratio,
    random_state,
)
from reference.model import Transformer
from reference.report import format_losses, format_rows, format_summary, print_report
from tinygrad_llm.config import TransformerConfig

SHAPE = (4, 6)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def draw(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def dropped(x):
    x = x.copy()
    x.flat[np.argmax(np.abs(x))] = 0.0
    return x


BUGS = {
    "zero": np.zeros_like,
    "negate": np.negative,
    "x 1.001": lambda x: (x * 1.001).astype(x.dtype),
    "reverse": lambda x: x[::-1],
    "roll": lambda x: np.roll(x, 1, axis=-1),
    "one entry dropped": dropped,
    "one row for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "transpose": lambda x: x.T,
    "a row too few": lambda x: x[:-1],
    "an axis too many": lambda x: x[None],
    "NaN": lambda x: np.where(x == x.max(), np.nan, x).astype(x.dtype),
    "infinity": lambda x: np.where(x == x.max(), np.inf, x).astype(x.dtype),
    "integers": lambda x: x.astype(np.int64),
}
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("bug", BUGS)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_every_seeded_bug_is_refused_in_both_dtypes(bug, seed):
    truth = draw(seed)
    theirs = truth.astype(np.float32)
    assert not compare_float64(BUGS[bug](truth), truth).passed
    assert not compare_float32(BUGS[bug](theirs), theirs, truth).passed


@settings(max_examples=50, deadline=None)
@given(seed=seeds, log_size=st.integers(-6, 6))
def test_another_order_of_the_same_sum_is_equal(seed, log_size):
    size = 10.0**log_size
    narrow = (size * draw(seed, (64, 5))).astype(np.float32)
    wide = narrow.astype(np.float64)
    assert compare_float64(wide[::-1].cumsum(0)[-1], wide.sum(0), scale=size).passed
    assert compare_float32(narrow[::-1].cumsum(0)[-1], narrow.sum(0), wide.sum(0), scale=size).passed


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_right_dtype_is_asked_for(seed):
    truth = draw(seed)
    narrow = truth.astype(np.float32)
    assert "got float32, expected float64" in compare_float64(narrow, truth).detail
    assert "got float64, expected float32" in compare_float32(truth, narrow, truth).detail
    assert compare_float32(narrow, truth, truth).verdict == Verdict.MISMATCH
    assert compare_float32(narrow, narrow, narrow).verdict == Verdict.MISMATCH


def test_float64_tolerance_is_what_it_says():
    for value in (0.5, 1e6, 1e-9):
        allowed = 1e-11 + 1e-10 * value
        assert compare_float64(np.array(value + 0.9 * allowed), np.array(value)).verdict == Verdict.EQUAL
        assert compare_float64(np.array(value + 1.1 * allowed), np.array(value)).verdict == Verdict.DIFFERENT
    assert not compare_float64(np.array(0.5 + 6e-11), np.array(0.5), scale=1e-3).passed


def test_float32_tolerance_is_what_it_says():
    def verdict(error, torch_error, scale=1.0):
        truth = np.array([0.25, 8.0])
        x, y = ((truth + np.array([e, 0.0])).astype(np.float32) for e in (error, torch_error))
        return compare_float32(x, y, truth, scale=scale).verdict

    assert verdict(2.4e-5, 0.0) == Verdict.EQUAL  # 2e-5 (1 + 0.25) = 2.5e-5
    assert verdict(2.6e-5, 0.0) == Verdict.WORSE
    assert verdict(-2.6e-5, 1e-5) == Verdict.NO_WORSE
    assert verdict(1e-2, 2.4e-3) == Verdict.WORSE
    assert verdict(1e-2, 2.6e-3) == Verdict.NO_WORSE
    assert verdict(1.4e-5, 0.0, scale=0.5) == Verdict.EQUAL
    assert verdict(1.6e-5, 0.0, scale=0.5) == Verdict.WORSE


def test_the_report_says_which_entry_was_worst():
    truth = draw(0)
    ours = truth.copy()
    ours[2, 3] += 1
    row = compare_float64(ours, truth, "x")
    assert row.detail.startswith("at (2, 3): got ")
    assert row.error == pytest.approx(1 / (1 + abs(truth[2, 3])))
    assert str(row).startswith("x (float64): different, error ")


def test_errors_and_ratio():
    truth = np.array([1.0, 3.0])
    row = compare_float32(np.float32([1 + 2**-16, 3]), np.float32([1, 3 + 2**-16]), truth)
    assert (row.error, row.torch_error, row.ratio) == (2**-17, 2**-18, 2.0)
    exact = compare_float32(truth.astype(np.float32), truth.astype(np.float32), truth)
    assert (exact.error, exact.torch_error, exact.ratio) == (0.0, 0.0, 1.0)


def test_no_ratio_where_the_truth_is_zero_and_only_the_absolute_part():
    truth, theirs = np.array([1e-17, -3e-18]), np.array([1e-4, 0], np.float32)
    small = compare_float32(np.array([1e-5, 0], np.float32), theirs, truth)
    assert (small.verdict, small.ratio) == (Verdict.EXACTLY_ZERO, None)
    assert compare_float32(np.array([5e-5, 0], np.float32), theirs, truth).verdict == Verdict.WORSE
    assert compare_float64(np.array([5e-12, 0]), truth).verdict == Verdict.EXACTLY_ZERO
    assert compare_float64(np.array([5e-11, 0]), truth).verdict == Verdict.DIFFERENT


def test_nan_and_infinity_where_torch_has_them():
    truth = np.array([1.0, np.nan, np.inf, -np.inf])
    assert compare_float64(truth.copy(), truth).verdict == Verdict.EQUAL
    for wrong in ([1.0, np.nan, -np.inf, -np.inf], [1.0, 0.0, np.inf, -np.inf], [np.nan, np.nan, np.inf, -np.inf]):
        row = compare_float64(np.array(wrong), truth)
        assert (row.verdict, row.error) == (Verdict.MISMATCH, math.inf)
        assert not compare_float32(np.float32(wrong), np.float32(truth), truth).passed
    assert compare_float32(np.float32(truth), np.float32(truth), truth).verdict == Verdict.EQUAL
    assert not compare_float64(np.array([2.0, np.nan, np.inf, -np.inf]), truth).passed


def test_overflow_as_torch_does_or_better_but_not_alone():
    truth = np.array([1e39, 2.0])
    infinite, finite = np.float32([np.inf, 2.0]), np.float32([3e38, 2.0])
    assert compare_float32(infinite, infinite, truth).passed
    assert not compare_float32(infinite, finite, truth).passed
    assert compare_float32(np.float32([1e30, 2.0]), infinite, np.array([1e30, 2.0])).passed
    assert not compare_float32(np.float32([1e30, 2.1]), infinite, np.array([1e30, 2.0])).passed


def test_torch_tensors_lists_scalars_and_nothing():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert compare_float64([1.0, 1.0, 1.0], x).passed
    assert compare_float64(np.float64(2.0), torch.tensor(2.0, dtype=torch.float64)).passed
    assert compare_float32(x.float(), np.ones(3, np.float32), x).passed
    assert compare_float64(np.zeros((0, 3)), np.zeros((0, 3))).verdict == Verdict.EQUAL
    row = compare_float32(np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0))
    assert (row.verdict, row.ratio) == (Verdict.EQUAL, None)
    assert not compare_float64(np.zeros((0, 3)), np.zeros((0, 4))).passed


def test_geometric_mean_ratio():
    rows = [Comparison("x", "float32", Verdict.EQUAL, 0.0, 0.0, ratio) for ratio in (0.5, 8.0, 2.0, None)]
    assert geometric_mean_ratio(rows) == pytest.approx(2.0)
    assert math.isnan(geometric_mean_ratio(rows[3:]))


class Twin(Transformer):
    """Another implementation with our interface: NumPy outside, unfused attention and a plain softmax inside."""

    def __init__(self, config, dtype, bug=None):
        super().__init__(config, dtype=getattr(torch, np.dtype(dtype).name))
        self.bug, self.wide = bug, dtype == np.float64

    def load_state_dict(self, state):
        super().load_state_dict({name: torch.tensor(value) for name, value in state.items()})

    def __call__(self, ids):
        with sdpa_kernel(SDPBackend.MATH):
            return self.forward(torch.as_tensor(ids))

    def loss(self, ids, targets):
        p = torch.softmax(self(ids), -1)
        loss = -p.gather(-1, torch.as_tensor(targets)[..., None]).log().mean()
        for name, parameter in self.named_parameters():
            if self.bug and name == self.bug[0]:
                parameter.register_hook(self.bug[1])
        return loss


CONFIG = TransformerConfig(11, 6, 8, 2, 2)


def batches(count=1, config=CONFIG, shape=(3, 6)):
    rng = np.random.default_rng(5)
    return [tuple(rng.integers(0, config.vocab_size, (2, *shape))) for _ in range(count)]


def compare(config=CONFIG, bug=None, shape=(3, 6), **options):
    return compare_models(lambda dtype: Twin(config, dtype, bug), config, *batches(1, config, shape)[0], **options)


@pytest.mark.parametrize(
    "options", [{}, {"norm_position": "post", "tie_embeddings": True, "positions": "learned"}, {"bias": False}]
)
def test_a_correct_model_is_equal(options):
    config = TransformerConfig(11, 6, 8, 2, 2, **options)
    rows = compare(config)
    assert all(row.passed for row in rows), format_summary(rows)
    names = [row.name for row in rows if row.dtype == "float32"]
    assert names[:3] == ["logits", "loss", "grad tok_embed.weight"]
    assert len(rows) == 2 * len(names) == 2 * len(set(names))
    zero = {row.name for row in rows if row.verdict == Verdict.EXACTLY_ZERO}
    assert zero == ({f"grad blocks.{i}.attn.qkv_proj.bias[k]" for i in (0, 1)} if config.bias else set())


def key_bias_leak(g):
    return g + torch.nn.functional.pad(torch.full((8,), 1e-4, dtype=g.dtype), (8, 8))


@pytest.mark.parametrize(
    ("name", "hook", "row"),
    [
        ("blocks.0.norm1.weight", lambda g: g * 1.001, "grad blocks.0.norm1.weight"),
        ("blocks.1.ffn.up_proj.weight", lambda g: g.flip(0), "grad blocks.1.ffn.up_proj.weight"),
        ("tok_embed.weight", lambda g: g * 0, "grad tok_embed.weight"),
        ("blocks.0.attn.qkv_proj.bias", key_bias_leak, "grad blocks.0.attn.qkv_proj.bias[k]"),
    ],
)
def test_a_wrong_gradient_is_found_by_name_in_both_dtypes(name, hook, row):
    failed = [(r.name, r.dtype) for r in compare(bug=(name, hook)) if not r.passed]
    assert failed == [(row, "float64"), (row, "float32")]


def test_given_weights_are_used():
    state = random_state(CONFIG, seed=9)
    assert [r.error for r in compare(state=state)] == [r.error for r in compare(seed=9)] != [r.error for r in compare()]


def test_models_with_other_parameters_are_refused():
    other = TransformerConfig(11, 6, 8, 2, 3)
    with pytest.raises((ValueError, RuntimeError), match=r"blocks\.2"):
        compare_models(lambda dtype: Twin(other, dtype), CONFIG, *batches()[0])


def train(make_optimizer=torch.optim.AdamW, config=CONFIG, count=20, shape=(3, 6), **settings):
    steps = batches(count, config, shape)
    return compare_training(lambda dtype: Twin(config, dtype), make_optimizer, config, steps, settings)


@pytest.mark.parametrize("settings", [{}, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}, {"amsgrad": True}])
def test_the_same_training_is_equal(settings):
    result = train(**settings)
    assert result.passed, format_summary(result.rows)
    assert {len(values) for values in result.losses.values()} == {20}
    noise = [row for row in result.rows if row.name.endswith("[zero gradient]")]
    assert [row.verdict for row in noise] == [Verdict.EXACTLY_ZERO] * 2


def test_training_on_single_tokens_where_queries_and_keys_have_no_gradient():
    result = train(shape=(3, 1))
    assert result.passed, format_summary(result.rows)


@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_is_sure_of_its_answer_has_noisy_gradients_and_is_equal_all_the_same(seed):
    config = TransformerConfig(2, 2, 32, 4, 2, tie_embeddings=True)
    state = random_state(config, seed)
    state["tok_embed.weight"] = state["lm_head.weight"] = state["lm_head.weight"] * np.float32(32**0.5)
    rows = compare(config, shape=(1, 2), state=state)
    assert all(row.passed for row in rows), format_summary(rows)


@pytest.mark.parametrize(
    "change", [{"lr": 1.001e-3}, {"betas": (0.9, 0.9995)}, {"betas": (0.901, 0.999)}, {"weight_decay": 0.0}]
)
def test_another_training_is_refused_in_both_dtypes(change):
    result = train(lambda parameters, **settings: torch.optim.AdamW(parameters, **(settings | change)))
    assert {row.dtype for row in result.rows if not row.passed} == {"float64", "float32"}


def test_a_small_change_of_eps_is_refused_in_float64():
    result = train(lambda parameters, **settings: torch.optim.AdamW(parameters, **(settings | {"eps": 2e-8})))
    assert sum(not row.passed for row in result.rows if row.dtype == "float64") > 20


def test_the_table():
    good = compare_float32(np.float32([1.0]), np.float32([1.0]), np.array([1.0]), "a long name")
    rows = [compare_float64(np.ones(1), np.ones(1), "a long name"), good, compare_float64(np.ones(1), np.zeros(1), "b")]
    header, first, second = format_rows(rows).splitlines()
    assert header.split() == ["float64", "error", "float32", "error", "torch's", "ratio"]
    assert first.split() == ["a", "long", "name", "0.0e+00", "equal", "0.0e+00", "0.0e+00", "1.00", "equal"]
    assert second.split() == ["b", "1.0e+00", "different"]
    assert first.index("0.0e+00") == second.index("1.0e+00")
    assert "\x1b" not in format_rows(rows)
    assert format_rows(rows, colour=True).splitlines()[2].startswith("\x1b[31m")
    summary = format_summary(rows).splitlines()
    assert summary[0] == "2 of 3 comparisons pass; float32 error, ours / torch's: geometric mean 1.00"
    assert summary[1] == "FAILED  b (float64): different, error 1; at (0,): got 1.0, expected 0.0"


def test_the_report_of_a_training(capsys):
    result = train(count=3)
    lines = format_losses(result.losses).splitlines()
    assert lines[0].split("  ")[0] == "step"
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    print_report(compare(), result)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "comparisons pass" in printed.splitlines()[-1]
