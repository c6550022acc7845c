"""Generation: what is chosen, what is streamed, what is refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinygrad_llm
from tinygrad_llm import Transformer, TransformerConfig, nn
from tinygrad_llm.data import CharTokenizer
from tinygrad_llm.generation import _characters, generate, generate_text, next_token_probabilities, stream_text
from tinygrad_llm.ops import ShapeError

V = 12


def small(**options):
    return Transformer(TransformerConfig(V, 8, 16, 2, 2, **options), seed=3)


class Scripted(nn.Module):
    """A model that wants to say one given sequence, or gives the same logits always."""

    def __init__(self, vocab_size, script=(), logits=None, context_length=1000):
        self.config = SimpleNamespace(vocab_size=vocab_size, context_length=context_length)
        self.script, self.logits, self.seen = list(script), logits, []

    def forward(self, ids):
        self.seen.append(ids.copy())
        logits = np.zeros((*ids.shape, self.config.vocab_size))
        if self.logits is not None:
            logits[:] = self.logits
        else:
            logits[..., self.script[len(self.seen) - 1]] = 1.0
        return tinygrad_llm.tensor(logits)


class Bytes:
    """A tokenizer whose tokens are bytes, so that most end inside a character of other alphabets."""

    vocab_size = 256

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        return bytes(ids)

    def to_dict(self):
        return {}


class Words:
    """A tokenizer of one token for the prompt, and then one for each piece of a text."""

    def __init__(self, pieces):
        self.words = ["?", *pieces]
        self.vocab_size = len(self.words)

    def encode(self, text):
        return np.zeros(1, np.int64)

    def decode_bytes(self, ids):
        return "".join(self.words[i] for i in ids).encode()


def saying(text):
    """A model that continues every prompt with text, byte by byte."""
    data = text.encode() if isinstance(text, str) else text
    return Scripted(256, data), Bytes(), len(data)


# Which token ----------------------------------------------------------------------------------------------------------


def test_greedy_is_the_likeliest_token_of_the_whole_model():
    model, ids = small(), [1, 2, 3]
    expected = list(ids)
    for _ in range(12):
        logits = model(np.array([expected[-8:]])).numpy()[0, -1]
        expected.append(int(np.argmax(logits)))
    assert list(generate(model, ids, 12)) == expected[3:]


def test_the_context_slides():
    model = Scripted(V, [5, 6, 7, 8], context_length=3)
    assert list(generate(model, [1, 2], 4)) == [5, 6, 7, 8]
    assert [seen.tolist()[0] for seen in model.seen] == [[1, 2], [1, 2, 5], [2, 5, 6], [5, 6, 7]]


def test_of_equals_greedy_takes_the_lowest_id():
    logits = np.array([0.0, 3.0, 1.0, 3.0])
    assert list(generate(Scripted(4, logits=logits), [0], 3)) == [1, 1, 1]
    assert next_token_probabilities(logits, 0.0).tolist() == [0, 1, 0, 0]
    assert np.flatnonzero(next_token_probabilities(logits, 1.0, top_k=1)).tolist() == [1]


def test_stop_ids_end_it_and_are_not_given():
    model = Scripted(V, [5, 6, 7, 8])
    assert list(generate(model, [1], 4, stop_ids=[7])) == [5, 6]
    assert list(generate(Scripted(V, [5]), [1], 0)) == []


def test_tokens_come_one_by_one_and_between_them_the_caller_has_its_own_mode():
    model = small(dropout=0.5)
    model.blocks.eval()
    before = [module.training for module in model.modules()]
    tokens = generate(model, [1], 3)
    for _ in range(3):
        next(tokens)
        assert tinygrad_llm.is_grad_enabled()
        assert [module.training for module in model.modules()] == before
    assert len({tuple(generate(model, [1], 5)) for _ in range(3)}) == 1  # no dropout


def test_the_callers_ids_are_left_alone():
    ids = [1, 2]
    list(generate(small(), ids, 3))
    assert ids == [1, 2]


# The distribution -----------------------------------------------------------------------------------------------------


def direct(logits, temperature, top_k, top_p):
    """The definition, with sets and Python floats."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    weight = {i: math.exp((logits[i] - max(logits)) / temperature) for i in ranked}
    p = {i: w / math.fsum(weight.values()) for i, w in weight.items()}
    if top_p is not None:
        count = next((n for n in range(1, len(ranked)) if math.fsum(p[i] for i in ranked[:n]) >= top_p), len(ranked))
        p = {i: p[i] / math.fsum(p[j] for j in ranked[:count]) for i in ranked[:count]}
    return [p.get(i, 0.0) for i in range(len(logits))]


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0.1, 3), st.none() | st.integers(1, 14),
    st.none() | st.floats(0.01, 1),
)
def test_the_distribution_is_its_definition(logits, temperature, top_k, top_p):
    ours = next_token_probabilities(logits, temperature, top_k, top_p)
    theirs = direct(logits, temperature, top_k, top_p)
    assert ours.sum() == pytest.approx(1)
    if top_p is None or not near_a_cut(logits, temperature, top_k, top_p):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("logits", [[0.0, -50.0], [0.0, -50.0, -60.0, 3.0], [-700.0, 0.0, -1.0], [1e3, 0.0]])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 30.0])
