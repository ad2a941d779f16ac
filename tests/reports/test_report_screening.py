"""The screening in release.json and on the page: what is claimed of a listed record, and what is not."""

from __future__ import annotations

import copy

import pytest
from sample_release import make_release

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import schema, tables


def test_the_table_shows_finalists_with_limits_and_the_dropped_without():
    release = make_release()
    schema.validate(release)
    page = tables.screenings(release).replace("\u00a0", " ")
    assert "the first 2 of 64 training records" in page
    first, second = page.split("<tbody>")[1].split("</tr>")[:2]
    for text in ("1: record 12, label 3", "2.04 ± 0.040", "at least 0.30, below 0.34", "121", "149", "184"):
        assert text in first, text
    assert (
        '<td data-label="Images that show it, of those drawn; q in 10,000 images">459 of 30,000; q 138 to 179' in first
    )
    assert "Images that show it<span>of those drawn; q in 10,000 images</span>" in page
    assert "1.40; at least 98.3 %" in first
    for text in ("2: record 77", "no level passed, below 0.02", "dropped at rung 1", "0 of 30,000; q 0 to"):
        assert text in second, text
    assert "0.0200; at least 0 %" in second
    assert "careless, record 77: the ball holds none of 512 perturbed copies" in page
    assert "nothing is claimed" in page
    assert "0.63 would reach the smallest p by chance" in page
    for model in release["models"].values():
        model["screening"] = None
    schema.validate(release)
    assert tables.screenings(release) == ""


def bracket(lower, upper, censored):
    return {"t_prime": {"lower": lower, "upper": upper, "censored": censored, "finished": True, "network_calls": 1}}


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (0, {"rank": 2}, "ranks 1, 2"),
        (0, {"score": 30.0}, "rising order"),
        (0, {"dropped_at": 1}, "subspace: expected an estimate unless"),
        (1, {"dropped_at": None}, "subspace: expected an estimate unless"),
        (0, bracket(0.4, 0.2, None), "t_prime"),
        (0, bracket(None, 0.2, None), "below"),
        (1, bracket(None, 0.2, "both"), "above"),
    ],
)
def test_faults_are_named(row, change, message):
    release = copy.deepcopy(make_release())
    release["models"]["careless"]["screening"]["listed"][row].update(change)
    with pytest.raises(InputError, match=message):
        schema.validate(release)
