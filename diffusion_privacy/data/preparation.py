"""Grey or colour, crop and size: what a config states of its images, done exactly so, and said in the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffusion_privacy.data.assemble import whole_number
from diffusion_privacy.errors import InputError

SQUARE = "square"
_LUMA = (19595, 38470, 7471)
"""ITU-R 601's weights of red, green and blue in 65536ths."""

Sides = int | Sequence[int]
"""A side, or (height, width), in pixels."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is done to every image, in this order: colour, crop, size.

    Attributes:
      channels: 1 (colour becomes its luma), 3 (grey is repeated), or None for as it is stored.
      crop: (height, width) cut out of the middle, ``"square"`` for the largest square in the middle, or None.
      size: (height, width) to which it is resampled then (bicubic, antialiased; proportions not kept), or None.
    """

    channels: int | None = None
    crop: tuple[int, int] | str | None = None
    size: tuple[int, int] | None = None

    def __call__(self, pixels: np.ndarray, top: int, where: str) -> np.ndarray:
        """One image, unsigned integers ``[H, W, C]`` in 0..top, prepared: the same type, ``[H', W', C']``.

        Raises:
          InputError: a crop that is larger than the image, or colours to turn grey that are not three; ``where`` names
            the image.
        """
        return self._resized(self._cropped(self._coloured(pixels, where), where), top)

    def stack(self, pixels: np.ndarray, top: int, where: str) -> np.ndarray:
        """Images of one size ``[N, H, W]`` or ``[N, H, W, C]``, each prepared: ``[N, H', W', C']``."""
        given = pixels[..., None] if pixels.ndim == 3 else pixels
        if self == Preparation():
            return given
        first = self(given[0], top, where)
        made = np.empty((len(given), *first.shape), given.dtype)
        for i, image in enumerate(given):
            made[i] = self(image, top, where)
        return made

    def steps(self) -> tuple[str, ...]:
        """Each step in words that allow to repeat it; what is left as stored is not among them."""
        said = []
        if self.channels == 1:
            said.append("grey: colour by (19595 R + 38470 G + 7471 B + 32768) >> 16 (ITU-R 601)")
        if self.channels == 3:
            said.append("colour: grey repeated three times")
        if self.crop is not None:
            size = "the largest square" if isinstance(self.crop, str) else f"{self.crop[0]} x {self.crop[1]}"
            said.append(f"crop: {size} in the middle (height x width; half pixels to the top left)")
        if self.size is not None:
            import PIL

            said.append(f"size: {self.size[0]} x {self.size[1]} by Pillow {PIL.__version__}, bicubic, antialiased")
        return tuple(said)

    def _coloured(self, pixels: np.ndarray, where: str) -> np.ndarray:
        found = pixels.shape[2]
        if self.channels in (None, found):
            return pixels
        if self.channels == 3 and found == 1:
            return np.repeat(pixels, 3, axis=2)
        if self.channels == 1 and found == 3:
            weighted = pixels.astype(np.uint64) @ np.array(_LUMA, np.uint64)
            return ((weighted + np.uint64(1 << 15)) >> np.uint64(16)).astype(pixels.dtype)[..., None]
        raise InputError(f"{where}: has {found} channels; expected 1 (grey) or 3 (colour)")

    def _cropped(self, pixels: np.ndarray, where: str) -> np.ndarray:
        if self.crop is None:
            return pixels
        height, width = pixels.shape[:2]
        rows, columns = (min(height, width),) * 2 if isinstance(self.crop, str) else self.crop
        if rows > height or columns > width:
            raise InputError(
                f"{where}: is {height} x {width} (height x width); expected at least the crop of {rows} x {columns}"
            )
        top, left = (height - rows) // 2, (width - columns) // 2
        return pixels[top : top + rows, left : left + columns]

    def _resized(self, pixels: np.ndarray, top: int) -> np.ndarray:
        if self.size is None or pixels.shape[:2] == self.size:
            return pixels
        from PIL import Image

        width_height, bicubic = self.size[::-1], Image.Resampling.BICUBIC
        if pixels.dtype == np.uint8 and top == 255:
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            return np.asarray(picture.resize(width_height, bicubic), np.uint8).reshape(*self.size, pixels.shape[2])
        planes = [
            np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize(width_height, bicubic))
            for c in range(pixels.shape[2])
        ]
        # Bicubic weights are partly negative: beside an edge they leave the range.
        return np.clip(np.rint(np.stack(planes, axis=-1)), 0, top).astype(pixels.dtype)


def preparation(channels: int | None = None, crop: Sides | str | None = None, size: Sides | None = None) -> Preparation:
    """A `Preparation` of what a config gives.

    Raises:
      InputError: channels that are not 1, 3 or None; sides that are not one or two whole numbers from 1.
    """
    if channels is not None and (isinstance(channels, bool) or channels not in (1, 3)):
        raise InputError(f"channels is {channels!r}; expected 1 (grey) or 3 (colour)")
    if isinstance(crop, str) and crop != SQUARE:
        raise InputError(f"crop is {crop!r}; expected {SQUARE!r}, a side or (height, width)")
    cut = crop if crop is None or isinstance(crop, str) else _sides(crop, "crop")
    return Preparation(channels, cut, None if size is None else _sides(size, "size"))


def _sides(value: object, field: str) -> tuple[int, int]:
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(sides) != 2:
        raise InputError(f"{field} is {value!r}; expected a side or (height, width)")
    return whole_number(sides[0], field, 1), whole_number(sides[1], field, 1)
