"""Ops as pure functions: what they leave alone, what they share, dtypes, memory layouts, and the smallest shapes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opcases import OPS
from opcases import cases as calls
from opchecks import check_adjoint, check_float32, check_float64, judge64

from reference.opdraw import Seeded, Sizes, call_torch, draw_call, is_float, run_ours, run_torch
from tinygrad_llm.autograd import saved_arrays

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
BROADCASTING = [op for op in OPS if sum(a.spec.startswith("~") and not a.axes for a in op.args) > 1]
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
fewer = settings(max_examples=max(5, settings.default.max_examples // 5))


def call(case, dtype):
    """(arguments, cotangent, output, vjp) of a call in dtype."""
    args = case.inputs(dtype)
    out, vjp = case.op(*args, **case.options)
    return args, np.array(case.cotangent.astype(out.dtype)), out, vjp


def bits(arrays):
    return [None if a is None else (a.dtype, a.shape, np.asarray(a).tobytes()) for a in arrays]


@every_op
@dtypes
@fewer
@given(data=st.data())
def test_nothing_is_written_to_and_vjp_repeats(op, dtype, data):
    case = data.draw(calls(op))
    before = bits(case.inputs(dtype))
    args, g, out, vjp = call(case, dtype)
    kept, saved = bits([g, out]), bits(saved_arrays(vjp))
    first = bits(vjp(g))
    assert bits(args) == before
    assert bits([g, out]) == kept
    assert bits(saved_arrays(vjp)) == saved
    assert bits(vjp(g)) == first


@every_op
@dtypes
@fewer
@given(data=st.data())
def test_gradients_share_memory_with_nothing_but_the_cotangent(op, dtype, data):
    """The engine adds in place into an array whose base is None and which is not g: it must be nobody else's."""
    case = data.draw(calls(op))
    args, g, out, vjp = call(case, dtype)
    gradients = [np.asarray(d) for d in vjp(g) if d is not None]
    own = [d for d in gradients if not np.shares_memory(d, g)]
    held = [np.asarray(a) for a in (*saved_arrays(vjp), *args, out) if a is not None]
    assert all(not np.shares_memory(d, a) for d in own for a in held if not np.shares_memory(a, g))
    assert all(not np.shares_memory(d, e) for d, e in itertools.combinations(own, 2))
    assert all(d.base is not None or d is g for d in gradients if np.shares_memory(d, g) and d.size)


@every_op
@dtypes
@fewer
@given(data=st.data())
def test_dtype_in_is_dtype_out(op, dtype, data):
    case = data.draw(calls(op))
    out, *gradients = run_ours(case, dtype)
    theirs, *theirs_gradients = run_torch(case, dtype)
    assert out.dtype == theirs.dtype
    assert [d.dtype for d in gradients] == [d.dtype for d in theirs_gradients]
    assert all(d.dtype == dtype for d in gradients)


@pytest.mark.parametrize("op", BROADCASTING, ids=lambda op: op.name)
@pytest.mark.parametrize("scalar", [2, 2.0, 0.7], ids=repr)
@dtypes
def test_python_scalars_are_weak_and_equal_torch(op, scalar, dtype):
    case = draw_call(op, Seeded(1), Sizes(low=2, lead=(1, 2), cut=False))
    for i in case.wrt:
        args = [scalar if k == i else a for k, a in enumerate(case.inputs(dtype))]
        tensors = [torch.tensor(a, requires_grad=is_float(a)) if isinstance(a, np.ndarray) else a for a in args]
        theirs, (out, vjp) = call_scalar(op, tensors), op(*args)
        others = [k for k in case.wrt if k != i]
        g = case.cotangent.astype(dtype)
        wanted = torch.autograd.grad(theirs, [tensors[k] for k in others], torch.tensor(g))
        for ours, like in zip([out, *[vjp(g)[k] for k in others]], [theirs, *wanted]):
            assert ours.dtype == dtype
            assert np.allclose(ours, like.detach().numpy(), rtol=1e-6)


def call_scalar(op, tensors):
    """The torch expression; where torch wants tensors only (maximum), the scalar as a tensor of their dtype."""
    try:
        return call_torch(op, tensors, {})
    except TypeError:
        dtype = next(t.dtype for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point())
        return call_torch(op, [t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=dtype) for t in tensors], {})


