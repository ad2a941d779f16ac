"""diffusers' `UNet2DModel` as a pure function of its weights, equal to the original to rounding.

`UNet2D(config, T)` is ``apply(params, x, t, label)`` as `diffusion.objective.score_fn` wants it: x channels-last, t in
(0, 1] where t = i/T is what diffusers calls timestep i − 1. Weights keep their names, kernels are transposed once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import unet2d_config
from diffusion_privacy.interop.files import read_json, read_safetensors
from diffusion_privacy.interop.unet2d_config import Attend, Resample, Resnet, Stage, UNet2DConfig
from diffusion_privacy.networks.attention import attend
from diffusion_privacy.types import Array

Params = dict[str, Array]

WEIGHTS = "diffusion_pytorch_model.safetensors"

_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Attention weights before diffusers 0.15, and what they are called since."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "mish": jax.nn.mish,
}


def read(folder: Path) -> tuple[UNet2DConfig, Params]:
    """Configuration and weights of a `UNet2DModel` directory (``config.json`` and one safetensors file).

    Raises:
      InputError: a file is missing or damaged, a setting is not supported, or a weight is missing, left over or of
        another shape; the message names the file and the key.
    """
    config = unet2d_config.parse(read_json(folder / "config.json"), str(folder / "config.json"))
    path = folder / WEIGHTS
    return config, convert(config, read_safetensors(path), str(path))


def convert(config: UNet2DConfig, tensors: dict[str, np.ndarray], where: str = "weights") -> Params:
    """Weights in PyTorch's layout and names as parameters of `UNet2D`; ``where`` names their source in messages.

    Raises:
      InputError: as in `read`.
    """
    named: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        new = name
        for old, current in _OLD_NAMES.items():
            new = new.replace(old, current)
        named[new] = tensor
    wanted = config.shapes
    for name, shape in wanted.items():
        if name not in named:
            raise InputError(f"{where}: has no {name}; expected it with shape {shape} for this config.json")
        if named[name].shape != shape:
            raise InputError(f"{where}: {name} has shape {named[name].shape}; expected {shape} for this config.json")
    left = sorted(set(named) - set(wanted))
    if left:
        raise InputError(f"{where}: holds {left[0]}, which this config.json has no place for; expected its own weights")
    return {name: jnp.asarray(_transposed(named[name], name)) for name in wanted}


def _transposed(tensor: np.ndarray, name: str) -> np.ndarray:
    if tensor.ndim == 4:
        return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0))
    # An embedding is a table of rows, not a map.
    return np.ascontiguousarray(tensor.T) if tensor.ndim == 2 and name != "class_embedding.weight" else tensor


def timestep_embedding(steps: Array, width: int, flip: bool, shift: float) -> Array:
    """Sines and cosines ``[B, width]`` of ``steps[B]`` at frequencies 10000^(−k/(width/2 − shift)).

    The frequencies are computed on the host: a rounding error in one grows a thousandfold with the step.
    """
    half = width // 2
    exponent = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    angle = steps[:, None] * jnp.asarray(np.exp(exponent.astype(np.float64)), jnp.float32)
    parts = (jnp.cos(angle), jnp.sin(angle)) if flip else (jnp.sin(angle), jnp.cos(angle))
    return jnp.pad(jnp.concatenate(parts, axis=1), ((0, 0), (0, width % 2)))


def _norm(params: Params, name: str, x: Array, groups: int, eps: float) -> Array:
    shape = x.shape
    split = x.reshape(shape[0], -1, groups, shape[-1] // groups)
    mean = jnp.mean(split, axis=(1, 3), keepdims=True)
    centred = split - mean
    var = jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True)
    whitened = (centred * jax.lax.rsqrt(var + eps)).reshape(shape)
    return whitened * params[f"{name}.weight"] + params[f"{name}.bias"]


def _conv(params: Params, name: str, x: Array, stride: int = 1, padding: tuple[int, int] | None = None) -> Array:
    kernel = params[f"{name}.weight"]
    around = kernel.shape[0] // 2
    pads = [padding or (around, around)] * 2
    out = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return out + params[f"{name}.bias"]


def _linear(params: Params, name: str, x: Array) -> Array:
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def _double(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _halve(x: Array) -> Array:
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


_RESAMPLE: dict[str, Callable[[Array], Array]] = {"": lambda x: x, "up": _double, "down": _halve}


@dataclasses.dataclass(frozen=True)
class UNet2D:
    """The network. Hashable: equal configurations share a compiled program."""

    config: UNet2DConfig
    num_steps: int

    def __call__(self, params: Params, x: Array, t: Array, label: Array | None) -> Array:
        """Output ``[B, H, W, C]`` for ``x[B, H, W, C]``, ``t[B]`` in (0, 1] (t = i/num_steps is timestep i − 1).

        Raises:
          InputError: H or W that the network cannot halve, another number of channels, a label missing or unwanted.
        """
        level = t * self.num_steps
        near = jnp.round(level)
        # i/T in float32 is not quite on the grid; a grid point must be read as the whole number that it stands for.
        level = jnp.where(jnp.abs(level - near) < 1e-2, near, level)
        return self.at_timestep(params, x, level - 1, label)

    def at_timestep(self, params: Params, x: Array, step: Array, label: Array | None = None) -> Array:
        """`__call__` with the timestep as diffusers counts it, float ``[B]`` in 0 … T − 1."""
        c = self.config
        self._check(x, label)
        act = jax.nn.silu
        # The network computes in float32, whatever the records come in.
        h = (2 * x - 1.0 if c.center_input_sample else x).astype(jnp.float32)
        emb = timestep_embedding(step.astype(jnp.float32), c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
        emb = _linear(params, "time_embedding.linear_2", act(_linear(params, "time_embedding.linear_1", emb)))
        if label is not None:
            emb = emb + params["class_embedding.weight"][label]
        blocks = c.blocks
        h = _conv(params, "conv_in", h)
        skips = [h]
        for stage in blocks.down:
            h = self._down(params, stage, h, emb, skips)
        if blocks.mid is not None:
            h = self._resnet(params, blocks.mid.resnets[0], h, emb)
            for attention, resnet in zip(blocks.mid.attentions, blocks.mid.resnets[1:], strict=True):
                h = self._resnet(params, resnet, self._attend(params, attention, h), emb)
        for stage in blocks.up:
            h = self._up(params, stage, h, emb, skips)
        h = act(_norm(params, "conv_norm_out", h, c.norm_num_groups, c.norm_eps))
        return _conv(params, "conv_out", h).astype(x.dtype)

    def _down(self, params: Params, stage: Stage, h: Array, emb: Array, skips: list[Array]) -> Array:
        for resnet, attention in zip(stage.resnets, stage.attentions, strict=True):
            h = self._attend(params, attention, self._resnet(params, resnet, h, emb))
            skips.append(h)
        if stage.resample is not None:
            if isinstance(stage.resample, Resample):
                padding = (1, 1) if self.config.downsample_padding else (0, 1)
                h = _conv(params, stage.resample.name, h, 2, padding)
            else:
                h = self._resnet(params, stage.resample, h, emb)
            skips.append(h)
        return h

    def _up(self, params: Params, stage: Stage, h: Array, emb: Array, skips: list[Array]) -> Array:
        for resnet, attention in zip(stage.resnets, stage.attentions, strict=True):
            h = self._resnet(params, resnet, jnp.concatenate([h, skips.pop()], axis=-1), emb)
            h = self._attend(params, attention, h)
        if isinstance(stage.resample, Resample):
            return _conv(params, stage.resample.name, _double(h))
        return h if stage.resample is None else self._resnet(params, stage.resample, h, emb)

    def _resnet(self, params: Params, block: Resnet, x: Array, emb: Array) -> Array:
        c, act = self.config, _ACTIVATIONS[self.config.act_fn.lower()]
        resample = _RESAMPLE[block.resample]
        h = resample(act(_norm(params, f"{block.name}.norm1", x, c.norm_num_groups, c.norm_eps)))
        x = resample(x)
        h = _conv(params, f"{block.name}.conv1", h)
        shift = _linear(params, f"{block.name}.time_emb_proj", act(emb))[:, None, None]
        if c.resnet_time_scale_shift == "default":
            h = _norm(params, f"{block.name}.norm2", h + shift, c.norm_num_groups, c.norm_eps)
        else:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = _norm(params, f"{block.name}.norm2", h, c.norm_num_groups, c.norm_eps) * (1 + scale) + shift
        h = _conv(params, f"{block.name}.conv2", act(h))
        if block.inputs != block.outputs:
            x = _conv(params, f"{block.name}.conv_shortcut", x)
        return (x + h) / block.factor

    def _attend(self, params: Params, block: Attend | None, x: Array) -> Array:
        if block is None:
            return x
        batch, height, width, channels = x.shape
        h = x.reshape(batch, height * width, channels)
        if block.groups is not None:
            h = _norm(params, f"{block.name}.group_norm", h, block.groups, self.config.norm_eps)
        q, k, v = (
            _linear(params, f"{block.name}.{part}", h).reshape(batch, height * width, block.heads, block.head)
            for part in ("to_q", "to_k", "to_v")
        )
        h = attend(q, k, v).reshape(batch, height * width, block.heads * block.head)
        return (_linear(params, f"{block.name}.to_out.0", h).reshape(x.shape) + x) / block.factor

    def _check(self, x: Array, label: Array | None) -> None:
        c = self.config
        factor = 2**c.halvings
        if x.ndim != 4 or x.shape[3] != c.in_channels or x.shape[1] % factor or x.shape[2] % factor:
            raise InputError(
                f"records: expected images [B, H, W, {c.in_channels}] with H and W divisible by {factor}, got {x.shape}"
            )
        if (label is None) != (c.num_class_embeds is None):
            wanted = "no label" if c.num_class_embeds is None else f"a label in 0 … {c.num_class_embeds - 1}"
            raise InputError(f"label: expected {wanted} for num_class_embeds = {c.num_class_embeds}, got {label}")
