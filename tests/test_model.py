"""Modules and the Transformer by themselves: names, state, seeds, causality, what is refused."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_llm as tg
from tinygrad_llm import nn
from tinygrad_llm.model import Transformer, TransformerConfig, sinusoidal_positions

CONFIG = {"vocab_size": 11, "context_length": 6, "d_model": 8, "n_heads": 2, "n_layers": 2}


def make(seed=0, dtype=np.float32, **changes):
    return Transformer(TransformerConfig(**{**CONFIG, **changes}), seed, dtype)


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape)


def test_state_dict_has_the_names_and_layouts_of_the_architecture():
    shapes = {name: value.shape for name, value in make(positions="learned").state_dict().items()}
    block = {
        "norm1.weight": (8,), "norm1.bias": (8,), "attn.qkv_proj.weight": (24, 8), "attn.qkv_proj.bias": (24,),
        "attn.out_proj.weight": (8, 8), "attn.out_proj.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,),
        "ffn.up_proj.weight": (32, 8), "ffn.up_proj.bias": (32,), "ffn.down_proj.weight": (8, 32), "ffn.down_proj.bias": (8,),
    }
    expected = {"tok_embed.weight": (11, 8), "pos_embed.weight": (6, 8)}
    expected |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    expected |= {"final_norm.weight": (8,), "final_norm.bias": (8,), "lm_head.weight": (11, 8)}
    assert shapes == expected
    assert "pos_embed.weight" not in make().state_dict()
    assert not any(name.endswith("bias") for name in make(bias=False).state_dict())


def test_positions_are_sines_and_cosines():
    table = sinusoidal_positions(50, 7)
    for p, i in ((0, 0), (3, 2), (49, 6)):
        assert table[p, i] == pytest.approx(np.sin(p / 10000 ** (i / 7)), abs=1e-15)
    for p, i in ((0, 1), (3, 3), (49, 5)):
        assert table[p, i] == pytest.approx(np.cos(p / 10000 ** ((i - 1) / 7)), abs=1e-15)
    rotated = sinusoidal_positions(50, 8)
    np.testing.assert_allclose(rotated[10] @ rotated[14], rotated[30] @ rotated[34], rtol=1e-12)


@given(seed=st.integers(0, 1000), position=st.integers(1, 5), post=st.booleans())
def test_the_future_changes_no_logit_and_gets_no_gradient(seed, position, post):
    model = make(seed, np.float64, norm_position="post" if post else "pre", positions="learned")
    before, after = ids(2, 6, seed=seed), ids(2, 6, seed=seed)
    after[:, position:] = (after[:, position:] + 1) % 11
    np.testing.assert_array_equal(model(before).numpy()[:, :position], model(after).numpy()[:, :position])
    model(before)[:, :position].sum().backward()
    assert not model.pos_embed.weight.grad.numpy()[position:].any()
    assert model.pos_embed.weight.grad.numpy()[:position].any()


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    a, b, c = make(3, dropout=0.5), make(3, dropout=0.5), make(4, dropout=0.5)
    x = ids(2, 6)
    np.testing.assert_array_equal(a(x).numpy(), b(x).numpy())
    np.testing.assert_array_equal(a(x).numpy(), b(x).numpy())
    assert (a(x).numpy() != c(x).numpy()).any()


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    x = ids(2, 6)
    assert (model(x).numpy() != model(x).numpy()).any()
    model.eval()
    np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


def test_tied_weights_are_one_parameter_with_two_names_and_one_gradient():
    model = make(tie_embeddings=True)
    names = [name for name, _ in model.named_parameters()]
    assert "tok_embed.weight" in names
    assert "lm_head.weight" not in names
    state = model.state_dict()
    np.testing.assert_array_equal(state["tok_embed.weight"], state["lm_head.weight"])
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"lm_head\.weight: got values that differ"):
        model.load_state_dict(state)


def test_parameters_are_counted_once():
    tied, untied = make(tie_embeddings=True), make()
    assert untied.num_parameters() - tied.num_parameters() == 11 * 8
    assert untied.num_parameters() == sum(v.size for v in untied.state_dict().values())


def test_state_goes_across_and_is_a_copy():
    a, b = make(0), make(1)
    result = b.load_state_dict(a.state_dict())
    assert result == ([], [])
    np.testing.assert_array_equal(a(ids(1, 4)).numpy(), b(ids(1, 4)).numpy())
    a.state_dict()["lm_head.weight"][:] = 0
    assert a.lm_head.weight.numpy().any()


@pytest.mark.parametrize("change", [
    lambda s: s.pop("lm_head.weight"), lambda s: s.update(extra=np.ones(1)),
    lambda s: s.update({"lm_head.weight": np.ones((8, 11))}), lambda s: s.update({"lm_head.weight": np.ones((11, 8), complex)}),
])
def test_a_state_that_does_not_fit_is_refused_whole(change):
    model, state = make(0), make(1).state_dict()
    change(state)
    before = model.state_dict()
    with pytest.raises((ValueError, TypeError), match="expected"):
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_state_that_does_not_fit_can_be_loaded_in_part():
    model, state = make(0), make(1).state_dict()
    del state["lm_head.weight"]
    result = model.load_state_dict({**state, "extra": np.ones(1)}, strict=False)
    assert result.missing_keys == ["lm_head.weight"]
    assert result.unexpected_keys == ["extra"]


def test_a_module_prints_as_a_tree():
    text = repr(make())
    assert text.splitlines()[0].split() == ["Transformer", f"{make().num_parameters():,}"]
    assert "qkv_proj: Linear" in text
    assert "weight [24, 8], bias [24]" in text
    assert "(shared)" in repr(make(tie_embeddings=True))


def test_walking_a_module():
    model = make()
    names = dict(model.named_modules())
    assert names[""] is model
    assert isinstance(names["blocks.1.attn.qkv_proj"], nn.Linear)
    seen = []
    model.apply(lambda module: seen.append(type(module).__name__))
    assert seen[-1] == "Transformer"
    assert len(seen) == len(names)
    assert len(model.blocks) == 2
    assert model.blocks[1] is names["blocks.1"]


def test_zero_grad_and_freezing():
    model = make()
    model.loss(ids(2, 3), ids(2, 3)).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=False)
    assert not any(p.grad.numpy().any() for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.requires_grad_(False)
    assert not model.loss(ids(2, 3), ids(2, 3)).requires_grad


def test_a_deep_copy_is_independent():
    model = make(dropout=0.1)
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(model(ids(1, 3)).numpy(), twin(ids(1, 3)).numpy())
    twin.lm_head.weight.detach().zero_()
    assert model.lm_head.weight.numpy().any()
    tied = copy.deepcopy(make(tie_embeddings=True))
    assert tied.lm_head.weight is tied.tok_embed.weight


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_stays_in_the_dtype_of_the_model(dtype):
    model = make(dtype=dtype, dropout=0.2, activation="gelu", norm_position="post")
    loss = model.loss(ids(2, 5), ids(2, 5))
    loss.backward()
    assert loss.dtype == dtype
    assert {p.grad.dtype for p in model.parameters()} == {np.dtype(dtype)}


def test_training_learns_a_sequence_by_heart():
    model = make()
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = np.array([[1, 5, 2, 6, 3, 7]]), np.array([[5, 2, 6, 3, 7, 4]])
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()
    np.testing.assert_array_equal(model(x).argmax(-1).numpy(), y)


BAD_CONFIGS = [
    ({"vocab_size": 0}, "vocab_size"), ({"vocab_size": 2.5}, "vocab_size"), ({"context_length": -1}, "context_length"),
    ({"d_model": True}, "d_model"), ({"n_heads": 3}, "n_heads"), ({"n_layers": 0}, "n_layers"), ({"d_ff": 0}, "d_ff"),
    ({"activation": "swish"}, "activation"), ({"norm": "batch"}, "norm"), ({"norm_position": "mid"}, "norm_position"),
    ({"positions": "none"}, "positions"), ({"bias": 1}, "bias"), ({"tie_embeddings": "yes"}, "tie_embeddings"),
    ({"dropout": 1.0}, "dropout"), ({"dropout": "a"}, "dropout"), ({"norm_eps": 0.0}, "norm_eps"),
    ({"d_model": None}, "d_model"),
]


@pytest.mark.parametrize(("change", "field"), BAD_CONFIGS)
def test_an_impossible_config_is_refused_saying_why(change, field):
    with pytest.raises((ValueError, TypeError), match=f"^{field}: got .*, expected"):
        TransformerConfig(**{**CONFIG, **change})


def test_config_goes_through_json_and_refuses_unknown_fields():
    config = TransformerConfig(**CONFIG)
    assert TransformerConfig.from_dict(config.to_dict()) == config
    assert config.d_ff == 32
    assert config.head_dim == 4
    with pytest.raises(ValueError, match="unknown field 'rope'"):
        TransformerConfig.from_dict({**CONFIG, "rope": True})


BAD_CALLS = [
    (lambda m: m(np.zeros((1, 7), int)), "ids: got 7 tokens"), (lambda m: m(np.zeros(3, int)), "ids: got shape"),
    (lambda m: m(np.zeros((1, 3))), "ids: got shape"), (lambda m: m(np.zeros((0, 3), int)), "ids: got shape"),
    (lambda m: m(np.array([[11]])), "ids: got 11"), (lambda m: m(np.array([[-1]])), "ids: got -1"),
    (lambda m: m.loss(np.zeros((1, 3), int), np.zeros((1, 2), int)), "targets: got shape"),
    (lambda m: m.loss(np.zeros((1, 1), int), np.array([[12]])), "target: got class 12"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_bad_ids_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make())


def test_a_dtype_that_is_no_float_is_refused():
    with pytest.raises(TypeError, match="dtype: got"):
        make(dtype=np.int32)


def test_numpys_numbers_are_numbers_of_a_configuration():
    config = TransformerConfig(np.int64(11), np.int32(6), np.uint8(8), np.array(2), np.int64(2), bias=np.bool_(False),
                               dropout=np.float32(0.5), norm_eps=np.float64(1e-5))
    assert config == TransformerConfig(11, 6, 8, 2, 2, bias=False, dropout=0.5)
    assert {type(value) for value in config.to_dict().values()} == {int, str, bool, float}
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    with pytest.raises(TypeError, match=r"^d_model: got 8.0, expected an integer"):
        TransformerConfig(11, 6, np.float64(8), 2, 2)


class Doubled(Transformer):
    def forward(self, ids):
        return super().forward(ids) * 2


def with_a_bias(model):
    model.lm_head = nn.Linear(8, 11, dtype=np.float64)
    model.lm_head.bias.detach().copy_(np.arange(11.0))
    return model


@pytest.mark.parametrize("make_other", [
    lambda: Doubled(TransformerConfig(**CONFIG), 0, np.float64), lambda: with_a_bias(make(dtype=np.float64)),
], ids=["subclass", "head"])
def test_the_loss_is_that_of_what_forward_predicts(make_other):
    model, x, y = make_other(), ids(2, 6), ids(2, 6, seed=1)
    expected = nn.functional.cross_entropy(model(x).reshape(-1, 11), y.reshape(-1))
    assert model.loss(x, y).item() == pytest.approx(expected.item(), rel=1e-12)
    assert model.loss(x, y).item() != pytest.approx(make(dtype=np.float64).loss(x, y).item(), rel=1e-3)
    model.loss(x, y).backward()
    assert all(p.grad is not None for p in model.parameters())
