"""No seeded bug survives the checks, the checks pass without one, and every patch is undone."""

from __future__ import annotations

from collections import Counter

import pytest

import tinygrad_llm
from reference.bugs import BUGS
from reference.bugs.patch import Bug, patched
from reference.kill_checks import CHECKS, first_finding
from reference.killtable import kill_table

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def table():
    return kill_table(tinygrad_llm)


def test_every_bug_is_killed(table, record_property):
    record_property("kills", dict(Counter(name for row in table for name in row.killed_by)))
    assert [f"{row.part}: {row.bug}" for row in table if not row.killed_by] == []
    assert len(table) == len(BUGS) >= 40
    assert len({(row.part, row.bug) for row in table}) == len(table)


def test_every_check_but_training_alone_kills_some_bug(table):
    alone = {row.killed_by[0] for row in table if len(row.killed_by) == 1}
    assert set(CHECKS) - alone == {"training"}, "training sees what model and optimizer see, in the whole"


def test_the_library_is_as_it_was(table):
    for check in CHECKS.values():
        assert first_finding(check, tinygrad_llm) is None


def test_a_bug_that_does_nothing_survives():
    nothing = Bug("nothing", "nothing", "", lambda library: patched(library.optim, "AdamW", library.optim.AdamW))
    row = kill_table(tinygrad_llm, [nothing])[0]
    assert (row.killed_by, row.first) == ([], None)


def test_a_check_that_fails_without_a_bug_is_refused():
    wrong = next(bug for bug in BUGS if bug.name == "no eps")
    with wrong.apply(tinygrad_llm), pytest.raises(RuntimeError, match=r"got a failing check without a bug, training: "):
        kill_table(tinygrad_llm, [])


def test_a_patch_of_what_is_not_there_is_refused():
    with pytest.raises(AttributeError), patched(tinygrad_llm.optim, "no_such_thing", 1):
        pass
