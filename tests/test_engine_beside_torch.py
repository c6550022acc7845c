"""What programs do around the engine, beside torch: arrays that a backward or a hook keeps, detach_() in the middle, indices
that change, tensors that leave a checkpoint by the side. Each gives torch's numbers, or is refused where torch refuses."""

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

import tinygrad_llm as tg

pytestmark = pytest.mark.filterwarnings("ignore")
LIBRARIES = (torch, tg)


def leaf(m, *values):
    return m.tensor([float(v) for v in values], requires_grad=True)


def shown(tensor):
    return None if tensor is None else np.round(tensor.detach().numpy(), 3).tolist()


def function(m, forward, backward):
    return type("Own", (m.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def again(m, f, x):
    return (torch.utils.checkpoint if m is torch else tg.autograd).checkpoint(f, x, use_reentrant=False)


# Arrays that somebody holds ----------------------------------------------------------------------------------------------


def a_constant_that_backward_returns(m):
    g, x = m.tensor([1.0, 1.0]), leaf(m, 1, 2)
    own = function(m, lambda ctx, x: x * 1, lambda ctx, _: g)
    (own.apply(x) + own.apply(x)).sum().backward()
    own.apply(x).sum().backward()
    return shown(x.grad), shown(g)


def a_saved_tensor_that_backward_returns(m):
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x / 2

    x = leaf(m, 1, 2)
    own = function(m, forward, lambda ctx, g: ctx.saved_tensors[0])
    for _ in range(2):
        own.apply(x).sum().backward()
    return shown(x), shown(x.grad), x._version


def a_result_that_backward_keeps(m):
    kept, x = [], leaf(m, 1, 2)

    def backward(ctx, g):
        kept.append(g * 2)
        return kept[-1]

    own = function(m, lambda ctx, x: x * 1, backward)
    own.apply(x).sum().backward()
    (own.apply(x) * 1.5).sum().backward()
    return shown(kept[0]), shown(x.grad)


def gradients_that_a_node_hook_keeps(m):
    kept, x = [], leaf(m, 1, 2)
    y = x * m.tensor([2.5, 5.0])
    y.grad_fn.register_hook(lambda inputs, outputs: kept.append(inputs[0]))
    (y + x * 3).sum().backward()
    (x * 2).sum().backward()
    return shown(kept[0]), shown(x.grad)


def a_constant_that_a_node_hook_returns(m):
    g, x = m.tensor([1.0, 1.0]), leaf(m, 1, 2)
    for _ in range(2):
        y = x * 2
        y.grad_fn.register_hook(lambda inputs, outputs: (g, *inputs[1:]))
        y.sum().backward()
    return shown(g), shown(x.grad)


def a_hook_that_writes(m):
    x, w = leaf(m, 1, 2), leaf(m, 1, 1)
    h = x * 2
    z = h + w
    h.register_hook(lambda g: [None, g.mul_(5)][0])
    z.backward(m.tensor([1.0, 1.0]))
    return shown(w.grad), shown(x.grad)


def a_prehook_beside_retain_grad(m):
    x = leaf(m, 1)
    y = x * 2
    y.retain_grad()
    y.grad_fn.register_prehook(lambda g: (g[0] * 10,))
    (y * 3).sum().backward()
    return shown(y.grad), shown(x.grad)


def a_prehook_that_drops_the_gradient(m):
    x = leaf(m, 1)
    y = x * 2
    y.grad_fn.register_prehook(lambda g: (None,))
    (y * 3).sum().backward()
    return shown(x.grad)


# Odd moments -------------------------------------------------------------------------------------------------------------


def second_derivative_after_detach_(m):
    x = leaf(m, 0.1, 0.2)
    h = x * 3
    y = h.exp().sum() + h.tanh().sum()
    h.detach_()
    g, = m.autograd.grad(y, x, create_graph=True)
    (g.sum() + x.sum()).backward()
    return shown(x.grad)


def ends_of_a_slice_that_change(m):
    x, i, j = leaf(m, 0, 1, 2, 3), m.tensor(1), m.tensor(3)
    y = x[i:j]
    i.add_(1)
    j.add_(1)
    (y * m.tensor([1.0, 10.0])).sum().backward()
    return shown(x.grad)


def a_list_of_tensors_that_change(m):
    x, i, j = m.tensor([[0.0, 1, 2, 3]] * 2).requires_grad_(), m.tensor(0), m.tensor(1)
    y = x[0, [i, j]]
    i.add_(2)
    (y * m.tensor([1.0, 10.0])).sum().backward()
    return shown(x.grad)


def lists_as_indices(m):
    x = m.tensor(np.arange(27.0).reshape(3, 3, 3))
    return [shown(x[i]) for i in ([0, 1], [[0, 1], [1, 2]], [[0, 1]], [m.tensor(0), m.tensor(2)], [slice(0, 2), 0], [None, 0],
                                  [..., 0], [True, False, True], [], (0, [0, 1]))]


def data_of_a_view_and_a_write_to_its_base(m):
    base = leaf(m, 1, 2) * 1
    view = base[:1]
    view.data = m.tensor([9.0])
    base.mul_(2)
    return shown(base), shown(view)


def enable_grad_inside_inference_mode(m):
    x = leaf(m, 1)
    with m.inference_mode(), m.enable_grad():
        y = x * 2
    return y.requires_grad, y.is_inference()


def grad_inside_inference_mode(m):
    with m.inference_mode():
        return shown(m.func.grad(lambda z: (z**2).sum())(m.ones(2)))


def tripled(m):
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.mul_(3)
        return x

    return function(m, forward, lambda ctx, g: g * 3)


def a_view_of_what_is_marked_dirty(m):
    a = leaf(m, 1, 2)
    x = a * 1
    view = x[:1]
    tripled(m).apply(x)
    view.sum().backward()
    return shown(a.grad)


def retain_grad_of_what_is_marked_dirty(m):
    a = leaf(m, 1, 2)
    x = a * 1
    x.retain_grad()
    (tripled(m).apply(x) * 5).sum().backward()
    return shown(x.grad), x.retains_grad, shown(a.grad)


def a_checkpoint_that_leaves_something(m, both=True):
    left, x, w = [], leaf(m, 1, 2), leaf(m, 3, 4)

    def f(t):
        h = t * w
        left.append((h * h).sum())
        return h

    y = again(m, f, x)
    (y.sum() + left[0] if both else left[0]).backward()
    return shown(x.grad), shown(w.grad)


def only_what_a_checkpoint_leaves(m):
    return a_checkpoint_that_leaves_something(m, both=False)


def writes_to_diagonals(m):
    x, shared = m.tensor(np.ones((2, 4, 4), np.float32).tolist(), requires_grad=True), m.tensor([[1.0, 2.0], [3.0, 4.0]])
    part = (x * 1)[:, :3, :3]
    part.diagonal(dim1=-2, dim2=-1).fill_(-5.0)
    part.mT.diagonal(1, 1, 2).mul_(3.0)
    part.sum().backward()
    ones, shown_later = m.ones(1, 3).expand(3, 3).clone(), shared.T.diagonal()
    ones.diagonal().fill_(0.0)
    shared.fill_(7.0)
    return shown(part), shown(x.grad), shown(ones), shown(shown_later)


def a_write_to_a_ravelled_copy(m):
    x = m.ones(2, 4, requires_grad=True)
    y = x * 1
    y[:, ::2].ravel().mul_(5.0)
    y.view(8).ravel()[1:].mul_(2.0)
    y.sum().backward()
    return shown(y), shown(x.grad)


def an_output_that_is_returned_twice(m):
    def forward(ctx, x):
        y = x * 2
        return y, y

    x = leaf(m, 1, 2)
    a, b = function(m, forward, lambda ctx, g, h: g * 2 + h * 20).apply(x)
    (a + 3 * b).sum().backward()
    return shown(x.grad)


def hooks_of_what_is_detached(m):
    x, notes = leaf(m, 1, 2), []
    y = x * 2
    handle = y.register_hook(lambda g: notes.append(shown(g)))
    y.detach_().requires_grad_()
    (y * 3).sum().backward()
    handle.remove()
    (y * 3).sum().backward()
    return shown(y.grad), notes


def arrays_beside_an_ellipsis_of_no_axes(m):
    x, i = m.tensor(np.arange(24.0).reshape(2, 3, 4).tolist(), requires_grad=True), m.tensor([0, 1, 1])
    y = x[i, ..., i, i] * x[..., i, i][0] + x[None, i, i, i, ...][0]
    (y * y).sum().backward()
    return shown(y), shown(x.grad)


SAME = (
    writes_to_diagonals, a_write_to_a_ravelled_copy, an_output_that_is_returned_twice, hooks_of_what_is_detached,
    arrays_beside_an_ellipsis_of_no_axes,
    a_constant_that_backward_returns, a_saved_tensor_that_backward_returns, a_result_that_backward_keeps,
    gradients_that_a_node_hook_keeps, a_constant_that_a_node_hook_returns, a_hook_that_writes, a_prehook_beside_retain_grad,
    a_prehook_that_drops_the_gradient, second_derivative_after_detach_, ends_of_a_slice_that_change,
    a_list_of_tensors_that_change, lists_as_indices, data_of_a_view_and_a_write_to_its_base, enable_grad_inside_inference_mode,
    grad_inside_inference_mode, a_view_of_what_is_marked_dirty, retain_grad_of_what_is_marked_dirty,
    a_checkpoint_that_leaves_something, only_what_a_checkpoint_leaves,
)


@pytest.mark.parametrize("program", SAME, ids=lambda program: program.__name__)
def test_it_is_as_in_torch(program):
    theirs, ours = [program(m) for m in LIBRARIES]
    assert ours == theirs


# What is refused ---------------------------------------------------------------------------------------------------------


def an_output_that_a_checkpoint_shares(m):
    kept, x = [], leaf(m, 1, 2)

    def f(t):
        kept.append(t * 2)
        return kept[0]

    y = again(m, f, x)
    z = (y * y).sum()
    with m.no_grad():
        kept[0].mul_(10)
    z.backward()


def a_function_that_writes_under_no_grad(m):
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.detach().numpy()[:] *= 2
        return x

    w, c = leaf(m, 1, 1), m.tensor([3.0, 4.0])
    z = w * c
    function(m, forward, lambda ctx, g: g).apply(c)
    z.sum().backward()


@pytest.mark.parametrize("program", [an_output_that_a_checkpoint_shares, a_function_that_writes_under_no_grad])
def test_a_write_is_refused_as_in_torch(program):
    for m in LIBRARIES:
        with pytest.raises(RuntimeError, match=r"modified (by an inplace|in place)"):
            program(m)


def test_an_argument_that_a_function_returns_is_given_as_a_copy():
    """torch refuses a write to either; here each has the gradient of what it holds."""
    for written in ("argument", "result"):
        x = leaf(tg, 1, 2)
        h = x * 1
        y = function(tg, lambda ctx, x: x, lambda ctx, g: g * 2).apply(h)
        (h if written == "argument" else y).mul_(3)
        (h.sum() + y.sum() * 10).backward()
        assert shown(x.grad) == ([23, 23] if written == "argument" else [61, 61])


@pytest.mark.parametrize("same", [True, False])
def test_a_second_run_with_other_tensors_is_refused_though_their_values_are_the_same(same):
    w, x = leaf(tg, 1, 2), leaf(tg, 3, 4)
    box = [w]
    y = again(tg, lambda t: t * box[0], x)
    if not same:
        box[0] = leaf(tg, 1, 2)
        with pytest.raises(RuntimeError, match="uses other tensors"):
            y.sum().backward()
        assert w.grad is None
        assert x.grad is None
    else:
        y.sum().backward()
        assert shown(w.grad) == [3, 4]


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("index", [(0, slice(None), [1, 2]), (slice(None), [0, 1], None, 1), (None, [0, 1], ..., 1, [0, 1])],
                         ids=str)
def test_an_index_that_numpy_and_torch_read_differently_is_not_read(index, write):
    x = tg.zeros(2, 2, 4)
    with pytest.raises(IndexError, match=r"where NumPy and torch differ; expected two steps"):
        x[index] = 1.0 if write else x[index]
    assert not x.numpy().any()


def test_a_gradient_for_what_is_no_tensor_is_refused():
    own = function(tg, lambda ctx, x, n: x * n, lambda ctx, g: (g, g))
    with pytest.raises(tg.autograd.AutogradError, match=r"gradient 1: got a Tensor, expected None"):
        own.apply(leaf(tg, 1, 2), 3).sum().backward()


def test_vmap_over_the_gradient_of_a_function():
    own = function(tg, lambda ctx, x: x * x, lambda ctx, g: g * 3)
    rows = tg.func.vmap(tg.func.grad(lambda x: own.apply(x).sum()))(tg.ones(3, 2))
    assert shown(rows) == [[3, 3]] * 3


@pytest.mark.parametrize("call", [
    lambda x: tg.grad(3, x), lambda x: tg.grad("a", x), lambda x: tg.autograd.backward([x * 2, None]),
    lambda x: (x * 2).grad_fn("a"), lambda x: tg.autograd.graph.increment_version("a"),
])
def test_what_is_no_tensor_is_refused_by_its_type(call):
    with pytest.raises(TypeError, match=r"got (a|an) (int|str|NoneType), expected"):
        call(leaf(tg, 1))


def test_edges_have_no_grad_but_gradients():
    x = leaf(tg, 2)
    y = x * 3
    edge = tg.autograd.graph.get_gradient_edge(y)
    z = (y * y).sum()
    with pytest.raises(RuntimeError, match="the edge of a result"):
        z.backward(inputs=[edge], retain_graph=True)
    assert shown(tg.grad(z, edge, retain_graph=True)[0]) == [12]
    assert shown(tg.grad(edge, x, np.ones(1, np.float32), retain_graph=True)[0]) == [3]
    assert shown(tg.grad(edge, x, tg.ones(2, 1), is_grads_batched=True)[0]) == [[3], [3]]


def test_a_gradient_beside_one_of_another_shape_is_refused():
    for m in LIBRARIES:
        x = leaf(m, 1, 2)
        (x * 2).sum().backward()
        x.data = m.ones(3)
        with pytest.raises(RuntimeError):
            (x * 2).sum().backward()
