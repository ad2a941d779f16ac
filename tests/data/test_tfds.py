"""A set prepared here by tensorflow-datasets itself, without TensorFlow; and what a user reads where none is."""

import io
import sys
import time

import numpy as np
import pytest

tensorflow_datasets = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("array_record")

from diffusion_privacy.data.records import LEVEL_HASH  # noqa: E402
from diffusion_privacy.data.sources import load, require  # noqa: E402
from diffusion_privacy.errors import InputError, MissingDataError  # noqa: E402

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)


def _prepare(folder, file_format="array_record"):
    features = tensorflow_datasets.features

    class TinyScans(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self):
            parts = {
                "image": features.Image(shape=(None, None, 3)),
                "label": features.ClassLabel(names=["ill", "well"]),
                "patient": features.Text(),
                "attributes": {"Male": np.bool_},
                "size": np.float32,
            }
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(parts))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, pixels in enumerate(PIXELS):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                file.seek(0)
                male = {"Male": i > 2}
                yield i, {"image": file, "label": i % 2, "patient": f"p{i // 2}", "attributes": male, "size": 1.0}

    TinyScans(data_dir=str(folder), file_format=file_format).download_and_prepare()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    _prepare(place)
    return place


def test_records_of_a_prepared_set_without_tensorflow(folder):
    records = load("tfds", name="tiny_scans", data_dir=str(folder), identity="patient")
    order = [int(np.flatnonzero((p == PIXELS).all(axis=(1, 2, 3)))[0]) for p in _levels(records)]
    assert sorted(order) == list(range(6))  # stored shuffled
    assert records.label.tolist() == [i % 2 for i in order]
    assert records.identity.tolist() == [i // 2 for i in order]
    assert (records.num_classes, records.assumed) == (2, ())
    assert records.index.tolist() == list(range(6))
    small = load("tfds", name="tiny_scans:1.0.0", data_dir=str(folder), channels=1, crop="square", size=4, limit=3)
    assert small.image.shape == (3, 4, 4, 1)
    assert (small.source_hash == records.source_hash[:3]).all()
    assert small.hash_kind == LEVEL_HASH
    assert "tensorflow" not in sys.modules
    male = load("tfds", name="tiny_scans", data_dir=str(folder), label="attributes/Male", split="train[:50%]")
    assert (male.label.tolist(), male.num_classes) == ([int(i > 2) for i in order[:3]], 2)
    assert (male.attributes, male.attribute_names) == (None, ())
    for names in (["attributes"], ["attributes/Male"]):
        facts = load("tfds", name="tiny_scans", data_dir=str(folder), label=None, attributes=names, classes=[0])
        assert facts.attribute_names == ("Male",)
        assert facts.attributes.tolist() == [[int(i > 2)] for i in order]
    with pytest.raises(InputError, match="has no feature 'attributes/Old'"):
        load("tfds", name="tiny_scans", data_dir=str(folder), attributes=["attributes/Old"])
    with pytest.raises(InputError, match="'size' of example 0 is float"):
        load("tfds", name="tiny_scans", data_dir=str(folder), attributes=["size"])
    assert load("tfds", name="tiny_scans", data_dir=str(folder), label=None).num_classes == 1
    unset = load("tfds", name="tiny_scans", data_dir=str(folder), split=None, size=None)
    assert (unset.digest, unset.name) == (load("tfds", name="tiny_scans", data_dir=str(folder)).digest, records.name)


def _levels(records):
    return np.rint((records.image.astype(np.float64) + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"name": "../x"}, "name is '../x'; expected set"),
        ({"split": "dev"}, "split is 'dev'; expected some of train"),
        ({"label": "labels"}, "has no feature 'labels'; expected one of attributes, image, label"),
        ({"label": "label/x"}, "has no feature 'label/x'"),
        ({"label": "size"}, "'size' of example 0 is float64"),
        ({"image": "label"}, r"'label' of example 0 is int64 \(\); expected uint8"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_bad_requests_are_refused(folder, params, message):
    with pytest.raises(InputError, match=message) as caught:
        load("tfds", **{"name": "tiny_scans", "data_dir": str(folder), **params})
    assert "\n" not in str(caught.value)


def test_a_set_that_is_not_prepared_says_how_at_once(tmp_path, folder):
    start = time.monotonic()
    params = {"name": "celeb_a", "data_dir": str(tmp_path)}
    for call in (lambda: load("tfds", **params), lambda: require("tfds", params)):
        with pytest.raises(MissingDataError, match="tfds build celeb_a --file_format=array_record") as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(MissingDataError, match=r"^name is None; expected that of a set"):
        require("tfds", {"name": None})
    with pytest.raises(MissingDataError, match="expected it from"):
        load("tfds", name="tiny_scans:2.0.0", data_dir=str(folder))
    assert time.monotonic() - start < 2  # no network is asked


def test_another_format_and_damage_are_refused(folder, tmp_path):
    import json
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    place = tmp_path / "copy" / "tiny_scans" / "1.0.0"
    shard = next(place.glob("*array_record*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=r"tiny_scans") as caught:
        load("tfds", name="tiny_scans", data_dir=str(tmp_path / "copy"))
    assert "\n" not in str(caught.value)
    info = json.loads((place / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (place / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="is stored as tfrecord; expected array_record"):
        load("tfds", name="tiny_scans", data_dir=str(tmp_path / "copy"))
    (place / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="not a prepared data set"):
        load("tfds", name="tiny_scans", data_dir=str(tmp_path / "copy"))
