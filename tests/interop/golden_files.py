"""Where the golden files are, and copies of them to spoil."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def copy(target: Path, name: str = "tiny") -> Path:
    """A pipeline directory below ``target`` to change at will."""
    return Path(shutil.copytree(GOLDEN / name, target / name))


def edit_json(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, change: Any) -> None:
    """Replaces the weights of a pipeline directory by ``change({name: array})``."""
    from safetensors.numpy import load_file, save_file

    path = folder / "unet" / WEIGHTS
    # Copied, because the file that they are read from is written anew.
    save_file(change({name: np.array(value) for name, value in load_file(path).items()}), path)
