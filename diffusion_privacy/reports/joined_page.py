"""report/index.html of a joined study: four ways to share the same records, the answer first. See `page`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import joined_figures, joined_ledger, joined_schema, joined_tables, page, tables, wording
from diffusion_privacy.reports.cadp_wording import with_interval
from diffusion_privacy.reports.figures import Picture
from diffusion_privacy.reports.joined_figures import JoinedArrays
from diffusion_privacy.reports.joined_schema import WAYS
from diffusion_privacy.reports.joined_standing import (
    certified,
    found_by_attacks,
    meaning,
    private_records,
    promise,
    sentence_case,
    shown,
    standing,
)
from diffusion_privacy.reports.page import definitions, document, figure
from diffusion_privacy.reports.tables import escape as _e
from diffusion_privacy.reports.wording import count, significant

_TITLE = "May this model, or this data set, be given away?"

_BODY = Template("""<h2>The answer</h2>
<div class="answer long">$answer$cards</div>
$alarms
<h2>What this does not say</h2>
$limits
<h2>Utility against risk</h2>
$compared
$comparison
<h2>Verdicts, record by record</h2>
<p>q is the probability that one image of what would be given away shows the record, written as a count in 10,000
images. Higher means that the record comes back more often; the upper limit is the worst case that the measurements
allow. Limits are rounded outwards.</p>
$verdicts
<h2>What is promised</h2>
$guarantees
<h2>What attacks found</h2>
$attacks
<h2>Pictures</h2>
$pictures
<h2>How far a record comes back from noise</h2>
$h_curve
<h2>How it was measured</h2>
$methods
$estimates
<h2>The ledger</h2>
$ledger
<h2>What could not be certified</h2>
$uncertified""")

_METHODS = (
    ("Four ways", "The same private records are shared as a model trained on them as they are; as a model trained on "
     "them with DP-SGD; as a private copy, each record taken through an invertible network, cut and noised; and as a "
     "model trained on that copy. What is done to the copy afterwards costs no further ε."),
    ("Fingerprint", "A mark planted in some private records before anything learns from them. It makes a record "
     "recognisable, as a medical device or a tattoo would. The detector says “this is the record” when an image shows "
     "the mark and the record’s identity. Marked held-out records, the controls, cannot come back."),
    ("q", "The probability that one image shows the record. Of a model, one drawn image; of the copy, one of its "
     "images picked at random, counted in copies made alike that were never given to anybody."),
    ("Direct images (E1)", "Images are drawn, and those in which the detector recognises the record are counted. The "
     "interval is exact; its upper limit is divided by the lower limit of the share of returns that are seen."),
    ("Score-subspace integration (E2)", f"{page.SUBSPACE_METHOD} For models only."),
    ("h(t) and t′", f"{page.H_CURVE_METHOD} For models only."),
    ("Verdict", "“Leaks”: the lower limit of q is higher than the detector’s false alarms alone could make it. “No "
     "leak above bound”: the upper limit lies at or below 1/n. “Not certified”: neither."),
    ("ε and δ", "For two data sets that differ as the relation says, whatever can be observed is at most e^ε times as "
     "likely with one of them as with the other, up to an extra probability δ. ε is in nats; smaller protects more. "
     "From it follows how often an attacker who knows everything else can tell the two apart."),
    ("Certified limit (E6)", "If training is (ε, δ)-private in a record, the rate at which it comes back is at most "
     "e^ε times the rate of models trained without it, plus δ. That rate is bounded over several models trained with "
     "the record replaced. It holds over training and sampling, not for the one model at hand."),
    ("Utility", "A classifier is trained on what is shared and tested on real images. Fréchet distance, precision and "
     "recall compare what is shared with real images, in features of a classifier that learnt from public records."),
    ("Membership attack", "An attacker scores records by what is shared, to tell private ones from held-out ones. AUC: "
     "how often the private record of a pair gets the higher score."),
    ("Linkage", "The attacker holds the network, the copy and all originals, encodes both, and looks for the original "
     "whose latent points most nearly the same way."),
)  # fmt: skip


def card(release: Mapping[str, Any], name: str) -> str:
    """Verdict, q, ε and utility of one way."""
    way, found = release["ways_to_share"][name], standing(release, name)
    guarantee, use = way["guarantee"], way["utility"]
    said = [] if found.may else [("Against it", found.reason)]
    if found.may or shown(way) not in found.reason:
        said.append(("q", shown(way)))
    if guarantee["epsilon"] is None:
        said.append(("Promise", "ε: none"))
    else:
        said += [("Promise", f"{promise(guarantee)}: {meaning(guarantee)}"), ("Certified", certified(way))]
    said += [("Attack", text) for text in found_by_attacks(way)]
    useful = (
        f"a classifier trained on it is right on {with_interval(use['accuracy'])} of real images; Fréchet distance "
        f"{significant(use['frechet']['value'], 3)} (lower is closer)"
    )
    said.append(("Utility", useful))
    label_ = f'<span class="status {found.kind}">{_e(found.status)}</span>'
    texts = "".join(f"<p><b>{_e(label)}.</b> {_e(sentence_case(text))}.</p>" for label, text in said)
    return (
        f"<div><b>{_e(way['title'])}</b> ({_e(way['kind'])}) {label_}"
        f'<p class="small">{_e(way["what"])}</p>{texts}</div>'
    )


def _answer(text: str) -> str:
    """The first sentence large, the others below it."""
    first, dot, rest = text.partition(". ")
    return f"<p>{_e(first)}{dot.rstrip()}</p>" + (f"<p>{_e(rest)}</p>" if rest else "")


def _alarms(release: Mapping[str, Any]) -> str:
    """What makes an audit or the whole report worthless, before anything else is read."""
    found = []
    for way in release["ways_to_share"].values():
        alarm = wording.false_alarms(way["risk"]["records"])
        if alarm is not None:
            found.append(
                f"The audit of “{way['title']}” cannot be trusted as it stands: {alarm}. Its detector or its "
                "thresholds are wrong."
            )
    if release["ledger"]["not_recorded"]:
        lost = ", ".join(release["ledger"]["not_recorded"])
        found.append(f"The private records were touched without an entry in the ledger: {lost}.")
    return "".join(f'<p class="alarm"><b>Warning.</b> {_e(text)}</p>' for text in found)


def _pictures(drawn: Mapping[str, Picture]) -> str:
    shown_ = [figure(picture) for name, picture in drawn.items() if name.startswith("pictures_")]
    if shown_:
        return f'<div class="pictures">{"".join(shown_)}</div>'
    return (
        '<p class="note">Pictures are withheld. They would show private records, or images of a model that may give '
        "private records back. The person answerable for the data can have them made by running the report stage with "
        "private images allowed.</p>"
    )


def _estimates(release: Mapping[str, Any]) -> str:
    """Every estimate of q with its diagnostics, t′, and the detector's errors, as the audit of a model shows them."""
    ways = {
        way["title"]: {"records": [{**record, "estimators": []} for record in way["risk"]["records"]]}
        for way in release["ways_to_share"].values()
    }
    curves = joined_figures.audited_models(release)
    return (
        tables.detectors({"models": {"all ways": {"detector": release["detector"]}}})
        + tables.estimates({"models": ways})
        + (tables.t_primes(curves) if curves["models"] else "")
    )


