"""Sentences of a CADP report: the answer, its three parts, and what it does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_privacy.reports.tables import escape
from diffusion_privacy.reports.wording import count, percent, significant

NAMES = {
    "original": "originals",
    "public": "public records",
    "released": "private copies",
    "control": "control: flow and class alone",
    "pixels": "DP-Pix images",
    "dp-sgd": "originals, by private training",
}


def epsilon(value: float) -> str:
    """ε to three digits, whole numbers in full."""
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def small(p_value: float) -> str:
    """A p-value, cut at a millionth."""
    return f"{p_value:.2g}" if p_value >= 1e-4 else ("below 10⁻⁶" if p_value < 1e-6 else f"{p_value:.0e}")


def share(value: float) -> str:
    """A share in percent to a tenth."""
    return f"{100 * value:.1f}\u00a0%"


def with_interval(entry: Mapping[str, Any]) -> str:
    """``93.1 % (92.4 to 93.8)``, which no line end breaks."""
    text = f"{share(entry['value'])} ({100 * entry['lower']:.1f} to {100 * entry['upper']:.1f})"
    return text.replace(" ", "\u00a0")


def headline(release: Mapping[str, Any]) -> Mapping[str, Any]:
    """The release that the answer speaks of: the one nearest to ε = 1."""
    return min(release["releases"], key=lambda r: abs(r["latent_epsilon"] - 1.0))


def _arm(release: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(arm for arm in release["arms"] if arm["name"] == name)


def _link(release: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(entry for entry in release["linkage"] if entry["name"] == name)


def linked(release: Mapping[str, Any]) -> list[str]:
    """Names of the released sets that the attack links more often than guessing, at the audit's level in all."""
    released = [e for e in release["linkage"] if e["kind"] == "released"]
    limit = (1 - released[0]["rank1"]["level"]) / (2 * len(released))
    return [e["name"] for e in released if min(e["rank1"]["p_value"], e["rank10"]["p_value"]) <= limit]


def sound(release: Mapping[str, Any]) -> bool:
    """Whether no measurement contradicts the claims."""
    faults = release["release_faults"]
    return all(b["holds"] for b in release["epsilon_bounds"]) and (faults is None or faults["passed"])


def power(delta: float) -> str:
    """δ as a power of ten where it is one: ``10⁻⁵``."""
    text = significant(delta, 1)
    return text.removeprefix("1×") if "×" in text else f"{delta:g}"


_RELATIONS = {
    "replace-record-same-public-condition": "replacing a record by any other of the same class, which is public",
    "replace-record-and-condition": "replacing a record and its class by any others",
}


def relation(manifest: Mapping[str, Any]) -> str:
    """The neighbouring relation in plain words."""
    name, _, people = manifest["relation"].partition(", ")
    return f"{_RELATIONS[name]}{f' (up to {people})' if people else ''}"


def unprotected(manifest: Mapping[str, Any]) -> bool:
    """Whether nothing is promised end to end."""
    return manifest["flow_training"] == "mechanism-only" or manifest["epsilon"] is None


def control_images(release: Mapping[str, Any]) -> str:
    """What the control is, without claiming more for it than its flow allows."""
    if release["config"]["flow"]["trained_on"] == "public":
        return "control images that hold nothing of the records"
    return "control images drawn by the same flow, which learnt from the records"


def answer(release: Mapping[str, Any]) -> str:
    """One sentence or two with their uncertainty: promise, attack, usefulness."""
    chosen = headline(release)
    name = f"released {chosen['latent_epsilon']:g}"
    manifest, link = chosen["manifest"], _link(release, name)["rank1"]
    promise = f"At ε = {epsilon(chosen['latent_epsilon'] if unprotected(manifest) else manifest['epsilon'])}"
    if unprotected(manifest):
        promise = f"These private copies carry no end-to-end guarantee. {promise} of the latent step"
    found = "no better than by guessing" if name not in linked(release) else "better than by guessing"
    attack = (
        f"an attacker picks the right original for {share(link['value'])} of the private images, {found} "
        f"({percent(link['level'])} interval {100 * link['lower']:.1f} to {100 * link['upper']:.1f}, guessing "
        f"{share(link['chance'])})"
    )
    mine, control = _arm(release, name)["accuracy"], _arm(release, "control")["accuracy"]
    original = _arm(release, "original")["accuracy"]
    use = (
        f"a classifier trained on them is right on {with_interval(mine)} of real test images: "
        f"{share(original['value'])} with the originals, {share(control['value'])} with {control_images(release)}"
    )
    return f"{promise} {attack}; {use}."


def _card(title: str, status: str, kind: str, text: str) -> str:
    return f'<div><b>{escape(title)}</b> <span class="status {kind}">{escape(status)}</span><p>{escape(text)}</p></div>'


