"""Every argument is where torch has it, or listed with its reason; no reason is older than its difference."""

import re
from pathlib import Path

import pytest
import signatures
import torch

import tinygrad_llm as tg

X = torch.ones(2)
FOUND = list(signatures.differences())


def test_every_parameter_is_torchs_or_is_listed():
    assert [line for line in FOUND if signatures.reason_of(line) is None] == []


def test_every_listed_difference_is_still_there():
    used = {signatures.reason_of(line) for line in FOUND}
    assert [key for key in signatures.REASONS if key not in used] == []


def test_enough_is_compared():
    names = [pair.name for pair in signatures.pairs()]
    assert len(names) == len(set(names)) > 350
    assert {"Tensor.sum", "sum", "nn.functional.gelu", "func.jvp", "nn.Linear", "optim.AdamW.step", "linalg.vector_norm",
            "Tensor.add_", "Tensor.is_leaf", "autograd.checkpoint", "autograd.detect_anomaly"} <= set(names)


def test_what_is_corrected_of_the_stubs_is_torchs():
    """Each call is one that the stub allows, or that the corrected text forbids."""
    refused = {
        "tensor": lambda: torch.tensor(1.0, torch.float64), "as_tensor": lambda: torch.as_tensor(1.0, torch.float64),
        "Tensor.new_tensor": lambda: X.new_tensor(1.0, torch.float64),
        "Tensor.new_ones": lambda: X.new_ones((2,), torch.float64),
        "Tensor.requires_grad_": lambda: X.requires_grad_(mode=True),
        "linalg.vector_norm": lambda: torch.linalg.vector_norm(X, 2, None, False, torch.float64),
    }
    assert list(refused) == list(signatures.CORRECTED)
    for call in refused.values():
        with pytest.raises(TypeError):
            call()
    assert X.clone().requires_grad_(requires_grad=True).requires_grad
    assert torch.linalg.vector_norm(input=X, ord=1, dim=0, keepdim=True, dtype=torch.float64, out=None).shape == (1,)


def differences_of(ours, *theirs):
    """Of two Python functions, as lines."""
    found = signatures.between(signatures.of_python(ours), [signatures.of_python(f) for f in theirs])
    return [f"{name}: {what}" for name, what in found]


def test_each_kind_of_difference_is_found():
    def base(x, dim=None, *, p=2): ...
    assert differences_of(base, base) == []
    assert differences_of(lambda x, dim=None: 0, base) == ["p: missing"]
    assert differences_of(lambda x, axis=None, *, p=2: 0, base) == ["dim: missing", "axis: ours alone"]
    assert differences_of(lambda x, dim=0, *, p=3: 0, base) == ["dim: default 0, in torch None", "p: default 3, in torch 2"]
    assert differences_of(lambda x, p=2, dim=None: 0, base) == ["dim: place 2, in torch 1", "p: by position too"]
    assert differences_of(lambda x, *, dim=None, p=2: 0, base) == ["dim: place None, in torch 1"]
    assert differences_of(lambda x, dim, *, p=2: 0, base) == ["dim: default 'required', in torch None"]
    assert differences_of(lambda x=1, dim=None, *, p=2: 0, base) == ["x: optional"]
    assert differences_of(lambda size: 0, lambda *size: 0) == ["size: one argument only"]
    assert differences_of(lambda *size: 0, lambda *size: 0, lambda size: 0) == ["size: not by name"]
    assert differences_of(lambda x, dim=None: 0, lambda x: 0, lambda x, dim: 0) == []
    assert differences_of(tg.zeros, lambda *size, dtype=None: 0) == [
        "requires_grad: ours alone", "device: ours alone", "pin_memory: ours alone"]


HOMES = {"nn": tg.nn, "nn.Module": tg.nn.Module, "nn.functional": tg.nn.functional, "optim": tg.optim, "autograd": tg.autograd,
         "autograd.graph": tg.autograd.graph, "torch": tg, "Tensor": tg.Tensor, "nn.init": tg.nn.init}


def test_what_the_page_of_differences_calls_missing_is_missing():
    page = (Path(__file__).parents[1] / "docs" / "semantics.md").read_text(encoding="utf-8")
    listed = re.findall(r"\*\*([\w.]+)\*\*: ([^*]*)", page.partition("## What is not there")[2])
    assert [home for home, _ in listed] == ["nn", "nn.Module", *list(HOMES)[2:]]
    there = [f"{home}.{name}" for home, names in listed for name in re.findall(r"`(\w+)`", names) if hasattr(HOMES[home], name)]
    assert there == []
