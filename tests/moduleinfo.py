"""torch's own constructor calls of modules and optimizers (module_db, optim_db), made in both libraries and compared."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import opinfo
import torch
from opinfo import Outcome, carried, differs, mapped

import tinygrad_llm as tg

from torch.testing._internal.common_modules import module_db  # isort: skip  (after opinfo, which makes it importable)
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db  # isort: skip

MODULES = [info for info in module_db if hasattr(tg.nn, info.name.removeprefix("nn."))]
OPTIMIZERS = [info for info in optim_db if hasattr(tg.optim, info.optim_cls.__name__)]
STEPS = 4

# (module, pattern of its constructor's arguments, what we have not)
REFUSED = [("nn.LayerNorm", r"False\) {}|elementwise_affine", "LayerNorm(shape, eps, elementwise_affine)")]

# What torch's optimizers refuse, by its description, and why we do not, or by another class of error
NOT_OURS = {
    "a param group cannot have duplicate parameters": "torch warns",
    "Tensor lr must be 1-element": "a tensor is of the wrong type here: TypeError",
    "betas must be either both floats or both Tensors": "a tensor is of the wrong type here: TypeError",
    "all optimizer params should be with/without names": "parameters have no names here: TypeError",
    "all optimizer param groups should be with/without names.": "parameters have no names here: TypeError",
    "lr as Tensor doesn't work with foreach & not capturable": "there is no foreach",
    "betas[0] as a Tensor is not supported for capturable=False and foreach=True": "there is no foreach",
}


def module_outcomes(info: Any, training: bool, dtype: torch.dtype = torch.float64) -> Iterator[Outcome]:
    """For each of torch's calls: the outputs, and the gradients of inputs and parameters, of one module with one state."""
    torch.manual_seed(0)
    for one in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
        made, given = one.constructor_input, one.forward_input
        shown = f"{made.args} {made.kwargs}"
        try:
            detail = _module_differs(info, made, given, training, dtype)
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
        listed = any(info.name == name and re.search(pattern, shown) for name, pattern, _ in REFUSED)
        yield Outcome(info.name, str(dtype), shown, ("refused" if listed else "fail") if detail else "pass", detail)


def _module_differs(info: Any, made: Any, given: Any, training: bool, dtype: torch.dtype) -> str:
    theirs = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
    kind = getattr(tg.nn, info.name.removeprefix("nn."))
    typed = {"dtype": carried(dtype)} if "dtype" in inspect.signature(kind).parameters else {}
    ours = kind(*mapped(made.args, carried), **mapped(made.kwargs, carried), **typed).train(training)
    state = theirs.state_dict()
    if list(state) != list(ours.state_dict()):
        return f"state_dict: got {list(ours.state_dict())}, expected {list(state)}"
    ours.load_state_dict({name: value.numpy() for name, value in state.items()})
    calls = [(module, mapped((*given.args, given.kwargs), leaf))
             for module, leaf in ((ours, carried), (theirs, lambda x: x))]
    cotangents: list[Any] = []
    (their_out, their_grads), (our_out, our_grads) = [
        opinfo.run(module, sample, cotangents) for module, sample in reversed(calls)]
    for x, y in zip(our_out + our_grads, their_out + their_grads, strict=True):
        if detail := differs(x, y, y, "result or gradient"):
            return detail
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if detail := differs(p.grad, q.grad, q.grad, f"gradient of {name}"):
            return detail
    return ""


def optimizer_outcomes(info: Any) -> Iterator[Outcome]:
    """For each of torch's settings: the parameters after some steps; for each that torch refuses: that we refuse it."""
    name = info.optim_cls.__name__
    for one in info.optim_inputs_func(device="cpu"):
        try:
            found = [_trajectory(library, name, one.kwargs) for library in (tg, torch)]
            wrong = any(not np.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*found, strict=True))
            detail = "another trajectory than torch's" if wrong else ""
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
        yield Outcome(name, "float64", str(one.kwargs), "fail" if detail else "pass", detail)
    for wrong in info.optim_error_inputs_func("cpu", torch.float64):
        one = wrong.optimizer_error_input
        warned = issubclass(wrong.error_type, Warning)  # torch 2.15 of a set of parameters, which is refused here and before
        if (wrong.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR and one.desc.replace("\\", "") not in NOT_OURS
                and not warned):
            yield _refusal(name, one, wrong.error_type)


def _trajectory(library: Any, name: str, settings: dict[str, Any]) -> list[np.ndarray]:
    """Parameters after some steps, whose gradients depend on them; one has none at all."""
    rng = np.random.default_rng(0)
    start, targets = [[rng.standard_normal(shape) for shape in ((3, 4), (5,), ())] for _ in range(2)]
    params = [library.tensor(a, requires_grad=True) for a in start]
    optimizer = getattr(library.optim, name)([*params, library.tensor(start[1], requires_grad=True)], **settings)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for p, target in zip(params, targets):
            ((p - library.as_tensor(target)) ** 2).sum().backward()
        optimizer.step()
    return [p.detach().numpy() for p in params]


def _refusal(name: str, one: Any, expected: type[Exception]) -> Outcome:
    params = one.params if one.params is not None else [torch.ones(2, dtype=torch.float64, requires_grad=True)]
    try:
        getattr(tg.optim, name)(mapped(params, carried), **mapped(one.kwargs, carried))
        verdict, detail = "fail", f"taken; torch raises {expected.__name__}"
    except Exception as error:
        right = isinstance(error, expected)
        detail = "" if right else f"{type(error).__name__}: {error}; torch's is {expected.__name__}"
        verdict = "pass" if right else "fail"
    return Outcome(name, "error", one.desc, verdict, detail)
