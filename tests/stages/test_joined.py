"""Four ways to share: settings, parts that must be independent, and the whole on few steps, ledger faults included."""

from __future__ import annotations

import copy
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_joined import study

from diffusion_privacy.anonymity import lanes, montecarlo
from diffusion_privacy.audits import attacks
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.mlp import MLP
from diffusion_privacy.reports import joined_schema
from diffusion_privacy.stages import (
    bundle,
    joined_audit,
    joined_guarantee,
    joined_study,
    joined_train,
    lock,
    run,
)
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import ScoreTask

pytestmark = pytest.mark.lightly_compiled

dp_accounting = pytest.importorskip("dp_accounting")
# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("release.epsilons", (1.0, 2.0)),
        ("release.label_epsilon", 1.0),
        ("release.records_per_person", 2),
        ("release.flow_training", "dp-sgd"),
        ("private_training.privacy.epsilon", 0.0),
        ("score.training.privacy", {"epsilon": 1.0}),
        ("release.mechanism", "discrete_gaussian"),
        ("release.mechanism", "metric_l2"),
        ("fingerprint.name", "none"),
        ("score.network.params", {"hidden": 16, "num_classes": 3}),
        ("evaluation.training.grad_clip_norm", 1.0),
        ("evaluation.seeds", 1),
        ("evaluation.level", 95.0),
        ("evaluation.hidden", -1),
        ("flow.preprocess", "square"),
        ("flow.logit_alpha", 1.5),
        ("evaluation.training.privacy", {"epsilon": 1.0}),
        ("detector.identity", "embedding"),
        ("marks.private", 0),
        ("marks.controls", 0),
        ("certify.copies", 0),
        ("risk.evaluation_samples", 1000),
        ("risk.level", 0.2),
    ],
)
def test_faults_are_named_in_one_line(path, value):
    named = path.removeprefix("risk.level") or "level"
    with pytest.raises(InputError, match=named.replace(".", r"\.")) as caught:
        study({path: value})
    assert "\n" not in str(caught.value)


# --- parts ------------------------------------------------------------------------------------------------------------


def _task() -> ScoreTask:
    return ScoreTask(MLP(hidden=8, depth=1, num_classes=3), VP(), 5, conditional=True)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_labelled_samples_are_those_of_their_class():
    task, key = _task(), jax.random.key(1)
    params = task.init(key, {"image": jnp.zeros((1, 4, 4, 1)), "label": jnp.zeros(1, jnp.int32)})
    params = jax.tree.map(lambda p: p + 0.2 * jax.random.normal(key, p.shape), params)
    chain, labels = Chain(VP(), 5), np.array([2, 0, 1, 1, 2, 0, 0], np.int32)
    mixed = montecarlo.sample_labelled(chain, task.conditional_score(params), (4, 4, 1), labels, key, chunk=4)
    for label in range(3):
        whole = montecarlo.sample(chain, task.score(params, jnp.int32(label)), (4, 4, 1), len(labels), key, chunk=4)
        np.testing.assert_allclose(mixed[labels == label], whole[labels == label], rtol=1e-5, atol=1e-5)
    assert not np.allclose(mixed, whole)


def test_the_loss_attack_gives_the_model_each_record_s_class():
    task, key = _task(), jax.random.key(2)
    params = task.init(key, {"image": jnp.zeros((1, 4, 4, 1)), "label": jnp.zeros(1, jnp.int32)})
    params = jax.tree.map(lambda p: p + 0.2 * jax.random.normal(key, p.shape), params)
    x, label = np.asarray(jax.random.normal(key, (6, 4, 4, 1))), np.array([0, 1, 2, 0, 1, 2])
    mixed = attacks.loss(task.conditional_score(params), VP(), x, label=label)
    whole = [attacks.loss(task.score(params, jnp.int32(c)), VP(), x) for c in range(3)]
    np.testing.assert_allclose(mixed, [whole[c][i] for i, c in enumerate(label)], rtol=1e-5)


# --- the whole --------------------------------------------------------------------------------------------------------


def _release(folder):
    return joined_schema.read(folder / "report" / "release.json")


