"""E4: limits of q from below that hold whatever the weights' tail. They prove a leak; they never deny one.

All take importance draws, q = E[w D]: weights w >= 0 and detections D of paths drawn from a proposal. None asks for a
variance. With k hits in n draws,

- Markov:   q >= δ q̂ with probability 1 − δ.
- Jensen:   log q = log h + log E[w | hit] >= log h + E[log w | hit], h = P(hit) under the proposal. Its limit is

                log h_L + mean(log w | hit) − log(1/α₂) / k,

  h_L the exact (Clopper-Pearson) limit at α₁. The second part needs no bound on log w: given which draws hit,
  E Π w_i = E[w | hit]^k, so that Markov's inequality for the PRODUCT gives mean(log w) <= log E[w | hit] + log(1/α₂)/k
  with probability 1 − α₂. It is a limit of log q itself; an interval for E[log w | hit] alone could not be honest,
  because log w has no lower end (Bahadur & Savage, Ann. Math. Stat. 27, 1956).
- Betting:  the limit of `betting.log_lower_mean` for Y = w D. With the whole stake it is Jensen's argument on draws
  that all hit; with a small one it approaches a normal limit where there is one. Usually the largest of the three.

Markov and betting allow draws from strata of fixed size (E2's mixture). Jensen needs draws that are alike: `thinned`
makes them from strata.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from diffusion_privacy.anonymity import betting, intervals
from diffusion_privacy.anonymity.subspace import SubspaceResult
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Estimate

_NO_HIT = "no hit: nothing is proved"
_NO_SAMPLE = "thinning left a stratum without paths: nothing is claimed"


def _checked(log_weights: np.ndarray, hit: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Arrays as float64 and bool, and the error of one side."""
    log_weights, hit = np.asarray(log_weights, np.float64), np.asarray(hit)
    if not 0 < level < 1:
        raise InputError(f"level: expected a number strictly between 0 and 1, got {level}")
    if hit.dtype != bool or hit.ndim != 1 or hit.shape != log_weights.shape or hit.size == 0:
        raise InputError(f"hit: expected a truth value a weight, got {hit.shape} {hit.dtype} for {log_weights.shape}")
    if not np.all(np.isfinite(log_weights[hit])):
        raise InputError("log_weights: expected finite numbers where the detector fired")
    return log_weights, hit, (1 - level) / 2


def _estimate(method: str, log_value: float, log_lower: float, level: float, n: int, k: int, calls: int) -> Estimate:
    lower = min(math.exp(min(log_lower, 0.0)), 1.0) if k else 0.0
    return Estimate(
        method=method,
        log_value=log_value,
        log_stderr=math.inf,
        lower=lower,
        upper=1.0,
        level=level,
        n=n,
        ess=float(k),
        reliable=True,
        network_calls=calls,
        reasons=() if k else (_NO_HIT,),
    )


def markov(log_weights: np.ndarray, hit: np.ndarray, level: float = 0.95, *, network_calls: int = 0) -> Estimate:
    """q >= δ q̂, δ = (1 − level)/2. Arguments, result and errors as in `jensen`; draws may come from strata."""
    log_weights, hit, error = _checked(log_weights, hit, level)
    log_mean = _log_mean(log_weights, hit)
    return _estimate("markov", log_mean, log_mean + math.log(error), level, hit.size, int(hit.sum()), network_calls)


def betting_lower(log_weights: np.ndarray, hit: np.ndarray, level: float = 0.95, *, network_calls: int = 0) -> Estimate:
    """The betting limit of E[w D]. Arguments, result and errors as in `jensen`; draws may come from strata."""
    log_weights, hit, error = _checked(log_weights, hit, level)
    terms = np.where(hit, log_weights, -np.inf)
    log_lower = betting.log_lower_mean(terms, error)
    log_mean = _log_mean(log_weights, hit)
    return _estimate("betting", log_mean, log_lower, level, hit.size, int(hit.sum()), network_calls)


