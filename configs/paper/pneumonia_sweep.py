"""Training-set size against memorising, small: PneumoniaMNIST averaged down to 14x14, n = 20 … 2,000.

    python launch.py --config=configs/paper/pneumonia_sweep.py --workdir=runs/pneumonia_sweep \
        --config.data.params.path=pneumoniamnist.npz

About ten minutes on two quiet CPU cores. The file is MedMNIST's (28x28). If you have a table of its patients (columns
split, index, patient), give it with --config.data.params.identities, so that nobody is in two sets. Writes sweep.json
and sweep.png: n against t', q, detections among N images, and N/n.

What differs from the paper: images are averaged over squares of 2x2 pixels, the disc is white, the network is an MLP,
training is 4,000 steps. Absolute numbers do not compare; the order along the curve should. `pneumonia_sweep_full.py` is
close to the paper's own settings.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_sweep.SizeSweep`."""
    return ConfigDict(
        {
            "kind": "size_sweep",
            "seed": 0,
            "sweep": {
                "sizes": (20, 50, 100, 250, 1000, 2000),
                "samples": 5000,
                "field": "",
                "values": (),
                "reduce": 2,
            },
            "data": {
                "source": "npz",
                "params": {
                    "path": config_dict.placeholder(str),
                    "split": "train",
                    "identities": config_dict.placeholder(str),
                },
                "obtain": base.medmnist("pneumoniamnist", careless=50, held_out=120).data.obtain,
            },
            "split": {"private": config_dict.placeholder(int), "careless": 50, "controls": 3, "held_out": 120},
            # White: mid-grey, as in the paper, is the grey of the tissue at this size, and a denoiser takes it away.
            "fingerprint": {"name": "disc", "params": {"radius": 2, "value": 1.0}},
            "score": {
                "network": {"name": "mlp", "params": {"hidden": 256, "depth": 3}},
                "sde": {"name": "vp", "params": {}},
                "prediction": "eps",
                "weighting": "simple",
                "training": {
                    "steps": 4000,
                    "batch_size": 64,
                    "learning_rate": 1e-3,
                    "warmup_steps": 100,
                    "schedule": "cosine",
                    "log_every": 250,
                    "checkpoint_every": 4000,
                },
            },
            "sampler": {"steps": 50, "kernel": "ancestral", "spacing": "uniform", "clip_x0": True},
            "detector": {
                "network": {"channels": 8, "max_channels": 32},
                "training": {
                    "steps": 600,
                    "batch_size": 64,
                    "learning_rate": 2e-3,
                    "warmup_steps": 50,
                    "schedule": "cosine",
                    "ema_decay": 0.99,
                    "log_every": 200,
                    "checkpoint_every": 600,
                },
                "false_positive_rate": 1e-3,
                "negatives": 5000,
                "positives": 256,
                "positive_time": 0.02,
                "most_fingerprints": 2,
                "perturbation": {"noise": 0.05, "smooth": 0.1, "contrast": 0.1},
                "identity": "classifier",
            },
            "audit": {
                "h_levels": 25,
                "h_draws": 32,
                "gamma": 0.05,
                "subspace_draws": 512,
                "subspace_max_draws": 2048,
                "level": 0.95,
                "chunk": 0,
                "memory_gb": 2.0,
                "likelihood_records": 0,
                "baselines": (),
                # Ranks all training records; top = 12 takes a closer look at the first 12.
                "screen": {"top": 0, "finalists": 8, "levels": 10, "draws": 4, "gamma_upper": 0.5},
            },
            "report": {"show_private": False},
            "outputs": {"wandb": "", "grid_every": 0, "grid_images": 16, "png": 0},
            "profile": 0,
        }
    ).lock()
