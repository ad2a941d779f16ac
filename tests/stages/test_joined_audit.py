"""The audit of the ways to share: of which record, class, copy and level each number is."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.anonymity import montecarlo, subspace, verdict
from diffusion_privacy.anonymity.intervals import rate
from diffusion_privacy.anonymity.tprime import HCurve
from diffusion_privacy.data import sources
from diffusion_privacy.stages import joined_audit
from diffusion_privacy.types import Estimate

pytestmark = pytest.mark.lightly_compiled

LEVEL = 0.9
PART = verdict.part_level(LEVEL)


def calibration(seen: int, alarms: int) -> SimpleNamespace:
    """A detector that saw ``seen`` of 100 returns and fired for ``alarms`` of 1,000 others."""
    return SimpleNamespace(
        true_positive_rate=rate(seen, 100, PART),
        false_positive_rate=rate(alarms, 1000, PART),
        thresholds=(float(seen), float(alarms)),
        reasons=(),
    )


class Marked(SimpleNamespace):
    def __len__(self):
        return len(self.index)


def setup(*calibrations, detect=None) -> SimpleNamespace:
    """Two marked private records and one control; γ = .05, four levels of h(t)."""
    marked = Marked(index=np.array([40, 41, 99]), label=np.array([2, 0, 1]), image=np.zeros((3, 2, 2, 1)))
    study = SimpleNamespace(
        seed=0,
        audit=SimpleNamespace(
            level=LEVEL, gamma=0.05, h_levels=4, h_draws=64, subspace_draws=100, subspace_max_draws=300
        ),
        fingerprint=SimpleNamespace(name="none"),
    )
    roles = SimpleNamespace(private=[None, None], marked=marked)
    return SimpleNamespace(
        study=study, chain=SimpleNamespace(steps=10), calibrations=calibrations, level=PART, roles=roles,
        uids=marked.index, detect=detect, at_once=8,
    )  # fmt: skip


def paths(value: float, lower: float, upper: float) -> subspace.SubspaceResult:
    """What E2 finds, narrower than any count."""
    one = Estimate("subspace", math.log(value), 1e-3, lower, upper, PART, 200, 150.0, True, 2000)
    return subspace.SubspaceResult(one, 0.1, 0.05, 120, subspace.Mixture((1,), (1.0,), (0.9,), 0.1), (0.1,))


# --- models -----------------------------------------------------------------------------------------------------------


def margin(params, x, record):
    return params["shift"][record]


def of_class(params, label, x, t):
    return label


@pytest.mark.parametrize(("number", "alarms"), [(0, 0), (1, 40)])
def test_a_model_s_numbers_are_of_its_own_record_class_and_share(monkeypatch, number, alarms) -> None:
    """E2 of draws of the class, .4 of all: it bounds q from below by .4 of its limit, and its value is none of q's."""
    asked = {}
    hits = HCurve(np.array([1, 4, 7, 10]), np.array([0.1, 0.4, 0.7, 1.0]), np.arange(64) < [[64], [20], [0], [0]], 10)

    def h_curves(chain, score, detect, records, levels, draws, key, *, uids, chunk):
        asked["h"] = (int(score(None, None)), float(detect(None, jnp.int32(0))), levels.tolist(), draws, uids.tolist())
        return [hits]

    def estimate(chain, score, detect, records, mixtures, key, *, uids, draws, max_draws, level, chunk):
        asked["e2"] = (int(score(None, None)), float(detect(None, jnp.int32(0))), draws, max_draws, uids.tolist())
        asked["level"] = level
        return [paths(0.12, 0.0875, 0.14)]

    monkeypatch.setattr(joined_audit.tprime, "h_curves", h_curves)
    monkeypatch.setattr(joined_audit.subspace, "estimate", estimate)
    detect = jax.tree_util.Partial(margin, {"shift": jnp.array([10.0, 20.0, 30.0])})
    cals = [calibration(90, alarms), calibration(80, alarms), calibration(70, 0)]
    score = jax.tree_util.Partial(of_class, {})
    label, uid = ((2, 40), (0, 41))[number]
    shares = np.array([0.6, 0.4, 0.0]) if number else np.array([0.6, 0.0, 0.4])
    shares[label] = 0.4
    margins = np.where(np.arange(1000) < 40, 1.0, -1.0)
    found = joined_audit._model_record(setup(*cals, detect=detect), score, number, margins, shares, "m", 500, 8)
    assert asked["h"] == (label, 10.0 * (number + 1), [1, 4, 7, 10], 64, [uid])
    assert asked["e2"] == (label, 10.0 * (number + 1), 100, 300, [uid])
    assert asked["level"] == PART
    direct = montecarlo.direct(40, 1000, tpr_lower=cals[number].true_positive_rate.lower, steps=10, level=PART)
    said, shown = found["verdict"], found["t_prime"]["statistical"]
    assert found["direct"]["upper"] == said["upper"] == direct.estimate.upper
    assert (found["subspace"]["value"], found["subspace"]["lower"]) == (pytest.approx(0.048), pytest.approx(0.035))
    assert (said["lower"], said["estimate"]) == (pytest.approx(0.035), pytest.approx(0.04))
    assert (said["bound"], said["level"]) == (1 / 500, LEVEL)
    assert said["status"] == (verdict.OPEN if alarms else verdict.LEAKS)
    assert shown["gamma"] == max(0.05, cals[number].false_positive_rate.upper)
    assert (shown["level"], shown["value"], found["h_curve"]["level"]) == (LEVEL, pytest.approx(0.4), LEVEL)
    assert (found["role"], found["index"], found["label"]) == ("private", uid, label)


