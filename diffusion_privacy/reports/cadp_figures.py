"""Figures of a CADP report: usefulness against ε, linkage against ε; pictures where allowed, distances of tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_privacy.reports.cadp_wording import words
from diffusion_privacy.reports.figures import DPI, SMALL, STYLES, WIDTH, Picture, dress, new_figure
from diffusion_privacy.reports.wording import percent
from diffusion_privacy.rounding import promised

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {
    "released": "private copies",
    "dp-sgd": "private training on originals",
    "pixels": "DP-Pix images",
}
LEVELS = {
    "original": ("originals", "-"),
    "control": ("control: the flow alone", "--"),
    "public": ("public records", ":"),
}


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(list(values), [f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in values])
    axes.xaxis.set_minor_locator(NullLocator())


def _curve(axes: Axes, x: Sequence[float], entries: Sequence[Mapping[str, Any]], **look: Any) -> None:
    value = np.array([e["value"] for e in entries])
    errors = np.maximum(0, [value - [e["lower"] for e in entries], np.array([e["upper"] for e in entries]) - value])
    axes.errorbar(x, value, yerr=errors, elinewidth=0.8, capsize=2, linewidth=1.4, markersize=4.5, **look)


def _against_epsilon(
    axes: Axes, release: Mapping[str, Any], measured: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
) -> list[str]:
    """A curve for each kind of set that has an ε, a level line for each that has none; what was drawn, in words."""
    found = []
    for style, (kind, label) in zip(STYLES, CURVES.items(), strict=False):
        arms = (a for a in release["arms"] if a["kind"] == kind and a["epsilon"] is not None)
        # One table may lack what another has: correlations, where a column of it is constant.
        points = [(a["epsilon"], entry) for a in arms if (entry := measured(a)) is not None]
        if points:
            entries = [entry for _, entry in points]
            _curve(axes, [at for at, _ in points], entries, label=label, **style)
            found.append(f"{label} {entries[0]['value']:.3f} to {entries[-1]['value']:.3f}")
    for kind, (label, line) in LEVELS.items():
        for entry in map(measured, (a for a in release["arms"] if a["kind"] == kind)):
            if entry is not None:
                axes.axhline(entry["value"], color="black", linewidth=1.0, linestyle=line, label=label)
                found.append(f"{label} {entry['value']:.3f}")
    _log_axis(axes, [r["manifest"]["epsilon"] or r["latent_epsilon"] for r in release["releases"]])
    return found


def utility(release: Mapping[str, Any]) -> tuple[Figure, str, str, str]:
    """Score of models against the ε at which their training set was made."""
    figure, (axes,) = new_figure(3.6)
    plain = words(release)
    key = "score" if plain.table else "accuracy"
    said = _against_epsilon(axes, release, lambda arm: arm[key])
    right = not plain.table or release["table"]["measure"] == "accuracy"
    if right:
        axes.set_ylim(0, 1.02)
    measure = "right answers" if right else "R²"
    dress(axes, "", "ε of the training set (smaller protects more)", f"{measure} on real test {plain.records}")
    axes.legend(fontsize=SMALL, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    first = release["arms"][0][key]
    over = "the choice of test rows" if plain.table else f"{len(first['seeds'])} trainings"
    given = "the published categories" if plain.table else "class"
    caption = (
        f"Bars: {percent(first['level'])} interval over {over}. The control was drawn from flow and {given} alone: "
        "what the private copies do beyond it comes from the records."
    )
    return figure, "How useful", f"{measure.capitalize()} against ε: " + "; ".join(said) + ".", caption


_DISTANCES = {"one_way": "single columns", "two_way": "pairs of columns", "correlation": "correlations"}


def _apart(key: str, arm: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return None if arm["distance"] is None else arm["distance"][key]


def distance(release: Mapping[str, Any]) -> tuple[Figure, str, str, str]:
    """Distance of each table from the private rows, against its ε."""
    figure, axes_of = new_figure(2.9, columns=len(_DISTANCES))
    said = []
    for axes, (key, title) in zip(axes_of, _DISTANCES.items(), strict=True):
        drawn = _against_epsilon(axes, release, functools.partial(_apart, key))
        said.append(f"{title}: {', '.join(drawn) or 'not defined'}")
        axes.set_ylim(bottom=0)
        dress(axes, title, "ε of the table", "distance (lower is closer)" if key == "one_way" else "")
        axes.tick_params(axis="x", labelrotation=45)
    figure.legend(
        *axes_of[0].get_legend_handles_labels(), fontsize=SMALL, loc="outside upper center", ncols=3, frameon=False
    )
    caption = (
        "Bars: interval by a jackknife over rows. Finite tables are at a distance even when nothing is lost; the "
        "public rows, another sample of the same population, show how far."
    )
    return figure, "How far from the private rows", "; ".join(said) + ".", caption


def linkage(release: Mapping[str, Any]) -> tuple[Figure, str, str, str]:
    """Share of originals found, against the ε of the latent step."""
    figure, (axes,) = new_figure(3.6)
    # By ε: what was noised for the attack alone may lie between releases.
    sets = sorted((e for e in release["linkage"] if e["epsilon"] is not None), key=lambda e: e["epsilon"])
    published = [e for e in sets if e["kind"] == "released"]
    said = []
    guess: str | None = "by guessing"
    for style, (rank, label) in zip(
        STYLES, (("rank1", "original found first"), ("rank10", "original among first 10")), strict=False
    ):
        _curve(axes, [e["epsilon"] for e in sets], [e[rank] for e in sets], label=label, **style)
        axes.axhline(sets[0][rank]["chance"], color=style["color"], linewidth=0.9, linestyle=":", label=guess)
        guess = None
        said.append(f"{label} {published[0][rank]['value']:.3f} at ε = {promised(published[0]['epsilon'])}")
    last = published[-1]["epsilon"]
    beyond = [e["epsilon"] for e in sets if e["epsilon"] > last]
    among = [promised(e["epsilon"]) for e in sets if e["kind"] != "released" and e["epsilon"] <= last]
    if beyond:
        edge = (last * beyond[0]) ** 0.5
        axes.axvspan(edge, beyond[-1] * 1.4, color="#eeeeee", zorder=0)
        axes.set_xlim(sets[0]["epsilon"] / 1.4, beyond[-1] * 1.4)
        axes.text(edge * 1.1, 0.98, "never published", fontsize=SMALL, va="top", color="#555555")
    _log_axis(axes, [e["epsilon"] for e in sets])
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_ylim(0, 1.02)
    dress(axes, "", "ε of the latent step (smaller protects more)", f"share of released {words(release).records}")
    axes.legend(fontsize=SMALL, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    caption = (
        f"Bars: {percent(sets[0]['rank1']['level'])} exact intervals. The grey part was noised less, for the attack "
        "only: it shows that the attack succeeds where the noise is small."
    )
    if among:
        caption += f" Nor was what stands at ε = {', '.join(among)} published."
    return (
        figure,
        f"Can a released {words(release).record} be linked to its original",
        "Linkage: " + "; ".join(said) + ".",
        caption,
    )


def pictures(release: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> tuple[Figure, str, str, str]:
    """Rows of images: originals, each release, the control; a column is one record."""
    rows = [("original", images["original"])]
    rows += [(f"ε = {r['latent_epsilon']:g}", images[f"released_{r['latent_epsilon']:g}"]) for r in release["releases"]]
    rows.append(("control", images["control"]))
    count = min(8, len(rows[0][1]))
    figure, axes_of = new_figure(WIDTH * len(rows) / (count + 2) * 1.05, len(rows))
    for axes, (name, row) in zip(axes_of, rows, strict=True):
        strip = np.concatenate([np.pad(x, ((0, 0), (0, 1), (0, 0)), constant_values=1.0) for x in row[:count]], axis=1)
        shown = (strip + 1) / 2
        axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name, fontsize=SMALL, rotation=0, ha="right", va="center")
    caption = (
        "A column is one private record: the original, then its private copies. The control below was drawn by the "
        "flow from the class alone and has nothing to do with the record above it."
    )
    alt = "Originals, their private copies at each ε, and control images of the same classes."
    return figure, "Originals, private copies, control", alt, caption


def write_figures(
    folder: Path, release: Mapping[str, Any], images: Mapping[str, np.ndarray] | None
) -> dict[str, Picture]:
    """Draws to ``folder`` what may be shown: pictures of records only with ``images``; older ones are removed."""
    drawn = {"utility": utility(release), "linkage": linkage(release)}
    if words(release).table:
        drawn["distance"] = distance(release)
    elif images is not None:
        drawn["pictures"] = pictures(release, images)
    for name in ("utility", "linkage", "pictures", "distance"):
        (folder / f"{name}.png").unlink(missing_ok=True)
    found = {}
    for name, (figure, title, alt, caption) in drawn.items():
        path = folder / f"{name}.png"
        # No software or date tag: equal numbers give equal files.
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        found[name] = Picture(path, title, alt, caption)
    return found
