"""Likelihood, loss, encoding and decoding of a flow with its preprocessing."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_table import fast_jit, random_params

from diffusion_privacy.errors import InputError
from diffusion_privacy.flows import objective
from diffusion_privacy.flows.cinn import FlowConfig, table
from diffusion_privacy.flows.objective import FlowModel, flow_model, one_hot
from diffusion_privacy.flows.preprocess import Preprocess
from diffusion_privacy.flows.squeeze import Squeeze
from diffusion_privacy.training import sharding
from diffusion_privacy.training.rng import per_record

CONFIG = FlowConfig((2, 2, 1), 3, depths=(1,), dense_depth=1, conv_width=4, dense_width=4)
MODEL = flow_model(CONFIG, "label", "affine", levels=17)
PARAMS = random_params(MODEL.bijection)


def make_batch(n: int = 5) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    image = (2 * generator.integers(0, 17, (n, 2, 2, 1)) / 16 - 1).astype(np.float32)
    return {"image": image, "label": np.arange(n, dtype=np.int32) % 3, "position": np.arange(n, dtype=np.int32)}


BATCH = make_batch()
COND = one_hot(BATCH["label"], 3, "label")


def test_bits_per_dim_at_the_start_is_the_closed_form():
    # The flow starts as a permutation: log p(v + U) = log N(y) + D·log(√12/levels), y = (u − ½)√12, unit variance.
    model = flow_model(table(2, 0), "none", "affine", levels=256)
    params = jax.jit(model.init)(jax.random.key(0))
    x = (2 * np.random.default_rng(0).integers(0, 256, (20000, 2)) / 255 - 1).astype(np.float32)
    _, logp = objective.encode(model, params, x, None, jax.random.key(1), batch_size=20000)
    expected = (0.5 + 0.5 * math.log(2 * math.pi) - math.log(math.sqrt(12) / 256)) / math.log(2)
    # Standard error of the mean of y²/2 over 40,000 numbers: 0.0022 nats; four of them, false alarms 6e-5.
    assert float(objective.bits_per_dim(logp, 2).mean()) == pytest.approx(expected, abs=4 * 0.0022 / math.log(2))


def test_likelihood_is_the_density_of_its_terms():
    keys = per_record(jax.random.key(3), BATCH["position"])
    terms = fast_jit(functools.partial(objective.evaluate, MODEL))(PARAMS, BATCH["image"], COND, keys)
    v = jnp.round((BATCH["image"][0] + 1) / 2 * 16) + jax.random.uniform(jax.random.fold_in(keys[0], 0), (2, 2, 1))

    def latent(v):
        return MODEL.bijection.forward(PARAMS, MODEL.preprocess.forward(v)[0], COND[0])[0]

    jacobian, z = fast_jit(jax.jacrev(lambda v: (latent(v), latent(v)), has_aux=True))(v)
    jacobian = jacobian.reshape(4, 4)
    expected = -0.5 * jnp.sum(z**2) - 2 * math.log(2 * math.pi) + jnp.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(terms.logp[0], expected, atol=1e-3)
    np.testing.assert_allclose(terms.z[0], z, atol=1e-3)


def test_loss_is_per_example_and_does_not_depend_on_the_batch():
    loss = fast_jit(lambda b: objective.loss(MODEL, PARAMS, b, jax.random.key(0), reconstruction=0.1, perturbation=1.0))
    full, metrics = loss(BATCH)
    # Another order and other neighbours, same positions: one program serves both.
    order = np.asarray([3, 1, 1, 1, 1])
    part, _ = loss({k: v[order] for k, v in BATCH.items()})
    np.testing.assert_allclose(part, full[order], rtol=1e-4)
    assert full.shape == metrics["bits_per_dim"].shape == metrics["reconstruction"].shape == (5,)
    nll, plain = fast_jit(lambda b: objective.loss(MODEL, PARAMS, b, jax.random.key(0)))(BATCH)
    np.testing.assert_allclose(full, nll + 0.1 * metrics["reconstruction"], rtol=1e-4)
    np.testing.assert_allclose(plain["bits_per_dim"], nll / (4 * math.log(2)), rtol=1e-5)
    assert set(plain) == {"bits_per_dim"}


def test_unperturbed_latents_reconstruct_exactly():
    loss = fast_jit(lambda b: objective.loss(MODEL, PARAMS, b, jax.random.key(0), reconstruction=1.0))
    _, metrics = loss(BATCH)
    np.testing.assert_allclose(metrics["reconstruction"], 0.0, atol=1e-6)


@pytest.mark.slow
def test_per_example_gradients_sum_to_the_batch_gradient():
    # DP-SGD's view of the loss: one record at a time.
    def one(params, record):
        return objective.loss(MODEL, params, {k: v[None] for k, v in record.items()}, jax.random.key(0))[0][0]

    each = fast_jit(jax.vmap(jax.grad(one), (None, 0)))(PARAMS, BATCH)
    whole = fast_jit(jax.grad(lambda p: jnp.sum(objective.loss(MODEL, p, BATCH, jax.random.key(0))[0])))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-3, atol=1e-3), each, whole)


@pytest.mark.slow
def test_decode_undoes_encode_for_every_chunking():
    z, logp = objective.encode(MODEL, PARAMS, BATCH["image"], COND, jax.random.key(7), batch_size=5)
    chunked, chunked_logp = objective.encode(MODEL, PARAMS, BATCH["image"], COND, jax.random.key(7), batch_size=2)
    np.testing.assert_allclose(chunked, z, atol=1e-5)
    np.testing.assert_allclose(chunked_logp, logp, atol=1e-4)
    np.testing.assert_array_equal(objective.decode(MODEL, PARAMS, z, COND, batch_size=2), BATCH["image"])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU takes images in pieces")
def test_a_large_batch_goes_in_pieces_and_encodes_the_same():
    count = 16 * len(jax.local_devices()) + 3
    batch = make_batch(count)
    args = (MODEL, PARAMS, batch["image"], one_hot(batch["label"], 3, "label"), jax.random.key(7))
    mesh = sharding.data_mesh(jax.local_devices())
    program = objective._program(objective._encode, MODEL, 2, 3, mesh)
    rows = np.zeros(32 * mesh.size, np.int32)
    assert "scan[" in str(program.trace(PARAMS, args[4], batch["image"][rows], args[3][rows], rows).jaxpr)
    for whole, small in zip(objective.encode(*args), objective.encode(*args, batch_size=mesh.size), strict=True):
        assert len(whole) == count
        np.testing.assert_allclose(whole, small, atol=1e-4)


def test_encoding_dequantises_each_record_with_its_own_noise():
    same = np.repeat(BATCH["image"][:1], 2, axis=0)
    z, _ = objective.encode(MODEL, PARAMS, same, COND[[0, 0]], jax.random.key(7))
    assert np.abs(z[0] - z[1]).max() > 1e-3


def test_samples_lie_on_the_grey_levels():
    images = objective.sample(MODEL, PARAMS, jax.random.key(0), COND, len(COND), batch_size=4)
    levels = (images + 1) * 8
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-5)
    assert images.shape == (5, 2, 2, 1)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_outside_its_range_names_the_record(label):
    with pytest.raises(InputError, match=f"labels.csv: record 1 has class {label}, expected 0 to 2"):
        one_hot(np.asarray([0, label, 2]), 3, "labels.csv")


@pytest.mark.parametrize(("condition", "cond_dim"), [("label", 0), ("none", 3), ("colour", 3)])
def test_a_condition_that_does_not_fit_is_refused(condition, cond_dim):
    with pytest.raises(InputError, match=r"flow\.condition"):
        flow_model(table(3, cond_dim), condition, "none", levels=2)


def test_a_bijection_that_ends_in_no_vector_is_refused():
    """The density would be summed over the last axis alone."""
    with pytest.raises(ValueError, match=r"flow gives \(2, 2, 4\), expected a vector \(16,\); see chain.Flatten"):
        FlowModel(Squeeze((4, 4, 1)), Preprocess((4, 4, 1)), 0, "none")


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["glow", "spline"])
def test_density_integrates_to_one(coupling):
    config = FlowConfig((2,), 2, dense_depth=3, dense_width=8, coupling=coupling, clamp=0.8, actnorm=True, mixing="lu")
    model = flow_model(config, "attributes", "none", levels=2)
    params = random_params(model.bijection, seed=1)
    axis = np.linspace(-20, 20, 601, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    cond = np.tile(np.asarray([[1.0, -0.5]], np.float32), (len(grid), 1))
    _, logp = objective.encode(model, params, grid, cond, jax.random.key(0), batch_size=len(grid))
    assert np.exp(logp.astype(np.float64)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=2e-3)


@pytest.mark.slow
def test_moons_are_learned_to_within_a_twentieth_of_a_nat():
    optax = pytest.importorskip("optax")
    datasets = pytest.importorskip("sklearn.datasets")
    neighbors = pytest.importorskip("sklearn.neighbors")

    def moons(n, seed):
        return datasets.make_moons(n, noise=0.1, random_state=seed)[0].astype(np.float32)

    train, held_out = moons(20000, 0), moons(2000, 1)
    kernel = max(
        float(neighbors.KernelDensity(bandwidth=h).fit(train).score_samples(held_out).mean())
        for h in (0.03, 0.045, 0.06)
    )
    model = flow_model(FlowConfig((2,), dense_depth=5, dense_width=64, coupling="spline"), "none", "none", levels=2)
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, 2000))

    @jax.jit
    def step(carry, i):
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(5), i), (256,), 0, len(train))
        batch = {"image": jnp.asarray(train)[rows], "position": jnp.arange(256)}
        gradient = jax.grad(lambda p: jnp.mean(objective.loss(model, p, batch, jax.random.key(0))[0]))(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state

    params = jax.jit(model.init)(jax.random.key(0))
    carry = (params, optimiser.init(params))
    for i in range(2000):
        carry = step(carry, i)
    _, logp = objective.encode(model, carry[0], held_out, None, jax.random.key(0), batch_size=2000)
    # Both averages are over the same 2,000 points; their difference has a standard error of about 0.005.
    assert abs(float(logp.mean()) - kernel) < 0.05
