"""Exact samplers against their mass functions; rounding on the grid costs no sensitivity."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import discrete
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, replace_person

dp_accounting = pytest.importorskip("dp_accounting")

# Each chi-square test below rejects a right sampler with probability 1e-6.
LEVEL = 1e-6


def stream(seed: int):
    return np.random.default_rng(seed).bytes


def chi_square_p(draws: np.ndarray, mass: np.ndarray, low: int) -> float:
    """p-value of integer ``draws`` against ``mass`` on low, low+1, ...; thin cells and the tails are merged."""
    counts = np.bincount(np.clip(draws - low, 0, mass.size - 1), minlength=mass.size).astype(float)
    expected = mass / mass.sum() * draws.size
    keep = expected >= 10
    counts = np.append(counts[keep], counts[~keep].sum())
    expected = np.append(expected[keep], expected[~keep].sum())
    if expected[-1] < 10:
        counts[-2:], expected[-2:] = [counts[-2:].sum(), 0], [expected[-2:].sum(), 1]
        counts, expected = counts[:-1], expected[:-1]
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("scale", [1, 2, 7, 50])
def test_laplace_mass(scale):
    draws = discrete.sample_laplace(scale, 60_000, stream(scale))
    grid = np.arange(-60 * scale, 60 * scale + 1)
    assert chi_square_p(draws, np.exp(-np.abs(grid) / scale), grid[0]) > LEVEL


@pytest.mark.parametrize("sigma", [1, 3, 20])
def test_gaussian_mass(sigma):
    draws = discrete.sample_gaussian(sigma, 60_000, stream(sigma))
    grid = np.arange(-40 * sigma, 40 * sigma + 1)
    assert chi_square_p(draws, np.exp(-(grid**2) / (2.0 * sigma**2)), grid[0]) > LEVEL
    # A sampler of another width is told apart by the same test.
    assert chi_square_p(draws, np.exp(-(grid**2) / (2.0 * (1.5 * sigma) ** 2)), grid[0]) < LEVEL


def test_largest_scale_does_not_overflow():
    draws = discrete.sample_gaussian(discrete.MAX_SCALE, 40_000, stream(9))
    assert stats.kstest(draws / discrete.MAX_SCALE, "norm").pvalue > 1e-6
    for bad in (0, discrete.MAX_SCALE + 1):
        with pytest.raises(InputError, match="sigma"):
            discrete.sample_gaussian(bad, 1, stream(0))


@pytest.mark.parametrize(("n", "d"), [(0, 5), (1, 3), (5, 5), (7, 2), (2**40, 2**41)])
def test_bernoulli_exp(n, d):
    draws = discrete.bernoulli_exp(np.full(40_000, n), np.full(40_000, d), stream(3))
    # 6 standard deviations: false alarm 2e-9.
    p = math.exp(-n / d)
    assert abs(draws.mean() - p) <= 6 * math.sqrt(p * (1 - p) / 40_000)


def test_uniform_is_unbiased_where_a_remainder_would_not_be():
    bound = 3 * 2**60  # a plain remainder of 63 bits would favour the lower two thirds
    draws = discrete.uniform_below(np.full(30_000, bound), stream(4))
    counts = np.bincount(draws // 2**60, minlength=3)
    assert stats.chisquare(counts).pvalue > LEVEL


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_rounding_never_leaves_the_ball(norm):
    rng = np.random.default_rng(0)
    radius, step = 1.7, 2.0**-3
    z = rng.standard_normal((500, 40))
    z *= radius / np.linalg.norm(z, ord=1 if norm == "l1" else 2, axis=1, keepdims=True) * (1 - 1e-7)
    grid = discrete.round_to_grid(z, radius, norm, step)
    assert np.abs(grid * step - z).max() <= step
    limit = Fraction(radius) / Fraction(step)
    sizes = [sum(abs(int(v)) for v in row) if norm == "l1" else sum(int(v) ** 2 for v in row) for row in grid]
    assert all(size <= (limit if norm == "l1" else limit**2) for size in sizes)
    # Rounding to nearest alone does leave it.
    nearest = np.rint(z / step).astype(int)
    assert any(np.linalg.norm(row, ord=1 if norm == "l1" else 2) > float(limit) for row in nearest)


def test_calibrated_discrete_gaussian_meets_its_budget_and_is_near_the_exact_one():
    for relation in (REPLACE_RECORD, replace_person(3)):
        mechanism = discrete.DiscreteGaussian.calibrated(2.0, 1e-5, 5.0, relation, 1000)
        got = account([Spend(mechanism.event(relation), "replace-one")], 1e-5)
        assert got.epsilon <= 2.0
        assert got.epsilon > 1.95
        exact = 1.994 * 10.0 * relation.l2_factor()
        assert exact <= mechanism.noise_scale < 1.2 * exact


def test_calibrated_discrete_laplace_meets_its_budget():
    mechanism = discrete.DiscreteLaplace.calibrated(2.0, 5.0, REPLACE_RECORD)
    got = account([Spend(mechanism.event(REPLACE_RECORD), "replace-one")], 0.0)
    assert 1.99 < got.epsilon <= 2.0
    assert mechanism.sensitivity(REPLACE_RECORD) <= 10.0


@pytest.mark.parametrize("epsilon", [0.3, 0.7, 1.1, 3.0])
def test_a_scale_between_two_grid_steps_is_rounded_up(epsilon):
    mechanism = discrete.DiscreteLaplace.calibrated(epsilon, 5.0, REPLACE_RECORD)
    got = account([Spend(mechanism.event(REPLACE_RECORD), "replace-one")], 0.0)
    assert 0.998 * epsilon < got.epsilon <= epsilon


def test_every_number_is_noised_however_many_there_are(monkeypatch):
    """Noise is drawn 64 numbers at a time here: a part without it, or with that of another part, would be seen."""
    monkeypatch.setattr(discrete, "_CHUNK", 64)
    out = discrete.DiscreteLaplace(1.0, 2.0**-8, 512).many(stream(0), np.zeros((10, 25)))
    parts = np.split(out.ravel(), [64, 128, 192])
    # A number is 0 once in a thousand times.
    assert all(np.count_nonzero(part) > part.size / 2 for part in parts)
    assert not np.array_equal(parts[0], parts[1])


@pytest.mark.parametrize("kind", [discrete.DiscreteGaussian, discrete.DiscreteLaplace])
def test_records_are_private_one_by_one_and_on_the_grid(kind):
    mechanism = kind(1.0, 2.0**-8, 512)
    z = np.array([[100.0, 0.0], [0.0, np.nan], [0.25, 0.25]])
    out = mechanism.many(stream(0), z)
    assert np.array_equal(out / mechanism.step, np.rint(out / mechanism.step))
    alone = mechanism(b"k" * 32, z[2])
    assert np.array_equal(alone, mechanism(b"k" * 32, z[2]))
    with pytest.raises(ValueError, match="one record"):
        mechanism(b"k" * 32, z)
    many = mechanism.many(stream(1), np.tile([[30.0, 0.0]], (4000, 1)))
    scale = mechanism.noise_scale * (math.sqrt(2) if mechanism.norm == "l1" else 1.0)
    assert abs(many[:, 0].mean() - 1.0) < 6 * scale / math.sqrt(4000) + 2 * mechanism.step


@pytest.mark.parametrize(("step", "steps"), [(0.3, 10), (0.0, 10), (0.5, 0), (0.5, 2.0), (0.5, 2**13)])
def test_unusable_grids_are_refused(step, steps):
    with pytest.raises(InputError):
        discrete.DiscreteGaussian(1.0, step, steps)
