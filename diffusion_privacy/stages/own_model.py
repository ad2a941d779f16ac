"""Stages of the audit of a given model: `audit` measures and writes audit/model.json, `report` makes the page."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.anonymity import lower_bounds, summary, verdict
from diffusion_privacy.anonymity.detector_tasks import Perturbation
from diffusion_privacy.audits import own_model
from diffusion_privacy.audits.own_model import OwnAudit
from diffusion_privacy.data.records import Records
from diffusion_privacy.diffusion.given_model import GivenModel
from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import diffusers
from diffusion_privacy.reports import estimates, own_page, own_schema, schema, wording
from diffusion_privacy.settings_own import OwnModel
from diffusion_privacy.stages import reading
from diffusion_privacy.stages.facts import run_facts
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import sharding

_LOG = logging.getLogger(__name__)
_QUESTION = (
    "If images are drawn from this model, how often does one of them come as close to a private record as a copy?"
)


def load_model(study: OwnModel, shape: tuple[int, ...]) -> GivenModel:
    """The model that the config names, for records of this shape.

    Raises:
      InputError: the checkpoint or the function is not usable; the message names the file, key or field.
    """
    given = study.model
    if given.kind == "diffusers":
        if given.params:
            raise InputError("config.model.params: expected none for kind 'diffusers'")
        return diffusers.load(given.path, given.steps, shape=shape, label=given.label)
    function = _python_function(given.path)
    try:
        model = function(**given.params)
    except InputError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(f"config.model.path: {given.path} raised {type(error).__name__}: {text}") from error
    if not isinstance(model, GivenModel):
        raise InputError(
            f"config.model.path: expected {given.path} to return a diffusion.given_model.GivenModel, got "
            f"{type(model).__name__}"
        )
    return model


def _python_function(path: str) -> Callable[..., Any]:
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise InputError(f"config.model.path: expected module:function or file.py:function, got {path!r}")
    try:
        module = _from_file(Path(place).expanduser()) if place.endswith(".py") else importlib.import_module(place)
    except InputError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(f"config.model.path: {place} cannot be imported ({type(error).__name__}: {text})") from error
    function = vars(module).get(name)
    if not callable(function):
        raise InputError(f"config.model.path: expected a function {name} in {place}, found none")
    return function


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"config.model.path: {path} does not exist; expected a Python file")
    spec = importlib.util.spec_from_file_location(f"given_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"config.model.path: {path} cannot be imported; expected a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_records(study: OwnModel) -> tuple[Records, Records]:
    """(private, held out). Held-out records of a private record's person are left out where both have one source.

    Raises:
      InputError: a number that the source does not have, ``stop`` behind its end, or fewer than 19 held-out records.
    """
    wanted = study.records
    source = reading.load(study.data)
    rows = []
    for number in wanted.private:
        at = np.flatnonzero(source.index == number)
        if at.size == 0:
            raise InputError(f"config.records.private: the source has no record {number}")
        rows.append(int(at[0]))
    private = source.take(rows)
    others = source if wanted.held_out is None else reading.load(wanted.held_out, "config.records.held_out")
    last = int(others.index.max())
    if wanted.stop > last + 1:
        # The audit would rest on fewer records than the config says.
        raise InputError(
            f"config.records.stop: expected at most {last + 1}, the records of {others.name} go up to {last}, got "
            f"{wanted.stop}"
        )
    kept = (others.index >= wanted.start) & ((others.index < wanted.stop) | (wanted.stop == 0))
    if wanted.held_out is None:
        kept &= ~np.isin(others.identity, private.identity)
    if np.sum(kept) < 19:
        raise InputError(
            f"config.records: expected at least 19 held-out records of other people, start = {wanted.start} and stop = "
            f"{wanted.stop} leave {np.sum(kept)}"
        )
    return private, others.take(kept)


def audit(study: OwnModel, workdir: Workdir) -> None:
    """Audits the model; a finished audit does no work."""
    path = workdir.path("audit", "model.json")
    if path.exists():
        return
    private, held_out = load_records(study)
    copy = _perturbation(study)
    with workdir.timed("audit"):
        model = load_model(study, private.image.shape[1:])
        found = own_model.audit_model(
            model,
            private.image,
            held_out.image,
            n_train=study.model.n_train,
            distance=study.detector.distance,
            copy=copy,
            plan=study.audit,
            seed=study.seed,
        )
    kept = {"shown": found.shown, "private": private.image, "nearest": found.nearest}
    workdir.write_arrays(workdir.path("audit", "model.npz"), kept)
    workdir.write_json(path, entry(study, model, private, len(held_out), found))


def _perturbation(study: OwnModel) -> Perturbation:
    try:
        return Perturbation(**study.detector.copy)
    except TypeError:
        fields = ", ".join(field.name for field in dataclasses.fields(Perturbation))
        raise InputError(f"config.detector.copy: expected some of {fields}, got {study.detector.copy}") from None


def entry(study: OwnModel, model: GivenModel, private: Records, held_out: int, found: OwnAudit) -> dict[str, Any]:
    """audit/model.json, an entry of ``models`` in release.json: every number with interval, level, and assumptions."""
    chain = model.chain
    given: dict[str, Any] = {
        "kind": study.model.kind,
        "path": study.model.path,
        "n_train": study.model.n_train,
        "memoriser_rate": 1 / study.model.n_train,
        "n_samples": study.audit.samples,
        "expected_if_memorised": study.audit.samples / study.model.n_train,
        "sampler": {
            "name": chain.kernel,
            "steps": chain.steps,
            "sde": repr(chain.sde),
            "clip_x0": chain.clip_x0,
            "clip_range": chain.clip_range if chain.clip_x0 else None,
            "variance": chain.variance,
            "times": [float(t) for t in chain.times],
        },
        "held_out": held_out,
        "plausibility": None if found.plausibility is None else dataclasses.asdict(found.plausibility),
        "notes": list(found.notes),
    }
    records = [_record(study, private, r, found) for r in range(len(found.records))]
    for record in records:
        record["verdict"]["sentence"] = sentence(record, given)
    return {**given, "records": records}


def _record(study: OwnModel, private: Records, number: int, audit: OwnAudit) -> dict[str, Any]:
    found, level = audit.records[number], study.audit.level
    e2 = found.subspace
    gamma = found.t_prime.gamma
    return {
        "role": "private",
        "index": int(private.index[number]),
        "label": int(private.label[number]),
        "detector": {
            "radius": found.balls.radius,
            "nearest_held_out": found.balls.nearest,
            "nearest_drawn": float(audit.distances[number]),
            "false_positive_rate": estimates.rate_entry(found.balls.false_positive_rate),
            "copies_inside": estimates.rate_entry(found.copies_seen),
            "reasons": list(found.reasons),
        },
        "t_prime": estimates.t_prime_entry(found.curve, gamma, level),
        "h_curve": estimates.h_curve_entry(found.curve, level),
        "direct": schema.direct_entry(found.direct.estimate, found.direct.hits),
        "subspace": schema.subspace_entry(e2.estimate, e2.hits, e2.pareto_k, e2.max_weight_share),
        "estimators": [
            schema.estimator_entry(summary.row(bound))
            for bound in lower_bounds.of_paths(e2, study.audit.subspace_draws, level)
        ],
        "controls": {
            "hits": found.control.control_hits.tolist(),
            "p_value": found.control.p_value,
        },
        "verdict": {**dataclasses.asdict(found.verdict), "assumes": list(found.verdict.assumes)},
    }


def report(study: OwnModel, workdir: Workdir) -> None:
    """Writes report/index.html, release.json and summary.md from the audit's files and logs each record's sentence."""
    model = workdir.read_json(workdir.root / "audit" / "model.json")
    arrays = workdir.read_arrays(workdir.root / "audit" / "model.npz")
    sentences = [record["verdict"]["sentence"] for record in model["records"]]
    release = {
        **run_facts(workdir, own_schema.SCHEMA_VERSION, study.seed),
        "question": _QUESTION,
        "answer": " ".join(sentences),
        "limits": own_page.limits(model),
        "data": {
            "source": study.data.source,
            "n": len(model["records"]) + model["held_out"],
            "shape": [int(v) for v in arrays["private"].shape[1:]],
            "held_out": model["held_out"],
        },
        "models": {own_schema.MODEL: model},
    }
    folder, shown = workdir.root / "report", study.report.show_private
    sharding.once(lambda: own_page.write_report(folder, release, arrays, shown), "report")
    lines = [f"# Audit of {study.model.path}", ""]
    for record, said in zip(model["records"], sentences, strict=True):
        _LOG.info("%s", said)
        lines += [f"## Record {record['index']}", "", said, ""]
        lines += [f"- {name}: {text}" for name, text in _facts(record, model)]
        lines += ["", "This rests on:", ""]
        lines += [f"- {text}" for text in record["verdict"]["assumes"]]
        lines += [f"- **{text}**" for text in record["detector"]["reasons"]] + [""]
    workdir.write_text(workdir.path("report", "summary.md"), "\n".join(lines))


def sentence(record: dict[str, Any], model: dict[str, Any]) -> str:
    """The verdict with its interval, level, unit and bound."""
    found, index = record["verdict"], record["index"]
    lower, upper = wording.rate(found["lower"], "down"), wording.rate(found["upper"], "up")
    unit, sure, bound = wording.RATE_UNIT, wording.percent(found["level"]), wording.rate(found["bound"])
    if found["status"] == verdict.LEAKS:
        return (
            f"Record {index} comes back: {lower} to {upper} {unit} lie inside its ball, with {sure} confidence, and "
            f"more often than inside those of {model['held_out']} records that the model never saw (rank test: "
            f"p = {wording.significant(record['controls']['p_value'], 2, 'up')})."
        )
    if found["status"] == verdict.CLEAN:
        return (
            f"Record {index}: at most {upper} {unit} lie inside its ball, with {sure} confidence, no more than the "
            f"{bound} that a memoriser of {wording.count(model['n_train'])} records would show."
        )
    return (
        f"Not certified for record {index}: between {lower} and {upper} {unit} lie inside its ball, with {sure} "
        f"confidence; {wording.more_samples(found, 'images', f'at most {bound}')}."
    )


def _facts(record: dict[str, Any], model: dict[str, Any]) -> list[tuple[str, str]]:
    detector, controls = record["detector"], np.array(record["controls"]["hits"])
    e1, e2 = record["direct"], record["subspace"]
    return [
        ("E1, direct", f"{e1['hits']} of {wording.count(e1['n'])} images, {wording.interval(e1)}"),
        ("E2, subspace", f"{wording.interval(e2)}, {'reliable' if e2['reliable'] else 'not reliable'}"),
        ("t'", wording.statistical_t_prime(record["t_prime"]["statistical"])),
        (
            "ball",
            f"radius {detector['radius']:.3g}, nearest held-out record at {detector['nearest_held_out']:.3g}; a fresh "
            f"real record falls into it with probability {wording.detector_rate(detector['false_positive_rate'])}",
        ),
        ("perturbed copies inside the ball", wording.detector_rate(detector["copies_inside"])),
        (
            "held-out records",
            f"{int(np.sum(controls > 0))} of {model['held_out']} have a drawn image inside their ball, the busiest "
            f"{int(controls.max())}; rank test p = {wording.significant(record['controls']['p_value'], 2, 'up')}",
        ),
    ]
