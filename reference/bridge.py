"""Weights, gradients and AdamW state between NumPy and PyTorch, by name. Everything is copied; nothing is cast.

Whatever is missing, unexpected, or of another shape or dtype is refused with its name before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def to_numpy(name: str, tensor: Tensor) -> np.ndarray:
    """A copy of the tensor as an array of the same dtype. Raises ValueError where NumPy lacks the dtype (bfloat16)."""
    try:
        return tensor.detach().cpu().numpy().copy()
    except TypeError:
        raise ValueError(f"{name}: got dtype {_name(tensor)}, expected one that NumPy has") from None


def numpy_state(model: nn.Module) -> dict[str, np.ndarray]:
    """name -> array for every key of model.state_dict(); tied parameters appear under each of their names."""
    return {name: to_numpy(name, tensor) for name, tensor in model.state_dict().items()}


def load_numpy_state(model: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Copies the arrays into the model's tensors of the same names.

    Raises ValueError, naming the key, where a name is missing or unexpected, a shape or dtype differs, or two keys of
    one tied parameter hold different values; the model is then as it was.
    """
    tensors = model.state_dict(keep_vars=True)
    _check_names(tensors, state)
    for name, tensor in tensors.items():
        _check_kind(name, state[name], tensor)
    for name, first in _tied(tensors):
        if not np.array_equal(state[name], state[first], equal_nan=True):
            raise ValueError(f"{name}: got values unlike those of {first}, expected the same ones: the two are tied")
    for name, tensor in tensors.items():
        _write(tensor, state[name])


def numpy_gradients(model: nn.Module) -> dict[str, np.ndarray]:
    """name -> gradient for every named parameter (a tied one once). Raises ValueError where there is no gradient."""
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise ValueError(f"{name}: got no gradient, expected one: call backward first")
        gradients[name] = to_numpy(name, parameter.grad)
    return gradients


def numpy_adamw_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """name + ".exp_avg", ".exp_avg_sq", ".step" -> array, for every parameter that the optimizer has stepped."""
    return {name: to_numpy(name, tensor) for name, tensor in _adamw_tensors(model, optimizer)}


def load_numpy_adamw_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, np.ndarray]) -> None:
    """The inverse of numpy_adamw_state, for a new optimizer over the model's parameters as well as for a used one.

    Raises ValueError, naming the key, as load_numpy_state does; every parameter of the model needs its state.
    """
    kinds = [kind for kind in ADAMW_STATE if kind != "max_exp_avg_sq" or optimizer.defaults["amsgrad"]]
    parameters = dict(model.named_parameters())
    expected = {f"{name}.{kind}": _adamw_like(p, kind, optimizer) for name, p in parameters.items() for kind in kinds}
    _check_names(expected, state)
    for name, tensor in expected.items():
        _check_kind(name, state[name], tensor)
        _write(tensor, state[name])
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {kind: expected[f"{name}.{kind}"] for kind in kinds}


def _adamw_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for kind in ADAMW_STATE:
            if kind in state:
                yield f"{name}.{kind}", state[kind]


def _adamw_like(parameter: Tensor, kind: str, optimizer: torch.optim.Optimizer) -> Tensor:
    """A new tensor of the shape, dtype and device that torch.optim.AdamW keeps under this name."""
    if kind == "step":
        on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        return torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
    return torch.zeros_like(parameter, requires_grad=False, memory_format=torch.preserve_format)


def _check_names(expected: Mapping[str, Tensor], got: Mapping[str, np.ndarray]) -> None:
    for name in expected:
        if name not in got:
            raise ValueError(f"{name}: got nothing, expected an array of shape {tuple(expected[name].shape)}")
    for name in got:
        if name not in expected:
            raise ValueError(f"{name}: got an unexpected name, expected only {', '.join(list(expected)[:3])}, ...")


def _check_kind(name: str, array: np.ndarray, tensor: Tensor) -> None:
    array = np.asarray(array)
    if array.shape != tuple(tensor.shape):
        raise ValueError(f"{name}: got shape {array.shape}, expected {tuple(tensor.shape)}")
    if str(array.dtype) != _name(tensor):
        raise ValueError(f"{name}: got dtype {array.dtype}, expected {_name(tensor)}")


def _tied(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(name, the earlier name of the same tensor)"""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if id(tensor) in first:
            yield name, first[id(tensor)]
        first.setdefault(id(tensor), name)


@torch.no_grad()
def _write(tensor: Tensor, array: np.ndarray) -> None:
    tensor.copy_(torch.from_numpy(np.array(array, order="C")))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
