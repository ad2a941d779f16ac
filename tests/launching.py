"""How tests run a study: a shipped config with changes, and the launcher in a process of its own, as a user runs it."""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def changed_config(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionary of ``configs/<name>.py`` with ``{"a.b": value}`` put into it."""
    config = copy.deepcopy(importlib.import_module(f"configs.{name}").get_config().to_dict())
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = copy.deepcopy(value)
    return config


def environment(*without: str) -> dict[str, str]:
    """The environment without the devices that conftest.py simulates, and without these variables."""
    return {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", *without)}


def launch(
    *args: str, cwd: Path = ROOT, timeout: float = 900, without: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """``launch.py`` with these flags, no stored programs, output as text."""
    return subprocess.run(
        [sys.executable, "launch.py", "--compilation_cache=", *args],
        cwd=cwd,
        env=environment(*without),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
