"""The mean of a few heavy-tailed non-negative numbers, with an interval that has earned its coverage.

Importance weights are skewed: a normal interval on them is too short on the right and centred too low. The interval
here is the envelope of two that fail differently: log-normal with a Student quantile at the effective sample size, and
Hall's skewness-corrected transformation (Hall, "On the removal of skewness by transformation", JRSS B 54, 1992). It is
quoted as reliable only if the tail lets a variance exist and enough independent hits carry the sum.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

MIN_ESS = 100.0
MAX_PARETO_K = 0.5
MAX_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class WeightedMean:
    """Mean of w·D over draws.

    Attributes:
      log_value, log_stderr: of the mean, in nats; −inf and inf without a hit.
      lower, upper: two-sided limits, 0 <= lower <= upper; nan without a hit.
      hits: draws with D = 1.
      ess: (Σ wD)² / Σ (wD)².
      pareto_k: shape of the generalised Pareto tail of the hits' weights; the variance is finite below 1/2. inf
        with too few hits to fit.
      max_share: largest single share of the sum.
      reliable: all of the module's limits are met.
      reasons: the limits that are not.
    """

    log_value: float
    log_stderr: float
    lower: float
    upper: float
    hits: int
    ess: float
    pareto_k: float
    max_share: float
    reliable: bool
    reasons: tuple[str, ...]


def pareto_k(weights: np.ndarray) -> float:
    """Shape k̂ of a generalised Pareto fitted to the upper tail of positive ``weights[n]``.

    The tail is the largest min(n/5, 3√n) values (Vehtari et al., "Pareto smoothed importance sampling", arXiv
    1507.02646); the fit is Zhang & Stephens' (Technometrics 51, 2009) with the former's weak prior towards 1/2.
    Returns inf if fewer than 5 distinct excesses remain, 0-like small values for bounded weights.
    """
    w = np.sort(np.asarray(weights, np.float64))
    n = len(w)
    tail = int(min(0.2 * n, 3 * np.sqrt(n)))
    if tail < 5:
        return float("inf")
    x = w[-tail:] - w[-tail - 1]
    # Weights that agree to rounding have no tail at all.
    if x[-1] <= 1e-6 * w[-1]:
        return -1.0
    x = x[x > 0]
    m = len(x)
    if m < 5:
        return float("inf")
    grid = 30 + int(np.sqrt(m))
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * x[int(m / 4 + 0.5) - 1])
    shape = np.mean(np.log1p(-theta[:, None] * x), axis=1)
    profile = m * (np.log(-theta / shape) - shape - 1)
    posterior = 1 / np.sum(np.exp(np.clip(profile - profile[:, None], -700, 700)), axis=1)
    best = np.sum(theta * posterior) / np.sum(posterior)
    k = np.mean(np.log1p(-best * x))
    return float((m * k + 10 * 0.5) / (m + 10))


def weighted_mean(log_terms: np.ndarray, hit: np.ndarray, level: float) -> WeightedMean:
    """Mean of ``exp(log_terms) * hit`` over ``[n]`` independent draws.

    Args:
      log_terms: log-weights in nats, float64.
      hit: bool, the detector's answer.
      level: two-sided confidence level in (0, 1).
    """
    n, hits = len(hit), int(np.sum(hit))
    if hits == 0:
        why = (f"none of {n} paths was detected: no information on the size of q beyond the unguided share",)
        inf = float("inf")
        return WeightedMean(-inf, inf, float("nan"), float("nan"), 0, 0.0, inf, 0.0, False, why)
    shift = float(np.max(log_terms[hit]))
    f = np.where(hit, np.exp(np.minimum(log_terms - shift, 0.0)), 0.0)
    mean = float(np.mean(f))
    ess = float(np.sum(f) ** 2 / np.sum(f**2))
    k, share = pareto_k(f[hit]), float(np.max(f) / np.sum(f))
    lower, upper, relative = _envelope(f, mean, ess, level)
    reasons = []
    if ess < MIN_ESS:
        reasons.append(f"effective sample size {ess:.0f} is below {MIN_ESS:.0f}")
    if k > MAX_PARETO_K:
        reasons.append(f"Pareto tail index {k:.2f} is above {MAX_PARETO_K}: the variance may not exist")
    if share > MAX_SHARE:
        reasons.append(f"one path carries {share:.0%} of the sum (limit {MAX_SHARE:.0%})")
    return WeightedMean(
        log_value=float(np.log(mean) + shift),
        log_stderr=relative,
        lower=float(lower * np.exp(shift)),
        upper=float(upper * np.exp(shift)),
        hits=hits,
        ess=ess,
        pareto_k=k,
        max_share=share,
        reliable=not reasons,
        reasons=tuple(reasons),
    )


def _envelope(f: np.ndarray, mean: float, ess: float, level: float) -> tuple[float, float, float]:
    """(lower, upper, relative standard error) of the mean of ``f >= 0`` with at least one positive value."""
    n = len(f)
    std = float(np.std(f, ddof=1))
    # Where every draw hit, what those draws say of the rate of misses is all that bounds the mean from below: weights
    # that agree to rounding (q near 1) would otherwise give an interval of no width.
    floor = mean * float(stats.beta.ppf((1 - level) / 2, n, 1)) if np.all(f > 0) else mean
    if std == 0.0:
        return floor, mean, 0.0
    error = std / np.sqrt(n)
    relative = error / mean
    quantile = float(stats.t.ppf(0.5 + level / 2, max(ess / 8, 2.0)))
    lower, upper = mean * np.exp(-quantile * relative), mean * np.exp(quantile * relative)
    g = float(np.mean((f - mean) ** 3) / std**3 / np.sqrt(n))
    if abs(g) > 1e-6:

        def untransform(z: float) -> float:
            return float(np.cbrt(1 + g * (z - g / 6)) - 1) * 3 / g

        lower = min(lower, mean - untransform(quantile) * error)
        upper = max(upper, mean - untransform(-quantile) * error)
    return max(min(float(lower), floor), 0.0), float(upper), float(relative)
