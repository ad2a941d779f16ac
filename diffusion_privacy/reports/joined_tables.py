"""The tables of a joined report as HTML, the ledger apart (`joined_ledger`); see `tables` for escaping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_privacy.reports import wording
from diffusion_privacy.reports.cadp_wording import delta, epsilon, share, small, with_interval
from diffusion_privacy.reports.joined_schema import WAYS
from diffusion_privacy.reports.joined_standing import (
    certified_limit,
    leaking,
    most_by_chance,
    most_right,
    not_certified,
    private_records,
    relation,
    sentence_case,
    worst,
)
from diffusion_privacy.reports.tables import Markup, bullets, data_table, escape, status
from diffusion_privacy.reports.wording import RATE_UNIT, count, percent, rate, significant

_NONE = "–"


def in_order(release: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The four ways in the order of `WAYS`."""
    return [release["ways_to_share"][name] for name in WAYS]


def _note(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>'


# --- the one table ----------------------------------------------------------------------------------------------------


def _stacked(first: str, second: str, more: str = "") -> str:
    """A cell of two lines, the second small; one element, so that a narrow screen keeps it together."""
    return Markup(f'<span>{escape(first)}<br><span class="small">{escape(second + more)}</span></span>')


def _measure(name: str, unit: str, group: str = "") -> str:
    over = f'<span class="group">{escape(group)}</span>' if group else ""
    return Markup(f'{over}{escape(name)}<br><span class="small">{escape(unit)}</span>')


def _share(entry: Mapping[str, Any]) -> str:
    value, _, limits = with_interval(entry).partition("\u00a0(")
    return _stacked(value, f"({limits}")


def _number(entry: Mapping[str, Any]) -> str:
    low, high = significant(entry["lower"], 3, "down"), significant(entry["upper"], 3, "up")
    return _stacked(significant(entry["value"], 3), f"({low} to {high})")


def _yardsticks(release: Mapping[str, Any], key: str) -> str:
    """One line a yardstick, with its interval."""
    lines = []
    for one in release["yardsticks"]:
        entry = one["utility"][key]
        low, high = significant(entry["lower"], 3, "down"), significant(entry["upper"], 3, "up")
        text = (
            f"{significant(entry['value'], 3)} ({low} to {high})" if key == "frechet" else with_interval(entry)
        )  # fmt: skip
        lines.append(f'{escape(one["name"])}: <span class="small">{escape(text)}</span>')
    return Markup(f"<span>{'<br>'.join(lines) or _NONE}</span>")


def _limited(q: Mapping[str, Any], value: str) -> tuple[str, str]:
    """A rate and its limits, apart."""
    shown = _NONE if q[value] is None else rate(q[value])
    return shown, f"({rate(q['lower'], 'down')} to {rate(q['upper'], 'up')})"


def _statuses(way: Mapping[str, Any]) -> str:
    undecided = not_certified(way)
    return f"{leaking(way)} of {len(private_records(way))}" + (f"; {undecided} not certified" if undecided else "")


def _t_prime(way: Mapping[str, Any]) -> str:
    """The largest statistical t′ among the marked records."""
    found = [record["t_prime"]["statistical"] for record in private_records(way) if record["t_prime"] is not None]
    if not found:
        return "not defined"
    return wording.statistical_t_prime(max(found, key=lambda t: (t["value"] or 0.0, t["censored"] == "above")))


def _linked(way: Mapping[str, Any]) -> str:
    linkage = way["risk"]["linkage"]
    if linkage is None:
        return "not defined"
    value, _, limits = with_interval(linkage["rank1"]).partition("\u00a0(")
    return _stacked(value, f"({limits}; guessing {share(linkage['rank1']['chance'])}")


def _point(way: Mapping[str, Any], at: float) -> str:
    for point in way["risk"]["attack"]["points"]:
        if point["false_positive_rate"] == at:
            if point["value"] is None:
                return _stacked(_NONE, point["reason"])
            chance = percent(most_by_chance(point, way["risk"]["attack"]["non_members"]), "up")
            value, _, limits = with_interval(point).partition("\u00a0(")
            return _stacked(value, f"({limits}, by chance at most {chance}")
    return _NONE


def _bound(way: Mapping[str, Any]) -> str:
    bounds = way["guarantee"]["certified"]
    if not bounds:
        return _NONE
    limit = certified_limit(way)
    if limit is None:
        return "says nothing for some records" if any(bound["reliable"] for bound in bounds) else "says nothing"
    sure = percent(min((1 + bound["level"]) / 2 for bound in bounds))
    return _stacked(rate(limit, "up"), f"at most, {sure} confidence each")


def _rates(release: Mapping[str, Any]) -> list[float]:
    points = (point for way in in_order(release) for point in way["risk"]["attack"]["points"])
    return sorted({point["false_positive_rate"] for point in points}, reverse=True)


def _promised(guarantee: Mapping[str, Any], text: str) -> str:
    return _NONE if guarantee["epsilon"] is None else text


def _row(measure: str, cells: Sequence[str], compare: str = _NONE, first: bool = False) -> tuple[str, Sequence[str]]:
    return "first" if first else "", [measure, *cells, compare]


def _utility_rows(release: Mapping[str, Any]) -> list[tuple[str, Sequence[str]]]:
    measures = (
        ("accuracy", "Right answers", "trained on it, tested on real images; higher is better"),
        ("frechet", "Fréchet distance", "to real images, squared feature units; lower is better"),
        ("recall", "Coverage", "recall: kinds of real images that are there; higher is better"),
        ("precision", "Plausibility", "precision: images that look real; higher is better"),
    )
    rows = []
    for key, name, unit in measures:
        show = _number if key == "frechet" else _share
        first = key == "accuracy"
        cells = [show(way["utility"][key]) for way in in_order(release)]
        rows.append(_row(_measure(name, unit, "Utility" if first else ""), cells, _yardsticks(release, key), first))
    return rows


def _risk_rows(release: Mapping[str, Any]) -> list[tuple[str, Sequence[str]]]:
    ways = in_order(release)
    memoriser = ", ".join(dict.fromkeys(f"memoriser, 1/n: {rate(1 / way['n_train'])}" for way in ways))
    worst_q = _measure("q, worst marked record", f"{RATE_UNIT}; lower is safer", "Risk")
    auc = _measure("Membership attack", "pairs told apart (AUC); nearer to guessing is safer")
    return [
        _row(worst_q, [_stacked(*_limited(worst(way), "value")) for way in ways], memoriser, first=True),
        _row(_measure("Marked records that leak", "fewer is safer"), [_statuses(way) for way in ways]),
        _row(_measure("t′, largest", "0 to 1, confidence as below; lower is safer"), [_t_prime(way) for way in ways]),
        _row(_measure("Linkage", "original found first; lower is safer"), [_linked(way) for way in ways]),
        _row(auc, [_share(way["risk"]["attack"]["auc"]) for way in ways], f"guessing: {percent(0.5)}"),
        *(
            _row(
                _measure(f"Found at {percent(at)} false alarms", "of the private records; lower is safer"),
                [_point(way, at) for way in ways],
                f"guessing: {percent(at)}",
            )
            for at in _rates(release)
        ),
    ]


def _promise_rows(release: Mapping[str, Any]) -> list[tuple[str, Sequence[str]]]:
    ways = in_order(release)
    given = [way["guarantee"] for way in ways]
    epsilons = ["none" if g["epsilon"] is None else epsilon(g["epsilon"]) for g in given]
    public = ["; ".join(g["public"]) or "nothing named" for g in given]
    bound = _measure("Certified limit of q", f"{RATE_UNIT}, over training or copying, and sampling; lower is safer")
    return [
        _row(_measure("ε", "nats; lower promises more", "Promise"), epsilons, first=True),
        _row(_measure("δ", "lower promises more"), [_promised(g, delta(g["delta"])) for g in given]),
        _row(_measure("For", "what may differ"), [_promised(g, relation(g["relation"])) for g in given]),
        _row(_measure("Taken as public", "not protected"), list(map(_promised, given, public))),
        _row(bound, [_bound(way) for way in ways]),
    ]


def comparison(release: Mapping[str, Any]) -> str:
    """The one table: utility, risk and promise of the four ways side by side, each measure with its direction."""
    columns = [("Measure", ""), *((way["title"], "") for way in in_order(release)), ("To compare", "")]
    rows = [*_utility_rows(release), *_risk_rows(release), *_promise_rows(release)]
    return data_table("Four ways to share the same records", columns, rows) + _note(_terms(release))


def _terms(release: Mapping[str, Any]) -> str:
    """How the intervals of the table are to be read."""
    first = in_order(release)[0]["utility"]["accuracy"]
    return (
        f"In brackets: {percent(release['level'])} intervals unless a cell says otherwise. Right answers: over "
        f"{count(len(first['seeds']))} trainings, all scored on the same {count(release['data']['test'])} test records,"
        " whose choice they do not cover; a model or a copy is one draw. Fréchet distance: over bootstrap resamples. "
        "q: exact, of each record by itself; the row shows the largest limits and the largest estimate. Limits of q "
        "and of the certified bound are rounded outwards, ε and δ upwards."
    )


# --- record by record -------------------------------------------------------------------------------------------------


def verdicts(release: Mapping[str, Any]) -> str:
    """One table a way: every marked record with verdict and interval; what the verdicts assume."""
    columns = (
        ("Record", ""), ("Verdict", ""), ("q", f"{RATE_UNIT}; interval in brackets"), ("Bound", RATE_UNIT),
        ("Direct images", "hits, of how many"), ("In words", ""),
    )  # fmt: skip
    found = []
    for way in in_order(release):
        rows = []
        for record in way["risk"]["records"]:
            verdict, direct = record["verdict"], record["direct"]
            cells = [
                f"{wording.record_name(record)}, label {record['label']}",
                Markup(status(verdict)),
                _stacked(*_limited(verdict, "estimate"), f", {percent(verdict['level'])}"),
                rate(verdict["bound"]),
                f"{count(direct['hits'])} of {count(direct['n'])}",
                verdict["sentence"],
            ]
            rows.append((record["role"], cells))
        title = f"{way['title']}: {count(way['n_train'])} private records went into it"
        found.append(data_table(title, columns, rows))
    records = [record for way in in_order(release) for record in way["risk"]["records"]]
    assumed = dict.fromkeys(text for record in records for text in record["verdict"]["assumes"])
    return "".join(found) + (f"<p>The verdicts assume:</p>{bullets(assumed)}" if assumed else "")


# --- promises ---------------------------------------------------------------------------------------------------------


def guarantees(release: Mapping[str, Any]) -> str:
    """What each way promises, on what it rests, and what ε certifies about q."""
    columns = (
        ("Way", ""), ("ε", "nats; δ; how often two neighbours are told apart, where guessing is 50 %"), ("For", ""),
        ("Mechanism", ""), ("Taken as public", ""), ("Rests on", "entries of the ledger"), ("In words", ""),
    )  # fmt: skip
    rows = []
    for way in in_order(release):
        given, promised = way["guarantee"], way["guarantee"]["epsilon"] is not None
        words = " ".join(f"{sentence_case(text.rstrip('.'))}." for text in (given["sentence"], given["why"]) if text)
        terms = ""
        if promised:
            right = percent(most_right(given["epsilon"], given["delta"]), "up")
            terms = f"δ = {delta(given['delta'])}; told apart at most {right} of the time"
        cells = [
            way["title"],
            _stacked(epsilon(given["epsilon"]), terms) if promised else "none",
            _promised(given, relation(given["relation"])),
            given["mechanism"] or _NONE,
            "; ".join(given["public"]) or _NONE,
            "; ".join(given["stages"]) or _NONE,
            words or _NONE,
        ]
        rows.append(("", cells))
    return data_table("What is promised if this alone is given away", columns, rows) + _certified(release)


def _certified(release: Mapping[str, Any]) -> str:
    columns = (
        ("Way, record", ""), ("Certified limit of q", f"{RATE_UNIT}; its confidence"),
        ("At the measured rate", RATE_UNIT), ("Rate without the record", f"{RATE_UNIT}; upper limit in brackets"),
        ("Models", "trained without it; images of them"), ("Models that would do", "to certify 1/n"),
        ("Remarks", ""),
    )  # fmt: skip
    rows: list[tuple[str, Sequence[str]]] = []
    assumed: dict[str, None] = {}
    for way in in_order(release):
        for one in way["guarantee"]["certified"]:
            without = one["without"]
            cells = [
                f"{way['title']}, record {one['index']}",
                _stacked(
                    rate(one["upper"], "up") if one["reliable"] else "says nothing", percent((1 + one["level"]) / 2)
                ),
                rate(one["value"]),
                f"{rate(without['value'])} ({rate(without['upper'], 'up')})",
                _stacked(count(one["models"]), f"{count(one['images'])} images"),
                "δ alone exceeds it" if one["models_needed"] is None else count(one["models_needed"]),
                "; ".join(one["reasons"]) or _NONE,
            ]
            rows.append(("", cells))
            assumed |= dict.fromkeys(one["assumes"])
    if not rows:
        return "<p>No bound on q was derived from ε: no way has one.</p>"
    note = (
        "q ≤ e^ε q₋ + δ, where q₋ is the rate of the same training with the record replaced. A probability over "
        "training, noise and sampling: of what such a way shows on average, not of the one model or copy at hand."
    )
    table = data_table("What ε certifies about q (E6)", columns, rows)
    return table + _note(note) + f"<p>The certified limits assume:</p>{bullets(assumed)}"


# --- attacks ----------------------------------------------------------------------------------------------------------


def attacks(release: Mapping[str, Any]) -> str:
    """Membership attack and linkage of every way; a rate that is not defined comes with its reason."""
    rates = _rates(release)
    columns = (
        ("Way", ""), ("Attack", ""), ("Members, others", ""), ("Pairs told apart", "AUC; guessing is 50 %"),
        *((f"Found at {percent(at)}", "false alarms") for at in rates),
    )  # fmt: skip
    rows = []
    for way in in_order(release):
        attack = way["risk"]["attack"]
        cells = [
            way["title"],
            _stacked(attack["name"], attack["what"]),
            _sides(attack),
            _share(attack["auc"]),
            *(_point(way, at) for at in rates),
        ]
        rows.append(("", cells))
    level = percent(in_order(release)[0]["risk"]["attack"]["auc"]["level"])
    note = f"In brackets: {level} intervals. Members are the private records. Lower is safer."
    return data_table("Was a record among those learnt from?", columns, rows) + _note(note) + _linkage(release)


def _sides(attack: Mapping[str, Any]) -> str:
    """Members and others, and of the others those that were none."""
    sides, left_out = f"{count(attack['members'])}, {count(attack['non_members'])}", attack.get("left_out", 0)
    return _stacked(sides, f"left out: {count(left_out)} equal to a private record") if left_out else sides


def _linkage(release: Mapping[str, Any]) -> str:
    columns = (
        ("Way", ""), ("Original first", "of images"), ("by guessing", ""), ("p", "of so many by guessing"),
        ("Original in first 10", ""), ("by guessing", "first 10"), ("p", "first 10"),
    )  # fmt: skip
    rows = []
    for way in in_order(release):
        found = way["risk"]["linkage"]
        if found is not None:
            cells = [way["title"]]
            for rank in (found["rank1"], found["rank10"]):
                cells += [_share(rank), share(rank["chance"]), small(rank["p_value"])]
            rows.append(("", cells))
    if not rows:
        return ""
    note = "A model’s images have no originals: linkage is defined for a copy only. Lower is safer."
    return data_table("Can an image of it be linked to its original?", columns, rows) + _note(note)
