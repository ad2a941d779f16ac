"""Costs on paper against closed forms, the compiler's account of the real step, and the page that shows them."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launching import ROOT

from diffusion_privacy.networks.build import build
from diffusion_privacy.stages import costs
from diffusion_privacy.stages.costs import Machine, Network, Work
from diffusion_privacy.training import partition, sharding, steps
from diffusion_privacy.training import state as states
from diffusion_privacy.training.state import TrainConfig

TOY = Network("toy", parameters=10**6, evaluation=1e9, activations=1e6)
BOX = Machine("box", chips=4, bfloat16=1e12, float32=1e11, memory=1e9, bandwidth=1e10, link=1e9)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def unet_in_closed_form(size: int, c: int, channels: int) -> float:
    """A U-Net of one level and one block a level: stem, down, two in the middle, two up with skips, head."""

    def conv(inner: int, outer: int, k: int = 3) -> float:
        return 2.0 * (k * size) ** 2 * inner * outer

    def block(inner: int) -> float:
        return conv(inner, c) + conv(c, c) + (conv(inner, c, 1) if inner != c else 0)

    return conv(channels, c) + 3 * block(c) + 2 * block(2 * c) + conv(c, channels)


def test_a_unet_costs_what_its_convolutions_cost() -> None:
    found = costs.unet("small", (16, 16, 3), channels=32, channel_mult=(1,), blocks_per_level=1, dtype="float32")
    assert found.evaluation == pytest.approx(unet_in_closed_form(16, 32, 3), rel=0.01)
    network = build("unet", channels=32, channel_mult=(1,), blocks_per_level=1)
    params = jax.eval_shape(network.init, jax.random.key(0), floats(1, 16, 16, 3), floats(1))
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


class Denoise:
    """A score task's cost without its noise."""

    def __init__(self) -> None:
        self.network = build("unet", channels=32, channel_mult=(1,), blocks_per_level=1)

    def init(self, key, batch):
        return self.network.init(key, batch["image"][:1], jnp.zeros(1))

    def loss(self, params, batch, key):
        out = self.network.apply(params, batch["image"], jnp.zeros(len(batch["image"])))
        return jnp.mean((out - batch["image"]) ** 2, axis=(1, 2, 3)), {}

    def evaluate(self, params, batch, key):
        return {}


@pytest.mark.slow
def test_the_compilers_account_of_the_real_step() -> None:
    """Its operations are three evaluations a record; its state is 16 bytes a parameter, whole or split over devices."""
    task, mesh = Denoise(), sharding.data_mesh(jax.devices()[:4])
    if mesh.size < 4:
        pytest.skip("needs 4 devices")
    config = TrainConfig(steps=1, batch_size=8)
    batch = {"image": floats(8, 16, 16, 1)}
    net = costs.unet("small", (16, 16, 1), channels=32, channel_mult=(1,), blocks_per_level=1, dtype="float32")
    key = jax.random.key(0)
    optimizer = states.make_optimizer(config)
    state = jax.eval_shape(lambda: states.create(task, optimizer, key, {"image": jnp.zeros((8, 16, 16, 1))}))
    words = jax.eval_shape(jax.random.key_data, key)
    rows = (batch, floats(8), jax.ShapeDtypeStruct((8,), jnp.int32))
    held = {}
    for rules in ((), (".*: largest",)):
        parts = partition.of(state, rules, mesh)
        totals = dict.fromkeys(("loss", "grad_norm"), floats())
        step = steps.make_step(task, config, mesh, parts)
        compiled = step.lower(state, totals, words, *rows).compile(
            compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        )
        held[bool(rules)] = compiled.memory_analysis().argument_size_in_bytes
        counted = compiled.cost_analysis()["flops"]
        # Of one device's two records.
        assert counted == pytest.approx(2 * costs.TRAINING * net.evaluation, rel=0.1)
    assert held[False] == pytest.approx(costs.STATE_BYTES * net.parameters, rel=0.01)
    whole = sum(
        leaf.size for leaf, axis in zip(jax.tree.leaves(state), jax.tree.leaves(parts.axes), strict=True) if axis < 0
    )
    assert held[True] == pytest.approx(4 * whole + (costs.STATE_BYTES * net.parameters - 4 * whole) / 4, rel=0.02)
    assert held[True] < 0.35 * held[False]


