"""Membership inference: was this record in the training set? Scores of members against scores of non-members.

A score is any number that tends to be LARGER for members. An AUC of ½ means that this score tells nothing; it does not
mean that no score does. Non-members must come from the same population and share no person with the members, or the
attack is measured against the difference of the two sets.

What each interval is conditional on:

- AUC: DeLong's variance over both samples, carried to the log-odds scale; with groups of records that came to their
  side together, the variance over groups. `Membership.auc_bootstrap` resamples members and non-members, each among
  themselves (stratified).
- TPR at a false-positive rate, `OperatingPoint.tpr`: exact (Clopper-Pearson) over members GIVEN the threshold that
  the non-members chose. `OperatingPoint.fpr` is the rate that this threshold really has, with its own exact interval.
  So ``tpr`` is to be compared with ``fpr`` and not with the rate asked for: of few non-members the threshold that they
  choose lets through several times as many as it should, and a blind score with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from scipy import special, stats

from diffusion_privacy.anonymity.conformal import conformal_count, conformal_rate, conformal_threshold
from diffusion_privacy.anonymity.intervals import Rate, clopper_pearson, rate
from diffusion_privacy.errors import InputError

FALSE_POSITIVE_RATES = (0.01, 0.001)
RESAMPLES = 1000
FEW = 5
"""A threshold that fewer non-members decide is said to be so."""


@dataclasses.dataclass(frozen=True)
class AUC:
    """Probability that a random member scores above a random non-member, ties counted half.

    Attributes:
      value: in [0, 1]; ½ is chance, larger means a stronger attack.
      lower, upper: its interval.
      level: two-sided confidence level.
      method: ``"delong-logit"``, or ``"groups-logit"`` where records came in groups; or ``"disjoint-pairs"`` where that
        variance is 0 (separated or constant scores): the exact interval of min(N, M) disjoint pairs, of one record a
        group, tied ones counted against either end.
    """

    value: float
    lower: float
    upper: float
    level: float
    method: str


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """The attack at one false-positive rate: "member" when the score exceeds the threshold.

    Attributes:
      requested: false-positive rate α asked for.
      threshold: the conformal threshold of the non-members; None when they are too few (fewer than 1/α − 1).
      fpr: rate at this threshold on the non-members, with an exact interval; None as above.
      tpr: share of members above it, exact interval given the threshold; None as above.
      reason: why there is no number, or that few non-members decide it; empty otherwise.
    """

    requested: float
    threshold: float | None
    fpr: Rate | None
    tpr: Rate | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Membership:
    """How well one score tells members from non-members.

    Attributes:
      attack: name of the score.
      members, non_members: how many were scored.
      auc: over all thresholds.
      auc_bootstrap: percentile interval of the AUC at the same level, from 1,000 stratified resamples. It has no width
        where the scores separate; the interval of ``auc`` is honest there too.
      points: at fixed false-positive rates.
    """

    attack: str
    members: int
    non_members: int
    auc: AUC
    auc_bootstrap: tuple[float, float]
    points: tuple[OperatingPoint, ...]


def _scores(members: np.ndarray, non_members: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 vectors; `InputError` when one is empty or holds NaN. Infinities are ordinary, extreme scores."""
    both = np.asarray(members, np.float64), np.asarray(non_members, np.float64)
    for who, values in zip(("member", "non-member"), both, strict=True):
        if values.ndim != 1 or values.size < 2:
            raise InputError(f"{name}: expected at least two {who} scores in one vector, got shape {values.shape}")
        bad = np.flatnonzero(np.isnan(values))
        if bad.size:
            raise InputError(f"{name}: the score of {who} {bad[0]} is NaN ({bad.size} such); expected a number")
    return both


