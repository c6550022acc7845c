"""Bug: what is wrong, where it comes from, and the patch that makes it so. Patches are undone when their context ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

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
    """The op of this name runs another body."""
    return lambda library: patched(REGISTRY[name], "function", body)


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
        target = library
        for step in way:
            target = getattr(target, step)
        return patched(target, name, make(getattr(target, name), library))

    return apply
