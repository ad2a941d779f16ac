"""The report's pictures of images, and the writing of all its figures.

Pictures of images (samples included: a model that leaks draws its training records) are made only with
``show_private``; pictures left by an earlier run are removed otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_privacy.reports import figures
from diffusion_privacy.reports.arrays import Listed, ModelArrays, Regenerated
from diffusion_privacy.reports.figures import DPI, SMALL, TEXT, WIDTH, Drawn, Picture
from diffusion_privacy.reports.wording import significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PICTURES, MAX_LEVELS, MAX_DRAWS = 16, 8, 6
ROW = 1.26  # height of a row of returned images: the image and room for its mark


def _grey(images: np.ndarray) -> np.ndarray:
    """Images [..., H, W, C] in [-1, 1] as RGB in [0, 1]; values outside are clipped, as a screen would."""
    rgb = np.clip((np.asarray(images, np.float64) + 1) / 2, 0, 1)
    return np.broadcast_to(rgb, (*rgb.shape[:-1], 3)) if rgb.shape[-1] == 1 else rgb


def tile(axes: Axes, image: np.ndarray, row: float, column: float) -> None:
    """One image in the unit cell (row, column) of axes whose y points down."""
    extent = (column + 0.04, column + 0.96, row + 0.96, row + 0.04)
    axes.imshow(_grey(image), extent=extent, interpolation="nearest")


def board(rows: float, columns: float, left: float = 0.0) -> tuple[Figure, Axes]:
    """Axes with unit cells, y down, `left` cells of room for row labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, WIDTH * rows / (columns + left)), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def fit(axes: Axes, rows: float, columns: float, left: float = 0.0) -> None:
    """Limits of a board's axes; to be called last, since imshow resets them."""
    axes.set(xlim=(-left, columns), ylim=(rows, 0), aspect="auto")


