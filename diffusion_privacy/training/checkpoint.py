"""Checkpoints: atomic, asynchronous, checked when they are read. The only file that knows orbax.

A checkpoint holds three items: ``state`` (step, params, opt_state), ``ema`` (the averaged parameters, which later
stages read alone) and ``meta`` (JSON: who wrote it, the data iterator, and the layout and checksum of every other
item). Arrays are stored as plain host arrays, so that any number of devices or processes can read them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import sharding
from diffusion_privacy.training.state import TrainState
from diffusion_privacy.types import PyTree

FOLDER = "checkpoints"
_ITEMS = ("state", "ema", "meta")
_FORMAT = 1


class Restored(NamedTuple):
    """What a checkpoint gives back: the state as numpy arrays, and the JSON that was saved with it."""

    state: TrainState
    progress: dict[str, Any]


def require_writable(folder: Path) -> None:
    """Creates ``folder`` if needed and tries to write into it.

    Raises:
      InputError: it cannot be created or written; the message names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written ({error.strerror})") from None


class Checkpoints:
    """The checkpoints of one run, under ``workdir/checkpoints/<step>``. Use as a context manager.

    Args:
      workdir: relative paths are made absolute.
      identity: flat JSON fields that decide what the run computes; a checkpoint that was written under others is
        refused.
      keep: number of latest checkpoints kept.

    Raises:
      InputError: the folder cannot be written.
    """

    def __init__(self, workdir: Path, identity: Mapping[str, object], *, keep: int) -> None:
        self.folder = Path(workdir).absolute() / FOLDER
        require_writable(self.folder)
        self._identity = json.loads(json.dumps(dict(identity)))
        policy = preservation_policy.AnyPreservationPolicy([preservation_policy.LatestN(keep)])
        self._manager = _manager(self.folder, preservation_policy=policy, cleanup_tmp_directories=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the latest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Copies the state to the host and writes it in the background; nothing happens if the step is there.

        In a job every process must call; the first one writes.

        Args:
          state: its arrays may be donated as soon as this returns.
          progress: JSON to be given back by `restore`, e.g. the position of the data iterator.

        Raises:
          InputError: the disk is too full for it.
        """
        host = jax.tree.map(lambda x: np.array(x, copy=True), sharding.to_host(state))
        step = int(host.step)
        if step == self.latest_step:
            return
        trees = {"state": _without_ema(host), "ema": host.ema_params}
        self._require_room(trees)
        meta = {
            "format": _FORMAT,
            "identity": self._identity,
            "identity_hash": identity_hash(self._identity),
            "progress": dict(progress),
            "items": {name: {"layout": _layout(tree), "crc32": _checksum(tree)} for name, tree in trees.items()},
            "versions": versions(),
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        if not self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))):
            raise RuntimeError(f"{self.folder}: the checkpoint of step {step} was not saved")

    def _require_room(self, trees: PyTree) -> None:
        """Asked before orbax is: what fails in its threads ends in pages of their own."""
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)), shutil.disk_usage(self.folder).free
        if free < needed:
            raise InputError(
                f"{self.folder}: expected room for a checkpoint of {needed:,} bytes, {free:,} are free; with "
                "room again, start it again to go on from the one before"
            )

    def restore(self, template: TrainState) -> Restored | None:
        """The latest checkpoint, or None where there is none.

        Args:
          template: the expected structure, shapes and dtypes (`jax.eval_shape` gives it).

        Raises:
          InputError: the checkpoint was written by another configuration, has another layout, or is damaged. An
            older checkpoint is never taken in its place.
        """
        step = self.latest_step
        if step is None:
            return None
        place = self.folder / str(step)
        meta = _read_meta(self._manager, step, place)
        _require_same(meta["identity"], self._identity, self.folder)
        tree = _read(self._manager, step, place, "state", _without_ema(template), meta)
        ema = _read(self._manager, step, place, "ema", template.ema_params, meta)
        state = TrainState(tree["step"], tree["params"], ema, tree["opt_state"])
        return Restored(state, meta["progress"])

    def wait(self) -> None:
        """Returns when everything saved so far is complete on disk."""
        self._manager.wait_until_finished()


def _latest(workdir: Path) -> tuple[ocp.CheckpointManager, Path, int]:
    """An open manager, its folder, and the step of the latest checkpoint; `InputError` when there is none."""
    folder = Path(workdir).absolute() / FOLDER
    manager = _manager(folder, read_only=True) if folder.is_dir() else None
    step = None if manager is None else manager.latest_step()
    if manager is None or step is None:
        raise InputError(f"{folder}: expected a checkpoint, found none; train first")
    return manager, folder, step


def has_checkpoint(workdir: Path) -> bool:
    """Whether a complete checkpoint lies in the folder that was given to training; it may be damaged."""
    folder = Path(workdir).absolute() / FOLDER
    if not folder.is_dir():
        return False
    with _manager(folder, read_only=True) as manager:
        return manager.latest_step() is not None


def restore_ema(
    workdir: Path, template: PyTree | None = None, identity: Mapping[str, object] | None = None
) -> tuple[PyTree, int]:
    """The averaged parameters of the latest checkpoint, as numpy arrays, and their step.

    Args:
      workdir: the folder that was given to training.
      template: expected structure, shapes and dtypes; None takes what is there as nested dicts.
      identity: fields that must be those of the run that wrote it (a subset of them is enough).

    Raises:
      InputError: there is no checkpoint, it does not fit, or it is damaged.
    """
    manager, folder, step = _latest(workdir)
    with manager:
        place = folder / str(step)
        meta = _read_meta(manager, step, place)
        wanted = json.loads(json.dumps(dict(identity or {})))
        _require_same({k: v for k, v in meta["identity"].items() if k in wanted}, wanted, folder)
        return _read(manager, step, place, "ema", template, meta), step


def read_progress(workdir: Path) -> dict[str, Any]:
    """The JSON that was saved with the latest checkpoint (see `Checkpoints.save`).

    Args:
      workdir: the folder that was given to training.

    Raises:
      InputError: there is no checkpoint, or it is damaged.
    """
    manager, folder, step = _latest(workdir)
    with manager:
        return dict(_read_meta(manager, step, folder / str(step))["progress"])


def identity_hash(identity: Mapping[str, object]) -> str:
    """Hexadecimal SHA-256 of the canonical JSON of these fields."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers or file formats."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    # Orbax warns about things that are so by design here, e.g. arrays without a sharding.
    logging.getLogger("absl").addFilter(_drop_orbax_chatter)
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options), item_names=_ITEMS)


