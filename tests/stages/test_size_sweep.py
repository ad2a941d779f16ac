"""The sweep over training-set and network sizes: its settings, its sets, and a tiny run."""

from __future__ import annotations

import dataclasses
import importlib
import json

import numpy as np
import pytest

from diffusion_privacy import settings_kinds, settings_sweep
from diffusion_privacy.data.sources import digits
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import sweep_figure
from diffusion_privacy.stages import run, size_sweep
from diffusion_privacy.stages.workdir import Workdir


def raw(name="pneumonia_sweep", **sweep):
    pytest.importorskip("ml_collections")
    config = importlib.import_module(f"configs.paper.{name}").get_config().to_dict()
    config["sweep"].update(sweep)
    return config


def tiny(**sweep):
    """The small config on scikit-learn's digits, with so few steps that nothing is learnt."""
    config = raw(**{"sizes": (20, 40), "samples": 120, "reduce": 1, **sweep})
    config["data"] = {"source": "digits", "params": {"limit": 200}}
    config["split"] = {"private": None, "careless": 20, "controls": 1, "held_out": 20}
    config["score"]["network"] = {"name": "mlp", "params": {"hidden": 16, "depth": 1}}
    config["score"]["training"].update({"steps": 20, "warmup_steps": 2, "log_every": 10, "checkpoint_every": 20})
    config["detector"].update({"negatives": 120, "positives": 16, "false_positive_rate": 0.01, "positive_time": 0.1})
    config["detector"]["training"].update({"steps": 40, "warmup_steps": 5, "log_every": 20, "checkpoint_every": 40})
    config["detector"]["network"] = {"channels": 8, "max_channels": 8}
    config["sampler"]["steps"] = 6
    config["audit"].update(
        {"h_levels": 3, "h_draws": 16, "subspace_draws": 100, "subspace_max_draws": 100, "chunk": 64}
    )
    return config


@pytest.mark.parametrize("name", ["pneumonia_sweep", "pneumonia_sweep_full", "pneumonia_model_sweep"])
def test_the_papers_configs_are_read(name):
    job = settings_kinds.parse(raw(name))
    assert isinstance(job, settings_sweep.SizeSweep)
    assert job.study.audit.samples == {"careless": job.sweep.samples, "careful": job.sweep.samples}
    assert len({point.name for point in job.points()}) == len(job.points()) >= 4


def test_points_combine_sizes_and_values():
    job = settings_kinds.parse(tiny(field="hidden", values=(8, 16)))
    assert [p.name for p in job.points()] == ["n20_hidden8", "n20_hidden16", "n40_hidden8", "n40_hidden16"]
    assert [job.at(p).score.network.params["hidden"] for p in job.points()] == [8, 16, 8, 16]
    assert job.study.score.network.params == {"hidden": 16, "depth": 1}


def test_training_sets_are_nested_and_hold_the_private_record(tmp_path):
    job = settings_kinds.parse(tiny())
    roles = size_sweep._roles(job, Workdir(tmp_path, job))
    small, large = roles.train["n20"], roles.train["n40"]
    assert (len(small), len(large)) == (20, 40)
    np.testing.assert_array_equal(large.index[:20], small.index)
    private = roles.private.index[0]
    np.testing.assert_array_equal(small.image[small.index == private], roles.marked.image[:1])
    assert private not in roles.train["reference"].index
    apart = set(roles.controls.index.tolist()) | set(roles.held_out.index.tolist())
    assert not apart & set(roles.train["careful"].index.tolist())


