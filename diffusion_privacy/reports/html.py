"""report/index.html: one self-contained page for a data-protection officer. See `page` for what all pages share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from diffusion_privacy.anonymity import weights
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import page, pictures, schema, tables, wording
from diffusion_privacy.reports.arrays import ModelArrays
from diffusion_privacy.reports.figures import Picture
from diffusion_privacy.reports.page import definitions, document, figure
from diffusion_privacy.reports.tables import escape as _e

_TITLE = "Does the model give the record back?"

_BODY = Template("""<h2>The answer</h2>
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
$screening
<h2>Pictures</h2>
$pictures
<h2>What could not be certified</h2>
$uncertified
<h2>How it was measured</h2>
$methods
$estimate_table
$detector_table
$baseline_table
<h2>Training</h2>
$training
$training_table""")

_METHODS = (
    ("Fingerprint", "A mark planted in the private record before training. It makes the record recognisable, as a "
     "medical device or a tattoo would. The detector says “this is the record” when an image shows the mark and the "
     "record’s identity."),
    ("Memoriser’s rate, 1/n", "A model that has learnt its n training records by heart, and nothing else, draws each "
     "of them once in n images. It is the yardstick for q."),
    ("Direct sampling (E1)", "Draw images, count those in which the detector recognises the record. The interval is "
     "exact (Clopper-Pearson); its upper limit is divided by the lower limit of the share of true returns that the "
     "detector sees. It needs no assumption on where the record hides, and about 3/q images."),
    ("Score-subspace integration (E2)", f"{page.SUBSPACE_METHOD} The effective number of draws, the largest weight’s "
     f"share and the tail index (Pareto k, not above {weights.MAX_PARETO_K:g}) say whether the interval may be "
     "quoted."),
    ("h(t) and t′", f"{page.H_CURVE_METHOD} “Statistical” asks that the lower confidence limit of h exceed γ, a "
     "threshold above the detector’s false alarms, at a confidence that counts all levels looked at. “As in the paper” "
     "is the highest level with any hit."),
    ("Verdict", "“Leaks”: the lower limit of q is higher than the detector’s false alarms alone could make it. “No "
     "leak above bound”: the upper limit lies at or below the bound named. “Not certified”: neither."),
)  # fmt: skip


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
            who = f"{wording.record_name(record)}, {wording.count(model['n_train'])} training records"
            cards.append(
                f"<div><b>{_e(name)}</b> ({_e(who)}) {tables.status(verdict)}"
                f"<p>{_e(verdict['sentence'])}</p><p>The record is drawn {_e(rate)}.</p>"
                f'<p class="small">A model that had memorised all its records would draw it {_e(yardstick)}.</p></div>'
            )
    return f'<div class="verdicts">{"".join(cards)}</div>'


def _pictures(release: Mapping[str, Any], drawn: Mapping[str, Picture]) -> str:
    groups = [[f"{stem}_{name}" for name in release["models"]] for stem in pictures.IMAGE_FIGURES]
    shown = ["".join(figure(drawn[name]) for name in group if name in drawn) for group in groups]
    if any(shown):
        return "".join(f'<div class="pictures">{group}</div>' for group in shown)
    return (
        '<p class="note">Pictures are withheld. They would show private records, or images drawn by a model that may '
        "give private records back. The person answerable for the data can have them made by running the report stage "
        "with private images allowed.</p>"
    )


def _screening(release: Mapping[str, Any]) -> str:
    table = tables.screenings(release)
    if not table:
        return ""
    asked = (
        "Every training record was ranked by how little it costs the model to guess it from noise. The first ones were "
        "looked at more closely. A high rank is no finding: records that are easy for every model rank high too."
    )
    return f"<h2>All training records</h2><p>{_e(asked)}</p>{table}"


def _uncertified(release: Mapping[str, Any]) -> str:
    sentences = wording.uncertified(release)
    if not sentences:
        return "<p>Every record got a verdict from estimates that may be quoted.</p>"
    return tables.bullets(sentences)


def render(release: Mapping[str, Any], drawn: Mapping[str, Picture], digest: str) -> str:
    """The page as text. ``release`` is validated, ``drawn`` comes from `pictures.write_figures`, ``digest`` is the
    SHA-256 of release.json in hex."""
    alarms = "".join(f'<p class="alarm"><b>Warning.</b> {_e(text)}</p>' for text in wording.control_alarms(release))
    body = _BODY.substitute(
        answer=_e(release["answer"]),
        verdicts=_verdict_cards(release),
        alarms=alarms,
        limits=tables.bullets(wording.all_limits(release)),
        verdict_table=tables.verdicts(release),
        intervals=figure(drawn["q_intervals"]),
        h_curve=figure(drawn["h_curve"]),
        t_prime_table=tables.t_primes(release),
        screening=_screening(release),
        pictures=_pictures(release, drawn),
        uncertified=_uncertified(release),
        methods=definitions(_METHODS),
        estimate_table=tables.estimates(release),
        detector_table=tables.detectors(release),
        baseline_table=tables.baselines(release),
        training=figure(drawn["training"]),
        training_table=tables.training(release),
    )
    return document(_TITLE, release, body, digest)


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
    return page.write(
        report_dir,
        release,
        schema.validate,
        lambda folder: pictures.write_figures(folder, release, arrays, show_private),
        lambda drawn, digest: render(release, drawn, digest),
    )
