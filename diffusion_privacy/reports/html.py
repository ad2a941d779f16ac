"""report/index.html: one self-contained page for a data-protection officer.

Pictures are embedded, the style is inline, there is no script, and a content policy forbids loading anything. Every
text that comes from a release passes through `_e`; nothing else does, so the templates below are the only markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import figures, schema, wording
from diffusion_privacy.reports.arrays import ModelArrays
from diffusion_privacy.reports.figures import Picture
from diffusion_privacy.reports.style import CSS

PAGE_NAME = "index.html"

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Does the model give the record back?</title>
<style>$css</style>
</head>
<body>
<header>
<h1>Does the model give the record back?</h1>
<p class="soft">$program · data: $source · schema $schema</p>
</header>
<main>
<h2>What was asked</h2>
<p>$question</p>
<h2>The answer</h2>
<div class="answer"><p>$answer</p>$verdicts</div>
$alarms
<h2>What this does not say</h2>
$limits
<h2>Verdicts, record by record</h2>
<p>q is the probability that one image drawn from the model shows the record, written as a count in 10,000 images.
Higher means that the record comes back more often; the upper limit is the worst case that the measurements allow.
Limits are rounded outwards.</p>
$verdict_table
$intervals
<h2>How far the record comes back from noise</h2>
$h_curve
$t_prime_table
<h2>Pictures</h2>
$pictures
<h2>What could not be certified</h2>
$uncertified
<h2>How it was measured</h2>
$methods
$estimate_table
$detector_table
<h2>Training</h2>
$training
$training_table
<h2>Versions, configuration, hashes</h2>
$facts
$timings
<h3>Configuration</h3>
$config
</main>
</body>
</html>
""")

_METHODS = (
    ("Fingerprint", "A mark planted in the private record before training. It makes the record recognisable, as a "
     "medical device or a tattoo would. The detector says “this is the record” when an image shows the mark and the "
     "record’s identity."),
    ("Memoriser’s rate, 1/n", "A model that has learnt its n training records by heart, and nothing else, draws each "
     "of them once in n images. It is the yardstick for q."),
    ("Direct sampling (E1)", "Draw images, count those in which the detector recognises the record. The interval is "
     "exact (Clopper-Pearson); its upper limit is divided by the lower limit of the share of true returns that the "
     "detector sees. It needs no assumption on where the record hides, and about 3/q images."),
    ("Score-subspace integration (E2)", "Start from the record drowned in noise, denoise with the model, and weight "
     "each result by how likely the model would have come along that path by itself. The weighted share is q again, "
     "from far fewer images. The effective number of draws, the largest weight’s share and the tail index (Pareto k, "
     "not above 0.7) say whether the interval may be quoted."),
    ("h(t) and t′", "h(t) is the probability that the record comes back when it is drowned in noise up to level t. t′ "
     "is the largest such level. The paper’s reading is the first level with any hit; the statistical one asks that "
     "the lower confidence limit of h exceed γ, a threshold above the detector’s false alarms, and counts how many "
     "levels were looked at. Higher means more memorised. t′ is an indicator; q decides."),
    ("Verdict", "“Leaks”: the lower limit of q is above zero by more than the detector’s errors explain. “No leak "
     "above bound”: the upper limit lies at or below the bound named. “Not certified”: neither."),
)  # fmt: skip

_STATUS_CLASS = {"leaks": "leaks", "no leak above bound": "clean", "not certified": "open"}


def _e(value: object) -> str:
    return html.escape(str(value), quote=True)


