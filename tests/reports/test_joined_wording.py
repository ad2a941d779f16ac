"""No sentence promises more than the numbers: "may be given away" is earned, ε and limits are rounded up."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_joined import clean, complete, leak, make_joined, undecided
from test_wording import number

from diffusion_privacy.mechanisms.manifest import ORDER_IS_PUBLIC
from diffusion_privacy.reports import cadp_wording, joined_page, joined_schema, joined_standing, joined_wording
from diffusion_privacy.reports.joined_schema import WAYS
from diffusion_privacy.reports.joined_standing import MAY, NAMES, most_right, standing

MAKE = {"leaks": leak, "clean": lambda i: clean(i, "private", True), "not certified": undecided}
RELEASE = make_joined()


WAY = st.tuples(
    st.tuples(*[st.sampled_from(sorted(MAKE))] * 2),  # of the two marked records
    st.sampled_from([False, False, False, True]),  # a control that "leaks"
    st.sampled_from([None, 0.0, 0.5, 4.0, 9.999, 10.01, 60.0, 800.0]),  # ε
    st.sampled_from([0.0, 1e-5, 1e-5, 1 / 540, 0.3]),  # δ
    st.sampled_from([0.0, 0.9]),  # members that an attack finds at least, at 1 % false alarms
)


def made_of(ways: tuple[Any, ...], lost: bool) -> tuple[dict[str, Any], dict[str, bool]]:
    """A release of these findings, and for each way whether all that is needed to give it away holds."""
    release, expected = copy.deepcopy(RELEASE), {}
    release["ledger"]["not_recorded"] = ["train <flow>"] if lost else []
    model = release["ways_to_share"]["copy"]["guarantee"]
    for (name, way), (statuses, alarm, epsilon, delta, found) in zip(
        release["ways_to_share"].items(), ways, strict=True
    ):
        records = [MAKE[status](i) for status, i in zip(statuses, (12, 87), strict=True)]
        control = {**leak(1711), "role": "control"} if alarm else clean(1711, "control", True)
        way["risk"]["records"] = [*records, control]
        way["risk"]["attack"]["points"][0] |= {"value": found + 0.02, "lower": found, "upper": 0.95}
        way["guarantee"] = {**model, "epsilon": epsilon, "delta": delta, "certified": []}
        if epsilon is None:
            way["guarantee"] |= {"stages": [], "why": "nobody <counted>."}
        # 6 of 540 others above the threshold: their rate is at most 2.4 %.
        refuted = epsilon is not None and found > math.exp(min(epsilon, 9.0)) * 0.024 + delta
        sound = "leaks" not in statuses and not alarm and not refuted and not lost
        expected[name] = sound and epsilon is not None and epsilon <= 10 and delta < 1 / 540
    return complete(release), expected


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[WAY] * 4), st.sampled_from([False, False, False, True]))
def test_may_be_given_away_is_earned(ways: tuple[Any, ...], lost: bool) -> None:
    release, expected = made_of(ways, lost)
    joined_schema.validate(release)
    first = release["answer"].split(". ")[0]
    assert (MAY in release["answer"]) == any(expected.values())
    for name in WAYS:
        guarantee, card = release["ways_to_share"][name]["guarantee"], joined_page.card(release, name)
        assert standing(release, name).may == expected[name], name
        assert (MAY in card) == expected[name], name
        # The first sentence names those that may go and no other, each with its promise.
        if MAY in first:
            assert (NAMES[name] in first) == expected[name], name
        if expected[name]:
            said = joined_standing.promise(guarantee)
            assert said in first
            assert said in card
    for text in (*release["limits"], *release["uncertified"]):
        assert MAY not in text


def test_the_sample_says_which_may_go_and_under_what() -> None:
    answer = RELEASE["answer"].replace("\u00a0", " ")
    assert answer.startswith("One of these may be given away, alone and without anything else that touched the records")
    assert "under ε = 4 at δ = 10⁻⁵ for replacing one record by any other of the same class, which is public" in answer
    assert "4.0 (0 to 21), 0 (0 to 1.4) and 0 (0 to 1.4) in 10,000 images, in this order (95 % intervals)" in answer
    assert "1 of 6 audits could certify neither a leak nor its absence" in answer
    assert "ε by itself bounds such rates for the private copy itself only (at most 321," in answer
    assert "attacks on the private copy itself do better than guessing" in answer
    assert "as they are may not: it gives back 2 of 2 marked records" in answer
    assert "15 in 10,000 images (95 % interval 13 to 18)" in answer


def test_a_dp_way_whose_bound_says_nothing_says_what_is_not_shown() -> None:
    release = copy.deepcopy(RELEASE)
    # One of two records without a limit is enough: nothing is certified of "the marked records".
    release["ways_to_share"]["copy"]["guarantee"]["certified"].pop()
    release = complete(release)
    assert "ε by itself bounds no such rate here" in release["answer"]
    for name in ("dp_model", "copy"):
        text = joined_standing.certified(release["ways_to_share"][name])
        assert "does not bound how often every marked record comes back, neither was it shown that none does" in text
        assert standing(release, name).kind == "open"
    # A certificate of more than a memoriser would show certifies nothing of the kind.
    assert standing(RELEASE, "copy").kind == "open"
    release = copy.deepcopy(RELEASE)
    for bound in release["ways_to_share"]["copy"]["guarantee"]["certified"]:
        bound["upper"] = 1 / release["ways_to_share"]["copy"]["n_train"]
    assert standing(release, "copy").kind == "clean"


@given(st.floats(0, 30), st.floats(0, 1))
def test_what_an_attacker_can_tell_is_the_closed_form(epsilon: float, delta: float) -> None:
    # Worst pure mechanism: randomised response of one bit. Worst (0, δ): the record is given out with probability δ.
    assert most_right(epsilon, 0.0) == pytest.approx(math.exp(epsilon) / (1 + math.exp(epsilon)))
    assert most_right(0.0, delta) == pytest.approx(delta + (1 - delta) / 2)
    assert most_right(epsilon, delta) >= max(most_right(epsilon, 0.0), most_right(0.0, delta)) - 1e-12
    assert most_right(1000.0, delta) == 1.0


@given(st.floats(0.01, 9.0), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_how_well_two_cases_are_told_apart_is_never_printed_smaller(epsilon: float, delta: float) -> None:
    guarantee = {"epsilon": epsilon, "delta": delta, "relation": "replace-one"}
    said = (joined_standing.meaning(guarantee), joined_wording._promises({"copy": {"guarantee": guarantee}}, ["copy"]))
    for text in said:
        [printed] = re.findall(r"at most (\S+)\u00a0% of the time", text)
        assert float(printed) >= 100 * most_right(epsilon, delta) * (1 - 1e-12)


def test_what_is_said_of_several_records_is_as_sure_as_the_least_sure_of_them() -> None:
    way = copy.deepcopy(RELEASE["ways_to_share"]["copy"])
    for bound, level in zip(way["guarantee"]["certified"], (0.9, 0.99), strict=True):
        bound["level"] = level
    assert "(95\u00a0% confidence for each marked record)" in joined_standing.certified(way)
    for record, level in zip(joined_standing.private_records(way), (0.9, 0.95), strict=True):
        record["verdict"]["level"] = level
    assert joined_standing.worst(way)["level"] == 0.9


@given(st.floats(1e-4, 1e3), st.floats(1e-12, 0.5))
def test_epsilon_and_delta_are_rounded_up(epsilon: float, delta: float) -> None:
    for value, text in ((epsilon, cadp_wording.epsilon(epsilon)), (delta, cadp_wording.delta(delta))):
        printed = number(text if not text.startswith("10") or "⁻" not in text else f"1×{text}")
        assert value * (1 - 1e-12) <= printed <= 1.1 * value


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "10⁻⁵"), (1.4e-5, "1.4×10⁻⁵"), (2e-5, "2×10⁻⁵"), (0.01, "0.01"), (0, "0")]
)
def test_delta(value: float, text: str) -> None:
    assert cadp_wording.delta(value) == text


def test_an_attack_beyond_the_promise_contradicts_it() -> None:
    way = copy.deepcopy(RELEASE["ways_to_share"]["copy"])
    point = way["risk"]["attack"]["points"][0]
    # 6 of 540 non-members above the threshold: at most 2.4 % at 95 %; times e⁴ that is more than 1.
    point |= {"value": 0.99, "lower": 0.98, "upper": 1.0}
    assert joined_standing.contradiction(way) is None
    way["guarantee"]["epsilon"] = 1.0
    assert "at least 98" in (joined_standing.contradiction(way) or "")
    point |= {"value": 0.05, "lower": 0.03, "upper": 0.07}
    assert joined_standing.contradiction(way) is None
    # δ allows as much again.
    point |= {"value": 0.25, "lower": 0.2, "upper": 0.3}
    assert joined_standing.contradiction(way) is not None
    way["guarantee"]["delta"] = 0.3
    assert joined_standing.contradiction(way) is None


def test_the_worst_record_has_the_largest_limits() -> None:
    way = RELEASE["ways_to_share"]["dp_model"]
    q = joined_standing.worst(way)
    for record in joined_standing.private_records(way):
        assert all(record["verdict"][key] <= q[key] for key in ("lower", "upper"))
    assert (q["value"], q["upper"]) == (4e-4, 0.0021)


def test_what_stayed_open_comes_with_what_would_do() -> None:
    text = " ".join(RELEASE["uncertified"]).replace("\u00a0", " ")
    assert "DP-SGD model, private record 12: neither a leak nor its absence was certified; about 61,000 direct" in text
    assert "if hits come as they did; 30,000 were drawn, 12 with a hit." in text
    assert "Private copy, private record 12, private record 87: ε by itself certifies at most 321" in text
    assert "about 120,000 copies made without the record, none with a hit, would certify 1/n; 8 were made" in text
    assert "has no rate at 0.1 % false alarms: 540 non-members" in text
    release = copy.deepcopy(RELEASE)
    release["ways_to_share"]["copy"]["guarantee"]["certified"][0]["models_needed"] = None
    assert "no number of copies would do, δ alone exceeds 1/n" in " ".join(joined_wording.uncertified(release))
    release["ways_to_share"]["copy"]["guarantee"]["certified"] = [
        {**one, "upper": 1e-4} for one in release["ways_to_share"]["copy"]["guarantee"]["certified"]
    ]
    assert not [text for text in joined_wording.uncertified(release) if text.startswith("Private copy")]


def test_limits_say_what_the_promise_excludes() -> None:
    text = " ".join(RELEASE["limits"])
    for part in (
        "only if NOTHING else that touched the records is given away", "over training, noise AND sampling",
        "An audit is no guarantee", "ONE draw of its mechanism", "2 private records with a planted fingerprint",
        "holds its weights too", "the class of each record", "cost privacy that no ledger counts",
    ):  # fmt: skip
        assert part in text


def test_an_unknown_relation_stays_as_it_is() -> None:
    assert joined_standing.relation("replace-record-and-condition, 3 records a person").endswith(
        "(up to 3 records a person)"
    )
    assert joined_standing.relation("replacing a patient") == "replacing a patient"


def test_where_public_records_are_worth_more_the_answer_says_so() -> None:
    release = copy.deepcopy(RELEASE)
    [public] = [y for y in release["yardsticks"] if y["name"] == "public"]
    public["utility"]["accuracy"].update({"value": 0.97, "lower": 0.96, "upper": 0.98})
    assert "the public records alone are worth more" in joined_wording.answer(release)
    # The best is the one that is right most often, not the one of which least is known.
    for name, (value, lower, upper) in {"dp_model": (0.5, 0.1, 0.95), "copy": (0.9, 0.89, 0.91)}.items():
        release["ways_to_share"][name]["utility"]["accuracy"] |= {"value": value, "lower": lower, "upper": upper}
    said = joined_wording.answer(release).replace("\N{NO-BREAK SPACE}", " ")
    assert "against 90.0 % (89.0 to 91.0) at best" in said
    # Where the intervals meet, nothing is said.
    public["utility"]["accuracy"].update({"value": 0.5, "lower": 0.3, "upper": 0.7})
    assert "public records alone" not in joined_wording.answer(release)


@pytest.mark.parametrize("order_is_public", [False, True])
@pytest.mark.parametrize("marked_first", [False, True])
def test_the_order_is_called_random_only_where_the_manifest_says_so(marked_first, order_is_public):
    """Manifests of earlier versions say nothing of the order; it was that of the source."""
    release = copy.deepcopy(RELEASE)
    public = release["ways_to_share"]["copy"]["guarantee"]["public"]
    public += [joined_wording.MARKED_FIRST] * marked_first + [ORDER_IS_PUBLIC] * order_is_public
    text = " ".join(joined_wording.limits(release))
    assert ("the others in a random order" in text) == (marked_first and not order_is_public)
    assert ("in the order of the private records" in text) != ("the others in a random order" in text)
