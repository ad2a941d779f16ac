"""Randomised response against its law; what is public and what is not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.condition import (
    PublicAttributes,
    PublicCondition,
    RandomizedAttributes,
    RandomizedResponse,
)
from diffusion_privacy.mechanisms.relation import (
    REPLACE_RECORD,
    REPLACE_RECORD_AND_CONDITION,
    Neighbours,
    replace_person,
)

dp_accounting = pytest.importorskip("dp_accounting")


@pytest.mark.parametrize(("epsilon", "classes"), [(0.5, 2), (1.0, 10), (4.0, 3)])
def test_law_of_the_published_class(epsilon, classes):
    response = RandomizedResponse(epsilon, classes)
    out = response.many(np.random.default_rng(0).bytes, np.full(60_000, 1))
    keep = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    expected = np.full(classes, (1 - keep) / (classes - 1))
    expected[1] = keep
    # Rejects the right law with probability 1e-6.
    assert stats.chisquare(np.bincount(out, minlength=classes), 60_000 * expected).pvalue > 1e-6


@pytest.mark.parametrize("epsilon", [0.1, 3.0, 16.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_integer_threshold_is_rounded_on_the_private_side(epsilon, classes):
    response = RandomizedResponse(epsilon, classes)
    change = response._flip_threshold() / 2**62
    ratio = (1 - change) / (change / (classes - 1))
    assert math.log(ratio) <= epsilon
    assert math.log(ratio) == pytest.approx(epsilon, rel=1e-6)


def test_events():
    response = RandomizedResponse(1.5, 10)
    assert isinstance(response.event(REPLACE_RECORD), dp_accounting.NoOpDpEvent)
    got = account([Spend(response.event(REPLACE_RECORD_AND_CONDITION), "replace-one")], 0.0)
    assert got.epsilon == pytest.approx(1.5)
    group = account([Spend(response.event(replace_person(3, Neighbours.ANY_CONDITION)), "replace-one")], 0.0)
    assert group.epsilon == pytest.approx(4.5)
    public = PublicCondition(10)
    assert isinstance(public.event(REPLACE_RECORD), dp_accounting.NoOpDpEvent)
    assert account([Spend(public.event(REPLACE_RECORD_AND_CONDITION), "replace-one")], 1e-5).epsilon == math.inf


def test_one_record_is_a_function_of_its_key():
    response = RandomizedResponse(1.0, 4)
    assert response(b"x" * 32, 2) == response(b"x" * 32, 2)


@pytest.mark.parametrize("condition", [PublicCondition(3), RandomizedResponse(1.0, 3)])
def test_class_outside_its_declaration_is_refused(condition):
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(InputError, match="record"):
            condition.many(np.random.default_rng(0).bytes, np.array(labels))
    with pytest.raises(InputError, match="labels"):
        condition.many(np.random.default_rng(0).bytes, np.array([0.5]))


@pytest.mark.parametrize(("epsilon", "classes"), [(0.0, 3), (-1.0, 3), (31.0, 3), (1.0, 1)])
def test_unusable_responses_are_refused(epsilon, classes):
    with pytest.raises(InputError):
        RandomizedResponse(epsilon, classes)


# --- multi-hot attributes ---------------------------------------------------------------------------------------------


def flip_probability(part):
    return part._flip_threshold() / 2**62


def test_law_of_all_attributes_together_is_exact():
    # Every word below the threshold of its attribute flips it, and no other: so each flips with probability exactly
    # threshold/2^62, on bytes of its own, and the law of the whole is the product.
    attributes = RandomizedAttributes((0.5, 1.0, 0.25))
    truth = np.array([[1, 0, 1]])
    for chosen in itertools.product((0, 1), repeat=3):
        for edge in (0, -1):
            words = [
                t if flip == 0 else (t - 1 if edge else 0)
                for t, flip in zip(thresholds(attributes), chosen, strict=True)
            ]
            # One draw decides, the next picks among the one other value.
            stream = iter([v for word in words for v in (word, 7)])
            out = attributes.many(lambda n, stream=stream: np.uint64(next(stream) << 1).tobytes()[:n], truth)
            np.testing.assert_array_equal(out, truth ^ np.array(chosen))
    # Largest probability ratio of any published row between any two private ones.
    rows = list(itertools.product((0, 1), repeat=3))
    flips = [flip_probability(part) for part in attributes.parts]
    law = {
        a: [math.prod(f if x != y else 1 - f for x, y, f in zip(a, b, flips, strict=True)) for b in rows] for a in rows
    }
    for a in rows:
        assert math.fsum(law[a]) == pytest.approx(1.0)
    worst = max(math.log(p / q) for a in rows for b in rows for p, q in zip(law[a], law[b], strict=True))
    assert attributes.epsilon == 1.75
    assert worst <= 1.75 + 1e-12
    assert worst == pytest.approx(1.75, rel=1e-12)


def thresholds(attributes):
    return [part._flip_threshold() for part in attributes.parts]


def test_forty_attributes_share_one_budget():
    even = RandomizedAttributes.even(8.0, 40)
    assert even.epsilon == pytest.approx(8.0, rel=1e-15)
    assert {part.epsilon for part in even.parts} == {8.0 / 40}
    weighted = RandomizedAttributes.shared(4.0, [0.5, 0.25, 0.125, 0.125])
    assert weighted.epsilons == (2.0, 1.0, 0.5, 0.5)
    assert isinstance(even.event(REPLACE_RECORD), dp_accounting.NoOpDpEvent)
    spend = [Spend(even.event(REPLACE_RECORD_AND_CONDITION), "replace-one")]
    assert account(spend, 0.0).epsilon == pytest.approx(8.0)
    # 40 small responses compose far better than their sum once a δ is allowed.
    assert account(spend, 1e-5).epsilon < 6.5
    public = PublicAttributes(40)
    truth = np.random.default_rng(0).integers(0, 2, (5, 40))
    np.testing.assert_array_equal(public.many(np.random.default_rng(0).bytes, truth), truth)
    assert isinstance(public.event(REPLACE_RECORD), dp_accounting.NoOpDpEvent)
    assert account([Spend(public.event(REPLACE_RECORD_AND_CONDITION), "replace-one")], 1e-5).epsilon == math.inf


def test_each_attribute_is_kept_at_its_own_rate_and_independently():
    attributes = RandomizedAttributes((0.3, 1.2, 3.0))
    truth = np.tile([[0, 1, 1]], (60_000, 1))
    out = attributes.many(np.random.default_rng(1).bytes, truth)
    assert out.dtype == np.int32
    flips = [flip_probability(part) for part in attributes.parts]
    code = (out != truth) @ np.array([4, 2, 1])
    expected = [
        math.prod(f if bit else 1 - f for f, bit in zip(flips, bits, strict=True))
        for bits in itertools.product((0, 1), repeat=3)
    ]
    # Rejects the right law with probability 1e-6.
    assert stats.chisquare(np.bincount(code, minlength=8), 60_000 * np.array(expected)).pvalue > 1e-6
    assert (attributes(b"x" * 32, [0, 1, 1]) == attributes(b"x" * 32, [0, 1, 1])).all()


@pytest.mark.parametrize("condition", [PublicAttributes(2), RandomizedAttributes.even(1.0, 2)])
def test_attributes_that_are_none_are_refused(condition):
    draw = np.random.default_rng(0).bytes
    with pytest.raises(InputError, match="record 1 has attribute 0 = 2"):
        condition.many(draw, np.array([[0, 1], [2, 0]]))
    with pytest.raises(InputError, match="2 whole numbers"):
        condition.many(draw, np.array([[0, 1, 1]]))
    with pytest.raises(InputError, match="2 whole numbers"):
        condition.many(draw, np.array([0, 1]))
    with pytest.raises(InputError, match="2 whole numbers"):
        condition.many(draw, np.array([[0.0, 1.0]]))


def test_unusable_shares_are_refused():
    for shares in ([], [0.5, 0.4], [1.5, -0.5]):
        with pytest.raises(InputError, match="shares"):
            RandomizedAttributes.shared(1.0, shares)
    with pytest.raises(InputError, match="attributes"):
        RandomizedAttributes.even(1.0, 0)
    with pytest.raises(InputError, match="epsilons"):
        RandomizedAttributes(())
    with pytest.raises(InputError, match="epsilon"):
        RandomizedAttributes((1.0, 0.0))


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("epsilon", [0.1, 10.0, 25.0, 28.3, 30.0])
def test_no_digits_of_a_large_epsilon_are_lost_on_the_way_to_the_ledger(epsilon, classes):
    """P(change) is 1e-13 at ε = 30: as 1 − P(keep) it had three digits, and ε was entered by a thousandth too small."""
    event = RandomizedResponse(epsilon, classes).event(REPLACE_RECORD_AND_CONDITION)
    assert account([Spend(event, "replace-one")], 0.0).epsilon == pytest.approx(epsilon, rel=1e-13)
