"""May this be given away? Four ways to share the same private digits, side by side (scikit-learn's, 1,797 images, 8x8).

    python launch.py --config=configs/digits_release.py --workdir=runs/digits_release

144 private records, one of them with a planted grey disc, are shared as a score model trained on them as they are, as
one trained with DP-SGD, as a private copy of the data set (CADP), and as a score model trained on that copy. The report
holds the usefulness of each against how often it gives the marked record back, and against what can be promised.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_joined.Joined`."""
    score_training = {
        "steps": 7000,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
        "grad_clip_norm": 0.0,
        "log_every": 500,
        "checkpoint_every": 3500,
    }
    return ConfigDict(
        {
            "kind": "joined",
            "seed": 0,
            "data": {"source": "digits", "params": {}},
            "split": {"public": 0.3, "private": 0.08, "test": 0.62},
            "marks": {"private": 1, "controls": 3},
            # 13 of 64 pixels, as in configs/digits.py.
            "fingerprint": {"name": "disc", "params": {"radius": 2}},
            "flow": {
                "params": {
                    "depths": (2, 2),
                    "conv_width": 16,
                    "dense_depth": 2,
                    "dense_width": 48,
                    "clamp": 1.5,
                    "scan": True,
                },
                "preprocess": "affine",
                "logit_alpha": 0.05,
                "reconstruction": 0.0,
                "perturbation": 0.0,
                "trained_on": "public",
                "training": {
                    "steps": 400,
                    "batch_size": 128,
                    "learning_rate": 3e-3,
                    "warmup_steps": 50,
                    "schedule": "cosine",
                    "weight_decay": 1.0,
                    "ema_decay": 0.98,
                    "log_every": 50,
                    "checkpoint_every": 200,
                },
            },
            "release": {
                "relation": "replace-record-same-public-condition",
                "mechanism": "gaussian",
                "epsilons": (1.0,),
                "delta": 1e-5,
                # DP-SGD and the copy together.
                "total_epsilon": 10.0,
                "flow_training": "public",
                "records_per_person": 1,
                "coverage": 0.99,
                "coarse": 0,
                "label_epsilon": 0.0,
                "prior_matched": True,
                "ledger": "ledger.jsonl",
            },
            "score": {
                "network": {"name": "mlp", "params": {"hidden": 128, "depth": 3}},
                "sde": {"name": "vp", "params": {}},
                "prediction": "eps",
                "weighting": "simple",
                "training": score_training,
            },
            "private_training": {
                **score_training,
                "steps": 200,
                "batch_size": 72,
                "learning_rate": 2e-3,
                "warmup_steps": 0,
                "ema_decay": 0.95,
                "log_every": 50,
                "checkpoint_every": 200,
                "privacy": {
                    "epsilon": 8.0,
                    "noise_multiplier": 0.0,
                    "delta": 1e-5,
                    "clip_norm": 1.0,
                    "relation": "replace-one",
                    "augmentations": 4,
                    "micro_batch": 32,
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
            "evaluation": {
                "training": {
                    "steps": 600,
                    "batch_size": 64,
                    "learning_rate": 2e-3,
                    "warmup_steps": 20,
                    "schedule": "cosine",
                    "weight_decay": 1e-2,
                    "grad_clip_norm": 0.0,
                    "ema_decay": 0.99,
                    "log_every": 100,
                    "checkpoint_every": 300,
                },
                "seeds": 5,
                "hidden": 128,
                "level": 0.95,
            },
            "risk": {
                "samples": 10000,
                "evaluation_samples": 2000,
                "h_levels": 25,
                "h_draws": 32,
                "gamma": 0.05,
                "subspace_draws": 1024,
                "subspace_max_draws": 4096,
                "attack_records": 2000,
                "level": 0.95,
                "chunk": 0,
                "memory_gb": 2.0,
            },
            "certify": {"copies": 200, "copy_models": 12, "dp_models": 4, "samples": 1000},
            # The digits are public: their pictures may be shown.
            "report": {"show_private": True},
        }
    ).lock()
