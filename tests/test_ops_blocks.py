"""Ops that work in blocks: shapes of several blocks, and small blocks under the ordinary checks of drawn calls."""

import numpy as np
import pytest
import torch
from opchecks import check_adjoint, check_float32, check_float64, judge32, judge64

from reference.opdraw import Seeded, Sizes, draw_call
from tinygrad_llm.ops import REGISTRY, losses
from tinygrad_llm.ops import attention as attention_module

LONG = Sizes(low=1, high=7, lead=(0, 1))


@pytest.fixture(params=[1, 2, 3])
def rows(request, monkeypatch):
    monkeypatch.setattr(attention_module, "_ROWS", request.param)


@pytest.mark.parametrize("seed", range(12))
def test_attention_in_blocks_of_few_rows(seed, rows):
    case = draw_call(REGISTRY["attention"], Seeded(seed), LONG, {"is_causal": True, "scale": (None, 0.3)[seed % 2]})
    assert [fail for check in (check_float64, check_float32, check_adjoint) for fail in check(case)] == []


SHAPES = [(63, 63), (64, 64), (65, 65), (128, 128), (200, 200), (130, 100), (100, 130), (192, 64), (150, 1), (1, 150)]


@pytest.mark.parametrize(("t", "s"), SHAPES)
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_of_several_blocks_is_torchs(t, s, is_causal):
    rng = np.random.default_rng(t + s)
    shapes = (2, t, 3, 8), (2, s, 3, 8), (2, s, 3, 5), (2, t, 3, 5)
    arrays = [rng.standard_normal(shape).astype(np.float32).transpose(0, 2, 1, 3) for shape in shapes]
    truth, ours = both(arrays, is_causal, np.float64)
    assert [fail for a, b in zip(ours, truth) for fail in judge64("attention", a, b)] == []
    theirs, ours = both(arrays, is_causal, np.float32)
    assert [fail for a, b, c in zip(ours, theirs, truth) for fail in judge32("attention", a, b, c)] == []


