"""The gradient of an op is an op: (arguments, cotangent g) ↦ the gradient of one argument.

Its vjp is what `create_graph=True` produces, so that every check of an op is a check of second derivatives, and a gradient
of a gradient one of third derivatives. By complex step its forward is the op's own vjp on arrays, without any graph.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinygrad_llm.functions  # noqa: F401  gives Tensor its methods
from reference.opdraw import Call, Seeded, draw_floats, variadic_name
from tinygrad_llm.autograd import Tensor, apply, grad
from tinygrad_llm.ops import Arg, Op

# In torch's primitives, where its own kernel can be differentiated once only, raises (a layer norm with one of weight and
# bias), or is wrong (the third derivative of layer_norm in torch 2.13 takes the saved mean and deviation for constants).
IN_PRIMITIVES = {
    "attention": "torch._scaled_dot_product_attention_math(query, key, value, is_causal=is_causal, scale=scale)[0]",
    "layer_norm": "(x - x.mean(-1, True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + eps)"
                  " * (1 if weight is None else weight) + (0 if bias is None else bias)",
}


@dataclass(frozen=True)
class Gradient:
    """The gradient of argument i of an op, or of a Gradient; wrt lists the arguments that have one."""

    op: Any
    i: int
    wrt: tuple[int, ...]
    variadic = False

    @property
    def name(self) -> str:
        return f"gradient of {self.op.args[self.i].name} of {self.op.name}"

    @property
    def order(self) -> int:
        """Of the derivatives that its vjp gives."""
        return getattr(self.op, "order", 1) + 1

    @property
    def args(self) -> tuple[Arg, ...]:
        return (*self.op.args, Arg(f"g{self.order - 1}", "", ()))

    @functools.cached_property
    def torch(self) -> str:
        """The torch expression, in the names of the arguments."""
        *names, g = [arg.name for arg in self.args]
        out = IN_PRIMITIVES.get(self.op.name, self.op.torch)
        if self.op.variadic:
            out = f"(lambda {variadic_name(self.op)}: {out})([{', '.join(names)}])"
        return (f"torch.autograd.grad(out := {out}, {names[self.i]}, {g}.to(out.dtype), create_graph=True, "
                "materialize_grads=True)[0].requires_grad_()")

    def __call__(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        leaves = [_leaf(a, i in (*self.wrt, len(args) - 1)) for i, a in enumerate(args)]
        if any(np.iscomplexobj(a) for a in args):  # the engine has no complex tensors, so that this has no vjp
            return self.op(*args[:-1], **options)[1](args[-1])[self.i], None
        out = graph(self, leaves, options)
        return out.numpy(), lambda u: _gradients(out, leaves, u)


def graph(op: Any, tensors: list[Any], options: dict[str, Any]) -> Tensor:
    """The output of an op or of a Gradient, that can be differentiated again."""
    if isinstance(op, Op):
        return apply(op, *tensors, **options)
    *tensors, g = tensors
    out = graph(op.op, tensors, options)
    g = g if g.dtype == out.dtype else g.to(out.dtype)
    (found,) = grad(out, tensors[op.i], g, create_graph=True, materialize_grads=True)
    return found.requires_grad_()


def gradient_calls(call: Call) -> list[Call]:
    """The call's gradients as calls: one for each argument that has one, with a cotangent and a direction of its own."""
    return [gradient_call(call, i) for i in call.wrt]


def gradient_call(call: Call, i: int) -> Call:
    """The gradient of argument i as a call."""
    n = len(call.args)
    source, args, wrt = Seeded(n, i), (*call.args, call.cotangent), (*call.wrt, n)
    along = draw_floats(source, call.cotangent.shape, n, n + 2)
    cotangent = draw_floats(source, call.args[i].shape, n + 1, n + 2)
    return Call(Gradient(call.op, i, call.wrt), args, call.options, cotangent, wrt, (*call.directions, along))


def _gradients(out: Tensor, leaves: list[Any], u: Any) -> list[Any]:
    """Of ⟨u, out⟩; zeros where out does not depend on a leaf."""
    wanted = [t for t in leaves if getattr(t, "requires_grad", False)]
    found = iter(grad(out, wanted, u, retain_graph=True, materialize_grads=True))
    return [next(found).numpy() if getattr(t, "requires_grad", False) else None for t in leaves]


def _leaf(a: Any, wanted: bool) -> Any:
    """An argument as the engine takes it: real numbers as a Tensor, indices and None as they are."""
    return Tensor.of(a, wanted) if a is not None and a.dtype.kind == "f" else a
