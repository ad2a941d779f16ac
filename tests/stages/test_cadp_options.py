"""What a CADP study may ask for besides: metric privacy, low precision in training, attacks on some of the records."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from tiny_cadp import study

from diffusion_privacy.data import sources
from diffusion_privacy.errors import InputError
from diffusion_privacy.flows import objective
from diffusion_privacy.mechanisms.accounting import record_spend
from diffusion_privacy.mechanisms.ledger import Entry
from diffusion_privacy.stages import cadp_audit, cadp_study, run
from diffusion_privacy.stages.workdir import Workdir

pytestmark = pytest.mark.lightly_compiled

METRIC = {
    "release.mechanism": "metric_l2",
    "release.epsilons": (),
    "release.rates": (0.5,),
    "release.prior_matched": False,
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("release.epsilons", (1.0,)),
        ("release.rates", ()),
        ("release.rates", (2.0, 1.0)),
        ("release.label_epsilon", 1.0),
        ("release.prior_matched", True),
    ],
)
def test_metric_privacy_goes_with_no_epsilon(path, value):
    assert study(METRIC).release.strengths == (0.5,)
    with pytest.raises(InputError, match=rf"config\.{path}"):
        study({**METRIC, path: value})
    with pytest.raises(InputError, match=r"config\.release\.rates: expected none with 'gaussian'"):
        study({"release.rates": (1.0,)})


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_a_flow_is_used_in_full_precision_whatever_it_was_trained_in():
    changes = {"flow.params": {"depths": (0, 2), "conv_net": "glow", "conv_width": 4, "dense_depth": 0}}
    settings, records = study({**changes, "flow.training_precision": "bfloat16"}), sources.load("digits", limit=20)
    trained = cadp_study.flow_task(settings, records).model
    used = cadp_study.make_model(settings, records)
    assert "precision='bfloat16'" in repr(trained)
    assert "bfloat16" not in repr(used)
    assert "scan=False" in repr(trained)
    assert "scan=True" in repr(used)
    # One set of parameters serves both, and both compute the same to what rounding leaves.
    params = jax.tree.map(lambda p: p + 0.05, trained.init(jax.random.key(0)))
    assert jax.tree.structure(params) == jax.tree.structure(used.init(jax.random.key(0)))
    cond = np.eye(10, dtype=np.float32)[records.label]
    (z, logp), (rough, rounded) = (
        objective.encode(m, params, records.image, cond, jax.random.key(1)) for m in (used, trained)
    )
    assert 1e-5 < np.max(np.abs(z - rough)) < 0.1
    np.testing.assert_allclose(rounded, logp, atol=2.0)


@pytest.mark.parametrize("mode", ["train", "privatize"])
def test_what_was_released_as_private_is_not_given_up_as_public_by_another_split(tmp_path, mode):
    first, second = (study({"seed": seed, "release.ledger": str(tmp_path / "ledger.jsonl")}) for seed in (0, 1))
    parts = cadp_study.load_parts(first, Workdir(tmp_path / "a", first))
    ledger = cadp_study.make_ledger(first, Workdir(tmp_path / "a", first))
    ledger.record(Entry("release eps_1", record_spend(*gaussian(first)), cadp_study.hashes(parts.private)))
    cadp_study.check_given_up(ledger, parts)
    if mode == "privatize":
        workdir = Workdir(tmp_path / "b", second)
        workdir.write_json(workdir.path("train", "trained_on.json"), {"hashes": []})
    with pytest.raises(
        InputError, match=r"ledger\.jsonl: \d+ of the \d+ records of the public share are in it as private"
    ):
        run.run(second, tmp_path / "b", mode)


def test_attacks_may_look_at_the_first_records_only():
    records = sources.load("digits", limit=20)
    assert cadp_audit.first(records, 5).index.tolist() == records.index[:5].tolist()
    assert cadp_audit.first(records, 0) is cadp_audit.first(records, 20) is records


@pytest.mark.slow
def test_metric_privacy_is_released_under_its_own_name_and_adds_up_with_nothing(tmp_path):
    settings = study(METRIC)
    run.run(settings, tmp_path)
    folder = tmp_path / "releases" / "rate_0.5"
    assert [p.name for p in (tmp_path / "releases").iterdir()] == ["rate_0.5"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["mechanism"] == "metric"
    assert manifest["guarantee"] == "metric privacy: 0.5 nats per unit of l2 distance between latents; not ε-DP"
    assert manifest["noise_scale"] == 2.0
    unstated = ("epsilon", "latent_epsilon", "sensitivity", "clip_norm", "clip_share")
    assert {name: manifest[name] for name in unstated} == dict.fromkeys(unstated)
    composition = manifest["composition"]
    assert not composition["guarantee"]
    assert composition["uncovered"] == [f"release rate_0.5 ({manifest['guarantee']})"]
    assert composition["summary"].startswith("no guarantee")
    # From here on the ledger gives no ε for these records, and a release that claims one is refused.
    with pytest.raises(InputError, match="no guarantee"):
        cadp_study.make_ledger(settings, Workdir(tmp_path, settings)).record(
            Entry("another", record_spend(*gaussian(settings)))
        )
    for mode in ("evaluate", "audit", "report"):
        with pytest.raises(InputError, match="one of train, privatize, got"):
            run.run(settings, tmp_path, mode)


def gaussian(settings):
    records = sources.load("digits", limit=300)
    mechanism = cadp_study.make_mechanism(study(), 1.0, 64, 300)
    return mechanism, cadp_study.make_condition(settings, records), cadp_study.make_relation(settings)
