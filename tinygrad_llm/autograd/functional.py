"""torch.autograd.functional's names, as far as they differ from torch.func's."""

from tinygrad_llm.autograd.transforms import hvp

__all__ = ["hvp"]
