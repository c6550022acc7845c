"""tinygrad_llm: a decoder-only LLM in pure NumPy, every gradient by hand."""

from tinygrad_llm._version import __version__
