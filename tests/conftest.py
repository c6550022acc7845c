"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE (default `dev`).

A test takes its number of examples from the profile, so that `make nightly` deepens every test. One that must differ
scales the profile's number: `@settings(max_examples=settings.default.max_examples // 4)`.
"""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from tinygrad_llm.capture import compiled, rationing

# `ci` draws the same values every time: a red commit is red because of what it changed. `nightly` is where new values
# are explored. No deadlines: a first call pays for imports, and the machine is shared.
COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, **COMMON)
settings.register_profile("nightly", max_examples=3000, **COMMON)
settings.load_profile(PROFILE := os.environ.get("HYPOTHESIS_PROFILE", "dev"))
if PROFILE == "ci":
    # Hypothesis also draws numbers that stand in the sources of the modules loaded so far: another order of the tests, or a
    # number changed anywhere, and the draws are others.
    assert callable(providers._get_local_constants)
    providers._get_local_constants = providers.Constants

os.environ.setdefault("MPLBACKEND", "Agg")

rationing.FREE = compiled.TRIED = 1 << 30  # what is new is recorded and replayed, to be tested: its cost is another matter

# A shell starts background jobs with Ctrl-C ignored, and their children inherit that; tests of Ctrl-C need it back.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_torch_thread():
    """Threads cost more than they bring at these sizes, many times more on a busy machine."""
    import torch  # here, as tests that need no torch load this file too

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
