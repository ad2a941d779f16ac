"""The conditional invertible networks of CADP from a plain config (Tölle et al., arXiv 2207.14625).

Image flows: for each stage a 2x2 squeeze, ``depth`` x [coupling, fixed channel permutation] and possibly a split; then
flatten and ``dense_depth`` x [dense coupling, permutation]. Vector flows: permutation, then ``dense_depth`` x
[coupling, permutation]. The latent of a record is one vector of D numbers; with splits it runs from coarse to fine
(`chain.Split`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from diffusion_privacy.errors import InputError
from diffusion_privacy.flows.actnorm import ActNorm, ClassGaussian
from diffusion_privacy.flows.bijection import Bijection, Shape
from diffusion_privacy.flows.chain import Chain, Flatten, Split, Stack
from diffusion_privacy.flows.coupling import COUPLINGS, coupling
from diffusion_privacy.flows.mixing import PARAMETERISATIONS, Mixing, Permutation
from diffusion_privacy.flows.mixture import LogisticMixture
from diffusion_privacy.flows.products import PRECISIONS
from diffusion_privacy.flows.spline import Spline
from diffusion_privacy.flows.squeeze import PATTERNS, Squeeze
from diffusion_privacy.flows.subnets import ConvNet, DenseNet, GlowNet, Subnet

NO_MIXING = "permutation"
CONV_NETS = ("paper", "glow")


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Everything that shapes a flow; numbers, names and tuples only.

    Attributes:
      shape: (h, w, c) of an image or (d,) of a vector.
      cond_dim: K, the length of the condition (one-hot class or attribute vector); 0 for none.
      depths: couplings in each stage; each stage halves height and width. 0 for a stage that only squeezes; not the
        last one. Empty for vectors.
      dense_depth: dense couplings after the last stage.
      conv_net: ``paper``: `subnets.ConvNet`, three 3x3 convolutions, the condition beside the input; ``glow``:
        `subnets.GlowNet`, 3x3, 1x1 and 3x3, several times cheaper.
      conv_precision: of the convolutions of ``glow``, see `subnets.GlowNet`; ``bfloat16`` is for training alone.
      conv_last: side of the last kernel of ``glow``, 3 or 1: a mixture or a spline asks for many numbers a pixel.
      conv_width, dense_width: hidden width of the two kinds of subnets, each with two hidden layers.
      coupling: kind of every coupling, one of `coupling.COUPLINGS`.
      clamp: bound of the log-scales, in couplings of every kind.
      spline_bins, spline_bound: see `spline.Spline`.
      mixture_components: see `mixture.LogisticMixture`.
      squeeze: ``checkerboard`` or ``haar``.
      splits: for each stage but the last, whether half of the channels leave after it. Empty: nowhere.
      mixing: ``permutation`` (fixed, none learned), ``lu`` or ``orthogonal``: a learned mixing beside the permutation.
      dense_mixing: whether ``mixing`` holds for the dense couplings too, where it costs D² parameters a coupling.
      actnorm: scale and shift before each coupling.
      class_latents: class-wise Gaussian latents; needs cond_dim >= 1.
      scan: compile one coupling a stage and loop over it.
      seed: of the fixed permutations; part of the model.

    Raises:
      InputError: the fields do not describe a flow.
    """

    shape: Shape
    cond_dim: int = 0
    depths: tuple[int, ...] = ()
    dense_depth: int = 2
    conv_net: str = "paper"
    conv_precision: str = "float32"
    conv_width: int = 128
    conv_last: int = 3
    dense_width: int = 128
    coupling: str = "glow"
    clamp: float = 1.5
    spline_bins: int = 8
    spline_bound: float = 4.0
    mixture_components: int = 4
    squeeze: str = "checkerboard"
    splits: tuple[bool, ...] = ()
    mixing: str = NO_MIXING
    dense_mixing: bool = True
    actnorm: bool = False
    class_latents: bool = False
    scan: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _choice("coupling", self.coupling, COUPLINGS)
        _choice("squeeze", self.squeeze, PATTERNS)
        _choice("mixing", self.mixing, (NO_MIXING, *PARAMETERISATIONS))
        _choice("conv_net", self.conv_net, CONV_NETS)
        _choice("conv_precision", self.conv_precision, PRECISIONS)
        rounds = self.conv_precision != "float32"
        _need(self.conv_net == "glow" or not rounds, "conv_precision needs conv_net = 'glow'", self.conv_precision)
        if len(self.shape) == 1:
            _need(not self.depths and not self.splits, "depths and splits are for images", self.shape)
            _need(self.shape[0] >= 2, "a vector flow needs at least two columns in shape", self.shape)
            _need(self.dense_depth >= 1, "dense_depth must be at least 1 for vectors", self.dense_depth)
        else:
            factor = 2 ** len(self.depths)
            fits = len(self.shape) == 3 and self.shape[0] % factor == 0 and self.shape[1] % factor == 0
            _need(fits, f"shape must be (h, w, c) with h and w divisible by {factor} for these depths", self.shape)
            deep = len(self.depths) >= 1 and min(self.depths) >= 0 and self.depths[-1] >= 1
            _need(deep, "depths must be at least 0 a stage, and 1 in the last", self.depths)
            _need(
                len(self.splits) in (0, len(self.depths) - 1),
                "splits must have one entry for each depth but the last",
                self.splits,
            )
        _need(
            min(self.conv_width, self.dense_width) >= 1,
            "widths must be at least 1",
            (self.conv_width, self.dense_width),
        )
        _need(self.dense_depth >= 0, "dense_depth must be at least 0", self.dense_depth)
        _need(self.conv_last in (1, 3), "conv_last must be 1 or 3", self.conv_last)
        _need(self.conv_net == "glow" or self.conv_last == 3, "conv_last = 1 needs conv_net = 'glow'", self.conv_net)
        _need(self.mixture_components >= 2, "mixture_components must be at least 2", self.mixture_components)
        _need(self.clamp > 0, "clamp must be positive", self.clamp)
        _need(self.cond_dim >= 1 or not self.class_latents, "class_latents need cond_dim >= 1", self.cond_dim)
        _need(self.spline_bins >= 2 and self.spline_bound > 0, "spline needs bins >= 2 and bound > 0", self.spline_bins)


