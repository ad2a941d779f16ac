"""What the numbers of a joined study allow to be said of one way to share, and how its numbers are printed.

That a way `MAY` be given away is said only where `standing` finds nothing against it: it rests on a finite ε of which
the ledger knows every stage, no marked record was found to leak, and no measurement contradicts promise or audit. It
is said together with the promise. Printed ε, δ and upper limits are rounded up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypedDict

from diffusion_privacy.anonymity.intervals import clopper_pearson
from diffusion_privacy.reports import wording
from diffusion_privacy.reports.cadp_wording import delta, epsilon, share, with_interval
from diffusion_privacy.reports.wording import RATE_UNIT, percent, rate

MAY = "may be given away"
TITLES = {
    "raw_model": "Raw model",
    "dp_model": "DP-SGD model",
    "copy_model": "Model of the copy",
    "copy": "Private copy",
}
"""Short titles of the ways, for tables and figures."""
NAMES = {
    "raw_model": "the model trained on the records as they are",
    "dp_model": "the model trained with DP-SGD",
    "copy_model": "the model trained on the private copy",
    "copy": "the private copy itself",
}
WEAK_EPSILON = 10.0
"""A larger ε is "weak to no formal guarantee" in the tiers of Ponomareva et al., "How to DP-fy ML" (2023)."""

OVER = {"model": "over training and sampling", "data set": "over the noise of copying, given the flow"}
"""What a certified limit is a probability over."""

_RELATIONS = {
    "replace-one": "replacing one record, its class included, by any other",
    "add-or-remove-one": "adding or removing one record",
    "replace-record-same-public-condition": "replacing one record by any other of the same class, which is public",
    "replace-record-and-condition": "replacing one record and its class by any others",
}


# --- numbers ----------------------------------------------------------------------------------------------------------


def relation(text: str) -> str:
    """The neighbouring relation in plain words; one that is not known here stays as it is."""
    name, _, people = text.partition(", ")
    return f"{_RELATIONS[name]}{f' (up to {people})' if people else ''}" if name in _RELATIONS else text


def most_right(epsilon_: float, delta_: float) -> float:
    """Largest probability with which two neighbouring data sets, equally likely, are told apart: (e^ε + δ)/(e^ε + 1).

    From the trade-off region of (ε, δ)-privacy (Kairouz, Oh and Viswanath 2015); one half is guessing.
    """
    unlikely = math.exp(-epsilon_)
    return min(1.0, (1.0 + delta_ * unlikely) / (1.0 + unlikely))


def promise(guarantee: Mapping[str, Any]) -> str:
    """E.g. ``"ε = 4 at δ = 10⁻⁵ for replacing one record by any other"``; only where ε is finite."""
    known = f"ε = {epsilon(guarantee['epsilon'])} at δ = {delta(guarantee['delta'])}".replace(" = ", "\u00a0=\u00a0")
    return f"{known} for {relation(guarantee['relation'])}"


def meaning(guarantee: Mapping[str, Any]) -> str:
    """What the promise leaves to an attacker, as half a sentence."""
    right = percent(most_right(guarantee["epsilon"], guarantee["delta"]), "up")
    return f"whoever has to tell the two cases apart is right at most {right} of the time, by guessing {percent(0.5)}"


# --- what was found about one way -------------------------------------------------------------------------------------


def private_records(way: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The marked private records of a way."""
    return [record for record in way["risk"]["records"] if record["role"] == "private"]


def marked(way: Mapping[str, Any]) -> int:
    """How many marked private records a way was audited for."""
    return len(private_records(way))


class Worst(TypedDict):
    """Interval of the largest q among several records."""

    lower: float
    value: float | None  # null: no record has a point estimate
    upper: float
    level: float


def worst(way: Mapping[str, Any]) -> Worst:
    """Interval of the largest q among the marked private records: the largest of each limit, and of the estimates.

    It holds where the intervals of all records hold; ``level`` is that of each by itself.
    """
    found = [record["verdict"] for record in private_records(way)]
    known = [v["estimate"] for v in found if v["estimate"] is not None]
    return {
        "lower": max(v["lower"] for v in found),
        "value": max(known) if known else None,
        "upper": max(v["upper"] for v in found),
        "level": min(v["level"] for v in found),
    }


def leaking(way: Mapping[str, Any]) -> int:
    """How many marked private records leak."""
    return sum(record["verdict"]["status"] == "leaks" for record in private_records(way))


def not_certified(way: Mapping[str, Any]) -> int:
    """Of how many marked private records neither a leak nor its absence is certified."""
    return sum(record["verdict"]["status"] == "not certified" for record in private_records(way))


def sentence_case(text: str) -> str:
    """The text with its first letter large; a leading ε, which has no large form of the same meaning, stays."""
    return text if text.startswith("ε") else text[:1].upper() + text[1:]


def shown(way: Mapping[str, Any]) -> str:
    """How often the marked record that comes back most does, with its interval."""
    of = " of copies made alike" if way["kind"] == "data set" else ""
    one = "the marked record" if marked(way) == 1 else "the marked record that comes back most"
    return f"{one} is shown by {wording.interval(worst(way))}{of}"


def most_by_chance(point: Mapping[str, Any], non_members: int) -> float:
    """Upper limit of the share of strangers above an attack's threshold, which this many of them chose; of the
    interval at the point's level."""
    alarms = math.ceil(point["false_positive_rate"] * non_members)
    return float(clopper_pearson(alarms, non_members, point["level"])[1])


