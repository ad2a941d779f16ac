"""Attacks on private copies look at what they claim to: strangers are strangers, and no latent is made up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_cadp import study

from diffusion_privacy.data import sources
from diffusion_privacy.data.table_encoding import Encoder
from diffusion_privacy.data.table_rows import Rows
from diffusion_privacy.data.tables import Column, Schema, Table
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import cadp_schema, structure
from diffusion_privacy.stages import cadp_audit, cadp_evaluate, cadp_study, joined_audit
from diffusion_privacy.stages.cadp_study import Parts

JOINED = SimpleNamespace(seed=0, epsilon=1.0, study=None, risk=SimpleNamespace(level=0.95, attack_records=1000))
TWICE = 8
"""Test records that equal one that was learnt from."""


def parts(learnt: str) -> Parts:
    """Shares of 20 digits; the last test records are those of the share ``learnt`` under other names."""
    digits = sources.load("digits", limit=60)
    shares = {"public": digits.take(np.arange(20)), "private": digits.take(np.arange(20, 40))}
    test = digits.take(np.arange(40, 60))
    images = np.array(test.image)
    images[-TWICE:] = shares[learnt].image[:TWICE]
    return Parts(**shares, test=test.with_images(images))


def known(images: np.ndarray, learnt: np.ndarray) -> np.ndarray:
    """1 where an image was learnt, and 0 elsewhere: what a perfect memoriser's score says."""
    return np.array([float(any(np.array_equal(image, one) for one in learnt)) for image in images])


class Flow:
    """Latents are the pixels; an image that is all white has none. Knows the images that it learnt."""

    model = SimpleNamespace(dims=64)

    def __init__(self, learnt=()):
        self.learnt = learnt

    def given(self, records):
        return records.label

    def attacker(self):
        return self

    def encode(self, images, labels, key):
        z = np.array(images.reshape(len(images), -1))
        z[np.all(z == 1, axis=1)] = np.nan
        return z, known(images, self.learnt)

    def sample(self, labels, key):
        return np.zeros((len(labels), 8, 8, 1), np.float32)


@pytest.mark.parametrize("learnt", ["public", "private"])
def test_test_images_that_the_flow_learnt_are_no_strangers_to_it(monkeypatch, learnt):
    """Taken for strangers they hid a flow that knows every record: AUC .8 instead of 1."""
    monkeypatch.setattr(cadp_audit, "inversion_errors", lambda *args: (0.0, 0.0))
    shares = parts(learnt)
    declared = {"public": "public", "private": "mechanism-only"}[learnt]
    settings = study({"flow.trained_on": learnt, "release.flow_training": declared})
    found = cadp_audit._flow(settings, shares, Flow(getattr(shares, learnt).image))
    assert found["membership"]["value"] == 1.0
    assert (found["members"], found["others"], found["left_out"]) == (20, 20 - TWICE, TWICE)


def test_members_and_others_are_drawn_from_all_classes_of_their_shares(monkeypatch):
    """A source that holds its records class by class, and a flow that knows classes and nobody: the first 60 of a
    large and of a small share are of different classes, and were told apart in all pairs."""
    monkeypatch.setattr(cadp_audit, "inversion_errors", lambda *args: (0.0, 0.0))
    digits = sources.load("digits", limit=900)
    by_class = digits.take(np.argsort(digits.label, kind="stable"))
    test = np.arange(0, 900, 10)
    flow = Flow()
    noise = np.random.default_rng(0)
    flow.encode = lambda x, labels, key: (x.reshape(len(x), -1), np.asarray(labels) + noise.uniform(0, 0.1, len(x)))
    learnt = by_class.take(np.setdiff1d(np.arange(900), test))
    shares = Parts(learnt, learnt.take(np.arange(2)), by_class.take(test))
    found = cadp_audit._flow(study({"attack.records": 60}), shares, flow)
    assert (found["members"], found["others"]) == (60, 60)
    assert found["membership"]["lower"] < 0.5 < found["membership"]["upper"]
    one, again = (cadp_audit.sampled(shares.public, 60, seed).index for seed in (0, 0))
    assert one.tolist() == again.tolist() != cadp_audit.sampled(shares.public, 60, 1).index.tolist()
    assert len(set(one.tolist())) == 60


@pytest.mark.parametrize("way", ["copy", "model"])
def test_test_records_that_equal_a_private_one_do_not_hide_a_leak_of_all(monkeypatch, way):
    shares = parts("private")
    sets, private = SimpleNamespace(parts=shares), shares.private
    if way == "copy":
        found = joined_audit._nearest_attack(JOINED, sets, private)
    else:
        monkeypatch.setattr(joined_audit.score_study, "make_sde", lambda settings: None)
        monkeypatch.setattr(joined_audit.attacks, "loss", lambda score, sde, x, *, label, seed: known(x, private.image))
        found = joined_audit._loss_attack(JOINED, None, sets)
    assert found["auc"]["value"] == 1.0
    assert (found["members"], found["non_members"], found["left_out"]) == (20, 20 - TWICE, TWICE)


def rows(age, smoker, person=None):
    """Rows of two columns, ages in a public range of 18 to 30, smoker apart."""
    schema = Schema(
        (
            Column("age", "integer", lower=18.0, upper=30.0),
            Column("smoker", "categorical", categories=("yes", "no")),
        )
    )
    person = None if person is None else np.asarray(person, np.int32)
    table = Table(schema, {"age": np.asarray(age), "smoker": np.asarray(smoker)}, "people", person=person)
    return Rows(table, Encoder(schema, ("smoker",)), np.arange(len(table), dtype=np.int32))


