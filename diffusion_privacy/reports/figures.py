"""The report's figures as PNG files.

Made with matplotlib's Figure objects on the Agg canvas: no pyplot, no global state, no display. Everything can be told
apart without colour (marker, line style, label). Sizes suit a phone's width; lettering stays readable at 390 px.

Pictures of images (samples included: a model that leaks draws its training records) are made only with
``show_private``; pictures left by an earlier run are removed otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_privacy.reports.arrays import ModelArrays, Regenerated
from diffusion_privacy.reports.wording import record_name, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
WIDTH = 4.6  # inches; about 440 px on a desktop page, shrunk by a fifth on a phone
SMALL, TEXT = 8, 9  # points
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0b3c5d", "marker": "o", "linestyle": "-"},
    {"color": "#b5480f", "marker": "s", "linestyle": "--"},
    {"color": "#3b7a57", "marker": "^", "linestyle": "-."},
    {"color": "#6a3d7c", "marker": "D", "linestyle": ":"},
)
"""One for each model, in order."""
GREY: dict[str, Any] = {"color": "#8a8a8a", "marker": "x", "linestyle": ":"}
MAX_PICTURES, MAX_LEVELS, MAX_DRAWS = 16, 8, 6
ROW = 1.26  # height of a row of returned images: the image and room for its mark


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure on disk: PNG path, heading, text for those who cannot see it, caption."""

    path: Path
    title: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure not yet on disk, with the same words."""

    figure: Figure
    title: str
    alt: str
    caption: str


def new_figure(height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """An empty white figure, ``height`` inches high, and its panels; ``grid`` goes to `Figure.subplots`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(rows, columns, **grid)))


def dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title, labels with units, a light grid: the look of every panel with axes."""
    axes.set_title(title, fontsize=TEXT, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=TEXT)
    axes.set_ylabel(ylabel, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# --- curves -----------------------------------------------------------------------------------------------------------


def _draw_h_curve(axes: Axes, record: Mapping[str, Any], style: Mapping[str, Any], label: str | None) -> None:
    curve = record["h_curve"]
    value = np.asarray(curve["value"])
    errors = np.maximum(0, [value - curve["lower"], np.asarray(curve["upper"]) - value])
    private = record["role"] == "private"
    size: dict[str, Any] = {"linewidth": 1.6, "markersize": 4.5} if private else {"linewidth": 0.9, "markersize": 3.0}
    axes.errorbar(curve["t"], value, yerr=errors, elinewidth=0.8, capsize=2, label=label, **size, **style)


_MARKS = (("paper", "t′ paper", ":"), ("statistical", "t′ statistical", "-"))


def _mark_t_prime(axes: Axes, record: Mapping[str, Any], prominent: bool) -> list[str]:
    """Vertical lines at both t' of a record, where ``prominent`` full height and in the legend; their words."""
    words = []
    for name, title, line in _MARKS:
        entry = record["t_prime"][name]
        if entry["value"] is None:
            words.append(f"{title} none")
            continue
        sign = {"above": "≥ ", "below": "≤ "}.get(entry.get("censored") or "", "")
        words.append(f"{title} {sign}{entry['value']:.2f}")
        look: dict[str, Any] = (
            {"color": "black", "ymax": 1.0, "label": words[-1]} if prominent else {"color": "#8a8a8a", "ymax": 0.12}
        )
        axes.axvline(entry["value"], linestyle=line, linewidth=1.1, **look)
    return words


