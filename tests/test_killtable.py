"""No seeded bug survives the checks, the checks pass without one, and every patch is undone."""

from __future__ import annotations

import inspect
from collections import Counter

import numpy as np
import pytest

import tinygrad_llm
from reference.bugs import BUGS
from reference.bugs.fused import chunked_loss
from reference.bugs.patch import UNFUSED, Bug, op_body, op_gradients, patched
from reference.kill_checks import CHECKS, first_finding
from reference.killtable import kill_table
from tinygrad_llm.ops import REGISTRY

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_every_bug_is_killed(record_property):
    """All that the table must say, in one test: with several processes, each that has one of them would make a table."""
    table = kill_table(tinygrad_llm)
    record_property("kills", dict(Counter(name for row in table for name in row.killed_by)))
    assert [f"{row.part}: {row.bug}" for row in table if not row.killed_by] == []
    assert len(table) == len(BUGS) >= 40
    assert len({(row.part, row.bug) for row in table}) == len(table)
    alone = {row.killed_by[0] for row in table if len(row.killed_by) == 1}
    assert set(CHECKS) - alone == {"training"}, "training sees what model and optimizer see, in the whole"
    # bugs of an op that the model has in a fused form are bugs of the fused op too
    assert {row.bug for row in table if row.part in MODEL_PARTS and "model" not in row.killed_by} == NOT_IN_A_MODEL
    assert [row.killed_by for row in table if row.part == "replay"] == [["replay"]] * 2, "which others do not see"
    assert [first_finding(check, tinygrad_llm) for check in CHECKS.values()] == [None] * len(CHECKS), "it is as it was"


MODEL_PARTS = {
    "layer norm", "activation", "attention", "loss", "fused", "embedding", "linear", "block", "model", "positions",
}
NOT_IN_A_MODEL = {"relu′(0) = 1", "label smoothing over V − 1 classes", "ignored targets still smoothed"}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.part}: {bug.name}")
def test_a_patched_op_keeps_its_signature(bug):
    """Without it, a second derivative under a bug would not find the defaults of the op's options."""
    before = {name: inspect.signature(op.function) for name, op in REGISTRY.items()}
    with bug.apply(tinygrad_llm):
        assert {name: inspect.signature(op.function) for name, op in REGISTRY.items()} == before


@pytest.mark.parametrize("name", sorted({part for parts, _ in UNFUSED.values() for part in parts} | UNFUSED.keys()))
def test_second_derivatives_under_a_patch(name):
    F, rng = tinygrad_llm.nn.functional, np.random.default_rng(0)
    qkv, weight = (tinygrad_llm.tensor(rng.standard_normal(s), requires_grad=True) for s in ((3, 3, 1, 4), (5, 4)))
    with op_gradients(name, lambda d, *rest: d)(tinygrad_llm):
        loss = F.linear_cross_entropy(F.attention_qkvpacked(qkv, is_causal=True).reshape(3, 4), weight, np.array([0, 4, 2]))
        loss.backward(create_graph=True)
        (qkv.grad * qkv.grad).sum().backward()
    assert np.isfinite(weight.grad.numpy()).all()


def _right_chunks(library):
    def body(*args, **options):
        return chunked_loss(*args, chunks=library.ops.losses._chunks, **options)

    return op_body("linear_cross_entropy", body)(library)


NOTHING = {
    **{f"gradients of {name}": op_gradients(name, lambda d, *rest: d) for name in ("attention", "linear", "cross_entropy")},
    "chunked loss": _right_chunks,
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_patch_without_a_mistake_survives(name):
    """So it is the mistake that is seen, not that fused ops go by way of their parts."""
    row = kill_table(tinygrad_llm, [Bug("nothing", name, "", NOTHING[name])])[0]
    assert (row.killed_by, row.first) == ([], None)


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
