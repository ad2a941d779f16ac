"""What the figures draw, read off their axes: each number at its place, each interval at its limits, nothing hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_joined import make_joined, make_joined_arrays
from sample_release import make_arrays, make_release
from test_cadp_wording import part

from diffusion_privacy.reports import cadp_figures, figures, joined_figures, pictures, sweep_figure
from diffusion_privacy.reports.joined_schema import WAYS


def level_lines(axes: Any) -> list[tuple[float, float, float]]:
    """(left, right, height) of what is drawn between two points of one height."""
    found = [np.asarray(line.get_xydata(), float) for line in axes.lines]
    return [(xy[0, 0], xy[1, 0], xy[0, 1]) for xy in found if len(xy) == 2 and xy[0, 1] == xy[1, 1]]


def upright_lines(axes: Any) -> list[tuple[float, float, float]]:
    """(place, bottom, top) of what is drawn between two points of one place."""
    found = [np.asarray(line.get_xydata(), float) for line in axes.lines]
    return [(xy[0, 0], xy[0, 1], xy[1, 1]) for xy in found if len(xy) == 2 and xy[0, 0] == xy[1, 0]]


def markers(axes: Any, kinds: str) -> list[tuple[float, float]]:
    """Single points with one of these markers."""
    lines = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() in kinds]
    return [tuple(np.asarray(line.get_xydata(), float)[0]) for line in lines]


def bars(container: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [N, 2] of an error bar's curve, and the lower and upper end of each bar."""
    line, _, (bar,) = container.lines
    ends = np.array(bar.get_segments())
    return np.asarray(line.get_xydata(), float), ends[:, 0, 1], ends[:, 1, 1]


# --- a study ----------------------------------------------------------------------------------------------------------


def test_intervals_of_q_reach_from_limit_to_limit() -> None:
    release = make_release()
    drawn = figures.q_intervals(release)
    for axes, model in zip(drawn.figure.axes, release["models"].values(), strict=True):
        rows = [(r, r[kind]) for r in model["records"] for kind in ("direct", "subspace") if r[kind] is not None]
        left, right = axes.get_xlim()
        ends = [(max(e["lower"], left), max(e["upper"], left), float(y)) for y, (_, e) in enumerate(rows)]
        np.testing.assert_allclose(level_lines(axes), ends)
        assert right >= 1
        values = [(min(e["value"], 1.0), y) for y, (_, e) in enumerate(rows) if e["value"] > left]
        np.testing.assert_allclose(markers(axes, "oD"), values)
        stops = [(x, y) for left_end, right_end, y in ends for x in (right_end, left_end) if x > left or x == right_end]
        np.testing.assert_allclose(markers(axes, "|"), stops)
        # An arrow says that the interval goes on below the axis, where it does and nowhere else.
        assert [y for _, y in markers(axes, "<")] == [y for y, (_, e) in enumerate(rows) if e["lower"] <= left]
        np.testing.assert_allclose(upright_lines(axes), [(model["memoriser_rate"], 0, 1)])
        assert [str(r["index"]) in t.get_text() for (r, _), t in zip(rows, axes.get_yticklabels(), strict=True)]
    # The lower ones down, the upper ones up: 1.31e-4 is not 1.3e-4.
    assert "careful, private 12, direct: 0 to 0.00014." in drawn.alt


@pytest.mark.parametrize("model", ["careless", "careful"])
def test_curves_of_h_have_their_intervals_and_marks(model) -> None:
    release = make_release()
    drawn = figures.h_curves(release)
    axes = drawn.figure.axes[list(release["models"]).index(model)]
    records = sorted(release["models"][model]["records"], key=lambda r: r["role"])
    for container, record in zip(axes.containers, records, strict=True):
        points, lower, upper = bars(container)
        curve = record["h_curve"]
        np.testing.assert_allclose(points, np.column_stack([curve["t"], curve["value"]]))
        np.testing.assert_allclose(lower, curve["lower"], atol=1e-12)
        np.testing.assert_allclose(upper, curve["upper"], atol=1e-12)
    marks = [r["t_prime"][kind]["value"] for r in records for kind in ("paper", "statistical")]
    assert [x for x, _, _ in upright_lines(axes)] == [t for t in marks if t is not None]
    # Full height for the private record alone.
    private = records[-1]["t_prime"]
    tall = [x for x, _, top in upright_lines(axes) if top == 1]
    assert tall == [private["paper"]["value"], private["statistical"]["value"]]
    assert f"t′ statistical ≥ {private['statistical']['value']:.2f}" in drawn.alt
    assert axes.get_xlim()[0] <= 0 < 1 <= axes.get_xlim()[1]
    assert axes.get_ylim()[0] <= 0 < 1 <= axes.get_ylim()[1]


