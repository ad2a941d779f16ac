"""Makes golden/ with torch and diffusers; the tests need neither.

    python tests/interop/make_golden.py

Run it where both are installed when a new architecture or scheduler setting is supported, and commit what it writes.
Weights are random and not initialised as diffusers does it, so that no bias is 0 and no norm is the identity.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm

GOLDEN = Path(__file__).parent / "golden"

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 12),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    # As the checkpoints of the DDPM paper have it.
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
}

RARE = {
    "sample_size": (8, 4),
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "attention_head_dim": None,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "mid_block_scale_factor": 1.5,
    "time_embedding_dim": 10,
    "center_input_sample": True,
    "num_class_embeds": 3,
    "act_fn": "gelu",
}

SCHEDULERS = {
    "default": {},
    "not clipped": {"clip_sample": False},
    "range 0.5, scaled, v": {
        "clip_sample_range": 0.5,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    },
    "cosine, sample, fixed_large": {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "variance_type": "fixed_large",
        "timestep_spacing": "linspace",
        "num_train_timesteps": 100,
    },
    "offset": {"steps_offset": 1, "clip_sample": False, "num_train_timesteps": 200},
}
STEPS = 12


def randomise(model: UNet2DModel, seed: int) -> UNet2DModel:
    """The model with every weight drawn anew, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.25 if weight.ndim < 2 else 1.2 / np.sqrt(weight[0].numel())
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + ("norm" in name and "weight" in name))
    return model.eval()


def evaluate(model: UNet2DModel, x: np.ndarray, step: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """Output ``[B, H, W, C]`` for channels-last ``x`` at integer ``step[B]``."""
    classes = None if label is None else torch.tensor(label)
    with torch.no_grad():
        out = model(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(step), class_labels=classes).sample
    return out.numpy().transpose(0, 2, 3, 1)


def model_golden(name: str, settings: dict, seed: int) -> None:
    model = randomise(UNet2DModel(**settings), seed)
    folder = GOLDEN / name
    model.save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    size = model.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    step = np.array([0, 1, 371, 998, 999])
    x = rng.normal(size=(len(step), height, width, model.config.in_channels)).astype(np.float32)
    classes = model.config.num_class_embeds
    label = None if classes is None else np.full(len(step), classes - 1)
    arrays = {"x": x, "step": step, "output": evaluate(model, x, step, label)}
    np.savez(folder / "output.npz", **arrays, **({} if label is None else {"label": label}))


def scheduler_golden() -> None:
    """Mean and standard deviation of every step, from a noise of 0 and a noise of 1."""
    rng = np.random.default_rng(5)
    shape = (2, 1, 2, 2)
    sample, output = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    arrays = {"sample": sample.transpose(0, 2, 3, 1), "output": output.transpose(0, 2, 3, 1)}
    for number, (name, settings) in enumerate(SCHEDULERS.items()):
        scheduler = DDPMScheduler(**settings)
        (GOLDEN / "schedulers").mkdir(exist_ok=True)
        scheduler.save_pretrained(GOLDEN / "schedulers" / str(number))
        scheduler.set_timesteps(STEPS)
        means, stds = [], []
        for step in scheduler.timesteps:
            drawn = []
            for noise in (torch.zeros(shape), torch.ones(shape)):
                with mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *a, _n=noise, **k: _n):
                    drawn.append(scheduler.step(torch.tensor(output), step, torch.tensor(sample)).prev_sample.numpy())
            means.append(drawn[0].transpose(0, 2, 3, 1))
            stds.append((drawn[1] - drawn[0]).max())
        arrays[f"timesteps {name}"] = scheduler.timesteps.numpy()
        arrays[f"means {name}"], arrays[f"stds {name}"] = np.stack(means), np.array(stds)
    np.savez(GOLDEN / "scheduler.npz", **arrays)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    model_golden("tiny", TINY, 1)
    model_golden("rare", RARE, 2)
    scheduler_golden()
    (GOLDEN / "versions.txt").write_text(f"diffusers {diffusers.__version__}, torch {torch.__version__}\n")
