"""Figures of a joined report: utility against risk, h(t), and pictures where private images may be shown.

Utility against risk is one figure of two panels: what a shared thing is good for (up) against how often it gives the
worst marked record back (right, log scale), each with its interval. Ways are told apart by marker and label.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_privacy.reports import figures, pictures
from diffusion_privacy.reports.arrays import expect
from diffusion_privacy.reports.figures import SMALL, STYLES, Drawn, Picture, dress, new_figure
from diffusion_privacy.reports.joined_schema import WAYS
from diffusion_privacy.reports.joined_standing import TITLES, Worst, private_records, worst
from diffusion_privacy.reports.wording import record_name, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_RECORDS, MAX_NEAREST, MAX_SHOWN = 4, 6, 8


@dataclasses.dataclass(frozen=True)
class JoinedArrays:
    """Images of a joined report, float32 in [-1, 1]; R marked private records, in the order of the release's.

    All of it may show private records, images of a leaking model included: it stays in the working directory.

    Attributes:
      marked: the private records with their fingerprint, as every way learnt from them, [R, H, W, C].
      originals: the same before the fingerprint was planted, [R, H, W, C].
      nearest: by way (`WAYS`), the k images of what would be given away (drawn images of a model, images of the copy)
        that lie nearest to each marked record, nearest first, [R, k, H, W, C].
      distances: by way, Euclidean distance over all pixels of each of these to the marked record, float[R, k].
      shared: by way, some images of what would be given away, not picked by any criterion, [m, H, W, C].
      copy_originals: private records as they went into the copy, not picked, [m, H, W, C].
      copies: their private copies, in the same order, [m, H, W, C].
    """

    marked: np.ndarray
    originals: np.ndarray
    nearest: Mapping[str, np.ndarray]
    distances: Mapping[str, np.ndarray]
    shared: Mapping[str, np.ndarray]
    copy_originals: np.ndarray
    copies: np.ndarray

    def __post_init__(self) -> None:
        image = self.marked.shape[1:]
        if len(image) != 3 or image[-1] not in (1, 3):
            raise ValueError(f"marked: expected shape [R, H, W, 1 or 3], got {self.marked.shape}")
        for name in ("nearest", "distances", "shared"):
            if set(vars(self)[name]) != set(WAYS):
                raise ValueError(f"{name}: expected one array for each of {', '.join(WAYS)}")
        expect("originals", self.originals, self.marked.shape)
        for way in WAYS:
            expect(f"nearest[{way!r}]", self.nearest[way], (len(self.marked), None, *image))
            expect(f"distances[{way!r}]", self.distances[way], self.nearest[way].shape[:2])
            expect(f"shared[{way!r}]", self.shared[way], (None, *image))
        expect("copy_originals", self.copy_originals, (None, *image))
        expect("copies", self.copies, self.copy_originals.shape)


# --- utility against risk ---------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    # A dollar sign would start matplotlib's formula mode.
    return text.replace("$", r"\$")


def _floor(release: Mapping[str, Any]) -> float:
    """Left end of the log axis: below the smallest number shown, but at most 6 decades below 1/n."""
    ways = release["ways_to_share"].values()
    shown = [v for q in map(worst, ways) for v in (q["lower"], q["value"], q["upper"]) if v is not None and v > 0]
    smallest = 1 / max(way["n_train"] for way in ways)
    return max(min([*shown, smallest]), smallest * 1e-6) / 4


def _cross(axes: Axes, q: Worst, height: Mapping[str, float], style: Mapping[str, Any], floor: float) -> float:
    """Draws one way: q's interval sideways, utility's upright, the marker where they meet; returns the right end."""
    lower, upper = max(q["lower"], floor), max(q["upper"], floor)
    y, color = height["value"], style["color"]
    axes.plot([lower, upper], [y, y], color=color, linewidth=1.6, linestyle=style["linestyle"])
    ends = (("<" if lower <= floor else "|", lower), ("|", upper))
    for mark, x in ends:
        axes.plot([x], [y], marker=mark, markersize=5 if mark == "<" else 8, color=color)
    value = q["value"]
    known = value is not None and value > floor
    x = min(value, 1.0) if known and value is not None else upper
    axes.plot([x, x], [height["lower"], height["upper"]], color=color, linewidth=1.2)
    face = color if known else "white"
    axes.plot([x], [y], marker=style["marker"], markersize=6.5, color=color, markerfacecolor=face, zorder=3)
    return max(upper, x)


def _label(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Texts at the right edge, as near to their heights as they fit, each with a thin line to where it belongs."""
    low, high = axes.get_ylim()
    step = 0.105 * (high - low)
    texts = [(textwrap.fill(_plain(name), 20), x, y) for name, x, y in sorted(points, key=lambda p: p[2])]
    sizes = [step * (1 + 0.8 * text.count("\n")) for text, _, _ in texts]
    places = [y for _, _, y in texts]
    for _ in range(200):
        # Neighbours that overlap push each other apart; the edges push back.
        for i in range(len(places) - 1):
            lack = (sizes[i] + sizes[i + 1]) / 2 - (places[i + 1] - places[i])
            if lack > 0:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
        places = [min(max(place, low), high) for place in places]
    edge = axes.get_xlim()[1]
    where: dict[str, Any] = {"textcoords": ("axes fraction", "data"), "annotation_clip": False}
    thin = {"arrowstyle": "-", "linewidth": 0.5, "color": "#777777", "shrinkA": 0, "shrinkB": 1}
    for (text, x, y), place in zip(texts, places, strict=True):
        axes.annotate("", xy=(x, y), xytext=(1.02, place), arrowprops=thin, **where)
        axes.annotate(text, xy=(x, y), xytext=(1.03, place), fontsize=SMALL, va="center", linespacing=0.95, **where)
    axes.set_xlim(right=edge)


