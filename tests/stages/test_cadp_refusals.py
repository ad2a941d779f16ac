"""The CADP study: settings, and what is refused before anything is computed, with the reason in one line."""

from __future__ import annotations

import importlib
import json

import pytest
from tiny_cadp import raw, study

from diffusion_privacy import settings_kinds
from diffusion_privacy.data import sources
from diffusion_privacy.data.records import FILE_HASH
from diffusion_privacy.errors import InputError
from diffusion_privacy.settings import Study
from diffusion_privacy.settings_cadp import Cadp
from diffusion_privacy.stages import cadp_study, private_order, run
from diffusion_privacy.stages.workdir import Workdir

# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_config_says_which_study_it_is():
    assert isinstance(study(), Cadp)
    digits = importlib.import_module("configs.digits").get_config().to_dict()
    assert isinstance(settings_kinds.parse(digits), Study)
    assert isinstance(settings_kinds.parse({**digits, "kind": "anonymity"}), Study)
    with pytest.raises(InputError, match=r"config\.kind"):
        settings_kinds.parse({**digits, "kind": "other"})
    with pytest.raises(InputError, match=r"config\.kind"):
        settings_kinds.parse({**digits, "kind": ["cadp"]})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", -1),
        ("split", {"public": 0.5, "private": 0.5, "test": 0.5}),
        ("flow.trained_on", "everything"),
        ("flow.preprocess", "square"),
        ("release.mechanism", "exponential"),
        ("release.flow_training", "dp-sgd"),
        ("release.epsilons", ()),
        ("release.epsilons", (1.0, 1.0)),
        ("release.epsilons", (1.0, 1.0000001)),
        ("release.epsilons", (0.0, 1.0)),
        ("release.epsilons", 1.0),
        ("release.coverage", 1.0),
        ("release.coarse", -1),
        ("release.label_epsilon", -1.0),
        ("release.label_epsilon", float("inf")),
        ("release.relation", "add-or-remove"),
        ("release.records_per_person", 0),
        ("release.delta", 1.0),
        ("release.total_epsilon", 0.0),
        ("evaluation.seeds", 1),
        ("evaluation.dp_arm", "sgd"),
        ("evaluation.training.privacy", {"epsilon": 1.0}),
        ("evaluation.dp_training.privacy", {"noise_multiplier": 1.0}),
        ("evaluation.level", 0.3),
        ("evaluation.training.grad_clip_norm", 1.0),
        ("attack.trials", 10),
        ("attack.trials", 2**31),
        ("attack.tightness", 1.0),
        ("attack.release_repeats", 5),
        ("attack.level", 95.0),
        ("attack.confidence", 1.0),
        ("attack.trial_dim", 0),
        ("evaluation.hidden", -1),
        ("evaluation.dp_steps", -1),
        ("evaluation.dp_clip", 0.0),
        ("evaluation.dp_learning_rate", -1.0),
        ("evaluation.pixel_block", -4),
        ("flow.reconstruction", -1.0),
        ("release.ledger", ""),
    ],
)
def test_faults_are_named_in_one_line(path, value):
    with pytest.raises(InputError, match=path.replace(".", r"\.")) as caught:
        study({path: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"release.relation": "replace-record-and-condition"}, {"release.label_epsilon": 1.0}]
)
def test_a_relation_that_does_not_go_with_how_the_class_is_released_is_refused(changes):
    with pytest.raises(InputError, match=r"config\.release\.relation.*randomised"):
        study(changes)


def test_a_flow_of_private_records_that_is_called_public_is_refused_before_it_is_trained():
    with pytest.raises(InputError, match=r"config\.release\.flow_training: expected 'dp-sgd' or 'mechanism-only'"):
        study({"flow.trained_on": "private"})


def test_a_release_without_a_relation_is_refused():
    config = raw()
    del config["release"]["relation"]
    with pytest.raises(InputError, match=r"config\.release\.relation"):
        settings_kinds.parse(config)


# --- refusals of the release, before anything is computed -------------------------------------------------------------


def _after_training(tmp_path, changes=None, trained_on="public"):
    """A workdir that says which records the flow learnt from, without the flow."""
    settings = study(changes)
    workdir = Workdir(tmp_path, settings)
    parts = cadp_study.load_parts(settings, workdir)
    hashes = getattr(parts, trained_on).source_hash.tolist()
    workdir.write_json(workdir.path("train", "trained_on.json"), {"hashes": list(hashes)})
    return settings


