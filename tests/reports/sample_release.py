"""A made-up but realistic release and its arrays: numbers as the digits job would give them."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_privacy.anonymity import counterfactual, summary
from diffusion_privacy.audits.baselines import HIGHER, Row
from diffusion_privacy.reports import schema
from diffusion_privacy.reports import screening as screening_entries
from diffusion_privacy.reports.arrays import Listed, ModelArrays, Regenerated
from diffusion_privacy.reports.baselines import entry
from diffusion_privacy.types import Estimate

LEVELS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
HEIGHT = WIDTH = 8


def curve(scale: float, draws: int = 64) -> dict[str, Any]:
    value = [round(draws / (1 + np.exp((t - scale) / 0.06))) / draws if scale > 0 else 0.0 for t in LEVELS]
    spread = [2 * (v * (1 - v) / draws) ** 0.5 + 3 / draws for v in value]
    return {
        "t": list(LEVELS),
        "draws": [draws] * len(LEVELS),
        "hits": [round(v * draws) for v in value],
        "value": value,
        "lower": [max(0.0, v - s) for v, s in zip(value, spread, strict=True)],
        "upper": [min(1.0, v + s) for v, s in zip(value, spread, strict=True)],
        "level": 0.95,
    }


def t_prime(paper: float | None, statistical: float | None, censored: str | None) -> dict[str, Any]:
    return {
        "paper": {"value": paper, "draws": 16, "levels": 100},
        "statistical": {
            "value": statistical,
            "censored": censored,
            "gamma": 0.02,
            "level": 0.95,
            "comparisons": len(LEVELS),
        },
    }


def direct(value: float, lower: float, upper: float, hits: int, n: int) -> dict[str, Any]:
    return {
        "value": value,
        "lower": lower,
        "upper": upper,
        "level": 0.95,
        "n": n,
        "hits": hits,
        "ess": float(hits),
        "reliable": True,
        "network_calls": n * 100,
        "method": "direct",
        "reasons": [],
    }


def subspace(value: float, lower: float, upper: float, hits: int, k: float | None, reliable: bool) -> dict[str, Any]:
    return {
        **direct(value, lower, upper, hits, 512),
        "method": "subspace",
        "ess": 0.31 * hits,
        "reliable": reliable,
        "reasons": [] if reliable else ["the weights have a heavy tail (Pareto k above 0.7)"],
        "pareto_k": k,
        "max_weight_share": 0.04 if hits else None,
        "log_value": float(np.log(value)) if value else None,
        "log_stderr": 0.11 if hits else None,
    }


def verdict(status: str, lower: float, estimate: float, upper: float, bound: float, sentence: str) -> dict[str, Any]:
    return {
        "status": status,
        "bound": bound,
        "lower": lower,
        "estimate": estimate,
        "upper": upper,
        "level": 0.95,
        "sentence": sentence,
        "assumes": ["The detector's error rates on held-out generations hold for the images drawn."],
        "samples_needed": 61_000 if status == "not certified" else None,
        "more_samples": "certify without a hit" if status == "not certified" else None,
    }


def estimators() -> list[dict[str, Any]]:
    found = Estimate("betting", float(np.log(0.01)), np.inf, 0.004, 1.0, 0.95, 512, 100.0, True, 51_200)
    flow = Estimate("change of variables", -np.inf, np.inf, 0.0, 0.31, 0.95, 512, 0.0, False, 10**6, ("no hit",))
    only_with, only_without = np.arange(500) < 2, np.arange(500) >= 490
    pair = counterfactual.paired(only_with, only_without, steps=100)
    return [dict(schema.estimator_entry(summary.row(e))) for e in (found, flow, pair)]


def baselines() -> list[dict[str, Any]]:
    unit, scale = "probability; 0.5 is chance", HIGHER
    found = Row("loss: AUC", 0.61, 0.552, 0.6649, 0.95, unit, scale, 161, ("64 members, 97 non-members",))
    few = Row("loss: TPR at 0.1 % FPR", None, None, None, 0.95, "share of members", scale, 161, ("too few <records>",))
    return [dict(entry(row)) for row in (found, few)]


def screening() -> dict[str, Any]:
    """Two records: a finalist that leaks, and one that was dropped."""
    bracket = {"lower": 0.3, "upper": 0.34, "censored": None, "finished": True, "network_calls": 5_120}
    none = {"lower": None, "upper": 0.02, "censored": "below", "finished": True, "network_calls": 640}
    held = {"value": 1.0, "lower": 0.9832, "upper": 1.0, "level": 0.9875, "n": 512}
    shared = {"label": 3, "stderr": 0.04, "radius": 1.4, "copies_inside": held, "reasons": []}
    first = {
        **shared, "rank": 1, "index": 12, "score": 2.04, "p_value": 0.0099, "t_prime": bracket, "dropped_at": None,
        "direct": direct(0.0153, 0.01386, 0.0179, 459, 30_000), "network_calls": 61_120,
        "subspace": subspace(0.0149, 0.0121, 0.0184, 480, 0.41, True),
    }  # fmt: skip
    second = {
        **shared, "radius": 0.02,
        "copies_inside": {"value": 0.0, "lower": 0.0, "upper": 0.011, "level": 0.9875, "n": 512},
        "reasons": ["the ball holds none of 512 perturbed copies: it would miss a copy, and bounds nothing"],
        "rank": 2, "index": 77, "score": 19.1, "p_value": 0.41, "t_prime": none, "dropped_at": 1,
        "direct": direct(0.0, 0.0, 1.0, 0, 30_000), "network_calls": 13_440, "subspace": None,
    }  # fmt: skip
    return {
        "records": 64,
        "held_out": 100,
        "times": [0.06, 0.2, 0.6],
        "draws": 4,
        "level": 0.95,
        "gamma": 0.05,
        "gamma_upper": 0.5,
        "detector": screening_entries.DETECTOR,
        "network_calls": {"ranking": 1_968, "t_prime": 5_760, "subspace": 76_800},
        "listed": [first, second],
        "assumes": list(screening_entries.ASSUMES),
    }


def record(role: str, index: int, **parts: Any) -> dict[str, Any]:
    disc = {"kind": "disc", "radius": 1, "centre": [5, 2], "level": 0.0}
    return {"role": role, "index": index, "label": index % 10, "fingerprint": disc, "estimators": estimators(), **parts}


def controls(n: int, bound: float, kind: str) -> list[dict[str, Any]]:
    upper = 1.3e-4
    clean = "It is not drawn more often than the bound."
    made = []
    for i, index in enumerate((1711, 1725, 1790)):
        made.append(
            record(
                "control",
                index,
                t_prime=t_prime(0.12 if i == 1 else None, None, "below"),
                h_curve=curve(0.0 if i != 1 else 0.05),
                direct=direct(0.0, 0.0, upper, 0, n),
                subspace=subspace(0.0, 0.0, 3e-4, 0, None, False) if kind == "careless" else None,
                verdict=verdict("no leak above bound", 0.0, 0.0, upper, bound, clean),
            )
        )
    return made


def model(name: str, n_train: int, private: dict[str, Any]) -> dict[str, Any]:
    n = 30_000
    return {
        "n_train": n_train,
        "epochs": 3000.0 if name == "careless" else 110.0,
        "steps": 3000,
        "memoriser_rate": 1 / n_train,
        "training_curve": {
            "metric": "denoising loss",
            "unit": "squared error per pixel",
            "points": 60,
            "first": 0.98,
            "last": 0.012 if name == "careless" else 0.094,
            "lowest": 0.011 if name == "careless" else 0.093,
        },
        "sampler": {"name": "ancestral", "steps": 100, "eta": 1.0},
        "n_samples": n,
        "expected_if_memorised": n / n_train,
        "detector": {
            "false_positive_rate": {"value": 2e-4, "lower": 4.1e-5, "upper": 5.9e-4, "level": 0.95, "n": 15_000},
            "true_positive_rate": {"value": 0.963, "lower": 0.941, "upper": 0.978, "level": 0.95, "n": 512},
            "thresholds": {"fingerprint": 1.873, "identity": 0.4421},
        },
        "records": [private, *controls(n, 1 / n_train, name)],
        "baselines": baselines(),
        "screening": screening() if name == "careless" else None,
    }


def make_release() -> dict[str, Any]:
    leak = record(
        "private",
        12,
        t_prime=t_prime(0.94, 0.9, None),
        h_curve=curve(0.8),
        direct=direct(0.0153, 0.01386, 0.0179, 459, 30_000),
        subspace=subspace(0.0149, 0.0121, 0.0184, 480, 0.41, True),
        verdict=verdict(
            "leaks", 0.01386, 0.0153, 0.0179, 1 / 64, "The record is drawn as often as a memoriser would draw it."
        ),
    )
    clean = record(
        "private",
        12,
        t_prime=t_prime(0.31, 0.2, None),
        h_curve=curve(0.22),
        direct=direct(0.0, 0.0, 1.31e-4, 0, 30_000),
        subspace=subspace(3.2e-9, 1.1e-11, 9.4e-7, 22, 0.86, False),
        verdict=verdict(
            "no leak above bound", 0.0, 3.2e-9, 1.31e-4, 1 / 1697, "It is drawn at most a fifth as often as 1/n."
        ),
    )
    return {
        "schema_version": "1.0",
        "program": {"name": "diffusion_privacy", "version": "0.1.0"},
        "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
        "device": {"platform": "cpu", "kind": "x86_64", "count": 2},
        "seed": 0,
        "config": {
            "data": {"source": "digits"},
            "fingerprint": {"kind": "disc", "level": 0.0},
            "training": {"steps": 3000, "batch_size": 64, "learning_rate": 1e-3, "ema_decay": 0.999},
            "audit": {"samples": 30_000, "levels": list(LEVELS)},
        },
        "config_hash": "9b1c63c0f2a3c1d87f4bb8d5f0e1a2b3",
        "question": "How often does a released model draw private record 12 of the digits, recognisable by its mark?",
        "answer": "The careless model gives the record back in 139 to 179 of 10,000 images (95 % confidence), a leak; "
        "for the careful model the rate is at most 1.4 in 10,000, below the 5.9 of a memoriser.",
        "limits": ["The digits are public; the record stands in for a private one."],
        "data": {"source": "digits", "n": 1797, "shape": [HEIGHT, WIDTH, 1], "held_out": 100},
        "models": {"careless": model("careless", 64, leak), "careful": model("careful", 1697, clean)},
        "timings": {
            "train careless": {"compile_s": 6.2, "run_s": 71.0},
            "train careful": {"compile_s": None, "run_s": 70.4},
            "sample": {"compile_s": 4.1, "run_s": 140.2},
            "audit": {"compile_s": 8.8, "run_s": 61.7},
        },
    }


def make_arrays(seed: int = 0, images: np.ndarray | None = None) -> ModelArrays:
    """Arrays of one model. ``images`` [n, 8, 8, 1] stands in for the data; noise in [-1, 1] by default."""
    rng = np.random.default_rng(seed)
    if images is None:
        images = rng.uniform(-1, 1, (40, HEIGHT, WIDTH, 1))
    images = images.astype(np.float32)
    levels, draws = np.array(LEVELS), 8
    private = images[0].copy()
    private[1:4, 4:7] = 0.0
    noise = rng.normal(0, 1, (len(levels), draws, HEIGHT, WIDTH, 1)) * levels[:, None, None, None, None] ** 2
    steps = np.arange(50, 3001, 50)
    nearest = images[1:17]
    return ModelArrays(
        samples=(nearest + rng.normal(0, 0.1 + 0.1 * seed, nearest.shape)).astype(np.float32),
        nearest=nearest,
        distances=np.sqrt(rng.uniform(0.2, 4, 16)),
        regenerated={
            "private": Regenerated(levels, (private + noise).astype(np.float32), rng.random((11, 8)) > levels[:, None]),
            "control": Regenerated(levels, (images[20] + noise).astype(np.float32), np.zeros((11, 8), bool)),
        },
        private_image=private,
        private_original=images[0],
        control_images=images[20:23],
        steps=steps,
        loss=0.02 + 0.9 * np.exp(-steps / (400.0 + 500 * seed)) + 0.004 * rng.random(len(steps)),
        listed=Listed(images[:2], images[:2] + np.float32(0.1 * seed), np.array([0.8, 3.1]), np.array([True, False])),
    )
