"""Every distance against a definition written out, a closed form or numbers worked out by hand."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from scipy import linalg, stats

from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.audits import fidelity
from diffusion_privacy.errors import InputError


def images(seed, n=3, h=16, w=14, c=2):
    return np.random.default_rng(seed).uniform(-1, 1, (n, h, w, c))


def test_psnr_by_hand():
    black = np.full((3, 4, 4, 1), -1.0)
    other = black + np.array([2.0, 0.2, 0.0])[:, None, None, None]
    np.testing.assert_allclose(fidelity.psnr(black, other), [0, 20, np.inf])
    np.testing.assert_allclose(fidelity.psnr(127.5 * black, 127.5 * other, 255.0), [0, 20, np.inf])


def ssim_written_out(one, two, data_range, size, sigma):
    """Equation by equation, pixel by pixel, from 0 upwards."""
    grid = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    weight = np.outer(grid, grid) / np.outer(grid, grid).sum()
    values = []
    for i in range(one.shape[0] - size + 1):
        for j in range(one.shape[1] - size + 1):
            a, b = one[i : i + size, j : j + size], two[i : i + size, j : j + size]
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
            cov = (weight * (a - ma) * (b - mb)).sum()
            c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


def test_ssim_is_its_definition():
    one = images(0)
    two = np.clip(0.7 * one + 0.3 * images(1), -1, 1)
    want = [
        np.mean([ssim_written_out(a[..., c] + 1, b[..., c] + 1, 2.0, 11, 1.5) for c in range(2)])
        for a, b in zip(one, two, strict=True)
    ]
    np.testing.assert_allclose(fidelity.ssim(one, two), want, rtol=1e-10)
    np.testing.assert_allclose(fidelity.ssim(127.5 * (one + 1), 127.5 * (two + 1), 255.0, lowest=0), want, rtol=1e-9)


def test_ssim_identities():
    one, two = images(2, h=8, w=8), images(3, h=8, w=8)
    ssim = fidelity.ssim
    np.testing.assert_allclose(ssim(one, one, window=7), 1, rtol=1e-12)
    np.testing.assert_allclose(ssim(one, two, window=7), ssim(two, one, window=7), rtol=1e-12)
    # Constant images: only brightness differs, (2ab + c1)/(a² + b² + c1).
    flat = np.ones((1, 8, 8, 1))
    np.testing.assert_allclose(ssim(flat, 0 * flat, window=7), (2 * 2 * 1 + 4e-4) / (4 + 1 + 4e-4), rtol=1e-12)
    # The mirror image around its own mean has covariance −variance.
    mirrored = -images(4)
    assert np.all(ssim(images(4), mirrored) < 0)


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
def test_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    one, two = images(5), images(6)
    for a, b, got in zip(one, two, fidelity.ssim(one, two), strict=True):
        want = structural_similarity(
            a + 1,
            b + 1,
            data_range=2.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert got == pytest.approx(want, rel=1e-9)


def covariance(seed, d, rank=None):
    a = np.random.default_rng(seed).normal(size=(d, rank or d))
    return a @ a.T


def test_frechet_closed_forms():
    zero, one = np.zeros(4), np.ones(4)
    # Commuting covariances: Σ (√λ − √μ)².
    spread = np.array([1.0, 4.0, 0.0, 2.25])
    other = np.array([4.0, 1.0, 9.0, 2.25])
    got = fidelity.frechet_gaussian(zero, np.diag(spread), one, np.diag(other))
    assert got == pytest.approx(4 + 1 + 1 + 9 + 0, rel=1e-12)
    # In general, against the square root of the matrix product.
    cov = covariance(0, 4), covariance(1, 4)
    want = 4 + np.trace(cov[0] + cov[1]) - 2 * np.trace(linalg.sqrtm(cov[0] @ cov[1]).real)
    assert fidelity.frechet_gaussian(zero, cov[0], one, cov[1]) == pytest.approx(want, rel=1e-9)


def test_frechet_is_stable_when_singular():
    """Rank 3 in 200 dimensions, scales 1e6 apart: the distance of a set to itself is 0 to rounding, never NaN."""
    cov = covariance(2, 200, 3) * 1e6
    assert fidelity.frechet_gaussian(np.zeros(200), cov, np.zeros(200), cov) < 1e-9 * np.trace(cov)
    x = np.random.default_rng(3).normal(size=(5, 50))
    assert fidelity.frechet_distance(x, x) < 1e-10
    assert fidelity.frechet_distance(x, x + 2.0) == pytest.approx(50 * 4.0, rel=1e-9)
    assert fidelity.frechet_distance(x[:, :1], 3 * x[:, :1]) == pytest.approx(
        4 * (x[:, 0].mean() ** 2 + x[:, 0].var(ddof=1)), rel=1e-9
    )


def test_frechet_of_samples_nears_that_of_their_laws():
    """N = 20,000, D = 3: one fixed draw; the error is of the order of tr Σ/√N, 5 % of the distance."""
    rng = np.random.default_rng(4)
    cov = covariance(5, 3) / 3, covariance(6, 3) / 3
    sets = [rng.multivariate_normal(np.full(3, m), c, 20_000) for m, c in zip((0, 1), cov, strict=True)]
    want = fidelity.frechet_gaussian(np.zeros(3), cov[0], np.ones(3), cov[1])
    assert fidelity.frechet_distance(*sets) == pytest.approx(want, rel=0.05)


def test_precision_and_recall_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    # With k = 1 the balls are [-1, 1], [0, 2], [1, 3], [2, 4] and [3, 17].
    released = np.array([[-0.5], [-1.5], [16.0], [18.0]])
    # And of the released: [-1.5, .5], [-2.5, -.5], [14, 18], [16, 20].
    result = fidelity.precision_recall(real, released, k=1)
    assert (result.precision.hits, result.precision.n) == (2, 4)
    assert (result.recall.hits, result.recall.n) == (1, 5)
    assert result.precision.lower < 0.5 < result.precision.upper
    wider = fidelity.precision_recall(real, released, k=1, level=0.99)
    assert wider.precision == rate(2, 4, 0.99)
    assert wider.recall == rate(1, 5, 0.99)


def test_precision_sees_noise_and_recall_sees_collapse():
    rng = np.random.default_rng(7)
    real, more = rng.normal(size=(300, 3)), rng.normal(size=(250, 3))
    same = fidelity.precision_recall(real, more)
    assert same.precision.value > 0.9
    assert same.recall.value > 0.9
    collapsed = fidelity.precision_recall(real, real[:1] + 0.01 * more)
    assert collapsed.precision.value > 0.9
    assert collapsed.recall.value < 0.1
    scattered = fidelity.precision_recall(real, 20 * more)
    assert scattered.precision.value < 0.1
    chunked = fidelity.precision_recall(real, more, chunk=17)
    assert (chunked.precision.hits, chunked.recall.hits) == (same.precision.hits, same.recall.hits)


def test_copies_are_inside_with_zero_radius():
    x = np.repeat(np.arange(3.0)[:, None], 4, axis=0)
    result = fidelity.precision_recall(x, x)
    assert result.precision.hits == result.recall.hits == 12


def test_marginals_by_hand():
    real = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    released = np.array([[0, 0], [0, 0], [1, 1], [1, 1]])
    np.testing.assert_allclose(fidelity.one_way(real, released, (2, 2)), [0, 0])
    np.testing.assert_allclose(fidelity.two_way(real, released, (2, 2)), [[0, 0.5], [0.5, 0]])
    np.testing.assert_allclose(fidelity.one_way(real, released[:1], (2, 3)), [0.5, 0.5])
    assert fidelity.one_way(np.zeros((3, 1), int), np.ones((5, 1), int), (2,)) == 1
    rng = np.random.default_rng(8)
    one, two = rng.integers(0, 4, (200, 3)), rng.integers(0, 4, (100, 3))
    joint = fidelity.two_way(one, two, (4, 4, 4))
    single = fidelity.one_way(one, two, (4, 4, 4))
    np.testing.assert_array_equal(np.diag(joint), single)
    assert np.all(joint >= np.maximum(single[:, None], single) - 1e-12)


@pytest.mark.parametrize("sizes", [(2, 5), (5, 2), (1, 3)])
def test_pairs_of_columns_of_unequal_sizes_have_a_cell_each(sizes):
    """Numbered by the wrong column's size, cells would fall together, and a loss with them."""
    rng = np.random.default_rng(12)
    one, two = (np.column_stack([rng.integers(0, size, n) for size in sizes]) for n in (60, 40))
    shares = [np.histogram2d(*x.T, bins=[np.arange(size + 1) - 0.5 for size in sizes])[0] / len(x) for x in (one, two)]
    found = fidelity.two_way(one, two, sizes)
    np.testing.assert_allclose(found[[0, 1], [1, 0]], 0.5 * np.abs(shares[0] - shares[1]).sum())


