"""What the audit makes of its parts: of which record, at which level and against which limit each number is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from launching import changed_config

from diffusion_privacy import settings
from diffusion_privacy.anonymity import bank, montecarlo, subspace, verdict
from diffusion_privacy.anonymity.detectors import PairCalibration
from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.anonymity.tprime import HCurve
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.stages import audit, spaces
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.types import Estimate

pytestmark = pytest.mark.lightly_compiled

LEVEL = 0.9
PART = verdict.part_level(LEVEL)
NO_ALARM = rate(0, 1000, PART)


def calibration(seen: int = 90, alarms=NO_ALARM) -> PairCalibration:
    """A detector that saw ``seen`` of 100 returns."""
    return PairCalibration((1.0, 2.0), (1.0, 1.0), alarms, rate(seen, 100, PART), {}, ())


def curve(*hits: int) -> HCurve:
    """64 draws at levels 1, 2, … of ten."""
    levels = np.arange(1, len(hits) + 1)
    return HCurve(levels, levels / 10, np.arange(64) < np.array(hits)[:, None], 10)


def paths(value: float, lower: float, upper: float) -> subspace.SubspaceResult:
    """What E2 finds, narrower than any count."""
    one = Estimate("subspace", math.log(value), 1e-3, lower, upper, PART, 200, 150.0, True, 2000)
    return subspace.SubspaceResult(one, 0.1, 0.05, 120, subspace.Mixture((1,), (1.0,), (0.9,), 0.1), (0.1,))


class Marked(SimpleNamespace):
    """Marked records with these numbers in the source."""

    def __init__(self, index, **fields):
        super().__init__(index=np.array(index), label=np.array(index) % 10, **fields)

    def __len__(self):
        return len(self.index)


def setup() -> SimpleNamespace:
    roles = SimpleNamespace(marked=Marked([40, 45]), params=[{"radius": 1}, {"radius": 2}])
    study = SimpleNamespace(
        audit=SimpleNamespace(level=LEVEL, gamma=0.05), fingerprint=SimpleNamespace(name="disc"), seed=0
    )
    return SimpleNamespace(study=study, roles=roles, level=PART)


@pytest.mark.parametrize(
    ("alarms", "gamma", "status"),
    [(NO_ALARM, 0.05, verdict.LEAKS), (rate(40, 1000, PART), None, verdict.OPEN)],
    ids=["γ of the settings", "limit of the false alarms"],
)
def test_a_record_is_held_against_the_larger_of_gamma_and_the_false_alarms(alarms, gamma, status) -> None:
    """30 hits in 1,000 are a leak unless the detector may fire as often for others; h(t) is compared alike."""
    cal = calibration(alarms=alarms)
    direct = montecarlo.direct(30, 1000, tpr_lower=cal.true_positive_rate.lower, steps=10, level=PART)
    found = audit._record(setup(), 1, curve(64, 20, 0), direct, paths(0.03, 0.025, 0.036), cal, 1e-3, [])
    shown = found["t_prime"]["statistical"]
    assert shown["gamma"] == (alarms.upper if gamma is None else gamma)
    assert (shown["level"], shown["comparisons"], shown["value"]) == (LEVEL, 3, pytest.approx(0.2))
    assert found["h_curve"]["level"] == LEVEL
    assert found["direct"]["level"] == found["subspace"]["level"] == PART
    said = found["verdict"]
    assert (said["status"], said["bound"], said["level"]) == (status, 1e-3, LEVEL)
    assert (said["lower"], said["estimate"]) == (0.025, pytest.approx(0.03))
    assert said["upper"] == found["direct"]["upper"] == direct.estimate.upper
    assert (found["role"], found["index"], found["label"]) == ("control", 45, 5)
    assert found["fingerprint"] == {"kind": "disc", "radius": 2}
    assert "control record 45" in said["sentence"]


@pytest.mark.parametrize(("time", "level"), [(0.25, 1), (0.26, 2), (0.74, 3), (0.0, 1)])
def test_returns_are_made_from_no_less_noise_than_asked_for(monkeypatch, time, level) -> None:
    """From less they are easier to see: upper limits, which are divided by the share seen, would be too small."""
    asked = {}

    def images(chain, score, detect, records, levels, draws, key, *, uids, chunk):
        asked.update(levels=levels.tolist(), draws=draws, uids=uids.tolist())
        place = 10 * np.arange(len(records))[:, None] + np.arange(draws)
        return np.broadcast_to(place[:, None, :, None, None, None], (2, 1, draws, 2, 2, 1)), None

    monkeypatch.setattr(audit.tprime, "regenerated_images", images)
    study = SimpleNamespace(
        seed=0, detector=SimpleNamespace(positive_time=time, positives=3), audit=SimpleNamespace(chunk=8)
    )
    roles = SimpleNamespace(marked=Marked([7, 9], image=np.zeros((2, 2, 2, 1))))
    chain = SimpleNamespace(times=np.linspace(0, 1, 5))
    found = audit._positives(study, chain, None, spaces.Space(), None, roles)
    assert asked == {"levels": [level], "draws": 3, "uids": [7, 9]}
    assert found[:, :, 0, 0, 0].tolist() == [[0, 1, 2], [10, 11, 12]]


def test_each_detector_is_calibrated_on_its_own_record_s_scores(monkeypatch) -> None:
    """Score C_f of an image is its pixel v, C_id of record r is 10 v + r."""
    calls = []

    def evaluate(scores, params, images, *, chunk):
        v = images.reshape(len(images), -1)[:, 0]
        return v, 10 * v[:, None] + np.arange(2)

    def calibrate(negatives, positives, requested, *, floors, level):
        calls.append(([z.tolist() for z in (*negatives, *positives)], requested, floors, level))
        number = float(len(calls))
        return PairCalibration((number, number + 0.5), (2 * number, 3 * number), NO_ALARM, NO_ALARM, {}, ())

    drawn = np.array([100.0, 200.0]).reshape(2, 1, 1, 1)
    positives = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).reshape(2, 3, 1, 1, 1)
    monkeypatch.setattr(audit.common, "pair_scores", lambda *_: (None, {"weights": 1.0}, np.array([0.25, 0.75])))
    monkeypatch.setattr(audit.common, "load_score", lambda *_: None)
    monkeypatch.setattr(audit.spaces, "load", lambda *_: spaces.Space())
    monkeypatch.setattr(audit, "detector_at_once", lambda *_: 8)
    monkeypatch.setattr(audit, "_positives", lambda *_: positives)
    monkeypatch.setattr(audit, "calibrate_pair_scores", calibrate)
    monkeypatch.setattr(bank, "evaluate", evaluate)
    study = SimpleNamespace(
        seed=0, audit=SimpleNamespace(level=LEVEL), detector=SimpleNamespace(false_positive_rate=0.01)
    )
    workdir = SimpleNamespace(root=Path("run"), read_arrays=lambda path: {"images": drawn})
    roles = SimpleNamespace(marked=Marked([7, 9]))
    detect, found, _ = audit._calibrate(study, workdir, roles, None)
    assert calls == [
        ([[100, 200], [1000, 2000], [1, 2, 3], [10, 20, 30]], 0.01, (0.0, 0.25), PART),
        ([[100, 200], [1001, 2001], [4, 5, 6], [41, 51, 61]], 0.01, (0.0, 0.75), PART),
    ]
    assert [c.thresholds for c in found] == [(1.0, 1.5), (2.0, 2.5)]
    np.testing.assert_array_equal(detect.args[0]["thresholds"], [[1.0, 1.5], [2.0, 2.5]])
    np.testing.assert_array_equal(detect.args[0]["scales"], [[2.0, 3.0], [4.0, 6.0]])


def test_every_number_of_a_model_is_of_the_record_beside_it(monkeypatch, tmp_path) -> None:
    """Two records that differ in hits, paths, curve and detector: nothing may be read off the other one's."""
    changes = {"audit.level": LEVEL, "audit.h_levels": 4, "audit.h_draws": 64, "audit.chunk": 8, "sampler.steps": 10}
    study = settings.parse(settings.Study, changed_config("digits", changes))
    workdir, chain = Workdir(tmp_path, study), Chain(VP(), 10)
    workdir.write_arrays(workdir.path("samples", "careful.npz"), {"images": np.zeros((2000, 2, 2, 1))})
    roles = SimpleNamespace(
        marked=Marked([7, 9], image=np.zeros((2, 2, 2, 1))), params=[{}, {}], train={"careful": [0] * 50}
    )
    curves, e2 = [curve(64, 40, 3), curve(0, 0, 0)], [paths(0.0402, 0.039, 0.041), paths(0.0011, 0.001, 0.0012)]
    calibrations = [calibration(90), calibration(50)]
    asked = {}

    def h_curves(chain, score, detect, records, levels, draws, key, *, uids, chunk):
        asked["h"] = (levels.tolist(), draws, uids.tolist())
        return curves

    def estimate(chain, score, detect, records, mixtures, key, *, uids, draws, max_draws, level, chunk):
        asked["e2"] = (mixtures, uids.tolist(), draws, max_draws, level)
        return e2

    nothing = {"screen": (None, None), "_training": ({}, None, None), "_arrays": None, "save_arrays": None}
    monkeypatch.setattr(audit.common, "load_score", lambda *_: None)
    monkeypatch.setattr(audit.spaces, "load", lambda *_: spaces.Space())
    monkeypatch.setattr(audit.tprime, "h_curves", h_curves)
    monkeypatch.setattr(audit.subspace, "estimate", estimate)
    hit = np.arange(2000)[:, None] < [80, 2]
    monkeypatch.setattr(audit.montecarlo, "margins", lambda *_, **__: np.where(hit, 1.0, -1.0))
    monkeypatch.setattr(audit.audit_estimators, "further", lambda *_: [[], []])
    monkeypatch.setattr(audit.audit_screen, "screen", lambda *_: nothing["screen"])
    monkeypatch.setattr(audit.audit_baselines, "rows", lambda *_: [])
    for name in ("_training", "_arrays", "save_arrays"):
        monkeypatch.setattr(audit, name, lambda *_, name=name: nothing[name])
    audit.audit_model(audit.Setup(study, workdir, roles, chain, None, calibrations), "careful")
    found = json.loads((tmp_path / "audit" / "careful.json").read_text())
    assert asked["h"] == ([1, 4, 7, 10], 64, [7, 9])
    assert asked["e2"][0] == [subspace.design(c.by_level) for c in curves]
    assert asked["e2"][1:] == ([7, 9], study.audit.subspace_draws, study.audit.subspace_max_draws, PART)
    assert (found["n_train"], found["memoriser_rate"], found["expected_if_memorised"]) == (50, 1 / 50, 40)
    assert [r["index"] for r in found["records"]] == [7, 9]
    for record, hits, cal, one, back in zip(found["records"], (80, 2), calibrations, e2, curves, strict=True):
        direct = montecarlo.direct(hits, 2000, tpr_lower=cal.true_positive_rate.lower, steps=10, level=PART)
        assert (record["direct"]["hits"], record["direct"]["upper"]) == (hits, direct.estimate.upper)
        assert record["verdict"]["upper"] == direct.estimate.upper
        assert (record["verdict"]["bound"], record["verdict"]["level"]) == (1 / 50, LEVEL)
        assert record["subspace"]["lower"] == one.estimate.lower == record["verdict"]["lower"]
        assert record["h_curve"]["hits"] == back.hits.tolist()
    assert [r["verdict"]["status"] for r in found["records"]] == [verdict.LEAKS, verdict.CLEAN]
