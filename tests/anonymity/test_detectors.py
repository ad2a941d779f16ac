"""Scores and margins against geometry, the pair's logic, and what calibration promises and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_privacy.anonymity.detectors import (
    CalibratedDetector,
    ball,
    calibrate,
    calibrate_pair,
    copy_ratio,
    distance,
    evaluate_score,
    measure,
    pair_margin,
)
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, Detector


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def first(x: Array) -> Array:
    return x[:, 0]


def second(x: Array) -> Array:
    return x[:, 1]


def test_distances_and_balls() -> None:
    x, center = normal(0, 20, 3, 4, 1), normal(1, 3, 4, 1)
    flat = (x - center).reshape(20, -1)
    np.testing.assert_allclose(distance(center)(x), -np.linalg.norm(flat, axis=1), rtol=1e-6)
    np.testing.assert_allclose(distance(center, "max")(x), -np.abs(flat).max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(ball(center, 5.0)(x)) > 0, np.linalg.norm(flat, axis=1) < 5.0)
    assert ball(center, 1e-3)(jnp.asarray(center)[None])[0] > 0


def test_ball_probability_is_the_noncentral_chi_square() -> None:
    """x ~ N(m, I) in 6-d: P(‖x − c‖ < r), 20,000 draws within five standard errors (false alarm 6e-7)."""
    x = normal(2, 20_000, 6) + 0.5
    truth = stats.ncx2.cdf(2.0**2, df=6, nc=6 * 0.25)
    fired = np.mean(np.asarray(ball(np.zeros(6, np.float32), 2.0)(x)) > 0)
    assert fired == pytest.approx(truth, abs=5 * np.sqrt(truth * (1 - truth) / 20_000))


def test_copy_ratio_is_worked_out_by_brute_force() -> None:
    x, center, references = normal(3, 15, 4, 4, 1), normal(4, 4, 4, 1), normal(5, 30, 4, 4, 1)
    score = np.asarray(copy_ratio(center, references, k=7)(jnp.asarray(x)))
    all_distances = np.sqrt(((x[:, None] - references[None]) ** 2).sum(axis=(2, 3, 4)))
    nearest = np.sort(all_distances, axis=1)[:, :7].mean(axis=1)
    np.testing.assert_allclose(score, -np.sqrt(((x - center) ** 2).sum(axis=(1, 2, 3))) / nearest, rtol=1e-4)


def test_pair_fires_only_if_both_do() -> None:
    x = normal(8, 5000, 2)
    margin = np.asarray(pair_margin(first, second, (0.3, -0.2), (2.0, 0.5))(jnp.asarray(x)))
    np.testing.assert_array_equal(margin > 0, (x[:, 0] > 0.3) & (x[:, 1] > -0.2))
    np.testing.assert_allclose(margin, np.minimum((x[:, 0] - 0.3) / 2.0, (x[:, 1] + 0.2) / 0.5), rtol=1e-5, atol=1e-6)


def test_scores_come_in_chunks_and_a_ragged_end() -> None:
    x = normal(9, 23, 4)
    np.testing.assert_allclose(evaluate_score(first, x, "c", batch_size=5), x[:, 0])
    np.testing.assert_allclose(evaluate_score(first, jnp.asarray(x), "c", batch_size=100), x[:, 0])


def test_calibrated_distance_holds_its_rate_and_reports_both() -> None:
    """Fires on k − 1 of the calibration set, on fresh negatives at the interval's rate, and knows its power.

    Fresh rate within the 99.9 % interval widened by five standard errors: false alarm below 2e-3 (fixed seed).
    """
    center = np.zeros(4, np.float32)
    found = calibrate("near", distance(center), normal(10, 1999, 4), 0.3 * normal(11, 400, 4), 0.02, level=0.999)
    assert found.false_positive_rate.hits == 39
    assert found.false_positive_rate.value <= 0.02 <= found.false_positive_rate.upper
    radius = -found.thresholds["near"]
    truth = stats.chi2.cdf(radius**2, 4)
    assert found.false_positive_rate.lower < truth < found.false_positive_rate.upper
    power = stats.chi2.cdf((radius / 0.3) ** 2, 4)
    assert found.true_positive_rate.lower < power < found.true_positive_rate.upper
    assert found.usable
    assert found.reasons == ()
    np.testing.assert_array_equal(found(jnp.array([[0.0] * 4, [5.0] * 4])) > 0, [True, False])
    assert json.loads(json.dumps(found.summary()))["thresholds"] == {"near": found.thresholds["near"]}


def pair(alpha: float, seed: int = 12, n: int = 3000, **floors: tuple[float, float]) -> CalibratedDetector:
    """Two independent standard normal scores; positives are 5 (spread 1) and 8 (spread 2)."""
    positives = normal(seed + 1, 400, 2) * [1, 2] + [5, 8]
    return calibrate_pair(first, second, normal(seed, n, 2) + 3, positives.astype(np.float32), alpha, **floors)


def test_pair_is_calibrated_jointly_along_its_line() -> None:
    found = pair(0.05, floors=(-50.0, -50.0))
    f, i = found.thresholds["fingerprint"], found.thresholds["identity"]
    # Both the same number of spreads below the positives, within the sampling error of 200 positives.
    assert (f - 5) / 1 == pytest.approx((i - 8) / 2, abs=0.4)
    truth = stats.norm.sf(f - 3) * stats.norm.sf(i - 3)
    assert found.false_positive_rate.lower < truth < found.false_positive_rate.upper
    assert found.false_positive_rate.hits == 150 - 1
    assert truth < min(stats.norm.sf(f - 3), stats.norm.sf(i - 3)) * 0.99, "neither part alone has the pair's rate"
    power = stats.norm.sf(f - 5) * stats.norm.sf((i - 8) / 2)
    assert found.true_positive_rate.n == 200
    assert found.true_positive_rate.lower < power < found.true_positive_rate.upper
    # The margin is what was calibrated: on the very negatives it fires as often as stated.
    assert int((found(jnp.asarray(normal(12, 3000, 2) + 3)) > 0).sum()) == 149


@pytest.mark.slow
def test_pair_holds_its_rate_over_calibrations() -> None:
    """Mean true rate over 200 calibrations, n = 99, α = .1: at most α plus five standard errors (false alarm 3e-7).

    Planted fault: the same rate given to each part by itself leaves the pair far too strict, so it is told apart.
    """
    joint, apart = [], []
    for seed in range(200):
        x = normal(1000 + seed, 99, 2)
        z = np.sort(x.min(axis=1))[-10]
        each = np.sort(x, axis=0)[-10]
        joint.append(stats.norm.sf(z) ** 2)
        apart.append(stats.norm.sf(each[0]) * stats.norm.sf(each[1]))
    spread = 5 * stats.beta.std(10, 90) / np.sqrt(200)
    assert np.mean(joint) == pytest.approx(0.1, abs=spread)
    assert np.mean(apart) < 0.02
    found = [pair(0.1, seed=3 * s, n=99, floors=(-50.0, -50.0)).thresholds.values() for s in range(20)]
    rates = [stats.norm.sf(f - 3) * stats.norm.sf(i - 3) for f, i in found]
    assert np.mean(rates) < 0.1 + 5 * stats.beta.std(10, 90) / np.sqrt(20)


def test_floors_keep_a_part_from_sinking() -> None:
    """Negatives that never show the fingerprint: without a floor C_id would pass them all, and the report says so."""
    negatives = normal(20, 999, 2) + np.array([-20, 0], np.float32)
    positives = (normal(21, 60, 2) + 8).astype(np.float32)
    loose = calibrate_pair(first, second, negatives, positives, 0.01, floors=(-99.0, -99.0))
    assert loose.thresholds["identity"] < -10
    assert loose.parts["identity"][0] == 1.0
    assert any("identity alone lets 100 %" in reason for reason in loose.reasons)
    firm = calibrate_pair(first, second, negatives, positives, 0.01)
    assert firm.thresholds == {"fingerprint": 0.0, "identity": 0.0}
    assert firm.false_positive_rate.hits == 0
    assert firm.false_positive_rate.upper < loose.false_positive_rate.upper
    assert firm.usable


def test_true_positive_rate_is_measured_on_positives_that_set_nothing() -> None:
    """Planted difference: every second positive, which sets the standardisation, is perfect; the measured ones fail."""
    positives = np.where(np.arange(80)[:, None] % 2 == 0, normal(22, 80, 2) + 9, normal(23, 80, 2) - 9)
    positives[1] = 9.0
    found = calibrate_pair(first, second, normal(24, 999, 2), positives.astype(np.float32), 0.01)
    assert found.true_positive_rate.hits == 1
    assert found.true_positive_rate.n == 40
    assert any("miss more than half" in reason for reason in found.reasons)


def test_fixed_detector_is_measured_and_a_blind_one_flagged() -> None:
    found = measure("half", first, normal(30, 400, 1), normal(31, 50, 1))
    assert found.requested_rate is None
    assert not found.usable
    assert any("not shown to fire more often" in reason for reason in found.reasons)


def constant(value: float) -> Detector:
    return lambda x: jnp.full(x.shape[0], value)


def test_detectors_that_say_nothing_are_refused() -> None:
    negatives, positives = normal(32, 99, 2), normal(33, 40, 2)
    with pytest.raises(InputError, match=r"^all: fires on all 99 negatives; expected"):
        measure("all", constant(1.0), negatives, positives)
    with pytest.raises(InputError, match=r"^never: fires on none of 40 regenerated positives; expected"):
        measure("never", constant(-1.0), negatives, positives)
    with pytest.raises(InputError, match=r"^flat: fires on none of 40"):
        calibrate("flat", constant(0.7), negatives, positives, 0.05)
    with pytest.raises(InputError, match=r"^identity: expected a score that varies"):
        calibrate_pair(first, constant(0.0), negatives, positives, 0.05)
    blind = r"^pair: fires on none of 20 .*, got fingerprint alone on 0 %, identity alone on 100 %$"
    with pytest.raises(InputError, match=blind):
        calibrate_pair(first, second, negatives, positives, 0.05, floors=(50.0, -50.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: evaluate_score(lambda x: x[:, 0] / 0, normal(1, 5, 2), "C_f: negatives"),
            "C_f: negatives: expected finite",
        ),
        (lambda: evaluate_score(lambda x: x, normal(1, 5, 2), "C_f"), "C_f: expected one score per image"),
        (lambda: evaluate_score(first, normal(1, 0, 2), "C_f"), "C_f: expected at least one image"),
        (
            lambda: calibrate("d", first, normal(1, 98, 2), normal(2, 9, 2), 0.01),
            "false_positive_rate: .* 99 negatives",
        ),
        (
            lambda: calibrate_pair(first, second, normal(1, 99, 2), normal(2, 7, 2), 0.1),
            "positives: expected at least 8",
        ),
        (lambda: pair_margin(first, second, (0.0, 0.0), (1.0, 0.0)), "scales: expected positive"),
        (lambda: distance(np.zeros(3), "l1"), "norm: expected one of l2, max"),
        (lambda: ball(np.zeros(3), 0.0), "radius: expected a positive"),
        (lambda: copy_ratio(np.zeros(3), np.zeros((4, 3)), k=5), "k: expected between 1 and the 4"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)


def test_margins_are_jittable_and_independent_of_the_batch() -> None:
    found = pair(0.05)
    x = jnp.asarray(normal(40, 64, 2) * 4 + 4)
    np.testing.assert_array_equal(jax.jit(found.margin)(x)[5:6] > 0, found(x[5:6]) > 0)
