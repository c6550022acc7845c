"""Half precision: float16 is added up in float32, and only the result is rounded; bfloat16, which NumPy cannot compute with, is
refused by name at every door, but where the dtype to convert it to is named."""

import math
import warnings

import ml_dtypes
import numpy as np
import pytest

import tinygrad_llm as tg
from tinygrad_llm import nn
from tinygrad_llm.generation import next_token_probabilities
from tinygrad_llm.optim import AdamW, clip_grad_norm_, get_total_norm

F, half = tg.nn.functional, np.float16
MANY, SPIKES = np.ones(5000, half), np.array([60000] * 40 + [-60000] * 40, half)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


# float16 -----------------------------------------------------------------------------------------------------------------

SUMS = {  # (call, argument, result): more than 2048 ones, or halves of a sum that are beyond 65504
    "sum": (lambda x: x.sum(), SPIKES, 0), "sum over rows": (lambda x: x.sum(0), SPIKES[:, None], [0]),
    "mean": (lambda x: x.mean(), SPIKES, 0), "mean of many": (lambda x: x.mean(), np.ones(70000, half), 1),
    "cumsum": (lambda x: x.cumsum(0)[-1], SPIKES, 0), "var": (lambda x: x.var(correction=0), SPIKES / 300, 40000),
    "std": (lambda x: x.std(correction=0), SPIKES, 60000), "norm": (lambda x: x.norm(), np.full(100, 6000, half), 60000),
    "3-norm": (lambda x: tg.linalg.vector_norm(x, 3), np.full(8, 3e4, half), 6e4), "dot": (lambda x: tg.dot(x, x), MANY, 5000),
    "matmul": (lambda x: x @ tg.ones(80, dtype=half), SPIKES, 0), "einsum": (lambda x: tg.einsum("i,i->", x, x), MANY, 5000),
    "linear": (lambda x: F.linear(x, tg.ones(1, 80, dtype=half)), SPIKES, [0]),
    "logsumexp": (lambda x: x.logsumexp(0), np.zeros(3000, half), math.log(3000)),
    "softmax": (lambda x: x.softmax(0)[0] * 3000, np.zeros(3000, half), 1),
    "prod": (lambda x: x.prod(), np.array([300, 300, 0.01], half), 900),
    "addmm": (lambda x: tg.addmm(tg.zeros(1, 1, dtype=half), x[None], x[:, None], alpha=0.01), np.full(400, 30, half),
              [[3600]]),
    "baddbmm": (lambda x: tg.baddbmm(tg.zeros(1, 1, 1, dtype=half), x[None, None], x[None, :, None], alpha=0.01),
                np.full(400, 30, half), [[[3600]]]),
    "layer_norm": (lambda x: F.layer_norm(x, (80,)), SPIKES, np.sign(SPIKES)),
    "rms_norm": (lambda x: F.rms_norm(x, (80,)), SPIKES, np.sign(SPIKES)),
    "mse_loss": (lambda x: F.mse_loss(x, tg.zeros(2, dtype=half)), np.array([300, 0], half), 45000),
    "nll_loss": (lambda x: F.nll_loss(x, np.zeros(70000, int)), -np.ones((70000, 2), half), 1),
    "cross_entropy": (lambda x: F.cross_entropy(x, np.zeros(70000, int)), np.ones((70000, 2), half), math.log(2)),
    "kl_div": (lambda x: F.kl_div(x, tg.ones(70000, dtype=half)), -np.ones(70000, half), 1),
    "softplus": (lambda x: F.softplus(x), np.array([15, 19.5, -5], half), [15, 19.5, 0.0067153]),
    "index_add": (lambda x: tg.index_add(x, 0, np.zeros(5000, int), tg.ones(5000, dtype=half)), np.zeros(2, half), [5000, 0]),
    "scatter_add": (lambda x: tg.scatter_add(x, 0, np.zeros(5000, int), tg.ones(5000, dtype=half)), np.zeros(2, half),
                    [5000, 0]),
    "index_put": (lambda x: tg.index_put(x, (np.zeros(5000, int),), tg.ones(5000, dtype=half), accumulate=True),
                  np.zeros(2, half), [5000, 0]),
    "//": (lambda x: x // 1e-7, np.array([6e-5, -6e-5], half), [600, -601]),
    "embedding, shortened": (lambda x: F.embedding(np.array([0]), x.clone(), max_norm=1.0), np.full((1, 2), 6e4, half),
                             [[0.5**0.5, 0.5**0.5]]),
}
GRADIENTS = {  # (function of a small tensor, whose gradient is a sum of many)
    "a bias": (lambda b: F.linear(tg.ones(80, 1, dtype=half), tg.ones(1, 1, dtype=half), b) * tg.tensor(SPIKES)[:, None], 0),
    "a weight": (lambda b: F.linear(tg.ones(8000, 1, dtype=half), b[None]) * tg.tensor(np.tile(SPIKES, 100))[:, None], 0),
    "a factor": (lambda b: tg.tensor(SPIKES)[:, None] * b, 0),
    "expand": (lambda b: b.expand(80, 1) * tg.tensor(SPIKES)[:, None], 0),
    "embedding": (lambda b: F.embedding(np.zeros(5000, int), b[:, None]), 5000),
    "embedding of few": (lambda b: F.embedding(np.zeros(80, int), b[:, None]) * tg.tensor(SPIKES)[:, None], 0),
    "embedding of many": (lambda b: F.embedding(np.zeros(8000, int), b[:, None]) * tg.tensor(np.tile(SPIKES, 100))[:, None], 0),
    "an index": (lambda b: b[np.zeros(5000, int)], 5000),
    "gather": (lambda b: tg.gather(b, 0, np.zeros(5000, int)), 5000),
    "take_along_dim": (lambda b: tg.take_along_dim(b, np.zeros(5000, int), 0), 5000),
}


@pytest.mark.parametrize("name", SUMS)
def test_float16_is_added_in_float32(name):
    call, x, wanted = SUMS[name]
    y = call(tg.tensor(x))
    assert y.dtype == half
    np.testing.assert_allclose(y.numpy().astype(float), wanted, 2e-3, 1e-4)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_that_are_sums_of_float16_are_added_in_float32(name):
    call, wanted = GRADIENTS[name]
    b = tg.ones(1, dtype=half, requires_grad=True)
    call(b).sum().backward()
    assert b.grad.dtype == half
    assert b.grad.tolist() == [wanted]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_takes_steps_of_float16(amsgrad):
    """g² of 300 is beyond float16, eps = 1e-8 is 0 in it: a gradient of 0 had made nan, one of 300 no step."""
    p = nn.Parameter(np.ones(4, half))
    optimizer = AdamW([p], lr=0.1, weight_decay=0.0, amsgrad=amsgrad)
    p.grad = tg.tensor(np.array([0, 300, -1e-4, 60000], half))
    optimizer.step()
    np.testing.assert_allclose(p.tolist(), [1, 0.9, 1.1, 0.9], 1e-3)
    assert {a.dtype for a in optimizer.state[p].values() if isinstance(a, np.ndarray)} == {np.dtype(half)}


def test_gradients_of_float16_are_scaled_in_float32():
    """The scale is 4e-9, which is 0 in float16."""
    parameters = [nn.Parameter(np.ones(2**16, half)) for _ in range(4)]
    for p in parameters:
        p.grad = tg.tensor(np.full(2**16, 60000, half))
    norm = clip_grad_norm_(parameters, 0.125)
    assert norm.item() == 60000 * 2**9
    np.testing.assert_allclose(parameters[0].grad.numpy().astype(float), 0.125 / 2**9, 0.02)


# bfloat16 ----------------------------------------------------------------------------------------------------------------

B = np.ones((3, 4), ml_dtypes.bfloat16)
OWN = "of a dtype of NumPy's own, such as x.astype"
REFUSED = {
    "tensor": lambda b: tg.tensor(b), "tensor of scalars": lambda b: tg.tensor([b[0, 0]]),
    "as_tensor": lambda b: tg.as_tensor(b),
    "from_numpy": lambda b: tg.from_numpy(b), "Parameter": lambda b: nn.Parameter(b), "+": lambda b: tg.ones(3, 4) + b,
    "reversed +": lambda b: b + tg.ones(3, 4), "exp": lambda b: tg.exp(b), "sum": lambda b: tg.sum(b),
    "mean": lambda b: tg.mean(b), "==": lambda b: tg.ones(3, 4) == b,
    "softmax": lambda b: F.softmax(b, -1), "linear": lambda b: F.linear(b, b), "matmul": lambda b: tg.matmul(b, b.T),
    "where": lambda b: tg.where(tg.ones(3, 4) > 0, b, 0.0), "clamp": lambda b: tg.clamp(tg.ones(3, 4), b),
    "cat": lambda b: tg.cat([tg.ones(3, 4), b]), "stack": lambda b: tg.stack([b, b]), "einsum": lambda b: tg.einsum("ij->i", b),
    "mul_": lambda b: tg.ones(3, 4).mul_(b), "copy_": lambda b: tg.ones(3, 4).copy_(b),
    "setitem": lambda b: tg.ones(3, 4).__setitem__(0, b[0]), "a layer": lambda b: nn.Linear(4, 3)(b),
    "load_state_dict": lambda b: nn.Linear(4, 3, bias=False).load_state_dict({"weight": b}),
    "cross_entropy": lambda b: F.cross_entropy(b, np.ones(3, int)),
    "from_pretrained": lambda b: nn.Embedding.from_pretrained(b),
    "float8": lambda b: tg.tensor(b.astype(ml_dtypes.float8_e4m3fn)), "int4": lambda b: tg.tensor(b.astype(ml_dtypes.int4)),
}
AS_ANY = {  # what is no array of floats is refused as any other that is none
    "ids": lambda b: nn.Embedding(4, 3)(b), "a model": lambda b: tg.Transformer(tg.TransformerConfig(11, 8, 8, 2, 1))(b),
    "an index": lambda b: tg.ones(4)[b[0]], "an optimizer": lambda b: AdamW([b]), "a norm": lambda b: get_total_norm([b]),
    "a gradient": lambda b: (tg.ones(3, 4).requires_grad_() * 2).backward(b), "dtype": lambda b: tg.zeros(2, dtype=b.dtype),
    "to": lambda b: tg.ones(2).to(b.dtype), "targets": lambda b: F.cross_entropy(tg.ones(3, 4), b[:, 0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bfloat16_is_refused_with_what_to_write(name):
    with pytest.raises(TypeError, match=rf"got (.|\n)*(bfloat16|float8|int4).*, expected .*{OWN}"):
        REFUSED[name](B)


@pytest.mark.parametrize("name", AS_ANY)
def test_bfloat16_is_no_index_and_no_dtype(name):
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError), match=r"got .*, expected"):
        AS_ANY[name](B)


def test_nothing_is_loaded_beside_bfloat16():
    layer = nn.Linear(4, 3)
    before = layer.weight.tolist()
    with pytest.raises(TypeError, match="load_state_dict: bias: got dtype bfloat16"):
        layer.load_state_dict({"weight": np.zeros((3, 4), np.float32), "bias": B[:, 0]})
    assert layer.weight.tolist() == before


def test_what_names_its_dtype_converts_bfloat16():
    third = np.full(3, 1 / 3, ml_dtypes.bfloat16)
    wanted = third.astype(np.float32).tolist()
    assert tg.tensor(third, dtype=np.float32).tolist() == wanted
    assert tg.as_tensor(third, dtype=np.float32).tolist() == wanted
    assert tg.Tensor(third).tolist() == wanted
    assert next_token_probabilities(third).tolist() == [1 / 3] * 3
    assert (tg.ones(1) * third[0]).tolist() == wanted[:1]  # a number
