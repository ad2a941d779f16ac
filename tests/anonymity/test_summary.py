"""One table for all: it claims the limits that an estimator gives, and no others."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from diffusion_privacy.anonymity import (
    change_of_variables,
    inherited,
    lower_bounds,
    montecarlo,
    splitting,
    subspace,
    summary,
)
from diffusion_privacy.anonymity.counterfactual import paired
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Estimate

HIT = np.arange(200) < 150


def test_every_method_that_the_room_returns_has_a_row() -> None:
    """Names are read from the modules: an estimator that is renamed must be renamed here."""
    for method, module in (
        ("subspace", subspace),
        ("change of variables", change_of_variables),
        ("splitting", splitting),
        ("inherited", inherited),
        ("markov", lower_bounds),
        ("jensen", lower_bounds),
        ("betting", lower_bounds),
    ):
        assert f'"{method}"' in inspect.getsource(module)
        assert method in summary.ESTIMATORS


def test_rows_claim_what_is_given() -> None:
    low = summary.row(lower_bounds.betting_lower(np.zeros(200), HIT))
    assert low.upper is None
    assert low.kind.name.startswith("E4")
    assert low.lower is not None
    assert 0.5 < low.lower < 0.75
    high = summary.row(inherited.inherited(inherited.pooled(np.zeros(50), np.ones(50)), 0.5, 1e-5))
    assert high.lower is None
    assert high.upper is not None
    direct = summary.row(montecarlo.direct(3, 1000, steps=50).estimate)
    assert (direct.lower is None, direct.upper is None, direct.network_calls) == (False, False, 50_000)
    pair = summary.row(paired(HIT, ~HIT, steps=2))
    assert pair.kind.gives == "difference"
    assert pair.value == pytest.approx(0.5)
    assert pair.reliable
    assert pair.reasons[0].startswith("of 200 pairs 150 show the record only with it, 50 only without it, 0 both ways")
    never, always = np.zeros(200, bool), np.ones(200, bool)
    # That no pair differs is a result with exact limits; a detector that always fires is none.
    assert summary.row(paired(never, never)).reliable
    assert not summary.row(paired(always, never)).reliable


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="method"):
        summary.row(Estimate("guess", 0.0, 0.0, 0.0, 1.0, 0.95, 1, 1.0, True, 0))