def test_bins():
    assert fidelity.bins(np.array([-5.0, 0.0, 0.5, 1.0, 9.0]), [0, 1]).tolist() == [0, 1, 1, 2, 2]
    with pytest.raises(InputError, match="value 1 is not finite"):
        fidelity.bins(np.array([0.0, np.nan]), [0.5])
    with pytest.raises(InputError, match="increasing"):
        fidelity.bins(np.zeros(2), [1, 1])


def test_correlation_difference_by_hand():
    x = np.random.default_rng(9).normal(size=(500, 2))
    real = np.column_stack([x[:, 0], x[:, 0] + x[:, 1], np.full(500, 1e6 + 0.1)])
    released = np.column_stack([x[:, 0], -x[:, 0] - x[:, 1], x[:, 1]])
    result = fidelity.correlation_difference(real, released)
    want = 2 * stats.pearsonr(real[:, 0], real[:, 1]).statistic
    assert (result.pairs, result.undefined) == (1, 2)
    assert result.mean == pytest.approx(want)
    assert result.largest == pytest.approx(want)
    assert math.isnan(fidelity.correlation_difference(real[:, 2:] + [[0, 0]], real[:, :2]).mean)


def test_the_largest_difference_of_correlations_is_not_their_mean():
    rng = np.random.default_rng(10)
    real, released = (rng.normal(size=(n, 3)) @ rng.normal(size=(3, 3)) for n in (50, 70))
    gaps = np.abs(np.corrcoef(real.T) - np.corrcoef(released.T))[np.triu_indices(3, 1)]
    result = fidelity.correlation_difference(real, released)
    assert (result.mean, result.largest) == (pytest.approx(gaps.mean()), pytest.approx(gaps.max()))
    assert result.largest > 1.1 * result.mean


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fidelity.psnr(images(0), images(0)[:2]), "psnr: expected two non-empty arrays that fit"),
        (lambda: fidelity.psnr(images(0), images(0) * np.nan), "row 0 of the second array is not finite"),
        (lambda: fidelity.psnr(images(0), images(0), 0.0), "psnr.data_range"),
        (lambda: fidelity.ssim(images(0, h=8), images(0, h=8)), "within the 8x14 image"),
        (lambda: fidelity.ssim(images(0), images(0), window=4), "odd number"),
        (lambda: fidelity.frechet_distance(np.zeros((1, 2)), np.zeros((5, 2))), "at least 2 rows"),
        (lambda: fidelity.frechet_gaussian(np.zeros(2), np.eye(3), np.zeros(2), np.eye(3)), r"means \[D\]"),
        (lambda: fidelity.precision_recall(np.zeros((3, 2)), np.zeros((9, 2))), "precision_recall.k"),
        (lambda: fidelity.one_way(np.full((2, 1), 3), np.zeros((2, 1), int), (3,)), "outside 0 … 2"),
        (lambda: fidelity.one_way(np.zeros((2, 1)), np.zeros((2, 1), int), (3,)), "integer cells"),
        (lambda: fidelity.correlation_difference(np.zeros((5, 1)), np.zeros((5, 1))), "2 columns"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
