"""The secret order of private records: uniform, one for all stages, told by nothing that is given away, never lost.

And what else a release must not tell: a list of classes that was read off the records.
"""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from launching import changed_config
from PIL import Image
from tiny_cadp import study

from diffusion_privacy import settings_kinds
from diffusion_privacy.data import sources
from diffusion_privacy.data.records import CLASSES_KEPT, LIST_OF_CLASSES
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.manifest import GIVEN_ORDER, ORDER_IS_PUBLIC, RANDOM_ORDER
from diffusion_privacy.stages import cadp_privatize, cadp_study, joined_study, private_order, run, watching
from diffusion_privacy.stages.workdir import Workdir

NEARLY_WITHOUT_NOISE = {"release.epsilons": (100_000.0,), "release.total_epsilon": 1e9}


class PixelFlow:
    """Latents are the pixels."""

    model = SimpleNamespace(dims=64)

    def given(self, records):
        return records.label

    def encode(self, images, given, key):
        return self.release_encode(images, given), np.zeros(len(images))

    def release_encode(self, images, given):
        return jnp.reshape(jnp.asarray(images), (len(images), -1))

    def release_decode(self, z, given):
        return jnp.clip(jnp.reshape(z, (-1, 8, 8, 1)), -1, 1)


@pytest.fixture
def pixel_flow(monkeypatch):
    monkeypatch.setattr(cadp_study, "load_flow", lambda settings, workdir, records: PixelFlow())


def _trained(settings, root, order=RANDOM_ORDER):
    """A workdir that says what its flow learnt from, as `cadp_train.fit_flow` writes it; and its records."""
    workdir = Workdir(root, settings)
    if order is None:
        workdir.write_json(workdir.path("train", "trained_on.json"), {"kind": "", "hashes": []})
        return workdir, cadp_study.load_parts(settings, workdir)
    parts = cadp_study.load_parts(settings, workdir)
    learnt = {"kind": parts.public.hash_kind, "hashes": list(cadp_study.hashes(parts.public))}
    workdir.write_json(workdir.path("train", "trained_on.json"), learnt | private_order.note(workdir))
    assert workdir.read_json(root / "train" / "trained_on.json")["order"] == order
    return workdir, parts