def _choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"flow.{field} must be one of {', '.join(choices)}, got {value!r}")


def _need(holds: bool, what: str, value: object) -> None:
    if not holds:
        raise InputError(f"flow: {what}, got {value!r}")


def build(config: FlowConfig) -> Chain:
    """The flow as one bijection of ``config.shape`` onto ``(D,)``."""
    if len(config.shape) == 1:
        flow = _tail(config, config.shape, [Permutation(config.shape, config.seed)])
    else:
        flow = _stage(config, 0, config.shape)
    if config.class_latents:
        return Chain((*flow.layers, ClassGaussian(flow.out_shape, config.cond_dim)))
    return flow


def plain_form(part: Any) -> Any:
    """A bijection, or any part of one, with the convolutions that it has on an accelerator; the function is the same.

    For counting operations: what a CPU does instead is the business of the platform and not the network's.
    """
    if isinstance(part, ConvNet):
        return dataclasses.replace(part, convolutions="plain")
    if isinstance(part, GlowNet):
        return dataclasses.replace(part, matrix_products=False)
    if isinstance(part, tuple):
        return tuple(plain_form(p) for p in part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return dataclasses.replace(
            part, **{f.name: plain_form(getattr(part, f.name)) for f in dataclasses.fields(part)}
        )
    return part


def _stage(config: FlowConfig, i: int, shape: Shape) -> Chain:
    """Stage ``i`` and everything after it."""
    squeeze = Squeeze(shape, config.squeeze)
    layers: list[Bijection] = [squeeze]
    if config.depths[i]:
        layers.append(_couplings(config, squeeze.out_shape, _conv_net(config), config.depths[i], config.seed + i))
    h, w, c = squeeze.out_shape
    if i == len(config.depths) - 1:
        return _tail(config, (h * w * c,), [*layers, Flatten(squeeze.out_shape)])
    if config.splits and config.splits[i]:
        inner = _stage(config, i + 1, (h, w, c - c // 2))
        return Chain((*layers, Split(squeeze.out_shape, inner)))
    return Chain((*layers, *_stage(config, i + 1, squeeze.out_shape).layers))


def _conv_net(config: FlowConfig) -> Subnet:
    # On a CPU thin convolutions and the gradients that autodiff writes are slow, slower still inside a loop.
    cpu = jax.default_backend() == "cpu"
    if config.conv_net == "glow":
        return GlowNet(config.conv_width, config.conv_precision, matrix_products=cpu, last=config.conv_last)
    # Of narrow networks the products take longer to compile than they save.
    by_cpu = "products" if config.conv_width > 32 else "explicit"
    return ConvNet(config.conv_width, convolutions=by_cpu if cpu else "plain")


def _tail(config: FlowConfig, shape: Shape, layers: list[Bijection]) -> Chain:
    """The layers so far, then the dense couplings."""
    if config.dense_depth:
        # Streams of permutations: one a stage, and one for the dense part behind them.
        seed = config.seed + 1 + len(config.depths)
        layers = [*layers, _couplings(config, shape, DenseNet(config.dense_width), config.dense_depth, seed)]
    return Chain(tuple(layers))


def _couplings(config: FlowConfig, shape: Shape, subnet: Subnet, depth: int, seed: int) -> Stack:
    spline = Spline(config.spline_bins, config.spline_bound, config.clamp)
    mixture = LogisticMixture(config.mixture_components, config.clamp)
    layer: Bijection = coupling(config.coupling, shape, subnet, config.cond_dim, config.clamp, spline, mixture)
    before: list[Bijection] = [ActNorm(shape)] if config.actnorm else []
    mixed = config.mixing != NO_MIXING and (config.dense_mixing or len(shape) == 3)
    after: list[Bijection] = [Mixing(shape, config.mixing)] if mixed else []
    if before or after:
        layer = Chain((*before, layer, *after))
    return Stack(layer, depth, seed, config.scan)


PRESETS: dict[str, FlowConfig] = {
    "mnist": FlowConfig((28, 28, 1), 10, depths=(4, 4), dense_depth=2, dense_width=392, clamp=1.5),
    "xray": FlowConfig((128, 128, 1), 2, depths=(4, 4, 4, 4), dense_depth=4, dense_width=1024, clamp=1.5),
    "celeba": FlowConfig((128, 128, 3), 40, depths=(4,) * 6, dense_depth=0, clamp=1.2, splits=(True,) * 5),
    "digits": FlowConfig((8, 8, 1), 10, depths=(4, 4), dense_depth=2, conv_width=32, dense_width=64, clamp=1.5),
}
"""The paper's image networks and a small one for the embedded 8x8 digits; change a field with `dataclasses.replace`."""


def table(columns: int, cond_dim: int) -> FlowConfig:
    """The paper's network for tables: 4 x [permutation, coupling], dense subnets 128-128."""
    return FlowConfig((columns,), cond_dim, dense_depth=4, dense_width=128)
