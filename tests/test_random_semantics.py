"""Random programs of hooks, modes, indices, masks, gradients and data, beside torch: see semanticprograms.py."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import settings
from semanticprograms import KINDS, run

import tinygrad_llm as tg
from tinygrad_llm.autograd import checkpoint

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PROGRAMS = 8 * settings.default.max_examples
TORCH_ALONE = (  # what torch refuses and ours does rightly
    "written-to tensor refer to a single memory location", "a view of a leaf Variable that requires grad",
    "modified by an inplace operation", "second time", "leaf variable has been moved", "different number of tensors was saved",
    "created in no_grad mode",
)
OURS_ALONE = ("modified in place", "already used by backward", "other values from the second run")  # and torch's may be wrong


@pytest.mark.filterwarnings("ignore")
def test_programs_are_torchs(record_property):
    counts, ended = Counter(), Counter()
    for seed in range(PROGRAMS):
        program, refusal = run(seed)
        counts += program.counts
        ended[refusal[0] if refusal else "to the end"] += 1
        if refusal and refusal[0] != "both":
            allowed = TORCH_ALONE if refusal[0] == "torch" else OURS_ALONE
            assert any(text in str(refusal[2]) for text in allowed), (seed, refusal, program.log)
    record_property("ended", dict(ended))
    assert {name for name in KINDS if not counts[name]} == set()
    assert ended["to the end"] > PROGRAMS / 2
    assert ended["ours"] < PROGRAMS / 20


def test_what_a_checkpoint_closes_over_and_uses_twice_in_one_call():
    for m, again in ((torch, torch.utils.checkpoint.checkpoint), (tg, checkpoint)):
        w, x = [m.tensor(np.array([2.0, 3.0])).requires_grad_() for _ in range(2)]
        again(lambda x: x * (w * w), x, use_reentrant=False).sum().backward()  # noqa: B023
        np.testing.assert_allclose(w.grad.numpy(), 2 * w.detach().numpy() * x.detach().numpy())


def test_an_argument_of_a_checkpoint_that_is_frozen_before_backward():
    """torch refuses: the second run saves another number of tensors."""
    w, x = [tg.tensor(np.array([2.0, 3.0])).requires_grad_() for _ in range(2)]
    y = checkpoint(lambda x: x * w, x)
    x.requires_grad_(False)
    y.sum().backward()
    assert x.grad is None
    np.testing.assert_allclose(w.grad.numpy(), x.numpy())
