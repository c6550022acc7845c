"""In-place writes and item assignment with their gradients: drawn programs against torch, and each refusal."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_llm as ours
from tinygrad_llm.autograd import AutogradError, Tensor, WriteError, grad, no_grad
from tinygrad_llm.ops import DtypeError, IndexRangeError, ShapeError

START = [np.random.default_rng(i).uniform(0.3, 1.2, shape) for i, shape in enumerate([(3, 4), (4,), (3, 4)])]
MASK = np.array([True, False, True])

VIEWS = {
    "[1:]": lambda t: t[1:], "[0]": lambda t: t[0], "[..., None]": lambda t: t[..., None], "[..., :2]": lambda t: t[..., :2],
    "transpose": lambda t: t.transpose(0, -1), "reshape": lambda t: t.reshape(-1), "detach": lambda t: t.detach(),
    "[::2]": lambda t: t[::2],
}
MAKES = {
    "tanh": lambda t, o: t.tanh(), "sin": lambda t, o: t.sin(), "+": lambda t, o: t + o, "*": lambda t, o: t * o,
    "clone": lambda t, o: t.clone(), "sum": lambda t, o: t.sum(0), "[[0, 0]]": lambda t, o: t[[0, 0]],
}
WRITES = {
    "add_": lambda t, o: t.add_(o), "mul_": lambda t, o: t.mul_(o), "sub_": lambda t, o: t.sub_(o),
    "*=": lambda t, o: t.__imul__(o), "/=": lambda t, o: t.__itruediv__(1.5), "tanh_": lambda t, o: t.tanh_(),
    "sin_": lambda t, o: t.sin_(), "neg_": lambda t, o: t.neg_(), "square_": lambda t, o: t.square_(),
    "exp_": lambda t, o: t.tanh_().exp_(), "zero_": lambda t, o: t.zero_(), "fill_": lambda t, o: t.fill_(0.5),
    "copy_": lambda t, o: t.copy_(o) if hasattr(o, "shape") else t.fill_(o),
    "[0] =": lambda t, o: t.__setitem__(0, o[-1] if hasattr(o, "shape") else o),
    "[..., 1:] =": lambda t, o: t.__setitem__((Ellipsis, slice(1, None)), o[..., :1] if hasattr(o, "shape") else o),
    "[[0, 1]] =": lambda t, o: t.__setitem__(([0, -1],), 2.0),
    "clamp_": lambda t, o: t.clamp_(-0.9, 0.9),
}
ANY = {**VIEWS, **MAKES, **WRITES}
statements = st.lists(
    st.tuples(st.one_of(st.sampled_from(sorted(VIEWS)), st.sampled_from(sorted(MAKES)), st.sampled_from(sorted(WRITES))),
              st.integers(0, 7), st.integers(0, 7)), min_size=3, max_size=9)


class Program:
    """Statements run on torch and on ours beside each other; a statement that torch refuses is left out of both."""

    def __init__(self):
        self.ours = [Tensor.of(a, i < 2) for i, a in enumerate(START)]
        self.torch = [torch.tensor(a, requires_grad=i < 2) for i, a in enumerate(START)]
        self.done = []

    def run(self, name, i, j):
        i, j = i % len(self.ours), j % len(self.ours)
        if name not in ("tanh", "sin", "+", "*", "clone", "detach", "add_", "mul_") and self.torch[i].ndim == 0:
            return
        like = self.torch[i].shape == self.torch[j].shape
        other, mine = (self.torch[j], self.ours[j]) if like else (1.5, 1.5)
        if name in VIEWS:
            self.record(name, i, None, VIEWS[name](self.torch[i]), VIEWS[name](self.ours[i]))
        elif name in MAKES:
            self.record(name, i, j if like else None, MAKES[name](self.torch[i], other), MAKES[name](self.ours[i], mine))
        else:
            self.write(name, i, j if like else None, other, mine)

    def write(self, name, i, j, other, mine):
        try:
            WRITES[name](self.torch[i], other)
        except (RuntimeError, IndexError) as refused:
            if "leaf" in str(refused):
                with pytest.raises(WriteError, match="leaf that requires grad"):
                    WRITES[name](self.ours[i], mine)
            return
        WRITES[name](self.ours[i], mine)
        self.done.append((name, i, j))

    def record(self, name, i, j, theirs, mine):
        self.torch.append(theirs)
        self.ours.append(mine)
        self.done.append((name, i, j))


def check_says(error, what):
    assert what in str(error)


def loss(values, sin):
    """A number that depends on every element of every tensor in another way."""
    return sum([(v * sin(v, k)).sum() for k, v in enumerate(values)])


def weights(v, k):
    return np.cos(k + np.arange(int(np.prod(v.shape)))).reshape(tuple(v.shape))


def replay(done, start):
    """The loss of the program at other leaves, and without any graph: arrays only."""
    values = [torch.tensor(a) for a in start]
    for name, i, j in done:
        made = ANY[name](values[i]) if name in VIEWS else ANY[name](values[i], 1.5 if j is None else values[j])
        if name not in WRITES:
            values.append(made)
    return values


def slope(done, requiring):
    """d loss along a direction by central differences, over the tensors that take part."""
    rng, h = np.random.default_rng(5), 1e-6
    u = [rng.standard_normal(a.shape) for a in START[:2]]
    ends = []
    for s in (h, -h):
        values = replay(done, [START[0] + s * u[0], START[1] + s * u[1], START[2]])
        ends.append(sum(float((v * torch.tensor(weights(v, k))).sum()) for k, v in enumerate(values) if requiring[k]))
    return u, (ends[0] - ends[1]) / (2 * h)


@given(statements)
def test_drawn_programs_with_writes_are_torch(drawn):
    """The values always; the gradients unless one of the two refuses; where only torch does, ours are the slope."""
    program = Program()
    for statement in drawn:
        program.run(*statement)
        for a, b in zip(program.ours, program.torch):
            np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-12, atol=1e-13)
            assert (a.requires_grad, a.is_leaf) == (b.requires_grad, b.is_leaf), program.done
    requiring = [t.requires_grad for t in program.ours]
    total = loss([t for t in program.ours if t.requires_grad],
                 lambda v, k: weights(v, [i for i, r in enumerate(requiring) if r][k]))
    try:
        found = grad(total, program.ours[:2], allow_unused=True, materialize_grads=True)
    except AutogradError as refused:
        check_says(refused, "modified in place")
        return
    kept = [(k, t) for k, t in enumerate(program.torch) if t.requires_grad]
    reference = sum([(t * torch.tensor(weights(t, k))).sum() for k, t in kept])
    try:
        expected = torch.autograd.grad(reference, program.torch[:2], allow_unused=True, materialize_grads=True)
    except RuntimeError as refused:
        check_says(refused, "modified by an inplace operation")
        if any(name == "detach" for name, _, _ in program.done):
            return  # a slope does not know of detach
        u, expected_slope = slope(program.done, requiring)
        np.testing.assert_allclose(sum(np.sum(g.numpy() * v) for g, v in zip(found, u)), expected_slope, rtol=1e-5, atol=1e-5)
        return
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-10, err_msg=str(program.done))


@given(statements)
def test_second_order_through_writes_is_torch(drawn):
    program = Program()
    for statement in drawn:
        program.run(*statement)
    mine, theirs = program.ours[-1], program.torch[-1]
    if not mine.requires_grad:
        return
    graph = {"create_graph": True, "materialize_grads": True}
    try:
        (g,) = grad((mine * mine * mine).sum(), program.ours[0], **graph)
        second = grad((g * g).sum(), program.ours[:2], materialize_grads=True) if g.requires_grad else ()
        (h,) = torch.autograd.grad((theirs * theirs * theirs).sum(), program.torch[0], **graph)
        other = torch.autograd.grad((h * h).sum(), program.torch[:2], materialize_grads=True) if h.requires_grad else ()
    except RuntimeError as refused:
        check_says(refused, "modified")
        return
    np.testing.assert_allclose(g.numpy(), h.detach().numpy(), rtol=1e-9, atol=1e-10)
    for a, b in zip(second, other):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-8, atol=1e-9)


# What each statement means --------------------------------------------------------------------------------------------


def leaf(*values):
    return ours.tensor(np.array(values or (1.0, 2.0, 3.0)), requires_grad=True)


def test_a_write_through_a_view_reaches_base_and_other_views():
    x = leaf()
    y = x * 1
    first, rest = y[:1], y[1:]
    first.mul_(10)
    rest += first
    assert [t.grad_fn.op.name for t in (y, first, rest)] == ["put", "getitem", "getitem"]
    (g,) = grad(rest.sum() + y.sum(), x)
    np.testing.assert_array_equal(g.numpy(), [50, 2, 2])


def test_a_buffer_filled_row_by_row_joins_the_graph():
    w, buffer = leaf(), ours.zeros(2, 3, dtype=np.float64)
    row = buffer[1]
    buffer[0] = w
    buffer[1] = w * w
    assert buffer.requires_grad
    assert row.requires_grad
    (g,) = grad((buffer * buffer).sum() + row.sum(), w)
    np.testing.assert_allclose(g.numpy(), 2 * w.numpy() + 4 * w.numpy() ** 3 + 2 * w.numpy())


def test_of_a_place_written_twice_the_last_value_has_the_gradient():
    w, buffer = leaf(), ours.zeros(2, dtype=np.float64)
    buffer[[0, 0, 1]] = w
    assert buffer.tolist() == [2, 3]
    (g,) = grad(buffer.sum(), w)
    assert g.tolist() == [0, 1, 1]


@pytest.mark.parametrize("write", [
    lambda y: y.mul_(y), lambda y: y.__imul__(y), lambda y: y.square_(), lambda y: y.exp_().log_(),
])
def test_a_tensor_may_be_written_with_itself(write):
    x = leaf()
    y = x * 1
    write(y)
    (g,) = grad(y.sum(), x)
    np.testing.assert_allclose(g.numpy(), [2, 4, 6] if y.numpy()[1] == 4 else [1, 1, 1])


def test_an_operand_given_by_name_has_its_gradient():
    x, low, y = leaf(0.0, 5.0), leaf(1.0, 2.0), ours.zeros(2, dtype=np.float64)
    y.copy_(x.detach())
    y.clamp_(min=low)
    assert y.requires_grad
    (g,) = grad((y * y).sum(), low)
    assert g.tolist() == [2, 0]
    z = x * 1
    z.mul_(other=z)
    np.testing.assert_array_equal(grad(z.sum(), x)[0].numpy(), [0, 10])


def test_the_empty_index_is_a_view_of_a_number_too():
    y = leaf(3.0)[0] * 1
    view = y[()]
    view.mul_(2)
    assert y.item() == 6
    assert torch.tensor(3.0)[()]._base is not None


COPIES = {
    "repeat": lambda m, x: x.repeat(1, 1), "repeat of one": lambda m, x: x[:1, :1].repeat(3, 1), "tile": lambda m, x: x.tile(1),
    "prod": lambda m, x: m.prod(x[:, :1], 1), "prod of all": lambda m, x: m.prod(x[:1, :1]),
    "gather": lambda m, x: m.gather(x[0, 0], 0, m.tensor(0)),
    "index_select": lambda m, x: m.index_select(x[0, 0], 0, m.tensor([0])),
}


@pytest.mark.parametrize("call", COPIES.values(), ids=COPIES)
def test_what_torch_copies_is_a_copy(call):
    for m in (ours, torch):
        x = m.tensor(np.arange(6.0).reshape(2, 3))
        y = call(m, x)
        before = y.numpy().copy()
        x.add_(1)
        np.testing.assert_array_equal(y.numpy(), before)
        y.add_(1)


@pytest.mark.parametrize("size", [(2, 3), (-1, 3), (1, 2, 3)])
def test_expand_that_repeats_nothing_is_a_view_to_write_to(size):
    found = []
    for m in (ours, torch):
        x = m.tensor(np.arange(6.0).reshape(2, 3)).requires_grad_()
        y = x * 1
        y.expand(size).mul_(m.tensor([2.0, 3.0, 4.0]))
        (y * y).sum().backward()
        found.append((y.detach().numpy(), x.grad.numpy()))
    for got, expected in zip(*found):
        np.testing.assert_array_equal(got, expected)


def test_what_needs_the_old_values_refuses_and_what_does_not_goes_on():
    x = leaf()
    y = x * 1
    kept, lost = y + 1, y.sin()
    y.zero_()
    np.testing.assert_array_equal(grad(kept.sum(), x)[0].numpy(), [1, 1, 1])
    with pytest.raises(AutogradError, match=r"^sin: backward needs a tensor that was modified in place"):
        lost.sum().backward()


def test_a_write_saves_no_more_than_it_needs_and_is_freed_by_counting():
    gc.disable()
    try:
        x = leaf()
        y = x * 1
        v = y[1:]
        v.exp_()
        held = [weakref.ref(y), weakref.ref(v)]
        del y, v
        assert [r() for r in held] == [None, None]
    finally:
        gc.enable()


REFUSED = {
    "a leaf": (lambda: leaf().add_(1), WriteError, "got a leaf that requires grad"),
    "a view of a leaf": (lambda: leaf()[0].add_(1), WriteError, "got a view of a leaf that requires grad"),
    "expanded": (lambda: (leaf() * 1).expand(2, 3).add_(1), WriteError, "repeats memory"),
    "read only": (lambda: ours.from_numpy(read_only()).zero_(), WriteError, "may only be read"),
    "no_grad view": (lambda: no_grad_view().add_(1), WriteError, r"a view made under no_grad\(\)"),
    "into integers": (lambda: ours.tensor([1, 2, 3]).__setitem__(0, leaf()[0]), WriteError, "where it would be lost"),
    "shape": (lambda: ours.zeros(3).add_(np.zeros((2, 3), np.float32)), ShapeError, r"got a result of shape \(2, 3\)"),
    "dtype": (lambda: ours.tensor([1, 2]).mul_(0.5), DtypeError, "got a result of dtype float32"),
    "value": (lambda: ours.zeros(3).__setitem__(slice(0, 2), np.zeros(3)), ShapeError, r"got a value of shape \(3,\)"),
    "value with a graph": (lambda: (leaf() * 1).__setitem__(slice(0, 2), leaf()), ShapeError, r"got a value of shape \(3,\)"),
    "index": (lambda: ours.zeros(3).__setitem__(3, 1.0), IndexRangeError, r"setitem: index: got \(3, Ellipsis\)"),
    "index with a graph": (lambda: (leaf() * 1).__setitem__(3, 1.0), IndexRangeError, r"setitem: index: got \(3, Ellipsis\)"),
    "fill with a row": (lambda: ours.zeros(3).fill_(np.ones(3)), ShapeError, "fill_: value"),
    "detach a view": (lambda: (leaf() * 1)[1:].detach_(), WriteError, "detach_: got a view"),
}


def read_only():
    a = np.ones(3)
    a.flags.writeable = False
    return a


def no_grad_view():
    y = leaf() * 1
    with no_grad():
        return y[1:]


@pytest.mark.parametrize(("write", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_one_line_and_write_nothing(write, error, message):
    with pytest.raises(error, match=message) as caught:
        write()
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_under_no_grad_everything_may_be_written_and_nothing_is_recorded():
    x = leaf()
    y = x * 1
    node = y.grad_fn
    with no_grad():
        x += 1
        y[0] = 7.0
        x[1:].mul_(2)
    assert (x.tolist(), y.tolist(), y.grad_fn is node, x.is_leaf) == ([2, 6, 8], [7, 2, 3], True, True)


def test_detach_leaves_the_graph():
    y = leaf() * 1
    assert y.detach_() is y
    assert (y.requires_grad, y.is_leaf) == (False, True)


def test_boolean_writes():
    t = ours.tensor([True, False])
    t &= ours.tensor([True, True])
    t |= ours.tensor([False, True])
    t ^= ours.tensor([True, False])
    assert t.tolist() == [False, True]
