"""Successive halving: the records that come back reach the final, and their intervals are from fresh draws."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from oracles import atom_models

from diffusion_privacy.anonymity import subspace
from diffusion_privacy.anonymity.halving import Ladder, successive_halving
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Estimate

KEY = jax.random.key(0)


def test_rungs_spend_about_the_same_and_end_at_the_finalists() -> None:
    assert Ladder(4).rungs(256) == [(256, 128), (64, 512), (16, 2048)]
    assert Ladder(4, keep=0.5, draws=100).rungs(9) == [(9, 100)]
    assert Ladder(4).rungs(4) == Ladder(4).rungs(2) == []


def test_values_out_of_range_are_named() -> None:
    for field, bad in {"keep": 1.0, "draws": 99, "final_draws": 10, "max_draws": 200, "level": 1.0}.items():
        with pytest.raises(InputError, match=f"halving.{field}"):
            Ladder(**{"finalists": 2, field: bad})
    with pytest.raises(InputError, match=r"halving\.finalists"):
        Ladder(0)


def test_finalists_share_the_error_and_get_draws_of_their_own(monkeypatch) -> None:
    """What the rungs and the final ask for, with estimates that fall with the record's number."""
    asked: list[tuple[bytes, float, int]] = []

    def estimate(chain, score, detect, records, mixtures, key, *, uids, draws, max_draws, level, chunk, mesh):
        asked.append((np.asarray(jax.random.key_data(key)).tobytes(), level, len(records)))
        found = [Estimate("subspace", -float(u), 0.1, 0.0, 1.0, level, draws, 100.0, True, draws) for u in uids]
        return [subspace.SubspaceResult(e, 0.1, 0.1, 10, m, (0.1,)) for e, m in zip(found, mixtures, strict=True)]

    monkeypatch.setattr(subspace, "estimate", estimate)
    mixture = subspace.Mixture((3,), (1.0,), (0.9,), 0.1)
    options = {"keep": 0.5, "draws": 100, "final_draws": 100, "max_draws": 100, "level": 0.9}

    def run(**more):
        ladder = Ladder(2, **options, **more)
        records = np.zeros((8, 2), np.float32)
        return successive_halving(Chain(VP(), 20), None, len, records, [mixture] * 8, KEY, ladder)

    np.testing.assert_array_equal(run().finalists, [0, 1])
    assert [count for _, _, count in asked] == [8, 4, 2]
    # Both finalists at 90 % together: 95 % each.
    assert asked[-1][1] == pytest.approx(0.95)
    assert len({key for key, _, _ in asked}) == 3
    run(simultaneous=False)
    assert asked[-1][1] == 0.9


@pytest.mark.slow
def test_atoms_beat_held_out_points_and_their_intervals_hold_the_truth(monkeypatch) -> None:
    """Three atoms of a memoriser among nine held-out points. By symmetry of the roots of unity q = 1/3 for each; the
    intervals hold with 99.9 % together."""
    turn = 2 * np.pi * np.arange(3) / 3
    atoms = np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32) * 3
    others = np.random.default_rng(0).normal(size=(9, 2)) * 0.5
    records = np.concatenate([others[:5], atoms, others[5:]]).astype(np.float32)
    chain, score = Chain(VP(), 20), atom_models.atom_score(VP(), atoms)
    mixtures = [subspace.design(np.where(np.arange(20) < 8, 1.0, 0.0)) for _ in records]
    ladder = Ladder(3, keep=0.5, draws=100, final_draws=400, max_draws=400, level=0.999)
    keys, estimate = [], subspace.estimate

    def watched(*args, **options):
        keys.append(np.asarray(jax.random.key_data(args[5])).tobytes())
        return estimate(*args, **options)

    monkeypatch.setattr(subspace, "estimate", watched)
    found = successive_halving(chain, score, atom_models.ball(records, 0.4), records, mixtures, KEY, ladder)
    np.testing.assert_array_equal(found.finalists, [5, 6, 7])
    np.testing.assert_array_equal(np.flatnonzero(found.dropped_at < 0), [5, 6, 7])
    assert np.bincount(found.dropped_at + 1).tolist() == [3, 6, 3]
    for result in found.results:
        assert result.estimate.n == 400
        assert result.estimate.level == pytest.approx(1 - 0.001 / 3)
        assert result.estimate.lower < 1 / 3 < result.estimate.upper
    # Two rungs and the final: draws that chose a finalist must not be counted again.
    assert len(keys) == len(set(keys)) == 3
    assert found.network_calls == 20 * (12 * 100 + 6 * 200 + 3 * 400)
    alone = successive_halving(
        chain, score, atom_models.ball(atoms, 0.4), atoms, mixtures[:3], KEY, Ladder(3, final_draws=100, max_draws=100)
    )
    assert alone.network_calls == 20 * 300
