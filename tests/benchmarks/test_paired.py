"""Paired ratios: which rounds count, the interval of their median, and what the machine's accounts say of others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import load, paired
from benchmarks.paired import Round, Window


def _round(ratio: float, foreign: float = 0.0) -> Round:
    return Round(Window(10 * ratio, 1.0, 0.0), Window(20.0, 2.0, foreign))


def test_ratio_is_of_rates_and_above_one_where_ours_is_faster():
    found = paired.compare([_round(r) for r in (1.0, 2.0, 4.0)], 0.05)
    assert (found.median, found.ours, found.peer) == (2.0, 20.0, 10.0)
    assert found.quartiles == (1.5, 3.0)
    assert found.interval is None, "three rounds cannot hold the median at 95 %"


def test_a_round_is_dropped_when_others_used_the_machine_in_either_turn():
    loud = Round(Window(1000.0, 1.0, 0.2), Window(10.0, 1.0, 0.0))
    found = paired.compare([_round(2.0, 0.05), _round(2.0), loud, _round(9.0, 0.051)], 0.05)
    assert (found.median, found.kept, found.dropped) == (2.0, 2, 2)
    nothing = paired.compare([loud], 0.05)
    assert nothing.median is None
    assert nothing.kept == 0
    assert nothing.dropped == 1


def test_order_statistics_have_the_stated_coverage():
    """Ranks from the exact binomial law: 6 values take the extremes, 12 the third from each end."""
    assert paired.median_interval([1, 2, 3, 4, 5]) is None
    assert paired.median_interval([6, 1, 3, 2, 5, 4]) == (1, 6)
    assert paired.median_interval(list(range(1, 13))) == (3, 10)
    for n, k in ((6, 1), (12, 3), (25, 8)):
        inside = 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
        tighter = 1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        assert inside >= 0.95 > tighter
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = paired.median_interval(list(rng.exponential(size=12)))
        held += low <= math.log(2) <= high
    # Exact coverage is .9614: beyond four standard deviations a right program falls once in 16,000 seeds.
    assert abs(held / 2000 - 0.9614) < 4 * math.sqrt(0.9614 * 0.0386 / 2000)


def test_a_rate_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="positive"):
        paired.compare([Round(Window(0.0, 1.0, 0.0), Window(1.0, 1.0, 0.0))], 0.05)


def test_foreign_share_is_what_was_busy_and_not_ours():
    assert load.busy_ticks("cpu  100 20 30 900 40 5 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n") == 100 + 20 + 30 + 5 + 6 + 7
    stat = "42 (a b) c) S 1 1 1 0 -1 0 0 0 0 0 11 22 3 4 20 0 1 0 5 0 0"
    assert load.process_ticks(stat) == 11 + 22 + 3 + 4
    before, after = load.Snapshot(0.0, 10.0, 4.0), load.Snapshot(2.0, 13.5, 7.0)
    assert load.foreign_share(before, after, 2) == pytest.approx(0.5 / 4)
    assert load.foreign_share(before, load.Snapshot(2.0, 13.5, 9.0), 2) == 0.0