def both(arrays, is_causal, dtype):
    """(torch's, ours): output and gradients under the cotangent that is the last of the arrays."""
    *args, g = [a.astype(dtype) for a in arrays]
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=is_causal)
    theirs = [out, *torch.autograd.grad(out, tensors, torch.tensor(g))]
    mine, vjp = REGISTRY["attention"](*args, is_causal=is_causal)
    return [a.detach().numpy() for a in theirs], [mine, *vjp(g)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_ten_thousand_in_every_block_are_exact(dtype):
    """Each row looks at the position with its own sign alone, however far its largest score is from other rows'."""
    t = 200
    sign = np.where(np.arange(t) % 3 == 0, 1, -1).astype(dtype)
    query = sign[:, None] * np.array([1e4, 0], dtype) * np.sqrt(dtype(2))
    key = np.stack([sign * (1 + np.arange(t) / t), np.zeros(t)], 1).astype(dtype)
    value = np.arange(2 * t).reshape(t, 2).astype(dtype)
    found = REGISTRY["attention"](query, key, value, is_causal=True)[0]
    seen = np.where(sign[:, None] == sign, np.arange(t), -1)
    seen[np.arange(t)[:, None] < np.arange(t)] = -1
    np.testing.assert_allclose(found, value[seen.max(1)], rtol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("few", [0, 2**20])
@pytest.mark.parametrize("large", [10.0, 100.0, np.inf, np.nan])
def test_a_row_with_large_scores_changes_no_bit_of_the_others(monkeypatch, large, few, is_causal):
    """Whether the largest score is taken out of a row is for that row alone to say."""
    monkeypatch.setattr(attention_module, "_FEW", few)
    q, k, v, g = np.random.default_rng(0).standard_normal((4, 2, 130, 8)).astype(np.float32)
    other = q.copy()
    other[1, 70] *= large
    with np.errstate(invalid="ignore"):
        (out, vjp), (changed, changed_vjp) = (REGISTRY["attention"](x, k, v, is_causal=is_causal) for x in (q, other))
        (dq, *_), (changed_dq, *_) = vjp(g), changed_vjp(g)
    for a, b in ((out, changed), (dq, changed_dq)):
        assert not np.array_equal(a[1, 70], b[1, 70])
        b[1, 70] = a[1, 70]
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("part", [0.9, 0.999, 1.001, 1.1, 2.9])
def test_scores_about_the_limit_are_torchs(part, dtype):
    """A third of what overflows: below, e^score is taken as it is; above, the largest is taken out first."""
    rng, t = np.random.default_rng(0), 70
    limit = attention_module._limit(np.dtype(dtype))
    key = np.stack([np.ones(t), *rng.standard_normal((3, t))], -1)
    query = np.concatenate([rng.choice([-2, 2], (t, 1)) * limit * part, np.zeros((t, 3))], -1)  # scores ± limit · part
    arrays = [query[None], key[None], rng.standard_normal((1, t, 4)), rng.standard_normal((1, t, 4))]
    for is_causal in (True, False):
        truth, ours = both(arrays, is_causal, np.float64)
        assert [fail for a, b in zip(ours, truth) for fail in judge64("attention", a, b)] == []
        theirs, ours = both(arrays, is_causal, np.float32)
        assert [fail for a, b, c in zip(ours, theirs, truth) for fail in judge32("attention", a, b, c)] == []


def test_a_row_that_looks_at_one_position_has_no_gradient_of_scores():
    """dS of the first row cancels exactly: the query's gradient there is 0, not rounding noise."""
    rng = np.random.default_rng(0)
    q, k, v, g = rng.standard_normal((4, 3, 130, 8)).astype(np.float32)
    dq, _, _ = REGISTRY["attention"](q, k, v, is_causal=True)[1](g)
    assert not dq[:, 0].any()
    assert dq[:, 1:].any(-1).all()


@pytest.fixture(params=[1, 2, 3])
def columns(request, monkeypatch):
    width = request.param
    monkeypatch.setattr(losses, "_chunks", lambda n, v: [(a, min(a + width, v)) for a in range(0, v, width)])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("seed", range(6))
def test_linear_cross_entropy_in_chunks_of_few_classes(seed, reduction, columns):
    options = {"ignore_index": (-100, 0)[seed % 2], "reduction": reduction}
    case = draw_call(REGISTRY["linear_cross_entropy"], Seeded(seed), Sizes(low=1, high=8, none=2), options)
    if np.isfinite(case.op(*case.args, **options)[0]).all():
        assert [fail for check in (check_float64, check_float32, check_adjoint) for fail in check(case)] == []


@pytest.mark.parametrize(("n", "v"), [(3, 700), (100, 20000), (5000, 600), (2048, 512), (2048, 513)])
def test_linear_cross_entropy_over_several_chunks_is_torchs(n, v):
    rng = np.random.default_rng(n)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((n, 6), (v, 6), (v,))]
    target = np.where(rng.random(n) < 0.1, -100, rng.integers(0, v, n))
    truth, ours = both_losses(arrays, target, np.float64)
    assert [fail for a, b in zip(ours, truth) for fail in judge64("loss", a, b)] == []
    theirs, ours = both_losses(arrays, target, np.float32)
    assert [fail for a, b, c in zip(ours, theirs, truth) for fail in judge32("loss", a, b, c)] == []


def both_losses(arrays, target, dtype):
    """(torch's, ours): the mean loss, and the gradients of its product with the number of rows."""
    x, weight, bias = args = [a.astype(dtype) for a in arrays]
    tensors = [torch.tensor(a, requires_grad=True) for a in args]
    out = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*tensors), torch.tensor(target))
    theirs = [out, *torch.autograd.grad(out, tensors, torch.tensor(len(target), dtype=out.dtype))]
    mine, vjp = REGISTRY["linear_cross_entropy"](x, weight, target, bias)
    dx, dw, _, db = vjp(np.asarray(len(target), dtype))
    return [a.detach().numpy() for a in theirs], [np.asarray(mine), dx, dw, db]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [1e4, 50.0])
def test_logits_far_apart_in_different_chunks_are_exact(dtype, far, columns):
    """The target's chunk may be e^-10000 of another: its p is 0, its gradient p − 1 all the same."""
    x, target = np.array([[1.0, 0], [-1.0, 0], [1.0, 1]]), np.array([5, 5, 0])
    weight = np.array([[-far, 1], [0, 2], [far, 0], [0, 1], [0, 3], [-far, 0], [far, 1]])
    bias = np.array([0, 0, 0, -np.inf, -np.inf, 0, 0])
    truth, _ = both_losses([x, weight, bias], target, np.float64)
    theirs, ours = both_losses([x, weight, bias], target, dtype)
    judged = judge64 if dtype == np.float64 else judge32
    for a, b, c in zip(ours, theirs, truth):
        assert judged("loss", a, *((c,) if dtype == np.float64 else (b, c))) == []
