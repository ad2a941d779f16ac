"""All baselines over two models whose truth is known: the law itself, which saw nobody, and a memoriser."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from oracles.atom_models import BrokenScore, atom_score
from scipy import stats

from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.audits import baselines, one_run
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.errors import InputError

SDE, DIM, CENTRES = VP(), 24, 40
QUICK = ("pia", "secmi", "authpct", "copy_ratio", "extraction", "frechet_gap", "flipd")


@pytest.fixture(scope="module")
def subjects():
    """The law is 40 balls of deviation .5 in 24 dimensions; the memoriser holds its 120 members (deviation .02)."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(CENTRES, DIM)), 3, axis=0).astype(np.float32)

    def draw(count):
        return (centres[3 * rng.integers(0, CENTRES, count)] + 0.5 * rng.normal(size=(count, DIM))).astype(np.float32)

    members, others, fresh = draw(120), draw(160), draw(600)
    copies = (members[rng.integers(0, 120, 600)] + 0.02 * rng.normal(size=(600, DIM))).astype(np.float32)

    def subject(score, samples):
        return baselines.Subject(score, SDE, members, others, samples, features=lambda x: x[:, :6], chunk=70)

    law = subject(atom_score(SDE, centres, var=0.25), fresh)
    return law, subject(atom_score(SDE, members, var=4e-4), copies)


def test_a_model_that_saw_nobody_shows_nothing(subjects):
    """AUC at ½ within 4.5 standard errors (7e-6 each); copies no more than held-out records explain."""
    rows = {row.name: row for row in baselines.run(QUICK, subjects[0])}
    for name in ("pia", "secmi", "flipd"):
        assert abs(rows[f"{name}: AUC"].value - 0.5) < 4.5 * np.sqrt(281 / (12 * 120 * 160))
        assert rows[f"{name}: TPR at 1 % FPR"].value is not None
        few = rows[f"{name}: TPR at 0.1 % FPR"]
        assert few.value is None
        assert "at least 999" in few.notes[0]
    assert 0.3 < rows["authpct"].value < 0.8
    # k = 1 of 160: the rate is Beta(1, 160); above .06 with probability 5e-5.
    assert rows["copy_ratio"].value < 0.06
    # Three members a ball are thin: the paper's decision takes half of all fresh records for copies, held-out ones too.
    assert rows["extraction"].value > 0.4
    excess = rows["extraction: excess over held-out records"]
    assert excess.lower < 0 < excess.upper
    assert rows["extraction"].notes[3].startswith("0 cliques")
    gap = rows["frechet_gap"]
    assert gap.lower < 0 < gap.upper
    lacking = rows["flipd: dimensions that members lack"]
    assert lacking.lower < 1
    assert lacking.upper > -1


def test_a_memoriser_shows_in_every_one(subjects):
    rows = {row.name: row for row in baselines.run(QUICK, subjects[1])}
    for name in ("pia", "secmi", "flipd"):
        assert rows[f"{name}: AUC"].lower > 0.95
        assert rows[f"{name}: TPR at 1 % FPR"].lower > 0.9
    assert rows["authpct"].value == 0
    assert rows["copy_ratio"].value == 1
    assert rows["extraction"].value == 1
    assert rows["extraction: excess over held-out records"].lower > 0.2
    assert rows["frechet_gap"].lower > 0
    assert rows["flipd: dimensions that members lack"].lower > 1
    for row in rows.values():
        assert row.direction in (baselines.HIGHER, baselines.LOWER)
        if row.value is not None:
            assert row.lower <= row.value <= row.upper
    json.dumps([dataclasses.asdict(row) for row in rows.values()], allow_nan=False)


def test_canaries_are_told_apart_by_a_memoriser_only(subjects):
    """64 canaries, 32 of them members. The memoriser's loss gets all 64 guesses right, which is the most there is.

    The law gives more than 0 with probability 2.5 % at most; this seed does not.
    """
    rng = np.random.default_rng(1)
    order = rng.permutation(64)
    included = order < 32
    for subject, lower, upper in zip(subjects, (0.0, 2.5), (1e-9, 3.0), strict=True):
        canaries = np.concatenate([subject.members[:32], subject.non_members[:32]])[order]
        (row,) = baselines.run(("one_run",), dataclasses.replace(subject, canaries=canaries, included=included))
        assert lower <= row.value <= upper
        assert (row.lower, row.upper, row.n) == (row.value, None, 64)
        assert row.notes[0].startswith("64 canaries, 32 of them trained on")
    # The half that is told of an error of 5 %, shared by three pairs of guesses.
    whole = one_run.epsilon_bound(64, 64, 64, delta=1e-5, confidence=1 - 0.025 / 3)
    assert row.value == pytest.approx(whole.lower)
    (none,) = baselines.run(("one_run",), subjects[0])
    assert none.value is None
    assert none.notes == ("no canaries were planted",)


