"""evaluate: every token counted once and weighted right, whatever the batches."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_llm
from tinygrad_llm import Transformer, TransformerConfig
from tinygrad_llm.data import BatchLoader, CharTokenizer, PairDataset, SequenceDataset
from tinygrad_llm.training import Evaluation, evaluate

V, T = 9, 5


@pytest.fixture(scope="module")
def model():
    return Transformer(TransformerConfig(V, T, 8, 2, 1, dropout=0.5), seed=2, dtype=np.float64)


def tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, V, count)


def log_probabilities(model, ids):
    logits = model(np.asarray(ids)[None]).numpy()[0]
    return logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(
        -1, keepdims=True)


def directly(model, text):
    """Token by token, in windows of T that follow each other."""
    losses, right = [], 0
    for start in range(0, len(text) - 1, T):
        window = text[start : start + T + 1]
        scores = log_probabilities(model, window[:-1])
        losses += [-scores[i, target] for i, target in enumerate(window[1:])]
        right += sum(int(scores[i].argmax() == target) for i, target in enumerate(window[1:]))
    return losses, right


@given(st.integers(T + 1, 60), st.integers(1, 20), st.sampled_from([None, 1, 3, 50]), st.integers(0, 99))
def test_every_token_is_predicted_once(model, count, batch_size, stride, seed):
    text = tokens(count, seed)
    got = evaluate(model, SequenceDataset(text, T, stride), batch_size=batch_size)
    model.eval()
    losses, right = directly(model, text)
    model.train()
    assert got.tokens == count - 1 == len(losses)
    assert got.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert got.accuracy == right / len(losses)
    assert got.perplexity == pytest.approx(math.exp(np.mean(losses)))
    assert got.characters is None
    assert got.bits_per_char is None


@given(st.integers(1, 30), st.integers(1, 40))
def test_pairs_and_batches_of_any_size_weigh_what_they_hold(model, pairs, batch_size):
    ids, targets = tokens(pairs * T).reshape(pairs, T), tokens(pairs * T, 1).reshape(pairs, T)
    targets[0, 1:] = -100  # do not count
    data = PairDataset(ids, targets)
    whole = evaluate(model, data, batch_size=1000)
    assert whole.tokens == pairs * T - (T - 1)
    for other in (data, BatchLoader(data, batch_size), list(BatchLoader(data, batch_size).one_epoch())):
        assert evaluate(model, other, batch_size=batch_size).loss == pytest.approx(whole.loss, rel=1e-12)
        assert evaluate(model, other, batch_size=batch_size).tokens == whole.tokens


def test_bits_per_character_with_one_character_per_token(model):
    tokenizer = CharTokenizer("abcdefghi")
    got = evaluate(model, SequenceDataset(tokens(40), T), tokenizer=tokenizer)
    assert got.characters == got.tokens == 39
    assert got.bits_per_char == pytest.approx(got.loss / math.log(2))


def test_bits_per_character_counts_characters_also_where_tokens_end_inside_one():
    class Bytes:
        def decode_bytes(self, ids):
            return bytes(np.asarray(ids).tolist())

    text = "naïve café – 日本語 🎉 text"
    ids = np.frombuffer(("?" + text).encode(), np.uint8).astype(np.int64)
    model = Transformer(TransformerConfig(256, 4, 8, 2, 1), seed=0)
    got = evaluate(model, SequenceDataset(ids, 4), tokenizer=Bytes(), batch_size=2)
    assert got.tokens == len(text.encode())
    assert got.characters == len(text)
    assert got.bits_per_char == pytest.approx(got.loss / math.log(2) * got.tokens / len(text))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = Transformer(TransformerConfig(V, T, 8, 2, 1))
    model.lm_head.weight.detach().zero_()
    got = evaluate(model, SequenceDataset(tokens(100), T))
    assert got.loss == pytest.approx(math.log(V))
    assert got.perplexity == pytest.approx(V)


def test_it_draws_nothing_and_leaves_modes_and_grad_as_they_were(model):
    model.train()
    model.blocks.eval()
    modes, state = [m.training for m in model.modules()], model.generator.bit_generator.state
    first = evaluate(model, SequenceDataset(tokens(50), T))
    assert evaluate(model, SequenceDataset(tokens(50), T)) == first
    assert [m.training for m in model.modules()] == modes
    assert model.generator.bit_generator.state == state
    assert tinygrad_llm.is_grad_enabled()
    with pytest.raises(IndexError):
        evaluate(model, PairDataset([1, 2], [1, 99]))
    assert [m.training for m in model.modules()] == modes
    model.train()


@given(st.integers(1, 80))
def test_max_tokens_takes_windows_evenly(model, most):
    got = evaluate(model, SequenceDataset(tokens(61), T), max_tokens=most)
    assert got.tokens <= max(most, T)
    assert got.tokens > min(most, 60) - T
    assert got == evaluate(model, SequenceDataset(tokens(61), T), max_tokens=most)


def test_one_line_for_people_and_plain_values_for_files(model):
    got = evaluate(model, SequenceDataset(tokens(40), T), tokenizer=CharTokenizer("abcdefghi"))
    assert "nats per token" in str(got)
    assert "bits per character" in str(got)
    assert "\n" not in str(got)
    assert Evaluation(**got.to_dict()) == got


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, ValueError, "evaluate: data: got no token to predict"),
        (3, {}, TypeError, "evaluate: data: got int, expected a dataset or batches"),
        (PairDataset([1], [-100]), {}, ValueError, "evaluate: data: got no token"),
        (PairDataset([1], [2]), {"batch_size": 0}, ValueError, "evaluate: batch_size: got 0"),
        (PairDataset([1], [2]), {"max_tokens": 0}, ValueError, "evaluate: max_tokens: got 0"),
    ],
)
def test_what_cannot_be_is_refused(model, data, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        evaluate(model, data, **options)


def test_a_loss_that_is_not_finite_is_refused():
    model = Transformer(TransformerConfig(V, T, 8, 2, 1))
    model.lm_head.weight.detach().fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"^evaluate: got a loss of nan"):
        evaluate(model, SequenceDataset(tokens(20), T))
