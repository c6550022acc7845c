"""autograd.Function: forward and backward by hand. Each program runs on torch too, and everything it notes must be the same."""

import gc
import weakref

import numpy as np
import pytest
import torch
from besidetorch import X, leaf, noted
from torch.autograd.function import once_differentiable as torchs_once

import tinygrad_llm as tg
from tinygrad_llm.autograd import AutogradError, Function, WriteError, checkpoint, once_differentiable


def cube(m):
    class Cube(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 3 * x * x * g

    return Cube.apply


def derivatives(m):
    x, f = leaf(m), cube(m)
    y = f(x)
    (g,) = m.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = m.autograd.grad((g * g).sum(), x, create_graph=True)
    return [y, g, h, *m.autograd.grad(h.sum(), x), y.grad_fn.name()]


def saved_output(m):
    class Exp(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = (x * 2) * x
            ctx.save_for_backward(y, None)
            return y

        @staticmethod
        def backward(ctx, g):
            y, nothing = ctx.saved_tensors
            notes.append(nothing)
            return y * g

    notes, x = [], leaf(m)
    (g,) = m.autograd.grad(Exp.apply(x).sum(), x, create_graph=True)
    return [g, *m.autograd.grad(g.sum(), x), *notes]


def several(m):
    class Both(m.autograd.Function):
        @staticmethod
        def forward(ctx, x, k, y):
            ctx.k = k
            notes.append(ctx.needs_input_grad)
            return x * k, y + 1, "as it is"

        @staticmethod
        def backward(ctx, a, b, _):
            return a * ctx.k, None, b * 5

    notes, x, y, c = [], leaf(m), leaf(m, [1.0]), leaf(m, [1.0], False)
    a, b, text = Both.apply(x, 3, y)
    (a.sum() * b.sum()).backward()
    first = [x.grad, y.grad]
    x.grad = y.grad = None
    a, b, _ = Both.apply(x, 3, c)
    a.sum().backward()
    return [*first, x.grad, c.grad, b.requires_grad, text, *notes]


def integers_and_marks(m):
    class Split(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            positive, half = x > 0, x / 2
            ctx.mark_non_differentiable(half)
            return x * 2, positive, half

        @staticmethod
        def backward(ctx, g, p, h):
            notes.extend([tuple(p.shape), tuple(h.shape), h])
            return g * 2

    notes, x = [], leaf(m)
    y, positive, half = Split.apply(x)
    y.sum().backward()
    return [x.grad, positive, half, *notes]


def unused(m):
    class Two(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(wanted[0])
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            notes.append((a is None, b is None))
            return (0 if a is None else a * 2) + (0 if b is None else b * 3)

    notes, found, wanted = [], [], []
    for wanted[:] in ([True], [False]):
        x = leaf(m)
        Two.apply(x)[1].sum().backward()
        found.append(x.grad)
    return [*found, *notes]


def dirty(m):
    class Double(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

        @staticmethod
        def backward(ctx, g):
            return g * 2

    x = leaf(m)
    h = x * 3
    before = h._version
    out = Double.apply(h)
    (out * h).sum().backward()
    return [x.grad, h, out is h, h._version > before]


def context_apart(m):
    class Product(m.autograd.Function):
        @staticmethod
        def forward(x, y):
            return x * y

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, g):
            x, y = ctx.saved_tensors
            return g * y, g * x

    x, y = leaf(m), leaf(m)
    Product.apply(x, y).sum().backward()
    return [x.grad, y.grad]


def argument_as_output(m):
    class Triple(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 3

    x = leaf(m)
    y = Triple.apply(x)
    y.sum().backward()
    return [y is x, x.grad]


def broadcast(m):
    class Sum(m.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, g):
            return g, g

    x, y = leaf(m, [1.0]), leaf(m, [[1.0, 2.0], [3.0, 4.0]])
    Sum.apply(x, y).sum().backward()
    return [x.grad, y.grad]


def without_recording(m):
    x, f = leaf(m), cube(m)
    with m.no_grad():
        y = f(x)
    return [y, f(x.detach())]


def inside_other_things(m):
    x, w, f = leaf(m), leaf(m, [1.0, 2.0, 3.0]), cube(m)
    again = torch.utils.checkpoint.checkpoint if m is torch else checkpoint
    again(lambda x: f(x * w), x, use_reentrant=False).sum().backward()
    y = f(x)
    y.register_hook(lambda g: g * 2)
    y.retain_grad()
    y.mul_(2)
    z = y[:2]
    z.sum().backward()
    return [x.grad, w.grad, y.grad]


def nothing_saved(m):
    class Twice(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    x = leaf(m)
    y = Twice.apply(x).sum()
    y.backward()
    y.backward()
    return [x.grad]


PROGRAMS = [derivatives, saved_output, several, integers_and_marks, unused, dirty, context_apart, argument_as_output, broadcast,
            without_recording, inside_other_things, nothing_saved]


@pytest.mark.parametrize("program", PROGRAMS, ids=[p.__name__ for p in PROGRAMS])
def test_is_torchs(program):
    assert noted(program(tg)) == noted(program(torch))


def returning(*gradients):
    class Sum(Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, g):
            return gradients

    return lambda x, y: Sum.apply(x, y).sum().backward()


def marked(forward):
    class Marked(Function):
        @staticmethod
        def backward(ctx, g):
            return g

    Marked.forward = staticmethod(forward)
    return Marked.apply


def write(ctx, x):
    ctx.mark_dirty(x)
    return x.mul_(2)


REFUSED = {
    "too few": (lambda x: returning(x.detach())(x, x), AutogradError, "Sum.backward: got 1 gradients, expected 2"),
    "too many": (lambda x: returning(*[x.detach()] * 3)(x, x), AutogradError, "got 3 gradients, expected 2"),
    "a shape": (lambda x: returning(tg.ones(2), tg.ones(3))(x, x), AutogradError, r"gradient 0: got shape \(2,\)"),
    "no tensor": (lambda x: returning(1.0, None)(x, x), TypeError, "gradient 0: got a float"),
    "saved no tensor": (lambda x: marked(lambda ctx, x: ctx.save_for_backward(3))(x), TypeError, r"tensors\[0\]: got a int"),
    "a leaf": (lambda x: marked(write)(x.detach().requires_grad_()), WriteError, "leaf that requires grad"),
    "a view": (lambda x: marked(write)((x * 1)[:2]), WriteError, "mark_dirty: got a view"),
    "not returned": (lambda x: marked(lambda ctx, x: (write(ctx, x), x * 1)[1])(x * 1), AutogradError, "no argument or"),
    "no forward": (lambda x: Function.apply(x), NotImplementedError, "got no forward"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(leaf(tg))


def test_what_was_saved_is_watched_and_let_go():
    f = cube(tg)
    x = leaf(tg)
    h = x * 1
    y = f(h).sum()
    h.mul_(2)
    with pytest.raises(AutogradError, match=r"saved_tensors\[0\]: .*modified in place"):
        y.backward()
    y = f(x).sum()
    y.backward()
    with pytest.raises(AutogradError, match="already used"):
        y.backward()


def test_once_differentiable_is_refused_and_never_silently_constant():
    """torch says so only where the incoming gradient has a graph; elsewhere its gradient is a constant, without a word."""
    def once(m, mark):
        class Square(m.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            @mark
            def backward(ctx, g):
                return ctx.saved_tensors[0] * 2 * g

        x = leaf(m)
        return m.autograd.grad((Square.apply(x) ** 2).sum(), x, create_graph=True)[0]

    for m, mark in ((torch, torchs_once), (tg, once_differentiable)):
        g = once(m, mark)
        np.testing.assert_allclose(g.detach().numpy(), 4 * np.array(X) ** 3)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            g.sum().backward()


def test_the_graph_of_a_function_that_saved_its_output_is_freed_by_counting():
    class Exp(Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, g):
            return ctx.saved_tensors[0] * g

    gc.collect()
    gc.disable()
    try:
        y = Exp.apply(leaf(tg))
        held = weakref.ref(y._array)
        del y
        assert held() is None
    finally:
        gc.enable()
