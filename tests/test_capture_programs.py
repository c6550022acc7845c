"""Random functions of arrays, and those that once went wrong: their programs give the bits that NumPy gives.

Each program runs on memory full of 0xFF bytes, so that what is read before it is written shows, and on a second batch, so
that a value frozen into the program does.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyprograms import Drawing, laid_out, same
from opcases import Drawn as ByHypothesis

from reference.opdraw import Seeded
from tinygrad_llm.autograd.modes import recording
from tinygrad_llm.capture import passes
from tinygrad_llm.capture.record import Recorder
from tinygrad_llm.capture.recordings import record
from tinygrad_llm.capture.replay import Replay

TILES = (16, 64, 300, 4096)
EXAMPLES = settings(max_examples=3 * settings.default.max_examples)


def small(tile):
    """All passes, as they work on large programs."""
    sizes = {passes.row_tiles: {"tile": tile}, passes.recompute: {"large": 0}}
    return tuple(functools.partial(p, **sizes[p]) if p in sizes else p for p in passes.EXACT)


def poisoned(replay):
    """The replay, with every byte that is its own set to 0xFF: NaN, or −1."""
    replay.arena.fill(255)
    for buffer, memory in replay.memory.items():
        if buffer.kind in ("temp", "tile", "output"):
            memory.fill(255)
    return replay


def replayed(recording, replay, batch):
    poisoned(replay)
    for place, array in zip(replay.inputs, batch, strict=True):
        np.copyto(place, array)
    replay.run()
    return [replay.outputs[place.number] for place, _ in recording.results]


def eagerly(function, batch):
    with np.errstate(all="ignore"):
        return function(*[a.copy("K") for a in batch])


def differences(function, plan, batches):
    """(batch, output) for each output that differs from NumPy's."""
    recording = record(function, batches[0])
    replay = Replay(passes.optimize(recording.program, plan))
    pairs = [(eagerly(function, b), [np.copy(a) for a in replayed(recording, replay, b)]) for b in batches]
    return [(n, i) for n, (wanted, found) in enumerate(pairs) for i, (w, f) in enumerate(zip(wanted, found, strict=True))
            if not same(w, f)]


def plans(tile):
    """No pass, all passes, all with a tile so small that loops happen, and each."""
    return [(), passes.EXACT, small(tile), *[(p,) for p in small(tile)]]


# Random functions -----------------------------------------------------------------------------------------------------


@EXAMPLES
@given(data=st.data())
def test_any_subset_of_passes_keeps_the_bits_of_a_random_function(data):
    function = Drawing(ByHypothesis(data.draw), steps=data.draw(st.integers(1, 8))).function
    kept = data.draw(st.lists(st.booleans(), min_size=len(passes.EXACT), max_size=len(passes.EXACT)))
    tile = data.draw(st.sampled_from(TILES))
    plan = [p for p, keep in zip(small(tile), kept) if keep]
    for chosen in (plan, plans(tile)[2]):
        assert differences(function, chosen, [function.inputs, function.batch(1)]) == [], function


