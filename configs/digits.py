"""The main job, on the handwritten digits that ship with scikit-learn (1,797 images, 8x8).

    python launch.py --config=configs/digits.py --workdir=runs/digits

Plants a grey disc in one private record, trains two score models with the same settings and says how likely each gives
the record back. "careless" is trained on 64 records, "careful" on all but the held-out ones. Expect, in at most eight
minutes on two CPU cores: the careless model reproduces the private record about once in 64 images; the careful one
at most once in 1,697 (with 95 % confidence), the rate of a model that had memorised all its records.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings.Study`."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {"source": "digits", "params": {}},
            "split": {
                "private": config_dict.placeholder(int),
                "careless": 64,
                "controls": 3,
                "held_out": 97,
                "canaries": 0,
            },
            # 13 of 64 pixels. The paper's formula gives radius 1 at this size, five pixels that can hide in a stroke.
            "fingerprint": {"name": "disc", "params": {"radius": 2}},
            "score": {
                "network": {"name": "mlp", "params": {"hidden": 256, "depth": 3}},
                "sde": {"name": "vp", "params": {}},
                "prediction": "eps",
                "weighting": "simple",
                "training": {
                    "steps": 7000,
                    "batch_size": 64,
                    "learning_rate": 1e-3,
                    "warmup_steps": 100,
                    "schedule": "cosine",
                    "log_every": 250,
                    "checkpoint_every": 3500,
                    # Rules that split the state over devices, e.g. (".*: largest",); none keeps it whole on each.
                    "sharding": (),
                    # DP-SGD, off: set epsilon.
                    "privacy": {
                        "epsilon": 0.0,
                        "noise_multiplier": 0.0,
                        "delta": 1e-5,
                        "clip_norm": 1.0,
                        "relation": "replace-one",
                        "augmentations": 1,
                        "micro_batch": 32,
                    },
                },
            },
            "sampler": {"steps": 50, "kernel": "ancestral", "spacing": "uniform", "clip_x0": True},
            "detector": {
                "network": {"channels": 16, "max_channels": 32},
                "training": {
                    "steps": 800,
                    "batch_size": 64,
                    "learning_rate": 2e-3,
                    "warmup_steps": 50,
                    "schedule": "cosine",
                    "ema_decay": 0.99,
                    "log_every": 200,
                    "checkpoint_every": 400,
                },
                "false_positive_rate": 1e-4,
                "negatives": 10000,
                "positives": 512,
                "positive_time": 0.04,
                "most_fingerprints": 2,
                "perturbation": {"noise": 0.05, "smooth": 0.1, "contrast": 0.1},
                "identity": "classifier",
            },
            "audit": {
                "samples": {"careless": 4096, "careful": 30000},
                "h_levels": 50,
                "h_draws": 32,
                "gamma": 0.05,
                "subspace_draws": 1024,
                "subspace_max_draws": 8192,
                "level": 0.95,
                "chunk": 0,
                "memory_gb": 2.0,
                "likelihood_records": 32,
                "estimators": (),
                # Likelihood is left to its own stage; it costs more than all of these.
                "baselines": (
                    "loss",
                    "pia",
                    "secmi",
                    "authpct",
                    "copy_ratio",
                    "extraction",
                    "frechet_gap",
                    "flipd",
                ),
                # Ranks all training records; top = 12 takes a closer look at the first 12.
                "screen": {"top": 0, "finalists": 8, "levels": 10, "draws": 4, "gamma_upper": 0.5},
                "flow_draws": 512,
                "deterministic": "ode_hutchinson",
                "pairs": 4096,
                "splitting": {"particles": 500, "moves": 10, "share": 0.1, "max_levels": 12, "replicas": 16},
            },
            # The digits are public: their pictures may be shown.
            "report": {"show_private": True},
            "outputs": {"wandb": "", "grid_every": 0, "grid_images": 16, "png": 0},
            "profile": 0,
        }
    ).lock()
