"""PNG, JPEG and TIFF files in class sub-folders, or listed in a CSV table with label and person."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusion_privacy.data import folders
from diffusion_privacy.data.assemble import (
    assemble,
    assumed,
    bytes_hash,
    choose,
    existing_folder,
    number_people,
    one_line,
)
from diffusion_privacy.data.preparation import Preparation, Sides, preparation
from diffusion_privacy.data.records import FILE_HASH, Records
from diffusion_privacy.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_READ = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff")
_OTHER_IMAGES = (".bmp", ".gif", ".webp", ".dcm", ".npy", ".jp2", ".pgm", ".ppm", ".heic", ".heif", ".avif", ".jxl")
_KIND = folders.Kind("PNG, JPEG or TIFF", lambda file: file.suffix.lower() in _READ, _OTHER_IMAGES)
_PNG = b"\x89PNG\r\n\x1a\n"
_EXACT_MODES = ("1", "L", "P", "RGB", "LA", "RGBA")
"""Pillow modes of 8 bits whose conversion to grey or colour loses no levels."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def image_folder(
    path: str,
    *,
    channels: int = 1,
    crop: Sides | str | None = None,
    size: Sides | None = None,
    bits: int = 8,
    window: Sequence[int] | None = None,
    table: str | None = None,
    columns: Mapping[str, str] | None = None,
    person: str | None = None,
    attributes: Sequence[str] = (),
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
) -> Records:
    """A folder of PNG, JPEG or TIFF files: one sub-folder a class, or a CSV with path, label and identity.

    See `folders.listing` for both layouts. Persons are unknown where neither table nor file names tell them.

    Args:
      path: the folder.
      channels, crop, size: see `preparation.Preparation`; None: images are taken as they are and must all have one
        size.
      bits: 8, or 16 for grey PNG and TIFF files of 16 bits (`Records.levels` is then 65,536).
      window: with 16 bits: (black, white), stored levels that become the ends of the range; None for 0 and 65,535.
      table: path of the CSV.
      columns, person: see `folders.listing`: other names of its columns; persons by file name.
      attributes: columns of the table with 0 or 1 for each record (`Records.attributes`).
      num_classes, class_names: see `folders.listing`; without either, the list of classes is read off the records.
      classes: keep these class numbers only; labels keep their numbers.
      limit: keep the first so many: of sub-folders a fair part, since their files come by the hashes of their names;
        of a table its first rows.

    Raises:
      InputError: no such folder, no images, an unreadable or transparent image or one with another number of bits,
        several pages, sizes that differ, an image of another format, or a table that does not fit.
    """
    prepare = preparation(channels, crop, size)
    if bits not in (8, 16):
        raise InputError(f"bits is {bits!r}; expected 8 or 16 bits a pixel")
    ends = _window(window, bits)
    folder = existing_folder(path, "path")
    found = folders.listing(folder, table, num_classes, _KIND, columns, person, attributes, class_names)
    keep = choose(found.label, found.num_classes, classes, limit, found.where)
    people = number_people([""] * len(found.files)) if found.person is None else found.person
    read = functools.partial(_read, prepare=prepare, bits=bits, window=ends)
    pixels, source = folders.stack([found.files[i] for i in keep], read)
    said = () if window is None else (f"window: stored levels {ends[0]} … {ends[1]} to 0 … 65535, clipped",)
    return assemble(
        pixels,
        found.label[keep],
        people[keep],
        keep,
        num_classes=found.num_classes,
        name=folder.name or str(folder),
        levels=1 << bits,
        source_hash=source,
        hash_kind=FILE_HASH,
        preparation=(*said, *prepare.steps()),
        attributes=None if found.attributes is None else found.attributes[keep],
        attribute_names=attributes,
        listing=found.order,
        assumed=(*assumed(found.stated, classes), *found.ties),
    )


def _window(window: Sequence[int] | None, bits: int) -> tuple[int, int]:
    top = (1 << bits) - 1
    if window is None:
        return 0, top
    ends = tuple(window) if isinstance(window, Sequence) and not isinstance(window, str) else ()
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if bits != 16 or len(ends) != 2 or not whole or not 0 <= ends[0] < ends[1] <= top:
        raise InputError(f"window is {window!r}; expected (black, white) within 0..65535, and bits = 16")
    return int(ends[0]), int(ends[1])


def _read(file: Path, prepare: Preparation, bits: int, window: tuple[int, int]) -> tuple[np.ndarray, str]:
    """uint8 or uint16 [H, W, C], turned upright where the file says how, and the hash of the file's bytes."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = file.read_bytes()
        # Without the filter Pillow goes on with half of the tags, among them the one that says which side is up.
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Corrupt|Truncated", UserWarning)
            pixels = _decoded(content, file, bits, window)
    except InputError:
        raise
    except UnidentifiedImageError:
        # Its own text names the buffer that it was given.
        raise InputError(f"{file}: not a complete PNG, JPEG or TIFF image") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        UserWarning,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise InputError(f"{file}: not a complete PNG, JPEG or TIFF image ({one_line(error)})") from error
    return prepare(pixels, (1 << bits) - 1, str(file)), bytes_hash(content)


def _decoded(content: bytes, file: Path, bits: int, window: tuple[int, int]) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "TIFF"]) as opened:
        # Not of JPEG: what phones store behind the photograph is no second one.
        if opened.format in ("TIFF", "PNG") and getattr(opened, "n_frames", 1) != 1:
            raise InputError(f"{file}: holds several pages or frames; expected one image")
        _check_depth(file, opened, content, bits)
        image = ImageOps.exif_transpose(opened)
        return _levels_8(image, file) if bits == 8 else _levels_16(image, window)


def _check_depth(file: Path, opened: Picture, content: bytes, bits: int) -> None:
    """Pillow turns 16-bit colour into 8 bits without saying so: the number of bits is read from the file."""
    tags = getattr(opened, "tag_v2", {})
    depth = content[24] if content.startswith(_PNG) and len(content) > 24 else 8
    if opened.format == "TIFF":
        depth = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if bits == 8 and (opened.mode not in _EXACT_MODES or depth > 8):
        raise InputError(
            f"{file}: has {opened.mode} pixels or more than 8 bits a channel; expected 8-bit grey or RGB, or give"
            " bits = 16 for 16-bit grey"
        )
    if bits == 16 and (depth != 16 or opened.mode not in ("I;16", "I;16B", "I;16L", "I")):
        raise InputError(f"{file}: has {opened.mode} pixels of {depth} bits; expected grey of 16 bits, unsigned")
    if bits == 16 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise InputError(f"{file}: stores white as 0; expected black as 0 in a TIFF file of 16 bits")


def _levels_8(image: Picture, file: Path) -> np.ndarray:
    if "transparency" in image.info or "A" in image.mode:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{file}: has transparent pixels; expected an opaque image")
    grey = image.mode in ("1", "L")
    return np.asarray(image.convert("L" if grey else "RGB"), np.uint8).reshape(image.height, image.width, -1)


def _levels_16(image: Picture, window: tuple[int, int]) -> np.ndarray:
    stored = np.asarray(image).astype(np.int64)
    low, high = window
    mapped = np.rint(np.clip((stored - low) / (high - low), 0, 1) * 65535)
    return mapped.astype(np.uint16)[..., None]
