"""CADP on MNIST (28x28, 70,000 images; LeCun, Cortes, Burges; CC BY-SA 3.0), with a flow small enough for a CPU.

    python launch.py --config=configs/mnist_cadp.py --workdir=runs/mnist_cadp \
        --config.data.params.images=DIR/train-images-idx3-ubyte.gz \
        --config.data.params.labels=DIR/train-labels-idx1-ubyte.gz

DIR holds the four files of the data set as its authors publish them. The flow has the form of the paper's, two stages
of couplings and two dense ones, with a quarter of its width, and learned mixing and scales besides. For the paper's
own, set ``--config.flow.params.conv_width=128 --config.flow.params.dense_width=392`` and train longer, on an
accelerator. docs/results.md says what was reached: 1.48 bits per dimension, too early for good draws.
"""

from ml_collections import ConfigDict

from configs import digits_cadp
from configs.sets.mnist import OBTAIN


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.Cadp`."""
    config = digits_cadp.get_config()
    with config.unlocked():
        config.data = {
            "source": "idx",
            "params": {
                "images": "data/mnist/train-images-idx3-ubyte.gz",
                "labels": "data/mnist/train-labels-idx1-ubyte.gz",
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
        config.evaluation.training.update({"steps": 3_000, "checkpoint_every": 1_000})
    return config.lock()
