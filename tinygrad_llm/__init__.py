"""tinygrad_llm: a decoder-only LLM in pure NumPy, every gradient by hand."""

from tinygrad_llm import autograd, func, functions, nn, ops, optim
from tinygrad_llm._version import __version__
from tinygrad_llm.autograd import (
    AnomalyError,
    AutogradError,
    Generator,
    Tensor,
    default_generator,
    detect_anomaly,
    enable_grad,
    get_rng_state,
    grad,
    inference_mode,
    initial_seed,
    is_grad_enabled,
    is_inference_mode_enabled,
    manual_seed,
    no_grad,
    seed,
    set_grad_enabled,
    set_rng_state,
)
from tinygrad_llm.functions import *  # noqa: F403
from tinygrad_llm.functions import __all__ as _functions
from tinygrad_llm.model import Transformer, TransformerConfig

__all__ = [
    "AnomalyError", "AutogradError", "Generator", "Tensor", "Transformer", "TransformerConfig", "__version__", "autograd",
    "default_generator", "detect_anomaly", "enable_grad", "func", "functions", "get_rng_state", "grad", "inference_mode",
    "initial_seed", "is_grad_enabled", "is_inference_mode_enabled", "manual_seed", "nn", "no_grad", "ops", "optim", "seed",
    "set_grad_enabled", "set_rng_state",
    *_functions,
]
