"""Train/test gap of the Fréchet distance: are generated images closer to the training set than to unseen records?

gap = F(generated, held-out) − F(generated, training) with F of `fidelity.frechet_distance` and equally many records on
both sides, so that the bias of F, which depends on their number, cancels. A model that has not memorised is equally far
from both: gap 0. Features come from a network that was trained in this project, so numbers do not
compare with those of Inception features.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import special

from diffusion_privacy.audits import fidelity
from diffusion_privacy.errors import InputError


@dataclasses.dataclass(frozen=True)
class FrechetGap:
    """Larger means closer to the training set than to unseen records: memorising.

    Attributes:
      value: F(generated, held-out) − F(generated, training), squared feature units; mean over the splits.
      lower, upper: normal interval with the bootstrap's standard error (all three sets resampled).
      level: two-sided confidence level of the interval.
      train, held_out: the two distances, means over the splits.
      p_value: share of random relabelings of training and held-out records whose gap is as large: exact when the model
        saw neither or both, so below 0.05 with probability at most 0.05 then.
      size: records on each side.
    """

    value: float
    lower: float
    upper: float
    level: float
    train: float
    held_out: float
    p_value: float
    size: int


def frechet_gap(
    generated: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    *,
    splits: int = 4,
    resamples: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> FrechetGap:
    """The gap with its interval.

    Args:
      generated: features ``[G, D]``.
      training: features of training records ``[N, D]``.
      held_out: features of records of the same law that the model never saw, ``[M, D]``; no person in both.
      splits: random choices of min(N, M) records from the larger set, averaged.
      resamples: of the bootstrap and of the relabelling, 20 or more.
      level: two-sided confidence level.
      seed: of both.

    Raises:
      InputError: fewer than 8 records on a side, shapes that do not fit, values that are not finite, settings out of
        range.
    """
    sets = [np.asarray(x, np.float64) for x in (generated, training, held_out)]
    if any(x.ndim != 2 or x.shape[1] != sets[0].shape[-1] or len(x) < 8 for x in sets):
        raise InputError(f"frechet_gap: expected features [8 or more, D], got {[x.shape for x in sets]}")
    if splits < 1 or resamples < 20 or not 0.0 < level < 1.0:
        raise InputError(
            f"frechet_gap: expected splits >= 1, resamples >= 20 and a level inside (0, 1), "
            f"got {splits}, {resamples} and {level}"
        )
    rng = np.random.default_rng(seed)
    size = min(len(sets[1]), len(sets[2]))
    pairs = np.array([_distances(sets[0], *(_choose(rng, x, size) for x in sets[1:])) for _ in range(splits)])
    train, other = (float(x) for x in pairs.mean(axis=0))
    again = []
    for _ in range(resamples):
        fit = _Fit.of(_resample(rng, sets[0]))
        again.append(_gap(fit, *(_resample(rng, _choose(rng, x, size)) for x in sets[1:])))
    reach = float(special.ndtri(0.5 * (1 + level)) * np.std(again, ddof=1))
    fit, pool = _Fit.of(sets[0]), np.concatenate(sets[1:])
    seen = _gap(fit, *(_choose(rng, x, size) for x in sets[1:]))
    as_large = 0
    for _ in range(resamples):
        order = rng.permutation(len(pool))
        as_large += _gap(fit, pool[order[:size]], pool[order[size : 2 * size]]) >= seen
    value = other - train
    p_value = (1 + as_large) / (1 + resamples)
    return FrechetGap(value, value - reach, value + reach, level, train, other, p_value, size)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A Gaussian fitted to features: mean [D], covariance [D, D] and A with A Aᵀ = covariance."""

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray

    @staticmethod
    def of(x: np.ndarray) -> _Fit:
        covariance = np.atleast_2d(np.cov(x, rowvar=False))
        values, vectors = np.linalg.eigh(covariance)
        return _Fit(x.mean(axis=0), covariance, vectors * np.sqrt(np.maximum(values, 0.0)))

    def distance(self, x: np.ndarray) -> float:
        """As `fidelity.frechet_distance` to about 1e-7 of the traces, several times faster: no root of x's covariance.

        The eigenvalues of Aᵀ Σ A are those of the product under the root.
        """
        mean, covariance = x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(self.root.T @ covariance @ self.root), 0.0)).sum()
        shift = float(np.sum((mean - self.mean) ** 2))
        return shift + float(np.trace(covariance) + np.trace(self.covariance) - 2.0 * overlap)


def _choose(rng: np.random.Generator, x: np.ndarray, size: int) -> np.ndarray:
    return x if len(x) == size else x[rng.choice(len(x), size, replace=False)]


def _resample(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    return x[rng.integers(0, len(x), len(x))]


def _distances(generated: np.ndarray, train: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    return fidelity.frechet_distance(generated, train), fidelity.frechet_distance(generated, other)


def _gap(generated: _Fit, train: np.ndarray, other: np.ndarray) -> float:
    return generated.distance(other) - generated.distance(train)
