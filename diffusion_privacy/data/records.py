"""Labelled images of people, validated once, so that nothing downstream checks a range or a dtype again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from diffusion_privacy.errors import InputError

FILE_HASH, LEVEL_HASH = "bytes of files", "stored grey levels"
ROW_HASH, VALUE_HASH = "cells of rows", "prepared values"
_OLD_ROW_HASH = "rows of a table"
HASH_KINDS = (FILE_HASH, LEVEL_HASH, ROW_HASH, VALUE_HASH, _OLD_ROW_HASH)
"""What a hash of a record may be of: `assemble.bytes_hash`, `assemble.level_hashes`, `mechanisms.table.row_hashes`,
`mechanisms.ledger.value_hashes`. Hashes of two kinds never meet, whatever the records. "rows of a table" is what
earlier versions made of rows: a cell's part in it depended on the kind of its column."""

LIST_OF_CLASSES = "the list of classes"
CLASSES_KEPT = "which records of the source are of the classes kept"
SHARED_NAMES = "which of the files that share a name lies in which class folder"
"""What `Records.assumed` may name."""

_SPLIT_TAG = 0x5350
"""Keeps the draws of a split apart from every other use of the same seed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """N images with label, person and place in the source. Arrays are read-only views of those given.

    Attributes:
      image: float32 ``[N, H, W, C]`` in [-1, 1], N, H, W, C >= 1.
      label: int32 ``[N]`` in [0, num_classes).
      identity: int32 ``[N]`` >= 0; equal numbers mean the same person, and a record whose person is unknown has a
        number of its own. Numbers are comparable only between records loaded from the same source.
      index: int32 ``[N]`` >= 0, the record's position in the source, whatever was left out since.
      num_classes: number of classes of the source, also of those that hold no record here.
      name: what to call the data set in messages and reports.
      levels: number of grey levels of the source, equally spaced on [-1, 1] (for dequantisation).
      source_hash: text ``[N]``, what the private ledger calls each record: a hash of what its source holds (a file's
        bytes, or stored grey levels), the same however the image is resized, converted or planted with a fingerprint.
        None where the source is not at hand.
      hash_kind: which of `HASH_KINDS` these hashes are; empty where that is not known, or without hashes.
      preparation: what was done to the stored images, in words that allow to repeat it; empty for nothing.
      attributes: int32 ``[N, A]`` of 0 and 1, facts about each record that may all hold at once; None where the source
        has none or was not asked for them.
      attribute_names: A different names, in their order.
      listing: how the records are ordered, in words, where the source stores them in no order; else empty.
      assumed: what the source took from the records themselves and nobody stated, of `LIST_OF_CLASSES`,
        `CLASSES_KEPT` and `SHARED_NAMES`: what is released of the records tells it, and no ε counts it.

    Raises:
      InputError: a field has another shape, dtype or range, a pixel is not finite, or there is no record.
    """

    image: np.ndarray
    label: np.ndarray
    identity: np.ndarray
    index: np.ndarray
    num_classes: int
    name: str
    levels: int = 256
    source_hash: np.ndarray | None = None
    preparation: tuple[str, ...] = ()
    attributes: np.ndarray | None = None
    attribute_names: tuple[str, ...] = ()
    hash_kind: str = ""
    listing: str = ""
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_images()
        for field in ("label", "identity", "index"):
            self._check_integers(field)
        self._check_attributes()
        if self.num_classes < 1:
            raise InputError(f"{self.name}: num_classes is {self.num_classes}; expected at least 1")
        if self.label.max() >= self.num_classes:
            raise InputError(
                f"{self.name}: label {self.label.max()} is out of range; expected 0..{self.num_classes - 1}"
            )
        if self.levels < 2:
            raise InputError(f"{self.name}: levels is {self.levels}; expected at least 2 grey levels")
        source = self.source_hash
        if source is not None and (source.dtype.kind != "U" or source.shape != (len(self.image),)):
            raise InputError(f"{self.name}: source_hash is {_describe(source)}; expected text ({len(self.image)},)")
        if self.hash_kind and (source is None or self.hash_kind not in HASH_KINDS):
            raise InputError(
                f"{self.name}: hash_kind is {self.hash_kind!r}; expected one of {HASH_KINDS} beside source_hash, or ''"
            )
        # The digest is cached and a batch is promised to be a function of its number: neither holds if pixels change.
        for field in ("image", "label", "identity", "index", "source_hash", "attributes"):
            if getattr(self, field) is not None:
                view = getattr(self, field).view()
                view.flags.writeable = False
                object.__setattr__(self, field, view)

    def _check_images(self) -> None:
        image = self.image
        if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.ndim != 4:
            raise InputError(f"{self.name}: image is {_describe(image)}; expected a float32 array [N, H, W, C]")
        if len(image) == 0:
            raise InputError(f"{self.name}: holds zero records; expected at least one")
        if 0 in image.shape:
            raise InputError(f"{self.name}: image has shape {image.shape}; expected H, W, C of at least 1")
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = int(np.flatnonzero(~np.isfinite(image).all(axis=(1, 2, 3)))[0])
            raise InputError(f"{self.name}: image {bad} has NaN or infinite pixels; expected numbers in [-1, 1]")
        if low < -1 or high > 1:
            raise InputError(f"{self.name}: image has pixels in [{low:g}, {high:g}]; expected [-1, 1]")

    def _check_integers(self, field: str) -> None:
        value = getattr(self, field)
        if not isinstance(value, np.ndarray) or value.dtype != np.int32 or value.shape != (len(self.image),):
            raise InputError(
                f"{self.name}: {field} is {_describe(value)}; expected an int32 array ({len(self.image)},)"
            )
        if value.min() < 0:
            raise InputError(f"{self.name}: {field} {value.min()} is out of range; expected 0 or more")

    def _check_attributes(self) -> None:
        value, names = self.attributes, self.attribute_names
        if len(set(names)) != len(names) or bool(names) != (value is not None):
            raise InputError(f"{self.name}: attribute_names is {names}; expected a different one for each attribute")
        if value is None:
            return
        shape = (len(self.image), len(names))
        if not isinstance(value, np.ndarray) or value.dtype != np.int32 or value.shape != shape:
            raise InputError(f"{self.name}: attributes is {_describe(value)}; expected an int32 array {shape}")
        wrong = np.argwhere((value != 0) & (value != 1))
        if wrong.size:
            record, one = wrong[0]
            raise InputError(
                f"{self.name}: attribute {names[one]!r} of record {record} is {value[record, one]}; expected 0 or 1"
            )

    def __len__(self) -> int:
        return len(self.image)

    def take(self, indices: np.ndarray | Sequence[int]) -> Records:
        """The records at these positions (not source indices), in this order, repeats allowed.

        Args:
          indices: integers in [0, len(self)), or a Boolean mask ``[len(self)]``.

        Raises:
          InputError: no position, a position outside the range, or something that is not a position.
        """
        wanted = np.asarray(indices)
        if wanted.dtype == bool and wanted.shape == (len(self),):
            wanted = np.flatnonzero(wanted)
        if wanted.size == 0:
            raise InputError(f"{self.name}: zero records were selected; expected at least one")
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InputError(f"{self.name}: positions are {_describe(wanted)}; expected integers [M] or a mask")
        if wanted.min() < 0 or wanted.max() >= len(self):
            worst = wanted.min() if wanted.min() < 0 else wanted.max()
            raise InputError(f"{self.name}: position {worst} is out of range; expected 0..{len(self) - 1}")
        return dataclasses.replace(
            self,
            image=self.image[wanted],
            label=self.label[wanted],
            identity=self.identity[wanted],
            index=self.index[wanted],
            source_hash=None if self.source_hash is None else self.source_hash[wanted],
            attributes=None if self.attributes is None else self.attributes[wanted],
        )

    def with_images(self, images: np.ndarray) -> Records:
        """The same people with other images, e.g. after a mechanism or with a fingerprint planted.

        Args:
          images: floating ``[N, H', W', C']`` in [-1, 1]; kept as float32, and not copied if they are: they may be
            tens of gigabytes.

        Raises:
          InputError: another number of images, not floating, or out of range.
        """
        given = np.asarray(images)
        if given.dtype.kind != "f" or given.shape[:1] != (len(self),):
            raise InputError(f"{self.name}: images are {_describe(given)}; expected {len(self)} floating-point images")
        return dataclasses.replace(self, image=given.astype(np.float32, copy=False))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of images, labels, attributes, people and places: equal for equal data, wherever stored."""
        digest = hashlib.sha256(repr((self.image.shape, self.num_classes, self.levels)).encode())
        digest.update(np.ascontiguousarray(self.image, "<f4").data)
        for array in (self.label, self.identity, self.index):
            digest.update(np.ascontiguousarray(array, "<i4").data)
        if self.attributes is not None:
            digest.update(repr(self.attribute_names).encode())
            digest.update(np.ascontiguousarray(self.attributes, "<i4").data)
        return digest.hexdigest()


def equal_none(images: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which of ``images[M, ...]`` equal no image of ``seen[N, ...]``, bool ``[M]``: pixel by pixel, without tolerance.

    Data sets hold an image twice, under two names. A held-out record that equals a training record tells of that record
    and not of what a model never saw: to an attack it is a member that is called none, which makes the attack look
    weaker than it is.
    """
    # By digests, so that neither side is held a second time.
    ours = [_pixel_digest(image) for image in images]
    wanted = set(ours)
    met = {key for image in seen if (key := _pixel_digest(image)) in wanted}
    return np.array([key not in met for key in ours], bool)


def _pixel_digest(image: np.ndarray) -> bytes:
    # Adding 0 turns −0 into 0.
    return hashlib.sha256((image + 0.0).tobytes()).digest()


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__


def split_records(records: Records, fractions: Sequence[float], seed: int) -> tuple[Records, ...]:
    """Split at random so that no person is in two parts.

    People are shuffled and laid end to end, each as long as their number of records; a person belongs to the part
    that holds the middle of their stretch. Hence each end of a part is off by at most half of the largest person, and
    without repeated people by half a record. The result depends on the identities and the seed, not on pixels.

    Args:
      records: what to split.
      fractions: share of the records for each part, each > 0, sum 1.
      seed: 0 <= seed < 2**32.

    Returns:
      One Records for each fraction, in source order; together they hold every record once.

    Raises:
      InputError: fractions that are not shares, a seed out of range, or a part that would be empty.
    """
    parts = split_positions(records.identity, fractions, seed, records.name)
    return tuple(records.take(part) for part in parts)


def split_positions(
    identity: np.ndarray, fractions: Sequence[float], seed: int, name: str = "records"
) -> tuple[np.ndarray, ...]:
    """`split_records` for anything that has people: the positions of each part, ascending, of ``identity[N]``.

    Raises:
      InputError: as there; ``name`` says of what.
    """
    shares = np.asarray(fractions, np.float64)
    if shares.ndim != 1 or not np.all(shares > 0) or abs(shares.sum() - 1) > 1e-9:
        raise InputError(f"fractions is {list(fractions)}; expected positive shares that sum to 1")
    check_seed(seed)
    _, first, person, size = np.unique(identity, return_index=True, return_inverse=True, return_counts=True)
    # By their first record, not by their number: a number may be a rank among names or values, which one record's
    # exchange would shift for all others.
    by_place = np.argsort(first)
    person, size = np.argsort(by_place)[person], size[by_place]
    order = random_order(len(size), seed, _SPLIT_TAG)
    end = np.cumsum(size[order])
    middle = (end - size[order] / 2) / len(identity)
    part_of_person = np.empty(len(size), np.int64)
    part_of_person[order] = np.searchsorted(np.cumsum(shares)[:-1], middle, side="right")
    part = part_of_person[person]
    counts = np.bincount(part, minlength=len(shares))
    if counts.min() == 0:
        raise InputError(
            f"{name}: fractions {list(fractions)} leave part {int(counts.argmin())} empty;"
            f" expected fewer or larger parts for {len(identity)} records of {len(size)} people"
        )
    return tuple(np.flatnonzero(part == k) for k in range(len(shares)))


def check_seed(seed: int) -> None:
    """Raise InputError unless ``seed`` is a whole number in [0, 2**32)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed!r}; expected a whole number in 0..{2**32 - 1}")


def random_order(n: int, seed: int, *words: int) -> np.ndarray:
    """A uniform permutation of range(n), int64 ``[n]``, as a function of (seed, words), each in [0, 2**32).

    The ranks of raw Philox words: NumPy keeps the raw streams of its bit generators for ever, but not what
    `Generator.permutation` makes of them, and a run must resume under a later NumPy. Ties have probability < n²/2⁶⁵.
    """
    raw = np.random.Philox(np.random.SeedSequence([seed, *words])).random_raw(n)
    return np.argsort(raw, kind="stable")