def _h_panel(axes: Axes, name: str, model: Mapping[str, Any], style: Mapping[str, Any]) -> str:
    """One model's curves; returns the words for those who cannot see them."""
    alt, named = [], set()
    alone = sum(record["role"] == "private" for record in model["records"]) == 1
    titles = {"control": "held-out controls", "private": "private record" if alone else "private records"}
    # Controls first, so that the private record lies on top.
    for record in sorted(model["records"], key=lambda r: r["role"]):
        role, curve = record["role"], record["h_curve"]
        label = None if role in named else titles[role]
        named.add(role)
        _draw_h_curve(axes, record, style if role == "private" else GREY, label)
        marks = _mark_t_prime(axes, record, prominent=alone and role == "private")
        if role == "private" and curve["t"]:
            start, end = (f"{curve['value'][i]:.2f} at t = {curve['t'][i]:.2f}" for i in (0, -1))
            alt.append(f"{name}: h of {record_name(record)} goes from {start} to {end}; {', '.join(marks)}.")
    dress(axes, "", "", "h(t), probability")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.05), yticks=(0, 0.25, 0.5, 0.75, 1), xticks=np.linspace(0, 1, 6))
    axes.set_title(name, fontsize=TEXT, loc="left", fontweight="bold", y=1.18)
    box: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "ncols": 2, "handlelength": 3}
    axes.legend(fontsize=SMALL, frameon=False, **box)
    return " ".join(alt)


def h_curves(release: Mapping[str, Any]) -> Drawn:
    """h(t) of every record, one panel a model, with intervals and t'."""
    models = release["models"]
    figure, panels = new_figure(0.4 + 2.8 * len(models), len(models), sharex=True)
    looks = zip(panels, models.items(), STYLES * len(models), strict=False)
    alt = " ".join(_h_panel(axes, name, model, style) for axes, (name, model), style in looks)
    panels[-1].set_xlabel("noise level t (0 data, 1 pure noise)", fontsize=TEXT)
    level = 100 * next(iter(models.values()))["records"][0]["h_curve"]["level"]
    caption = (
        "h(t): how often the record comes back when it is drowned in noise up to level t and denoised by the model. "
        f"Bars: {level:g} % interval at each t by itself. Higher, and further to the right, is worse. Vertical "
        "lines: t′, the largest noise level from which the record comes back (short and grey: of a control). Crosses "
        "on dotted lines: held-out records that the model has never seen; they may come back from little noise, which "
        "hides little, and should not from much."
    )
    return Drawn(figure, "How far the record comes back from noise", alt, caption)


