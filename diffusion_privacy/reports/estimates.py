"""Fields of an estimate of q in release.json, and what must hold between them; see `reports.schema`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from diffusion_privacy.anonymity import intervals, tprime
from diffusion_privacy.anonymity.summary import Row
from diffusion_privacy.anonymity.tprime import HCurve
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports.structure import Range
from diffusion_privacy.types import Estimate

Probability = Annotated[float, Range(0.0, 1.0)]
Difference = Annotated[float, Range(-1.0, 1.0)]
NonNegative = Annotated[float, Range(0.0)]
Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]

_SLACK = 1e-6  # relative; limits and value come from different formulas and may differ by rounding


class Rate(TypedDict):
    """A measured rate of a detector; ``value`` is null when n = 0."""

    value: Probability | None
    lower: Probability
    upper: Probability
    level: Probability
    n: Count


class Direct(TypedDict):
    """q from unconditional samples (E1). ``value`` may exceed ``hits / n`` by the detector's correction."""

    value: NonNegative
    lower: Probability
    upper: Probability
    level: Probability
    n: Count
    hits: Count
    ess: NonNegative | None  # null: not defined
    reliable: bool
    network_calls: Count  # score evaluations, counted per image
    method: str
    reasons: list[str]


class Subspace(Direct):
    """q by score-subspace integration (E2). An importance estimate may exceed 1 by its error."""

    pareto_k: float | None  # tail index of the weights; null: too few hits to fit one
    max_weight_share: Probability | None  # null: no hits
    log_value: float | None  # nats; null: the estimate is zero
    log_stderr: NonNegative | None  # nats; null: not defined


class Estimator(TypedDict):
    """Another estimator of q; limits that it does not claim are null. Enters no verdict. Weights of E4 are E2's.

    Of E7 (``method`` "counterfactual") value and limits are a difference of rates, with the record minus without it.
    """

    name: str
    method: str
    lower: Difference | None
    value: Annotated[float, Range(-1.0)] | None  # null: no estimate was made, and nothing is claimed
    upper: Difference | None
    level: Probability  # two-sided; a one-sided limit errs with (1 - level) / 2
    reliable: bool
    exact: bool  # the limits hold without diagnostics
    local: bool  # looks only at what the noised record reaches
    network_calls: Count  # score evaluations, tangents included
    assumes: list[str]
    distrust: str  # when the number is not to be trusted
    reasons: list[str]


def finite(value: float) -> float | None:
    """``value`` as a Python float, or None where JSON has no number for it."""
    number = float(value)
    return number if math.isfinite(number) else None


def direct_entry(estimate: Estimate, hits: int) -> Direct:
    """The ``direct`` field of a record from its `Estimate` and the number of hits among its draws."""
    return {
        "value": float(estimate.value),
        "lower": float(estimate.lower),
        "upper": float(estimate.upper),
        "level": float(estimate.level),
        "n": int(estimate.n),
        "hits": int(hits),
        "ess": finite(estimate.ess),
        "reliable": bool(estimate.reliable),
        "network_calls": int(estimate.network_calls),
        "method": estimate.method,
        "reasons": list(estimate.reasons),
    }


def subspace_entry(estimate: Estimate, hits: int, pareto_k: float, max_weight_share: float) -> Subspace:
    """The ``subspace`` field of a record; the last two arguments are NaN where they are not defined."""
    return {
        **direct_entry(estimate, hits),
        "pareto_k": finite(pareto_k),
        "max_weight_share": finite(max_weight_share),
        "log_value": finite(estimate.log_value),
        "log_stderr": finite(estimate.log_stderr),
    }


def rate_entry(value: intervals.Rate) -> Rate:
    """A `Rate` from a count."""
    return {"value": value.value, "lower": value.lower, "upper": value.upper, "level": value.level, "n": value.n}


def t_prime_entry(curve: HCurve, gamma: float, level: float) -> dict[str, Any]:
    """A `schema.TPrime`: both readings of one curve."""
    statistical = tprime.statistical_t_prime(curve, gamma, level)
    paper = {"value": tprime.paper_t_prime(curve), "draws": 16, "levels": len(curve.levels)}
    return {"paper": paper, "statistical": dataclasses.asdict(statistical)}


def h_curve_entry(curve: HCurve, level: float) -> dict[str, Any]:
    """A `schema.HCurve` with intervals at ``level`` for each t by itself."""
    lower, upper = curve.limits(level)
    return {
        "t": curve.times.tolist(),
        "draws": [curve.draws] * len(curve.levels),
        "hits": curve.hits.tolist(),
        "value": (curve.hits / curve.draws).tolist(),
        "lower": lower.tolist(),
        "upper": upper.tolist(),
        "level": level,
    }


def estimator_entry(row: Row) -> Estimator:
    """An entry of a record's ``estimators`` from its row of the summary."""
    return {
        "name": row.kind.name,
        "method": row.method,
        "lower": row.lower,
        "value": finite(row.value),
        "upper": row.upper,
        "level": row.level,
        "reliable": row.reliable,
        "exact": row.kind.exact,
        "local": row.kind.local,
        "network_calls": row.network_calls,
        "assumes": list(row.kind.assumes),
        "distrust": row.kind.distrust,
        "reasons": list(row.reasons),
    }


def ordered(entry: Mapping[str, Any], path: str, value: str = "value") -> None:
    lower, upper, middle = entry["lower"], entry["upper"], entry[value]
    if lower > upper:
        raise InputError(f"{path}.lower: expected at most upper = {upper!r}, got {lower!r}")
    if middle is None:
        return
    # An importance estimate above 1 stands for its limit, 1.
    shown = min(middle, 1.0)
    if not lower - _SLACK * abs(lower) <= shown <= upper + _SLACK * abs(upper):
        raise InputError(f"{path}.{value}: expected a number within [{lower!r}, {upper!r}], got {middle!r}")


def interval_rule(entry: Mapping[str, Any], path: str) -> None:
    """For intervals that always have a value."""
    if not entry["lower"] - 1e-9 <= entry["value"] <= entry["upper"] + 1e-9:
        raise InputError(f"{path}: expected lower <= value <= upper, got {entry['lower']}, {entry['value']}")


def estimate_rule(entry: Mapping[str, Any], path: str) -> None:
    ordered(entry, path)
    if entry["hits"] > entry["n"]:
        raise InputError(f"{path}.hits: expected at most n = {entry['n']}, got {entry['hits']}")


def estimator_rule(entry: Mapping[str, Any], path: str) -> None:
    for name in ("lower", "value", "upper"):
        if entry["method"] != "counterfactual" and (entry[name] or 0.0) < 0:
            raise InputError(f"{path}.{name}: expected 0 or more, got {entry[name]!r}")
    # What is not claimed is 0 from below and 1 from above.
    limits = {"lower": entry["lower"] or 0.0, "upper": 1.0 if entry["upper"] is None else entry["upper"]}
    if entry["value"] is None and limits != {"lower": 0.0, "upper": 1.0}:
        raise InputError(f"{path}.value: expected a number, since limits are claimed; got None")
    ordered({**limits, "value": entry["value"]}, path)