def test_seconds_by_term() -> None:
    """One number each, by hand."""
    drawn = costs.seconds(Work("draw", TOY, 8000), BOX, share=0.5)
    assert drawn.products == pytest.approx(8000 * 1e9 / (4 * 1e12 * 0.5))
    assert drawn.memory == pytest.approx(8000 * 2e6 / 4 / 1e10)
    assert (drawn.network, drawn.chips, drawn.longest) == (0, 4, "products")
    # Ten steps of two records: two chips have work, and send 4 MB each way to one another in every step.
    trained = costs.seconds(Work("train", TOY, 20, True, 2), BOX, share=0.5)
    assert trained.chips == 2
    assert trained.products == pytest.approx(20 * 3e9 / (2 * 1e12 * 0.5))
    assert trained.network == pytest.approx(10 * 4e6 / 1e9)
    assert trained.memory == pytest.approx((20 * 2e6 / 2 + 10 * 40e6) / 1e10)
    assert trained.longest == "products"
    assert trained.total == trained.products
    # Four chips at their peak: 15 ms of products, and five sums of 6 MB at 1 GB/s.
    waiting = costs.seconds(Work("train", TOY, 20, True, 4), BOX, share=1.0)
    assert (waiting.products, waiting.network) == (pytest.approx(0.015), pytest.approx(0.03))
    assert (waiting.longest, waiting.total) == ("sums over chips", waiting.network)
    assert costs.state_gb(TOY, parts=4) == pytest.approx(0.004)


def test_full_precision_has_its_own_peak() -> None:
    exact = Network("exact", 1, 1e9, 0.0, precision="float32")
    ratio = costs.seconds(Work("", exact, 4), BOX, 0.5).products / costs.seconds(Work("", TOY, 4), BOX, 0.5).products
    assert ratio == pytest.approx(10)


def test_shares_are_those_that_were_measured_and_of_the_data_sheet() -> None:
    """The page of results has its shares of the best product of two matrices, which are larger by 989/687."""
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    one = float(re.findall(r"Operations of the forward pass: ([\d.]+) GF an image", page)[0]) * 1e9
    rows = {"training step": (costs.TRAINED, costs.TRAINING * one), "forward pass": (costs.EVALUATED, one)}
    for name, (share, work) in rows.items():
        row = rf"\| {name}[^|]*bfloat16 \| 128 \| ([\d,]+) [^|]*\| (\d+) \|"
        [(rate, operations)] = re.findall(row, page)
        assert share * costs.SHEET == pytest.approx(float(operations) * 1e12, rel=1e-6)
        assert share * costs.SHEET == pytest.approx(float(rate.replace(",", "")) * work, rel=0.005)


@pytest.mark.parametrize(
    ("changes", "trains", "share", "source"),
    [
        ({"measured": True}, True, 275 / 989, "measured on an H200"),
        ({"measured": True}, False, 325 / 989, "measured on an H200"),
        ({}, False, 325 / 989, "assumed, as the U-Net's"),
        ({"precision": "float32"}, True, 0.5, "assumed"),
    ],
)
def test_what_is_measured_is_told_from_what_is_assumed(changes, trains, share, source) -> None:
    work = Work("", dataclasses.replace(TOY, **changes), 8, trains, 8 * trains)
    assert costs.share_of(work) == (pytest.approx(share), source)
    assert costs.seconds(work, BOX) == costs.seconds(work, BOX, share=share)
    assert costs.seconds(work, BOX).products > costs.seconds(work, BOX, share=0.6).products


def test_a_balanced_batch_is_the_smallest_that_is_bound_by_products() -> None:
    for machine in costs.MACHINES:
        batch = costs.balanced_batch(TOY, machine)
        assert batch % machine.chips == 0

        def spent(records: int, machine: Machine = machine) -> costs.Seconds:
            return costs.seconds(Work("", TOY, records, True, records), machine)

        assert spent(batch).products >= spent(batch).network
        if batch > machine.chips:
            assert spent(batch - machine.chips).products < spent(batch - machine.chips).network


@pytest.mark.slow
def test_the_page_shows_what_is_computed() -> None:
    """Words exactly; numbers to 1 %, which is what three digits show."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    number = r"\d[\d,]*\.?\d*"
    wanted = costs.tables()
    shown = page[page.index("| network |") :][: len(wanted) + 40]
    shown = shown[: shown.index("\n\n", shown.index("| records a step")) + 1]
    assert re.sub(number, "#", shown) == re.sub(number, "#", wanted)
    values = [[float(text.replace(",", "")) for text in re.findall(number, table)] for table in (shown, wanted)]
    np.testing.assert_allclose(*values, rtol=0.01)
