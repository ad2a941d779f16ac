"""A lower bound on ε from one training run with m canaries (Steinke, Nasr & Jagielski, arXiv 2305.08846).

Each of m canaries is put into the training set by its own fair coin. The auditor looks at the model, guesses "in" for
the k₊ canaries of highest score and "out" for the k₋ lowest, and abstains on the rest: r = k₊ + k₋ guesses, v of them
right. If training is (ε, δ)-private under adding or removing one record, then (section 5; code in appendix D)

    P[V >= v] <= P[W >= v] + 2 m δ max_{1 <= i <= v} P[v > W >= v − i]/i,    W ~ Binomial(r, e^ε/(1 + e^ε)),

whatever the auditor does, the canaries being guessed together and not one run each. With δ = 0, pure ε, the second term
goes. The bound is the ε up to which so many right guesses are too unlikely.

The coins must be fair and independent, and k₊, k₋ chosen before the coins are looked at; several choices share the
error. A bound above the claimed ε refutes the claim. A low bound proves nothing: a stronger auditor may find more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from diffusion_privacy.errors import InputError

_HIGHEST = 100.0
"""Largest ε that is looked for; e^−100 is beyond any count of canaries."""
_HALVINGS = 60


@dataclasses.dataclass(frozen=True)
class OneRunBound:
    """A lower confidence bound on ε from one run.

    Attributes:
      lower: the bound in nats, >= 0; larger means less private.
      delta: δ at which it is read.
      confidence: probability with which the bound is at or below the true ε.
      canaries: m, each included by its own fair coin.
      guesses: r = k₊ + k₋.
      correct: v, right ones among them.
      ceiling: the bound that r right guesses of r would give; a claim above it cannot be refuted by this run.
    """

    lower: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    ceiling: float


def _checked(m: int, r: int, v: int, delta: float, confidence: float) -> None:
    if not 0 <= v <= r <= m or m < 1:
        raise InputError(f"one_run: expected 0 <= right guesses <= guesses <= canaries, got {v}, {r} and {m}")
    if not 0.0 <= delta < 1.0 or not 0.0 < confidence < 1.0:
        raise InputError(
            f"one_run: expected δ in [0, 1) and confidence inside (0, 1), got {delta!r} and {confidence!r}"
        )


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float = 0.0) -> float:
    """Bound on P[V >= ``correct``] under (ε, δ)-privacy, the right side above, at most 1.

    Raises:
      InputError: counts that do not fit, ε < 0 or δ outside [0, 1).
    """
    _checked(canaries, guesses, correct, delta, 0.5)
    if not epsilon >= 0.0:
        raise InputError(f"one_run.epsilon: expected a number >= 0, got {epsilon!r}")
    if correct == 0:
        return 1.0
    right = 1.0 / (1.0 + math.exp(-epsilon))
    # P[W >= v] = I_q(v, r − v + 1).
    tail = float(special.betainc(correct, guesses - correct + 1, right))
    if delta == 0.0:
        return tail
    counts = np.arange(correct - 1, -1, -1)
    choose = special.gammaln(guesses + 1) - special.gammaln(counts + 1) - special.gammaln(guesses - counts + 1)
    # log q and log(1 − q) = log q − ε, which 1 − q would round away at large ε.
    log_right = -math.log1p(math.exp(-epsilon))
    below = np.cumsum(np.exp(choose + guesses * log_right - (guesses - counts) * epsilon))
    steepest = float(np.max(below / np.arange(1, correct + 1)))
    return min(tail + 2.0 * canaries * delta * steepest, 1.0)


def epsilon_bound(
    canaries: int, guesses: int, correct: int, *, delta: float = 0.0, confidence: float = 0.95
) -> OneRunBound:
    """The bound from counts: the smallest ε that ``correct`` right guesses do not refute at this confidence.

    Args:
      canaries: m, included canaries and others together.
      guesses: r, chosen before looking.
      correct: v.
      delta: δ in [0, 1); 0 for pure ε.
      confidence: in (0, 1).

    Raises:
      InputError: counts that do not fit, δ or confidence out of range.
    """
    _checked(canaries, guesses, correct, delta, confidence)
    error = 1.0 - confidence
    return OneRunBound(
        _smallest(canaries, guesses, correct, delta, error),
        delta,
        confidence,
        canaries,
        guesses,
        correct,
        _smallest(canaries, guesses, guesses, delta, error),
    )


def _smallest(m: int, r: int, v: int, delta: float, error: float) -> float:
    """Bisection for where the p-value reaches ``error``; rounded down."""
    if p_value(m, r, v, 0.0, delta) >= error:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(m, r, v, high, delta) < error:
        low, high = high, 2.0 * high
        if high > _HIGHEST:
            return low
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if p_value(m, r, v, middle, delta) < error:
            low = middle
        else:
            high = middle
    return low


def audit_scores(
    scores: np.ndarray,
    included: np.ndarray,
    guesses: Sequence[tuple[int, int]],
    *,
    delta: float = 0.0,
    confidence: float = 0.95,
) -> OneRunBound:
    """The bound from the canaries' scores.

    Ties are broken by position, which is fair as long as canaries were not sorted by their coins.

    Args:
      scores: [m], larger means "was in the training set" (a membership score of `attacks`).
      included: bool [m], the coins.
      guesses: pairs (k₊, k₋) stated beforehand; with several the best is taken at confidence 1 − (1 − c)/number.
      delta, confidence: as in `epsilon_bound`; the confidence returned is the whole one.

    Raises:
      InputError: NaN scores, lengths that do not fit, guesses that overlap, or as in `epsilon_bound`.
    """
    scores, coins = np.asarray(scores, np.float64), np.asarray(included)
    if scores.ndim != 1 or coins.shape != scores.shape or coins.dtype != np.bool_:
        raise InputError(f"one_run: expected scores [m] and coins bool [m], got {scores.shape} and {coins.shape}")
    if np.isnan(scores).any():
        raise InputError(f"one_run: the score of canary {int(np.flatnonzero(np.isnan(scores))[0])} is NaN")
    if not guesses or any(a < 0 or b < 0 or not 1 <= a + b <= scores.size for a, b in guesses):
        raise InputError(
            f"one_run.guesses: expected pairs of counts that sum to 1 … {scores.size}, got {list(guesses)}"
        )
    _checked(scores.size, 0, 0, delta, confidence)
    order = np.argsort(-scores, kind="stable")
    shared = 1.0 - (1.0 - confidence) / len(guesses)
    found = []
    for plus, minus in guesses:
        right = int(np.sum(coins[order[:plus]])) + int(np.sum(~coins[order[scores.size - minus :]]))
        found.append(epsilon_bound(scores.size, plus + minus, right, delta=delta, confidence=shared))
    return dataclasses.replace(max(found, key=lambda bound: bound.lower), confidence=confidence)


def flip_coins(canaries: int, seed: int) -> np.ndarray:
    """bool [m]: which canaries go into the training set, each by its own fair coin."""
    return np.random.default_rng(seed).random(canaries) < 0.5
