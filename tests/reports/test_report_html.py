"""The page is self-contained, escapes what it is given, and shows no private image unless told to."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from html_page import HOSTILE, Page, check_loads_nothing
from sample_release import make_arrays, make_release

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import html, joined_page, own_page
from diffusion_privacy.reports.html import write_report
from diffusion_privacy.reports.page import H_CURVE_METHOD, SUBSPACE_METHOD

CURVES = {"h_curve.png", "q_intervals.png", "training.png"}


def arrays() -> dict[str, Any]:
    return {"careless": make_arrays(0), "careful": make_arrays(1)}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("shown"), make_release(), arrays(), show_private=True)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("hidden"), make_release(), arrays())


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("which", ["shown", "hidden"])
def test_loads_nothing_and_runs_nothing(which: str, request: pytest.FixtureRequest) -> None:
    check_loads_nothing(request.getfixturevalue(which).read_text(encoding="utf-8"))


def test_no_picture_of_a_record_by_default(shown: Path, hidden: Path) -> None:
    assert {p.name for p in (hidden.parent / "figures").iterdir()} == CURVES
    text = hidden.read_text(encoding="utf-8")
    pictures = [p for p in (shown.parent / "figures").iterdir() if p.name not in CURVES]
    # Four kinds for each of two models (the sample's arrays have ranked records for both).
    assert len(pictures) == 8
    for picture in pictures:
        encoded = base64.b64encode(picture.read_bytes()).decode()
        assert encoded in shown.read_text(encoding="utf-8")
        assert encoded not in text
    assert text.count("<img ") == 3
    assert "Pictures are withheld" in text


def test_pictures_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("samples_careless", "nearest_other", "regenerated_careful", "mine"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"old")
    write_report(tmp_path, make_release(), arrays(), show_private=False)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == CURVES | {"mine.png"}


def test_sections_and_numbers(hidden: Path) -> None:
    text = Page(hidden.read_text(encoding="utf-8")).text.replace("\u00a0", " ")
    release = make_release()
    headings = (
        "What was asked", "The answer", "What this does not say", "Verdicts, record by record", "Pictures",
        "What could not be certified", "How it was measured", "Training", "Versions, configuration, hashes",
    )  # fmt: skip
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    assert release["question"] in text
    assert release["answer"] in text
    assert "153 in 10,000 images (95 % interval 138 to 179)" in text
    assert "false alarms 0.02 % (95 % interval 0.0041 % to 0.059 %; 15,000 images)" in text
    assert "No such local method rules out" in text
    assert "ancestral, 100 steps" in text
    assert release["config_hash"] in text
    assert "training.learning_rate = 0.001" in text
    assert re.search(r"SHA-256 of release\.json [0-9a-f]{64}", text)


def test_every_page_says_of_e2_what_it_does() -> None:
    """Two pages told of paths that start at the noised record; all of E2's start at pure noise."""
    for module in (html, joined_page, own_page):
        said = dict(module._METHODS)
        assert said["Score-subspace integration (E2)"].startswith(SUBSPACE_METHOD), module.__name__
        assert said["h(t) and t′"].startswith(H_CURVE_METHOD), module.__name__
    assert "from pure noise" in SUBSPACE_METHOD


def test_equal_input_gives_equal_bytes(hidden: Path, tmp_path: Path) -> None:
    again = write_report(tmp_path, make_release(), arrays())
    assert again.read_bytes() == hidden.read_bytes()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    release = make_release()
    for name in ("question", "answer", "config_hash"):
        release[name] = HOSTILE
    release["limits"] = [HOSTILE]
    release["program"]["name"] = release["device"]["kind"] = release["data"]["source"] = HOSTILE
    release["versions"][HOSTILE] = release["config"][HOSTILE] = HOSTILE
    release["timings"][HOSTILE] = {"compile_s": 0, "run_s": 0}
    model = release["models"]["careless"]
    model["sampler"]["name"] = HOSTILE
    model["training_curve"] |= {"metric": HOSTILE, "unit": HOSTILE}
    model["detector"]["thresholds"][HOSTILE] = 1.0
    record = model["records"][0]
    record["verdict"] |= {"sentence": HOSTILE, "assumes": [HOSTILE]}
    record["direct"] |= {"reasons": [HOSTILE], "reliable": False}
    page = Page(write_report(tmp_path, release, arrays()).read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert('x')</script>") >= 14


def test_a_leaking_control_is_shown_as_an_alarm(tmp_path: Path) -> None:
    release = make_release()
    verdict = release["models"]["careful"]["records"][1]["verdict"]
    verdict |= {"status": "leaks", "lower": 1e-5, "estimate": 5e-5}
    page = Page(write_report(tmp_path, release, arrays()).read_text(encoding="utf-8"))
    assert "cannot be trusted as it stands" in page.text


def test_a_fault_is_told_before_anything_is_written(tmp_path: Path) -> None:
    release = make_release()
    with pytest.raises(InputError, match="careful"):
        write_report(tmp_path / "r", release, {"careless": make_arrays()})
    del release["answer"]
    with pytest.raises(InputError, match=r"release\.answer"):
        write_report(tmp_path / "r", release, arrays())
    assert not (tmp_path / "r").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="writable directory"):
        write_report(tmp_path / "file" / "report", make_release(), arrays())


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_uses_neither_pyplot_nor_matplotlib_at_import() -> None:
    code = (
        "import sys, diffusion_privacy.reports.html\n"
        "assert not any(m.startswith('matplotlib') for m in sys.modules), 'imported early'\n"
        "import tempfile, pathlib, sample_release as s\n"
        "arrays = {'careless': s.make_arrays(0), 'careful': s.make_arrays(1)}\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "diffusion_privacy.reports.html.write_report(folder, s.make_release(), arrays, True)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
