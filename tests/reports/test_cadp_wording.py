"""A promise is never printed stronger than it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_wording import number

from diffusion_privacy.reports import cadp_figures, cadp_page, cadp_schema, cadp_wording


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


def part(mechanism: str = "gaussian", lower: float = 0.8579, ceiling: float = 3.4567) -> dict[str, Any]:
    """What promise, limits and the table of measured ε are made from: one release at ε = 1 and what attacked it."""
    rank = {"level": 0.95, "p_value": 0.4}
    accuracy = {"value": 0.8, "level": 0.95, "seeds": [0.78, 0.8, 0.82]}
    manifest = {
        "mechanism": mechanism, "epsilon": 1.0, "delta": 1e-5, "flow_training": "public", "public": ["the class"],
        "relation": "replace-record", "arithmetic": "float32 noise",
    }  # fmt: skip
    bound = {
        "claimed": 1.0, "lower": lower, "ceiling": ceiling, "confidence": 0.99, "trials": 12_000,
        "holds": lower <= 1.0, "decisive": ceiling > 1.0, "attacked": mechanism.removeprefix("discrete_"),
    }  # fmt: skip
    return {
        "schema_version": cadp_schema.SCHEMA_VERSION,
        "config": {"flow": {"trained_on": "public"}},
        "releases": [{"latent_epsilon": 1.0, "manifest": manifest}],
        "epsilon_bounds": [bound],
        "release_faults": None,
        "linkage": [{"name": "released 1", "kind": "released", "rank1": rank, "rank10": rank}],
        "arms": [
            {"name": "control", "kind": "control", "epsilon": None, "accuracy": accuracy},
            {"name": "released 1", "kind": "released", "epsilon": 1.0, "accuracy": accuracy},
        ],
        "ledger": {"guarantee": True, "stages": 1, "epsilon": 1.0, "delta": 1e-5, "relation": "replace-record"},
        "flow": {"membership": {"lower": 0.45}},
    }


def promise(release: dict[str, Any]) -> str:
    """The first card."""
    return cadp_wording.cards(release).split("</div>")[0]


def test_a_promise_that_could_be_contradicted_and_was_not_is_marked_so() -> None:
    card = promise(part())
    assert '<span class="status clean">not contradicted</span>' in card
    assert "measured on the worst case: at least 0.857, claimed 1." in card
    assert "confirms nothing" not in card


def test_an_attack_that_could_not_contradict_a_promise_does_not_speak_for_it() -> None:
    card = promise(part(lower=0.21, ceiling=0.9876))
    assert '<span class="status open">not tested</span>' in card
    assert "clean" not in card
    assert "12,000 trials could not have shown more than ε = 0.988, and could not have contradicted the claim." in card
    # Without a guarantee end to end the label is neutral as it is; the sentence is there all the same.
    unprotected = part(lower=0.21, ceiling=0.9876)
    unprotected["releases"][0]["manifest"] |= {"epsilon": None, "flow_training": "mechanism-only"}
    assert '<span class="status open">latent step only</span>' in promise(unprotected)
    assert "This confirms nothing: 12,000 trials" in promise(unprotected)


def test_a_refuted_promise_stays_refuted() -> None:
    assert '<span class="status leaks">refuted</span>' in promise(part(lower=1.2))


def test_captions_name_the_level_that_was_used() -> None:
    """.975 was printed as 98 %."""
    release = part()
    entry = {"value": 0.5, "lower": 0.4, "upper": 0.6, "level": 0.975, "chance": 0.1, "p_value": 1.0, "seeds": [0.5]}
    for arm in release["arms"]:
        arm["accuracy"] = entry
    release["linkage"] = [
        {"name": "", "kind": "released", "epsilon": e, "rank1": entry, "rank10": entry} for e in (1, 8)
    ]
    for figure in (cadp_figures.utility, cadp_figures.linkage):
        assert figure(release)[3].startswith("Bars: 97.5\u00a0%")


@given(st.floats(-1.0, 50.0))
def test_a_measured_epsilon_is_rounded_down(value: float) -> None:
    printed = number(cadp_wording.shown(value))
    assert printed <= max(value, 0.0)
    assert printed >= 0.99 * value - 1e-12


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_what_stood_in_for_exact_integers_is_named_wherever_the_measured_epsilon_is(name: str) -> None:
    for release, said in ((part(f"discrete_{name}"), True), (part(name), False)):
        limits = " ".join(cadp_wording.common_limits(release, lambda _: ""))
        law = name.capitalize()
        assert (f"The measured ε is that of continuous {law} noise of the same scale, not of the" in limits) == said
        assert (f"with continuous {law} noise in place of the integers released" in promise(release)) == said
        table = cadp_page._bounds(release)
        assert (f"drawn: continuous {law} noise of its scale" in table) == said
        # Measured: down. 85.79 % of the claim.
        assert "85.7" in table


def test_a_total_names_its_own_neighbours() -> None:
    """A ledger with a release that publishes the class is for equal classes, whatever this release randomised."""
    release = part()
    release["releases"][0]["manifest"]["relation"] = "replace-record-and-condition"
    release["ledger"] |= {"stages": 2, "relation": "replace-record-same-public-condition"}
    total = cadp_wording.spent(release)
    assert total.startswith("all 2 together have ε = 1, δ = 10⁻⁵ for replacing a record by any other of the same class")
    release["ledger"]["relation"] = "replace-record-and-condition, 3 records a person"
    assert "of the same" not in cadp_wording.spent(release)
    assert cadp_wording.spent(release).endswith("(up to 3 records a person)")
    release["ledger"]["taken_on_trust"] = []
    assert cadp_wording.spent(release).endswith("(up to 3 records a person)")
    release["ledger"]["taken_on_trust"] = ["eps_1", "eps_8"]
    assert ", if the entries of eps_1, eps_8, which an earlier version made, are theirs" in cadp_wording.spent(release)


def test_sets_share_the_error_of_being_called_linked() -> None:
    """Four sets and two ranks at 95 % in all: each of the eight tests errs with .05/8 at most."""
    release = part()
    release["linkage"] = [
        {"name": str(p), "kind": "released", "rank1": {"level": 0.95, "p_value": p}, "rank10": {"p_value": 0.9}}
        for p in (0.006, 0.0065, 0.02, 0.5)
    ]
    assert cadp_wording.linked(release) == ["0.006"]


def test_test_images_that_were_no_strangers_are_counted_beside_the_others() -> None:
    flow = {
        "bits_per_dim": {"trained_on": 3.0, "held_out": 3.1}, "grey_levels": 17, "members": 20, "others": 12,
        "membership": {"value": 0.5, "lower": 0.4, "upper": 0.6, "level": 0.95},
        "inversion_error": 1e-5, "record_error": 1e-5,
    }  # fmt: skip
    release = part() | {"flow": flow}
    assert "3.10 on 12 held out." in cadp_page._flow(release)
    flow["left_out"] = 8
    assert "3.10 on 12 held out (left out: 8 equal to a record that it learnt from)." in cadp_page._flow(release)


def test_rows_that_no_attack_tells_apart_are_said_beside_the_figure_that_they_weaken() -> None:
    interval = {"value": 0.6, "lower": 0.55, "upper": 0.65, "level": 0.95}
    flow: dict[str, Any] = {}
    assert cadp_page._same(flow) == ""
    flow |= {"same": 0, "membership_without_same": None}
    assert cadp_page._same(flow) == ""
    flow |= {"same": 7}
    assert "cannot tell 7 of the others" in cadp_page._same(flow)
    assert "too few for a figure" in cadp_page._same(flow)
    flow |= {"membership_without_same": interval}
    assert "Without them: 60.0 % (55.0 to 65.0) of pairs" in cadp_page._same(flow).replace("\xa0", " ")
    # Among the limits it is said even where the figure of all rows shows nothing.
    flow |= {"members": 20, "membership": {"value": 0.5, "lower": 0.4, "upper": 0.6, "level": 0.95}}
    assert any("without the 7 test rows" in one for one in cadp_wording.limits(part() | {"flow": flow}))
    flow |= {"membership_without_same": interval | {"lower": 0.45}}
    assert not any("without the 7 test rows" in one for one in cadp_wording.limits(part() | {"flow": flow}))


def test_images_that_a_mean_leaves_out_are_counted_beside_it() -> None:
    """PSNR is infinite for an image equal to its original, the most alike of all."""
    found = {"psnr_db": 10.0, "ssim": 0.5, "frechet": 1.0}
    assert cadp_page._likeness({"likeness": None}) == "–"
    assert cadp_page._likeness({"likeness": found}) == "10.0; 0.50; 1"
    some, every = found | {"equal": 2}, found | {"psnr_db": None, "equal": 4}
    assert cadp_page._likeness({"likeness": some}) == "10.0 (without 2 equal to their originals); 0.50; 1"
    assert cadp_page._likeness({"likeness": every}) == "– (without 4 equal to their originals); 0.50; 1"