def _drop_orbax_chatter(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno > logging.WARNING


def _without_ema(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _layout(tree: PyTree) -> dict[str, str]:
    """``{"params/dense/kernel": "float32[3, 4]", …}``."""
    return {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in _named_leaves(tree)}


def _checksum(tree: PyTree) -> int:
    """CRC-32 over all arrays, in the order of their names (what is restored without a template may be reordered)."""
    value = 0
    for name, leaf in sorted(_named_leaves(tree), key=lambda pair: pair[0]):
        value = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1).data, zlib.crc32(name.encode(), value))
    return value


def _read_meta(manager: ocp.CheckpointManager, step: int, place: Path) -> dict[str, Any]:
    try:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    except Exception as error:
        raise _damaged(place, "meta", error) from None
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise InputError(f"{place}: expected a checkpoint of format {_FORMAT} with its meta item")
    missing = [name for name in ("identity", "progress", "items") if name not in meta]
    if missing:
        raise InputError(f"{place}: damaged checkpoint, meta lacks {', '.join(missing)}; delete this folder")
    return meta


def _read(
    manager: ocp.CheckpointManager, step: int, place: Path, item: str, template: PyTree | None, meta: dict[str, Any]
) -> PyTree:
    saved = meta["items"][item]
    if template is not None:
        # Orbax would cast another dtype without a word.
        _require_layout(saved["layout"], _layout(template), place / item)
    host = None if template is None else jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
    try:
        tree = manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(host)}))[item]
        tree = jax.tree.map(np.asarray, tree)
        found = _checksum(tree)
    except Exception as error:
        raise _damaged(place, item, error) from None
    if found != saved["crc32"]:
        raise InputError(f"{place / item}: damaged checkpoint, its checksum does not match; delete {place} to go on")
    return tree


def _damaged(place: Path, item: str, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [""])[0][:160]
    return InputError(
        f"{place / item}: damaged checkpoint, cannot be read ({type(error).__name__}: {reason}); "
        f"delete {place} to go on from the one before it"
    )


def _require_same(found: Mapping[str, object], wanted: Mapping[str, object], folder: Path) -> None:
    absent = "absent"
    fields = sorted(name for name in {*found, *wanted} if found.get(name, absent) != wanted.get(name, absent))
    if fields:
        shown = ", ".join(f"{f} (there {found.get(f, absent)!r}, here {wanted.get(f, absent)!r})" for f in fields)
        raise InputError(f"{folder}: belongs to another configuration, {shown}; use another workdir")


def _require_layout(found: Mapping[str, str], wanted: Mapping[str, str], place: Path) -> None:
    absent = "nothing"
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{place}: {name} is {found.get(name, absent)}, expected {wanted.get(name, absent)}; "
                "use another workdir or the configuration that wrote it"
            )
