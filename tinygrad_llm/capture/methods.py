"""Compiled functions as methods: each object has programs of its own, which do not keep it alive."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any


class Bound:
    """A compiled method of an object."""

    __slots__ = ("__func__", "__self__")

    def __init__(self, function: Any, owner: Any) -> None:
        self.__func__, self.__self__ = function, owner

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__func__.of(self.__self__)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__.of(self.__self__), name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.__func__ is other.__func__ and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((id(self.__func__), id(self.__self__)))

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__func__.__name__)


class Method:
    """A method of an object that it does not keep alive, unless nothing can refer to it weakly."""

    def __init__(self, function: Callable[..., Any], owner: Any) -> None:
        self.function, self.keeps = function, False
        try:
            self.owner: Callable[[], Any] = weakref.ref(owner)
        except TypeError:
            self.owner, self.keeps = (lambda: owner), True
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.owner(), *args, **kwargs)
