"""Randomised response against its law; what is public and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.condition import PublicCondition, RandomizedResponse
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
