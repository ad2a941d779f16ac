"""What `python -m benchmarks` measures."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """A job of ours beside a peer's.

    Attributes:
      name: for ``--only``.
      what: one line.
      unit: of what is counted.
      goal: ours over the peer's rate that we want to reach on two CPU cores; None for none.
      ours, peer: modules with ``JOBS``.
      job: a key of both.
      peer_name: in the table.
      needs: packages of the peer.
    """

    name: str
    what: str
    unit: str
    goal: float | None
    ours: str
    peer: str
    job: str
    peer_name: str
    needs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Solo:
    """Something of ours that is measured by itself, in a process of its own.

    Attributes:
      name: for ``--only``.
      what: one line.
      module: with ``MEASUREMENTS``.
      job: a key of it.
    """

    name: str
    what: str
    module: str
    job: str


def _flow(job: str, what: str, goal: float) -> Case:
    return Case(
        f"flow_{job}", what, "images", goal, "benchmarks.ours.flow", "benchmarks.peers.flow", job, "FrEIA",
        ("torch", "FrEIA"),
    )  # fmt: skip


def _unet(job: str, what: str, unit: str, goal: float) -> Case:
    return Case(
        f"unet_{job}", what, unit, goal, "benchmarks.ours.unet", "benchmarks.peers.unet", job, "diffusers",
        ("torch", "diffusers"),
    )  # fmt: skip


def _likelihood(job: str, what: str, goal: float) -> Case:
    return Case(
        f"likelihood_{job}", what, "images", goal, "benchmarks.ours.likelihood", "benchmarks.peers.likelihood", job,
        "scipy", ("torch", "diffusers"),
    )  # fmt: skip


def _audit(job: str, what: str, goal: float) -> Case:
    return Case(
        f"audit_{job}", what, "audits", goal, "benchmarks.ours.audit", "benchmarks.peers.audit", job,
        "paper's grid, diffusers", ("torch", "diffusers"),
    )  # fmt: skip


def _noise(job: str, what: str, package: str) -> Case:
    return Case(
        f"noise_{job}", what, "values", None, "benchmarks.ours.noise", "benchmarks.peers.noise", job, package,
        (package,),
    )  # fmt: skip


CASES: tuple[Case, ...] = (
    _flow("encode", "latents and likelihoods of 256 images, 5.3M parameters", 1.3),
    _flow("decode", "256 latents to images", 1.3),
    _flow("privatise", "encode, clip, add noise, decode", 1.25),
    _flow("train_64", "a training step, batch 64", 1.05),
    _flow("train_512", "a training step, batch 512", 1.4),
    _unet("forward", "one pass, batch 64, 1.6M parameters at 32x32", "images", 2.1),
    _unet("train", "a training step, batch 64", "images", 1.3),
    _unet("ddim", "DDIM in 50 steps, 32 images", "images", 2.4),
    _unet("sweep", "the h(t) sweep, 5 levels of a 20-step sampler, 32 draws", "evaluations", 2.2),
    _likelihood("tolerance", "ODE likelihood, both adaptive with the same tolerance", 3.3),
    _likelihood("error", "ODE likelihood, both within 1e-3 bits/dim of their own tight solution", 9.0),
    _audit("one", "t' and q of a record; theirs from 1 % of its calls, taken as proportional", 15.0),
    _audit("64", "t' of 64 records, q of the 4 that leak; theirs from 1 % of its calls, as proportional", 40.0),
    _audit("one_t", "t' of a record alone, the whole grid run", 15.0),
    _audit("64_t", "t' of 64 records alone; theirs from 1 % of its calls, as proportional", 40.0),
    _noise("opendp", "Gaussian noise; ours float32, theirs exact and safe: NOT like for like", "opendp"),
    _noise("opendp_exact", "discrete Gaussian noise, exact on both sides", "opendp"),
    _noise("diffprivlib", "Gaussian noise; ours float32, theirs value by value: NOT like for like", "diffprivlib"),
)

SOLOS: tuple[Solo, ...] = (
    Solo("peak", "best rate of a float32 product of matrices", "benchmarks.ours.scaling", "peak"),
    Solo("compile", "seconds to compile a flow of 16 couplings beside one of 4", "benchmarks.ours.scaling", "compile"),
    Solo("slopes", "log2 of the time's growth as a size doubles", "benchmarks.ours.scaling", "slopes"),
    Solo(
        "curve",
        "a privacy-utility curve of 7 ε and 5 seeds, whole and point by point",
        "benchmarks.ours.curve",
        "curve",
    ),
)
"""``peak`` goes first: shares of the others refer to it."""
