"""Thresholds that keep a stated false-positive rate, from negatives alone and without a model of their scores.

With n exchangeable negatives and k = floor(α (n + 1)), the threshold is the k-th largest score, of rank
ceil((n + 1)(1 − α)) from below. A fresh negative lies above it with probability at most k / (n + 1) <= α over the draw
of both (Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005), exactly k / (n + 1) without ties.

Given the n negatives the rate itself is random, Beta(k, n + 1 − k). Its quantile is the Clopper-Pearson upper limit of
k − 1 hits in n, so that interval holds although the same negatives chose the threshold. A floor set beforehand, below
which nothing fires, keeps both statements: it can only silence.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from diffusion_privacy.anonymity.intervals import Rate, clopper_pearson
from diffusion_privacy.errors import InputError


def conformal_count(n: int, requested: float) -> int:
    """k = floor(α (n + 1)), in exact arithmetic on α's decimal form.

    Raises:
      InputError: α outside (0, 1), or n < 1/α − 1, for which only a threshold of infinity keeps the promise.
    """
    if not 0.0 < requested < 1.0:
        raise InputError(f"false_positive_rate: expected a number strictly between 0 and 1, got {requested}")
    alpha = Fraction(repr(float(requested)))
    k = math.floor(alpha * (n + 1))
    if k < 1:
        needed = math.ceil(1 / alpha) - 1
        raise InputError(f"false_positive_rate: a rate of {requested:g} expected at least {needed} negatives, got {n}")
    return k


def conformal_threshold(scores: np.ndarray, requested: float) -> float:
    """Threshold above which a fresh negative scores with probability at most ``requested``.

    Args:
      scores: of the calibration negatives, ``[n]``; ``-inf`` marks one that can never fire.
      requested: false-positive rate α in (0, 1).

    Returns:
      The k-th largest score; ``-inf`` when fewer than k can fire at all.

    Raises:
      InputError: NaN among the scores, or n too small for α.
    """
    if np.any(np.isnan(scores)):
        raise InputError("negatives: expected scores that are numbers, got NaN")
    rank = len(scores) - conformal_count(len(scores), requested)
    return float(np.partition(scores, rank)[rank])


def conformal_rate(fired: np.ndarray, threshold: float, requested: float, level: float) -> Rate:
    """False-positive rate with an exact interval, from the very negatives that chose the threshold.

    Args:
      fired: bool[n], which of them fire.
      threshold: what `conformal_threshold` returned for them and for ``requested``.
      level: two-sided confidence level.
    """
    hits, n = int(np.sum(fired)), len(fired)
    # Ties leave fewer than k - 1 above the threshold; the law of the k-th largest still bounds the rate from above.
    most = conformal_count(n, requested) - 1 if np.isfinite(threshold) else hits
    lower, upper = clopper_pearson(np.array([hits, most]), n, level)
    return Rate(hits=hits, n=n, lower=float(lower[0]), upper=float(upper[1]), level=level)
