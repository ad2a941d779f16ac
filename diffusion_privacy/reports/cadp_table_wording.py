"""Sentences of the report of a private table that speak of what it is good for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_privacy.reports.cadp_wording import (
    arm_named,
    common_limits,
    control_records,
    headline,
    promise_and_attack,
    with_interval,
)
from diffusion_privacy.reports.wording import count
from diffusion_privacy.rounding import promised


def number(entry: Mapping[str, Any]) -> str:
    """``0.431 (0.312 to 0.520)``, which no line end breaks."""
    return f"{entry['value']:.3f} ({entry['lower']:.3f} to {entry['upper']:.3f})".replace(" ", "\u00a0")


def scored(release: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """A score with its interval: right answers in percent, or R²."""
    return with_interval(score) if release["table"]["measure"] == "accuracy" else number(score)


def answer(release: Mapping[str, Any]) -> str:
    """One sentence or two with their uncertainty: promise, attack, usefulness."""
    mine, control, original = (
        scored(release, arm_named(release, name)["score"])
        for name in (f"released {headline(release)['latent_epsilon']:g}", "control", "original")
    )
    facts = release["table"]
    what = "is right on" if facts["measure"] == "accuracy" else "has R² ="
    use = (
        f"a model of {facts['target']} trained on them {what} {mine} of real test rows, {original} with the originals, "
        f"{control} with {control_records(release)}"
    )
    return f"{promise_and_attack(release)}; {use}."


def limits(release: Mapping[str, Any]) -> list[str]:
    """What no report of this kind says, with this run's numbers."""

    def alone(public: Mapping[str, Any]) -> str:
        verb = "is right on" if release["table"]["measure"] == "accuracy" else "has R² ="
        return (
            f"a model trained on those {count(public['n_train'])} alone {verb} {scored(release, public['score'])} "
            "of test rows"
        )

    sentences = common_limits(release, alone)
    response = release["config"]["release"]["label_epsilon"]
    apart = release["config"]["columns"]["apart"]
    if apart and response:
        sentences.append(
            f"{', '.join(apart)}: published after randomised response, ε = {promised(response)} in all, which is part "
            "of the ε above. The linkage attack reads the published value as it is; one that weighs how likely it was "
            "changed may find more."
        )
    sentences.append(
        "Each row is taken for another person. If people have several rows, the guarantee is for a row, not for a "
        "person."
    )
    sentences.append(
        "One model of one column says what these copies are good for there. It says nothing of rare combinations, "
        "which noise erases first."
    )
    return sentences
