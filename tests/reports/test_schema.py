"""The validator accepts the documented structure and names the path of every fault."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from json_paths import changed, fields, written
from sample_release import make_release

from diffusion_privacy.anonymity import lower_bounds, subspace, summary
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import schema, structure, tables
from diffusion_privacy.types import Estimate

PRIVATE = ("models", "careless", "records", 0)


@pytest.fixture(scope="module")
def release() -> dict[str, Any]:
    return make_release()


FREE = ("config", "versions", "timings", "thresholds", "fingerprint", "models")
"""Objects whose keys the schema does not fix (a fingerprint's `kind` apart)."""


LATER = ("more_samples",)
"""Fields that are missing from older files."""


def fixed(path: tuple[Any, ...]) -> bool:
    free_parent = len(path) > 1 and path[-2] in FREE and path[-1] != "kind"
    return not free_parent and "config" not in path[:-1] and path[-1] not in ("eta", "held_out", *LATER)


def test_accepts_the_sample(release: dict[str, Any]) -> None:
    schema.validate(release)


def test_every_documented_field_is_required(release: dict[str, Any]) -> None:
    paths = [path for path in fields(release) if fixed(path)]
    assert len(paths) > 100
    for path in paths:
        broken = copy.deepcopy(release)
        node = broken
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]
        with pytest.raises(InputError, match=re.escape(written(path))):
            schema.validate(broken)


