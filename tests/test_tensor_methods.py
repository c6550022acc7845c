"""What a torch user asks of a tensor every day: sizes, memory, casts, tensors like it, and the short names of functions."""

import json
import math

import functioncases
import numpy as np
import pytest
import torch

import tinygrad_llm as tg
from tinygrad_llm.ops import IndexRangeError

A = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def plain(value):
    if isinstance(value, tg.Tensor | torch.Tensor):
        array = np.asarray(value.detach())
        return str(array.dtype), array.shape, array.tolist()
    return tuple(value) if isinstance(value, torch.Size) else value


ASKED = {
    "size()": lambda m, x: x.size(), "size(0)": lambda m, x: x.size(0), "size(-1)": lambda m, x: x.size(-1),
    "size(dim=1)": lambda m, x: x.size(dim=1), "size unpacked": lambda m, x: list(x.size()),
    "view by size": lambda m, x: x.view(x.size(0), -1), "stride": lambda m, x: x.stride(),
    "stride dim": lambda m, x: x.stride(-2),
    "stride of a transpose": lambda m, x: x.transpose(0, 2).stride(), "stride of a slice": lambda m, x: x[:, ::2].stride(),
    "stride of expand": lambda m, x: x[:1].expand(5, 3, 4).stride(), "is_contiguous": lambda m, x: x.is_contiguous(),
    "transpose is not": lambda m, x: x.transpose(0, 1).is_contiguous(),
    "contiguous": lambda m, x: x.transpose(0, 1).contiguous(),
    "contiguous strides": lambda m, x: x.transpose(0, 1).contiguous().stride(),
    "contiguous is self": lambda m, x: x.contiguous() is x,
    "view of contiguous": lambda m, x: x.transpose(0, 1).contiguous().view(-1), "element_size": lambda m, x: x.element_size(),
    "itemsize": lambda m, x: x.itemsize, "nbytes": lambda m, x: x.nbytes, "nelement": lambda m, x: x.nelement(),
    "ndimension": lambda m, x: x.ndimension(),
    "is_floating_point": lambda m, x: (x.is_floating_point(), x.long().is_floating_point()),
    **{name: lambda m, x, name=name: getattr(x * 3 + 50, name)() for name in ("double", "float", "half", "long", "int", "short",
                                                                            "char", "byte", "bool")},
    "to cpu": lambda m, x: x.to("cpu") is x, "to cpu, dtype": lambda m, x: x.to("cpu", x.double().dtype),
    "to device=": lambda m, x: x.to(device="cpu", dtype=x.double().dtype), "to other": lambda m, x: x.to(x.double()),
    "to itself": lambda m, x: x.to(x.dtype) is x, "to copy": lambda m, x: x.to(x.dtype, copy=True) is x,
    "cpu": lambda m, x: x.cpu() is x,
    "device": lambda m, x: str(x.device), "type": lambda m, x: x.type().split(".")[-1],
    "type of long": lambda m, x: x.long().type().split(
        ".")[-1], "type dtype": lambda m, x: x.type(x.long().dtype), "type_as": lambda m, x: x.type_as(x.double()),
    "new_zeros": lambda m, x: x.new_zeros(2, 3), "new_ones": lambda m, x: x.double().new_ones((2, 3)),
    "new_full": lambda m, x: x.new_full((2,), 7), "new_tensor": lambda m, x: x.double().new_tensor([1, 2]),
    "new_empty": lambda m, x: tuple(x.new_empty(2, 0).shape),
    "new_zeros dtype": lambda m, x: x.new_zeros(2, dtype=x.long().dtype),
    "zeros_like": lambda m, x: m.zeros_like(x), "ones_like": lambda m, x: m.ones_like(x.long()),
    "full": lambda m, x: m.full((2, 3), 0.5),
    "full of integers": lambda m, x: m.full((2,), 3), "arange": lambda m, x: m.arange(4),
    "arange floats": lambda m, x: m.arange(0, 1, 0.25),
    "eq": lambda m, x: x.eq(x), "ne": lambda m, x: x.ne(0), "lt": lambda m, x: x.lt(0.5), "le": lambda m, x: x.le(x),
    "gt": lambda m, x: x.gt(0), "ge": lambda m, x: x.ge(1), "isnan": lambda m, x: (x / 0 * 0).isnan(),
    "isinf": lambda m, x: (x / 0).isinf(),
    "isfinite": lambda m, x: (x / 0).isfinite(), "any": lambda m, x: (x > 1).any(),
    "any dim": lambda m, x: (x > 1).any(1, keepdim=True),
    "all": lambda m, x: (x > -9).all(), "all dim": lambda m, x: (x > 0).all(dim=-1), "argmin": lambda m, x: x.argmin(),
    "argmin dim": lambda m, x: x.argmin(1, keepdim=True), "m.argmin": lambda m, x: m.argmin(x, 0),
    "equal": lambda m, x: x.equal(x + 0),
    "allclose": lambda m, x: x.allclose(x + 1e-9), "nonzero": lambda m, x: (x > 1).nonzero(), "clone": lambda m, x: x.clone(),
    "+x": lambda m, x: +x,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_tensor_answers_as_torchs(ask):
    with np.errstate(all="ignore"):
        assert plain(ask(tg, tg.tensor(A))) == plain(ask(torch, torch.tensor(A)))


GRADIENTS = {
    **{name: lambda m, x, y, name=name: getattr(x, name)(y) for name in ("multiply", "subtract", "divide", "true_divide",
    "view_as",
                                                                        "expand_as", "reshape_as")},
    **{name: lambda m, x, y, name=name: getattr(x, name)() for name in ("absolute", "negative", "ravel", "clone", "floor",
    "ceil", "trunc",
                                                                       "round")},
    "clip": lambda m, x, y: x.clip(-0.5, 0.5), "clamp_min": lambda m, x, y: x.clamp_min(0),
    "clamp_max": lambda m, x, y: x.clamp_max(0),
    "contiguous": lambda m, x, y: x.transpose(0, 2).contiguous() * 2, "moveaxis": lambda m, x, y: x.moveaxis(0, -1),
    "swapdims": lambda m, x, y: x.swapdims(0, 1), "masked_select": lambda m, x, y: x.masked_select(y > 0),
    "masked_select row": lambda m, x, y: x.masked_select(y[0, 0] > 0), "to": lambda m, x, y: x.to(y) * y,
}


@pytest.mark.parametrize("call", GRADIENTS.values(), ids=GRADIENTS)
def test_methods_have_torchs_gradients(call):
    assert functioncases.mistakes(lambda _: (call, [A.astype(np.float64), A[::-1, :, ::-1].astype(np.float64)]), 0) == []


def test_size_is_numpys_number_too():
    x = tg.tensor(A)
    assert x.size == 24
    assert isinstance(x.size, int)
    assert (np.size(x), np.zeros(x.size).shape, math.sqrt(x.size + 1), json.dumps(x.size)) == (24, (24,), 5.0, "24")
    for y in (A / x.size, x.size * A, A[0, 0, 0] / x.size, x / x.size, x.size - x, x.sum() / x.size):
        assert y.dtype == np.float32
    assert not tg.zeros(0, 3).size
    assert tg.zeros(0, 3).size() == (0, 3)
    with pytest.raises(IndexRangeError, match=r"size: dim: got 3, expected an axis of shape \(2, 3, 4\)"):
        x.size(3)


@pytest.mark.parametrize("call", [lambda m, x: x.to("cuda:7"), lambda m, x: x.to("mps"), lambda m, x: x.stride(3),
                                  lambda m, x: x.new_zeros(-1), lambda m, x: x.type("nothing"), lambda m, x: x.view_as(x[0])])
def test_what_torch_refuses_of_a_tensor_is_refused(call):
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError, AssertionError)):
        call(torch, torch.tensor(A))
    with pytest.raises((ValueError, TypeError, IndexError), match=r"got .*expected"):
        call(tg, tg.tensor(A))
