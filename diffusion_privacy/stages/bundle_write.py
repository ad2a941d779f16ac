"""Writes what is given away: a bundle with a model (`bundle`), complete or absent, or the card of a private copy.

The guarantee in it is that of the weights or of the copy. What is measured on the private records themselves stays out
unless it is asked for, because no guarantee covers it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy import __version__, settings
from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import files
from diffusion_privacy.mechanisms.export import complete_or_absent, sync, write_text
from diffusion_privacy.reports import card, joined_schema, joined_standing
from diffusion_privacy.rounding import promised
from diffusion_privacy.stages.bundle import CARD, CONFIG, MANIFEST, SCHEMA_VERSION, WEIGHTS, Model, require_layout
from diffusion_privacy.types import PyTree


def write_model_bundle(
    folder: Path,
    *,
    params: PyTree,
    model: Model,
    way: str,
    release: Mapping[str, Any],
    show_risk: bool = False,
    allow_unprotected: bool = False,
) -> Path:
    """Writes a model with its card as ``folder``, which must not exist.

    Args:
      folder: complete or absent, whatever happens.
      params: the averaged parameters, nested dictionaries of arrays (`training.checkpoint.restore_ema`).
      model: what they are parameters of.
      way: the model's name in ``release["ways_to_share"]``.
      release: `joined_schema.JoinedRelease`; validated here.
      show_risk: print the measured rates and attacks on the card. They are statistics of the private records that the
        guarantee does not cover: right where the records are public, or for a bundle that stays inside.
      allow_unprotected: write a model that `card.reasons_against` speaks against; the card's first line then says that
        it must not be given away.

    Returns:
      ``folder``.

    Raises:
      InputError: there is no such way, it is not a model, it is unprotected, the parameters do not fit the network or
        are no parameters alone, or the folder exists. Nothing is left behind.
    """
    entry, against = _entry(release, way, "model", allow_unprotected)
    tensors = _own_weights(model, params)
    conditional = model.labels.conditional
    contents = {
        WEIGHTS: files.safetensors_bytes(tensors),
        CONFIG: _json({"schema": SCHEMA_VERSION, **settings.to_dict(model)}),
        CARD: card.render(
            entry,
            against=against,
            show_risk=show_risk,
            reading=_reading(model),
            code=_CODE.replace('"."', '".", label=0') if conditional else _CODE,
            source=_source(release),
        ).encode(),
    }
    with complete_or_absent(Path(folder)) as temporary:
        for name, content in contents.items():
            _write(temporary / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        _write(temporary / MANIFEST, _json(_manifest(entry, way, release, against, show_risk, hashes)))
    return Path(folder)


def write_card(
    folder: Path,
    *,
    way: str,
    release: Mapping[str, Any],
    show_risk: bool = False,
    allow_unprotected: bool = False,
) -> Path:
    """Puts the card beside a private copy that `mechanisms.export.publish` wrote; returns its path.

    Args:
      folder: the release, with its manifest.
      way: its name in ``release["ways_to_share"]``.
      release, show_risk, allow_unprotected: as in `write_model_bundle`.

    Raises:
      InputError: as there; or no release is in ``folder``, it has a card already, or its manifest promises less than
        the report does.
    """
    folder = Path(folder)
    entry, against = _entry(release, way, "data set", allow_unprotected)
    manifest, path = files.read_json(folder / MANIFEST), folder / CARD
    if path.exists():
        raise InputError(f"{path}: exists already; a release is never overwritten")
    _require_as_much(folder / MANIFEST, manifest, entry["guarantee"])
    images = (folder / "data.npz").exists()
    text = card.render(
        entry,
        against=against,
        show_risk=show_risk,
        reading=_IMAGES if images else _TABLE,
        code=_IMAGES_CODE if images else _TABLE_CODE,
        source=_source(release),
    )
    temporary = path.with_name(f".{path.name}.partial")
    write_text(temporary, text)
    os.replace(temporary, path)
    sync(folder)
    return path


def _entry(
    release: Mapping[str, Any], way: str, kind: str, allow_unprotected: bool
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The way's entry and what speaks against giving it away; refused if anything does, unless that is allowed."""
    joined_schema.validate(release)
    ways = release["ways_to_share"]
    if way not in ways:
        raise InputError(f"bundle: expected one of {', '.join(ways)}, got {way!r}")
    entry = ways[way]
    if entry["kind"] != kind:
        raise InputError(f"bundle: expected a {kind}, but {way} is a {entry['kind']}")
    against = tuple(dict.fromkeys([*card.reasons_against(entry), *joined_standing.reasons_against(release, way)]))
    if against and not allow_unprotected:
        raise InputError(
            f"bundle: {way} is not to be given away, {'; '.join(against)}; expected allow_unprotected to write it all "
            "the same"
        )
    return entry, against


