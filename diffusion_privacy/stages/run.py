"""The stages by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_privacy.errors import InputError
from diffusion_privacy.settings import Study
from diffusion_privacy.settings_cadp import Cadp, CadpTable, PrivateStudy
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.settings_kinds import AnyStudy
from diffusion_privacy.settings_own import OwnModel
from diffusion_privacy.settings_sweep import SizeSweep
from diffusion_privacy.stages import (
    cadp_audit,
    cadp_evaluate,
    cadp_privatize,
    cadp_report,
    cadp_table_evaluate,
    cadp_table_study,
    cadp_train,
    joined_certify,
    joined_evaluate,
    joined_report,
    joined_train,
    lock,
    own_model,
    reading,
    size_sweep,
)
from diffusion_privacy.stages.audit import audit
from diffusion_privacy.stages.likelihood import likelihood
from diffusion_privacy.stages.report import report
from diffusion_privacy.stages.sample import sample
from diffusion_privacy.stages.train import train
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import tracking

STAGES: dict[str, Callable[[Study, Workdir], None]] = {
    "train": train,
    "sample": sample,
    "likelihood": likelihood,
    "audit": audit,
    "report": report,
}
"""In the order in which a whole study runs them."""


CADP_STAGES: dict[str, Callable[[Cadp, Workdir], None]] = {
    "train": cadp_train.train,
    "privatize": cadp_privatize.privatize,
    "evaluate": cadp_evaluate.evaluate,
    "audit": cadp_audit.audit,
    "report": cadp_report.report,
}
"""The stages of a private set of images, in their order."""

TABLE_STAGES: dict[str, Callable[[CadpTable, Workdir], None]] = {
    "train": cadp_train.train,
    "privatize": cadp_privatize.privatize,
    "evaluate": cadp_table_evaluate.evaluate,
    "audit": cadp_audit.audit,
    "report": cadp_report.report,
}
"""The stages of a private table, in their order."""

OWN_STAGES: dict[str, Callable[[OwnModel, Workdir], None]] = {"audit": own_model.audit, "report": own_model.report}
"""The stages of a model that was trained elsewhere, in their order."""

JOINED_STAGES: dict[str, Callable[[Joined, Workdir], None]] = {
    "privatize": joined_train.privatize,
    "train": joined_train.train,
    "sample": joined_train.sample,
    "evaluate": joined_evaluate.evaluate,
    "audit": joined_certify.audit,
    "report": joined_report.report,
}
"""The stages of four ways to share the same records, in their order."""

SWEEP_STAGES: dict[str, Callable[[SizeSweep, Workdir], None]] = {
    "train": size_sweep.train,
    "sample": size_sweep.sample,
    "audit": size_sweep.audit,
    "report": size_sweep.report,
}
"""The stages of a sweep over training-set and network sizes, in their order."""

_BY_KIND: dict[type, Mapping[str, Callable[[Any, Workdir], None]]] = {
    Study: STAGES,
    Cadp: CADP_STAGES,
    CadpTable: TABLE_STAGES,
    SizeSweep: SWEEP_STAGES,
    OwnModel: OWN_STAGES,
    Joined: JOINED_STAGES,
}


_MANY_PROCESSES = (Study, SizeSweep, OwnModel)
"""Kinds whose numbers are a function of the seed, so that several processes can work on them together."""


def run(study: AnyStudy, workdir: Path, mode: str = "study") -> None:
    """Runs one stage of a study of any kind, or all for ``mode = "study"``; nobody else does in that workdir meanwhile.

    Raises:
      InputError: an unknown mode, or anything that is wrong with the data, the settings or the workdir, among it
        another run that is at work there.
    """
    stages, workdir = _BY_KIND[type(study)], Path(workdir).expanduser()
    if isinstance(study, PrivateStudy) and study.release.metric:
        # The others measure a release against the ε that it claims, and this one claims none.
        stages = {name: stages[name] for name in ("train", "privatize")}
    if mode != "study" and mode not in stages:
        raise InputError(f"mode: expected study or one of {', '.join(stages)}, got {mode!r}")
    if jax.process_count() > 1 and not isinstance(study, _MANY_PROCESSES):
        # Each process would draw release noise of its own, and they would go on with different copies.
        raise InputError(
            f"distributed job: expected one process for a private copy, got {jax.process_count()}, each of which would "
            "draw noise of its own; start it by one process, which uses all devices of its machine"
        )
    if isinstance(study, Study | PrivateStudy | Joined):
        tracking.require(study.outputs.wandb)
    # Before the directory is bound to these settings: the path is the one that has to change.
    if isinstance(study, CadpTable):
        cadp_table_study.check_file(study)
    elif not (workdir / "config.json").exists():
        reading.require(study.data)
    with lock.held(workdir):
        place = Workdir(workdir, study)
        for name, stage in stages.items():
            if mode in ("study", name):
                stage(study, place)