def _log_mean(log_weights: np.ndarray, hit: np.ndarray) -> float:
    if not hit.any():
        return -math.inf
    return float(np.logaddexp.reduce(log_weights[hit]) - math.log(hit.size))


def jensen(log_weights: np.ndarray, hit: np.ndarray, level: float = 0.95, *, network_calls: int = 0) -> Estimate:
    """log q >= log h + E[log w | hit] and its limit.

    Args:
      log_weights: ``[n]`` log w in nats; those of draws without a hit do not matter.
      hit: bool ``[n]``; independent draws from ONE distribution.
      level: two-sided, as everywhere: the lower limit errs with probability at most (1 − level)/2.
      network_calls: what the draws cost.

    Returns:
      an `Estimate` with upper = 1 (nothing is claimed). Its value estimates the Jensen bound (for `markov` and
      `betting_lower`: q), so that it lies below q up to sampling error; its lower limit is what is shown. Without a
      hit both are 0.

    Raises:
      InputError: a level outside (0, 1), arrays that do not fit, a weight that is not finite at a hit.
    """
    log_weights, hit, error = _checked(log_weights, hit, level)
    n, k = hit.size, int(hit.sum())
    if k == 0:
        return _estimate("jensen", -math.inf, -math.inf, level, n, 0, network_calls)
    mean = float(np.mean(log_weights[hit]))
    rate = intervals.lower_limit(k, n, 1 - error / 2)
    log_lower = math.log(rate) + mean - math.log(2 / error) / k
    return _estimate("jensen", math.log(k / n) + mean, log_lower, level, n, k, network_calls)


def thinned(counts: np.ndarray, wanted: int, seed: int) -> np.ndarray | None:
    """Picks from stratified draws a sample that is distributed as if each draw had chosen its stratum by chance.

    Args:
      counts: draws made in each stratum; the draws lie one stratum after the other, and strata are chosen in
        proportion to ``counts``.
      wanted: size of the sample; three quarters of all draws rarely exhaust a stratum.
      seed: of the choice, which must not depend on the draws.

    Returns:
      ``[wanted]`` positions among the ``counts.sum()`` draws, or None when a stratum is exhausted. To give up then and
      claim the limit 0 keeps every limit honest; to try another seed would not.
    """
    counts = np.asarray(counts, int)
    label = np.random.default_rng(seed).choice(counts.size, wanted, p=counts / counts.sum())
    if np.any(np.bincount(label, minlength=counts.size) > counts):
        return None
    start = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.zeros(wanted, int)
    for stratum in range(counts.size):
        mine = label == stratum
        rank[mine] = np.arange(mine.sum())
    return start[label] + rank


def of_paths(result: SubspaceResult, draws: int, level: float = 0.95) -> list[Estimate]:
    """The three limits from E2's own paths, at no further network call; each at ``level`` by itself.

    Markov and betting take all paths: strata and the rule that ended the rounds are allowed for (means of growing
    samples are a reverse martingale). Jensen takes three quarters of the first round, thinned to a sample of the
    mixture; when that exhausts a stratum it has no sample, makes no estimate (``log_value`` is NaN) and claims nothing.

    Args:
      result: of `subspace.estimate`.
      draws: paths of one of its rounds.
      level: two-sided.
    """
    calls = result.estimate.network_calls // result.estimate.n
    rows = thinned(result.mixture.allocate(draws), 3 * draws // 4, seed=0)
    if rows is None:
        alike = Estimate("jensen", math.nan, math.inf, 0.0, 1.0, level, 0, 0.0, True, 0, (_NO_SAMPLE,))
    else:
        alike = jensen(result.log_terms[rows], result.hit[rows], level, network_calls=calls * len(rows))
    spent = result.estimate.network_calls
    found = [
        markov(result.log_terms, result.hit, level, network_calls=spent),
        alike,
        betting_lower(result.log_terms, result.hit, level, network_calls=spent),
    ]
    return [dataclasses.replace(e, reasons=(*e.reasons, "paths of E2, drawn once for all")) for e in found]
