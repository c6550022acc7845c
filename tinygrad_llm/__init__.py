"""tinygrad_llm: a decoder-only LLM in pure NumPy, every gradient by hand."""

from tinygrad_llm import autograd, func, functions, nn, ops, optim
from tinygrad_llm._version import __version__
from tinygrad_llm.autograd import (
    AnomalyError,
    AutogradError,
    Tensor,
    detect_anomaly,
    enable_grad,
    grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from tinygrad_llm.functions import *  # noqa: F403
from tinygrad_llm.functions import __all__ as _functions
from tinygrad_llm.model import Transformer, TransformerConfig

__all__ = [
    "AnomalyError", "AutogradError", "Tensor", "Transformer", "TransformerConfig", "__version__", "autograd",
    "detect_anomaly", "enable_grad", "func", "functions", "grad", "inference_mode", "is_grad_enabled",
    "is_inference_mode_enabled", "nn", "no_grad", "ops", "optim", "set_grad_enabled",
    *_functions,
]
