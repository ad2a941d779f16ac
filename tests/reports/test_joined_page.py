"""The joined page is self-contained, escapes what it is given, and shows no private image unless told to."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from html_page import HOSTILE, Page, check_loads_nothing
from sample_joined import make_joined, make_joined_arrays

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.ledger import event_to_json
from diffusion_privacy.reports import card, joined_ledger, joined_tables
from diffusion_privacy.reports.joined_page import write_report

CURVES = {"utility_risk.png", "h_curve.png"}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("shown"), make_joined(), make_joined_arrays(), show_private=True)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Arrays are at hand and must not be looked at.
    return write_report(tmp_path_factory.mktemp("hidden"), make_joined(), make_joined_arrays())


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("which", ["shown", "hidden"])
def test_loads_nothing_and_runs_nothing(which: str, request: pytest.FixtureRequest) -> None:
    check_loads_nothing(request.getfixturevalue(which).read_text(encoding="utf-8"))


def test_no_picture_of_a_record_by_default(shown: Path, hidden: Path) -> None:
    assert {p.name for p in (hidden.parent / "figures").iterdir()} == CURVES
    text = hidden.read_text(encoding="utf-8")
    pictures = [p for p in (shown.parent / "figures").iterdir() if p.name not in CURVES]
    assert {p.stem for p in pictures} == {f"pictures_{k}" for k in ("record_0", "record_1", "shared", "copies")}
    for picture in pictures:
        encoded = base64.b64encode(picture.read_bytes()).decode()
        assert encoded in shown.read_text(encoding="utf-8")
        assert encoded not in text
    assert text.count("<img ") == len(CURVES)
    assert "Pictures are withheld" in text


def test_without_arrays_the_page_is_the_same_and_old_pictures_go(hidden: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("pictures_record_7", "pictures_copies", "mine"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"old")
    again = write_report(tmp_path, make_joined(), None)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == CURVES | {"mine.png"}
    assert again.read_bytes() == hidden.read_bytes()


def test_sections_and_numbers(hidden: Path) -> None:
    text = Page(hidden.read_text(encoding="utf-8")).text.replace("\u00a0", " ")
    release = make_joined()
    headings = (
        "The answer", "What this does not say", "Utility against risk", "Verdicts, record by record",
        "What is promised", "What attacks found", "Pictures", "How far a record comes back from noise",
        "How it was measured", "The ledger", "What could not be certified", "Versions, configuration, hashes",
    )  # fmt: skip
    # The title and the answer may use the same words.
    places = [text.index(heading, text.index("The answer")) for heading in headings]
    assert places == sorted(places)
    assert release["answer"].replace("\u00a0", " ") in text
    for part in (
        "Four ways to share the same records", "15 (13 to 18)", "4.1 % (2.8 to 5.8); guessing 1.8 %",
        "540 non-members give no rate below 1 in 540", "321 at most, 97.5 % confidence each", "says nothing",
        "memoriser, 1/n: 19",
        "60 times (each record drawn with probability 0.25, then Gaussian noise, multiplier 1.13)",
        "no event", "All entries together, if everything were given away: no guarantee", release["config_hash"],
    ):  # fmt: skip
        assert part in text, part
    assert re.search(r"SHA-256 of release\.json [0-9a-f]{64}", text)


FIXED = frozenset(
    ("schema_version", "role", "status", "more_samples", "kind", "type", "stage", "stages", "uncovered", "censored")
)
"""Fields whose text the schema fixes."""


def _hostile(value: Any) -> Any:
    """Every free text of a release replaced by one that would break a page."""
    if isinstance(value, dict):
        return {k: v if k in FIXED else _hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    release = _hostile(make_joined())
    release["ledger"] |= {"not_recorded": [HOSTILE]}
    release["ledger"]["entries"][0]["stage"] = release["ledger"]["uncovered"][0] = HOSTILE
    release["ways_to_share"]["raw_model"]["guarantee"]["stages"] = [HOSTILE]
    release["ledger"]["entries"][1]["event"] = {"type": HOSTILE, HOSTILE: HOSTILE}
    release["config"][HOSTILE] = HOSTILE
    page = Page(write_report(tmp_path, release, make_joined_arrays(), True).read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags} & {"script", "iframe"} == set()
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 6
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert('x')</script>") > 60


def test_what_spoils_everything_is_said_before_anything_else(tmp_path: Path) -> None:
    release = make_joined()
    verdict = release["ways_to_share"]["copy_model"]["risk"]["records"][-1]["verdict"]
    verdict |= {"status": "leaks", "lower": 1e-5, "estimate": 5e-5}
    release["ledger"]["not_recorded"] = ["choice of the learning rate"]
    text = Page(write_report(tmp_path, release, None).read_text(encoding="utf-8")).text
    before = text[: text.index("What this does not say")]
    assert "The audit of “Model of the copy” cannot be trusted as it stands" in before
    assert "touched without an entry in the ledger: choice of the learning rate" in before
    assert "Not in the ledger. choice of the learning rate" in text


def test_a_fault_is_told_before_anything_is_written(tmp_path: Path) -> None:
    release, arrays = make_joined(), make_joined_arrays()
    with pytest.raises(InputError, match="2 marked records"):
        write_report(tmp_path / "r", release, None, True)
    one = {name: near[:1] for name, near in arrays.nearest.items()}
    fewer = dataclasses.replace(
        arrays, marked=arrays.marked[:1], originals=arrays.originals[:1], nearest=one,
        distances={name: d[:1] for name, d in arrays.distances.items()},
    )  # fmt: skip
    with pytest.raises(InputError, match="2 marked records"):
        write_report(tmp_path / "r", release, fewer, True)
    release["ledger"]["guarantee"] = True
    with pytest.raises(InputError, match=r"ledger\.guarantee"):
        write_report(tmp_path / "r", release, arrays, True)
    assert not (tmp_path / "r").exists()


def test_arrays_of_another_shape_are_refused() -> None:
    arrays = make_joined_arrays()
    with pytest.raises(ValueError, match="copies"):
        dataclasses.replace(arrays, copies=arrays.copies[:3])
    with pytest.raises(ValueError, match="nearest: expected one array for each"):
        dataclasses.replace(arrays, nearest={"copy": arrays.nearest["copy"]})
    with pytest.raises(ValueError, match="marked"):
        dataclasses.replace(arrays, marked=np.zeros((2, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (dp_accounting.GaussianDpEvent(1.5), "Gaussian noise, multiplier 1.5"),
        (dp_accounting.LaplaceDpEvent(0.5), "Laplace noise, multiplier 0.5"),
        (dp_accounting.dp_event.RandomizedResponseDpEvent(0.25, 10),
         "randomised response among 10, noise parameter 0.25"),
        (dp_accounting.dp_event.DiscreteLaplaceDpEvent(0.5, 2), "discrete Laplace noise, parameter 0.5, sensitivity 2"),
        (dp_accounting.ZCDpEvent(0.1), "zero-concentrated, ρ = 0.1"),
        (dp_accounting.NoOpDpEvent(), "nothing"),
        (dp_accounting.NonPrivateDpEvent(), "NOT PRIVATE"),
        (dp_accounting.UnsupportedDpEvent(), "of unknown privacy: nothing is promised"),
        (dp_accounting.ComposedDpEvent([dp_accounting.NoOpDpEvent(), dp_accounting.GaussianDpEvent(2)]),
         "nothing; Gaussian noise, multiplier 2"),
    ],
)  # fmt: skip
def test_events_in_words(event: Any, words: str) -> None:
    assert joined_ledger.event_words(event_to_json(event)) == words


def test_a_card_says_no_less_than_the_promise_and_the_worst_certificate() -> None:
    guarantee = {
        "epsilon": 1.5, "delta": 1e-5, "public": [], "sentence": "It holds.", "relation": "one", "mechanism": "noise",
        "stages": ["release"],
    }  # fmt: skip
    # e^1.5 = 4.4817: to the nearest it would be 4.48.
    assert "more than 4.49 times less likely" in card._promise(guarantee)
    each = [{"reliable": True, "upper": upper, "level": 0.95, "models": 8} for upper in (0.001, 0.02)]
    [said] = card._certified(each)
    assert "every record that was replaced comes back in at most 200 in 10,000 images" in said


def test_test_records_that_were_no_strangers_are_counted_beside_the_others() -> None:
    release = make_joined()
    assert "equal to a private record" not in joined_tables.attacks(release)
    release["ways_to_share"]["copy"]["risk"]["attack"]["left_out"] = 3
    assert joined_tables.attacks(release).count("left out: 3 equal to a private record") == 1