def test_repeated_samples_are_cliques(subjects):
    one = dataclasses.replace(subjects[1], samples=np.repeat(subjects[1].members[:30], 12, axis=0))
    row, _ = baselines.run(("extraction",), one)
    assert row.notes[3].startswith("30 cliques of 10 or more near duplicates in 360")


def test_equal_held_out_records_do_not_bring_the_clique_limit_to_nothing(subjects):
    """Near copies, no two of them equal: at a limit of 0 there would be no clique. Checked against all pairs."""
    one, rng = subjects[1], np.random.default_rng(2)
    samples = np.repeat(one.members[:30], 12, axis=0)
    samples = (samples + 1e-3 * rng.normal(size=samples.shape)).astype(np.float32)
    held = one.non_members.astype(np.float64)
    apart = np.sqrt(((held[:, None] - held[None]) ** 2).mean(axis=2))[np.triu_indices(len(held), 1)]
    twice = np.concatenate([one.non_members, one.non_members])
    for non_members in (one.non_members, np.concatenate([one.non_members, one.non_members[:1]]), twice):
        row, _ = baselines.run(("extraction",), dataclasses.replace(one, samples=samples, non_members=non_members))
        assert row.notes[3].startswith("30 cliques of 10 or more near duplicates in 360")
        assert row.notes[3].endswith(f"at most {0.5 * apart.min():.2g} apart")
    # Where all are equal nothing is known of how far apart people are, and only equal draws count.
    same = np.repeat(one.non_members[:1], 20, axis=0)
    row, _ = baselines.run(("extraction",), dataclasses.replace(one, samples=samples, non_members=same))
    assert row.notes[3] == "0 cliques of 10 or more near duplicates in 360 samples, at most 0 apart"


def test_what_cannot_be_said_says_so(subjects):
    few = dataclasses.replace(subjects[0], non_members=subjects[0].non_members[:50], features=None)
    rows = baselines.run(("copy_ratio", "frechet_gap", "pia"), few)
    assert [row.value is None for row in rows] == [True, True, False, True, True]
    assert "at least 99 negatives" in rows[0].notes[0]
    assert "no feature network" in rows[1].notes[0]
    seen = np.concatenate([subjects[1].non_members[1:], subjects[1].members[7:8]])
    (row,) = baselines.run(("copy_ratio",), dataclasses.replace(subjects[1], non_members=seen))
    assert (row.value, row.lower, row.upper) == (None, None, None)
    assert "held-out records equal training records" in row.notes[0]


@pytest.mark.parametrize(
    ("chosen", "change", "message"),
    [
        (("guess",), {}, "baselines: expected some of loss"),
        (("pia", "pia"), {}, "each name once"),
        (("pia",), {"samples": np.zeros((9, 3), np.float32)}, "baselines.samples"),
        (("pia",), {"non_members": np.zeros((2, DIM), np.float32)}, "at least 8"),
        (("pia",), {"score": BrokenScore(0.5)}, "pia: the model gives NaN"),
    ],
)
def test_bad_input_is_refused(subjects, chosen, change, message):
    with pytest.raises(InputError, match=message) as caught:
        baselines.run(chosen, dataclasses.replace(subjects[0], **change))
    assert "\n" not in str(caught.value)


def test_an_excess_holds_at_its_level_though_it_is_of_two_shares() -> None:
    """5 and 2 of 100, each by Clopper and Pearson's Beta quantiles at 97.5 %."""
    row = baselines._excess(rate(5, 100), rate(2, 100), 0.95)
    lower, upper = stats.beta.ppf(0.0125, 5, 96), stats.beta.ppf(0.9875, 6, 95)
    assert row.lower == pytest.approx(lower - stats.beta.ppf(0.9875, 3, 98))
    assert row.upper == pytest.approx(upper - stats.beta.ppf(0.0125, 2, 99))


def test_the_difference_of_two_means_has_welchs_interval() -> None:
    rng = np.random.default_rng(4)
    one, two = rng.normal(1, 1, 9), rng.normal(0, 3, 5)
    value, reach = baselines._welch(one, two, 0.9)
    known = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.9)
    assert (value - reach, value + reach) == pytest.approx((known.low, known.high))
