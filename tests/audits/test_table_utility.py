"""Tables against themselves, against rows shuffled column by column, and against real models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracles.tables import halves
from scipy import stats

from diffusion_privacy.audits.table_utility import cells, compare, distance, train_and_test
from diffusion_privacy.data.table_sources import load_table
from diffusion_privacy.data.tables import Column, Schema, Table
from diffusion_privacy.errors import InputError


@pytest.fixture(scope="module")
def cancer():
    whole = load_table("breast_cancer")
    return [t.with_schema(whole.schema.standardised_by(whole)) for t in halves(whole, seed=1)]


def shuffled(table, seed=0):
    """Every column by itself: the same marginals, no relation left."""
    rng = np.random.default_rng(seed)
    return dataclasses.replace(table, data={name: rng.permutation(v) for name, v in table.data.items()})


def test_cells_by_hand():
    schema = Schema((Column("x", "numeric", lower=0.0, upper=4.0), Column("c", "categorical", ("a", "b", "c"))))
    table = Table(schema, {"x": np.array([0.0, 0.9, 1.0, 4.0, 9.0]), "c": np.array([0, 1, 2, 0, 1])}, "toy")
    codes, sizes = cells(table, 4)
    assert sizes == (4, 3)
    assert codes[:, 0].tolist() == [0, 0, 1, 3, 3]
    with pytest.raises(InputError, match="2 or more"):
        cells(table, 1)


def test_a_table_is_at_no_distance_from_itself_and_shuffling_hits_pairs_only(cancer):
    table = cancer[0]
    same = compare(table, table)
    assert same.one_way.max() == same.two_way.max() == same.correlation.largest == 0
    mixed = compare(table, shuffled(table))
    assert mixed.one_way.max() == 0
    # Radius, perimeter and area are almost functions of each other.
    assert mixed.two_way[0, 2] > 0.5
    assert mixed.correlation.largest > 0.8
    assert mixed.columns[0] == "mean radius"


def test_models_learn_from_real_rows_and_not_from_shuffled_ones(cancer):
    train, test = cancer
    real = train_and_test([train], test, "diagnosis")
    assert real.measure == "accuracy"
    assert real.score.lower > 0.9 > real.baseline
    assert train_and_test([shuffled(train)], test, "diagnosis").score.value < 0.8
    number = train_and_test([train], test, "mean area")
    assert number.measure == "r2"
    assert 0.9 < number.score.lower < number.score.value < number.score.upper < 1
    # Thirty features that all measure size: a chance coefficient may point along them, so the mean of some draws.
    mixed = train_and_test([shuffled(train, seed) for seed in range(8)], test, "mean area")
    assert mixed.score.value == pytest.approx(np.mean(mixed.draws))
    assert mixed.score.value < 0.3


def test_a_collapsed_release_names_one_category(cancer):
    train, test = cancer
    one = train.take(np.flatnonzero(train.data["diagnosis"] == 1))
    assert train_and_test([one], test, "diagnosis").score.value == np.mean(test.data["diagnosis"] == 1)


def test_distances_are_zero_to_itself_and_cover_those_of_another_sample(cancer):
    """The jackknife against the spread over disjoint halves: both estimate one deviation, within a factor of 3."""
    kept = cancer[0].schema.columns[:5]
    table, other = (Table(Schema(kept), {c.name: t.data[c.name] for c in kept}, t.name) for t in cancer)
    assert distance(table, [table]).two_way.upper == 0
    found = distance(table, [other])
    assert 0 < found.one_way.lower < found.one_way.value < found.one_way.upper
    assert distance(table, [shuffled(table)]).correlation.lower > found.correlation.upper
    spread = []
    for seed in range(12):
        order = np.random.default_rng(seed).permutation(len(table))
        half = table.take(order[: len(order) // 2])
        spread.append(distance(half, [other]).one_way.value)
    half_width = (found.one_way.upper - found.one_way.lower) / 2 / 1.96
    assert 1 / 3 < half_width / np.std(spread, ddof=1) < 3


def test_bad_requests_are_refused(cancer):
    train, test = cancer
    with pytest.raises(InputError, match="'outcome' does not exist"):
        train_and_test([train], test, "outcome")
    with pytest.raises(InputError, match="another schema"):
        compare(train, load_table("diabetes"))
    with pytest.raises(InputError, match="is constant"):
        train_and_test([train], test.take([0]), "mean area")


def test_the_interval_of_a_distance_is_the_jackknifes(cancer):
    """Twenty groups of rows left out in turn: variance 19/20 · Σ (θ_g − mean)² (Efron & Stein 1981)."""
    found = distance(cancer[0], [cancer[1]], level=0.9).one_way
    left = [
        compare(*(t.take(np.flatnonzero(np.arange(len(t)) % 20 != g)) for t in cancer), 10).one_way.mean()
        for g in range(20)
    ]
    assert found.value == pytest.approx(compare(*cancer, 10).one_way.mean())
    reach = stats.norm.ppf(0.95) * np.sqrt(19 / 20 * np.sum((left - np.mean(left)) ** 2))
    assert found.upper == pytest.approx(found.value + reach)