def _sorted_set(tmp_path, **params):
    """An archive of 200 images of 4 classes that lie class after class."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(200) // 50)
    return {"data": {"source": "npz", "params": {"path": str(tmp_path / "set.npz"), **params}}}


# --- the order --------------------------------------------------------------------------------------------------------


def test_every_order_is_as_likely_as_every_other(tmp_path):
    """600 draws of 3 records: chi-square of 6 orders, 5 degrees of freedom, above 36 with probability 1e-6."""
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(600):
        private_order._draw(tmp_path / "order.json", np.array([5, 7, 2]))
        order = tuple(json.loads((tmp_path / "order.json").read_text())["order"])
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 36


def test_the_order_is_the_operating_system_s(tmp_path, monkeypatch):
    """A generator that can be seeded, or told from its output, would tell who is who."""
    system = SimpleNamespace(shuffle=lambda order: order.reverse())
    monkeypatch.setattr(private_order.secrets, "SystemRandom", lambda: system)
    private_order._draw(tmp_path / "order.json", np.arange(40))
    assert json.loads((tmp_path / "order.json").read_text())["order"] == list(range(39, -1, -1))


def test_an_order_that_names_a_record_twice_is_refused(tmp_path):
    """Before anything was trained there is no digest that would tell: the record would be released twice."""
    workdir, index = Workdir(tmp_path, study()), np.array([5, 7, 2])
    (tmp_path / private_order.FILE).write_text('{"order": [7, 2, 5]}')
    assert private_order.places(workdir, index).tolist() == [1, 2, 0]
    for order in ("[7, 2, 5, 7]", "[7, 2, 7]", "[7, 2, 5, 9]"):
        (tmp_path / private_order.FILE).write_text(f'{{"order": {order}}}')
        with pytest.raises(InputError, match="expected the order of the 3 private records"):
            private_order.places(workdir, index)


@pytest.mark.parametrize(("folder", "drawn"), [("eps_1", False), (".eps_1.partial", True)])
def test_a_release_of_an_earlier_version_keeps_the_order_even_without_its_manifest(tmp_path, folder, drawn):
    """A new order beside it would put each original beside the release of another; what is half written is none."""
    workdir, index = Workdir(tmp_path, study()), np.arange(40)
    (tmp_path / "releases" / folder).mkdir(parents=True)
    found = private_order.places(workdir, index)
    assert sorted(found.tolist()) == index.tolist()
    assert (found.tolist() != index.tolist(), private_order.is_random(workdir)) == (drawn, drawn)


def test_the_order_is_drawn_once_kept_secret_and_no_function_of_the_seed(tmp_path):
    settings = study()
    one, again, other = (cadp_study.load_parts(settings, Workdir(tmp_path / name, settings)) for name in "aab")
    assert one.private.index.tolist() == again.private.index.tolist() != other.private.index.tolist()
    assert sorted(one.private.index.tolist()) == sorted(other.private.index.tolist())
    # 359 numbers in a random order have 180 ± 5.5 descents; in that of the source none.
    assert 140 < np.count_nonzero(np.diff(one.private.index) < 0) < 220
    assert one.public.index.tolist() == other.public.index.tolist()
    assert (tmp_path / "a" / private_order.FILE).stat().st_mode & 0o777 == 0o600
    # What the file says is where they lie: whoever restores it gets each release beside its original.
    assert json.loads((tmp_path / "a" / private_order.FILE).read_text())["order"] == one.private.index.tolist()
    # Written for everybody to check: in the order of the source.
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    assert split["private"] == sorted(split["private"])


def test_a_release_lies_in_the_secret_order_and_says_so(tmp_path, pixel_flow):
    settings = study({**_sorted_set(tmp_path, num_classes=4), **NEARLY_WITHOUT_NOISE})
    workdir, parts = _trained(settings, tmp_path / "run")
    cadp_privatize.privatize(settings, workdir)
    folder = tmp_path / "run" / "releases" / "eps_100000"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["order"] == RANDOM_ORDER
    assert ORDER_IS_PUBLIC not in manifest["public"]
    written = "".join(p.read_text() for p in folder.rglob("*.json"))
    assert private_order.FILE not in written
    # What is read back lies beside its originals, in this order and in no other.
    again = cadp_study.load_parts(settings, workdir).private
    released = cadp_study.load_release(workdir, 100_000.0, again).records
    for original, found in ((again, released), (parts.private, released)):
        gaps = np.abs(original.image[:, None] - found.image[None]).mean((2, 3, 4))
        assert gaps.argmin(axis=1).tolist() == list(range(len(original)))
    stored = np.load(folder / "data.npz")["label"]
    assert stored.tolist() == again.label.tolist()
    # Runs of a random order of 4 classes of about 10: 31 ± 2.5; class after class: 4.
    assert 1 + np.count_nonzero(np.diff(stored)) > 15
    entry = cadp_study.make_ledger(settings, workdir).entries()[-1]
    assert list(entry.records) == sorted(cadp_study.hashes(again))


def test_a_workdir_of_an_earlier_version_keeps_the_order_of_the_source(tmp_path, pixel_flow):
    settings = study({**_sorted_set(tmp_path, num_classes=4), **NEARLY_WITHOUT_NOISE})
    workdir, parts = _trained(settings, tmp_path / "run", order=None)
    assert parts.private.index.tolist() == sorted(parts.private.index.tolist())
    assert not (tmp_path / "run" / private_order.FILE).exists()
    cadp_privatize.privatize(settings, workdir)
    manifest = json.loads((tmp_path / "run" / "releases" / "eps_100000" / "manifest.json").read_text())
    assert manifest["order"] == GIVEN_ORDER
    assert ORDER_IS_PUBLIC in manifest["public"]
    (tmp_path / "run" / "train" / "trained_on.json").unlink()
    assert cadp_study.load_parts(settings, workdir).private.index.tolist() == parts.private.index.tolist()


@pytest.mark.parametrize("left", ["train", "releases"])
def test_a_lost_order_is_refused_by_every_stage(tmp_path, pixel_flow, left):
    settings = study({**_sorted_set(tmp_path, num_classes=4), **NEARLY_WITHOUT_NOISE})
    workdir, _ = _trained(settings, tmp_path)
    if left == "releases":
        cadp_privatize.privatize(settings, workdir)
        (tmp_path / "train" / "trained_on.json").unlink()
    (tmp_path / private_order.FILE).unlink()
    for mode in ("train", "evaluate", "audit", *(["privatize"] if left == "train" else [])):
        with pytest.raises(InputError, match="expected the order that the private records of this workdir lie in"):
            run.run(settings, tmp_path, mode)
    assert not (tmp_path / private_order.FILE).exists()


@pytest.mark.parametrize(
    "text", ["{}", "[1, 2]", '{"order": [0, 1]}', '{"order": ["a"]}', '{"order": 5}', '{"order": [[1]]}', "{"]
)
def test_an_order_of_other_records_is_refused(tmp_path, text):
    settings = study()
    workdir, _ = _trained(settings, tmp_path)
    (tmp_path / private_order.FILE).write_text(text)
    with pytest.raises(InputError, match=private_order.FILE):
        cadp_study.load_parts(settings, workdir)


def test_training_notes_that_there_is_an_order(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "train", lambda *args, **options: None)
    run.run(study(), tmp_path, "train")
    learnt = json.loads((tmp_path / "train" / "trained_on.json").read_text())
    assert learnt["order"] == RANDOM_ORDER
    assert learnt["order_sha256"] == hashlib.sha256((tmp_path / private_order.FILE).read_bytes()).hexdigest()


def test_the_order_of_another_workdir_is_refused(tmp_path):
    settings = study()
    workdir, _ = _trained(settings, tmp_path / "a")
    _trained(settings, tmp_path / "b")
    other = (tmp_path / "b" / private_order.FILE).read_bytes()
    (tmp_path / "a" / private_order.FILE).write_bytes(other)
    with pytest.raises(
        InputError, match=r"expected the order of the \d+ private records of this workdir, found another"
    ):
        cadp_study.load_parts(settings, workdir)


def test_marked_records_come_first_and_the_others_anyhow(tmp_path):
    config = changed_config("digits_release", {"marks.private": 3})
    settings = settings_kinds.parse(config)
    one, again, other = (joined_study.load_sets(settings, Workdir(tmp_path / name, settings)) for name in "aab")
    first, same, another = (sets.parts.private.index.tolist() for sets in (one, again, other))
    assert first == same
    assert first[:3] == another[:3] == one.roles.private.index.tolist()
    assert first != another
    assert sorted(first) == sorted(another)
    # A random order of n has n/2 ± sqrt(n/12) descents.
    assert abs(np.count_nonzero(np.diff(first[3:]) < 0) / len(first[3:]) - 0.5) < 0.2
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    assert split["private"] == [*first[:3], *sorted(first[3:])]


def test_a_workdir_whose_files_are_listed_in_another_order_now_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((8, 8), 20 * (name == "b") + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{name}{i}.png")
    params = {"path": str(tmp_path / "set")}
    settings = study({"data": {"source": "image_folder", "params": params}})
    workdir = Workdir(tmp_path / "run", settings)
    cadp_study.load_parts(settings, workdir)
    cadp_study.load_parts(settings, workdir)
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    # As earlier versions wrote it, which listed class after class.
    workdir.write_json(tmp_path / "run" / "data.json", {k: v for k, v in data.items() if k != "listing"})
    with pytest.raises(InputError, match=r"set: holds other records now than when"):
        cadp_study.load_parts(settings, workdir)
    workdir.write_json(tmp_path / "run" / "data.json", data)
    (tmp_path / "set" / "a" / "a0.png").unlink()
    with pytest.raises(InputError, match=r"set: holds other records now than when"):
        cadp_study.load_parts(settings, workdir)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("drop", True), ({"age": "category", "pay": "drop"}, True), ("category", False), ({"age": "error"}, False)],
)
def test_who_is_kept_of_a_table_is_called_public_where_rows_may_be_left_out(missing, said):
    """By the policy and not by what it finds: that nothing was left out is a fact about the rows as well."""
    settings = settings_kinds.parse(changed_config("csv_cadp", {"data.params.missing": missing}))
    rows = SimpleNamespace()
    assert cadp_privatize.assumed_public(settings, rows) == ((cadp_privatize.ROWS_KEPT,) if said else ())


# --- classes ----------------------------------------------------------------------------------------------------------

RANDOMISED = {"release.relation": "replace-record-and-condition", "release.label_epsilon": 0.5, **NEARLY_WITHOUT_NOISE}


@pytest.mark.parametrize("mode", ["train", "privatize"])
def test_a_randomised_class_needs_a_stated_list_of_classes(tmp_path, pixel_flow, mode):
    """Otherwise a class that one private record has is published, or cannot be, by that record alone."""
    settings = study({**_sorted_set(tmp_path), **RANDOMISED})
    _trained(settings, tmp_path / "run")
    with pytest.raises(InputError, match=r"^config\.data\.params\.num_classes: expected .*class_names"):
        run.run(settings, tmp_path / "run", mode)
    assert not (tmp_path / "run" / "releases").exists()


def test_a_stated_list_of_classes_is_called_public(tmp_path, pixel_flow):
    data = _sorted_set(tmp_path, num_classes=5, classes=[0, 1, 2])
    settings = study({**data, **RANDOMISED})
    workdir, _ = _trained(settings, tmp_path / "run")
    cadp_privatize.privatize(settings, workdir)
    manifest = json.loads((tmp_path / "run" / "releases" / "eps_100000" / "manifest.json").read_text())
    assert {LIST_OF_CLASSES, CLASSES_KEPT} <= set(manifest["public"])
    assert manifest["condition_epsilon"] == pytest.approx(0.5)


def test_classes_that_nobody_has_count_as_those_that_somebody_has():
    """Digits state ten classes, whoever is kept."""
    condition = cadp_study.make_condition(study(RANDOMISED), sources.load("digits", classes=[0, 1]))
    assert condition.classes == 10


def test_names_shared_by_class_folders_are_refused_with_a_randomised_class(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / name / f"{i}.png")
    records = sources.load("image_folder", path=tmp_path, class_names=["a", "b", "c"])
    with pytest.raises(InputError, match=r"config\.data\.params\.path: files of one name lie in several class folders"):
        cadp_study.make_condition(study(RANDOMISED), records)
    assert cadp_study.make_condition(study(), records).classes == 3
