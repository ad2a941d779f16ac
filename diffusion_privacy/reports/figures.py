"""The report's figures as PNG files.

Made with matplotlib's Figure objects on the Agg canvas: no pyplot, no global state, no display. Everything can be told
apart without colour (marker, line style, label). Sizes suit a phone's width; lettering stays readable at 390 px.

Here are the curves, which show no image; `pictures` has the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_privacy.reports.arrays import ModelArrays
from diffusion_privacy.reports.wording import fixed, record_name, significant

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
        # The statistical one is a lower limit.
        shown = f"≥ {fixed(entry['value'], 2, 'down')}" if name == "statistical" else f"{entry['value']:.2f}"
        words.append(f"{title} {shown}")
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
        "lines: t′, the largest noise level shown to give the record back (short and grey: of a control). Crosses "
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
