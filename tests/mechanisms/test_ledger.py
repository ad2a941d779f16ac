"""The ledger adds up what it should, refuses what it must, and survives crashes and rivals."""

from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import threading
from pathlib import Path

import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.ledger import (
    Entry,
    GivenUp,
    Ledger,
    covering,
    event_from_json,
    event_to_json,
    total,
    value_hashes,
)
from diffusion_privacy.mechanisms.relation import (
    REPLACE_RECORD,
    REPLACE_RECORD_AND_CONDITION,
    Neighbours,
    meet,
    replace_person,
)

dp_accounting = pytest.importorskip("dp_accounting")
from dp_accounting.dp_event import DiscreteLaplaceDpEvent  # noqa: E402


def laplace(epsilon: float) -> Spend:
    return Spend(dp_accounting.LaplaceDpEvent(1.0 / epsilon), "replace-one")


def test_events_survive_the_file():
    event = dp_accounting.ComposedDpEvent(
        [
            dp_accounting.NoOpDpEvent(),
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.1)), 3
            ),
            dp_accounting.ZCDpEvent(rho=0.1 + 0.2),
            DiscreteLaplaceDpEvent(0.1, 7),
            dp_accounting.RandomizedResponseDpEvent(0.3, 4),
        ]
    )
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event
    with pytest.raises(InputError, match="type"):
        event_to_json(dp_accounting.SampledWithReplacementDpEvent(10, 2, dp_accounting.GaussianDpEvent(1.0)))
    with pytest.raises(InputError, match="type"):
        event_from_json({"type": "eval"})


def test_same_records_add_up_and_the_total_is_not_exceeded(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 2.0, 1e-5)
    assert ledger.total().account.epsilon == 0.0
    assert ledger.record(Entry("one", laplace(1.0), ("a", "b"))).account.epsilon == pytest.approx(1.0)
    assert ledger.record(Entry("two", laplace(1.0), ("b",))).account.epsilon == pytest.approx(2.0, rel=1e-3)
    before = ledger.path.read_bytes()
    with pytest.raises(InputError, match="exhausted"):
        ledger.record(Entry("three", laplace(0.01), ("b",)))
    assert ledger.path.read_bytes() == before
    ledger.record(Entry("four", laplace(1.0), ("a",)))


def test_a_gaussian_budget_can_be_spent_to_the_last_digit(tmp_path):
    from diffusion_privacy.mechanisms.calibration import gaussian_multiplier

    spend = Spend(dp_accounting.GaussianDpEvent(gaussian_multiplier(1.0, 1e-5)), "replace-one")
    Ledger(tmp_path / "ledger.jsonl", 1.0, 1e-5).record(Entry("all of it", spend))


def test_distinct_records_are_parallel_only_when_declared(tmp_path):
    declared = Ledger(tmp_path / "a.jsonl", 1.0, 1e-5)
    declared.record(Entry("one", laplace(1.0), ("a",)))
    assert declared.record(Entry("two", laplace(1.0), ("b",))).account.epsilon == pytest.approx(1.0, rel=1e-3)
    undeclared = Ledger(tmp_path / "b.jsonl", 1.0, 1e-5)
    undeclared.record(Entry("one", laplace(1.0), ("a",)))
    with pytest.raises(InputError, match="exhausted"):
        undeclared.record(Entry("two", laplace(1.0), None))


@pytest.mark.parametrize(
    "kinds", [("bytes of files", "stored grey levels"), ("bytes of files", ""), ("", "cells of rows")]
)
def test_hashes_of_two_kinds_do_not_tell_records_apart(tmp_path, kinds):
    """One image out of a folder and out of an archive has two hashes: its two stages add up."""
    ledger = Ledger(tmp_path / "ledger.jsonl", 4.0, 1e-5)
    ledger.record(Entry("one", laplace(1.0), ("a", "b"), kind=kinds[0]))
    ledger.record(Entry("two", laplace(0.5), ("b",), kind=kinds[0]))
    ledger.record(Entry("three", laplace(2.0), ("c",), kind=kinds[1]))
    # Of the first kind "b" spent 1.5, of the second "c" 2, and the two may be the same.
    assert ledger.record(Entry("four", laplace(0.25), ("d",), kind=kinds[1])).account.epsilon == pytest.approx(
        3.5, rel=1e-3
    )
    assert [entry.kind for entry in ledger.entries()] == [kinds[0], kinds[0], kinds[1], kinds[1]]
    with pytest.raises(InputError, match="exhausted"):
        ledger.record(Entry("five", laplace(0.6), ("c",), kind=kinds[1]))


