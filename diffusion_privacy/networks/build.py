"""Networks by the name and fields that a config gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from diffusion_privacy.errors import InputError, require_like
from diffusion_privacy.networks.autoencoder import Autoencoder
from diffusion_privacy.networks.classifier import Classifier
from diffusion_privacy.networks.embedding import Embedder
from diffusion_privacy.networks.mlp import MLP
from diffusion_privacy.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "mlp": MLP,
    "classifier": Classifier,
    "embedder": Embedder,
    "autoencoder": Autoencoder,
}
"""Constructors by name. A new network is added here."""


def build(name: str, **fields: Any) -> nn.Module:
    """The network ``name`` with these fields; lists (as JSON and config files give them) become tuples.

    Raises:
      InputError: an unknown name or field, with the choices; a field without default that is missing; an unknown dtype;
        a value of another kind than its default.
    """
    if name not in NETWORKS:
        raise InputError(f"network.name must be one of {', '.join(NETWORKS)}, got {name!r}")
    cls = NETWORKS[name]
    known = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name")}
    for field in fields:
        if field not in known:
            raise InputError(f"network.{field} is not a field of {name!r}; its fields are {', '.join(known)}")
        require_like(f"network.{field}", fields[field], known[field].default)
    for field, spec in known.items():
        if field not in fields and spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f"network.{field} must be given for {name!r}")
    if fields.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise InputError(f"network.dtype must be 'float32' or 'bfloat16', got {fields['dtype']!r}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
