"""Screening as the audit stage runs it, on a model that has memorised some of its training records by a closed form."""

from __future__ import annotations

import csv
import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from launching import changed_config
from oracles.atom_models import AtomScore

from diffusion_privacy import settings
from diffusion_privacy.anonymity import intervals, montecarlo
from diffusion_privacy.audits import nearness
from diffusion_privacy.errors import InputError
from diffusion_privacy.stages import audit_baselines, audit_screen
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.spaces import Space
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng

pytestmark = pytest.mark.lightly_compiled

KNOWN, TOP, DRAWN = 12, 16, 4096


def study_of(**changes):
    flags = {
        "split.careless": 48,
        "audit.screen.top": TOP,
        "audit.screen.finalists": KNOWN,
        "audit.chunk": 256,
        "audit.subspace_draws": 512,
        "audit.subspace_max_draws": 512,
    }
    return settings.parse(settings.Study, changed_config("digits", {**flags, **changes}))


def flat_score(sde, atoms, x, t):
    return AtomScore(sde)(atoms, x.reshape(len(x), -1), t).reshape(x.shape)


@pytest.mark.slow
def test_the_memorised_records_lead_the_list_and_their_limits_hold(tmp_path):
    """48 training records, of which the model knows 12: q = 1/12 for these and 0 for the others.

    Limits hold for the whole list at 95 %, in three families: three in twenty seeds may miss, this one does not.
    """
    study = study_of()
    workdir = Workdir(tmp_path, study)
    roles = common.load_roles(study, workdir)
    known = np.random.default_rng(0).choice(48, KNOWN, replace=False)
    sde = common.make_sde(study)
    chain = common.make_chain(study, sde)
    score = Partial(Partial(flat_score, sde), jnp.asarray(roles.train["careless"].image[known].reshape(KNOWN, -1)))
    samples = montecarlo.sample(chain, score, (8, 8, 1), DRAWN, rng.stream(0, "test"))
    entry, listed = audit_screen.screen(study, workdir, roles, chain, score, Space(), samples, "careless", 256)
    assert entry is not None
    assert listed is not None
    rows = entry["listed"]
    assert {row["index"] for row in rows[:KNOWN]} == set(roles.train["careless"].index[known].tolist())
    for row in rows[:KNOWN]:
        assert row["p_value"] == pytest.approx(1 / 101)
        assert row["t_prime"]["lower"] is not None
        assert row["subspace"] is not None
        for found in (row["direct"], row["subspace"]):
            assert found["lower"] <= 1 / KNOWN <= found["upper"]
    for row in rows[KNOWN:]:
        assert (row["subspace"], row["dropped_at"], row["direct"]["hits"]) == (None, 1, 0)
        assert row["t_prime"]["censored"] == "below"
    assert listed.hits[:KNOWN].all()
    assert not listed.hits[KNOWN:].any()
    np.testing.assert_allclose(listed.draws[:KNOWN], listed.records[:KNOWN], atol=0.2)
    spent = entry["network_calls"]
    assert sum(row["network_calls"] for row in rows) == spent["t_prime"] + spent["subspace"]
    assert spent["ranking"] == (48 + 100) * len(entry["times"]) * entry["draws"]
    with (tmp_path / "audit" / "careless_ranking.csv").open(newline="") as file:
        ranking = list(csv.DictReader(file))
    assert len(ranking) == 48
    assert [int(row["index"]) for row in ranking[:TOP]] == [row["index"] for row in rows]
    for row in rows:
        # A count of draws and one of copies share what a record may err: 5 % over 16 records and two counts.
        assert row["copies_inside"]["level"] == row["direct"]["level"] == pytest.approx(1 - 0.05 / TOP / 2)


@pytest.mark.slow
def test_a_near_copy_among_held_out_records_bounds_nothing_and_says_so(tmp_path):
    """The model draws one of 12 records; a held-out record that nearly equals the first makes its ball a point.

    Counted in that ball alone, the most that 4,096 draws show would be q < .002 for a record that is drawn once in
    12: the fault that the division by the copies held prevents. Limits are at 95 % for the list, one seed.
    """
    study = study_of()
    roles = common.load_roles(study, Workdir(tmp_path, study))
    train = np.array(roles.train["careless"].image)
    first = 7
    held = np.array(roles.held_out.image)
    held[0] = np.clip(train[first] + 1e-3, -1, 1)
    roles = dataclasses.replace(roles, held_out=roles.held_out.with_images(held))
    known = [first, *(i for i in range(KNOWN) if i != first)][:KNOWN]
    sde = common.make_sde(study)
    chain = common.make_chain(study, sde)
    score = Partial(Partial(flat_score, sde), jnp.asarray(train[known].reshape(KNOWN, -1)))
    samples = montecarlo.sample(chain, score, (8, 8, 1), DRAWN, rng.stream(0, "test"))
    workdir = Workdir(tmp_path, study)
    entry, _ = audit_screen.screen(study, workdir, roles, chain, score, Space(), samples, "careless", 256)
    assert entry is not None
    rows = {row["index"]: row for row in entry["listed"]}
    numbers = roles.train["careless"].index
    near = rows[int(numbers[first])]
    assert near["copies_inside"]["value"] == 0
    assert near["direct"]["upper"] == 1
    assert "bounds nothing" in near["reasons"][0]
    for i in known[1:]:
        other = rows[int(numbers[i])]
        assert other["copies_inside"]["lower"] > 0.9
        assert other["reasons"] == []
        assert other["direct"]["lower"] <= 1 / KNOWN <= other["direct"]["upper"]


