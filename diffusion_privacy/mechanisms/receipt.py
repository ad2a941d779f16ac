"""Which entries of a ledger pay for a release that is there.

By the number that was drawn for it and stands in both. A name does not tell: two studies with one ledger may each have
a ``release eps_1``, of the same records or of others.

Releases of earlier versions have no number. Their manifest says how many entries the ledger had with their own, so that
one is looked for at its place. In a ledger into which such a release was never entered another study's may stand there;
`by_place` says that this cannot be told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_privacy.mechanisms.entries import Entry


def paid_by(entries: Sequence[Entry], directory: Path, records: Sequence[str] | None = None) -> tuple[Entry, ...]:
    """The entries that pay for the release in ``directory``; empty where there is none, or no manifest to go by.

    One entry. Of a release without a number all those of its name and records, if one of them stands at its place.

    Args:
      entries: of the ledger, all of them.
      directory: folder of the release, by whose name it was entered.
      records: source hashes of the records that were released, where they are at hand.
    """
    composition = _composition(directory)
    start = f"release {directory.name}"
    # That of metric privacy goes on with its promise, see `export.publish`.
    named = [entry for entry in entries if entry.stage == start or entry.stage.startswith(f"{start} (")]
    if "id" in composition:
        return tuple(entry for entry in named if entry.id == composition["id"])
    place = composition.get("stages", 0)
    if not isinstance(place, int) or not 0 < place <= len(entries):
        return ()
    own = entries[place - 1]
    if own.id is not None or own not in named or (records and own.records not in (None, tuple(sorted(records)))):
        return ()
    return tuple(entry for entry in named if entry.id is None and entry.records == own.records)


def by_place(directory: Path) -> bool:
    """Whether the release in ``directory`` is one of an earlier version, so that another study's entry may pass for its
    own."""
    return "id" not in _composition(directory)


def _composition(directory: Path) -> dict[str, Any]:
    """What the manifest says of the ledger; nothing where it says nothing, so that nothing pays for the release."""
    try:
        return dict(json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["composition"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
