"""Functions of people, drawn at random, captured and not: the same results, gradients, weights and attributes, bit by bit."""

import warnings
from collections import Counter

import peoplesfunctions
import pytest
from hypothesis import settings

from tinygrad_llm.capture import compile

KINDS = ("values", "backward inside", "backward outside", "trainer")
SEEDS = range(max(8, settings.default.max_examples // 10))


def both(seed, kind, effects):
    """(as it is, captured, how it went)"""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        plain = peoplesfunctions.run(seed, kind, None, effects)
        made = []
        captured = peoplesfunctions.run(seed, kind, lambda f: made.append(compile(f)) or made[0], effects)
    fell_back = any("without capture" in str(w.message) for w in heard)
    return plain, captured, "fell back" if fell_back else "captured"


def first_difference(plain, captured):
    return next(((i, a[0], "result" if a[1] != b[1] else [k for k, (p, q) in enumerate(zip(a[2], b[2])) if p != q])
                 for i, (a, b) in enumerate(zip(plain, captured)) if a != b), None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("effects", [False, True], ids=["pure", "with effects"])
def test_a_function_captured_is_the_function(kind, effects, record_property):
    how, wrong = Counter(), []
    for seed in SEEDS:
        plain, captured, went = both(seed, kind, effects)
        how[went] += 1
        if (found := first_difference(plain, captured)) is not None:
            wrong.append((seed, went, found))
    record_property("how", dict(how))
    assert wrong == []
    assert effects or kind == "backward outside" or how["captured"] >= 2, "or nothing was tried"
