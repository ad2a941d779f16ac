"""Private training on a table: useful where much may be spent, useless where nothing may, and charged what it says."""

from __future__ import annotations

import numpy as np
import pytest
from launching import changed_config

from diffusion_privacy import settings_kinds
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import dp_gradient
from diffusion_privacy.mechanisms.calibration import gaussian_multiplier
from diffusion_privacy.stages import cadp_table_private_arm, cadp_table_study


def _shares(name, **evaluation):
    study = settings_kinds.parse(changed_config(name, {f"evaluation.{k}": v for k, v in evaluation.items()}))
    _, private, test = cadp_table_study.load_parts(study)
    return study, private.table, test.table


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize(("name", "least", "most"), [("breast_cancer_cadp", 0.9, 0.85), ("diabetes_cadp", 0.3, 0.0)])
def test_models_follow_what_may_be_spent(name, least, most):
    study, private, test = _shares(name, draws=4)
    rich, poor = cadp_table_private_arm.transfers(study, private, test, [(1000.0, 1e-5), (0.01, 1e-5)])
    assert rich.score.value > least
    assert len(rich.draws) == 4
    # Noise a thousand times the signal: no better than chance on average, with draws that differ.
    assert poor.score.value < most
    assert len(set(poor.draws)) > 1


def test_all_steps_together_spend_what_is_asked(monkeypatch):
    study, private, test = _shares("breast_cancer_cadp", draws=2, dp_steps=9, dp_clip=0.5)
    seen = []

    def descend(loss, start, x, y, key, multiplier, *, clip, steps, learning_rate):
        seen.append((len(x), clip, steps))
        return start

    monkeypatch.setattr(dp_gradient, "descend", descend)
    found = cadp_table_private_arm.transfers(study, private, test, [(1.0, 1e-5)])
    assert seen == [(len(private), 0.5, 9)]
    # All zeros always name the first category.
    assert found[0].score.value == np.mean(test.data["diagnosis"] == 0)
    # Nine sums of gradients, each moved by at most 2C: one Gaussian release with 2C√9.
    assert dp_gradient.noise_multiplier(1.0, 1e-5, 9, len(private)) == pytest.approx(
        6 * gaussian_multiplier(1.0, 1e-5, len(private))
    )


def test_what_may_not_be_promised_is_refused():
    study, private, test = _shares("breast_cancer_cadp", draws=2)
    for spend in [(0.0, 1e-5), (1.0, 0.5)]:
        with pytest.raises(InputError):
            cadp_table_private_arm.transfers(study, private, test, [spend])
