"""What is printed of a promise never promises more than was computed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_privacy.reports import cadp_wording, wording
from diffusion_privacy.rounding import promised, to_digits

positive = st.floats(1e-300, 1e300)


@settings(max_examples=500)
@given(positive, st.integers(1, 12))
def test_a_promise_reads_as_no_less_than_it_is_and_hardly_more(value, digits):
    read = float(promised(value, digits))
    assert value <= read <= value * (1 + 10.0 ** (1 - digits) * (1 + 1e-9))


@settings(max_examples=500)
@given(st.floats(1e-3, 1e8))
def test_reports_round_as_promises_do(value):
    assert float(cadp_wording.epsilon(value)) >= value
    assert float(wording.significant(value, 4, "up").replace(",", "")) >= value
    assert float(wording.significant(value, 4, "down").replace(",", "")) <= value


def test_what_needs_no_rounding_is_left_as_it_is():
    assert [promised(v) for v in (0.0, 0.1, 1.0, 0.30000000000000004, 1e-5, 1024.0)] == [
        "0", "0.1", "1", "0.300001", "1e-05", "1024",
    ]  # fmt: skip
    assert promised(math.inf) == "inf"
    # The planted fault: to the nearest this is 1.234.
    assert promised(1.2341, 4) == "1.235"
    assert str(to_digits(1.2341, 4)) == "1.234"
    assert promised(99999.95, 4) == "1e+05"


@pytest.mark.parametrize("value", [1.0000000000000002, 2.6000001, 7.99999949])
def test_a_last_digit_is_not_lost(value):
    assert float(promised(value)) > value
