"""DICOM files in class sub-folders, or listed in a CSV table: stored values to grey levels as the standard says.

Stored value → rescale slope and intercept → window → grey levels → MONOCHROME1 turned over (DICOM PS3.3, C.11.1 and
C.11.2). Look-up tables, palettes, several frames and other colour spaces are refused by name. Overlays are not drawn,
and padding values go through the window as any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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

_SUFFIXES = (".dcm", ".dicom", ".ima")
_OTHER_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".npy", ".jp2", ".nii")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_INSTALL = "pip install pydicom"


def _is_dicom(file: Path) -> bool:
    """By suffix, or by the preamble where there is none."""
    if file.suffix:
        return file.suffix.lower() in _SUFFIXES
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM" and file.name != "DICOMDIR"


_KIND = folders.Kind("DICOM", _is_dicom, _OTHER_IMAGES)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """How the files are read, see `dicom_folder`."""

    prepare: Preparation
    window: tuple[float, float] | Literal["tags", "full"]
    bits: int
    burned_in: bool


def dicom_folder(
    path: str,
    *,
    channels: int = 1,
    crop: Sides | str | None = None,
    size: Sides | None = None,
    window: str | Sequence[float] = "tags",
    bits: int = 8,
    patients: str = "tag",
    burned_in: bool = False,
    table: str | None = None,
    columns: Mapping[str, str] | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
) -> Records:
    """A folder of DICOM images (optional extra ``[dicom]``): one sub-folder a class, or a CSV with path and label.

    Both layouts as in `folders.listing`; files are those ending in .dcm, .dicom or .ima, and those without an ending
    that begin as DICOM does. The person is the PatientID; it is held in memory as a number only, and what a run
    writes of it is a hash with a salt of that run (`people.pseudonyms`).

    Args:
      path: the folder.
      channels, crop, size: see `preparation.Preparation`.
      window: ``"tags"``: window centre and width of each file (the first of several), by its VOI LUT function;
        (centre, width), in units after rescaling: for all files alike, by the standard's linear function;
        ``"full"``: all that the stored bits can hold.
      bits: 8 or 16: grey levels that the window is divided into.
      patients: ``"tag"``: by PatientID, which every file must have; ``"unknown"``: each file is another person, which
        is right only if it is so. An ``identity`` column of the table goes before either.
      burned_in: read images that say that text is burned into them. It may name the person.
      table, columns, num_classes, class_names, classes, limit: as for `image_folder.image_folder`.

    Raises:
      InputError: pydicom is not installed; no files; a file that is damaged, compressed in a way that cannot be read
        here, of several frames, of another colour space, with a look-up table, or without the tags that are needed.
    """
    reading = _Reading(preparation(channels, crop, size), _window(window), bits, burned_in)
    if bits not in (8, 16):
        raise InputError(f"bits is {bits!r}; expected 8 or 16 bits a pixel")
    if patients not in ("tag", "unknown"):
        raise InputError(f"patients is {patients!r}; expected 'tag' or 'unknown'")
    _require_pydicom()
    folder = existing_folder(path, "path")
    found = folders.listing(folder, table, num_classes, _KIND, columns, class_names=class_names)
    keep = choose(found.label, found.num_classes, classes, limit, found.where)
    names: list[str] = []
    pixels, source = folders.stack(
        [found.files[i] for i in keep], functools.partial(_read, reading=reading, names=names)
    )
    if found.person is not None:
        person = found.person[keep]
    else:
        # `stack` reads the first file twice, to know the size of all.
        person = number_people(_patients([found.files[i] for i in keep], names[1:], patients))
    return assemble(
        pixels,
        found.label[keep],
        person,
        keep,
        num_classes=found.num_classes,
        name=folder.name or str(folder),
        levels=1 << bits,
        source_hash=source,
        hash_kind=FILE_HASH,
        preparation=(*_steps(reading), *reading.prepare.steps()),
        listing=found.order,
        assumed=(*assumed(found.stated, classes), *found.ties),
    )


def _steps(reading: _Reading) -> tuple[str, ...]:
    window = {
        "tags": "window centre and width of each file",
        "full": "the whole range of the bits stored",
    }
    said = reading.window if isinstance(reading.window, str) else None
    shown = window[said] if said else f"window centre {reading.window[0]}, width {reading.window[1]}"
    return (
        "DICOM: stored values by rescale slope and intercept",
        f"DICOM: {shown} to {1 << reading.bits} grey levels, MONOCHROME1 turned over",
    )


def _window(window: object) -> tuple[float, float] | Literal["tags", "full"]:
    if window == "tags":
        return "tags"
    if window == "full":
        return "full"
    pair = tuple(window) if isinstance(window, Sequence) and not isinstance(window, str) else ()
    if len(pair) != 2 or not all(isinstance(v, int | float) for v in pair) or not pair[1] >= 1:
        raise InputError(f"window is {window!r}; expected 'tags', 'full' or (centre, width) with a width from 1")
    return float(pair[0]), float(pair[1])


def _require_pydicom() -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise InputError(f"source 'dicom_folder' needs pydicom; expected it to be installed: {_INSTALL}") from None


def _patients(files: list[Path], names: list[str], patients: str) -> list[str]:
    if patients == "unknown":
        return [""] * len(names)
    for file, name in zip(files, names, strict=True):
        if not name:
            raise InputError(
                f"{file}: has no PatientID; expected one, a table with a column identity, or patients = 'unknown' if"
                " each file is another person"
            )
    return names


@contextlib.contextmanager
def _discreet() -> Iterator[None]:
    """pydicom's warnings, log lines and errors quote values of tags, and those name the person: none is passed on."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _read(file: Path, reading: _Reading, names: list[str]) -> tuple[np.ndarray, str]:
    """uint8 or uint16 [H, W, C] and the hash of the file's bytes; its PatientID is added to ``names``."""
    import pydicom

    try:
        content = file.read_bytes()
        with _discreet():
            header = pydicom.dcmread(io.BytesIO(content))
            pixels = _levels(header, file, reading)
            names.append(str(header.get("PatientID", "") or "").strip())
    except InputError:
        raise
    except Exception as error:
        # pydicom raises whatever the damaged bytes lead to; all of it means the same to the user.
        raise InputError(f"{file}: not a complete DICOM image ({type(error).__name__})") from None
    return reading.prepare(pixels, (1 << reading.bits) - 1, str(file)), bytes_hash(content)


