"""MNIST: 60,000 handwritten digits, 28x28 grey, by LeCun, Cortes and Burges; licence CC BY-SA 3.0.

    python launch.py --config=configs/sets/mnist.py --workdir=runs/mnist \
        --config.data.params.images=DIR/train-images-idx3-ubyte.gz \
        --config.data.params.labels=DIR/train-labels-idx1-ubyte.gz

Who wrote which digit is not in these files: persons are unknown. configs/mnist_cadp.py makes a private copy.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base

OBTAIN = """
Get train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz of MNIST (LeCun, Cortes, Burges; licence CC BY-SA 3.0)
as their authors or a mirror publish them, gzipped or not, and give --config.data.params.images=FILE
--config.data.params.labels=FILE
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return base.score(
        {
            "source": "idx",
            "params": {
                "images": "data/mnist/train-images-idx3-ubyte.gz",
                "labels": "data/mnist/train-labels-idx1-ubyte.gz",
                "size": config_dict.placeholder(int),
            },
            "obtain": OBTAIN,
        },
        side=28,
        careless=500,
        held_out=5_000,
    )
