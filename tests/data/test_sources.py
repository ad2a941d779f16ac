"""Sources by name, and the options that they share."""

import numpy as np
import pytest

from diffusion_privacy.data.assemble import assemble
from diffusion_privacy.data.records import CLASSES_KEPT
from diffusion_privacy.data.sources import SOURCES, load
from diffusion_privacy.errors import InputError


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    records = load("digits")
    assert records.image.shape == (1797, 8, 8, 1)
    assert (records.levels, records.num_classes, records.name) == (17, 10, "digits")
    assert records.image.min() == -1
    assert records.image.max() == 1
    np.testing.assert_array_equal((records.image[..., 0] + 1) * 8, load_digits().images)
    np.testing.assert_array_equal(records.label, load_digits().target)
    assert len(np.unique(records.identity)) == 1797


def test_classes_and_limit():
    records = load("digits", classes=(3, 8), limit=20)
    assert len(records) == 20
    assert set(records.label.tolist()) == {3, 8}
    everything = load("digits")
    np.testing.assert_array_equal(records.image, everything.image[records.index])
    np.testing.assert_array_equal(records.index, np.flatnonzero(np.isin(everything.label, [3, 8]))[:20])
    assert len(load("digits", limit=10**6)) == 1797
    assert (everything.assumed, records.assumed) == ((), (CLASSES_KEPT,))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"source": "digit"}, "source is 'digit'; expected one of digits, idx, npz, tfds, image_folder"),
        ({"source": "digits", "limits": 3}, "takes no 'limits'; expected some of classes, limit"),
        ({"source": "npz"}, "source 'npz' needs 'path'"),
        ({"source": "idx", "images": "x"}, "source 'idx' needs 'labels'"),
        ({"source": "digits", "limit": 0}, "limit is 0; expected a whole number >= 1"),
        ({"source": "digits", "limit": 2.0}, "limit is 2.0"),
        ({"source": "digits", "limit": True}, "limit is True"),
        ({"source": "digits", "classes": []}, r"classes is \[\]"),
        ({"source": "digits", "classes": [10]}, r"classes is \[10\]; expected different numbers in 0\.\.9"),
        ({"source": "digits", "classes": [1, 1]}, "different numbers"),
        ({"source": "digits", "classes": [-1]}, "classes is -1"),
        ({"source": "digits", "classes": 3}, "classes is 3; expected a list"),
        ({"source": "digits", "classes": "3"}, "classes is '3'; expected a list"),
    ],
)
def test_bad_requests_are_refused(params, message):
    with pytest.raises(InputError, match=message) as caught:
        load(**params)
    assert "\n" not in str(caught.value)


def test_what_is_none_and_not_taken_counts_as_not_given():
    assert len(load("digits", limit=5, path=None, table=None)) == 5
    with pytest.raises(InputError, match="source 'digits' takes no 'path'"):
        load("digits", path="x", table=None)
    with pytest.raises(InputError, match=r"limit is 0"):
        load("digits", limit=0, path=None)


def test_every_source_says_what_it_reads():
    for name, constructor in SOURCES.items():
        assert constructor.__name__ == name
        assert "Raises:" in constructor.__doc__
        first = constructor.__doc__.splitlines()[0]
        assert first.endswith("."), f"{name}: one line says what it is"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.full((3, 4, 4), 0.5)}, r"toy: pixels are float64; expected whole grey levels 0\.\.255"),
        ({"pixels": np.ones((3, 4, 4), bool)}, "toy: pixels are bool"),
        ({"label": np.array([0.2, 0.7, 1.0])}, "toy: label holds float64; expected whole numbers"),
        ({"label": ["ill", "well", "ill"]}, "toy: label holds <U4; expected whole numbers"),
        ({"identity": np.array([1, 2, 2**32])}, "toy: identity 4294967296 is out of range; .*number_people"),
        ({"index": np.arange(4)}, r"toy: index is int32 \(4,\); expected an int32 array \(3,\)"),
    ],
)
def test_a_source_of_ones_own_learns_what_is_wrong_with_its_arrays(changes, message):
    """A cast to int32 would cut 0.7 to class 0, and make the person 2**32 the person 0."""
    given = {"pixels": np.zeros((3, 4, 4), np.uint8), "label": [0, 1, 1], "identity": [0, 0, 1], "index": range(3)}
    with pytest.raises(InputError, match=message):
        assemble(**{**given, **changes}, num_classes=2, name="toy")
    assert assemble(**given, num_classes=2, name="toy").identity.tolist() == [0, 0, 1]


BLACK = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: {"image": np.zeros((2, 4, 4))}, "source 'mine' returned dict; expected Records"),
        (
            lambda: assemble(BLACK, [0] * 3, [0, 1, 2], [0, 5, 5], num_classes=1, name="toy"),
            "toy: index 5 stands 2 times",
        ),
    ],
)
def test_a_source_of_ones_own_is_looked_at(monkeypatch, made, message):
    """Two records of one place would both be taken for the private one, and both get its image."""
    monkeypatch.setitem(SOURCES, "mine", made)
    with pytest.raises(InputError, match=message):
        load("mine")
