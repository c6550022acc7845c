"""Decoding over a KV cache, ours and torch's: the logits and tokens of the whole model, each position computed once."""

import gc
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modeldraws import configs

import tinygrad_llm
from reference import decoding as torch_decoding
from reference.equivalence import random_state, torch_model
from reference.model import KVCache as TorchCache
from tinygrad_llm import Transformer, TransformerConfig, nn
from tinygrad_llm.decoding import Decoder, KVCache, UnknownModuleError, WeightsChangedError
from tinygrad_llm.generation import generate
from tinygrad_llm.nn import functional as F
from tinygrad_llm.optim import AdamW
from tinygrad_llm.policy import compare_float32, compare_float64
from tinygrad_llm.training import Trainer

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SEEDS = st.integers(0, 2**32 - 1)


def pair(config, seed=0, dtype="float64"):
    """Our model and torch's, of the same random weights."""
    state = random_state(config, seed)
    ours = Transformer(config, dtype=np.dtype(dtype))
    ours.load_state_dict({name: value.astype(dtype) for name, value in state.items()})
    return ours, torch_model(config, state, dtype).eval()


def small(**options):
    return pair(TransformerConfig(11, 6, 8, 2, 2, **options))


def in_pieces(read, ids, cuts):
    """The logits after each piece of ids [B, T], which is cut at these places."""
    ends = [*sorted(set(cuts)), ids.shape[1]]
    return np.stack([np.asarray(read(ids[:, a:b])) for a, b in zip([0, *ends], ends)], 1), [end - 1 for end in ends]


@st.composite
def readings(draw, least_width=1):
    """A configuration, ids int [B, T] and where they are cut; often into single positions."""
    config = draw(configs(least_width))
    length = draw(st.integers(1, config.context_length))
    ids = np.random.default_rng(draw(SEEDS)).integers(0, config.vocab_size, (draw(st.integers(1, 3)), length))
    cuts = st.lists(st.integers(1, length - 1), max_size=5) | st.just(range(1, length)) if length > 1 else st.just([])
    return config, ids, list(draw(cuts))


def on_torch(decoder):
    return lambda ids: decoder(torch.from_numpy(ids)).numpy()


def decoders(ours, theirs, batch):
    return Decoder(ours, batch), on_torch(torch_decoding.Decoder(theirs, batch))


# Logits ---------------------------------------------------------------------------------------------------------------


@given(readings(), SEEDS)
def test_reading_in_pieces_is_the_whole_model_on_both_sides(reading, seed):
    config, ids, cuts = reading
    ours, theirs = pair(config, seed)
    (got, ends), (torchs, _) = [in_pieces(read, ids, cuts) for read in decoders(ours, theirs, len(ids))]
    assert got.dtype == ours(ids).dtype
    whole = ours(ids).numpy()[:, ends]
    for name, one in [("ours", whole), ("torch", theirs(torch.from_numpy(ids))[:, ends]), ("torch, cached", torchs)]:
        assert (row := compare_float64(got, one, name)).passed, str(row)


@given(readings(least_width=3), SEEDS)
def test_float32_is_no_less_accurate_than_torch(reading, seed):
    config, ids, cuts = reading
    truth = in_pieces(Decoder(pair(config, seed)[0], len(ids)), ids, cuts)[0]
    (got, _), (torchs, _) = [in_pieces(read, ids, cuts) for read in decoders(*pair(config, seed, "float32"), len(ids))]
    assert (row := compare_float32(got, torchs, truth)).passed, str(row)


def test_dropout_is_off_and_the_model_is_left_as_it_is():
    model = Transformer(TransformerConfig(11, 6, 8, 2, 2, dropout=0.5), seed=1, dtype=np.float64).train()
    state, modes = model.generator.bit_generator.state, [module.training for module in model.modules()]
    logits = Decoder(model)([[1, 2]])
    assert model.generator.bit_generator.state == state
    assert [module.training for module in model.modules()] == modes
    np.testing.assert_allclose(logits, model.eval()([[1, 2]]).numpy()[:, -1], rtol=1e-12)