def _rows(model: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    rows = []
    for record in model["records"]:
        for kind in ("direct", "subspace"):
            if record[kind] is not None:
                rows.append((record_name(record).replace(" record", ""), kind, record[kind]))
    return rows


def _floor(release: Mapping[str, Any]) -> float:
    """Left end of the log axis: below the smallest estimate or upper limit shown, but at most 7 decades below 1/n."""
    models = release["models"].values()
    shown = [entry[k] for m in models for _, _, entry in _rows(m) for k in ("value", "upper") if entry[k] > 0]
    smallest = min(model["memoriser_rate"] for model in models)
    return max(min([*shown, smallest]), smallest * 1e-6) / 10


def _draw_interval(axes: Axes, y: float, entry: Mapping[str, Any], kind: str, floor: float, color: str) -> None:
    lower, upper = max(entry["lower"], floor), max(entry["upper"], floor)
    line = "-" if entry["reliable"] else (0, (1, 1.5))
    axes.plot([lower, upper], [y, y], color=color, linewidth=1.8, linestyle=line)
    axes.plot([upper], [y], marker="|", markersize=9, color=color)
    axes.plot(
        [lower], [y], marker="<" if entry["lower"] <= floor else "|", markersize=5 if lower <= floor else 9, color=color
    )
    value = min(entry["value"], 1.0)
    if value > floor:
        face = color if entry["reliable"] else "white"
        axes.plot(
            [value], [y], marker="o" if kind == "direct" else "D", markersize=5.5, color=color, markerfacecolor=face
        )


def q_intervals(release: Mapping[str, Any]) -> Drawn:
    """Interval of q by each estimator, for each record, one panel a model, on a log axis with the 1/n line."""
    models = release["models"]
    heights = [0.7 + 0.24 * len(_rows(model)) for model in models.values()]
    figure, panels = new_figure(0.5 + sum(heights), len(models), sharex=True, height_ratios=heights)
    floor, alt = _floor(release), []
    for axes, (name, model), style in zip(panels, models.items(), STYLES * len(models), strict=False):
        rows = _rows(model)
        for y, (who, kind, entry) in enumerate(rows):
            _draw_interval(axes, y, entry, kind, floor, style["color"] if "private" in who else "#555555")
            alt.append(
                f"{name}, {who}, {kind}: {significant(entry['lower'], 2, 'down')} to "
                f"{significant(entry['upper'], 2, 'up')}."
            )
        axes.axvline(model["memoriser_rate"], color="black", linestyle="--", linewidth=1.2)
        dress(axes, f"{name}  (dashed line: 1/n, n = {model['n_train']:,})", "", "")
        axes.set_yticks(range(len(rows)), [f"{who}, {kind}" for who, kind, _ in rows])
        axes.set(xscale="log", xlim=(floor, 1.5), ylim=(len(rows) - 0.4, -0.6))
    panels[-1].set_xlabel("q, probability per drawn image (log scale)", fontsize=TEXT)
    level = 100 * next(iter(models.values()))["records"][0]["direct"]["level"]
    caption = (
        f"q: how often one drawn image shows the record, {level:g} % intervals. Further right is worse. Circle: direct "
        "samples; diamond: score-subspace integration; hollow and dotted: not reliable by its own diagnostics; arrow: "
        "the interval goes down to the left edge or below it, zero included. Dashed line: the rate of a model "
        "that has memorised all its n records alike."
    )
    return Drawn(figure, "How often the record is drawn", " ".join(alt), caption)


def training_curves(release: Mapping[str, Any], arrays: Mapping[str, ModelArrays]) -> Drawn:
    """Training loss against step, all models in one panel."""
    figure, (axes,) = new_figure(2.8)
    summary = next(iter(release["models"].values()))["training_curve"]
    alt = []
    for (name, model), style in zip(release["models"].items(), STYLES * len(arrays), strict=False):
        steps, loss = arrays[name].steps, arrays[name].loss
        thin = max(1, len(steps) // 12)
        axes.plot(steps, loss, label=name, linewidth=1.2, markersize=4.5, markevery=thin, **style)
        curve = model["training_curve"]
        ends = [("not logged" if curve[k] is None else significant(curve[k], 3)) for k in ("first", "last")]
        alt.append(f"{name}: from {ends[0]} to {ends[1]} over {model['steps']:,} steps.")
    # A dollar sign would start matplotlib's formula mode.
    label = f"{summary['metric']} ({summary['unit']})".replace("$", r"\$")
    dress(axes, "", "training step", label)
    if all(np.all(arrays[name].loss > 0) for name in release["models"]):
        axes.set_yscale("log")
        axes.tick_params(axis="y", which="both", labelsize=SMALL)
    axes.legend(fontsize=SMALL, frameon=False, handlelength=3)
    caption = "Lower is a closer fit to the training records, which is not the same as a safer model."
    return Drawn(figure, "Training loss", " ".join(alt), caption)


# --- pictures ---------------------------------------------------------------------------------------------------------


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


def samples(name: str, arrays: ModelArrays) -> Drawn:
    """Unconditional samples of one model."""
    images = arrays.samples[:MAX_PICTURES]
    columns, rows = 8, -(-len(images) // 8)
    figure, axes = board(rows, columns)
    for i, image in enumerate(images):
        tile(axes, image, *divmod(i, columns))
    fit(axes, rows, columns)
    caption = f"The first {len(images)} of the images that the model {name} drew; none was picked by hand."
    return Drawn(figure, f"Samples of {name}", f"{len(images)} images drawn by the model {name}.", caption)


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


IMAGE_FIGURES: dict[str, Callable[[str, ModelArrays], Drawn]] = {
    "samples": samples,
    "nearest": nearest,
    "regenerated": regenerated,
}
"""Drawn once for each model, and only where private images may be shown."""

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
      ``"nearest_<model>"`` and ``"regenerated_<model>"``.
    """
    _remove_stale(folder, ())
    drawn = {
        "q_intervals": q_intervals(release),
        "h_curve": h_curves(release),
        "training": training_curves(release, arrays),
    }
    if show_private:
        for stem, draw in IMAGE_FIGURES.items():
            drawn |= {f"{stem}_{name}": draw(name, arrays[name]) for name in release["models"]}
    return {name: save(one, folder / f"{name}.png") for name, one in drawn.items()}
