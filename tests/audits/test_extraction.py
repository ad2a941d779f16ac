"""Copies, ratios and cliques against sets worked out by hand and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffusion_privacy.audits.extraction import across_of, calibrated_copy_ratio, cliques, copies, copy_ratios
from diffusion_privacy.errors import InputError


def test_ratio_worked_by_hand():
    """Records at 0, 1, 3, 7 on a line; images at 0.1 (0.1; 0.9 away) and 5 (2; 2; 4)."""
    training = np.array([[0.0], [1.0], [3.0], [7.0]])
    ratio, distance, nearest = copy_ratios(np.array([[0.1], [5.0]]), training, neighbours_used=2)
    np.testing.assert_allclose(ratio, [0.1 / 0.5, 1.0])
    np.testing.assert_allclose(distance, [0.1, 2.0])
    np.testing.assert_array_equal(nearest, [0, 2])
    # d <= delta alpha mean: 0.1 <= 1 * 0.5 * 0.5, but 2 > 1 * 0.5 * 2.
    found = copies(np.array([[0.1], [5.0], [0.2], [7.0]]), training, neighbours_used=2)
    np.testing.assert_allclose(found.ratio, [0.4, 2.0, 0.8, 0.0], atol=1e-12)
    assert (found.copies.hits, found.copies.n) == (3, 4)
    np.testing.assert_array_equal(found.extracted, [0, 3])
    stricter = copies(np.array([[0.1], [5.0], [0.2]]), training, neighbours_used=2, delta=0.5)
    assert stricter.copies.hits == 1
    # A quarter and three quarters away: exactly α times the mean of both, and a copy.
    edge = copies(np.array([[0.25]]), training, neighbours_used=2)
    assert (edge.ratio[0], edge.copies.hits) == (1.0, 1)
    same, _, _ = copy_ratios(training, training, neighbours_used=2, exclude_self=True)
    np.testing.assert_allclose(same, [1 / 2, 1 / 1.5, 2 / 2.5, 4 / 5])


def test_the_worst_tile_decides():
    """Two images alike but for one tile: the root mean square over the image hides it, over the tile it does not."""
    training = np.zeros((2, 8, 8, 1))
    training[1] = 1.0
    image = np.zeros((1, 8, 8, 1))
    image[0, :2, :2] = 0.8
    _, whole, _ = copy_ratios(image, training, neighbours_used=2)
    _, worst, _ = copy_ratios(image, training, neighbours_used=2, across=4)
    np.testing.assert_allclose([whole[0], worst[0]], [0.2, 0.8])
    assert [across_of(s) for s in ((8, 8, 1), (28, 28, 1), (30, 28, 1), (7,))] == [4, 4, 1, 1]


def test_a_memoriser_is_extracted_and_the_law_is_not():
    """Copies with noise of a tenth of the usual distance, against fresh draws of the same law."""
    rng = np.random.default_rng(0)
    training, held_out, fresh = (rng.normal(size=(n, 12)) for n in (120, 150, 400))
    copied = training[np.arange(400) % 60] + 0.05 * rng.normal(size=(400, 12))
    blind, sharp = copies(fresh, training), copies(copied, training)
    # The decision has no calibrated error: 12 dimensions are few, and 2 % of fresh draws are close enough.
    assert blind.copies.hits < 20
    assert sharp.copies.hits == 400
    np.testing.assert_array_equal(sharp.extracted, np.arange(60))
    assert calibrated_copy_ratio(copied, training, held_out).share.value == 1
    # Fresh draws fall below at the requested rate: Beta-binomial, k = 1 of 150; more than 25 of 400 has p < 1e-4.
    share = calibrated_copy_ratio(fresh, training, held_out).share
    assert share.hits <= 25
    # One held-out record that is a training record brings the threshold to 0: not "no copy", but nothing.
    held_out[5] = training[5]
    none = calibrated_copy_ratio(copied, training, held_out)
    assert (none.share, none.threshold) == (None, 0)


def test_a_copy_of_a_record_that_occurs_many_times_is_a_copy():
    """What occurs most often is learnt by heart first. All 50 nearest are equal to the image: 0 <= α · 0."""
    rng = np.random.default_rng(1)
    training, held_out = np.concatenate([np.zeros((60, 3)), rng.normal(size=(60, 3))]), rng.normal(size=(150, 3))
    found = copies(np.array([[0.0, 0.0, 0.0], [4.0, 4.0, 4.0]]), training)
    assert (found.ratio[0], found.copies.hits) == (0.0, 1)
    np.testing.assert_array_equal(found.extracted, [0])
    assert calibrated_copy_ratio(np.zeros((5, 3)), training, held_out).share.value == 1


def brute_cliques(points: np.ndarray, distance: float, size: int) -> bool:
    near = np.abs(points[:, None] - points[None]).max(axis=2) <= distance
    return any(
        all(near[i, j] for i, j in itertools.combinations(group, 2))
        for group in itertools.combinations(range(len(points)), size)
    )


def test_cliques_worked_by_hand():
    """Points of a line: 0, .1, .2 | 1, 1.1 | 5 … : at distance .2 one clique of 3, at .1 none of 3 (a chain)."""
    points = np.array([[0.0], [0.1], [0.2], [1.0], [1.1], [5.0]])
    assert cliques(points, 0.2 + 1e-9, size=3).groups == ((0, 1, 2),)
    chain = cliques(points, 0.1 + 1e-9, size=3)
    assert (chain.groups, chain.undecided) == ((), 0)
    assert len(cliques(points, 0.1 + 1e-9, size=2).groups) == 2
    repeated = cliques(np.repeat(points, 12, axis=0), 0.0, size=10, chunk=5)
    assert repeated.groups == tuple(tuple(range(12 * i, 12 * i + 12)) for i in range(6))


def test_cliques_exist_where_brute_force_finds_one():
    """40 random graphs of 14 points in the plane (largest coordinate as distance, by one tile a coordinate)."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(40):
        points = rng.uniform(size=(14, 2))
        images = np.zeros((14, 2, 2, 1))
        images[:, 0, 0, 0], images[:, 1, 1, 0] = points.T
        result = cliques(images, 0.25, size=4, across=2)
        want = brute_cliques(points, 0.25, 4)
        assert bool(result.groups) == want
        assert result.undecided == 0
        for group in result.groups:
            pairs = np.abs(points[list(group)][:, None] - points[list(group)][None])
            assert pairs.max() <= 0.25 + 1e-12
            assert len(group) >= 4
        assert len({i for group in result.groups for i in group}) == sum(map(len, result.groups))
        found += want
    assert 5 < found < 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: copies(x, x, delta=0.0), "delta > 0"),
        (lambda x: copies(x, x), "k between 1 and 4"),
        (lambda x: copies(x * np.nan, x), "extraction: images: row 0"),
        (lambda x: calibrated_copy_ratio(x, x, x, neighbours_used=2), "at least 99 negatives"),
        (lambda x: cliques(x, -1.0), "distance >= 0"),
        (lambda x: cliques(x, 1.0, size=1), "size >= 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(np.arange(8.0).reshape(4, 2))
    assert "\n" not in str(caught.value)
