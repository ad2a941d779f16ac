"""The settings of a diffusers `UNet2DModel` and what they imply: its blocks, and the name and shape of every weight.

Names, defaults and arithmetic are those of diffusers (github.com/huggingface/diffusers, `models/unets/unet_2d.py` and
`unet_2d_blocks.py`, version 0.42). What is not listed here is refused by name: a network that is almost the one that
was trained would be audited in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_privacy.errors import InputError

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
ACTIVATIONS = ("silu", "swish", "relu", "gelu", "mish")

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """Fields and defaults of diffusers' `UNet2DModel`; hashable, so that it can be compiled in.

    Raises:
      InputError: a value that the port does not have or that contradicts another; the message names the key.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int | float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        widths = self.block_out_channels
        levels = len(widths)
        whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1  # noqa: E731
        for key, valid, expected in (
            ("block_out_channels", levels >= 1 and all(whole(w) for w in widths), "whole numbers"),
            ("time_embedding_type", self.time_embedding_type == "positional", "'positional'"),
            ("in_channels", whole(self.in_channels), "a whole number"),
            ("out_channels", self.out_channels == self.in_channels, f"{self.in_channels}, as in_channels"),
            ("layers_per_block", whole(self.layers_per_block), "a whole number"),
            ("norm_num_groups", whole(self.norm_num_groups), "a whole number"),
            ("down_block_types", _known(self.down_block_types, DOWN_BLOCKS, levels), _some(DOWN_BLOCKS, levels)),
            ("up_block_types", _known(self.up_block_types, UP_BLOCKS, levels), _some(UP_BLOCKS, levels)),
            ("mid_block_type", self.mid_block_type in (None, "UNetMidBlock2D"), "'UNetMidBlock2D' or null"),
            ("downsample_padding", self.downsample_padding in (0, 1), "0 or 1"),
            ("downsample_type", self.downsample_type in ("conv", "resnet"), "'conv' or 'resnet'"),
            ("upsample_type", self.upsample_type in ("conv", "resnet"), "'conv' or 'resnet'"),
            ("act_fn", str(self.act_fn).lower() in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
            ("resnet_time_scale_shift", self.resnet_time_scale_shift in ("default", "scale_shift"), "'default' or "
             "'scale_shift'"),
            ("class_embed_type", self.class_embed_type is None, "null (with num_class_embeds for classes)"),
            ("freq_shift", widths[0] // 2 != self.freq_shift, "other than half of block_out_channels[0]"),
            ("mid_block_scale_factor", self.mid_block_scale_factor != 0, "other than 0"),
        ):  # fmt: skip
            if not valid:
                raise InputError(f"{key}: expected {expected}, got {vars(self)[key]!r}")
        _ = self.shapes

    @property
    def embedding(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) that it was trained on, or None if the config does not say."""
        if self.sample_size is None:
            return None
        pair = self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size,) * 2
        return (int(pair[0]), int(pair[1]))

    @property
    def halvings(self) -> int:
        """How often H and W are divided by two on the way down."""
        return len(self.block_out_channels) - 1

    @property
    def blocks(self) -> Blocks:
        """What the network is made of, in its order."""
        return Blocks(_down(self), _mid(self), _up(self))

    @property
    def shapes(self) -> Shapes:
        """Every weight's shape, by the name that diffusers gives it, in PyTorch's layout.

        Raises:
          InputError: numbers of groups or of attention heads that do not fit a block's channels.
        """
        found: Shapes = {}
        first, width = self.block_out_channels[0], self.embedding
        _conv_shapes(found, "conv_in", self.in_channels, first)
        _linear_shapes(found, "time_embedding.linear_1", first, width)
        _linear_shapes(found, "time_embedding.linear_2", width, width)
        if self.num_class_embeds is not None:
            found["class_embedding.weight"] = (self.num_class_embeds, width)
        blocks = self.blocks
        for stage in (*blocks.down, *([blocks.mid] if blocks.mid else []), *blocks.up):
            for resnet in stage.resnets:
                _resnet_shapes(found, resnet, self)
            for attention in stage.attentions:
                if attention is not None:
                    _attention_shapes(found, attention, self)
            if isinstance(stage.resample, Resnet):
                _resnet_shapes(found, stage.resample, self)
            elif stage.resample is not None:
                _conv_shapes(found, stage.resample.name, stage.resample.width, stage.resample.width)
        _norm_shapes(found, "conv_norm_out", first, self.norm_num_groups, "norm_num_groups")
        _conv_shapes(found, "conv_out", first, self.out_channels)
        return found


def parse(fields: Mapping[str, Any], where: str) -> UNet2DConfig:
    """A `UNet2DConfig` from a config.json's fields; ``where`` names the file in messages.

    Raises:
      InputError: another class of model, a key that is not known, or a value that is not supported.
    """
    kind = fields.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise InputError(f"{where}: _class_name is {kind!r}; expected 'UNet2DModel'")
    known = {field.name for field in dataclasses.fields(UNet2DConfig)}
    given = {name: value for name, value in fields.items() if not name.startswith("_")}
    for name in given:
        if name not in known:
            raise InputError(f"{where}: {name} is not supported; expected fields of UNet2DModel: {', '.join(known)}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    try:
        return UNet2DConfig(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{where}: expected the fields of a UNet2DModel ({error})") from error


@dataclasses.dataclass(frozen=True)
class Resnet:
    """A residual block. ``resample`` is ``""``, ``"down"`` or ``"up"``; its output is divided by ``factor``."""

    name: str
    inputs: int
    outputs: int
    resample: str = ""
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Attend:
    """Self-attention over pixels; ``groups`` of its norm, None for none."""

    name: str
    width: int
    groups: int | None
    heads: int
    head: int
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Resample:
    """A convolution that halves H and W, or that follows their doubling."""

    name: str
    width: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of one level; the middle has one resnet more than attentions."""

    resnets: tuple[Resnet, ...]
    attentions: tuple[Attend | None, ...]
    resample: Resnet | Resample | None = None


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The stages of a network."""

    down: tuple[Stage, ...]
    mid: Stage | None
    up: tuple[Stage, ...]


def _attend(config: UNet2DConfig, name: str, width: int, groups: int | None, factor: float = 1.0) -> Attend:
    head = config.attention_head_dim if config.attention_head_dim is not None else width
    if not 1 <= head <= width:
        raise InputError(f"attention_head_dim: expected 1 … {width} for a block of {width} channels, got {head}")
    return Attend(name, width, groups, width // head, head, factor)


def _down(config: UNet2DConfig) -> tuple[Stage, ...]:
    stages, before = [], config.block_out_channels[0]
    for i, (kind, width) in enumerate(zip(config.down_block_types, config.block_out_channels, strict=True)):
        name, layers = f"down_blocks.{i}", range(config.layers_per_block)
        resnets = tuple(Resnet(f"{name}.resnets.{j}", before if j == 0 else width, width) for j in layers)
        attends = kind == "AttnDownBlock2D"
        by_resnet = kind == "ResnetDownsampleBlock2D" or (attends and config.downsample_type == "resnet")
        resample: Resnet | Resample | None = None
        if i < config.halvings:
            place = f"{name}.downsamplers.0"
            resample = Resnet(place, width, width, "down") if by_resnet else Resample(f"{place}.conv", width)
        attentions = tuple(
            _attend(config, f"{name}.attentions.{j}", width, config.norm_num_groups) if attends else None
            for j in layers
        )
        stages.append(Stage(resnets, attentions, resample))
        before = width
    return tuple(stages)


def _mid(config: UNet2DConfig) -> Stage | None:
    if config.mid_block_type is None:
        return None
    width, factor = config.block_out_channels[-1], float(config.mid_block_scale_factor)
    groups = config.attn_norm_num_groups
    if groups is None and config.resnet_time_scale_shift == "default":
        groups = config.norm_num_groups
    attention = _attend(config, "mid_block.attentions.0", width, groups, factor) if config.add_attention else None
    return Stage(tuple(Resnet(f"mid_block.resnets.{j}", width, width, "", factor) for j in range(2)), (attention,))


def _up(config: UNet2DConfig) -> tuple[Stage, ...]:
    widths = config.block_out_channels[::-1]
    stages, before = [], widths[0]
    for i, (kind, width) in enumerate(zip(config.up_block_types, widths, strict=True)):
        name, layers = f"up_blocks.{i}", config.layers_per_block + 1
        last_skip = widths[min(i + 1, config.halvings)]
        resnets = tuple(
            Resnet(
                f"{name}.resnets.{j}",
                (before if j == 0 else width) + (last_skip if j == layers - 1 else width),
                width,
            )
            for j in range(layers)
        )
        attends = kind == "AttnUpBlock2D"
        by_resnet = kind == "ResnetUpsampleBlock2D" or (attends and config.upsample_type == "resnet")
        resample: Resnet | Resample | None = None
        if i < config.halvings:
            place = f"{name}.upsamplers.0"
            resample = Resnet(place, width, width, "up") if by_resnet else Resample(f"{place}.conv", width)
        attentions = tuple(
            _attend(config, f"{name}.attentions.{j}", width, config.norm_num_groups) if attends else None
            for j in range(layers)
        )
        stages.append(Stage(resnets, attentions, resample))
        before = width
    return tuple(stages)


def _conv_shapes(found: Shapes, name: str, inputs: int, outputs: int, size: int = 3) -> None:
    found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs, size, size), (outputs,)


def _linear_shapes(found: Shapes, name: str, inputs: int, outputs: int) -> None:
    found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)


def _norm_shapes(found: Shapes, name: str, width: int, groups: int, key: str) -> None:
    if width % groups:
        raise InputError(f"{key}: expected a divisor of {width} (channels at {name}), got {groups}")
    found[f"{name}.weight"], found[f"{name}.bias"] = (width,), (width,)


def _resnet_shapes(found: Shapes, block: Resnet, config: UNet2DConfig) -> None:
    scale = 2 if config.resnet_time_scale_shift == "scale_shift" else 1
    _norm_shapes(found, f"{block.name}.norm1", block.inputs, config.norm_num_groups, "norm_num_groups")
    _conv_shapes(found, f"{block.name}.conv1", block.inputs, block.outputs)
    _linear_shapes(found, f"{block.name}.time_emb_proj", config.embedding, scale * block.outputs)
    _norm_shapes(found, f"{block.name}.norm2", block.outputs, config.norm_num_groups, "norm_num_groups")
    _conv_shapes(found, f"{block.name}.conv2", block.outputs, block.outputs)
    if block.inputs != block.outputs:
        _conv_shapes(found, f"{block.name}.conv_shortcut", block.inputs, block.outputs, 1)


def _attention_shapes(found: Shapes, block: Attend, config: UNet2DConfig) -> None:
    inner = block.heads * block.head
    if block.groups is not None:
        mid = block.name.startswith("mid") and config.attn_norm_num_groups is not None
        key = "attn_norm_num_groups" if mid else "norm_num_groups"
        _norm_shapes(found, f"{block.name}.group_norm", block.width, block.groups, key)
    for part in ("to_q", "to_k", "to_v"):
        _linear_shapes(found, f"{block.name}.{part}", block.width, inner)
    _linear_shapes(found, f"{block.name}.to_out.0", inner, block.width)


def _known(kinds: object, choices: tuple[str, ...], levels: int) -> bool:
    return isinstance(kinds, tuple) and len(kinds) == levels and all(kind in choices for kind in kinds)


def _some(choices: tuple[str, ...], levels: int) -> str:
    return f"{levels} (one a level of block_out_channels) of {', '.join(choices)}"
