"""Authenticity against a set worked out by hand and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffusion_privacy.audits.authenticity import authenticity
from diffusion_privacy.errors import InputError


def test_worked_by_hand():
    """Records 0, 1, 4. Image 0.4: nearest 0 at .4 < 1 → a copy; 2.4: nearest 1 at 1.4 > 1; 6: nearest 4 at 2 < 3."""
    found = authenticity(np.array([[0.4], [2.4], [6.0], [-1.5]]), np.array([[0.0], [1.0], [4.0]]))
    np.testing.assert_array_equal(found.authentic, [False, True, False, True])
    assert (found.share.hits, found.share.n) == (2, 4)


def test_it_is_its_definition_with_duplicates():
    rng = np.random.default_rng(0)
    training = rng.normal(size=(60, 3))
    training[50:] = training[:10]
    generated = np.concatenate([rng.normal(size=(90, 3)), training[:5], training[20:25]])
    between = cdist(training, training)
    np.fill_diagonal(between, np.inf)
    across = cdist(generated, training)
    near = across.argmin(axis=1)
    want = across.min(axis=1) > between.min(axis=1)[near]
    for chunk in (7, 1000):
        np.testing.assert_array_equal(authenticity(generated, training, chunk=chunk).authentic, want)
    assert not want[90:].any()


def test_copies_are_not_authentic_and_fresh_records_are_half_the_time():
    """1,000 fresh draws against 1,000: by symmetry of three points about half; the fixed draw stays within [.4, .7]."""
    rng = np.random.default_rng(1)
    training, fresh = rng.normal(size=(1000, 8)), rng.normal(size=(1000, 8))
    assert 0.4 < authenticity(fresh, training).share.value < 0.7
    assert authenticity(training + 0.01 * fresh, training).share.hits == 0


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="two training records"):
        authenticity(np.zeros((3, 2)), np.zeros((1, 2)))
    with pytest.raises(InputError, match="rows of one shape"):
        authenticity(np.zeros((3, 2)), np.zeros((4, 3)))