def render(release: Mapping[str, Any], drawn: Mapping[str, Picture], digest: str) -> str:
    """The page as text; ``drawn`` comes from `joined_figures.write_figures`, ``digest`` is release.json's SHA-256."""
    cards = "".join(card(release, name) for name in WAYS)
    data = release["data"]
    compared = (
        f"<p>{count(data['private'])} private records, {count(data['marked'])} of them marked; "
        f"{count(data['public'])} public records; {count(data['test'])} real records that nobody learnt from, to test "
        "on.</p>"
    )
    body = _BODY.substitute(
        answer=_answer(release["answer"]),
        cards=f'<div class="verdicts four">{cards}</div>',
        alarms=_alarms(release),
        limits=tables.bullets(release["limits"]),
        compared=compared + figure(drawn["utility_risk"]),
        comparison=joined_tables.comparison(release),
        verdicts=joined_tables.verdicts(release),
        guarantees=joined_tables.guarantees(release),
        attacks=joined_tables.attacks(release),
        pictures=_pictures(drawn),
        h_curve=figure(drawn["h_curve"]) if "h_curve" in drawn else "<p>No way has a curve h(t).</p>",
        methods=definitions(_METHODS),
        estimates=_estimates(release),
        ledger=joined_ledger.section(release),
        uncertified=tables.bullets(release["uncertified"]) if release["uncertified"] else "<p>Nothing stayed open.</p>",
    )
    return document(_TITLE, release, body, digest)


def write_report(
    report_dir: Path, release: Mapping[str, Any], arrays: JoinedArrays | None, show_private: bool = False
) -> Path:
    """Write release.json, ``figures/*.png`` and index.html; return the page's path.

    Args:
      report_dir: made if it is not there; an earlier report in it is replaced, its pictures included.
      release: see `reports.joined_schema`; validated before anything is written.
      arrays: images; not looked at, and not needed, unless ``show_private``.
      show_private: whether pictures of images (private records, copies, drawn images) may be written.

    Raises:
      InputError: a fault in ``release``, no arrays or arrays of other records where pictures are asked for, or a
        directory that cannot be written.
    """
    joined_schema.validate(release)
    pictures = arrays if show_private else None
    if show_private:
        marked = len(private_records(release["ways_to_share"]["raw_model"]))
        has = None if arrays is None else len(arrays.marked)
        if has != marked:
            raise InputError(f"report arrays: expected the release's {marked} marked records to be shown, got {has}")
    return page.write(
        report_dir,
        release,
        joined_schema.validate,
        lambda folder: joined_figures.write_figures(folder, release, pictures),
        lambda drawn, digest: render(release, drawn, digest),
    )
