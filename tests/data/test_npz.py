"""MedMNIST and plain archives: people across splits, and every way to break one."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest

from diffusion_privacy.data.records import CLASSES_KEPT, LIST_OF_CLASSES, split_records
from diffusion_privacy.data.sources import load
from diffusion_privacy.errors import InputError

SIZES = {"train": 6, "val": 3, "test": 2}


def medmnist(colour=False):
    """Arrays in which every pixel of image i (counted through the splits) is 20·i, labels alternate 0 and 1."""
    arrays, start = {}, 0
    for split, n in SIZES.items():
        index = np.arange(start, start + n)
        shape = (n, 4, 5, 3) if colour else (n, 4, 5)
        arrays[f"{split}_images"] = np.broadcast_to((20 * index).reshape(-1, *[1] * (len(shape) - 1)), shape).astype(
            "u1"
        )
        arrays[f"{split}_labels"] = (index % 2).astype("u1")[:, None]
        start += n
    return arrays


def save(folder, arrays):
    file = folder / "set.npz"
    np.savez_compressed(file, **arrays)
    return str(file)


def save_table(folder, rows, header=("split", "index", "label", "patient")):
    file = folder / "people.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(file)


TABLE = [
    ("val", 0, 0, "b"),
    ("val", 1, 1, ""),
    ("val", 2, 0, "c"),
    *[("train", i, i % 2, name) for i, name in enumerate(["a", "a", "b", "", "d", "d"])],
]


@pytest.mark.parametrize("colour", [False, True])
def test_splits(tmp_path, colour):
    path = save(tmp_path, medmnist(colour))
    records = load("npz", path=path, split="val")
    assert records.image.shape == (3, 4, 5, 3 if colour else 1)
    assert records.label.tolist() == [0, 1, 0]
    assert records.index.tolist() == records.identity.tolist() == [6, 7, 8]
    assert (records.num_classes, records.levels, records.name) == (2, 256, "set.npz [val]")
    np.testing.assert_allclose((records.image[:, 0, 0, 0] + 1) * 127.5, [120, 140, 160], atol=1e-4)


def test_joined_splits_come_in_the_order_of_the_file(tmp_path):
    path = save(tmp_path, medmnist())
    both = load("npz", path=path, split="test+train", limit=7, classes=[0])
    assert both.index.tolist() == [0, 2, 4, 10]
    np.testing.assert_allclose((both.image[:, 0, 0, 0] + 1) * 127.5, [0, 40, 80, 200], atol=1e-4)


def test_people_from_a_table_are_the_same_in_every_split(tmp_path):
    path, table = save(tmp_path, medmnist()), save_table(tmp_path, TABLE)
    parts = {
        s: load("npz", path=path, split=s, identities=table).identity.tolist() for s in ("train", "val", "train+val")
    }
    assert parts["train"] + parts["val"] == parts["train+val"]
    a, a2, b, unknown, d, d2, b2, unknown2, c = parts["train+val"]
    assert (a, b, d) == (a2, b2, d2)
    assert len({a, b, c, d, unknown, unknown2}) == 6
    train, test = split_records(load("npz", path=path, split="train+val", identities=table), (0.6, 0.4), 0)
    assert not set(train.identity.tolist()) & set(test.identity.tolist())


def test_a_plain_archive_with_people(tmp_path):
    arrays = {
        "images": np.zeros((4, 2, 2), "u1"),
        "labels": np.array([0, 1, 2, 1]),
        "patient": np.array(["x", "y", "x", ""]),
    }
    path = save(tmp_path, arrays)
    assert load("npz", path=path).identity.tolist() == [0, 1, 0, 2]
    table = save_table(tmp_path, [(3, "p"), (1, "p"), (0, "q"), (2, "r")], ("index", "patient"))
    assert load("npz", path=path, identities=table).identity.tolist() == [1, 0, 2, 0]
    path = save(tmp_path, {**arrays, "who": np.array([7, 7, 5, 5]), "raw": np.array([b"s", b"t", b"s", b"s"])})
    assert load("npz", path=path, identity_array="who").identity.tolist() == [1, 1, 0, 0]
    assert load("npz", path=path, identity_array="raw").identity.tolist() == [0, 1, 0, 0]


def test_people_from_arrays_beside_each_split(tmp_path):
    arrays = medmnist() | {"train_patient": np.array(list("ppqqrr")), "val_patient": np.array(list("qst"))}
    path = save(tmp_path, arrays)
    assert load("npz", path=path, split="val").identity.tolist() == [1, 3, 4]
    assert load("npz", path=path, split="test").identity.tolist() == [5, 6]
    with pytest.raises(InputError, match="array 'test_patient' is missing"):
        load("npz", path=path, split="test", identity_array="patient")


NAN = np.zeros((6, 4, 5), np.float32)
NAN[2, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": NAN}, "'train_images' holds float32 with 1 NaN pixels; expected uint8"),
        ({"train_images": np.zeros((6, 4, 5), "u2")}, "'train_images' holds uint16; expected uint8"),
        ({"train_images": np.zeros((6, 20), "u1")}, r"shape \(6, 20\); expected \[N, H, W\]"),
        ({"train_images": np.zeros((6, 4, 5, 5), "u1")}, r"\(6, 4, 5, 5\); expected"),
        ({"train_images": np.zeros((6, 0, 5), "u1")}, "H and W of at least 1"),
        ({"train_images": np.array(None)}, "'train_images' is damaged or pickled .ValueError: Object arrays"),
        ({"train_images": np.zeros((5, 4, 5), "u1")}, "'train_labels' holds 6 labels; expected 5"),
        ({"train_images": np.zeros((0, 4, 5), "u1"), "train_labels": np.zeros(0, "u1")}, "zero records"),
        ({"train_labels": np.zeros((6, 14), "u1")}, r"'train_labels' has shape \(6, 14\).*one label each"),
        ({"train_labels": np.array(1)}, r"'train_labels' has shape \(\)"),
        ({"train_labels": np.zeros(6)}, "'train_labels' holds float64; expected whole numbers"),
        ({"train_labels": np.array([0, 1, 0, -1, 0, 1])}, "label -1 is out of range"),
        ({"train_labels": np.array([0, 1, 0, 5, 0, 1])}, "label 5 is out of range; .*every class must occur"),
        ({"train_labels": np.full(6, 2**64 - 1, np.uint64)}, "label 18446744073709551615, which is out of range"),
        ({"train_patient": np.array(["a", "b"])}, r"'train_patient' is <U1 \(2,\); expected 6 strings"),
        ({"train_patient": np.zeros(6)}, "'train_patient' is float64"),
    ],
)
def test_broken_arrays_are_refused(tmp_path, changes, message):
    path = save(tmp_path, medmnist() | changes)
    with pytest.raises(InputError, match=message) as caught:
        load("npz", path=path, split="train")
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_declared_classes_bound_the_labels(tmp_path):
    path = save(tmp_path, medmnist())
    assert load("npz", path=path, split="train", num_classes=4).num_classes == 4
    with pytest.raises(InputError, match=r"label 1 is out of range; expected 0\.\.0$"):
        load("npz", path=path, split="train", num_classes=1)


def test_broken_files_are_refused(tmp_path):
    whole = Path(save(tmp_path, medmnist())).read_bytes()
    damaged = bytearray(whole)
    middle = whole.index(b"train_images.npy") + 60
    damaged[middle : middle + 20] = bytes(20)
    for content, message in [
        (b"", "not a complete npz"),
        (whole[: len(whole) // 2], "not a complete npz"),
        (b"hello", "not a complete npz"),
        (pickle.dumps({"train_images": 1}), "not a complete npz"),
        (bytes(damaged), "'train_images' is damaged"),
    ]:
        file = tmp_path / "broken.npz"
        file.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            load("npz", path=file, split="train")
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(InputError, match="single array; expected an npz"):
        load("npz", path=tmp_path / "single.npy")
    with pytest.raises(InputError, match="does not exist"):
        load("npz", path=tmp_path / "nowhere.npz")


def test_pickles_are_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = save(tmp_path, medmnist() | {"train_patient": np.array([Bomb()] * 6, dtype=object)})
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(InputError, match="pickled"):
        load("npz", path=path, split="train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("split", [None, "", "dev", "train+train", "train+dev", 3])
def test_unknown_splits_are_refused(tmp_path, split):
    with pytest.raises(InputError, match="expected one of train, val, test"):
        load("npz", path=save(tmp_path, medmnist()), split=split)


def test_archives_of_another_layout_are_refused(tmp_path):
    with pytest.raises(InputError, match="found arrays x; expected 'images' and 'labels'"):
        load("npz", path=save(tmp_path, {"x": np.zeros(3)}))
    plain = {"images": np.zeros((2, 2, 2), "u1"), "labels": np.zeros(2, "u1")}
    with pytest.raises(InputError, match="expected no split"):
        load("npz", path=save(tmp_path, plain), split="train")
    with pytest.raises(InputError, match="array 'labels' is missing; found images"):
        load("npz", path=save(tmp_path, {"images": plain["images"]}))
    mixed = medmnist() | {"val_images": np.zeros((3, 4, 6), "u1")}
    with pytest.raises(InputError, match=r"'val_images' has images \(4, 6, 1\); expected \(4, 5, 1\)"):
        load("npz", path=save(tmp_path, mixed), split="train+val")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (TABLE[1:], ("split", "index", "label", "patient"), "2 rows for split 'val'; expected index 0..2 once each"),
        ([*TABLE, TABLE[0]], ("split", "index", "label", "patient"), "4 rows for split 'val'"),
        (TABLE, ("split", "index", "label", "name"), "column 'patient' stands 0 times"),
        (TABLE, ("split", "index", "patient", "patient"), "column 'patient' stands 2 times"),
        ([("val", "x", 0, "b")], ("split", "index", "label", "patient"), "index in row 2 is 'x'"),
        ([("val", 0, 1, "b"), *TABLE[1:]], ("split", "index", "label", "patient"), "label in row 2 differs"),
        ([], ("split", "index", "patient"), "header only"),
        ([("val", 0)], ("split", "index", "patient"), "row 2 has 2 cells; expected 3"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, rows, header, message):
    path, table = save(tmp_path, medmnist()), save_table(tmp_path, rows, header)
    with pytest.raises(InputError, match=message) as caught:
        load("npz", path=path, split="val", identities=table)
    assert table in str(caught.value)


def test_unreadable_tables_are_refused(tmp_path):
    path = save(tmp_path, medmnist())
    (tmp_path / "people.csv").write_bytes(b"split,index,patient\n\xff\xfe,0,a\n")
    with pytest.raises(InputError, match="not a readable CSV"):
        load("npz", path=path, split="val", identities=tmp_path / "people.csv")
    (tmp_path / "people.csv").write_bytes(b"")
    with pytest.raises(InputError, match="column 'split' stands 0 times"):
        load("npz", path=path, split="val", identities=tmp_path / "people.csv")
    with pytest.raises(InputError, match="expected one of them"):
        load("npz", path=path, split="val", identities=tmp_path / "people.csv", identity_array="patient")


def test_pneumonia_patients(shared_data):
    path, table = shared_data / "pneumoniamnist.npz", shared_data / "pneumoniamnist_patients.csv"
    if not (path.is_file() and table.is_file()):
        pytest.skip(f"no PneumoniaMNIST with patients in {shared_data}")
    train, val = (load("npz", path=path, split=split, identities=table) for split in ("train", "val"))
    assert np.bincount(train.label).tolist() == [1214, 3494]
    assert np.bincount(val.label).tolist() == [135, 389]
    shared = set(train.identity.tolist()) & set(val.identity.tolist())
    assert len(shared) == 190
    assert int(np.isin(val.identity, list(shared)).sum()) == 225
    with pytest.raises(InputError, match="0 rows for split 'test'"):
        load("npz", path=path, split="test", identities=table)
    whole = load("npz", path=path, split="train+val", identities=table)
    members, others = split_records(whole, (0.9, 0.1), seed=0)
    assert not set(members.identity.tolist()) & set(others.identity.tolist())


def test_chest_patients(shared_data):
    path = shared_data / "cxr_patients_64.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {shared_data}")
    records = load("npz", path=path)
    assert records.image.shape == (2205, 64, 64, 1)
    assert np.bincount(records.label).tolist() == [200, 1607, 398]
    assert len(np.unique(records.identity)) == 643


def test_classes_are_stated_or_said_to_be_read_off_the_records(tmp_path):
    path = save(tmp_path, medmnist())
    assert load("npz", path=path, split="val").assumed == (LIST_OF_CLASSES,)
    assert load("npz", path=path, split="val", num_classes=2).assumed == ()
    assert load("npz", path=path, split="val", num_classes=2, classes=[1]).assumed == (CLASSES_KEPT,)
    # Whether a finding is there has two answers, although no record may give one of them.
    np.savez(path, images=np.zeros((3, 4, 5), np.uint8), labels=np.ones((3, 2), np.uint8))
    ill = load("npz", path=path, finding="any")
    assert (ill.num_classes, ill.assumed) == (2, ())