def test_what_is_said_of_a_list_allows_for_all_of_it():
    """Counts of 20 records hold together, each with its count of copies; γ is above the false alarms of every ball."""
    setting = SimpleNamespace(study=SimpleNamespace(audit=SimpleNamespace(level=0.95)), top=[None] * 20)
    assert 1 - audit_screen._part_level(setting) == pytest.approx(0.05 / 20 / 2)
    wanted = SimpleNamespace(gamma=0.05, level=0.95, screen=SimpleNamespace(gamma_upper=0.1))
    alarms = [intervals.rate(hits, 39) for hits in (0, 2)]
    balls = [nearness.Balls(1.0, np.zeros(39), 1.0, one) for one in alarms]
    rule = audit_screen._rule(SimpleNamespace(audit=wanted), balls)
    assert (rule.gamma, rule.ceiling, rule.error) == (alarms[1].upper, alarms[1].upper, pytest.approx(0.05))
    wanted.screen.gamma_upper = 0.5
    assert audit_screen._rule(SimpleNamespace(audit=wanted), balls[:1]).ceiling == 0.5


def test_nothing_is_done_unless_asked(tmp_path):
    assert settings.Screen().top == 0
    study = study_of(**{"audit.screen.top": 0})
    roles = common.load_roles(study, Workdir(tmp_path, study))
    work = Workdir(tmp_path, study)
    found = audit_screen.screen(study, work, roles, None, None, Space(), None, "careless", 1)  # type: ignore[arg-type]
    assert found == (None, None)
    assert not (tmp_path / "audit").exists()


def test_held_out_records_that_were_seen_after_all_are_left_out(tmp_path):
    study = study_of()
    roles = common.load_roles(study, Workdir(tmp_path, study))
    copied = np.array(roles.held_out.image)
    copied[:3] = roles.train["careless"].image[5:8]
    images, numbers = audit_screen._never_seen(
        dataclasses.replace(roles, held_out=roles.held_out.with_images(copied)), "careless"
    )
    assert len(images) == len(numbers) == 97
    assert not set(roles.held_out.index[:3]) & set(numbers)
    copied[:90] = roles.train["careless"].image[0]
    roles = dataclasses.replace(roles, held_out=roles.held_out.with_images(copied))
    with pytest.raises(InputError, match=r"config\.audit\.screen: expected at least 19 held-out records"):
        audit_screen._never_seen(roles, "careless")


@pytest.mark.parametrize("seen", [0, 1])
def test_a_held_out_record_that_was_seen_after_all_hides_no_copies_from_the_baselines(tmp_path, monkeypatch, seen):
    """Every draw is a copy: one held-out record that equals a training record brought the share from 100 % to 0 %."""
    chosen = ("copy_ratio", "extraction", "one_run")
    study = study_of(**{"split.held_out": 150, "split.canaries": 8, "audit.baselines": chosen})
    workdir = Workdir(tmp_path, study)
    roles = common.load_roles(study, workdir)
    images = np.array(roles.held_out.image)
    images[:seen] = roles.train["careless"].image[5]
    roles = dataclasses.replace(roles, held_out=roles.held_out.with_images(images))
    monkeypatch.setattr(common, "load_classifiers", lambda workdir: {"identity": {"params": {"trunk": {}}}})
    drawn = {"images": np.repeat(roles.train["careless"].image, 10, axis=0)}
    score = Partial(lambda x, t: x)
    found = audit_baselines.rows(study, workdir, roles, score, Space(), drawn, "careless", 64)
    rows = {row["name"]: row for row in found}
    assert rows["copy_ratio"]["value"] == rows["extraction"]["value"] == 1
    said = [
        name
        for name, row in rows.items()
        if "held-out records that equal a training record, left out: 1" in row["notes"]
    ]
    assert said == ([] if not seen else ["copy_ratio", "extraction", "extraction: excess over held-out records"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audit.screen.top": -1}, r"config\.audit\.screen\.top: expected 0 or more, got -1"),
        ({"audit.screen.draws": 1}, r"config\.audit\.screen\.draws: expected 2 or more"),
        ({"audit.screen.gamma_upper": 1.0}, r"config\.audit\.screen\.gamma_upper"),
        ({"split.held_out": 10}, r"config\.audit\.screen: expected at least 19 held-out and control records"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(change, message):
    with pytest.raises(InputError, match=message):
        study_of(**change)
