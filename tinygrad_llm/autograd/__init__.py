"""The engine: tensors that remember how they were made, and reverse mode over what they remember."""

from tinygrad_llm.autograd import functional, graph
from tinygrad_llm.autograd.arrays import as_array
from tinygrad_llm.autograd.backward import backward, grad
from tinygrad_llm.autograd.checking import (
    ChangingOutputError,
    GradcheckError,
    InconclusiveError,
    Verdict,
    check_gradients,
    check_second_gradients,
    gradcheck,
    gradgradcheck,
)
from tinygrad_llm.autograd.checkpointing import checkpoint
from tinygrad_llm.autograd.errors import AnomalyError, AutogradError, InferenceError, WriteError
from tinygrad_llm.autograd.function import Function, FunctionCtx, once_differentiable
from tinygrad_llm.autograd.graph import Node, saved_arrays
from tinygrad_llm.autograd.hooks import RemovableHandle
from tinygrad_llm.autograd.indices import as_index, unwrap_index
from tinygrad_llm.autograd.modes import (
    detect_anomaly,
    enable_grad,
    inference_mode,
    is_anomaly_check_nan_enabled,
    is_anomaly_enabled,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_detect_anomaly,
    set_grad_enabled,
)
from tinygrad_llm.autograd.randomness import (
    Generator,
    SeedError,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)
from tinygrad_llm.autograd.tensor import NUMPY, Tensor, apply, tensors_of
from tinygrad_llm.autograd.writes import inplace

__all__ = [
    "NUMPY", "AnomalyError", "AutogradError", "ChangingOutputError", "Function", "FunctionCtx", "Generator",
    "GradcheckError", "InconclusiveError", "InferenceError", "Node", "RemovableHandle", "SeedError", "Tensor", "Verdict",
    "WriteError", "apply", "as_array", "as_index", "backward", "check_gradients", "check_second_gradients", "checkpoint",
    "default_generator", "detect_anomaly", "enable_grad", "functional", "get_rng_state", "grad", "gradcheck",
    "gradgradcheck", "graph", "inference_mode", "initial_seed", "inplace", "is_anomaly_check_nan_enabled",
    "is_anomaly_enabled", "is_grad_enabled", "is_inference_mode_enabled", "manual_seed", "no_grad", "once_differentiable",
    "saved_arrays", "seed", "set_detect_anomaly", "set_grad_enabled", "set_rng_state", "tensors_of", "unwrap_index",
]
