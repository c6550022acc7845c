"""Gradients that are wrong in ways that any autodiff engine can have: broadcasting, aliasing, indices, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference.bugs.patch import Bug, method, op_gradients


def _first_of_repeats(original: Any, library: Any) -> Any:
    """sum_to that takes one of the repeats where it should add them up."""

    def sum_to(gradient: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        while gradient.ndim > len(shape):
            gradient = gradient[0]
        for axis, n in enumerate(shape):
            gradient = gradient if gradient.shape[axis] == n else np.take(gradient, [0], axis)
        return gradient.astype(dtype)

    return sum_to


def _overwritten(gradients: list[Any], g: Any, *args: Any) -> list[Any]:
    """Right gradients, but the cotangent, which another branch still needs, is used as scratch memory."""
    gradients = [None if d is None else np.array(d) for d in gradients]
    if getattr(g, "flags", None) is not None and g.flags.writeable:
        g *= 0
    return gradients


def _assigned(gradients: list[Any], g: Any, x: Any) -> list[Any]:
    return [np.where(gradients[0] != 0, np.sign(gradients[0]), 0).astype(x.dtype)]


BUGS = [
    Bug("engine", "broadcast: gradient of one repeat, not their sum", "every op with a bias",
        method("ops.declare.sum_to", _first_of_repeats)),
    Bug("engine", "cotangent overwritten by a vjp", "residual branches share it", op_gradients("linear", _overwritten)),
    Bug("engine", "gradient of x + y to x only", "a residual path cut in backward",
        op_gradients("add", lambda d, g, x, y: [d[0], None if d[1] is None else d[1] * 0])),
    Bug("engine", "x − y: sign of dy lost", "dy = −g", op_gradients("sub", lambda d, g, x, y: [d[0], g])),
    Bug("engine", "mean's gradient not divided by n", "dx = g / n",
        op_gradients("mean", lambda d, g, x: [d[0] * d[0].dtype.type(x.size / max(g.size, 1))])),
    Bug("engine", "permute: forward permutation in backward", "the inverse is needed",
        op_gradients("permute", lambda d, g, x: [np.reshape(d[0].ravel()[::-1], d[0].shape)])),
    Bug("engine", "reshape: Fortran order in backward", "row-major both ways",
        op_gradients("reshape", lambda d, g, x: [np.reshape(g, x.shape, order="F")])),
    Bug("engine", "index taken twice counted once", "x[[0, 0]]: gradients add", op_gradients("getitem", _assigned)),
    Bug("engine", "tanh′ = 1 − x², of the input", "1 − tanh² x",
        op_gradients("tanh", lambda d, g, x: [g * (1 - x * x)])),
    Bug("engine", "x / y: dy without y²", "dy = −g x / y²",
        op_gradients("div", lambda d, g, x, y: [d[0], None if d[1] is None else d[1] * y])),
]  # fmt: skip
