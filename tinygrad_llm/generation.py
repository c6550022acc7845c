"""Text from a model, one token after the other: greedy or sampled, streamed as it comes."""

from __future__ import annotations

import codecs
import math
import numbers
import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd import no_grad
from tinygrad_llm.autograd.randomness import chosen
from tinygrad_llm.data import CharTokenizer, Tokenizer
from tinygrad_llm.decoding import Decoder, UnknownModuleError, WeightsChangedError
from tinygrad_llm.ops import ShapeError
from tinygrad_llm.ops.numbers import plain

__all__ = ["generate", "generate_text", "next_token_probabilities", "stream_text"]


def generate(
    model: Any, ids: Any, max_new_tokens: int, *, temperature: float = 0.0, top_k: int | None = None,
    top_p: float | None = None, stop_ids: Iterable[int] = (), generator: np.random.Generator | None = None,
) -> Iterator[int]:
    """The tokens that continue ids, one by one, as they are computed.

    ids              integers [T], T >= 1; where T grows beyond the model's context_length, it sees the last of them
    max_new_tokens   how many at most
    temperature      0: always the likeliest token, the lowest id of equals. Otherwise tokens are drawn from
                     softmax(logits / temperature): 1 is the model's own distribution, less is more cautious
    top_k, top_p     draw from a part of it only, see next_token_probabilities
    stop_ids         ends at one of these tokens, which is not given
    generator        one number is drawn from it per token; None: the library's (tinygrad_llm.manual_seed)

    A Transformer reads each token once, over a cache (see decoding.py), as long as all fit into context_length; its weights
    must not change meanwhile. A model of another make is asked for `decoder()`, and without one run on all ids each time.

    Raises TypeError or ValueError (IndexError for an id outside the vocabulary) here, not when the first token is asked
    for; FloatingPointError where the model gives logits that are no numbers.
    """
    config = model.config
    context = _checked_ids(ids, config.vocab_size)
    _check_count("max_new_tokens", max_new_tokens, 0)
    _check_sampling(temperature, top_k, top_p)
    choose = _chooser(temperature, top_k, top_p, chosen("generator", generator))
    return _tokens(model, context, max_new_tokens, config.context_length, choose, _checked_stop_ids(stop_ids))


def _tokens(
    model: Any, ids: list[int], count: int, length: int, choose: Any, stop_ids: frozenset[int]
) -> Iterator[int]:
    decoder = _decoder(model)
    for _ in range(count):
        logits = _logits(model, ids[-length:]) if decoder is None else _read_on(decoder, ids, length)
        if logits.size != model.config.vocab_size:
            raise ShapeError(f"generate: got {logits.size} logits, expected {model.config.vocab_size}, one for each token")
        if not math.isfinite(logits.max()):
            raise FloatingPointError(f"generate: got a logit of {logits.max()}, expected finite numbers")
        token = choose(logits)
        if token in stop_ids:
            return
        ids.append(token)
        yield token


def _decoder(model: Any) -> Any:
    """What reads on over a cache: the model's own `decoder()`, or ours, where it knows all modules; else None."""
    if hasattr(model, "decoder"):
        return model.decoder()
    try:
        return Decoder(model)
    except UnknownModuleError:
        return None


def _read_on(decoder: Any, ids: list[int], length: int) -> np.ndarray:
    """float64 [V]: scores of the token that follows ids, of which the decoder has read a beginning.

    Where they are more than `length`, each token has another position than in the step before: the last are read anew.
    """
    if len(ids) > length:
        decoder.clear()
        ids = ids[-length:]
    try:
        logits = decoder(np.array([ids[decoder.length :]], dtype=np.int64))
    except WeightsChangedError:  # the caller has trained the model since the last token
        decoder.clear()
        logits = decoder(np.array([ids], dtype=np.int64))
    return logits[0].astype(np.float64)


def _logits(model: Any, ids: list[int]) -> np.ndarray:
    """float64 [V]: scores of the token that follows ids, by running the model on all of them.

    Mode and no_grad are set here and not around the loop: between two tokens the caller runs, with its own.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            return model(np.array([ids], dtype=np.int64)).numpy()[0, -1].astype(np.float64)
    finally:
        for module, training in modes:
            module.training = training


def _chooser(temperature: float, top_k: int | None, top_p: float | None, generator: np.random.Generator) -> Any:
    if temperature == 0:
        return lambda logits: int(logits.argmax())

    def draw(logits: np.ndarray) -> int:
        order, probabilities = _candidates(logits, temperature, top_k, top_p)
        up_to = np.cumsum(probabilities)
        return int(order[np.searchsorted(up_to[:-1], generator.random() * up_to[-1], side="right")])

    return draw


def next_token_probabilities(
    logits: Any, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """The distribution that `generate` draws the next token from.   logits [V] → float64 [V], sum 1

    p = softmax(logits / temperature), of which in turn only this is kept, and scaled to sum to 1:
    top_k    the k likeliest tokens, the lower id of equals. Fan et al. 2018, arXiv:1805.04833
    top_p    the fewest likeliest tokens whose probabilities sum to p or more, in (0, 1], at least one. Holtzman et al.
             2020, arXiv:1904.09751
    temperature 0 gives 1 to the likeliest token. Raises TypeError or ValueError, naming the argument.
    """
    _check_sampling(temperature, top_k, top_p)
    logits = _finite_scores(logits)
    out = np.zeros(logits.shape)
    if temperature == 0:
        out[np.argmax(logits)] = 1.0
        return out
    order, probabilities = _candidates(logits, temperature, top_k, top_p)
    out[order] = probabilities
    return out


def _finite_scores(logits: Any) -> np.ndarray:
    """float64 [V]. Errors: ValueError for another shape, and where no token or a nan is among them."""
    try:
        found = np.asarray(logits, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"logits: got {type(logits).__name__}, expected numbers [vocab_size]") from None
    if found.ndim != 1 or not found.size:
        raise ShapeError(f"logits: got shape {found.shape}, expected [vocab_size], at least one")
    if not np.isfinite(largest := found.max()):  # nan where any is
        raise ValueError(f"logits: got {largest} as the largest, expected a finite one")
    return found


def _candidates(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that can be drawn, likeliest first (all of them: by id), and their probabilities."""
    is_whole = top_k is None and top_p is None
    order = np.arange(len(logits)) if is_whole else np.argsort(-logits, kind="stable")[:top_k]
    with np.errstate(over="ignore"):  # a tiny temperature: −inf is right
        probabilities = np.exp(_below_largest(logits[order], logits.max(), temperature))
    probabilities /= probabilities.sum()
    if top_p is not None and top_p < 1:  # the sum before an unlikely token rounds to 1
        before = np.cumsum(probabilities) - probabilities
        count = max(int(np.count_nonzero(before < top_p)), 1)
        order, probabilities = order[:count], probabilities[:count] / probabilities[:count].sum()
    return order, probabilities


