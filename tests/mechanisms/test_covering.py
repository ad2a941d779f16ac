"""What one shared thing costs: the ledger's entries behind it, composed, and "no guarantee" where one cannot be told.

Every test of a fault below is a way of promising too much.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.calibration import gaussian_epsilon
from diffusion_privacy.mechanisms.ledger import Covering, Entry, covering, total

dp_accounting = pytest.importorskip("dp_accounting")

DELTA = 1e-5
NAMES = "abcd"


def gaussian(multiplier: float) -> Spend:
    return Spend(dp_accounting.GaussianDpEvent(multiplier), "replace-one")


def epsilon_of(*multipliers: float) -> float:
    """Closed form of Gaussian releases on the same records: 1/s² = Σ 1/sᵢ² (Dong, Roth & Su 2022, corollary 3.3)."""
    return gaussian_epsilon(sum(s**-2 for s in multipliers) ** -0.5, DELTA)


LEDGER = [
    Entry("flow, DP-SGD", gaussian(2.0)),
    Entry("release copy", gaussian(3.0)),
    Entry("train score, DP-SGD", gaussian(1.5)),
    Entry("raw training", None),
]


def test_only_the_named_stages_are_composed_and_the_others_are_listed():
    copy = covering(LEDGER, ["release copy", "flow, DP-SGD"], DELTA)
    assert copy.guarantee
    assert copy.account.epsilon == pytest.approx(epsilon_of(2.0, 3.0), rel=1e-9)
    assert copy.left_out == ("train score, DP-SGD", "raw training")
    assert copy.describe().startswith("ε = ")
    assert "release copy, flow, DP-SGD" in copy.describe()
    assert copy.why == ""
    alone = covering(LEDGER, ["train score, DP-SGD"], DELTA)
    assert alone.account.epsilon == pytest.approx(epsilon_of(1.5), rel=1e-9)
    # Planted: the whole ledger must not look private because one way of sharing is.
    assert not total(LEDGER, DELTA).guarantee


def refused(found: Covering, *words: str) -> bool:
    """Whether nothing at all can be read as a promise, and the reason is named."""
    silent = not found.guarantee and found.account.epsilon == math.inf and found.account.bounds == {}
    return silent and found.describe().startswith("no guarantee: ") and all(word in found.why for word in words)


def test_a_missing_ledger_entry_is_no_guarantee_and_is_named():
    found = covering(LEDGER, ["release copy", "flow of another run"], DELTA)
    assert refused(found, "flow of another run", "without an entry")
    assert found.missing == ("flow of another run",)
    # A name is matched whole: a beginning or another case of it is another stage.
    for near in ("release", "Release copy", "release copy "):
        assert refused(covering(LEDGER, [near], DELTA), near)
    assert refused(covering([], ["release copy"], DELTA), "release copy")


def test_a_stage_without_event_is_no_guarantee_and_is_named():
    assert refused(covering(LEDGER, ["release copy", "raw training"], DELTA), "raw training", "without a privacy event")
    open_event = Spend(dp_accounting.ComposedDpEvent([dp_accounting.NonPrivateDpEvent()]), "replace-one")
    assert refused(covering([Entry("x", open_event)], ["x"], DELTA), "x without a privacy event")
    # Sampling does not make it private.
    sampled = Spend(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.NonPrivateDpEvent()), "replace-one")
    assert refused(covering([Entry("x", sampled)], ["x"], DELTA), "no finite ε")


def test_entries_of_one_name_are_all_composed():
    twice = [*LEDGER, Entry("release copy", gaussian(3.0))]
    found = covering(twice, ["release copy"], DELTA)
    events = [entry.spend for entry in twice if entry.stage == "release copy"]
    assert found.repeated == ("release copy",)
    assert found.account.epsilon == pytest.approx(account(events, DELTA).epsilon, rel=1e-9)
    assert found.account.epsilon > covering(LEDGER, ["release copy"], DELTA).account.epsilon
    # A namesake without an event is not hidden by the one that has one.
    namesake = [*LEDGER, Entry("train score, DP-SGD", None)]
    assert refused(covering(namesake, ["train score, DP-SGD"], DELTA), "without a privacy event")
    # They disturb nobody who rests on neither.
    assert covering(twice, ["flow, DP-SGD"], DELTA).left_out.count("release copy") == 2


def test_an_entry_that_pays_for_something_else_is_no_guarantee_and_the_reason_is_given():
    reasons = {"release copy": "that entry is of another copy"}
    found = covering(LEDGER, ["flow, DP-SGD", "release copy"], DELTA, reasons)
    assert refused(found, "release copy: that entry is of another copy")
    assert found.unpaid == ("release copy: that entry is of another copy",)
    # It disturbs nobody who does not rest on it, and one that is missing is said to be missing.
    alone = covering(LEDGER, ["flow, DP-SGD"], DELTA, reasons)
    assert alone == covering(LEDGER, ["flow, DP-SGD"], DELTA)
    lost = covering([], ["release copy"], DELTA, reasons)
    assert refused(lost, "release copy without an entry")
    assert lost.unpaid == ()


def test_an_entry_of_another_study_pays_for_nothing():
    """Planted: matched by name alone, the other study's cheaper release passes for the one that is shared."""
    theirs, mine = Entry("release copy", gaussian(9.0), id="theirs"), Entry("release copy", gaussian(3.0), id="mine")
    ledger = [Entry("flow", gaussian(2.0)), theirs]

    def ours(entry):
        return entry.id in (None, "mine")

    assert refused(covering(ledger, ["release copy", "flow"], DELTA, ours=ours), "release copy without an entry")
    found = covering([*ledger, mine], ["release copy", "flow"], DELTA, ours=ours)
    assert found.account.epsilon == pytest.approx(epsilon_of(2.0, 3.0), rel=1e-9)
    assert (found.repeated, found.left_out) == ((), ("release copy",))


