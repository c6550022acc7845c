"""How often what stands around the arrays was changed: attributes of modules, hooks, frozen leaves, memory that was moved.

Who relies on any of these looks again where the count is another.
"""

from __future__ import annotations


class _Changes:
    """`count` goes up with each change, anywhere."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


changes = _Changes()