def test_the_cache_holds_keys_and_values_and_nothing_of_it_is_read_before_it_is_written():
    ours, _ = small()
    decoder = Decoder(ours)
    assert decoder.cache.entries.shape == (2, 2, 1, 2, 6, 4)
    decoder.cache.entries[:] = np.nan
    assert np.isfinite(decoder([[1, 2, 3]])).all()
    assert np.isfinite(decoder.cache.entries[..., :3, :]).all()
    assert np.isnan(decoder.cache.entries[..., 3:, :]).all()
    before = decoder.cache.entries[..., :3, :].copy()
    decoder([[4]])
    assert np.array_equal(decoder.cache.entries[..., :3, :], before)
    qkv = ours.blocks[0].attn.qkv_proj(ours.blocks[0].norm1(ours.tok_embed(np.array([1, 2, 3, 4])) + ours._sinusoids[:4]))
    _, keys, values = qkv.numpy().reshape(4, 3, 2, 4).transpose(1, 2, 0, 3)  # [3, H, T, D]
    np.testing.assert_allclose(decoder.cache.entries[0, :, 0, :, :4], [keys, values], rtol=1e-10)


def test_cleared_it_begins_anew_and_a_refused_call_changes_nothing():
    ours, _ = small()
    decoder = Decoder(ours)
    first = decoder([[1, 2, 3]])
    with pytest.raises(IndexError):
        decoder([[99]])
    again = decoder([[4]])
    assert decoder.length == 4
    decoder.clear()
    assert decoder.length == 0
    assert np.array_equal(decoder([[1, 2, 3]]), first)
    assert np.array_equal(decoder([[4]]), again)


def test_a_decoder_is_freed_without_the_garbage_collector():
    decoder = Decoder(small()[0])
    decoder([[1, 2]])
    cache = weakref.ref(decoder.cache)
    gc.disable()
    try:
        del decoder
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("capture", [False, True])  # by the optimizer in place; in the memory of a team, where weights move
def test_after_training_a_cache_is_refused_and_once_cleared_the_new_weights_are_read(capture):
    ours, _ = small()
    decoder = Decoder(ours)
    before = decoder([[1, 2]])
    message = "^weights: got other ones than those of the 2 positions read, expected the same"
    with Trainer(ours, AdamW(ours.parameters(), lr=0.1), capture=capture) as trainer:
        for _ in range(2):
            trainer.step([[1, 2, 3]], [[2, 3, 4]])
            with pytest.raises(WeightsChangedError, match=message):
                decoder([[3]])
            assert decoder.length == 2
            decoder.clear()
            after = decoder([[1, 2]])
            np.testing.assert_allclose(after, ours([[1, 2]]).numpy()[:, -1], rtol=1e-10)
            assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(decoder([[3]]), ours([[1, 2, 3]]).numpy()[:, -1], rtol=1e-10)


def test_a_model_that_is_trained_between_two_tokens_goes_on_with_its_new_weights():
    ours, _ = small()
    optimizer = AdamW(ours.parameters(), lr=0.1)
    written = [1]
    for token in generate(ours, [1], 8):
        assert token == ours([written[-6:]]).numpy()[0, -1].argmax()
        written.append(token)
        optimizer.zero_grad()
        ours.loss([written[-6:]], [[(t + 1) % 11 for t in written[-6:]]]).backward()  # learn to count
        optimizer.step()
    assert len(set(written)) > 4


def test_logits_are_arrays_without_a_graph():
    logits = Decoder(small()[0])([[1]])
    assert type(logits) is np.ndarray
    assert tinygrad_llm.is_grad_enabled()
    assert not tinygrad_llm.tensor(logits).requires_grad


# Tokens ---------------------------------------------------------------------------------------------------------------