def test_a_top_p_of_1_keeps_all(logits, temperature):
    whole = next_token_probabilities(logits, temperature)
    assert np.array_equal(next_token_probabilities(logits, temperature, top_p=1.0) > 0, whole > 0)
    np.testing.assert_allclose(next_token_probabilities(logits, temperature, top_p=1.0), whole, rtol=1e-15)


def near_a_cut(logits, temperature, top_k, top_p):
    """Whether top_p falls on a sum, where rounding may decide."""
    sums = np.cumsum(sorted(direct(logits, temperature, top_k, None), reverse=True))
    return np.abs(sums - top_p).min() < 1e-9


def test_top_p_is_the_fewest_that_reach_it():
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    for p, count in [(0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (0.9, 4), (1.0, 4)]:
        assert np.count_nonzero(next_token_probabilities(logits, top_p=p)) == count, p


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.8}, {"top_k": 6, "top_p": 0.7}])
def test_tokens_are_drawn_as_often_as_the_distribution_says(options):
    logits, n = np.random.default_rng(1).standard_normal(V) * 1.5, 6000
    p = next_token_probabilities(logits, 0.8, **options)
    model = Scripted(V, logits=logits, context_length=1)
    drawn = np.bincount(
        list(generate(model, [0], n, temperature=0.8, generator=np.random.default_rng(7), **options)), minlength=V)
    assert not drawn[p == 0].any()
    kept = p > 0
    chi_square = ((drawn[kept] - n * p[kept]) ** 2 / (n * p[kept])).sum()
    freedom = kept.sum() - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_a_seed_decides_the_text_and_another_seed_another():
    model = small()

    def draw(seed):
        return list(generate(model, [1], 20, temperature=1.0, generator=np.random.default_rng(seed)))

    tinygrad_llm.manual_seed(0)
    assert draw(0) == draw(0) == list(generate(model, [1], 20, temperature=1.0))
    assert draw(0) != list(generate(model, [1], 20, temperature=1.0))
    assert len({tuple(draw(seed)) for seed in range(5)}) == 5


def test_a_tiny_temperature_is_greedy_and_masked_tokens_are_never_drawn():
    logits = np.array([1.0, 2.0, -np.inf, 2.5])
    assert next_token_probabilities(logits, 1e-300).tolist() == [0, 0, 0, 1]
    assert next_token_probabilities(logits)[2] == 0
    assert set(generate(Scripted(4, logits=logits), [0], 300, temperature=5.0)) == {0, 1, 3}


# Text -----------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_pieces_are_whole_characters_and_join_to_the_text(text):
    model, tokenizer, count = saying(text)
    pieces = list(stream_text(model, tokenizer, "?", count))
    assert "".join(pieces) == text
    assert all(pieces)
    assert len(pieces) == len(text)  # each as soon as its last byte is there


@given(st.text(st.characters(), max_size=20))
def test_pieces_of_single_characters_join_to_what_the_tokenizer_decodes(text):
    """Lone surrogates among them, which no bytes of UTF-8 stand for."""
    tokenizer = CharTokenizer(text + "a")
    ids = tokenizer.encode(text)
    pieces = list(_characters(tokenizer, ids.tolist()))
    assert pieces == list(text)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_an_unfinished_character_is_not_given_and_bytes_that_are_none_are_marked():
    model, tokenizer, count = saying("aé"[:1].encode() + "é".encode()[:1])
    assert "".join(stream_text(model, tokenizer, "?", count)) == "a"
    model, tokenizer, count = saying(b"a\xffb")
    assert generate_text(model, tokenizer, "?", count) == "a\N{REPLACEMENT CHARACTER}b"


def cut_directly(text, stops):
    """Read character by character; the first stop string that is complete ends the text before it."""
    for end in range(len(text) + 1):
        if done := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, done))]
    return text


