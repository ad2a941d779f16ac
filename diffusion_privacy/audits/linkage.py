"""Linkage: who is behind a released record? Match its latent against the latents of known people.

The attacker holds the public flow, the released records and a gallery of originals, encodes both, and ranks the gallery
by similarity. A release that protects its records leaves the true original at a random rank: it is among the first k of
M with probability k/M. For a standard normal latent z and its copy z + σ·N(0, I) the mean cosine is 1/√(1 + σ²) for
large D, and the attack is strong when √D/√(1 + σ²) exceeds a few units.

Not linked means that this attack found nothing; the guarantee itself comes from the mechanism.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from diffusion_privacy.anonymity.intervals import Rate, rate
from diffusion_privacy.errors import InputError

METRICS = ("cosine", "l2")
_TIE = 1e-12
"""Scores closer than this, on their own scale, are equal: the same latent twice may differ by rounding only."""


@dataclasses.dataclass(frozen=True)
class LinkageResult:
    """Ranks of the true originals and how often they are near the top. Larger rates mean less privacy.

    Attributes:
      metric: ``"cosine"`` or ``"l2"``.
      gallery: M, number of candidates.
      ranks: int64 [N], rank of each true original among the M, 1 is first; ties are broken at random.
      rates: for each k the share of true originals among the first k, with its exact interval over released records.
      chance: for each k what guessing gives, k/M.
      similarity: mean score of the true pairs: cosine in [-1, 1] (larger means closer), or the L2 distance
        in latent units (smaller means closer).
      similarity_stderr: its standard error; NaN for one record.
    """

    metric: str
    gallery: int
    ranks: np.ndarray
    rates: Mapping[int, Rate]
    chance: Mapping[int, float]
    similarity: float
    similarity_stderr: float

    def p_value(self, k: int) -> float:
        """`p_by_guessing` of the hits among the first k; InputError for a k that was not measured."""
        if k not in self.rates:
            raise InputError(f"linkage: k is {k}; expected one of {', '.join(map(str, self.rates))}")
        return p_by_guessing(self.rates[k].hits, self.rates[k].n, self.chance[k])


def p_by_guessing(hits: int, n: int, chance: float) -> float:
    """P(at least so many hits | every rank is equally likely), the exact tail of a binomial.

    Args:
      hits, n: originals found, of so many released records.
      chance: probability of a hit by guessing.

    It takes the released records as independent and their originals as a random choice from the gallery; the
    correlation that remains when all N = M records are released makes the test err less, not more.
    """
    return float(stats.binom.sf(hits - 1, n, min(chance, 1.0)))


def linkage(
    released_z: np.ndarray,
    gallery_z: np.ndarray,
    truth: np.ndarray,
    ks: Sequence[int] = (1, 10),
    level: float = 0.95,
    *,
    metric: str = "cosine",
    chunk: int = 1024,
    seed: int | Sequence[int] = 0,
) -> LinkageResult:
    """Rank the gallery for every released record.

    Args:
      released_z: latents of the released records as the attacker encodes them, [N, D], finite.
      gallery_z: latents of the candidates, [M, D], finite.
      truth: int [N], position in the gallery of each record's original.
      ks: ranks to count up to, each within 1 … M.
      level: two-sided confidence level of the intervals.
      metric: ``"cosine"``, or ``"l2"``: Euclidean distance. The cosine of a zero vector with anything is 0.
      chunk: rows of either side held against each other at once; memory is of the order of chunk² + chunk·D numbers.
      seed: breaks ties (a release of constants has a gallery full of them), so that chance is exactly k/M. Results
        that are added up need seeds of their own: ``(seed, number)``.

    Raises:
      InputError: shapes that do not fit, a value that is not finite, an original outside the gallery, k outside 1 … M.
    """
    if metric not in METRICS:
        raise InputError(f"linkage.metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if chunk < 1:
        raise InputError(f"linkage.chunk: expected 1 or more, got {chunk}")
    released, gallery, true = _checked(released_z, gallery_z, truth)
    count = len(gallery)
    if not ks or any(isinstance(k, bool) or int(k) != k or not 1 <= k <= count for k in ks):
        raise InputError(f"linkage.ks: expected ranks within 1 … {count}, got {list(ks)}")
    own = _own(released, gallery, true, metric, chunk)
    ahead, ties = np.zeros(len(released), np.int64), np.zeros(len(released), np.int64)
    for rows in _chunks(len(released), chunk):
        left = _prepared(released[rows], metric)
        for columns in _chunks(count, chunk):
            margin, scale = _margins(left, _prepared(gallery[columns], metric), own[rows, None], metric)
            # The true pair itself is neither ahead nor tied, whatever the rounding.
            inside = np.flatnonzero((true[rows] >= columns.start) & (true[rows] < columns.stop))
            margin[inside, true[rows][inside] - columns.start] = -np.inf
            ahead[rows] += np.sum(margin > _TIE * scale, axis=1)
            ties[rows] += np.sum(np.abs(margin) <= _TIE * scale, axis=1)
    ranks = 1 + ahead + np.random.default_rng(seed).integers(0, ties + 1)
    n = len(released)
    shown = own if metric == "cosine" else np.sqrt(own)
    return LinkageResult(
        metric=metric,
        gallery=count,
        ranks=ranks,
        rates={int(k): rate(int(np.sum(ranks <= k)), n, level) for k in ks},
        chance={int(k): k / count for k in ks},
        similarity=float(shown.mean()),
        similarity_stderr=float(shown.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
    )


def _checked(released: np.ndarray, gallery: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    released, gallery, truth = np.asarray(released), np.asarray(gallery), np.asarray(truth)
    if released.ndim != 2 or gallery.ndim != 2 or released.shape[1] != gallery.shape[1] or 0 in released.shape:
        raise InputError(f"linkage: expected latents [N, D] and [M, D], got {released.shape} and {gallery.shape}")
    if truth.shape != (len(released),) or truth.dtype.kind not in "iu":
        raise InputError(f"linkage.truth: expected {len(released)} positions, got {truth.dtype} {truth.shape}")
    if len(gallery) == 0 or truth.min() < 0 or truth.max() >= len(gallery):
        raise InputError(f"linkage.truth: expected positions in a gallery of {len(gallery)}, got up to {truth.max()}")
    for name, z in (("released", released), ("gallery", gallery)):
        bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
        if bad.size:
            raise InputError(f"linkage: {name} record {bad[0]} has a latent that is not finite; expected numbers")
    return released, gallery, truth.astype(np.int64)


def _chunks(count: int, chunk: int) -> Iterator[slice]:
    for start in range(0, count, chunk):
        yield slice(start, min(start + chunk, count))


def _prepared(z: np.ndarray, metric: str) -> np.ndarray:
    """Float64 rows; unit rows for the cosine, zero rows left alone."""
    z = z.astype(np.float64)
    if metric == "l2":
        return z
    length = np.linalg.norm(z, axis=1, keepdims=True)
    return z / np.where(length == 0.0, 1.0, length)


def _own(released: np.ndarray, gallery: np.ndarray, true: np.ndarray, metric: str, chunk: int) -> np.ndarray:
    """Cosine or squared distance of the true pairs, [N]."""
    own = np.empty(len(released))
    for rows in _chunks(len(released), chunk):
        left, right = _prepared(released[rows], metric), _prepared(gallery[true[rows]], metric)
        own[rows] = np.sum(left * right if metric == "cosine" else (left - right) ** 2, axis=1)
    return own


def _margins(left: np.ndarray, right: np.ndarray, own: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """How much closer each candidate is than the true one, and the scale of the rounding errors in that."""
    if metric == "cosine":
        return left @ right.T - own, np.ones((1, 1))
    size = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1)
    return own - (size - 2.0 * (left @ right.T)), size
