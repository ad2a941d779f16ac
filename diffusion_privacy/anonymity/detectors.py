"""Detectors: "this image shows the private record", with thresholds of a stated false-positive rate.

A score is ``x[B, ...] -> [B]``, larger meaning more like the record; a detector is a score whose sign decides (positive
fires). The paper's detector (Dombrowski & Kainz, arXiv 2306.01363) is D(x) = 1[C_f(x) > τ_f] · 1[C_id(x) > τ_id] with
hand-set thresholds; here they are conformal (`anonymity.conformal`), and the pair is one continuous margin, so that
rare-event estimators can climb it.

Negatives must not hold copies of the record: held-out records, or generations of a model that never saw it. Positives
are regenerations of the record (noised to a small t and denoised), since the training image itself is too easy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity.conformal import conformal_rate, conformal_threshold
from diffusion_privacy.anonymity.intervals import Rate, outwards, rate
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, Detector

Images = Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class CalibratedDetector:
    """A detector with what is known about its errors; calling it gives the margin.

    Attributes:
      name: what it is, for messages and reports.
      margin: ``x[B, ...] -> [B]``; positive fires.
      thresholds: score above which each part fires, by the part's name, in the part's own units.
      requested_rate: false-positive rate that the thresholds were chosen for; None for a detector that came fixed.
      false_positive_rate: on negatives, with its exact interval.
      true_positive_rate: on regenerated positives that had no say in the thresholds, with its exact interval.
      parts: for each part, the fractions of negatives and of positives that it alone lets pass.
      reasons: why not to trust it; empty when nothing was found.
    """

    name: str
    margin: Detector
    thresholds: Mapping[str, float]
    requested_rate: float | None
    false_positive_rate: Rate
    true_positive_rate: Rate
    parts: Mapping[str, tuple[float, float]]
    reasons: tuple[str, ...] = ()

    def __call__(self, x: Array) -> Array:
        return self.margin(x)

    @property
    def usable(self) -> bool:
        """Whether it is proven to fire more often on the record than on others (intervals do not touch)."""
        return self.true_positive_rate.lower > self.false_positive_rate.upper

    def summary(self) -> dict[str, Any]:
        """Everything but the callable, ready for JSON."""
        return {
            "name": self.name,
            "thresholds": dict(self.thresholds),
            "requested_rate": self.requested_rate,
            "false_positive_rate": dataclasses.asdict(self.false_positive_rate),
            "true_positive_rate": dataclasses.asdict(self.true_positive_rate),
            "parts": {name: list(fractions) for name, fractions in self.parts.items()},
            "usable": self.usable,
            "reasons": list(self.reasons),
        }


def _l2(difference: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(difference), axis=1))


NORMS: dict[str, Callable[[Array], Array]] = {"l2": _l2, "max": lambda difference: jnp.max(jnp.abs(difference), axis=1)}
"""Norms of flattened differences ``[B, D] -> [B]``: Euclidean, largest pixel."""


def distance(center: Images, norm: str = "l2") -> Detector:
    """Score −‖x − center‖, in units of the grey scale [-1, 1].

    Args:
      center: the record, ``[...]`` without a batch axis.
      norm: a name of `NORMS`.

    Raises:
      InputError: an unknown norm.
    """
    if norm not in NORMS:
        raise InputError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    flat = jnp.asarray(center).reshape(1, -1)
    return lambda x: -NORMS[norm](x.reshape(x.shape[0], -1) - flat)


def ball(center: Images, radius: float, norm: str = "l2") -> Detector:
    """Margin radius − ‖x − center‖: fires inside the ball. Errors as in `distance`; InputError if radius <= 0."""
    if not radius > 0:
        raise InputError(f"radius: expected a positive number, got {radius}")
    score = distance(center, norm)
    return lambda x: score(x) + radius


def copy_ratio(center: Images, references: Images, k: int = 50) -> Detector:
    """Score −‖x − center‖₂ / (mean distance of x to its k nearest references): small distances count by what is usual.

    Carlini et al., "Extracting Training Data from Diffusion Models" (arXiv 2301.13188), section 5.2, whose ratio has a
    factor ½ in the denominator and the record among the references; neither changes a calibrated detector much.

    Args:
      center: the record, ``[...]``.
      references: other training records ``[N, ...]``, the record itself left out.
      k: number of neighbours, 1 <= k <= N. Memory is B x N distances.

    Raises:
      InputError: fewer references than k.
    """
    table = jnp.asarray(references).reshape(len(references), -1)
    if not 1 <= k <= len(table):
        raise InputError(f"k: expected between 1 and the {len(table)} references, got {k}")
    own, squares = distance(center), jnp.sum(jnp.square(table), axis=1)

    def score(x: Array) -> Array:
        flat = x.reshape(x.shape[0], -1)
        cross = jnp.matmul(flat, table.T, precision=jax.lax.Precision.HIGHEST)
        squared = jnp.sum(jnp.square(flat), axis=1, keepdims=True) - 2 * cross + squares
        nearest = jnp.sqrt(jnp.maximum(-jax.lax.top_k(-squared, k)[0], 0.0))
        return own(x) / jnp.maximum(jnp.mean(nearest, axis=1), 1e-6)

    return score


def pair_margin(
    fingerprint: Detector, identity: Detector, thresholds: tuple[float, float], scales: tuple[float, float] = (1.0, 1.0)
) -> Detector:
    """min((C_f(x) − τ_f) / s_f, (C_id(x) − τ_id) / s_id): positive if and only if both scores exceed their thresholds.

    Args:
      fingerprint, identity: the scores C_f and C_id.
      thresholds: (τ_f, τ_id).
      scales: (s_f, s_id), positive; they make the two comparable and do not change where it fires.

    Raises:
      InputError: a scale that is not positive.
    """
    if not min(scales) > 0:
        raise InputError(f"scales: expected positive numbers, got {scales}")

    def margin(x: Array) -> Array:
        first = (fingerprint(x) - thresholds[0]) / scales[0]
        return jnp.minimum(first, (identity(x) - thresholds[1]) / scales[1])

    return margin


def evaluate_score(score: Detector, images: Images, name: str, batch_size: int = 512) -> np.ndarray:
    """Scores float32 ``[N]`` of ``images[N, ...]``, computed ``batch_size`` at a time in one compiled program.

    Raises:
      InputError: no image, scores of another shape, or one that is not finite (the message carries ``name``).
    """
    images = np.asarray(images)
    if len(images) == 0:
        raise InputError(f"{name}: expected at least one image, got none")
    compiled = jax.jit(lambda x: score(x))
    size = min(batch_size, len(images))
    out = []
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
        scores = np.asarray(compiled(padded), np.float32)
        if scores.shape != (size,):
            raise InputError(f"{name}: expected one score per image, got shape {scores.shape} for {size} images")
        out.append(scores[: len(chunk)])
    whole = np.concatenate(out)
    if not np.all(np.isfinite(whole)):
        bad = int(np.flatnonzero(~np.isfinite(whole))[0])
        raise InputError(f"{name}: expected finite scores, got {whole[bad]} for image {bad}")
    return whole


def _verdict(fpr: Rate, tpr: Rate, name: str, parts: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Refuse a detector that says nothing; name the weaknesses of one that says little."""
    if fpr.hits == fpr.n:
        raise InputError(f"{name}: fires on all {fpr.n} negatives; expected a detector that tells them from the record")
    if tpr.hits == 0:
        alone = ", ".join(f"{part} alone on {100 * of_positives:.0f} %" for part, (_, of_positives) in parts.items())
        which = f", got {alone}" if len(parts) > 1 else ""
        raise InputError(f"{name}: fires on none of {tpr.n} regenerated positives; expected at least one{which}")
    reasons = [
        f"{part} alone lets {100 * of_negatives:.0f} % of the negatives pass: the pair rests on its partner"
        for part, (of_negatives, _) in parts.items()
        if len(parts) > 1 and of_negatives > 0.5
    ]
    if tpr.lower < 0.5:
        reasons.append(
            f"it may miss more than half of the copies: true-positive rate at least {outwards(tpr.lower, 'down')}"
        )
    if tpr.lower <= fpr.upper:
        reasons.append("it is not shown to fire more often on the record than on others")
    return tuple(reasons)


