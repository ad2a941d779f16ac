"""The timed audit: both sides state the same of a memoriser, faults are refused, the network is computed."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import audit, audit_setting, pairs
from benchmarks.audit_setting import Setting, Statement

SMALL = Setting(records=4, leaked=2, atoms=16, shape=(4, 4, 1), steps=20, images=400, gamma=0.2, gamma_upper=0.6)
PAIR = dataclasses.replace(
    pairs.AUDIT, shape=SMALL.shape, channels=8, channel_mult=(1,), attention_levels=(), head_channels=8
)


@pytest.fixture(scope="module")
def truth() -> audit_setting.Truth:
    return audit.truth(SMALL)


def test_equal_widths_are_those_of_the_paper() -> None:
    """16 draws without a hit say h <= .378 at 5 % over 100 levels; 46 of 50,000 have limits a factor of 1.82 apart."""
    low, high = audit_setting.grid_brackets(np.repeat([16, 8, 0], [40, 10, 50])[None], 16, 0.05, 0.5, 0.05)
    assert (int(low[0]), int(high[0])) == (50, 51)
    assert audit_setting.grid_brackets(np.zeros((1, 100), int), 16, 0.05, 0.37, 0.05)[1][0] == 101
    assert audit_setting.ONE.log_width == pytest.approx(np.log(1.82), abs=0.01)
    assert audit_setting.ONE.grid_calls() == 80_800
    assert audit_setting.MANY.count_calls == 5_000_000


def test_atoms_are_an_orbit_and_come_first() -> None:
    points, atoms = SMALL.points()
    flat = points.reshape(len(points), -1)
    held = flat[atoms]
    assert len(np.unique(atoms)) == SMALL.atoms
    assert set(range(SMALL.leaked)) <= set(atoms.tolist())
    assert not set(range(SMALL.leaked, SMALL.records)) & set(atoms.tolist())
    far = np.sort(np.linalg.norm(held[:, None] - held[None], axis=2), axis=1)
    np.testing.assert_allclose(far, far[:1].repeat(SMALL.atoms, axis=0), atol=1e-3)
    assert far[0, 1] > 1


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_the_audit_states_the_truth_and_faults_are_refused(truth) -> None:
    said, calls = audit.Audit(SMALL, audit.score(SMALL, None), 1, 64)()
    audit_setting.check_brackets(SMALL, said, truth, max(1, truth.width))
    audit_setting.check_rates(SMALL, said, SMALL.log_width)
    assert set(calls["paths"]) == set(said.rates) == {0, 1}
    wrong = {
        "wider than 1": dataclasses.replace(said, upper=said.upper + 1),
        "h is at most": dataclasses.replace(said, lower=said.lower * 0 + 20 * (said.lower > 0), upper=said.upper + 20),
        "h is at least": dataclasses.replace(said, lower=said.lower * 0, upper=said.upper * 0 + 1),
        "held out": dataclasses.replace(said, lower=np.maximum(said.lower, 1)),
    }
    for says, statement in wrong.items():
        width = 1 if says == "wider than 1" else None
        with pytest.raises(ValueError, match=says):
            audit_setting.check_brackets(SMALL, statement, truth, width)
    rates = said.rates
    for says, other, width in (
        ("outside", {**rates, 1: (0.1, 0.2)}, None),
        ("outside None", {0: rates[0]}, None),
        ("wider than", {**rates, 0: (0.0, 1.0)}, SMALL.log_width),
        ("held out", {**rates, 3: (0.01, 0.1)}, None),
    ):
        with pytest.raises(ValueError, match=says):
            audit_setting.check_rates(SMALL, dataclasses.replace(said, rates=other), width)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_the_network_changes_nothing_and_is_computed() -> None:
    with_it, without = audit.score(SMALL, PAIR), audit.score(SMALL, None)
    x = jax.random.normal(jax.random.key(3), (4, *SMALL.shape))
    t = jnp.linspace(0.01, 1.0, 4)

    def cost(score: jax.tree_util.Partial) -> float:
        return jax.jit(lambda score, x, t: score(x, t)).lower(score, x, t).compile().cost_analysis()["flops"]

    network = with_it.args[1]
    alone = jax.jit(network)(x, t)
    assert float(jnp.std(alone)) > 0.1
    # Two programs, whose sums the compiler may order differently; the network itself is of the order of 1.
    np.testing.assert_allclose(jax.jit(with_it)(x, t), jax.jit(without)(x, t), rtol=5e-5)
    assert cost(with_it) > cost(without) + 0.95 * cost(network)


@pytest.mark.slow
def test_the_peer_states_the_same(truth) -> None:
    """Hits at every level and counts against the truth; a right peer falls once in 10,000 seeds at each of the two."""
    pytest.importorskip("torch", reason="the peer; see benchmarks/requirements.txt")
    pytest.importorskip("diffusers", reason="the peer; see benchmarks/requirements.txt")
    import torch

    from benchmarks.peers import audit as peers

    peer = peers.Peer(SMALL, PAIR, torch.contiguous_format)
    parts = peers.groups(SMALL, 80)
    assert sorted(itertools.chain(*parts)) == list(range(1, SMALL.steps + 1))
    share = list(itertools.chain(*peers.middle(SMALL, 80)))
    assert SMALL.grid_calls(np.array(share)) * len(parts) == 2 * SMALL.grid_calls()
    hits = np.concatenate([peer.grid(range(SMALL.records), part) for part in parts], axis=1)
    counted = peer.count(SMALL.images)
    said: Statement = audit_setting.grid_statement(SMALL, hits, counted)
    audit_setting.check_brackets(SMALL, said, truth)
    for row in hits[: SMALL.leaked]:
        tail = np.minimum(
            stats.binom.cdf(row, SMALL.draws, truth.upper), stats.binom.sf(row - 1, SMALL.draws, truth.lower)
        )
        assert tail.min() > 1e-4 / (2 * SMALL.steps * SMALL.leaked)
    assert counted[SMALL.leaked :].sum() == 0
    assert stats.binomtest(int(counted[: SMALL.leaked].sum()), SMALL.images, SMALL.leaked / SMALL.atoms).pvalue > 1e-4
