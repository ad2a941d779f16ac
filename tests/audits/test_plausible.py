"""The check of score and schedule against the closed form of a Gaussian model."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from diffusion_privacy.audits.plausible import LIMIT, plausibility
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.given_model import GivenModel
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.types import SDE

CHAIN = Chain(VP(), 20)
VAR, DIM = 0.25, 64


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Score of x_0 = N(0, var I)."""

    sde: SDE

    def __call__(self, var, x, t):
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        return -x / (alpha**2 * var + sigma**2)


def found(var: float, records: np.ndarray):
    """The check on 256 images of N(0, VAR I), with the score of N(0, var I)."""
    drawn = np.sqrt(VAR) * np.random.default_rng(0).standard_normal((256, DIM))
    return plausibility(GivenModel(Partial(Gaussian(VP()), var), CHAIN), drawn, records, jax.random.key(1))


@pytest.mark.parametrize("spread", [1.0, 1.6])
def test_errors_are_those_of_the_posterior_mean_over_the_better_guess(spread) -> None:
    """VAR·σ²/(α² VAR + σ²) a pixel, over the smaller of σ²/α² and the larger variance. 16,384 pixels and noises: 1.6 %
    of deviation at each of five levels, and 8 % are five of those (once in 300,000)."""
    records = spread * np.sqrt(VAR) * np.random.default_rng(2).standard_normal((256, DIM))
    result = found(VAR, records)
    assert len(result.times) >= 4
    level = np.searchsorted(CHAIN.times, np.array(result.times) - 1e-9)
    alpha, sigma = CHAIN.alpha[level], CHAIN.sigma[level]
    error = VAR * sigma**2 / (alpha**2 * VAR + sigma**2)
    guess = np.minimum((sigma / alpha) ** 2, spread**2 * VAR)
    np.testing.assert_allclose(result.errors, error / guess, rtol=0.08)
    assert result.faults == ()


def test_a_score_of_another_spread_is_a_fault_and_its_error_is_named() -> None:
    """At a hundredth of the variance the image itself is taken for noise; at a hundredfold the noise is left in it.
    Errors of the linear estimate share·x/α in closed form, to five deviations as above."""
    records = np.sqrt(VAR) * np.random.default_rng(2).standard_normal((256, DIM))
    for var in (VAR / 100, 100 * VAR):
        result = found(var, records)
        level = np.searchsorted(CHAIN.times, np.array(result.times) - 1e-9)
        alpha, sigma = CHAIN.alpha[level], CHAIN.sigma[level]
        share = alpha**2 * var / (alpha**2 * var + sigma**2)
        error = (1 - share) ** 2 * VAR + share**2 * (sigma / alpha) ** 2
        np.testing.assert_allclose(result.errors, error / np.minimum((sigma / alpha) ** 2, VAR), rtol=0.08)
        assert max(result.errors) > LIMIT
        assert f"error is {max(result.errors):.2g} times that of a trivial guess" in result.faults[0]
