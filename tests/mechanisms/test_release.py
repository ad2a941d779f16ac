"""A whole release: what it promises, what it refuses, that no seed can repeat it."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import json

import jax.numpy as jnp
import numpy as np
import pytest
from toy_release import PUBLIC, SHAPE, decode, encode, gaussian, go, records, run

from diffusion_privacy.data.records import FILE_HASH, LEVEL_HASH, VALUE_HASH
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import export
from diffusion_privacy.mechanisms import manifest as manifest_module
from diffusion_privacy.mechanisms.accounting import Spend
from diffusion_privacy.mechanisms.condition import (
    PublicAttributes,
    PublicCondition,
    RandomizedAttributes,
    RandomizedResponse,
)
from diffusion_privacy.mechanisms.decoding import CoarseSelection
from diffusion_privacy.mechanisms.discrete import DiscreteGaussian, DiscreteLaplace
from diffusion_privacy.mechanisms.ledger import Ledger, value_hashes
from diffusion_privacy.mechanisms.manifest import FlowProvenance, Manifest
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism, LaplaceMechanism, MetricMechanism
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, REPLACE_RECORD_AND_CONDITION, replace_person
from diffusion_privacy.mechanisms.release import noised, privatise

dp_accounting = pytest.importorskip("dp_accounting")


def test_a_manifest_s_sentence_promises_no_more_than_its_numbers():
    """Planted: to the nearest, 1.23456749 is printed as 1.23457 and 1.23456049 as 1.23456."""
    for epsilon, delta in ((1.23456049, 1.2345604e-5), (1.0000004, 1e-5), (7.1234561, 0.0)):
        said = manifest_module._guarantee(gaussian(), PUBLIC, epsilon, delta, REPLACE_RECORD)
        printed = [float(text) for text in said[1:].partition(")")[0].split(", ")]
        assert epsilon <= printed[0] <= epsilon * (1 + 1e-5)
        assert delta <= printed[1] <= delta * (1 + 1e-5)
    rate = float(MetricMechanism(0.123456049, "l2").statement().split()[2])
    assert 0.123456049 <= rate <= 0.123457


def test_promise_and_count():
    out = run()
    assert out.data.shape == (10, *SHAPE)
    np.testing.assert_array_equal(out.labels, records()[1])
    manifest = out.manifest
    assert manifest.epsilon == pytest.approx(1.0)
    assert (manifest.delta, manifest.clip_norm, manifest.sensitivity) == (1e-5, 2.0, 4.0)
    assert (manifest.count_in, manifest.count_out) == (10, 10)
    assert manifest.clip_share is None
    assert "(1, 1e-05)-differentially private under replace-record-same-public-condition" in manifest.guarantee
    assert "the class of every record" in manifest.public


def test_randomised_condition_adds_its_epsilon_and_is_what_the_flow_sees():
    seen = []

    def spy(x, c):
        seen.append(np.asarray(c))
        return encode(x, c)

    images, labels = records(10)
    out = privatise(
        spy,
        decode,
        images,
        labels,
        mechanism=LaplaceMechanism.calibrated(2.0, 2.0, REPLACE_RECORD_AND_CONDITION),
        condition=RandomizedResponse(0.5, 3),
        relation=REPLACE_RECORD_AND_CONDITION,
        delta=0.0,
        flow=PUBLIC,
        batch_size=10,
    )
    np.testing.assert_array_equal(seen[0], out.labels)
    assert out.manifest.epsilon == pytest.approx(2.5)
    assert out.manifest.condition_epsilon == pytest.approx(0.5)
    assert "the class of every record" not in out.manifest.public
    assert run(relation=REPLACE_RECORD_AND_CONDITION).manifest.guarantee.startswith("none")


def test_no_argument_of_a_release_can_repeat_its_noise():
    assert not {"key", "seed", "keys", "rng"} & set(inspect.signature(privatise).parameters)
    np.random.seed(0)  # noqa: NPY002
    one = run().data
    np.random.seed(0)  # noqa: NPY002
    two = run().data
    # Noise is rounded to a grid, where two fresh draws agree with probability .001 a coordinate: 16 of 160 would be
    # a false alarm of 1e-20.
    assert (one == two).mean() < 0.1


@pytest.mark.parametrize(
    "mechanism",
    [
        gaussian(),
        LaplaceMechanism.calibrated(1.0, 2.0, REPLACE_RECORD),
        DiscreteGaussian.calibrated(1.0, 1e-5, 2.0, REPLACE_RECORD, 100),
        DiscreteLaplace.calibrated(1.0, 2.0, REPLACE_RECORD),
        MetricMechanism(1.0, "l2"),
    ],
)
def test_every_mechanism_states_its_promise_and_writes_valid_json(mechanism):
    out = run(mechanism=mechanism)
    assert np.isfinite(out.data).all()
    manifest = json.loads(export.manifest_json(out.manifest))
    assert manifest["mechanism"] == mechanism.name
    if mechanism.name == "metric":
        assert manifest["epsilon"] is None
        assert "not ε-DP" in manifest["guarantee"]
    else:
        assert manifest["epsilon"] <= 1.0 + 1e-9
    text = json.dumps(manifest).lower()
    assert "seed" not in text
    assert not [name for name in manifest if "key" in name]


def test_flow_trained_on_the_same_records_is_refused_unless_said():
    images, _ = records()
    with pytest.raises(InputError, match="3 of the 10 records"):
        run(flow=FlowProvenance("public", frozenset(value_hashes(images[:3]))))
    with pytest.raises(InputError, match="hashes"):
        FlowProvenance("public")
    with pytest.raises(InputError, match="flow_training"):
        FlowProvenance("private")
    out = run(flow=FlowProvenance("mechanism-only", frozenset(value_hashes(images))))
    assert out.manifest.guarantee.startswith("none end to end; the latent step alone: (1, ")
    assert out.manifest.epsilon is None
    assert out.manifest.latent_epsilon == pytest.approx(1.0)
    assert out.manifest.warnings


def test_hashes_of_two_kinds_are_not_held_against_each_other():
    """The flow learnt from these very records; hashes of another kind share none with theirs."""
    images, _ = records()
    levels, files = ([f"{mark}{i:031x}" for i in range(10)] for mark in "0f")
    learnt = FlowProvenance("public", frozenset(levels), kind=LEVEL_HASH)
    words = "training records are of stored grey levels, those of the records are of"
    with pytest.raises(InputError, match=f"{words} prepared values"):
        run(flow=learnt)
    with pytest.raises(InputError, match=f"{words} bytes of files") as caught:
        run(flow=learnt, hashes=files, hash_kind=FILE_HASH)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="10 of the 10 records are in the flow's training set"):
        run(flow=learnt, hashes=levels, hash_kind=LEVEL_HASH)
    # Arrays alone are a kind as well.
    by_value = FlowProvenance("public", frozenset(value_hashes(images + 1)), kind=VALUE_HASH)
    assert run(flow=by_value).manifest.warnings == ()
    # Where a kind is not known nothing can be refused, and that is said.
    unknown = FlowProvenance("public", frozenset(levels))
    for changes in ({"flow": unknown}, {"flow": unknown, "hashes": files, "hash_kind": FILE_HASH},
                    {"flow": learnt, "hashes": files}):  # fmt: skip
        [warning] = run(**changes).manifest.warnings
        assert "those of two kinds never meet" in warning
    with pytest.raises(InputError, match=r"flow_training\.kind: expected one of .* got 'pixels'"):
        FlowProvenance("public", frozenset(levels), kind="pixels")
    for changes in ({"hash_kind": LEVEL_HASH}, {"hash_kind": "pixels", "hashes": files}):
        with pytest.raises(InputError, match="hash_kind: expected one of"):
            run(**changes)


def test_private_flow_composes():
    spend = Spend(dp_accounting.GaussianDpEvent(4.0), "add-or-remove-one")
    out = run(flow=FlowProvenance("dp-sgd", None, spend, stage="flow training"))
    assert out.manifest.epsilon > 1.5
    assert out.manifest.latent_epsilon == pytest.approx(1.0)
    for bad in (("dp-sgd", None, None), ("public", frozenset(), spend), ("mechanism-only", None, spend)):
        with pytest.raises(InputError, match="privacy event"):
            FlowProvenance(*bad)
    for training, event, stage in (("dp-sgd", spend, ""), ("public", None, "flow training")):
        with pytest.raises(InputError, match="name of the ledger's entry"):
            FlowProvenance(training, frozenset(), event, stage=stage)


def test_bad_records_are_named():
    images, labels = records()
    broken = images.copy()
    broken[7, 0, 0, 0] = np.nan

    with pytest.raises(InputError, match="record 7"):
        go(broken, labels)
    with pytest.raises(InputError, match="record 2 has class 9"):
        go(images, np.array([0, 1, 9, 0, 1, 2, 0, 1, 2, 0]))
    with pytest.raises(InputError, match="labels"):
        go(images, labels[:-1])
    with pytest.raises(InputError, match="at least one"):
        go(images[:0], labels[:0])
    with pytest.raises(InputError, match="1/n"):
        go(images, labels, delta=0.1)
    with pytest.raises(InputError, match="relation"):
        go(images, labels, relation=None)


def test_people_with_several_records():
    person = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7])
    assert "not for a person" in run(person=person).manifest.warnings[0]
    with pytest.raises(InputError, match="3 records"):
        run(person=person, relation=replace_person(2))
    out = run(person=person, relation=replace_person(3), mechanism=gaussian(1.0, replace_person(3)))
    assert out.manifest.epsilon == pytest.approx(1.0)
    assert "3 records a person" in out.manifest.guarantee


def test_releases_for_people_add_up_though_their_images_differ(tmp_path):
    """Entered by the hashes of images, two releases of the same people would look like releases of strangers."""
    relation = replace_person(2)
    person = np.arange(10) // 2
    ledger = Ledger(tmp_path / "ledger.jsonl", 4.0, 1e-5)
    for name, hashes in (("one", [f"a{i}" for i in range(10)]), ("two", [f"b{i}" for i in range(10)])):
        out = run(person=person, relation=relation, mechanism=gaussian(1.0, relation), hashes=hashes)
        export.publish(out, tmp_path / name, ledger=ledger)
    assert [entry.relation for entry in ledger.entries()] == [relation, relation]
    composition = json.loads((tmp_path / "two" / "manifest.json").read_text())["composition"]
    # Two Gaussian releases are one of the noise over √2, at more than 1.4 times the ε.
    assert composition["epsilon_covered_stages"] > 1.4
    assert composition["relation"] == "replace-record-same-public-condition, 2 records a person"


def test_unselected_latents_carry_nothing_of_the_record():
    selection = CoarseSelection((0, 1), 16)
    near_exact = GaussianMechanism(50.0, 1e-3)
    images, _ = records()
    out = run(mechanism=near_exact, selection=selection, match=False)
    flat, truth = out.data.reshape(10, 16), images.reshape(10, 16)
    np.testing.assert_allclose(flat[:, :2], truth[:, :2], atol=0.01)
    assert np.abs(flat[:, 2:] - truth[:, 2:]).mean() > 0.3
    again = run(mechanism=near_exact, selection=selection, match=False).data.reshape(10, 16)
    assert np.abs(flat[:, 2:] - again[:, 2:]).min() > 0.0  # fresh draws, by the prior's density never the same
    assert (out.manifest.selected_latents, out.manifest.latent_dim) == (2, 16)


@pytest.mark.parametrize("selection", [None, CoarseSelection(tuple(range(8)), 16)])
def test_a_latent_of_several_parts_has_one_ball(selection):
    # Where parts of a latent were clipped one by one, as the reference does with split outputs, a record that is far
    # out in all of them would come back with norm C√2 (halves) or 4C (coordinates).
    images = np.ones((6, *SHAPE), np.float32) * np.array([1e3, -1e3, 7.0, 1e-3, 50.0, 1.0]).reshape(6, 1, 1, 1)
    out = privatise(
        lambda x, c: x.reshape(x.shape[0], -1), lambda z, c: z.reshape(z.shape[0], *SHAPE),
        images.astype(np.float32), np.zeros(6, np.int32), mechanism=GaussianMechanism(2.0, 1e-5), flow=PUBLIC,
        condition=PublicCondition(1), relation=REPLACE_RECORD, delta=1e-5, selection=selection, match=False,
    )  # fmt: skip
    flat = out.data.reshape(6, 16)[:, : 16 if selection is None else 8]
    inside = np.linalg.norm(images.reshape(6, 16)[:, : flat.shape[1]], axis=1) < 2.0
    assert inside.tolist() == [False, False, False, True, False, False]
    np.testing.assert_allclose(np.linalg.norm(flat[~inside], axis=1), 2.0, atol=1e-3)
    np.testing.assert_allclose(flat[inside], 1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_a_mechanism_of_ones_own_is_taken_as_it_is():
    class Halved(GaussianMechanism):
        name = "halved"

    @dataclasses.dataclass(frozen=True)
    class Own:
        inner: GaussianMechanism
        name = "own"
        arithmetic = norm = "l2"

        def __call__(self, key, z):
            return self.inner(key, z)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    for mechanism in (Halved(2.0, gaussian().sigma), Own(gaussian())):
        out = run(mechanism=mechanism, match=False)
        assert out.manifest.mechanism == mechanism.name
        assert out.manifest.epsilon == pytest.approx(1.0)
        assert np.std(out.data) > 1.0


def test_what_a_subclass_does_with_a_record_is_what_is_released():
    class Sevens(GaussianMechanism):
        def __call__(self, key, z):
            return jnp.full_like(z, 7.0)

    assert np.all(noised(Sevens(2.0, 1.0), jnp.zeros((3, 4))) == 7.0)


def test_shapes_that_do_not_fit_are_refused():
    class Shorter(GaussianMechanism):
        def __call__(self, key, z):
            return z[:2]

    with pytest.raises(ValueError, match=r"mechanism must return a latent like the one it got, \(16,\), got \(2,\)"):
        run(mechanism=Shorter(2.0, 1.0))
    images, labels = records(3)
    flat = lambda z, c: z  # noqa: E731
    given = {"condition": PublicCondition(3), "relation": REPLACE_RECORD, "delta": 1e-5, "flow": PUBLIC}
    with pytest.raises(ValueError, match=r"decode must return records like those given, \(3, 4, 4, 1\), got \(3, 16\)"):
        privatise(encode, flat, images, labels, mechanism=gaussian(), **given)


def test_clip_share_is_of_public_latents_only():
    latents = np.zeros((4, 16))
    latents[0] = 100.0
    assert run(public_latents=latents).manifest.clip_share == 0.25


def test_attributes_are_randomised_and_it_is_those_that_the_flow_sees(tmp_path):
    images, _ = records(10)
    attributes = np.random.default_rng(1).integers(0, 2, (10, 4))
    seen = {"encode": [], "decode": []}

    def spy(name):
        def code(x, c):
            seen[name].append(np.asarray(c))
            return x.reshape(x.shape[0], -1) if name == "encode" else x.reshape(x.shape[0], *SHAPE)

        return code

    def go(condition, relation):
        return privatise(
            spy("encode"), spy("decode"), images, attributes, condition=condition, relation=relation, delta=0.0,
            mechanism=LaplaceMechanism.calibrated(2.0, 2.0, relation), flow=PUBLIC, batch_size=10,
        )  # fmt: skip

    out = go(RandomizedAttributes.even(0.4, 4), REPLACE_RECORD_AND_CONDITION)
    np.testing.assert_array_equal(seen["encode"][0], out.labels)
    np.testing.assert_array_equal(seen["decode"][0], out.labels)
    assert (out.labels != attributes).any()  # false alarm: all 40 kept with probability .525^40
    assert out.manifest.epsilon == pytest.approx(2.4)
    assert out.manifest.condition_epsilon == pytest.approx(0.4)
    assert not any("attributes" in fact for fact in out.manifest.public)
    where = export.publish(out, tmp_path / "out", ledger=None, class_names=["bald", "hat", "old", "young"])
    with (where / "attributes.csv").open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == ["path", "bald", "hat", "old", "young"]
    assert all((where / row[0]).is_file() for row in read[1:])
    np.testing.assert_array_equal(np.array([row[1:] for row in read[1:]], int), out.labels)
    np.testing.assert_array_equal(np.load(where / "data.npz")["label"], out.labels)
    public = go(PublicAttributes(4), REPLACE_RECORD)
    np.testing.assert_array_equal(public.labels, attributes)
    assert "the attributes of every record" in public.manifest.public
    with pytest.raises(InputError, match="4 distinct names"):
        export.publish(public, tmp_path / "bad", ledger=None, class_names=["bald"])
    assert not (tmp_path / "bad").exists()


def test_decoded_nan_drops_no_record(tmp_path):
    images, labels = records()
    out = privatise(
        encode,
        lambda z, c: jnp.full((z.shape[0], *SHAPE), jnp.nan),
        images,
        labels,
        mechanism=gaussian(),
        condition=PublicCondition(3),
        relation=REPLACE_RECORD,
        delta=1e-5,
        flow=PUBLIC,
    )
    where = export.publish(out, tmp_path / "out", ledger=None)
    assert len(list(where.rglob("*.png"))) == 10


def test_manifest_has_the_promised_fields():
    names = {field.name for field in dataclasses.fields(Manifest)}
    assert names >= {
        *("mechanism", "norm", "clip_norm", "sensitivity", "relation", "epsilon", "delta", "noise_scale", "public"),
        *("flow_training", "clip_share", "count_in", "count_out", "composition", "versions"),
    }
