"""The records that a config names, how to obtain what is missing, and who is where, written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_privacy.data import people, sources
from diffusion_privacy.data.records import Records
from diffusion_privacy.data.table_rows import Rows
from diffusion_privacy.errors import InputError, MissingDataError
from diffusion_privacy.settings import Data
from diffusion_privacy.stages.workdir import Workdir


def _with_instruction(error: MissingDataError, data: Data) -> MissingDataError:
    if not data.obtain:
        return error
    return MissingDataError(f"config.data.params: {error}. {' '.join(data.obtain.split())}")


def require(data: Data) -> None:
    """Looks whether the data are there, without reading them.

    Raises:
      MissingDataError: they are not; the message ends with ``data.obtain``.
    """
    try:
        sources.require(data.source, data.params)
    except MissingDataError as error:
        raise _with_instruction(error, data) from None


def load(data: Data) -> Records:
    """The records of an image source.

    Raises:
      InputError: see `sources.load`; of missing data with ``data.obtain``.
    """
    try:
        return sources.load(data.source, **data.params)
    except MissingDataError as error:
        raise _with_instruction(error, data) from None


def write_split(
    workdir: Workdir, like: Records | Rows, index: Mapping[str, np.ndarray], identity: Mapping[str, np.ndarray]
) -> None:
    """Writes once who is in which set, so that anyone can check that nobody is in two; later looks whether it is so.

    split.json holds the records' numbers in the source by set. data.json holds, of images, shape, grey levels, how
    files without an order were listed and what was done to the stored images, and, where several records are one
    person's, a pseudonym a record in the order of split.json: one person has one pseudonym in all sets, and the salt
    behind it is kept nowhere (`people.pseudonyms`).

    Args:
      workdir: where to.
      like: records of the source.
      index, identity: int [n] by set, see `Records`.

    Raises:
      InputError: the sets are others than those written down: numbers would mean other records.
    """
    path = workdir.path("split.json")
    if path.exists():
        _check_same(workdir, like, index)
        return
    workdir.write_json(workdir.path("data.json"), _described(like, index, identity))
    workdir.write_json(path, {name: numbers.tolist() for name, numbers in index.items()})


def _check_same(workdir: Workdir, like: Records | Rows, index: Mapping[str, np.ndarray]) -> None:
    written, data = workdir.read_json(workdir.root / "split.json"), workdir.root / "data.json"
    listing = workdir.read_json(data).get("listing", "") if data.exists() else ""
    now = like.listing if isinstance(like, Records) else ""
    if listing != now or any(written[name] != index[name].tolist() for name in set(written) & set(index)):
        raise InputError(
            f"{workdir.root / 'split.json'}: {like.name} would have other records in the sets than when this workdir "
            "began; expected the data as they were, or another workdir (this version lists class folders in another "
            "order than earlier ones, and rows of a table that are left out have places)"
        )


def _described(
    like: Records | Rows, index: Mapping[str, np.ndarray], identity: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    numbers, who = np.concatenate(list(index.values())), np.concatenate(list(identity.values()))
    found: dict[str, Any] = {"name": like.name, "people": None}
    if isinstance(like, Records):
        found |= {
            "shape": [int(v) for v in like.image.shape[1:]],
            "levels": like.levels,
            "num_classes": like.num_classes,
            "preparation": list(like.preparation),
        }
        if like.listing:
            found["listing"] = like.listing
    if len(np.unique(who)) < len(np.unique(numbers)):
        names = iter(people.pseudonyms(who))
        found["people"] = {name: [next(names) for _ in part] for name, part in identity.items()}
    return found
