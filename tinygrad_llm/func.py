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
from tinygrad_llm.nn.module import slots_of
from tinygrad_llm.ops import ShapeError

__all__ = [
    "functional_call", "grad", "grad_and_value", "hessian", "hvp", "jacfwd", "jacrev", "jvp", "linearize",
    "stack_module_state", "value_and_grad", "vjp", "vmap",
]


def stack_module_state(models: Sequence[Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters, buffers) of modules of one kind, each stacked under its name along a new first axis: for vmap over models.

    The parameters are new leaves. Errors: AutogradError for none, for modules of different classes, parameters or buffers, and
    where some are in training and some are not.
    """
    states = [(dict(model.named_parameters()), dict(model.named_buffers())) for model in models]
    kinds = {(type(model), model.training, *[tuple((n, t.shape) for n, t in kind.items()) for kind in state])
             for model, state in zip(models, states)}
    if len(kinds) != 1:
        raise AutogradError(f"stack_module_state: models: got {len(models)} of {len(kinds)} kinds, expected at least one, all "
                            "of one class, with parameters and buffers of the same shapes, and all in training or none")
    parameters, buffers = [_stacked(kind) for kind in zip(*states)]
    return parameters, buffers


def _stacked(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: Tensor.of(np.stack([tensors[name].numpy() for tensors in each]), first.requires_grad)
            for name, first in each[0].items()}


def functional_call(
    module: Module, parameter_and_buffer_dicts: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], args: Any = None,
    kwargs: Mapping[str, Any] | None = None, *, tie_weights: bool = True, strict: bool = False,
) -> Any:
    """module(*args, **kwargs) with the given tensors in place of its parameters and buffers of those names; the module stays
    as it was.

    parameter_and_buffer_dicts   tensors by name, or several such dicts without a common name
    args          the arguments as a tuple, or the only one
    tie_weights   a tensor that several names share is replaced under all of them; False: under the given name alone
    strict        every parameter and buffer must be given

    Errors: KeyError for a name that it does not have, ValueError for a shape that differs, for two values of one shared tensor,
    and for a name in two dicts, TypeError for what is no tensor, and where strict RuntimeError.
    """
    given, own = _merged(parameter_and_buffer_dicts), _places(module)
    _check_given(given, own, module, strict, tie_weights)
    replaced = _replaced(given, own, tie_weights)
    try:
        for owner, key, _, value in replaced:
            vars(owner)[key] = value
        args = () if args is None else args if isinstance(args, tuple) else (args,)
        return module(*args, **(kwargs or {}))
    finally:
        for owner, key, before, _ in replaced:
            vars(owner)[key] = before


class NamesError(ValueError, KeyError, RuntimeError):
    """Names that a module does not have, or lacks, or that are one tensor with two values."""

    def __str__(self) -> str:
        return str(self.args[0])


Places = dict[str, tuple[Module, str, Tensor]]


def _merged(dicts: Any) -> dict[str, Any]:
    if isinstance(dicts, Mapping):
        return dict(dicts)
    if not isinstance(dicts, list | tuple) or not all(isinstance(d, Mapping) for d in dicts):
        raise ValueError(f"functional_call: parameter_and_buffer_dicts: got {type(dicts).__name__}, expected a dict "
                         "or a tuple of dicts")
    names = [name for d in dicts for name in d]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"functional_call: parameter_and_buffer_dicts: got {twice[0]!r} in several dicts, expected it in one")
    return {name: value for d in dicts for name, value in d.items()}


def _places(module: Module) -> Places:
    """name → (the module that has it, as what, the tensor), under every name."""
    return {f"{path}.{key}" if path else key: (owner, key, value)
            for path, owner in module.named_modules(remove_duplicate=False)
            for kind in ("parameter", "buffer") for key, value in slots_of(owner, kind) if value is not None}


def _check_given(given: Mapping[str, Any], own: Places, module: Module, strict: bool, tie_weights: bool) -> None:
    covered = {id(own[name][2]) for name in given if name in own} if tie_weights else set()
    missing = [name for name, (_, _, value) in own.items() if name not in given and id(value) not in covered]
    unexpected = [name for name in given if name not in own]
    if unexpected or (strict and missing):
        wrong = f"{unexpected[0]!r}" if unexpected else f"nothing for {missing[0]!r}"
        names = f"the names of {type(module).__name__}: {list(own)[:5]}..."
        raise NamesError(f"functional_call: parameter_and_buffer_dicts: got {wrong}, expected {names}")
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"functional_call: {name}: got {type(value).__name__}, expected a Tensor")
        if value.shape != own[name][2].shape:
            raise ShapeError(f"functional_call: {name}: got shape {value.shape}, expected {own[name][2].shape}")


def _replaced(given: Mapping[str, Tensor], own: Places, tie_weights: bool) -> list[tuple[Module, str, Tensor, Tensor]]:
    """(module, attribute, what it has, what it gets) for each attribute that is to be replaced."""
    found: dict[Any, tuple[str, Tensor]] = {}
    for name, value in given.items():
        owner, key, before = own[name]
        other, first = found.setdefault(id(before) if tie_weights else (id(owner), key), (name, value))
        if first is not value:
            raise NamesError(f"functional_call: {name}: got another value than for {other}, with which it is tied, expected "
                             "the same tensor" + ", or tie_weights=False" * tie_weights)
    places = {(id(owner), key): (owner, key, before) for owner, key, before in own.values()}
    return [(owner, key, before, found[place][1]) for owner, key, before in places.values()
            if (place := id(before) if tie_weights else (id(owner), key)) in found]