def test_each_record_is_counted_by_its_own_margins(monkeypatch) -> None:
    """Of 12 private records 1/4, 3/4 and none are of the three classes; the bound is 1/12."""
    asked, written = [], {}

    def model_record(setup, score, number, margins, shares, name, n_train, chunk):
        asked.append((number, margins.tolist(), shares.tolist(), name, n_train))
        return {"verdict": {"sentence": ""}}

    columns = np.arange(6.0).reshape(2, 3)
    monkeypatch.setattr(joined_audit.common, "load_score", lambda *_: None)
    monkeypatch.setattr(joined_audit.joined_train, "chunk_size", lambda *_: 8)
    monkeypatch.setattr(joined_audit.montecarlo, "margins", lambda detect, images, records, chunk: columns[:, :records])
    monkeypatch.setattr(joined_audit, "_model_record", model_record)
    monkeypatch.setattr(joined_audit, "_loss_attack", lambda *_: None)
    label = np.repeat([0, 1], [3, 9])
    private = Marked(index=np.arange(12), label=label, num_classes=3, image=np.zeros((12, 2, 2, 1)))
    workdir = SimpleNamespace(
        root=Path("run"), read_arrays=lambda path: {"images": None}, path=lambda *parts: "/".join(parts),
        write_json=lambda path, value: written.update({path: value}),
    )  # fmt: skip
    sets = SimpleNamespace(parts=SimpleNamespace(private=private))
    joined_audit.audit_model(None, workdir, sets, setup(), "dp_model")
    shares = [0.25, 0.75, 0.0]
    assert asked == [(r, [r, r + 3], shares, "dp_model", 12) for r in range(3)]
    assert len(written["audit/dp_model.json"]["records"]) == 3


def test_a_class_that_is_never_drawn_has_no_e2(monkeypatch) -> None:
    curve = HCurve(np.array([10]), np.array([1.0]), np.zeros((1, 64), bool), 10)
    monkeypatch.setattr(joined_audit.tprime, "h_curves", lambda *_, **__: [curve])
    detect = jax.tree_util.Partial(margin, {"shift": jnp.zeros(3)})
    cals = [calibration(90, 0)] * 3
    score, shares = jax.tree_util.Partial(of_class, {}), np.array([0.5, 0.0, 0.5])
    found = joined_audit._model_record(setup(*cals, detect=detect), score, 2, -np.ones(1000), shares, "m", 500, 8)
    assert found["subspace"] is None
    assert (found["role"], found["verdict"]["lower"]) == ("control", 0.0)


