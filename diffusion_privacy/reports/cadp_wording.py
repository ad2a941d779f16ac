"""Sentences of a CADP report: the answer, its three parts, and what it does not say.

Those about promise and attacks serve images and tables; what a table is good for is said in `cadp_table_wording`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_privacy.anonymity.intervals import outwards
from diffusion_privacy.reports.cadp_schema import TABLE_VERSION, attacked
from diffusion_privacy.reports.tables import escape
from diffusion_privacy.reports.wording import Direction, count, fixed, percent, significant

_PLURAL = {"class": "classes", "attributes": "attributes"}
NAMES = {
    "original": "originals",
    "public": "public records",
    "released": "private copies",
    "control": "control: flow and class alone",
    "pixels": "DP-Pix images",
    "dp-sgd": "originals, by private training",
}


def epsilon(value: float) -> str:
    """ε to three digits, rounded up: no promise is printed stronger than it is. Whole numbers in full."""
    text = f"{value:.0f}" if value == round(value) else significant(value, 3, "up")
    return text if "×" in text else f"{float(text.replace(',', '')):g}"


def delta(value: float) -> str:
    """δ to two digits, rounded up: ``10⁻⁵``."""
    text = significant(value, 2, "up").replace(".0×", "×")
    return text.removeprefix("1×") if "×" in text else f"{float(text):g}"


def small(p_value: float) -> str:
    """A p-value, rounded up, cut at a millionth."""
    return "below 10⁻⁶" if p_value < 1e-6 else outwards(p_value, "up", 2 if p_value >= 1e-4 else 1)


def share(value: float) -> str:
    """A share in percent to a tenth, small ones to two digits."""
    return f"{_percent(value, value)}\u00a0%"


def _percent(value: float, largest: float, direction: Direction = "nearest") -> str:
    """100·value with the digits that a number up to ``largest`` deserves."""
    return fixed(value, 1 if largest >= 0.01 or largest == 0 else 3, direction, scale=100)


def _limits(entry: Mapping[str, Any]) -> str:
    """``92.4 to 93.8``, in percent; never narrower than measured."""
    return f"{_percent(entry['lower'], entry['upper'], 'down')} to {_percent(entry['upper'], entry['upper'], 'up')}"


def with_interval(entry: Mapping[str, Any]) -> str:
    """``93.1 % (92.4 to 93.8)``, which no line end breaks."""
    text = f"{_percent(entry['value'], entry['upper'])} % ({_limits(entry)})"
    return text.replace(" ", "\u00a0")


@dataclasses.dataclass(frozen=True)
class Words:
    """What a study calls its records, and what conditions its flow.

    Attributes:
      record, records: ``image`` or ``row``.
      condition: the class, or the columns apart.
      any_other: the relation in which the condition may differ too.
      table: whether the records are rows.
    """

    record: str
    records: str
    condition: str
    any_other: str
    table: bool = False


def words(release: Mapping[str, Any]) -> Words:
    """The words for this study."""
    if release["schema_version"] != TABLE_VERSION:
        # Left out of a config where it is the class (`settings.to_dict`).
        condition = "class" if release["config"]["flow"].get("condition", "label") == "label" else "attributes"
        return Words("image", "images", condition, f"replacing a record and its {condition} by any others")
    apart = ", ".join(release["config"]["columns"]["apart"])
    return Words("row", "rows", apart or "row", "replacing a row by any other", table=True)


def headline(release: Mapping[str, Any]) -> Mapping[str, Any]:
    """The release that the answer speaks of: the one nearest to ε = 1."""
    return min(release["releases"], key=lambda r: abs(r["latent_epsilon"] - 1.0))


def arm_named(release: Mapping[str, Any], name: str) -> Mapping[str, Any]:
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


def relation(release: Mapping[str, Any], promise: Mapping[str, Any]) -> str:
    """The neighbouring relation of a manifest or of the ledger's total, in plain words."""
    name, _, people = promise["relation"].partition(", ")
    plain, said = words(release), "replace-record-and-condition"
    same = (
        f"replacing a {'row' if plain.table else 'record'} by any other of the same {plain.condition}, which "
        f"{'are' if plain.condition == 'attributes' else 'is'} public"
    )
    return f"{plain.any_other if name == said else same}{f' (up to {people})' if people else ''}"


def unprotected(manifest: Mapping[str, Any]) -> bool:
    """Whether nothing is promised end to end."""
    return manifest["flow_training"] == "mechanism-only" or manifest["epsilon"] is None