def _every_way_has_utility_risk_and_guarantee(finished):
    settings, folder = finished
    release = _release(folder)
    assert set(release["ways_to_share"]) == set(joined_schema.WAYS)
    raw, copied = release["ways_to_share"]["raw_model"], release["ways_to_share"]["copy"]
    assert raw["guarantee"]["epsilon"] is None
    assert raw["guarantee"]["certified"] == []
    assert copied["guarantee"]["epsilon"] == pytest.approx(settings.epsilon, rel=1e-3)
    model = release["ways_to_share"]["copy_model"]["guarantee"]
    assert model["epsilon"] == pytest.approx(copied["guarantee"]["epsilon"])
    private = release["ways_to_share"]["dp_model"]["guarantee"]
    assert 0.9 * 8 < private["epsilon"] <= 8.0
    for way in ("copy", "copy_model", "dp_model"):
        [found] = release["ways_to_share"][way]["guarantee"]["certified"]
        assert found["index"] == raw["risk"]["records"][0]["index"]
        assert found["upper"] >= found["without"]["upper"] or found["upper"] == 1
        # Nothing is made where it could not make the bound say anything: two DP-SGD models at ε = 8, say.
        assert found["models"] > 0 or (found["upper"] == 1 and found["reasons"] and not found["reliable"])
        assert found["models"] == {"copy": 3, "dp_model": 0}.get(way, found["models"])
    assert copied["risk"]["linkage"] is not None
    assert {y["name"] for y in release["yardsticks"]} == {"originals", "public", "flow"}


def _the_run_as_a_whole_promises_nothing(finished):
    ledger = _release(finished[1])["ledger"]
    assert not ledger["guarantee"]
    assert set(ledger["uncovered"]) == {joined_study.RAW_STAGE, joined_study.DETECTOR_STAGE, joined_study.AUDIT_STAGE}
    assert ledger["not_recorded"] == []
    stages = [entry["stage"] for entry in ledger["entries"]]
    # What costs something is paid before anything else looks at the records.
    assert stages[0] == "release eps_1"
    assert stages[1].startswith("train dp_model, DP-SGD")


def _a_missing_ledger_entry_is_no_guarantee(finished, tmp_path, stage):
    """Planted fault: the entry is gone; nothing that rests on it promises anything any more."""
    settings, folder = finished
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "ledger.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if stage not in line) + "\n")
    workdir = Workdir(tmp_path / "run", settings)
    touched = {
        "release eps_1": {"copy", "copy_model"},
        "train dp_model": {"dp_model"},
        joined_study.COPY_STAGE: {"copy_model"},
    }[stage]
    for way in ("copy", "copy_model", "dp_model"):
        found = joined_guarantee.guarantee(settings, workdir, way, [{"upper": 0.1}])
        assert (found["epsilon"] is None) == (way in touched)
        assert bool(found["why"]) == (way in touched)
        assert bool(found["certified"]) != (way in touched)
    said = joined_guarantee.ledger_entry(settings, workdir)
    assert len(said["not_recorded"]) == 1
    assert stage in said["not_recorded"][0]
    assert not said["guarantee"]


def _a_finished_study_does_no_work(finished):
    settings, folder = finished
    before = {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and "report" not in p.parts and p.name != lock.FILE
    }
    spent = (folder / "ledger.jsonl").read_text()
    run.run(settings, folder)
    after = {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and "report" not in p.parts and p.name != lock.FILE
    }
    assert {p for p in after if after[p] != before.get(p)} <= {folder / "timings.json"}
    assert (folder / "ledger.jsonl").read_text() == spent


def _the_record_is_gone_where_the_certificate_says_so(finished):
    settings, folder = finished
    sets = joined_study.load_sets(settings, Workdir(folder, settings))
    other = joined_study.without(sets.parts, 0)
    differs = np.any(other.image != sets.parts.private.image, axis=(1, 2, 3))
    assert np.flatnonzero(differs).tolist() == [0]
    assert np.any(np.all(sets.parts.test.image == other.image[0], axis=(1, 2, 3)))
    people = [set(part.identity.tolist()) for part in (sets.parts.public, sets.parts.private, sets.parts.test)]
    people.append(set(sets.roles.controls.identity.tolist()))
    assert sum(len(p) for p in people) == len(set().union(*people))