def test_two_images_of_one_person_in_two_stages_are_not_distinct(tmp_path):
    """Hashes of images do not show whose they are; where a stage speaks of people it counts against every record."""
    person = replace_person(2)
    ledger = Ledger(tmp_path / "ledger.jsonl", 10.0, 1e-5)
    ledger.record(Entry("one", laplace(1.0), ("first image",), person))
    both = ledger.record(Entry("two", laplace(1.0), ("second image",), person))
    assert both.account.epsilon == pytest.approx(2.0, rel=1e-3)
    assert both.relation == person
    # Beside a stage of single records the total speaks of single records, and still takes nothing back.
    mixed = ledger.record(Entry("three", laplace(1.0), ("third image",), REPLACE_RECORD))
    assert mixed.account.epsilon == pytest.approx(3.0, rel=1e-3)
    assert mixed.relation == REPLACE_RECORD
    assert ledger.entries()[0].records == ("first image",)


def test_a_total_speaks_of_the_neighbours_of_all_its_stages(tmp_path):
    wide, narrow = REPLACE_RECORD_AND_CONDITION, REPLACE_RECORD
    ledger = Ledger(tmp_path / "ledger.jsonl", 10.0, 1e-5)
    assert ledger.total().relation == wide
    assert ledger.record(Entry("class randomised", laplace(1.0), ("a",), wide)).relation == wide
    # What saw nothing of the records holds nothing fixed.
    nothing = Spend(dp_accounting.NoOpDpEvent(), "replace-one")
    assert ledger.record(Entry("trained on a copy", nothing, ("a",))).relation == wide
    total = ledger.record(Entry("class published", laplace(1.0), ("a",), narrow))
    assert total.relation == narrow
    assert total.describe().endswith("over 3 stages (replace-record-same-public-condition)")
    one = covering(ledger.entries(), ["class randomised", "trained on a copy"], 1e-5)
    assert one.relation == wide
    assert one.describe().endswith("(replace-record-and-condition)")
    assert covering(ledger.entries(), ["class randomised", "class published"], 1e-5).relation == narrow


def test_what_is_a_neighbour_under_all_relations():
    wide = Neighbours.ANY_CONDITION
    assert meet([]) == REPLACE_RECORD_AND_CONDITION
    assert meet([replace_person(3, wide), replace_person(2)]) == replace_person(2)
    assert meet([replace_person(3, wide), REPLACE_RECORD_AND_CONDITION]) == REPLACE_RECORD_AND_CONDITION