def test_e2_of_one_class_lends_its_limits_and_not_its_value() -> None:
    """Other classes may give the record back as well: .022 is a part of q, and the count says .03."""
    direct = montecarlo.direct(30, 1000, steps=10, level=PART)
    part = paths(0.022, 0.019, 0.025)
    for found, value in ((part, 0.022), (joined_audit._as_limit(part), 0.03)):
        said = verdict.decide(direct, found, rate(0, 1000, PART), 1 / 500, LEVEL)
        assert said.estimate == pytest.approx(value)
    # A part far below the whole contradicts nothing.
    small = verdict.decide(
        direct, joined_audit._as_limit(paths(0.004, 0.0035, 0.0045)), rate(0, 1000, PART), 0.1, LEVEL
    )
    assert not any("exclude" in text for text in small.assumes)
    more = joined_audit._as_limit(paths(0.03, 0.025, 0.036))
    assert verdict.decide(direct, more, rate(0, 1000, PART), 1 / 500, LEVEL).lower == 0.025
    assert joined_audit._as_limit(None) is None


def test_the_detector_is_shown_at_its_worst_over_the_private_records() -> None:
    """Of the control, which is last, nothing counts: it sees least and errs most."""
    cals = [calibration(90, 3), calibration(60, 9), calibration(10, 100)]
    found = joined_audit.detector_entry(
        SimpleNamespace(study=SimpleNamespace(detector=SimpleNamespace(false_positive_rate=0.01, positive_time=0.1))),
        SimpleNamespace(audited=2),
        setup(*cals),
    )
    assert found["true_positive_rate"]["value"] == 0.6
    assert found["false_positive_rate"]["value"] == 0.009
    assert found["thresholds"] == {"fingerprint": 90.0, "identity": 3.0}
    assert found["false_positive_rate"]["level"] == PART


# --- the copy ---------------------------------------------------------------------------------------------------------


def shown_in(images: np.ndarray) -> np.ndarray:
    """A detector for which record r is shown where the pixel is r."""
    return np.where(images.reshape(len(images), -1)[:, :1] == np.arange(3), 1.0, -1.0)


def test_images_are_counted_by_copy_and_by_record(monkeypatch) -> None:
    monkeypatch.setattr(joined_audit.montecarlo, "margins", lambda detect, images, records, chunk: shown_in(images))
    copies = np.array([[0, 1, 1, 7], [2, 7, 7, 2]], float).reshape(2, 4, 1, 1, 1)
    assert joined_audit.detections(setup(), copies).tolist() == [[1, 2, 0], [0, 0, 2]]


