"""report/index.html of a CADP study: one self-contained page, the answer first. See `page` for what all pages share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from diffusion_privacy.reports import cadp_figures, cadp_schema, cadp_table_page, page, tables
from diffusion_privacy.reports.cadp_wording import (
    NAMES,
    cards,
    delta,
    epsilon,
    relation,
    share,
    showable,
    shown,
    small,
    spent,
    stand_in,
    unprotected,
    with_interval,
    words,
)
from diffusion_privacy.reports.figures import Picture
from diffusion_privacy.reports.page import definitions, document, figure
from diffusion_privacy.reports.tables import data_table
from diffusion_privacy.reports.tables import escape as _e
from diffusion_privacy.reports.wording import count, percent

_TITLE = "May this data set be given away?"

_BODY = Template("""<h2>The answer</h2>
<div class="answer"><p>$answer</p>$cards</div>
<h2>What this does not say</h2>
$limits
<h2>The private data sets</h2>
$releases
<h2>What they are good for</h2>
$utility
$arms
<h2>What attacks found</h2>
$linkage
$links
$bounds
$faults
$extra
<h2>The flow</h2>
$flow
<h2>How it was measured</h2>
$methods""")

_METHODS = (
    ("Private copy", "An invertible network maps each record to a vector of numbers, its latent; the latent is cut to "
     "a fixed length at most and noise is added; the network is run backwards. Each record gives one copy."),
    ("ε and δ", "For two data sets that differ in one record, whatever can be observed is at most e^ε times as likely "
     "with one of them as with the other, up to an extra probability δ. ε is in nats; smaller protects more."),
    ("Neighbours", "Two data sets are neighbours if one record is replaced by another. Their latents may lie opposite "
     "each other on the ball of radius C, 2C apart; the noise is set for that distance by the exact formula, not by "
     "the textbook bound."),
    ("Linkage", "The attacker holds the network, the private copies and all originals, encodes both, and looks for the "
     "original whose latent points most nearly the same way. What is published as it is narrows the search."),
    ("Measured ε", "The mechanism is run on the two latents that are easiest to tell apart; how well its outputs are "
     "told apart gives a lower limit of ε at the stated confidence. Above the claim it would refute it."),
    ("Membership", "Whether the network fits the records that it learnt from better than others, as the probability "
     "that a random member looks more likely than a random other record; one half is chance."),
)  # fmt: skip

_IMAGE_METHODS = (
    ("Control", "Images drawn from the network and the published class (or attributes) alone. If the network learnt "
     "from other records only, they hold nothing of the private ones: ε = 0. A private copy is worth its noise only "
     "for what it does beyond the control."),
    ("Private training", "Gradient descent on the originals with each record’s gradient clipped and noise added, at "
     "the same ε and δ for replacing a record and its class. It gives a model and no data."),
    ("DP-Pix", "Means of blocks of pixels, with enough Laplace noise that the whole image may be replaced."),
)  # fmt: skip


def _releases(release: Mapping[str, Any]) -> str:
    columns = (
        ("Data set", ""), ("ε", "in all"), ("δ", ""), ("Noise", "standard deviation; the latent’s own is 1"),
        ("Clip radius", "of the latent"), ("Records", "in = out"),
    )  # fmt: skip
    rows = []
    for one in release["releases"]:
        manifest = one["manifest"]
        cells = [
            one["folder"],
            "none" if manifest["epsilon"] is None else epsilon(manifest["epsilon"]),
            delta(manifest["delta"]),
            f"{manifest['noise_scale']:.3g}",
            "–" if manifest["clip_norm"] is None else f"{manifest['clip_norm']:.3g}",
            count(manifest["count_out"]),
        ]
        rows.append(("", cells))
    first, ledger = release["releases"][0]["manifest"], release["ledger"]
    promise = "none end to end; the latent step alone is private" if unprotected(first) else "end to end"
    lines = [
        f"Promise: {promise}, for {relation(release, first)}.",
        f"Mechanism: {first['mechanism']} on {first['selected_latents']} of {first['latent_dim']} latents; condition: "
        f"{first['condition']}; flow trained: {first['flow_training']}{_included(first)}; {first['arithmetic']}.",
        f"Public by assumption: {', '.join(first['public'])}.",
        f"Each data set spends its own ε; {spent(release)}. The ledger refuses more than ε = "
        f"{epsilon(ledger['stated_total']['epsilon'])}.",
    ]
    warnings = "".join(f'<p class="alarm"><b>Warning.</b> {_e(w)}</p>' for w in first["warnings"])
    return warnings + data_table("What was written", columns, rows) + tables.bullets(lines)


def _included(manifest: Mapping[str, Any]) -> str:
    """What the flow's own training costs, where it is part of the promise."""
    spent_on_flow = manifest.get("flow_epsilon")
    return "" if spent_on_flow is None else f" (ε = {epsilon(spent_on_flow)} by itself, included)"


