"""Use a privacy mechanism that is yours: release digits through it, account for it, and try to prove it wrong.

    python examples/own_mechanism.py

The mechanism limits each latent coordinate to a box and adds Laplace noise. The "flow" is a rotation that was learned
from public records. The audit throws the worst pair of latents at the mechanism, and at one with half of its noise.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.audits.epsilon import Verdict, epsilon_from_scores, judge_claim
from diffusion_privacy.data.records import split_records
from diffusion_privacy.data.sources import load
from diffusion_privacy.mechanisms import noise
from diffusion_privacy.mechanisms.clipping import sanitise
from diffusion_privacy.mechanisms.condition import PublicCondition
from diffusion_privacy.mechanisms.decoding import CoarseSelection
from diffusion_privacy.mechanisms.manifest import FlowProvenance, Manifest
from diffusion_privacy.mechanisms.mechanism import positive
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, Relation
from diffusion_privacy.mechanisms.release import privatise
from diffusion_privacy.types import Array

if TYPE_CHECKING:
    import dp_accounting

KEPT = 4
"""Latent coordinates that carry the record; the others are drawn from the prior."""


@dataclasses.dataclass(frozen=True)
class BoxLaplace:
    """Each of D coordinates limited to [−bound, bound], then Laplace noise of scale b.

    Two limited latents differ by at most 2·bound in each coordinate, 2·bound·D in L1, and k times that for the k
    records of a person; so the release is (2·bound·D·k / b, 0)-private. Attained by opposite corners of the box.
    """

    bound: float
    scale: float
    dim: int
    name: ClassVar[str] = "box_laplace"
    arithmetic: ClassVar[str] = "float32 noise, lowest bits rounded off; threefry-2x32 with 64-bit keys"

    def __post_init__(self) -> None:
        positive(self.bound, "bound")
        positive(self.scale, "scale")

    @property
    def norm(self) -> str:
        return "l1"

    @property
    def noise_scale(self) -> float:
        return self.scale

    def __call__(self, key: Array, z: Array) -> Array:
        """One record, ``z[D] -> z̃[D]``."""
        limited = jnp.clip(sanitise(z), -self.bound, self.bound)
        return noise.add(limited, noise.unit_laplace(key, self.dim), self.scale)

    def sensitivity(self, relation: Relation) -> float:
        return 2.0 * self.bound * self.dim * relation.l1_factor()

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        import dp_accounting

        return dp_accounting.LaplaceDpEvent(self.scale / self.sensitivity(relation))


def audit(mechanism: BoxLaplace, claimed: float, trials: int = 200_000) -> Verdict:
    """A lower bound on ε from opposite corners, far outside the box, against the claim."""
    corners = 10 * mechanism.bound * jnp.ones((2, 1, mechanism.dim)) * jnp.array([1.0, -1.0])[:, None, None]

    @jax.jit
    def scores(key: Array) -> Array:
        """Log-likelihood ratio of the two corners, [2, trials]."""
        z = jnp.broadcast_to(corners, (2, trials, mechanism.dim)).reshape(-1, mechanism.dim)
        out = jax.vmap(mechanism)(jax.random.split(key, len(z)), z)
        ratio = jnp.abs(out + mechanism.bound) - jnp.abs(out - mechanism.bound)
        return jnp.sum(ratio, axis=1).reshape(2, trials)

    # An audit is no release: its keys may be fixed.
    halves = [np.asarray(scores(jax.random.key(seed))) for seed in (0, 1)]
    bound = epsilon_from_scores((halves[0][0], halves[0][1]), (halves[1][0], halves[1][1]), delta=0.0)
    return judge_claim(bound, claimed, tightness=0.5)


def main() -> tuple[Manifest, Verdict, Verdict]:
    public, private = split_records(load("digits"), (0.7, 0.3), seed=0)
    flat = public.image.reshape(len(public), -1)
    mean = flat.mean(axis=0)
    _, spread, axes = np.linalg.svd(flat - mean, full_matrices=False)
    scale = np.maximum(spread / np.sqrt(len(flat)), 1e-2)

    def encode(x: Array, classes: Array) -> Array:
        del classes
        return (x.reshape(len(x), -1) - mean) @ axes.T / scale

    def decode(z: Array, classes: Array) -> Array:
        del classes
        return jnp.clip(((z * scale) @ axes + mean).reshape(-1, 8, 8, 1), -1, 1)

    epsilon, bound = 4.0, 2.0
    mechanism = BoxLaplace(bound, 2 * bound * KEPT / epsilon, KEPT)
    assert public.source_hash is not None
    assert private.source_hash is not None
    made = privatise(
        encode,
        decode,
        private.image,
        private.label,
        mechanism=mechanism,  # type: ignore[arg-type]
        condition=PublicCondition(10),
        relation=REPLACE_RECORD,
        delta=0.0,
        flow=FlowProvenance("public", frozenset(public.source_hash.tolist()), kind=public.hash_kind),
        selection=CoarseSelection(tuple(range(KEPT)), 64),
        match=False,  # prior-matched decoding knows the project's own noise only
        hashes=private.source_hash.tolist(),
        hash_kind=private.hash_kind,
    )
    print(f"released {len(made.data)} digits: {made.manifest.guarantee}")
    honest = audit(mechanism, epsilon)
    faulty = audit(dataclasses.replace(mechanism, scale=mechanism.scale / 2), epsilon)
    print(f"audit: {honest.reason}")
    print(f"with half of the noise: {faulty.reason}")
    return made.manifest, honest, faulty


if __name__ == "__main__":
    main()