def test_a_copy_s_rate_is_of_simulated_copies_and_its_count_of_the_one_that_was_released(monkeypatch) -> None:
    """Five copies of four images in two blocks show the records 3, 1 and 0 times; the released one 0, 2 and 1 times."""
    simulated = [
        np.array([[0, 9, 9, 9], [0, 0, 9, 9]], float).reshape(2, 4, 1, 1, 1),
        np.array([[9, 9, 9, 9], [1, 9, 9, 9], [9, 9, 9, 9]], float).reshape(3, 4, 1, 1, 1),
    ]
    image = np.array([1, 1, 2, 9], float).reshape(4, 1, 1, 1)
    asked = []

    def copy_blocks(settings, flow, records, copies, name):
        asked.append((len(records), copies, name))
        return iter(simulated)

    private = Marked(index=np.arange(4), image=image, label=np.zeros(4, int), num_classes=1)
    flow = SimpleNamespace(encode=lambda image, label, key: (image.reshape(len(image), -1), None))
    linked = []
    monkeypatch.setattr(joined_audit.cadp_study, "load_flow", lambda *_: flow)
    monkeypatch.setattr(joined_audit, "copy_blocks", copy_blocks)
    monkeypatch.setattr(joined_audit.common, "load_copy", lambda *_: SimpleNamespace(records=private))
    monkeypatch.setattr(joined_audit.montecarlo, "margins", lambda detect, images, records, chunk: shown_in(images))
    monkeypatch.setattr(joined_audit.cadp_audit, "link", lambda *args: linked.append(args) or {"rank1": None})
    monkeypatch.setattr(joined_audit, "_nearest_attack", lambda *_: {})
    settings = SimpleNamespace(
        seed=0, epsilon=2.0, cadp=None, certify=SimpleNamespace(copies=5), risk=SimpleNamespace(level=LEVEL)
    )
    written = {}
    workdir = SimpleNamespace(path=lambda *parts: "/".join(parts), write_json=lambda path, value: written.update(value))
    cals = [calibration(90, 0), calibration(80, 0), calibration(70, 0)]
    joined_audit.audit_copy(settings, workdir, SimpleNamespace(parts=SimpleNamespace(private=private)), setup(*cals))
    assert asked == [(4, 5, "with")]
    for record, hits, released, cal in zip(written["records"], (3, 1, 0), (0, 2, 1), cals, strict=True):
        direct = montecarlo.direct(hits, 20, tpr_lower=cal.true_positive_rate.lower, steps=0, level=PART)
        assert (record["direct"]["hits"], record["direct"]["n"], record["in_copy"]) == (hits, 20, released)
        said = record["verdict"]
        assert record["direct"]["upper"] == said["upper"] == direct.estimate.upper
        assert (said["bound"], said["level"]) == (1 / 4, LEVEL)
        assert f"In the copy that was released {released} of 4 images show it." in said["sentence"]
    assert written["linkage"]["epsilon"] == 2.0
    assert linked[0][4:6] == (LEVEL, False)


def test_every_simulated_copy_is_of_all_records_in_their_order(monkeypatch) -> None:
    """At the ε of the release; the copies of another purpose, or without another record, have noise of their own."""
    keys = []

    def study_images(cadp, flow, records, epsilons, key):
        keys.append(jax.random.key_data(key).tolist())
        assert epsilons == (2.0,)
        return [records.image]

    monkeypatch.setattr(joined_audit.cadp_study, "study_images", study_images)
    monkeypatch.setattr(joined_audit, "as_published", lambda images: images)
    monkeypatch.setattr(joined_audit, "_ROWS", 6)
    records, settings = sources.load("digits", limit=3), SimpleNamespace(seed=0, cadp=None, epsilon=2.0)
    for name, number in (("with", 0), ("with", 1), ("without", 0)):
        found = joined_audit.simulated_copies(settings, None, records, 3, name, number)
        np.testing.assert_array_equal(found, np.repeat(records.image[None], 3, axis=0))
    assert len({str(key) for key in keys}) == 6


def test_copies_are_rounded_to_the_grey_levels_that_are_published() -> None:
    found = joined_audit.as_published(np.array([-1.2, -1.0, 0.0049, 0.999, 1.3], np.float32))
    np.testing.assert_allclose(found, [-1, -1, 1 / 255, 1, 1], atol=1e-6)


# --- attacks ----------------------------------------------------------------------------------------------------------


def test_the_rate_of_an_attack_has_its_exact_limits(monkeypatch) -> None:
    point = SimpleNamespace(requested=0.1, tpr=rate(30, 100, LEVEL), reason="")
    points = [point, SimpleNamespace(**{**vars(point), "tpr": None})]
    area = SimpleNamespace(value=0.6, lower=0.5, upper=0.7)
    made = SimpleNamespace(points=points, auc=area, members=100, non_members=90)
    asked = []
    monkeypatch.setattr(joined_audit.membership, "membership", lambda *args, **how: asked.append((args, how)) or made)
    settings = SimpleNamespace(seed=3, risk=SimpleNamespace(level=LEVEL))
    people = np.array([4, 4]), np.array([5, 6])
    found = joined_audit._attack("a", "what", (np.ones(2), np.zeros(2)), people, 7, settings)
    assert found["left_out"] == 7
    limits = [(p["lower"], p["upper"]) for p in found["points"]]
    assert limits == [(point.tpr.lower, point.tpr.upper), (None, None)]
    assert found["points"][0]["value"] == 0.3
    [(args, how)] = asked
    assert (args[1].tolist(), args[2].tolist()) == ([1, 1], [0, 0])
    assert how == {"level": LEVEL, "seed": 3, "groups": people}


