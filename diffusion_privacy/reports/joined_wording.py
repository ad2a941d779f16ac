"""Sentences of the report of a joined study: the answer, what it does not say, what stayed open.

What may be said of a single way, and when, is decided in `joined_standing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_privacy.mechanisms.manifest import ORDER_IS_PUBLIC
from diffusion_privacy.reports import wording
from diffusion_privacy.reports.cadp_wording import with_interval
from diffusion_privacy.reports.joined_schema import WAYS
from diffusion_privacy.reports.joined_standing import (
    MAY,
    NAMES,
    certified_limit,
    found_by_attacks,
    marked,
    most_right,
    not_certified,
    promise,
    sentence_case,
    standing,
    worst,
)
from diffusion_privacy.reports.wording import RATE_UNIT, count, percent, rate


def _listed(texts: Sequence[str], word: str = "and") -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {word} {texts[-1]}"


def _promises(ways: Mapping[str, Any], names: Sequence[str]) -> str:
    """The ways that may go with their promises, those with equal promises together."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        guarantee = ways[name]["guarantee"]
        groups.setdefault((guarantee["epsilon"], guarantee["delta"], guarantee["relation"]), []).append(name)
    parts: list[str] = []
    for epsilon_, delta_, differs in groups:
        guarantee = {"epsilon": epsilon_, "delta": delta_, "relation": differs}
        right = percent(most_right(epsilon_, delta_), "up")
        told = f"the two cases are told apart at most {right} of the time" + (
            f", by guessing {percent(0.5)}" if not parts else ""
        )
        group = [NAMES[name] for name in groups[epsilon_, delta_, differs]]
        parts.append(f"{_listed(group, 'or')}, under {promise(guarantee)} ({told})")
    return "; ".join(parts)


def _found(ways: Mapping[str, Any], names: Sequence[str]) -> str:
    """One sentence on what was measured of the ways that may go."""
    found = [worst(ways[name]) for name in names]
    rates = []
    for q in found:
        value = "no estimate" if q["value"] is None else rate(q["value"])
        rates.append(f"{value} ({rate(q['lower'], 'down')} to {rate(q['upper'], 'up')})")
    level = percent(min(q["level"] for q in found))
    order = ", in this order" if len(names) > 1 else ""
    bounded = {NAMES[name]: limit for name in names if (limit := certified_limit(ways[name])) is not None}
    more = ["ε by itself bounds no such rate here"]
    if bounded:
        whose = "" if len(bounded) == len(names) else f" for {_listed(list(bounded))} only"
        at_most = " and ".join(rate(limit, "up") for limit in bounded.values())
        more = [f"ε by itself bounds such rates{whose} (at most {at_most}, over training or copying, and sampling)"]
    undecided, all_ = (sum(map(f, (ways[name] for name in names))) for f in (not_certified, marked))
    if undecided:
        more.insert(0, f"{undecided} of {all_} audits could certify neither a leak nor its absence")
    attacked = [NAMES[name] for name in names if found_by_attacks(ways[name])]
    if attacked:
        more.append(f"attacks on {_listed(attacked)} do better than guessing")
    return (
        f"no marked record was found to leak from {'it' if len(names) == 1 else 'them'}: the one that comes back most "
        f"is shown by {_listed(rates)} {RATE_UNIT}{order} ({level} intervals); {'; '.join(more)}"
    )


def _worth(release: Mapping[str, Any], names: Sequence[str]) -> str:
    """Half a sentence where the public records alone teach a classifier more than anything that may go; else empty."""
    own = [y["utility"]["accuracy"] for y in release["yardsticks"] if y["name"] == "public"]
    ways = [release["ways_to_share"][name]["utility"]["accuracy"] for name in names]
    if not own or own[0]["lower"] <= max(a["upper"] for a in ways):
        return ""
    best = max(ways, key=lambda a: a["value"])
    return (
        f"to a classifier the public records alone are worth more than any of these: {with_interval(own[0])} right "
        f"answers, against {with_interval(best)} at best"
    )


def answer(release: Mapping[str, Any]) -> str:
    """What may go and under which promise, what was found of it, and what may not go and why: a sentence each.

    Args:
      release: all of joined-1.0 but ``answer``, ``limits`` and ``uncertified``.
    """
    ways = release["ways_to_share"]
    found = {name: standing(release, name) for name in WAYS}
    may = [name for name in WAYS if found[name].may]
    rest = [name for name in WAYS if not found[name].may]
    if not may:
        whose = f"these {count(release['data']['private'])} records"
        first = f"none of the four ways to share {whose} is shown to be safe to give away"
        sentences = [first, "; ".join(f"{NAMES[name]}: {found[name].reason}" for name in rest)]
    else:
        one = f"one of these {MAY}" if len(may) > 1 else f"one of the four ways {MAY}"
        first = f"{one}, alone and without anything else that touched the records: {_promises(ways, may)}"
        against = "; ".join(f"{NAMES[name]} may not: {found[name].reason}" for name in rest)
        sentences = [first, _found(ways, may), _worth(release, may), against]
    return " ".join(f"{sentence_case(text)}." for text in sentences if text)


