"""nn.functional against torch.nn.functional over drawn shapes and options: outputs and gradients in float64, float32 judged."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_llm as tg
from reference.equivalence import compare_float32, compare_float64
from reference.neighbours import excused
from tinygrad_llm.nn import functional as F

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 5)


def results(function, backend, arrays, cotangent, dtype):
    """Output and gradients of function(backend's tensors), the cotangent drawn in float64 and cast."""
    if backend is torch:
        tensors = [torch.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
        out = function(TF, *tensors)
        out.backward(torch.tensor(cotangent(tuple(out.shape)).astype(dtype)))
    else:
        tensors = [tg.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
        out = function(F, *tensors)
        out.backward(cotangent(out.shape).astype(dtype))
    return [out, *[t.grad for t in tensors]]


def check(function, *arrays, seed=0):
    """function(F, *tensors) is the same in both libraries."""
    noise = np.random.default_rng(seed + 1).standard_normal(10_000)

    def cotangent(shape):
        return noise[: int(np.prod(shape))].reshape(shape)

    def named(backend, arrays, dtype):
        return {f"result {i}": a for i, a in enumerate(results(function, backend, arrays, cotangent, dtype))}

    def near(moved, dtype):
        return named(torch, list(moved.values()), np.dtype(dtype))

    truth, ours, theirs32, ours32 = (named(b, arrays, t) for t in (np.float64, np.float32) for b in (torch, tg))
    assert [str(row) for n in truth if not (row := compare_float64(ours[n], truth[n], n)).passed] == []
    rows = [compare_float32(ours32[n], theirs32[n], truth[n], n) for n in truth]
    inputs = {str(i): a for i, a in enumerate(arrays)}
    assert [str(row) for row in excused(rows, inputs, near, dict.fromkeys(truth, 1.0), {}) if row.failed] == []


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def both(backend, array):
    """An integer or boolean array as the backend's own tensor."""
    return torch.tensor(array) if backend is TF else array


@given(seed=SEEDS, lead=st.lists(SIZES, max_size=3), n=SIZES, m=SIZES, bias=st.booleans())
def test_linear(seed, lead, n, m, bias):
    check(lambda f, *a: f.linear(*a), *draw(seed, (*lead, n), (m, n), *[(m,)] * bias), seed=seed)


@given(seed=SEEDS, lead=st.lists(SIZES, max_size=2), shape=st.lists(st.integers(2, 4), min_size=1, max_size=2),
       affine=st.booleans())
def test_layer_norm(seed, lead, shape, affine):
    arrays = draw(seed, (*lead, *shape), *[tuple(shape)] * 2 * affine)
    check(lambda f, x, *wb: f.layer_norm(x, tuple(shape), *wb), *arrays, seed=seed)


@given(seed=SEEDS, shape=st.lists(SIZES, min_size=1, max_size=3), data=st.data(), log=st.booleans())
def test_softmax_along_any_axis(seed, shape, data, log):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    check(lambda f, x: (f.log_softmax if log else f.softmax)(x, dim), *draw(seed, tuple(shape)), seed=seed)


@given(seed=SEEDS, lead=st.lists(SIZES, max_size=2), vocab=st.integers(1, 6), d=SIZES)
def test_embedding_adds_repeated_rows(seed, lead, vocab, d):
    ids = np.random.default_rng(seed).integers(0, vocab, lead)
    check(lambda f, w: f.embedding(both(f, ids), w), *draw(seed, (vocab, d)), seed=seed)


@given(seed=SEEDS, n=SIZES, classes=st.integers(1, 6), extra=st.lists(SIZES, max_size=2), weighted=st.booleans(),
       ignored=st.booleans(), reduction=st.sampled_from(["mean", "sum", "none"]), smoothing=st.sampled_from([0.0, 0.1, 1.0]))
def test_cross_entropy_of_class_indices(seed, n, classes, extra, weighted, ignored, reduction, smoothing):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (n, *extra))
    if ignored and target.size > 1:
        target.flat[0] = -100
    weight = rng.uniform(0.5, 2, classes)
    def function(f, x):
        w = both(f, weight.astype(str(x.dtype).removeprefix("torch."))) if weighted else None
        return f.cross_entropy(x, both(f, target), w, reduction=reduction, label_smoothing=smoothing)
    check(function, *draw(seed, (n, classes, *extra)), seed=seed)


@given(seed=SEEDS, n=SIZES, classes=st.integers(2, 6), extra=st.lists(SIZES, max_size=1), weighted=st.booleans(),
       reduction=st.sampled_from(["mean", "sum", "none"]), smoothing=st.sampled_from([0.0, 0.1]))
def test_cross_entropy_of_probabilities(seed, n, classes, extra, weighted, reduction, smoothing):
    rng = np.random.default_rng(seed)
    target = np.moveaxis(rng.dirichlet(np.ones(classes), (n, *extra)), -1, 1)
    weight = rng.uniform(0.5, 2, classes)
    def function(f, x):
        dtype = str(x.dtype).removeprefix("torch.")
        w = both(f, weight.astype(dtype)) if weighted else None
        return f.cross_entropy(x, both(f, target.astype(dtype)), w, reduction=reduction, label_smoothing=smoothing)
    check(function, *draw(seed, (n, classes, *extra)), seed=seed)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_when_every_target_is_ignored(reduction):
    x, target = np.random.default_rng(0).standard_normal((3, 4)), np.full(3, -100)
    ours, theirs = tg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    a = F.cross_entropy(ours, target, reduction=reduction)
    b = TF.cross_entropy(theirs, torch.tensor(target), reduction=reduction)
    np.testing.assert_array_equal(a.numpy(), b.detach().numpy())
    a.backward()
    b.backward()
    np.testing.assert_array_equal(ours.grad.numpy(), theirs.grad.numpy())


def test_scores_of_ten_thousand_are_exact():
    x = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    check(lambda f, x: f.cross_entropy(x, both(f, np.array([1, 1]))), x)
    q, k, v = (s * a for s, a in zip((1e2, 1e2, 1), draw(3, (1, 4, 8), (1, 4, 8), (1, 4, 8))))
    check(lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0), q, k, v)


@given(seed=SEEDS, lead=st.lists(SIZES, max_size=2), t=SIZES, s=SIZES, d=SIZES, e=SIZES,
       mask=st.sampled_from(["none", "causal", "bool", "float"]), scale=st.sampled_from([None, 0.7]))
def test_attention_under_every_mask(seed, lead, t, s, d, e, mask, scale):
    rng = np.random.default_rng(seed)
    hidden = rng.random((t, s)) < 0.6
    def function(f, q, k, v):
        options = {"scale": scale, "is_causal": mask == "causal"}
        if mask == "bool":
            options["attn_mask"] = both(f, hidden)
        if mask == "float":
            added = np.where(hidden, -np.inf, rng.standard_normal((t, s)) * 0 + 0.5)
            options["attn_mask"] = both(f, added.astype(str(q.dtype).removeprefix("torch.")))
        return f.scaled_dot_product_attention(q, k, v, **options)
    check(function, *draw(seed, (1, *lead, t, d), (1, *lead, s, d), (1, *lead, s, e)), seed=seed)


def test_attention_with_dropout_is_attention_in_expectation():
    q, k, v = draw(0, (1, 4, 6, 8), (1, 4, 6, 8), (1, 4, 6, 8))
    generator = np.random.default_rng(0)
    runs = [F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, is_causal=True, generator=generator).numpy()
            for _ in range(4000)]
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True).numpy()
    assert np.abs(np.mean(runs, 0) - exact).max() < 0.08
    assert np.std(runs, 0).max() > 0.1


