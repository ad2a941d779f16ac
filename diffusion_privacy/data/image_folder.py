"""PNG and JPEG files in class sub-folders, or listed in a CSV table with label and person."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_privacy.data.assemble import (
    assemble,
    bytes_hash,
    choose,
    existing_file,
    existing_folder,
    infer_num_classes,
    number_people,
    one_line,
    read_table,
    whole_number,
)
from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import InputError

_READ = (".png", ".jpg", ".jpeg")
_OTHER_IMAGES = (".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".npy", ".jp2", ".pgm", ".ppm")
_PNG = b"\x89PNG\r\n\x1a\n"
_EXACT_MODES = ("1", "L", "P", "RGB", "LA", "RGBA")
"""Pillow modes whose conversion to grey or colour loses no levels."""


def image_folder(
    path: str,
    *,
    channels: int = 1,
    size: int | Sequence[int] | None = None,
    table: str | None = None,
    num_classes: int | None = None,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
) -> Records:
    """PNG and JPEG files of 8 bits a channel.

    Without ``table``: each sub-folder of ``path`` is a class, numbered by sorted name; its images are all files below
    it, sorted; persons are unknown. Files that start with a dot and those that are no images are passed over.

    With ``table``: a CSV with columns ``path`` (relative to the folder), ``label`` (numbers, or names numbered in
    sorted order) and, if known, ``identity`` (blank: unknown); its rows are the records, in this order.

    Args:
      path: the folder.
      channels: 1 reads grey (colour by the luma of ITU-R 601), 3 reads colour (grey repeated).
      size: side, or (height, width), to which every image is resampled (bicubic, antialiased, aspect ratio not kept).
        None: images are taken as they are and must all have one size.
      table: path of the CSV.
      num_classes: how many classes there are; None: the number of sub-folders, or as many as occur in the table.
      classes: keep these class numbers only; labels keep their numbers.
      limit: keep the first so many. As sub-folders come class after class, `split_records` takes a fairer part.

    Raises:
      InputError: no such folder, no images, an unreadable or transparent image or one with more than 8 bits, sizes
        that differ, an image of another format, or a table that does not fit.
    """
    if channels not in (1, 3):
        raise InputError(f"channels is {channels!r}; expected 1 (grey) or 3 (colour)")
    folder = existing_folder(path, "path")
    target = _target_size(size)
    if table is None:
        files, label, found_classes = _from_folders(folder)
        people = number_people([""] * len(files))
        where = str(folder)
        num_classes = infer_num_classes(label, found_classes if num_classes is None else num_classes, where)
    else:
        table_file = existing_file(table, "table")
        files, label, people = _from_table(folder, table_file)
        where = str(table_file)
        num_classes = infer_num_classes(label, num_classes, where)
    keep = choose(label, num_classes, classes, limit, where)
    pixels, source = _read_all([files[i] for i in keep], channels, target)
    name = folder.name or str(folder)
    return assemble(pixels, label[keep], people[keep], keep, num_classes=num_classes, name=name, source_hash=source)


def _target_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size, size]
    if len(sides) != 2:
        raise InputError(f"size is {size!r}; expected a side or (height, width)")
    return whole_number(sides[0], "size", 1), whole_number(sides[1], "size", 1)


def _from_folders(folder: Path) -> tuple[list[Path], np.ndarray, int]:
    """Files, their class int64 [N], and the number of classes."""
    stray = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _READ and p.is_file())
    if stray:
        raise InputError(f"{folder / stray[0]}: lies beside the class sub-folders of {folder}; expected it inside one")
    class_folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    files: list[Path] = []
    label: list[int] = []
    for number, class_folder in enumerate(class_folders):
        found = sorted(p for p in class_folder.rglob("*") if p.is_file() and not _hidden(p, class_folder))
        for file in found:
            if file.suffix.lower() in _OTHER_IMAGES:
                raise InputError(f"{file}: format is not read; expected PNG or JPEG")
        images = [p for p in found if p.suffix.lower() in _READ]
        files += images
        label += [number] * len(images)
    if not files:
        raise InputError(f"{folder}: holds zero records; expected PNG or JPEG files in one sub-folder for each class")
    return files, np.asarray(label, np.int64), len(class_folders)


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def _from_table(folder: Path, table_file: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Files, their label int64 [N] and person int32 [N]."""
    table = read_table(table_file, ["path", "label"])
    files = [folder / cell for cell in table["path"]]
    for row, file in enumerate(files, start=2):
        if not file.is_file():
            raise InputError(
                f"{table_file}: path in row {row} is {table['path'][row - 2]!r}; expected a file in {folder}"
            )
        if file.suffix.lower() not in _READ:
            raise InputError(f"{table_file}: path in row {row} is {table['path'][row - 2]!r}; expected PNG or JPEG")
    cells = table["label"]
    if "" in cells:
        raise InputError(f"{table_file}: label in row {cells.index('') + 2} is blank; expected a number or a name")
    if all(re.fullmatch(r"-?[0-9]{1,9}", cell) for cell in cells):
        label = np.asarray([int(cell) for cell in cells], np.int64)
    else:
        label = np.unique(np.asarray(cells), return_inverse=True)[1].astype(np.int64)
    return files, label, number_people(table.get("identity", [""] * len(files)))


def _read_all(files: list[Path], channels: int, size: tuple[int, int] | None) -> tuple[np.ndarray, list[str]]:
    """uint8 [N, H, W, C], and the hash of each file."""
    first, _ = _read(files[0], channels, size)
    pixels, source = np.empty((len(files), *first.shape), np.uint8), []
    for i, file in enumerate(files):
        image, found = _read(file, channels, size)
        source.append(found)
        if image.shape != first.shape:
            raise InputError(
                f"{file}: is {image.shape[0]} x {image.shape[1]} (height x width); expected {first.shape[0]} x"
                f" {first.shape[1]} as {files[0].name}, or give size"
            )
        pixels[i] = image
    return pixels, source


def _png_depth(content: bytes) -> int:
    """Bits a channel of a PNG file; 8 for any other. Pillow turns 16-bit colour into 8 bits without saying so."""
    return content[24] if content.startswith(_PNG) and len(content) > 24 else 8


def _read(file: Path, channels: int, size: tuple[int, int] | None) -> tuple[np.ndarray, str]:
    """uint8 [H, W, C], turned upright where the file says how, and the hash of the file's bytes."""
    from PIL import Image, ImageOps

    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as opened:
            if opened.mode not in _EXACT_MODES or _png_depth(content) > 8:
                raise InputError(
                    f"{file}: has {opened.mode} pixels or more than 8 bits a channel; expected 8-bit grey or RGB"
                )
            image = ImageOps.exif_transpose(opened)
            if "transparency" in image.info or "A" in image.mode:
                image = image.convert("RGBA")
                if image.getchannel("A").getextrema() != (255, 255):
                    raise InputError(f"{file}: has transparent pixels; expected an opaque image")
            image = image.convert("RGB").convert("L" if channels == 1 else "RGB")
            if size is not None and image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BICUBIC)
            pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
            return pixels, bytes_hash(content)
    except InputError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise InputError(f"{file}: not a complete PNG or JPEG image ({one_line(error)})") from error
