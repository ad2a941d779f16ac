"""Exact intervals of a probability from counts.

Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26
(1934): the limits are the probabilities at which the observed count would be just as rare as the level allows. Their
coverage is at least the level for every n and every true probability, which the normal and the Wilson interval do not
give near 0, where an audit lives.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from diffusion_privacy.errors import InputError
from diffusion_privacy.rounding import to_digits

Limit = NDArray[np.float64]


def _checked(hits: ArrayLike, n: ArrayLike, level: float) -> tuple[Limit, Limit]:
    if not 0.0 < level < 1.0:
        raise InputError(f"level: expected a number strictly between 0 and 1, got {level}")
    k, total = np.broadcast_arrays(np.asarray(hits, float), np.asarray(n, float))
    bad = ~((k >= 0) & (k <= total) & (total >= 1) & (k == np.round(k)) & (total == np.round(total)))
    if np.any(bad):
        first = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"hits: expected whole numbers, 0 <= hits <= n and n >= 1, got {k.flat[first]:g} of {total.flat[first]:g}"
        )
    return k, total


def _lower(k: Limit, n: Limit, tail: float) -> Limit:
    # The Beta(k, n-k+1) quantile; k = 0 has no lower tail, and its shape parameter would be 0.
    return np.where(k == 0, 0.0, special.betaincinv(np.maximum(k, 1), n - k + 1, tail))


def _upper(k: Limit, n: Limit, tail: float) -> Limit:
    # The complement's own inverse keeps small tails exact where 1 - tail would round.
    return np.where(k == n, 1.0, special.betainccinv(k + 1, np.maximum(n - k, 1), tail))


@overload
def clopper_pearson(hits: int, n: int, level: float = ...) -> tuple[float, float]: ...
@overload
def clopper_pearson(hits: ArrayLike, n: ArrayLike, level: float = ...) -> tuple[Limit, Limit]: ...
def clopper_pearson(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Limit | float, Limit | float]:
    """Exact two-sided interval of a probability: each side errs with probability at most ``(1 - level) / 2``.

    Args:
      hits: number of successes, 0 <= hits <= n; a number or an array.
      n: number of independent trials, at least 1; broadcasts against ``hits``.
      level: two-sided confidence level, in (0, 1).

    Returns:
      ``(lower, upper)``, floats for two numbers, else float64 arrays; lower is 0 at no hit, upper is 1 at all hits.

    Raises:
      InputError: level outside (0, 1), or counts that no experiment can give.
    """
    k, total = _checked(hits, n, level)
    tail = (1.0 - level) / 2.0
    lower, upper = _lower(k, total, tail), _upper(k, total, tail)
    return (lower, upper) if lower.ndim else (float(lower), float(upper))


@overload
def lower_limit(hits: int, n: int, level: float = ...) -> float: ...
@overload
def lower_limit(hits: ArrayLike, n: ArrayLike, level: float = ...) -> Limit: ...
def lower_limit(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> Limit | float:
    """Exact one-sided limit L with P(L <= probability) >= level; arguments and errors as in `clopper_pearson`."""
    k, total = _checked(hits, n, level)
    lower = _lower(k, total, 1.0 - level)
    return lower if lower.ndim else float(lower)


@overload
def upper_limit(hits: int, n: int, level: float = ...) -> float: ...
@overload
def upper_limit(hits: ArrayLike, n: ArrayLike, level: float = ...) -> Limit: ...
def upper_limit(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> Limit | float:
    """Exact one-sided limit U with P(probability <= U) >= level; arguments and errors as in `clopper_pearson`."""
    k, total = _checked(hits, n, level)
    upper = _upper(k, total, 1.0 - level)
    return upper if upper.ndim else float(upper)


@dataclasses.dataclass(frozen=True)
class Rate:
    """A measured probability with its exact two-sided interval.

    Attributes:
      hits, n: successes and trials; the point estimate `value` is their ratio.
      lower, upper: Clopper-Pearson limits.
      level: two-sided confidence level of (lower, upper).
    """

    hits: int
    n: int
    lower: float
    upper: float
    level: float

    @property
    def value(self) -> float:
        return self.hits / self.n


def rate(hits: int, n: int, level: float = 0.95) -> Rate:
    """``hits`` of ``n`` as a `Rate`; errors as in `clopper_pearson`."""
    lower, upper = clopper_pearson(hits, n, level)
    return Rate(hits=hits, n=n, lower=lower, upper=upper, level=level)


def outwards(limit: float, direction: Literal["down", "up"], digits: int = 3) -> str:
    """A limit in a sentence, like ``f"{limit:.3g}"``, but never narrower than it is: a lower one is rounded down.

    Args:
      limit: any number; one that is not finite is printed as it is.
      direction: ``"down"`` for a lower limit, ``"up"`` for an upper one and for a p-value.
      digits: significant ones.
    """
    if limit == 0 or not math.isfinite(limit):
        return f"{limit:g}"
    return f"{float(to_digits(limit, digits, direction)):.{digits}g}"