def by_the_whole_model(model, prompt, count):
    """The definition: run the model on the last context_length tokens, take the likeliest; and how sure it was."""
    ids, gaps = list(prompt), []
    for _ in range(count):
        logits = np.asarray(model(ids[-model.config.context_length :]))
        low, high = np.partition(logits, -2)[-2:] if len(logits) > 1 else (0.0, 1.0)
        gaps.append(high - low)
        ids.append(int(np.argmax(logits)))
    return ids[len(prompt) :], min(gaps)


def whole(model):
    """ids → logits of the next token, by the uncached model."""
    ours = isinstance(model, Transformer)

    def logits(ids):
        return (model(np.array([ids])) if ours else model(torch.tensor([ids])).detach()).numpy()[0, -1]

    logits.config = model.config
    return logits


@given(configs(), SEEDS, st.integers(1, 14), st.integers(1, 14))
def test_greedy_tokens_are_those_of_the_whole_model_on_both_sides_also_where_the_window_slides(config, seed, length, count):
    ours, theirs = pair(config, seed)
    prompt = np.random.default_rng(seed).integers(0, config.vocab_size, length)
    expected, gap = by_the_whole_model(whole(ours), prompt, count)
    if gap > 1e-9:  # else rounding decides
        assert list(generate(ours, prompt, count)) == expected
        assert torch_decoding.greedy(theirs, prompt, count) == expected
        assert by_the_whole_model(whole(theirs), prompt, count)[0] == expected


@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(configs(least_width=3), SEEDS, st.integers(1, 12), st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.7}]))
def test_sampled_tokens_are_those_of_the_whole_model(config, seed, count, options):
    ours, _ = pair(config, seed)

    class Plain(nn.Module):
        """The same model, of which nothing is known but its forward."""

        config = ours.config

        def forward(self, ids):
            return ours(ids)

    drawn = [list(generate(model, [0], count, temperature=1.0, generator=np.random.default_rng(seed), **options))
             for model in (ours, Plain())]
    assert drawn[0] == drawn[1]


def test_each_position_is_read_once_until_the_window_slides(monkeypatch):
    ours, theirs = small()
    read = []
    for kind in (Decoder, torch_decoding.Decoder):
        call = kind.__call__
        monkeypatch.setattr(kind, "__call__", lambda self, ids, call=call: (read.append(ids.shape), call(self, ids))[1])
    list(generate(ours, [1, 2, 3], 6))
    torch_decoding.greedy(theirs, [1, 2, 3], 6)
    assert read == [(1, 3), (1, 1), (1, 1), (1, 1), (1, 6), (1, 6)] * 2


# Models of another make -----------------------------------------------------------------------------------------------