def measure(
    name: str, margin: Detector, negatives: Images, positives: Images, *, level: float = 0.95, batch_size: int = 512
) -> CalibratedDetector:
    """Both rates of a detector that is fixed beforehand (a ball of given radius, a user's own).

    Args:
      name: for messages and reports.
      margin: positive fires.
      negatives, positives: images ``[N, ...]`` that had no part in making the detector.
      level: two-sided level of both exact intervals.

    Raises:
      InputError: it fires on all negatives or on no positive, or a margin is not finite.
    """
    on_negatives = evaluate_score(margin, negatives, f"{name}: negatives", batch_size) > 0
    on_positives = evaluate_score(margin, positives, f"{name}: positives", batch_size) > 0
    fpr = rate(int(on_negatives.sum()), len(on_negatives), level)
    tpr = rate(int(on_positives.sum()), len(on_positives), level)
    parts = {name: (fpr.value, tpr.value)}
    return CalibratedDetector(name, margin, {name: 0.0}, None, fpr, tpr, parts, _verdict(fpr, tpr, name, parts))


def calibrate(
    name: str,
    score: Detector,
    negatives: Images,
    positives: Images,
    requested: float,
    *,
    level: float = 0.95,
    batch_size: int = 512,
) -> CalibratedDetector:
    """Conformal detector from one score: fires where ``score > τ``.

    Args:
      name: for messages and reports.
      score: larger means more like the record (`distance`, `copy_ratio`, a network's logit).
      negatives, positives: images ``[N, ...]``, see the module; n >= 1/requested − 1 negatives.
      requested: false-positive rate α in (0, 1).
      level: two-sided level of both exact intervals.

    Raises:
      InputError: too few negatives for α, a score that is not finite, or a detector that never fires on positives.
    """
    on_negatives = evaluate_score(score, negatives, f"{name}: negatives", batch_size)
    threshold = conformal_threshold(on_negatives, requested)
    fpr = conformal_rate(on_negatives > threshold, threshold, requested, level)
    on_positives = evaluate_score(score, positives, f"{name}: positives", batch_size) > threshold
    tpr = rate(int(on_positives.sum()), len(on_positives), level)
    parts = {name: (fpr.value, tpr.value)}
    reasons = _verdict(fpr, tpr, name, parts)
    return CalibratedDetector(
        name, lambda x: score(x) - threshold, {name: threshold}, requested, fpr, tpr, parts, reasons
    )