def _found(entry: Mapping[str, Any] | None) -> str:
    return "–" if entry is None else with_interval(entry)


def _arms(release: Mapping[str, Any]) -> str:
    arms = {arm["name"]: arm for arm in release["arms"]}
    columns = (
        ("ε of the latent step", ""), ("Private copies", "on real test images"),
        ("Private copies", "on test images made private alike, of unknown class"), ("Private training", "on originals"),
        ("DP-Pix images", ""), ("Likeness of private copies", "PSNR in dB; SSIM; Fréchet distance"),
    )  # fmt: skip
    rows = []
    for one in release["releases"]:
        name = f"{one['latent_epsilon']:g}"
        mine = arms[f"released {name}"]
        others = (arms[key]["accuracy"] if (key := f"{kind} {name}") in arms else None for kind in ("dp-sgd", "pixels"))
        cells = [f"ε = {name}", _found(mine["accuracy"]), _found(mine["accuracy_private_test"]), *map(_found, others)]
        rows.append(("", [*cells, _likeness(mine)]))
    yardsticks = [
        (NAMES[arm["kind"]], arm) for arm in release["arms"] if arm["kind"] in ("original", "public", "control")
    ]
    plain = (
        ("Trained on", ""),
        ("Right answers", "on real test images"),
        ("Records", ""),
        ("Likeness", "PSNR in dB; SSIM; Fréchet distance"),
    )
    compared = [("", [n, _found(a["accuracy"]), count(a["n_train"]), _likeness(a)]) for n, a in yardsticks]
    seeds, level = len(release["arms"][0]["accuracy"]["seeds"]), release["arms"][0]["accuracy"]["level"]
    note = (
        f"In brackets: {percent(level)} interval over {seeds} trainings, each on its own draw of control and DP-Pix "
        f"images. All are scored on the same {count(release['n_test'])} test records, whose choice the interval does "
        "not cover; a released set is one draw. Test images of unknown class go through the mechanism under a class "
        "drawn at random, since whoever wants to know a class does not have it. PSNR and SSIM (higher = closer) "
        "compare each image with the private original in its place, the Fréchet distance (lower = closer) the sets in "
        "features of a classifier of the originals; for the control they show what the class alone gives. PSNR is the "
        "mean over images that differ from their original, since it is infinite for the others, which are counted."
    )
    first = data_table("Right answers of classifiers, by what they were trained on", columns, rows)
    return first + data_table("For comparison", plain, compared) + f'<p class="small">{_e(note)}</p>'


def _likeness(arm: Mapping[str, Any]) -> str:
    found = arm["likeness"]
    if found is None:
        return "–"
    equal, psnr = found.get("equal", 0), "–" if found["psnr_db"] is None else f"{found['psnr_db']:.1f}"
    without = f" (without {count(equal)} equal to their originals)" if equal else ""
    return f"{psnr}{without}; {found['ssim']:.2f}; {found['frechet']:.3g}"


_LINK_NAMES = {
    "released": "private copy",
    "study": "less noise, not published",
    "control": "control",
    "no noise": "originals themselves",
}


def _links(release: Mapping[str, Any]) -> str:
    columns = (
        ("Set", ""), ("Original first", f"of released {words(release).records}"), ("by guessing", ""),
        ("p", "of so many by guessing"), ("Original in first 10", ""), ("by guessing", "first 10"), ("p", "first 10"),
    )  # fmt: skip
    rows = []
    for entry in release["linkage"]:
        at = "" if entry["epsilon"] is None else f", ε = {epsilon(entry['epsilon'])}"
        cells = [_LINK_NAMES[entry["kind"]] + at]
        for rank in ("rank1", "rank10"):
            found = entry[rank]
            cells += [with_interval(found), share(found["chance"]), small(found["p_value"])]
        rows.append(("", cells))
    where = f"among originals of its {words(release).condition}" if release["by_class"] else "among all originals"
    return data_table(f"Looking for the original {where}", columns, rows)


def _bounds(release: Mapping[str, Any]) -> str:
    columns = (
        ("Claimed ε", ""),
        ("Measured ε", "at least"),
        ("Of the claim", "larger = tighter"),
        ("Confidence", ""),
        ("Trials", "behind each limit"),
        ("Largest that could show", ""),
        ("Finding", ""),
    )
    rows = []
    for bound in release["epsilon_bounds"]:
        finding = "below the claim, as it must be" if bound["holds"] else "ABOVE THE CLAIM: the claim is false"
        if bound["holds"] and not bound["decisive"]:
            finding = "too few trials to refute this claim"
        cells = [
            epsilon(bound["claimed"]),
            shown(bound["lower"]),
            percent(bound["lower"] / bound["claimed"], "down"),
            percent(bound["confidence"]),
            count(bound["trials"]),
            showable(bound["ceiling"]),
        ]
        rows.append(("", [*cells, finding]))
    law = stand_in(release["releases"][0]["manifest"])
    drawn = "" if law is None else f"; drawn: continuous {law} noise of its scale, not the integers that were released"
    return data_table(f"The latent step, attacked on its worst-case pair{drawn}", columns, rows)


