"""On which side of a threshold is a probability? Decided as early as the draws allow, at a stated error.

For 0/1 draws with rate h, S of n hits, and alternatives θ > γ weighted by the Jeffreys density on (γ, 1),

    K_n(γ) = ∫_γ^1 (θ/γ)^S ((1−θ)/(1−γ))^{n−S} dπ(θ)

is a supermartingale from 1 for EVERY h <= γ: one draw multiplies the integrand by h θ/γ + (1−h)(1−θ)/(1−γ) on average,
which grows with h and is 1 at h = γ. So P(K_n >= 1/α at any n) <= α (Ville), however the looks at the draws are placed:
draws may stop as soon as K_n >= 1/α and the claim h > γ errs with probability at most α. Robbins' mixture
(Ann. Math. Statist. 41, 1970) with the Beta density cut at γ. The claim h <= γ' is the same for misses and 1 − γ'.

With γ <= γ' at most one of the two null hypotheses h <= γ and h > γ' is true, so that both are tested at the full α.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

ABOVE, OPEN, BELOW = 1, 0, -1
"""Decided h > γ; not decided; decided h <= γ'."""
_PRIOR = 0.5


def log_evidence(hits: ArrayLike, n: ArrayLike, gamma: float) -> np.ndarray:
    """log K_n(γ) in nats against h <= γ, elementwise; γ in [0, 1), where γ = 0 is refuted by one hit."""
    k, total = np.asarray(hits, float), np.asarray(n, float)
    if gamma == 0:
        return np.where(k > 0, np.inf, 0.0)
    a, b = _PRIOR + k, _PRIOR + total - k
    # The mass above γ of the Beta density; its underflow to 0 is no evidence.
    with np.errstate(divide="ignore"):
        mass = np.log(special.betaincc(a, b, gamma)) - np.log(special.betaincc(_PRIOR, _PRIOR, gamma))
    constant = special.betaln(a, b) - special.betaln(_PRIOR, _PRIOR)
    return constant + mass - k * np.log(gamma) - (total - k) * np.log1p(-gamma)


def decide(hits: ArrayLike, n: ArrayLike, gamma: float, gamma_upper: float, error: float) -> np.ndarray:
    """`ABOVE`, `BELOW` or `OPEN` for each ``hits`` of ``n``; each pair's claims over all n err with at most ``error``.

    Args:
      hits, n: 0 <= hits <= n, broadcast.
      gamma, gamma_upper: 0 <= γ <= γ' < 1. `ABOVE` claims h > γ, `BELOW` claims h <= γ'.
      error: in (0, 1).
    """
    k, total = np.broadcast_arrays(np.asarray(hits, float), np.asarray(n, float))
    goal = -np.log(error)
    up, down = log_evidence(k, total, gamma), _against(k, total, gamma_upper)
    # Where γ < h <= γ' both claims are true and both may pass; the stronger one is taken.
    found = np.where(up >= down, ABOVE, BELOW)
    return np.where(np.maximum(up, down) >= goal, found, OPEN)


def _against(hits: np.ndarray, n: np.ndarray, gamma_upper: float) -> np.ndarray:
    """Evidence against h > γ'; none is ever possible at γ' = 0."""
    return np.zeros_like(n) if gamma_upper == 0 else log_evidence(n - hits, n, 1 - gamma_upper)


def draws_to_decide(
    hits: ArrayLike, n: ArrayLike, gamma: float, gamma_upper: float, error: float, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fewest further draws that could decide: ``(all of them hits: above, none of them: below)``, at most ``most``.

    For planning how many to draw next; the decisions' validity does not depend on it.
    """
    k, total = np.broadcast_arrays(np.asarray(hits, float), np.asarray(n, float))
    goal = -np.log(error)

    def fewest(side: int) -> np.ndarray:
        low, high = np.zeros(k.shape), np.full(k.shape, float(most))
        for _ in range(int(np.ceil(np.log2(most + 1))) + 1):
            middle = np.floor((low + high) / 2)
            if side == ABOVE:
                passed = log_evidence(k + middle, total + middle, gamma) >= goal
            else:
                passed = _against(k, total + middle, gamma_upper) >= goal
            high, low = np.where(passed, middle, high), np.where(passed, low, np.minimum(middle + 1, high))
        return np.maximum(high, 1).astype(int)

    return fewest(ABOVE), fewest(BELOW)
