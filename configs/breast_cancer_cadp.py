"""A private copy of the breast-cancer table that ships with scikit-learn (569 tumours, 31 columns), by CADP.

    python launch.py --config=configs/breast_cancer_cadp.py --workdir=runs/breast_cancer_cadp

The data: Wolberg, Mangasarian & Street, UCI repository 1995; licence CC BY 4.0. Nothing is to be fetched.
As in the paper, ``diagnosis`` conditions the flow and is published as it is: the guarantee is for the thirty
measurements of a tumour whose diagnosis is known. With --config.release.label_epsilon=2
--config.release.relation=replace-record-and-condition --config.release.total_epsilon=25 it is randomised instead.
Expect, in one to two minutes on two CPU cores, 79 to 93 % right diagnoses from a release or from the control (one draw
differs much from the next) and 97 % from the originals.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.CadpTable`."""
    return ConfigDict(
        {
            "kind": "cadp_table",
            "seed": 0,
            "data": {"source": "breast_cancer", "params": {}},
            "columns": {"apart": ("diagnosis",), "declared": (), "vouched": False, "ranges": {}, "noise": 0.1},
            "split": {"public": 0.5, "private": 0.3, "test": 0.2},
            "flow": {
                "params": {"dense_depth": 4, "dense_width": 16, "clamp": 1.5},
                "preprocess": "none",
                "reconstruction": 0.0,
                "perturbation": 0.0,
                "trained_on": "public",
                "training": {
                    "steps": 150,
                    "batch_size": 128,
                    "learning_rate": 2e-3,
                    "warmup_steps": 10,
                    "schedule": "cosine",
                    "weight_decay": 1e-2,
                    "ema_decay": 0.9,
                    "log_every": 25,
                    "checkpoint_every": 100,
                    # DP-SGD, off: set epsilon (and release.flow_training = "dp-sgd", flow.trained_on = "private").
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
            "release": {
                "relation": "replace-record-same-public-condition",
                "mechanism": "gaussian",
                "epsilons": (0.5, 1.0, 2.0, 4.0, 8.0),
                "delta": 1e-5,
                "rates": (),
                "total_epsilon": 12.0,
                "flow_training": "public",
                "records_per_person": 1,
                "coverage": 0.99,
                "coarse": 0,
                "label_epsilon": 0.0,
                "prior_matched": True,
                "ledger": "ledger.jsonl",
            },
            "evaluation": {
                "target": "diagnosis",
                "draws": 5,
                "cells": 10,
                "level": 0.95,
                "dp_steps": 20,
                "dp_clip": 1.0,
                "dp_learning_rate": 0.5,
            },
            "attack": {
                "records": 0,
                "study_epsilons": (16.0, 64.0, 256.0, 1024.0),
                "trials": 4_000_000,
                "tightness": 0.8,
                "trial_dim": 2,
                "confidence": 0.99,
                "level": 0.95,
                "release_repeats": 100,
            },
            "report": {"show_private": False},
            "outputs": {"wandb": "", "grid_every": 0, "grid_images": 16, "png": 0},
            "profile": 0,
        }
    ).lock()