@given(st.text("ab\n", max_size=25), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_exactly_and_no_piece_holds_a_part_of_one(text, stops):
    model, tokenizer, count = saying(text)
    shown, expected = "", cut_directly(text, stops)
    for piece in stream_text(model, tokenizer, "?", count, stop=stops):
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected


@given(
    st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=8),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
@example(["abb"], ["abb", "b"])  # the one that begins first is not complete first
def test_where_the_text_is_cut_does_not_depend_on_the_tokens(pieces, stops):
    tokenizer = Words(pieces)
    model = Scripted(tokenizer.vocab_size, range(1, tokenizer.vocab_size))
    assert generate_text(model, tokenizer, "?", len(pieces), stop=stops) == cut_directly("".join(pieces), stops)


def test_a_stop_string_does_not_hold_back_what_cannot_belong_to_it():
    model, tokenizer, count = saying("hello end")
    assert next(iter(stream_text(model, tokenizer, "?", count, stop="END"))) == "h"
    assert len(model.seen) == 1


def test_generation_ends_at_a_stop_string():
    model, tokenizer, count = saying("one.two.three")
    assert generate_text(model, tokenizer, "?", count, stop=".") == "one"
    assert len(model.seen) == 4


def test_text_with_a_trained_sort_of_model_and_a_seed():
    tokenizer = CharTokenizer("abcdefghijkl")
    model = small()
    once = generate_text(model, tokenizer, "abc", 20, temperature=1.0, top_k=5, top_p=0.9, seed=4)
    assert once == generate_text(model, tokenizer, "abc", 20, temperature=1.0, top_k=5, top_p=0.9, seed=4)
    assert len(once) == 20
    assert generate_text(model, tokenizer, "abc", 20, temperature=1.0, seed=5) != once
    assert len({generate_text(model, tokenizer, "abc", 20, temperature=1.0, seed=None) for _ in range(3)}) == 3


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ids": []}, ValueError, r"ids: got shape \(0,\), expected at least one token"),
        ({"ids": [[1]]}, ValueError, r"ids: got shape \(1, 1\)"),
        ({"ids": [0.5]}, TypeError, "ids: got float64, expected integers"),
        ({"ids": [1, 99]}, IndexError, r"ids\[1\]: got 99, expected an id in \[0, 12\)"),
        ({"ids": [-1]}, IndexError, r"ids\[0\]: got -1"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens: got -1, expected an integer >= 0"),
        ({"max_new_tokens": 1.5}, TypeError, "max_new_tokens: got 1.5"),
        ({"temperature": -0.1}, ValueError, "temperature: got -0.1, expected a number >= 0"),
        ({"temperature": math.nan}, ValueError, "temperature: got nan"),
        ({"temperature": math.inf}, ValueError, "temperature: got inf"),
        ({"temperature": "1"}, TypeError, "temperature: got '1'"),
        ({"top_k": 0}, ValueError, "top_k: got 0, expected an integer >= 1"),
        ({"top_k": 2.0}, TypeError, "top_k: got 2.0"),
        ({"top_p": 0.0}, ValueError, r"top_p: got 0.0, expected a number in \(0, 1\]"),
        ({"top_p": 1.1}, ValueError, "top_p: got 1.1"),
        ({"top_p": math.nan}, ValueError, "top_p: got nan"),
        ({"generator": 3}, TypeError, "generator: got int"),
    ],
)
def test_what_cannot_be_is_refused_at_once_in_one_line(changes, error, message):
    arguments = {"ids": [1], "max_new_tokens": 3, **changes}
    with pytest.raises(error, match=f"^{message}") as raised:
        generate(small(), **arguments)  # no next()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompt": ""}, ValueError, "prompt: got no characters, expected at least one"),
        ({"prompt": None}, TypeError, "prompt: got NoneType, expected a str"),
        ({"prompt": "xyz"}, ValueError, "text: got character 'x'"),
        ({"tokenizer": CharTokenizer("abc")}, ValueError, "tokenizer: got a vocabulary of 3, expected 12"),
        ({"stop": ""}, ValueError, "stop: got ''"),
        ({"stop": ["a", 3]}, ValueError, "stop: got 3"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"top_k": 0}, ValueError, "top_k: got 0"),
    ],
)
def test_text_that_cannot_be_is_refused_at_once_in_one_line(changes, error, message):
    arguments = {"tokenizer": CharTokenizer("abcdefghijkl"), "prompt": "a", **changes}
    with pytest.raises(error, match=f"^{message}") as raised:
        stream_text(small(), **arguments)  # no next()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits = np.array([0.0, bad, 1.0])
    with pytest.raises(FloatingPointError, match="expected finite numbers"):
        next(generate(Scripted(3, logits=logits), [0], 1))


