"""The study of private images on few steps, for the tests of its stages."""

from __future__ import annotations

from launching import changed_config

from diffusion_privacy import settings_kinds
from diffusion_privacy.settings_cadp import Cadp

TINY = {
    "split": {"public": 0.3, "private": 0.2, "test": 0.5},
    "flow.training.steps": 30,
    "flow.training.warmup_steps": 5,
    "flow.training.log_every": 10,
    "flow.training.checkpoint_every": 10,
    "flow.params.depths": (1,),
    "flow.params.dense_depth": 1,
    "release.epsilons": (1.0, 8.0),
    "evaluation.training.steps": 30,
    "evaluation.training.warmup_steps": 5,
    "evaluation.training.log_every": 10,
    "evaluation.training.checkpoint_every": 10,
    "evaluation.seeds": 2,
    "evaluation.hidden": 16,
    "evaluation.dp_steps": 2,
    "attack.study_epsilons": (1024.0,),
    "attack.trials": 2000,
    "attack.release_repeats": 0,
}


def raw(changes=None):
    return changed_config("digits_cadp", {**TINY, **(changes or {})})


def study(changes=None) -> Cadp:
    found = settings_kinds.parse(raw(changes))
    assert isinstance(found, Cadp)
    return found
