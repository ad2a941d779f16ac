"""A release on the disk: whole or absent, and paid for first."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from toy_release import PUBLIC, gaussian, run

from diffusion_privacy.data.image_folder import image_folder
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import export
from diffusion_privacy.mechanisms.accounting import Spend
from diffusion_privacy.mechanisms.calibration import gaussian_epsilon, gaussian_multiplier
from diffusion_privacy.mechanisms.condition import (
    PublicCondition,
)
from diffusion_privacy.mechanisms.ledger import Entry, Ledger
from diffusion_privacy.mechanisms.manifest import FlowProvenance
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD
from diffusion_privacy.mechanisms.release import privatise

dp_accounting = pytest.importorskip("dp_accounting")


def test_images_are_written_whole(tmp_path):
    from PIL import Image

    out = run(hashes=[f"record-{i}" for i in range(10)])
    ledger = Ledger(tmp_path / "ledger.jsonl", 1.3, 1e-5)
    where = export.publish(out, tmp_path / "out", ledger=ledger, class_names=["a", "b", "c"])
    assert sorted(p.name for p in (where / "images").iterdir()) == ["a", "b", "c"]
    pictures = sorted((where / "images").rglob("*.png"))
    arrays = np.load(where / "data.npz")
    assert len(pictures) == len(arrays["image"]) == len(arrays["label"]) == 10
    np.testing.assert_array_equal(np.asarray(Image.open(where / "images" / "b" / "1.png")), arrays["image"][1, ..., 0])
    manifest = json.loads((where / "manifest.json").read_text())
    assert manifest["composition"]["guarantee"] is True
    assert manifest["composition"]["epsilon_covered_stages"] == pytest.approx(1.0)
    assert not any(h in (where / "manifest.json").read_text() for h in out.hashes)
    with pytest.raises(InputError, match="exists"):
        export.publish(out, where, ledger=ledger)
    with pytest.raises(InputError, match="exhausted"):
        export.publish(run(), tmp_path / "second", ledger=ledger)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.jsonl.lock", "out"]


def test_a_crash_leaves_nothing(tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export.os, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        export.publish(run(), tmp_path / "out", ledger=None)
    assert list(tmp_path.iterdir()) == []


def test_tables_keep_their_header_and_count(tmp_path):
    out = run()
    rows = [[float(r.mean()), "x,y"] for r in out.data]
    where = export.publish(out, tmp_path / "out", ledger=None, table=rows, header=["mean", "name"])
    with (where / "data.csv").open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == ["mean", "name"]
    assert len(read) == 11
    with pytest.raises(InputError, match="10 records came in, 9"):
        export.publish(out, tmp_path / "short", ledger=None, table=rows[:9], header=["mean", "name"])
    assert not (tmp_path / "short").exists()


def test_ledger_must_know_the_private_flow(tmp_path):
    spend = Spend(dp_accounting.GaussianDpEvent(8.0), "add-or-remove-one")
    out = run(flow=FlowProvenance("dp-sgd", None, spend, stage="flow, run 2"))
    ledger = Ledger(tmp_path / "ledger.jsonl", 5.0, 1e-5)
    # Another run with the same settings, and this one with less noise than was paid for.
    unpaid = (
        Entry("flow, run 1", spend),
        Entry("flow, run 2", Spend(dp_accounting.GaussianDpEvent(9.0), "add-or-remove-one")),
    )
    for entry in (None, *unpaid):
        if entry is not None:
            ledger.record(entry)
        with pytest.raises(InputError, match="no entry 'flow, run 2' with the event"):
            export.publish(out, tmp_path / "out", ledger=ledger)
    assert not (tmp_path / "out").exists()
    paid = Ledger(tmp_path / "paid.jsonl", 5.0, 1e-5)
    paid.record(Entry("flow, run 2", spend, out.hashes))
    where = export.publish(out, tmp_path / "out", ledger=paid)
    composition = json.loads((where / "manifest.json").read_text())["composition"]
    assert composition["epsilon_covered_stages"] == pytest.approx(out.manifest.epsilon)


def test_mechanism_only_spoils_the_ledger(tmp_path):
    out = run(flow=FlowProvenance("mechanism-only"))
    ledger = Ledger(tmp_path / "ledger.jsonl", 1.5, 1e-5)
    where = export.publish(out, tmp_path / "out", ledger=ledger)
    assert json.loads((where / "manifest.json").read_text())["composition"]["guarantee"] is False
    with pytest.raises(InputError, match="no guarantee"):
        ledger.record(Entry("another", out.spend))


def test_the_ledger_knows_a_record_again_however_it_was_prepared(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 8), np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "src" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "src" / str(i % 2) / f"{i}.png")
    shape = {8: (8, 8, 1), 4: (4, 4, 1)}

    def go(size, private, hashes=True, flow=PUBLIC):
        found = image_folder(str(tmp_path / "src"), size=size).take(private)
        return privatise(
            lambda x, c: x.reshape(x.shape[0], -1), lambda z, c: z.reshape(-1, *shape[size]),
            found.image, found.label, mechanism=gaussian(), condition=PublicCondition(2), relation=REPLACE_RECORD,
            delta=1e-5, flow=flow, hashes=found.source_hash if hashes else None, batch_size=6,
        )  # fmt: skip

    def several(k):
        return gaussian_epsilon(gaussian_multiplier(1.0, 1e-5) / np.sqrt(k), 1e-5)

    ledger = Ledger(tmp_path / "ledger.jsonl", 1.9, 1e-5)
    export.publish(go(8, [0, 1, 2]), tmp_path / "one", ledger=ledger)
    # Other records: in parallel. Smaller, one of them is the same record: its ε adds up.
    assert ledger.total().account.epsilon == pytest.approx(1.0)
    export.publish(go(4, [3, 4]), tmp_path / "two", ledger=ledger)
    assert ledger.total().account.epsilon == pytest.approx(1.0)
    overlapping = go(4, [2, 5])
    assert overlapping.manifest.record_identity == "source"
    export.publish(overlapping, tmp_path / "three", ledger=ledger)
    assert ledger.total().account.epsilon == pytest.approx(several(2))
    # Without the source every record may be among these.
    unknown = go(4, [5], hashes=False)
    assert (unknown.hashes, unknown.manifest.record_identity) == (None, "prepared values")
    export.publish(unknown, tmp_path / "four", ledger=ledger)
    assert ledger.total().account.epsilon == pytest.approx(several(3))
    # A flow that learnt from the larger image is not public for the smaller one.
    learnt = FlowProvenance("public", frozenset(image_folder(str(tmp_path / "src"), size=8).source_hash.tolist()))
    with pytest.raises(InputError, match="2 of the 2 records"):
        go(4, [2, 5], flow=learnt)
    with pytest.raises(InputError, match="one for each of 10"):
        run(hashes=["a"])


def test_a_public_flow_gives_up_what_it_learnt_from(tmp_path):
    """Planted: two releases, each by a flow that was trained without noise on the records of the other."""

    def go(private, public):
        return run(hashes=[f"{private}{i}" for i in range(10)], flow=FlowProvenance("public", frozenset(public)))

    ledger = Ledger(tmp_path / "ledger.jsonl", 50.0, 1e-5)
    export.publish(go("a", ["b1", "b2", "c1"]), tmp_path / "one", ledger=ledger)
    assert [line.records for line in ledger.given_up()] == [("b1", "b2", "c1")]
    export.publish(go("a", ["b1", "c1"]), tmp_path / "two", ledger=ledger)
    assert len(ledger.given_up()) == 1
    with pytest.raises(InputError, match="2 of the 10 records of 'release three' were given up as public ones"):
        export.publish(go("b", ["d1"]), tmp_path / "three", ledger=ledger)
    with pytest.raises(InputError, match="1 of the 2 records of the public share are in it as private ones"):
        export.publish(go("e", ["a3", "f1"]), tmp_path / "four", ledger=ledger)
    assert not (tmp_path / "three").exists()
    assert not (tmp_path / "four").exists()
    # Without source hashes the ledger would never know these again.
    export.publish(run(flow=FlowProvenance("public", frozenset(["g1"]))), tmp_path / "five", ledger=ledger)
    assert all("g1" not in line.records for line in ledger.given_up())


def test_class_names_cannot_leave_the_folder(tmp_path):
    for names in (["a", "..", "c"], ["a", "x/y", "c"], ["a", "b"], ["a", "a", "c"]):
        with pytest.raises(InputError, match="class_names"):
            export.publish(run(), tmp_path / "out", ledger=None, class_names=names)
    assert list(tmp_path.iterdir()) == []
