"""A release and its entry in the ledger find each other by a number, and no other study's entry passes for it."""

from __future__ import annotations

import json

import pytest
from toy_release import run

from diffusion_privacy.mechanisms import export
from diffusion_privacy.mechanisms.ledger import Entry, Ledger
from diffusion_privacy.mechanisms.receipt import by_place, paid_by

pytest.importorskip("dp_accounting")

HASHES = [f"record-{i}" for i in range(10)]


def _publish(folder, ledger, hashes=HASHES):
    return export.publish(run(hashes=hashes), folder / "eps_1", ledger=ledger)


def test_two_releases_of_one_name_each_have_their_own_entry(tmp_path):
    shared, alone = Ledger(tmp_path / "shared.jsonl", 50.0, 1e-5), Ledger(tmp_path / "alone.jsonl", 50.0, 1e-5)
    a, b = _publish(tmp_path / "a", shared), _publish(tmp_path / "b", shared)
    c = _publish(tmp_path / "c", alone)
    first, second = shared.entries()
    assert first.id != second.id
    assert json.loads((a / "manifest.json").read_text())["composition"]["id"] == first.id
    assert (paid_by(shared.entries(), a), paid_by(shared.entries(), b)) == ((first,), (second,))
    assert not by_place(a)
    # Planted: the same name, the same records, and another study's payment.
    assert paid_by(shared.entries(), c) == ()
    assert paid_by([second], a) == ()
    assert paid_by(alone.entries(), c, HASHES) == tuple(alone.entries())


def test_what_was_paid_for_and_not_published_is_paid_for_again(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger.jsonl", 50.0, 1e-5)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(export.os, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            _publish(tmp_path, ledger)
    where = _publish(tmp_path, ledger)
    assert len(ledger.entries()) == 2
    assert paid_by(ledger.entries(), where) == (ledger.entries()[1],)


def _of_an_earlier_version(folder, ledger, hashes=HASHES):
    """Takes the number out of the manifest and the last entry."""
    where = _publish(folder, ledger, hashes)
    path = where / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["composition"]["id"]
    path.write_text(json.dumps(manifest))
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    del lines[-1]["id"]
    ledger.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return where


def test_releases_of_earlier_versions_are_known_by_place_name_and_records(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 50.0, 1e-5)
    others = [f"other-{i}" for i in range(10)]
    a = _of_an_earlier_version(tmp_path / "a", ledger)
    b = _of_an_earlier_version(tmp_path / "b", ledger, others)
    c = _of_an_earlier_version(tmp_path / "c", ledger)
    _publish(tmp_path / "d", ledger)
    entries = ledger.entries()
    assert by_place(a)
    assert paid_by(entries, b, others) == (entries[1],)
    # Which of two of one name and records it is cannot be told: both.
    assert paid_by(entries, a) == paid_by(entries, c, HASHES) == (entries[0], entries[2])
    # Planted: other records at its place, another name, a numbered entry, a ledger that is too short.
    assert paid_by(entries, a, others) == ()
    assert paid_by(entries[1:], c) == ()
    assert paid_by([Entry("release eps_2", entries[0].spend, entries[0].records)], a) == ()
    assert paid_by(entries[3:], a) == ()
    assert paid_by(entries[:2], c) == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"composition": 1}', '{"composition": {"stages": "1"}}'])
def test_a_release_without_a_manifest_to_go_by_is_not_paid_for(tmp_path, text):
    ledger = Ledger(tmp_path / "ledger.jsonl", 50.0, 1e-5)
    where = _of_an_earlier_version(tmp_path, ledger)
    assert paid_by(ledger.entries(), where)
    (where / "manifest.json").write_text(text)
    assert paid_by(ledger.entries(), where) == ()