@pytest.mark.parametrize("seed", range(max(8, settings.default.max_examples // 3)))
def test_long_random_functions(seed):
    """Too long to be drawn by Hypothesis quickly, and so not shrunk."""
    function = Drawing(Seeded(seed), steps=25).function
    for plan in plans(TILES[seed % len(TILES)]):
        assert differences(function, plan, [function.inputs, function.batch(1)]) == [], (plan, function)


def layout(a):
    """(dtype, shape, strides of the axes that have more than one place)"""
    return a.dtype, a.shape, [s for n, s in zip(a.shape, a.strides) if n > 1] if a.size else []


@pytest.mark.parametrize("seed", range(1000, 1000 + max(10, settings.default.max_examples // 2)))
def test_traced_arrays_lie_in_memory_as_those_of_numpy(seed):
    """Reductions and products depend on it, and so does whether a reshape is a view."""
    function, recorder = Drawing(Seeded(seed), steps=25).function, Recorder()
    with recording(recorder):
        traced = [layout(v) for v in function.values(*map(recorder.trace, function.inputs))]
    assert traced == [layout(v) for v in eagerly(function.values, function.inputs)], function


# Functions that went wrong, or could ----------------------------------------------------------------------------------


def broadcast_copy(x):
    out = np.copy(x)
    out[1:2, :] = np.mean(x, keepdims=True)
    return [out]


def column_sums_of_single_rows(x):
    return [np.sum(np.abs(x.T), (0,)), np.sum(np.abs(x).T.reshape((6, 2, 2)).transpose(2, 1, 0), (1, 2)) + 1]


def changed_in_between(x):
    y = x + 1
    late = y * 3
    y += 1
    most = np.concatenate([np.exp(y), np.exp(x), np.exp(late)])
    return [np.sum(most), late * y]


def both_zeros(x):
    return [x * 0.0, x * -0.0, x * False, x * 0]


def two_layouts(x):
    first = np.empty_like(x)
    np.add(x, 1, out=first[::-1])
    return [first, np.add(x, 1)]


def row_read_by_all(x):
    y = x + 1
    z = (y - y[0:1]) * y
    return [np.matmul(z.T, z)]


def row_subtracted_from_all(x):
    y, z = x + 1, x * 2
    np.subtract(y, y[0:1], out=y)
    return [y * z]


def rows_moved_up(x):
    y = x + 1
    y[1:] += y[:-1]
    return [y * 2, y]


def windows_out_of_step(x):
    flat = (x + 1).reshape(-1)
    low, high = flat[:-4].reshape((-1, 4)), flat[2:-2].reshape((-1, 4))
    low *= 3
    return [high + 1, flat + low[0, 0]]


def rows_from_the_end(x):
    y = x + 1
    down = y[::-1]
    down *= 2
    part = y[3::-1]
    part += 1
    return [part * 2, down + 1]


def sum_into_other_layout(x):
    y = x.reshape((8, 65, 2)).T * 1.5
    out = np.zeros_like(np.copy(y[:, 0], order="C"))
    out[...] = np.sum(y, 1)
    return [out]


def product_into_columns(x):
    y = x * 2
    out = np.zeros_like(np.concatenate([x, x], 1))
    out[:, ::2] = np.matmul(y, y)
    out[:, 1::2] = np.matmul(y, y.T).T
    return [out]


def number_is_not_an_array(x):
    total = np.sum(x)
    before = total
    total += 1
    first = x[0, 0]
    y = x + 1
    corner = y[0, 0]
    y[0, 0] = 5
    return [before, total, first, corner, y]


def written_after_a_read(x):
    y = x * 2
    z = y + 1
    y += 1
    y[:, 1] = z[:, 0]
    z[0] = y[1]
    return [y, z]


def copied_between_writes(x):
    out = np.zeros_like(x)
    row = x[0] * 2
    out[0] = row
    out += 1
    out[1] = row
    row2 = x[1] * 3
    seen = out * 1
    out[1] = row2
    return [out, seen]


def same_twice(x):
    y = x + 1
    return [y, y, y.T, y[::-1]]


def mean_of_a_broadcast_axis(x):
    wide = np.broadcast_to((x + 1)[:, :, None], (2, *x.shape, 4))
    means = np.mean(wide, 3)
    return [np.matmul(means, means.transpose(0, 2, 1)), np.sum(means, (0, 1))]


def nan_with_gaps(x):
    """NumPy 2.4 with AVX-512 leaves elements out where the result of isnan has gaps."""
    y = np.concatenate([x, x], 1)[:, :17].T
    out = np.zeros_like(y, dtype=np.float32)
    out[...] = np.isfinite(y * 2) & np.isnan(y + 1)
    return [out, np.true_divide(np.isnan(y), np.isnan(y)), np.where(np.signbit(y), y, 0)]


def every_fourth_negated(x):
    """NumPy 2.4 reads neighbours in place of every fourth float where the result of negative has gaps."""
    return [np.negative(np.negative(x)), np.negative(x[::4]) * 2]


def larger_of_both_zeros(x):
    """NumPy gives either of them, by where in the memory they lie."""
    y = x * 0
    return [np.fmax(y, -y) * 2, np.fmin(y, -y) * 2, np.fmax(y.T, -y.T)]


def taken_by_a_number(x):
    n = np.argmax(x)
    flat = (x * 2).reshape((-1,))
    largest = flat[n]
    before = largest
    largest -= 3
    flat[n] = 0
    return [before, largest, flat]


def powers_from_the_end(x):
    y = np.square(x.reshape((-1, 2, 2)).transpose(1, 2, 0))
    return [np.power(np.flip(y), y), np.log1p(np.flip(np.abs(x))) * 2]


def repeated_row_changes(x):
    row = x[0] * 2
    y = x + row
    row += 1
    return [y, x + row, x * row, x - x[:, :1], x / np.copy(x[:, :1])]


def works_in_the_dtype_of_its_operands(x):
    out = np.zeros_like(x, dtype=np.float64)
    np.multiply(x, x[:1] + 1, out=out)
    return [out, x.T * (x[0:1] > 0).T, np.add(x[:, :1], np.arange(x.shape[1]))]


WRONG_ONCE = [powers_from_the_end, mean_of_a_broadcast_axis, nan_with_gaps, taken_by_a_number, broadcast_copy,
              column_sums_of_single_rows, changed_in_between, both_zeros, two_layouts, row_read_by_all, row_subtracted_from_all,
              rows_moved_up, windows_out_of_step, rows_from_the_end, sum_into_other_layout, product_into_columns,
              number_is_not_an_array, written_after_a_read, copied_between_writes, same_twice,
              repeated_row_changes, works_in_the_dtype_of_its_operands, every_fourth_negated, larger_of_both_zeros]

SHAPES = {column_sums_of_single_rows: (4, 6), sum_into_other_layout: (130, 8), powers_from_the_end: (8, 32),
          nan_with_gaps: (130, 8), product_into_columns: (16, 16), every_fourth_negated: (4, 6)}


@pytest.mark.parametrize("function", WRONG_ONCE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(4, 6), (8, 33), (130, 8)], ids=str)
def test_kept_functions(function, shape):
    shape = SHAPES.get(function, shape)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for tile, first in itertools.product(TILES, (x, np.asfortranarray(x))):
        second = laid_out(first, np.random.default_rng(1))
        for plan in plans(tile):
            assert differences(function, plan, [[first], [second]]) == [], plan
