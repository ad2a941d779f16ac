"""What runs of real size cost, on paper: operations, bytes and seconds by term; the tables of docs/scaling.md.

    python -m diffusion_privacy.stages.costs

prints them. Operations of one evaluation of a network are counted from its program as it is traced at full size
(`operations`; nothing is run or compiled); everything else is arithmetic. A second of a machine is its peak by the data
sheet times a share, which has to be measured: `share_of` says which share the tables take, and where it is from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_privacy.flows import cinn
from diffusion_privacy.flows.cinn import FlowConfig
from diffusion_privacy.networks.build import build
from diffusion_privacy.stages import operations
from diffusion_privacy.training import convolutions
from diffusion_privacy.types import PyTree

STATE_BYTES = 16
"""Of one float32 parameter in training: itself, its average, two moments of Adam."""
TRAINING = 3
"""Operations of a gradient over those of an evaluation: one pass forward, two products of the same size backward."""
SHEET = 989e12
"""Operations a second in bfloat16, of an H100 and of an H200: the data sheets' peak, without sparsity."""
TRAINED, EVALUATED = 275e12 / SHEET, 325e12 / SHEET
"""Shares of that peak which a step and an evaluation of the U-Net of 113.7 million parameters reached, 128 records each
(benchmarks/RESULTS.md: 2026-11-26, one H200). Shares there are of what a product of two matrices reached, 687e12."""
ASSUMED = 0.5
"""Of the float32 peak: nobody has measured it."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine by its data sheet.

    Attributes:
      name: as in the tables.
      chips: how many.
      bfloat16, float32: peak operations a second of a chip; products of whole float32 numbers, not of rounded ones.
      memory, bandwidth: of a chip, bytes and bytes a second.
      link: bytes a second that a chip sends to its neighbours while it receives as many.
    """

    name: str
    chips: int
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    link: float


MACHINES = (
    # 197 TFLOP/s in bfloat16; a whole float32 product takes six passes. One axis of the torus, both directions.
    Machine("v5e-256", 256, 197e12, 197e12 / 6, 16e9, 819e9, 90e9),
    # SXM; without sparsity; float32 outside of the tensor cores.
    Machine("8 x H100", 8, SHEET, 67e12, 80e9, 3.35e12, 450e9),
)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network at its real size.

    Attributes:
      name: as in the tables.
      parameters: how many.
      evaluation: operations of one evaluation for one record.
      activations: bytes a record that the backward pass keeps.
      precision: ``"bfloat16"`` or ``"float32"``, of its products.
      measured: whether `TRAINED` and `EVALUATED` are of a network of its kind.
    """

    name: str
    parameters: int
    evaluation: float
    activations: float
    precision: str = "bfloat16"
    measured: bool = False


def measure(
    name: str, fn: Callable[..., Any], params: PyTree, layouts: Callable[[int], tuple[Any, ...]], precision: str
) -> Network:
    """A network from its program.

    Args:
      name: as in the tables.
      fn: ``fn(params, *inputs)``, summed to a loss for the backward pass.
      params: their layout.
      layouts: the inputs' for so many records.
      precision: of the products.
    """

    def kept(records: int) -> float:
        def backward(params: PyTree, *inputs: Any) -> Any:
            return jax.vjp(lambda p: jnp.sum(jax.tree.leaves(fn(p, *inputs))[0].astype(jnp.float32)), params)[1]

        with convolutions.for_training():
            return _bytes(jax.eval_shape(backward, params, *layouts(records)))

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    # Twice as many records keep their own activations and the same parameters.
    return Network(name, size, operations.count(fn, params, *layouts(1)), kept(2) - kept(1), precision)


def _bytes(layout: PyTree) -> float:
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(layout)))


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def unet(name: str, shape: tuple[int, ...], **fields: Any) -> Network:
    """A U-Net of `networks.unet.UNet` on records of ``shape``."""
    network = build("unet", **fields)
    layouts = lambda n: (_floats(n, *shape), _floats(n))  # noqa: E731
    params = jax.eval_shape(network.init, jax.random.key(0), *layouts(1))
    return measure(name, network.apply, params, layouts, fields["dtype"])


def decoder(name: str, latent: tuple[int, ...], **fields: Any) -> Network:
    """The decoder of `networks.autoencoder.Autoencoder` on latents of ``latent``."""
    network = build("autoencoder", **fields)
    side = latent[0] * 2 ** fields["halvings"]
    params = jax.eval_shape(network.init, jax.random.key(0), _floats(1, side, side, fields["image_channels"]))

    def decode(params: PyTree, z: jax.Array) -> Any:
        return network.apply(params, z, method="decode")

    return measure(name, decode, params, lambda n: (_floats(n, *latent),), fields["dtype"])


def flow(name: str, config: FlowConfig) -> Network:
    """A conditional flow; its inverse costs what its forward pass costs."""
    model = cinn.plain_form(cinn.build(dataclasses.replace(config, scan=False)))
    params = jax.eval_shape(model.init, jax.random.key(0))

    def forward(params: PyTree, x: jax.Array, cond: jax.Array) -> Any:
        return jax.vmap(model.forward, in_axes=(None, 0, 0))(params, x, cond)

    layouts = lambda n: (_floats(n, *config.shape), _floats(n, config.cond_dim))  # noqa: E731
    return measure(name, forward, params, layouts, "float32")


@dataclasses.dataclass(frozen=True)
class Work:
    """Evaluations of one network, e.g. one part of an audit.

    Attributes:
      name: as in the tables.
      network: which.
      evaluations: records x evaluations.
      gradients: how many of them are training steps' (three times as dear).
      batch: records of a training step, over all chips; 0 where nothing is trained.
    """

    name: str
    network: Network
    evaluations: float
    gradients: bool = False
    batch: int = 0

    @property
    def operations(self) -> float:
        """In all."""
        return self.evaluations * self.network.evaluation * (TRAINING if self.gradients else 1)


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of one work on one machine by term; what runs at the same time is not added up.

    Attributes:
      products: operations at a share of the peak.
      memory: activations and, a step, the state through the chip's memory.
      network: a step's sums over chips (all-reduce, or all-gather and reduce-scatter, which send as much).
      chips: how many had something to do: a batch has no more than one record a chip.
    """

    products: float
    memory: float
    network: float
    chips: int

    @property
    def longest(self) -> str:
        """The term that decides."""
        terms = {"products": self.products, "memory": self.memory, "sums over chips": self.network}
        return max(terms, key=lambda name: terms[name])

    @property
    def total(self) -> float:
        """Of the term that decides: the others hide behind it."""
        return max(self.products, self.memory, self.network)


