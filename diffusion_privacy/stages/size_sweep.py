"""The paper's experiment: one record, planted in training sets of growing size (or learnt by networks of growing size).

At each point a model is trained, sampled and audited by the stages of the anonymity study, with one detector for all
that is calibrated on a reference model which never saw the record. ``sweep.json`` holds the curve: n against t' (ours
and the paper's), q with its limits, detections among N images, and N/n, what a model would show that had memorised all
its records alike (Dombrowski & Kainz, arXiv 2306.01363, figures of training-set and model size).
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np

from diffusion_privacy.anonymity.intervals import outwards
from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import sweep_figure, wording
from diffusion_privacy.settings_sweep import Point, SizeSweep
from diffusion_privacy.stages import audit as audit_stage
from diffusion_privacy.stages import reading
from diffusion_privacy.stages import sample as sample_stage
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages import train as train_stage
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import sharding

_LOG = logging.getLogger(__name__)

MEANING = {
    "n": "training records; every model holds the private one",
    "q": "probability that one drawn image shows the private record; higher = more leak; interval at level",
    "detections": "drawn images in which the detector recognises the private record, of samples",
    "expected_if_memorised": "samples/n: detections of a model that memorised all its records alike",
    "control_detections": "the same for held-out records that no model saw: false alarms",
    "t_prime": "largest noise level shown to give the record back, 0 to 1; higher = more leak; null: none shown",
    "t_prime_paper": "the same by the paper's reading, any hit in 16 draws a level, without confidence",
}
"""Of the numbers of sweep.json."""


def _reduced(records: Records, factor: int) -> Records:
    """Means over squares of ``factor`` pixels a side."""
    if factor == 1:
        return records
    n, height, width, channels = records.image.shape
    if height % factor or width % factor:
        raise InputError(f"config.sweep.reduce: expected a divisor of {height} and {width}, got {factor}")
    cut = records.image.reshape(n, height // factor, factor, width // factor, factor, channels)
    made = records.with_images(cut.mean(axis=(2, 4), dtype=np.float64).astype(np.float32))
    said = f"reduced: means over squares of {factor} x {factor}"
    return dataclasses.replace(made, preparation=(*records.preparation, said))


def _roles(job: SizeSweep, workdir: Workdir) -> common.Roles:
    """The study's roles, with the training set of every point beside the reference's."""
    study = job.study
    source = _reduced(reading.load(study.data), job.sweep.reduce)
    roles = common.load_roles(study, workdir, source)
    whole = roles.train["careful"]
    if job.sweep.sizes[-1] > len(whole):
        raise InputError(
            f"config.sweep.sizes: expected at most {len(whole)}, what is left beside the held-out records, "
            f"got {job.sweep.sizes[-1]}"
        )
    # The private record comes first, then the others in the order in which the seed dealt them.
    train = {point.name: whole.take(np.arange(point.size)) for point in job.points()}
    return dataclasses.replace(roles, train={**roles.train, **train})


def train(job: SizeSweep, workdir: Workdir) -> None:
    """Trains the reference, the detector, and a model a point."""
    for point in job.points():
        common.check(job.at(point))
    roles = _roles(job, workdir)
    done = workdir.path("train", "done.json")
    if done.exists():
        return
    train_stage.fit_scores(job.study, workdir, roles, [common.REFERENCE])
    train_stage.fit_detector(job.study, workdir, roles)
    for point in job.points():
        train_stage.fit_scores(job.at(point), workdir, roles, [point.name])
    workdir.write_json(done, {"models": [point.name for point in job.points()]})


def sample(job: SizeSweep, workdir: Workdir) -> None:
    """Draws from the reference and from every model."""
    roles = _roles(job, workdir)
    sample_stage.draw_all(job.study, workdir, roles, {common.REFERENCE: job.study.detector.negatives})
    for point in job.points():
        sample_stage.draw_all(job.at(point), workdir, roles, {point.name: job.sweep.samples})
    sample_stage.export(job.study, workdir, [point.name for point in job.points()])


def audit(job: SizeSweep, workdir: Workdir) -> None:
    """Audits every model that has no result yet."""
    missing = [p for p in job.points() if not workdir.path("audit", f"{p.name}.json").exists()]
    if not missing:
        return
    with workdir.timed("audit calibration"):
        setup = audit_stage.set_up(job.study, workdir, _roles(job, workdir))
    for point in missing:
        with workdir.timed(f"audit {point.name}"):
            audit_stage.audit_model(dataclasses.replace(setup, study=job.at(point)), point.name)


def _row(job: SizeSweep, workdir: Workdir, point: Point) -> dict[str, Any]:
    found = workdir.read_json(workdir.path("audit", f"{point.name}.json"))
    private, *controls = found["records"]
    verdict, t_prime = private["verdict"], private["t_prime"]
    return {
        "name": point.name,
        "n": point.size,
        "field": job.sweep.field or None,
        "value": point.value,
        "samples": found["n_samples"],
        "detections": private["direct"]["hits"],
        "expected_if_memorised": found["expected_if_memorised"],
        "control_detections": [record["direct"]["hits"] for record in controls],
        "q": {key: verdict[key] for key in ("lower", "estimate", "upper", "level", "status", "bound")},
        "direct": private["direct"],
        "subspace": private["subspace"],
        "t_prime": t_prime["statistical"],
        "t_prime_paper": t_prime["paper"]["value"],
        "epochs": found["epochs"],
        "last_loss": found["training_curve"]["last"],
    }


def report(job: SizeSweep, workdir: Workdir) -> None:
    """Writes ``sweep.json`` and ``sweep.png`` from the audit's files, and one line a point to the log."""
    shape = list(_roles(job, workdir).private.image.shape[1:])
    rows = [_row(job, workdir, point) for point in job.points()]
    curve = {"shape": shape, "reduce": job.sweep.reduce, "meaning": MEANING, "points": rows}
    workdir.write_json(workdir.path("sweep.json"), {**curve, "config": workdir.config})
    picture = workdir.path("sweep.png")
    sharding.once(lambda: sweep_figure.write(picture, rows), picture.name)
    for row in rows:
        q, t = row["q"], row["t_prime"]["value"]
        _LOG.info(
            "%s: %d of %d images show the record (%.1f if memorised), q %s to %s at %s, %s; t' %s (paper %s)",
            row["name"],
            row["detections"],
            row["samples"],
            row["expected_if_memorised"],
            outwards(q["lower"], "down", 2),
            outwards(q["upper"], "up", 2),
            wording.percent(q["level"]),
            q["status"],
            "none" if t is None else outwards(t, "down"),
            row["t_prime_paper"],
        )