def _faults(release: Mapping[str, Any]) -> str:
    found = release["release_faults"]
    if found is None:
        return ""
    if found["passed"]:
        return (
            "<p>A whole release was run many times in search of faults between records (shared noise, noise that "
            "repeats, one record steering another’s clipping): none was found.</p>"
        )
    return "".join(f'<p class="alarm"><b>Fault.</b> {_e(k)}: {_e(v)}</p>' for k, v in found["faults"].items())


def _strangers(flow: Mapping[str, Any]) -> str:
    """Of the held-out records, how many were none."""
    left_out = flow.get("left_out", 0)
    return f" (left out: {count(left_out)} equal to a record that it learnt from)" if left_out else ""


def _same(flow: Mapping[str, Any]) -> str:
    """What rows that the network cannot tell apart do to the figure of membership, if there are any."""
    same = flow.get("same", 0)
    if not same:
        return ""
    without = flow["membership_without_same"]
    hidden = (
        f" The network cannot tell {count(same)} of the others from rows that it learnt from: people share values, or "
        "have numbers beyond the public range. No attack does, which can hide what it gives away of the rest."
    )
    if without is None:
        return f"{hidden} Fewer than two others are left without them, too few for a figure."
    return (
        f"{hidden} Without them: {with_interval(without)} of pairs, which is too much if the values met by chance, "
        "since the rarer rows are left."
    )


def _flow(release: Mapping[str, Any]) -> str:
    flow = release["flow"]
    bits, member = flow["bits_per_dim"], flow["membership"]
    levels = flow["grey_levels"]
    scale = "numbers in units of their deviation, noise included" if levels is None else f"{levels} grey levels"
    lines = [
        f"Bits per dimension ({scale}; lower is a closer fit): {bits['trained_on']:.2f} on "
        f"the {count(flow['members'])} records that it learnt from, {bits['held_out']:.2f} on {count(flow['others'])} "
        f"held out{_strangers(flow)}.",
        f"Membership: a record that it learnt from looks more likely than another in {with_interval(member)} of pairs "
        f"(chance: 50 %). These are the records declared public, not the private ones.{_same(flow)}"
        if release["config"]["flow"]["trained_on"] == "public"
        else f"Membership: a record that it learnt from, which is a PRIVATE one, looks more likely than another in "
        f"{with_interval(member)} of pairs (chance: 50 %).{_same(flow)}",
        "Running the network backwards and forwards changes a latent, as noise leaves it to be decoded, by at most "
        f"{flow['inversion_error']:.1e}; forwards and backwards, a record by at most {flow['record_error']:.1e}.",
    ]
    return tables.bullets(lines)


def _sections(release: Mapping[str, Any], drawn: Mapping[str, Picture]) -> dict[str, str]:
    """What is said of images only."""
    pictures = f"<h2>Pictures</h2>\n{_pictures(drawn)}"
    return {"utility": figure(drawn["utility"]), "arms": _arms(release), "extra": pictures}


def _pictures(drawn: Mapping[str, Picture]) -> str:
    if "pictures" in drawn:
        return figure(drawn["pictures"])
    return (
        '<p class="note">Pictures of originals are withheld. The person answerable for the data can have them made by '
        "running the report stage with private images allowed. The private copies are in the folders above.</p>"
    )


def render(release: Mapping[str, Any], drawn: Mapping[str, Picture], digest: str) -> str:
    """The page as text; ``digest`` is the SHA-256 of release.json in hex."""
    table = words(release).table
    own = cadp_table_page.METHODS if table else _IMAGE_METHODS
    body = _BODY.substitute(
        answer=_e(release["answer"]),
        cards=cards(release),
        limits=tables.bullets(release["limits"]),
        releases=_releases(release),
        linkage=figure(drawn["linkage"]),
        links=_links(release),
        bounds=_bounds(release),
        faults=_faults(release),
        flow=_flow(release),
        methods=definitions((*_METHODS, *own)),
        **(cadp_table_page.sections if table else _sections)(release, drawn),
    )
    return document(_TITLE, release, body, digest)


def write_report(report_dir: Path, release: Mapping[str, Any], images: Mapping[str, np.ndarray] | None) -> Path:
    """Write release.json, ``figures/*.png`` and index.html; return the page's path.

    Args:
      report_dir: made if it is not there; an earlier report in it is replaced, its pictures included.
      release: see `reports.cadp_schema`; validated before anything is written.
      images: originals, private copies and control by name; None where pictures may not be shown.

    Raises:
      InputError: a fault in ``release``, or a directory that cannot be written.
    """
    cadp_schema.validate(release)
    return page.write(
        report_dir,
        release,
        cadp_schema.validate,
        lambda folder: cadp_figures.write_figures(folder, release, images),
        lambda drawn, digest: render(release, drawn, digest),
    )
