"""The judge of membership scores against definitions written out and laws of null scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.audits import membership as membership_module
from diffusion_privacy.audits.membership import attack_with, auc, auc_bootstrap, membership
from diffusion_privacy.errors import InputError


def test_worked_by_hand():
    result = auc(np.array([3.0, 2.0, 2.5]), np.array([1.0, 2.0]))
    assert result.value == pytest.approx((2 + 1.5 + 2) / 6)


def test_delong_is_its_definition():
    rng = np.random.default_rng(0)
    one, two = np.round(rng.normal(0.7, 1, 40), 1), np.round(rng.normal(0, 1, 30), 1)
    wins = (one[:, None] > two) + 0.5 * (one[:, None] == two)
    variance = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 30
    result = auc(one, two, 0.9)
    value = wins.mean()
    assert result.value == pytest.approx(value)
    assert result.method == "delong-logit"
    logit = [math.log(p / (1 - p)) for p in (result.lower, value, result.upper)]
    half = stats.norm.ppf(0.95) * math.sqrt(variance) / (value * (1 - value))
    np.testing.assert_allclose(np.diff(logit), half)
    flipped = auc(-one, -two, 0.9)
    assert flipped.value == pytest.approx(1 - value)
    assert (flipped.lower, flipped.upper) == pytest.approx((1 - result.upper, 1 - result.lower))


def test_delong_covers():
    """300 pairs of normal samples with AUC Φ(d/√2): 95 % intervals cover 269 times or more (binomial 1e-4)."""
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    covered = 0
    for _ in range(300):
        result = auc(rng.normal(1, 1, 60), rng.normal(0, 1, 60))
        covered += result.lower <= truth <= result.upper
    assert covered >= stats.binom.ppf(1e-4, 300, 0.95)


def test_groups_of_one_are_delong_s():
    rng = np.random.default_rng(3)
    one, two = rng.normal(0.5, 1, 40), rng.normal(0, 1, 30)
    assert auc(one, two, groups=(np.arange(40)[::-1], np.arange(30))) == auc(one, two)


def test_records_that_come_twice_count_once():
    """Each record three times, in one group: up to small-sample factors the interval of each once, not a narrower."""
    rng = np.random.default_rng(4)
    one, two = rng.normal(0.5, 1, 400), rng.normal(0, 1, 300)
    once = auc(one, two)
    thrice = auc(np.repeat(one, 3), np.repeat(two, 3), groups=(np.repeat(np.arange(400), 3), np.repeat(range(300), 3)))
    assert thrice.value == pytest.approx(once.value)
    assert thrice.method == "groups-logit"
    assert (thrice.lower, thrice.upper) == pytest.approx((once.lower, once.upper), abs=1e-3)
    blind = auc(np.repeat(one, 3), np.repeat(two, 3))
    assert blind.upper - blind.lower < 0.6 * (once.upper - once.lower)


@pytest.mark.parametrize("sizes", [(30, 1), (8, 8), (3, 2)], ids=["a few large", "even", "small"])
def test_groups_are_covered(sizes):
    """300 null draws of 60 groups a side that score alike within: 95 % intervals cover 269 times or more (1e-4).

    As independent records they cover far less often, which shows that the test sees what it is for.
    """
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(60), np.where(np.arange(60) < 20, sizes[0], sizes[1]))
    covered, blind = 0, 0
    for _ in range(300):
        sides = [rng.normal(size=60)[group] + 0.1 * rng.normal(size=group.size) for _ in range(2)]
        found = auc(*sides, groups=(group, group))
        covered += found.lower <= 0.5 <= found.upper
        found = auc(*sides)
        blind += found.lower <= 0.5 <= found.upper
    assert covered >= stats.binom.ppf(1e-4, 300, 0.95)
    assert blind < stats.binom.ppf(1e-4, 300, 0.95)


def test_one_group_says_nothing_and_separated_ones_count_once():
    one, two = np.arange(6.0) + 100, np.arange(9.0)
    alone = auc(one, two, groups=(np.zeros(6, int), np.arange(9)))
    assert (alone.lower, alone.upper) == (0, 1)
    apart = auc(one, two, groups=(np.arange(6) // 2, np.arange(9) // 3))
    assert (apart.value, apart.upper, apart.method) == (1, 1, "disjoint-pairs")
    assert apart.lower == pytest.approx(0.025 ** (1 / 3))
    with pytest.raises(InputError, match=r"groups: expected one a non-member score, 9 of them, got shape \(6,\)"):
        auc(one, two, groups=(np.arange(6), np.arange(6)))


def test_separated_and_constant_scores_keep_an_honest_interval():
    apart = auc(np.arange(50.0) + 100, np.arange(80.0))
    assert (apart.value, apart.upper, apart.method) == (1, 1, "disjoint-pairs")
    assert apart.lower == pytest.approx(0.025 ** (1 / 50))
    same = auc(np.ones(50), np.ones(80))
    assert (same.value, same.lower, same.upper) == (0.5, 0, 1)


def test_null_scores_are_at_chance():
    """2,000 against 2,000 of one law. AUC: |z| < 4.5, false-alarm rate 7e-6; TPR against FPR at 1e-5 limits."""
    rng = np.random.default_rng(2)
    result = membership("null", rng.normal(size=2000), rng.normal(size=2000), level=1 - 1e-5)
    assert abs(result.auc.value - 0.5) < 4.5 * math.sqrt(4001 / (12 * 2000**2))
    for point in result.points:
        assert point.tpr.lower < point.fpr.upper
        assert point.fpr.hits / 2000 <= point.requested


def test_operating_points_of_normal_scores():
    """d = 2: TPR at a threshold t is Φ(2 − t). N = M = 5,000, fixed draw; the intervals at 1 − 1e-5 hold it."""
    rng = np.random.default_rng(3)
    result = membership("shift", rng.normal(2, 1, 5000), rng.normal(size=5000), level=1 - 1e-5)
    for point in result.points:
        assert point.tpr.lower < stats.norm.sf(point.threshold - 2) < point.tpr.upper
        assert point.fpr.lower < stats.norm.sf(point.threshold) < point.fpr.upper
    again = membership("shift", np.arange(30.0), np.arange(200.0), seed=1)
    assert again == membership("shift", np.arange(30.0), np.arange(200.0), seed=1)


def test_a_blind_score_is_above_what_its_threshold_lets_through_as_rarely_as_stated():
    """600 draws of 512 members like the 100 others, 1 % asked for. Both limits err in 2.5 % of them at the most: more
    than 51 have a probability below 1e-4. Above the 1 % itself the lower limit is in an eighth of the draws."""
    rng = np.random.default_rng(5)
    above = asked = 0
    for _ in range(600):
        point = membership_module._point(rng.normal(size=512), rng.normal(size=100), 0.01, 0.95)
        above, asked = above + (point.tpr.lower > point.fpr.upper), asked + (point.tpr.lower > 0.01)
    assert above <= 51
    assert asked > 51


def test_too_few_non_members_give_no_number():
    result = membership("few", np.arange(100.0), np.arange(500.0))
    assert result.points[0].tpr is not None
    assert result.points[1].tpr is None
    assert "at least 999" in result.points[1].reason


def test_both_sets_go_through_one_call():
    calls = []

    def scores(x):
        calls.append(len(x))
        return x.sum(axis=1)

    result = attack_with("sum", scores, np.ones((20, 3)), np.zeros((30, 3)))
    assert calls == [50]
    assert (result.auc.value, result.members, result.non_members) == (1, 20, 30)
    with pytest.raises(InputError, match="expected equal shapes"):
        attack_with("sum", scores, np.ones((20, 3)), np.zeros((30, 4)))
    with pytest.raises(ValueError, match="returned"):
        attack_with("sum", lambda x: x, np.ones((20, 3)), np.zeros((30, 3)))


@pytest.mark.parametrize(
    ("members", "others", "rates", "message"),
    [
        ([1.0, np.nan], [0.0, 0.0], (0.1,), "score of member 1 is NaN"),
        ([1.0, 2.0], [0.0, np.nan, np.nan], (0.1,), r"score of non-member 1 is NaN \(2 such\)"),
        ([1.0], [0.0, 0.0], (0.1,), "at least two member scores"),
        ([1.0, 2.0], [0.0, 0.0], (1.5,), "strictly between 0 and 1, got 1.5"),
    ],
)
def test_bad_scores_are_refused(members, others, rates, message):
    with pytest.raises(InputError, match=message) as caught:
        membership("x", np.array(members), np.array(others), rates=rates)
    assert "\n" not in str(caught.value)


def test_bootstrap_of_the_auc_is_the_resampled_statistic():
    """Its limits are quantiles of AUCs of resamples: on a toy set every one is a multiple of 1/8, ties counted half;
    on 300 a side it has DeLong's width within a tenth, and it covers the truth of a fixed draw."""
    low, high = auc_bootstrap(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
    assert (low, high) == (0.5, 1.0)
    rng = np.random.default_rng(6)
    one, two = rng.normal(1, 1, 300), rng.normal(0, 1, 300)
    low, high = auc_bootstrap(one, two)
    delong = auc(one, two)
    assert high - low == pytest.approx(delong.upper - delong.lower, rel=0.1)
    assert low < stats.norm.cdf(1 / math.sqrt(2)) < high
    assert membership("shift", one, two, rates=(0.1,)).auc_bootstrap == (low, high)


def test_a_rate_that_few_non_members_decide_says_so():
    rng = np.random.default_rng(7)
    points = membership("few", rng.normal(size=50), rng.normal(size=1500)).points
    assert points[0].reason == ""
    assert "1 highest of 1500" in points[1].reason
