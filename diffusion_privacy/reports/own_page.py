"""The page of the audit of a given model; see `page` for what all pages share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from diffusion_privacy.reports import figures, own_schema, page, pictures, tables, wording
from diffusion_privacy.reports.arrays import Listed
from diffusion_privacy.reports.figures import Drawn, Picture
from diffusion_privacy.reports.own_schema import MODEL
from diffusion_privacy.reports.page import definitions, document, figure
from diffusion_privacy.reports.tables import escape as _e

_TITLE = "Does this model give these records back?"

_BODY = Template("""<h2>The answer</h2>
<div class="answer"><p>$answer</p>$verdicts</div>
<h2>What this does not say</h2>
$limits
<h2>Verdicts, record by record</h2>
<p>q is the probability that one image drawn from the model lies inside the record’s ball, written as a count in 10,000
images. Higher means that the record comes back more often; the upper limit is the worst case that the measurements
allow. Limits are rounded outwards.</p>
$verdict_table
$intervals
<h2>The detector and its controls</h2>
$balls
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
$sampler""")

_METHODS = (
    ("The ball", "An image counts as a reproduction if it lies closer to the record than a radius: half the distance "
     "to the nearest held-out record, so that it is nearer to this record than to any of those. No fingerprint is "
     "planted and no network is trained."),
    ("Held-out records", "Records of the same kind that the model never saw. Each gets a ball by the same rule, and "
     "draws inside are counted. If the model knows nothing of the private record, its count is one among theirs: the "
     "rank gives an exact p-value. “Leaks” is said only where that test rejects."),
    ("Direct sampling (E1)", "Draw images, count those inside the ball. The interval is exact (Clopper-Pearson); its "
     "upper limit is divided by the lower limit of the share of perturbed copies that the ball holds."),
    ("Score-subspace integration (E2)", f"{page.SUBSPACE_METHOD} Its own diagnostics say whether the interval may be "
     "quoted; where direct samples have hits, believe those."),
    ("h(t) and t′", page.H_CURVE_METHOD),
)  # fmt: skip

_LIMITS = (
    "It speaks of the records listed here and of no other.",
    "An image inside the ball is not shown to be recognisable as the person, and one outside is not shown to be "
    "harmless: a shifted, mirrored or recoloured copy is far away in pixels.",
    "It holds only if the held-out records were really never seen by the model and are of the same kind.",
    "“No leak above bound” is a limit, not a zero.",
    "It holds for the sampler as it was run, says nothing on attacks that use the model’s weights, and gives no "
    "differential-privacy guarantee.",
)


def limits(model: Mapping[str, Any]) -> list[str]:
    """What no such report says, then the notes that came with the model."""
    checked = [] if model["plausibility"] is not None else ["Score, schedule and records were not checked to fit."]
    return [*_LIMITS, *checked, *model["notes"]]


def _cards(release: Mapping[str, Any]) -> str:
    model = release["models"][MODEL]
    cards = []
    for record in model["records"]:
        verdict = record["verdict"]
        yardstick = f"{wording.rate(model['memoriser_rate'])} {wording.RATE_UNIT}"
        cards.append(
            f"<div><b>Record {record['index']}</b> {tables.status(verdict)}<p>{_e(verdict['sentence'])}</p>"
            f'<p class="small">A model that had memorised its {wording.count(model["n_train"])} training records would '
            f"draw it {_e(yardstick)}.</p></div>"
        )
    return f'<div class="verdicts">{"".join(cards)}</div>'


def _balls(release: Mapping[str, Any]) -> str:
    columns = (
        ("Record", ""), ("Radius", "of the ball"), ("Nearest held-out record", "distance"),
        ("Nearest drawn image", "distance"), ("False alarms", "of a fresh real record; lower is better"),
        ("Copies inside", "of perturbed ones; higher is better"), ("Controls hit", "of held-out records"),
        ("Rank test", "p; lower = more suspicious"),
    )  # fmt: skip
    model = release["models"][MODEL]
    rows, doubts = [], []
    for record in model["records"]:
        ball, controls = record["detector"], record["controls"]
        busiest = f"{sum(hits > 0 for hits in controls['hits'])} of {model['held_out']}, the busiest by "
        cells = [
            f"record {record['index']}",
            *(wording.significant(ball[key], 3) for key in ("radius", "nearest_held_out", "nearest_drawn")),
            wording.detector_rate(ball["false_positive_rate"]),
            wording.detector_rate(ball["copies_inside"]),
            busiest + wording.count(max(controls["hits"])),
            wording.significant(controls["p_value"], 2, "up"),
        ]
        rows.append(("private", cells))
        doubts += [f"Record {record['index']}: {reason}." for reason in ball["reasons"]]
    found = tables.data_table("The ball of each record, and those of records that the model never saw", columns, rows)
    return found + "".join(f'<p class="alarm"><b>Warning.</b> {_e(text)}</p>' for text in doubts)


def _sampler(release: Mapping[str, Any]) -> str:
    model = release["models"][MODEL]
    kept = {key: value for key, value in model["sampler"].items() if key != "times"}
    lines = [f"{model['kind']}: {model['path']}", *tables.flat("", kept)]
    return "<h3>The sampler as it was run</h3>" + tables.bullets(lines)


def render(release: Mapping[str, Any], drawn: Mapping[str, Picture], digest: str) -> str:
    """The page as text; ``release`` is validated, ``digest`` is the SHA-256 of release.json in hex."""
    images = [figure(drawn[name]) for name in ("listed_model", "samples_model") if name in drawn]
    withheld = (
        '<p class="note">Pictures are withheld: they would show private records, or images that may give them back. '
        "The person answerable for the data can have them made with report.show_private.</p>"
    )
    open_points = wording.uncertified(release)
    body = _BODY.substitute(
        answer=_e(release["answer"]),
        verdicts=_cards(release),
        limits=tables.bullets(release["limits"]),
        verdict_table=tables.verdicts(release),
        intervals=figure(drawn["q_intervals"]),
        balls=_balls(release),
        h_curve=figure(drawn["h_curve"]),
        t_prime_table=tables.t_primes(release),
        pictures=f'<div class="pictures">{"".join(images)}</div>' if images else withheld,
        uncertified=tables.bullets(open_points)
        if open_points
        else "<p>Every record got a verdict from estimates that may be quoted.</p>",
        methods=definitions(_METHODS),
        estimate_table=tables.estimates(release),
        sampler=_sampler(release),
    )
    return document(_TITLE, release, body, digest)


def _h_curves(release: Mapping[str, Any]) -> Drawn:
    """One panel a record, each with its own marks."""
    model = release["models"][MODEL]
    single = {f"record {record['index']}": {**model, "records": [record]} for record in model["records"]}
    drawn = figures.h_curves({**release, "models": single})
    level = wording.percent(model["records"][0]["h_curve"]["level"])
    caption = (
        "h(t): how often a drawn image lies in the record’s ball when the record is drowned in noise up to level t and "
        f"denoised by the model. Bars: {level} interval at each t by itself. Higher, and further to the right, is "
        "worse; a general model, too, returns a record from little noise. Vertical lines: t′."
    )
    return dataclasses.replace(drawn, caption=caption)


def _figures(
    folder: Path, release: Mapping[str, Any], arrays: Mapping[str, np.ndarray], show_private: bool
) -> dict[str, Picture]:
    drawn: dict[str, Drawn | None] = {"q_intervals": figures.q_intervals(release), "h_curve": _h_curves(release)}
    private, shown = arrays["private"], arrays["shown"]
    if show_private and private.ndim == 4 and private.shape[-1] in (1, 3):
        records = release["models"][MODEL]["records"]
        far = np.array([record["detector"]["nearest_drawn"] for record in records])
        hits = far < np.array([record["detector"]["radius"] for record in records])
        found = Listed(private, arrays["nearest"], far, hits)
        drawn["listed_model"] = pictures.pairs(found, "Private records", "The private records, in the config’s order.")
        some = shown[: pictures.MAX_PICTURES]
        caption = f"The first {len(some)} of the images that the model drew; none was picked by hand."
        drawn["samples_model"] = pictures.sheet(
            some, "Drawn images", f"{len(some)} images drawn by the model.", caption
        )
    return pictures.save_all(folder, drawn)


def write_report(
    report_dir: Path, release: Mapping[str, Any], arrays: Mapping[str, np.ndarray], show_private: bool = False
) -> Path:
    """Write release.json, ``figures/*.png`` and index.html; return the page's path.

    Args:
      report_dir: made if it is not there; an earlier report in it is replaced, its pictures included.
      release: see `reports.own_schema`; validated before anything is written.
      arrays: ``private [R, ...]``, ``nearest [R, ...]`` (the drawn image nearest to each) and ``shown``, drawn images.
      show_private: whether pictures of images may be written.

    Raises:
      InputError: a fault in ``release``, or a directory that cannot be written.
    """
    own_schema.validate(release)
    return page.write(
        report_dir,
        release,
        own_schema.validate,
        lambda folder: _figures(folder, release, arrays, show_private),
        lambda drawn, digest: render(release, drawn, digest),
    )
