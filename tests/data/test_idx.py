"""IDX files round trip, gzipped or not, and every way to break one is refused in one line."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffusion_privacy.data.assemble import level_hashes
from diffusion_privacy.data.idx import read_idx
from diffusion_privacy.data.records import LEVEL_HASH
from diffusion_privacy.data.sources import load
from diffusion_privacy.errors import InputError


def encode(array, kind=0x08):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def pair(tmp_path):
    """Paths of five 3 x 4 images (gzipped, though the name does not say so) and their labels."""
    pixels = np.arange(60, dtype=np.uint8).reshape(5, 3, 4) * 4
    (tmp_path / "images").write_bytes(gzip.compress(encode(pixels), mtime=0))
    (tmp_path / "labels").write_bytes(encode(np.array([3, 1, 3, 0, 9], np.uint8)))
    return tmp_path / "images", tmp_path / "labels"


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)), st.booleans())
def test_round_trip(tmp_path_factory, pixels, zipped):
    file = tmp_path_factory.mktemp("idx") / "images"
    file.write_bytes(gzip.compress(encode(pixels), mtime=0) if zipped else encode(pixels))
    read = read_idx(file, ndim=3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels)


def test_records(pair):
    records = load("idx", images=str(pair[0]), labels=pair[1])
    assert records.image.shape == (5, 3, 4, 1)
    assert (records.num_classes, records.levels) == (10, 256)
    assert records.assumed == ()
    assert records.label.tolist() == [3, 1, 3, 0, 9]
    assert records.identity.tolist() == records.index.tolist() == [0, 1, 2, 3, 4]
    levels = np.round((records.image[..., 0].astype(np.float64) + 1) * 127.5)
    np.testing.assert_array_equal(levels, np.arange(60).reshape(5, 3, 4) * 4)


def test_classes_then_limit_keep_the_position_in_the_source(pair):
    records = load("idx", images=pair[0], labels=pair[1], classes=[3, 9], limit=2)
    assert records.index.tolist() == records.identity.tolist() == [0, 2]
    assert records.label.tolist() == [3, 3]
    assert records.num_classes == 10


HEADER = struct.pack(">BBBB3I", 0, 0, 8, 3, 5, 3, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with 0x; expected the IDX magic number 0x00000803"),
        (b"\0\0\x0d\x03" + HEADER[4:] + bytes(60), "starts with 0x00000d03"),
        (encode(np.zeros((5, 3), np.uint8)), "starts with 0x00000802"),
        (b"PK\x03\x04", "starts with 0x504b0304"),
        (HEADER[:9], "truncated in the header"),
        (HEADER + bytes(59), r"truncated; expected 60 bytes after the header for shape \(5, 3, 4\), found 59"),
        (HEADER + bytes(61), "too long; expected 60 bytes"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3) + bytes(9), "truncated; expected 7"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 3, 4), "zero records"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 5, 0, 4), "no empty axis"),
        (gzip.compress(HEADER + bytes(59), mtime=0), "truncated; expected 60 bytes"),
        (gzip.compress(HEADER + bytes(60), mtime=0)[:-9], "gzip stream is truncated"),
        (gzip.compress(HEADER + bytes(60), mtime=0)[:-8] + bytes(8), "cannot be read .BadGzipFile: CRC check failed"),
        (b"\x1f\x8b\x08\x00" + bytes(6) + b"\xff" * 40, "cannot be read"),
        (b"\x1f\x8b", "gzip stream is truncated"),
    ],
)
def test_broken_files_are_refused(pair, content, message):
    pair[0].write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load("idx", images=pair[0], labels=pair[1])
    assert str(pair[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_kinds_of_path(pair, tmp_path):
    with pytest.raises(InputError, match=r"^labels: .*nowhere does not exist"):
        load("idx", images=pair[0], labels=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"^images: .* is not a file"):
        load("idx", images=tmp_path, labels=pair[1])
    for path in (None, "", 3):
        with pytest.raises(InputError, match=r"^images is .*; expected the path of a file"):
            load("idx", images=path, labels=pair[1])


def test_counts_and_labels_must_fit(pair):
    with pytest.raises(InputError, match=r"labels: label 9 is out of range; expected 0\.\.8"):
        load("idx", images=pair[0], labels=pair[1], num_classes=9)
    with pytest.raises(InputError, match="every class must occur"):
        load("idx", images=pair[0], labels=pair[1], num_classes=None)
    pair[1].write_bytes(encode(np.zeros(4, np.uint8)))
    with pytest.raises(InputError, match="holds 4 labels; expected 5"):
        load("idx", images=pair[0], labels=pair[1])


def test_mnist_counts(shared_data):
    folder = shared_data / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST in {shared_data}")
    records = load("idx", images=folder / "t10k-images-idx3-ubyte.gz", labels=folder / "t10k-labels-idx1-ubyte.gz")
    assert records.image.shape == (10000, 28, 28, 1)
    assert np.bincount(records.label).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_same_levels_in_another_format_are_the_same_records(pair, tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(5, 3, 4) * 4
    np.savez(tmp_path / "set.npz", images=pixels[..., None], labels=np.array([3, 1, 3, 0, 9]))
    from_idx = load("idx", images=pair[0], labels=pair[1])
    from_npz = load("npz", path=str(tmp_path / "set.npz"), num_classes=10, classes=[0, 3, 9])
    assert len(set(from_idx.source_hash)) == 5
    assert from_idx.source_hash.tolist() == level_hashes(read_idx(pair[0], ndim=3))
    assert from_idx.hash_kind == from_npz.hash_kind == LEVEL_HASH
    assert from_npz.source_hash.tolist() == from_idx.source_hash[[0, 2, 3, 4]].tolist()
