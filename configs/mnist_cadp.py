"""CADP on MNIST (28x28, 70,000 images; LeCun, Cortes, Burges; CC BY-SA 3.0), with a flow small enough for a CPU.

    python launch.py --config=configs/mnist_cadp.py --workdir=runs/mnist_cadp \
        --config.data.params.images=DIR/train-images-idx3-ubyte.gz \
        --config.data.params.labels=DIR/train-labels-idx1-ubyte.gz

DIR holds the four files of the data set as its authors publish them. The flow has 12 Glow couplings of width 128 at
7x7x16, 1.1 million parameters; `flows.preprocess` says why the ink map, and docs/results.md what was reached: 1.18
bits per dimension after an hour on one core. ``--config=configs/mnist_cadp.py:large`` is for a GPU: 28 couplings of
width 256 at 14x14 and 7x7 that map each number by a mixture of logistics, 17.7 million parameters, minutes of training,
and closer to the data than the small one in both respects. The paper's own network is in configs/paper/mnist_cadp.py.
"""

from ml_collections import ConfigDict, config_dict

from configs import digits_cadp
from configs.sets.mnist import OBTAIN


def get_config(size: str = "small") -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.Cadp`.

    Args:
      size: ``"small"`` for a CPU, ``"large"`` for a GPU.

    Raises:
      ValueError: another size.
    """
    if size not in ("small", "large"):
        raise ValueError(f"expected :small or :large after the config's file, got {size!r}")
    config = digits_cadp.get_config()
    with config.unlocked():
        config.data = {
            "source": "idx",
            "params": {
                "images": "data/mnist/train-images-idx3-ubyte.gz",
                "labels": "data/mnist/train-labels-idx1-ubyte.gz",
                "limit": config_dict.placeholder(int),
            },
            "obtain": OBTAIN,
        }
        config.split = {"public": 0.5, "private": 0.3, "test": 0.2}
        config.flow.params = {
            "depths": (0, 12),
            "conv_net": "glow",
            "conv_width": 128,
            "dense_depth": 0,
            "clamp": 1.5,
            "actnorm": True,
            "mixing": "lu",
        }
        config.flow.preprocess = "ink"
        config.flow.training_precision = "bfloat16"
        config.flow.training.update(
            {
                "steps": 12_000,
                "batch_size": 64,
                "micro_batches": 4,
                "learning_rate": 4e-3,
                "warmup_steps": 100,
                "weight_decay": 0.02,
                "ema_decay": 0.999,
                "log_every": 200,
                "checkpoint_every": 500,
            }
        )
        # 18,000 private records: two ε instead of five, and attacks on 4,000 of them, so that a CPU is done in minutes.
        config.release.epsilons = (1.0, 8.0)
        config.evaluation.training.update({"steps": 1_500, "checkpoint_every": 500})
        config.attack.records = 4_000
        config.attack.study_epsilons = (64.0, 1024.0)
        config.attack.trials = 4_000_000
        if size == "large":
            _large(config)
    return config.lock()


def _large(config: ConfigDict) -> None:
    config.split = {"public": 0.8, "private": 0.1, "test": 0.1}
    config.flow.params.update(
        {"depths": (4, 24), "conv_width": 256, "coupling": "mixture", "mixture_components": 4, "scan": True}
    )
    config.flow.training.update(
        {"steps": 9_500, "batch_size": 256, "micro_batches": 1, "learning_rate": 3e-3, "warmup_steps": 500}
    )
    config.flow.training.checkpoint_every = 2_000
    config.release.epsilons = (0.5, 1.0, 2.0, 4.0, 8.0)
    config.release.total_epsilon = 20.0
    config.attack.trials = 64_000_000
