"""The U-Net of diffusion models (Ho et al., arXiv 2006.11239) with the blocks of Dhariwal & Nichol (2105.05233)."""

from __future__ import annotations

import zlib

import flax.linen as nn
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.networks.attention import attend
from diffusion_privacy.networks.embedding import Conditioning
from diffusion_privacy.networks.layers import conv, dense, drop, group_norm
from diffusion_privacy.types import Array

MODULATIONS = ("scale_shift", "shift")


class ResBlock(nn.Module):
    """Two convolutions around what the embedding changes; the second starts at zero (identity block).

    ``modulation``: it scales and shifts the second norm's output (2105.05233), or shifts its input (2006.11239).
    """

    channels: int
    dropout: float
    dtype: str
    salt: int
    modulation: str
    groups: int

    @nn.compact
    def __call__(self, x: Array, emb: Array, dropout_keys: Array | None) -> Array:
        dtype = jnp.dtype(self.dtype)
        h = nn.silu(group_norm(x, dtype, "norm1", self.groups))
        h = conv(self.channels, dtype, "conv1")(h)
        h = nn.silu(self._modulated(h, emb))
        if self.dropout > 0 and dropout_keys is not None:
            h = drop(h, self.dropout, dropout_keys, self.salt)
        h = conv(self.channels, dtype, "conv2", zero=True)(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, dtype, "skip", size=1)(x)
        return x + h

    def _modulated(self, h: Array, emb: Array) -> Array:
        dtype = jnp.dtype(self.dtype)
        if self.modulation == "shift":
            shift = dense(self.channels, dtype, "modulation")(emb)
            return group_norm(h + shift[:, None, None], dtype, "norm2", self.groups)
        scale, shift = jnp.split(dense(2 * self.channels, dtype, "modulation")(emb), 2, axis=1)
        return group_norm(h, dtype, "norm2", self.groups, scale, shift)


