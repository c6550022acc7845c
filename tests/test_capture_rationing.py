"""What recordings may cost: whatever layouts come, and whatever a recording takes, capture is never much slower than none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_llm.capture import compile, rationing
from tinygrad_llm.capture.rationing import SHARE, Ration

X = np.arange(12.0).reshape(3, 4)


@pytest.fixture(autouse=True)
def _rationed(monkeypatch):
    """As in a user's process: tests/conftest.py lets the other tests record whatever is new."""
    monkeypatch.setattr(rationing, "FREE", 1)


def spent(layouts, run, replay, recording, kept, refused):
    """(seconds with capture, seconds without) of these layouts in turn; the first `refused` recordings give no program."""
    ration, ready, seen, total, before = Ration(), [], set(), 0.0, refused
    for layout in layouts:
        if layout not in ready and ration.allows(layout in seen):
            total += recording
            ration.add_recording(recording, not refused)
            ready = ready if refused else [layout, *ready][:kept]
            refused -= refused > 0
        seen.add(layout)
        if layout in ready:
            total += replay
            ration.add_replay(replay)
        else:
            total += run
            ration.add_run(run)
    return total - recording * (1 + (before > 0)), run * len(layouts)


@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=400), st.floats(1e-6, 1), st.floats(0.2, 1), st.floats(0, 60),
    st.integers(1, 8), st.integers(0, 1), st.integers(1, 10),
)
def test_all_but_the_first_recording_takes_at_most_a_share_more(layouts, run, replay, recording, kept, refused, times):
    with_capture, without = spent(layouts * times, run, run * replay, run * recording, kept, refused)
    assert with_capture <= without * (1 + SHARE) + 1e-9


def test_few_layouts_are_all_recorded_soon():
    with_capture, without = spent([0, 1, 2] * 300, 7.5e-3, 2.5e-3, 0.15, 8, 0)
    assert with_capture < 0.6 * without


def test_a_first_recording_that_is_undone_is_made_once_more_where_the_layout_comes_again():
    ration = Ration()
    assert ration.allows(False)
    ration.add_recording(1.0, False)
    ration.add_run(0.1)
    assert not ration.allows(False)
    assert ration.allows(True)
    ration.add_recording(1.0, True)
    assert not ration.allows(True)


def test_what_is_always_new_is_not_recorded_each_time():
    f = compile(lambda x, step: x * step)
    with pytest.warns(RuntimeWarning, match=r"in 16 calls it was recorded 1 times and replayed 1 times;.*new") as heard:
        found = [f(X, 1e-3 / (step + 1)) for step in range(50)]
    assert all(np.array_equal(a, X * (1e-3 / (step + 1))) for step, a in enumerate(found))
    assert len(heard) == 1
    assert f.ration.recorded == 1


@pytest.mark.filterwarnings("ignore:.*recorded 1 times")
def test_a_layout_that_comes_again_and_again_is_recorded_in_the_end(monkeypatch):
    monkeypatch.setattr("tinygrad_llm.capture.compiled.perf_counter", itertools.count().__next__)  # all take one second
    f = compile(lambda x: np.tanh(x * 1.5))
    for _ in range(30):
        for rows in (1, 2, 3):
            assert np.array_equal(f(X[:rows]), np.tanh(X[:rows] * 1.5))
    assert f.ration.recorded == 3
    assert f.ration.replayed > 45