_MEASURES = (
    ("accuracy", "right answers, share", "higher = more useful"),
    ("frechet", "Fréchet distance", "lower = more useful"),
)
_SYMBOLS = {"o": "●", "s": "■", "^": "▲", "D": "◆"}
_LINES = ("-", "--", ":", "-.")


def _panel(axes: Axes, release: Mapping[str, Any], measure: tuple[str, str, str], floor: float) -> None:
    key, name, direction = measure
    ways, points = release["ways_to_share"], []
    for style, way in zip(STYLES, WAYS, strict=True):
        height = ways[way]["utility"][key]
        name_ = f"{_SYMBOLS[style['marker']]} {TITLES[way]}"
        points.append((name_, _cross(axes, worst(ways[way]), height, style, floor), height["value"]))
    tops = [1 / way["n_train"] for way in ways.values()] + [worst(way)["upper"] for way in ways.values()]
    edge = min(1.5, 4 * max(tops))
    for i, yardstick in enumerate(release["yardsticks"]):
        height = yardstick["utility"][key]
        axes.axhline(height["value"], color="#555555", linewidth=0.9, linestyle=_LINES[i % len(_LINES)], zorder=1)
        axes.axhspan(height["lower"], height["upper"], color="#555555", alpha=0.10, linewidth=0, zorder=0)
        points.append((yardstick["name"], edge, height["value"]))
    for n in {way["n_train"] for way in ways.values()}:
        axes.axvline(1 / n, color="black", linestyle=(0, (1, 2)), linewidth=1.1, zorder=1)
    dress(axes, f"{name} ({direction})", "", "")
    axes.set(xscale="log", xlim=(floor, edge))
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.02, high) if key == "accuracy" else high)
    _label(axes, points)


def utility_risk(release: Mapping[str, Any]) -> Drawn:
    """Accuracy and Fréchet distance of the four ways against q of the worst marked record, yardsticks as lines."""
    figure, panels = new_figure(6.2, len(_MEASURES), sharex=True)
    floor = _floor(release)
    for axes, measure in zip(panels, _MEASURES, strict=True):
        _panel(axes, release, measure, floor)
    panels[-1].set_xlabel(
        "q of the marked record that comes back most\n(log scale; further right is worse)", fontsize=9
    )
    alt = []
    for name in WAYS:
        way = release["ways_to_share"][name]
        q, use = worst(way), way["utility"]
        alt.append(
            f"{TITLES[name]}: q {significant(q['lower'], 2, 'down')} to "
            f"{significant(q['upper'], 2, 'up')}, right answers {use['accuracy']['value']:.3f}, Fréchet distance "
            f"{significant(use['frechet']['value'], 3)}."
        )
    level = release["level"]
    caption = (
        "Up: what a shared thing is good for. Right: how often one of its images shows the marked record that comes "
        f"back most. Bars: {100 * level:g} % intervals, of q for each record by itself. Filled marker: the estimate. "
        "Hollow marker: no hit or no estimate, at the upper limit. Arrow: the interval goes down to the left edge or "
        "below it, zero included. Upright dotted line: 1/n, what a model shows of each record that has memorised its n "
        "records and nothing else. Level lines: sets that are not on offer, grey where their own interval lies."
    )
    return Drawn(figure, "Utility against risk", " ".join(alt), caption)


def audited_models(release: Mapping[str, Any]) -> dict[str, Any]:
    """The ways that have curves h(t), by title, as the figures and tables of an audit take models."""
    found = {}
    for way in release["ways_to_share"].values():
        records = [r for r in way["risk"]["records"] if r["h_curve"] is not None and r["t_prime"] is not None]
        if records:
            found[way["title"]] = {"records": records}
    return {"models": found}


