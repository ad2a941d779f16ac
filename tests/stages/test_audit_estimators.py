"""The further estimators as the stage runs them, on an orbit whose rate is 1/8 whatever the steps."""

from types import SimpleNamespace

import numpy as np
import pytest
from jax.tree_util import Partial
from launching import changed_config
from oracles import atom_models
from oracles.group_code import cyclic_orbit

from diffusion_privacy import settings
from diffusion_privacy.anonymity.counterfactual import paired
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import audit_estimators
from diffusion_privacy.types import Estimate

pytestmark = pytest.mark.lightly_compiled

ORBIT = cyclic_orbit(8, 4, seed=0)
CHAIN = Chain(VP(), 24)
SHAPE = (2, 2, 1)


def flat_score(score, x, t):
    return score(x.reshape(x.shape[0], -1), t).reshape(x.shape)


def flat_detect(detect, x, record):
    return detect(x.reshape(x.shape[0], -1), record)


SCORE = Partial(flat_score, atom_models.atom_score(VP(), ORBIT, 0.01))
DETECT = Partial(flat_detect, atom_models.nearest(ORBIT))


def study_with(**audit):
    changes = {f"audit.{name}": value for name, value in audit.items()}
    return settings.parse(settings.Study, changed_config("digits", {**changes, "audit.splitting.replicas": 8}))


def rows_of(study, chain=CHAIN):
    images = ORBIT[:2].reshape(2, *SHAPE).astype(np.float32)
    return audit_estimators.further(study, chain, SCORE, DETECT, images, np.arange(2), [], None, "model", 256)


@pytest.fixture
def no_paths(monkeypatch):
    """E4 reads E2's paths, which are not drawn here."""
    monkeypatch.setattr(audit_estimators.lower_bounds, "of_paths", lambda *_: [])
    further = audit_estimators.further

    def with_room(*args):
        return further(*args[:6], [None] * len(args[4]), *args[7:])

    monkeypatch.setattr(audit_estimators, "further", with_room)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "title"),
    [
        ("ode_hutchinson", "probability flow, 8 probes"),
        ("ode_exact", "probability flow, exact divergence"),
        ("ddim", "DDIM, exact determinants"),
    ],
)
def test_every_deterministic_sampler_covers_the_rate(no_paths, sampler, title) -> None:
    """Fixed seed: each of the two records would miss with probability 5 % on another, and both are printed."""
    study = study_with(estimators=("change_of_variables",), deterministic=sampler, flow_draws=1000)
    for (row,) in rows_of(study):
        assert row.kind.name == f"E3 {title}"
        assert row.reliable, row.reasons
        assert row.lower <= 1 / 8 <= row.upper
        assert abs(np.log(8 * row.value)) < 0.25
        # A draw takes at least one call a step.
        assert row.network_calls > 1000 * CHAIN.steps


@pytest.mark.slow
def test_splitting_bounds_the_rate_from_below_alone(no_paths) -> None:
    for (row,) in rows_of(study_with(estimators=("splitting",))):
        assert row.kind.name == "E5 splitting"
        assert 1 / 16 <= row.lower <= 1 / 8
        assert row.upper is None


def test_every_row_is_of_its_record_and_every_model_on_its_side(monkeypatch) -> None:
    """With and without swapped, what training on the record did would have the other sign."""
    asked = {"paths": []}

    def of_paths(result, draws, level):
        asked["paths"].append((result, draws, level))
        return []

    def counterfactual(chain, with_record, without, detect, shape, records, pairs, key, *, level, chunk):
        asked["pairs"] = (with_record, without, shape, records, pairs, level)
        never, some = np.zeros(pairs, bool), np.arange(pairs) < 7
        return [paired(some, never, level=level), paired(never, never, level=level)]

    def splitting(path, score, detect, shape, records, key, *, settings, uids, level, chunk):
        asked["splitting"] = (shape, records, uids.tolist(), level)
        found = (Estimate("splitting", np.log(q), 0.1, q / 2, 2 * q, level, 8, 8.0, True, 1) for q in (0.1, 0.2))
        return [SimpleNamespace(estimate=estimate) for estimate in found]

    monkeypatch.setattr(audit_estimators.lower_bounds, "of_paths", of_paths)
    monkeypatch.setattr(audit_estimators.counterfactual, "counterfactual", counterfactual)
    monkeypatch.setattr(audit_estimators.splitting, "estimate", splitting)
    study = study_with(estimators=("splitting", "counterfactual"), level=0.9, pairs=200, subspace_draws=300)
    images = np.zeros((2, *SHAPE), np.float32)
    found = audit_estimators.further(
        study, CHAIN, "with", None, images, np.array([5, 9]), ["one", "two"], "without", "model", 256
    )
    assert asked["paths"] == [("one", 300, 0.9), ("two", 300, 0.9)]
    assert asked["pairs"] == ("with", "without", SHAPE, 2, 200, 0.9)
    assert asked["splitting"] == (SHAPE, 2, [5, 9], 0.9)
    values = [[row.value for row in rows] for rows in found]
    assert values == [[pytest.approx(0.1), pytest.approx(7 / 200)], [pytest.approx(0.2), 0.0]]


def test_a_sampler_that_clips_is_followed_by_ddim_and_not_by_the_flow() -> None:
    clipping = Chain(VP(), 24, clip_x0=True)
    assert audit_estimators.deterministic(study_with(deterministic="ddim"), clipping).chain.clip_x0
    assert not audit_estimators.deterministic(study_with(), clipping).chain.clip_x0


@pytest.mark.parametrize("sampler", ["ode_exact", "ddim"])
def test_images_too_large_for_exact_determinants_are_refused_before_training(sampler) -> None:
    study = study_with(estimators=("change_of_variables",), deterministic=sampler)
    audit_estimators.check(study, CHAIN, (32, 32, 1))
    with pytest.raises(InputError, match=rf"config\.audit\.deterministic = '{sampler}': .* at most 1024 .* got 3072"):
        audit_estimators.check(study, CHAIN, (32, 32, 3))
    audit_estimators.check(study_with(estimators=("change_of_variables",)), CHAIN, (32, 32, 3))
    audit_estimators.check(study_with(deterministic=sampler), CHAIN, (32, 32, 3))


def test_the_usual_sampler_changes_no_digest() -> None:
    plain = settings.to_dict(study_with())
    assert "deterministic" not in plain["audit"]
    changed = settings.to_dict(study_with(deterministic="ddim"))
    assert changed["audit"]["deterministic"] == "ddim"
    with pytest.raises(InputError, match=r"config\.audit\.deterministic: expected one of 'ode_hutchinson'"):
        study_with(deterministic="exact")
