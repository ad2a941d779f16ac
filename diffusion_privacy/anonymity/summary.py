"""All estimators of q in one table: lower limit, estimate, upper limit, level, cost, what it assumes, when to doubt it.

A row has the limits that its estimator really gives: E4 and E5 claim nothing from above, E6 nothing from below. Local
estimators (E2 to E5) are marked, because no local method rules out that the record comes from elsewhere: their upper
limits, where they have one, are of what their paths reach.
"""

from __future__ import annotations

import dataclasses

from diffusion_privacy.anonymity import change_of_variables, counterfactual, inherited, splitting
from diffusion_privacy.anonymity.counterfactual import Counterfactual
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Estimate


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an estimator is.

    Attributes:
      name: E1 … E7, as docs/method/audit.md numbers them, with a short title.
      gives: ``"both"`` limits, ``"lower"`` or ``"upper"``; ``"difference"`` for a difference of rates.
      exact: its limits hold for every model and every number of draws; otherwise they rest on diagnostics.
      local: looks only where paths lead towards the record.
      assumes: what it takes for granted.
      distrust: when its number is not to be trusted.
    """

    name: str
    gives: str
    exact: bool
    local: bool
    assumes: tuple[str, ...]
    distrust: str


ESTIMATORS: dict[str, Kind] = {
    "direct": Kind(
        "E1 direct samples",
        "both",
        True,
        False,
        ("the detector sees at least its measured share of true reproductions",),
        "never, but it is wide: about 3/q samples are needed to see q at all",
    ),
    "subspace": Kind(
        "E2 guided paths",
        "both",
        False,
        True,
        ("weights whose tail was sampled (effective sample size, Pareto k, largest share)",),
        "when marked unreliable; as an upper limit, never by itself",
    ),
    "change of variables": Kind(
        "E3 deterministic sampler",
        "both",
        False,
        True,
        change_of_variables.ASSUMES,
        "when marked unreliable: climbs that fail, folds, probe noise, a heavy tail",
    ),
    "markov": Kind(
        "E4 Markov",
        "lower",
        True,
        True,
        ("independent draws, weights exact",),
        "never, but it is 40 times below the estimate at 95 %",
    ),
    "jensen": Kind(
        "E4 Jensen",
        "lower",
        True,
        True,
        ("independent draws of one distribution, weights exact",),
        "never, but it is below q by about half the variance of the log-weights, in nats",
    ),
    "betting": Kind("E4 betting", "lower", True, True, ("independent draws, weights exact",), "never"),
    "splitting": Kind(
        "E5 splitting",
        # Where all replicas miss a part of the detected set they agree all the more: nothing bounds q from above.
        "lower",
        False,
        True,
        splitting.ASSUMES,
        "when replicas disagree or die out; replicas that agree may all have missed the same part",
    ),
    "inherited": Kind(
        "E6 inherited from training",
        "upper",
        True,
        False,
        inherited.ASSUMES,
        "when the training guarantee does not hold; it says nothing of one released model",
    ),
    "counterfactual": Kind(
        "E7 with and without the record",
        "difference",
        True,
        False,
        counterfactual.ASSUMES,
        "as a statement on training: it compares one pair of models",
    ),
}
"""By `Estimate.method`. A new estimator is added here."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      kind: the estimator.
      method: its key in `ESTIMATORS`.
      lower, upper: limits that are claimed, else None. Probabilities; for a difference, in [−1, 1].
      value: the point estimate; for E4 of the bound itself.
      level: two-sided confidence level; a one-sided limit errs with (1 − level)/2.
      network_calls: score evaluations, tangents included.
      reliable: by its own diagnostics.
      reasons: why not, and remarks.
    """

    kind: Kind
    method: str
    lower: float | None
    value: float
    upper: float | None
    level: float
    network_calls: int
    reliable: bool
    reasons: tuple[str, ...]


def row(found: Estimate | Counterfactual) -> Row:
    """A row from what an estimator returned.

    Raises:
      InputError: a method that `ESTIMATORS` does not know.
    """
    if isinstance(found, Counterfactual):
        kind = ESTIMATORS["counterfactual"]
        # Exact limits stand whatever was found; a detector that cannot tell the record from anything does not.
        good = max(found.only_with, found.only_without) + found.both < found.n
        limits = (found.lower, found.value, found.upper, found.level)
        seen = (
            f"of {found.n} pairs {found.only_with} show the record only with it, {found.only_without} only without it, "
            f"{found.both} both ways; McNemar's p = {found.p_value:.2g}"
        )
        return Row(kind, "counterfactual", *limits, found.network_calls, good, (seen, *found.reasons))
    if found.method not in ESTIMATORS:
        raise InputError(f"method: expected one of {', '.join(ESTIMATORS)}, got {found.method!r}")
    kind = ESTIMATORS[found.method]
    return Row(
        kind,
        found.method,
        None if kind.gives == "upper" else found.lower,
        found.value,
        None if kind.gives == "lower" else found.upper,
        found.level,
        found.network_calls,
        found.reliable,
        found.reasons,
    )
