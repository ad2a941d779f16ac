"""The page of a given model's audit: numbers with their limits, pictures only where they may be shown, faults named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_release import curve, direct, estimators, make_release, subspace, t_prime, verdict

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import own_page, own_schema

MODEL = own_schema.MODEL


def rate(value: float, n: int) -> dict[str, Any]:
    return {"value": value, "lower": max(0.0, value - 0.03), "upper": min(1.0, value + 0.03), "level": 0.95, "n": n}


def own_record(index: int, leak: bool) -> dict[str, Any]:
    status = "leaks" if leak else "not certified"
    e1 = direct(0.0106, 0.0092, 0.0132, 106, 10_000) if leak else direct(0.0, 0.0, 4.5e-4, 0, 10_000)
    e2 = subspace(0.0105, 0.0093, 0.012, 480, 0.3, True) if leak else subspace(0.0, 0.0, 3e-3, 0, None, False)
    return {
        "role": "private",
        "index": index,
        "label": 3,
        "detector": {
            "radius": 1.4,
            "nearest_held_out": 2.8,
            "nearest_drawn": 0.3 if leak else 3.1,
            "false_positive_rate": rate(0.0, 100),
            "copies_inside": rate(0.97, 512),
            "reasons": [] if leak else ["the ball may miss <half> of the copies"],
        },
        "t_prime": t_prime(0.9, 0.5, None) if leak else t_prime(0.1, 0.1, None),
        "h_curve": curve(0.5 if leak else 0.05),
        "direct": e1,
        "subspace": e2,
        "estimators": estimators()[:1],
        "controls": {"hits": [0] * 99 + [1], "p_value": 1 / 101 if leak else 1.0},
        "verdict": verdict(status, e1["lower"], e1["value"], e1["upper"], 0.01, f"Record {index} was looked at."),
    }


def own_release() -> dict[str, Any]:
    model = {
        "kind": "diffusers",
        "path": "some/<model>",
        "n_train": 100,
        "memoriser_rate": 0.01,
        "n_samples": 10_000,
        "expected_if_memorised": 100.0,
        "sampler": {"name": "ancestral", "steps": 50, "clip_x0": True, "clip_range": 1.0, "times": [0.0, 0.5, 1.0]},
        "held_out": 100,
        "plausibility": None,
        "notes": ["A note that came with the model."],
        "records": [own_record(3, True), own_record(500, False)],
    }
    kept = ("program", "versions", "device", "seed", "config", "config_hash", "question", "data", "timings")
    return {
        **{name: value for name, value in make_release().items() if name in kept},
        "schema_version": own_schema.SCHEMA_VERSION,
        "answer": "Record 3 comes back: 92 to 132 in 10,000 images.",
        "limits": own_page.limits(model),
        "models": {MODEL: model},
    }


def arrays() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 1)).astype(np.float32)
    return {"private": images[:2], "nearest": images[2:4], "shown": images[4:]}


def test_the_page_has_the_numbers_and_hides_the_pictures(tmp_path: Path) -> None:
    page = own_page.write_report(tmp_path, own_release(), arrays())
    text = page.read_text(encoding="utf-8").replace("\u00a0", " ")
    for words in (
        "Record 3 comes back: 92 to 132",
        "Record 500 was looked at.",
        "1 of 100, the busiest by 1",
        "Pictures are withheld",
        "A note that came with the model.",
        "Score, schedule and records were not checked to fit.",
        "the ball may miss &lt;half&gt; of the copies",
        "some/&lt;model&gt;",
        "neither a leak nor its absence was certified",
        "clip_range = 1.0",
    ):
        assert words in text, words
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"q_intervals.png", "h_curve.png"}
    assert own_schema.read(tmp_path / "release.json")["models"][MODEL]["n_train"] == 100
    assert "http" not in text.replace("http-equiv", "")


def test_pictures_are_made_only_when_allowed_and_removed_again(tmp_path: Path) -> None:
    text = own_page.write_report(tmp_path, own_release(), arrays(), show_private=True).read_text(encoding="utf-8")
    pictures = {"listed_model.png", "samples_model.png"}
    assert pictures < {path.name for path in (tmp_path / "figures").iterdir()}
    assert "1 of them reproduced" in text
    own_page.write_report(tmp_path, own_release(), arrays())
    assert not pictures & {path.name for path in (tmp_path / "figures").iterdir()}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), "1.0", "own-1.0"),
        (("models",), {}, "models: expected one, 'model'"),
        (("models", MODEL, "memoriser_rate"), 0.5, "memoriser_rate"),
        (("models", MODEL, "held_out"), 0, "held_out"),
        (("models", MODEL, "records", 0, "controls", "p_value"), 0.2, "expected a rank test"),
        (("models", MODEL, "records", 1, "detector", "radius"), -1.0, "radius"),
        (("models", MODEL, "records", 1, "direct", "hits"), 20_000, "direct.hits"),
    ],
)
def test_contradictions_are_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    release = copy.deepcopy(own_release())
    node = release
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(InputError, match=message):
        own_schema.validate(release)