_PARTS = ("fingerprint", "identity")


@dataclasses.dataclass(frozen=True)
class _Part:
    """One score of the pair on both sets, and its standardisation by every other positive."""

    name: str
    negatives: np.ndarray
    positives: np.ndarray
    floor: float

    @property
    def spread(self) -> float:
        spread = float(self.positives[::2].std(dtype=np.float64))
        if spread == 0:
            raise InputError(f"{self.name}: expected a score that varies between positives, got one value for all")
        return spread

    @property
    def center(self) -> float:
        return float(np.median(self.positives[::2]))

    @property
    def standardised(self) -> np.ndarray:
        return (self.negatives.astype(np.float64) - self.center) / self.spread

    def threshold(self, cut: float) -> np.float32:
        """The larger of the floor and of ``cut`` in the score's own units.

        Rounded so that no negative at or below the cut lies above it.
        """
        below = self.negatives[self.standardised <= cut]
        return np.max([self.floor, self.center + cut * self.spread, below.max(initial=-np.inf)]).astype(np.float32)


def calibrate_pair(
    fingerprint: Detector,
    identity: Detector,
    negatives: Images,
    positives: Images,
    requested: float,
    *,
    floors: tuple[float, float] = (0.0, 0.0),
    level: float = 0.95,
    batch_size: int = 512,
) -> CalibratedDetector:
    """The pair C_f and C_id, calibrated jointly for the rate at which BOTH fire.

    Rule: both scores are standardised by their median and standard deviation on every other positive, which the
    negatives' exchangeability does not feel; c is the conformal threshold of the smaller of the two over the negatives,
    where a negative at or below a floor can never fire; each part fires above the larger of its floor and c, the same
    number of spreads below its positives for both. Without floors, negatives that never show the fingerprint would let
    τ_id sink until C_id passes everything. The true-positive rate is measured on the other positives.

    Args:
      fingerprint, identity: logits C_f and C_id, ``x[B, ...] -> [B]``.
      negatives, positives: images ``[N, ...]``, see the module; at least 1/requested − 1 and 8 of them.
      requested: false-positive rate α of the pair, in (0, 1).
      floors: lowest (τ_f, τ_id); 0 is a classifier's own 50 % line.
      level, batch_size: as in `calibrate`.

    Raises:
      InputError: too few negatives or positives, a score that is constant or not finite, or a pair that never fires on
        positives.
    """
    parts = tuple(zip(_PARTS, (fingerprint, identity), strict=True))
    on_negatives = [evaluate_score(score, negatives, f"{name}: negatives", batch_size) for name, score in parts]
    on_positives = [evaluate_score(score, positives, f"{name}: positives", batch_size) for name, score in parts]
    found = calibrate_pair_scores(
        (on_negatives[0], on_negatives[1]), (on_positives[0], on_positives[1]), requested, floors=floors, level=level
    )
    margin = pair_margin(fingerprint, identity, found.thresholds, found.scales)
    thresholds = dict(zip(_PARTS, found.thresholds, strict=True))
    return CalibratedDetector(
        "pair",
        margin,
        thresholds,
        requested,
        found.false_positive_rate,
        found.true_positive_rate,
        found.parts,
        found.reasons,
    )


