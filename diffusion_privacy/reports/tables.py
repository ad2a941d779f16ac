"""The report's tables as HTML. `escape` is the one way by which a text of the release becomes markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffusion_privacy.reports import schema, wording

_STATUS_CLASS = {"leaks": "leaks", "no leak above bound": "clean", "not certified": "open"}


def escape(value: object) -> str:
    """Text for an HTML element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def bullets(sentences: Iterable[str], kind: str = "") -> str:
    """A list with one item a sentence; ``kind`` is a class of the style sheet."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">{items}</ul>' if kind else f"<ul>{items}</ul>"


def status(verdict: Mapping[str, Any]) -> str:
    """The verdict's status as a framed label."""
    return f'<span class="status {_STATUS_CLASS[verdict["status"]]}">{escape(verdict["status"])}</span>'


class Markup(str):
    """A cell that is markup already: made in this room, every text in it escaped."""


def data_table(
    caption: str, columns: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "cards"
) -> str:
    """A table with the row's name in its first column; narrow screens show it as one card a row.

    Args:
      caption: plain text, as all texts here: they are escaped, unless a cell is markup of this module.
      columns: ``(name, unit or direction)`` of each; the second may be empty.
      rows: ``(class of the style sheet, cells)``, as many cells as columns.
      kind: class of the style sheet; empty for a table that stays one.
    """
    head = "".join(f'<th scope="col">{escape(name)}<span>{escape(unit)}</span></th>' for name, unit in columns)
    body = []
    for row_class, cells in rows:
        texts = [cell if isinstance(cell, Markup) else escape(cell) for cell in cells]
        labelled = "".join(
            f'<td data-label="{escape(", ".join(filter(None, column)))}">{text}</td>'
            for column, text in zip(columns[1:], texts[1:], strict=True)
        )
        body.append(f'<tr class="{escape(row_class)}"><th scope="row">{texts[0]}</th>{labelled}</tr>')
    return (
        f'<table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def verdicts(release: Mapping[str, Any]) -> str:
    """One table a model: limits, estimate, verdict and cost of each record, and what the verdicts assume."""
    columns = (
        ("Record", ""),
        ("Verdict", ""),
        ("Lower limit", wording.RATE_UNIT),
        ("Estimate", wording.RATE_UNIT),
        ("Upper limit", wording.RATE_UNIT),
        ("Confidence", "of the interval"),
        ("Bound", wording.RATE_UNIT),
        ("Cost", "network calls: direct; subspace"),
    )
    tables = []
    for name, model in release["models"].items():
        rows = []
        for record in model["records"]:
            verdict, subspace = record["verdict"], record["subspace"]
            cells = [
                f"{wording.record_name(record)}, label {record['label']}",
                Markup(status(verdict)),
                wording.rate(verdict["lower"], "down"),
                "–" if verdict["estimate"] is None else wording.rate(verdict["estimate"]),
                wording.rate(verdict["upper"], "up"),
                wording.percent(verdict["level"]),
                wording.rate(verdict["bound"]),
                f"{wording.calls(record['direct']['network_calls'])}; "
                + ("–" if subspace is None else wording.calls(subspace["network_calls"])),
            ]
            rows.append((record["role"], cells))
        title = (
            f"{name}: {wording.count(model['n_train'])} training records, {wording.count(model['n_samples'])} images "
            f"drawn, {wording.significant(model['expected_if_memorised'], 3)} returns expected of a memoriser"
        )
        tables.append(data_table(title, columns, rows))
    shared = "The direct images of a model serve all its records: their cost is paid once."
    return "".join(tables) + f'<p class="small">{shared}</p>' + _assumptions(release)


def _assumptions(release: Mapping[str, Any]) -> str:
    records = [record for model in release["models"].values() for record in model["records"]]
    # A dict keeps the order and drops repetitions.
    assumed = list(dict.fromkeys(text for record in records for text in record["verdict"]["assumes"]))
    return "<p>The verdicts assume:</p>" + bullets(assumed) if assumed else ""


def t_primes(release: Mapping[str, Any]) -> str:
    """Both readings of t' for each record, and the terms on which they were read."""
    rows = [
        (
            record["role"],
            [
                f"{name}, {wording.record_name(record)}",
                wording.statistical_t_prime(record["t_prime"]["statistical"]),
                wording.paper_t_prime(record["t_prime"]["paper"]),
            ],
        )
        for name, model in release["models"].items()
        for record in model["records"]
    ]
    records = [record["t_prime"] for model in release["models"].values() for record in model["records"]]
    terms = [wording.statistical_terms(entry["statistical"]) for entry in records]
    terms += [wording.paper_terms(entry["paper"]) for entry in records]
    columns = (("Record", ""), ("t′ statistical", ""), ("t′ as in the paper", ""))
    caption = (
        "t′, the largest noise level from which the record is shown to come back (0 to 1, higher = more memorised)"
    )
    table = data_table(caption, columns, rows)
    return table + f'<p class="small">{escape(" ".join(dict.fromkeys(terms)))}</p>'


def _estimate_cells(who: str, kind: str, entry: Mapping[str, Any]) -> list[str]:
    ess = "–" if entry["ess"] is None else wording.significant(entry["ess"], 3)
    tail = ""
    if kind == "subspace":
        names = (("pareto_k", "Pareto k"), ("max_weight_share", "largest weight"))
        tail = "; ".join(f"{title} {entry[key]:.2f}" for key, title in names if entry[key] is not None)
    trust = "yes" if entry["reliable"] else "no"
    remarks = "; ".join(part for part in (tail, *entry["reasons"]) if part)
    return [
        f"{who}, {kind}",
        wording.interval(entry),
        f"{wording.count(entry['hits'])} of {wording.count(entry['n'])}",
        ess,
        f"{trust} ({remarks})" if remarks else trust,
        wording.calls(entry["network_calls"]),
    ]


def estimates(release: Mapping[str, Any]) -> str:
    """One table a model: each estimator of q with its diagnostics."""
    columns = (
        ("Record, estimator", ""),
        ("q", "higher = more often"),
        ("Hits", "of draws"),
        ("Effective draws", "higher = steadier"),
        ("Reliable", "by its own diagnostics"),
        ("Cost", "network calls"),
    )
    tables = []
    for name, model in release["models"].items():
        rows = [
            (record["role"], _estimate_cells(wording.record_name(record), kind, record[kind]))
            for record in model["records"]
            for kind in ("direct", "subspace")
            if record[kind] is not None
        ]
        tables.append(data_table(f"{name}: estimates of q", columns, rows))
    return "".join(tables) + _further(release)


def _further(release: Mapping[str, Any]) -> str:
    """One table a model: the estimators that enter no verdict, with what each claims and what it rests on."""
    columns = (
        ("Record, estimator", ""), ("Lower limit", wording.RATE_UNIT), ("Estimate", wording.RATE_UNIT),
        ("Upper limit", wording.RATE_UNIT), ("Confidence", ""), ("Cost", "network calls"), ("Assumes", ""),
        ("Not to be trusted", ""),
    )  # fmt: skip
    tables = []
    for name, model in release["models"].items():
        rows = []
        for record in model["records"]:
            for entry in record["estimators"]:
                doubt = "; ".join([*entry["reasons"], entry["distrust"]])
                cells = [
                    f"{wording.record_name(record)}, {entry['name']}",
                    "–" if entry["lower"] is None else wording.rate(entry["lower"], "down"),
                    "–" if entry["value"] is None else wording.rate(entry["value"]),
                    "–" if entry["upper"] is None else wording.rate(entry["upper"], "up"),
                    wording.percent(entry["level"]),
                    wording.calls(entry["network_calls"]),
                    "; ".join(entry["assumes"]),
                    doubt if entry["reliable"] else f"not reliable here: {doubt}",
                ]
                rows.append((record["role"], cells))
        if rows:
            tables.append(data_table(f"{name}: further estimators, which enter no verdict", columns, rows))
    return "".join(tables)


def baselines(release: Mapping[str, Any]) -> str:
    """One table of all models' baselines; nothing when none was run."""
    columns = (("Baseline", ""), ("Model", ""), ("Value", "interval"), ("Unit", ""), ("Direction", ""), ("Notes", ""))
    rows = []
    for place in range(max(len(model["baselines"]) for model in release["models"].values())):
        for name, model in release["models"].items():
            if place >= len(model["baselines"]):
                continue
            entry = model["baselines"][place]
            shown = "–"
            if entry["value"] is not None:
                value = wording.significant(entry["value"], 3)
                low = wording.significant(entry["lower"], 3, "down")
                if entry["upper"] is None:
                    shown = f"at least {low} ({wording.percent(0.5 * (1 + entry['level']))} confidence)"
                else:
                    high = wording.significant(entry["upper"], 3, "up")
                    shown = f"{value} ({wording.percent(entry['level'])} interval {low} to {high})"
            rows.append(
                ("", [entry["name"], name, shown, entry["unit"], entry["direction"], "; ".join(entry["notes"])])
            )
    if not rows:
        return ""
    remark = "They enter no verdict. Each interval holds by itself; among many, some miss."
    return data_table("Baselines: what other tests of memorising say", columns, rows) + f'<p class="small">{remark}</p>'


def _bracket(entry: Mapping[str, Any]) -> str:
    low = "no level passed" if entry["lower"] is None else f"at least {wording.fixed(entry['lower'], 2, 'down')}"
    high = "" if entry["upper"] is None else f", below {wording.fixed(entry['upper'], 2, 'up')}"
    return low + high + ("" if entry["finished"] else " (draws ran out)")


def _screened(record: Mapping[str, Any]) -> list[str]:
    e1, e2 = record["direct"], record["subspace"]
    counted = f"q {wording.rate(e1['lower'], 'down')} to {wording.rate(e1['upper'], 'up')}"
    drawn = f"{wording.count(e1['hits'])} of {wording.count(e1['n'])}; {counted}"
    if e2 is None:
        limits = [f"dropped at rung {record['dropped_at']}", "–", "–"]
    else:
        trust = "" if e2["reliable"] else " (not reliable)"
        limits = [
            wording.rate(e2["lower"], "down"),
            f"{wording.rate(e2['value'])}{trust}",
            wording.rate(e2["upper"], "up"),
        ]
    score = f"{wording.significant(record['score'], 3)} ± {wording.significant(record['stderr'])}"
    held = record["copies_inside"]
    ball = f"{wording.significant(record['radius'], 3)}; at least {wording.percent(held['lower'], 'down')}"
    return [
        f"{record['rank']}: record {record['index']}, label {record['label']}",
        score,
        wording.significant(record["p_value"], 2, "up"),
        ball,
        _bracket(record["t_prime"]),
        *limits,
        drawn,
        wording.calls(record["network_calls"]),
    ]


def screenings(release: Mapping[str, Any]) -> str:
    """One table a model that was screened: the head of the ranking of all its training records."""
    columns = (
        ("Rank, record", ""), ("Score", "nats, lower = more suspicious"), ("p", "among held-out records"),
        ("Ball", "radius; perturbed copies inside, higher is better"), ("t′", "higher = more memorised"),
        ("Lower limit of q", wording.RATE_UNIT), ("Estimate", wording.RATE_UNIT),
        ("Upper limit", f"{wording.RATE_UNIT}, of guided paths"),
        ("Images that show it", f"of those drawn; q {wording.RATE_UNIT}"), ("Cost", "network calls"),
    )  # fmt: skip
    parts, assumed = [], []
    for name, model in release["models"].items():
        found = model["screening"]
        if found is None:
            continue
        title = (
            f"{name}: the first {len(found['listed'])} of {wording.count(found['records'])} training records, ranked "
            "by the variational bound"
        )
        parts.append(data_table(title, columns, (("", _screened(record)) for record in found["listed"])))
        calls, times = found["network_calls"], found["times"]
        terms = (
            f"Score: terms of the bound at {len(times)} noise levels from t = {times[0]:.2f} to {times[-1]:.2f}, "
            f"{found['draws']} draws each. p: share of {wording.count(found['held_out'])} held-out records that score "
            f"as low; among {wording.count(found['records'])} records, "
            f"{wording.significant(found['records'] / (found['held_out'] + 1))} would reach the smallest p by chance. "
            f"t′: h above {found['gamma']:.3g} at the lower limit and at most {found['gamma_upper']:.3g} at the upper "
            f"one. Limits at {wording.percent(found['level'])} for the whole list; the upper limit beside the images "
            "that show a record is divided by the least share of copies that its ball holds. Network calls: ranking "
            f"{wording.calls(calls['ranking'])}, t′ {wording.calls(calls['t_prime'])}, guided paths "
            f"{wording.calls(calls['subspace'])}."
        )
        parts.append(f'<p class="small">{escape(terms)}</p>')
        for record in found["listed"]:
            doubts = (escape(f"{name}, record {record['index']}: {reason}.") for reason in record["reasons"])
            parts += [f'<p class="alarm"><b>Warning.</b> {text}</p>' for text in doubts]
        assumed += [f"q here: {found['detector']}.", *found["assumes"]]
    # A dict keeps the order and drops repetitions.
    return "".join(parts) + (bullets(dict.fromkeys(assumed)) if assumed else "")


def detectors(release: Mapping[str, Any]) -> str:
    """Error rates and thresholds of each model's detector."""
    columns = (
        ("Model", ""),
        ("False alarms", "lower is better"),
        ("Returns seen", "higher is better"),
        ("Thresholds", ""),
    )
    rows = []
    for name, model in release["models"].items():
        detector = model["detector"]
        thresholds = ", ".join(f"{key} {value:.4g}" for key, value in detector["thresholds"].items())
        rates = [wording.detector_rate(detector[key]) for key in ("false_positive_rate", "true_positive_rate")]
        rows.append(("", [name, *rates, thresholds or "–"]))
    return data_table("The detector’s own errors, per image", columns, rows)


def training(release: Mapping[str, Any]) -> str:
    """How each model was trained and sampled."""
    columns = (
        ("Model", ""), ("Records", ""), ("Epochs", ""), ("Steps", ""), ("Final loss", "lower = closer fit"),
        ("Sampler", "steps"),
    )  # fmt: skip
    rows = []
    for name, model in release["models"].items():
        curve, sampler = model["training_curve"], model["sampler"]
        last = "–" if curve["last"] is None else f"{wording.significant(curve['last'], 3)} {curve['unit']}"
        rows.append(
            (
                "",
                [
                    name,
                    wording.count(model["n_train"]),
                    f"{model['epochs']:,.0f}",
                    wording.count(model["steps"]),
                    last,
                    f"{sampler['name']}, {wording.count(sampler['steps'])}",
                ],
            )
        )
    return data_table("The models as trained and sampled", columns, rows)


def flat(prefix: str, value: Any) -> list[str]:
    """A nested configuration as lines ``a.b = value``."""
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in flat(f"{prefix}.{key}" if prefix else str(key), item)]
    return [f"{prefix} = {value}"]


def facts(release: Mapping[str, Any], digest: str) -> str:
    """What is needed to repeat the run: program, versions, device, data, seed, hashes."""
    device, data = release["device"], release["data"]
    shape = " × ".join(map(str, data["shape"]))
    extra = [f"{key} = {value}" for key, value in data.items() if key not in ("source", "n", "shape")]
    rows = [
        ("Program", f"{release['program']['name']} {release['program']['version']}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in release["versions"].items())),
        ("Device", f"{device['count']} × {device['kind']} ({device['platform']})"),
        ("Data", ", ".join([data["source"], f"{wording.count(data['n'])} records of {shape}", *extra])),
        ("Seed", str(release["seed"])),
        ("Configuration hash", release["config_hash"]),
        (f"SHA-256 of {schema.FILE_NAME}", digest),
    ]
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<table class="facts">{body}</table>'


def timings(release: Mapping[str, Any]) -> str:
    """Time spent in each stage."""
    rows = [
        ("", [stage, wording.duration(time["compile_s"]), wording.duration(time["run_s"])])
        for stage, time in release["timings"].items()
    ]
    return data_table("Time spent", (("Stage", ""), ("Compiling", ""), ("Running", "")), rows, kind="") if rows else ""
