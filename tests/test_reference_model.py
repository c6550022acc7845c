"""The torch model against the architecture written out by hand in float64, and its promises one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference.bridge import load_numpy_state
from reference.equivalence import random_state
from reference.model import Transformer, initial_std, sinusoidal_table
from tinygrad_llm.config import TransformerConfig

SMALL = {"vocab_size": 7, "context_length": 5, "d_model": 6, "n_heads": 2, "n_layers": 2}


def make(dtype=torch.float64, **options) -> Transformer:
    config = TransformerConfig(**(SMALL | options))
    model = Transformer(config, dtype=dtype)
    state = random_state(config, seed=3)
    load_numpy_state(model, {k: v.astype(str(dtype).removeprefix("torch.")) for k, v in state.items()})
    return model.eval()


def some_ids(shape=(3, 5), seed=0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, SMALL["vocab_size"], shape))


def by_hand(config: TransformerConfig, w: dict, ids: np.ndarray) -> np.ndarray:
    """One sequence [T] -> logits [T, V], with loops where a formula has an index."""

    def norm(x, name):
        spread = np.sqrt(x.var(axis=-1, keepdims=True) + config.norm_eps)
        return (x - x.mean(axis=-1, keepdims=True)) / spread * w[name + ".weight"] + w.get(name + ".bias", 0.0)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def activation(x):
        if config.activation == "relu":
            return np.where(x > 0, x, 0.0)
        if config.activation == "gelu":
            return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(x, name):
        qkv, d, size = linear(x, name + ".qkv_proj"), config.d_model, config.head_dim
        out = np.zeros_like(x)
        for head, t in itertools.product(range(config.n_heads), range(len(x))):
            cols = slice(head * size, (head + 1) * size)
            q, k, v = qkv[t, :d][cols], qkv[: t + 1, d : 2 * d][:, cols], qkv[: t + 1, 2 * d :][:, cols]
            p = np.exp(k @ q / math.sqrt(size))
            out[t, cols] = p / p.sum() @ v
        return linear(out, name + ".out_proj")

    def ffn(x, name):
        return linear(activation(linear(x, name + ".up_proj")), name + ".down_proj")

    length = len(ids)
    positions = w.get("pos_embed.weight", sinusoidal_table(config.context_length, config.d_model))
    x = w["tok_embed.weight"][ids] + positions[:length]
    for i in range(config.n_layers):
        b = f"blocks.{i}."
        if config.norm_position == "pre":
            x = x + attention(norm(x, b + "norm1"), b + "attn")
            x = x + ffn(norm(x, b + "norm2"), b + "ffn")
        else:
            x = norm(x + attention(x, b + "attn"), b + "norm1")
            x = norm(x + ffn(x, b + "ffn"), b + "norm2")
    return norm(x, "final_norm") @ w["lm_head.weight"].T


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize(("bias", "tie"), [(True, False), (False, True), (True, True)])
def test_forward_is_the_architecture(activation, norm_position, positions, bias, tie):
    options = {"activation": activation, "norm_position": norm_position, "positions": positions}
    model = make(bias=bias, tie_embeddings=tie, d_ff=9, norm_eps=1e-3, **options)
    ids = some_ids((2, 4))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    expected = np.stack([by_hand(model.config, state, row) for row in ids.numpy()])
    np.testing.assert_allclose(model(ids).detach().numpy(), expected, rtol=1e-11, atol=1e-12)


def test_loss_is_the_mean_negative_log_probability():
    model, ids, targets = make(), some_ids(), some_ids(seed=1)
    p = torch.softmax(model(ids), -1).detach().numpy()
    rows, cols = np.indices(ids.shape)
    np.testing.assert_allclose(model.loss(ids, targets).item(), -np.log(p[rows, cols, targets]).mean(), rtol=1e-12)


BLOCK = ["norm1", "attn.qkv_proj", "attn.out_proj", "norm2", "ffn.up_proj", "ffn.down_proj"]


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_state_dict_keys_and_shapes(positions, bias, tie):
    model = make(positions=positions, bias=bias, tie_embeddings=tie, n_layers=1)
    suffixes = ["weight", "bias"] if bias else ["weight"]
    middle = [f"blocks.0.{part}.{suffix}" for part in BLOCK for suffix in suffixes]
    first = ["tok_embed.weight"] + ["pos_embed.weight"] * (positions == "learned")
    keys = [*first, *middle, *(f"final_norm.{suffix}" for suffix in suffixes), "lm_head.weight"]
    assert list(model.state_dict()) == keys
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["blocks.0.attn.qkv_proj.weight"] == (18, 6)
    assert shapes["blocks.0.ffn.up_proj.weight"] == (24, 6)
    assert shapes["blocks.0.ffn.down_proj.weight"] == (6, 24)
    assert shapes["lm_head.weight"] == shapes["tok_embed.weight"] == (7, 6)


def test_tied_weights_are_one_parameter_with_both_gradients():
    model = make(tie_embeddings=True)
    assert model.lm_head.weight is model.tok_embed.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    model.loss(some_ids(), some_ids(seed=1)).backward()
    untied = make()
    load_numpy_state(untied, {name: value.numpy() for name, value in model.state_dict().items()})
    untied.loss(some_ids(), some_ids(seed=1)).backward()
    total = untied.tok_embed.weight.grad + untied.lm_head.weight.grad
    torch.testing.assert_close(model.tok_embed.weight.grad, total, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_no_position_sees_its_future(norm_position):
    model, ids = make(norm_position=norm_position), some_ids((1, 5))
    before = model(ids)
    for t in range(1, 5):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % 7
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-14)
        assert not torch.allclose(after[:, t], before[:, t])


def test_a_prefix_gives_the_same_logits():
    model, ids = make(), some_ids()
    torch.testing.assert_close(model(ids[:, :2]), model(ids)[:, :2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("d_model", [1, 2, 7, 64])
def test_sinusoids_by_their_definition(d_model):
    table = sinusoidal_table(11, d_model)
    for t, j in itertools.product(range(11), range(d_model)):
        angle = t / 10000 ** (2 * (j // 2) / d_model)
        assert table[t, j] == pytest.approx(math.cos(angle) if j % 2 else math.sin(angle), abs=1e-15)


def test_a_model_moved_to_float64_has_the_float64_sinusoids():
    model = Transformer(TransformerConfig(**SMALL), dtype=torch.float32).double()
    assert torch.equal(model.pos_embed.table, torch.from_numpy(sinusoidal_table(5, 6)))
    assert torch.equal(model.float().pos_embed.table, torch.from_numpy(sinusoidal_table(5, 6)).float())
    assert not any("pos" in name for name in model.state_dict())


def test_a_model_without_memory_can_be_given_memory():
    model = Transformer(TransformerConfig(**SMALL), device="meta").to_empty(device="cpu")
    torch.testing.assert_close(model.pos_embed.table.double(), torch.from_numpy(sinusoidal_table(5, 6)))


def test_norms_without_bias():
    model = make(bias=False)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5
    assert all(norm.bias is None and norm.eps == 1e-5 for norm in norms)
    x = torch.randn(3, 6, dtype=torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norms[0].weight
    torch.testing.assert_close(norms[0](x), expected)


def test_wrong_inputs_are_refused_in_a_line():
    model = make()
    with pytest.raises(ValueError, match=r"^ids: got 6 tokens in a sequence, expected at most context_length = 5$"):
        model(some_ids((1, 6)))
    with pytest.raises(ValueError, match=r"^ids: got shape \(5,\), expected \[B, T\]$"):
        model(some_ids((5,)))
    with pytest.raises(ValueError, match=r"^targets: got shape \(3, 4\), expected that of ids, \(3, 5\)$"):
        model.loss(some_ids(), some_ids((3, 4)))


def test_dropout_only_while_training_and_on_the_attention_weights_too(monkeypatch):
    model, ids, seen = make(dropout=0.25), some_ids(), []
    attend = F.scaled_dot_product_attention

    def recorded(*args, dropout_p, is_causal):
        seen.append((dropout_p, is_causal))
        return attend(*args, dropout_p=0.0, is_causal=is_causal)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    assert seen == [(0.0, True)] * 4 + [(0.25, True)] * 4


def test_dropout_falls_on_the_embedding_sum_and_on_both_sublayers():
    model, inputs = make(dropout=0.5).train(), []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, args, out: inputs.append((module.p, tuple(out.shape))))
    model(some_ids())
    assert inputs == [(0.5, (3, 5, 6))] * 5


def test_initial_weights():
    config = TransformerConfig(500, 64, 64, 4, 8, positions="learned")
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(initial_std(name, config), rel=0.1)
            assert abs(parameter.mean().item()) < 0.1 * parameter.std().item()
        else:
            assert torch.all(parameter == (0 if name.endswith("bias") else 1))
    assert initial_std("blocks.0.ffn.down_proj.weight", config) == pytest.approx(0.02 / 4)
    assert initial_std("tok_embed.weight", config) == initial_std("lm_head.weight", config) == 0.02
    assert initial_std("tok_embed.weight", TransformerConfig(500, 64, 64, 4, 8)) == 1
    assert initial_std("tok_embed.weight", TransformerConfig(500, 64, 64, 4, 8, tie_embeddings=True)) == 0.02
