"""Stage `report` of a joined study: release.json, figures, the page, and a bundle for each model that may be shared."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.audits import neighbours
from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import files
from diffusion_privacy.reports import joined_page, joined_standing, joined_wording
from diffusion_privacy.reports.joined_figures import JoinedArrays
from diffusion_privacy.reports.joined_schema import SCHEMA_VERSION
from diffusion_privacy.settings import Named
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import bundle, bundle_write, cadp_study, joined_guarantee
from diffusion_privacy.stages import joined_study as common
from diffusion_privacy.stages.facts import run_facts
from diffusion_privacy.stages.joined_evaluate import YARDSTICKS
from diffusion_privacy.stages.joined_study import Sets
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training.checkpoint import restore_ema

_LOG = logging.getLogger(__name__)

_SHOWN = 24
_NEAREST = 4

_QUESTION = (
    "These private records can be shared in four ways. What is each good for, how often does it give a marked record "
    "back, and what can be promised to every record?"
)
_WHAT = {
    "raw_model": "A score model that was trained on the private records as they are.",
    "dp_model": "A score model that was trained on the private records with DP-SGD.",
    "copy_model": "A score model that was trained on a private copy of the records (CADP) and saw no record itself.",
    "copy": "A data set with one private image in the place of each record, made by CADP.",
}


def _folder(settings: Joined, workdir: Workdir, way: str) -> Path:
    if way == common.COPY:
        return cadp_study.release_path(workdir, settings.epsilon)
    return workdir.root / "bundles" / way


def _way(settings: Joined, workdir: Workdir, way: str, utility: dict[str, Any], n_train: int) -> dict[str, Any]:
    certified = workdir.read_json(workdir.root / "certify.json")
    return {
        "title": joined_standing.TITLES[way],
        "kind": "data set" if way == common.COPY else "model",
        "what": _WHAT[way],
        "n_train": n_train,
        "folder": str(_folder(settings, workdir, way).relative_to(workdir.root)),
        "utility": utility,
        "risk": workdir.read_json(workdir.root / "audit" / f"{way}.json"),
        "guarantee": joined_guarantee.guarantee(settings, workdir, way, certified.get(way, [])),
    }


def make_release(settings: Joined, workdir: Workdir, sets: Sets) -> dict[str, Any]:
    """`joined_schema.JoinedRelease`, from the stages' files."""
    private = sets.parts.private
    found = workdir.read_json(workdir.root / "evaluation.json")["sets"]
    release: dict[str, Any] = {
        **run_facts(workdir, SCHEMA_VERSION, settings.seed),
        "question": _QUESTION,
        "data": {
            "source": settings.data.source,
            "n": len(private) + len(sets.parts.public) + len(sets.parts.test) + len(sets.roles.controls),
            "shape": [int(v) for v in private.image.shape[1:]],
            "classes": private.num_classes,
            "private": len(private),
            "public": len(sets.parts.public),
            "test": len(sets.parts.test),
            "marked": sets.audited,
            "controls": len(sets.roles.controls),
        },
        "level": settings.risk.level,
        "detector": workdir.read_json(workdir.root / "audit" / "detector.json"),
        "ways_to_share": {
            way: _way(settings, workdir, way, found[way], len(private)) for way in (*common.MODELS, common.COPY)
        },
        "yardsticks": [{"name": name, "what": what, "utility": found[name]} for name, what in YARDSTICKS.items()],
        "ledger": joined_guarantee.ledger_entry(settings, workdir),
    }
    for field, words in (
        ("uncertified", joined_wording.uncertified),
        ("limits", joined_wording.limits),
        ("answer", joined_wording.answer),
    ):
        release[field] = words(release)
    return release


def _arrays(settings: Joined, workdir: Workdir, sets: Sets) -> JoinedArrays:
    """What the pictures show: the nearest shared images to each marked record, and some that nobody picked."""
    private, count = sets.parts.private, sets.audited
    released = common.load_copy(settings, workdir, private).records
    shared = {name: workdir.read_arrays(workdir.root / "samples" / f"{name}.npz")["images"] for name in common.MODELS}
    shared[common.COPY] = released.image
    marked = private.image[:count]
    nearest, distances = {}, {}
    for way, images in shared.items():
        squared, rows = neighbours.nearest(
            neighbours.rows(marked, "marked records"), neighbours.rows(images, way), k=_NEAREST
        )
        nearest[way], distances[way] = images[rows], np.sqrt(squared)
    some = np.arange(count, min(len(private), count + _SHOWN))
    return JoinedArrays(
        marked=marked,
        originals=sets.roles.private.image,
        nearest=nearest,
        distances=distances,
        shared={way: images[:_SHOWN] for way, images in shared.items()},
        copy_originals=private.image[some],
        copies=released.image[some],
    )


def _bundles(settings: Joined, workdir: Workdir, sets: Sets, release: dict[str, Any]) -> None:
    """A folder with a card for each model that nothing speaks against, and a card beside the copy.

    What is there already stays: something that was handed out is not changed afterwards.
    """
    private, shown = sets.parts.private, settings.report.risk_on_cards
    task = common.score_task(settings, private.num_classes)
    fields = {**settings.score.network.params, "num_classes": private.num_classes}
    shares = tuple(float(share) for share in common.class_shares(private))
    model = bundle.Model(
        network=Named(settings.score.network.name, fields),
        sde=settings.score.sde,
        prediction=task.prediction,
        sampler=settings.sampler,
        shape=tuple(int(v) for v in private.image.shape[1:]),
        labels=bundle.Labels(private.num_classes, True, (), shares),
    )
    for way in release["ways_to_share"]:
        folder, against = _folder(settings, workdir, way), joined_standing.reasons_against(release, way)
        written = folder / (bundle.CARD if way == common.COPY else bundle.MANIFEST)
        if against:
            _LOG.info("report: no bundle for %s: %s", way, "; ".join(against))
            if written.exists():
                raise InputError(f"{folder}: was written to be given away, but now {against[0]}; remove it, recall it")
        elif written.exists():
            _check_shown(written, shown)
        elif way == common.COPY:
            bundle_write.write_card(folder, way=way, release=release, show_risk=shown)
        else:
            params, _ = restore_ema(workdir.root / "train" / way)
            folder.parent.mkdir(parents=True, exist_ok=True)
            bundle_write.write_model_bundle(
                folder, params=params, model=model, way=way, release=release, show_risk=shown
            )


def _check_shown(written: Path, shown: bool) -> None:
    """What was written with other rates on its card stays as it is, and says so."""
    if written.name == bundle.MANIFEST and files.read_json(written).get("risk_on_card") != shown:
        raise InputError(
            f"{written}: was written with config.report.risk_on_cards = {not shown}; expected the same, or remove the "
            "folder and it is written anew"
        )


def report(settings: Joined, workdir: Workdir) -> None:
    """Writes ``report/``, made anew each time, since it costs seconds and its settings may change; then the bundles."""
    sets = common.load_sets(settings, workdir)
    release = make_release(settings, workdir, sets)
    shown = settings.report.show_private
    arrays = _arrays(settings, workdir, sets) if shown else None
    joined_page.write_report(workdir.root / "report", release, arrays, shown)
    _bundles(settings, workdir, sets, release)
