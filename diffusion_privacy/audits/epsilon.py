"""Lower confidence bounds on ε, measured: does a mechanism leak more than it claims, or far less?

A mechanism is (ε, δ)-private when P(S | z) <= e^ε P(S | z') + δ for every event S and every pair of neighbours. So
any event gives ε >= log((P(S | z) − δ)/P(S | z')), and with Clopper-Pearson limits in place of the two probabilities a
lower bound at a stated confidence. S is "the score exceeds a threshold", with score, side and threshold all chosen
on trials of their own (after Nasr et al., arXiv 2302.07956). `worst_case` makes the scores for the pair of latents that
is hardest to hide.

A bound above the claim refutes it. A bound far below it refutes that the noise is what it should be (too much noise,
or an input that never reaches the edge of the ball). Passing proves neither: it says that this attack found nothing.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from diffusion_privacy.anonymity.intervals import outwards
from diffusion_privacy.errors import InputError


@dataclasses.dataclass(frozen=True)
class EpsilonBound:
    """A lower confidence bound on ε.

    Attributes:
      lower: the bound in nats, >= 0.
      delta: δ at which it is read.
      confidence: probability with which the bound is below the true ε.
      trials: trials behind each of the two limits, none of which had a part in choosing the event.
      ceiling: the largest bound that so many trials can give; a claim above it cannot be refuted by them.
      hit, false_alarm: limits used: lower for P(S | z), upper for P(S | z').
      direction: which pair of latents it is from.
    """

    lower: float
    delta: float
    confidence: float
    trials: int
    ceiling: float
    hit: float
    false_alarm: float
    direction: str


def clopper_pearson(successes: np.ndarray | int, trials: int, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact limits ``(lower, upper)`` of a binomial probability, each missed with probability at most ``error``."""
    from scipy import stats

    k = np.asarray(successes)
    with np.errstate(invalid="ignore"):
        lower = np.where(k == 0, 0.0, stats.beta.ppf(error, k, trials - k + 1))
        upper = np.where(k == trials, 1.0, stats.beta.ppf(1.0 - error, k + 1, trials - k))
    return lower, upper


def log_ratio(hit: np.ndarray | float, false_alarm: np.ndarray | float, delta: float) -> np.ndarray:
    """log((hit − δ)/false_alarm), −inf where hit <= δ: the ε that an event of these probabilities shows."""
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(hit - delta, 0.0)) - np.log(false_alarm)


CHOOSING_ERROR = 1e-4
"""Error of the limits while an event is chosen. Among hundreds of candidate events the luckiest looks too good; wide
limits keep the choice away from events seen only a few times. It has no part in the confidence of the bound."""


def choose_event(positive: np.ndarray, negative: np.ndarray, delta: float) -> tuple[float, int, float]:
    """``(threshold, side, value)``: the event of the largest bound on these scores. Side +1 is "score >= threshold"
    under the positive latent, −1 is "score <= threshold" under the negative one.
    """
    positive, negative = np.sort(positive), np.sort(negative)
    n = positive.size
    # Counts grow geometrically from either end: fine where the ratio is large and the counts small.
    ranks = np.unique(np.geomspace(1, n, 400).astype(int))
    best = (math.nan, 1, -math.inf)
    for side in (1, -1):
        own, other = (positive, negative) if side == 1 else (negative, positive)
        thresholds = own[n - ranks] if side == 1 else own[ranks - 1]
        thresholds = np.concatenate([thresholds, other[n - ranks] if side == 1 else other[ranks - 1]])
        if side == 1:
            own_count = n - np.searchsorted(own, thresholds, side="left")
            other_count = n - np.searchsorted(other, thresholds, side="left")
        else:
            own_count = np.searchsorted(own, thresholds, side="right")
            other_count = np.searchsorted(other, thresholds, side="right")
        hit, _ = clopper_pearson(own_count, n, CHOOSING_ERROR)
        _, false_alarm = clopper_pearson(other_count, n, CHOOSING_ERROR)
        values = log_ratio(hit, false_alarm, delta)
        k = int(np.argmax(values))
        if values[k] > best[2]:
            best = (float(thresholds[k]), side, float(values[k]))
    return best


def epsilon_from_scores(
    choose: tuple[np.ndarray, np.ndarray],
    judge: tuple[np.ndarray, np.ndarray],
    delta: float,
    confidence: float = 0.99,
    direction: str = "scores",
) -> EpsilonBound:
    """Black-box bound from a score of one's own: ``(scores under z, scores under z')`` in two independent halves.

    Valid for any score, however it was found, as long as ``judge`` had no part in finding it. NaN scores are refused.

    Args:
      choose: scores [n], [n] that pick the event.
      judge: scores [m], [m], independent of them, that bound its probabilities.
      delta: δ in [0, 1).
      confidence: two-sided share; each Clopper-Pearson limit may fail with probability (1 − confidence)/2.

    Raises:
      InputError: NaN, unequal or empty halves, δ or confidence out of range.
    """
    if not 0.0 <= delta < 1.0 or not 0.0 < confidence < 1.0:
        raise InputError(f"audit: expected δ in [0, 1) and confidence inside (0, 1), got {delta!r} and {confidence!r}")
    for half in (choose, judge):
        if half[0].shape != half[1].shape or half[0].ndim != 1 or half[0].size == 0:
            raise InputError(f"audit: expected two equally many scores, got {half[0].shape} and {half[1].shape}")
        if np.isnan(half[0]).any() or np.isnan(half[1]).any():
            raise InputError("audit: a score is NaN; expected numbers")
    error = (1.0 - confidence) / 2.0
    threshold, side, _ = choose_event(*choose, delta)
    positive, negative = judge
    n = positive.size
    if side == 1:
        own, other = int(np.sum(positive >= threshold)), int(np.sum(negative >= threshold))
    else:
        own, other = int(np.sum(negative <= threshold)), int(np.sum(positive <= threshold))
    hit = float(clopper_pearson(own, n, error)[0])
    false_alarm = float(clopper_pearson(other, n, error)[1])
    value = float(log_ratio(hit, false_alarm, delta))
    ceiling = float(log_ratio(clopper_pearson(n, n, error)[0], clopper_pearson(0, n, error)[1], delta))
    return EpsilonBound(max(value, 0.0), delta, confidence, n, ceiling, hit, false_alarm, direction)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an audit concludes about a claim.

    Attributes:
      passed: no fault found.
      bound: the measured lower bound.
      reason: one sentence.
    """

    passed: bool
    bound: EpsilonBound
    reason: str


def judge_claim(bound: EpsilonBound, epsilon: float, tightness: float = 0.8) -> Verdict:
    """Hold a measured bound against a claimed ε at the bound's δ.

    A correct mechanism is failed for exceeding its claim with probability at most 1 − bound.confidence. ``tightness``
    is the share of the claim that a tight mechanism must show; 0 for one whose claim is only an upper bound.

    Raises:
      InputError: the trials cannot reach the claim, so that the audit would pass anything.
    """
    if bound.ceiling <= epsilon:
        raise InputError(
            f"audit: {bound.trials} trials show at most ε = {bound.ceiling:.3g}, the claim is {epsilon:.3g}"
        )
    shown = outwards(bound.lower, "down")
    if bound.lower > epsilon:
        return Verdict(False, bound, f"leaks at least ε = {shown}, more than the claimed {epsilon:.3g}")
    if bound.lower < tightness * epsilon:
        return Verdict(False, bound, f"shows ε = {shown}, under {tightness:.0%} of the claimed {epsilon:.3g}")
    return Verdict(True, bound, f"shows ε = {shown}, consistent with the claimed {epsilon:.3g}")
