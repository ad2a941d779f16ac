"""Records as an encoder sees them: what batches of a latent score model are drawn from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class LatentRecords:
    """The same people with latents in the place of images; a `pipeline.Drawable`. Latents have no range.

    Attributes:
      records: whose latents they are.
      image: float32 ``[N, h, w, c]``, finite.
      encoder: hexadecimal digest of the encoder and its scale.

    Raises:
      InputError: latents of another number or type, or not finite.
    """

    records: Records
    image: np.ndarray
    encoder: str

    def __post_init__(self) -> None:
        found = self.image
        if found.dtype != np.float32 or found.ndim != 4 or len(found) != len(self.records):
            raise InputError(
                f"{self.records.name}: latents are {found.dtype} {found.shape}; "
                f"expected float32 ({len(self.records)}, h, w, c)"
            )
        if not np.all(np.isfinite(found)):
            raise InputError(f"{self.records.name}: a latent is not finite; expected an encoder that was trained")

    @property
    def label(self) -> np.ndarray:
        """int32 [N]."""
        return self.records.label

    @property
    def identity(self) -> np.ndarray:
        """int32 [N], equal for records of one person."""
        return self.records.identity

    @property
    def index(self) -> np.ndarray:
        """int32 [N], positions in the source."""
        return self.records.index

    @property
    def attributes(self) -> np.ndarray | None:
        """int32 [N, A], see `Records`."""
        return self.records.attributes

    @functools.cached_property
    def digest(self) -> str:
        """Of records and encoder, not of the latents' values, whose last digits differ between kinds of devices."""
        return hashlib.sha256(f"latents {self.records.digest} {self.encoder}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def take(self, indices: np.ndarray) -> LatentRecords:
        """The records at these positions, see `Records.take`."""
        return LatentRecords(self.records.take(indices), self.image[np.asarray(indices)], self.encoder)
