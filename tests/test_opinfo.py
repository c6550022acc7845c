"""torch's own sample inputs, error inputs, modules and optimizers: a few of each op, all of them in the profile `nightly`."""

from collections import Counter

import moduleinfo
import opinfo
import pytest
import torch
from hypothesis import settings

ALL = settings.default.max_examples >= 1000
MOST = 1000 if ALL else 4  # samples of an op in a dtype; torch has up to 161
LISTED = 3  # samples in a dtype that are refused, of up to 2,000: each with its reason


def failing(outcomes):
    return [str(one) for one in outcomes if one.verdict == "fail"]


@pytest.fixture(autouse=True)
def _one_thread(one_torch_thread):
    pass


@pytest.mark.parametrize("dtype", opinfo.DTYPES, ids=str)
def test_samples_give_torchs_values_dtypes_shapes_and_gradients(dtype):
    turn = opinfo.DTYPES.index(dtype)
    ops = [op for i, op in enumerate(opinfo.OPS) if ALL or i % len(opinfo.DTYPES) == turn]
    found = [one for op in ops for one in opinfo.outcomes(op, dtype, MOST)]
    counts = Counter(one.verdict for one in found)
    assert not failing(found)
    assert counts["refused"] <= LISTED
    assert counts["pass"] > 20


def test_what_torch_refuses_is_refused_in_torchs_class_and_our_words():
    found = [one for op in opinfo.OPS for one in opinfo.error_outcomes(op)]
    assert not failing(found)
    assert sum(one.verdict == "pass" for one in found) > 100


@pytest.mark.parametrize("training", [True, False])
def test_modules_are_torchs(training):
    found = [one for info in moduleinfo.MODULES for one in moduleinfo.module_outcomes(info, training)]
    assert not failing(found)
    assert len(found) > 10


def test_optimizers_take_torchs_settings_to_torchs_parameters():
    found = [one for info in moduleinfo.OPTIMIZERS for one in moduleinfo.optimizer_outcomes(info)]
    assert not failing(found)
    assert len(found) > 5


def broken(name, change):
    """The op's function with its result changed, and the op's record."""
    right = opinfo.function_of(name)
    return (lambda *args, **options: change(right(*args, **options))), next(op for op in opinfo.OPS if op.name == name)


@pytest.mark.parametrize(("what", "change"), [
    ("another value", lambda y: y + 1e-8), ("another gradient", lambda y: y * 1.001 + (y - y * 1.001).detach()),
    ("another shape", lambda y: y.unsqueeze(0)), ("another dtype", lambda y: y.float()), ("no gradient", lambda y: y.detach()),
    ("an array", lambda y: y.detach().numpy()),
])
def test_the_comparison_notices(monkeypatch, what, change):
    function, op = broken("exp", change)
    monkeypatch.setitem(opinfo.SPELLINGS, "exp", function)
    assert len(failing(opinfo.outcomes(op, torch.float64))) >= 2, what  # one of three is empty


def test_an_error_that_is_not_listed_is_a_failure(monkeypatch):
    def refuses(*args, **options):
        raise ValueError("exp: got a tensor, expected none")

    monkeypatch.setitem(opinfo.SPELLINGS, "exp", refuses)
    op = next(op for op in opinfo.OPS if op.name == "exp")
    assert len(failing(opinfo.outcomes(op, torch.float64))) == 3
