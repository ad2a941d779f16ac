"""One run at a time in a working directory.

Two runs of the same study would write the same files: rows of metrics.csv between each other's, and checkpoints over
each other's. So a run holds an exclusive `flock` on one file of its workdir for as long as it works. The kernel keeps
the lock, not the file: it goes with the process, however that ends, and the file may stay where it is.

Of a job of several processes the first one holds it for all. They learn together whether it could.

What it cannot see: runs on other machines, where the file system keeps locks to each machine (NFS mounted with
``local_lock=flock``, some mounts of object stores). Where there are no locks at all, a warning says so and the run goes
on: a single run is as right as ever, and that nobody starts a second one is then left to the user.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import sharding
from diffusion_privacy.training.checkpoint import require_writable

_LOG = logging.getLogger(__name__)

FILE = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems without locks answer, among them NFS without its lock service and Lustre mounted without flock."""

_FREE, _TAKEN, _UNUSABLE = range(3)


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Nobody else runs in ``root`` (created if needed) within this block. Every process of a job must enter.

    The lock belongs to a run, not to a `Workdir`: a process may make several of those of one directory.

    Raises:
      InputError: another run is there, in this process or in another; the folder or the file cannot be written.
    """
    require_writable(root)
    path, handle, found, why = root / FILE, None, _FREE, ""
    # What is found is told below, by every process, so that none waits for another.
    if sharding.is_first():
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            found, why = _try(handle, path)
        except OSError as error:
            found, why = _UNUSABLE, f" ({error.strerror})"
    try:
        found = sharding.from_first(found)
        if found == _TAKEN:
            raise InputError(f"{root}: in use by another run{why}; expected a --workdir in which nobody is at work")
        if found == _UNUSABLE:
            raise InputError(f"{path}: expected a file that can be written and locked{why}")
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _try(handle: int, path: Path) -> tuple[int, str]:
    """Locks the open file if it is free, and writes into it who did; else who holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.read(handle, 200).decode(errors="replace").strip()
        return _TAKEN, f" ({who})" if who else ""
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        told = "%s: no locks on this file system (%s), so a second run in this workdir would not be noticed: start none"
        _LOG.warning(told, path, error.strerror)
        return _FREE, ""
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return _FREE, ""
