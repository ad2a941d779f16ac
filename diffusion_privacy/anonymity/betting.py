"""Limits of a mean that hold for every sample size and every distribution, by betting.

For independent Y_i >= 0 with mean μ and any fixed c in [0, 1] the capital of a gambler who stakes the share c on each,

    K_c(m) = Π_i (1 − c + c Y_i / m),

has expectation at most 1 at m = μ, and so has a mixture over c; by Markov's inequality K(μ) >= 1/α happens with
probability at most α. K falls with m, so the m with K(m) = 1/α is a lower limit of μ that errs with probability α at
most (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024; here with
stakes fixed in advance, which makes the limit blind to the order of the draws). Nothing is asked of the tail: Y may be
an importance weight without a variance.

- Draws need not be alike: with means μ_i, E K = Π(1 − c + c μ_i/μ) <= 1 for μ their average, by the inequality of
  arithmetic and geometric means. Strata with fixed numbers of draws may be thrown together.
- The capital is a supermartingale over independent rounds of that kind, so the limit also holds when a rule that
  looks at the draws ends the rounds (Ville's inequality).
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from diffusion_privacy.errors import InputError

_STAKES = special.expit(np.linspace(-7.0, 5.0, 13))
# Half of the capital is staked in full: rates near 0 or 1 then lose no more than a factor 2 in α.
_FULL = 0.5
# In nats. An upper limit near 0 is a lower one near 1: this is the smallest that a limit can be.
_TOLERANCE = 1e-12


def _log_capital(log_ratio: np.ndarray, zeros: int) -> float:
    """log K for positive draws with ``log_ratio`` = log Y − log m, and ``zeros`` draws that are 0."""
    stake = _STAKES[:, None]
    # Where exp would overflow the stake is all that counts. Cut there, a gain would not outweigh a million zeros, and
    # no m however small would reach the goal.
    small = np.log1p(stake * np.expm1(np.minimum(log_ratio, 600.0)))
    gains = np.sum(np.where(log_ratio < 600.0, small, np.log(stake) + log_ratio), axis=1)
    capital = gains + zeros * np.log1p(-_STAKES) + np.log((1 - _FULL) / _STAKES.size)
    if zeros:
        return float(special.logsumexp(capital))
    return float(special.logsumexp(np.append(capital, np.sum(log_ratio) + np.log(_FULL))))


def log_lower_mean(log_values: np.ndarray, error: float) -> float:
    """log of a lower limit of E[Y] that exceeds it with probability at most ``error``.

    Args:
      log_values: ``[n]`` log Y_i in nats, −inf where Y_i = 0; independent draws.
      error: in (0, 1).

    Returns:
      nats; −inf when every draw is 0.

    Raises:
      InputError: no draws, an error outside (0, 1), or a value that is NaN or +inf.
    """
    logs = np.asarray(log_values, np.float64).reshape(-1)
    if not 0 < error < 1:
        raise InputError(f"error: expected a number strictly between 0 and 1, got {error}")
    if logs.size == 0 or np.any(np.isnan(logs)) or np.any(logs == np.inf):
        raise InputError(f"log_values: expected at least one number below infinity, got {logs.size} with NaN or inf")
    positive = logs[logs > -np.inf]
    if positive.size == 0:
        return float("-inf")
    zeros, goal = logs.size - positive.size, float(-np.log(error))
    # At the sample mean every K_c is at most 1 (arithmetic over geometric means), below the goal.
    high = float(special.logsumexp(logs) - np.log(logs.size))
    gap = 1.0
    while _log_capital(positive - (high - gap), zeros) < goal:
        gap *= 2.0
    root = optimize.brentq(lambda m: _log_capital(positive - m, zeros) - goal, high - gap, high, xtol=_TOLERANCE)
    # The root may be off by the tolerance and by rounding; the limit gives it away.
    return float(root) - 2 * _TOLERANCE - 16 * np.finfo(float).eps * abs(float(root))


def lower_mean(values: np.ndarray, error: float) -> float:
    """Lower limit of the mean of independent ``values[n] >= 0`` that errs with probability at most ``error``.

    Raises:
      InputError: as `log_lower_mean`; a negative value.
    """
    values = np.asarray(values, np.float64)
    if np.any(values < 0):
        raise InputError(f"values: expected numbers of at least 0, got {float(np.min(values)):g}")
    with np.errstate(divide="ignore"):
        return float(np.exp(log_lower_mean(np.log(values), error)))


def upper_mean(values: np.ndarray, error: float) -> float:
    """Upper limit of the mean of independent ``values[n]`` in [0, 1] that errs with probability at most ``error``.

    With all values 0 it is a little below 1 − (error/2)^{1/n}: no distribution-free limit is much below
    log(1/error)/n. `zeros_needed` is its inverse.

    Raises:
      InputError: as `log_lower_mean`; a value outside [0, 1].
    """
    values = np.asarray(values, np.float64)
    if values.size and not np.all((values >= 0) & (values <= 1)):
        raise InputError("values: expected numbers in [0, 1]")
    return 1.0 - lower_mean(1.0 - values, error)


def zeros_needed(bound: float, error: float) -> int:
    """Fewest values, all 0, whose `upper_mean` is at most ``bound``; a few percent too many for a bound below 1e-9.

    Raises:
      InputError: ``bound`` or ``error`` outside (0, 1).
    """
    if not (0 < bound < 1 and 0 < error < 1):
        raise InputError(f"bound, error: expected numbers strictly between 0 and 1, got {bound} and {error}")
    # The full stake alone, without the partial ones, is always enough.
    high = int(np.ceil(np.log(error / 2) / np.log1p(-bound))) + 1
    if bound < 1e-9:
        return high
    # What `lower_mean` gives away is given away here as well.
    log_ratio = -(np.log1p(-bound) + 2 * _TOLERANCE + 16 * np.finfo(float).eps)
    stakes = np.log1p(_STAKES * np.expm1(log_ratio))

    def enough(count: int) -> bool:
        capital = np.append(count * stakes + np.log((1 - _FULL) / _STAKES.size), count * log_ratio + np.log(_FULL))
        return bool(special.logsumexp(capital) >= -np.log(error))

    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