@pytest.mark.parametrize("op", BROADCASTING, ids=lambda op: op.name)
def test_mixed_dtypes_promote_as_torch_and_gradients_keep_their_own(op):
    for seed, narrow in itertools.product(range(10), range(len(op.args))):
        case = draw_call(op, Seeded(seed), Sizes(low=2, lead=(1, 2), lead_low=2, cut=False))
        if narrow not in case.wrt:
            continue
        args = [a.astype(np.float32) if i == narrow else a for i, a in enumerate(case.args)]
        tensors = [torch.tensor(a, requires_grad=is_float(a)) for a in args]
        theirs = call_torch(op, tensors, {})
        out, vjp = op(*args)
        gradients = vjp(case.cotangent)
        wanted = torch.autograd.grad(theirs, [tensors[i] for i in case.wrt], torch.tensor(case.cotangent))
        assert judge64("output", out, theirs.detach().numpy()) == []
        assert [gradients[i].dtype for i in case.wrt] == [args[i].dtype for i in case.wrt]
        assert all(np.allclose(gradients[i], d.numpy(), rtol=1e-6) for i, d in zip(case.wrt, wanted))


def strided(a):
    """Every other entry of each axis of a larger array."""
    wide = np.zeros([2 * n for n in a.shape], a.dtype)
    view = wide[(*[slice(None, None, 2)] * a.ndim, ...)]
    view[...] = a
    return view


def reversed_(a):
    """Negative strides."""
    return np.flip(np.flip(a).copy()) if a.ndim else a


def fortran(a):
    """The first axis fastest."""
    return np.asfortranarray(a) if a.ndim else a


def transposed(a):
    """The view that swapping two axes of a contiguous array gives."""
    return np.swapaxes(np.swapaxes(a, 0, -1).copy(), 0, -1) if a.ndim else a


def read_only(a):
    """An array that refuses to be written to."""
    a = a.copy()
    a.flags.writeable = False
    return a


@every_op
@pytest.mark.parametrize("layout", [strided, reversed_, fortran, transposed, read_only], ids=lambda f: f.__name__)
@fewer
@given(data=st.data())
def test_memory_layout_does_not_matter(op, layout, data):
    case = data.draw(calls(op))
    out, *gradients = run_ours(case)
    args = [None if a is None else layout(a) for a in case.args]
    again, vjp = op(*args, **case.options)
    moved = vjp(layout(case.cotangent.astype(again.dtype)))
    pairs = [(again, out), *[(moved[i], d) for i, d in zip(case.wrt, gradients)]]
    assert [fail for ours, like in pairs for fail in judge_same(ours, like)] == []


@every_op
@fewer
@given(data=st.data())
def test_broadcast_views_are_arrays_like_any_other(op, data):
    """Stride 0 along the first axis of every argument, and of the cotangent."""
    case = data.draw(calls(op))
    args = [None if a is None else broadcast_view(a) for a in case.args]
    out, vjp = op(*args, **case.options)
    g = broadcast_view(case.cotangent.astype(out.dtype))
    plain, plain_vjp = op(*[None if a is None else a.copy() for a in args], **case.options)
    pairs = zip([out, *vjp(g)], [plain, *plain_vjp(g.copy())])
    assert [fail for ours, like in pairs if like is not None for fail in judge_same(ours, like)] == []


def broadcast_view(a):
    return np.broadcast_to(a[:1], a.shape) if a.ndim and a.size else a


def judge_same(ours, like):
    ours, like = np.asarray(ours), np.asarray(like)
    if like.dtype != np.float64:
        return [] if np.array_equal(ours, like) and ours.dtype == like.dtype else [f"got {ours}, expected {like}"]
    return judge64("layout", ours, like)


SMALLEST = {
    "zero-size leading axes": Sizes(lead=(1, 2), lead_low=0, lead_high=1, cut=False),
    "zero-size axes": Sizes(low=0, high=2, lead=(1, 1)),
    "axes of size 1": Sizes(high=1, lead=(1, 2), lead_high=1),
    "no leading axes": Sizes(lead=(0, 0)),
}


@every_op
@pytest.mark.parametrize("sizes", SMALLEST.values(), ids=SMALLEST)
@fewer
@given(data=st.data())
def test_smallest_shapes_are_torchs(op, sizes, data):
    case = data.draw(calls(op, sizes))
    assert check_float64(case) == []
    assert check_float32(case) == []
    if np.isfinite(run_ours(case)[0]).all():
        assert check_adjoint(case) == []


@pytest.mark.parametrize("op", [op for op in OPS if op.args[0].accepts and not op.args[0].dims[0].name.isdigit()],
                         ids=lambda op: op.name)
@fewer
@given(data=st.data())
def test_empty_axes_are_torchs_or_refused_where_torch_refuses(op, data):
    options = data.draw(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in op.options.items()}))
    x = np.zeros(data.draw(st.tuples(*[st.integers(0, 2)] * len(op.args[0].dims))))
    try:
        theirs = call_torch(op, [torch.tensor(x)], options).numpy()
    except (RuntimeError, IndexError):
        with pytest.raises(ValueError, match=op.name):
            op(x, **options)
        return
    out, vjp = op(x, **options)
    assert judge64("output", np.asarray(out), theirs) == []
    assert vjp(out)[0].shape == x.shape
