"""All that the next step depends on, to a checkpoint and back.

A checkpoint's tensors are the model's state_dict under its own names. Its metadata is

    step, config, dtype, tokenizer, about, evaluation    for whoever wants the model
    run                                                   for whoever goes on: optimizer, schedule, position in the
                                                          data, random generators, best so far, and the identity
                                                          of the run, which must be the same to go on

Same bits need the same arithmetic: same machine, same NumPy, as many workers, fast programs or none, and with one worker as
many BLAS threads (OMP_NUM_THREADS and the like), since a matrix product split among other threads is summed in another order.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd import default_generator
from tinygrad_llm.checkpoint import CheckpointError, CheckpointFolder, Loaded, load_checkpoint
from tinygrad_llm.checkpoint.file import faults_of
from tinygrad_llm.data import PairDataset, SequenceDataset, Tokenizer, tokenizer_from_dict
from tinygrad_llm.model import Transformer, TransformerConfig
from tinygrad_llm.nn import Module
from tinygrad_llm.training.contents import LIBRARY, check_metadata, check_state

HASHED_AT_ONCE = 1 << 20  # tokens


class LoadedModel(NamedTuple):
    """What load_model found; tokenizer is None where the run had none."""

    model: Transformer
    tokenizer: Tokenizer | None
    metadata: dict[str, Any]


def load_model(path: str | PathLike[str]) -> LoadedModel:
    """(model, tokenizer, metadata) of a checkpoint file, or of a run's folder: its best model, else its newest.

    The model is in eval mode. metadata has step, config, dtype, tokenizer, about, evaluation and path.
    Raises FileNotFoundError where there is nothing, CheckpointError for what is no good checkpoint of a model.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path: got {path!r}, expected the path of a checkpoint, or of a run's folder")
    tensors, metadata, source = _read(Path(path))
    with faults_of(source, "no model that can be built", "one of Trainer"):
        check_metadata(metadata)
        config = TransformerConfig.from_dict(metadata["config"])
        model = Transformer(config, dtype=next(iter(tensors.values())).dtype)
        model.load_state_dict(tensors)
        saved = metadata.get("tokenizer")
        tokenizer = tokenizer_from_dict(saved) if saved is not None else None
    model.eval()
    about = {key: value for key, value in metadata.items() if key != "run"}
    return LoadedModel(model, tokenizer, {"step": None, "about": {}, **about, "path": str(source)})


def _read(path: Path) -> Loaded:
    if not path.is_dir():
        return Loaded(*load_checkpoint(path), path)
    folder = CheckpointFolder(path)
    try:
        return folder.best()
    except FileNotFoundError:
        return folder.latest()
    except CheckpointError as error:
        warnings.warn(f"{error}; taking the newest good checkpoint instead", RuntimeWarning, stacklevel=3)
        return folder.latest()


# What is saved --------------------------------------------------------------------------------------------------------


def describe_model(model: Any, tokenizer: Tokenizer | None, about: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the metadata that does not change while training."""
    config = getattr(model, "config", None)
    return {
        "config": config.to_dict() if config is not None else None,
        "dtype": ", ".join(sorted({p.dtype.name for p in model.parameters()})),
        "tokenizer": tokenizer.to_dict() if tokenizer is not None else None,
        "about": dict(about),
    }


def training_state(trainer: Any, batches: Any) -> dict[str, Any]:
    """What `restore` needs, weights apart: optimizer, schedule, position in the data, random generators."""
    return {
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict() if trainer.schedule is not None else None,
        "batches": batches.state_dict(),
        "generators": {name: generator.bit_generator.state for name, generator in generators(trainer.model)},
    }


def restore(trainer: Any, batches: Any, tensors: Mapping[str, np.ndarray], run: Mapping[str, Any], step: int) -> None:
    """The inverse of training_state and of the model's state_dict. Errors: what check_state and the parts raise."""
    check_state(run, training_state(trainer, batches), trainer.optimizer)
    trainer.model.load_state_dict(tensors)
    trainer.optimizer.load_state_dict(run["optimizer"])
    if trainer.schedule is not None:
        trainer.schedule.load_state_dict(run["schedule"])
    batches.load_state_dict(run["batches"])
    for name, generator in generators(trainer.model):
        if name != LIBRARY or name in run["generators"]:  # runs from before it was saved have none
            generator.bit_generator.state = run["generators"][name]
    trainer.steps_done = step


def generators(model: Module) -> Iterator[tuple[str, np.random.Generator]]:
    """Every random generator that a step may draw from, once: those that modules hold, under the first name they are found by,
    and the library's, from which modules draw that hold none."""
    seen: set[int] = {id(default_generator)}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, np.random.Generator) and id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}" if path else name, value
    yield LIBRARY, default_generator


