"""The records that a config names, how to obtain what is missing, and who is where, written down."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_privacy.data import people, sources
from diffusion_privacy.data.records import Records
from diffusion_privacy.data.table_rows import Rows
from diffusion_privacy.errors import InputError, MissingDataError
from diffusion_privacy.settings import Data
from diffusion_privacy.stages.workdir import DATA, SPLIT, Workdir

_LOG = logging.getLogger(__name__)


def _with_instruction(error: MissingDataError, data: Data, where: str) -> MissingDataError:
    if not data.obtain:
        return error
    return MissingDataError(f"{where}.params: {error}. {' '.join(data.obtain.split())}")


def _names_a_field(error: InputError, data: Data) -> bool:
    """Whether the message begins with the name of a parameter of the source."""
    known = inspect.signature(sources.SOURCES[data.source]).parameters if data.source in sources.SOURCES else ()
    return str(error).partition(" ")[0].rstrip(":") in known


def require(data: Data) -> None:
    """Looks whether the data are there, without reading them.

    Raises:
      MissingDataError: they are not; the message ends with ``data.obtain``.
    """
    try:
        sources.require(data.source, data.params)
    except MissingDataError as error:
        raise _with_instruction(error, data, "config.data") from None


def load(data: Data, where: str = "config.data") -> Records:
    """The records of an image source.

    Args:
      data: which, and with what parameters.
      where: its place in the config, for messages.

    Raises:
      InputError: see `sources.load`; a parameter is named by its place in the config, and missing data come with
        ``data.obtain``.
    """
    try:
        return sources.load(data.source, **data.params)
    except MissingDataError as error:
        raise _with_instruction(error, data, where) from None
    except InputError as error:
        if _names_a_field(error, data):
            raise InputError(f"{where}.params.{error}") from error
        raise


def write_split(
    workdir: Workdir,
    like: Records | Rows,
    index: Mapping[str, np.ndarray],
    identity: Mapping[str, np.ndarray],
    sets: Mapping[str, Records | Rows],
) -> None:
    """Writes once who is in which set, so that anyone can check that nobody is in two; later refuses other records.

    split.json holds the records' numbers in the source by set. data.json holds, of images, shape, grey levels, how
    files without an order were listed and what was done to the stored images, and, where several records are one
    person's, a pseudonym a record in the order of split.json: one person has one pseudonym in all sets, and the salt
    behind it is kept nowhere (`people.pseudonyms`). Its ``digests`` say what the records were. A source may change
    between two stages (another export, a file that came or went, another library that resamples); what was trained on
    would then be taken for held out.

    Args:
      workdir: where to. A workdir of a version that kept no digests gets them now.
      like: records of the source.
      index, identity: int [n] by set, see `Records`.
      sets: the records by set, clean: a fingerprint planted elsewhere may differ in the last bit. Sets whose records
        are all in another one may be left out.

    Raises:
      InputError: a set holds other records than when this workdir was made.
    """
    path, described = workdir.path(SPLIT), workdir.path(DATA)
    digests = {name: one.digest for name, one in sets.items()}
    numbers = {name: value.tolist() for name, value in index.items()}
    if not path.exists():
        workdir.write_json(described, {**_described(like, index, identity), "digests": digests})
        workdir.write_json(path, numbers)
        return
    found = workdir.read_json(described) if described.exists() else _described(like, index, identity)
    listed = {name: like.listing if isinstance(like, Records) else "" for name in numbers}
    _require_same(workdir, like.name, _other(listed, dict.fromkeys(numbers, found.get("listing", ""))))
    _require_same(workdir, like.name, _other(numbers, workdir.read_json(path)))
    known = found.get("digests", {})
    _require_same(workdir, like.name, _other(digests, known))
    if missing := [name for name in digests if name not in known]:
        _LOG.info("%s: no digest of %s there yet, as an earlier version left it; written now", described, missing)
        workdir.write_json(described, {**found, "digests": {**known, **digests}})


def _other(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """The names under which both have something, and not the same."""
    return [name for name, value in now.items() if name in then and then[name] != value]


def _require_same(workdir: Workdir, source: str, other: list[str]) -> None:
    if other:
        raise InputError(
            f"{source}: holds other records now than when {workdir.root} was made (sets {', '.join(other)}); models "
            "there may have been trained on what is held out now; expected the data as they were, or another --workdir "
            "(earlier versions listed class folders in another order, and gave no place to rows that are left out)"
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
