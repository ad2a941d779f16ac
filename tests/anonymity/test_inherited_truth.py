"""E6 where the leak is known: q_p <= e^ε q^(−p) + δ for a private mean and for randomised response, in closed form.

Both rates are probabilities over training and sampling. ε comes from the accountant, the rates from the laws of the
noise, so that a wrong calibration, a wrong event or a wrong inequality would be seen.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.anonymity import betting
from diffusion_privacy.anonymity.inherited import inherited, pooled
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.calibration import gaussian_multiplier, log_gaussian_delta
from diffusion_privacy.mechanisms.condition import RandomizedResponse
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD_AND_CONDITION

dp_accounting = pytest.importorskip("dp_accounting")

RUNS = 150

N, EPSILON, DELTA = 50, 1.0, 1e-3
SENSITIVITY = 1.0 / N
SIGMA = gaussian_multiplier(EPSILON, DELTA) * SENSITIVITY
"""The mean of N numbers in [0, 1] moves by 1/N when one of them is replaced."""
MEAN = 0.5
"""With the record, a 1; with a 0 in its place the mean is SENSITIVITY lower."""


def least(confidence: float) -> float:
    """Five standard deviations below the coverage that is promised: wrong once in 3·10⁶ where it is met exactly."""
    return confidence - 5 * math.sqrt(confidence * (1 - confidence) / RUNS)


def gaps(with_record: np.ndarray, without: np.ndarray, epsilon: float, delta: float) -> np.ndarray:
    """q_p − (e^ε q^(−p) + δ) of every event: above 0 refutes the claim."""
    return np.asarray(with_record) - (math.exp(epsilon) * np.asarray(without) + delta)


def half_lines(tau: float) -> tuple[np.ndarray, np.ndarray]:
    """P(draw > c) with the record and without, over a sweep of c; a draw is the noisy mean + N(0, τ²)."""
    spread = math.hypot(SIGMA, tau)
    c = np.linspace(MEAN - 8 * SIGMA, MEAN + 8 * SIGMA, 4001)
    return stats.norm.sf(c, MEAN, spread), stats.norm.sf(c, MEAN - SENSITIVITY, spread)


def test_the_claim_is_the_accountants():
    event = dp_accounting.GaussianDpEvent(SIGMA / SENSITIVITY)
    assert account([Spend(event, "replace-one")], DELTA).epsilon == pytest.approx(EPSILON, rel=1e-9)


def test_no_half_line_around_a_private_mean_exceeds_the_bound_and_the_worst_attains_it():
    """Drawn at the release itself (τ → 0) the best half-line is that of Neyman and Pearson: the gap is 0 to rounding.
    Sampling around the release is post-processing: as τ grows the bound gets loose, and is never wrong."""
    worst = gaps(*half_lines(1e-9), EPSILON, DELTA)
    assert np.max(worst) <= 1e-12
    assert np.max(worst) > -1e-3 * DELTA, "attained, to the grid of the sweep"
    slack = []
    for tau in (0.1 * SIGMA, 0.5 * SIGMA, SIGMA):
        gap = gaps(*half_lines(tau), EPSILON, DELTA)
        assert np.max(gap) < 0
        slack.append(-np.max(gap) / DELTA)
        # What is left is the δ of the noise of both: Gaussians add in quadrature.
        both = math.exp(log_gaussian_delta(math.hypot(SIGMA, tau) / SENSITIVITY, EPSILON))
        assert np.max(gap) == pytest.approx(both - DELTA, rel=1e-3)
    assert slack == sorted(slack)


def test_no_ball_around_the_record_exceeds_the_bound():
    """The mean of N vectors of the unit ball in three dimensions; "the record" is a draw within r of it. Both rates are
    non-central χ². Balls are no half-spaces: the bound holds with room."""
    sensitivity = 2.0 / N
    sigma = gaussian_multiplier(EPSILON, DELTA) * sensitivity
    record = np.array([1.0, 0.0, 0.0])
    tightest = -np.inf
    for tau, rest in itertools.product((0.05 * sigma, sigma), (-0.5, 0.0, 0.9)):
        spread = math.hypot(sigma, tau)
        centre = np.array([rest, 0.2, 0.0]) * (N - 1) / N
        means = centre + record / N, centre - record / N
        for place in (record, means[0] + 3 * sigma * record, means[0] + 9 * sigma * record):
            r = np.concatenate([np.geomspace(0.1, 8, 150) * spread, np.linalg.norm(place) + np.linspace(-2, 2, 101)])
            r = r[r > 0]
            rates = [stats.ncx2.cdf((r / spread) ** 2, 3, np.sum((place - m) ** 2) / spread**2) for m in means]
            gap = gaps(*rates, EPSILON, DELTA)
            assert np.max(gap) <= 1e-12
            tightest = max(tightest, float(np.max(gap)))
    assert tightest > -DELTA, "some ball comes nearer to the bound than the impossible event does"


def simulated(mean: float, tau: float, c: float, models: int, images: int, rng: np.random.Generator) -> np.ndarray:
    """Hits of each of so many independent trainings."""
    release = mean + SIGMA * rng.standard_normal((models, 1))
    return np.sum(release + tau * rng.standard_normal((models, images)) > c, axis=1)


def test_the_limit_from_models_without_the_record_covers_at_its_rate():
    """150 audits of 60 models of 50 draws, the worst half-line. Confidence 95 % each; below .86 once in 3·10⁶."""
    tau = 0.3 * SIGMA
    with_record, without = half_lines(tau)
    at = int(np.argmax(gaps(with_record, without, EPSILON, DELTA)))
    c = float(np.linspace(MEAN - 8 * SIGMA, MEAN + 8 * SIGMA, 4001)[at])
    rng = np.random.default_rng(0)
    covered, used = 0, 0
    for _ in range(RUNS):
        found = pooled(simulated(MEAN - SENSITIVITY, tau, c, 60, 50, rng), np.full(60, 50))
        bound = inherited(found, EPSILON, DELTA)
        covered += bound.upper >= with_record[at]
        used += bound.reliable
    assert covered / RUNS >= least(0.95)
    assert used / RUNS > 0.9, "and the limits say something"


def test_half_of_epsilon_is_refuted_by_the_private_mean():
    """Planted: the same noise with ε/2 claimed. The worst event shows it in closed form, and 30,000 simulated
    trainings with the record and as many without show it beyond the limits of both (each errs once in 1,000)."""
    with_record, without = half_lines(1e-9)
    gap = gaps(with_record, without, EPSILON / 2, DELTA)
    assert np.max(gap) > 10 * DELTA
    c = float(np.linspace(MEAN - 8 * SIGMA, MEAN + 8 * SIGMA, 4001)[int(np.argmax(gap))])
    rng, models = np.random.default_rng(1), 30_000
    found = pooled(simulated(MEAN - SENSITIVITY, 1e-9, c, models, 1, rng), np.ones(models), 0.999)
    seen = betting.lower_mean(simulated(MEAN, 1e-9, c, models, 1, rng).astype(float), 1e-3)
    assert seen > inherited(found, EPSILON / 2, DELTA).upper
    assert seen < inherited(found, EPSILON, DELTA).upper


# --- randomised response ----------------------------------------------------------------------------------------------


def atoms(epsilon: float, classes: int, n: int, private: bool) -> tuple[np.ndarray, np.ndarray]:
    """P(a draw is atom j) for the private record of identity 0, and with identity 1 in its place.

    The sampler picks one of n atoms and shows its identity. The record's goes through randomised response; those of the
    others, spread over 1 … K − 1, are public, or ``private`` and go through it as well.
    """
    keep = RandomizedResponse(epsilon, classes).keep_probability
    change = (1 - keep) / (classes - 1)
    channel = np.full((classes, classes), change) + (keep - change) * np.eye(classes)
    others = np.zeros(classes)
    for i in range(n - 1):
        others += channel[1 + i % (classes - 1)] if private else np.eye(classes)[1 + i % (classes - 1)]
    return (channel[0] + others) / n, (channel[1] + others) / n


@pytest.mark.parametrize(("epsilon", "classes", "n"), [(1.0, 2, 1), (0.5, 3, 5), (2.0, 5, 4)])
def test_every_event_of_an_atom_sampler_obeys_the_bound_and_the_records_own_atom_attains_it(epsilon, classes, n):
    """All 2^K sets of atoms. δ = 0; ε by the accountant from the mechanism's own event."""
    event = RandomizedResponse(epsilon, classes).event(REPLACE_RECORD_AND_CONDITION)
    claim = account([Spend(event, "replace-one")], 0.0).epsilon
    assert claim == pytest.approx(epsilon, rel=1e-9)
    for private in (False, True):
        here, there = atoms(epsilon, classes, n, private)
        assert here.sum() == pytest.approx(1)
        for chosen in itertools.product((0.0, 1.0), repeat=classes):
            rates = here @ np.array(chosen), there @ np.array(chosen)
            for one, other in (rates, rates[::-1]):
                assert gaps(one, other, claim, 0.0) <= 1e-12
        tight = gaps(here[0], there[0], claim, 0.0)
        if private and n > 1:
            assert tight < -1e-3, "others show the atom as well: the bound is loose"
        else:
            assert math.exp(claim) * there[0] < 1
            assert tight == pytest.approx(0, abs=1e-12)
            # Planted: half of ε.
            assert gaps(here[0], there[0], claim / 2, 0.0) > 0.05 * here[0]


def test_half_of_epsilon_is_refuted_by_the_mechanism_as_it_draws():
    """The mechanism's own draws as 4,000 trainings with identity 0 and as many with identity 1; one of two atoms is the
    record. Limits that err once in 1,000 each; ε itself is not refuted."""
    epsilon, classes, models = 1.5, 3, 4000
    response, rng = RandomizedResponse(epsilon, classes), np.random.default_rng(2)
    shows = [response.many(rng.bytes, np.full(models, identity)) == 0 for identity in (0, 1)]
    picked = rng.random((2, models)) < 0.5
    with_record, without = (s & p for s, p in zip(shows, picked, strict=True))
    found = pooled(without.astype(float), np.ones(models), 0.999)
    seen = betting.lower_mean(with_record.astype(float), 1e-3)
    assert seen > inherited(found, epsilon / 2, 0.0).upper
    assert seen < inherited(found, epsilon, 0.0).upper
    assert np.mean(with_record) == pytest.approx(response.keep_probability / 2, abs=5 * 0.5 / math.sqrt(models))