def auc(
    members: np.ndarray,
    non_members: np.ndarray,
    level: float = 0.95,
    *,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> AUC:
    """Area under the ROC curve with the interval of DeLong, DeLong & Clarke-Pearson 1988.

    Ranks as in Sun & Xu 2014: O((N + M) log(N + M)). Arguments as in `membership`.

    Where records were dealt to a side in groups (a person's, or equal rows of a table), groups and not records are the
    independent draws: the variance over them is that of Obuchowski 1997 (Biometrics 53, 567), for groups that lie on
    one side each. Of few or unequal groups it is uncertain itself, so Student's t takes the place of the normal law,
    with Kish's effective number of groups less one on each side, joined as Satterthwaite does: ours, chosen by coverage
    in simulations. Groups of one record each give DeLong's interval.

    Args:
      groups: whole numbers ``[N]`` and ``[M]``, equal for records of one group; None where each is its own.

    Raises:
      InputError: as for `membership`, ``level`` not in (0, 1), or groups of another number than scores.
    """
    one, two = _scores(members, non_members, "auc")
    if not 0.0 < level < 1.0:
        raise InputError(f"level: expected a number strictly between 0 and 1, got {level}")
    sides = None if groups is None else _groups(groups, (one, two))
    joint = stats.rankdata(np.concatenate([one, two]))
    # Share of the other sample that each member exceeds, and that exceeds each non-member.
    above = (joint[: one.size] - stats.rankdata(one)) / two.size
    below = 1.0 - (joint[one.size :] - stats.rankdata(two)) / one.size
    value = float(above.mean())
    if sides is None:
        variance = float(above.var(ddof=1) / one.size + below.var(ddof=1) / two.size)
        quantile, method = float(special.ndtri(0.5 * (1.0 + level))), "delong-logit"
    else:
        if min(side.max() for side in sides) == 0:
            # A side of one group says nothing of what another would have scored.
            return AUC(value, 0.0, 1.0, level, "groups-logit")
        parts = [_group_variance(shares - value, side) for shares, side in zip((above, below), sides, strict=True)]
        variance = sum(part for part, _ in parts)
        freedom = variance**2 / max(sum(part**2 / df for part, df in parts), 1e-300)
        quantile, method = float(stats.t.ppf(0.5 * (1.0 + level), max(freedom, 1.0))), "groups-logit"
    if variance < 1e-24 or not 0.0 < value < 1.0:
        if sides is not None:
            one, two = (s[np.unique(side, return_index=True)[1]] for s, side in zip((one, two), sides, strict=True))
        return _auc_of_pairs(one, two, value, level)
    centre = special.logit(value)
    reach = quantile * math.sqrt(variance) / (value * (1.0 - value))
    return AUC(value, float(special.expit(centre - reach)), float(special.expit(centre + reach)), level, method)


def _groups(groups: tuple[np.ndarray, np.ndarray], scores: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray] | None:
    """Numbers 0, 1, … of the groups of each side; None where every record is its own."""
    for who, side, values in zip(("member", "non-member"), groups, scores, strict=True):
        if np.shape(side) != values.shape:
            raise InputError(f"groups: expected one a {who} score, {values.size} of them, got shape {np.shape(side)}")
    sides = [np.unique(side, return_inverse=True)[1] for side in groups]
    return None if all(side.max() + 1 == side.size for side in sides) else sides


def _group_variance(centred: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """Variance of a mean over groups, and its degrees of freedom; ``centred`` are deviations from that mean."""
    size = np.bincount(group)
    total = np.bincount(group, centred)
    variance = size.size / (size.size - 1) * float(np.sum(total**2)) / group.size**2
    return variance, max(float(size.sum() ** 2 / np.sum(size**2)) - 1.0, 1.0)


def _auc_of_pairs(one: np.ndarray, two: np.ndarray, value: float, level: float) -> AUC:
    pairs = min(one.size, two.size)
    wins, ties = int(np.sum(one[:pairs] > two[:pairs])), int(np.sum(one[:pairs] == two[:pairs]))
    lower, upper = clopper_pearson(wins, pairs, level)[0], clopper_pearson(wins + ties, pairs, level)[1]
    return AUC(value, min(lower, value), max(upper, value), level, "disjoint-pairs")


def membership(
    attack: str,
    members: np.ndarray,
    non_members: np.ndarray,
    *,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    level: float = 0.95,
    seed: int = 0,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> Membership:
    """Judge an attack by its scores.

    Args:
      attack: its name, for messages and reports.
      members: scores [N] of records of the training set; larger means "member".
      non_members: scores [M] of records that were not in it, from the same population.
      rates: false-positive rates at which the true-positive rate is read.
      level: two-sided confidence level of every interval.
      seed: of the AUC's bootstrap.
      groups: of records that came to their side together, see `auc`; the bootstrap and the rates at a false-positive
        rate take records as independent all the same.

    Raises:
      InputError: fewer than two scores, NaN, or a rate or level outside (0, 1).
    """
    one, two = _scores(members, non_members, attack)
    for alpha in rates:
        if not 0.0 < alpha < 1.0:
            raise InputError(f"{attack}: expected false-positive rates strictly between 0 and 1, got {alpha}")
    area = auc(one, two, level, groups=groups)
    points = tuple(_point(one, two, alpha, level) for alpha in rates)
    return Membership(attack, one.size, two.size, area, auc_bootstrap(one, two, level, seed=seed), points)


def auc_bootstrap(
    members: np.ndarray, non_members: np.ndarray, level: float = 0.95, *, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the AUC; both samples are resampled with replacement, each among itself.

    Arguments and errors as in `membership`.
    """
    one, two = _scores(members, non_members, "auc")
    values, place = np.unique(np.concatenate([one, two]), return_inverse=True)
    rng = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        counts = [
            np.bincount(part[rng.integers(0, part.size, part.size)], minlength=values.size)
            for part in (place[: one.size], place[one.size :])
        ]
        # Non-members below each value, and half of those equal to it.
        below = np.cumsum(counts[1]) - 0.5 * counts[1]
        found[i] = counts[0] @ below / (one.size * two.size)
    low, high = np.quantile(found, [0.5 * (1 - level), 0.5 * (1 + level)])
    return float(low), float(high)


def _point(one: np.ndarray, two: np.ndarray, alpha: float, level: float) -> OperatingPoint:
    needed = math.ceil(1 / Fraction(repr(float(alpha)))) - 1
    if two.size < needed:
        few = f"needs at least {needed} records that the model did not see, there are {two.size}"
        return OperatingPoint(alpha, None, None, None, few)
    threshold = conformal_threshold(two, alpha)
    fired = one > threshold
    deciding = conformal_count(two.size, alpha)
    few = f"the threshold rests on the {deciding} highest of {two.size} non-members" if deciding < FEW else ""
    return OperatingPoint(
        requested=alpha,
        threshold=threshold,
        fpr=conformal_rate(two > threshold, threshold, alpha, level),
        tpr=rate(int(fired.sum()), one.size, level),
        reason=few,
    )


def attack_with(
    name: str,
    score_records: Callable[[np.ndarray], np.ndarray],
    members: np.ndarray,
    non_members: np.ndarray,
    *,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    level: float = 0.95,
    seed: int = 0,
) -> Membership:
    """`membership` of the scores that ``score_records(x[N + M, ...]) -> [N + M]`` gives.

    Both sets go through one call, so that no record shares its random draws with another and both see the same code.

    Raises:
      InputError: records of different shapes, or as in `membership`.
    """
    one, two = np.asarray(members), np.asarray(non_members)
    if one.shape[1:] != two.shape[1:]:
        raise InputError(f"{name}: members are {one.shape[1:]}, non-members {two.shape[1:]}; expected equal shapes")
    scores = np.asarray(score_records(np.concatenate([one, two])))
    if scores.shape != (len(one) + len(two),):
        raise ValueError(f"{name}: the attack returned {scores.shape} for {len(one) + len(two)} records")
    return membership(name, scores[: len(one)], scores[len(one) :], rates=rates, level=level, seed=seed)
