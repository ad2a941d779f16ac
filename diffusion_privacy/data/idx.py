"""Images and labels in the IDX files of MNIST and its relatives, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from diffusion_privacy.data.assemble import (
    assemble,
    assumed,
    choose,
    existing_file,
    infer_num_classes,
    level_hashes,
    one_line,
)
from diffusion_privacy.data.preparation import Sides, preparation
from diffusion_privacy.data.records import LEVEL_HASH, Records
from diffusion_privacy.errors import InputError

_UNSIGNED_BYTE = 0x08
_GZIP = b"\x1f\x8b"


def idx(
    images: str,
    labels: str,
    *,
    num_classes: int | None = 10,
    channels: int | None = None,
    crop: Sides | str | None = None,
    size: Sides | None = None,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
) -> Records:
    """Two IDX files (MNIST and its relatives), gzipped or not: 256 grey levels, person unknown.

    Args:
      images: path of the images, uint8 [N, H, W]; whether it is gzipped is read from the file, not from its name.
      labels: path of the labels, uint8 [N].
      num_classes: how many classes there are; None: as many as occur.
      channels, crop, size: see `preparation.Preparation`.
      classes: keep these labels only; labels keep their numbers.
      limit: keep the first so many.

    Raises:
      InputError: a file is missing, truncated, too long or not IDX, the counts differ, a label is out of range.
    """
    prepare = preparation(channels, crop, size)
    image_file, label_file = existing_file(images, "images"), existing_file(labels, "labels")
    label = read_idx(label_file, ndim=1).astype(np.int64)
    pixels = read_idx(image_file, ndim=3)
    if len(pixels) != len(label):
        raise InputError(f"{label_file}: holds {len(label)} labels; expected {len(pixels)}, as many as {image_file}")
    stated = num_classes is not None
    num_classes = infer_num_classes(label, num_classes, str(label_file))
    keep = choose(label, num_classes, classes, limit, str(label_file))
    return assemble(
        prepare.stack(pixels[keep], 255, str(image_file)),
        label[keep],
        keep,
        keep,
        num_classes=num_classes,
        name=image_file.name,
        source_hash=level_hashes(pixels[keep]),
        hash_kind=LEVEL_HASH,
        preparation=prepare.steps(),
        assumed=assumed(stated, classes),
    )


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, uint8 with ``ndim`` axes, none of them empty.

    The format: two zero bytes, the type of the elements (0x08: unsigned byte), the number of axes, the length of each
    axis as big-endian uint32, the elements in C order (LeCun et al., "The MNIST database of handwritten digits").

    Raises:
      InputError: another type or number of axes, an empty axis, or more or fewer bytes than the header announces.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP
            raw.seek(0)
            if not zipped:
                return _parse(raw, path, ndim)
            with gzip.open(raw) as stream:
                return _parse(stream, path, ndim)
    except EOFError as error:
        raise InputError(f"{path}: the gzip stream is truncated; expected a complete IDX file") from error
    except (OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); expected an IDX file") from error


def _parse(stream: IO[bytes] | gzip.GzipFile, path: Path, ndim: int) -> np.ndarray:
    header = stream.read(4)
    expected = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if header != expected:
        raise InputError(f"{path}: starts with 0x{header.hex()}; expected the IDX magic number 0x{expected.hex()}")
    lengths = stream.read(4 * ndim)
    if len(lengths) < 4 * ndim:
        raise InputError(f"{path}: truncated in the header; expected the lengths of {ndim} axes")
    shape = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
    if shape[0] == 0:
        raise InputError(f"{path}: holds zero records; expected at least one")
    if 0 in shape:
        raise InputError(f"{path}: the header announces shape {shape}; expected no empty axis")
    size = math.prod(shape)
    payload = _read_up_to(stream, size + 1)
    if len(payload) != size:
        state = "truncated" if len(payload) < size else "too long"
        found = f"{len(payload)} bytes" if len(payload) < size else "more"
        raise InputError(f"{path}: {state}; expected {size} bytes after the header for shape {shape}, found {found}")
    return np.frombuffer(payload, np.uint8).reshape(shape)


def _read_up_to(stream: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """At most ``size`` bytes. In pieces: a wrong header may announce more than fits in memory."""
    pieces = []
    while size > 0:
        piece = stream.read(min(size, 1 << 24))
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