@pytest.mark.parametrize(("logits", "message"), [
    ([-math.inf, -math.inf], "got -inf as the largest"), ([math.nan, 1.0], "got nan as the largest"),
    ([0.0, math.nan, -math.inf], "got nan as the largest"), ([math.inf, 1.0], "got inf as the largest"),
    ([[1.0, 2.0]], r"got shape \(1, 2\), expected \[vocab_size\]"), ([], r"got shape \(0,\)"), (1.0, r"got shape \(\)"),
    (["a"], "got list, expected numbers"), ([[1], [1, 2]], "got list, expected numbers"),
])
def test_what_is_no_list_of_scores_is_refused_in_one_line(logits, message):
    for temperature in (0.0, 1.0):
        with pytest.raises((ValueError, TypeError), match=f"^logits: {message}") as raised:
            next_token_probabilities(logits, temperature)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("classes", [V - 1, V + 1])
def test_a_model_with_other_tokens_than_it_says_is_refused(classes):
    class Wrong(Scripted):
        def forward(self, ids):
            return tinygrad_llm.tensor(np.zeros((*ids.shape, classes)))

    with pytest.raises(ShapeError, match=rf"generate: got {classes} logits, expected {V}, one for each token"):
        list(generate(Wrong(V), [1], 2))


# The ends of numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-45, np.float32(1e-45), np.float16(6e-8)])
def test_the_least_temperatures_leave_the_likeliest(temperature):
    assert next_token_probabilities([0.0, 3.0, -math.inf, 3.0], temperature).tolist() == [0, 0.5, 0, 0.5]
    assert next_token_probabilities([-1e308, 1e308], temperature).tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [1e300, 1.7e308])
def test_the_largest_temperatures_level_all_but_what_is_hidden(temperature):
    assert next_token_probabilities([0.0, 30.0, -math.inf], temperature).tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("unit", [5e-324, 1e-300, 1.0, 1e300, 8e307])
def test_scores_and_temperature_of_any_size_have_the_same_ratio(unit):
    found = next_token_probabilities(np.array([2.0, 0.0, -2.0, 1.0]) * unit, unit)
    np.testing.assert_allclose(found, next_token_probabilities([2.0, 0.0, -2.0, 1.0]), 1e-12)


@pytest.mark.parametrize("temperature", [10**400, -(10**400), 1j, np.complex64(1), np.True_])
def test_what_is_no_temperature_is_refused_in_one_line(temperature):
    with pytest.raises((ValueError, TypeError), match=r"^temperature: got .*, expected a number >= 0$"):
        next_token_probabilities([1.0, 2.0], temperature)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.uint8, bool])
def test_scores_of_any_dtype_are_float64s(dtype):
    scores = np.array([0, 1, 1], dtype)
    np.testing.assert_array_equal(next_token_probabilities(scores), next_token_probabilities(scores.astype(float)))


@pytest.mark.parametrize(("options", "kept"), [
    ({"top_k": 1}, [1]), ({"top_k": 2}, [1, 2]), ({"top_k": np.int64(3)}, [1, 2, 4]), ({"top_k": np.uint8(2)}, [1, 2]),
    ({"top_k": 99}, [0, 1, 2, 3, 4]), ({"top_k": 2**70}, [0, 1, 2, 3, 4]), ({"top_p": 5e-324}, [1]),
    ({"top_p": 1}, [0, 1, 2, 3, 4]),
    ({"top_p": np.float16(0.5)}, [1, 2]), ({"top_p": np.float32(1)}, [0, 1, 2, 3, 4]), ({"top_k": 4, "top_p": 1e-9}, [1]),
])
def test_of_equals_at_the_border_the_lowest_ids_stay(options, kept):
    found = next_token_probabilities([0.0, 2.0, 2.0, -1.0, 2.0], **options)
    assert np.flatnonzero(found).tolist() == kept
    assert abs(found.sum() - 1) < 1e-12


def test_what_is_hidden_stays_hidden_however_many_are_kept():
    for options in ({"top_k": 3}, {"top_p": 1.0}, {"top_p": math.nextafter(1, 0)}, {"top_k": 4, "top_p": 1.0}):
        found = next_token_probabilities([-math.inf, 0.0, -math.inf, 1.0], **options)
        assert np.flatnonzero(found).tolist() == [1, 3]
    model, generator = Scripted(3, logits=[-math.inf, 0.0, -math.inf]), np.random.default_rng(0)
    assert list(generate(model, [0], 50, temperature=1.7e308, generator=generator)) == [1] * 50
