"""Private training and the ledger: each secret pays once, before the first step; no release without its entry."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.data import sources
from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.ledger import Entry, Ledger, value_hashes
from diffusion_privacy.stages import dp_training
from diffusion_privacy.training import loop
from diffusion_privacy.training.checkpoint import Checkpoints, has_checkpoint
from diffusion_privacy.training.privacy import Privacy, make_plan
from diffusion_privacy.training.secret import FILE
from diffusion_privacy.training.state import TrainConfig, TrainState

dp_accounting = pytest.importorskip("dp_accounting")

HASHES = value_hashes(np.arange(40.0)[:, None])
CONFIG = TrainConfig(steps=20, batch_size=10, privacy=Privacy(noise_multiplier=12.0, delta=1e-4))
PLAN = make_plan(CONFIG.privacy, records=40, batch_size=10, steps=20)


SECRETS = ("a" * 32, "b" * 32)


def trained(folder, plan=PLAN, secret=SECRETS[0]):
    """The checkpoint that a run leaves; of one that was not private for ``plan = None``."""
    zero = jnp.zeros((), jnp.int32)
    with Checkpoints(folder, {}, keep=1) as checkpoints:
        spent = {"steps_done": 20, "epsilon_so_far": 1.0, "secret_fingerprint": secret}
        progress = {} if plan is None else {"privacy": {**plan.to_json(), **spent}}
        checkpoints.save(TrainState(zero, {"w": zero}, {"w": zero}, {"m": zero}), progress)
        checkpoints.wait()


def pay(ledger, folder, secret=SECRETS[0], plan=PLAN):
    dp_training.payment(ledger, "train flow", HASHES)(folder, plan, secret)


def test_a_secret_pays_once_and_another_one_again(tmp_path):
    ledger, folder = Ledger(tmp_path / "ledger.jsonl", 100.0, 1e-4), tmp_path / "a"
    for _ in range(2):
        pay(ledger, folder)
    assert [entry.stage for entry in ledger.entries()] == ["train flow, DP-SGD, run aaaaaaaaaaaaaaaa"]
    # The claim is that of replacing a record, at the ledger's δ.
    assert ledger.total().account.epsilon == pytest.approx(PLAN.epsilon(), rel=1e-3)
    # In the same folder: the note that is left there is no receipt for it.
    pay(ledger, folder, SECRETS[1])
    assert dp_training.stage_of(folder) == "train flow, DP-SGD, run bbbbbbbbbbbbbbbb"
    assert len(ledger.entries()) == 2
    assert ledger.total().account.epsilon > 1.2 * PLAN.epsilon()
    # A moved workdir is the same run; another plan under its name is not what was paid for.
    pay(ledger, tmp_path / "b")
    assert len(ledger.entries()) == 2
    pay(ledger, folder, plan=dataclasses.replace(PLAN, noise_multiplier=11.0))
    assert len(ledger.entries()) == 3


def test_a_run_that_costs_too_much_is_refused_before_it_begins(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 0.01, 1e-4)
    with pytest.raises(InputError, match=r"exhausted: 'train flow, DP-SGD, run .*' would bring ε to"):
        pay(ledger, tmp_path / "a")
    assert not ledger.path.exists()
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="expected one hash for each of 40 records, got 39"):
        dp_training.payment(ledger, "train flow", HASHES[1:])(tmp_path / "a", PLAN, SECRETS[0])


def test_only_what_was_paid_for_is_released(tmp_path):
    ledger, folder = Ledger(tmp_path / "ledger.jsonl", 100.0, 1e-4), tmp_path / "a"
    pay(ledger, folder)
    trained(folder)
    spend = dp_training.require_paid(ledger, folder)
    assert spend == Spend(PLAN.event(), "add-or-remove-one")
    assert dp_training.goes_on(ledger, folder)
    other = Ledger(tmp_path / "other.jsonl", 100.0, 1e-4)
    with pytest.raises(InputError, match=r"other\.jsonl: expected the entry 'train flow, DP-SGD, run"):
        dp_training.require_paid(other, folder)
    assert not dp_training.goes_on(other, folder)
    # Planted: the entry is there, with more noise than there was; another run's entry of the same event.
    cheaper = dataclasses.replace(PLAN, noise_multiplier=24.0)
    stage = json.loads((folder / "ledger_stage.json").read_text())["stage"]
    other.record(Entry(stage, dp_training.spend_of_plan(cheaper), HASHES))
    other.record(Entry("train flow, DP-SGD, run 00000000", spend, HASHES))
    with pytest.raises(InputError, match="expected the entry"):
        dp_training.require_paid(other, folder)
    # Planted: trained again in the folder that was paid for, with a secret that was not.
    shutil.rmtree(folder / "checkpoints")
    assert not dp_training.goes_on(ledger, folder)
    trained(folder, secret=SECRETS[1])
    with pytest.raises(
        InputError, match=r"ledger\.jsonl: .* is of a run with another secret than the model's"
    ) as caught:
        dp_training.require_paid(ledger, folder)
    assert "\n" not in str(caught.value)


def test_a_note_of_an_earlier_version_is_no_receipt(tmp_path):
    """It was one for a folder, however many runs that saw."""
    ledger, folder = Ledger(tmp_path / "ledger.jsonl", 100.0, 1e-4), tmp_path / "a"
    trained(folder)
    ledger.record(Entry("train flow, DP-SGD, run 01234567", dp_training.spend_of_plan(PLAN), HASHES))
    (folder / "ledger_stage.json").write_text(json.dumps({"stage": "train flow, DP-SGD, run 01234567"}))
    with pytest.raises(InputError, match=r"run 01234567' .* entered by an earlier version, .* without its done\.json"):
        dp_training.require_paid(ledger, folder)
    assert not dp_training.goes_on(ledger, folder)
    pay(ledger, folder)
    assert len(ledger.entries()) == 2
    assert dp_training.require_paid(ledger, folder) == dp_training.spend_of_plan(PLAN)
    (folder / "ledger_stage.json").write_text("[]")
    with pytest.raises(InputError, match=r"ledger_stage\.json: expected the name of this run in the ledger"):
        dp_training.require_paid(ledger, folder)


# --- by the loop ------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(step, row):
    raise Interrupted


@dataclasses.dataclass(frozen=True)
class Scale:
    """One number, pulled by the mean grey level."""

    def init(self, key, batch):
        return {"w": jnp.zeros(3)}

    def loss(self, params, batch, key):
        return jnp.mean(batch["image"], axis=(1, 2, 3)) * jnp.sum(params["w"]), {}

    def evaluate(self, params, batch, key):
        return {}


def run(ledger, folder, on_log=None, **changes):
    config = dataclasses.replace(CONFIG, log_every=10, checkpoint_every=4, tensorboard=False, **changes)
    batches = Batches(sources.load("digits", limit=40), 10, 0)
    paid = dp_training.payment(ledger, "train toy", HASHES)
    return loop.train(Scale(), batches, config, workdir=folder, seed=0, name="toy", on_log=on_log, pay=paid)


def epsilon(ledger):
    return ledger.total().account.epsilon


def test_a_run_that_goes_on_pays_once_and_one_that_is_repeated_again(tmp_path):
    ledger, folder = Ledger(tmp_path / "ledger.jsonl", 3 * PLAN.epsilon(), 1e-4), tmp_path / "toy"
    with pytest.raises(Interrupted):
        run(ledger, folder, interrupt)
    first = dp_training.stage_of(folder)
    for _ in range(2):  # it goes on; it is finished
        run(ledger, folder)
    assert [entry.stage for entry in ledger.entries()] == [first]
    assert dp_training.require_paid(ledger, folder) == dp_training.spend_of_plan(PLAN)
    # Repeated: other noise on the same records. Nothing but the secret tells it from the first.
    shutil.rmtree(folder / "checkpoints")
    run(ledger, folder)
    second = dp_training.stage_of(folder)
    assert second != first
    assert [entry.stage for entry in ledger.entries()] == [first, second]
    assert epsilon(ledger) > 1.2 * PLAN.epsilon()
    dp_training.require_paid(ledger, folder)


def test_a_repetition_that_the_budget_does_not_allow_is_refused_before_it_begins(tmp_path):
    ledger, folder = Ledger(tmp_path / "ledger.jsonl", 1.1 * PLAN.epsilon(), 1e-4), tmp_path / "toy"
    run(ledger, folder)
    kept = ledger.path.read_text()
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(InputError, match=r"ledger\.jsonl: exhausted: 'train toy, DP-SGD, run"):
        run(ledger, folder)
    assert not has_checkpoint(folder)
    assert ledger.path.read_text() == kept


def test_a_kept_secret_with_other_settings_is_another_run(tmp_path):
    """Interrupted, its checkpoints deleted: the file of the secret stays, and is good for one run alone."""
    ledger, folder = Ledger(tmp_path / "ledger.jsonl", 100.0, 1e-4), tmp_path / "toy"
    for changes, entries in (({}, 1), ({}, 1), ({"learning_rate": 1e-3}, 2)):
        with pytest.raises(Interrupted):
            run(ledger, folder, interrupt, **changes)
        assert (folder / FILE).exists()
        shutil.rmtree(folder / "checkpoints")
        assert len(ledger.entries()) == entries


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
    # ε and δ of both add up, so that each is read at half of δ: more than the sum at the whole of it.
    release = Spend(releases["basic"], "replace-one")
    halves = math.fsum(account([part], 5e-5).epsilon for part in (training, release))
    assert account([training, release], 1e-4).epsilon == pytest.approx(halves, rel=1e-9)
    assert halves > alone + single