class Attention(nn.Module):
    """Self-attention over the pixels of one image; the output projection starts at zero. Softmax in float32."""

    head_channels: int
    dtype: str
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = jnp.dtype(self.dtype)
        batch, height, width, channels = x.shape
        heads = max(1, channels // self.head_channels)
        if channels % heads:
            raise InputError(f"attention at {channels} channels cannot be split in heads of {self.head_channels}")
        h = group_norm(x, dtype, "norm", self.groups)
        qkv = dense(3 * channels, dtype, "qkv")(h)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, height * width, heads, 3, channels // heads), 3, 0)
        h = attend(q, k, v).reshape(x.shape)
        return x + dense(channels, dtype, "out", zero=True)(h)


class UNet(nn.Module):
    """Denoiser of images: ``(x[B, H, W, C], t[B], label[B] | None, dropout_keys[B] | None) -> [B, H, W, C]``.

    Level l works at H/2^l x W/2^l with ``channels * channel_mult[l]`` channels. The output starts at zero and has the
    dtype of ``x``; a row depends on nothing but its own inputs.

    Attributes:
      channels: base width, even.
      channel_mult: one factor a level; ``len(channel_mult) - 1`` halvings.
      blocks_per_level: residual blocks a level on the way down (one more on the way up).
      attention_levels: levels with self-attention after each block, e.g. ``(1, 2)``; the middle has it if not empty.
      head_channels: channels of an attention head (one head where a level is narrower).
      dropout: rate inside the blocks, applied only when ``dropout_keys`` are given.
      num_classes: 0 for no class; otherwise label ``num_classes`` (or None) is the null class.
      modulation: how time and class enter a block: ``"scale_shift"`` after its second norm, or ``"shift"`` before it
        (Ho et al.; the default of diffusers' `UNet2DModel`).
      norm_groups: groups of every normalisation, a divisor of all widths; 0 chooses by width (`layers.group_count`).
      dtype: ``"float32"`` or ``"bfloat16"`` computation; parameters are float32 in both.
      remat: recompute blocks in the backward pass: less memory, about a third more time.

    Raises:
      InputError: H or W not divisible by 2^(levels − 1), a level outside the network, an unknown modulation,
        an unwanted label, a width or a number of blocks below 1.
    """

    channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 2)
    blocks_per_level: int = 2
    attention_levels: tuple[int, ...] = ()
    head_channels: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    modulation: str = "scale_shift"
    norm_groups: int = 0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None, dropout_keys: Array | None = None) -> Array:
        self._check(x)
        dtype = jnp.dtype(self.dtype)
        emb = Conditioning(self.channels, 4 * self.channels, self.num_classes, self.dtype, name="conditioning")(
            t, label
        )
        h = conv(self.channels, dtype, "stem")(x.astype(dtype))
        h, skips = self._down(h, emb, dropout_keys)
        h = self._block(h.shape[-1], "mid1")(h, emb, dropout_keys)
        if self.attention_levels:
            h = self._attend(h, "mid")
        h = self._block(h.shape[-1], "mid2")(h, emb, dropout_keys)
        h = self._up(h, skips, emb, dropout_keys)
        h = nn.silu(group_norm(h, dtype, "norm_out", self.norm_groups))
        h = conv(x.shape[-1], dtype, "head", zero=True)(h)
        return h.astype(x.dtype)

    def _down(self, h: Array, emb: Array, keys: Array | None) -> tuple[Array, list[Array]]:
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            width = self.channels * mult
            for i in range(self.blocks_per_level):
                h = self._block(width, f"down{level}_{i}")(h, emb, keys)
                if level in self.attention_levels:
                    h = self._attend(h, f"down{level}_{i}")
                skips.append(h)
            if level < len(self.channel_mult) - 1:
                h = conv(width, jnp.dtype(self.dtype), f"down{level}_halve", stride=2)(h)
                skips.append(h)
        return h, skips

    def _up(self, h: Array, skips: list[Array], emb: Array, keys: Array | None) -> Array:
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            width = self.channels * mult
            for i in range(self.blocks_per_level + 1):
                h = self._block(width, f"up{level}_{i}")(jnp.concatenate([h, skips.pop()], axis=-1), emb, keys)
                if level in self.attention_levels:
                    h = self._attend(h, f"up{level}_{i}")
            if level > 0:
                h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = conv(width, jnp.dtype(self.dtype), f"up{level}_double")(h)
        return h

    def _block(self, width: int, name: str) -> nn.Module:
        cls = nn.remat(ResBlock) if self.remat else ResBlock
        # A block's dropout stream is named by its place, which is the same with and without remat.
        return cls(
            width, self.dropout, self.dtype, zlib.crc32(name.encode()), self.modulation, self.norm_groups, name=name
        )

    def _attend(self, h: Array, name: str) -> Array:
        return Attention(self.head_channels, self.dtype, self.norm_groups, name=f"{name}_attention")(h)

    def _check(self, x: Array) -> None:
        sizes = (self.channels, self.channel_mult, self.blocks_per_level, self.head_channels, self.norm_groups)
        least = min(self.channels, self.blocks_per_level, self.head_channels, *self.channel_mult)
        if not self.channel_mult or least < 1 or self.norm_groups < 0:
            raise InputError(
                "a U-Net needs channels, channel_mult, blocks_per_level and head_channels of at least 1 and "
                f"norm_groups of at least 0, got {str(sizes)[1:-1]}"
            )
        levels = len(self.channel_mult)
        factor = 2 ** (levels - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise InputError(
                f"a U-Net of {levels} levels needs images [B, H, W, C], H and W divisible by {factor}, got {x.shape}"
            )
        if any(level not in range(levels) for level in self.attention_levels):
            raise InputError(f"attention_levels must lie in 0 … {levels - 1}, got {self.attention_levels}")
        if self.modulation not in MODULATIONS:
            raise InputError(f"modulation must be one of {', '.join(MODULATIONS)}, got {self.modulation!r}")
