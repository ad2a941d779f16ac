"""Four ways to share: what is certified and promised, by which entries of the ledger, and what is refused in time."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_joined import study

from diffusion_privacy.anonymity import inherited, montecarlo, subspace, verdict
from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.data import sources
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend
from diffusion_privacy.mechanisms.calibration import gaussian_epsilon
from diffusion_privacy.mechanisms.ledger import Entry
from diffusion_privacy.stages import (
    cadp_study,
    dp_training,
    joined_audit,
    joined_certify,
    joined_guarantee,
    joined_study,
    joined_train,
    run,
)
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training.checkpoint import Checkpoints
from diffusion_privacy.training.privacy import Privacy, make_plan
from diffusion_privacy.training.state import TrainState
from diffusion_privacy.types import Estimate

pytestmark = pytest.mark.lightly_compiled

dp_accounting = pytest.importorskip("dp_accounting")


def test_the_least_of_the_bounds_is_that_of_the_gaussian_profile():
    """A Gaussian release is μ-GDP: q <= Φ(Φ⁻¹(q₀) + μ), which the list of δ comes near and never undercuts."""
    mu = 0.268
    deltas = (1e-5, *joined_certify.DELTAS)
    pairs = [(max(gaussian_epsilon(1 / mu, delta), 0.0), delta) for delta in deltas]
    for q in (1e-4, 0.01, 0.1, 0.3):
        exact = stats.norm.cdf(stats.norm.ppf(q) + mu)
        found, (epsilon, delta) = joined_certify.least(pairs, q, 1.0)
        assert exact <= found <= 1.1 * exact
        assert (epsilon, delta) in pairs
        # A detector that sees half of the returns hides as many.
        assert joined_certify.least(pairs, q, 0.5)[0] == pytest.approx(min(1.0, 2 * found))
    assert joined_certify.least([(800.0, 1e-5)], 0.5, 1.0)[0] == 1.0


def test_what_the_detector_misses_in_copies_is_allowed_for_at_its_limit():
    """2 of 900 images, and 18 of 20 returns seen: Clopper and Pearson's Beta quantiles at the part's level."""
    level = verdict.part_level(0.95)
    calibration = SimpleNamespace(true_positive_rate=rate(18, 20, level), false_positive_rate=rate(0, 99, level))
    marked = SimpleNamespace(index=[7], label=[3])
    study = SimpleNamespace(audit=SimpleNamespace(level=0.95), fingerprint=SimpleNamespace(name="none"))
    roles = SimpleNamespace(private=[None], marked=marked)
    setup = SimpleNamespace(study=study, calibrations=[calibration], level=level, roles=roles)
    found = joined_audit._copy_record(setup, 0, 2, 900, 300, 0)
    tail = (1 - level) / 2
    upper = stats.beta.ppf(1 - tail, 3, 898) / stats.beta.ppf(tail, 18, 3)
    assert found["direct"]["upper"] == pytest.approx(upper)
    assert found["verdict"]["upper"] == pytest.approx(upper)


def test_e2_of_one_class_counts_by_the_class_s_share():
    """Draws of the class are a quarter of all draws: value and both limits are a quarter as large."""
    one = Estimate("subspace", math.log(0.4), 0.1, 0.2, 0.8, 0.975, 100, 100.0, True, 5)
    mixture = subspace.Mixture((1,), (1.0,), (0.9,), 0.1)
    found = joined_audit._scaled(subspace.SubspaceResult(one, 0.1, 0.1, 10, mixture, (0.1,)), 0.25).estimate
    assert (found.value, found.lower, found.upper) == (pytest.approx(0.1), 0.05, 0.2)
    assert joined_audit.OWN_CLASS in found.reasons


def test_the_record_that_is_asked_for_is_the_one_that_is_replaced():
    digits = sources.load("digits", limit=60)
    parts = cadp_study.Parts(*(digits.take(np.arange(first, first + 20)) for first in (0, 20, 40)))
    for number in (0, 3):
        other = joined_study.without(parts, number).image
        assert np.flatnonzero(np.any(other != parts.private.image, axis=(1, 2, 3))).tolist() == [number]
        same = np.flatnonzero(parts.test.label == parts.private.label[number])[0]
        np.testing.assert_array_equal(other[number], parts.test.image[same])


def test_blocks_of_simulated_copies_have_noise_of_their_own(monkeypatch):
    """Planted: one key for all blocks. The same copies, counted again, would pass for independent ones."""

    def study_images(cadp, flow, records, epsilons, key):
        return [np.asarray(jax.random.uniform(key, records.image.shape, minval=-1, maxval=1))]

    monkeypatch.setattr(joined_audit.cadp_study, "study_images", study_images)
    monkeypatch.setattr(joined_audit, "_ROWS", 6)
    settings, records = SimpleNamespace(seed=0, cadp=None, epsilon=1.0), sources.load("digits", limit=3)
    blocks = list(joined_audit.copy_blocks(settings, None, records, 5, "with"))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert len({one.tobytes() for block in blocks for one in block}) == 5


def test_a_certificate_shares_its_error_between_the_rate_and_the_misses():
    """At 95 % an upper limit errs with 2.5 %, half of it each: (e^ε·limit + δ)/(limit of the returns seen)."""
    settings = SimpleNamespace(risk=SimpleNamespace(level=0.95))
    confidence = joined_certify._confidence(settings)
    assert confidence == pytest.approx(1 - 0.0125)
    found = inherited.pooled_copies(np.zeros(3), np.full(3, 400), confidence)
    way = joined_certify._Way(3, None, True, True)
    facts = {"index": 0, "tpr_lower": 0.8, "bound": 0.1, "size": 400}
    entry = joined_certify._entry(settings, way, [(1.0, 1e-3)], found, **facts)
    assert entry["upper"] == pytest.approx((math.e * (1 - 0.0125 ** (1 / 1200)) + 1e-3) / 0.8)
    assert entry["value"] == pytest.approx(1e-3)


def test_models_without_the_record_have_seeds_of_their_own(monkeypatch):
    """With the seed of the model that is shared, or of each other, they would not be independent trainings."""
    seeds = []
    monkeypatch.setattr(joined_train, "fit_score", lambda s, w, name, records, config, seed, folder: seeds.append(seed))
    monkeypatch.setattr(
        joined_train, "draw", lambda s, score, records, count, name, model: (np.zeros((count, 2)), None)
    )
    monkeypatch.setattr(joined_certify, "restore_ema", lambda folder: [None])
    task = SimpleNamespace(conditional_score=lambda params: None)
    monkeypatch.setattr(joined_certify.common, "score_task", lambda settings, classes: task)
    monkeypatch.setattr(joined_audit, "one_record", lambda detect, number: None)
    monkeypatch.setattr(montecarlo, "margins", lambda detect, images, records: -np.ones((len(images), 1)))
    settings = SimpleNamespace(seed=5, certify=SimpleNamespace(samples=20), risk=SimpleNamespace(level=0.95))
    workdir = SimpleNamespace(path=lambda *names: "/".join(names))
    records, setup = SimpleNamespace(num_classes=2), SimpleNamespace(detect=None)
    found = joined_certify._of_models(settings, workdir, setup, [records] * 3, None, 0, "dp_model")
    assert len({5, *seeds}) == 4
    assert (found.models, found.images, found.value) == (3, 60, 0.0)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("shared", [False, True])
def test_a_budget_that_private_training_would_break_is_refused_before_anything_is_made(tmp_path, shared):
    """Also where another study has an entry of a ``dp_model`` in the same ledger: that one is not this study's."""
    settings = study({"release.total_epsilon": 5.0})
    if shared:
        theirs = Entry("train dp_model, DP-SGD, run 0123456789abcdef", dp_training.spend_of_plan(_plan()), ("theirs",))
        joined_study.make_ledger(settings, Workdir(tmp_path, settings)).record(theirs)
        spent = (tmp_path / "ledger.jsonl").read_text()
    with pytest.raises(InputError, match=r"train dp_model.*total_epsilon"):
        run.run(settings, tmp_path, "privatize")
    if shared:
        assert (tmp_path / "ledger.jsonl").read_text() == spent
    else:
        assert not (tmp_path / "ledger.jsonl").exists()
    assert not (tmp_path / "releases").exists()


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_records_that_another_study_gave_up_are_refused_before_anything_is_made(tmp_path):
    first, other = (
        study({"release.ledger": str(tmp_path / "ledger.jsonl"), "split": split})
        for split in ({"public": 0.3, "private": 0.04, "test": 0.66}, {"public": 0.1, "private": 0.2, "test": 0.7})
    )
    parts = joined_study.load_sets(first, Workdir(tmp_path / "a", first)).parts
    ledger = joined_study.make_ledger(first, Workdir(tmp_path / "a", first))
    joined_train.cadp_study.give_up(ledger, parts)
    for mode in ("privatize", "train"):
        if mode == "train":
            (tmp_path / "b" / "releases" / "eps_1").mkdir(parents=True)
            copy_of = joined_study.load_sets(other, Workdir(tmp_path / "b", other)).parts.private
            np.savez(
                tmp_path / "b" / "releases" / "eps_1" / "data.npz",
                image=np.zeros(copy_of.image.shape, np.uint8), label=copy_of.label,
            )  # fmt: skip
            (tmp_path / "b" / "releases" / "eps_1" / "manifest.json").write_text("{}")
        with pytest.raises(InputError, match=r"records of the private share were given up as public ones"):
            run.run(other, tmp_path / "b", mode)
    assert not (tmp_path / "b" / "train" / "flow").exists()
    assert not joined_study.dp_folder(Workdir(tmp_path / "b", other)).exists()
    assert ledger.entries() == []