# What must be the same to go on ---------------------------------------------------------------------------------------


def identity(trainer: Any, batches: Any, evaluate_on: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that decides the bits of a run, as JSON-able values by dotted name."""
    schedule = trainer.schedule
    left_out = {"params"} if schedule is None else {"params", "lr", "initial_lr"}
    groups = [{k: v for k, v in group.items() if k not in left_out} for group in trainer.optimizer.param_groups]
    tree = {
        "config": model["config"], "dtype": model["dtype"], "tokenizer": _tokenizer_name(model["tokenizer"]),
        "accumulate": trainer.accumulate, "grad_clip": trainer.grad_clip,
        "capture": "fast" if trainer.capture == "fast" else None,  # recorded or not, the other steps have the same bits
        "workers": trainer.workers if trainer.workers != 1 else None,  # None: as in runs from before there were any
        "optimizer": {"kind": type(trainer.optimizer).__name__, "group": dict(enumerate(groups))},
        "schedule": None if schedule is None else _settings(schedule),
        "batches": {k: v for k, v in batches.state_dict().items() if k not in ("epoch", "batch")},
        "train": describe_data(getattr(batches, "dataset", None)), "test": describe_data(evaluate_on),
    }
    return dict(_flat(tree, ""))


def _settings(schedule: Any) -> dict[str, Any]:
    """What a schedule was made with, not where it stands."""
    values = {k: v for k, v in vars(schedule).items() if isinstance(v, int | float | str | list | None)}
    return {"kind": type(schedule).__name__, **{k: v for k, v in values.items() if k != "last_step"}}


def _tokenizer_name(values: dict[str, Any] | None) -> str | None:
    if values is None:
        return None
    return f"{values['kind']} {hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]}"


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{where}.{key}" if where else str(key))
    else:
        yield where, list(value) if isinstance(value, tuple) else value


def describe_data(data: Any) -> dict[str, Any] | None:
    """Kind, shape and SHA-256 of a dataset, so that going on with another text is noticed."""
    if isinstance(data, SequenceDataset):
        return {"context_length": data.context_length, "stride": data.stride, "tokens": len(data.tokens),
                "sha256": _fingerprint(data.tokens)}
    if isinstance(data, PairDataset):
        return {"context_length": data.context_length, "pairs": len(data),
                "sha256": _fingerprint(np.concatenate([data.inputs, data.targets]).reshape(-1))}
    return None if data is None else {"kind": type(data).__name__}


def _fingerprint(tokens: np.ndarray) -> str:
    """SHA-256 of the ids as int64, so that a mapped file of uint16 and an array of the same ids are the same text."""
    digest = hashlib.sha256()
    for start in range(0, len(tokens), HASHED_AT_ONCE):
        digest.update(np.ascontiguousarray(tokens[start : start + HASHED_AT_ONCE], dtype="<i8").data)
    return digest.hexdigest()


def check_same_run(saved: Mapping[str, Any], ours: Mapping[str, Any], where: Path) -> None:
    """ValueError, naming every setting in which this run is not the one that was saved."""
    names = [name for name in {**ours, **saved} if ours.get(name) != saved.get(name)]
    if names:
        told = ", ".join(f"{name} = {_short(ours.get(name))} (saved: {_short(saved.get(name))})" for name in names[:6])
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        raise ValueError(f"resume: got {told}{more}, expected the settings of the run in {where}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
