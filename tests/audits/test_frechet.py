"""The Fréchet gap: known for Gaussians, covered by its interval, and a p-value of the right law."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.audits.fidelity import frechet_distance
from diffusion_privacy.audits.frechet import _Fit, frechet_gap
from diffusion_privacy.errors import InputError


def test_it_is_the_difference_of_two_distances():
    rng = np.random.default_rng(0)
    generated, training, held_out = (rng.normal(i, 1 + i, size=(60, 3)) for i in range(3))
    found = frechet_gap(generated, training, held_out, splits=1, resamples=20)
    assert found.train == pytest.approx(frechet_distance(generated, training))
    assert found.held_out == pytest.approx(frechet_distance(generated, held_out))
    assert found.value == pytest.approx(found.held_out - found.train)
    assert (found.size, found.p_value) == (60, pytest.approx(1 / 21))


def test_the_fast_form_is_the_distance():
    """Also where there are fewer rows than features: the covariance is singular then."""
    rng = np.random.default_rng(3)
    for rows, dim in ((50, 4), (9, 16)):
        one, two = rng.normal(1, 2, (rows, dim)), rng.normal(size=(rows, dim))
        assert _Fit.of(one).distance(two) == pytest.approx(frechet_distance(one, two), rel=1e-6)


def test_a_copied_training_set_shows_and_the_law_does_not():
    rng = np.random.default_rng(1)
    training, held_out, fresh = (rng.normal(size=(n, 4)) for n in (300, 80, 500))
    copied = training[rng.integers(0, 80, 500)] + 0.01 * fresh
    memoriser = frechet_gap(copied, training[:80], held_out)
    assert memoriser.lower > 0
    assert memoriser.p_value < 0.02
    honest = frechet_gap(fresh, training, held_out)
    assert honest.lower < 0 < honest.upper
    assert honest.size == 80


@pytest.mark.slow
def test_interval_and_p_value_keep_their_level():
    """100 models of the law. 95 % intervals of the true gap 0 cover at least 87 times (binomial 1e-3; bootstrap);
    p-values at or below .1 come at most 22 times (binomial 1e-4)."""
    rng = np.random.default_rng(2)
    covered = small = 0
    for seed in range(100):
        sets = [rng.normal(size=(n, 2)) for n in (100, 60, 40)]
        found = frechet_gap(*sets, splits=2, resamples=39, seed=seed)
        covered += found.lower <= 0 <= found.upper
        small += found.p_value <= 0.1
    assert covered >= stats.binom.ppf(1e-3, 100, 0.95)
    assert small <= stats.binom.isf(1e-4, 100, 0.1)


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        (((5, 2), (9, 2), (9, 2)), {}, "8 or more"),
        (((9, 2), (9, 3), (9, 2)), {}, "8 or more"),
        (((9, 2), (9, 2), (9, 2)), {"resamples": 5}, "resamples >= 20"),
    ],
)
def test_bad_input_is_refused(shapes, settings, message):
    with pytest.raises(InputError, match=message):
        frechet_gap(*(np.zeros(shape) for shape in shapes), **settings)
