"""Private training and the ledger: paid once, before the first step; released only with the entry to show for it."""

from __future__ import annotations

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.ledger import Entry, Ledger, value_hashes
from diffusion_privacy.stages import dp_training
from diffusion_privacy.training.checkpoint import Checkpoints
from diffusion_privacy.training.privacy import Privacy, make_plan
from diffusion_privacy.training.state import TrainConfig, TrainState

dp_accounting = pytest.importorskip("dp_accounting")

HASHES = value_hashes(np.arange(40.0)[:, None])
CONFIG = TrainConfig(steps=20, batch_size=10, privacy=Privacy(noise_multiplier=12.0, delta=1e-4))
PLAN = make_plan(CONFIG.privacy, records=40, batch_size=10, steps=20)


def trained(folder, plan=PLAN):
    """The checkpoint that a run leaves; of one that was not private for ``plan = None``."""
    zero = jnp.zeros((), jnp.int32)
    with Checkpoints(folder, {}, keep=1) as checkpoints:
        progress = {} if plan is None else {"privacy": {**plan.to_json(), "steps_done": 20, "epsilon_so_far": 1.0}}
        checkpoints.save(TrainState(zero, {"w": zero}, {"w": zero}, {"m": zero}), progress)
        checkpoints.wait()


def test_a_run_pays_once_and_another_one_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 100.0, 1e-4)
    first = dp_training.pay(ledger, tmp_path / "a", "train flow", CONFIG, HASHES)
    assert dp_training.pay(ledger, tmp_path / "a", "train flow", CONFIG, HASHES) == first
    assert len(ledger.entries()) == 1
    # The claim is that of replacing a record, at the ledger's δ.
    assert ledger.total().account.epsilon == pytest.approx(PLAN.epsilon(), rel=1e-3)
    dp_training.pay(ledger, tmp_path / "b", "train flow", CONFIG, HASHES)
    assert len(ledger.entries()) == 2
    assert ledger.total().account.epsilon > 1.2 * PLAN.epsilon()


def test_a_run_that_costs_too_much_is_refused_before_it_begins(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 0.01, 1e-4)
    with pytest.raises(InputError, match=r"exhausted: 'train flow, DP-SGD, run .*' would bring ε to"):
        dp_training.pay(ledger, tmp_path / "a", "train flow", CONFIG, HASHES)
    assert not ledger.path.exists()


def test_only_what_was_paid_for_is_released(tmp_path):
    ledger, folder = Ledger(tmp_path / "ledger.jsonl", 100.0, 1e-4), tmp_path / "a"
    dp_training.pay(ledger, folder, "train flow", CONFIG, HASHES)
    trained(folder)
    spend = dp_training.require_paid(ledger, folder)
    assert spend == Spend(PLAN.event(), "add-or-remove-one")
    other = Ledger(tmp_path / "other.jsonl", 100.0, 1e-4)
    with pytest.raises(InputError, match=r"other\.jsonl: expected the entry 'train flow, DP-SGD, run"):
        dp_training.require_paid(other, folder)
    # Planted: the entry is there, with more noise than there was; another run's entry of the same event.
    cheaper = dataclasses.replace(PLAN, noise_multiplier=24.0)
    stage = json.loads((folder / "ledger_stage.json").read_text())["stage"]
    other.record(Entry(stage, dp_training.spend_of_plan(cheaper), HASHES))
    other.record(Entry("train flow, DP-SGD, run 00000000", spend, HASHES))
    with pytest.raises(InputError, match="expected the entry"):
        dp_training.require_paid(other, folder)


def test_a_model_that_was_not_trained_so_is_refused(tmp_path):
    trained(tmp_path / "a", plan=None)
    assert dp_training.spend_of(tmp_path / "a") is None
    with pytest.raises(InputError, match="was not trained with DP-SGD"):
        dp_training.require_paid(Ledger(tmp_path / "ledger.jsonl", 1.0, 1e-4), tmp_path / "a")


def test_sampled_training_composes_with_every_kind_of_release():
    training = dp_training.spend_of_plan(PLAN)
    alone = account([training], 1e-4).epsilon
    releases = {
        "pld": dp_accounting.GaussianDpEvent(4.0),
        "laplace": dp_accounting.LaplaceDpEvent(1.0),
        "basic": dp_accounting.ZCDpEvent(rho=0.05),
    }
    for name, event in releases.items():
        release = Spend(event, "replace-one")
        both, single = account([training, release], 1e-4), account([release], 1e-4).epsilon
        assert max(alone, single) < both.epsilon < math.inf
        assert both.method == ("basic" if name == "basic" else "pld")
    # Halving δ costs something: never less than the sum at the whole δ.
    assert account([training, Spend(releases["basic"], "replace-one")], 1e-4).epsilon >= alone + single