def sheet(images: np.ndarray, title: str, alt: str, caption: str) -> Drawn:
    """Images ``[k, H, W, C]`` side by side."""
    columns, rows = 8, -(-len(images) // 8)
    figure, axes = board(rows, columns)
    for i, image in enumerate(images):
        tile(axes, image, *divmod(i, columns))
    fit(axes, rows, columns)
    return Drawn(figure, title, alt, caption)


def samples(name: str, arrays: ModelArrays) -> Drawn:
    """Unconditional samples of one model."""
    images = arrays.samples[:MAX_PICTURES]
    caption = f"The first {len(images)} of the images that the model {name} drew; none was picked by hand."
    return sheet(images, f"Samples of {name}", f"{len(images)} images drawn by the model {name}.", caption)


def nearest(name: str, arrays: ModelArrays) -> Drawn:
    """Each sample above the training record nearest to it, with the distance, closest pairs first."""
    order = np.argsort(arrays.distances[:MAX_PICTURES], kind="stable")
    columns, high = 8, 2.5
    rows = -(-len(order) // columns)
    figure, axes = board(rows * high, columns)
    for place, i in enumerate(order):
        row, column = divmod(place, columns)
        tile(axes, arrays.samples[i], row * high, column)
        tile(axes, arrays.nearest[i], row * high + 1, column)
        distance = significant(float(arrays.distances[i]))
        axes.text(column + 0.5, row * high + 2.2, distance, fontsize=SMALL, ha="center", va="center")
    fit(axes, rows * high, columns)
    low, high_distance = (significant(float(v)) for v in (arrays.distances[order[0]], arrays.distances[order[-1]]))
    caption = (
        "Above: a drawn image. Below: the training record nearest to it. Number: Euclidean distance over all pixels, "
        "scale −1 to 1; smaller is closer to a copy, 0 is a copy."
    )
    alt = f"{len(order)} pairs of sample and nearest training record; distances from {low} to {high_distance}."
    return Drawn(figure, f"Nearest training records, {name}", alt, caption)


def pairs(found: Listed, title: str, first: str) -> Drawn:
    """Records, each above the drawn image nearest to it; ``first`` is a sentence on who they are."""
    shown = min(len(found.records), MAX_PICTURES)
    columns, high = 8, 2.5
    rows = -(-shown // columns)
    figure, axes = board(rows * high, columns)
    for i in range(shown):
        row, column = divmod(i, columns)
        tile(axes, found.records[i], row * high, column)
        tile(axes, found.draws[i], row * high + 1, column)
        # Two decimals and not two digits: a copy's 2.5×10⁻⁸ would not fit below it.
        words = f"{'▲ ' if found.hits[i] else ''}{found.distances[i]:.2f}"
        axes.text(column + 0.5, row * high + 2.2, words, fontsize=SMALL, ha="center", va="center")
    fit(axes, rows * high, columns)
    caption = (
        f"{first} Below each: the drawn image nearest to it, of all that were drawn. Number: the distance between the "
        "two, smaller is closer to a copy; triangle: the image counts as a reproduction."
    )
    alt = f"{shown} records with the nearest drawn images; {int(np.sum(found.hits[:shown]))} of them reproduced."
    return Drawn(figure, title, alt, caption)


def listed(name: str, arrays: ModelArrays) -> Drawn | None:
    """The records that screening put first; None if none were ranked."""
    if arrays.listed is None:
        return None
    first = "The training records that screening put first, by rank from the left; distances are Euclidean."
    return pairs(arrays.listed, f"First of the ranking, {name}", first)


def _spread(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _draw_returns(axes: Axes, back: Regenerated, levels: np.ndarray, top: float) -> None:
    for i, level in enumerate(levels):
        row = top + i * ROW
        axes.text(-0.15, row + 0.5, f"t = {back.t[level]:.2f}", fontsize=SMALL, ha="right", va="center")
        for draw in range(min(back.images.shape[1], MAX_DRAWS)):
            tile(axes, back.images[level, draw], row, draw)
            if back.hits is not None and back.hits[level, draw]:
                axes.plot([draw + 0.5], [row + 1.12], marker="^", markersize=4, color="black")


def _draw_originals(axes: Axes, role: str, arrays: ModelArrays, top: float) -> None:
    if role == "private":
        shown = [arrays.private_image, arrays.private_original]
        words = "left: as trained on\nright: before the mark"
    else:
        shown, words = list(arrays.control_images[:1]), "never trained on"
    axes.text(-0.15, top + 0.5, "original", fontsize=SMALL, ha="right", va="center")
    for column, image in enumerate(shown):
        tile(axes, image, top, column)
    axes.text(len(shown) + 0.15, top + 0.5, words, fontsize=SMALL, va="center")


def regenerated(name: str, arrays: ModelArrays) -> Drawn:
    """What came back from each noise level, private record first, below the originals."""
    roles = sorted(arrays.regenerated, key=lambda role: role != "private")
    picked = {role: _spread(len(arrays.regenerated[role].t), MAX_LEVELS) for role in roles}
    columns, room, gap = MAX_DRAWS, 1.6, 0.6
    rows = sum(2 * gap + 1 + ROW * len(picked[role]) for role in roles)
    figure, axes = board(rows, columns, room)
    top = 0.0
    for role in roles:
        axes.text(-room + 0.1, top + gap / 2, f"{role} record", fontsize=TEXT, fontweight="bold", va="center")
        _draw_originals(axes, role, arrays, top + gap)
        axes.text(0, top + gap + 1 + gap / 2, "came back from noise level t", fontsize=SMALL, va="center")
        top += 2 * gap + 1
        _draw_returns(axes, arrays.regenerated[role], picked[role], top)
        top += ROW * len(picked[role])
    fit(axes, rows, columns, room)
    caption = (
        "Each row: the record is drowned in noise up to level t and denoised by the model, several times. A triangle "
        "below an image: the detector recognises the record in it."
    )
    alt = f"Model {name}: images denoised from rising noise levels for {', '.join(roles)} records, below the originals."
    return Drawn(figure, f"What comes back, {name}", alt, caption)


IMAGE_FIGURES: dict[str, Callable[[str, ModelArrays], Drawn | None]] = {
    "samples": samples,
    "nearest": nearest,
    "regenerated": regenerated,
    "listed": listed,
}
"""Drawn once for each model, and only where private images may be shown; None where there is nothing to draw."""

CURVE_FIGURES = ("q_intervals", "h_curve", "training")


def _remove_stale(folder: Path, keep: Iterable[Path]) -> None:
    """Remove figures of an earlier run: one made with `show_private` must not stay beside a report made without."""
    prefixes = (*CURVE_FIGURES, *(f"{stem}_" for stem in IMAGE_FIGURES))
    for path in set(folder.glob("*.png")) - set(keep):
        if path.name.startswith(prefixes):
            path.unlink()


def save(drawn: Drawn, path: Path) -> Picture:
    """Write the figure as PNG."""
    # No software or date tag: equal numbers give equal files.
    drawn.figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return Picture(path, drawn.title, drawn.alt, drawn.caption)


def write_figures(
    folder: Path, release: Mapping[str, Any], arrays: Mapping[str, ModelArrays], show_private: bool
) -> dict[str, Picture]:
    """Write every figure that may be shown to ``folder`` and return them by name.

    Args:
      folder: existing directory; older figures of the same names are replaced or removed.
      release: a validated release.
      arrays: by model name, one for each of ``release["models"]``.
      show_private: whether pictures of images may be written.

    Returns:
      ``{"q_intervals": …, "h_curve": …, "training": …}`` and, with ``show_private``, ``"samples_<model>"``,
      ``"nearest_<model>"``, ``"regenerated_<model>"`` and, where records were ranked, ``"listed_<model>"``.
    """
    drawn: dict[str, Drawn | None] = {
        "q_intervals": figures.q_intervals(release),
        "h_curve": figures.h_curves(release),
        "training": figures.training_curves(release, arrays),
    }
    if show_private:
        for stem, draw in IMAGE_FIGURES.items():
            drawn |= {f"{stem}_{name}": draw(name, arrays[name]) for name in release["models"]}
    return save_all(folder, drawn)


def save_all(folder: Path, drawn: Mapping[str, Drawn | None]) -> dict[str, Picture]:
    """Writes the figures to ``folder`` and removes those of an earlier run: none may stay that this one withholds."""
    _remove_stale(folder, ())
    return {name: save(one, folder / f"{name}.png") for name, one in drawn.items() if one is not None}
