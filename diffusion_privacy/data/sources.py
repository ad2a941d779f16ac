"""The data sets that a config can name. A new source is a function that returns `Records` and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_privacy.data.assemble import assemble, assumed, choose, construct, existing_file, existing_folder
from diffusion_privacy.data.dicom_folder import dicom_folder
from diffusion_privacy.data.idx import idx
from diffusion_privacy.data.image_folder import image_folder
from diffusion_privacy.data.npz import npz
from diffusion_privacy.data.records import Records
from diffusion_privacy.data.tfds import prepared_folder, tfds
from diffusion_privacy.errors import InputError


def digits(*, classes: Sequence[int] | None = None, limit: int | None = None) -> Records:
    """The 1,797 handwritten digits that ship inside scikit-learn: 8x8, grey levels 0..16, classes 0..9.

    The test part of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository 1998. Who wrote
    which digit is not recorded.

    Args:
      classes: keep these digits only; labels keep their numbers.
      limit: keep the first so many.

    Raises:
      InputError: see `assemble.choose`.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    label = bunch.target.astype(np.int64)
    keep = choose(label, 10, classes, limit, "digits")
    pixels = bunch.images[keep].astype(np.int64)
    return assemble(
        pixels, label[keep], keep, keep, num_classes=10, name="digits", levels=17, assumed=assumed(True, classes)
    )


SOURCES: dict[str, Callable[..., Records]] = {
    "digits": digits,
    "idx": idx,
    "npz": npz,
    "tfds": tfds,
    "image_folder": image_folder,
    "dicom_folder": dicom_folder,
}
"""Constructors by the name that a config gives. Tables have their own: `table_sources.TABLES`."""

_NEEDED: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "idx": lambda p: (existing_file(p.get("images"), "images"), existing_file(p.get("labels"), "labels")),
    "npz": lambda p: existing_file(p.get("path"), "path"),
    "tfds": lambda p: prepared_folder(p.get("name"), p.get("data_dir")),
    "image_folder": lambda p: existing_folder(p.get("path"), "path"),
    "dicom_folder": lambda p: existing_folder(p.get("path"), "path"),
}
"""What must be there before a source can be read, found without reading it."""


def require(source: str, params: Mapping[str, Any]) -> None:
    """Looks whether the files of a source are there, and at nothing else.

    Raises:
      MissingDataError: they are not.
    """
    if source in _NEEDED:
        _NEEDED[source](params)


def load(source: str, **params: object) -> Records:
    """Records of a named source; ``params`` are the arguments of its constructor, by name.

    Raises:
      InputError: an unknown source, an argument that it does not take or lacks, or what the constructor raises; a
        source that returns something else, or two records of one place.
    """
    records = construct(SOURCES, "source", source, params)
    if not isinstance(records, Records):
        found = type(records).__name__
        raise InputError(f"source {source!r} returned {found}; expected Records, as assemble.assemble makes them")
    places, counts = np.unique(records.index, return_counts=True)
    if np.any(counts > 1):
        # Sets and the private record are found by their places.
        twice = int(places[np.argmax(counts)])
        raise InputError(f"{records.name}: index {twice} stands {counts.max()} times; expected a place for each record")
    return records
