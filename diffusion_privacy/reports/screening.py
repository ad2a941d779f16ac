"""Fields of the screening in release.json, and what must hold between them; see `reports.schema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports.estimates import (
    Count,
    Direct,
    NonNegative,
    Positive,
    Probability,
    Rate,
    Subspace,
    ordered,
)  # fmt: skip

DETECTOR = (
    "an image shows a listed record if it lies closer to it, in Euclidean distance over all pixels, than half the "
    "distance from the record to the nearest held-out record"
)
ASSUMES = (
    "the sampler as it was run; another one has another rate",
    "a reproduction is an image inside the record's ball, and one inside is not shown to be recognisable; the upper "
    "limit of q by direct samples allows for the perturbed copies that the ball does not hold, and for no copy that "
    "differs more than those; q by guided paths is of images inside",
    "held-out and control records were never seen by the model and are of the same kind as the training records",
    "the upper limit of t′ speaks of the levels that were looked at: it holds if h falls with t above them",
    "limits of t′, of q by direct samples and of q by guided paths each hold for all listed records together; the list "
    "was chosen without looking at the images that they count",
    "the upper limit of q by guided paths is of what such paths reach; images of a record that come from elsewhere are "
    "counted by direct samples alone",
    "of records that are not listed, or were dropped on the way, nothing is claimed",
)


class Bracket(TypedDict):
    """t' of a listed record by bisection. ``lower``: h > γ there; null: at no level. ``upper``: h <= γ' there."""

    lower: Probability | None
    upper: Probability | None
    censored: Literal["below", "above", "both"] | None  # which side was not decided
    finished: bool  # neighbouring levels; false: looks or draws ran out
    network_calls: Count


class Screened(TypedDict):
    """A record at the head of the ranking."""

    rank: Positive  # 1 is the most suspicious
    index: Count  # position in the source
    label: int
    score: float  # partial variational bound, nats; lower = more suspicious
    stderr: NonNegative  # of the score, nats
    p_value: Probability  # share of held-out records that score as low, this one counted; of one record by itself
    radius: NonNegative  # of its ball, half the distance to the nearest held-out record; images are scaled to [-1, 1]
    copies_inside: Rate  # share of perturbed copies that the ball holds; higher is better
    reasons: list[str]  # why not to trust the ball; empty when it holds most copies
    t_prime: Bracket
    direct: Direct  # of the images drawn for E1; costs no further calls; its upper limit allows for copies outside
    subspace: Subspace | None  # null: dropped by successive halving
    dropped_at: Positive | None  # the rung; null: a finalist
    network_calls: Count  # spent on this record alone: t' and guided paths


class Calls(TypedDict):
    """Network calls of the parts, over all records."""

    ranking: Count
    t_prime: Count
    subspace: Count


class Screening(TypedDict):
    records: Positive  # training records that were ranked, all of the model
    held_out: Positive  # records that the model never saw, scored beside them
    times: list[Probability]  # noise levels that were summed
    draws: Positive  # noised images a record and level
    level: Probability  # of t', of direct and of subspace limits, each for all listed records together; the level in
    # ``direct`` and ``copies_inside`` is that of one count, of which an upper limit of q needs two
    gamma: Probability
    gamma_upper: Probability
    detector: str
    network_calls: Calls
    listed: list[Screened]
    assumes: list[str]


def screened_rule(entry: Mapping[str, Any], path: str) -> None:
    """Raises InputError unless a record is a finalist with an estimate or dropped without one, and t' is a bracket."""
    if (entry["subspace"] is None) != (entry["dropped_at"] is not None):
        raise InputError(f"{path}.subspace: expected an estimate unless the record was dropped, and none if it was")
    t_prime = entry["t_prime"]
    missing = {"below": t_prime["lower"], "above": t_prime["upper"]}
    for side, value in missing.items():
        if (value is None) != (t_prime["censored"] in (side, "both")):
            raise InputError(
                f"{path}.t_prime.censored: expected {side!r} or 'both' where that limit is null, and else not"
            )
    if None not in missing.values():
        ordered({"lower": t_prime["lower"], "value": None, "upper": t_prime["upper"]}, f"{path}.t_prime")


def rule(entry: Mapping[str, Any], path: str) -> None:
    """Raises InputError unless ranks count up from 1, scores do not fall, and no more are listed than ranked."""
    listed = entry["listed"]
    if [record["rank"] for record in listed] != list(range(1, len(listed) + 1)) or len(listed) > entry["records"]:
        raise InputError(f"{path}.listed: expected ranks 1, 2, … of at most {entry['records']} records")
    scores = [record["score"] for record in listed]
    if scores != sorted(scores):
        raise InputError(f"{path}.listed: expected scores in rising order")
