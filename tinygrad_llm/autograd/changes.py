"""How often what stands around the arrays was changed, which is attributes of modules. Who relies on them looks again then."""

from __future__ import annotations


class _Changes:
    """`count` goes up with each change, anywhere."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


changes = _Changes()
