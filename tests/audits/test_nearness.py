"""Balls by hand, their promise on fresh records, and the rank test's error under exchangeability."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.audits import nearness
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import rng


def pairwise(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - others[None], axis=2)


def test_balls_on_a_line() -> None:
    """Private at 0, held out at 1, 3, 7: the nearest of the others and the private one, halved."""
    held = np.array([[1.0], [3.0], [7.0]])
    found = nearness.balls(pairwise(held, np.zeros((1, 1)))[:, 0], pairwise(held, held), 0.25, 0.5, 0.95)
    assert found.radius == 0.5
    assert found.nearest == 1.0
    np.testing.assert_array_equal(found.control_radii, [0.5, 1.0, 2.0])
    assert (found.false_positive_rate.hits, found.false_positive_rate.n) == (0, 3)
    second = nearness.balls(pairwise(held, np.zeros((1, 1)))[:, 0], pairwise(held, held), 0.5, 1.0, 0.95)
    assert second.radius == 3.0
    np.testing.assert_array_equal(second.control_radii, [2.0, 3.0, 6.0])
    assert second.false_positive_rate.hits == 1


def test_a_fresh_record_falls_into_a_ball_as_seldom_as_promised() -> None:
    """k = 2 of m + 1 = 20: rate 1/10 exactly for share 1, over 4,000 sets of records; |z| < 4, false alarm 6e-5."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        record, fresh, *held = rng.normal(size=(21, 3))
        held = np.array(held)
        found = nearness.balls(np.linalg.norm(held - record, axis=1), np.zeros((19, 19)), 0.1, 1.0, 0.95)
        inside += np.linalg.norm(fresh - record) < found.radius
    # The k-th nearest itself is not inside, so that it is the rate of k of m + 1 places without its own: k/(m + 1).
    assert abs(inside - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)


@pytest.mark.parametrize("rate", [0.3, 30.0])
def test_the_rank_test_errs_as_seldom_as_it_says(rate) -> None:
    """Exchangeable counts, many ties and few: P(p <= 5 %) <= 5 %, over 4,000 draws; allowance 4 standard errors."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(rate * rng.gamma(1.0, size=(4000, 20)))
    p = np.array([nearness.control_test(int(row[0]), row[1:]).p_value for row in counts])
    assert np.mean(p <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4000)
    assert p.min() == 1 / 20


def test_a_clear_leak_has_the_smallest_p_value() -> None:
    assert nearness.control_test(7, np.zeros(19, int)).p_value == 0.05
    assert nearness.control_test(0, np.zeros(19, int)).p_value == 1


def test_distances_are_those_of_numpy() -> None:
    rng = np.random.default_rng(2)
    images, records = rng.normal(size=(7, 2, 3)), rng.normal(size=(4, 2, 3))
    gap = (images[:, None] - records[None]).reshape(7, 4, -1)
    for name, wanted in (("l2", np.linalg.norm(gap, axis=2)), ("max", np.abs(gap).max(axis=2))):
        np.testing.assert_allclose(nearness.distances(nearness.named(name), images, records), wanted, rtol=1e-5)


def test_bad_input_is_named() -> None:
    ones, square = np.ones(19), np.ones((19, 19))
    with pytest.raises(InputError, match="held_out: record 3 equals the private record"):
        nearness.balls(np.where(np.arange(19) == 3, 0.0, ones), square, 0.05, 0.5, 0.95)
    with pytest.raises(InputError, match="at least 99 negatives, got 19"):
        nearness.balls(ones, square, 0.01, 0.5, 0.95)
    with pytest.raises(InputError, match=r"detector\.share"):
        nearness.balls(ones, square, 0.05, 0.0, 0.95)
    with pytest.raises(InputError, match="distance: expected one of l2, max or a function, got 'cosine'"):
        nearness.named("cosine")
    for bad, named in (
        (lambda x, r: x, "one number an image"),
        (lambda x, r: jnp.full(len(x), jnp.nan), "finite numbers of 0 or more"),
        (lambda x, r: -jnp.ones(len(x)), "finite numbers of 0 or more"),
    ):
        with pytest.raises(InputError, match=named):
            nearness.distances(bad, np.zeros((2, 3)), np.zeros((1, 3)))


def test_the_share_of_copies_in_a_ball_is_counted() -> None:
    """White noise of .05 in 16 dimensions: the distance over .05 is chi; limits at 99.99 %, three balls."""
    from scipy import stats

    records = np.random.default_rng(5).normal(size=(3, 16)).astype(np.float32)
    radii = 0.05 * stats.chi.ppf([0.5, 0.9, 1e-9], 16)
    key = rng.stream(0, "test")
    found = nearness.copies_held(nearness.named("l2"), records, radii, key, copies=2000, level=0.9999)
    for rate, share in zip(found, (0.5, 0.9, 1e-9), strict=True):
        assert rate.lower <= share <= rate.upper
        assert (rate.n, rate.level) == (2000, 0.9999)
    assert [bool(nearness.doubts(rate)) for rate in found] == [True, False, True]
    assert "holds none of 2000" in nearness.doubts(found[2])[0]
    assert nearness.divisor(found[1]) == found[1].lower
    assert 0 < nearness.divisor(found[2]) < 1e-9
    # A record keeps its copies in other company.
    alone = nearness.copies_held(
        nearness.named("l2"), records[1:2], radii[1:2], key, copies=2000, level=0.9999, uids=np.array([1])
    )
    assert alone[0] == found[1]


def test_copies_of_images_are_perturbed_as_detectors_expect() -> None:
    image = np.zeros((1, 8, 8, 1), np.float32)
    key = rng.stream(0, "test")
    wide, narrow = (
        nearness.copies_held(nearness.named("max"), image, np.array([radius]), key, level=0.95)[0]
        for radius in (1.0, 1e-6)
    )
    assert (wide.hits, wide.n) == (512, 512)
    assert narrow.hits == 0
