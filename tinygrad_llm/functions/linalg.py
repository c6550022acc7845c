"""torch.linalg: the part of it that there is."""

from tinygrad_llm.functions.reductions import vector_norm

__all__ = ["vector_norm"]
