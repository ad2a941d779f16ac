"""The arrays that figures are drawn from, one set for each model, and their npz file.

Images are float32 in [-1, 1] with shape [H, W, C]. Everything here but the training curve may show a private record:
the file belongs in the working directory, never in a release.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion_privacy.errors import InputError


@dataclasses.dataclass(frozen=True)
class Regenerated:
    """What came back from a record noised to t and denoised again.

    Attributes:
      t: noise levels, float[levels].
      images: float32[levels, draws, H, W, C].
      hits: bool[levels, draws], whether the detector says "this is the record"; None where it was not asked.
    """

    t: np.ndarray
    images: np.ndarray
    hits: np.ndarray | None = None

    def __post_init__(self) -> None:
        expect("images", self.images, (len(self.t), None, None, None, None))
        if self.hits is not None:
            expect("hits", self.hits, self.images.shape[:2])


@dataclasses.dataclass(frozen=True)
class Listed:
    """The records that screening put first, and the drawn image nearest to each.

    Attributes:
      records: as trained on, float32[k, H, W, C], the most suspicious first.
      draws: the drawn image nearest to each, of all that were drawn, [k, H, W, C].
      distances: Euclidean distance between the two, float[k].
      hits: bool[k], whether that image lies inside the record's ball.
    """

    records: np.ndarray
    draws: np.ndarray
    distances: np.ndarray
    hits: np.ndarray

    def __post_init__(self) -> None:
        expect("records", self.records, (None, None, None, None))
        expect("draws", self.draws, self.records.shape)
        expect("distances", self.distances, self.records.shape[:1])
        expect("hits", self.hits, self.records.shape[:1])


@dataclasses.dataclass(frozen=True)
class ModelArrays:
    """Arrays of one model.

    Attributes:
      samples: the first k unconditional samples, not picked by any criterion, [k, H, W, C].
      nearest: the training record nearest to each sample, [k, H, W, C].
      distances: Euclidean distance between the two, float[k].
      regenerated: by role, ``"private"`` or ``"control"``.
      private_image: the private record as trained on, [H, W, C].
      private_original: the same before the fingerprint was planted, [H, W, C].
      control_images: held-out records, [m, H, W, C].
      steps, loss: the training curve, int[points] and float[points].
      listed: the head of the ranking of all training records; None if they were not ranked.
    """

    samples: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    regenerated: Mapping[str, Regenerated]
    private_image: np.ndarray
    private_original: np.ndarray
    control_images: np.ndarray
    steps: np.ndarray
    loss: np.ndarray
    listed: Listed | None = None

    def __post_init__(self) -> None:
        image = self.private_image.shape
        if len(image) != 3 or image[-1] not in (1, 3):
            raise ValueError(f"private_image: expected shape [H, W, 1 or 3], got {image}")
        expect("private_original", self.private_original, image)
        expect("control_images", self.control_images, (None, *image))
        expect("samples", self.samples, (None, *image))
        expect("nearest", self.nearest, self.samples.shape)
        expect("distances", self.distances, self.samples.shape[:1])
        expect("loss", self.loss, self.steps.shape)
        for role, back in self.regenerated.items():
            expect(f"regenerated[{role!r}].images", back.images, (None, None, *image))
        if self.listed is not None:
            expect("listed.records", self.listed.records, (None, *image))


def expect(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless ``array`` has this shape, in which None stands for any length."""
    fits = array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=True))
    if not fits:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")


_PLAIN = tuple(f.name for f in dataclasses.fields(ModelArrays) if f.name not in ("regenerated", "listed"))
_PREFIX, _LISTED = "regenerated.", "listed."


def save_arrays(path: Path, arrays: ModelArrays) -> None:
    """Write one npz file in one step; ``load_arrays`` reads it back."""
    flat = {name: np.asarray(vars(arrays)[name]) for name in _PLAIN}
    for role, back in arrays.regenerated.items():
        flat |= {f"{_PREFIX}{role}.{k}": np.asarray(v) for k, v in vars(back).items() if v is not None}
    if arrays.listed is not None:
        flat |= {f"{_LISTED}{k}": np.asarray(v) for k, v in vars(arrays.listed).items()}
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **flat)
    os.replace(temporary, path)


def load_arrays(path: Path) -> ModelArrays:
    """Read what `save_arrays` wrote; `InputError` names the file when it is missing, damaged or incomplete."""
    try:
        with np.load(path, allow_pickle=False) as file:
            flat = {name: file[name] for name in file.files}
        roles = sorted({name.split(".")[1] for name in flat if name.startswith(_PREFIX)})
        listed = {name.removeprefix(_LISTED): value for name, value in flat.items() if name.startswith(_LISTED)}
        return ModelArrays(
            **{name: flat[name] for name in _PLAIN},
            listed=Listed(**listed) if listed else None,
            regenerated={role: _regenerated(flat, f"{_PREFIX}{role}.") for role in roles},
        )
    except KeyError as error:
        raise InputError(f"{path}: expected the array {error.args[0]!r}, it is missing") from error
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected a readable npz file of report arrays ({error})") from error


def _regenerated(flat: Mapping[str, np.ndarray], prefix: str) -> Regenerated:
    return Regenerated(flat[prefix + "t"], flat[prefix + "images"], flat.get(prefix + "hits"))