def test_nothing_named_is_no_guarantee_and_not_an_epsilon_of_zero():
    assert refused(covering(LEDGER, [], DELTA), "no stage was named")


def test_stages_of_distinct_records_are_parallel_and_of_undeclared_ones_are_not():
    apart = [Entry("one", gaussian(2.0), ("r1",)), Entry("two", gaussian(2.0), ("r2",))]
    assert covering(apart, ["one", "two"], DELTA).account.epsilon == pytest.approx(epsilon_of(2.0), rel=1e-9)
    # Planted: an entry that lists no record at all is not one that costs nothing.
    for records in (None, ()):
        mixed = [apart[0], Entry("two", gaussian(2.0), records)]
        assert covering(mixed, ["one", "two"], DELTA).account.epsilon == pytest.approx(epsilon_of(2.0, 2.0), rel=1e-9)
        assert covering(mixed, ["two"], DELTA).account.epsilon == pytest.approx(epsilon_of(2.0), rel=1e-9)


def test_training_is_read_in_its_own_convention():
    """DP-SGD states its multiplier over C: the same event read as replace-one would promise half the ε."""
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(8.0), 4)
    found = covering([Entry("train", Spend(event, "add-or-remove-one"))], ["train"], DELTA)
    assert found.account.epsilon == pytest.approx(epsilon_of(*[4.0] * 4), rel=1e-9)


multipliers = st.floats(0.5, 20.0)
spends = st.one_of(st.none(), multipliers.map(gaussian))
records = st.one_of(st.none(), st.lists(st.sampled_from("xyz"), max_size=2).map(tuple))
entries = st.lists(st.builds(Entry, st.sampled_from(NAMES), spends, records), max_size=5)
names = st.lists(st.sampled_from(NAMES), max_size=4)


@settings(max_examples=150)
@given(entries, names, spends)
def test_every_entry_is_composed_or_listed_and_a_guarantee_needs_all_of_it(ledger, stages, extra):
    found = covering(ledger, stages, DELTA)
    chosen = [entry for entry in ledger if entry.stage in stages]
    assert len(chosen) + len(found.left_out) == len(ledger)
    assert set(found.stages) == set(stages)
    whole = {entry.stage for entry in chosen} == set(stages)
    assert found.guarantee == (whole and bool(stages) and all(entry.spend is not None for entry in chosen))
    assert found.guarantee == (found.why == "")
    if found.guarantee:
        # Between the dearest stage alone and all of them on one record.
        each = [account([entry.spend], DELTA).epsilon for entry in chosen]
        together = account([entry.spend for entry in chosen], DELTA).epsilon
        assert max(each) * (1 - 1e-9) <= found.account.epsilon <= together * (1 + 1e-9)
        assert found.account == total(chosen, DELTA).account
    # What was done elsewhere changes nothing of the promise; a namesake makes none better.
    assert covering([*ledger, Entry("elsewhere", extra)], stages, DELTA).account == found.account
    for stage in set(stages) & {entry.stage for entry in chosen}:
        more = covering([*ledger, Entry(stage, extra)], stages, DELTA).account.epsilon
        assert more >= found.account.epsilon * (1 - 1e-9)


@settings(max_examples=100)
@given(entries, names, names)
def test_naming_more_stages_never_promises_more_and_their_order_nothing(ledger, stages, more):
    few, many = (covering(ledger, names, DELTA).account.epsilon for names in (stages, [*stages, *more]))
    assert many >= few * (1 - 1e-12) or not stages
    for order in (list(reversed(stages)), stages + stages):
        assert covering(ledger, order, DELTA).account == covering(ledger, stages, DELTA).account
    backwards = covering(list(reversed(ledger)), stages, DELTA).account.epsilon
    assert backwards == pytest.approx(covering(ledger, stages, DELTA).account.epsilon, rel=1e-9)
