"""Is float32 as accurate as torch's: over many draws, at kinks, and where it is not."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

import tinygrad_llm
from reference.accuracy import SIZES, Accuracy, compare_accuracy, median_interval
from reference.activations import record_torch
from reference.bugs.patch import op_output
from reference.equivalence import compare_models, random_state, torch_model
from reference.neighbours import NEIGHBOURS
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.policy import Verdict

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CONFIG = TransformerConfig(11, 6, 8, 2, 1)
IDS = np.random.default_rng(0).integers(11, size=(3, 6))
SMALL = SIZES[:1]


def make(config, dtype):
    return tinygrad_llm.Transformer(config, dtype=dtype)


# many draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 8, 9, 12, 24])
def test_the_interval_holds_the_median_with_99_percent(n):
    """Of all 2ⁿ ways in which n draws fall below (0) and above (1) the median, at most 1 in 100 leaves it outside."""
    low, high = median_interval(range(n))
    if n < 8:
        assert (low, high) == (-math.inf, math.inf)
        return
    k = low + 1
    assert high == n - k
    chance = [math.comb(n, below) / 2**n for below in range(n + 1)]
    outside = [sum(p for below, p in enumerate(chance) if below < j or n - below < j) for j in (k, k + 1)]
    assert outside[0] <= 0.01 < outside[1]


def test_three_sizes_of_model_are_no_less_accurate_than_torch():
    found = compare_accuracy(make, CONFIG, draws=16)
    assert [row.size.name for row in found] == ["small", "default", "larger"]
    assert [len(row.ratios) for row in found] == [16, 16, 8]
    assert [str(row) for row in found if row.failed] == []
    assert max(row.median for row in found) <= 1


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"norm_position": "post", "positions": "learned"}])
def test_other_models_are_no_less_accurate_either(options):
    like = TransformerConfig(7, 5, 9, 3, 1, bias=False, **options)
    config = SMALL[0].config(like)
    assert (config.bias, config.activation, config.norm_position) == (False, like.activation, like.norm_position)
    assert not compare_accuracy(make, like, draws=12, sizes=SMALL)[0].failed


def test_arithmetic_that_is_less_accurate_is_called_so():
    """Each layer norm rounded to 22 bits of mantissa: within the policy in each draw, and seen in the median."""

    def coarse(out, *args, **options):
        return out + out.dtype.type(2.0**-22) * abs(out) if out.dtype == np.float32 else out

    with op_output("layer_norm", coarse)(tinygrad_llm):
        found = compare_accuracy(make, CONFIG, draws=12, sizes=SMALL)[0]
    assert found.worse == []
    assert (found.failed, found.verdict) == (True, "less accurate than torch")
    assert "small model (d_model 16): error " in str(found)


def test_the_verdict_is_the_interval_s_and_not_one_draw_s():
    def verdict(*ratios, worse=()):
        found = Accuracy(SIZES[0], 3, list(ratios), worse=list(worse))
        return found.verdict, found.failed

    assert verdict(*[1.05] * 12) == ("less accurate than torch", True)
    assert verdict(*[1.05] * 11, 0.9) == ("less accurate than torch", True)
    assert verdict(*[1.05] * 10, 0.9, 0.9) == ("as accurate as torch", False)
    assert verdict(*[0.95] * 11, 1000.0) == ("more accurate than torch", False)
    assert verdict(1.5, 1.5, 1.5) == ("too few draws", False)
    assert verdict(*[0.9] * 12, worse=["seed 3: grad x"]) == ("worse than torch", True)


# kinks ---------------------------------------------------------------------------------------------------------------


class Switched(tinygrad_llm.Transformer):
    """Ours with one bias moved by a few roundings in float32: the unit that it belongs to is on the other side of 0."""

    unit, by, gradient = 0, 0.0, 1.0

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if self.dtype == np.float32:
            self.blocks[0].ffn.up_proj.bias.detach()[self.unit] += self.by

    def loss(self, ids, targets):
        loss = super().loss(ids, targets)
        if self.dtype == np.float32:
            self.lm_head.weight.register_hook(lambda g: g * self.gradient)
        return loss


def sums_of_units(state, dtype):
    """What goes into the relu, [rows, units]."""
    found = record_torch(torch_model(CONFIG, state, dtype), torch.from_numpy(IDS))
    return found["blocks.0.ffn.up_proj"].reshape(-1, 32)


def weights_at_a_kink(seed):
    """Weights at which one relu unit is within rounding of 0; its row and number."""
    state = random_state(CONFIG, seed)
    z = sums_of_units(state, "float64")
    row, unit = np.unravel_index(np.argmin(np.abs(z)), z.shape)
    for _ in range(2):  # the second time removes the rounding of the first
        state["blocks.0.ffn.up_proj.bias"][unit] -= np.float32(sums_of_units(state, "float64")[row, unit])
    return state, (row, unit)


@pytest.fixture(scope="module")
def at_a_kink():
    """Such weights, torch's float32 on the right side of 0 by luck, and a step of the bias to the other side."""
    for state, at in map(weights_at_a_kink, range(50)):
        truth, narrow = (sums_of_units(state, dtype)[at] for dtype in ("float64", "float32"))
        if truth * narrow > 0:
            return state, at[1], -4e-7 * np.sign(truth)
    raise AssertionError("no weights at which torch is lucky")


def verdicts(state, unit, by, gradient=1.0, known=None):
    class Model(Switched):
        pass

    Model.unit, Model.by, Model.gradient = unit, by, gradient
    return compare_models(lambda dtype: Model(CONFIG, dtype=dtype), CONFIG, IDS, IDS[::-1], state, known=known)


def test_a_unit_that_rounding_switches_is_inconclusive(at_a_kink):
    known = {}
    rows = verdicts(*at_a_kink, known=known)
    assert [str(row) for row in rows if row.failed] == []
    assert Counter(row.verdict for row in rows)[Verdict.INCONCLUSIVE] >= 1
    assert 1 <= known["neighbours tried"] <= NEIGHBOURS
    assert "one rounding away" in next(row for row in rows if row.verdict == Verdict.INCONCLUSIVE).detail


def test_a_bug_beside_a_kink_is_still_a_bug(at_a_kink):
    rows = verdicts(*at_a_kink, gradient=np.float32(1.01))
    assert [row.name for row in rows if row.failed] == ["grad lm_head.weight"]


def test_no_neighbour_is_tried_where_nothing_failed():
    known = {}
    rows = compare_models(lambda dtype: make(CONFIG, dtype), CONFIG, IDS, IDS, known=known)
    assert all(row.passed for row in rows)
    assert "neighbours tried" not in known
    assert list(itertools.islice(known, 2)) == ["float64", "float32"]