def _levels(header: Any, file: Path, reading: _Reading) -> np.ndarray:
    """The image as grey levels or colours, [H, W, C]."""
    photometric = str(header.get("PhotometricInterpretation", ""))
    if photometric not in (*_GREY, "RGB"):
        raise InputError(
            f"{file}: is {photometric or 'of no'} photometric interpretation; expected MONOCHROME1 or 2, RGB"
        )
    if int(header.get("NumberOfFrames", 1) or 1) != 1:
        raise InputError(f"{file}: holds {header.NumberOfFrames} frames; expected one image")
    if not reading.burned_in and str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        raise InputError(f"{file}: says that it has burned-in annotation; expected none, or give burned_in = True")
    asked = ["ModalityLUTSequence"]
    if reading.window == "tags" and "WindowCenter" not in header:
        asked.append("VOILUTSequence")
    for sequence in asked:
        if sequence in header:
            raise InputError(f"{file}: has a {sequence}; expected rescale slope, window centre and width")
    stored = _stored(header, file)
    if photometric == "RGB":
        return _colour(header, stored, file, reading.bits)
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise InputError(f"{file}: has rescale slope {slope} and intercept {intercept}; expected finite, slope not 0")
    share = _share(header, file, reading, stored * slope + intercept, slope, intercept)
    if photometric == "MONOCHROME1":
        share = 1.0 - share
    return np.rint(share * ((1 << reading.bits) - 1)).astype(f"u{reading.bits // 8}")[..., None]


def _stored(header: Any, file: Path) -> np.ndarray:
    """Stored values, float64 [H, W] or [H, W, 3]: the low ``BitsStored`` bits, with their sign."""
    try:
        pixels = np.asarray(header.pixel_array)
    except (NotImplementedError, RuntimeError, AttributeError) as error:
        syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        name = getattr(syntax, "name", "unknown")
        raise InputError(
            f"{file}: cannot be decoded ({name}: {one_line(error)[:120]}); expected uncompressed pixels, or"
            " pip install 'pylibjpeg[all]'"
        ) from error
    bits, signed = int(header.BitsStored), bool(header.PixelRepresentation)
    if int(header.HighBit) != bits - 1 or not 1 <= bits <= 16:
        raise InputError(f"{file}: stores bits up to {header.HighBit} of {bits}; expected the lowest 1 to 16 bits")
    values = pixels.astype(np.int64) & ((1 << bits) - 1)
    if signed:
        values -= (values >> (bits - 1)) << bits
    return values.astype(np.float64)


def _share(
    header: Any, file: Path, reading: _Reading, values: np.ndarray, slope: float, intercept: float
) -> np.ndarray:
    """Where each value lies in its window, 0 (black) to 1 (white) before MONOCHROME1."""
    if reading.window == "full":
        bits, signed = int(header.BitsStored), bool(header.PixelRepresentation)
        lowest = -(1 << (bits - 1)) if signed else 0
        ends = sorted(v * slope + intercept for v in (lowest, lowest + (1 << bits) - 1))
        return (values - ends[0]) / (ends[1] - ends[0])
    function = "LINEAR"
    if isinstance(reading.window, tuple):
        centre, width = reading.window
    else:
        centre, width = _first(header, "WindowCenter", file), _first(header, "WindowWidth", file)
        function = str(header.get("VOILUTFunction", "") or "LINEAR")
    return _voi(values, centre, width, function, file)


def _voi(values: np.ndarray, centre: float, width: float, function: str, file: Path) -> np.ndarray:
    """The three functions of DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3, as shares of the output range."""
    if function == "LINEAR" and width == 1:
        return (values > centre - 0.5).astype(np.float64)
    if function == "LINEAR" and width > 1:
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID" and width > 0:
        return 0.5 * (1.0 + np.tanh(2.0 * (values - centre) / width))
    raise InputError(
        f"{file}: has VOI LUT function {function} with window width {width:g}; expected LINEAR with a width from 1, or"
        " LINEAR_EXACT or SIGMOID with one above 0"
    )


def _first(header: Any, tag: str, file: Path) -> float:
    """The first value of a tag."""
    value = header.get(tag)
    if value is None or value == "":
        raise InputError(f"{file}: has no {tag}; expected one, or give window = 'full' or (centre, width)")
    try:
        number = float(value) if isinstance(value, str | float | int) else float(value[0])
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{file}: {tag} is {value!r}; expected a number") from error
    if not np.isfinite(number):
        raise InputError(f"{file}: {tag} is {number}; expected a finite number")
    return number


def _colour(header: Any, stored: np.ndarray, file: Path, bits: int) -> np.ndarray:
    if stored.ndim != 3 or stored.shape[2] != 3 or int(header.BitsStored) != 8 or bool(header.PixelRepresentation):
        raise InputError(f"{file}: is RGB with {header.BitsStored} bits stored; expected three times 8 unsigned bits")
    if bits != 8:
        raise InputError(f"{file}: is RGB of 8 bits; expected bits = 8")
    return stored.astype(np.uint8)