def test_images_are_averaged_over_squares():
    source = digits(limit=3)
    small = size_sweep._reduced(source, 2)
    np.testing.assert_allclose(small.image[1, 1, 2, 0], source.image[1, 2:4, 4:6, 0].mean(), rtol=1e-6)
    assert size_sweep._reduced(source, 1) is source
    with pytest.raises(InputError, match="divisor of 8 and 8"):
        size_sweep._reduced(source, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (40, 20)}, "sweep.sizes"),
        ({"sizes": ()}, "sweep.sizes"),
        ({"field": "hidden"}, "sweep.values"),
        ({"samples": 0}, "samples >= 1"),
        ({"guess": 1}, "config.sweep.guess: unknown field"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        settings_kinds.parse(tiny(**change))


def test_more_records_than_there_are_is_refused(tmp_path):
    job = settings_kinds.parse(tiny(sizes=(20, 4000)))
    with pytest.raises(InputError, match="at most 179"):
        run.run(job, tmp_path, "train")


def test_the_figure_shows_points_without_estimate_or_t_prime(tmp_path):
    rows = [
        {
            "n": n,
            "field": "hidden",
            "value": value,
            "q": {"lower": 0.0, "estimate": None, "upper": 0.01, "level": 0.95},
            "t_prime": {"value": None if n == 50 else 0.5},
        }
        for n in (50, 100)
        for value in (8, 16)
    ]
    sweep_figure.write(tmp_path / "sweep.png", rows)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_every_point_is_trained_sampled_audited_and_reported(tmp_path, monkeypatch, caplog):
    """With the stages of the study (tested by themselves) replaced by ones that note what they are asked for."""
    from reports.sample_release import make_release

    job = settings_kinds.parse(tiny(field="hidden", values=(8, 16)))
    asked = []

    def fit_scores(study, workdir, roles, names):
        asked.extend(("train", n, study.score.network.params["hidden"], len(roles.train[n])) for n in names)

    def draw_all(study, workdir, roles, counts):
        asked.extend(("sample", n, study.score.network.params["hidden"], count) for n, count in counts.items())

    @dataclasses.dataclass(frozen=True)
    class Setup:
        study: object
        workdir: object

    def audit_model(setup, name):
        asked.append(("audit", name, setup.study.score.network.params["hidden"]))
        entry = make_release()["models"]["careless"]
        entry["records"][0]["verdict"] |= {"lower": 0.0129, "estimate": 0.02, "upper": 0.0712, "level": 0.999}
        setup.workdir.write_json(setup.workdir.path("audit", f"{name}.json"), entry)

    caplog.set_level("INFO")
    monkeypatch.setattr(size_sweep.train_stage, "fit_scores", fit_scores)
    monkeypatch.setattr(size_sweep.train_stage, "fit_detector", lambda *_: asked.append(("detector",)))
    monkeypatch.setattr(size_sweep.sample_stage, "draw_all", draw_all)
    monkeypatch.setattr(size_sweep.audit_stage, "set_up", lambda study, workdir, roles: Setup(study, workdir))
    monkeypatch.setattr(size_sweep.audit_stage, "audit_model", audit_model)
    run.run(job, tmp_path, "study")
    points = [(f"n{n}_hidden{h}", h, n) for n in (20, 40) for h in (8, 16)]
    assert asked == [
        ("train", "reference", 16, 179 - 1),
        ("detector",),
        *(("train", name, h, n) for name, h, n in points),
        ("sample", "reference", 16, 120),
        *(("sample", name, h, 120) for name, h, _ in points),
        *(("audit", name, h) for name, h, _ in points),
    ]
    curve = json.loads((tmp_path / "sweep.json").read_text())
    assert [(p["name"], p["value"], p["n"]) for p in curve["points"]] == points
    assert set(curve["meaning"]) <= set(curve["points"][0])
    first = curve["points"][0]
    assert first["q"]["lower"] <= first["q"]["estimate"] <= first["q"]["upper"]
    # In the log too limits are rounded outwards, and 99.9 % are not 100 %.
    assert "q 0.012 to 0.072 at 99.9\u00a0%" in caplog.text
    assert len(first["control_detections"]) == 3
    assert (tmp_path / "sweep.png").exists()
    run.run(job, tmp_path, "audit")
    assert sum(call[0] == "audit" for call in asked) == 4
