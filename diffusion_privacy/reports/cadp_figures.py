"""Figures of a CADP report: usefulness against ε, linkage against ε, and, where allowed, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_privacy.reports.figures import DPI, SMALL, STYLES, WIDTH, Picture, _dress, _new

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
    axes.set_xticks(list(values), [f"{v:g}" for v in values])
    axes.xaxis.set_minor_locator(NullLocator())


def _curve(axes: Axes, x: Sequence[float], entries: Sequence[Mapping[str, Any]], **look: Any) -> None:
    value = np.array([e["value"] for e in entries])
    errors = np.maximum(0, [value - [e["lower"] for e in entries], np.array([e["upper"] for e in entries]) - value])
    axes.errorbar(x, value, yerr=errors, elinewidth=0.8, capsize=2, linewidth=1.4, markersize=4.5, **look)


def utility(release: Mapping[str, Any]) -> tuple[Figure, str, str, str]:
    """Accuracy of classifiers against the ε at which their training set was made."""
    figure, (axes,) = _new(3.6)
    words = []
    for style, (kind, label) in zip(STYLES, CURVES.items(), strict=False):
        arms = [a for a in release["arms"] if a["kind"] == kind and a["epsilon"] is not None]
        if arms:
            _curve(axes, [a["epsilon"] for a in arms], [a["accuracy"] for a in arms], label=label, **style)
            words.append(f"{label} {arms[0]['accuracy']['value']:.3f} to {arms[-1]['accuracy']['value']:.3f}")
    for kind, (label, line) in LEVELS.items():
        for arm in (a for a in release["arms"] if a["kind"] == kind):
            axes.axhline(arm["accuracy"]["value"], color="black", linewidth=1.0, linestyle=line, label=label)
            words.append(f"{label} {arm['accuracy']['value']:.3f}")
    _log_axis(axes, [r["manifest"]["epsilon"] or r["latent_epsilon"] for r in release["releases"]])
    axes.set_ylim(0, 1.02)
    _dress(axes, "", "ε of the training set (smaller protects more)", "right answers on real test images")
    axes.legend(fontsize=SMALL, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    seeds, level = len(release["arms"][0]["accuracy"]["seeds"]), release["arms"][0]["accuracy"]["level"]
    caption = (
        f"Bars: {level:.0%} interval over {seeds} trainings. The control was drawn from flow and class alone: "
        "what the private copies do beyond it comes from the records."
    )
    return figure, "How useful", "Accuracy against ε: " + "; ".join(words) + ".", caption


def linkage(release: Mapping[str, Any]) -> tuple[Figure, str, str, str]:
    """Share of originals found, against the ε of the latent step."""
    figure, (axes,) = _new(3.6)
    sets = [e for e in release["linkage"] if e["epsilon"] is not None]
    words = []
    guess: str | None = "by guessing"
    for style, (rank, label) in zip(
        STYLES, (("rank1", "original found first"), ("rank10", "original among first 10")), strict=False
    ):
        _curve(axes, [e["epsilon"] for e in sets], [e[rank] for e in sets], label=label, **style)
        axes.axhline(sets[0][rank]["chance"], color=style["color"], linewidth=0.9, linestyle=":", label=guess)
        guess = None
        words.append(f"{label} {sets[0][rank]['value']:.3f} at ε = {sets[0]['epsilon']:g}")
    published = [e["epsilon"] for e in sets if e["kind"] == "released"]
    if len(published) < len(sets):
        edge = published[-1] * 1.4
        axes.axvspan(edge, sets[-1]["epsilon"] * 1.4, color="#eeeeee", zorder=0)
        axes.set_xlim(published[0] / 1.4, sets[-1]["epsilon"] * 1.4)
        axes.text(edge * 1.1, 0.98, "never published", fontsize=SMALL, va="top", color="#555555")
    _log_axis(axes, [e["epsilon"] for e in sets])
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_ylim(0, 1.02)
    _dress(axes, "", "ε of the latent step (smaller protects more)", "share of released images")
    axes.legend(fontsize=SMALL, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    caption = (
        f"Bars: {sets[0]['rank1']['level']:.0%} exact intervals. The grey part was noised less, for the attack only: "
        "it shows that the attack succeeds where the noise is small."
    )
    return figure, "Can a released image be linked to its original", "Linkage: " + "; ".join(words) + ".", caption


def pictures(release: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> tuple[Figure, str, str, str]:
    """Rows of images: originals, each release, the control; a column is one record."""
    rows = [("original", images["original"])]
    rows += [(f"ε = {r['latent_epsilon']:g}", images[f"released_{r['latent_epsilon']:g}"]) for r in release["releases"]]
    rows.append(("control", images["control"]))
    count = min(8, len(rows[0][1]))
    figure, axes_of = _new(WIDTH * len(rows) / (count + 2) * 1.05, len(rows))
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
    if images is not None:
        drawn["pictures"] = pictures(release, images)
    for name in ("utility", "linkage", "pictures"):
        (folder / f"{name}.png").unlink(missing_ok=True)
    found = {}
    for name, (figure, title, alt, caption) in drawn.items():
        path = folder / f"{name}.png"
        # No software or date tag: equal numbers give equal files.
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        found[name] = Picture(path, title, alt, caption)
    return found