def cards(release: Mapping[str, Any]) -> str:
    """Promise, attack and usefulness, one card each."""
    manifest = headline(release)["manifest"]
    bounds = release["epsilon_bounds"]
    close = next(b for b in bounds if b["claimed"] == headline(release)["latent_epsilon"])
    measured = f"Measured on the worst case: at least {close['lower']:.2f}, claimed {epsilon(close['claimed'])}."
    terms = f"δ = {power(manifest['delta'])}, for {relation(manifest)}. {measured}"
    if not sound(release):
        promise = _card(
            "Promise", "refuted", "leaks", measured + " Do not publish: a measurement contradicts the claim."
        )
    elif unprotected(manifest):
        promise = _card("Promise", "latent step only", "open", f"No end-to-end guarantee. Latent step: {terms}")
    else:
        promise = _card("Promise", "not contradicted", "clean", f"ε = {epsilon(manifest['epsilon'])}, {terms}")
    names = [name.replace("released ", "ε = ") for name in linked(release)]
    if names:
        attack = _card(
            "Linkage", "found", "leaks", f"Originals are found more often than by guessing at {', '.join(names)}."
        )
    else:
        attack = _card("Linkage", "at chance", "clean", "No released set was linked to its originals beyond guessing.")
    return f'<div class="verdicts">{promise}{attack}{_use_card(release)}</div>'


def control_limit(control: Mapping[str, Any], comparisons: int) -> float:
    """Accuracy that one more control set exceeds with probability (1 − level)/2 over all ``comparisons`` together.

    Upper end of the prediction interval of a new draw, from the accuracies of S independent controls (Student t).
    """
    from scipy import stats

    seeds = np.asarray(control["seeds"])
    error = (1 - control["level"]) / (2 * comparisons)
    spread = float(np.std(seeds, ddof=1)) * math.sqrt(1 + 1 / len(seeds))
    return control["value"] + float(stats.t.ppf(1 - error, len(seeds) - 1)) * spread


def _use_card(release: Mapping[str, Any]) -> str:
    control = _arm(release, "control")["accuracy"]
    released = [arm for arm in release["arms"] if arm["kind"] == "released"]
    limit = control_limit(control, len(released))
    better = [arm for arm in released if arm["accuracy"]["value"] > limit]
    if better:
        names = ", ".join(f"ε = {epsilon(arm['epsilon'])}" for arm in better if arm["epsilon"] is not None)
        return _card("Usefulness", "beyond the control", "clean", f"Better than any control to be expected at {names}.")
    text = (
        f"No set is better than {control_images(release)}: what is useful here comes from the flow and the classes, "
        "not from the private latents."
    )
    return _card("Usefulness", "as the control", "open", text)


def spent(ledger: Mapping[str, Any]) -> str:
    """What the ledger adds up to."""
    if not ledger["guarantee"]:
        return str(ledger["summary"])
    return f"all {ledger['stages']} together have ε = {epsilon(ledger['epsilon'])}, δ = {power(ledger['delta'])}"


def limits(release: Mapping[str, Any]) -> list[str]:
    """What no report of this kind says, with this run's numbers."""
    chosen = headline(release)["manifest"]
    flow, ledger = release["flow"], release["ledger"]
    public = next((arm["accuracy"] for arm in release["arms"] if arm["kind"] == "public"), None)
    promise = "latent step’s promise" if unprotected(chosen) else "guarantee"
    sentences = [
        f"The {promise} is for {relation(chosen)}. What it calls public is not protected: "
        f"{', '.join(chosen['public'])}.",
        f"Each set was made apart, and whoever holds several knows more: {spent(ledger)}. Give away one.",
        "The numbers and pictures of this report were computed from the originals without noise. They are outside the "
        "guarantee: keep the report with the data.",
        "What is promised follows from a proof; attacks can refute it and cannot confirm it. Others may find more.",
        "It protects a record, not what the records have in common. What is true of a whole class stays visible, as it "
        "should.",
    ]
    if not chosen["mechanism"].startswith("discrete"):
        sentences.append(
            f"The noise is computed as: {chosen['arithmetic']}. The proof is for real numbers; the discrete mechanisms "
            "close that gap."
        )
    if flow["membership"]["lower"] > 0.5:
        sentences.append(
            f"The flow gives away which {count(flow['members'])} records it learnt from: it fits them better than "
            f"others in {with_interval(flow['membership'])} of pairs. They were given up as public."
            if release["config"]["flow"]["trained_on"] == "public"
            else f"The flow learnt from the private records and shows it: membership "
            f"{with_interval(flow['membership'])}. Publishing the flow publishes that."
        )
    if public is not None:
        sentences.append(
            f"Who holds the public records may not need the private copies: a classifier trained on those "
            f"{count(next(a['n_train'] for a in release['arms'] if a['kind'] == 'public'))} alone is right on "
            f"{with_interval(public)} of test images."
        )
    sentences.append(
        "Accuracy says what these copies are good for in one task. It says nothing of rare findings, which noise "
        "erases first."
    )
    return sentences