# --- pictures ---------------------------------------------------------------------------------------------------------


def came_back(release: Mapping[str, Any], arrays: JoinedArrays, r: int) -> Drawn:
    """One marked record above the images nearest to it that each way would give away, with their distances."""
    record = private_records(release["ways_to_share"]["raw_model"])[r]
    columns, room, high = MAX_NEAREST, 1.6, 1.3
    rows = 1.3 + high * len(WAYS)
    figure, axes = pictures.board(rows, columns, room)
    pictures.tile(axes, arrays.originals[r], 0, 0)
    pictures.tile(axes, arrays.marked[r], 0, 1)
    axes.text(
        2.15, 0.5, "left: the original\nright: with its mark,\nas it was learnt from", fontsize=SMALL, va="center"
    )
    axes.text(-0.1, 0.5, record_name(record).replace(" record ", "\nrecord "), fontsize=SMALL, ha="right", va="center")
    for i, name in enumerate(WAYS):
        top = 1.3 + i * high
        axes.text(-0.1, top + 0.5, textwrap.fill(TITLES[name], 11), fontsize=SMALL, ha="right", va="center")
        for column in range(min(columns, arrays.nearest[name].shape[1])):
            pictures.tile(axes, arrays.nearest[name][r, column], top, column)
            distance = significant(float(arrays.distances[name][r, column]))
            axes.text(column + 0.5, top + 1.12, distance, fontsize=SMALL, ha="center", va="center")
    pictures.fit(axes, rows, columns, room)
    caption = (
        "Each row: the images of one way that lie nearest to the marked record, nearest first. Number: Euclidean "
        "distance over all pixels, scale −1 to 1; 0 is a copy. They are for judgement by eye and prove nothing."
    )
    closest = "; ".join(f"{TITLES[name]} {significant(float(np.min(arrays.distances[name][r])))}" for name in WAYS)
    alt = f"{record_name(record)} and the images nearest to it from each way; smallest distances: {closest}."
    return Drawn(figure, f"What came back of {record_name(record)}", alt, caption)


def _strips(rows: Sequence[tuple[str, np.ndarray]], title: str, alt: str, caption: str) -> Drawn:
    """Rows of images with their names."""
    columns, room = MAX_SHOWN, 2.0
    figure, axes = pictures.board(len(rows), columns, room)
    for i, (name, images) in enumerate(rows):
        axes.text(-0.1, i + 0.5, textwrap.fill(name, 11), fontsize=SMALL, ha="right", va="center")
        for column, image in enumerate(images[:columns]):
            pictures.tile(axes, image, i, column)
    pictures.fit(axes, len(rows), columns, room)
    return Drawn(figure, title, alt, caption)


def shared_images(arrays: JoinedArrays) -> Drawn:
    """Some images of each way."""
    rows = [(TITLES[name], arrays.shared[name]) for name in WAYS]
    caption = "Images of what would be given away, of each way; none was picked by hand."
    return _strips(rows, "What would be given away", "Rows of images, one row for each way to share.", caption)


def copies(arrays: JoinedArrays) -> Drawn:
    """Private records above their private copies."""
    rows = [("Original", arrays.copy_originals), ("Private copy", arrays.copies)]
    caption = "A column is one private record: the original, then its private copy."
    return _strips(rows, "Originals and private copies", "Two rows: private records and their private copies.", caption)


def _drawn(release: Mapping[str, Any], arrays: JoinedArrays | None) -> dict[str, Drawn]:
    drawn = {"utility_risk": utility_risk(release)}
    models = audited_models(release)
    if models["models"]:
        drawn["h_curve"] = figures.h_curves(models)
    if arrays is not None:
        count = min(MAX_RECORDS, len(arrays.marked))
        drawn |= {f"pictures_record_{r}": came_back(release, arrays, r) for r in range(count)}
        drawn["pictures_shared"] = shared_images(arrays)
        drawn["pictures_copies"] = copies(arrays)
    return drawn


def write_figures(folder: Path, release: Mapping[str, Any], arrays: JoinedArrays | None) -> dict[str, Picture]:
    """Write what may be shown to ``folder``; figures of an earlier report in it are removed.

    Args:
      folder: existing directory.
      release: a validated release.
      arrays: None where private images may not be shown.

    Returns:
      ``utility_risk``, ``h_curve`` where a way has one and, with ``arrays``, ``pictures_*``.
    """
    # One made with private images must not stay beside a report made without.
    for path in (*folder.glob("pictures_*.png"), folder / "h_curve.png", folder / "utility_risk.png"):
        path.unlink(missing_ok=True)
    return {name: pictures.save(one, folder / f"{name}.png") for name, one in _drawn(release, arrays).items()}