def share_of(work: Work) -> tuple[float, str]:
    """The share of a machine's peak that the products of ``work`` are taken to reach, in (0, 1), and where it is from.

    In bfloat16 it is that of the U-Net which was measured, for other networks and machines too, since nothing says that
    they do better.
    """
    if work.network.precision == "float32":
        return ASSUMED, "assumed"
    share = TRAINED if work.gradients else EVALUATED
    return share, "measured on an H200" if work.network.measured else "assumed, as the U-Net's"


def seconds(work: Work, machine: Machine, share: float | None = None) -> Seconds:
    """What ``work`` takes on ``machine`` at this share of its peak; by default that of `share_of`.

    A training step reads and writes the state once (2 x 16 bytes a parameter) and its gradient; activations are written
    and read once. A sum over n chips sends 2 (n − 1)/n times the gradient from each.
    """
    net = work.network
    share = share_of(work)[0] if share is None else share
    chips = min(machine.chips, work.batch) if work.batch else machine.chips
    peak = machine.bfloat16 if net.precision == "bfloat16" else machine.float32
    steps = work.evaluations / work.batch if work.batch else 0.0
    moved = work.evaluations * 2 * net.activations / chips + steps * (2 * STATE_BYTES + 8) * net.parameters
    sent = steps * 2 * (chips - 1) / chips * 4 * net.parameters
    return Seconds(work.operations / (chips * peak * share), moved / machine.bandwidth, sent / machine.link, chips)


def state_gb(network: Network, parts: int = 1) -> float:
    """Gigabytes a device holds of a training state that is split into ``parts``."""
    return STATE_BYTES * network.parameters / parts / 1e9


# --- the runs of the tables -------------------------------------------------------------------------------------------

RECORDS, DRAWS, CHAIN = 28_007, 30_000, 100
"""Of the X-ray experiment of Dombrowski & Kainz (arXiv 2306.01363): records, images of E1, steps of the sampler."""
GRID_CALLS, BRACKET_CALLS, FINALISTS, PATHS = 80_800, 1_144, 64, 8_192
"""Calls a record of the paper's grid, and of bisection for a held-out record at the most (docs/results.md); records
that get E2, and its paths each at the most."""
CELEBA, EPSILONS = 202_599, 7


