"""The working directory of a run: whose config it is, what is finished, how long it took.

config.json          the settings that every file here was computed with
split.json           who is in which set; data.json what the images are and, by pseudonym, whose
private_order_NEVER_PUBLISH.json  of a private data set: which released record is which
train/NAME/          checkpoints, metrics.csv, tensorboard of each model
samples/NAME.npz     images drawn from each model
likelihood.json
audit/NAME.json      one `models` entry of release.json; NAME.npz the arrays behind its figures
report/              release.json, figures, index.html
timings.json         seconds of each stage, compilation apart
run.lock             held by the run that works here, see `stages.lock`

All processes of a job read it, and the first one writes (`training.sharding.once`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_privacy import settings as settings_module
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import lock
from diffusion_privacy.training import sharding
from diffusion_privacy.training.checkpoint import require_writable

_LOG = logging.getLogger(__name__)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class _CompileClock:
    """Seconds that XLA has spent compiling in this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.seconds += duration_secs


_CLOCK = _CompileClock()


def _differences(found: Any, wanted: Any, path: str) -> list[str]:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        # Two kinds of study differ in everything.
        names = sorted(set(found) | set(wanted), key=lambda name: (name != "kind", name))
        return [d for n in names for d in _differences(found.get(n), wanted.get(n), f"{path}.{n}")]
    return [] if found == wanted else [f"{path} is {found!r} there and {wanted!r} here"]


_FREE = ("report", "outputs", "profile")
"""Groups of settings that decide no number of a run."""
_AT_ONCE = ("chunk", "memory_gb")
_FREE_FIELDS = {"data": ("obtain",), "audit": _AT_ONCE, "risk": _AT_ONCE}
"""Fields that decide none, by their group: where data are to be had, and how much of an audit is computed at a time."""


def _deciding(fields: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """The settings that decide a run's numbers."""
    free = _FREE_FIELDS.get(group, ()) if group else _FREE
    inner = (*_FREE_FIELDS, "study") if not group else ()
    return {
        name: _deciding(value, "" if name == "study" else name)
        if name in inner and isinstance(value, Mapping)
        else value
        for name, value in fields.items()
        if name not in free
    }


SPLIT, DATA, ORDER = "split.json", "data.json", "private_order_NEVER_PUBLISH.json"
_PREPARED = (SPLIT, DATA, ORDER)
"""What a run writes before it computes anything. Alone they follow a corrected config: drawn anew, the order of the
private records gives nothing away as long as no release has been made in it, and no flow was trained."""


def _binds(entry: Path) -> bool:
    """Whether an entry keeps a run to its config: not that config, nor the lock, nor what was only prepared, nor what
    other processes of a job try, nor folders for files that never came."""
    if entry.name.startswith(("config.json", "tmp", *_PREPARED)) or entry.name == lock.FILE:
        return False
    return not entry.is_dir() or any(not below.is_dir() for below in entry.rglob("*"))


class Workdir:
    """One run's directory, bound to its settings.

    Args:
      root: created if needed.
      settings: a frozen dataclass; what decides no number (`_FREE`, `_FREE_FIELDS`) may change between runs, all else
        may not, once there is anything in the directory but the config and what was prepared for it (`_PREPARED`).

    Raises:
      InputError: not writable, or it holds a run with other settings (the first differing field is named).
    """

    def __init__(self, root: Path, settings: Any) -> None:
        self.root = Path(root).absolute()
        require_writable(self.root)
        fields = settings_module.to_dict(settings)
        self.config = fields
        wanted = _deciding(fields)
        path = self.root / "config.json"
        # A run that ended before it had anything to keep binds nobody: a mistyped value is corrected in the same place.
        bound = any(_binds(entry) for entry in self.root.iterdir())
        differing = self._other_settings(path, wanted, bound) if path.exists() else []
        if bound and differing:
            raise InputError(
                f"{self.root}: expected the workdir of this config, but {differing[0]}; "
                "take another --workdir or the config it was made with"
            )
        if not path.exists() or not bound:
            self._begin(path, fields, anew=bool(differing))

    def _other_settings(self, path: Path, wanted: Mapping[str, Any], bound: bool) -> list[str]:
        try:
            return _differences(_deciding(self.read_json(path)), wanted, "config")
        except InputError as error:
            if bound:
                raise
            return [str(error)]

    def _begin(self, path: Path, fields: Mapping[str, Any], anew: bool) -> None:
        """Writes the config, and where it is ``anew`` takes away what was prepared under another one."""

        def write(temporary: Path) -> None:
            for left in [entry for entry in self.root.iterdir() if anew and entry.name.startswith(_PREPARED)]:
                left.unlink()
            temporary.write_text(json.dumps(fields, indent=2, allow_nan=False) + "\n", encoding="utf-8")

        self._replace(path, write)

    def path(self, *parts: str) -> Path:
        """A file or folder below the root; its parent is created."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read_json(self, path: Path) -> Any:
        """The content of a JSON file; InputError names the file if it is missing or damaged."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: expected this file from an earlier stage, found none") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected a readable JSON file ({error})") from error

    def write_json(self, path: Path, value: Any) -> None:
        """Writes in one step: a reader sees the old file or the whole new one. Every process must call."""
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        self._replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write_arrays(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes an npz in one step. Every process must call."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        self._replace(path, write)

    def write_text(self, path: Path, text: str) -> None:
        """Writes UTF-8 in one step. Every process must call."""
        self._replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))

    def _replace(self, path: Path, write: Callable[[Path], object]) -> None:
        def replace() -> None:
            temporary = path.with_name(path.name + ".partial")
            write(temporary)
            os.replace(temporary, path)

        sharding.once(replace, str(path.relative_to(self.root)))

    def read_arrays(self, path: Path) -> dict[str, np.ndarray]:
        """The arrays of an npz; InputError names the file if it is missing or damaged."""
        if not path.exists():
            raise InputError(f"{path}: expected this file from an earlier stage, found none")
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:
            # numpy raises half a dozen types for a damaged archive; all of them mean the same to the user.
            raise InputError(f"{path}: expected a readable npz file ({type(error).__name__}: {error})") from error

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds a stage's seconds to timings.json, XLA's compilation apart from the rest."""
        start, compiled = time.monotonic(), _CLOCK.seconds
        _LOG.info("%s: start", stage)
        yield
        wall, compile_s = time.monotonic() - start, _CLOCK.seconds - compiled
        path = self.root / "timings.json"
        timings = self.read_json(path) if path.exists() else {}
        timings[stage] = {"compile_s": round(compile_s, 2), "run_s": round(max(wall - compile_s, 0.0), 2)}
        self.write_json(path, timings)
        _LOG.info("%s: done in %.1f s, of which %.1f s compiling", stage, wall, compile_s)
