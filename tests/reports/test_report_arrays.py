"""Report arrays survive their file; damage is told by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sample_release import make_arrays

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports.arrays import load_arrays, save_arrays


def test_round_trip(tmp_path: Path) -> None:
    arrays = make_arrays()
    save_arrays(tmp_path / "a.npz", arrays)
    back = load_arrays(tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(back.samples, arrays.samples)
    np.testing.assert_array_equal(back.private_original, arrays.private_original)
    assert set(back.regenerated) == {"private", "control"}
    np.testing.assert_array_equal(back.regenerated["private"].hits, arrays.regenerated["private"].hits)


def test_hits_may_be_left_out(tmp_path: Path) -> None:
    arrays = make_arrays()
    private = dataclasses.replace(arrays.regenerated["private"], hits=None)
    save_arrays(tmp_path / "a.npz", dataclasses.replace(arrays, regenerated={"private": private}))
    assert load_arrays(tmp_path / "a.npz").regenerated["private"].hits is None


def test_ranked_records_may_be_left_out(tmp_path: Path) -> None:
    arrays = make_arrays()
    save_arrays(tmp_path / "a.npz", arrays)
    back = load_arrays(tmp_path / "a.npz").listed
    assert arrays.listed is not None
    assert back is not None
    np.testing.assert_array_equal(back.records, arrays.listed.records)
    np.testing.assert_array_equal(back.hits, arrays.listed.hits)
    save_arrays(tmp_path / "a.npz", dataclasses.replace(arrays, listed=None))
    assert load_arrays(tmp_path / "a.npz").listed is None
    with pytest.raises(ValueError, match=r"distances: expected shape \(2,\)"):
        dataclasses.replace(arrays.listed, distances=np.zeros(3))


def test_truncated_missing_and_incomplete_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match=r"a\.npz"):
        load_arrays(path)
    save_arrays(path, make_arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.npz"):
        load_arrays(path)
    np.savez(path, samples=np.zeros((1, 8, 8, 1)))
    with pytest.raises(InputError, match="missing"):
        load_arrays(path)


@pytest.mark.parametrize("name", ["nearest", "distances", "private_original", "control_images", "loss"])
def test_shapes_must_agree(name: str) -> None:
    arrays = make_arrays()
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(arrays, **{name: np.zeros((3, 4))})
