"""No ratio of benchmarks.guards.pairs is worse than its bound.

Times are the processor's, in which waiting for a core that does something else does not count: run with one BLAS thread.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.guards.pairs import PAIRS, Pair


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_ratio_is_within_its_bound(pair: Pair, benchmark: Any) -> None:
    assert measured(pair, benchmark) <= pair.bound, f"{pair.name}: was {pair.seen} when the bound was set"


def measured(pair: Pair, benchmark: Any) -> float:
    """The fastest round of ours over the fastest of the yardstick, which has its turn before each of ours."""
    ours, yardstick = pair.make()
    times = []

    def turn() -> None:
        start = time.process_time()
        yardstick()
        times.append(time.process_time() - start)

    benchmark.pedantic(ours, setup=turn, rounds=pair.rounds, warmup_rounds=2)
    ratio = benchmark.stats.stats.min / min(times)
    benchmark.extra_info.update(ratio=ratio, seen=pair.seen, bound=pair.bound)
    print(f"\n{pair.name}: {ratio:.3g}, bound {pair.bound:.3g}")
    return ratio