def _simulated_copies_are_drawn_apart_and_rounded_as_published(finished):
    settings, folder = finished
    workdir = Workdir(folder, settings)
    sets = joined_study.load_sets(settings, workdir)
    flow = joined_audit.cadp_study.load_flow(settings.cadp, workdir, sets.parts.private)
    copies = joined_audit.simulated_copies(settings, flow, sets.parts.private, 3, "test")
    assert copies.shape[:2] == (3, len(sets.parts.private))
    # As many copies at a time as fit a block, whatever their number.
    several = joined_audit._ROWS // len(sets.parts.private)
    blocks = joined_audit.copy_blocks(settings, flow, sets.parts.private, several + 1, "test")
    assert [len(block) for block in blocks] == [several, 1]
    assert not np.array_equal(copies[0], copies[1])
    again = joined_audit.simulated_copies(settings, flow, sets.parts.private, 3, "test", 1)
    assert not np.array_equal(copies[0], again[0])
    grey = (copies + 1) * 127.5
    np.testing.assert_allclose(grey, np.rint(grey), atol=1e-3)


def _release_json_is_plain_and_free_of_secrets(finished):
    text = (finished[1] / "report" / "release.json").read_text()
    for word in ("noise_key", "secret", "params", "opt_state"):
        assert f'"{word}"' not in json.dumps({k: v for k, v in json.loads(text).items() if k != "config"})
    broken = copy.deepcopy(json.loads(text))
    broken["ways_to_share"]["raw_model"]["guarantee"]["epsilon"] = 1.0
    with pytest.raises(InputError, match="raw_model"):
        joined_schema.validate(broken)


def test_the_compiler_is_asked_for_memory_once_for_all_models_of_a_shape():
    settings = study({"risk.chunk": 0})
    lanes._bytes_per_lane.cache_clear()
    task = joined_study.score_task(settings, 10)
    shown = {"image": jnp.zeros((1, 8, 8, 1)), "label": jnp.zeros(1, jnp.int32)}
    chunks = [
        joined_train.chunk_size(settings, task.conditional_score(task.init(jax.random.key(seed), shown)), (8, 8, 1))
        for seed in (0, 1)
    ]
    assert chunks[0] == chunks[1] == 256
    found = lanes._bytes_per_lane.cache_info()
    assert (found.misses, found.hits) == (1, 1)


@pytest.mark.slow
def test_the_whole_on_few_steps(tmp_path):
    """One run for all of it: a fixture would be made once on every worker."""
    finished = study(), tmp_path / "joined"
    run.run(*finished)
    _every_way_has_utility_risk_and_guarantee(finished)
    _the_run_as_a_whole_promises_nothing(finished)
    for stage in ("release eps_1", "train dp_model", joined_study.COPY_STAGE):
        _a_missing_ledger_entry_is_no_guarantee(finished, tmp_path, stage)
    _a_finished_study_does_no_work(finished)
    _the_record_is_gone_where_the_certificate_says_so(finished)
    _simulated_copies_are_drawn_apart_and_rounded_as_published(finished)
    _release_json_is_plain_and_free_of_secrets(finished)
    _bundles_are_what_was_trained(finished)


def _bundles_are_what_was_trained(finished):
    """What may be shared draws what the audited model draws; the raw model has no bundle."""
    settings, folder = finished
    workdir = Workdir(folder, settings)
    assert {path.name for path in (folder / "bundles").iterdir()} == {"dp_model", "copy_model"}
    # Its noise is fresh, its detector errs on up to 5 %: a copy that by chance shows the marked record gets no card.
    [seen] = [
        r["in_copy"] for r in _release(folder)["ways_to_share"]["copy"]["risk"]["records"] if r["role"] == "private"
    ]
    card = joined_audit.cadp_study.release_path(workdir, settings.epsilon) / bundle.CARD
    assert card.exists() == (seen == 0)
    _, params, task = bundle.read(folder / "bundles" / "copy_model")
    private = joined_study.load_sets(settings, workdir).parts.private
    images, labels = joined_train.draw(settings, task.conditional_score(params), private, 200, "copy_model")
    stored = workdir.read_arrays(folder / "samples" / "copy_model.npz")
    np.testing.assert_array_equal(labels, stored["labels"])
    np.testing.assert_array_equal(images, stored["images"])
