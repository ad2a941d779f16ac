"""May this be given away? Four ways to share handwritten digits (MNIST, 28x28); compare configs/digits_release.py.

    python launch.py --config=configs/paper/mnist_release.py --workdir=runs/mnist_release \
        --config.data.params.images=DIR/t10k-images-idx3-ubyte.gz \
        --config.data.params.labels=DIR/t10k-labels-idx1-ubyte.gz

Small enough for two CPU cores with the 10,000 test images as the source: 100 private images, a multilayer perceptron,
few models behind the certificates; docs/results.md says what was measured.
``--config=configs/paper/mnist_release.py:full`` is meant for a GPU and the 60,000 training images: a U-Net, 30,000
steps, a flow that learns for long. It was not run to its end yet.
"""

from ml_collections import ConfigDict

from configs.paper import release_28
from configs.sets import mnist


def get_config(size: str = "small") -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_joined.Joined`."""
    config = release_28.make(mnist.get_config().data, size)
    with config.unlocked():
        config.split = {"public": 0.79, "private": 0.01, "test": 0.2}
        config.flow.preprocess = "ink"
    return config.lock()
