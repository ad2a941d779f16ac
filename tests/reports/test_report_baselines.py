"""Baselines in release.json and on the page: numbers with interval and direction, or a reason."""

from __future__ import annotations

import copy

import pytest
from sample_release import make_release

from diffusion_privacy.audits.baselines import HIGHER, Row
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import schema, tables
from diffusion_privacy.reports.baselines import entry


def test_the_table_shows_each_number_with_its_interval_or_a_dash():
    release = make_release()
    schema.validate(release)
    page = tables.baselines(release)
    assert "0.610 (95 % interval 0.552 to 0.665)".replace(" %", "\u00a0%") in page
    assert page.count("higher = more leak") == 2 * len(release["models"])
    assert "too few &lt;records&gt;" in page
    assert "–" in page
    for model in release["models"].values():
        model["baselines"] = []
    schema.validate(release)
    assert tables.baselines(release) == ""


def test_a_lower_limit_alone_is_shown_as_one():
    release = make_release()
    row = Row("one_run: ε of training", 1.239, 1.239, None, 0.95, "nats, a lower limit", HIGHER, 64, ("a",))
    release["models"]["careless"]["baselines"].append(dict(entry(row)))
    schema.validate(release)
    assert "at least 1.23 (97.5 % confidence)".replace(" %", "\u00a0%") in tables.baselines(release)


def test_numbers_that_are_not_finite_become_none():
    made = entry(Row("x", float("nan"), 0.0, 1.0, 0.95, "u", HIGHER, 3, ("a",)))
    assert (made["value"], made["lower"], made["upper"]) == (None, None, None)
    assert made["notes"] == ["a", "the numbers are not finite"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 0.9}, "lower <= value <= upper"),
        ({"lower": None}, "lower <= value <= upper"),
        ({"value": None, "lower": None, "upper": None, "notes": []}, "expected a reason"),
        ({"direction": "up"}, "direction"),
    ],
)
def test_faults_are_named(change, message):
    release = copy.deepcopy(make_release())
    release["models"]["careless"]["baselines"][0].update(change)
    with pytest.raises(InputError, match=message):
        schema.validate(release)
