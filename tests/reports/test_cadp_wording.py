"""A promise is never printed stronger than it is."""

from __future__ import annotations

import pytest

from diffusion_privacy.reports import cadp_wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (1.0000000000000002, "1.01"),
        (1.0049, "1.01"),
        (10.049, "10.1"),
        (5.99979, "6"),
        (0.5, "0.5"),
        (1e-5, "1.00×10⁻⁵"),
    ],
)
def test_epsilon_is_rounded_up(value: float, text: str) -> None:
    assert cadp_wording.epsilon(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "10⁻⁵"), (1.4e-5, "1.4×10⁻⁵"), (2.41e-5, "2.5×10⁻⁵"), (0.001, "0.001"), (0.0, "0")]
)
def test_delta_is_rounded_up(value: float, text: str) -> None:
    assert cadp_wording.delta(value) == text
