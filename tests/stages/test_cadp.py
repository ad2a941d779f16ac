"""The CADP study: arms that stay apart, the linkage count, and the whole on few steps."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launching import launch
from tiny_cadp import raw, study

from diffusion_privacy.data import sources
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.decoding import match_prior
from diffusion_privacy.mechanisms.mechanism import many_at_scale
from diffusion_privacy.reports import cadp_schema, cadp_wording
from diffusion_privacy.stages import cadp_arms, cadp_audit, cadp_evaluate, cadp_study, lock, run
from diffusion_privacy.stages.cadp_flow import TrainedFlow
from diffusion_privacy.stages.workdir import Workdir

pytestmark = pytest.mark.lightly_compiled

# --- arms -------------------------------------------------------------------------------------------------------------


def _arms(count=2):
    digits = sources.load("digits", limit=60)
    return [cadp_arms.Arm(f"a{i}", "original", None, (digits.take(np.arange(i, 60 - i)),)) for i in range(count)]


@pytest.mark.slow
def test_classifiers_learn_as_if_each_were_alone():
    arms = _arms()
    batch = cadp_arms.ArmBatches(arms, 8, 0, 2).batch(3)
    task = cadp_arms.make_task(study(), 2, 10)
    params = jax.jit(task.init)(jax.random.key(0), batch)
    # The head starts at 0, where no gradient reaches the layers below it.
    params = jax.tree.map(lambda p: p + 0.1 * np.random.default_rng(1).normal(size=p.shape).astype(np.float32), params)

    @jax.jit
    @jax.grad
    def gradient(params, batch):
        return jnp.sum(task.loss(params, batch, jax.random.key(0))[0])

    together = gradient(params, batch)
    other = dict(batch, image=np.array(batch["image"]))
    other["image"][:, 0] = 0.3
    changed = gradient(params, other)
    gaps = [np.abs(a - b) for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(changed), strict=True)]
    assert max(gap[1].max() for gap in gaps) < 1e-6
    assert max(gap[0].max() for gap in gaps) > 1e-3


def test_seeds_start_alike_in_every_arm_and_apart_from_each_other():
    batch = cadp_arms.ArmBatches(_arms(), 8, 0, 2).batch(0)
    params = jax.jit(cadp_arms.make_task(study(), 2, 10).init)(jax.random.key(0), batch)
    leaf = max(jax.tree.leaves(params), key=lambda p: p.size)
    np.testing.assert_array_equal(leaf[0], leaf[1])
    assert not np.array_equal(leaf[0, 0], leaf[0, 1])


def test_arm_batches_are_functions_of_the_step_and_know_their_stream():
    one, two = (cadp_arms.ArmBatches(_arms(), 8, 0, 3) for _ in range(2))
    np.testing.assert_array_equal(one.batch(5)["image"], two.batch(5)["image"])
    assert one.batch(0)["image"].shape == (8, 2, 3, 8, 8, 1)
    assert two.check(one.state(7)) == 7
    with pytest.raises(InputError, match="classifiers' data: arms"):
        cadp_arms.ArmBatches(_arms(3), 8, 0, 3).check(one.state(7))


def test_draws_of_a_set_go_to_their_seeds():
    digits = sources.load("digits", limit=20)
    dark, light = (digits.with_images(np.full_like(digits.image, v)) for v in (-1.0, 1.0))
    batch = cadp_arms.ArmBatches([cadp_arms.Arm("c", "control", None, (dark, light))], 4, 0, 2).batch(0)
    assert np.all(batch["image"][:, 0, 0] == -1)
    assert np.all(batch["image"][:, 0, 1] == 1)


def test_the_interval_over_seeds_is_students():
    found = cadp_evaluate.interval(np.array([0.5, 0.6, 0.7]), 0.95)
    assert found["value"] == pytest.approx(0.6)
    # t_{0.975, 2} = 4.3027, standard error 0.1/√3.
    assert found["lower"] == pytest.approx(0.6 - 4.3027 * 0.1 / np.sqrt(3), abs=1e-4)


# --- attacks ----------------------------------------------------------------------------------------------------------


class IdentityFlow:
    """Latents are the pixels, so that a curve of images is a curve of latents."""

    def given(self, records):
        return records.label

    def encode(self, images, labels, key):
        return images.reshape(len(images), -1), np.zeros(len(images))

    def decode(self, z, labels):
        return z


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "coarse"), [("gaussian", 0), ("laplace", 16)])
def test_the_whole_curve_in_one_pass_equals_its_points(mechanism, coarse):
    settings = study({"release.mechanism": mechanism, "release.coarse": coarse})
    records, key, flow = sources.load("digits", limit=20), jax.random.key(3), IdentityFlow()
    epsilons = (1.0, 8.0, 64.0)
    curve = cadp_study.study_images(settings, flow, records, epsilons, key)
    assert curve.shape == (3, 20, 64)
    chosen = slice(0, coarse or 64)
    rest = np.s_[coarse:] if coarse else np.s_[:0]
    record_keys = jax.random.split(jax.random.split(key, 3)[1], 20)
    z = jnp.asarray(records.image.reshape(20, 64)[:, chosen])
    for i, epsilon in enumerate(epsilons):
        alone = cadp_study.study_images(settings, flow, records, (epsilon,), key)[0]
        np.testing.assert_allclose(curve[i], alone, rtol=1e-5, atol=1e-5)
        # And the point is what the mechanism that releases does with these keys, brought to the prior.
        made = cadp_study.make_mechanism(settings, epsilon, 64, 20)
        noised = many_at_scale(made.unscaled(), made.noise_scale, record_keys, z)
        np.testing.assert_allclose(curve[i][:, chosen], match_prior(noised, made.name, made.noise_scale), atol=0.01)
        np.testing.assert_array_equal(curve[i][:, rest], curve[0][:, rest])
    assert np.abs(curve[0] - curve[1]).max() > 0.01


def test_linkage_by_class_counts_against_the_chance_of_the_class():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(60, 16)), np.arange(60) % 3
    same = cadp_audit.link(z, labels, z, labels, 0.95, by_class=True)
    assert same["rank1"]["value"] == 1.0
    assert same["rank1"]["chance"] == pytest.approx(1 / 20)
    assert same["rank10"]["chance"] == pytest.approx(10 / 20)
    assert same["rank1"]["p_value"] < 1e-50
    # The class alone must not count as a link: latents that tell the class and nothing else stay at chance.
    told = np.eye(16)[labels] * 10
    found = cadp_audit.link(told + rng.normal(size=z.shape), labels, told + z, labels, 0.95, by_class=True)
    assert found["rank1"]["p_value"] > 1e-3
    whole = cadp_audit.link(told + rng.normal(size=z.shape), labels, told + z, labels, 0.95, by_class=False)
    assert whole["rank1"]["chance"] == pytest.approx(1 / 60)


def test_a_release_that_holds_nothing_is_not_linked_whatever_its_classes():
    """Constants are ties alone. "Linked" at 2.5 % and less: 26 or more of 400 come with probability 1e-5.

    With one seed for all ten classes their ranks were the same ten times over, and 103 were called linked.
    """
    labels, constant = np.repeat(np.arange(10), 30), np.ones((300, 4))
    found = [
        cadp_audit.link(constant, labels, -constant, labels, 0.95, by_class=True, seed=seed)["rank1"]
        for seed in range(400)
    ]
    assert sum(entry["p_value"] <= 0.025 for entry in found) <= 25
    # Binomial: hits of 300 at 1/30 have the deviation 3.1; bunches of ten had 9.8.
    assert np.std([entry["hits"] for entry in found]) == pytest.approx(np.sqrt(300 / 30 * 29 / 30), rel=0.2)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_inversion_is_measured_where_the_decoder_works():
    matched, plain = study(), study({"release.prior_matched": False, "release.epsilons": (4.0,)})
    assert cadp_audit.decoded_spread(matched, 64, 300) == 1.0
    sigma = cadp_study.make_mechanism(plain, 4.0, 64, 300).noise_scale
    assert cadp_audit.decoded_spread(plain, 64, 300) == pytest.approx(np.sqrt(1 + sigma**2))
    digits = sources.load("digits", limit=20)
    model = cadp_study.make_model(matched, digits)
    params = jax.tree.map(lambda p: p + 0.01, jax.jit(model.init)(jax.random.key(0)))
    near, far = (
        cadp_audit.inversion_errors(TrainedFlow(model, params), digits, jax.random.key(1), s) for s in (1.0, 1000.0)
    )
    assert 0 < near[0] < 1e-3
    assert near[1] == far[1] < 1e-3
    assert far[0] > 10 * near[0]


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace", "discrete_gaussian", "discrete_laplace"])
def test_every_mechanism_is_attacked_or_what_stands_for_it_is_named(mechanism):
    settings = study({"release.mechanism": mechanism, "attack.trials": 20_000, "attack.trial_dim": 2})
    bound = cadp_audit.epsilon_bound(settings, 4.0, 64, 300)
    assert bound["decisive"]
    assert 1.0 < bound["lower"] <= 4.0
    # No compiled program draws exact integers: what was drawn in their place is named.
    assert bound["attacked"] == mechanism.removeprefix("discrete_")


def test_a_release_counts_as_better_only_beyond_what_another_control_could_be():
    seeds = [0.80, 0.82, 0.84]
    control = {"seeds": seeds, "value": 0.82, "level": 0.95}
    # t_{0.975, 2} = 4.3027, deviation 0.02, one more draw: √(1 + 1/3).
    assert cadp_wording.control_limit(control, 1) == pytest.approx(0.82 + 4.3027 * 0.02 * np.sqrt(4 / 3), abs=1e-4)
    assert cadp_wording.control_limit(control, 5) > cadp_wording.control_limit(control, 1)


# --- the whole --------------------------------------------------------------------------------------------------------


def _edited(tmp_path, changes=None, drop=()):
    """The config file of a tiny study with these changes."""
    path = tmp_path / "tiny.py"
    path.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({raw(changes)!r})\n"
    )
    return f"--config={path}"


@pytest.mark.slow
def test_study_end_to_end_then_no_work(tmp_path):
    config, work = _edited(tmp_path), tmp_path / "run"
    first = launch(config, f"--workdir={work}")
    assert first.returncode == 0, first.stderr
    release = cadp_schema.read(work / "report" / "release.json")
    page = (work / "report" / "index.html").read_text()
    assert release["answer"].split("(")[0][:40] in page
    assert "<script" not in page
    _check_released(work / "releases" / "eps_1")
    untouched = [p for p in work.rglob("*") if p.is_file() and "report" not in p.parts and p.name != lock.FILE]
    before = {p: p.stat().st_mtime_ns for p in untouched}
    second = launch(config, f"--workdir={work}")
    assert second.returncode == 0, second.stderr
    assert {p: p.stat().st_mtime_ns for p in untouched} == before
    assert (work / "report" / "figures" / "pictures.png").exists()
    hidden = launch(config, f"--workdir={work}", "--mode=report", "--config.report.show_private=False")
    assert hidden.returncode == 0, hidden.stderr
    assert not (work / "report" / "figures" / "pictures.png").exists()
    other = launch(config, f"--workdir={work}", "--config.seed=1")
    assert other.returncode == 2
    assert "config.seed is 0 there and 1 here" in other.stderr


def _check_released(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["count_in"] == manifest["count_out"] == len(list((folder / "images").rglob("*.png")))
    assert manifest["epsilon"] == pytest.approx(1.0, rel=1e-9)
    assert manifest["sensitivity"] == pytest.approx(2 * manifest["clip_norm"])
    assert not any(word in name for name in manifest for word in ("seed", "key"))
    with np.load(folder / "data.npz") as data:
        assert len(data["image"]) == manifest["count_out"]


@pytest.mark.slow
def test_randomised_labels_and_coarse_latents_end_to_end(tmp_path):
    changes = {
        "release.label_epsilon": 2.0,
        "release.relation": "replace-record-and-condition",
        "release.coarse": 8,
        "release.mechanism": "laplace",
        "release.total_epsilon": 100.0,
        "report.show_private": False,
    }
    settings = study(changes)
    run.run(settings, tmp_path, "study")
    release = cadp_schema.read(tmp_path / "report" / "release.json")
    manifest = release["releases"][0]["manifest"]
    # The condition's ε and that of the latent, each pure.
    assert manifest["epsilon"] == pytest.approx(3.0, rel=1e-6)
    assert manifest["selected_latents"] == 8
    private = cadp_study.load_parts(settings, Workdir(tmp_path, settings)).private
    released = cadp_study.load_release(Workdir(tmp_path, settings), 1.0, private)
    kept = np.mean(released.records.label == private.label)
    # Kept with probability e²/(e² + 9) = 0.451; 5 standard errors at n = 360.
    assert abs(kept - 0.451) < 5 * np.sqrt(0.451 * 0.549 / len(private))


@pytest.mark.slow
def test_two_releases_of_the_same_study_never_share_noise(tmp_path):
    images, labels = [], []
    for name in ("a", "b"):
        settings = study({"release.epsilons": (8.0,)})
        for mode in ("train", "privatize"):
            run.run(settings, tmp_path / name, mode)
        # Each lies in an order of its own: back to that of the source, or equal images would not meet.
        order = np.argsort(cadp_study.load_parts(settings, Workdir(tmp_path / name, settings)).private.index)
        with np.load(tmp_path / name / "releases" / "eps_8" / "data.npz") as data:
            labels.append(data["label"][order])
            images.append(data["image"][order])
    assert dataclasses.asdict(settings)["seed"] == 0
    np.testing.assert_array_equal(labels[0], labels[1])
    assert not np.any(np.all(images[0] == images[1], axis=(1, 2, 3)))


@pytest.mark.slow
def test_a_flow_of_the_private_records_is_reported_without_a_guarantee(tmp_path):
    changes = {
        "flow.trained_on": "private",
        "release.flow_training": "mechanism-only",
        "release.mechanism": "discrete_gaussian",
    }
    run.run(study(changes), tmp_path, "study")
    release = cadp_schema.read(tmp_path / "report" / "release.json")
    assert release["answer"].startswith("These private copies carry no end-to-end guarantee.")
    assert {one["manifest"]["epsilon"] for one in release["releases"]} == {None}
    assert [arm["epsilon"] for arm in release["arms"] if arm["kind"] == "released"] == [1.0, 8.0]
    assert "hold nothing of the records" not in release["answer"]
    assert not release["ledger"]["guarantee"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "latent step only" in page
    assert "<b>Warning.</b> the flow was trained on these records" in page
    assert {bound["attacked"] for bound in release["epsilon_bounds"]} == {"gaussian"}
    stands_in = "The measured ε is that of continuous Gaussian noise"
    assert stands_in in page
    assert any(text.startswith(stands_in) for text in release["limits"])
    assert "drawn: continuous Gaussian noise of its scale, not the integers that were released" in page
    # 2,000 trials show 7.2 at most, and 8 is claimed.
    assert [bound["decisive"] for bound in release["epsilon_bounds"]] == [True, False]
    assert "too few trials to refute this claim" in page
    broken = {**release, "epsilon_bounds": [{**release["epsilon_bounds"][0], "attacked": "laplace"}]}
    with pytest.raises(InputError, match=r"epsilon_bounds\[0\]\.attacked: expected gaussian, as the releases have it"):
        cadp_schema.validate(broken)
