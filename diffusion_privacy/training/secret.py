"""The secret of a private training run: which records each step drew, and its noise.

The promise of DP-SGD holds against those who know neither. A run's seed is printed in every report, so nothing of this
may come from it: 256 bits are drawn from the operating system and kept in one file beside the checkpoints, readable by
the owner alone, so that an interrupted run goes on as if it had not been. The file is removed when the run is finished:
nobody can subtract the noise any more. Never publish it, and never publish a workdir of an unfinished run.

What a step uses is SHAKE-256 of (secret, what the run computes, purpose, step). With other settings or other records
the same file gives other noise, so that two outputs never share theirs. Each parameter array gets 64 bits of its own in
each step, which tell nothing of any other's; those 64 bits are expanded by threefry, with the limits that
`mechanisms.noise` states.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_privacy.errors import InputError

FILE = "dp_secret_NEVER_PUBLISH.json"
_NOTE = (
    "Whoever has this number can undo the privacy of this training run. Do not copy or publish it. "
    "It is needed only to go on after an interruption, and is removed when the run is finished."
)
_BYTES = 32


class Secret:
    """Randomness of a private run as a function of (secret, context, step).

    Args:
      key: 32 bytes or more from the operating system.
      context: JSON fields that decide what the run computes, its records included.
    """

    def __init__(self, key: bytes, context: Mapping[str, Any]) -> None:
        if len(key) < _BYTES:
            raise ValueError(f"a secret needs {_BYTES} bytes, got {len(key)}")
        described = json.dumps(dict(context), sort_keys=True).encode()
        self._material = hashlib.sha256(hashlib.sha256(key).digest() + hashlib.sha256(described).digest()).digest()

    def _stream(self, purpose: bytes, step: int, count: int) -> bytes:
        head = self._material + hashlib.sha256(purpose).digest() + int(step).to_bytes(8, "little")
        return hashlib.shake_256(head).digest(count)

    @property
    def fingerprint(self) -> str:
        """Tells two secrets apart and nothing about either; kept in checkpoints."""
        return self._stream(b"fingerprint", 0, 16).hex()

    def sample(self, step: int, records: int, probability: float) -> np.ndarray:
        """Numbers of the records that ``step`` draws, int64, increasing: each of 0 … records − 1 by itself with
        ``probability``, to 2^-53. None at all is a possible draw.
        """
        if probability >= 1:
            return np.arange(records)
        words = np.frombuffer(self._stream(b"sample", step, 8 * records), dtype="<u8")
        return np.flatnonzero(words < np.uint64(int(probability * 2.0**64)))

    def noise_keys(self, step: int, count: int) -> np.ndarray:
        """Data of ``count`` threefry keys for ``step``, uint32 [count, 2]."""
        return np.frombuffer(self._stream(b"noise", step, 8 * count), dtype="<u4").reshape(count, 2).astype(np.uint32)


def obtain(workdir: Path, context: Mapping[str, Any], fingerprint: str | None) -> Secret:
    """The secret of the run in ``workdir``: a new one for a new run, the stored one for one that goes on.

    Args:
      workdir: the run's folder, shared by all processes of a job.
      context: see `Secret`.
      fingerprint: that of the run to go on with, None for a new run.

    Raises:
      InputError: the stored secret is missing, damaged or another one.
    """
    path = Path(workdir) / FILE
    key = b""
    if jax.process_index() == 0:
        if fingerprint is None and not path.exists():
            _create(path)
        # A problem is raised below, by every process, so that none waits for another.
        key = _read(path)
    key = _from_process_0(key)
    expected = f"{path}: expected the secret that this private run began with"
    if not key:
        raise InputError(f"{expected}, found none that can be read; use another workdir")
    secret = Secret(key, context)
    if fingerprint not in (None, secret.fingerprint):
        raise InputError(f"{expected}, found another; use another workdir")
    return secret


def erase(workdir: Path) -> None:
    """Removes the secret of a finished run. (A disk may keep old blocks: no file system promises more.)"""
    path = Path(workdir) / FILE
    if jax.process_index() == 0 and path.exists():
        with contextlib.suppress(OSError), path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            file.write(b"0" * size)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"note": _NOTE, "secret": secrets.token_hex(_BYTES)}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read(path: Path) -> bytes:
    """The stored bytes; empty where there are none of the right kind."""
    try:
        key = bytes.fromhex(json.loads(path.read_text(encoding="utf-8"))["secret"])
    except (OSError, ValueError, KeyError, TypeError):
        return b""
    return key if len(key) == _BYTES else b""


def _from_process_0(key: bytes) -> bytes:
    if jax.process_count() == 1:
        return key
    from jax.experimental import multihost_utils

    padded = np.frombuffer(key.ljust(_BYTES, b"\0"), np.uint8).astype(np.int32)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(np.append(padded, np.int32(len(key)))))
    return sent[:_BYTES].astype(np.uint8).tobytes() if sent[-1] == _BYTES else b""