def tiles(monkeypatch) -> list[tuple[np.ndarray, float, float]]:
    """Images in the order in which they are drawn, with row and column."""
    found: list[tuple[np.ndarray, float, float]] = []
    monkeypatch.setattr(pictures, "tile", lambda axes, image, row, column: found.append((image, row, column)))
    return found


def test_each_sample_stands_above_its_own_nearest_record(monkeypatch) -> None:
    arrays, found = make_arrays(), tiles(monkeypatch)
    drawn = pictures.nearest("m", arrays)
    words = [text.get_text() for text in drawn.figure.axes[0].texts]
    order = np.argsort(arrays.distances[:16])
    for place, i in enumerate(order):
        (above, row, column), (below, under, same) = found[2 * place : 2 * place + 2]
        assert above is not below
        np.testing.assert_array_equal(above, arrays.samples[i])
        np.testing.assert_array_equal(below, arrays.nearest[i])
        assert (under, same) == (row + 1, column)
        assert float(words[place]) == pytest.approx(arrays.distances[i], rel=0.05)


# --- private copies ---------------------------------------------------------------------------------------------------


def entry(value: float, level: float = 0.95, **facts: Any) -> dict[str, Any]:
    return {"value": value, "lower": 0.9 * value, "upper": 1.2 * value, "level": level, "seeds": [value], **facts}


def arm(kind: str, epsilon: float | None, value: float, distance: Any = None) -> dict[str, Any]:
    return {"name": kind, "kind": kind, "epsilon": epsilon, "accuracy": entry(value), "distance": distance}


def test_usefulness_stands_at_the_epsilon_of_its_training_set() -> None:
    release = part()
    release["releases"] = [
        {"latent_epsilon": e, "manifest": {**release["releases"][0]["manifest"], "epsilon": e}} for e in (1.0, 8.0)
    ]
    release["arms"] = [
        arm("original", None, 0.7), arm("released", 1.0, 0.4), arm("released", 8.0, 0.5), arm("dp-sgd", 1.0, 0.3),
        arm("dp-sgd", 8.0, 0.35), arm("control", None, 0.2),
    ]  # fmt: skip
    figure, _, alt, _ = cadp_figures.utility(release)
    [axes] = figure.axes
    for container, values in zip(axes.containers, ((0.4, 0.5), (0.3, 0.35)), strict=True):
        points, lower, upper = bars(container)
        np.testing.assert_allclose(points, np.column_stack([(1.0, 8.0), values]))
        np.testing.assert_allclose(lower, 0.9 * np.array(values))
        np.testing.assert_allclose(upper, 1.2 * np.array(values))
    assert [y for _, _, y in level_lines(axes)] == [0.7, 0.2]
    assert "private copies 0.400 to 0.500; private training on originals 0.300 to 0.350; originals 0.700" in alt


def test_a_table_without_correlations_leaves_the_others_at_their_epsilon() -> None:
    """A column that strong noise left constant has none: the points of the other tables moved, and matplotlib fell."""
    release = part()
    release["releases"] = [
        {"latent_epsilon": e, "manifest": {**release["releases"][0]["manifest"], "epsilon": e}} for e in (1.0, 8.0)
    ]
    apart = [{"one_way": entry(v), "two_way": entry(v), "correlation": entry(v)} for v in (0.4, 0.1)]
    apart[0]["correlation"] = None
    release["arms"] = [arm("released", e, 0.5, found) for e, found in zip((1.0, 8.0), apart, strict=True)]
    figure, _, alt, _ = cadp_figures.distance(release)
    places = [bars(axes.containers[0])[0].tolist() for axes in figure.axes]
    assert places == [[[1.0, 0.4], [8.0, 0.1]]] * 2 + [[[8.0, 0.1]]]
    assert "correlations: private copies 0.100 to 0.100" in alt


