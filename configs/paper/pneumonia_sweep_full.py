"""Training-set size against memorising with the paper's settings: 28x28, T = 1,000, 30,000 steps, 100-step sampling.

    python launch.py --config=configs/paper/pneumonia_sweep_full.py --workdir=runs/pneumonia_full \
        --config.data.params.path=pneumoniamnist.npz

For a GPU; not meant for a CPU. The paper's model for MedMNIST: noise prediction, linear β to .02, Adam at 1e-4,
averaged weights with decay .9999, 50,000 images drawn. Its numbers for all 4,708 images: 2 detections where a memoriser
would show 10.6, t' = .718 by its own reading. The disc is white, theirs grey; the U-Net is this project's own and
somewhat smaller.
"""

from ml_collections import ConfigDict, config_dict

from configs.paper import pneumonia_sweep


def get_config() -> ConfigDict:
    """`pneumonia_sweep` with these fields changed."""
    config = pneumonia_sweep.get_config().unlock()
    config.sweep = ConfigDict(
        {"sizes": (50, 100, 250, 500, 1000, 2000, 4000), "samples": 50_000, "field": "", "values": (), "reduce": 1}
    )
    config.fingerprint = ConfigDict({"name": "disc", "params": {"radius": config_dict.placeholder(int), "value": 1.0}})
    config.score.network = ConfigDict(
        {
            "name": "unet",
            "params": {"channels": 128, "channel_mult": (1, 2, 2), "blocks_per_level": 2, "attention_levels": (1, 2)},
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
            "checkpoint_every": 5000,
        }
    )
    config.sampler.steps = 100
    config.detector.network.update({"channels": 32, "max_channels": 128})
    config.detector.training.update({"steps": 3000, "checkpoint_every": 1000})
    config.detector.update({"false_positive_rate": 1e-4, "negatives": 20_000, "positives": 512, "most_fingerprints": 4})
    config.audit.update({"h_levels": 50, "subspace_draws": 1024, "subspace_max_draws": 8192, "memory_gb": 16.0})
    config.audit.baselines = ("loss", "pia", "secmi", "authpct", "copy_ratio", "extraction", "frechet_gap", "flipd")
    return config.lock()
