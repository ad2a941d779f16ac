"""The curve of a sweep: q with its interval and t' against the number of training records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_privacy.reports.figures import DPI, GREY, SMALL, STYLES, new_figure
from diffusion_privacy.reports.wording import percent


def write(path: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """Draws the points of sweep.json into a PNG: one line for each value of the varied field, or all over its values.

    Over its values where there is one n only. Limits of 0 are drawn down to the axis: nothing was shown from below.
    """
    figure, (above, below) = new_figure(5.2, rows=2, sharex=True)
    varied = len({p["n"] for p in points}) == 1 and len(points) > 1
    axis = "value" if varied else "n"
    values = [None] if varied else list(dict.fromkeys(point["value"] for point in points))
    floor = min([p["q"]["upper"] for p in points] + [1 / p["n"] for p in points]) / 10
    for i, value in enumerate(values):
        line = [p for p in points if varied or p["value"] == value]
        style = STYLES[i % len(STYLES)]
        label = f"n = {line[0]['n']}" if varied else "model" if value is None else f"{line[0]['field']} {value}"
        # Side by side, so that intervals at one n do not hide each other.
        places = [p[axis] * 1.05 ** (i - (len(values) - 1) / 2) for p in line]
        for place, p in zip(places, line, strict=True):
            above.plot([place] * 2, [max(p["q"]["lower"], floor), p["q"]["upper"]], color=style["color"], linewidth=2)
        known = [(x, p["q"]["estimate"]) for x, p in zip(places, line, strict=True) if p["q"]["estimate"]]
        above.plot([x for x, _ in known], [q for _, q in known], **{**style, "linestyle": ""}, label=label)
        ours = [(p[axis], p["t_prime"]["value"]) for p in line if p["t_prime"]["value"] is not None]
        below.plot([n for n, _ in ours], [t for _, t in ours], **style, label=label)
    yardstick = sorted({(p[axis], 1 / p["n"]) for p in points})
    above.plot([x for x, _ in yardstick], [q for _, q in yardstick], **{**GREY, "marker": ""}, label="memoriser, 1/n")
    # All points of a sweep are computed at one level, t' from one side at it.
    sure = percent(points[0]["q"]["level"])
    above.set(xscale="log", yscale="log", ylabel=f"q per image, bars {sure}\n(higher = leaks more)")
    above.set_ylim(bottom=floor)
    below.set(
        xscale="log",
        xlabel=points[0]["field"] if varied else "training records n",
        ylabel=f"t′, lower limit, {sure}\n(higher = more memorised)",
        ylim=(-0.02, 1.02),
    )
    for axes in (above, below):
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=SMALL)
    figure.savefig(path, dpi=DPI)
