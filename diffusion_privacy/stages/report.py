"""Stage `report`: release.json, figures and the page, from the audit's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_privacy.reports import html, wording
from diffusion_privacy.reports.arrays import load_arrays
from diffusion_privacy.reports.schema import SCHEMA_VERSION
from diffusion_privacy.settings import Study
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.facts import run_facts
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import sharding

_QUESTION = (
    "If images are drawn from this model, how often does one of them show the private record, recognisable by its "
    "fingerprint?"
)


def _clause(name: str, model: Mapping[str, Any]) -> str:
    record = next(r for r in model["records"] if r["role"] == "private")
    found = record["verdict"]
    lower, upper = wording.rate(found["lower"], "down"), wording.rate(found["upper"], "up")
    bound, sure = wording.rate(found["bound"]), wording.percent(found["level"])
    known = f"the {name} model ({wording.count(model['n_train'])} training records)"
    if found["status"] == "leaks":
        return (
            f"{known} gives the private record back in {wording.rate(found['estimate'])} of 10,000 images "
            f"({sure} interval {lower} to {upper})"
        )
    if found["status"] == "no leak above bound":
        return (
            f"{known} gives it back in at most {upper} of 10,000 images with {sure} confidence, "
            f"below the {bound} that a memoriser of its records would show"
        )
    return (
        f"for {known} nothing could be certified: between {lower} and {upper} of 10,000 images show it, "
        f"with {sure} confidence"
    )


def answer(models: Mapping[str, Any]) -> str:
    """One sentence with its uncertainty."""
    text = "; ".join(_clause(name, model) for name, model in models.items())
    return text[0].upper() + text[1:] + "."


def _release(study: Study, workdir: Workdir, models: dict[str, Any], roles: common.Roles) -> dict[str, Any]:
    release: dict[str, Any] = {
        **run_facts(workdir, SCHEMA_VERSION, study.seed),
        "question": _QUESTION,
        "answer": answer(models),
        "limits": [],
        "data": {
            "source": study.data.source,
            "n": len(roles.train["careful"]) + len(roles.held_out) + len(roles.controls),
            "shape": [int(v) for v in roles.private.image.shape[1:]],
            "preparation": list(roles.private.preparation),
            "held_out": len(roles.held_out),
            "controls": len(roles.controls),
        },
        "models": models,
    }
    likelihood = workdir.root / "likelihood.json"
    if likelihood.exists():
        release["data"]["likelihood_bits_per_dim"] = workdir.read_json(likelihood)
    release["limits"] = wording.standard_limits(release)
    return release


def report(study: Study, workdir: Workdir) -> None:
    """Writes ``report/``; made anew each time, since it costs seconds and its settings may change."""
    roles = common.load_roles(study, workdir)
    models = {name: workdir.read_json(workdir.root / "audit" / f"{name}.json") for name in common.MODELS}
    arrays = {name: load_arrays(workdir.root / "audit" / f"{name}.npz") for name in common.MODELS}
    release = _release(study, workdir, models, roles)
    folder, shown = workdir.root / "report", study.report.show_private
    sharding.once(lambda: html.write_report(folder, release, arrays, shown), "report")
