"""Every record once an epoch, any batch from its number alone, any number of processes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_privacy.data.pipeline import Batches, eval_batches
from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import InputError

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def toy(n, first=0):
    """Records whose pixels, label and identity all follow from the index."""
    index = np.arange(first, first + n, dtype=np.int32)
    image = np.broadcast_to((index / 1000).astype(np.float32)[:, None, None, None], (n, 2, 2, 1))
    return Records(image.copy(), index % 5, index // 2, index, num_classes=5, name="toy")


def stream(batches, steps):
    return np.concatenate([batches.batch(step)["index"] for step in steps])


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key])


@given(SIZES, SIZES, SEEDS, st.booleans())
def test_every_epoch_holds_each_record_once(n, batch_size, seed, shuffle):
    batches = Batches(toy(n), batch_size, seed, shuffle)
    epochs = 4
    flat = stream(batches, range(-(-epochs * n // batch_size)))[: epochs * n]
    for epoch in flat.reshape(epochs, n):
        assert sorted(epoch.tolist()) == list(range(n))
        assert shuffle or epoch.tolist() == list(range(n))


@given(SIZES, SIZES, SEEDS, st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_a_batch_is_a_function_of_seed_and_step(n, batch_size, seed, steps):
    """Steps asked for in any order, by an object that has served others, equal those of a fresh object."""
    used = Batches(toy(n), batch_size, seed)
    for step in steps:
        same(used.batch(step), Batches(toy(n), batch_size, seed).batch(step))


@given(SIZES, SIZES, SEEDS, st.integers(0, 12))
def test_resumed_equals_uninterrupted(n, batch_size, seed, stop):
    whole = stream(Batches(toy(n), batch_size, seed), range(20))
    first = Batches(toy(n), batch_size, seed)
    before = [first.batch(step)["index"] for step in range(stop)]
    saved = json.loads(json.dumps(first.state(stop)))
    second = Batches(toy(n), batch_size, seed)
    after = [second.batch(step)["index"] for step in range(second.check(saved), 20)]
    np.testing.assert_array_equal(np.concatenate(before + after), whole)


@given(SIZES, SIZES, SEEDS, st.integers(0, 50), st.lists(st.integers(0, 39), min_size=1, max_size=9))
def test_rows_are_those_of_the_batch_in_any_order(n, batch_size, seed, step, rows):
    """What a process of a job reads for its devices; a row may come twice, as padding does."""
    rows = np.minimum(rows, batch_size - 1)
    batch = Batches(toy(n), batch_size, seed).batch(step)
    same(Batches(toy(n), batch_size, seed).rows(step, rows), {key: value[rows] for key, value in batch.items()})


def test_batch_fields():
    batch = Batches(toy(10), 4, seed=1).batch(2)
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "image": ("float32", (4, 2, 2, 1)),
        "label": ("int32", (4,)),
        "identity": ("int32", (4,)),
        "index": ("int32", (4,)),
        "position": ("int32", (4,)),
    }
    index = batch["index"]
    assert batch["position"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(batch["label"], index % 5)
    np.testing.assert_array_equal(batch["identity"], index // 2)
    np.testing.assert_array_equal(batch["image"][:, 1, 1, 0], (index / 1000).astype(np.float32))
    batch["image"][:] = 0  # the caller's own copy


def test_epochs_and_seeds_differ():
    flat = stream(Batches(toy(50), 50, seed=0), range(3))
    assert len(np.unique(flat.reshape(3, 50), axis=0)) == 3
    assert stream(Batches(toy(50), 50, seed=1), [0]).tolist() != flat[:50].tolist()


def test_the_cache_stays_small():
    batches = Batches(toy(3), 64, seed=0)
    for step in range(5):
        batches.batch(step)
    assert len(batches._orders) == 2


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (Batches(toy(8, first=1), 4, 5), "records"),
        (Batches(toy(9), 4, 5), "num_records"),
        (Batches(toy(8), 2, 5), "batch_size"),
        (Batches(toy(8), 4, 6), "seed"),
        (Batches(toy(8), 4, 5, shuffle=False), "shuffle"),
    ],
)
def test_resuming_with_other_data_is_refused(other, field):
    saved = Batches(toy(8), 4, 5).state(3)
    assert Batches(toy(8), 4, 5).check(saved) == 3
    with pytest.raises(InputError, match=f"data state: {field} was"):
        other.check(saved)


@pytest.mark.parametrize("change", [{"step": -1}, {"step": "3"}, {"step": True}, {"version": 0}])
def test_a_broken_state_is_refused(change):
    batches = Batches(toy(8), 4, 5)
    with pytest.raises(InputError, match=next(iter(change))):
        batches.check(batches.state(3) | change)
    with pytest.raises(InputError, match="seed is missing"):
        batches.check({"step": 3, "version": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "batch_size is 0"),
        ((2.5, 1), "batch_size is 2.5"),
        ((4, -1), "seed is -1"),
    ],
)
def test_batches_refuse(arguments, message):
    with pytest.raises(InputError, match=message):
        Batches(toy(8), *arguments)


def test_programming_errors_are_not_input_errors():
    with pytest.raises(ValueError, match="step is -1"):
        Batches(toy(8), 4, 1).batch(-1)


@given(SIZES, st.integers(1, 24))
def test_evaluation_sees_every_record_once_in_order(n, batch_size):
    whole = list(eval_batches(toy(n), batch_size))
    assert len(whole) == -(-n // batch_size)
    assert {batch["image"].shape for batch in whole} == {(batch_size, 2, 2, 1)}
    mask = np.concatenate([batch["mask"] for batch in whole])
    assert mask.dtype == np.float32
    assert mask.tolist() == [1.0] * n + [0.0] * (len(mask) - n)
    index = np.concatenate([batch["index"] for batch in whole])
    assert index[mask == 1].tolist() == list(range(n))
    assert np.concatenate([batch["position"] for batch in whole]).tolist() == list(range(len(mask)))


def test_evaluation_refuses_at_the_call_not_at_the_first_batch():
    with pytest.raises(InputError, match="batch_size is 0"):
        eval_batches(toy(3), 0)
