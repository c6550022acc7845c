"""What people type every day, one line each, run in both libraries: values, dtypes, shapes, requires_grad, and what is refused.

In a line m is the library, F its nn.functional; x [2, 3] and y [2, 3] require grad, v [3], w [3, 2] and q [2, 2, 3] do not;
s is 0-d, i [3] of integers, b [2, 3] of booleans, e [0, 3] empty; f64, f16, i32 and i64 are dtypes.
"""

import warnings

import numpy as np
import pytest
import torch

import tinygrad_llm as tg

SAME = """
b.add(b, alpha=2)
b.add(~b, alpha=0)
np.int64(2) & m.tensor([3, 6], dtype=i32)
np.float64(0.1) == m.tensor([0.1, 0.7])
np.float64(0.7) > m.tensor([0.1, 0.7])
np.int64(7) % i.add(1)
m.tensor([0.1, 0.7]) == 0.1
m.tensor([0.1, 0.7]) < 0.7
m.tensor([0.1, 0.7], dtype=f16) != 0.1
m.tensor(0.3) <= 0.3
m.tensor([0.1, 0.7]) == m.tensor(0.1, dtype=f64)
m.tensor([16777217]) == m.tensor([16777216.0])
m.tensor([16777217]) >= 16777217.5
m.tensor([0, 44], dtype=i32) > 43.5
b == 1
0.1 in m.tensor([0.1, 2.0])
m.tensor([0.0, 100.0], dtype=f16) * 1e6
m.tensor([0.0, 100.0], dtype=f16) / 65536
m.tensor([0.0, 100.0], dtype=f16) * m.tensor(-70000)
m.tensor([60000.0], dtype=f16) - 70000
x % 0.75
x % y
x.detach() // 0.75
i % 2
i // 2
7 % m.tensor([2, -3])
-7 // m.tensor([2, -3])
i % 1.5
m.remainder(v, -0.5)
m.floor_divide(i, 2)
i.clone().__imod__(2)
m.arange(m.tensor(3))
m.arange(m.tensor(3.0))
m.arange(0, m.tensor(5), m.tensor(2))
f"{s} {s:.3f} {m.tensor(7)} {s.clone().requires_grad_()}"
m.tensor([2**70, 1.5])
m.tensor([m.tensor([1.0]), m.tensor([[2.0]])])
m.nn.Linear(2, 2, dtype=None).weight.dtype == m.ones(1).dtype
m.rand(2, dtype=None).dtype == m.ones(1).dtype
m.ones(1, 3).expand(2, 3).clone().view(6)
m.ones(2, 1, 3).expand(2, 4, 3).double().view(-1)
x.t().roll(1, 0).view(-1)
x[:, ::2].ravel().is_contiguous()
x.t().diagonal()
x.diagonal(-1)
q.diagonal(1, 0, 2)
q.diagonal(offset=5)
x.clamp(m.zeros(3), m.tensor([1.0, float("nan"), 0.5]))
m.tensor([float("nan"), 1.0], requires_grad=True).clamp(min=m.zeros(2))
m.tensor([float("inf")] * 2).norm(p=-1)
m.tensor([0.0, 2.0]).norm(p=-2)
F.embedding(i, w, m.tensor(0))
x.sum((0, 1))
x.sum(0, True)
x.sum(dim=-1, keepdim=True)
x.sum(axis=0, keepdims=True)
x.sum(())
x.sum(dim=[])
x.sum(dim=None)
x.sum(dtype=f64)
x.sum(1, dtype=f16)
m.sum(x, [0, 1], True)
m.sum(b)
m.sum(i, 0)
m.sum(input=x, dim=(0,))
b.sum(dim=1, dtype=i32)
e.sum()
e.sum(0)
e.sum(1, True)
s.sum(0)
x.mean(dim=[0, 1])
x.mean(-1, keepdim=True)
x.mean(dtype=f64)
x.mean(())
i.mean(dtype=f64)
m.mean(e, 0)
x.prod(1, True)
x.prod(dim=0, dtype=f64)
i.prod()
e.prod(0)
x.max(dim=0)
x.max(0).values
x.max(1, True).indices
x.min(dim=1, keepdim=True)
m.max(x, y)
m.max(x, other=y)
x.min(other=y)
x.amax()
x.amax(())
x.amax((0, 1), True)
m.amin(x, dim=[1])
x.argmax()
x.argmax(dim=1)
x.argmax(1, True)
x.argmin(keepdim=True)
x.var()
x.var(0)
x.var(False)
x.var(0, False)
x.var(1, True, True)
x.var(dim=0, correction=0)
x.var(unbiased=False)
x.var((0, 1))
x.std(dim=1, keepdim=True)
m.std(x, [0, 1], correction=2)
x.norm()
x.norm(1)
x.norm(2, 0, True)
x.norm(p=float("inf"), dim=1)
x.norm(2, 0, False, f64)
m.norm(x, 2, (0, 1))
m.linalg.vector_norm(x, 1, 0)
x.logsumexp(1)
x.logsumexp((0, 1), keepdim=True)
x.cumsum(0)
x.cumsum(dim=1, dtype=f64)
b.cumsum(-1)
x.softmax(-1)
x.softmax(dim=0, dtype=f64)
i.softmax(0, dtype=f64)
m.softmax(x, 1, f64)
m.log_softmax(x, dim=-1)
x.any()
b.any(0)
b.any(dim=1, keepdim=True)
b.all(1, True)
b.any(axis=0)
x.permute(1, 0)
x.permute((1, 0))
x.permute(dims=(1, 0))
m.permute(q, (2, 0, 1))
x.transpose(0, 1)
x.transpose(dim0=0, dim1=1)
m.transpose(input=x, dim0=-1, dim1=-2)
x.swapaxes(axis0=0, axis1=1)
x.swapdims(0, 1)
x.T
x.mT
q.movedim(0, -1)
q.movedim(source=(0, 1), destination=(1, 0))
x.t()
x.view(-1)
x.view(3, 2)
x.view((3, 2))
x.view(size=(3, -1))
x.view(i32)
x.view(dtype=i32)
x.view(f16)
x.view(x.dtype)
x.view(x.shape)
x.view(*x.shape)
x.view(x.size(0), -1)
x.view_as(y)
x.reshape(6)
x.reshape((3, -1))
x.reshape([6, 1])
x.reshape(shape=(6,))
m.reshape(x, (6,))
m.reshape(input=x, shape=(-1,))
e.reshape(3, 0)
e.view(0, 3, 5)
x.flatten()
q.flatten(start_dim=1)
q.flatten(0, 1)
m.flatten(q, start_dim=-2)
s.flatten()
x.unsqueeze(0)
x.unsqueeze(dim=-1)
m.unsqueeze(x, 1).squeeze(1)
x[None].squeeze()
x[None].squeeze(0)
x[None, :, None].squeeze(0, 2)
x[None, :, None].squeeze(dim=(0, 2))
x[None].squeeze(dim=1)
x.expand(4, 2, 3)
x[:1].expand(5, -1)
x.expand((2, 2, 3))
x.expand(size=(2, 2, 3))
x.broadcast_to(2, 2, 3)
m.broadcast_to(x, size=(2, 2, 3))
x.repeat(2, 1)
x.repeat((2, 1, 1))
x.repeat(repeats=(1, 2))
x.tile(2)
x.tile((2, 1))
m.tile(x, dims=(2, 2))
x.flip(0)
x.flip(0, 1)
m.flip(x, dims=[1])
x.roll(1)
x.roll(1, 0)
x.roll(shifts=(1, -1), dims=(0, 1))
x.split(1)
x.split([1, 2], 1)
x.split(split_size=2, dim=-1)
m.split(x, split_size_or_sections=1)
x.chunk(2)
x.chunk(chunks=2, dim=1)
x.unbind()
x.unbind(dim=1)
m.cat(tensors=[x, y])
m.cat((x, y), dim=1)
m.cat([x, y], axis=-1)
m.cat([x, e])
m.cat([x, i.view(1, 3)])
m.cat([m.tensor([]), v])
m.stack([x, y], dim=1)
m.stack(tensors=(x, y))
m.stack([x, y], -1)
x.narrow(1, 0, 2)
x.narrow(dim=0, start=-1, length=1)
x.select(1, -1)
x[0]
x[0, 1]
x[:, -1]
x[..., None]
x[b]
x[i[:2].clamp(max=1)]
x[:, [0, 2]]
x[1:, ::2]
x[True]
x[m.tensor(1)]
q[0, :, 1:]
q[[0, 1], [1, 0]]
x.index_select(1, index=i)
x.gather(1, index=m.tensor([[0], [2]]))
x.gather(dim=0, index=m.zeros(1, 3, dtype=i64))
x.take_along_dim(m.tensor([[0], [2]]), dim=1)
x.masked_select(b)
x.masked_select(mask=b)
x.masked_fill(b, 0)
x.masked_fill(mask=b, value=float("-inf"))
x.where(b, 0)
m.where(b, x, y)
m.where(b, x, 0.0)
m.where(b, 1.0, 0.0)
m.where(b, 1, 0)
m.where(b)
m.where(condition=b, input=x, other=y)
x.index_add(0, m.tensor([0, 0]), y)
m.scatter_add(x, 1, m.tensor([[0, 0, 2], [1, 1, 0]]), y)
x.clone().index_add_(dim=0, index=m.tensor([1]), source=y[:1], alpha=2)
x.diagonal()
x.diagonal(offset=1)
x.tril()
x.triu(1)
m.tril(m.ones(3, 3), diagonal=-1)
x.clamp(0)
x.clamp(min=0, max=1)
m.clamp(x, None, 1)
x.clamp(max=0.5)
x.clip(-1, 1)
i.clamp(1, 2)
i.clamp(min=1.5)
x + 1
1 - x
x / 2
2 / (x * x + 1)
x ** 2
2 ** x
x @ w
x @ v
-x
abs(x)
x * b
x + i
i + 1.5
i / 2
i * 2
b + 1
b | (x > 0)
~b
x > y
x == 1
x.add(y, alpha=2)
m.add(input=x, other=1)
x.sub(1)
m.sub(x, y, alpha=0.5)
x.mul(other=y)
x.div(y, rounding_mode="floor")
x.div(2)
i.div(2, rounding_mode="trunc")
x.pow(exponent=2)
m.pow(2, x)
m.pow(x, y.abs())
x.maximum(y)
x.eq(y)
x.exp().log()
i.sqrt()
x.abs().rsqrt()
x.round(decimals=1)
x.isnan()
x.nonzero()
x.nonzero(as_tuple=True)
x.matmul(other=w)
m.matmul(q, w)
x.mm(mat2=w)
x.mv(v)
v.dot(v)
v.outer(vec2=v)
q.bmm(q.transpose(1, 2))
m.addmm(x[:, :2], x, w, beta=0.5, alpha=2)
m.baddbmm(q[:, :, :2], q, w.expand(2, 3, 2))
m.einsum("ij,jk->ik", x, w)
m.einsum("ij->j", [x])
m.zeros(2, 3)
m.zeros((2, 3))
m.zeros([2, 3], dtype=f64)
m.zeros(size=(2,), requires_grad=True)
m.zeros(2, 3, dtype=None)
m.zeros(())
m.zeros(0, 3)
m.zeros(*x.shape)
m.zeros(x.shape)
m.zeros(2, device="cpu", pin_memory=False)
m.ones(2, dtype=i64)
m.ones((), dtype=f64)
m.ones(x.size(0), x.size(1), device=x.device)
m.full((2,), 1.0)
m.full((2,), 1)
m.full((2,), True)
m.full(size=[2], fill_value=0.5, dtype=f64)
m.full((2, 0), 1)
m.zeros_like(x)
m.zeros_like(x, requires_grad=True)
m.ones_like(i, dtype=x.dtype)
m.zeros_like(input=b)
m.ones_like(x, device=x.device)
m.arange(4)
m.arange(end=4)
m.arange(1, 4)
m.arange(1, end=7, step=2)
m.arange(0, 1, 0.25)
m.arange(5, 0, -2)
m.arange(3.0)
m.arange(3, dtype=x.dtype)
m.arange(0, device="cpu")
m.arange(4, dtype=x.dtype, requires_grad=True)
m.tensor([1, 2])
m.tensor([1.0, 2])
m.tensor([[1, 2.5]])
m.tensor(True)
m.tensor([])
m.tensor([], dtype=i64)
m.tensor(data=3)
m.tensor([1, 2], dtype=f64, requires_grad=True)
m.tensor([1.7], dtype=i64)
m.tensor([0, 2], dtype=b.dtype)
m.tensor(array)
m.tensor(array.astype("f4"), device="cpu")
m.tensor([m.tensor(1.0), m.tensor(2.0)])
m.tensor(v)
m.as_tensor([1.0, 2.0])
m.as_tensor(array)
m.as_tensor(x) is x
m.as_tensor(x, dtype=f64)
m.as_tensor(data=array, dtype=x.dtype, device="cpu")
m.from_numpy(array)
x.new_zeros(2, 3)
x.new_zeros((2, 3))
x.new_zeros(size=(2,), dtype=i64)
x.double().new_ones(3)
x.new_ones((2,), requires_grad=True)
x.new_full((2,), 7)
x.new_full(size=(2,), fill_value=0.5, dtype=f64)
i.new_full((2,), 7)
x.new_tensor([1, 2])
x.new_tensor([1.5], dtype=f64, requires_grad=True)
i.new_tensor([3])
x.new_empty(2, 0)
x.new_zeros(2, device=x.device, dtype=None)
x.to(f64)
x.to(f64, False, True)
x.to(x.dtype) is x
x.to(x.dtype, copy=True) is x
x.to(x.dtype, False, True) is x
x.to("cpu") is x
x.to("cpu", f64)
x.to("cpu", x.dtype, False, True) is x
x.to(None, f64)
x.to(device="cpu", dtype=f64, non_blocking=True)
x.to(i)
x.to(i, False, True)
x.to(dtype=i64)
x.to(x.device, non_blocking=True) is x
x.type(f64, False)
x.long()
x.half().float()
i.float()
i.bool()
x.type_as(i)
x.size()
x.size(-1)
x.size(dim=0)
x.shape
x.shape[0]
x.ndim, x.dim(), x.numel(), len(x)
x.is_leaf, x.requires_grad, v.requires_grad, (x * 1).is_leaf
x.itemsize, x.nbytes, x.element_size(), x.nelement(), x.ndimension()
x.dtype == y.dtype
s.item()
x[0, 0].item()
x.tolist()
x.detach()
x.data
x.clone()
x.clone().detach().requires_grad_(True)
v.clone().requires_grad_(requires_grad=True)
x.contiguous()
x.t().contiguous().stride()
x.ravel()
x.stride(0)
x.is_floating_point(), i.is_floating_point()
x.equal(y), x.allclose(x)
v.clone().add_(1, alpha=2)
v.clone().add_(other=v)
v.clone().mul_(2).sub_(1).div_(2)
v.clone().clamp_(min=0)
v.clone().copy_(other=v[0])
v.clone().copy_(i, True)
v.clone().fill_(value=2)
v.clone().zero_()
v.clone().masked_fill_(mask=v > 0, value=1)
x.clone().mul_(y)
x.clone().tril_(diagonal=1)
x.clone().exp_()
i.clone().add_(1)
F.relu(x)
F.relu(x, inplace=False)
F.gelu(x, approximate="tanh")
F.silu(input=x)
F.softmax(x, dim=-1)
F.softmax(x, -1, dtype=f64)
F.log_softmax(x, 1)
F.softplus(x, 2, 10)
F.sigmoid(x)
F.linear(x, w.t())
F.linear(x, weight=w.t(), bias=v[:2])
F.layer_norm(x, (3,))
F.layer_norm(x, [3], v, v, 1e-3)
F.layer_norm(x, normalized_shape=x.shape[-1:], eps=1e-6)
F.rms_norm(x, (3,), weight=v)
F.embedding(i, w)
F.embedding(i, w, padding_idx=0, sparse=False)
F.embedding(i, w, None, None, 2.0, False, False)
F.one_hot(i)
F.one_hot(i, num_classes=5)
F.cross_entropy(x, i[:2])
F.cross_entropy(x, i[:2], reduction="none")
F.cross_entropy(x, i[:2], None, None, 1)
F.cross_entropy(x, i[:2], weight=v.abs(), label_smoothing=0.1)
F.nll_loss(x.log_softmax(-1), i[:2])
F.mse_loss(x, y)
F.mse_loss(x, y, reduction="sum")
F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean")
F.dropout(x, 0.5, False)
F.dropout(x, p=0.0)
F.scaled_dot_product_attention(q, q, q)
F.scaled_dot_product_attention(q, q, q, is_causal=True)
F.scaled_dot_product_attention(q, q, q, None, 0.0, False, scale=1.0)
F.scaled_dot_product_attention(q, q, q, m.ones(2, 2).tril().bool())
m.nn.Linear(3, 2, bias=False)(x).shape
m.nn.ReLU()(x)
m.func.grad(lambda t: (t * t).sum())(v)
m.func.vjp(lambda t: t * t, v)[0]
m.func.jvp(lambda t: t * t, (v,), (v,))
m.func.jacrev(lambda t: t * t)(v)
m.func.hessian(lambda t: (t ** 3).sum())(v)
m.autograd.grad((x * y).sum(), x)
m.autograd.grad((x * y).sum(), [x, y])
m.autograd.grad(x * y, x, grad_outputs=m.ones(2, 3))
x == None
x != None
x == "a"
x != "a"
x.any(dim=(0, 1))
b.any(dim=[])
b.all(())
b.any(dim=[0, 1])
s.any(0)
e.any(1)
e.all(0)
m.arange(-5.0, 3, 2, dtype=i64)
m.arange(2.7)
i.int().sum()
i.cumsum(0, dtype=i32)
x.detach().sum(dtype=i64)
x.detach().prod(0, dtype=i32)
[t for t in v]
[len(r) for r in x]
float(s), int(s), bool(s)
s.item() in v
f"{s:.2f}"
sum(list(v))
max(v), min(v)
sorted(v.tolist())
""".strip().splitlines()

