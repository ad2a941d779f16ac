"""What the studies of all sets share; the config of one set states what differs. For a GPU.

`score` has the settings of Dombrowski & Kainz (arXiv 2306.01363), `private` those of Tölle et al. (arXiv 2207.14625).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import digits, digits_cadp


def score(data: Mapping[str, Any], *, side: int, careless: int, held_out: int) -> ConfigDict:
    """The anonymity study of one private record: careless and careful model, as in configs/digits.py.

    Args:
      data: ``source``, ``params`` and ``obtain`` of `diffusion_privacy.settings.Data`.
      side: pixels of the images' shorter side; decides how deep the U-Net is.
      careless: records of the careless model.
      held_out: records that no model sees.
    """
    config = digits.get_config()
    deep = 4 if side >= 64 else 3
    with config.unlocked():
        config.data = ConfigDict(data)
        config.split.update({"careless": careless, "held_out": held_out})
        config.fingerprint = ConfigDict({"name": "disc", "params": {"radius": config_dict.placeholder(int)}})
        config.score.network = ConfigDict(
            {
                "name": "unet",
                "params": {
                    "channels": 128,
                    "channel_mult": (1, 2, 2, 2)[:deep],
                    "blocks_per_level": 2,
                    "attention_levels": tuple(range(deep))[-2:],
                },
            }
        )
        config.score.sde = ConfigDict({"name": "ddpm", "params": {"num_steps": 1000, "beta_max": 0.02}})
        config.score.training.update(
            {
                "steps": 30_000,
                "learning_rate": 1e-4,
                "warmup_steps": 500,
                "schedule": "constant",
                "ema_decay": 0.9999,
                "log_every": 500,
                "checkpoint_every": 5_000,
            }
        )
        config.sampler.steps = 100
        config.detector.network.update({"channels": 32, "max_channels": 128})
        config.detector.training.update({"steps": 3_000, "checkpoint_every": 1_000})
        config.detector.update({"negatives": 20_000, "positive_time": 0.02, "most_fingerprints": 4})
        config.audit.samples.update({"careless": 10_000, "careful": 50_000})
        config.audit.memory_gb = 16.0
        config.report.show_private = False
    return config.lock()


def private(data: Mapping[str, Any], *, depths: tuple[int, ...], dense_depth: int, dense_width: int) -> ConfigDict:
    """A private copy by CADP, as in configs/digits_cadp.py, with the paper's flow.

    Args:
      data: as for `score`.
      depths: couplings in each stage; each stage halves the image.
      dense_depth, dense_width: of the couplings after the last stage.
    """
    config = digits_cadp.get_config()
    with config.unlocked():
        config.data = ConfigDict(data)
        config.flow.params = ConfigDict(
            {
                "depths": depths,
                "conv_width": 128,
                "dense_depth": dense_depth,
                "dense_width": dense_width,
                "clamp": 1.5,
                "actnorm": True,
                "mixing": "lu",
                "scan": True,
            }
        )
        config.flow.training.update(
            {
                "steps": 40_000,
                "batch_size": 64,
                "learning_rate": 3e-4,
                "warmup_steps": 500,
                "weight_decay": 0.0,
                "ema_decay": 0.999,
                "log_every": 500,
                "checkpoint_every": 5_000,
            }
        )
        config.evaluation.training.update({"steps": 3_000, "checkpoint_every": 1_000})
        config.report.show_private = False
    return config.lock()


def medmnist(name: str, *, careless: int, held_out: int, finding: int | str | None = None) -> ConfigDict:
    """The anonymity study of one set of MedMNIST (28 pixels, or 64, 128, 224 by the file that is given)."""
    obtain = (
        f"Get {name}.npz (or {name}_64.npz, _128, _224) of MedMNIST v2 from https://doi.org/10.5281/zenodo.10519652 "
        "(Yang et al., Scientific Data 2023; licence CC BY 4.0; not for clinical use), leave its arrays train_images, "
        "train_labels … as they are, and give --config.data.params.path=FILE"
    )
    params: dict[str, Any] = {
        "path": f"data/{name}.npz",
        "split": "train",
        "size": config_dict.placeholder(int),
        "identities": config_dict.placeholder(str),
    }
    if finding is not None:
        params["finding"] = finding
    data = {"source": "npz", "params": params, "obtain": obtain}
    return score(data, side=28, careless=careless, held_out=held_out)
