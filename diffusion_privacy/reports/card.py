"""The card beside a thing that is given away: what it is, what is promised, what it is good for, what it must not be
used for, how to read it. Markdown, made from the report's entry of that way to share (`joined_schema.Way`).

What a card may repeat. Usefulness is computed from the shared thing and from test records that nobody learnt from: to
the private records it is post-processing, and covered by their guarantee. Risk is not: rates and attacks look at the
private records themselves, without noise. So a card says that they were measured, and shows them only where asked to;
a record's number and class are never on a card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_privacy.reports import wording
from diffusion_privacy.rounding import promised

KEEP = "DO NOT GIVE THIS AWAY"
"""How the first line of the card of an unprotected thing begins."""

_USES = (
    "developing, testing and teaching software that handles such images",
    "comparing methods, and training a first model before real data are at hand",
)
_MISUSES = (
    "diagnosing, treating or judging anybody: no image here is a finding in a person",
    "validating a product or a study in place of real records",
    "finding out who is in the records that it was made from, or anything about one of them",
    "estimating how frequent something rare is: what is rare among the records may be missing or distorted",
)
_LIMITS = (
    "The promise is for one record. Of a person with several records it says less, and how much less is not stated.",
    "It holds for this one thing. Whoever gets something else that was computed from the same records, another model, "
    "another copy or the report with its rates, holds more than is promised here; their ε add up.",
    "Settings may have been chosen by looking at the records, and this was handed out because an audit of the records "
    "found nothing against it. No ε here counts that.",
    "Usefulness was measured on test records of the same source. Elsewhere it may be another.",
)
_MODEL_LIMITS = (
    "It was measured with the sampler of config.json. Another sampler, or another number of steps, draws otherwise.",
)


def reasons_against(way: Mapping[str, Any]) -> tuple[str, ...]:
    """Why this thing must not be given away; empty where nothing speaks against it.

    Args:
      way: `joined_schema.Way`.
    """
    found = []
    if way["guarantee"]["epsilon"] is None:
        found.append(f"nothing is promised to the people whose records went into it ({way['guarantee']['why']})")
    leaks = sum(r["role"] == "private" and r["verdict"]["status"] == "leaks" for r in way["risk"]["records"])
    if leaks:
        found.append(f"it was seen to give back {leaks} of the private records that were looked for")
    return tuple(found)


def render(
    way: Mapping[str, Any], *, against: Sequence[str], show_risk: bool, reading: Sequence[str], code: str, source: str
) -> str:
    """The card as Markdown.

    Args:
      way: `joined_schema.Way`, of a validated release.
      against: why it must not be given away; empty where nothing speaks against it.
      show_risk: print the rates and attacks, which are statistics of the private records outside of the guarantee.
      reading: sentences on how to read the thing.
      code: Python that reads it, run in its folder.
      source: program and version.
    """
    first = f"# {KEEP}: {'; '.join(against)}\n\n## {way['title']}" if against else f"# {way['title']}"
    unfit = (*(["giving it to anybody: see the first line"] if against else []), *_MISUSES)
    limits = (*_LIMITS, *(_MODEL_LIMITS if way["kind"] == "model" else ()))
    sections = (
        ("What is promised", _promise(way["guarantee"])),
        ("What it is good for", _utility(way)),
        ("What it gives away", _risk(way, show_risk)),
        ("Meant for", _bullets([] if against else _USES) or "Nothing but an audit by those who hold the records."),
        ("Not to be used for", _bullets(unfit)),
        ("Limits", _bullets(limits)),
        ("How to use it", "\n".join([*reading, "", "```python", code.strip(), "```"])),
    )
    facts = f"A {way['kind']} made from {wording.count(way['n_train'])} private records. {way['what']}"
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    return f"{first}\n\n{facts}\n\n{body}\n\n---\n\nWritten by {source}.\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, ["---"] * len(head), *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _promise(guarantee: Mapping[str, Any]) -> str:
    epsilon, public = guarantee["epsilon"], guarantee["public"]
    if epsilon is None:
        return f"Nothing. {guarantee['sentence']}\n\nWhy: {guarantee['why']}."
    ratio = math.exp(epsilon) if epsilon < 300 else math.inf
    times = f"{wording.significant(ratio, 3, 'up')} times" if math.isfinite(ratio) else "any number of times"
    lines = [
        guarantee["sentence"],
        "",
        f"In words: had another record stood in the place of one of the private ones, nothing that anybody can read "
        f"from this would be more than {times} less likely (e^ε, smaller is better), but for a probability of "
        f"{promised(guarantee['delta'])} (δ, smaller is better). That is over the noise of its making, for every "
        "record.",
        "",
        _table(
            ("", ""),
            [
                ("ε, in nats (smaller is better)", wording.significant(epsilon, 4, "up") if epsilon else "0"),
                ("δ (smaller is better)", promised(guarantee["delta"])),
                ("two data sets are neighbours if they differ by", guarantee["relation"]),
                ("how", guarantee["mechanism"]),
                ("rests on these stages of the ledger", "; ".join(guarantee["stages"])),
                ("taken to be public", "; ".join(public) if public else "nothing"),
            ],
        ),
    ]
    return "\n".join(lines)


def _share(entry: Mapping[str, Any]) -> tuple[str, str]:
    limits = f"{wording.percent(entry['lower'], 'down')} to {wording.percent(entry['upper'], 'up')}"
    return wording.percent(entry["value"]), f"{limits} ({wording.percent(entry['level'])})"


def _utility(way: Mapping[str, Any]) -> str:
    found = way["utility"]
    frechet = found["frechet"]
    limits = f"{wording.significant(frechet['lower'], 3, 'down')} to {wording.significant(frechet['upper'], 3, 'up')}"
    rows = [
        ("right answers of classifiers trained on it, tested on real images", *_share(found["accuracy"]), "higher"),
        (
            "Fréchet distance to real images, in squared units of a small classifier's features",
            wording.significant(frechet["value"], 3),
            f"{limits} ({wording.percent(frechet['level'])})",
            "lower",
        ),
        ("precision: share of its images that look real", *_share(found["precision"]), "higher"),
        ("recall: share of real images that it covers", *_share(found["recall"]), "higher"),
    ]
    images = f"Measured with {wording.count(found['n_train'])} of its images."
    return f"{_table(('', 'value', 'interval (level)', 'better'), rows)}\n\n{images}"


def _risk(way: Mapping[str, Any], show: bool) -> str:
    promised = way["guarantee"]["epsilon"] is not None
    if not show:
        known = "what is promised above is all that this card says" if promised else "so this card promises nothing"
        return (
            "How often it gives back records that were looked for, and what attacks learn from it, was measured. The "
            f"numbers are statistics of the private records and are covered by no guarantee: {known}. They stand in "
            "the report, which stays with the data."
        )
    risk = way["risk"]
    records = [_record(f"{role} record {number}", record) for role, number, record in _numbered(risk["records"])]
    attack = risk["attack"]
    rows = [(f"attack: {attack['name']}, area under the curve (one half is chance)", *_share(attack["auc"]))]
    rows += [
        (f"attack: true positives at {wording.percent(point['false_positive_rate'])} false positives", *_share(point))
        for point in attack["points"]
        if point["value"] is not None
    ]
    if risk["linkage"] is not None:
        top = risk["linkage"]["rank1"]
        chance = wording.percent(top["chance"])
        rows.append((f"linkage: its images traced to their originals (chance {chance})", *_share(top)))
    uncovered = "the promise above does not cover them, and does not hold for whoever sees them too"
    parts = [
        "Smaller is better throughout. **These numbers are statistics of the private records, without noise: "
        f"{uncovered if promised else 'no guarantee covers them'}.**",
        _bullets([*records, *_certified(way["guarantee"]["certified"])]),
        _table(("", "value", "interval (level)"), rows),
    ]
    return "\n\n".join(parts)


def _numbered(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, Mapping[str, Any]]]:
    count = {"private": 0, "control": 0}
    found = []
    for record in records:
        count[record["role"]] += 1
        found.append((record["role"], count[record["role"]], record))
    return found


def _record(name: str, record: Mapping[str, Any]) -> str:
    return f"{name}: {record['verdict']['status']}; it comes back {wording.interval(record['verdict'], 'estimate')}"


def _certified(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    good = [entry for entry in entries if entry["reliable"]]
    if not good:
        return ["by the guarantee alone, no rate of return could be certified below 1"] if entries else []
    worst = max(good, key=lambda entry: entry["upper"])
    said = "every record that was replaced" if len(good) == len(entries) else f"{len(good)} of {len(entries)} records"
    return [
        f"by the guarantee, over its making and drawing, {said} comes back in at most "
        f"{wording.rate(worst['upper'], 'up')} {wording.RATE_UNIT} ({wording.percent(worst['level'])} two-sided level, "
        f"{wording.count(worst['models'])} made without the record)"
    ]
