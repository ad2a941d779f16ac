"""Colour, crop and size: against Pillow, against counting by hand, and from every array source."""

import gzip

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from diffusion_privacy.data.preparation import Preparation, preparation  # noqa: E402
from diffusion_privacy.data.sources import load  # noqa: E402
from diffusion_privacy.errors import InputError  # noqa: E402

COLOUR = np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8)


def test_grey_is_that_of_pillow_at_every_level():
    every = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    grey = preparation(channels=1)(every, 255, "x")
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(every).convert("L")))
    same = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    np.testing.assert_array_equal(preparation(channels=1)(same, 255, "x"), same[..., :1])
    np.testing.assert_array_equal(preparation(channels=3)(same[..., :1], 255, "x"), same)


def test_the_crop_is_the_middle():
    pixels = np.arange(7 * 4, dtype=np.uint8).reshape(7, 4, 1)
    np.testing.assert_array_equal(preparation(crop="square")(pixels, 255, "x"), pixels[1:5])
    np.testing.assert_array_equal(preparation(crop=(3, 2))(pixels, 255, "x"), pixels[2:5, 1:3])
    with pytest.raises(InputError, match=r"x: is 7 x 4 .*at least the crop of 5 x 5"):
        preparation(crop=5)(pixels, 255, "x")


def test_size_8_bits_is_pillows_and_16_bits_agrees_to_a_level():
    made = preparation(size=(5, 4))(COLOUR, 255, "x")
    expected = np.asarray(Image.fromarray(COLOUR).resize((4, 5), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(made, expected)
    wide = preparation(size=(5, 4))(COLOUR.astype(np.uint16) * 257, 65535, "x")
    assert np.abs(wide / 257 - expected).max() <= 1
    sharp = np.zeros((8, 8, 1), np.uint16)
    sharp[4:] = 65535
    stretched = preparation(size=32)(sharp, 65535, "x")
    assert stretched.min() == 0
    assert stretched.max() == 65535


def test_the_steps_are_said_in_their_order():
    said = preparation(channels=1, crop="square", size=28).steps()
    assert [line.split(":")[0] for line in said] == ["grey", "crop", "size"]
    assert "28 x 28 by Pillow" in said[-1]
    assert Preparation().steps() == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"channels": 2}, "channels is 2"),
        ({"channels": True}, "channels is True"),
        ({"crop": "circle"}, "crop is 'circle'"),
        ({"crop": 0}, "crop is 0"),
        ({"size": (3,)}, r"size is \(3,\)"),
        ({"size": 2.5}, r"size is 2\.5"),
    ],
)
def test_what_cannot_be_meant_is_refused(params, message):
    with pytest.raises(InputError, match=message):
        preparation(**params)


def test_array_sources_prepare_and_keep_their_hashes(tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    labels = np.array([[0], [1], [1], [0]], np.uint8)
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels)
    plain = load("npz", path=tmp_path / "set.npz", split="train")
    made = load("npz", path=tmp_path / "set.npz", split="train", channels=1, crop="square", size=3)
    assert plain.preparation == ()
    assert made.image.shape == (4, 3, 3, 1)
    assert len(made.preparation) == 3
    assert (made.source_hash == plain.source_hash).all()
    with gzip.open(tmp_path / "i.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 8]) + images[..., 0].tobytes())
    (tmp_path / "l").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 4]) + labels.tobytes())
    files = {"images": str(tmp_path / "i.gz"), "labels": str(tmp_path / "l")}
    assert load("idx", **files, channels=3, size=(2, 4)).image.shape == (4, 2, 4, 3)
    assert load("idx", **files, limit=2).image.shape == (2, 6, 8, 1)


def test_findings_of_a_multi_label_archive(tmp_path):
    labels = np.array([[0, 0, 1], [0, 0, 0], [1, 0, 1]], np.uint8)
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 2, 2), np.uint8), labels=labels)
    assert load("npz", path=tmp_path / "set.npz", finding="any").label.tolist() == [1, 0, 1]
    assert load("npz", path=tmp_path / "set.npz", finding=0).label.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="or give finding"):
        load("npz", path=tmp_path / "set.npz")
    with pytest.raises(InputError, match=r"finding is 3; expected 'any' or a number in 0\.\.2"):
        load("npz", path=tmp_path / "set.npz", finding=3)
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 2, 2), np.uint8), labels=labels + 1)
    with pytest.raises(InputError, match="expected 0 and 1"):
        load("npz", path=tmp_path / "set.npz", finding=0)
