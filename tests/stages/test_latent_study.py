"""The anonymity study in latent space: refusals, digests, and the whole run on few steps."""

import operator

import jax
import numpy as np
import pytest
from launching import changed_config

from configs.paper import xray_512_latent
from diffusion_privacy import settings
from diffusion_privacy.anonymity import bank, lanes, montecarlo
from diffusion_privacy.anonymity.bank import PairScores
from diffusion_privacy.diffusion.latent import Latent
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import schema
from diffusion_privacy.stages import memory, run, sample, spaces
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.workdir import Workdir

pytestmark = pytest.mark.lightly_compiled

AUTOENCODER = {
    "network": {"halvings": 1, "latent_channels": 4, "channels": 8, "max_channels": 8},
    "std": 0.1,
    "training": {"steps": 300, "batch_size": 32, "learning_rate": 5e-3, "log_every": 100, "checkpoint_every": 300},
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"halvings": 4}, r"config\.score\.autoencoder\.network: .* divisible by 16 \(2\^halvings\), got .*8, 8, 1\)"),
        ({"blocks": 0}, r"config\.score\.autoencoder\.network: autoencoder\.blocks: expected 1 or more, got 0"),
        ({"dtype": "float16"}, r"config\.score\.autoencoder\.network\.dtype must be .*, got 'float16'"),
        ({"depth": 2}, r"config\.score\.autoencoder\.network\.depth is not a field of 'autoencoder'; .*"),
        ({"halvings": 2}, r"config\.score\.network, for latents of shape \(2, 2, 4\): a U-Net of 3 levels .*"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(changes, message, tmp_path):
    unet = {"name": "unet", "params": {"channels": 8, "channel_mult": (1, 1, 1)}}
    autoencoder = {**AUTOENCODER, "network": {**AUTOENCODER["network"], **changes}}
    study = _study({"score.autoencoder": autoencoder, "score.network": unet})
    with pytest.raises(InputError, match=rf"^{message}$"):
        run.run(study, tmp_path, "train")
    assert not (tmp_path / "train").exists()


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_the_small_study_of_512_pixels_has_the_images_latents_and_kinds_of_the_large_one():
    full, tiny = (settings.parse(settings.Study, xray_512_latent.get_config(s).to_dict()) for s in ("full", "tiny"))
    for study in (full, tiny):
        assert study.data == full.data
        assert study.data.params["size"] == 512
        assert spaces.planned_shape(study, (512, 512, 1)) == (64, 64, 4)
    for path in ("fingerprint", "score.network.name", "score.sde", "sampler.kernel", "detector.identity"):
        assert operator.attrgetter(path)(tiny) == operator.attrgetter(path)(full)
    assert tiny.audit.baselines == full.audit.baselines
    fields = [dict(study.score.network.params) for study in (full, tiny)]
    assert [f.pop("channels") for f in fields] == [128, 16]
    assert [f.pop("blocks_per_level") for f in fields] == [2, 1]
    assert fields[0] == fields[1]
    with pytest.raises(ValueError, match="expected :full or :tiny after the config's file, got 'big'"):
        xray_512_latent.get_config("big")


def _untrained(study, side):
    task = spaces.task(study, 1)
    params = task.init(jax.random.key(0), {"image": np.zeros((1, side, side, 1), np.float32)})
    return spaces.Space(Latent(task.encoder, task.decoder, params, 1.0), "", study)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_the_memory_budget_says_how_many_images_are_decoded_and_looked_at_at_a_time(monkeypatch):
    """The same latents, images and scores whatever the budget; 256 at a time without asking where they fit by far."""
    chunks, whole = [], lanes.run
    monkeypatch.setattr(lanes, "run", lambda *a, chunk, **k: chunks.append(chunk) or whole(*a, chunk=chunk, **k))
    asked, ask = [], lanes.chunk_for_budget
    monkeypatch.setattr(lanes, "chunk_for_budget", lambda *a, **k: asked.append(1) or ask(*a, **k))
    images = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 1)).astype(np.float32)
    found, sizes = [], []
    for memory_gb, chunk in ((64.0, 64), (3e-4, 0), (3e-4, 2)):
        study = _study({"audit.memory_gb": memory_gb, "audit.chunk": chunk})
        space = _untrained(study, 32)
        nets = common.classifiers(study)
        params = {name: net.init(jax.random.key(1), images) for name, net in nets.items()}
        scores = PairScores(nets["fingerprint"], nets["identity"])
        at_once = memory.detector_at_once(study, scores, params, (32, 32, 1))
        latents = space.encode(images)
        found.append((latents, space.decode(latents), *bank.evaluate(scores, params, images, chunk=at_once)))
        sizes.append(chunks[-3:])
        if memory_gb > 1:
            assert not asked
    assert sizes[0] == [256] * 3
    assert all(1 <= size < 5 for size in sizes[1])
    assert sizes[2] == [2] * 3
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


def test_no_more_is_drawn_than_asked_for_and_a_last_chunk(monkeypatch):
    study, drawn = _study({"sampler.steps": 3, "audit.h_levels": 3}), []
    whole = montecarlo.sample
    monkeypatch.setattr(montecarlo, "sample", lambda *a, **k: drawn.append(a[3]) or whole(*a, **k))
    chain = common.make_chain(study, common.make_sde(study))

    def score(x, t):
        return -x

    few = sample.draw(study, chain, score, (2,), 5, "careless", 4)
    more = sample.draw(study, chain, score, (2,), 2050, "careless", 4)
    np.testing.assert_array_equal(few, more[:5])
    # Two rounds: images of the first, drawn again, would pass for independent ones.
    assert len(np.unique(more, axis=0)) == 2050
    assert drawn == [5, 2048, max(2, 4 * jax.device_count())]


@pytest.mark.slow
def test_the_whole_study_runs_in_latent_space(tmp_path, monkeypatch):
    looked, evaluate, margins = [], bank.evaluate, montecarlo.margins
    monkeypatch.setattr(bank, "evaluate", lambda s, p, x, **k: looked.append(x.shape[1:]) or evaluate(s, p, x, **k))
    monkeypatch.setattr(montecarlo, "margins", lambda d, x, r, **k: looked.append(x.shape[1:]) or margins(d, x, r, **k))
    study = _study()
    run.run(study, tmp_path)
    # Negatives, positives and both models' draws: images, and no latents.
    assert looked == [(8, 8, 1)] * 4
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