def test_dropout_scales_what_it_keeps():
    x = tg.ones(200, 500, requires_grad=True)
    out = F.dropout(x, 0.25, True, generator=np.random.default_rng(0))
    kept = out.numpy() != 0
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(out.numpy()[kept], 1 / 0.75, rtol=1e-6)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), out.numpy())
    assert F.dropout(x, 0.25, False) is x
    assert not F.dropout(x, 1.0, True, generator=np.random.default_rng(0)).numpy().any()


BAD = [
    (lambda: F.linear(np.ones((2, 3)), tg.ones(4, 5, dtype=np.float64)), ValueError, "weight"),
    (lambda: F.linear(np.ones((2, 3), np.float32), tg.ones(4, 3, dtype=np.float64)), TypeError, "weight"),
    (lambda: F.layer_norm(tg.ones(2, 3), 4), ValueError, "normalized_shape"),
    (lambda: F.layer_norm(tg.ones(2, 3), 3, tg.ones(2)), ValueError, "weight"),
    (lambda: F.embedding(np.array([0, 3]), tg.ones(3, 2)), IndexError, "ids"),
    (lambda: F.embedding(np.array([-1]), tg.ones(3, 2)), IndexError, "ids"),
    (lambda: F.embedding(np.array([0.5]), tg.ones(3, 2)), TypeError, "ids"),
    (lambda: F.cross_entropy(tg.ones(2, 3), np.array([0, 3])), IndexError, "target"),
    (lambda: F.cross_entropy(tg.ones(2, 3), np.array([0, 1, 2])), ValueError, "target"),
    (lambda: F.cross_entropy(tg.ones(2, 3), np.array([0, 1]), reduction="avg"), ValueError, "reduction"),
    (lambda: F.cross_entropy(tg.ones(2, 3), np.array([0, 1]), label_smoothing=2), ValueError, "label_smoothing"),
    (lambda: F.cross_entropy(tg.ones(2, 3), np.array([0, 1]), tg.ones(2)), ValueError, "weight"),
    (lambda: F.dropout(tg.ones(2), 1.5), ValueError, "p"),
    (lambda: F.dropout(tg.ones(2), 0.5, generator=3), TypeError, "generator"),
    (lambda: F.gelu(tg.ones(2), "quick"), ValueError, "approximate"),
    (lambda: F.scaled_dot_product_attention(tg.ones(2, 3), tg.ones(2, 4), tg.ones(2, 3)), ValueError, "key"),
    (lambda: F.scaled_dot_product_attention(tg.ones(2, 3), tg.ones(4, 3), tg.ones(2, 3)), ValueError, "value"),
    (lambda: F.scaled_dot_product_attention(*[tg.ones(2, 3)] * 3, attn_mask=np.ones((2, 2), bool), is_causal=True),
     ValueError, "attn_mask"),
    (lambda: F.softmax(tg.ones(2, 3), 2), IndexError, "dim"),
]


