"""Images as PNG files: single ones, and many on one picture."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from diffusion_privacy.errors import InputError

_GAP = 2
"""Pixels between images on a grid."""


def to_uint8(data: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0 … 255, rounding to nearest; NaN becomes mid-grey. Post-processing: nothing is dropped."""
    finite = np.nan_to_num(data, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.rint((np.clip(finite, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of ``uint8[H, W, 1 or 3]``."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def grid(images: np.ndarray) -> np.ndarray:
    """``float[N, H, W, 1 or 3]`` in [-1, 1], row by row on a near-square picture: ``uint8[H', W', C]``."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 255, np.uint8)
    for i, image in enumerate(to_uint8(images)):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def write_folder(folder: Path, images: np.ndarray) -> None:
    """``float[N, H, W, 1 or 3]`` in [-1, 1] as ``folder/000000.png`` …, 8 bits; files that are there are left alone.

    Raises:
      InputError: images of another shape.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"{folder}: images are {images.shape}; expected [N, H, W, 1 or 3]")
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        path = folder / f"{i:06d}.png"
        if not path.exists():
            path.write_bytes(png(to_uint8(image)))
