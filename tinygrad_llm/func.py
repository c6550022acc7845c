"""Functional transforms under torch.func's names: derivatives as functions, and modules as functions of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd import AutogradError, Tensor
from tinygrad_llm.autograd.functional import hvp
from tinygrad_llm.autograd.transforms import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, value_and_grad, vjp
from tinygrad_llm.autograd.vectorizing import vmap
from tinygrad_llm.nn import Module

__all__ = [
    "functional_call", "grad", "grad_and_value", "hessian", "hvp", "jacfwd", "jacrev", "jvp", "linearize",
    "stack_module_state", "value_and_grad", "vjp", "vmap",
]


def stack_module_state(models: Sequence[Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters, buffers) of modules of one kind, each stacked under its name along a new first axis: for vmap over models.

    The parameters are new leaves; modules have no buffers here. Errors: AutogradError for none, for modules of different
    classes or parameters, and where some are in training and some are not.
    """
    kinds = {(type(model), model.training, tuple((n, p.shape) for n, p in model.named_parameters())) for model in models}
    if len(kinds) != 1:
        raise AutogradError(f"stack_module_state: models: got {len(models)} of {len(kinds)} kinds, expected at least one, all "
                            "of one class, with parameters of the same shapes, and all in training or none")
    each = [dict(model.named_parameters()) for model in models]
    return {name: Tensor(np.stack([p[name].numpy() for p in each]), first.requires_grad) for name, first in each[0].items()}, {}


def functional_call(
    module: Module, parameters: Mapping[str, Tensor], args: Any = (), kwargs: Mapping[str, Any] | None = None
) -> Any:
    """module(*args, **kwargs) with the given tensors in place of its parameters of those names; the module stays as it was.

    A parameter that several names share is replaced under all of them. Errors: KeyError for a name that it does not have,
    ValueError for a shape that differs.
    """
    own = dict(module._all_parameters())
    for name, value in parameters.items():
        if name not in own:
            raise KeyError(f"functional_call: parameters: got {name!r}, expected one of {list(own)[:5]}...")
        if value.shape != own[name].shape:
            raise ValueError(f"functional_call: {name}: got shape {value.shape}, expected {own[name].shape}")
    replaced = {id(own[name]): value for name, value in parameters.items()}
    places = [(owner, key, value) for owner in module.modules() for key, value in vars(owner).items() if id(value) in replaced]
    try:
        for owner, key, value in places:
            vars(owner)[key] = replaced[id(value)]
        return module(*(args if isinstance(args, tuple) else (args,)), **(kwargs or {}))
    finally:
        for owner, key, value in places:
            vars(owner)[key] = value
