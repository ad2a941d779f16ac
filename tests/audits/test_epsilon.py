"""The audit passes what is right, and rejects every planted fault.

Draws are fixed by seeds, so nothing here flickers. Were they fresh, a right mechanism would be rejected for exceeding
its claim with probability 1 % a bound (99 % confidence).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.audits import epsilon as audit
from diffusion_privacy.audits import worst_case
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import calibration, clipping, noise
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, LaplaceMechanism, many_at_scale
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, replace_person
from diffusion_privacy.training.sharding import data_mesh

RADIUS, DIM, DELTA = 3.0, 2, 1e-5


def measure(mechanism, tails, delta, trials, dim=DIM, seed=0):
    return worst_case.worst_case_bound(
        mechanism, jax.random.key(seed), dim=dim, clip_norm=RADIUS, delta=delta, trials=trials, tails=tails
    )


# One function object each, so that every noise scale below runs the same compiled program.
UNIT_GAUSSIAN = functools.partial(many_at_scale, GaussianMechanism(RADIUS, 1.0))
UNIT_LAPLACE = functools.partial(many_at_scale, LaplaceMechanism(RADIUS, 1.0))


def gaussian(sigma):
    return jax.tree_util.Partial(UNIT_GAUSSIAN, sigma)


def laplace(scale, radius=RADIUS):
    unit = UNIT_LAPLACE if radius == RADIUS else functools.partial(many_at_scale, LaplaceMechanism(radius, 1.0))
    return jax.tree_util.Partial(unit, scale)


def right_sigma(epsilon):
    return GaussianMechanism.calibrated(epsilon, DELTA, RADIUS, REPLACE_RECORD, 1000).sigma


def planned(separation, epsilon, delta, tails):
    return worst_case.planned_trials(separation, epsilon, delta, tails, most=64_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_gaussian_is_below_its_claim_and_shows_four_fifths_of_it(epsilon):
    # Millions of trials: the events that show ε of a Gaussian are rare (1e-4 at ε = 1, 3e-6 and less at ε = 4).
    sigma = right_sigma(epsilon)
    bound = measure(gaussian(sigma), "gaussian", DELTA, planned(2 * RADIUS / sigma, epsilon, DELTA, "gaussian"))
    assert 0.8 * epsilon <= bound.lower <= epsilon
    assert audit.judge_claim(bound, epsilon).passed


@pytest.mark.parametrize("epsilon", [pytest.param(0.5, marks=pytest.mark.slow), 1.0, 4.0])
def test_laplace_is_below_its_claim_and_shows_four_fifths_of_it(epsilon):
    scale = LaplaceMechanism.calibrated(epsilon, RADIUS, REPLACE_RECORD).scale
    bound = measure(laplace(scale), "laplace", 0.0, planned(epsilon, epsilon, 0.0, "laplace"))
    assert 0.8 * epsilon <= bound.lower <= epsilon
    assert audit.judge_claim(bound, epsilon).passed


def low_bit_scores(mechanism, seed):
    """The float32 likelihood ratio around the exact means ±C: its last bits are those of the output."""
    latents = np.array([[16 * RADIUS, 0.0], [-16 * RADIUS, 0.0]], np.float32)
    keys = jax.random.split(jax.random.key(seed), (2, 200_000))
    run = jax.jit(jax.vmap(jax.vmap(mechanism, (0, None))))
    x = np.asarray(run(keys, latents))[..., 0]
    scores = np.abs(x + np.float32(RADIUS)) - np.abs(x - np.float32(RADIUS))
    return scores[0], scores[1]


def test_lowest_bits_of_float_noise_leak_unless_rounded_off():
    # Mironov's attack. The plain sum of a float32 latent and float32 Laplace noise, claim ε = 1, is refuted
    # (how far depends on how the compiler contracts the sum).
    def plain(key, z):
        return clipping.clip(z, RADIUS, "l1") + 2 * RADIUS * noise.unit_laplace(key, z.shape[0])

    assert audit.epsilon_from_scores(low_bit_scores(plain, 0), low_bit_scores(plain, 1), 0.0).lower > 1.1
    rounded = LaplaceMechanism(RADIUS, 2 * RADIUS)
    assert audit.epsilon_from_scores(low_bit_scores(rounded, 0), low_bit_scores(rounded, 1), 0.0).lower <= 1.0


def test_discrete_gaussian_is_below_its_claim():
    mechanism = DiscreteGaussian.calibrated(4.0, 1e-3, RADIUS, REPLACE_RECORD, 100)
    draw = np.random.default_rng(0).bytes
    scores = [
        (
            mechanism.many(draw, np.tile([[16 * RADIUS, 0.0]], (20_000, 1)))[:, 0],
            mechanism.many(draw, np.tile([[-16 * RADIUS, 0.0]], (20_000, 1)))[:, 0],
        )
        for _ in range(2)
    ]
    # zCDP overstates ε here by about a sixth, so the audit shows two thirds of it.
    verdict = audit.judge_claim(audit.epsilon_from_scores(scores[0], scores[1], 1e-3), 4.0, tightness=0.6)
    assert verdict.passed, verdict.reason


# Planted faults. Each must be rejected.


@pytest.mark.slow
def test_sensitivity_c_instead_of_2c_is_rejected():
    assert not audit.judge_claim(measure(gaussian(right_sigma(1.0) / 2), "gaussian", DELTA, 300_000), 1.0).passed
    assert not audit.judge_claim(measure(laplace(RADIUS / 1.0), "laplace", 0.0, 50_000), 1.0).passed


@pytest.mark.slow
@pytest.mark.parametrize("tails", ["gaussian", "laplace"])
def test_two_thirds_and_three_halves_of_the_noise_are_rejected(tails):
    for factor, word in ((2 / 3, "more than"), (3 / 2, "under")):
        if tails == "gaussian":
            bound = measure(gaussian(factor * right_sigma(1.0)), tails, DELTA, 10**6 if factor < 1 else 50_000)
        else:
            bound = measure(laplace(factor * 2 * RADIUS), tails, 0.0, 200_000)
        verdict = audit.judge_claim(bound, 1.0)
        assert not verdict.passed
        assert word in verdict.reason


@pytest.mark.slow
def test_delta_of_one_is_rejected():
    sigma = math.sqrt(2 * math.log(1.25 / 1.0)) * 2 * RADIUS / 1.0
    verdict = audit.judge_claim(measure(gaussian(sigma), "gaussian", DELTA, 300_000), 1.0)
    assert not verdict.passed
    with pytest.raises(InputError, match="delta"):
        calibration.gaussian_multiplier(1.0, 1.0)


@pytest.mark.parametrize("norm", ["fro", pytest.param(1, marks=pytest.mark.slow)])
def test_norm_over_the_batch_is_rejected(norm):
    sigma = right_sigma(1.0)

    def faulty(keys, z):
        z = z * jnp.minimum(1.0, RADIUS / jnp.linalg.norm(z, ord=norm))
        return z + sigma * jax.vmap(lambda k: noise.unit_gaussian(k, z.shape[1]))(keys)

    verdict = audit.judge_claim(measure(faulty, "gaussian", DELTA, 2**16), 1.0)
    assert not verdict.passed
    assert "under" in verdict.reason


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_each_split_with_the_whole_epsilon_is_rejected():
    scale = LaplaceMechanism.calibrated(1.0, RADIUS, REPLACE_RECORD).scale

    def faulty_laplace(keys, z):
        keys = jax.vmap(jax.random.split)(keys)
        parts = [laplace(scale)(keys[:, i], part) for i, part in enumerate(jnp.split(z, 2, axis=1))]
        return jnp.concatenate(parts, axis=1)

    bound = measure(faulty_laplace, "laplace", 0.0, 50_000, dim=4)
    assert bound.direction != "axis"
    assert not audit.judge_claim(bound, 1.0).passed


@pytest.mark.slow
def test_each_split_with_the_whole_epsilon_is_rejected_for_the_gaussian():
    def faulty_gaussian(keys, z):
        keys = jax.vmap(lambda k: jax.random.split(k, 4))(keys)
        parts = [gaussian(right_sigma(1.0))(keys[:, i], part) for i, part in enumerate(jnp.split(z, 4, axis=1))]
        return jnp.concatenate(parts, axis=1)

    assert not audit.judge_claim(measure(faulty_gaussian, "gaussian", DELTA, 300_000, dim=4), 1.0).passed


@pytest.mark.parametrize(
    "epsilon", [pytest.param(0.5, marks=pytest.mark.slow), 1.0, pytest.param(6.0, marks=pytest.mark.slow)]
)
def test_noise_scale_tied_to_epsilon_is_rejected(epsilon):
    sensitivity = min(epsilon / 2, 4.0)
    bound = measure(laplace(sensitivity / epsilon), "laplace", 0.0, 50_000)
    assert not audit.judge_claim(bound, epsilon).passed


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.5, 6.0])
def test_noise_scale_tied_to_epsilon_is_rejected_with_a_ball_that_follows_it(epsilon):
    # As in the reference, where the "sensitivity" is the clip radius too.
    sensitivity = min(epsilon / 2, 4.0)
    bound = worst_case.worst_case_bound(
        laplace(sensitivity / epsilon, sensitivity),
        jax.random.key(0),
        dim=DIM,
        clip_norm=sensitivity,
        delta=0.0,
        trials=2**17,
        tails="laplace",
    )
    assert bound.lower > epsilon


@pytest.mark.slow
def test_person_level_noise_covers_a_person():
    # Three records of one person all at ±C, the adversary sums them: the record-level noise leaks, the other does not.
    def of(mechanism):
        def person(keys, z):
            keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
            return sum(jax.vmap(mechanism)(keys[:, i], z) for i in range(3))

        return person

    claim = 2.0
    for relation, passed in ((REPLACE_RECORD, False), (replace_person(3), True)):
        mechanism = GaussianMechanism.calibrated(claim, DELTA, RADIUS, relation, 1000)
        bound = measure(of(mechanism), "gaussian", DELTA, 200_000)
        assert audit.judge_claim(bound, claim, tightness=0.6).passed is passed


# The statistics themselves.


def test_clopper_pearson_covers():
    # Exact coverage by summation over the binomial law: never below the stated one.
    for p in (0.003, 0.1, 0.7):
        k = np.arange(201)
        lower, upper = audit.clopper_pearson(k, 200, 0.005)
        mass = stats.binom.pmf(k, 200, p)
        assert mass[lower > p].sum() <= 0.005
        assert mass[upper < p].sum() <= 0.005
        assert (mass[lower > p].sum(), mass[upper < p].sum()) != (0, 0)


@pytest.mark.slow
def test_the_bound_does_not_depend_on_the_number_of_devices():
    def found(devices):
        return worst_case.worst_case_bound(
            laplace(2 * RADIUS), jax.random.key(0), dim=DIM, clip_norm=RADIUS, delta=0.0, trials=100_000,
            tails="laplace", mesh=data_mesh(jax.devices()[:devices]),
        )  # fmt: skip

    # Seven chunks on one device and on three, which do not divide them.
    assert found(1) == found(3)
    assert found(1).trials == 2 * 7 * 2**14


def test_limits_cover_the_mean_of_two_unequal_rates():
    # Hits counted under both latents, n draws each with rates p and r: the law of the sum by convolution.
    n, k = 200, np.arange(401)
    lower, upper = audit.clopper_pearson(k, 2 * n, 0.005)
    for p, r in ((0.0, 0.02), (0.003, 0.1), (0.3, 0.9), (0.0, 1.0)):
        mass = np.convolve(stats.binom.pmf(np.arange(n + 1), n, p), stats.binom.pmf(np.arange(n + 1), n, r))
        mean = (p + r) / 2
        assert mass[lower > mean].sum() <= 0.005
        assert mass[upper < mean].sum() <= 0.005


def test_planned_trials_are_enough_and_rise_where_events_are_rare():
    def shown(separation, epsilon, delta, tails):
        n = 2 * planned(separation, epsilon, delta, tails)
        error = 0.01 / (4 if tails == "gaussian" else 2)
        return float(np.max(worst_case.expected_bounds(separation, n, delta, tails, error)[1]))

    needed = {}
    for epsilon in (0.5, 1.0, 2.0, 4.0, 8.0):
        separation = 2 * RADIUS / right_sigma(epsilon)
        needed[epsilon] = planned(separation, epsilon, DELTA, "gaussian")
        assert 0.8 * epsilon <= shown(separation, epsilon, DELTA, "gaussian") <= epsilon
        assert 0.8 * epsilon <= shown(epsilon, epsilon, 0.0, "laplace") <= epsilon
    assert needed[0.5] > needed[2.0] < needed[8.0] < 64_000_000
    assert planned(2 * RADIUS / right_sigma(16.0), 16.0, DELTA, "gaussian") == 64_000_000


@pytest.mark.slow
def test_bound_fails_no_more_often_than_stated():
    # 400 audits of randomised response with ε = 1 exactly; at most 1 % may exceed. 13 of 400 has probability 2e-4.
    rng = np.random.default_rng(0)
    p = math.e / (1 + math.e)
    above = 0
    for _ in range(400):
        halves = [((rng.random(2000) < p).astype(float), (rng.random(2000) >= p).astype(float)) for _ in range(2)]
        above += audit.epsilon_from_scores(*halves, 0.0).lower > 1.0
    assert above <= 12


def test_no_difference_gives_zero():
    rng = np.random.default_rng(0)
    halves = [(rng.standard_normal(5000), rng.standard_normal(5000)) for _ in range(2)]
    assert audit.epsilon_from_scores(*halves, 1e-5).lower == 0.0


def test_perfect_separation_reaches_the_ceiling_in_either_direction():
    one, two = np.ones(1000), np.zeros(1000)
    for pair in ((one, two), (two, one)):
        bound = audit.epsilon_from_scores(pair, pair, 0.0)
        assert bound.lower == pytest.approx(bound.ceiling) if pair[0] is one else bound.lower >= 0.0
    assert audit.epsilon_from_scores((one, two), (one, two), 0.0).ceiling == pytest.approx(
        math.log(1000 / 5.3), rel=0.01
    )


def test_an_event_of_probability_delta_shows_nothing():
    """The record is given away with probability δ: (0, δ)-private, attained. Without δ it would show ε = 3."""
    rng = np.random.default_rng(0)
    halves = [((rng.random(2000) < 0.1).astype(float), np.zeros(2000)) for _ in range(2)]
    assert audit.epsilon_from_scores(*halves, 0.1).lower == 0.0
    assert audit.epsilon_from_scores(*halves, 0.0).lower > 3.0
    np.testing.assert_allclose(audit.log_ratio(0.3, 0.05, 0.1), math.log(4.0))
    assert audit.log_ratio(0.1, 0.05, 0.1) == -math.inf


def test_the_half_that_judges_has_no_part_in_the_choice():
    """The threshold that is best on the first half is passed by nothing of the second, whatever that shows besides."""
    one, two = np.ones(500), np.zeros(500)
    assert audit.epsilon_from_scores((one, two), (0.5 * one, two), 0.0).lower == 0.0
    assert audit.epsilon_from_scores((0.5 * one, two), (one, two), 0.0).lower > 4.0


def test_scores_at_the_threshold_are_hits_and_false_alarms_alike():
    """Randomised response with 900 true answers of 1,000: both limits by Clopper and Pearson's Beta quantiles."""
    right, wrong = np.repeat([1.0, 0.0], [900, 100]), np.repeat([1.0, 0.0], [100, 900])
    found = audit.epsilon_from_scores((right, wrong), (right, wrong), 0.0)
    assert found.hit == pytest.approx(stats.beta.ppf(0.005, 900, 101))
    assert found.false_alarm == pytest.approx(stats.beta.ppf(0.995, 101, 900))
    assert found.lower == pytest.approx(math.log(found.hit / found.false_alarm))


