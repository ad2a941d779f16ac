"""The anonymity study in latent space: refusals, digests, and the whole run on few steps."""

import numpy as np
import pytest
from launching import changed_config

from diffusion_privacy import settings
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import schema
from diffusion_privacy.stages import run, spaces
from diffusion_privacy.stages.workdir import Workdir

AUTOENCODER = {
    "network": {"halvings": 1, "latent_channels": 4, "channels": 8, "max_channels": 8},
    "std": 0.1,
    "training": {"steps": 600, "batch_size": 32, "learning_rate": 5e-3, "log_every": 200, "checkpoint_every": 600},
}

TINY = {
    "score.autoencoder": AUTOENCODER,
    "score.training.steps": 30,
    "score.training.warmup_steps": 5,
    "score.training.log_every": 10,
    "score.training.checkpoint_every": 30,
    "score.network.params.hidden": 16,
    "score.network.params.depth": 1,
    "sampler.steps": 20,
    "detector.positive_time": 0.05,
    "sampler.clip_x0": False,
    "detector.training.steps": 300,
    "detector.training.log_every": 100,
    "detector.network.channels": 8,
    "detector.network.max_channels": 8,
    "detector.negatives": 100,
    "detector.false_positive_rate": 0.02,
    "detector.positives": 32,
    "audit.samples.careless": 100,
    "audit.samples.careful": 100,
    "audit.h_levels": 3,
    "audit.h_draws": 16,
    "audit.subspace_draws": 100,
    "audit.subspace_max_draws": 100,
    "audit.chunk": 64,
    "audit.likelihood_records": 0,
    "audit.baselines": ("loss", "authpct"),
    "split.controls": 1,
}


def _study(changes=None):
    return settings.parse(settings.Study, changed_config("digits", {**TINY, **(changes or {})}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampler.clip_x0", True),
        ("audit.likelihood_records", 4),
        ("audit.estimators", ("counterfactual",)),
        ("score.training.privacy.epsilon", 4.0),
        ("score.autoencoder", {**AUTOENCODER, "std": 0.0}),
        ("score.autoencoder", {**AUTOENCODER, "kl_weight": -1.0}),
        ("score.autoencoder", {**AUTOENCODER, "network": {"image_channels": 1}}),
    ],
)
def test_what_has_no_meaning_in_latent_space_is_refused(field, value):
    with pytest.raises(InputError, match=rf"^config\.{field.removesuffix('.epsilon')}[a-z_.]*: expected [^\n]*$"):
        _study({field: value})


def test_a_study_without_an_autoencoder_has_the_settings_it_always_had():
    plain = settings.parse(settings.Study, changed_config("digits", {}))
    assert "autoencoder" not in settings.to_dict(plain)["score"]
    assert settings.to_dict(_study())["score"]["autoencoder"]["std"] == 0.1
    images = np.zeros((2, 8, 8, 1), np.float32)
    space = spaces.Space()
    assert space.encode(images) is space.decode(images) is images
    assert space.shape((8, 8, 1)) == (8, 8, 1)
    assert space.detector(np.sum) is np.sum


@pytest.mark.slow
def test_the_whole_study_runs_in_latent_space(tmp_path):
    study = _study()
    run.run(study, tmp_path)
    release = schema.read(tmp_path / "report" / "release.json")
    work = Workdir(tmp_path, study)
    for name in ("careless", "careful"):
        space = spaces.load(study, work, name)
        drawn = work.read_arrays(tmp_path / "samples" / f"{name}.npz")
        assert drawn["images"].shape == (100, 8, 8, 1)
        assert drawn["latents"].shape == (100, 4, 4, 4)
        np.testing.assert_allclose(space.decode(drawn["latents"]), drawn["images"], atol=1e-5)
        assert space.shape((8, 8, 1)) == (4, 4, 4)
        assert len(release["models"][name]["records"]) == 2
        names = [row["name"].split(":")[0] for row in release["models"][name]["baselines"]]
        assert "loss" in names
        assert "authpct" in names
    digests = {spaces.load(study, work, name).digest for name in ("careless", "careful", "reference")}
    assert len(digests) == 3
