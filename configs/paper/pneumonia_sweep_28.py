"""Training-set size against memorising at the paper's 28x28 pixels: PneumoniaMNIST, n = 50 … 2,000, an MLP.

    python launch.py --config=configs/paper/pneumonia_sweep_28.py --workdir=runs/pneumonia_28 \
        --config.data.params.path=pneumoniamnist.npz

Between `pneumonia_sweep` (14x14, minutes) and `pneumonia_sweep_full` (the paper's network and training, a GPU).
"""

from ml_collections import ConfigDict

from configs.paper import pneumonia_sweep


def get_config() -> ConfigDict:
    """`pneumonia_sweep` with these fields changed."""
    config = pneumonia_sweep.get_config().unlock()
    config.sweep.update({"sizes": (50, 200, 500, 2000), "samples": 10_000, "reduce": 1})
    # int(9 · 2^(log2 28 − 6)), the paper's radius.
    config.fingerprint.params.radius = 3
    # Without a way around its hidden layers a perceptron of this width does not learn to denoise 784 pixels.
    config.score.network.params = {"hidden": 384, "depth": 3, "skip": True}
    config.score.training.update({"steps": 15_000, "checkpoint_every": 5000, "log_every": 500})
    return config.lock()