def _list(sentences: Iterable[str], kind: str = "") -> str:
    items = "".join(f"<li>{_e(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">{items}</ul>' if kind else f"<ul>{items}</ul>"


def _status(verdict: Mapping[str, Any]) -> str:
    return f'<span class="status {_STATUS_CLASS[verdict["status"]]}">{_e(verdict["status"])}</span>'


class _Raw(str):
    """A cell that is markup already."""


def _table(
    caption: str, columns: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "cards"
) -> str:
    """A table whose rows are ``(class, cells)``; a column is ``(name, unit or direction)``; cells are escaped here."""
    head = "".join(f'<th scope="col">{_e(name)}<span>{_e(unit)}</span></th>' for name, unit in columns)
    body = []
    for row_class, cells in rows:
        texts = [cell if isinstance(cell, _Raw) else _e(cell) for cell in cells]
        labelled = "".join(
            f'<td data-label="{_e(name)}">{text}</td>' for (name, _), text in zip(columns[1:], texts[1:], strict=True)
        )
        body.append(f'<tr class="{_e(row_class)}"><th scope="row">{texts[0]}</th>{labelled}</tr>')
    return (
        f'<table class="{kind}"><caption>{_e(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{_e(picture.alt)}">'
        f"<figcaption><b>{_e(picture.title)}.</b> {_e(picture.caption)}</figcaption></figure>"
    )


def _verdict_cards(release: Mapping[str, Any]) -> str:
    """The private records' verdicts, one card each, below the answer."""
    cards = []
    for name, model in release["models"].items():
        for record in model["records"]:
            if record["role"] != "private":
                continue
            verdict = record["verdict"]
            rate = wording.interval(verdict, "estimate")
            yardstick = f"{wording.rate(model['memoriser_rate'])} {wording.RATE_UNIT}"
            cards.append(
                f"<div><b>{_e(name)}</b> ({_e(wording.count(model['n_train']))} training records) {_status(verdict)}"
                f"<p>{_e(verdict['sentence'])}</p><p>The record is drawn {_e(rate)}.</p>"
                f'<p class="small">A model that had memorised all its records would draw it {_e(yardstick)}.</p></div>'
            )
    return f'<div class="verdicts">{"".join(cards)}</div>'


def _verdict_table(release: Mapping[str, Any]) -> str:
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
                _Raw(_status(verdict)),
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
        tables.append(_table(title, columns, rows))
    shared = "The direct images of a model serve all its records: their cost is paid once."
    return "".join(tables) + f'<p class="small">{shared}</p>' + _assumptions(release)


def _assumptions(release: Mapping[str, Any]) -> str:
    records = [record for model in release["models"].values() for record in model["records"]]
    # A dict keeps the order and drops repetitions.
    assumed = list(dict.fromkeys(text for record in records for text in record["verdict"]["assumes"]))
    return "<p>The verdicts assume:</p>" + _list(assumed) if assumed else ""


def _t_prime_table(release: Mapping[str, Any]) -> str:
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
    direction = "0 to 1, higher = more memorised"
    columns = (("Record", ""), ("t′ statistical", direction), ("t′ as in the paper", direction))
    return _table("t′, the largest noise level from which the record comes back", columns, rows)


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


def _estimate_table(release: Mapping[str, Any]) -> str:
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
        tables.append(_table(f"{name}: both estimators", columns, rows))
    return "".join(tables)


def _detector_table(release: Mapping[str, Any]) -> str:
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
    return _table("The detector’s own errors, per image", columns, rows)


def _training_table(release: Mapping[str, Any]) -> str:
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
    return _table("The models as trained and sampled", columns, rows)


def _pictures(release: Mapping[str, Any], drawn: Mapping[str, Picture]) -> str:
    stems = tuple(figures.IMAGE_FIGURES)
    shown = [drawn[f"{stem}_{name}"] for stem in stems for name in release["models"] if f"{stem}_{name}" in drawn]
    if shown:
        return f'<div class="pictures">{"".join(map(_figure, shown))}</div>'
    return (
        '<p class="note">Pictures are withheld. They would show private records, or images drawn by a model that may '
        "give private records back. The person answerable for the data can have them made by running the report stage "
        "with private images allowed.</p>"
    )


def _uncertified(release: Mapping[str, Any]) -> str:
    sentences = wording.uncertified(release)
    return _list(sentences) if sentences else "<p>Every record got a verdict from estimates that may be quoted.</p>"


def _flat(prefix: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _flat(f"{prefix}.{key}" if prefix else str(key), item)]
    return [f"{prefix} = {value}"]


def _facts(release: Mapping[str, Any], digest: str) -> str:
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
    body = "".join(f'<tr><th scope="row">{_e(name)}</th><td>{_e(value)}</td></tr>' for name, value in rows)
    return f'<table class="facts">{body}</table>'


def _timings(release: Mapping[str, Any]) -> str:
    rows = [
        ("", [stage, wording.duration(time["compile_s"]), wording.duration(time["run_s"])])
        for stage, time in release["timings"].items()
    ]
    return _table("Time spent", (("Stage", ""), ("Compiling", ""), ("Running", "")), rows, kind="") if rows else ""


def render(release: Mapping[str, Any], drawn: Mapping[str, Picture], digest: str) -> str:
    """The page as text. ``release`` is validated, ``drawn`` comes from `figures.write_figures`, ``digest`` is the
    SHA-256 of release.json in hex."""
    program = release["program"]
    alarms = "".join(f'<p class="alarm"><b>Warning.</b> {_e(text)}</p>' for text in wording.control_alarms(release))
    methods = "".join(f"<dt>{_e(term)}</dt><dd>{_e(text)}</dd>" for term, text in _METHODS)
    return _PAGE.substitute(
        css=CSS,
        program=_e(f"{program['name']} {program['version']}"),
        source=_e(release["data"]["source"]),
        schema=_e(release["schema_version"]),
        question=_e(release["question"]),
        answer=_e(release["answer"]),
        verdicts=_verdict_cards(release),
        alarms=alarms,
        limits=_list(wording.all_limits(release)),
        verdict_table=_verdict_table(release),
        intervals=_figure(drawn["q_intervals"]),
        h_curve=_figure(drawn["h_curve"]),
        t_prime_table=_t_prime_table(release),
        pictures=_pictures(release, drawn),
        uncertified=_uncertified(release),
        methods=f"<dl>{methods}</dl>",
        estimate_table=_estimate_table(release),
        detector_table=_detector_table(release),
        training=_figure(drawn["training"]),
        training_table=_training_table(release),
        facts=_facts(release, digest),
        timings=_timings(release),
        config=_list(_flat("", release["config"]), "config"),
    )


def write_report(
    report_dir: Path, release: Mapping[str, Any], arrays: Mapping[str, ModelArrays], show_private: bool = False
) -> Path:
    """Write release.json, ``figures/*.png`` and index.html; return the page's path.

    Args:
      report_dir: made if it is not there; an earlier report in it is replaced, its pictures included.
      release: see `reports.schema`; validated before anything is written.
      arrays: by model name, one for each model of the release.
      show_private: whether pictures of images (private records, their neighbours, samples) may be written.

    Raises:
      InputError: a fault in ``release``, arrays missing for a model, or a directory that cannot be written.
    """
    schema.validate(release)
    missing = sorted(set(release["models"]) - set(arrays))
    if missing:
        raise InputError(f"report arrays: expected one set for each model, missing {', '.join(missing)}")
    folder = report_dir / "figures"
    page = report_dir / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        schema.write(report_dir / schema.FILE_NAME, release)
        digest = hashlib.sha256((report_dir / schema.FILE_NAME).read_bytes()).hexdigest()
        drawn = figures.write_figures(folder, release, arrays, show_private)
        temporary = page.with_name(PAGE_NAME + ".partial")
        temporary.write_text(render(release, drawn, digest), encoding="utf-8")
        os.replace(temporary, page)
    except OSError as error:
        raise InputError(f"{report_dir}: expected a writable directory for the report ({error.strerror})") from error
    return page
