"""Which study a config asks for: its field ``kind`` names one of `KINDS`; without one it is ``"anonymity"``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from diffusion_privacy import settings, settings_sweep
from diffusion_privacy.errors import InputError
from diffusion_privacy.settings import Study
from diffusion_privacy.settings_cadp import Cadp, CadpTable
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.settings_own import OwnModel
from diffusion_privacy.settings_sweep import SizeSweep

AnyStudy = Study | Cadp | CadpTable | Joined | OwnModel | SizeSweep


def _without_kind(parse_it: Callable[[Mapping[str, Any]], Any], config: Mapping[str, Any]) -> Any:
    return parse_it({name: value for name, value in config.items() if name != "kind"})


KINDS: dict[str, Callable[[Mapping[str, Any]], AnyStudy]] = {
    "anonymity": functools.partial(_without_kind, functools.partial(settings.parse, Study)),
    "cadp": functools.partial(settings.parse, Cadp),
    "cadp_table": functools.partial(settings.parse, CadpTable),
    "joined": functools.partial(settings.parse, Joined),
    "own_model": functools.partial(settings.parse, OwnModel),
    "size_sweep": settings_sweep.parse,
}
"""How the settings of each kind are read: the fingerprint audit of two models, a private set of images, a private
table, four ways to share the same records, a model that was trained elsewhere, a sweep over sizes."""


def parse(config: Mapping[str, Any]) -> AnyStudy:
    """The settings of any kind of study from a config's nested dictionary.

    Raises:
      InputError: an unknown kind, or what `settings.parse` refuses.
    """
    kind = config.get("kind", "anonymity")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"config.kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](config)