def test_entries_without_a_relation_count_as_the_narrowest(tmp_path):
    """Ledgers that were written before relations were kept go on, and promise no more than single records."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, 10.0, 1e-5)
    ledger.record(Entry("now", laplace(1.0), ("a",), REPLACE_RECORD_AND_CONDITION))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1].pop("relation") == {"neighbours": "replace-record-and-condition", "records_per_person": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ledger.entries() == [Entry("now", laplace(1.0), ("a",))]
    assert ledger.total().relation == REPLACE_RECORD
    for damaged in ("anything", {"neighbours": "friends", "records_per_person": 1}, {"neighbours": "x"}):
        path.write_text(json.dumps(lines[0]) + "\n" + json.dumps({**lines[1], "relation": damaged}) + "\n")
        with pytest.raises(InputError, match=r"line 2: relation: expected"):
            ledger.entries()


def test_links_to_one_ledger_share_its_total(tmp_path):
    shared = tmp_path / "shared" / "ledger.jsonl"
    shared.parent.mkdir()
    ledgers = []
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.jsonl").symlink_to(shared)
        ledgers.append(Ledger(tmp_path / name / "ledger.jsonl", 8.0, 0.0))
    ledgers[0].record(Entry("first", laplace(6.0), ("x",)))
    assert ledgers[0].path.is_symlink()
    with pytest.raises(InputError, match="exhausted"):
        ledgers[1].record(Entry("second", laplace(6.0), ("x",)))
    assert [entry.stage for entry in ledgers[1].entries()] == ["first"]


def test_a_stage_without_an_event_means_no_guarantee(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 5.0, 1e-5)
    ledger.record(Entry("release", laplace(1.0)))
    total = ledger.record(Entry("flow training", None))
    assert not total.guarantee
    assert "flow training" in total.describe()
    assert "no guarantee" in total.describe()
    with pytest.raises(InputError, match="no guarantee"):
        ledger.record(Entry("release 2", laplace(1.0)))
    after = ledger.record(Entry("release 2", laplace(1.0)), accept_uncovered=True)
    assert not after.guarantee
    assert after.account.epsilon == pytest.approx(2.0, rel=1e-3)
    with pytest.raises(InputError, match="exhausted"):
        ledger.record(Entry("release 3", laplace(9.0)), accept_uncovered=True)


def test_a_private_stage_does_not_hide_a_namesake_without_event(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 5.0, 1e-5)
    ledger.record(Entry("training", laplace(1.0)))
    total = ledger.record(Entry("training", None))
    assert total.account.epsilon == pytest.approx(1.0, rel=1e-3)
    assert not total.guarantee


def test_non_private_events_are_uncovered(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 5.0, 1e-5)
    open_event = Spend(dp_accounting.ComposedDpEvent([dp_accounting.NonPrivateDpEvent()]), "replace-one")
    with pytest.raises(InputError, match="no guarantee"):
        ledger.record(Entry("metric release", open_event))


def test_another_total_and_damage_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, 2.0, 1e-5).record(Entry("one", laplace(1.0)))
    with pytest.raises(InputError, match="states the total"):
        Ledger(path, 20.0, 1e-5).total()
    with path.open("a") as file:
        file.write('{"stage": "torn')
    with pytest.raises(InputError, match="line 3 is damaged"):
        Ledger(path, 2.0, 1e-5).total()
    path.write_text("")
    with pytest.raises(InputError, match="empty ledger"):
        Ledger(path, 2.0, 1e-5).total()
    for epsilon, delta in ((0.0, 1e-5), (math.inf, 1e-5), (1.0, 1.0)):
        with pytest.raises(InputError, match="ledger total"):
            Ledger(path, epsilon, delta)


def _rival(path: Path, name: str) -> None:
    for i in range(5):
        Ledger(path, 100.0, 1e-5).record(Entry(f"{name}{i}", laplace(0.5)))


@pytest.mark.slow
def test_rivals_lose_no_entry(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    rivals = [context.Process(target=_rival, args=(path, name)) for name in "ab"]
    for process in rivals:
        process.start()
    for process in rivals:
        process.join(60)
        assert process.exitcode == 0
    entries = Ledger(path, 100.0, 1e-5).entries()
    assert sorted(e.stage for e in entries) == sorted(f"{n}{i}" for n in "ab" for i in range(5))
    assert account([e.spend for e in entries], 0.0).epsilon == pytest.approx(5.0)


def test_a_ledger_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, 2.0, 1e-5).record(Entry("one", laplace(1.0)))
    assert '"schema": 2' in path.read_text()
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(InputError, match="schema"):
        Ledger(path, 2.0, 1e-5).record(Entry("two", laplace(0.5)))


def test_hashes_tell_records_apart():
    records = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    hashes = value_hashes(records)
    assert len(set(hashes)) == 3
    assert value_hashes(records[1:2]) == (hashes[1],)
    assert value_hashes(records.astype(np.float64)) == value_hashes(records.reshape(3, 4)) == hashes
    assert value_hashes(-0.0 * records) == value_hashes(0.0 * records)
    assert not set(value_hashes(records / 2)) & set(hashes)


# --- the total holds for every record ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_a_pure_release_of_some_records_does_not_hide_the_delta_of_others(tmp_path, backwards):
    """Planted: δ of the record with the largest ε alone. ε = 2 at δ = 0 would be false for "c" and "d"."""
    from diffusion_privacy.mechanisms.calibration import gaussian_multiplier

    gaussian = Spend(dp_accounting.GaussianDpEvent(gaussian_multiplier(1.0, 1e-5)), "replace-one")
    nothing = Spend(dp_accounting.NoOpDpEvent(), "replace-one")
    entries = [Entry("laplace", laplace(2.0), ("a", "b")), Entry("gaussian", gaussian, ("c", "d"))]
    entries += [Entry("post-processing", nothing, ("e",))]
    ledger = Ledger(tmp_path / "ledger.jsonl", 2.0, 1e-5)
    for entry in reversed(entries) if backwards else entries:
        recorded = ledger.record(entry)
    names = ["laplace", "gaussian"]
    for found in (recorded, total(ledger.entries(), 1e-5), covering(ledger.entries(), names, 1e-5)):
        assert (found.account.epsilon, found.account.delta) == (2.0, 1e-5)
        assert "ε = 2 at δ = 1e-05" in found.describe()
    # Whoever spent nothing has no δ, and what is pure for all stays so.
    pure = [entry for entry in ledger.entries() if entry.stage != "gaussian"]
    assert total(pure, 1e-5).account.delta == covering(pure, ["laplace"], 1e-5).account.delta == 0.0
    assert (total([], 1e-5).account.epsilon, total([], 1e-5).account.delta) == (0.0, 0.0)


def test_a_printed_total_is_no_less_than_the_total(tmp_path):
    """Planted: rounding to the nearest prints every second total too small."""
    for number in range(20):
        entries = [Entry("a", laplace(0.3)), Entry("b", laplace(0.1 + number / 97.0))]
        for found in (total(entries, 0.0), covering(entries, ["a", "b"], 0.0)):
            assert float(found.describe().split()[2]) >= found.account.epsilon


# --- records that were given up ---------------------------------------------------------------------------------------


def test_nothing_is_promised_to_records_that_were_given_up(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 4.0, 1e-5)
    ledger.record(Entry("of a and b", laplace(1.0), ("a", "b"), id="0" * 32))
    ledger.give_up(("x", "y"), "flow of study A", "rows of a table")
    written, lock = ledger.path.read_bytes(), tmp_path / "ledger.jsonl.lock"
    locked = lock.stat().st_mtime_ns
    for again in (("x", "y"), ("y", "x"), ("x",), ()):
        ledger.give_up(again, "flow of study A once more")
        assert (ledger.path.read_bytes(), lock.stat().st_mtime_ns) == (written, locked)
    assert json.loads(written.splitlines()[2]) == {
        "given_up": ["x", "y"], "stage": "flow of study A", "kind": "rows of a table",
    }  # fmt: skip
    assert ledger.given_up() == [GivenUp(("x", "y"), "flow of study A", "rows of a table")]
    # It is no stage, and costs nothing.
    assert [entry.stage for entry in ledger.entries()] == ["of a and b"]
    assert (ledger.total().account.epsilon, ledger.total().stages) == (pytest.approx(1.0), 1)
    # Planted: public first, private later; and the reverse.
    with pytest.raises(
        InputError, match=r"1 of the 2 records of 'of x' were given up as public ones \(flow of study A\)"
    ):
        ledger.record(Entry("of x", laplace(1.0), ("c", "x")))
    with pytest.raises(InputError, match="2 of the 2 records of the private share were given up"):
        ledger.check_private(("x", "y"))
    with pytest.raises(InputError, match="1 of the 2 records of the public share are in it as private ones"):
        ledger.give_up(("b", "z"), "flow of study B")
    assert ledger.path.read_bytes() == written
    # What has happened is written, and others go on beside it.
    assert not ledger.record(Entry("trained without privacy", None, ("x",))).guarantee
    ledger.record(Entry("of c", laplace(1.0), ("c",)), accept_uncovered=True)
    ledger.give_up(("y", "z"), "flow of study C")
    assert [line.records for line in ledger.given_up()] == [("x", "y"), ("y", "z")]
    assert [entry.id for entry in ledger.entries()] == ["0" * 32, None, None]


def test_records_known_by_another_hash_are_said_to_be_unknown(tmp_path, caplog):
    ledger = Ledger(tmp_path / "ledger.jsonl", 4.0, 1e-5)
    ledger.give_up(("x",), "flow", "bytes of files")
    for kind in ("", "bytes of files"):
        ledger.check_private(("a",), kind)
        assert not caplog.records
    ledger.check_private(("a",), "stored grey levels")
    assert "notes public records by bytes of files, these are known by stored grey levels: whether" in caplog.text
    ledger.record(Entry("one", laplace(1.0), ("a",), kind="bytes of files"))
    caplog.clear()
    ledger.check_public(("z",), "bytes of files")
    assert not caplog.records
    ledger.give_up(("z",), "flow", "stored grey levels")
    assert "notes private records by bytes of files, these are known by stored grey levels: whether" in caplog.text


def test_rows_that_an_earlier_version_entered_are_said_to_be_unknown(tmp_path, caplog):
    """Their hashes depended on the kinds of columns, so that rows of today meet none of them; images do."""
    ledger = Ledger(tmp_path / "ledger.jsonl", 4.0, 1e-5)
    ledger.record(Entry("one", laplace(1.0), ("a",)))
    ledger.check_public(("z",), "stored grey levels")
    assert not caplog.records
    ledger.check_public(("z",), "cells of rows")
    assert "notes private records by hashes of a kind that is not said, these are known by cells of rows" in caplog.text


def test_lines_of_neither_kind_are_refused_and_old_ones_are_read(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 4.0, 1e-5)
    ledger.record(Entry("one", laplace(1.0), ("a",), REPLACE_RECORD, "12ab"))
    ledger.give_up(("x",), "flow")
    head, entry, note = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert head == {"schema": 2, "epsilon": 4.0, "delta": 1e-5, "relation": "replace-one"}
    assert entry["id"] == "12ab"

    def write(*lines):
        ledger.path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))

    write({name: value for name, value in entry.items() if name not in ("id", "relation")})
    assert ledger.entries() == [Entry("one", laplace(1.0), ("a",))]
    assert "id" not in Entry("one", None).to_json()
    for damaged in ({**note, "given_up": "x"}, {**note, "more": 1}, {"given_up": []}, {**note, "stage": None}):
        write(entry, damaged)
        with pytest.raises(InputError, match="line 3: expected hashes of records that were given up"):
            ledger.entries()
    for wrong in ({"id": 7}, {"kind": None}):
        write({**entry, **wrong})
        with pytest.raises(InputError, match="line 2: expected a ledger entry"):
            ledger.given_up()


def test_a_second_hard_link_would_fork_the_ledger(tmp_path):
    """Planted: two studies share a file by a hard link; each went on with a file of its own, and spent all of it."""
    ledger = Ledger(tmp_path / "ledger.jsonl", 8.0, 0.0)
    ledger.record(Entry("first", laplace(6.0), ("x",)))
    (tmp_path / "b").mkdir()
    other = Ledger(tmp_path / "b" / "ledger.jsonl", 8.0, 0.0)
    other.path.hardlink_to(ledger.path)
    for one in (ledger, other):
        with pytest.raises(InputError, match="2 hard links"):
            one.record(Entry("second", laplace(1.0), ("x",)))
        with pytest.raises(InputError, match="2 hard links"):
            one.give_up(("y",), "flow")
        assert len(one.entries()) == 1
    other.path.unlink()
    ledger.record(Entry("second", laplace(1.0), ("x",)))


def test_a_millionth_beyond_the_total_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 2.0, 0.0)
    ledger.record(Entry("one", laplace(1.0)))
    with pytest.raises(InputError, match="exhausted"):
        ledger.record(Entry("two", laplace(1.000002)))
    ledger.record(Entry("two", laplace(1.0)))


def test_a_line_waits_for_whoever_holds_the_lock(tmp_path):
    """Two writers that hold it together would read the same total, and the later one would lose the other's entry."""
    ledger = Ledger(tmp_path / "ledger.jsonl", 2.0, 0.0)
    writer = threading.Thread(target=ledger.record, args=(Entry("one", laplace(1.0)),))
    with (tmp_path / "ledger.jsonl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert not ledger.path.exists()
    writer.join(30)
    assert [entry.stage for entry in ledger.entries()] == ["one"]
