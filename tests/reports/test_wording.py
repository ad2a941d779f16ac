"""Numbers are printed with unit and interval, and limits are never rounded inwards."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_release import make_release

from diffusion_privacy.reports import cadp_table_wording, cadp_wording, schema, tables, wording

_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def number(text: str) -> float:
    """The value of a printed number."""
    mantissa, _, power = text.replace(",", "").partition("×10")
    return float(mantissa) * 10.0 ** int(power.translate(_DIGITS) or 0)


@given(st.floats(min_value=1e-12, max_value=1.0))
def test_limits_round_outwards(probability: float) -> None:
    low, high = number(wording.rate(probability, "down")), number(wording.rate(probability, "up"))
    assert low <= probability * 1e4 * (1 + 1e-12)
    assert high >= probability * 1e4 * (1 - 1e-12)
    assert high - low <= 0.11 * probability * 1e4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.016, "−160"),
        (1 / 64, "156"),
        (1 / 1697, "5.9"),
        (0.0, "0"),
        (1.0, "10,000"),
        (3.2e-9, "3.2×10⁻⁵"),
        (1.5, "10,000"),
    ],
)
def test_rate(value: float, text: str) -> None:
    assert wording.rate(value) == text


@pytest.mark.parametrize(
    ("value", "direction", "text"),
    [
        (0.95, "nearest", "95\u00a0%"),
        (0.9999999, "nearest", "99.99\u00a0%"),
        (1.0, "nearest", "100\u00a0%"),
        (4.1e-5, "down", "0.0041\u00a0%"),
        (0.0, "down", "0\u00a0%"),
        (0.1, "up", "10\u00a0%"),
    ],
)
def test_percent(value: float, direction: wording.Direction, text: str) -> None:
    assert wording.percent(value, direction) == text


@given(st.floats(-1e6, 1e6), st.integers(0, 4), st.sampled_from([1, 100]))
def test_fixed_places_round_as_asked(value: float, places: int, scale: int) -> None:
    low, near, high = (
        Decimal(wording.fixed(value, places, direction, scale)) for direction in ("down", "nearest", "up")
    )
    exact, unit = Decimal(repr(value)) * scale, Decimal(1).scaleb(-places)
    assert low <= exact <= high <= low + unit
    assert abs(near - exact) <= unit / 2
    assert "-0" not in {str(low), str(near), str(high)}


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.booleans())
def test_t_prime_is_never_printed_higher_than_shown(one: float, two: float, finished: bool) -> None:
    lower, upper = sorted((one, two))
    entry = {"value": lower, "censored": None}
    assert number(wording.statistical_t_prime(entry).removeprefix("at least ")) <= lower * (1 + 1e-12)
    shown = tables._bracket({"lower": lower, "upper": upper, "finished": finished})
    low, high = re.fullmatch(r"at least (\S+), below ([^ ]+)( \(draws ran out\))?", shown).groups()[:2]
    assert float(low) <= lower
    assert float(high) >= upper


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_intervals_of_private_copies_round_outwards(one: float, two: float, three: float) -> None:
    lower, value, upper = sorted((one, two, three))
    entry = {"value": value, "lower": lower, "upper": upper}
    for shown, scale in ((cadp_wording.with_interval(entry), 100), (cadp_table_wording.number(entry), 1)):
        low, high = re.search(r"\((.*)\sto\s(.*)\)", shown).groups()
        assert Decimal(low) <= Decimal(repr(lower)) * scale
        assert Decimal(high) >= Decimal(repr(upper)) * scale


@given(st.floats(-1.0, 1.0))
def test_a_coefficient_below_zero_rounds_outwards_too(value: float) -> None:
    shown = cadp_table_wording.number({"value": value, "lower": value, "upper": value})
    low, high = re.search(r"\((.*)\sto\s(.*)\)", shown).groups()
    assert Decimal(low) <= Decimal(repr(value)) <= Decimal(high)


@given(st.floats(1e-6, 1.0))
def test_a_p_value_is_never_printed_smaller(value: float) -> None:
    assert value <= float(cadp_wording.small(value)) <= 2.0 * value


def test_what_was_printed_narrower_than_measured() -> None:
    assert tables._bracket({"lower": None, "upper": 0.004, "finished": True}) == "no level passed, below 0.01"
    assert wording.statistical_t_prime({"value": 2 / 3, "censored": None}) == "at least 0.666"
    found = cadp_wording.with_interval({"value": 0.0132, "lower": 0.01019, "upper": 0.01721})
    assert found == "1.3 % (1.0 to 1.8)".replace(" ", "\u00a0")
    assert wording.percent(0.975) == "97.5\u00a0%"


def test_interval_has_value_unit_level_and_limits() -> None:
    entry = {"value": 0.0153, "lower": 0.01386, "upper": 0.01791, "level": 0.95}
    assert wording.interval(entry) == "153 in 10,000 images (95\u00a0% interval 138 to 180)"
    assert wording.interval({**entry, "value": None}).startswith("no point estimate (95\u00a0% interval 138 to 180")


def test_error_rates_of_a_detector_round_outwards() -> None:
    entry = {"value": 0.0128, "lower": 0.012399, "upper": 0.013341, "level": 0.95, "n": 1000}
    assert wording.detector_rate(entry).replace("\u00a0", " ") == (
        "1.28 % (95 % interval 1.23 % to 1.34 %; 1,000 images)"
    )


def test_censored_t_prime_never_shows_a_bare_number() -> None:
    entry = {"value": 0.99, "censored": "above", "gamma": 0.02, "level": 0.95, "comparisons": 11}
    assert wording.statistical_t_prime(entry) == "at least 0.99, the largest level tested"
    # What did not pass is not shown to be free of the record.
    assert wording.statistical_t_prime({**entry, "censored": None}) == "at least 0.99"
    assert wording.statistical_t_prime({**entry, "value": None, "censored": "below"}) == "not shown at any tested level"


@pytest.mark.parametrize(
    ("more", "needed", "hits", "text"),
    [
        (
            "certify without a hit",
            61_000,
            0,
            "61,000 direct samples without a hit would certify a rate of at most 5.9 in 10,000 images; 30,000 were "
            "drawn, none with a hit.",
        ),
        (
            "certify if hits come as they did",
            312_345,
            7,
            "about 320,000 direct samples would certify a rate of at most 5.9 in 10,000 images if hits come as they "
            "did; 30,000 were drawn, 7 with a hit.",
        ),
        (
            "not expected to certify",
            None,
            40,
            "more direct samples are not expected to certify a rate of at most 5.9 in 10,000 images; 30,000 were "
            "drawn, 40 with a hit.",
        ),
    ],
)
def test_uncertified_says_what_more_samples_would_do(more: str, needed: int | None, hits: int, text: str) -> None:
    release = make_release()
    record = release["models"]["careful"]["records"][0]
    record["verdict"] |= {"status": "not certified", "samples_needed": needed, "more_samples": more}
    record["direct"] |= {"value": hits / 30_000, "upper": 0.003, "hits": hits}
    schema.validate(release)
    assert f"certified; {text}" in " ".join(wording.uncertified(release))


def test_the_number_of_an_older_file_is_that_of_samples_without_a_hit() -> None:
    verdict = {"samples_needed": 61_000}
    assert wording.more_samples(verdict, "images", "it") == "61,000 images without a hit would certify it"


def test_equal_open_points_are_joined() -> None:
    joined = [text for text in wording.uncertified(make_release()) if text.startswith("careless")]
    assert len(joined) == 1
    assert all(index in joined[0] for index in ("1711", "1725", "1790"))


def test_a_leaking_control_raises_an_alarm() -> None:
    release = make_release()
    assert wording.control_alarms(release) == []
    release["models"]["careful"]["records"][2]["verdict"]["status"] = "leaks"
    (alarm,) = wording.control_alarms(release)
    assert "careful" in alarm
    assert "1725" in alarm


def test_own_limits_follow_the_standard_ones_once() -> None:
    release = make_release()
    standard = wording.standard_limits(release)
    release["limits"] = [standard[0], "Mine."]
    assert wording.all_limits(release) == [*standard, "Mine."]


def test_the_page_says_on_which_returns_the_detector_was_measured() -> None:
    release = make_release()
    assert "Returns are" not in " ".join(wording.standard_limits(release))
    for name, model in release["models"].items():
        model["detector"]["positive_time"] = 0.02 if name == "careful" else 0.04
    found = " ".join(wording.standard_limits(release))
    assert "noise up to t = 0.02 and 0.04 (of 1)" in found
    assert "may go unseen" in found
