"""Stage `report` of a CADP study: release.json, figures and the page, from the files of earlier stages alone."""

from __future__ import annotations

from typing import Any

from diffusion_privacy.data.records import Records
from diffusion_privacy.data.table_rows import Rows
from diffusion_privacy.mechanisms import receipt
from diffusion_privacy.reports import cadp_page, cadp_table_wording, cadp_wording
from diffusion_privacy.reports.cadp_schema import SCHEMA_VERSION, TABLE_VERSION, TableFacts
from diffusion_privacy.settings_cadp import CadpTable, PrivateStudy
from diffusion_privacy.stages import cadp_study as common
from diffusion_privacy.stages.facts import run_facts
from diffusion_privacy.stages.workdir import Workdir

_QUESTION = (
    "The private records went through a mechanism, one private copy for each. What is promised to the people behind "
    "them, what does an attacker find, and what are the copies good for?"
)


def _ledger(settings: PrivateStudy, workdir: Workdir, private: Records | Rows) -> dict[str, Any]:
    ledger = common.make_ledger(settings, workdir)
    common.check_entered(settings, workdir, ledger, common.hashes(private))
    total = ledger.total()
    folders = [common.release_path(workdir, e) for e in settings.release.epsilons]
    return {
        "summary": total.describe(),
        "stages": total.stages,
        "epsilon": total.account.epsilon,
        "delta": total.account.delta,
        "relation": total.relation.describe(),
        "guarantee": total.guarantee,
        "stated_total": {"epsilon": ledger.epsilon, "delta": ledger.delta},
        "taken_on_trust": [folder.name for folder in folders if receipt.by_place(folder)],
    }


def _facts(settings: PrivateStudy, workdir: Workdir, parts: common.Parts[Any]) -> dict[str, Any]:
    sizes = {"public": len(parts.public), "private": len(parts.private), "test": len(parts.test)}
    version = TABLE_VERSION if isinstance(settings, CadpTable) else SCHEMA_VERSION
    return {
        **run_facts(workdir, version, settings.seed),
        "question": _QUESTION,
        "data": {
            "source": settings.data.source,
            "n": sum(sizes.values()),
            "shape": [int(v) for v in parts.private.image.shape[1:]],
            **sizes,
        },
    }


def report(settings: PrivateStudy, workdir: Workdir) -> None:
    """Writes ``report/``; made anew each time, since it costs seconds and its settings may change."""
    parts = common.load_parts(settings, workdir)
    evaluation = workdir.read_json(workdir.root / "evaluation.json")
    audit = workdir.read_json(workdir.root / "audit.json")
    releases = [
        {
            "folder": str(common.release_path(workdir, e).relative_to(workdir.root)),
            "latent_epsilon": e,
            "manifest": common.load_release(workdir, e, parts.private, common.target_of(settings)).manifest,
        }
        for e in settings.release.epsilons
    ]
    release: dict[str, Any] = {
        **_facts(settings, workdir, parts),
        "releases": releases,
        "ledger": _ledger(settings, workdir, parts.private),
        "n_test": evaluation["n_test"],
        "arms": evaluation["arms"],
        **audit,
    }
    images = None
    if isinstance(settings, CadpTable):
        release["table"] = {name: evaluation[name] for name in TableFacts.__annotations__}
        release["answer"], release["limits"] = cadp_table_wording.answer(release), cadp_table_wording.limits(release)
    else:
        release["answer"], release["limits"] = cadp_wording.answer(release), cadp_wording.limits(release)
        if settings.report.show_private:
            images = workdir.read_arrays(workdir.root / "evaluation_images.npz")
    cadp_page.write_report(workdir.root / "report", release, images)