def test_every_documented_field_has_a_type(release: dict[str, Any]) -> None:
    class Alien:
        pass

    for path in fields(release):
        with pytest.raises(InputError, match=re.escape(written(path))):
            schema.validate(changed(release, path, Alien()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*PRIVATE, "direct", "lower"), -0.1),
        ((*PRIVATE, "direct", "upper"), 1.5),
        ((*PRIVATE, "direct", "upper"), math.nan),
        ((*PRIVATE, "direct", "n"), 3e4),
        ((*PRIVATE, "direct", "n"), True),
        ((*PRIVATE, "direct", "reliable"), 1),
        ((*PRIVATE, "direct", "value"), np.float32(0.0153)),
        ((*PRIVATE, "direct", "value"), None),
        ((*PRIVATE, "subspace", "log_value"), -math.inf),
        ((*PRIVATE, "verdict", "status"), "clean"),
        ((*PRIVATE, "role"), "public"),
        ((*PRIVATE, "fingerprint", "radius"), math.inf),
        ((*PRIVATE, "t_prime", "statistical", "censored"), "left"),
        (("config", "training", "rate"), math.nan),
        (("seed",), -1),
        (("limits",), "none"),
        (("answer",), None),
        (("data", "shape"), [8, 8.0, 1]),
    ],
)  # fmt: skip
def test_refuses_ill_typed_values(release: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(InputError, match=re.escape(written(path))) as caught:
        schema.validate(changed(release, path, value))
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ((*PRIVATE, "direct", "lower"), 0.02, "direct.lower"),
        ((*PRIVATE, "direct", "value"), 0.5, "direct.value"),
        ((*PRIVATE, "direct", "hits"), 30_001, "direct.hits"),
        ((*PRIVATE, "subspace", "lower"), 0.02, "subspace.lower"),
        ((*PRIVATE, "verdict", "upper"), 0.001, "verdict.lower"),
        ((*PRIVATE, "verdict", "lower"), 0.0, "verdict.status"),
        (("models", "careful", "records", 0, "verdict", "bound"), 1e-5, "verdict.status"),
        ((*PRIVATE, "verdict", "more_samples"), "not expected to certify", "verdict.more_samples"),
        ((*PRIVATE, "verdict", "samples_needed"), 5, "verdict.samples_needed"),
        (("models", "careful", "records", 0, "verdict", "status"), "not certified", "verdict.more_samples"),
        ((*PRIVATE, "h_curve", "upper"), [0.0] * 11, "h_curve[0].lower"),
        ((*PRIVATE, "h_curve", "hits"), [64] * 10, "h_curve.hits"),
        ((*PRIVATE, "h_curve", "hits"), [65] * 11, "h_curve.hits[0]"),
        ((*PRIVATE, "h_curve", "t"), [0.5] * 11, "h_curve.t"),
        ((*PRIVATE, "estimators", 0, "value"), -0.1, "estimators[0].value"),
        ((*PRIVATE, "estimators", 0, "value"), None, "estimators[0].value"),
        ((*PRIVATE, "estimators", 2, "lower"), -1.2, "estimators[2].lower"),
        ((*PRIVATE, "estimators", 2, "value"), -0.5, "estimators[2].value"),
        (("models", "careful", "memoriser_rate"), 1 / 64, "careful.memoriser_rate"),
        (("models", "careful", "expected_if_memorised"), 1.0, "careful.expected_if_memorised"),
        (("models", "careful", "detector", "true_positive_rate", "lower"), 0.999, "true_positive_rate.lower"),
        (("models", "careful", "records"), [], "careful.records"),
        (("models",), {}, "models"),
        (("schema_version",), "2.0", "schema_version"),
        (("suprise",), 1, "suprise"),
        ((*PRIVATE, "direct", "hit"), 1, "direct.hit"),
    ],
)  # fmt: skip
def test_refuses_contradictions(release: dict[str, Any], path: tuple[Any, ...], value: Any, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        schema.validate(changed(release, path, value))


def test_reads_files_that_lack_what_came_later(release: dict[str, Any]) -> None:
    older = copy.deepcopy(release)
    for model in older["models"].values():
        for record in model["records"]:
            del record["verdict"]["more_samples"]
    schema.validate(older)
    said = {"status": "not certified", "samples_needed": None, "more_samples": "certify without a hit"}
    verdict = {**release["models"]["careful"]["records"][0]["verdict"], **said}
    with pytest.raises(InputError, match=r"verdict\.samples_needed: expected a number"):
        schema.validate(changed(release, ("models", "careful", "records", 0, "verdict"), verdict))


def test_refuses_a_model_name_that_is_a_path(release: dict[str, Any]) -> None:
    models = {"../careless": release["models"]["careless"]}
    with pytest.raises(InputError, match="models"):
        schema.validate({**release, "models": models})


def test_takes_an_importance_estimate_above_one(release: dict[str, Any]) -> None:
    entry = {**release["models"]["careless"]["records"][0]["subspace"], "value": 1.02, "upper": 1.0, "log_value": 0.02}
    schema.validate(changed(release, (*PRIVATE, "subspace"), entry))


def test_round_trip(release: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "release.json"
    structure.write_json(path, release, schema.validate)
    assert schema.read(path) == release
    assert [p.name for p in tmp_path.iterdir()] == ["release.json"]


def test_a_refused_release_leaves_the_old_file(release: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "release.json"
    structure.write_json(path, release, schema.validate)
    with pytest.raises(InputError):
        structure.write_json(path, changed(release, ("seed",), math.nan), schema.validate)
    assert schema.read(path) == release


@pytest.mark.parametrize("text", ["", '{"schema_version": "1.0"', "[]", "\xff", "{}"])
def test_reading_names_the_file(tmp_path: Any, text: str) -> None:
    path = tmp_path / "release.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"release\.json: "):
        schema.read(path)


def test_reading_refuses_nan_and_absence(release: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "release.json"
    with pytest.raises(InputError, match="readable"):
        schema.read(path)
    path.write_text(json.dumps(changed(release, ("config", "x"), math.nan)), encoding="utf-8")
    with pytest.raises(InputError, match="NaN"):
        schema.read(path)


def test_entries_from_an_estimate_of_zero(release: dict[str, Any]) -> None:
    estimate = Estimate("subspace", -math.inf, math.inf, 0.0, 3e-4, 0.95, 512, 0.0, False, 51_200, ("no hits",))
    entry = schema.subspace_entry(estimate, hits=0, pareto_k=math.nan, max_weight_share=math.nan)
    assert (entry["value"], entry["log_value"], entry["log_stderr"], entry["pareto_k"]) == (0.0, None, None, None)
    schema.validate(changed(release, (*PRIVATE, "subspace"), entry))
    direct = schema.direct_entry(estimate, hits=0)
    assert "log_value" not in direct
    schema.validate(changed(release, (*PRIVATE, "direct"), direct))


def test_where_no_estimate_was_made_none_is_shown(release: dict[str, Any]) -> None:
    """A 0 would read as a rate that was looked for and not seen."""
    paths = subspace.SubspaceResult(
        Estimate("subspace", 0.0, 0.1, 0.1, 0.9, 0.95, 100, 100.0, True, 1400),
        0.1, 0.01, 100, subspace.Mixture(tuple(range(1, 26)), (1.0,) * 25, (0.02,) * 24 + (0.5,), 0.02), (0.1,),
        np.zeros(100), np.ones(100, bool),
    )  # fmt: skip
    [_, jensen, _] = (schema.estimator_entry(summary.row(found)) for found in lower_bounds.of_paths(paths, 100))
    assert (jensen["lower"], jensen["value"], jensen["upper"]) == (0.0, None, None)
    assert jensen["reasons"][0].startswith("thinning left a stratum without paths")
    shown = changed(release, (*PRIVATE, "estimators"), [jensen])
    schema.validate(shown)
    [row] = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*E4 Jensen.*?</tr>", tables.estimates(shown))
    assert '<td data-label="Estimate, in 10,000 images">–</td>' in row.replace("\u00a0", " ")
    assert "thinning left a stratum without paths: nothing is claimed" in row
