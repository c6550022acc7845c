"""Wrong input, row by row: the exception, and one clear line that names the argument."""

import warnings

import numpy as np
import pytest

from tinygrad_llm.data import (
    BatchLoader,
    CharTokenizer,
    Corpus,
    PairDataset,
    SequenceDataset,
    TiktokenTokenizer,
    get_tokenizer,
    load_corpus,
    open_token_file,
    read_chunks,
    split_text,
    tokenizer_from_dict,
    train_test_split,
    write_token_file,
)

CHAR = CharTokenizer("abc")
PAIRS = PairDataset(np.zeros((4, 3), int), np.zeros((4, 3), int))
TEXT = SequenceDataset(np.arange(10), 4)
LOADER = BatchLoader(PAIRS, 2)
STATE = LOADER.state_dict()
NAN = float("nan")

ROWS = [
    # tokenizers
    (lambda: CharTokenizer(""), ValueError, "text: got no characters, expected at least one"),
    (lambda: CharTokenizer(None), TypeError, "text: got NoneType, expected a str"),
    (lambda: CharTokenizer.from_chunks([]), ValueError, "text: got no characters, expected at least one"),
    (lambda: CHAR.encode("ab\U0001f600"), ValueError, "text: got character '😀' (U+1F600) at position 2, expected one"),
    (lambda: CHAR.encode("\n"), ValueError, "text: got character '\\n' (U+000A) at position 0, expected one of the 3"),
    (lambda: CHAR.encode(b"ab"), TypeError, "text: got bytes, expected a str"),
    (lambda: CHAR.decode([0, 3]), IndexError, "ids[1]: got 3, expected an id in [0, 3)"),
    (lambda: CHAR.decode([-1]), IndexError, "ids[0]: got -1, expected an id in [0, 3)"),
    (lambda: CHAR.decode(np.array([2**63], np.uint64)), IndexError, "ids[0]: got 9223372036854775808, expected an id"),
    (lambda: CHAR.decode([2**70]), TypeError, "ids: got objects, expected integers"),
    (lambda: CHAR.decode([0.5]), TypeError, "ids: got float64, expected integers"),
    (lambda: CHAR.decode([True]), TypeError, "ids: got booleans, expected integers"),
    (lambda: CHAR.decode("abc"), TypeError, "ids: got strings, expected integers"),
    (lambda: CHAR.decode(None), TypeError, "ids: got objects, expected integers"),
    (lambda: CHAR.decode([[0, 1]]), ValueError, "ids: got shape (1, 2), expected 0-D or 1-D"),
    (lambda: CHAR.decode([[0], [0, 1]]), ValueError, "ids: got rows of unequal length, expected one length for all"),
    (lambda: TiktokenTokenizer("cl100k"), ValueError, "tokenizer: got 'cl100k', expected one of cl100k_base, gpt2, "),
    (lambda: TiktokenTokenizer(3), TypeError, "tokenizer: got int, expected the name of a tiktoken encoding"),
    (lambda: get_tokenizer("word"), ValueError, "tokenizer: got 'word', expected one of char, cl100k_base, gpt2, "),
    (lambda: get_tokenizer("char"), ValueError, "text: got None, expected the text from which the char tokenizer"),
    (lambda: get_tokenizer(None), TypeError, "tokenizer: got NoneType, expected 'char' or the name of a tiktoken"),
    (
        lambda: tokenizer_from_dict({}),
        ValueError,
        "tokenizer: got a dict without 'kind', expected the one that to_dict",
    ),
    (lambda: tokenizer_from_dict([]), TypeError, "tokenizer: got list, expected the dict that to_dict() gives"),
    (lambda: tokenizer_from_dict({"kind": "bpe"}), ValueError, "kind: got 'bpe', expected one of char, tiktoken"),
    (lambda: tokenizer_from_dict({"kind": []}), ValueError, "kind: got [], expected one of char, tiktoken"),
    (lambda: tokenizer_from_dict({"kind": "char", "chars": "ba"}), ValueError, "chars: got characters that are repeat"),
    (lambda: tokenizer_from_dict({"kind": "char", "chars": "aa"}), ValueError, "chars: got characters that are repeat"),
    (lambda: tokenizer_from_dict({"kind": "char", "chars": 5}), TypeError, "chars: got int, expected a str"),
    # corpora
    (
        lambda: load_corpus("shakespear"),
        OSError,
        "corpus: got 'shakespear', expected shakespeare, stdlib, auto, or the",
    ),
    (lambda: load_corpus(""), ValueError, "corpus: got an empty path, expected the path of a file or folder"),
    (lambda: load_corpus(None), TypeError, "corpus: got NoneType, expected a path"),
    (
        lambda: load_corpus("empty.txt"),
        ValueError,
        "corpus: got 'empty.txt', which holds no text, expected at least one",
    ),
    (lambda: load_corpus("folder"), ValueError, "corpus: got 'folder', which holds no text, expected at least one"),
    (
        lambda: load_corpus("latin.txt"),
        ValueError,
        "text: got 'latin.txt', which is not UTF-8 (unexpected end of data)",
    ),
    (lambda: load_corpus("nul.txt"), ValueError, "text: got 'nul.txt', which holds a NUL character, expected a text"),
    (lambda: Corpus("c", ()), ValueError, "corpus: got 'c', which holds no text, expected at least one character"),
    (lambda: read_chunks("absent"), OSError, "path: got 'absent', expected a text file that exists"),
    (lambda: read_chunks("empty.txt", 0), ValueError, "chunk_chars: got 0, expected an integer >= 1"),
    # splits
    (lambda: split_text("abc", 0), ValueError, "test_fraction: got 0, expected a number between 0 and 1"),
    (lambda: split_text("abc", 1.0), ValueError, "test_fraction: got 1.0, expected a number between 0 and 1"),
    (lambda: split_text("abc", NAN), ValueError, "test_fraction: got nan, expected a number between 0 and 1"),
    (lambda: split_text("abc", "0.1"), TypeError, "test_fraction: got '0.1', expected a number between 0 and 1"),
    (lambda: split_text("a"), ValueError, "text: got length 1, expected at least 2, one for train and one for test"),
    (lambda: train_test_split([1]), ValueError, "tokens: got length 1, expected at least 2, one for train and one"),
    (lambda: train_test_split([[1, 2]]), ValueError, "tokens: got shape (1, 2), expected 1-D"),
    # datasets
    (
        lambda: SequenceDataset([1, 2, 3], 3),
        ValueError,
        "context_length: got 3, expected less than 3, the tokens in the",
    ),
    (lambda: SequenceDataset([], 1), ValueError, "context_length: got 1, expected less than 0, the tokens in the text"),
    (lambda: SequenceDataset([1, 2, 3], 0), ValueError, "context_length: got 0, expected an integer >= 1"),
    (lambda: SequenceDataset([1, 2, 3], 2.0), TypeError, "context_length: got 2.0, expected an integer >= 1"),
    (lambda: SequenceDataset([1, 2, 3], True), TypeError, "context_length: got True, expected an integer >= 1"),
    (lambda: SequenceDataset([1, 2, 3], 1, 0), ValueError, "stride: got 0, expected an integer >= 1"),
    (lambda: SequenceDataset([1, NAN], 1), TypeError, "tokens: got float64, expected integers"),
    (lambda: SequenceDataset([[1, 2]], 1), ValueError, "tokens: got shape (1, 2), expected 1-D"),
    (lambda: SequenceDataset([1, -2], 1), ValueError, "tokens: got -2, expected token ids >= 0"),
    (lambda: SequenceDataset("abc", 1), TypeError, "tokens: got strings, expected integers"),
    (lambda: TEXT[2], IndexError, "index: got 2, expected an index in [0, 2)"),
    (lambda: TEXT[-3], IndexError, "index: got -3, expected an index in [0, 2)"),
    (lambda: TEXT["a"], TypeError, "index: got strings, expected integers"),
    (lambda: TEXT[0:1], TypeError, "index: got objects, expected integers"),
    (lambda: TEXT.batch([0.5]), TypeError, "index: got float64, expected integers"),
    (lambda: PairDataset([1, 2], [1]), ValueError, "targets: got shape (1,), expected (2,), that of inputs"),
    (lambda: PairDataset([], []), ValueError, "inputs: got shape (0,), expected at least one token"),
    (lambda: PairDataset([[1], [1, 2]], [[1], [1]]), ValueError, "inputs: got rows of unequal length, expected one"),
    (lambda: PairDataset([-1], [1]), ValueError, "inputs: got -1, expected token ids >= 0"),
    (lambda: PairDataset([1], [NAN]), TypeError, "targets: got float64, expected integers"),
    # batches
    (lambda: BatchLoader([1, 2], 1), TypeError, "dataset: got list, expected a SequenceDataset or PairDataset"),
    (lambda: BatchLoader(PAIRS, 0), ValueError, "batch_size: got 0, expected an integer >= 1"),
    (lambda: BatchLoader(PAIRS, 5, drop_last=True), ValueError, "batch_size: got 5, expected at most 4, the pairs in"),
    (lambda: BatchLoader(PAIRS, 1, seed=-1), ValueError, "seed: got -1, expected an integer >= 0"),
    (lambda: BatchLoader(PAIRS, 1, seed=0.5), TypeError, "seed: got 0.5, expected an integer >= 0"),
    (lambda: BatchLoader(PAIRS, 1, shuffle=1), TypeError, "shuffle: got 1, expected True or False"),
    (lambda: BatchLoader(PAIRS, 1, drop_last=None), TypeError, "drop_last: got None, expected True or False"),
    (lambda: LOADER.load_state_dict([]), TypeError, "state: got list, expected the dict that state_dict() gives"),
    (
        lambda: LOADER.load_state_dict({}),
        ValueError,
        "state: got fields that differ in 'batch', expected epoch, batch,",
    ),
    (lambda: LOADER.load_state_dict({**STATE, "x": 1}), ValueError, "state: got fields that differ in 'x', expected"),
    (lambda: LOADER.load_state_dict({**STATE, "batch": 2}), ValueError, "batch: got 2, expected an integer in [0, 1]"),
    (lambda: LOADER.load_state_dict({**STATE, "epoch": -1}), ValueError, "epoch: got -1, expected an integer >= 0"),
    (lambda: LOADER.load_state_dict({**STATE, "epoch": "1"}), TypeError, "epoch: got '1', expected an integer >= 0"),
    # token files
    (lambda: open_token_file("absent.npy"), OSError, "path: got 'absent.npy', which cannot be read (No such file or"),
    (lambda: open_token_file("folder"), OSError, "path: got 'folder', which cannot be read (Is a directory), expected"),
    (lambda: open_token_file("latin.txt"), ValueError, "path: got 'latin.txt', which is torn or no token file ("),
    (lambda: open_token_file(None), TypeError, "path: got NoneType, expected a path"),
    (lambda: write_token_file("folder", "abc", CHAR), OSError, "path: got 'folder', which cannot be written (Is a dir"),
    (lambda: write_token_file("x", 5, CHAR), TypeError, "text: got int, expected a str or pieces of one"),
    (lambda: write_token_file("x", [b"a"], CHAR), TypeError, "text: got a piece of type bytes, expected a str"),
    (lambda: write_token_file("x", "abc", "char"), TypeError, "tokenizer: got str, expected a CharTokenizer or Tiktok"),
    (lambda: write_token_file("x", "abc", CHAR, 0), ValueError, "chunk_chars: got 0, expected an integer >= 1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "folder").mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "nul.txt").write_bytes(b"a\0b")
    return folder


@pytest.mark.parametrize(("call", "kind", "line"), ROWS, ids=[line[:40] for _, _, line in ROWS])
def test_one_clear_line(folder, monkeypatch, capfd, call, kind, line):
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind) as error:
            call()
    message = str(error.value)
    assert message.startswith(line)
    assert ", expected" in message
    assert "\n" not in message
    assert sorted(path.name for path in folder.iterdir()) == before
    assert capfd.readouterr() == ("", "")
    assert (LOADER.epoch, LOADER.batch_index) == (0, 0)