def test_rows_that_a_flow_cannot_tell_apart_have_equal_vectors_and_columns_apart():
    """Ages beyond the range look alike; another category apart does not, although the vectors are equal."""
    found = cadp_audit.same_as(rows([20, 45, 30, 21, 20], [0, 0, 1, 1, 1]), rows([20, 61, 20, 22], [0, 0, 0, 1]))
    assert found.tolist() == [True, True, False, False, False]


def of_rows(monkeypatch, learnt, test):
    """What the audit says of a flow that knows the rows it learnt, by heart, and no others."""
    monkeypatch.setattr(cadp_audit, "inversion_errors", lambda *args: (0.0, 0.0))
    flow = SimpleNamespace(model=Flow.model, given=lambda records: records.label)
    everyone = {(float(v[0]), int(c)) for v, c in zip(learnt.image, learnt.label, strict=True)}

    def encode(vectors, labels, key):
        seen = zip(vectors[:, 0].tolist(), np.asarray(labels).tolist(), strict=True)
        return vectors, np.array([float(one in everyone) for one in seen])

    flow.encode = encode
    found = cadp_audit._flow(study(), Parts(learnt, learnt, test), flow)
    structure.check(found, cadp_schema.FlowFacts, "flow", frozenset(), cadp_schema.RULES)
    return found


def test_rows_that_no_attack_can_tell_apart_are_counted_and_the_figure_without_them_stands_beside(monkeypatch):
    """Left out alone they would make a flow that knows nobody look as if it knew all; kept alone they hide one."""
    learnt = rows([*range(18, 26), 60, 61], [0] * 10)
    found = of_rows(monkeypatch, learnt, rows([*range(18, 26), 70, 71], [1] * 8 + [0] * 2))
    assert (found["others"], found["left_out"], found["same"]) == (10, 0, 2)
    assert found["membership"]["value"] == pytest.approx(0.9)
    assert found["membership_without_same"]["value"] == 1.0
    apart = of_rows(monkeypatch, learnt, rows(range(18, 28), [1] * 10))
    assert (apart["membership"]["value"], apart["same"], apart["membership_without_same"]) == (1.0, 0, None)
    few = of_rows(monkeypatch, learnt, rows([*range(18, 26), 25], [0] * 8 + [1]))
    assert (few["same"], few["membership_without_same"]) == (8, None)


def test_what_came_to_a_share_together_is_one_draw(monkeypatch):
    """A person's rows and equal rows: forty of them that are not told apart say no more than four."""
    assert len(np.unique(cadp_audit.dealt_together(rows([20, 20, 21, 22], [0] * 4)))) == 3
    assert len(np.unique(cadp_audit.dealt_together(rows([20, 20, 21, 22], [0] * 4, [1, 2, 2, 3])))) == 2
    digits = sources.load("digits", limit=4)
    assert cadp_audit.dealt_together(digits) is digits.identity
    learnt, test = rows(np.repeat([18, 19, 20, 21], 10), [0] * 40), rows(np.repeat([22, 23, 24, 25], 10), [0] * 40)
    found = of_rows(monkeypatch, learnt, test)["membership"]
    assert (found["value"], found["upper"]) == (1.0, 1.0)
    assert found["lower"] == pytest.approx(0.025 ** (1 / 4))  # of forty: .91


def test_without_two_strangers_there_is_no_attack():
    shares = parts("private")
    assert cadp_study.never_seen(shares.public, shares.private) is shares.public
    with pytest.raises(InputError, match=r"at least 2 test records that equal none of the 20.* got 1"):
        cadp_study.never_seen(shares.private.take([0, 1, 2]), shares.private.take([*range(2), *range(3, 20), 3]))


@pytest.mark.parametrize("which", ["a study", "a joined study"])
def test_a_latent_that_is_not_finite_is_refused_and_not_put_down_as_nobody_s(monkeypatch, which):
    """As zeros it has the same cosine with everybody: the record seemed unlinkable."""
    private = parts("private").private
    images = np.array(private.image)
    images[2] = 1.0
    released = private.with_images(images)
    settings = study({"release.epsilons": (1.0,), "attack.study_epsilons": ()})
    monkeypatch.setattr(cadp_study, "load_release", lambda *args: SimpleNamespace(records=released))

    def linked():
        if which == "a study":
            return cadp_audit._linkage(settings, None, parts("private"), Flow())
        return joined_audit._linkage(JOINED, Flow(), private, released)

    with pytest.raises(FloatingPointError, match=r"linkage, .*: the flow gives record 2 a latent that is not finite"):
        linked()
    released = private
    assert linked()


def test_images_equal_to_their_original_are_counted_beside_the_mean_psnr():
    """They are the most alike of all: left out in silence they made a copy look further from its originals."""
    black = np.full((4, 8, 8, 1), -1, np.float32)
    other = np.array(black)
    other[0] = 1.0  # 0 dB
    other[1] = -0.8  # 20 dB
    found = cadp_evaluate.mean_psnr(black, other)
    assert found["equal"] == 2
    assert found["psnr_db"] == pytest.approx(10.0, abs=1e-3)
    assert cadp_evaluate.mean_psnr(black, black) == {"psnr_db": None, "equal": 4}
