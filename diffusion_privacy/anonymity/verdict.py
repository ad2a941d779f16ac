"""From estimates to a sentence: does the model give the record away?

Confidence is shared so that the verdict's interval holds at its level. With α = 1 − level, E1 and E2 are each computed
at 1 − α/2 (α/4 a side). The lower limit is the larger of the two (α/4 + α/4 = α/2); the upper limit is E1's alone,
since no local estimator rules out mass elsewhere, divided by a lower limit of the detector's true-positive rate that
errs with α/4 as well (α/4 + α/4 = α/2). "Leaks" is said only if the lower limit exceeds the upper limit of the
detector's false-positive rate: fewer hits than that, a clean model could show by the detector's errors alone.
"""

from __future__ import annotations

import dataclasses
import math

from diffusion_privacy.anonymity.intervals import Rate
from diffusion_privacy.anonymity.montecarlo import MOST_SAMPLES, DirectResult, samples_needed, samples_needed_at_rate
from diffusion_privacy.anonymity.subspace import SubspaceResult

LEAKS = "leaks"
CLEAN = "no leak above bound"
OPEN = "not certified"

WITHOUT_A_HIT = "certify without a hit"
AT_THIS_RATE = "certify if hits come as they did"
NOT_EXPECTED = "not expected to certify"
"""What more samples would do for a record that stayed `OPEN`."""


def part_level(level: float) -> float:
    """Two-sided level at which E1, E2 and the detector's rates must be computed for a verdict at ``level``."""
    return 1 - (1 - level) / 2


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What may be said of one record.

    Attributes:
      status: `LEAKS`, `CLEAN` or `OPEN`.
      bound: the probability that the status speaks of, 1/n: what a model that memorised its n records alike shows.
      lower, estimate, upper: of the probability that one drawn image is detected as the record.
      level: two-sided confidence of (lower, upper).
      assumes: what the statement rests on.
      samples_needed: samples in all that would certify ``bound`` as ``more_samples`` says; None when it is decided, or
        when no number is expected to.
      more_samples: `WITHOUT_A_HIT`, `AT_THIS_RATE` or `NOT_EXPECTED`; None when it is decided.
    """

    status: str
    bound: float
    lower: float
    estimate: float
    upper: float
    level: float
    assumes: tuple[str, ...]
    samples_needed: int | None
    more_samples: str | None


def _outlook(direct: DirectResult, bound: float) -> tuple[int | None, str]:
    """``samples_needed`` and ``more_samples`` of an open verdict, from the hits that E1 has seen."""
    tpr_lower, level = direct.tpr_lower, direct.estimate.level
    needed: int | None
    if direct.hits == 0:
        needed, more = samples_needed(bound, tpr_lower=tpr_lower, level=level), WITHOUT_A_HIT
    else:
        needed = samples_needed_at_rate(bound, direct.hits, direct.estimate.n, tpr_lower=tpr_lower, level=level)
        more = AT_THIS_RATE
    # Of a detector that may see nothing the limit stands for 0, and no number of samples makes up for that.
    return (None, NOT_EXPECTED) if needed is None or needed > MOST_SAMPLES else (needed, more)


def decide(
    direct: DirectResult, subspace: SubspaceResult | None, false_positives: Rate, bound: float, level: float
) -> Verdict:
    """Combines E1 and E2.

    Args:
      direct: E1 at `part_level(level)`, its true-positive limit already divided in.
      subspace: E2 at the same level, or None where it is not defined; ignored unless reliable.
      false_positives: the detector's rate on images that cannot show the record, at the same level.
      bound: probability to certify, usually 1/n.
      level: of the verdict.

    Raises:
      ValueError: an estimate was computed at another level.
    """
    wanted = part_level(level)
    used = subspace is not None and subspace.estimate.reliable
    for name, has in (("direct", direct.estimate.level), ("false-positive rate", false_positives.level)):
        if abs(has - wanted) > 1e-9:
            raise ValueError(f"{name} was computed at level {has}, a verdict at {level} needs {wanted}")
    if subspace is not None and abs(subspace.estimate.level - wanted) > 1e-9:
        raise ValueError(
            f"subspace was computed at level {subspace.estimate.level}, a verdict at {level} needs {wanted}"
        )
    assumes = [
        "the sampler as it was run (its steps, its clipping); another sampler has another rate",
        "a reproduction is what the detector says it is; its misses are allowed for, its blind spots are not",
        "the detector errs on this model's images as often as on the images that its error rates were measured on",
    ]
    lower, estimate, upper = direct.estimate.lower, direct.estimate.value, direct.estimate.upper
    if used and subspace is not None:
        e2 = subspace.estimate
        # Without an error its value stands for a part of q only, and such a part may well be smaller than q.
        apart = e2.lower > upper or (e2.upper < lower and math.isfinite(e2.log_stderr))
        if e2.log_stderr < direct.estimate.log_stderr and not apart:
            estimate = e2.value
        if apart:
            # Both are right with high probability; if they exclude each other, nothing stronger than both may be said.
            # E2 below E1 says that the record comes from where no path leads: E1 alone has counted that.
            assumes.append("E1 and E2 exclude each other here: the interval spans both, and the cause should be found")
            upper = max(upper, e2.upper)
        else:
            lower = max(lower, e2.lower)
    estimate = min(max(estimate, lower), upper)
    if lower > false_positives.upper:
        status = LEAKS
    elif upper <= bound:
        status = CLEAN
    else:
        status = OPEN
    needed: int | None = None
    more: str | None = None
    if status == OPEN:
        # What E1 and E2 do not agree on, more samples of E1 would not settle.
        needed, more = _outlook(direct, bound) if upper == direct.estimate.upper else (None, NOT_EXPECTED)
    return Verdict(status, bound, lower, estimate, min(upper, 1.0), level, tuple(assumes), needed, more)
