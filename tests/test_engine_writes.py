"""A write into a tensor that backward still needs is detected and refused, naming the op; any other is allowed."""

import numpy as np
import pytest

import tinygrad_llm.functions as F
from tinygrad_llm.autograd import AutogradError, Tensor, grad, no_grad
from tinygrad_llm.functions import from_numpy, tensor

WRITES = {
    "setitem": lambda t: t.__setitem__(0, 9.0),
    "copy_": lambda t: t.copy_(np.full(t.shape, 9.0)),
    "zero_": lambda t: t.zero_(),
    "fill_": lambda t: t.fill_(9.0),
}
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


def leaf(*values):
    return tensor(np.array(values or (1.0, 2.0, 3.0)), requires_grad=True)


@every_write
def test_a_write_to_a_saved_input_is_refused_naming_the_op(write):
    x = leaf()
    loss = F.sum(F.sin(x))
    with no_grad():
        write(x)
    with pytest.raises(AutogradError, match=r"^sin: backward needs a tensor that was modified in place: it is at version 1"):
        loss.backward()
    assert x.grad is None


@every_write
def test_a_write_to_a_saved_output_is_refused(write):
    y = F.exp(leaf())
    loss = F.sum(y)
    with no_grad():
        write(y)
    with pytest.raises(AutogradError, match=r"^exp: backward needs"):
        loss.backward()


@every_write
def test_a_write_to_what_is_not_saved_is_allowed(write):
    x = leaf()
    loss = F.sum(F.exp(x) + x)
    with no_grad():
        write(x)
    loss.backward()
    np.testing.assert_allclose(x.grad.numpy(), np.exp([1.0, 2.0, 3.0]) + 1)


def test_a_write_after_backward_is_allowed():
    x = leaf()
    F.sum(F.sin(x)).backward()
    with no_grad():
        x -= 0.1 * x.grad
        y = leaf()
        y.copy_(x)
    loss = F.sum(F.sin(y))
    loss.backward()
    np.testing.assert_allclose(y.grad.numpy(), np.cos(y.numpy()))


@pytest.mark.parametrize("view", [
    lambda t: t.reshape(3, 1), lambda t: t[1:], lambda t: t.detach(), lambda t: t.data, lambda t: t.T, lambda t: t[::-1][:2],
    lambda t: t.unsqueeze(0).transpose(0, 1),
])
def test_views_share_the_version(view):
    x = leaf()
    loss = F.sum(F.sin(x))
    with no_grad():
        view(x).fill_(0.0)
    assert x.numpy().min() == 0
    with pytest.raises(AutogradError, match=r"^sin: "):
        loss.backward()


def test_a_write_to_the_whole_is_seen_by_what_saved_a_view():
    x = leaf()
    loss = F.sum(F.sin(x[1:]))
    with no_grad():
        x[2] = 0.0
    with pytest.raises(AutogradError, match=r"^sin: "):
        loss.backward()


def test_a_copy_has_a_version_of_its_own():
    x = leaf()
    y = tensor(x)
    loss = F.sum(F.sin(x))
    y.zero_()
    x[np.array([0, 1])].detach().zero_()
    loss.backward()
    np.testing.assert_allclose(x.grad.numpy(), np.cos([1.0, 2.0, 3.0]))


def test_constants_and_masks_are_watched_too():
    x, c, mask = leaf(), tensor(np.ones(3)), tensor([True, False, True])
    product, chosen = F.sum(x * c), F.sum(F.where(mask, x, 0.0))
    c.zero_()
    mask[0] = False
    with pytest.raises(AutogradError, match=r"^mul: "):
        product.backward()
    with pytest.raises(AutogradError, match=r"^where: "):
        chosen.backward()


def test_create_graph_needs_the_inputs_as_they_were():
    """exp saves its output only; differentiating its gradient again runs it once more on its input."""
    x = leaf()
    loss = F.sum(F.exp(x))
    with no_grad():
        x[0] = 9.0
    with pytest.raises(AutogradError, match=r"^exp: "):
        grad(loss, x, create_graph=True)
    (g,) = grad(loss, x)
    np.testing.assert_allclose(g.numpy(), np.exp([1.0, 2.0, 3.0]))


@every_write
def test_writing_into_a_leaf_that_requires_grad_needs_no_grad(write):
    with pytest.raises(AutogradError, match=r"got a leaf that requires grad, expected no_grad\(\)"):
        write(leaf())
    with pytest.raises(AutogradError, match=r"got a view of a leaf that requires grad, expected no_grad\(\)"):
        write(leaf()[1:])


def test_writes_go_where_they_say_and_cast():
    t = tensor([[1.0, 2.0], [3.0, 4.0]])
    t[0, tensor([1])] = 7
    t[t > 3.5] = np.float64(0.5)
    assert t.tolist() == [[1.0, 0.5], [3.0, 0.5]]
    assert t.dtype == np.float32
    assert t.fill_(2).tolist() == [[2, 2], [2, 2]]
    with pytest.raises(TypeError):
        tensor([1, 2]).copy_(tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="broadcast"):
        t.copy_(np.zeros(3))


def test_from_numpy_shares_memory_and_tensor_does_not():
    a = np.ones(3)
    shared, own = from_numpy(a), tensor(a)
    a[0] = 5
    assert shared.tolist() == [5, 1, 1]
    assert own.tolist() == [1, 1, 1]
    assert shared.numpy() is a
    assert isinstance(Tensor.wrap(a), Tensor)
    with pytest.raises(TypeError, match="from_numpy: ndarray: got list"):
        from_numpy([1.0])
