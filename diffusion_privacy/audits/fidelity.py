"""How much of the originals a release keeps: pixels, features, tables.

These numbers compare private originals with their release. They are for those who hold the originals: publishing them
is a release of its own, outside the guarantee. Everything is computed on the host in float64.

| function | unit | better |
| --- | --- | --- |
| `psnr` | decibel | larger |
| `ssim` | none, at most 1 | larger |
| `frechet_distance` | squared feature units | smaller |
| `precision_recall` | share | larger |
| `one_way`, `two_way` | total variation, 0 … 1 | smaller |
| `correlation_difference` | correlation, 0 … 2 | smaller |
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from diffusion_privacy.anonymity.intervals import Rate, rate
from diffusion_privacy.errors import InputError

LUMINANCE, CONTRAST = 0.01, 0.03
"""K1 and K2 of Wang et al. 2004, which keep the two quotients of SSIM finite."""


def _pair(one: np.ndarray, two: np.ndarray, field: str, ndim: int, rows: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64; `InputError` unless finite, of ``ndim`` axes, and alike (``rows``: in the first axis too)."""
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    same = one.shape == two.shape if rows else one.shape[1:] == two.shape[1:]
    if one.ndim != ndim or two.ndim != ndim or not same or 0 in one.shape + two.shape:
        raise InputError(f"{field}: expected two non-empty arrays that fit, {ndim} axes, got {one.shape}, {two.shape}")
    for which, values in (("first", one), ("second", two)):
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if bad.size:
            raise InputError(f"{field}: row {bad[0]} of the {which} array is not finite; expected numbers")
    return one, two


def psnr(reference: np.ndarray, image: np.ndarray, data_range: float = 2.0) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, 10 log₁₀(range²/mean squared error) in decibels; larger is closer.

    Args:
      reference, image: [N, H, W, C].
      data_range: largest minus smallest value that a pixel may have; 2 for [-1, 1].

    Returns:
      float64 [N]; inf for equal images.

    Raises:
      InputError: shapes that differ, values that are not finite, or a range <= 0.
    """
    one, two = _pair(reference, image, "psnr", 4, rows=True)
    _check_range(data_range, "psnr")
    error = np.mean((one - two) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10.0 * (2.0 * math.log10(data_range) - np.log10(error))


def _check_range(data_range: float, field: str) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"{field}.data_range: expected a finite number > 0, got {data_range!r}")


def _window(size: int, length: int, sigma: float) -> np.ndarray:
    """Matrix [length − size + 1, length] of a normalised Gaussian of ``size`` taps slid over ``length`` pixels."""
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    matrix = np.zeros((length - size + 1, length))
    for row in range(len(matrix)):
        matrix[row, row : row + size] = taps / taps.sum()
    return matrix


def ssim(
    reference: np.ndarray,
    image: np.ndarray,
    data_range: float = 2.0,
    *,
    lowest: float = -1.0,
    window: int = 11,
    sigma: float = 1.5,
) -> np.ndarray:
    """Structural similarity of each image (Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13); 1 for equal images.

    Means, variances and covariance under a Gaussian window that lies wholly inside the image, averaged over its places
    and over channels. By definition scikit-image's ``gaussian_weights=True, use_sample_covariance=False`` on
    ``image − lowest``: SSIM compares brightness from black upwards. No unit; at most 1, possibly negative; larger is
    closer.

    Args:
      reference, image: [N, H, W, C].
      data_range: as in `psnr`.
      lowest: value of black.
      window: odd number of taps, at most min(H, W): 11 in the paper, 7 for 8x8 images.
      sigma: standard deviation of the window in pixels.

    Returns:
      float64 [N].

    Raises:
      InputError: shapes that differ, values that are not finite, an even window or one larger than the image.
    """
    one, two = _pair(reference, image, "ssim", 4, rows=True)
    _check_range(data_range, "ssim")
    height, width = one.shape[1:3]
    if window < 1 or window % 2 == 0 or window > min(height, width) or not sigma > 0:
        raise InputError(
            f"ssim.window: expected an odd number within the {height}x{width} image and sigma > 0, "
            f"got {window} and {sigma}"
        )
    down, across = _window(window, height, sigma), _window(window, width, sigma)

    def smooth(x: np.ndarray) -> np.ndarray:
        return np.einsum("ih,nhwc,jw->nijc", down, x, across, optimize=True)

    one, two = one - lowest, two - lowest
    mean_1, mean_2 = smooth(one), smooth(two)
    # Around the mean of each image: the variance is a small difference of large squares otherwise.
    level_1, level_2 = (x.mean(axis=(1, 2), keepdims=True) for x in (one, two))
    rest_1, rest_2 = one - level_1, two - level_2
    shift_1, shift_2 = mean_1 - level_1, mean_2 - level_2
    variance = smooth(rest_1**2) - shift_1**2 + smooth(rest_2**2) - shift_2**2
    covariance = smooth(rest_1 * rest_2) - shift_1 * shift_2
    c1, c2 = (LUMINANCE * data_range) ** 2, (CONTRAST * data_range) ** 2
    luminance = (2.0 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    return np.mean(luminance * (2.0 * covariance + c2) / (variance + c2), axis=(1, 2, 3))


def _root(covariance: np.ndarray) -> np.ndarray:
    """A with A Aᵀ = covariance; negative eigenvalues, which only rounding makes, count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def frechet_gaussian(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½).

    Dowson & Landau 1982. The last trace is the nuclear norm of A₁ᵀA₂ with A Aᵀ = Σ: the square root of a matrix that
    may be singular is never taken.

    Args:
      mean_1, mean_2: [D].
      cov_1, cov_2: symmetric, positive semi-definite [D, D].

    Returns:
      A number >= 0 in squared feature units; smaller is closer.

    Raises:
      InputError: shapes that do not fit, or values that are not finite.
    """
    means, covs = (np.asarray(mean_1, float), np.asarray(mean_2, float)), (np.asarray(cov_1), np.asarray(cov_2))
    d = means[0].size
    if means[0].shape != means[1].shape or means[0].ndim != 1 or any(c.shape != (d, d) for c in covs):
        raise InputError(f"frechet: expected means [D] and covariances [D, D], got {[c.shape for c in covs]}, D = {d}")
    if not all(np.isfinite(x).all() for x in (*means, *covs)):
        raise InputError("frechet: a mean or a covariance is not finite; expected numbers")
    product = _root(covs[0]).T @ _root(covs[1])
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    value = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0]) + np.trace(covs[1]) - 2.0 * overlap
    return float(max(value, 0.0))


def frechet_distance(real: np.ndarray, released: np.ndarray) -> float:
    """Fréchet distance between two sets of features fitted by Gaussians (Heusel et al., arXiv 1706.08500).

    The features decide what it measures; here they come from a classifier trained in this project, so the numbers do
    not compare with those of Inception features. Biased upwards by finite sets, about (1/N + 1/M)·tr Σ and more when
    D is of the order of N: compare with the distance between two halves of the originals.

    Args:
      real: [N, D], N >= 2.
      released: [M, D], M >= 2.

    Returns:
      A number >= 0 in squared feature units; smaller is closer.

    Raises:
      InputError: shapes that do not fit, fewer than 2 rows, or values that are not finite.
    """
    one, two = _pair(real, released, "frechet", 2, rows=False)
    if min(len(one), len(two)) < 2:
        raise InputError(f"frechet: expected at least 2 rows on each side, got {len(one)} and {len(two)}")
    fits = [(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (one, two)]
    return frechet_gaussian(*fits[0], *fits[1])


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Shares with exact intervals, each conditional on the set that spans the balls. Larger is better.

    Attributes:
      precision: released rows inside the originals' manifold (are they plausible?).
      recall: originals inside the released rows' manifold (is everything there?).
      k: neighbour that gives each ball its radius.
    """

    precision: Rate
    recall: Rate
    k: int


