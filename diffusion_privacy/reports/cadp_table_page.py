"""What the page of a private table says beside what every CADP page says: models trained on it, and its marginals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_privacy.reports.cadp_table_wording import number, scored
from diffusion_privacy.reports.cadp_wording import NAMES, epsilon, share
from diffusion_privacy.reports.figures import Picture
from diffusion_privacy.reports.page import figure
from diffusion_privacy.reports.tables import data_table
from diffusion_privacy.reports.tables import escape as _e
from diffusion_privacy.reports.wording import count, percent

METHODS = (
    ("Columns apart", "Categories named in the settings are taken out of the row and steer the network. They are "
     "published as they are, or each is kept with a stated probability and otherwise replaced by another "
     "(randomised response), whose ε is added. All other categories are one number a category within the row."),
    ("Control", "Rows drawn from the network for the published categories alone. If the network learnt from other rows "
     "only, they hold nothing of the private ones beyond those categories. A private copy is worth its noise only for "
     "what it does beyond the control."),
    ("Train on one, test on real", "Logistic or ridge regression is fitted to each table and predicts the target "
     "column of the same real test rows. R² is 1 less squared error over variance: 0 is what the mean does."),
    ("Private training", "The same kind of model by gradient descent on the private rows, each row’s gradient clipped "
     "and noise added, at the ε and δ that the release beside it spends in all. It gives a model and no data; the mean "
     "of several trainings."),
    ("Marginals", "Half the sum of absolute differences between two tables’ shares (total variation), of each column "
     "and of each pair of columns; numbers in equal cells of their public range. Two samples of one population differ "
     "too: compare with the public rows."),
)  # fmt: skip


def _who(arm: Mapping[str, Any]) -> str:
    name = NAMES[arm["kind"]] if arm["kind"] != "control" else "control: flow and published categories"
    return name if arm["epsilon"] is None else f"{name}, ε = {epsilon(arm['epsilon'])}"


def _scores(release: Mapping[str, Any]) -> str:
    facts, level = release["table"], release["arms"][0]["score"]["level"]
    draws = next(arm["score"]["seeds"] for arm in release["arms"] if arm["kind"] == "control")
    measure = "Right answers" if facts["measure"] == "accuracy" else "R²"
    columns = (("Trained on", ""), (measure, "on real test rows; higher is better"), ("Rows", ""))
    rows = [("", [_who(arm), scored(release, arm["score"]), count(arm["n_train"])]) for arm in release["arms"]]
    right = facts["measure"] == "accuracy"
    constant, *ends = (share(v) if right else f"{v:.3f}" for v in (facts["baseline"], min(draws), max(draws)))
    note = (
        f"Target: {facts['target']}. A constant scores {constant}. In brackets: {percent(level)} interval over the "
        f"choice of the {count(release['n_test'])} test rows; a released table is one draw of the noise, the control "
        f"is the mean of {len(draws)} draws, which lie between {ends[0]} and {ends[1]}."
    )
    return data_table(f"Models of {facts['target']}, by what they were trained on", columns, rows) + _note(note)


def _distances(release: Mapping[str, Any]) -> str:
    facts = release["table"]
    columns = (
        ("Table", ""), ("Single columns", "total variation"), ("Pairs of columns", "total variation"),
        ("Correlations", "mean absolute difference"),
    )  # fmt: skip
    rows = []
    for arm in release["arms"]:
        if arm["distance"] is not None:
            found = (arm["distance"][name] for name in ("one_way", "two_way", "correlation"))
            rows.append(("", [_who(arm), *("–" if one is None else number(one) for one in found)]))
    note = (
        f"Mean distance to the private rows, lower is closer; numbers in {facts['cells']} cells of their public range. "
        "In brackets: normal interval by a jackknife over rows. Finite tables are at a distance even when nothing is "
        "lost: that of the public rows shows how far. "
        f"{count(facts['outside_range'])} private rows had a number beyond its public range, which was moved to its "
        f"end; {count(facts['dropped'])} rows of the source were left out for missing values, as the settings ask."
    )
    return data_table("How far each table is from the private rows", columns, rows) + _note(note)


def _note(text: str) -> str:
    return f'<p class="small">{_e(text)}</p>'


def sections(release: Mapping[str, Any], drawn: Mapping[str, Picture]) -> dict[str, str]:
    """What is said of tables only."""
    return {
        "utility": figure(drawn["utility"]),
        "arms": _scores(release) + figure(drawn["distance"]) + _distances(release),
        "extra": "",
    }
