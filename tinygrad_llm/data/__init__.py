"""Text to batches: corpora, tokenizers, train/test split, sequence pairs, shuffled batches, token files."""

from tinygrad_llm.data.batches import BatchLoader
from tinygrad_llm.data.corpora import Corpus, load_corpus, read_chunks
from tinygrad_llm.data.datasets import Dataset, PairDataset, SequenceDataset
from tinygrad_llm.data.splits import split_text, train_test_split
from tinygrad_llm.data.token_files import open_token_file, token_file_info, token_file_tokenizer, write_token_file
from tinygrad_llm.data.tokenizers import (
    CharTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    get_tokenizer,
    tokenizer_from_dict,
)

__all__ = [
    "BatchLoader",
    "CharTokenizer",
    "Corpus",
    "Dataset",
    "PairDataset",
    "SequenceDataset",
    "TiktokenTokenizer",
    "Tokenizer",
    "get_tokenizer",
    "load_corpus",
    "open_token_file",
    "read_chunks",
    "split_text",
    "token_file_info",
    "token_file_tokenizer",
    "tokenizer_from_dict",
    "train_test_split",
    "write_token_file",
]