@pytest.mark.parametrize(
    ("changes", "trained_on", "words"),
    [
        ({}, "private", r"are in the flow's training set.*mechanism-only"),
        ({"release.total_epsilon": 5.0}, "public", r"ledger\.jsonl: 2 releases would bring ε to 8\.1.* allows 5"),
        ({"release.delta": 0.01}, "public", r"^config\.release\.delta: expected less than 1/n"),
        ({}, "public", "expected a checkpoint, found none; train first"),
    ],
)
def test_a_release_that_may_not_be_made_is_refused_with_the_reason(tmp_path, changes, trained_on, words):
    settings = _after_training(tmp_path, changes, trained_on)
    with pytest.raises(InputError, match=words):
        run.run(settings, tmp_path, "privatize")
    assert not (tmp_path / "releases").exists()
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flow.params.conv_width": 0}, r"config\.flow\.params: widths must be at least 1"),
        ({"flow.params.dense_depth": -1}, r"config\.flow\.params: dense_depth must be at least 0"),
        ({"flow.params.depths": 4}, r"config\.flow\.params\.depths must be a list"),
        ({"flow.params.clamp": "1.5"}, r"config\.flow\.params\.clamp must be a number"),
        ({"flow.params.depths": (1, 1, 1, 1)}, "divisible by 16"),
    ],
)
def test_a_flow_that_cannot_be_built_gives_nothing_up(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run.run(study(changes), tmp_path, "train")
    assert not (tmp_path / "train").exists()
    assert not (tmp_path / "ledger.jsonl").exists()


def test_squares_that_do_not_divide_the_images_are_refused_before_anything_is_trained_or_released(tmp_path):
    with pytest.raises(InputError, match=r"config\.evaluation\.pixel_block: expected a divisor of 8 and 8, .*got 3"):
        run.run(study({"evaluation.pixel_block": 3}), tmp_path, "train")
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"release.total_epsilon": 2.0}, "allows 2"),
        ({"release.delta": 0.01}, "less than 1/n"),
        ({"flow.params.conv_width": 0}, "widths must be at least 1"),
        ({"split": {"public": 0.4, "private": 0.2, "test": 0.4}, "release.total_epsilon": 2.0}, "allows 2"),
    ],
)
def test_what_was_refused_is_corrected_in_the_same_workdir(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run.run(study(changes), tmp_path, "train")
    drawn = (tmp_path / private_order.FILE).read_bytes()
    with pytest.raises(InputError, match=r"run --mode=train first"):
        run.run(study(), tmp_path, "privatize")
    assert json.loads((tmp_path / "config.json").read_text())["split"]["public"] == 0.3
    # In that order nothing was ever released.
    assert (tmp_path / private_order.FILE).read_bytes() != drawn


@pytest.mark.parametrize(
    "kept", ["train/trained_on.json", "releases/eps_1/manifest.json", "ledger.jsonl", "timings.json"]
)
def test_once_something_was_made_the_order_is_not_drawn_again(tmp_path, kept):
    settings = study()
    workdir = Workdir(tmp_path, settings)
    cadp_study.load_parts(settings, workdir)
    drawn = (tmp_path / private_order.FILE).read_bytes()
    workdir.path(*kept.split("/")).write_text("{}")
    with pytest.raises(InputError, match=r"config\.seed is 0 there and 1 here"):
        run.run(study({"seed": 1}), tmp_path, "train")
    assert (tmp_path / private_order.FILE).read_bytes() == drawn


def test_the_same_settings_keep_the_order_that_they_began_with(tmp_path):
    found = []
    for outputs in ({"png": 0}, {"png": 3}):
        settings = study({"outputs": outputs})
        cadp_study.load_parts(settings, Workdir(tmp_path, settings))
        found.append((tmp_path / private_order.FILE).read_bytes())
    assert found[0] == found[1]


def test_a_ledger_in_the_home_folder_is_one_for_all_workdirs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = study({"release.ledger": "~/ledger.jsonl"})
    paths = {cadp_study.make_ledger(settings, Workdir(tmp_path / name, settings)).path for name in ("a", "b")}
    assert paths == {tmp_path / "ledger.jsonl"}


def test_a_release_that_the_ledger_does_not_know_is_no_ground_for_another(tmp_path):
    settings = _after_training(tmp_path)
    (tmp_path / "releases" / "eps_8").mkdir(parents=True)
    with pytest.raises(InputError, match=r"ledger\.jsonl: lacks 'release eps_8'"):
        run.run(settings, tmp_path, "privatize")


def test_a_flow_that_is_known_by_hashes_of_another_kind_is_not_called_public(tmp_path):
    settings = _after_training(tmp_path)
    learnt = {"kind": FILE_HASH, "hashes": ["0" * 32]}
    (tmp_path / "train" / "trained_on.json").write_text(json.dumps(learnt))
    with pytest.raises(InputError, match="are of bytes of files, those of the records are of stored grey levels"):
        run.run(settings, tmp_path, "privatize")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_release_before_training_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match=r"trained_on\.json: .* run --mode=train first"):
        run.run(study(), tmp_path, "privatize")


def test_the_declaration_mechanism_only_lets_a_flow_of_the_same_records_pass(tmp_path):
    settings = _after_training(tmp_path, {"release.flow_training": "mechanism-only"}, "private")
    with pytest.raises(InputError, match="expected a checkpoint"):
        run.run(settings, tmp_path, "privatize")


def test_stages_of_the_other_study_are_refused(tmp_path):
    with pytest.raises(InputError, match="mode: expected study or one of train, privatize"):
        run.run(study(), tmp_path, "likelihood")


def test_unknown_flow_fields_are_refused():
    records = sources.load("digits", limit=3)
    with pytest.raises(InputError, match=r"config\.flow\.params\.widht"):
        cadp_study.make_model(study({"flow.params.widht": 3}), records)
