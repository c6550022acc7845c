"""Modules, layers and functional, named as in torch.nn."""

from tinygrad_llm.nn import functional, init
from tinygrad_llm.nn.layers import GELU, Dropout, Embedding, LayerNorm, Linear, ReLU, RMSNorm, SiLU
from tinygrad_llm.nn.module import LoadResult, Module, ModuleList, Parameter

__all__ = [
    "GELU", "Dropout", "Embedding", "LayerNorm", "Linear", "LoadResult", "Module", "ModuleList", "Parameter", "RMSNorm", "ReLU",
    "SiLU", "functional", "init",
]