def _below_largest(logits: np.ndarray, largest: float, temperature: float) -> np.ndarray:
    """(logits − largest) / temperature, where neither the difference nor the quotient alone leaves float64."""
    if temperature > 1:
        return logits / temperature - largest / temperature
    return (logits - largest) / temperature


# Text -----------------------------------------------------------------------------------------------------------------


def stream_text(
    model: Any, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 200, *, temperature: float = 0.0,
    top_k: int | None = None, top_p: float | None = None, stop: str | Sequence[str] = (), stop_ids: Iterable[int] = (),
    seed: int | None = 0,
) -> Iterator[str]:
    """The text that continues prompt, which is not repeated, piece by piece, as it is known.

    A piece holds whole characters only, also where a token ends inside one; one that the last token leaves unfinished
    is not given. stop: one or more strings; the text ends before the one that is complete first, and no piece ever
    holds a part of it. seed: of sampling; None: another text each time. The rest is as in `generate`.

    Raises what generate and tokenizer.encode raise, here and not when the first piece is asked for.
    """
    stops = _checked_stops(stop)
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: got {type(prompt).__name__}, expected a str")
    if not prompt:
        raise ValueError("prompt: got no characters, expected at least one: the model continues a text")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(f"tokenizer: got a vocabulary of {tokenizer.vocab_size}, expected {model.config.vocab_size}, "
                         "that of the model")
    if seed is not None:
        _check_count("seed", seed, 0)
    tokens = generate(
        model, tokenizer.encode(prompt), max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        stop_ids=stop_ids, generator=np.random.default_rng(seed),
    )
    return _until(stops, _characters(tokenizer, tokens))


def generate_text(model: Any, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 200, **options: Any) -> str:
    """The pieces of stream_text, which takes the same options, in one str."""
    return "".join(stream_text(model, tokenizer, prompt, max_new_tokens, **options))


def _characters(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as far as its characters are complete; bytes that are not UTF-8 become U+FFFD."""
    if isinstance(tokenizer, CharTokenizer):  # whose tokens are whole characters, lone surrogates among them
        yield from (tokenizer.decode([token]) for token in tokens)
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(tokenizer.decode_bytes([token]))


def _until(stops: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
    """The text up to the stop string that ends first. What may be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [(at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0]
        if ends:
            held = held[: min(ends)[1]]
            break
        sure = len(held) - max((_overlap(held, stop) for stop in stops), default=0)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of text are a beginning, but not all, of stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


# Checks ---------------------------------------------------------------------------------------------------------------


def _checked_ids(ids: Any, vocab_size: int) -> list[int]:
    try:
        array = np.asarray(ids)
    except ValueError:
        raise ValueError(f"ids: got {ids!r}, expected the tokens of one sequence, in a row") from None
    if array.ndim != 1 or not array.size:
        raise ValueError(f"ids: got shape {array.shape}, expected at least one token in a row")
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids: got {array.dtype}, expected integers")
    outside = (array < 0) | (array >= vocab_size)
    if outside.any():
        where = int(np.argmax(outside))
        raise IndexError(f"ids[{where}]: got {array[where]}, expected an id in [0, {vocab_size})")
    return array.tolist()


def _checked_stop_ids(stop_ids: Any) -> frozenset[int]:
    try:
        return frozenset([operator.index(i) for i in stop_ids])
    except TypeError:
        raise TypeError(f"stop_ids: got {stop_ids!r}, expected a list of integers") from None


def _checked_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in stops:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop: got {text!r}, expected strings of at least one character")
    return stops


def _check_count(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: got {value!r}, expected an integer >= {low}")
    if value < low:
        raise ValueError(f"{name}: got {value}, expected an integer >= {low}")


def _check_sampling(temperature: Any, top_k: Any, top_p: Any) -> None:
    _check_number("temperature", plain(temperature), lambda t: 0 <= t <= sys.float_info.max, "a number >= 0")
    if top_k is not None:
        _check_count("top_k", top_k, 1)
    if top_p is not None:
        _check_number("top_p", top_p, lambda p: 0 < p <= 1, "a number in (0, 1]")


def _check_number(name: str, value: Any, accepts: Any, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not accepts(value):
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
