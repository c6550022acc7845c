"""Weights, gradients and optimizer state across, by name; what differs is refused by name and nothing is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.bridge import (
    load_numpy_adamw_state,
    load_numpy_state,
    numpy_adamw_state,
    numpy_gradients,
    numpy_state,
    to_numpy,
)
from reference.model import Transformer
from tinygrad_llm.config import TransformerConfig


def make(dtype=torch.float32, **options) -> Transformer:
    return Transformer(TransformerConfig(5, 4, 6, 2, 1, **options), dtype=dtype)


def backward(model: Transformer) -> None:
    ids = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    model.loss(ids, ids.flip(1)).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tie", [True, False])
def test_there_and_back(dtype, tie):
    source, target = make(dtype, tie_embeddings=tie), make(dtype, tie_embeddings=tie)
    state = numpy_state(source)
    assert list(state) == list(source.state_dict())
    load_numpy_state(target, state)
    for name, array in numpy_state(target).items():
        assert array.dtype == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array, state[name])


def test_nothing_is_shared():
    model = make()
    state = numpy_state(model)
    state["lm_head.weight"][:] = 1.0
    load_numpy_state(model, state)
    state["lm_head.weight"][:] = 2.0
    assert torch.all(model.lm_head.weight == 1.0)
    taken = numpy_state(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(3.0)
    assert np.all(taken["lm_head.weight"] == 1.0)


def test_any_strides_and_read_only_memory():
    model = make()
    state = numpy_state(model)
    weight = state["blocks.0.ffn.up_proj.weight"]
    state["blocks.0.ffn.up_proj.weight"] = np.asfortranarray(weight)[::-1]
    state["lm_head.weight"].flags.writeable = False
    load_numpy_state(model, state)
    np.testing.assert_array_equal(model.blocks[0].ffn.up_proj.weight.detach(), weight[::-1])


REFUSED = {
    "missing": (lambda s: s.pop("final_norm.bias"), r"^final_norm\.bias: got nothing, expected an array of shape"),
    "unexpected": (lambda s: s.update(extra=np.zeros(1)), r"^extra: got an unexpected name"),
    "shape": (
        lambda s: s.update({"lm_head.weight": np.zeros((6, 5), np.float32)}),
        r"^lm_head\.weight: got shape \(6, 5\), expected \(5, 6\)$",
    ),
    "dtype": (
        lambda s: s.update({"final_norm.weight": np.zeros(6)}),
        r"^final_norm\.weight: got dtype float64, expected float32$",
    ),
    "byte order": (
        lambda s: s.update({"final_norm.weight": np.zeros(6, ">f4")}),
        r"^final_norm\.weight: got dtype >f4, expected float32$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_differs_is_refused_and_nothing_written(case):
    spoil, message = REFUSED[case]
    model = make()
    before, state = numpy_state(model), {name: array + 1 for name, array in numpy_state(model).items()}
    spoil(state)
    with pytest.raises(ValueError, match=message):
        load_numpy_state(model, state)
    for name, array in numpy_state(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_two_values_for_one_tied_parameter_are_refused():
    model = make(tie_embeddings=True)
    state = numpy_state(model)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"^lm_head\.weight: got values unlike those of tok_embed\.weight"):
        load_numpy_state(model, state)


def test_gradients_by_name():
    model = make(tie_embeddings=True)
    with pytest.raises(ValueError, match=r"^tok_embed\.weight: got no gradient, expected one: call backward first$"):
        numpy_gradients(model)
    backward(model)
    gradients = numpy_gradients(model)
    assert list(gradients) == [name for name, _ in model.named_parameters()]
    gradients["final_norm.weight"][:] = 7.0
    assert not torch.any(model.final_norm.weight.grad == 7.0)


def test_a_dtype_that_numpy_lacks_is_refused():
    with pytest.raises(ValueError, match=r"^x: got dtype bfloat16, expected one that NumPy has$"):
        to_numpy("x", torch.zeros(1, dtype=torch.bfloat16))


def steps(model: Transformer, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}])
def test_adamw_goes_on_with_the_same_bits(options):
    model, other = make(), make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
    steps(model, optimizer, 3)
    load_numpy_state(other, numpy_state(model))
    second = torch.optim.AdamW(other.parameters(), lr=0.1, **options)
    state = numpy_adamw_state(model, optimizer)
    load_numpy_adamw_state(other, second, state)
    for array in state.values():
        array[...] = 0
    steps(model, optimizer, 3)
    steps(other, second, 3)
    for name, array in numpy_state(other).items():
        np.testing.assert_array_equal(array, numpy_state(model)[name])


def test_adamw_state_that_differs_is_refused():
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    assert numpy_adamw_state(model, optimizer) == {}
    with pytest.raises(ValueError, match=r"^tok_embed\.weight\.step: got nothing"):
        load_numpy_adamw_state(model, optimizer, {})
    steps(model, optimizer, 1)
    state = numpy_adamw_state(model, optimizer)
    state["lm_head.weight.exp_avg"] = state["lm_head.weight.exp_avg"].T
    with pytest.raises(ValueError, match=r"^lm_head\.weight\.exp_avg: got shape \(6, 5\), expected \(5, 6\)$"):
        load_numpy_adamw_state(model, optimizer, state)
