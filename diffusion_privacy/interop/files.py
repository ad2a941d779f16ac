"""Files of a checkpoint directory, with one line for everything that can be wrong with them.

Weights are safetensors: names and numbers, and nothing that is run when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.types import PyTree


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


def name_of(path: Sequence[Any]) -> str:
    """``"params/dense/kernel"``: a leaf's name by its path in nested dictionaries (`jax.tree_util`).

    Raises:
      ValueError: a key that is no text or holds a slash, or another structure.
    """
    keys: list[str] = []
    for part in path:
        key = getattr(part, "key", None)
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(f"parameters: expected nested dictionaries with names without a slash, got {part}")
        keys.append(key)
    return "/".join(keys)


def flat(params: PyTree) -> dict[str, np.ndarray]:
    """The arrays of nested dictionaries by `name_of`; `nested` is the inverse."""
    return {name_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def nested(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The dictionaries that `flat` made these names of; `InputError` where one name is part of another."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"weights: {name} lies below another array; expected names of nested groups")
        if last in node:
            raise InputError(f"weights: {name} names a group and an array; expected names of nested groups")
        node[last] = tensor
    return tree


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file of finite floating-point arrays.

    Raises:
      InputError: an array of another type, or one that holds NaN or infinity.
    """
    from safetensors.numpy import save

    for name, tensor in tensors.items():
        _require_weights("weights", name, tensor)
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def _require_weights(where: str, name: str, tensor: np.ndarray) -> None:
    if tensor.dtype.kind != "f":
        raise InputError(f"{where}: {name} holds {tensor.dtype}; expected floating-point weights")
    if not np.all(np.isfinite(tensor)):
        raise InputError(f"{where}: {name} holds NaN or infinite weights; expected finite numbers")


def read_safetensors(path: Path, of: str = "a UNet2DModel") -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file by name, as float32.

    Args:
      path: the file.
      of: whose weights they are, for messages.

    Raises:
      InputError: the file is missing, damaged, or holds numbers of a type that numpy lacks; the package is missing.
    """
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("diffusion_pytorch_model*")) if path.parent.is_dir() else []
        found = f"found {', '.join(near)} (convert: only one whole safetensors file is read)" if near else "found none"
        raise InputError(f"{path}: expected the weights of {of} here, {found}")
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise InputError(
            f"{path}: expected the package safetensors to read it (pip install safetensors), it is not installed"
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
        _require_weights(str(path), name, tensor)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