def precision_recall(
    real: np.ndarray, released: np.ndarray, k: int = 3, level: float = 0.95, *, chunk: int = 1024
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991): k-nearest-neighbour balls as manifold.

    Every row of a set is the centre of a ball that reaches its k-th nearest other row; a row of the other set is
    inside when any ball holds it (borders included).

    Args:
      real, released: features [N, D] and [M, D], more than k rows each.
      k: 1 or more; 3 in the paper.
      level: of the intervals.
      chunk: rows held against each other at once.

    Raises:
      InputError: shapes that do not fit, k < 1, k or fewer rows, or values that are not finite.
    """
    one, two = _pair(real, released, "precision_recall", 2, rows=False)
    if k < 1 or min(len(one), len(two)) <= k:
        raise InputError(f"precision_recall.k: expected 1 or more and below both numbers of rows, got {k}")
    inside = [
        np.concatenate([_covered(points[s : s + chunk], centres, radius, chunk) for s in range(0, len(points), chunk)])
        for points, centres, radius in ((two, one, _radius(one, k, chunk)), (one, two, _radius(two, k, chunk)))
    ]
    rates = [rate(int(hit.sum()), hit.size, level) for hit in inside]
    return PrecisionRecall(rates[0], rates[1], k)


def _square_distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    # Differences, not ‖x‖² − 2x·y + ‖y‖²: rows may be copies of each other.
    return cdist(one, two, "sqeuclidean")


def _radius(x: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row, [N]."""
    radius = np.empty(len(x))
    for start in range(0, len(x), chunk):
        rows = slice(start, min(start + chunk, len(x)))
        nearest = np.full((rows.stop - start, k + 1), np.inf)
        for other in range(0, len(x), chunk):
            both = np.concatenate([nearest, _square_distances(x[rows], x[other : other + chunk])], axis=1)
            nearest = np.partition(both, k, axis=1)[:, : k + 1]
        # The row itself, at distance 0, is among the k + 1 smallest.
        radius[rows] = nearest.max(axis=1)
    return radius


def _covered(points: np.ndarray, centres: np.ndarray, radius: np.ndarray, chunk: int) -> np.ndarray:
    inside = np.zeros(len(points), bool)
    for start in range(0, len(centres), chunk):
        near = slice(start, start + chunk)
        inside |= np.any(_square_distances(points, centres[near]) <= radius[near], axis=1)
    return inside


