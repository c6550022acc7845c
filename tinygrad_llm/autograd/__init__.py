"""The engine: tensors that remember how they were made, and reverse mode over what they remember."""

from tinygrad_llm.autograd import functional
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
from tinygrad_llm.autograd.graph import AnomalyError, AutogradError, Node, WriteError, saved_arrays
from tinygrad_llm.autograd.hooks import RemovableHandle
from tinygrad_llm.autograd.modes import (
    detect_anomaly,
    enable_grad,
    is_anomaly_check_nan_enabled,
    is_anomaly_enabled,
    is_grad_enabled,
    no_grad,
    set_detect_anomaly,
    set_grad_enabled,
)
from tinygrad_llm.autograd.tensor import NUMPY, Tensor, apply, as_array, unwrap_index
from tinygrad_llm.autograd.writes import inplace

__all__ = [
    "NUMPY", "AnomalyError", "AutogradError", "ChangingOutputError", "GradcheckError", "InconclusiveError", "Node",
    "RemovableHandle", "Tensor", "Verdict", "WriteError", "apply", "as_array", "backward", "check_gradients",
    "check_second_gradients", "checkpoint", "detect_anomaly", "enable_grad", "functional", "grad", "gradcheck",
    "gradgradcheck", "inplace", "is_anomaly_check_nan_enabled", "is_anomaly_enabled", "is_grad_enabled", "no_grad",
    "saved_arrays", "set_detect_anomaly", "set_grad_enabled", "unwrap_index",
]
