"""joined-1.0 accepts a whole release and names the path of every planted fault, above all those that promise more."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from json_paths import changed, fields, written
from sample_joined import make_joined

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import joined_schema, structure

WAYS = ("ways_to_share",)
RAW, DP, COPY = ((*WAYS, name) for name in ("raw_model", "dp_model", "copy"))
RECORD = (*RAW, "risk", "records", 0)


@pytest.fixture(scope="module")
def release() -> dict[str, Any]:
    return make_joined()


def test_accepts_the_sample_and_gives_it_back(release: dict[str, Any], tmp_path: Path) -> None:
    structure.write_json(tmp_path / "release.json", release, joined_schema.validate)
    assert joined_schema.read(tmp_path / "release.json") == release


def test_every_documented_field_is_required(release: dict[str, Any]) -> None:
    free = ("config", "versions", "timings", "thresholds", "stated_total", "event")
    seen: set[tuple[Any, ...]] = set()
    for path in fields(release):
        # The four ways are alike: a field is tried once, and one below an open object is no field of the schema.
        key = path[2:] if path[0] == "ways_to_share" else path
        if key in seen or {*path[:-1]} & {*free} or path[-1] in ("radius", "centre", "more_samples"):
            continue
        seen.add(key)
        broken = copy.deepcopy(release)
        node = broken
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]
        # A missing way is named by its place, not by its name.
        place = "release.ways_to_share" if len(path) == 2 and path[0] == "ways_to_share" else written(path)
        with pytest.raises(InputError, match=re.escape(place)):
            joined_schema.validate(broken)
    assert len(seen) > 150


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        # What would promise more than is known.
        ((*COPY, "guarantee", "stages"), ["release eps_1"], "the ledger has no entry 'release eps_1'"),
        ((*COPY, "guarantee", "stages"), [], "copy.guarantee.stages"),
        ((*COPY, "guarantee", "stages"), ["release eps_4", "train raw model"], "copy.guarantee.epsilon"),
        (("ledger", "entries", 2, "event"), None, "ledger.uncovered: expected 'release eps_4'"),
        (("ledger", "uncovered"), ["train raw model"], "ledger.uncovered: expected 'audit"),
        (("ledger", "guarantee"), True, "ledger.guarantee"),
        ((*COPY, "guarantee", "epsilon"), None, "copy.guarantee"),
        ((*RAW, "guarantee", "why"), "", "raw_model.guarantee"),
        ((*COPY, "guarantee", "epsilon"), -0.1, "copy.guarantee.epsilon"),
        ((*COPY, "guarantee", "epsilon"), math.inf, "copy.guarantee.epsilon"),
        ((*COPY, "guarantee", "certified", 0, "value"), 0.5, "certified[0].value"),
        ((*COPY, "guarantee", "certified", 0, "upper"), 1.0, "certified[0].reliable"),
        ((*COPY, "guarantee", "certified", 0, "index"), 1711, "guarantee.certified"),
        # Numbers outside their limits.
        ((*RAW, "utility", "accuracy", "value"), 0.99, "utility.accuracy"),
        ((*RAW, "utility", "frechet", "lower"), 9.0, "utility.frechet"),
        ((*RAW, "utility", "recall", "upper"), 1.2, "utility.recall.upper"),
        ((*COPY, "risk", "linkage", "rank1", "value"), 0.5, "linkage.rank1"),
        ((*RAW, "risk", "attack", "auc", "value"), 0.1, "attack.auc"),
        ((*RAW, "risk", "attack", "points", 0, "value"), 0.9, "points[0]"),
        ((*DP, "risk", "attack", "points", 1, "reason"), "", "points[1].reason"),
        ((*RECORD, "direct", "value"), 0.5, "direct.value"),
        ((*RECORD, "verdict", "lower"), 0.0, "verdict.status"),
        ((*RAW, "risk", "records"), [], "risk.records"),
        # What nobody documented.
        ((*RAW, "surprise"), 1, "raw_model.surprise"),
        ((*WAYS, "fifth"), {}, "ways_to_share"),
        (("schema_version",), "joined-2.0", "schema_version"),
    ],
)  # fmt: skip
def test_refuses_planted_faults(release: dict[str, Any], path: tuple[Any, ...], value: Any, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)) as caught:
        joined_schema.validate(changed(release, path, value))
    assert "\n" not in str(caught.value)


def test_a_total_without_gaps_may_promise(release: dict[str, Any]) -> None:
    whole = copy.deepcopy(release)
    book = whole["ledger"]
    book["entries"] = [entry for entry in book["entries"] if entry["event"] is not None]
    book |= {"uncovered": [], "guarantee": True, "sentence": "ε = 12 at δ = 2e-05 over 2 stages"}
    whole["ways_to_share"]["raw_model"]["guarantee"]["stages"] = []
    joined_schema.validate(whole)
    with pytest.raises(InputError, match=r"ledger\.guarantee"):
        joined_schema.validate(changed(whole, ("ledger", "not_recorded"), ["train flow"]))
