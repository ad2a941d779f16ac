"""Which detector a study uses: the bank of classifiers, or the shared embedding with floors from others' records."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from launching import changed_config

from diffusion_privacy import settings
from diffusion_privacy.anonymity.bank import PairScores
from diffusion_privacy.anonymity.reidentification import EmbeddingScores, EmbeddingTask
from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.embedding import Embedder
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages import train
from diffusion_privacy.stages.workdir import Workdir


def unit(params, x):
    flat = x.reshape(len(x), -1) + params
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


def ink(params, x):
    return jnp.mean(x.reshape(len(x), -1), axis=1, keepdims=True) + params


@pytest.fixture
def study():
    return settings.parse(settings.Study, changed_config("digits", {"detector.identity": "embedding"}))


def test_floors_are_what_other_peoples_records_stay_below(study, tmp_path, monkeypatch):
    roles = common.load_roles(study, Workdir(tmp_path, study))
    monkeypatch.setattr(common, "classifiers", lambda _: {"fingerprint": ink, "identity": unit})
    monkeypatch.setattr(common, "load_classifiers", lambda _: {"fingerprint": 0.5, "identity": 1.0})
    scores, params, floors = common.pair_scores(study, Workdir(tmp_path, study), roles)
    assert isinstance(scores, EmbeddingScores)
    clean = np.concatenate([roles.private.image, roles.controls.image])
    np.testing.assert_allclose(np.diag(scores(params, jnp.asarray(clean))[1]), 1.0, rtol=1e-5)
    careful = roles.train["careful"]
    others = careful.image[careful.index != roles.private.index[0]]
    above = np.asarray(scores(params, jnp.asarray(others))[1])[:, 0] > floors[0]
    # k = ⌊.01 · 1,697⌋ = 16, and the k-th largest is not above itself.
    assert above.sum() == 15
    assert floors.shape == (4,)


def test_the_config_chooses(study, tmp_path):
    assert isinstance(common.classifiers(study)["identity"].network, Embedder)
    roles = common.load_roles(study, Workdir(tmp_path, study))
    task = train._identity_task(study, roles, train._clean(roles))
    assert isinstance(task, EmbeddingTask)
    assert (len(task.pool), task.most) == (1697, 2)
    usual = settings.parse(settings.Study, changed_config("digits", {}))
    assert usual.detector.identity == "classifier"
    with pytest.raises(InputError, match="expected one of 'classifier', 'embedding'"):
        settings.parse(settings.Study, changed_config("digits", {"detector.identity": "face"}))


def test_a_bank_keeps_its_fifty_percent_line(tmp_path, monkeypatch):
    usual = settings.parse(settings.Study, changed_config("digits", {}))
    roles = common.load_roles(usual, Workdir(tmp_path, usual))
    monkeypatch.setattr(common, "load_classifiers", lambda _: {})
    scores, _, floors = common.pair_scores(usual, Workdir(tmp_path, usual), roles)
    assert isinstance(scores, PairScores)
    np.testing.assert_array_equal(floors, np.zeros(4))
