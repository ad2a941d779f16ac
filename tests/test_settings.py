"""A config says only what the settings know; anything else stops the run with the field's name."""

import copy
import importlib
import re

import pytest
from ml_collections import ConfigDict

from diffusion_privacy import settings, settings_kinds
from diffusion_privacy.errors import InputError


def _config() -> dict:
    return importlib.import_module("configs.digits").get_config().to_dict()


def test_config_file_parses_and_round_trips():
    study = settings.parse(settings.Study, _config())
    again = settings.parse(settings.Study, settings.to_dict(study))
    assert again == study
    assert study.score.training.steps == _config()["score"]["training"]["steps"]


def test_configs_are_locked():
    config = importlib.import_module("configs.digits").get_config()
    assert isinstance(config, ConfigDict)
    with pytest.raises(AttributeError):
        config.sed = 1


def _edit(path: str, value: object) -> dict:
    config = copy.deepcopy(_config())
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node[name]
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("sead", 1, "config.sead"),
        ("score.training.stepz", 1, "config.score.training.stepz"),
        ("score.training.steps", "many", "config.score.training.steps"),
        ("score.training.steps", True, "config.score.training.steps"),
        ("score.training.steps", 0, "config.score.training.steps must be at least 1"),
        ("detector.training.warmup_steps", 10**6, "config.detector.training.warmup_steps must be at most steps"),
        ("score.training.privacy", {"delta": 2.0}, "config.score.training.privacy.delta: expected"),
        ("score.training.privacy", {"epsilon": 1.0, "noise_multiplier": 1.0}, "config.score.training.privacy: exp"),
        ("score.training.sharding", ("nowhere",), "config.score.training.sharding: expected PATTERN: AXIS"),
        ("audit.splitting", {"share": 0.9}, "config.audit.splitting.share: expected"),
        ("seed", -1, "config.seed"),
        ("data", "digits", "config.data"),
        ("audit.samples", {"careless": 10}, "config.audit.samples"),
        ("audit.samples", {"careless": 10, "careful": 1.5}, "config.audit.samples.careful"),
        ("audit.h_draws", 4, "config.audit.h_draws"),
        ("audit.h_levels", 51, "config.audit.h_levels"),
        ("audit.level", 1.0, "config.audit.level"),
        ("audit.gamma", 7.0, "config.audit.gamma"),
        ("audit.subspace_draws", -5, "config.audit.subspace_draws"),
        ("audit.subspace_max_draws", 512, "config.audit.subspace_draws"),
        ("audit.samples", {"careless": 10, "careful": 0}, "config.audit.samples"),
        ("audit.memory_gb", 0.0, "config.audit.memory_gb"),
        ("audit.memory_gb", float("inf"), "config.audit.memory_gb"),
        ("audit.screen.draws", 1, "config.audit.screen.draws"),
        ("detector.positive_time", 2.0, "config.detector.positive_time"),
        ("detector.false_positive_rate", 0.0, "config.detector.false_positive_rate"),
        ("detector.negatives", 1000, "config.detector.false_positive_rate: a rate of 0.0001 expected at least 9999"),
        ("detector.positives", 4, "config.detector.positives"),
        ("fingerprint.name", "none", "config.fingerprint.name"),
        ("split.controls", 0, "config.split"),
    ],
)
def test_faults_are_named(path, value, named):
    with pytest.raises(InputError, match=named.replace(".", r"\.")) as caught:
        settings.parse(settings.Study, _edit(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("group", ["private_training", "evaluation.training", "flow.training"])
def test_each_of_several_groups_called_training_is_named(group):
    config = importlib.import_module("configs.digits_release").get_config().to_dict()
    node = config
    for name in group.split("."):
        node = node[name]
    node["steps"] = 0
    with pytest.raises(InputError, match=rf"^config\.{re.escape(group)}\.steps must be at least 1, got 0$"):
        settings_kinds.parse(config)


def test_missing_field_is_named():
    config = _config()
    del config["score"]["sde"]
    with pytest.raises(InputError, match=r"config\.score\.sde"):
        settings.parse(settings.Study, config)


def test_whole_numbers_serve_as_floats():
    study = settings.parse(settings.Study, _edit("audit.memory_gb", 4))
    assert study.audit.memory_gb == 4.0
    assert isinstance(study.audit.memory_gb, float)
