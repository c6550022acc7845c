"""What `eval` and `generate` start from: a trained model, in NumPy or in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinygrad_llm.cli.errors import UserError, notes_unless_refused
from tinygrad_llm.cli.settings import check_saved, number, one_of, option, word
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.training import load_model


def checkpoint_option() -> Any:
    """--checkpoint"""
    return option(None, word("PATH"), "the folder of a run (its best model), or one checkpoint file", "model")


def backend_option(group: str) -> Any:
    """--backend"""
    return option("numpy", one_of("numpy", "torch"), "what computes: our NumPy, or the same model in PyTorch", group)


def device_option(group: str) -> Any:
    """--device"""
    return option("cpu", word("DEVICE"), "where PyTorch computes: cpu, cuda or mps", group)


@dataclass(frozen=True)
class _OfText:
    """What of the settings of a training is asked for again."""

    corpus: str | None = option(None, word(), "", "")
    test_fraction: float | None = option(None, number("a number in (0, 1)", lambda v: 0 < v < 1), "", "")


class Trained(NamedTuple):
    """A model, its tokenizer, what its checkpoint says, and the settings that it was trained with, if known."""

    model: Any
    tokenizer: Any
    metadata: dict[str, Any]
    settings: dict[str, Any]


def load_trained(settings: Any, reference: Callable[[], Any]) -> Trained:
    """The model of settings.checkpoint on settings.backend. Raises UserError where there is none to use."""
    if settings.checkpoint is None:
        raise UserError("--checkpoint: got none, expected the folder of a run or a checkpoint file")
    if settings.device != "cpu" and settings.backend != "torch":
        raise UserError(f"--device: got {settings.device!r}, expected cpu, or --backend torch beside it")
    with notes_unless_refused():
        ours, tokenizer, metadata = load_model(settings.checkpoint)
    if tokenizer is None:
        raise UserError(f"checkpoint: got {settings.checkpoint!r}, which has no tokenizer, expected a model of text")
    model = TorchModel(ours, settings.device, reference()) if settings.backend == "torch" else ours
    known = metadata["about"].get("settings", {})
    check_saved(_OfText, known, metadata["path"])
    return Trained(model, tokenizer, metadata, known)


class TorchModel:
    """The reference model with the weights of ours, behind what evaluation and generation ask of a model."""

    def __init__(self, ours: Any, device: str, reference: Any) -> None:
        self.config: TransformerConfig = ours.config
        self.device = reference.train.find_device(device)
        self._to_device = reference.train.to_device
        dtype = getattr(reference.model.torch, ours.dtype.name)
        self.module = reference.model.Transformer(ours.config, dtype=dtype)
        reference.bridge.load_numpy_state(self.module, ours.state_dict())
        self.module.to(self.device)
        self._decoder = reference.decoding.Decoder

    def modules(self) -> Iterator[Any]:
        """All modules, each with its `training`."""
        return self.module.modules()

    def eval(self) -> None:
        """Switch dropout off."""
        self.module.eval()

    def __call__(self, ids: Any) -> Any:
        """int [B, T] → logits [B, T, V], a tensor on the CPU, without a graph"""
        return self.module(self._to_device((ids,), self.device)[0]).detach().cpu()

    def decoder(self) -> TorchDecoder:
        """What reads on over a cache, for generation."""
        self.eval()
        return TorchDecoder(self._decoder(self.module), lambda ids: self._to_device((ids,), self.device)[0])


class TorchDecoder:
    """The reference decoder, of arrays."""

    def __init__(self, decoder: Any, to_device: Callable[[Any], Any]) -> None:
        self._decoder, self._to_device, self.clear = decoder, to_device, decoder.clear

    @property
    def length(self) -> int:
        """How many positions it has read."""
        return self._decoder.length

    def __call__(self, ids: Any) -> Any:
        """int [B, T] → logits [B, V], an array"""
        return self._decoder(self._to_device(ids)).cpu().numpy()
