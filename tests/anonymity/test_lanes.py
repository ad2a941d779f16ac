"""What a lane computes depends on its own numbers alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.diffusion.given_model import from_denoiser
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.build import build
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.training.sharding import data_mesh

TRACES: list[str] = []


def noisy_line(static: float, operands, batch):
    """A lane with its own noise and a shared parameter; notes when it is traced."""
    TRACES.append("noisy_line")
    keys = lanes.lane_keys(operands["key"], batch["uid"])
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    y = operands["model"](batch["x"]) * static + noise
    return {"y": y, "uid": batch["uid"]}


def scale(factor, x):
    return factor * x


def inputs(count: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    return {"uid": np.arange(count, dtype=np.int32), "x": x}


def evaluate(batch, *, factor=2.0, **where):
    operands = {"key": jax.random.key(7), "model": lanes.operand(Partial(scale, jnp.float32(factor)))}
    return lanes.run(noisy_line, 3.0, operands, batch, **where)


def mesh_of(count: int):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices")
    return data_mesh(jax.devices()[:count])


@pytest.mark.parametrize("count", [1, 5, 16, 23])
def test_chunks_and_devices_do_not_show(count) -> None:
    batch = inputs(count)
    expected = evaluate(batch, chunk=count, mesh=mesh_of(1))
    assert expected["y"].shape == (count, 3)
    np.testing.assert_array_equal(expected["uid"], np.arange(count))
    for devices, chunk in ((1, 2), (4, 1), (4, 3), (4, 256)):
        got = evaluate(batch, chunk=chunk, mesh=mesh_of(devices))
        np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-6)
        np.testing.assert_array_equal(got["uid"], expected["uid"])


def test_order_does_not_show() -> None:
    batch = inputs(11)
    order = np.random.default_rng(1).permutation(11)
    shuffled = evaluate({name: z[order] for name, z in batch.items()}, chunk=2)
    np.testing.assert_allclose(shuffled["y"], evaluate(batch, chunk=3)["y"][order], rtol=1e-6)


def test_a_model_of_the_same_shape_reuses_the_program() -> None:
    batch = inputs(6)
    first = evaluate(batch, chunk=2)
    before = len(TRACES)
    second = evaluate(batch, factor=-1.0, chunk=2)
    assert len(TRACES) == before
    assert not np.allclose(first["y"], second["y"])


def test_another_number_of_lanes_reuses_the_program() -> None:
    evaluate(inputs(9), chunk=2)
    before = len(TRACES)
    for count in (8, 17, 40):
        assert evaluate(inputs(count), chunk=2)["y"].shape == (count, 3)
    assert len(TRACES) == before


def test_an_operand_keeps_its_parameters_in_sight() -> None:
    partial = Partial(scale, jnp.ones(3))
    assert len(jax.tree.leaves(lanes.operand(partial))) == 1
    assert lanes.operand(jnp.tanh)(0.0) == 0.0
    assert jax.tree.structure(lanes.operand(jnp.tanh)) == jax.tree.structure(lanes.operand(jnp.tanh))


def test_a_margin_of_a_broken_image_is_not_a_number() -> None:
    x = jnp.zeros((4, 2, 2, 1)).at[1, 0, 0, 0].set(jnp.nan).at[2, 1, 1, 0].set(-jnp.inf)
    margin = lanes.checked_margin(lambda z, r: jnp.where(z[:, 0, 0, 0] > 0, 1.0, -1.0), x, jnp.arange(4))
    np.testing.assert_array_equal(np.isnan(margin), [False, True, True, False])


def test_keys_are_a_function_of_the_indices() -> None:
    key = jax.random.key(0)
    a, b = np.meshgrid(np.arange(6), np.arange(5), indexing="ij")
    keys = np.asarray(jax.random.key_data(lanes.lane_keys(key, jnp.asarray(a.ravel()), jnp.asarray(b.ravel()))))
    assert len(np.unique(keys, axis=0)) == 30
    alone = lanes.lane_keys(key, jnp.array([4]), jnp.array([3]))
    np.testing.assert_array_equal(jax.random.key_data(alone)[0], keys[4 * 5 + 3])


class Net:
    """Holds its weights as nnx modules do: training exchanges them, the object stays."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, *args):
        TRACES.append("Net")
        return self.factor * next(x for x in args if jnp.ndim(x) == 2)

    def apply(self, params, x):
        return self(params, x)


@dataclasses.dataclass(frozen=True)
class Around:
    """Compared by its fields, one of which is compared by identity."""

    net: Net

    def __call__(self, params, x):
        return self.net(params, x)


@dataclasses.dataclass(frozen=True)
class Scale:
    power: int

    def __call__(self, factor, x):
        TRACES.append("Scale")
        return factor**self.power * x