def control_records(release: Mapping[str, Any]) -> str:
    """What the control is, without claiming more for it than its flow and its conditions allow."""
    plain = words(release)
    if release["config"]["flow"]["trained_on"] != "public":
        return f"control {plain.records} drawn by the same flow, which learnt from the records"
    known = release["config"]["columns"]["apart"] if plain.table else ()
    but = f" but the published {plain.condition}" if known else ""
    return f"control {plain.records} that hold nothing of the records{but}"


def promise_and_attack(release: Mapping[str, Any]) -> str:
    """Half a sentence with its uncertainty, for the release nearest to ε = 1."""
    chosen = headline(release)
    name = f"released {chosen['latent_epsilon']:g}"
    manifest, link = chosen["manifest"], _link(release, name)["rank1"]
    promise = f"At ε = {epsilon(chosen['latent_epsilon'] if unprotected(manifest) else manifest['epsilon'])}"
    if unprotected(manifest):
        promise = f"These private copies carry no end-to-end guarantee. {promise} of the latent step"
    found = "better than by guessing" if name in linked(release) else "which is not shown to be better than guessing"
    return (
        f"{promise} an attacker picks the right original for {_percent(link['value'], link['upper'])}\u00a0% of the "
        f"private {words(release).records}, {found} "
        f"({percent(link['level'])} interval {_limits(link)}, guessing "
        f"{share(link['chance'])})"
    )


def answer(release: Mapping[str, Any]) -> str:
    """One sentence or two with their uncertainty: promise, attack, usefulness."""
    name = f"released {headline(release)['latent_epsilon']:g}"
    mine, control = arm_named(release, name)["accuracy"], arm_named(release, "control")["accuracy"]
    original = arm_named(release, "original")["accuracy"]
    use = (
        f"a classifier trained on them is right on {with_interval(mine)} of real test images: "
        f"{share(original['value'])} with the originals, {share(control['value'])} with {control_records(release)}"
    )
    return f"{promise_and_attack(release)}; {use}."


def card(title: str, status: str, kind: str, text: str) -> str:
    return f'<div><b>{escape(title)}</b> <span class="status {kind}">{escape(status)}</span><p>{escape(text)}</p></div>'


def stand_in(manifest: Mapping[str, Any]) -> str | None:
    """The continuous law that was attacked in place of a mechanism of exact integers; None: itself was attacked."""
    law = attacked(manifest["mechanism"])
    return None if law == manifest["mechanism"] else law.capitalize()


def shown(value: float) -> str:
    """A measured ε to three digits: rounded down, never below 0."""
    return significant(max(value, 0.0), 3, "down")


def showable(value: float) -> str:
    """The most that so many trials can show, to three digits: rounded up, since no more than that could be shown."""
    return significant(max(value, 0.0), 3, "up")


def measurement(bound: Mapping[str, Any], law: str | None) -> str:
    """What the attack on the worst-case pair says of one claim, and what it could not have said."""
    drawn = "" if law is None else f", with continuous {law} noise in place of the integers released"
    text = (
        f"Latent step, measured on the worst case{drawn}: at least {shown(bound['lower'])}, claimed "
        f"{epsilon(bound['claimed'])}."
    )
    if bound["decisive"]:
        return text
    return (
        f"{text} This confirms nothing: {count(bound['trials'])} trials could not have shown more than ε = "
        f"{showable(bound['ceiling'])}, and could not have contradicted the claim."
    )


def cards(release: Mapping[str, Any]) -> str:
    """Promise, attack and usefulness, one card each."""
    manifest = headline(release)["manifest"]
    bounds = release["epsilon_bounds"]
    close = next(b for b in bounds if b["claimed"] == headline(release)["latent_epsilon"])
    measured = measurement(close, stand_in(manifest))
    terms = f"δ = {delta(manifest['delta'])}, for {relation(release, manifest)}. {measured}"
    if not sound(release):
        promise = card(
            "Promise", "refuted", "leaks", measured + " Do not publish: a measurement contradicts the claim."
        )
    elif unprotected(manifest):
        promise = card("Promise", "latent step only", "open", f"No end-to-end guarantee. Latent step: {terms}")
    else:
        # An attack that could not have contradicted the promise does not speak for it.
        said, kind = ("not contradicted", "clean") if close["decisive"] else ("not tested", "open")
        promise = card("Promise", said, kind, f"ε = {epsilon(manifest['epsilon'])}, {terms}")
    names = [name.replace("released ", "ε = ") for name in linked(release)]
    if names:
        attack = card(
            "Linkage", "found", "leaks", f"Originals are found more often than by guessing at {', '.join(names)}."
        )
    else:
        attack = card(
            "Linkage",
            "no link shown",
            "clean",
            "No released set was shown to be linked to its originals beyond guessing.",
        )
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
    """Whether any release is worth more than the control, by the score of its models."""
    key = "score" if words(release).table else "accuracy"
    control = arm_named(release, "control")[key]
    released = [arm for arm in release["arms"] if arm["kind"] == "released"]
    limit = control_limit(control, len(released))
    better = [arm for arm in released if arm[key]["value"] > limit]
    if better:
        names = ", ".join(f"ε = {epsilon(arm['epsilon'])}" for arm in better if arm["epsilon"] is not None)
        return card("Usefulness", "beyond the control", "clean", f"Better than any control to be expected at {names}.")
    source = "the flow" if words(release).table else f"the flow and the {_PLURAL[words(release).condition]}"
    text = (
        f"No set is better, beyond chance, than {control_records(release)}: what is useful here comes from {source}, "
        "not from the private latents."
    )
    return card("Usefulness", "as the control", "open", text)


