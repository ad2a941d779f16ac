"""Several studies with one ledger: what one gives up the other does not promise, and none takes the other's payment."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from launching import changed_config
from tiny_cadp import study

from diffusion_privacy import settings_kinds
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import record_spend
from diffusion_privacy.mechanisms.ledger import Entry
from diffusion_privacy.stages import cadp_privatize, cadp_report, cadp_study, cadp_train, run
from diffusion_privacy.stages.workdir import Workdir

pytestmark = pytest.mark.lightly_compiled

# Of the same records: what the first one has as public is in part private in the other.
SPLITS = {
    "first": {"public": 0.5, "private": 0.2, "test": 0.3},
    "other": {"public": 0.3, "private": 0.2, "test": 0.5},
}
GIVEN_UP = (
    r"ledger\.jsonl: \d+ of the \d+ records of the private share were given up as public ones \(public share of a"
)


def _images(root, split="first", changes=None):
    shared = {"split": SPLITS[split], "release.ledger": str(root / "ledger.jsonl"), "release.epsilons": (1.0,)}
    return study({**shared, **(changes or {})})


def _table(root, split="first", changes=None):
    path = root / "t.csv"
    if not path.exists():
        rng = np.random.default_rng(1)
        rows = [f"{pay:.2f},{age:.2f},{'ab'[int(2 * kind)]}" for pay, age, kind in rng.random((120, 3))]
        path.write_text("\n".join(["pay,age,kind", *rows]) + "\n")
    columns = (
        {"name": "pay", "kind": "numeric", "lower": 0.0, "upper": 1.0, "decimals": 2},
        {"name": "age", "kind": "numeric", "lower": 0.0, "upper": 1.0, "decimals": 2},
        {"name": "kind", "kind": "categorical", "categories": ("a", "b")},
    )
    own = {
        "data.source": "csv",
        "data.params": {"path": str(path)},
        "columns.apart": ("kind",),
        "columns.declared": columns,
        "columns.ranges": {},
        "split": SPLITS[split],
        "release.ledger": str(root / "ledger.jsonl"),
        "release.epsilons": (1.0,),
        "evaluation.target": "pay",
    }
    return settings_kinds.parse(changed_config("diabetes_cadp", {**own, **(changes or {})}))


def _opened(settings, folder):
    workdir = Workdir(folder, settings)
    return workdir, cadp_study.load_parts(settings, workdir), cadp_study.make_ledger(settings, workdir)


@pytest.fixture
def untrained(monkeypatch):
    """Training that only looks at what the ledger knows by then: the notes of every study that came as far."""
    seen: list[list[str]] = []

    def look(settings):
        def train(*_, **__):
            workdir = Workdir(Path("unused"), settings)
            seen.append([note.stage for note in cadp_study.make_ledger(settings, workdir).given_up()])

        monkeypatch.setattr(cadp_train.watching, "train", train)
        return seen

    return look


@pytest.mark.parametrize("mode", ["train", "privatize"])
@pytest.mark.parametrize("kind", [_images, _table])
def test_what_was_given_up_as_public_is_not_promised_anything_by_another_split(tmp_path, kind, mode):
    """Planted: the reverse of private first, public later."""
    _, parts, ledger = _opened(kind(tmp_path), tmp_path / "a")
    cadp_study.give_up(ledger, parts)
    [note] = ledger.given_up()
    assert set(note.records) == set(cadp_study.hashes(parts.public))
    assert note.kind == cadp_study.hash_kind(parts.public) != ""
    kept = ledger.path.read_bytes()
    other = kind(tmp_path, "other")
    workdir, theirs, _ = _opened(other, tmp_path / "b")
    assert set(note.records) & set(cadp_study.hashes(theirs.private))
    if mode == "privatize":
        workdir.write_json(workdir.path("train", "trained_on.json"), {"hashes": []})
    with pytest.raises(InputError, match=GIVEN_UP):
        run.run(other, tmp_path / "b", mode)
    assert ledger.path.read_bytes() == kept
    assert not (tmp_path / "b" / "train" / "flow").exists()
    assert not (tmp_path / "b" / "releases").exists()


@pytest.mark.parametrize("kind", [_images, _table])
def test_training_notes_the_public_share_first_and_once_for_all_of_a_split(tmp_path, kind, untrained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = kind(tmp_path)
    seen = untrained(settings)
    for folder in ("a", "b", "a"):
        run.run(settings, tmp_path / folder, "train")
    # The third found the first's training done.
    assert seen == [["public share of a study"]] * 2
    ledger = _opened(settings, tmp_path / "a")[2]
    assert (len(ledger.given_up()), ledger.entries()) == (1, [])
    assert ledger.total().account.epsilon == 0.0
    with pytest.raises(InputError, match=GIVEN_UP):
        run.run(kind(tmp_path, "other"), tmp_path / "c", "train")
    assert len(seen) == 2
    # A study that an earlier version trained leaves its note when it goes on.
    ledger.path.unlink()
    run.run(settings, tmp_path / "a", "train")
    assert len(ledger.given_up()) == 1


def test_copies_of_private_records_in_the_public_share_of_the_same_study_are_not_given_up(tmp_path):
    """Where the flow learns from the private share by DP-SGD nothing forbids them; a public flow is refused."""
    settings = _images(tmp_path)
    _, parts, ledger = _opened(settings, tmp_path / "a")
    copied = np.array(parts.public.source_hash)
    copied[:3] = parts.private.source_hash[:3]
    parts = dataclasses.replace(parts, public=dataclasses.replace(parts.public, source_hash=copied))
    for _ in range(2):
        cadp_study.give_up(ledger, parts)
    ledger.record(Entry("release eps_1", _spend(settings), cadp_study.hashes(parts.private)))
    cadp_study.give_up(ledger, parts)
    [note] = ledger.given_up()
    assert set(note.records) == set(copied[3:].tolist())


def _spend(settings):
    mechanism = cadp_study.make_mechanism(settings, 1.0, 64, 100)
    relation = cadp_study.make_relation(settings)
    return record_spend(mechanism, cadp_study.PublicCondition(10), relation)


def _release(workdir, ledger, settings, hashes, number):
    """What `publish` leaves in a workdir and in the ledger, without the data; no number in earlier versions."""
    path = workdir.path("releases", "eps_1", "manifest.json")
    after = ledger.record(Entry(f"release {path.parent.name}", _spend(settings), hashes, id=number))
    composition = {"stages": after.stages} | ({} if number is None else {"id": number})
    path.write_text(json.dumps({"composition": composition}))
    return path


@pytest.mark.parametrize("earlier", [False, True])
def test_the_payment_of_another_study_is_not_taken_for_one_s_own(tmp_path, earlier):
    """Planted: two workdirs, of equal records, each with its ledger; then one gets the other's."""
    studies = []
    for name in "ab":
        settings = study({"release.epsilons": (1.0,)})
        workdir, parts, ledger = _opened(settings, tmp_path / name)
        hashes = cadp_study.hashes(parts.private)
        if name == "a" and earlier:
            ledger.record(Entry("something else", _spend(settings), hashes))
        _release(workdir, ledger, settings, hashes, None if earlier else f"number {name}")
        cadp_study.check_entered(settings, workdir, ledger, hashes)
        studies.append((settings, workdir, parts, ledger))
    settings, workdir, parts, ledger = studies[0]
    taken = studies[1][3]
    ledger.path.write_bytes(taken.path.read_bytes())
    words = r"ledger\.jsonl: lacks 'release eps_1' of the manifest that is in"
    with pytest.raises(InputError, match=words):
        cadp_study.check_entered(settings, workdir, ledger, cadp_study.hashes(parts.private))
    with pytest.raises(InputError, match=words):
        cadp_report._ledger(settings, workdir, parts.private)
    # The other study is not disturbed, and one that cannot be told for sure is said to be so.
    settings, workdir, parts, ledger = studies[1]
    assert cadp_report._ledger(settings, workdir, parts.private)["taken_on_trust"] == (["eps_1"] if earlier else [])
    if earlier:
        with pytest.raises(InputError, match=words):
            cadp_study.check_entered(settings, workdir, ledger, cadp_study.hashes(parts.test))