@pytest.mark.parametrize(
    ("study", "grey", "among"), [((16.0, 64.0), True, ""), ((2.0, 64.0), True, "2"), ((0.5, 4.0), False, "0.5, 4")]
)
def test_linkage_shows_every_set_and_which_were_published(study, grey, among) -> None:
    """Releases at ε = 1 and 8. Sets of the attack alone may lie between them, and the last need not be one of them."""
    release, epsilons = part(), (1.0, 8.0, *study)
    release["linkage"] = [
        {
            "name": "",
            "kind": kind,
            "epsilon": e,
            "rank1": entry(e / 100, chance=0.1),
            "rank10": entry(e / 80, chance=0.2),
        }
        for kind, e in zip(("released", "released", "study", "study"), epsilons, strict=True)
    ]
    release["linkage"].append({"name": "", "kind": "control", "epsilon": None})
    figure, _, alt, caption = cadp_figures.linkage(release)
    [axes] = figure.axes
    for container, unit in zip(axes.containers, (100, 80), strict=True):
        points, lower, upper = bars(container)
        np.testing.assert_allclose(points, [[e, e / unit] for e in sorted(epsilons)])
        np.testing.assert_allclose(lower, [0.9 * e / unit for e in sorted(epsilons)])
        np.testing.assert_allclose(upper, [1.2 * e / unit for e in sorted(epsilons)])
    assert [y for _, _, y in level_lines(axes)] == [0.1, 0.2]
    left, right = axes.get_xlim()
    assert left < min(epsilons) <= max(epsilons) < right
    assert ("never published" in [text.get_text() for text in axes.texts]) == grey
    if grey:
        [shade] = axes.patches
        start, end = shade.get_extents().transformed(axes.transData.inverted()).intervalx
        assert 8.0 < start < min(e for e in study if e > 8)
        assert end > 64
    assert f"Nor was what stands at ε = {among} published." in caption if among else "Nor was" not in caption
    assert "original found first 0.010 at ε = 1;" in alt


# --- four ways to share -----------------------------------------------------------------------------------------------


def test_utility_stands_against_the_record_that_comes_back_most() -> None:
    release = make_joined()
    drawn = joined_figures.utility_risk(release)
    ways = [release["ways_to_share"][name] for name in WAYS]
    for axes, key in zip(drawn.figure.axes, ("accuracy", "frechet"), strict=True):
        left, right = axes.get_xlim()
        verdicts = [[r["verdict"] for r in way["risk"]["records"] if r["role"] == "private"] for way in ways]
        heights = [way["utility"][key] for way in ways]
        ends, uprights, points = [], [], []
        for found, height in zip(verdicts, heights, strict=True):
            lower, value, upper = (max(v[name] for v in found) for name in ("lower", "estimate", "upper"))
            x = value if value > left else upper
            ends.append((max(lower, left), upper, height["value"]))
            uprights.append((x, height["lower"], height["upper"]))
            points.append((x, height["value"]))
            assert upper < right
        yardsticks = [(0, 1, y["utility"][key]["value"]) for y in release["yardsticks"]]
        np.testing.assert_allclose(level_lines(axes), ends + yardsticks)
        np.testing.assert_allclose(upright_lines(axes), [*uprights, (1 / 540, 0, 1)])
        np.testing.assert_allclose(markers(axes, "os^D"), points)
    assert "Raw model: q 0.0013 to 0.0018," in drawn.alt


def test_what_came_back_is_of_the_record_above(monkeypatch) -> None:
    arrays, found = make_joined_arrays(), tiles(monkeypatch)
    joined_figures.came_back(make_joined(), arrays, 1)
    wanted = [arrays.originals[1], arrays.marked[1]]
    wanted += [image for name in WAYS for image in arrays.nearest[name][1]]
    assert len(found) == len(wanted)
    for (image, _, _), other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(image, other)


# --- a sweep ----------------------------------------------------------------------------------------------------------


def test_a_sweep_draws_its_intervals_at_their_sizes(monkeypatch, tmp_path: Path) -> None:
    made, new = [], figures.new_figure
    monkeypatch.setattr(sweep_figure, "new_figure", lambda *args, **how: made.append(new(*args, **how)) or made[-1])
    points = [
        {
            "n": n, "field": "hidden", "value": 8, "t_prime": {"value": t},
            "q": {"lower": lower, "estimate": estimate, "upper": upper, "level": 0.95},
        }
        for n, lower, estimate, upper, t in ((50, 0.011, 0.02, 0.031, 0.7), (100, 0.0, None, 0.001, None))
    ]  # fmt: skip
    sweep_figure.write(tmp_path / "sweep.png", points)
    [(_, (above, below))] = made
    floor = 0.001 / 10
    np.testing.assert_allclose(upright_lines(above), [(50, 0.011, 0.031), (100, floor, 0.001)])
    assert markers(above, "o") == [(50, 0.02)]
    assert above.get_ylim()[0] == pytest.approx(floor)
    memoriser = next(line for line in above.lines if line.get_label() == "memoriser, 1/n")
    np.testing.assert_allclose(memoriser.get_xydata(), [[50, 1 / 50], [100, 1 / 100]])
    assert markers(below, "o") == [(50, 0.7)]
    assert all("95\u00a0%" in axes.get_ylabel() for axes in (above, below))
