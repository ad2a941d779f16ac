"""The ledger of a joined report as HTML: every stage that touched private records, its event in words, the total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_privacy.reports.joined_tables import in_order
from diffusion_privacy.reports.tables import Markup, bullets, data_table, escape
from diffusion_privacy.reports.wording import count


def event_words(event: Mapping[str, Any]) -> str:
    """A stored privacy event in words; of a kind that is not known here, its type and fields."""

    def inner(name: str) -> str:
        return event_words(event[name])

    words = {
        "GaussianDpEvent": lambda: f"Gaussian noise, multiplier {event['noise_multiplier']:.4g}",
        "LaplaceDpEvent": lambda: f"Laplace noise, multiplier {event['noise_multiplier']:.4g}",
        "DiscreteLaplaceDpEvent": lambda: (
            f"discrete Laplace noise, parameter {event['noise_parameter']:.4g}, sensitivity {event['sensitivity']:.4g}"
        ),
        "RandomizedResponseDpEvent": lambda: (
            f"randomised response among {event['num_buckets']}, noise parameter {event['noise_parameter']:.4g}"
        ),
        "ZCDpEvent": lambda: f"zero-concentrated, ρ = {event['rho']:.4g}",
        "PoissonSampledDpEvent": lambda: (
            f"each record drawn with probability {event['sampling_probability']:.4g}, then {inner('event')}"
        ),
        "SelfComposedDpEvent": lambda: f"{count(event['count'])} times ({inner('event')})",
        "ComposedDpEvent": lambda: "; ".join(map(event_words, event["events"])) or "nothing",
        "NoOpDpEvent": lambda: "nothing",
        "NonPrivateDpEvent": lambda: "NOT PRIVATE",
        "UnsupportedDpEvent": lambda: "of unknown privacy: nothing is promised",
    }
    kind = str(event.get("type"))
    if kind in words:
        return words[kind]()
    return ", ".join(f"{name} = {value}" for name, value in event.items())


def section(release: Mapping[str, Any]) -> str:
    """Every entry with its event, the total, and what is missing."""
    book = release["ledger"]
    columns = (("Stage", ""), ("Event", ""), ("Records", ""), ("Ways that rest on it", ""))
    rows = []
    for entry in book["entries"]:
        ways = [way["title"] for way in in_order(release) if entry["stage"] in way["guarantee"]["stages"]]
        none = Markup('<span><span class="status leaks">no event</span></span>')
        cells = [
            entry["stage"],
            none if entry["event"] is None else event_words(entry["event"]),
            "all" if entry["records"] is None else count(entry["records"]),
            ", ".join(ways) or "none",
        ]
        rows.append(("", cells))
    lost = "".join(
        f'<p class="alarm"><b>Not in the ledger.</b> {escape(what)} touched the private records without an entry. No '
        "promise of this report may be relied on until the cause is found.</p>"
        for what in book["not_recorded"]
    )
    stated = ", ".join(f"{name} = {value:g}" for name, value in book["stated_total"].items())
    total = [
        f"All entries together, if everything were given away: {book['sentence']}",
        f"Stages without an event: {', '.join(book['uncovered']) or 'none'}.",
        f"Not recorded: {', '.join(book['not_recorded']) or 'nothing'}.",
        f"The ledger refuses to spend more than: {stated or 'nothing stated'}.",
    ]
    return lost + data_table("Everything that touched the private records", columns, rows) + bullets(total)