def networks() -> tuple[Network, ...]:
    """The X-ray U-Net of configs/paper/xray_512_latent.py, its decoder, and the flow of Tölle et al. for CelebA."""
    latent = (64, 64, 4)
    score = unet(
        "X-ray U-Net, latents 64x64x4",
        latent,
        channels=128,
        channel_mult=(1, 2, 4, 4),
        blocks_per_level=2,
        attention_levels=(2, 3),
        dtype="bfloat16",
    )
    return (
        dataclasses.replace(score, measured=True),
        decoder(
            "its decoder, to 512x512",
            latent,
            halvings=3,
            latent_channels=4,
            channels=64,
            max_channels=256,
            blocks=2,
            image_channels=1,
            dtype="bfloat16",
        ),
        flow(
            "CelebA flow, 128x128x3",
            FlowConfig((128, 128, 3), cond_dim=40, depths=(4,) * 6, conv_width=128, splits=(True,) * 5, dense_depth=0),
        ),
    )


def works(score: Network, decode: Network, cadp: Network) -> tuple[tuple[str, tuple[Work, ...]], ...]:
    """The runs and their parts."""
    shown = RECORDS * BRACKET_CALLS / (CHAIN / 2)
    return (
        ("train the X-ray model", (Work("100,000 steps of 64", score, 6.4e6, True, 64),)),
        (
            "audit 28,007 records: rank all, bracket t' of all, E1, E2 of 64",
            (
                Work("E1: 30,000 images of 100 steps", score, DRAWS * CHAIN),
                Work("ranking: 10 levels, 4 draws", score, RECORDS * 40),
                Work("brackets: at most 1,144 calls a record", score, RECORDS * BRACKET_CALLS),
                Work("E2: 64 records, 8,192 paths", score, FINALISTS * PATHS * CHAIN),
                Work("decoding what is drawn", decode, DRAWS + shown + FINALISTS * PATHS),
            ),
        ),
        ("the same t' by the paper's grid", (Work("80,800 calls a record", score, RECORDS * GRID_CALLS),)),
        ("E2 of every record", (Work("8,192 paths each", score, RECORDS * PATHS * CHAIN),)),
        (
            "CelebA by CADP",
            (
                Work("train: 40,000 steps of 64", cadp, 2.56e6, True, 64),
                Work("encode 202,599 images", cadp, CELEBA),
                Work("decode them at 7 ε", cadp, CELEBA * EPSILONS),
            ),
        ),
    )


def balanced_batch(network: Network, machine: Machine, share: float | None = None) -> int:
    """Records of a step, over all chips, from which on its products take longer than its sums over chips."""
    one = Work("", network, machine.chips, True, machine.chips)
    spent = seconds(one, machine, share)
    return machine.chips * max(1, math.ceil(spent.network / spent.products))


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(value: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{_number(value / size)} {unit}"
    return f"{_number(value)} s"


def tables(found: Sequence[Network] | None = None) -> str:
    """The tables in Markdown; ``found`` are `networks`, counted anew by default."""
    score, decode, cadp = networks() if found is None else found
    parts = (_of_networks((score, decode, cadp)), _of_works(works(score, decode, cadp)))
    return "\n".join((*parts, _of_batches((score, cadp))))


def _of_networks(found: Sequence[Network]) -> str:
    rows = [
        (
            net.name,
            f"{net.parameters / 1e6:.1f} million",
            _number(net.evaluation / 1e9),
            _number(TRAINING * net.evaluation / 1e9),
            _number(state_gb(net)),
            _number(net.activations / 1e6),
        )
        for net in found
    ]
    head = ("network", "parameters", "GFLOP an evaluation", "GFLOP a training record", "state, GB", "kept a record, MB")
    return _table(head, rows)


def _of_works(runs: Sequence[tuple[str, tuple[Work, ...]]]) -> str:
    rows = []
    for run, parts in runs:
        for i, part in enumerate(parts):
            share, source = share_of(part)
            spent = [seconds(part, machine) for machine in MACHINES]
            cells = [text for s in spent for text in (f"{_duration(s.total)} on {s.chips}", s.longest)]
            of_peak = f"{100 * share:.3g} %, {source}"
            rows.append(("" if i else run, part.name, _number(part.operations / 1e15), of_peak, *cells))
    head = [text for machine in MACHINES for text in (machine.name, "longest term")]
    return _table(("run", "part", "PFLOP", "share of the peak", *head), rows)


def _of_batches(found: Sequence[Network]) -> str:
    rows = [(net.name, *(str(balanced_batch(net, machine)) for machine in MACHINES)) for net in found]
    head = "records a step from which on products take longer than sums over chips"
    return _table((head, *(machine.name for machine in MACHINES)), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("|" + "|".join(f" {cell} " for cell in line) + "|\n" for line in lines)


if __name__ == "__main__":
    print(tables(), end="")
