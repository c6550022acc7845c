"""Bug: what is wrong, where it comes from, and the patch that makes it so. Patches are undone when their context ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import numpy as np

from tinygrad_llm.ops import REGISTRY, Op

Apply = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Bug:
    """part    the part of the library that it breaks
    name    what is wrong, in words
    source  the formula or the habit that it gets wrong
    apply   apply(tinygrad_llm) is a context in which the library has the bug
    """

    part: str
    name: str
    source: str
    apply: Apply


@contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    """target.name is value in this context. Raises AttributeError where the target has no such name."""
    put = object.__setattr__ if isinstance(target, Op) else setattr  # op records are frozen
    old = getattr(target, name)
    put(target, name, value)
    try:
        yield
    finally:
        put(target, name, old)


def op_body(name: str, body: Callable[..., Any]) -> Apply:
    """The op of this name runs another body, and so do the fused ops that stand for it among others (UNFUSED)."""
    bodies = {name: body, **{fused: unfused for fused, (parts, unfused) in UNFUSED.items() if name in parts}}

    @contextmanager
    def apply(library: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for op, other in bodies.items():
                stack.enter_context(patched(REGISTRY[op], "function", _signed(other, REGISTRY[op].function)))
            yield

    return apply


def _signed(body: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """body with the signature of the original, where autograd looks for the defaults of an op's options."""

    @functools.wraps(original)
    def signed(*args: Any, **options: Any) -> Any:
        return body(*args, **options)

    return signed


def _attention_of_heads(qkv: Any, **options: Any) -> tuple[Any, Any]:
    """attention_qkvpacked by way of attention, whatever its body is at the time."""
    out, vjp = REGISTRY["attention"].function(*[np.swapaxes(qkv[..., i, :, :], -3, -2) for i in range(3)], **options)

    def packed_vjp(g: Any) -> tuple[Any]:
        return (np.stack([np.swapaxes(d, -3, -2) for d in vjp(np.swapaxes(g, -3, -2))[:3]], -3),)

    return np.swapaxes(out, -3, -2), packed_vjp


def _loss_of_logits(x: Any, weight: Any, target: Any, bias: Any = None, **options: Any) -> tuple[Any, Any]:
    """linear_cross_entropy by way of linear and cross_entropy, whatever their bodies are at the time."""
    logits, head_vjp = REGISTRY["linear"].function(x, weight, bias)
    loss, vjp = REGISTRY["cross_entropy"].function(logits, target, None, **options)

    def fused_vjp(g: Any) -> tuple[Any, ...]:
        dx, dweight, dbias = head_vjp(vjp(g)[0])
        return dx, dweight, None, dbias

    return loss, fused_vjp


UNFUSED: dict[str, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "attention_qkvpacked": (("attention",), _attention_of_heads),
    "linear_cross_entropy": (("linear", "cross_entropy"), _loss_of_logits),
}
"""Fused op -> (the ops that it stands for, the same function as these ops one after the other): a bug of one is in both."""


def op_gradients(name: str, change: Callable[..., Any]) -> Apply:
    """The op's gradients become change(gradients, g, *arguments), a list."""
    original = REGISTRY[name].function

    def body(*args: Any, **options: Any) -> tuple[Any, Any]:
        out, vjp = original(*args, **options)
        return out, lambda g: tuple(change(list(vjp(g)), g, *args))

    return op_body(name, body)


def op_output(name: str, change: Callable[..., Any]) -> Apply:
    """The op's output becomes change(output, *arguments, **options); its gradients stay."""
    original = REGISTRY[name].function

    def body(*args: Any, **options: Any) -> tuple[Any, Any]:
        out, vjp = original(*args, **options)
        return change(out, *args, **options), vjp

    return op_body(name, body)


def method(path: str, make: Callable[[Any, Any], Any]) -> Apply:
    """library.path (dotted) becomes make(what it was, library)."""

    def apply(library: Any) -> AbstractContextManager[None]:
        *way, name = path.split(".")
        target = resolve_name(".".join([library.__name__, *way]))  # imports what the package itself does not
        return patched(target, name, make(getattr(target, name), library))

    return apply
