"""The port against outputs that diffusers computed (golden/, made by make_golden.py), and damaged checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.golden_files import GOLDEN, WEIGHTS, copy, edit_json, edit_weights

from diffusion_privacy.errors import InputError
from diffusion_privacy.interop import diffusers, diffusers_unet, unet2d_config
from diffusion_privacy.interop.diffusers_unet import UNet2D

pytest.importorskip("safetensors", reason="the reader of checkpoints (pip install '.[interop]')")


@pytest.mark.parametrize(("name", "label"), [("tiny", None), pytest.param("rare", 2, marks=pytest.mark.slow)])
def test_the_port_is_the_original(name, label) -> None:
    """Through the score that the audit uses: at i/T it is minus the network's output at timestep i − 1 over σ."""
    golden = np.load(GOLDEN / name / "output.npz")
    assert np.all(golden["label"] == label) if label is not None else "label" not in golden
    given = diffusers.load(GOLDEN / name, 1000, shape=golden["x"].shape[1:], label=label)
    level = golden["step"] + 1
    t = jnp.asarray(given.chain.times[level], jnp.float32)
    with jax.default_matmul_precision("highest"):
        score = np.asarray(jax.jit(given.score)(jnp.asarray(golden["x"]), t))
    output = -score * given.chain.sigma[level].reshape(-1, 1, 1, 1)
    # A golden output that hardly moves would be matched by much that is wrong.
    assert golden["output"].std() > 0.3
    np.testing.assert_allclose(output, golden["output"], atol=1e-4)


def test_names_from_before_diffusers_015_are_read() -> None:
    config, params = diffusers_unet.read(GOLDEN / "tiny" / "unet")
    back = {new: old for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))}
    old = {}
    for name in config.shapes:
        tensor = np.asarray(params[name])
        tensor = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        for new, before in back.items():
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = tensor
    assert any(".proj_attn." in name for name in old)
    again = diffusers_unet.convert(config, old)
    assert all(np.array_equal(again[name], params[name]) for name in params)


BAD_CONFIG = {
    "time_embedding_type": "fourier",
    "down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "act_fn": "tanh",
    "norm_num_groups": 3,
    "attention_head_dim": 64,
    "class_embed_type": "timestep",
    "out_channels": 2,
    "resnet_time_scale_shift": "spatial",
    "downsample_padding": 2,
    "encoder_hid_dim": 4,
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8, "wide"],
    "freq_shift": 4,
}


@pytest.mark.parametrize("key", BAD_CONFIG)
def test_what_is_not_supported_is_refused_by_its_key(tmp_path, key) -> None:
    folder = copy(tmp_path)
    edit_json(folder / "unet" / "config.json", **{key: BAD_CONFIG[key]})
    with pytest.raises(InputError, match=key) as caught:
        diffusers.load(folder, 10)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def dropped(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "mid_block.resnets.1.conv2.bias"}


def extra(tensors):
    return {**tensors, "mid_block.resnets.2.conv1.bias": np.zeros(12, np.float32)}


def reshaped(tensors):
    return {**tensors, "conv_in.weight": np.zeros((8, 3, 3, 3), np.float32)}


def broken(tensors):
    return {**tensors, "conv_in.bias": np.full(8, np.nan, np.float32)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dropped, "has no mid_block.resnets.1.conv2.bias; expected it with shape"),
        (extra, "holds mid_block.resnets.2.conv1.bias"),
        (reshaped, r"conv_in.weight has shape \(8, 3, 3, 3\); expected \(8, 1, 3, 3\)"),
        (broken, "conv_in.bias holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, named) -> None:
    folder = copy(tmp_path)
    edit_weights(folder, change)
    with pytest.raises(InputError, match=named):
        diffusers.load(folder, 10)


def test_files_that_are_missing_or_damaged_are_named(tmp_path) -> None:
    folder = copy(tmp_path)
    with pytest.raises(InputError, match=r"model\.path: .*nowhere"):
        diffusers.load(tmp_path / "nowhere", 10)
    with pytest.raises(
        InputError, match=r"records: expected \(8, 8\) pixels \(sample_size in .*got shape \(16, 16, 1\)"
    ):
        diffusers.load(folder, 10, shape=(16, 16, 1))
    with pytest.raises(InputError, match="records: expected 1 channels"):
        diffusers.load(folder, 10, shape=(8, 8, 3))
    with pytest.raises(InputError, match=r"model\.label: expected none"):
        diffusers.load(folder, 10, label=0)
    weights = folder / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="readable safetensors file"):
        diffusers.load(folder, 10)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"found diffusion_pytorch_model\.bin"):
        diffusers.load(folder, 10)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: expected a readable JSON file"):
        diffusers.load(folder, 10)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: expected this file"):
        diffusers.load(folder, 10)


def test_a_label_is_needed_where_there_are_classes() -> None:
    for label in (None, 3, -1):
        with pytest.raises(InputError, match=r"model\.label: expected one of 0 … 2"):
            diffusers.load(GOLDEN / "rare", 10, label=label)


def test_the_notes_say_which_class_alone_was_looked_at() -> None:
    """They end up among what the verdict assumes (`audits.own_model`)."""
    note = "only images of class 2 were drawn: what the model shows of other classes was not looked at"
    assert note in diffusers.load(GOLDEN / "rare", 10, label=2).notes
    assert not any("class" in text for text in diffusers.load(GOLDEN / "tiny", 10).notes)


def test_images_that_cannot_be_halved_are_refused() -> None:
    network = UNet2D(unet2d_config.UNet2DConfig(3), 1000)
    with pytest.raises(InputError, match="divisible by 8"):
        network({}, jnp.zeros((1, 28, 28, 3)), jnp.ones(1), None)
    with pytest.raises(InputError, match="label: expected no label"):
        network({}, jnp.zeros((1, 32, 32, 3)), jnp.ones(1), jnp.zeros(1, int))