class Louder(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 3


def subclassed():
    class Turned(Transformer):
        def forward(self, ids):
            return -super().forward(ids)

    return Turned(TransformerConfig(11, 6, 8, 2, 2), seed=1)


def with_its_own(path, make):
    def model():
        ours = Transformer(TransformerConfig(11, 6, 8, 2, 2), seed=1)
        *way, last = path.split(".")
        owner = ours
        for name in way:
            owner = getattr(owner, name)
        setattr(owner, last, make())
        return ours

    return model


def one_hot_features(ids):
    return tinygrad_llm.tensor(np.eye(11, 8, dtype=np.float32)[ids])


STRANGERS = {
    "a subclass": (subclassed, "model: got Turned"),
    "a head": (with_its_own("lm_head", lambda: Louder(8, 11, bias=False)), "lm_head: got Louder"),
    "a feed-forward": (with_its_own("blocks.1.ffn", lambda: nn.Linear(8, 8)), r"blocks\.1\.ffn: got Linear"),
    "a norm": (with_its_own("blocks.0.norm2", lambda: nn.RMSNorm(8)), r"blocks\.0\.norm2: got RMSNorm"),
    "a forward": (with_its_own("final_norm.forward", lambda: lambda x: x), "final_norm: got LayerNorm, expected this lib"),
    "features": (with_its_own("features", lambda: one_hot_features), "model: got Transformer, expected"),
    "a dropout": (with_its_own("blocks.0.dropout", nn.ReLU), r"blocks\.0\.dropout: got ReLU"),
}


@pytest.mark.parametrize(("make", "message"), STRANGERS.values(), ids=STRANGERS)
def test_modules_that_it_does_not_know_are_refused_and_generation_runs_their_forward(make, message):
    model = make()
    with pytest.raises(UnknownModuleError, match=f"^{message}"):
        Decoder(model)
    assert list(generate(model, [1, 2], 8)) == by_the_whole_model(whole(model), [1, 2], 8)[0]


def test_another_activation_is_no_stranger():
    ours, _ = small()
    for block in ours.blocks:
        block.ffn.activation = F.silu
    np.testing.assert_allclose(Decoder(ours)([[1, 2]]), ours([[1, 2]]).numpy()[:, -1], rtol=1e-10)


def test_a_model_with_a_decoder_of_its_own_is_read_with_it():
    ours, _ = small()

    class Own(nn.Module):
        config = ours.config

        def decoder(self):
            return Decoder(ours)

    assert list(generate(Own(), [1], 9)) == list(generate(ours, [1], 9))


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2], ValueError, r"ids: got shape \(2,\) of int64, expected integers \[2, time\], at least one"),
        ([[1, 2]], ValueError, r"ids: got shape \(1, 2\)"),
        ([[], []], ValueError, r"ids: got shape \(2, 0\)"),
        ([[0.5], [0.5]], ValueError, r"ids: got shape \(2, 1\) of float64"),
        ([[1], [11]], IndexError, r"ids: got 11, expected ids in \[0, 11\)"),
        ([[-1], [1]], IndexError, r"ids: got -1"),
        ([[1] * 4] * 2, ValueError, "ids: got 4 tokens in a row after 3, expected at most 3: the cache holds context_length"),
    ],
)
def test_ids_that_cannot_be_read_are_refused_in_one_line(ids, error, message):
    decoder = Decoder(small()[0], batch=2)
    decoder([[1, 2, 3]] * 2)
    with pytest.raises(error, match=f"^{message}") as raised:
        decoder(ids)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("batch", [0, -1, 1.0, True, None])
def test_a_batch_is_a_number(batch):
    with pytest.raises(ValueError, match=r"^batch: got .*, expected an integer >= 1"):
        Decoder(small()[0], batch)


def test_what_is_no_model_of_ours_is_refused():
    with pytest.raises(UnknownModuleError, match=r"^model: got Linear, expected this library's own Transformer"):
        Decoder(nn.Linear(2, 2))


def test_a_cache_starts_empty_and_has_room_for_the_context():
    cache = KVCache(TransformerConfig(11, 6, 8, 2, 3), batch=4, dtype=np.float64)
    assert (cache.length, cache.entries.shape, cache.entries.dtype) == (0, (3, 2, 4, 2, 6, 4), np.float64)


def test_torch_refuses_a_gradient_another_cache_and_more_than_the_context():
    _, model = small()
    ids = torch.tensor([[1, 2, 3, 4]])
    cache = TorchCache(model.config, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"^cache: got it in grad mode, expected torch.inference_mode"):
        model(ids, cache)
    assert cache.length == 0
    with torch.inference_mode():
        model(ids, cache)
        with pytest.raises(ValueError, match=r"^ids: got 4 tokens in a sequence after 4, expected at most context_length = 6"):
            model(ids, cache)
        for other in (TorchCache(model.config, batch=2), TorchCache(TransformerConfig(11, 6, 8, 2, 3))):
            with pytest.raises(ValueError, match=r"^cache: got \[L, B, H, T, D\] = "):
                model(ids, other)
    with pytest.raises(ValueError, match=r"^model: got one in training mode, with dropout"):
        torch_decoding.Decoder(small(dropout=0.1)[1].train())


def test_the_page_on_decoding_runs_and_prints_what_its_comments_say(capsys):
    page = (Path(__file__).parents[1] / "docs" / "decoding.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\) +# (.*)$", code, re.M)
