"""Settings and accounting of private training: the literature's numbers, and replace-one as the worst pair."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from training_toys import toy_config

from diffusion_privacy.errors import InputError
from diffusion_privacy.training import privacy
from diffusion_privacy.training import state as states
from diffusion_privacy.training.privacy import Plan, Privacy

pytest.importorskip("dp_accounting")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -1.0),
        ("epsilon", float("inf")),
        ("noise_multiplier", float("nan")),
        ("delta", 0.0),
        ("delta", 1.0),
        ("clip_norm", 0.0),
        ("clip_norm", 9.9e-13),
        ("clip_norm", 1e6),
        ("relation", "replace"),
        ("augmentations", 0),
        ("micro_batch", 0),
    ],
)
def test_faults_are_named_in_one_line(field, value):
    with pytest.raises(InputError, match=rf"training\.privacy\.{field}: expected") as caught:
        Privacy(**{field: value})
    assert "\n" not in str(caught.value)


def test_the_least_clip_norm_is_taken():
    assert Privacy(clip_norm=1e-12).clip_norm == 1e-12


def test_one_way_to_say_how_much_noise():
    assert not Privacy().on
    with pytest.raises(InputError, match="not both"):
        Privacy(epsilon=1.0, noise_multiplier=1.0)
    with pytest.raises(InputError, match=r"micro_batches must be 1"):
        toy_config(micro_batches=2, privacy=Privacy(noise_multiplier=1.0))


def test_a_run_is_another_one_with_other_privacy():
    plain, private = toy_config(), toy_config(privacy=Privacy(noise_multiplier=1.0))
    assert not any("privacy" in name for name in states.identity(plain, 0, "x"))
    fields = states.identity(private, 0, "x")
    assert fields["training.privacy.noise_multiplier"] == 1.0
    assert all(isinstance(value, int | float | str) for value in fields.values())


@pytest.mark.parametrize(
    ("records", "batch_size", "delta", "words"),
    [(10, 11, 1e-5, "at most the 10 records"), (10, 5, 0.1, r"delta: expected less than 1/n = 0\.1")],
)
def test_a_plan_that_promises_nothing_is_refused(records, batch_size, delta, words):
    with pytest.raises(InputError, match=words):
        privacy.make_plan(Privacy(noise_multiplier=1.0, delta=delta), records=records, batch_size=batch_size, steps=1)


def test_the_reference_numbers_are_dp_accountings_own():
    """σ = 1.1, q = 256/60000, 14,062 steps, δ = 1e-5: 2.382 by PLD and 2.597 by RDP under add-or-remove-one, 4.22 under
    replace-one. By dp-accounting alone, by this module, and by the ledger from the event that a run pays with.
    """
    import dp_accounting

    from diffusion_privacy.mechanisms.accounting import Spend, account

    q, sigma, steps, delta = run = (256 / 60000, 1.1, 14062, 1e-5)
    sampled = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    event = Plan(60000, q, sigma, 1.0, steps, delta, "replace-one").event()
    assert event == dp_accounting.SelfComposedDpEvent(sampled, steps)
    relations, pld = dp_accounting.NeighboringRelation, dp_accounting.pld.PLDAccountant
    theirs = {
        2.382: pld(relations.ADD_OR_REMOVE_ONE),
        2.597: dp_accounting.rdp.RdpAccountant(),
        4.221: pld(relations.REPLACE_ONE),
    }
    for known, accountant in theirs.items():
        assert accountant.compose(event).get_epsilon(delta) == pytest.approx(known, abs=1e-3)
    replaced = privacy.pld_epsilon(*run, "replace-one")
    assert privacy.pld_epsilon(*run, "add-or-remove-one") == pytest.approx(2.382, abs=1e-3)
    assert replaced == pytest.approx(4.221, abs=1e-3)
    assert account([Spend(event, "add-or-remove-one")], delta).epsilon == pytest.approx(replaced, rel=1e-6)
    # Planted: the multiplier is over C. Read as if it were over 2C it must promise nothing, and not half of it.
    assert account([Spend(event, "replace-one")], delta).epsilon == float("inf")


def test_events_are_dp_accountings_and_grow_with_the_steps():
    import dp_accounting

    plan = Plan(100, 0.25, 6.0, 1.0, 40, 1e-5, "add-or-remove-one")
    accountant = dp_accounting.pld.PLDAccountant()
    assert plan.epsilon() == pytest.approx(accountant.compose(plan.event()).get_epsilon(1e-5), rel=1e-6)
    assert plan.epsilon(0) == 0.0
    assert 0 < plan.epsilon(10) < plan.epsilon(20) < plan.epsilon()
    assert isinstance(dataclasses.replace(plan, sampling_probability=1.0).event().event, dp_accounting.GaussianDpEvent)
    assert privacy.from_json({**plan.to_json(), "more": 1}) == plan
    with pytest.raises(InputError, match="lacks steps"):
        privacy.from_json({k: v for k, v in plan.to_json().items() if k != "steps"})


def test_full_batches_of_one_step_are_the_gaussian_mechanism():
    """Closed form: Δ = 2C under replace-one, C under add-or-remove-one (Balle & Wang 2018)."""
    from diffusion_privacy.mechanisms.calibration import gaussian_epsilon

    for relation, factor in (("replace-one", 2.0), ("add-or-remove-one", 1.0)):
        truth = gaussian_epsilon(4.0 / factor, 1e-5)
        assert truth <= privacy.pld_epsilon(1.0, 4.0, 1, 1e-5, relation) * (1 + 1e-9) <= 1.001 * truth


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize(
    ("epsilon", "q", "steps", "relation"),
    [
        pytest.param(1.0, 0.2, 50, "add-or-remove-one", marks=pytest.mark.slow),
        pytest.param(8.0, 0.05, 100, "replace-one", marks=pytest.mark.slow),
        (0.5, 1.0, 3, "replace-one"),
        (40.0, 0.1, 5, "add-or-remove-one"),
    ],
)
def test_calibration_meets_its_target_and_wastes_little(epsilon, q, steps, relation):
    sigma = privacy.calibrate(epsilon, 1e-5, q, steps, relation)
    assert 0.995 * epsilon < privacy.pld_epsilon(q, sigma, steps, 1e-5, relation) <= epsilon
    assert privacy.pld_epsilon(q, 0.998 * sigma, steps, 1e-5, relation) > epsilon


@pytest.mark.parametrize("offset", [-0.3, -1e-3, 0.0, 1e-3, 0.3])
@pytest.mark.parametrize("slope", [0.6, 1.0, 1.6])
def test_the_refined_place_is_never_below_the_root_wherever_it_starts(offset, slope):
    """Planted: a slope that is off by half either way, a function that bends, and one that is infinite at first."""
    calls = []

    def excess(place):
        calls.append(place)
        return math.inf if place < -0.25 else -place + 0.5 * place**2

    found = privacy._refined(excess, offset, 0.02 * slope)
    assert 0 <= found <= 1e-3
    assert excess(found) <= 0
    assert len(calls) < 25


def _hockey_stick(u, v, q, sigma, alphas):
    """sup_S P(S) − α Q(S), P = (1−q) N(0) + q N(u), Q = (1−q) N(0) + q N(v), in the plane, by quadrature."""
    axis = np.linspace(-9 * sigma, 9 * sigma, 241)
    x, y = np.meshgrid(axis, axis)

    def density(center):
        return stats.norm.pdf(x, center[0], sigma) * stats.norm.pdf(y, center[1], sigma)

    still = (1 - q) * density((0, 0))
    p, other = still + q * density(u), still + q * density(v)
    cell = (axis[1] - axis[0]) ** 2
    return np.array([np.sum(np.maximum(p - a * other, 0)) * cell for a in alphas])


@pytest.mark.parametrize(("q", "sigma"), [(0.1, 0.7), pytest.param(0.5, 1.5, marks=pytest.mark.slow)])
def test_opposite_gradients_are_the_worst_that_replacing_a_record_can_do(q, sigma):
    alphas = np.exp([0.0, 0.1, 0.3, 1.0, 2.0])
    line = np.linspace(-9 * sigma, 9 * sigma, 100_001)
    p, other = ((1 - q) * stats.norm.pdf(line, 0, sigma) + q * stats.norm.pdf(line, c, sigma) for c in (1, -1))
    worst = np.array([np.sum(np.maximum(p - a * other, 0)) * (line[1] - line[0]) for a in alphas])
    for angle in (0.5, 1.5, 2.9):
        for length in (1.0, 0.6):
            other = length * np.cos(angle), length * np.sin(angle)
            for pair in (((1, 0), other), (other, (1, 0)), ((0, 0), other)):
                # The grid errs by up to 1e-5.
                assert np.all(_hockey_stick(*pair, q, sigma, alphas) <= worst + 1e-5)
    # dp-accounting's pair is this one.
    one = privacy.one_step(q, sigma, "replace-one", 1e-4)
    deltas = np.array([one.get_delta_for_epsilon(float(np.log(a))) for a in alphas])
    np.testing.assert_allclose(deltas, worst, atol=2e-5)
    assert np.all(deltas >= worst - 1e-8)


@pytest.mark.parametrize("delta", [1e-11, 1e-13])
def test_rounding_of_many_compositions_is_allowed_for(delta):
    """10,000 steps that all records take part in are one Gaussian with 100 times less noise, whose δ is known exactly.
    At 10⁻¹³ dp-accounting's ε has a δ a third larger: powers of a Fourier transform round."""
    from diffusion_privacy.mechanisms.calibration import log_gaussian_delta

    found = privacy.pld_epsilon(1.0, 100.0, 10_000, delta, "add-or-remove-one")
    assert np.isfinite(found) == (delta > 1e-12)
    assert np.isinf(found) or log_gaussian_delta(1.0, found) <= np.log(delta)