@pytest.mark.slow
def test_two_studies_that_divide_the_same_records_in_two_ways(tmp_path):
    """The whole: the first trains and releases, the other is refused before it trains."""
    first = _images(tmp_path, changes={"flow.training.steps": 10})
    workdir, parts, ledger = _opened(first, tmp_path / "a")
    run.run(first, tmp_path / "a", "train")
    assert len(ledger.given_up()) == 1
    # As an earlier version would have left it: the release writes what training did not.
    ledger.path.unlink()
    cadp_privatize.privatize(first, workdir)
    [note], [entry] = ledger.given_up(), ledger.entries()
    assert set(note.records) == set(cadp_study.hashes(parts.public))
    manifest = json.loads((tmp_path / "a" / "releases" / "eps_1" / "manifest.json").read_text())
    assert manifest["composition"]["id"] == entry.id
    with pytest.raises(InputError, match=GIVEN_UP):
        run.run(_images(tmp_path, "other"), tmp_path / "b", "train")
    # The same split goes on with the ledger, and pays.
    run.run(first, tmp_path / "c", "train")
    cadp_privatize.privatize(first, Workdir(tmp_path / "c", first))
    assert len({entry.id for entry in ledger.entries()}) == 2
    assert ledger.total().account.epsilon > 1.4
    assert len(ledger.given_up()) == 1