REFUSED = """
x.norm(p=-1, dim=0) + e.norm(p=-1)
m.ones(3) == m.ones(4)
f"{v:.2f}"
"a" in v
m.tensor([v, v])
m.full((2,), 1e39)
m.zeros(2, dtype=f16).masked_fill(m.tensor([True, False]), -1e9)
v.__setitem__(0, 1e39)
v.fill_(1e39)
m.zeros(True)
v.softmax(True)
x.sum(True)
i % None
i // "a"
m.arange("a")
m.normal(v, 1.0, dtype=f64)
m.tensor([1.0], f64)
m.zeros()
m.arange(5, step=2)
m.arange(5, 0)
m.arange(0, 5, 0)
m.zeros(2, device="nowhere")
m.zeros(-1)
x.new_zeros(-1)
x.sum(2)
x.sum((0, 0))
x.sum(0, True, f64)
x.mean(dim=3)
i.mean()
x.view(4)
x.view(f64)
x.t().view(-1)
x.reshape(4, -1)
x.permute(0)
x.permute(0, 0)
x.transpose(0, 2)
x.squeeze(2)
x.expand(3, 3)
x.repeat(2)
x.split(0)
x.split([1, 1], 1)
x.chunk(0)
m.cat([])
m.cat([x, v])
m.stack([x, v])
m.cat(x, y)
x.split(split_size_or_sections=1)
x.to("nowhere")
x.to(f64, copy=1, dtype=f64)
x.item()
x.add_(1)
i.clone().add_(1.5)
v.clone().copy_(x)
x.clamp()
x + w
x @ x
x.mm(v)
v.dot(m.ones(2))
m.from_numpy([1.0])
m.from_numpy(array=array)
m.full((2,))
F.embedding(i + 9, w)
F.cross_entropy(x, i)
F.softmax(x, 5)
m.autograd.grad(x * y, x)
i.clone().requires_grad_()
(x * 2).requires_grad_(False)
x.max(dim=5)
e.max()
e.argmax(0)
x.gather(1, m.tensor([[5], [0]]))
x.index_select(0, m.tensor([2]))
x[2]
x[0, 0, 0]
x.masked_fill(i, 0)
x.div(2, rounding_mode="up")
m.einsum("ij,jk->ik", x)
x.round(1)
x.sum(dtype=i64)
x.prod(0, dtype=i32)
x.cumsum(0, dtype=i64)
x.mean(dtype=i64)
x.detach().mean(dtype=i64)
x < None
x > "a"
x & None
x.eq(None)
x.lt("a")
b.any(2)
b.any((0, 0))
b.any(dim=0.5)
v.fill_(None)
v.fill_("3")
v.fill_(1j)
v.__setitem__(0, None)
v.__setitem__(0, "7")
v.__setitem__(0, 1j)
v.__setitem__(slice(None), [None] * 3)
(x * 2).fill_(None)
i.fill_(None)
v.requires_grad_("False")
v.requires_grad_(1)
v.requires_grad_(None)
setattr(v, "requires_grad", "False")
setattr(v, "requires_grad", 1)
setattr(v, "requires_grad", None)
m.ones(2, requires_grad="x")
m.tensor([1.0], requires_grad=1)
m.nn.Parameter(v, "x")
m.nn.Linear(2, 2).requires_grad_("x")
m.tensor(2**63)
m.tensor(-2**63 - 1)
m.tensor([2**63, -1])
m.tensor([[1], [2**70]])
~v
v.split()
v.clone(1)
v.view("a")
m.nn.Linear(2, 2).load_state_dict(3)
m.nn.Linear(2, 2).load_state_dict(m.nn.Linear(2, 2))
bool(v)
float(v)
""".strip().splitlines()


