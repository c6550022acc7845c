"""What the metadata of a checkpoint must hold. A checksum shows that a file is as it was written, not who wrote it."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinygrad_llm.optim import AdamW
from tinygrad_llm.training.evaluation import Evaluation

LIBRARY = "(library)"  # no name of an attribute


def check_metadata(metadata: Any) -> None:
    """ValueError, naming the place, for what no Trainer writes beside a model."""
    _check("metadata", metadata, isinstance(metadata, dict), "a dict")
    step, about = metadata.get("step", 0), metadata.get("about", {})
    _check("step", step, _is_count(step), "an integer >= 0")
    _check("about", about, isinstance(about, dict), "a dict")
    for name in ("config", "tokenizer", "evaluation"):
        value = metadata.get(name)
        _check(name, value, value is None or isinstance(value, dict), "a dict or None")
    if metadata.get("evaluation") is not None:
        _check_evaluation(metadata["evaluation"])


def _check_evaluation(values: dict[str, Any]) -> None:
    optional = {field.name: field.default is None for field in dataclasses.fields(Evaluation)}
    _check("evaluation", sorted(values, key=str), set(values) == set(optional), ", ".join(optional))
    for name, value in values.items():
        _check(f"evaluation.{name}", value, _is_number(value) or (value is None and optional[name]), "a number")


def check_run(run: Any, step: int) -> None:
    """ValueError for what no Trainer writes for whoever goes on after `step`, what `check_state` looks at apart."""
    _check("run", run, isinstance(run, dict), "a dict")
    identity: Any = run.get("identity")
    _check("run.identity", identity, isinstance(identity, dict), "a dict")
    workers = identity.get("workers")
    _check("run.identity.workers", workers, workers is None or (_is_count(workers) and workers > 1), "an integer > 1 or None")
    _check("run", list(run), "evaluated" in run and "best" in run, "evaluated and best in it")
    evaluated, best = run["evaluated"], run["best"]
    _check("run.evaluated", evaluated, _is_count(evaluated) and evaluated <= step, f"one of 0 to {step}")
    good = best is None or (isinstance(best, dict) and _is_count(best.get("step")) and _is_number(best.get("test_loss")))
    _check("run.best", best, good, "a step and its test_loss, or None")


def check_state(run: Mapping[str, Any], ours: Mapping[str, Any], optimizer: Any) -> None:
    """ValueError where a run's state is not of the form that `ours` has, the state of a run that is to take it over."""
    for name in ("schedule", "batches"):
        _check_form(f"run.{name}", run.get(name), ours[name])
    known: Any = run.get("generators")
    _check("run.generators", known, isinstance(known, dict), "a dict")
    for name, state in ours["generators"].items():
        if name != LIBRARY or name in known:  # runs from before it was saved have none
            _check_form(f"run.generators.{name}", known.get(name), state)
    if isinstance(optimizer, AdamW):
        _check_adamw(run.get("optimizer"), ours["optimizer"], optimizer)


def _check_adamw(found: Any, ours: Mapping[str, Any], optimizer: AdamW) -> None:
    _check("run.optimizer", found, isinstance(found, dict) and set(found) == set(ours), ", ".join(ours))
    _check_form("run.optimizer.param_groups", found["param_groups"], ours["param_groups"])
    for group, own in zip(found["param_groups"], ours["param_groups"]):
        for name in set(own) - {"lr", "initial_lr"}:
            _check(f"run.optimizer.param_groups: {name}", group[name], group[name] == own[name], str(own[name]))
    _check("run.optimizer.state", found["state"], isinstance(found["state"], dict), "a dict")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, state in found["state"].items():
        where = f"run.optimizer.state of parameter {i}"
        _check(where, i, _is_count(i) and i < len(parameters), f"one of {len(parameters)}")
        moment = np.empty(parameters[i].shape, parameters[i].dtype)
        names = {"step", "exp_avg", "exp_avg_sq"} | set(state)
        _check_form(where, state, {name: 0 if name == "step" else moment for name in names})


def _check_form(where: str, found: Any, ours: Any) -> None:
    """Of the same kinds at the same places, numbers >= 0 where ours are."""
    if isinstance(ours, Mapping):
        _check(where, found, isinstance(found, Mapping) and set(found) == set(ours), f"a dict of {', '.join(map(str, ours))}")
        for name, value in ours.items():
            _check_form(f"{where}.{name}", found[name], value)
    elif isinstance(ours, list | tuple):
        _check(where, found, isinstance(found, list | tuple) and len(found) == len(ours), f"{len(ours)} values")
        for i, value in enumerate(ours):
            _check_form(f"{where}[{i}]", found[i], value)
    elif isinstance(ours, np.ndarray):
        good = isinstance(found, np.ndarray) and (found.shape, found.dtype) == (ours.shape, ours.dtype)
        _check(where, found, good, f"an array {ours.shape} of {ours.dtype}")
    elif type(ours) in (int, float):
        number = _is_number(found) if isinstance(ours, float) else type(found) is int
        _check(where, found, number and (found >= 0 or ours < 0), "a number" if isinstance(ours, float) else "an integer")
    else:
        _check(where, found, type(found) is type(ours), f"{type(ours).__name__}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _check(where: str, found: Any, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{where}: got {' '.join(reprlib.repr(found).split())}, expected {expected}")