def test_no_way_is_promised_by_the_entries_of_another_study(tmp_path, monkeypatch):
    """Planted: two studies with one ledger, each with a release of this name; and one that lacks its own."""
    settings = study({"release.ledger": str(tmp_path / "ledger.jsonl")})
    workdir, records = Workdir(tmp_path / "a", settings), ("a", "b")
    ledger, name = joined_study.make_ledger(settings, workdir), joined_study.release_stage(settings, workdir)

    def spend(epsilon):
        return Spend(dp_accounting.LaplaceDpEvent(1 / epsilon), "replace-one")

    for number, size, hashes in (("theirs", 0.5, records), ("others'", 0.25, ("c",))):
        ledger.record(Entry(name, spend(size), hashes, id=number))
    manifest = workdir.path("releases", "eps_1", "manifest.json")
    manifest.write_text(json.dumps({"composition": {"stages": 1, "id": "mine"}}))
    ledger.record(Entry(joined_study.COPY_STAGE, joined_train._nothing(), ("c",)))
    lost = joined_guarantee.promise(settings, workdir, "copy")
    assert (lost.guarantee, lost.missing) == (False, (name,))
    ledger.record(Entry(name, spend(1.0), records, id="mine"))
    assert joined_guarantee.promise(settings, workdir, "copy").account.epsilon == pytest.approx(1.0)
    # The other's note that its model learnt from its copy is none for this one's.
    assert joined_guarantee.promise(settings, workdir, "copy_model").missing == (joined_study.COPY_STAGE,)
    ours = joined_guarantee._ours(settings, workdir, ledger.entries())
    assert [entry.id for entry in ledger.entries() if ours(entry)] == ["mine"]
    ledger.record(Entry(joined_study.COPY_STAGE, joined_train._nothing(), records))
    assert joined_guarantee.promise(settings, workdir, "copy_model").account.epsilon == pytest.approx(1.0)
    # A release of an earlier version is known by its place, and the page says what that rests on.
    ledger.record(Entry(name, spend(0.12341), records))
    steps = {"mechanism": "laplace", "noise_scale": 1.0, "clip_norm": 1.0, "flow_training": "public", "public": ["n"]}
    manifest.write_text(json.dumps({**steps, "composition": {"stages": len(ledger.entries())}}))
    old = joined_guarantee.promise(settings, workdir, "copy")
    assert old.account.epsilon == pytest.approx(0.12341)
    assert len(old.left_out) == len(ledger.entries()) - 1
    monkeypatch.setattr(joined_guarantee, "_dp_sgd", lambda *_: "not trained here")
    said = joined_guarantee.guarantee(settings, workdir, "copy", [])["sentence"]
    assert "is taken on trust" in said
    # Upwards: to the nearest it would be .1234.
    assert said.startswith("ε = 0.1235 at δ = 0 ")
    # The sentence is read on a card too, where "this report" would be the card.
    assert "is given away, the study's report included." in said