@dataclasses.dataclass(frozen=True)
class PairCalibration:
    """What `calibrate_pair_scores` finds; (fingerprint, identity) where there are two of a thing.

    Attributes:
      thresholds, scales: (τ_f, τ_id) and the spreads that make the two parts comparable.
      false_positive_rate, true_positive_rate, parts, reasons: as in `CalibratedDetector`.
    """

    thresholds: tuple[float, float]
    scales: tuple[float, float]
    false_positive_rate: Rate
    true_positive_rate: Rate
    parts: Mapping[str, tuple[float, float]]
    reasons: tuple[str, ...]


def calibrate_pair_scores(
    negatives: tuple[np.ndarray, np.ndarray],
    positives: tuple[np.ndarray, np.ndarray],
    requested: float,
    *,
    floors: tuple[float, float] = (0.0, 0.0),
    level: float = 0.95,
) -> PairCalibration:
    """The rule of `calibrate_pair` on scores that are there already, (C_f ``[N]``, C_id ``[N]``) for each set.

    Raises:
      InputError: as `calibrate_pair`.
    """
    if len(positives[0]) < 8:
        raise InputError(f"positives: expected at least 8 regenerated images, got {len(positives[0])}")
    pair = [_Part(_PARTS[i], negatives[i], positives[i], floors[i]) for i in range(2)]
    eligible = np.logical_and(*(part.negatives > np.float32(part.floor) for part in pair))
    joint = np.where(eligible, np.minimum(*(part.standardised for part in pair)), -np.inf)
    c = conformal_threshold(joint, requested)
    thresholds = [float(part.threshold(c)) for part in pair]
    fired = [part.negatives > cut for part, cut in zip(pair, thresholds, strict=True)]
    caught = [part.positives[1::2] > cut for part, cut in zip(pair, thresholds, strict=True)]
    fpr = conformal_rate(np.logical_and(*fired), c, requested, level)
    both = np.logical_and(*caught)
    tpr = rate(int(both.sum()), len(both), level)
    parts = {part.name: (float(fired[i].mean()), float(caught[i].mean())) for i, part in enumerate(pair)}
    return PairCalibration(
        (thresholds[0], thresholds[1]),
        (pair[0].spread, pair[1].spread),
        fpr,
        tpr,
        parts,
        _verdict(fpr, tpr, "pair", parts),
    )