def spent(release: Mapping[str, Any]) -> str:
    """What the ledger adds up to, and for which neighbours: other stages may hold more fixed than these releases."""
    ledger = release["ledger"]
    if not ledger["guarantee"]:
        return str(ledger["summary"])
    return (
        f"all {ledger['stages']} together have ε = {epsilon(ledger['epsilon'])}, δ = {delta(ledger['delta'])} for "
        f"{relation(release, ledger)}{_on_trust(ledger)}"
    )


def _on_trust(ledger: Mapping[str, Any]) -> str:
    """What the total takes for granted where a release has no number by which its entry could be known."""
    names = ledger.get("taken_on_trust", ())
    if not names:
        return ""
    return (
        f", if the entries of {', '.join(names)}, which an earlier version made, are theirs and not those of another "
        "study with this ledger"
    )


def limits(release: Mapping[str, Any]) -> list[str]:
    """What no report of this kind says, with this run's numbers."""
    return [
        *common_limits(release, public_alone),
        "Accuracy says what these copies are good for in one task. It says nothing of rare findings, which noise "
        "erases first.",
    ]


def public_alone(public: Mapping[str, Any]) -> str:
    """What a classifier of the public images does without any private one."""
    return (
        f"a classifier trained on those {count(public['n_train'])} alone is right on "
        f"{with_interval(public['accuracy'])} of test images"
    )


def common_limits(release: Mapping[str, Any], alone: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """What no private data set promises; ``alone`` says what the public arm does without private records."""
    chosen = headline(release)["manifest"]
    flow = release["flow"]
    public = next((arm for arm in release["arms"] if arm["kind"] == "public"), None)
    promise = "latent step’s promise" if unprotected(chosen) else "guarantee"
    sentences = [
        f"The {promise} is for {relation(release, chosen)}. What it calls public is not protected: "
        f"{', '.join(chosen['public'])}.",
        f"Each set was made by itself, and whoever holds several of them knows more: {spent(release)}. Give away only "
        "one.",
        "The numbers and pictures of this report were computed from the originals without noise. They are outside the "
        "guarantee: keep the report with the data.",
        "What is promised follows from a proof; attacks can refute it and cannot confirm it. Others may find more.",
        "It protects a record, not what the records have in common. What is true of all of them stays visible, as it "
        "should.",
    ]
    if not chosen["mechanism"].startswith("discrete"):
        sentences.append(
            f"The noise is computed as: {chosen['arithmetic']}. The proof is for real numbers; the discrete mechanisms "
            "close that gap."
        )
    law = stand_in(chosen)
    if law is not None:
        sentences.append(
            f"The measured ε is that of continuous {law} noise of the same scale, not of the integers that were "
            "released: faults of the integer sampler, or of rounding to its grid, would not show in it."
        )
    if flow["membership"]["lower"] > 0.5:
        sentences.append(
            f"The flow gives away which {count(flow['members'])} records it learnt from: it fits them better than "
            f"others in {with_interval(flow['membership'])} of pairs. They were given up as public."
            if release["config"]["flow"]["trained_on"] == "public"
            else f"The flow learnt from the private records and shows it: membership "
            f"{with_interval(flow['membership'])}. Publishing the flow publishes that."
        )
    elif (without := flow.get("membership_without_same")) is not None and without["lower"] > 0.5:
        sentences.append(
            f"The flow may give away which records it learnt from: without the {count(flow['same'])} test rows that it "
            f"cannot tell from these, it fits these better than others in {with_interval(without)} of pairs."
        )
    if public is not None:
        sentences.append(f"Whoever holds the public records may not need the private copies: {alone(public)}.")
    return sentences
