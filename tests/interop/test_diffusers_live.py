"""The port against diffusers itself, wherever torch and diffusers are installed (pip install '.[interop]')."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.interop import diffusers as port

REASON = "compares with the original (pip install '.[interop]')"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)

pytestmark = pytest.mark.slow

BASE = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
ARCHITECTURES = {
    "defaults": {},
    "ddpm paper": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "one head": {"attention_head_dim": None},
    "head that does not divide": {"attention_head_dim": 12},
    "scale shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale shift, norm in the middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "middle scaled": {"mid_block_scale_factor": 2**0.5},
    "resampled by resnets": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "one level, odd width": {
        "block_out_channels": (9,),
        "norm_num_groups": 3,
        "attention_head_dim": 3,
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "mish, centred, time 20": {"act_fn": "mish", "center_input_sample": True, "time_embedding_dim": 20},
    "relu, grey, not square": {"act_fn": "relu", "in_channels": 1, "out_channels": 1, "sample_size": (16, 8)},
    "classes": {"num_class_embeds": 4, "dropout": 0.3},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_weights_give_the_same_output(tmp_path, name) -> None:
    from interop.make_golden import evaluate, randomise

    model = randomise(diffusers.UNet2DModel(**{**BASE, **ARCHITECTURES[name]}), 0)
    pipeline = diffusers.DDPMPipeline(unet=model, scheduler=diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path)
    height, width = np.broadcast_to(model.config.sample_size, 2)
    step = np.array([0, 17, 999])
    x = np.random.default_rng(1).normal(size=(3, height, width, model.config.in_channels)).astype(np.float32)
    label = None if model.config.num_class_embeds is None else 3
    wanted = evaluate(model, x, step, None if label is None else np.full(3, label))
    given = port.load(tmp_path, 1000, shape=x.shape[1:], label=label)
    with jax.default_matmul_precision("highest"):
        score = np.asarray(jax.jit(given.score)(jnp.asarray(x), jnp.asarray(given.chain.times[step + 1], jnp.float32)))
    output = -score * given.chain.sigma[step + 1].reshape(-1, 1, 1, 1)
    assert wanted.std() > 0.3
    np.testing.assert_allclose(output, wanted, atol=1e-4)


def test_the_golden_files_are_what_diffusers_says_today() -> None:
    from interop.golden_files import GOLDEN
    from interop.make_golden import evaluate

    for name in ("tiny", "rare"):
        golden = np.load(GOLDEN / name / "output.npz")
        model = diffusers.UNet2DModel.from_pretrained(GOLDEN / name / "unet").eval()
        label = golden.get("label", None)
        np.testing.assert_allclose(evaluate(model, golden["x"], golden["step"], label), golden["output"], atol=1e-5)