def _plan(noise_multiplier=30.0):
    return make_plan(Privacy(noise_multiplier=noise_multiplier), records=70, batch_size=16, steps=12)


def _trained(folder, secret, plan):
    """The checkpoint that private training leaves."""
    zero = jnp.zeros((), jnp.int32)
    with Checkpoints(folder, {}, keep=1) as checkpoints:
        progress = {"privacy": {**plan.to_json(), "steps_done": 12, "secret_fingerprint": secret}}
        checkpoints.save(TrainState(zero, {"w": zero}, {"w": zero}, {"m": zero}), progress)
        checkpoints.wait()


def test_a_privately_trained_model_is_promised_by_its_own_entry_alone(tmp_path):
    settings = study()
    workdir = Workdir(tmp_path, settings)
    ledger, folder, private = (
        joined_study.make_ledger(settings, workdir),
        joined_study.dp_folder(workdir),
        sources.load("digits", limit=70),
    )
    pay = dp_training.payment(ledger, "train dp_model", joined_train.cadp_study.hashes(private))
    pay(folder, _plan(), "a" * 32)
    # Paid for, and nothing is there yet: the training is still to come, and may have to be paid for again.
    assert [entry.stage for entry in joined_train._planned(settings, workdir, private)] == ["train dp_model"]
    _trained(folder, "a" * 32, _plan())
    assert joined_train._planned(settings, workdir, private) == []
    found = joined_guarantee.promise(settings, workdir, "dp_model")
    assert found.stages == ("train dp_model, DP-SGD, run aaaaaaaaaaaaaaaa",)
    assert found.account.epsilon == pytest.approx(ledger.total().account.epsilon)
    # Planted: trained again with another secret, with other noise, and before payments were by secret.
    note = folder / "ledger_stage.json"
    faults = {
        "another secret": lambda: _trained(folder, "b" * 32, _plan()),
        "none of that name with the event": lambda: _trained(folder, "a" * 32, _plan(20.0)),
        "an earlier version": lambda: note.write_text(json.dumps({"stage": found.stages[0]})),
    }
    for words, plant in faults.items():
        if "version" not in words:
            shutil.rmtree(folder / "checkpoints")
        plant()
        broken = joined_guarantee.promise(settings, workdir, "dp_model")
        assert not broken.guarantee
        assert broken.account.epsilon == math.inf
        assert words in broken.why
        assert str(tmp_path) not in broken.why
        assert len(joined_train._planned(settings, workdir, private)) == 1
    note.unlink()
    with pytest.raises(InputError, match=r"ledger_stage\.json: expected the name of this run in the ledger"):
        joined_guarantee.promise(settings, workdir, "dp_model")
