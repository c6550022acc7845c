"""The kill table: every seeded bug (reference.bugs) against every check (reference.kill_checks); none may survive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from reference.bugs import BUGS, Bug
from reference.kill_checks import CHECKS, Finding, drawn_calls, first_finding


@dataclass(frozen=True)
class Kill:
    """One bug, and what each check saw of it first; None where it saw nothing."""

    part: str
    bug: str
    source: str
    findings: dict[str, Finding | None]

    @property
    def killed_by(self) -> list[str]:
        """The names of the checks that saw it."""
        return [name for name, finding in self.findings.items() if finding is not None]

    @property
    def first(self) -> Finding | None:
        """What the first of them saw."""
        return next((finding for finding in self.findings.values() if finding is not None), None)


def kill_table(library: Any, bugs: Iterable[Bug] = BUGS, tick: Callable[[], None] = lambda: None) -> list[Kill]:
    """A row per bug. Raises RuntimeError where a check fails without any bug: it would then kill everything.

    library is the package tinygrad_llm; tick is called after each bug.
    """
    drawn_calls()
    for name, check in CHECKS.items():
        if (finding := first_finding(check, library)) is not None:
            raise RuntimeError(f"kill table: got a failing check without a bug, {name}: {finding.metric} {finding.dtype} "
                               f"{finding.detail}, expected all to pass")
    rows = []
    for bug in bugs:
        rows.append(_row(library, bug))
        tick()
    return rows


def _row(library: Any, bug: Bug) -> Kill:
    with bug.apply(library):
        found = {name: first_finding(check, library) for name, check in CHECKS.items()}
    return Kill(bug.part, bug.name, bug.source, found)