def contradiction(way: Mapping[str, Any]) -> str | None:
    """Where an attack finds more members than (ε, δ) allows: TPR <= e^ε FPR + δ, on average over members.

    The lower limit of the one against the upper limit of the other, each at its level: a true promise is contradicted
    so with probability 1 − level at most for each rate.
    """
    epsilon_, attack = way["guarantee"]["epsilon"], way["risk"]["attack"]
    if epsilon_ is None:
        return None
    for point in attack["points"]:
        at_most = most_by_chance(point, attack["non_members"])
        allowed = math.exp(min(epsilon_, 700.0)) * at_most + way["guarantee"]["delta"]
        if point["lower"] is not None and point["lower"] > allowed:
            return (
                f"an attack names at least {percent(point['lower'], 'down')} of the private records at "
                f"{percent(point['false_positive_rate'])} false alarms; the promise allows {percent(allowed, 'up')}"
            )
    return None


def found_by_attacks(way: Mapping[str, Any]) -> list[str]:
    """What attacks do better than guessing, as half sentences."""
    risk, found = way["risk"], []
    link = None if risk["linkage"] is None else risk["linkage"]["rank1"]
    if link is not None and link["p_value"] <= (1 - link["level"]) / 2:
        found.append(
            f"an attacker who holds the originals picks the right one for {with_interval(link)} of its images "
            f"(guessing: {share(link['chance'])})"
        )
    auc = risk["attack"]["auc"]
    if auc["lower"] > 0.5:
        found.append(
            f"a membership attack tells a private record from another in {with_interval(auc)} of pairs "
            f"(guessing: {percent(0.5)})"
        )
    return found


def certified_limit(way: Mapping[str, Any]) -> float | None:
    """Largest certified limit of q (E6) among the marked private records; None unless each of them has one."""
    bounds = {bound["index"]: bound for bound in way["guarantee"]["certified"]}
    found = [bounds.get(record["index"]) for record in private_records(way)]
    if not all(bound is not None and bound["reliable"] for bound in found):
        return None
    return max(bound["upper"] for bound in found if bound is not None)


def certified(way: Mapping[str, Any]) -> str:
    """What ε by itself certifies about q, as half a sentence."""
    limit = certified_limit(way)
    if limit is None:
        return (
            "ε by itself does not bound how often every marked record comes back, neither was it shown that none does: "
            "only the audit’s count says how often records come back"
        )
    sure = min((1 + bound["level"]) / 2 for bound in way["guarantee"]["certified"])
    return (
        f"ε certifies at most {rate(limit, 'up')} {RATE_UNIT} {OVER[way['kind']]} ({percent(sure)} confidence "
        "for each marked record)"
    )


@dataclasses.dataclass(frozen=True)
class Standing:
    """What may be said of one way.

    Attributes:
      status: label.
      kind: class of the style sheet; ``clean`` only where rates are certified to be at most 1/n too, else ``open``, or
        ``leaks``.
      reason: half a sentence whose "it" is the way.
      may: whether it may be called fit to be given away, under its promise.
    """

    status: str
    kind: str
    reason: str
    may: bool = False


def standing(release: Mapping[str, Any], name: str) -> Standing:
    """What the numbers allow to be said of the way ``name``; the first thing against it decides."""
    way = release["ways_to_share"][name]
    guarantee, leaks = way["guarantee"], leaking(way)
    alarm = wording.false_alarms(way["risk"]["records"])
    if alarm is not None:
        return Standing("cannot be judged", "open", f"its audit is not to be trusted, {alarm}")
    if leaks:
        said = f"it gives back {leaks} of {marked(way)} marked records; {shown(way)}"
        return Standing("gives records back", "leaks", said)
    seen = sum(record["in_copy"] or 0 for record in private_records(way))
    if seen:
        return Standing("gives records back", "leaks", f"{seen} images of the copy itself show a marked record")
    if guarantee["epsilon"] is None:
        why = guarantee["why"].rstrip(".")
        return Standing("promises nothing", "open", f"nothing is promised to any record ({why}); {shown(way)}")
    if release["ledger"]["not_recorded"]:
        lost = ", ".join(release["ledger"]["not_recorded"])
        return Standing(
            "cannot be judged", "leaks", f"the records were touched without an entry in the ledger by {lost}"
        )
    against = contradiction(way)
    if against is not None:
        return Standing("promise contradicted", "leaks", f"a measurement contradicts its promise: {against}")
    if guarantee["epsilon"] > WEAK_EPSILON or guarantee["delta"] >= 1 / way["n_train"]:
        weak = f"ε above {WEAK_EPSILON:g}" if guarantee["epsilon"] > WEAK_EPSILON else "δ not below 1/n"
        return Standing("promises too little", "open", f"its promise is next to none ({weak}): {promise(guarantee)}")
    limit = certified_limit(way)
    settled = limit is not None and limit <= 1 / way["n_train"] and not not_certified(way)
    kind = "clean" if settled else "open"
    return Standing(f"{MAY}, under its promise", kind, f"{shown(way)}; {certified(way)}", may=True)


def reasons_against(release: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Why the way ``name`` must not be given away; empty where `standing` lets it be called fit for that."""
    found = standing(release, name)
    return () if found.may else (found.reason,)
