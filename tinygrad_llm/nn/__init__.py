"""Modules, layers and functional, named as in torch.nn."""

from tinygrad_llm.nn import functional
from tinygrad_llm.nn.layers import Dropout, Embedding, LayerNorm, Linear
from tinygrad_llm.nn.module import LoadResult, Module, ModuleList, Parameter

__all__ = [
    "Dropout", "Embedding", "LayerNorm", "Linear", "LoadResult", "Module", "ModuleList", "Parameter", "functional",
]