def test_images_of_one_person_are_one_draw_to_an_attack_s_interval() -> None:
    """Forty images each of 5 members and 5 others, whose scores are their person's: as 200 against 200 they would be
    told apart for certain."""
    ranks = np.random.default_rng(0).permutation(10)
    members, others = (np.repeat(ranks[side], 40) + np.tile(np.arange(40), 5) / 100 for side in (np.s_[:5], np.s_[5:]))
    people = np.repeat(np.arange(5), 40), np.repeat(np.arange(5, 10), 40)
    settings = SimpleNamespace(seed=0, risk=SimpleNamespace(level=LEVEL))
    found = joined_audit._attack("a", "what", (members, others), people, 0, settings)["auc"]
    alone = tuple(np.arange(200 * i, 200 * i + 200) for i in (0, 1))
    known = joined_audit._attack("a", "what", (members, others), alone, 0, settings)["auc"]
    assert found["value"] == known["value"]
    assert found["upper"] - found["lower"] > 4 * (known["upper"] - known["lower"])


def scores_of(monkeypatch) -> list:
    """What `_attack` is given as scores of members and of others."""
    given = []

    def attack(name, what, scores, people, left_out, settings):
        assert left_out == 0
        assert [len(side) for side in people] == [len(side) for side in scores]
        given.append(tuple(np.asarray(side) for side in scores))
        return {}

    monkeypatch.setattr(joined_audit, "_attack", attack)
    return given


def test_the_nearest_image_of_the_copy_is_sought_in_the_record_s_class(monkeypatch) -> None:
    """Digits 0, 1 and 2 of the source are of three classes; the copy has the first two, one of them as it was."""
    given, digits = scores_of(monkeypatch), sources.load("digits", limit=20)
    private, test = digits.take(np.array([0, 1, 2])), digits.take(np.array([10, 12]))
    released = digits.take(np.array([0, 11]))
    sets = SimpleNamespace(parts=SimpleNamespace(private=private, test=test))
    joined_audit._nearest_attack(SimpleNamespace(), sets, released)
    [(members, others)] = given
    assert digits.label[[0, 1, 2, 10, 11, 12]].tolist() == [0, 1, 2, 0, 1, 2]

    def apart(i, j):
        return -float(np.sqrt(np.sum((digits.image[i].astype(float) - digits.image[j]) ** 2)))

    np.testing.assert_allclose(members, [0.0, apart(1, 11), -np.inf], rtol=1e-5)
    np.testing.assert_allclose(others, [apart(10, 0), -np.inf], rtol=1e-5)


def test_the_loss_attack_tells_members_from_others(monkeypatch) -> None:
    """Each score is the place of its record; of 30 members 8 are looked at, of 6 others all."""
    given, digits = scores_of(monkeypatch), sources.load("digits", limit=60)
    private, test = digits.take(np.arange(30)), digits.take(np.arange(50, 56))
    where = {image.tobytes(): i for i, image in enumerate(digits.image)}

    def loss(score, sde, image, *, label, seed):
        places = [where[one.tobytes()] for one in image]
        assert label.tolist() == digits.label[places].tolist()
        return np.array(places)

    monkeypatch.setattr(joined_audit.attacks, "loss", loss)
    monkeypatch.setattr(joined_audit.score_study, "make_sde", lambda study: None)
    settings = SimpleNamespace(seed=0, study=None, risk=SimpleNamespace(attack_records=8))
    joined_audit._loss_attack(settings, None, SimpleNamespace(parts=SimpleNamespace(private=private, test=test)))
    [(members, others)] = given
    assert len(set(members.tolist())) == 8
    assert set(members.tolist()) <= set(range(30))
    # A source may hold its records class by class: the first eight would be of one.
    assert sorted(members.tolist()) != list(range(8))
    assert sorted(others.tolist()) == list(range(50, 56))
