"""What every release.json says of the run that made it."""

from __future__ import annotations

import platform
from typing import Any

import jax

import diffusion_privacy
from diffusion_privacy import settings
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training.checkpoint import versions


def run_facts(workdir: Workdir, schema_version: str, seed: int) -> dict[str, Any]:
    """Program, versions, device, seed, configuration with its hash, and the time of each stage so far."""
    device, timings = jax.devices()[0], workdir.root / "timings.json"
    return {
        "schema_version": schema_version,
        "program": {"name": "diffusion_privacy", "version": diffusion_privacy.__version__},
        "versions": versions(),
        "device": {
            "platform": device.platform,
            "kind": f"{device.device_kind} ({platform.machine()})",
            "count": jax.device_count(),
        },
        "seed": seed,
        "config": workdir.config,
        "config_hash": settings.digest(workdir.config),
        "timings": workdir.read_json(timings) if timings.exists() else {},
    }