@pytest.mark.parametrize(("call", "error", "argument"), BAD)
def test_bad_input_is_one_line_that_names_the_argument(call, error, argument):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert f"{argument}: got" in message
    assert "expected" in message
    assert "\n" not in message


LOSSES = {
    "mse_loss": lambda m, F: F.mse_loss(m.ones(2), m.ones(2, 1)),
    "mse_loss number": lambda m, F: F.mse_loss(m.ones(2), m.ones(())),
    "mse_loss weight": lambda m, F: F.mse_loss(m.ones(2, 2), m.ones(2), weight=m.ones(2, 2)),
    "mse_loss alike": lambda m, F: F.mse_loss(m.ones(2), m.ones(2)), "kl_div": lambda m, F: F.kl_div(m.ones(2), m.ones(2)),
    "kl_div batchmean": lambda m, F: F.kl_div(m.ones(2), m.ones(2), reduction="batchmean"),
    "kl_div sum": lambda m, F: F.kl_div(m.ones(2), m.ones(2), reduction="sum"),
    "kl_div of two sizes": lambda m, F: F.kl_div(m.ones(2), m.ones(2, 1), reduction="sum"),
}


@pytest.mark.parametrize("call", LOSSES.values(), ids=LOSSES)
def test_losses_warn_where_torchs_do(call):
    found = []
    for m, functional in ((tg, F), (torch, torch.nn.functional)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(m, functional)
        found.append([w.category for w in caught])
        assert all(w.filename == __file__ for w in caught) or m is torch
    assert found[0] == found[1]


def test_the_warning_names_both_sizes():
    with pytest.warns(UserWarning, match=r"^mse_loss: target: got size \(2, 1\), expected that of input, \(2,\)"):
        F.mse_loss(tg.ones(2), tg.ones(2, 1))


def test_dropout_takes_arrays_and_numbers():
    for x in (np.ones(200, np.float32), [1.0] * 200, tg.ones(200)):
        assert set(F.dropout(x, 0.5).tolist()) == {0, 2}
