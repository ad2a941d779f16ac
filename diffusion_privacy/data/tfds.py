"""Image sets of tensorflow-datasets that are prepared on this machine, read without TensorFlow and without network."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.data.assemble import (
    assemble,
    assumed,
    choose,
    infer_num_classes,
    level_hashes,
    number_people,
    one_line,
)
from diffusion_privacy.data.preparation import Sides, preparation
from diffusion_privacy.data.records import LEVEL_HASH, Records
from diffusion_privacy.errors import InputError, MissingDataError

_DEFAULT_FOLDER = "~/tensorflow_datasets"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def tfds(
    name: str,
    *,
    split: str | None = "train",
    data_dir: str | None = None,
    image: str = "image",
    label: str | None = "label",
    identity: str | None = None,
    attributes: Sequence[str] = (),
    num_classes: int | None = None,
    channels: int | None = None,
    crop: Sides | str | None = None,
    size: Sides | None = None,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
) -> Records:
    """Any image set of tensorflow-datasets, prepared beforehand as array_record (mnist, celeb_a, patch_camelyon, …).

    Nothing is downloaded: what is not prepared ends with the command that prepares it. Records are in stored order.

    Args:
      name: as the catalogue has it: ``"mnist"``, ``"set/config"`` or ``"set/config:1.2.3"``; without a version the
        highest that is there.
      split: ``"train"``, ``"test"``, ``"train+test"``, ``"train[:10%]"``, … `Records.index` counts within it.
        None, as of a flag that was not given: ``"train"``.
      data_dir: where tensorflow-datasets keeps its sets; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
      image: feature that holds the image, uint8 [H, W, 1 or 3].
      label: feature that holds the class: whole numbers or true/false; parts of a name are joined by / as in
        ``"attributes/Male"``. None: one class.
      identity: feature that names the person (whole numbers or text, blank: unknown); None: persons unknown.
      attributes: features with 0 or 1 (true or false) for each record, for `Records.attributes`; the name of a group of
        features stands for all of them, in sorted order, as ``("attributes",)`` of celeb_a. They are named by the
        last part of their names.
      num_classes: how many classes there are, where the set's own description does not say; None: as it says, else as
        many as occur.
      channels, crop, size: see `preparation.Preparation`.
      classes: keep these labels only; labels keep their numbers.
      limit: keep the first so many.

    Raises:
      MissingDataError: the set is not prepared there; the message is the command that does it.
      InputError: another file format, no such split or feature, a feature of another type, images of several sizes.
    """
    prepare = preparation(channels, crop, size)
    folder = prepared_folder(name, data_dir)
    # Without a name the library would return all splits, each by itself.
    split = "train" if split is None else split
    builder, examples = _open(folder, name, split)
    wanted = [feature for feature in (image, label, identity) if feature is not None]
    for feature in wanted:
        _feature(builder.info.features, feature, folder)
    facts = [leaf for feature in attributes for leaf in _leaves(builder.info.features, feature, folder)]
    marks: list[list[int]] = []
    where = f"{name} [{split}]"
    labels = np.zeros(len(examples), np.int64)
    people, images, hashes = [""] * len(examples), [], []
    shape: tuple[int, ...] | None = None
    for i in range(len(examples)):
        example = _example(examples, i, where)
        pixels = _pixels(_take(example, image), f"{where}: {image!r} of example {i}")
        hashes += level_hashes(pixels[None])
        made = prepare(pixels, 255, f"{where}: example {i}")
        shape = made.shape if shape is None else shape
        if made.shape != shape:
            raise InputError(f"{where}: example {i} is {made.shape}; expected {shape} as the first one, or give size")
        images.append(made)
        labels[i] = 0 if label is None else _whole(_take(example, label), f"{where}: {label!r} of example {i}")
        marks.append([_whole(_take(example, fact), f"{where}: {fact!r} of example {i}") for fact in facts])
        people[i] = "" if identity is None else _name(_take(example, identity), f"{where}: {identity!r}")
        if limit is not None and classes is None and i + 1 >= limit:
            labels, people = labels[: i + 1], people[: i + 1]
            break
    if not images:
        raise InputError(f"{where}: holds zero records; expected at least one")
    if num_classes is None:
        num_classes = _num_classes(builder.info.features, label)
    stated = num_classes is not None
    num_classes = infer_num_classes(labels, num_classes, where)
    keep = choose(labels, num_classes, classes, limit, where)
    return assemble(
        np.stack([images[i] for i in keep]),
        labels[keep],
        number_people(people)[keep],
        keep,
        num_classes=num_classes,
        name=where,
        source_hash=[hashes[i] for i in keep],
        hash_kind=LEVEL_HASH,
        preparation=prepare.steps(),
        assumed=assumed(stated, classes),
        attributes=np.asarray(marks)[keep] if facts else None,
        attribute_names=[fact.rpartition("/")[2] for fact in facts],
    )


def prepared_folder(name: object, data_dir: str | None = None) -> Path:
    """Folder of a prepared set; looks at file names only.

    Raises:
      InputError: ``name`` cannot be the name of a set.
      MissingDataError: it is not there; the message is the command that prepares it. Or no name is given.
    """
    if not isinstance(name, str):
        raise MissingDataError(f"name is {name!r}; expected that of a set of tensorflow-datasets")
    base, _, version = name.partition(":")
    if not re.fullmatch(r"\w+(/[\w.-]+)?", base) or (version and not _VERSION.fullmatch(version)):
        raise InputError(f"name is {name!r}; expected set, set/config or set/config:1.2.3")
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_FOLDER).expanduser()
    place = root.joinpath(*base.split("/"))
    found = [p for p in place.iterdir() if (p / "dataset_info.json").is_file()] if place.is_dir() else []
    found = [p for p in found if (p.name == version if version else _VERSION.fullmatch(p.name))]
    if not found:
        raise MissingDataError(
            f"{place}: holds no prepared data set; expected it from `tfds build {base} --file_format=array_record "
            f"--data_dir={root}`, run once with network and tensorflow (where the set's page asks for files fetched by "
            f"hand, put them into {root / 'downloads' / 'manual'} first)"
        )
    return max(found, key=lambda p: tuple(int(n) for n in p.name.split(".")))


def _open(folder: Path, name: str, split: str) -> tuple[Any, Any]:
    """The read-only builder, and the examples of the split."""
    try:
        import tensorflow_datasets
    except ImportError:
        raise InputError("source 'tfds' needs tensorflow-datasets; expected it to be installed") from None
    try:
        builder = tensorflow_datasets.builder_from_directory(str(folder))
    except Exception as error:
        raise InputError(f"{folder}: not a prepared data set ({one_line(error)[:160]})") from error
    stored = builder.info.file_format.value
    if stored != "array_record":
        raise InputError(
            f"{folder}: is stored as {stored}; expected array_record: tfds build {name} --file_format=array_record "
            "--overwrite, once, with tensorflow"
        )
    try:
        return builder, builder.as_data_source(split)
    except Exception as error:
        known = ", ".join(builder.info.splits)
        raise InputError(
            f"split is {split!r}; expected some of {known} in {folder} ({one_line(error)[:120]})"
        ) from error


def _example(examples: Any, i: int, where: str) -> Any:
    try:
        return examples[i]
    except Exception as error:
        # Damaged shards and damaged images raise what their libraries like.
        raise InputError(f"{where}: example {i} cannot be read ({one_line(error)[:160]})") from error


def _feature(features: Any, path: str, folder: Path) -> Any:
    """The feature of this name, parts joined by /."""
    node = features
    for part in path.split("/"):
        # A FeaturesDict behaves like a mapping without being one; a feature has no keys.
        known = sorted(node.keys()) if hasattr(node, "keys") else []
        if part not in known:
            raise InputError(f"{folder}: has no feature {path!r}; expected one of {', '.join(known)}")
        node = node[part]
    return node


def _leaves(features: Any, path: str, folder: Path) -> list[str]:
    """The feature of this name, or all features of the group of this name, sorted."""
    node = _feature(features, path, folder)
    return [f"{path}/{name}" for name in sorted(node.keys())] if hasattr(node, "keys") else [path]


def _take(example: Any, path: str) -> Any:
    for part in path.split("/"):
        example = example[part]
    return example


def _num_classes(features: Any, label: str | None) -> int | None:
    if label is None:
        return 1
    node = features
    for part in label.split("/"):
        node = node[part]
    if getattr(node, "num_classes", None) is not None:
        return int(node.num_classes)
    return 2 if getattr(node, "np_dtype", None) == np.bool_ else None


def _pixels(value: Any, where: str) -> np.ndarray:
    pixels = np.asarray(value)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise InputError(f"{where} is {pixels.dtype} {pixels.shape}; expected uint8 [H, W, 1 or 3]")
    return pixels


def _whole(value: Any, where: str) -> int:
    number = np.asarray(value)
    if number.dtype.kind not in "iub" or number.size != 1:
        raise InputError(f"{where} is {number.dtype} {number.shape}; expected one whole number or true/false")
    return int(number.reshape(()))


def _name(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").strip()
    if isinstance(value, str):
        return value.strip()
    return str(_whole(value, where))
