"""torch.autograd.functional: products with, and whole, Jacobians and Hessians of a function at a point.

func takes tensors and returns a tensor or a tuple of tensors; inputs and v are a tensor or a tuple of tensors, and so is what
comes back. strict refuses what would give zeros because nothing depends on an input. create_graph makes the results
part of a graph, also of the one that the inputs come from; without it they are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinygrad_llm.autograd.backward import grad
from tinygrad_llm.autograd.errors import AutogradError
from tinygrad_llm.autograd.modes import recorded
from tinygrad_llm.autograd.tensor import Tensor
from tinygrad_llm.autograd.transforms import jacfwd

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]

Function = Callable[..., Any]
Tensors = tuple[Tensor, ...]


def vjp(func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple[Any, Any]:
    """(func(*inputs), vᵀ · J), the second in the form of inputs. v may be left out for an output of one element."""
    at = _Point("vjp", func, inputs, create_graph, strict)
    given = _vector("vjp", v, at.outputs, create_graph, "an output")
    found = _gradients(at.outputs, at.inputs, given, create_graph)
    return at.results(found, at.inputs, at.in_form, "the outputs do not depend on inputs")


def jvp(func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple[Any, Any]:
    """(func(*inputs), J · v), both in the form of the output. v may be left out for an input of one element.

    uᵀJ is linear in u: its gradient, with v for its cotangent, is J · v, whatever u is.
    """
    given = _vector("jvp", v, _as_tuple("jvp", "inputs", inputs)[1], create_graph, "an input")
    at = _Point("jvp", func, inputs, create_graph, strict)
    units = tuple([Tensor.of(np.ones(o.shape, o.dtype), True) for o in at.outputs])
    pulled = _gradients(at.outputs, at.inputs, units, True)
    at.refuse_constants(pulled, "the gradient does not depend on the point, for inputs")
    found = _gradients(pulled, units, given, create_graph)
    return at.results(found, at.outputs, at.out_form, "nothing that depends on the inputs is in outputs")


def vhp(func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple[Any, Any]:
    """(func(*inputs), vᵀ · H), H the Hessian of a func that returns one element, v in the form of inputs."""
    return _times_hessian("vhp", func, inputs, v, create_graph, strict)


def hvp(func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple[Any, Any]:
    """(func(*inputs), H · v), H the Hessian of a func that returns one element: two backwards. H is symmetric: this is vhp."""
    return _times_hessian("hvp", func, inputs, v, create_graph, strict)


def jacobian(
    func: Function, inputs: Any, create_graph: bool = False, strict: bool = False, vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """J, of shape O + I for an output of shape O and an input of shape I; for several outputs a tuple, of several inputs each a
    tuple. Row by row; column by column for strategy "forward-mode".

    vectorize changes nothing but what is refused, as torch does: with strict, and "forward-mode" without it.
    """
    _check_strategy("jacobian", strategy, create_graph, strict, vectorize)
    if strategy == "forward-mode":
        several, given = _as_tuple("jacobian", "inputs", inputs)
        found = jacfwd(func, tuple(range(len(given))))(*given)
        rows = found if isinstance(found[0], tuple) else (found,)
        return _in_forms(rows, rows is found, several)
    at = _Point("jacobian", func, inputs, create_graph, strict)
    return _in_forms([at.rows(k) for k in range(len(at.outputs))], at.several_out, at.several)


def hessian(
    func: Function, inputs: Any, create_graph: bool = False, strict: bool = False, vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """H of a func that returns one element, of shape I + I for an input of shape I; for several inputs a tuple of tuples."""
    several, given = _as_tuple("hessian", "inputs", inputs)

    def first(*xs: Tensor) -> Any:
        at = _Point("hessian", func, xs, True, strict)
        at.check_scalar()
        slopes = _gradients(at.outputs, at.inputs, None, True)
        at.refuse_constants(slopes, "the gradient does not depend on the point, for inputs")
        return tuple([_zeros(x) if g is None else g for g, x in zip(slopes, at.inputs)])

    return _in_forms(jacobian(first, given, create_graph, strict, vectorize, outer_jacobian_strategy), several, several)


def _times_hessian(who: str, func: Function, inputs: Any, v: Any, create_graph: bool, strict: bool) -> tuple[Any, Any]:
    given = _vector(who, v, _as_tuple(who, "inputs", inputs)[1], create_graph, "an input")
    at = _Point(who, func, inputs, create_graph, strict)
    at.check_scalar()
    slopes = _gradients(at.outputs, at.inputs, None, True)
    at.refuse_constants(slopes, "the gradient does not depend on the point, for inputs")
    found = _gradients(slopes, at.inputs, given, create_graph)
    return at.results(found, at.inputs, at.in_form, "the gradient does not depend on inputs")


class _Point:
    """A function at a point: leaves of our own, or where the graph goes on, views of the inputs; and what it returned."""

    def __init__(self, who: str, func: Function, inputs: Any, create_graph: bool, strict: bool) -> None:
        self.who, self.create_graph, self.strict = who, create_graph, strict
        self.several, given = _as_tuple(who, "inputs", inputs)
        with recorded():
            self.inputs = tuple([x.reshape(x.shape) if create_graph and x.requires_grad else x.detach().requires_grad_()
                                 for x in given])
            self.several_out, self.outputs = _as_tuple(who, "func", func(*self.inputs))
        for i, out in enumerate(self.outputs):
            if strict and not out.requires_grad:
                raise AutogradError(f"{who}: strict: got outputs[{i}] that does not require grad, expected one that depends on "
                                    "the inputs")

    def check_scalar(self) -> None:
        """AutogradError unless func returned one tensor of one element."""
        if self.several_out or self.outputs[0].size != 1:
            got = f"a tuple of {len(self.outputs)}" if self.several_out else f"shape {self.outputs[0].shape}"
            raise AutogradError(f"{self.who}: func: got an output of {got}, expected a single tensor of one element")

    def rows(self, k: int) -> Tensors:
        """The Jacobian of output k with respect to every input, one backward for each element."""
        out = self.outputs[k]
        basis = np.eye(out.size, dtype=out.dtype).reshape((out.size, *out.shape))
        found = [self._row(k, _gradients((out,), self.inputs, (Tensor.wrap(e),), self.create_graph)) for e in basis]
        whole = [np.stack([row[j] for row in found]) if found else _zeros(x) for j, x in enumerate(self.inputs)]
        return tuple([self.kept(np.reshape(w, out.shape + x.shape) if found else Tensor(np.zeros(out.shape + x.shape, x.dtype)))
                      for w, x in zip(whole, self.inputs)])

    def _row(self, k: int, found: Sequence[Any]) -> list[Any]:
        return self._filled(found, self.inputs, f"outputs[{k}] does not depend on inputs")

    def results(self, found: Sequence[Any], like: Tensors, form: Callable[[Any], Any], lost: str) -> tuple[Any, Any]:
        """(the outputs, what was found with zeros for None), in their forms."""
        return self.out_form(self.outputs), form(self._filled(found, like, lost))

    def _filled(self, found: Sequence[Any], like: Tensors, lost: str) -> list[Any]:
        for i, g in enumerate(found):
            if self.strict and (g is None or (self.create_graph and not g.requires_grad)):
                got = f"{lost}[{i}]" if g is None else f"a constant result for [{i}] with create_graph"
                raise AutogradError(f"{self.who}: strict: got {got}, expected a dependence")
        return [_zeros(x) if g is None else g for g, x in zip(found, like)]

    def refuse_constants(self, found: Sequence[Any], lost: str) -> None:
        """AutogradError, where strict, for gradients that depend on nothing."""
        for i, g in enumerate(found):
            if self.strict and (g is None or not g.requires_grad):
                raise AutogradError(f"{self.who}: strict: got {lost}[{i}], expected a function that is not linear in it")

    def in_form(self, found: Sequence[Any]) -> Any:
        """One for each input, in the form of the inputs."""
        return tuple([self.kept(g) for g in found]) if self.several else self.kept(found[0])

    def out_form(self, found: Sequence[Any]) -> Any:
        """One for each output, in the form of the output."""
        return tuple([self.kept(g) for g in found]) if self.several_out else self.kept(found[0])

    def kept(self, t: Any) -> Tensor:
        """A result as the caller gets it."""
        return t if self.create_graph else t.detach()


def _gradients(outputs: Sequence[Any], inputs: Tensors, given: Any, create_graph: bool) -> tuple[Any, ...]:
    """grad of the outputs that require it, None for inputs that they do not depend on. The graph stays."""
    vectors = [None] * len(outputs) if given is None else given
    pairs = [(o, c) for o, c in zip(outputs, vectors) if o is not None and o.requires_grad]
    if not pairs:
        return (None,) * len(inputs)
    wanted, cotangents = zip(*pairs)
    return grad(list(wanted), list(inputs), list(cotangents), True, create_graph, allow_unused=True)


def _vector(who: str, v: Any, like: Tensors, create_graph: bool, of: str) -> Tensors | None:
    """v as tensors of the shapes of `like`. Errors: AutogradError where it has others, or is missing and not implied."""
    if v is None:
        if len(like) != 1 or like[0].size != 1:
            raise AutogradError(f"{who}: v: got None, expected a vector (it is implied for {of} of one element only)")
        return None
    _, given = _as_tuple(who, "v", v)
    if len(given) != len(like):
        raise AutogradError(f"{who}: v: got {len(given)} tensors, expected {len(like)}")
    for i, (one, x) in enumerate(zip(given, like)):
        if one.shape != x.shape:
            raise AutogradError(f"{who}: v[{i}]: got shape {one.shape}, expected {x.shape}")
    return tuple([one if create_graph else one.detach() for one in given])


def _as_tuple(who: str, what: str, tensors: Any) -> tuple[bool, Tensors]:
    """(whether it is a tuple, the tensors); arrays are taken for constant tensors."""
    several = isinstance(tensors, tuple)
    given = tensors if several else (tensors,)
    for x in given:
        if not isinstance(x, Tensor | np.ndarray):
            raise TypeError(f"{who}: {what}: got {type(x).__name__}{' in a tuple' * several}, expected a tensor or a tuple of "
                            "tensors")
    return several, tuple([x if isinstance(x, Tensor) else Tensor.from_array(x) for x in given])


def _check_strategy(who: str, strategy: str, create_graph: bool, strict: bool, vectorize: bool) -> None:
    if strategy not in ("forward-mode", "reverse-mode"):
        raise AssertionError(f"{who}: strategy: got {strategy!r}, expected 'reverse-mode' or 'forward-mode'")
    forward = strategy == "forward-mode"
    if forward and (create_graph or not vectorize):
        raise NotImplementedError(f"{who}: strategy: got 'forward-mode' with create_graph={create_graph} and "
                                  f"vectorize={vectorize}, expected create_graph=False and vectorize=True")
    if strict and (forward or vectorize):
        raise AutogradError(f"{who}: strict: got True with strategy={strategy!r} and vectorize={vectorize}, expected "
                            "'reverse-mode' and vectorize=False")


def _in_forms(blocks: Any, several_out: bool, several_in: bool) -> Any:
    rows = [tuple(row) if several_in else row[0] for row in blocks]
    return tuple(rows) if several_out else rows[0]


def _zeros(like: Tensor) -> Tensor:
    return Tensor.from_array(np.zeros(like.shape, like.dtype))
