"""Sources by name, and the options that they share."""

import numpy as np
import pytest

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
