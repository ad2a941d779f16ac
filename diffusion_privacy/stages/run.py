"""The stages by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffusion_privacy.errors import InputError
from diffusion_privacy.settings import Study
from diffusion_privacy.stages.audit import audit
from diffusion_privacy.stages.likelihood import likelihood
from diffusion_privacy.stages.report import report
from diffusion_privacy.stages.sample import sample
from diffusion_privacy.stages.train import train
from diffusion_privacy.stages.workdir import Workdir

STAGES: dict[str, Callable[[Study, Workdir], None]] = {
    "train": train,
    "sample": sample,
    "likelihood": likelihood,
    "audit": audit,
    "report": report,
}
"""In the order in which a whole study runs them."""


def run(study: Study, workdir: Path, mode: str = "study") -> None:
    """Runs one stage, or all for ``mode = "study"``.

    Raises:
      InputError: an unknown mode, or anything that is wrong with the data, the settings or the workdir.
    """
    if mode != "study" and mode not in STAGES:
        raise InputError(f"mode: expected study or one of {', '.join(STAGES)}, got {mode!r}")
    place = Workdir(workdir, study)
    for name, stage in STAGES.items():
        if mode in ("study", name):
            stage(study, place)