MARKED_FIRST = "which records of the source come first (they are marked)"
"""Among what the manifest of a joined study's copy calls public."""

_ORDERED = (
    "The copy holds its images in the order of the private records. Linkage was measured without that order; "
    "whoever knows the order knows which image was made from whom. Shuffle the copy if anybody does."
)
_SHUFFLED = (
    "The copy holds the images of the marked records first, and the others in a random order. Whoever has the file of "
    "that order knows which image was made from whom: keep it with the data."
)


# --- what it does not say, and what stayed open -----------------------------------------------------------------------


def limits(release: Mapping[str, Any]) -> list[str]:
    """What no report of this kind says, with this run's numbers."""
    ways = release["ways_to_share"].values()
    public = list(dict.fromkeys(text for way in ways for text in way["guarantee"]["public"]))
    alarms, seen = (wording.detector_rate(release["detector"][f"{k}_positive_rate"]) for k in ("false", "true"))
    looked_for = marked(release["ways_to_share"]["raw_model"])
    return [
        "A promise holds only if NOTHING else that touched the records is given away: no second way (ε and δ of two "
        "ways add up), and not this report, release.json, pictures, detectors, training logs and audit numbers. They "
        "were computed from the private records without privacy. Keep them with the data.",
        "A promise is a probability over the noise of training or copying. The certified bound is one over training, "
        "noise AND sampling: it speaks of what such a way shows on average, and the one model or copy at hand may show "
        "more.",
        "An audit is no guarantee. It can find that a record comes back or that a promise is false; that it finds "
        "nothing proves nothing about other attacks, other records or other marks.",
        f"It looked for {count(looked_for)} private record{'s' if looked_for > 1 else ''} with a planted fingerprint, "
        f"by one kind of fingerprint and one detector. The detector errs: false alarms {alarms}, returns seen {seen}."
        f"{wording.returns([release['detector']])} A real feature may be learnt faster or slower.",
        "Intervals of q hold for each record by itself. Where several records were looked at, the largest is quoted, "
        "and it is less certain than its level says.",
        "q counts images. Whoever is given a model holds its weights too; only ε says anything about attacks on those.",
        "The private copy is ONE draw of its mechanism. Its q was counted in copies made alike that were never given "
        "to anybody: it speaks of the mechanism. Linkage and utility were measured on the one copy.",
        _SHUFFLED if MARKED_FIRST in public and ORDER_IS_PUBLIC not in public else _ORDERED,
        f"A promise protects one record against being told from another, as its relation says. It does not protect "
        f"what the records have in common, a person with several records, or what it calls public: "
        f"{'; '.join(public) or 'nothing was named'}.",
        "Settings chosen by looking at the private records, and the choice among the four ways by this report, cost "
        "privacy that no ledger counts.",
        "Right answers of a classifier and distances in features of another say what is useful for one task. They say "
        "nothing of rare findings, which noise erases first; the distances are not comparable with Inception features.",
        "Noise is drawn and added in finite arithmetic; the proofs are for real numbers.",
        "Whether an ε is small enough is for those answerable for the records to decide. This is a measurement and no "
        "legal opinion.",
    ]


def _certified_point(bound: Mapping[str, Any], way: Mapping[str, Any]) -> str | None:
    """What E6 left open of one record: whether q <= 1/n is certified, and what would do."""
    target, unit = 1 / way["n_train"], "models" if way["kind"] == "model" else "copies"
    if bound["reliable"] and bound["upper"] <= target:
        return None
    has = (
        f"certifies at most {rate(bound['upper'], 'up')} {RATE_UNIT}, more than 1/n = {rate(target)}"
        if bound["reliable"]
        else "bounds no rate (the bound is 1)"
    )
    needed = (
        f"no number of {unit} would do, δ alone exceeds 1/n"
        if bound["models_needed"] is None
        else f"about {count(bound['models_needed'])} {unit} made without the record, none with a hit, would certify "
        f"1/n; {count(bound['models'])} were made"
    )
    return f"ε by itself {has}; {needed}."


def uncertified(release: Mapping[str, Any]) -> list[str]:
    """What could not be certified, with the number of samples or models that would do; equal words are joined."""
    ways = release["ways_to_share"]
    points = wording.open_points({way["title"]: way["risk"]["records"] for way in ways.values()})
    for way in ways.values():
        guarantee, groups = way["guarantee"], dict[str, list[str]]()
        if guarantee["epsilon"] is None:
            points.append(
                f"{way['title']}: nothing can be certified for records that were not marked; no ε bounds their rate, "
                "and no number of samples would do."
            )
        for bound in guarantee["certified"]:
            text = _certified_point(bound, way)
            if text is not None:
                groups.setdefault(text, []).append(f"private record {bound['index']}")
        points += [f"{way['title']}, {', '.join(who)}: {text}" for text, who in groups.items()]
        attack = way["risk"]["attack"]
        points += [
            f"{way['title']}: the attack “{attack['name']}” has no rate at {percent(point['false_positive_rate'])} "
            f"false alarms: {point['reason'].rstrip('.')}."
            for point in attack["points"]
            if point["value"] is None
        ]
    return points
