"""What the joined studies of 28x28 images share: `make` for `pneumonia_release` and `mnist_release`."""

from ml_collections import ConfigDict

from configs import digits_release


def make(data: ConfigDict, size: str) -> ConfigDict:
    """configs/digits_release.py for 28x28 images, unlocked fields filled in by the caller.

    Args:
      data: the source.
      size: ``"small"`` for two CPU cores, ``"full"`` for a GPU.

    Raises:
      ValueError: another size.
    """
    if size not in ("small", "full"):
        raise ValueError(f"expected :small or :full after the config's file, got {size!r}")
    config = digits_release.get_config()
    with config.unlocked():
        config.data = data
        # The paper's radius at this size would be 3; the mark has to be found by a small detector.
        config.fingerprint.params = {"radius": 4}
        config.flow.params = {
            "depths": (0, 8),
            "conv_net": "glow",
            "conv_width": 96,
            "dense_depth": 0,
            "clamp": 1.5,
            "actnorm": True,
            "mixing": "lu",
        }
        config.flow.training.update({"steps": 700, "batch_size": 64, "micro_batches": 4, "weight_decay": 0.02})
        config.score.network.params = {"hidden": 384, "depth": 3, "skip": True}
        config.score.training.update({"steps": 15_000, "learning_rate": 1e-3, "checkpoint_every": 5000})
        config.detector.training.steps = 500
        config.certify.update({"copies": 40, "copy_models": 2, "dp_models": 1, "samples": 1000})
        # X-rays of children: pictures stay out of the report unless the reader asks for them.
        config.report.show_private = False
        if size == "full":
            _full(config)
    return config.unlock()


def _full(config: ConfigDict) -> None:
    config.flow.params.update({"depths": (0, 16), "conv_width": 256, "scan": True})
    config.flow.training.update({"steps": 40_000, "batch_size": 256, "micro_batches": 1, "learning_rate": 1e-3})
    config.flow.training.checkpoint_every = 2000
    config.score.network = {
        "name": "unet",
        "params": {"channels": 64, "channel_mult": (1, 2, 2), "dtype": "bfloat16"},
    }
    config.score.training.update({"steps": 30_000, "batch_size": 128, "learning_rate": 2e-4, "checkpoint_every": 5000})
    config.private_training.update({"steps": 2000, "batch_size": 200, "checkpoint_every": 500})
    config.detector.network = {"channels": 32, "max_channels": 64}
    config.detector.training.steps = 4000
    config.risk.update({"samples": 50_000, "evaluation_samples": 5_000, "subspace_max_draws": 16_384})
    config.certify.update({"copies": 500, "copy_models": 16, "dp_models": 8, "samples": 5000})