def bins(values: np.ndarray, edges: Sequence[float] | np.ndarray) -> np.ndarray:
    """Numbers [N] to cells 0 … len(edges), int64: cell j holds edges[j−1] <= v < edges[j]; both ends are open.

    Raises:
      InputError: edges that do not increase, or a value that is not finite.
    """
    cuts, numbers = np.asarray(edges, np.float64), np.asarray(values, np.float64)
    if cuts.ndim != 1 or not np.isfinite(cuts).all() or np.any(np.diff(cuts) <= 0):
        raise InputError(f"bins.edges: expected increasing finite numbers, got {list(cuts)}")
    if not np.isfinite(numbers).all():
        raise InputError(f"bins: value {int(np.flatnonzero(~np.isfinite(numbers))[0])} is not finite; expected numbers")
    return np.searchsorted(cuts, numbers, side="right").astype(np.int64)


def _codes(real: np.ndarray, released: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    real, released = np.asarray(real), np.asarray(released)
    for name, codes in (("real", real), ("released", released)):
        if codes.ndim != 2 or codes.shape[1] != len(sizes) or codes.dtype.kind not in "iu" or len(codes) == 0:
            raise InputError(f"marginals.{name}: expected integer cells [N, {len(sizes)}], got {codes.shape}")
        for column, size in enumerate(sizes):
            if codes[:, column].min() < 0 or codes[:, column].max() >= size:
                raise InputError(f"marginals.{name}: column {column} has a cell outside 0 … {size - 1}")
    return real.astype(np.int64), released.astype(np.int64)


def _total_variation(one: np.ndarray, two: np.ndarray, cells: int) -> float:
    """½ Σ |p − q| between two samples of cell numbers."""
    p, q = (np.bincount(x, minlength=cells) / len(x) for x in (one, two))
    return float(0.5 * np.abs(p - q).sum())


def one_way(real: np.ndarray, released: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Total variation distance of each column's distribution, float64 [K] in [0, 1]; smaller is closer.

    Two samples of one distribution with c cells differ by up to about √((c − 1)(1/N + 1/M)/2π): that is no loss.

    Args:
      real, released: cells [N, K] and [M, K], integers; numbers go through `bins` first.
      sizes: number of cells of each column.

    Raises:
      InputError: shapes that do not fit or a cell out of range.
    """
    one, two = _codes(real, released, sizes)
    return np.array([_total_variation(one[:, j], two[:, j], size) for j, size in enumerate(sizes)])


def two_way(real: np.ndarray, released: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Total variation distance of each pair of columns, symmetric float64 [K, K] in [0, 1], `one_way` on its diagonal.

    Never below the larger of the two one-way distances. Arguments and errors as there.
    """
    one, two = _codes(real, released, sizes)
    distance = np.diag([_total_variation(one[:, j], two[:, j], size) for j, size in enumerate(sizes)])
    for i, j in itertools.combinations(range(len(sizes)), 2):
        p, q = (x[:, i] * sizes[j] + x[:, j] for x in (one, two))
        distance[i, j] = distance[j, i] = _total_variation(p, q, sizes[i] * sizes[j])
    return distance


@dataclasses.dataclass(frozen=True)
class CorrelationDifference:
    """Absolute differences of Pearson correlations over pairs of columns; 0 … 2, smaller is closer.

    Attributes:
      mean, largest: over the pairs for which both correlations exist; NaN when there is none.
      pairs: number of those pairs.
      undefined: pairs left out because a column is constant on one side.
    """

    mean: float
    largest: float
    pairs: int
    undefined: int


def correlation_difference(real: np.ndarray, released: np.ndarray) -> CorrelationDifference:
    """How far the correlations of numeric columns [N, K] moved; K >= 2.

    Raises:
      InputError: shapes that do not fit, fewer than 2 rows or columns, or values that are not finite.
    """
    one, two = _pair(real, released, "correlation", 2, rows=False)
    if one.shape[1] < 2 or min(len(one), len(two)) < 2:
        raise InputError(f"correlation: expected at least 2 rows and 2 columns, got {one.shape} and {two.shape}")
    upper = np.triu_indices(one.shape[1], 1)
    gaps = np.abs(_correlations(one) - _correlations(two))[upper]
    known = gaps[np.isfinite(gaps)]
    mean, largest = (float(known.mean()), float(known.max())) if known.size else (math.nan, math.nan)
    return CorrelationDifference(mean, largest, int(known.size), int(gaps.size - known.size))


def _correlations(x: np.ndarray) -> np.ndarray:
    """Pearson correlations [K, K]; NaN for constant columns."""
    rest = x - x.mean(axis=0)
    size = np.sqrt(np.sum(rest**2, axis=0))
    # Rounding leaves a constant column a length of this order.
    size = np.where(size <= 1e-14 * np.sqrt(np.sum(x**2, axis=0)), np.nan, size)
    return (rest / size).T @ (rest / size)
