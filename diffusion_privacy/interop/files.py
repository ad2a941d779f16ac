"""Files of a checkpoint directory, with one line for everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises InputError naming the file if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected this file, found none") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a readable JSON file ({' '.join(str(error).split())})") from error
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return dict(value)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file by name, as float32.

    Raises:
      InputError: the file is missing, damaged, or holds numbers of a type that numpy lacks; the package is missing.
    """
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("diffusion_pytorch_model*")) if path.parent.is_dir() else []
        found = f"found {', '.join(near)} (convert: only one whole safetensors file is read)" if near else "found none"
        raise InputError(f"{path}: expected the weights of a UNet2DModel here, {found}")
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise InputError(
            f"{path}: expected the package safetensors to read it (pip install '.[interop]'), it is not installed"
        ) from error
    try:
        tensors = load_file(path)
    except KeyError as error:
        raise InputError(
            f"{path}: expected weights stored as float32 or float16, got {error.args[0]} (save them as float32)"
        ) from error
    except Exception as error:
        # The reader raises an exception of its own type for a damaged file, of others for an unreadable one.
        raise InputError(f"{path}: expected a readable safetensors file ({' '.join(str(error).split())})") from error
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f":
            raise InputError(f"{path}: {name} holds {tensor.dtype}; expected floating-point weights")
        if not np.all(np.isfinite(tensor)):
            raise InputError(f"{path}: {name} holds NaN or infinite weights; expected finite numbers")
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
