"""The joined study on few steps, for the tests of its stages."""

from __future__ import annotations

import copy

from launching import changed_config

from diffusion_privacy import settings_kinds
from diffusion_privacy.settings_joined import Joined

_FEW = {"steps": 12, "warmup_steps": 2, "log_every": 6, "checkpoint_every": 12, "batch_size": 16}
TINY = {
    "split": {"public": 0.1, "private": 0.04, "test": 0.86},
    "flow.params.depths": (1,),
    "flow.params.dense_depth": 1,
    "score.network.params": {"hidden": 16, "depth": 1},
    "sampler.steps": 20,
    "detector.network": {"channels": 8, "max_channels": 8},
    "detector.negatives": 200,
    "detector.positives": 16,
    "detector.positive_time": 0.05,
    "detector.false_positive_rate": 0.05,
    "evaluation.seeds": 2,
    "evaluation.hidden": 8,
    "risk.samples": 200,
    "risk.evaluation_samples": 80,
    "risk.h_levels": 3,
    "risk.h_draws": 16,
    "risk.subspace_draws": 128,
    "risk.subspace_max_draws": 128,
    "risk.attack_records": 80,
    "risk.chunk": 64,
    "certify": {"copies": 3, "copy_models": 2, "dp_models": 2, "samples": 50},
    "private_training.privacy.augmentations": 1,
    **{f"{part}.{field}": v for part in ("flow.training", "score.training", "private_training", "detector.training",
                                         "evaluation.training") for field, v in _FEW.items()},
    # Enough for thresholds that a regenerated record passes.
    "detector.training.steps": 300,
    "detector.training.batch_size": 64,
    "detector.training.warmup_steps": 20,
    "detector.training.checkpoint_every": 300,
}  # fmt: skip


def study(changes=None) -> Joined:
    found = settings_kinds.parse(changed_config("digits_release", copy.deepcopy({**TINY, **(changes or {})})))
    assert isinstance(found, Joined)
    return found
