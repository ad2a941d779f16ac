"""The data sets that a config can name. A new source is a function that returns `Records` and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion_privacy.data.assemble import assemble, choose, construct
from diffusion_privacy.data.idx import idx
from diffusion_privacy.data.image_folder import image_folder
from diffusion_privacy.data.npz import npz
from diffusion_privacy.data.records import Records


def digits(*, classes: Sequence[int] | None = None, limit: int | None = None) -> Records:
    """The 1,797 handwritten digits that ship inside scikit-learn: 8x8, grey levels 0..16, classes 0..9.

    The test part of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository 1998. Who wrote
    which digit is not recorded.

    Args:
      classes: keep these digits only; labels keep their numbers.
      limit: keep the first so many.

    Raises:
      InputError: see `assemble.choose`.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    label = bunch.target.astype(np.int64)
    keep = choose(label, 10, classes, limit, "digits")
    pixels = bunch.images[keep].astype(np.int64)
    return assemble(pixels, label[keep], keep, keep, num_classes=10, name="digits", levels=17)


SOURCES: dict[str, Callable[..., Records]] = {
    "digits": digits,
    "idx": idx,
    "npz": npz,
    "image_folder": image_folder,
}
"""Constructors by the name that a config gives."""


def load(source: str, **params: object) -> Records:
    """Records of a named source; ``params`` are the arguments of its constructor, by name.

    Raises:
      InputError: an unknown source, an argument that it does not take or lacks, or what the constructor raises.
    """
    return construct(SOURCES, "source", source, params)
