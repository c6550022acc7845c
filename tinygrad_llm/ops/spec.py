"""The shape string: what an argument of an op may be, in one line.

It is the documentation of the argument, the check made at each call, and the generator of test inputs:

    *B            any leading axes, the same in every argument that has *B
    ~B            any leading axes, broadcast against every other ~B; the gradients are summed back by the declaration
    N  N>1  3     one axis: of any size, with a bound, of a fixed size. Equal letters are equal sizes
    int  int < V  integers (in [0, V), V an axis or an option); never differentiated
    bool          booleans; never differentiated
    in (a, b)     tests draw values from the open interval (a, b)
    != 0          tests draw values away from zero, where the op has a kink
    distinct      tests draw values without ties
    ?N            the argument may be None
    *A e.g. M N   calls may have any axes; tests draw axes M and N, which the options drawn refer to
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_SPEC = re.compile(
    r"(?P<optional>\?)?(?P<dims>(?:(?:[*~]?[A-Z]\w*(?:>=?\d+)?|\d+)(?:\s+|$))*)"
    r"(?P<kind>int(?: < (?P<below>[A-Za-z]\w*))?|bool)?\s*"
    r"(?P<domain>in \((?P<low>[^,]+),(?P<high>[^)]+)\)|!= 0|distinct)?"
)
_DIM = re.compile(r"(?P<group>[*~])?(?P<name>[A-Z]\w*|\d+)(?P<bound>>=?\d+)?")


@dataclass(frozen=True)
class Dim:
    """One token of a shape string: an axis, or a group of leading axes (`*B`, `~B`)."""

    name: str
    group: str = ""
    least: int = 0

    @classmethod
    def parse(cls, token: str) -> Dim:
        """`N>1` → Dim("N", least=2);  `*B` → Dim("B", group="*")."""
        match = _DIM.fullmatch(token)
        if match is None:
            raise ValueError(f"shape string: got axis {token!r}, expected such as N, N>1, 3, *B or ~B")
        bound = match["bound"] or ">=0"
        least = int(bound.lstrip(">=")) + (0 if ">=" in bound else 1)
        return cls(match["name"], match["group"] or "", least)


@dataclass(frozen=True)
class Arg:
    """One array argument of an op, as its shape string says: `dims` is what tests draw, `accepts` what calls may have."""

    name: str
    spec: str
    dims: tuple[Dim, ...]
    kind: str = "float"
    below: str | None = None
    interval: tuple[float, float] | None = None
    nonzero: bool = False
    distinct: bool = False
    optional: bool = False
    accepts: tuple[Dim, ...] | None = None

    @classmethod
    def parse(cls, name: str, spec: str) -> Arg:
        """Read a shape string; ValueError where it is not one."""
        accepted, _, example = spec.partition(" e.g. ")
        if example:
            drawn = cls.parse(name, example)
            return replace(drawn, spec=spec, accepts=cls.parse(name, accepted).dims)
        match = _SPEC.fullmatch(spec.strip())
        if match is None:
            raise ValueError(f"{name}: got shape string {spec!r}, expected the grammar of tinygrad_llm.ops.spec")
        dims = tuple(Dim.parse(token) for token in match["dims"].split())
        if any(dim.group for dim in dims[1:]):
            raise ValueError(f"{name}: got {spec!r}, expected a group of axes only in front")
        interval = (float(match["low"]), float(match["high"])) if match["low"] else None
        kind = (match["kind"] or "float").split()[0]
        domain = match["domain"]
        return cls(name, spec, dims, kind, match["below"], interval, domain == "!= 0", domain == "distinct",
                   bool(match["optional"]))

    @property
    def group(self) -> Dim | None:
        """The leading group of axes that a call may have, if the shape string has one."""
        dims = self._accepted
        return dims[0] if dims and dims[0].group else None

    @property
    def axes(self) -> tuple[Dim, ...]:
        """The trailing axes that a call must have, one by one."""
        return self._accepted[1:] if self.group else self._accepted

    @property
    def _accepted(self) -> tuple[Dim, ...]:
        return self.dims if self.accepts is None else self.accepts
