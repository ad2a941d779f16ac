"""The verdict never says more than its estimates do."""

import dataclasses
import math

import pytest

from diffusion_privacy.anonymity import montecarlo, verdict
from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.anonymity.subspace import Mixture, SubspaceResult
from diffusion_privacy.types import Estimate

LEVEL = 0.95
PART = verdict.part_level(LEVEL)
NO_ALARM = rate(0, 10_000, PART)


def _direct(hits, n, tpr=0.9):
    return montecarlo.direct(hits, n, tpr_lower=tpr, steps=50, level=PART)


def _subspace(value, spread, *, reliable=True, level=PART):
    estimate = Estimate(
        method="subspace",
        log_value=math.log(value),
        log_stderr=spread,
        lower=value * math.exp(-3 * spread),
        upper=value * math.exp(3 * spread),
        level=level,
        n=1024,
        ess=200.0,
        reliable=reliable,
        network_calls=51_200,
    )
    return SubspaceResult(estimate, 0.2, 0.01, 500, Mixture((1,), (1.0,), (0.9,), 0.1), (0.02,))


def test_part_level_shares_the_error():
    assert pytest.approx((1 - LEVEL) / 2) == 1 - PART


def test_leak_is_named_and_e2_sharpens_the_lower_limit():
    found = verdict.decide(_direct(60, 4096), _subspace(1 / 64, 0.05), NO_ALARM, 1 / 64, LEVEL)
    alone = verdict.decide(_direct(60, 4096), None, NO_ALARM, 1 / 64, LEVEL)
    assert found.status == alone.status == verdict.LEAKS
    assert found.lower > alone.lower
    assert found.estimate == pytest.approx(1 / 64)
    assert found.samples_needed is None
    assert found.more_samples is None


def test_no_hit_is_clean_only_with_enough_samples():
    bound = 1 / 1697
    needed = montecarlo.samples_needed(bound, tpr_lower=0.9, level=PART)
    assert verdict.decide(_direct(0, needed), None, NO_ALARM, bound, LEVEL).status == verdict.CLEAN
    open_ = verdict.decide(_direct(0, needed - 1), None, NO_ALARM, bound, LEVEL)
    assert open_.status == verdict.OPEN
    assert (open_.samples_needed, open_.more_samples) == (needed, verdict.WITHOUT_A_HIT)


def test_hits_below_the_bound_ask_for_the_samples_that_they_cost():
    """4 hits of 10,000, a bound of 1/1,000, and a detector that fires for others too: not the number without a hit."""
    alarms = rate(20, 10_000, PART)
    open_ = verdict.decide(_direct(4, 10_000), None, alarms, 1e-3, LEVEL)
    assert (open_.status, open_.more_samples) == (verdict.OPEN, verdict.AT_THIS_RATE)
    needed = open_.samples_needed
    assert needed > 10_000 > montecarlo.samples_needed(1e-3, tpr_lower=0.9, level=PART)
    hits = -(-needed * 4 // 10_000)
    assert verdict.decide(_direct(hits, needed), None, alarms, 1e-3, LEVEL).status == verdict.CLEAN
    assert verdict.decide(_direct(hits, needed - 1), None, alarms, 1e-3, LEVEL).status == verdict.OPEN


def test_hits_at_the_bound_are_not_certified_away():
    """9 of 10,000 is below 1/1,000, but not once the detector's misses are allowed for."""
    alarms = rate(20, 10_000, PART)
    for hits in (9, 30):
        found = verdict.decide(_direct(hits, 10_000), None, alarms, 1e-3, LEVEL)
        assert (found.status, found.samples_needed) == (verdict.OPEN, None)
        assert found.more_samples == verdict.NOT_EXPECTED


def test_upper_limit_never_comes_from_a_local_estimator():
    tiny = _subspace(1e-9, 0.01)
    with_e2 = verdict.decide(_direct(0, 1000), tiny, NO_ALARM, 1e-3, LEVEL)
    without = verdict.decide(_direct(0, 1000), None, NO_ALARM, 1e-3, LEVEL)
    assert with_e2.upper == without.upper
    assert with_e2.lower <= 1e-9


def test_unreliable_subspace_is_ignored():
    wild = _subspace(0.5, 0.01, reliable=False)
    found = verdict.decide(_direct(0, 10_000), wild, NO_ALARM, 1e-2, LEVEL)
    assert found.lower == 0
    assert found.status == verdict.CLEAN


def test_hits_that_the_detector_explains_are_no_leak():
    alarms = rate(100, 10_000, PART)
    found = verdict.decide(_direct(100, 10_000), None, alarms, 1e-3, LEVEL)
    assert found.status == verdict.OPEN


def test_a_leak_lies_above_the_limit_of_the_false_alarms_and_not_above_their_estimate():
    """One false alarm in 1,000 images: the rate of others may be six times that, and with it all of these hits."""
    alarms = rate(1, 1000, PART)
    found = verdict.decide(_direct(60, 20_000), None, alarms, 1e-3, LEVEL)
    assert alarms.value < found.lower < alarms.upper
    assert found.status == verdict.OPEN


def test_a_blind_detector_certifies_nothing():
    found = verdict.decide(_direct(0, 10_000, tpr=1e-12), None, NO_ALARM, 1e-2, LEVEL)
    assert found.upper == 1
    assert (found.status, found.samples_needed, found.more_samples) == (verdict.OPEN, None, verdict.NOT_EXPECTED)


def test_contradiction_widens_the_interval():
    found = verdict.decide(_direct(0, 10_000), _subspace(0.1, 0.01), NO_ALARM, 1e-2, LEVEL)
    assert found.lower == 0
    assert found.upper >= 0.1
    assert found.status == verdict.OPEN
    # E1 alone would have had enough samples: it is the contradiction that is to be settled.
    assert (found.samples_needed, found.more_samples) == (None, verdict.NOT_EXPECTED)
    assert any("exclude" in text for text in found.assumes)


def test_an_e2_that_missed_what_e1_counted_is_no_estimate():
    """Planted: mass where no guided path leads. E2 sees a sixth of it, with a small error, and believes itself."""
    direct = _direct(60, 10_000)
    found = verdict.decide(direct, _subspace(0.001, 0.01), NO_ALARM, 1e-2, LEVEL)
    assert (found.lower, found.estimate, found.upper) == (
        direct.estimate.lower,
        direct.estimate.value,
        direct.estimate.upper,
    )
    assert any("exclude" in text for text in found.assumes)
    near = verdict.decide(direct, _subspace(0.0045, 0.01), NO_ALARM, 1e-2, LEVEL)
    assert near.estimate == pytest.approx(0.0045)
    assert not any("exclude" in text for text in near.assumes)


def test_other_levels_are_refused():
    with pytest.raises(ValueError, match="direct"):
        verdict.decide(
            dataclasses.replace(_direct(0, 10), estimate=montecarlo.direct(0, 10, steps=1).estimate),
            None,
            NO_ALARM,
            0.1,
            LEVEL,
        )
    with pytest.raises(ValueError, match="subspace"):
        verdict.decide(_direct(0, 10), _subspace(0.1, 0.1, level=0.95), NO_ALARM, 0.1, LEVEL)
    with pytest.raises(ValueError, match="false-positive"):
        verdict.decide(_direct(0, 10), None, rate(0, 10), 0.1, LEVEL)
