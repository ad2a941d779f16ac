"""Networks that are measured against diffusers: each in this project's fields and in those of `UNet2DModel`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.networks.unet import UNet
from diffusion_privacy.types import PyTree


@dataclasses.dataclass(frozen=True)
class UNetPair:
    """One U-Net, written twice.

    Attributes:
      name: in results.
      shape: (H, W, C) of its images.
      parameters: how many weights both have; a test counts them.
      channels, channel_mult, blocks_per_level, attention_levels, head_channels, groups: fields of `networks.unet.UNet`.
    """

    name: str
    shape: tuple[int, int, int]
    parameters: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[int, ...]
    head_channels: int
    groups: int = 32

    def network(self, dtype: str = "float32") -> UNet:
        """Ours."""
        return UNet(
            channels=self.channels,
            channel_mult=self.channel_mult,
            blocks_per_level=self.blocks_per_level,
            attention_levels=self.attention_levels,
            head_channels=self.head_channels,
            modulation="shift",
            norm_groups=self.groups,
            dtype=dtype,
        )

    def diffusers_fields(self) -> dict[str, Any]:
        """Arguments of diffusers' `UNet2DModel` for the same network: norms, padding and time embedding included."""
        attends = [level in self.attention_levels for level in range(len(self.channel_mult))]
        return {
            "sample_size": self.shape[0],
            "in_channels": self.shape[2],
            "out_channels": self.shape[2],
            "layers_per_block": self.blocks_per_level,
            "block_out_channels": tuple(self.channels * mult for mult in self.channel_mult),
            "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            "attention_head_dim": self.head_channels,
            "add_attention": bool(self.attention_levels),
            "norm_num_groups": self.groups,
            "norm_eps": 1e-6,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
        }


PAPER = UNetPair(
    # diffusers' own unconditional example, with the latents' four channels: 113.7 million in arXiv 2306.01363.
    name="113.7M, 64x64x4",
    shape=(64, 64, 4),
    parameters=113_675_524,
    channels=128,
    channel_mult=(1, 1, 2, 2, 4, 4),
    blocks_per_level=2,
    attention_levels=(4,),
    head_channels=8,
)
TINY = dataclasses.replace(
    PAPER,
    name="tiny, for a trial of the program",
    shape=(8, 8, 4),
    parameters=4_511_876,
    channel_mult=(1, 1),
    blocks_per_level=1,
    attention_levels=(1,),
)

SMALL = UNetPair(
    name="1.6M, 32x32x3",
    shape=(32, 32, 3),
    parameters=1_624_323,
    channels=32,
    channel_mult=(1, 2, 2),
    blocks_per_level=2,
    attention_levels=(1,),
    head_channels=32,
    groups=8,
)
LIKELIHOOD = dataclasses.replace(
    SMALL,
    name="16x16x1",
    shape=(16, 16, 1),
    parameters=701_345,
    channel_mult=(1, 2),
    blocks_per_level=1,
)
AUDIT = dataclasses.replace(LIKELIHOOD, name="8x8x1", shape=(8, 8, 1))


def random_params(net: UNet, shape: tuple[int, int, int], seed: int = 0) -> PyTree:
    """Numpy parameters of variance 1/fan_in in every layer, also where training starts at zero: zeros are no test.

    Args:
      net: the network.
      shape: (H, W, C) of an image.
      seed: of the draw.
    """
    layout = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.ones(1))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key == "kernel":
            scale = 1 / math.sqrt(math.prod(leaf.shape[:-1]))
            return (scale * rng.standard_normal(leaf.shape, np.float32)).astype(np.float32)
        return np.full(leaf.shape, 1.0 if path[-1].key == "scale" else 0.0, np.float32)

    return jax.tree_util.tree_map_with_path(draw, layout)


def mild_params(net: UNet, shape: tuple[int, int, int]) -> PyTree:
    """`random_params` with a weak answer and almost deaf to time: an adaptive solver never arrives in a wilder field.

    A random network changes as often in time as its embedding oscillates, a thousand times; a trained one does not.
    """

    def weaken(path: Any, leaf: np.ndarray) -> np.ndarray:
        names = {entry.key for entry in path}
        return leaf * (0.05 if "head" in names else 0.003 if "modulation" in names else 1.0)

    return jax.tree_util.tree_map_with_path(weaken, random_params(net, shape))


def count(params: PyTree) -> int:
    """Number of parameters of a tree of arrays or of their layouts."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def diffusers_weights(pair: UNetPair, params: PyTree) -> dict[str, np.ndarray]:
    """Our parameters under the names and in the layout of diffusers' `UNet2DModel`, to be loaded by it.

    Args:
      pair: the network.
      params: of ``pair.network()``.
    """
    tree, found = params["params"], {}

    def put(name: str, layer: dict[str, Any]) -> None:
        weight = np.asarray(layer["kernel"] if "kernel" in layer else layer["scale"])
        found[f"{name}.weight"] = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        found[f"{name}.bias"] = np.asarray(layer["bias"])

    def resnet(name: str, block: dict[str, Any]) -> None:
        places = {"norm1": "norm1", "conv1": "conv1", "modulation": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
        for ours, theirs in (places | ({"skip": "conv_shortcut"} if "skip" in block else {})).items():
            put(f"{name}.{theirs}", block[ours])

    def attention(name: str, block: dict[str, Any]) -> None:
        put(f"{name}.group_norm", block["norm"])
        put(f"{name}.to_out.0", block["out"])
        width = block["out"]["bias"].shape[0]
        heads = max(1, width // pair.head_channels)
        kernel = np.asarray(block["qkv"]["kernel"]).reshape(width, heads, 3, -1)
        bias = np.asarray(block["qkv"]["bias"]).reshape(heads, 3, -1)
        for i, part in enumerate(("to_q", "to_k", "to_v")):
            layer = {"kernel": kernel[:, :, i].reshape(width, width), "bias": bias[:, i].reshape(width)}
            put(f"{name}.{part}", layer)

    names = {"stem": "conv_in", "norm_out": "conv_norm_out", "head": "conv_out"}
    for ours, theirs in names.items():
        put(theirs, tree[ours])
    for ours, theirs in {"time_in": "linear_1", "time_out": "linear_2"}.items():
        put(f"time_embedding.{theirs}", tree["conditioning"][ours])
    levels = len(pair.channel_mult)
    for i in range(2):
        resnet(f"mid_block.resnets.{i}", tree[f"mid{i + 1}"])
    if pair.attention_levels:
        attention("mid_block.attentions.0", tree["mid_attention"])
    for level in range(levels):
        for way, block, blocks in (("down", level, pair.blocks_per_level), ("up", levels - 1 - level, 0)):
            place = f"{way}_blocks.{block}"
            for i in range(blocks or pair.blocks_per_level + 1):
                resnet(f"{place}.resnets.{i}", tree[f"{way}{level}_{i}"])
                if level in pair.attention_levels:
                    attention(f"{place}.attentions.{i}", tree[f"{way}{level}_{i}_attention"])
        if level < levels - 1:
            put(f"down_blocks.{level}.downsamplers.0.conv", tree[f"down{level}_halve"])
        if level > 0:
            put(f"up_blocks.{levels - 1 - level}.upsamplers.0.conv", tree[f"up{level}_double"])
    return found
