"""Stage `likelihood`: bits per dimension of training and held-out records under each model."""

from __future__ import annotations

from diffusion_privacy.settings import Study
from diffusion_privacy.stages.workdir import Workdir


def likelihood(study: Study, workdir: Workdir) -> None:
    """Not yet."""