HOLDERS = {
    "itself": lambda net: net,
    "bare partial": Partial,
    "function without parameters": lambda net: Partial(lambda x: net(x)),
    "method": lambda net: Partial(net.apply, jnp.ones(2)),
    "dataclass": lambda net: Partial(Around(net), jnp.ones(2)),
    "partial within": lambda net: Partial(lambda inner, scale, x: scale * inner(x), Partial(net), jnp.float32(1)),
    "within a list": lambda net: Partial(lambda held, x: held[0](held[1], x), [Partial(net), jnp.float32(1)]),
    "by keyword": lambda net: Partial(lambda x, inner, scale: scale * inner(x), inner=Partial(net), scale=np.ones(3)),
    "score of a denoiser": lambda net: from_denoiser(net, VP(), "score"),
}


def _product(static: None, operand, batch):
    return operand(batch["x"])


def _score_of(static: None, operand, batch):
    return operand(batch["x"], jnp.ones(len(batch["x"])) * 0.5)


@pytest.mark.parametrize("held", HOLDERS)
def test_weights_that_are_exchanged_between_two_audits_are_those_of_the_second(held) -> None:
    """Compiled programs are found by identity: the second audit would get the first one's numbers."""
    net, batch, found = Net(2.0), inputs(4), []
    given, lane = HOLDERS[held](net), _score_of if held == "score of a denoiser" else _product
    for factor in (2.0, 5.0):
        net.factor = factor
        audited = lanes.fresh(given)
        before = len(TRACES)
        found += [lanes.run(lane, None, audited, batch) for _ in range(2)]
        assert len(TRACES) - before <= 1  # one audit, one program
    for got, factor in zip(found, (2.0, 2.0, 5.0, 5.0), strict=True):
        np.testing.assert_allclose(got, factor * batch["x"], rtol=1e-6)


def test_models_whose_weights_are_leaves_share_a_program_between_audits() -> None:
    batch = inputs(4)

    def traces(make) -> int:
        before = len(TRACES)
        for factor in (2.0, 3.0):
            got = lanes.run(_product, None, lanes.fresh(make(factor)), batch)
            np.testing.assert_allclose(got, factor * batch["x"], rtol=1e-6)
        return len(TRACES) - before

    def counted(factor, x):
        TRACES.append("counted")
        return factor * x

    assert traces(lambda factor: Partial(counted, jnp.float32(factor))) == 1
    assert traces(lambda factor: Partial(Scale(1), jnp.float32(factor))) == 1
    task = ScoreTask(build("mlp", hidden=8, depth=1), VP(), 4)
    score = task.score({"w": jnp.ones(2)})
    assert jax.tree.structure(lanes.fresh(score)) == jax.tree.structure(score)


def test_bad_requests_are_refused() -> None:
    for batch, chunk in (({}, 1), (inputs(0), 1), (inputs(3), 0)):
        with pytest.raises(ValueError, match="at least one lane"):
            evaluate(batch, chunk=chunk)


def test_chunks_fit_the_budget() -> None:
    weights = np.random.default_rng(2).standard_normal((64, 512)).astype(np.float32)

    def score(x, t):
        return jnp.tanh(x @ weights) @ weights.T + t[:, None]

    sizes = [lanes.chunk_for_budget(score, (64,), budget) for budget in (1.0, 1e5, 1e6, 1e12)]
    assert sizes[0] == 1
    assert sizes[-1] == 1024
    assert sizes == sorted(sizes)
    assert all(size & (size - 1) == 0 for size in sizes)
    # A lane holds at least its input and output: no more than 1e5 / (2 * 64 * 4) fit.
    assert sizes[1] <= 195


def test_what_is_measured_for_a_budget_are_layouts_and_equal_ones_once() -> None:
    """Parameters that are compiled in as constants would cost their memory twice, and a compilation a model."""
    seen = []

    def score(weights, x, t):
        seen.append(isinstance(weights, jax.core.Tracer))
        return jnp.tanh(x @ weights) + t[:, None]

    models = [jax.tree_util.Partial(score, np.full((64, 64), v, np.float32)) for v in (1.0, 2.0)]
    sizes = [lanes.chunk_for_budget(model, (64,), 1e5) for model in models]
    assert sizes[0] == sizes[1] > 1
    assert seen == [True, True]  # 8 and 16 rows, of the first model alone


def test_a_column_of_margins_is_refused_where_it_would_be_broadcast() -> None:
    """A network's logits ``[B, 1]`` against ``[B]`` would give B x B margins, and a number alone the same for all."""
    x = jnp.zeros((4, 2, 2, 1))
    for detect in (lambda z, r: z[:, 0, 0], lambda z, r: jnp.float32(1.0)):
        with pytest.raises(InputError, match=r"detect: expected one margin an image, \(4,\), got"):
            lanes.checked_margin(detect, x, jnp.arange(4))
