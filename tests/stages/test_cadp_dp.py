"""Flows and classifiers trained by DP-SGD in the study of private images: composed, paid for, refused in time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_cadp import study

from diffusion_privacy.data import sources
from diffusion_privacy.data.records import LEVEL_HASH
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import cadp_private_arm, cadp_train, run
from diffusion_privacy.stages import cadp_study as common
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training.privacy import Privacy
from diffusion_privacy.training.state import TrainConfig

pytestmark = pytest.mark.lightly_compiled

_DP = {
    "flow.trained_on": "private",
    "flow.training.privacy": {"noise_multiplier": 8.0, "delta": 1e-5, "micro_batch": 64},
    "flow.training.steps": 8,
    "release.flow_training": "dp-sgd",
    "release.epsilons": (4.0,),
    "release.total_epsilon": 12.0,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"release.delta": 0.01, "flow.training.privacy.delta": 0.01}, "delta: expected less than 1/n"),
        ({"release.coarse": 9_999}, r"config\.release\.coarse: expected at most the 64 latents"),
        # Neither alone would be too much.
        ({"release.total_epsilon": 4.0001}, r"1 releases and train flow would bring ε to 4\.\d+; .* allows 4"),
    ],
)
def test_a_flow_that_could_release_nothing_is_neither_paid_for_nor_trained(tmp_path, monkeypatch, changes, words):
    """A paid workdir is bound to its settings: the right ones would pay again."""
    monkeypatch.setattr(cadp_train, "fit_flow", lambda *args: pytest.fail("trained"))
    with pytest.raises(InputError, match=words):
        run.run(study({**_DP, **changes}), tmp_path, "train")
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.slow
def test_a_run_that_is_paid_for_is_not_planned_again(tmp_path):
    """One that goes on after a signal would otherwise be refused, where the total has no room for a second payment."""
    settings = study(_DP)
    run.run(settings, tmp_path, "train")
    workdir = Workdir(tmp_path, settings)
    for path in ("done.json", "flow/checkpoints"):
        # At the end, and as if it had been killed between its payment and its first checkpoint.
        assert cadp_train._planned(settings, workdir, common.load_parts(settings, workdir)) == []
        (tmp_path / "train" / path).rename(tmp_path / path.replace("/", "_"))
    assert cadp_train._planned(settings, workdir, common.load_parts(settings, workdir)) == []
    other = Workdir(tmp_path / "other", settings)
    [entry] = cadp_train._planned(settings, other, common.load_parts(settings, other))
    assert (entry.stage, entry.spend) == ("train flow", common.make_ledger(settings, workdir).entries()[0].spend)


def test_a_guarantee_for_people_is_not_made_of_one_for_records():
    with pytest.raises(InputError, match=r"config\.release\.records_per_person: expected 1 where .* 'dp-sgd'"):
        study({**_DP, "release.records_per_person": 2})


@pytest.mark.slow
def test_a_privately_trained_flow_is_composed_with_its_release_and_refused_without_its_entry(tmp_path):
    settings = study(_DP)
    for mode in ("train", "privatize"):
        run.run(settings, tmp_path, mode)
    assert json.loads((tmp_path / "train" / "trained_on.json").read_text())["kind"] == LEVEL_HASH
    manifest = json.loads((tmp_path / "releases" / "eps_4" / "manifest.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    # Beside the entries: what is public in this study.
    assert set(lines.pop(1)) == {"given_up", "stage", "kind"}
    assert [line["stage"].split(",")[0] for line in lines[1:]] == ["train flow", "release eps_4"]
    assert manifest["flow_event"] == {**lines[1]["event"], "adjacency": "add-or-remove-one"}
    assert manifest["flow_training"] == "dp-sgd"
    assert max(4.0, manifest["flow_epsilon"]) < manifest["epsilon"] <= 4.0 + manifest["flow_epsilon"]
    assert manifest["composition"]["epsilon_covered_stages"] == pytest.approx(manifest["epsilon"], rel=1e-6)
    assert manifest["composition"]["guarantee"]
    # Planted: the training's entry is gone.
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[2])))
    (tmp_path / "releases" / "eps_4").rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"ledger\.jsonl: expected the entry 'train flow, DP-SGD"):
        run.run(settings, tmp_path, "privatize")
    assert not (tmp_path / "releases" / "eps_4").exists()


def test_the_private_arm_is_calibrated_for_replacing_a_record():
    """Its ε stands beside those of releases: the same multiplier under add-or-remove-one would be half the noise."""
    base = TrainConfig(steps=10, batch_size=64, privacy=Privacy(relation="add-or-remove-one"))
    found = cadp_private_arm.private_config(base, 2.0, 1e-5, 40)
    assert (found.privacy.epsilon, found.privacy.delta, found.privacy.relation) == (2.0, 1e-5, "replace-one")
    assert found.batch_size == 40


@pytest.mark.slow
def test_the_private_arm_learns_by_the_loop_too(tmp_path):
    from diffusion_privacy.stages import cadp_private_arm

    settings = study({"evaluation.dp_arm": "loop", "evaluation.dp_training.steps": 20})
    digits = sources.load("digits", limit=400)
    private, test, base = digits.take(np.arange(300)), digits.take(np.arange(300, 400)), settings.evaluation.dp_training
    workdir = Workdir(tmp_path, settings)
    found = cadp_private_arm.accuracies(settings, workdir, private, test, (8.0,), base)
    assert found.shape == (1, 2)
    # Guessing is .1; about .8 over secrets.
    assert found.mean() > 0.5