def test_two_events_share_the_error_and_are_judged_on_draws_of_their_own(monkeypatch):
    real, keys = worst_case._counter, []

    def spied(*args):
        def counted(run, key, *rest):
            keys.append(np.asarray(jax.random.key_data(key)).tolist())
            return real(*args)(run, key, *rest)

        return counted

    monkeypatch.setattr(worst_case, "_counter", spied)
    bound = measure(gaussian(right_sigma(1.0)), "gaussian", DELTA, 1000)
    assert len(keys) == 2
    assert keys[0] != keys[1]
    # All of 2,000 hit and none is a false alarm, each limit at a quarter of 1 %.
    hit = 0.0025 ** (1 / 2000)
    assert bound.trials == 2000
    assert bound.ceiling == pytest.approx(math.log((hit - DELTA) / (1 - hit)), rel=1e-6)


def test_unusable_input_is_refused():
    good = (np.ones(10), np.zeros(10))
    with pytest.raises(InputError, match="NaN"):
        audit.epsilon_from_scores(good, (np.full(10, np.nan), np.zeros(10)), 0.0)
    with pytest.raises(InputError, match="equally many"):
        audit.epsilon_from_scores(good, (np.ones(3), np.zeros(4)), 0.0)
    with pytest.raises(InputError, match="δ"):
        audit.epsilon_from_scores(good, good, 1.0)
    with pytest.raises(InputError, match="at most"):
        audit.judge_claim(audit.epsilon_from_scores(good, good, 0.0), 10.0)
    with pytest.raises(InputError, match="tails"):
        measure(gaussian(1.0), "cauchy", 0.0, 1000)
    with pytest.raises(InputError, match="trials"):
        measure(gaussian(1.0), "gaussian", 0.0, 10)
    with pytest.raises(InputError, match="NaN"):
        measure(gaussian(math.nan), "gaussian", 0.0, 2**16)