def _require_as_much(path: Path, manifest: Mapping[str, Any], guarantee: Mapping[str, Any]) -> None:
    """The report's ε must not be below what the release itself says, at the same δ or a smaller one."""
    claimed = guarantee["epsilon"]
    if claimed is None:
        return
    if not {"epsilon", "delta", "guarantee"} <= set(manifest):
        raise InputError(f"{path}: expected the manifest of a release, with epsilon, delta and guarantee")
    found = manifest["epsilon"]
    if found is None or str(manifest["guarantee"]).startswith("none"):
        raise InputError(f"{path}: promises nothing end to end, but the report claims ε = {promised(claimed)}")
    if guarantee["delta"] <= manifest["delta"] and claimed < found * (1 - 1e-6):
        raise InputError(
            f"{path}: promises ε = {promised(found)} at δ = {promised(manifest['delta'])}, the report claims "
            f"{promised(claimed)}"
        )


def _own_weights(model: Model, params: PyTree) -> dict[str, np.ndarray]:
    """The tensors of ``params``, of exactly the network's layout."""
    if not isinstance(params, Mapping):
        raise InputError(
            f"bundle.params: expected nested dictionaries of averaged parameters, got {type(params).__name__}"
        )
    tensors = files.flat(params)
    require_layout("bundle.params", model, tensors)
    return tensors


def _manifest(
    entry: Mapping[str, Any],
    way: str,
    release: Mapping[str, Any],
    against: tuple[str, ...],
    show_risk: bool,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    guarantee = {name: value for name, value in entry["guarantee"].items() if name != "certified"}
    return {
        "schema": SCHEMA_VERSION,
        "kind": entry["kind"],
        "way": way,
        "title": entry["title"],
        "to_be_given_away": not against,
        "reasons_against": list(against),
        "guarantee": guarantee,
        "guarantee_covers": [WEIGHTS],
        "risk_on_card": show_risk,
        "files": dict(hashes),
        # No hash of the configuration: whoever guesses the rest of it could try all seeds.
        "report": {"schema_version": release["schema_version"]},
        "versions": {**release["versions"], "diffusion-privacy": __version__},
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _source(release: Mapping[str, Any]) -> str:
    program = release["program"]
    return f"{program['name']} {program['version']}"


# --- words ------------------------------------------------------------------------------------------------------------

_CODE = """
import jax

from diffusion_privacy.anonymity import montecarlo
from diffusion_privacy.stages import bundle

score, chain, shape = bundle.load(".")
images = montecarlo.sample(chain, score, shape, 16, jax.random.key(0))  # float32 in [-1, 1], [16, H, W, C]
"""

_IMAGES_CODE = """
import numpy as np

with np.load("data.npz") as file:
    images, labels = file["image"], file["label"]  # uint8 [N, H, W, C]; int32 [N]
"""

_TABLE_CODE = """
import csv

with open("data.csv", encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
"""

_IMAGES = ("The same images lie below `images/`, as PNG. `manifest.json` states the mechanism and its parameters.",)
_TABLE = ("`manifest.json` states the mechanism and its parameters.",)


def _reading(model: Model) -> tuple[str, ...]:
    height, width, channels = model.shape
    sampler = model.sampler
    lines = [
        f"Images of {height} x {width} pixels and {channels} channel{'s' if channels > 1 else ''}, drawn in "
        f"{sampler.steps} steps ({sampler.kernel}, {sampler.spacing}). `{WEIGHTS}` holds the averaged weights, "
        f"`{CONFIG}` the rest; `load` compares both with the hashes of `{MANIFEST}` and reads nothing else. With this "
        "package installed, in this folder:",
    ]
    labels = model.labels
    if labels.conditional:
        names = f" ({', '.join(labels.names)})" if labels.names else ""
        lines.insert(0, f"It draws one of {labels.number} classes{names} at a time: `label` is its number, from 0.")
    if labels.conditional and labels.shares:
        shares = ", ".join(f"{share:.3g}" for share in labels.shares)
        lines.insert(1, f"Shares of the classes among the records: {shares}. Usefulness was measured with these.")
    return tuple(lines)
