"""The chain against steps that diffusers' DDPMScheduler took (golden/scheduler.npz), and against schedules it lacks."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.golden_files import GOLDEN, copy, edit_json

from diffusion_privacy.diffusion.objective import to_score
from diffusion_privacy.diffusion.sde import DDPM
from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import diffusers, diffusers_schedule
from diffusion_privacy.interop.diffusers_schedule import Schedule
from diffusion_privacy.interop.files import read_json

FILE = np.load(GOLDEN / "scheduler.npz")
NAMES = [name.removeprefix("timesteps ") for name in FILE.files if name.startswith("timesteps ")]
STEPS = len(FILE[f"timesteps {NAMES[0]}"])
FAST = ("default", "range 0.5, scaled, v")
cases = [pytest.param(i, id=name, marks=[] if name in FAST else [pytest.mark.slow]) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize("number", cases)
def test_every_step_is_the_original(number) -> None:
    name, path = NAMES[number], GOLDEN / "schedulers" / str(number) / "scheduler_config.json"
    schedule = diffusers_schedule.parse(read_json(path), str(path))
    chain = schedule.chain(STEPS)
    timesteps = FILE[f"timesteps {name}"]
    np.testing.assert_array_equal(np.round(chain.times[:0:-1] * schedule.num_train_timesteps) - 1, timesteps)
    x, output = jnp.asarray(FILE["sample"]), jnp.asarray(FILE["output"])

    def score(x, t):
        return to_score(schedule.prediction, output, x, t, chain.sde)

    levels = jnp.arange(STEPS, 0, -1)
    means = jax.jit(lambda: jax.lax.map(lambda level: chain.model_mean(score, x, jnp.full(2, level)), levels))()
    # diffusers' own rounding of 1 − ᾱ in float32, largest at the first steps where it is 1e-4.
    np.testing.assert_allclose(means, FILE[f"means {name}"], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(chain.kernel_std[:0:-1], FILE[f"stds {name}"], rtol=2e-3, atol=1e-6)


def test_clipping_shows_in_the_golden_steps() -> None:
    """Otherwise the test above would not see a chain that does not clip."""
    clipped, plain = FILE["means default"], FILE["means not clipped"]
    assert np.abs(clipped - plain).max() > 0.1


@pytest.mark.parametrize(
    ("spacing", "steps", "wanted"),
    [
        ("leading", 4, [0, 250, 500, 750]),
        ("trailing", 4, [249, 499, 749, 999]),
        # 1,000, 666.7 and 333.3, rounded and counted from 0.
        ("trailing", 3, [332, 666, 999]),
        ("linspace", 4, [0, 333, 666, 999]),
    ],
)
def test_timesteps_are_those_that_the_names_stand_for(spacing, steps, wanted) -> None:
    """Worked by hand; level i of the chain is timestep i − 1."""
    schedule = Schedule(timestep_spacing=spacing)
    assert schedule.timesteps(steps).tolist() == wanted
    np.testing.assert_allclose(schedule.chain(steps).times, (np.array([-1, *wanted]) + 1) / 1000)
    if spacing == "leading":
        later = dataclasses.replace(schedule, steps_offset=1)
        assert later.timesteps(steps).tolist() == [i + 1 for i in wanted]


def alpha_bar(name: str, steps: int) -> np.ndarray:
    """ᾱ_1 … ᾱ_T as the papers define the schedules, with the ends of the first two as Ho et al. have them."""
    if name == "linear":
        betas = np.linspace(1e-4, 0.02, steps)
    elif name == "scaled_linear":
        betas = np.linspace(1e-2, 0.02**0.5, steps) ** 2
    else:
        share = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = np.minimum(1 - np.array(share[1:]) / share[:-1], 0.999)
    return np.cumprod(1 - betas)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_each_name_stands_for_its_schedule_and_its_variance(name, variance) -> None:
    """With every timestep visited, variances are β_i, or β_i (1 − ᾱ_{i−1})/(1 − ᾱ_i) for the small ones (Ho et al.)."""
    chain = Schedule(num_train_timesteps=20, beta_schedule=name, variance_type=variance).chain(20)
    bar = alpha_bar(name, 20)
    np.testing.assert_allclose(chain.alpha[1:] ** 2, bar, rtol=1e-5)
    beta = 1 - bar[1:] / bar[:-1]
    wanted = beta if variance == "fixed_large" else beta * (1 - bar[:-1]) / (1 - bar[1:])
    np.testing.assert_allclose(chain.kernel_std[2:] ** 2, wanted, rtol=1e-4)
    assert chain.kernel_std[1] == 0


@pytest.mark.parametrize(("name", "ours"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_a_checkpoint_is_read_by_what_its_scheduler_says_it_predicts(tmp_path, name, ours) -> None:
    """Of another prediction, schedule, clipping or class the model draws images that show no record."""
    pytest.importorskip("safetensors", reason="the reader of checkpoints (pip install '.[interop]')")
    folder = copy(tmp_path, "rare")
    edit_json(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type=name, beta_schedule="scaled_linear", beta_end=0.012, clip_sample_range=0.7,
    )  # fmt: skip
    given = diffusers.load(folder, 8, label=2)
    assert (given.score.func.prediction, int(given.score.args[1])) == (ours, 2)
    sde = DDPM(1000, "scaled_linear", 1e-4, 0.012)
    assert given.score.func.sde == given.chain.sde == sde
    assert given.score.func.apply.num_steps == 1000
    assert (given.chain.steps, given.chain.clip_x0, given.chain.clip_range) == (8, True, 0.7)


BAD = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "sigmoid",
    "beta_start": 0.0,
    "num_train_timesteps": 1,
    "prediction_type": "flow_prediction",
    "variance_type": "learned_range",
    "thresholding": True,
    "trained_betas": [0.1, 0.2],
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "karras",
    "clip_sample_range": -1.0,
    "use_karras_sigmas": True,
}


@pytest.mark.parametrize("key", BAD)
def test_a_schedule_that_the_chain_lacks_is_refused_by_its_key(key) -> None:
    fields = {"_class_name": "DDPMScheduler", key: BAD[key]}
    with pytest.raises(InputError, match=key) as caught:
        diffusers_schedule.parse(fields, "scheduler_config.json")
    assert "scheduler_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"sampler\.steps: expected 2 … num_train_timesteps = 50"):
        Schedule(num_train_timesteps=50).chain(51)
    with pytest.raises(InputError, match="steps_offset"):
        Schedule(num_train_timesteps=50, steps_offset=1).chain(50)
    with pytest.raises(InputError, match=r"variance_type: expected 'fixed_small' for 10 trailing steps"):
        Schedule(variance_type="fixed_large", timestep_spacing="trailing").chain(10)


def test_a_schedule_of_another_length_than_the_network_is_refused(tmp_path) -> None:
    pytest.importorskip("safetensors", reason="the reader of checkpoints (pip install '.[interop]')")
    folder = copy(tmp_path)
    edit_json(folder / "unet" / "config.json", num_train_timesteps=500)
    with pytest.raises(InputError, match=r"num_train_timesteps is 1000; expected 500, as .*config\.json has it"):
        diffusers.load(folder, 10)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(InputError, match=r"expected scheduler_config\.json here or in scheduler/"):
        diffusers.load(folder, 10)


def test_ddim_is_read_as_its_stochastic_member_and_says_so() -> None:
    fields = {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": False}
    schedule = diffusers_schedule.parse(fields, "scheduler_config.json")
    assert any("eta = 1" in note for note in schedule.notes())
    assert any("set_alpha_to_one" in note for note in schedule.notes())
    assert not schedule.chain(10).clip_x0
