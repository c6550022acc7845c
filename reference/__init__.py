"""The same Transformer in idiomatic PyTorch, and the evidence that the two are one function."""