def world(m):
    """The names of a line."""
    rng = np.random.default_rng(0)
    def floats(*shape, grad=False):
        return m.tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=grad)
    return {
        "m": m, "np": np, "F": m.nn.functional, "x": floats(2, 3, grad=True), "y": floats(2, 3, grad=True), "v": floats(3),
        "w": floats(3, 2), "q": floats(2, 2, 3), "s": m.tensor(2.5), "i": m.tensor([0, 2, 1]),
        "b": m.tensor([[True, False, True], [False] * 3]),
        "e": m.zeros(0, 3), "array": np.array([1.5, -2.5]), **dtypes(m),
    }


def dtypes(m):
    return {name: getattr(m.zeros(1), cast)().dtype
            for name, cast in [("f64", "double"), ("f16", "half"), ("i32", "int"), ("i64", "long")]}


def plain(value):
    """What a result says, as numbers and strings."""
    if isinstance(value, tg.Tensor | torch.Tensor):
        array = np.asarray(value.detach())
        return [str(array.dtype), array.shape, value.requires_grad, value.is_leaf, array]
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            assert_same(one, other)
    elif isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-6)
    else:
        assert a == b


@pytest.mark.parametrize("line", SAME)
def test_a_line_means_what_it_means_in_torch(line):
    results = []
    for m in (tg, torch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = world(m)
            value = eval(line, names)
            results.append((plain(value), gradients(value, names)))
    assert_same(*[list(r) for r in results])


def waves(t):
    weights = np.cos(np.arange(t.numel())).reshape(tuple(t.shape)).astype(np.float32)
    return (tg if isinstance(t, tg.Tensor) else torch).tensor(weights)


def gradients(value, names):
    """Of Σ t² cos(place) over the results t, for x and y."""
    tensors = value if isinstance(value, tuple | list) else [value]
    wanted = [t for t in tensors if getattr(t, "requires_grad", False) and not t.is_leaf]
    if not wanted:
        return []
    sum([(t * t * waves(t)).sum().double() for t in wanted]).backward()
    return [None if g is None else np.asarray(g) for g in (names["x"].grad, names["y"].grad)]


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_torch_refuses_is_refused(line):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        eval(line, world(torch))
    with pytest.raises(RuntimeError if theirs.type is NotImplementedError else theirs.type):  # which torch makes more precise
        eval(line, world(tg))


@pytest.mark.parametrize("m", [tg, torch], ids=["ours", "torch"])
@pytest.mark.parametrize("written", [False, True])
def test_a_view_of_a_dtype_shares_memory_and_its_writes_are_seen(m, written):
    y = m.zeros(2, requires_grad=True) * 1
    squares = y * y
    bits = y.detach().view(dtypes(m)["i32"])
    if not written:
        squares.sum().backward()
        return
    bits.fill_(0x3F800000)
    assert y.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match=r"modified (in place|by an inplace operation)"):
        squares.sum().backward()
