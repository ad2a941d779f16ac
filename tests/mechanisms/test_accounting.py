"""Composition against closed forms, and the replace-one conventions of dp-accounting that the code relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import accounting, calibration
from diffusion_privacy.mechanisms.accounting import Spend, account
from diffusion_privacy.mechanisms.condition import PublicCondition, RandomizedResponse
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, LaplaceMechanism, MetricMechanism
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, REPLACE_RECORD_AND_CONDITION, replace_person

dp_accounting = pytest.importorskip("dp_accounting")
Neighbouring = dp_accounting.NeighboringRelation


def replaced(event) -> Spend:
    return Spend(event, "replace-one")


def test_one_gaussian_gives_back_its_budget_exactly():
    mechanism = GaussianMechanism.calibrated(3.0, 1e-6, 7.0, REPLACE_RECORD, 1000)
    got = account([replaced(mechanism.event(REPLACE_RECORD))], 1e-6)
    assert got.method == "exact-gaussian"
    assert got.epsilon == pytest.approx(3.0, rel=1e-9)


def test_gaussians_compose_in_quadrature():
    parts = [replaced(dp_accounting.GaussianDpEvent(s)) for s in (2.0, 3.0, 6.0)]
    expected = calibration.gaussian_epsilon(1 / math.sqrt(1 / 4 + 1 / 9 + 1 / 36), 1e-5)
    assert account(parts, 1e-5).epsilon == pytest.approx(expected, rel=1e-9)
    repeated = replaced(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 4))
    assert account([repeated], 1e-5).epsilon == pytest.approx(calibration.gaussian_epsilon(1.0, 1e-5), rel=1e-9)


def test_bounds_agree_and_none_is_below_the_truth():
    truth = calibration.gaussian_epsilon(1.0 / math.sqrt(1 / 1.5**2 + 1 / 2.5**2), 1e-5)
    parts = accounting._normalised([replaced(dp_accounting.GaussianDpEvent(s)) for s in (1.5, 2.5)])
    assert truth <= accounting._pld_epsilon(parts, 1e-5, 1e-4) < truth * 1.001
    assert truth <= accounting._rdp_epsilon(parts, 1e-5) < truth * 1.2


def test_pure_events_add_up():
    parts = [replaced(LaplaceMechanism.calibrated(e, 2.0, REPLACE_RECORD).event(REPLACE_RECORD)) for e in (0.5, 1.5)]
    got = account(parts, 0.0)
    assert (got.epsilon, got.delta, got.method) == (pytest.approx(2.0), 0.0, "pure")
    person = LaplaceMechanism.calibrated(1.0, 2.0, replace_person(4)).event(replace_person(4))
    assert account([replaced(person)], 0.0).epsilon == pytest.approx(1.0)


def test_condition_and_latent_add_up():
    condition, latent = RandomizedResponse(1.0, 10), LaplaceMechanism.calibrated(2.0, 1.0, REPLACE_RECORD)
    spend = accounting.record_spend(latent, condition, REPLACE_RECORD_AND_CONDITION)
    assert account([spend], 0.0).epsilon == pytest.approx(3.0)
    public = accounting.record_spend(latent, PublicCondition(10), REPLACE_RECORD)
    assert account([public], 0.0).epsilon == pytest.approx(2.0)
    refused = accounting.record_spend(latent, PublicCondition(10), REPLACE_RECORD_AND_CONDITION)
    assert account([refused], 0.0).epsilon == math.inf
    gaussian = GaussianMechanism.calibrated(2.0, 1e-5, 1.0, REPLACE_RECORD, 100)
    mixed = account([accounting.record_spend(gaussian, condition, REPLACE_RECORD_AND_CONDITION)], 1e-5)
    assert 2.0 < mixed.epsilon <= 3.0
    assert set(mixed.bounds) == {"rdp", "pld"}


def test_repeated_events_are_all_counted_beside_others():
    """Sixteen Gaussians beside a Laplace release that costs next to nothing: no bound is below that of the sixteen."""
    sixteen = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0), 16)
    got = account([replaced(sixteen), replaced(dp_accounting.LaplaceDpEvent(1e4))], 1e-5)
    truth = calibration.gaussian_epsilon(1.0, 1e-5)
    assert set(got.bounds) == {"rdp", "pld"}
    assert min(got.bounds.values()) >= truth
    assert got.bounds["pld"] < 1.01 * truth
    laplace = dp_accounting.SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(2.0), 3)
    assert account([replaced(dp_accounting.SelfComposedDpEvent(laplace, 4))], 0.0).epsilon == pytest.approx(6.0)


def test_a_discrete_laplace_enters_the_renyi_account_with_its_sensitivity():
    """(ε, 0)-private with ε = .1 · 8 is ε²/2-zCDP: as much as Gaussian noise of 1/ε = 1.25 sensitivities."""
    from dp_accounting.dp_event import DiscreteLaplaceDpEvent

    other = replaced(dp_accounting.GaussianDpEvent(3.0))
    found, expected = (
        accounting._rdp_epsilon(accounting._normalised([other, replaced(event)]), 1e-5)
        for event in (DiscreteLaplaceDpEvent(0.1, 8), dp_accounting.GaussianDpEvent(1.25))
    )
    assert found == pytest.approx(expected, rel=1e-9)


def test_metric_noise_and_unknown_events_have_no_epsilon():
    metric = replaced(MetricMechanism(1.0, "l1").event(REPLACE_RECORD))
    assert account([metric], 1e-5).epsilon == math.inf
    assert account([replaced(dp_accounting.UnsupportedDpEvent())], 1e-5).epsilon == math.inf
    assert account([], 1e-5).epsilon == 0.0


def test_add_or_remove_one_events_are_doubled():
    gaussian = Spend(dp_accounting.GaussianDpEvent(4.0), "add-or-remove-one")
    assert account([gaussian], 1e-5).epsilon == pytest.approx(calibration.gaussian_epsilon(2.0, 1e-5))
    laplace = Spend(dp_accounting.LaplaceDpEvent(2.0), "add-or-remove-one")
    assert account([laplace], 0.0).epsilon == pytest.approx(1.0)
    sampled = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0))
    training = dp_accounting.SelfComposedDpEvent(sampled, 100)
    add_remove = dp_accounting.pld.PLDAccountant().compose(training).get_epsilon(1e-5)
    got = account([Spend(training, "add-or-remove-one")], 1e-5).epsilon
    assert add_remove < got < 3 * add_remove
    with pytest.raises(InputError, match="conversion"):
        account([Spend(dp_accounting.ZCDpEvent(rho=1.0), "add-or-remove-one")], 1e-5)
    with pytest.raises(InputError, match="adjacency"):
        Spend(dp_accounting.NoOpDpEvent(), "replace")


def test_the_replace_one_trap_is_as_described():
    # If a later dp-accounting doubles in RDP, or stops doubling in PLD, the code's conventions must be read again.
    event = dp_accounting.GaussianDpEvent(2.0)

    def rdp(relation):
        return dp_accounting.rdp.RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)

    def pld(relation):
        return dp_accounting.pld.PLDAccountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)

    assert rdp(Neighbouring.REPLACE_ONE) == rdp(Neighbouring.ADD_OR_REMOVE_ONE)
    assert pld(Neighbouring.REPLACE_ONE) == pytest.approx(calibration.gaussian_epsilon(1.0, 1e-5), rel=1e-3)
    laplace = dp_accounting.LaplaceDpEvent(2.0)
    assert not dp_accounting.pld.PLDAccountant(neighboring_relation=Neighbouring.REPLACE_ONE).supports(laplace)


@pytest.mark.parametrize("split", [(0.5, 0.5), (0.2, 0.8), (0.9, 1.1), (0.25,) * 4])
def test_laplace_shift_on_one_axis_is_the_worst(split):
    # dp-accounting treats a vector Laplace release of L1 shift d as a scalar one of shift d. Here both hockey-stick
    # curves are computed: the product of the shifts is never above the single shift.
    build = dp_accounting.pld.privacy_loss_distribution.from_laplace_mechanism
    product = build(1.0, sensitivity=split[0], value_discretization_interval=1e-3)
    for part in split[1:]:
        product = product.compose(build(1.0, sensitivity=part, value_discretization_interval=1e-3))
    total = math.fsum(split)
    for eps in np.linspace(0.0, total, 21)[:-1]:
        single = 1.0 - math.exp((eps - total) / 2.0)
        assert product.get_delta_for_epsilon(float(eps)) <= single + 2e-3


def test_zcdp_for_meets_the_budget():
    rho = accounting.zcdp_for(1.0, 1e-5)
    epsilon = dp_accounting.rdp.RdpAccountant().compose(dp_accounting.ZCDpEvent(rho=rho)).get_epsilon(1e-5)
    assert 0.999 < epsilon <= 1.0


def test_delta_out_of_range_is_refused():
    for delta in (-0.1, 1.0):
        with pytest.raises(InputError, match="delta"):
            account([], delta)
