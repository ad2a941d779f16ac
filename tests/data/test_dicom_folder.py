"""DICOM folders, written here with pydicom: values by the standard, people, and every way to break a file."""

import warnings

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid  # noqa: E402

from diffusion_privacy.data.records import FILE_HASH, split_records  # noqa: E402
from diffusion_privacy.data.sources import load  # noqa: E402
from diffusion_privacy.errors import InputError  # noqa: E402

STORED = np.array([[0, 1, 500, 1000, 2047], [2048, 3000, 3500, 4000, 4095]], np.uint16)


def put(file, pixels=STORED, *, patient="P1", bits=12, signed=False, **tags):
    """A file of one frame; a tag of None is left out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.PatientName, header.Rows, header.Columns = "Doe^Jane", *pixels.shape[:2]
    if patient is not None:
        header.PatientID = patient
    header.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    header.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        header.PlanarConfiguration = 0
    header.BitsAllocated, header.BitsStored, header.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    header.PixelRepresentation = int(signed)
    header.WindowCenter, header.WindowWidth = [2048, 100], [4096, 100]
    for tag, value in tags.items():
        if value is None:
            delattr(header, tag)
        else:
            setattr(header, tag, value)
    header.PixelData = pixels.tobytes()
    header.save_as(file, enforce_file_format=True)
    return file


def levels(records, top=255):
    return np.rint((records.image[..., 0].astype(np.float64) + 1) * top / 2).astype(int)


def linear(values, centre, width, top=255):
    """The pseudo-code of DICOM PS3.3, C.11.2.1.2.1, value by value."""
    made = []
    for x in np.asarray(values, float).ravel():
        if x <= centre - 0.5 - (width - 1) / 2:
            made.append(0.0)
        elif x > centre - 0.5 + (width - 1) / 2:
            made.append(float(top))
        else:
            made.append(((x - (centre - 0.5)) / (width - 1) + 0.5) * top)
    return np.rint(made).astype(int).reshape(np.shape(values))


def test_window_of_the_tags_and_of_the_config(tmp_path):
    put(tmp_path / "a" / "x.dcm")
    records = load("dicom_folder", path=tmp_path)
    np.testing.assert_array_equal(levels(records)[0], linear(STORED, 2048, 4096))
    assert (records.levels, records.num_classes, records.image.shape) == (256, 1, (1, 2, 5, 1))
    narrow = load("dicom_folder", path=tmp_path, window=(1000, 2))
    np.testing.assert_array_equal(levels(narrow)[0], linear(STORED, 1000, 2))
    wide = load("dicom_folder", path=tmp_path, window="full", bits=16)
    np.testing.assert_array_equal(levels(wide, 65535)[0], np.rint(STORED / 4095 * 65535).astype(int))
    assert wide.levels == 65_536
    assert "window centre and width of each file to 256" in records.preparation[1]
    assert (wide.source_hash == records.source_hash).all()
    assert wide.hash_kind == FILE_HASH


def test_rescale_comes_before_the_window(tmp_path):
    put(tmp_path / "a" / "x.dcm", RescaleSlope=0.5, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=500)
    np.testing.assert_array_equal(levels(load("dicom_folder", path=tmp_path))[0], linear(STORED * 0.5 - 1024, 0, 500))
    put(tmp_path / "b" / "a" / "x.dcm", RescaleSlope=-1, RescaleIntercept=0)
    turned = load("dicom_folder", path=tmp_path / "b", window="full")
    np.testing.assert_array_equal(levels(turned)[0], np.rint((4095 - STORED) / 4095 * 255).astype(int))


def test_monochrome1_is_turned_over(tmp_path):
    put(tmp_path / "a" / "x.dcm", PhotometricInterpretation="MONOCHROME1")
    put(tmp_path / "a" / "y.dcm")
    one, two = load("dicom_folder", path=tmp_path, window="full", bits=16).image
    # Rounding to even may part by a level where a value lies between two.
    assert np.abs(one + two).max() <= 2 / 65535


def test_only_the_stored_bits_count_and_they_may_be_signed(tmp_path):
    put(tmp_path / "a" / "x.dcm", STORED | np.uint16(0xF000))
    np.testing.assert_array_equal(
        levels(load("dicom_folder", path=tmp_path, window="full"))[0], np.rint(STORED / 4095 * 255).astype(int)
    )
    values = np.array([[-2048, -1, 0, 1, 2047]], np.int16)
    put(tmp_path / "b" / "a" / "x.dcm", values, signed=True, WindowCenter=0, WindowWidth=4096)
    np.testing.assert_array_equal(levels(load("dicom_folder", path=tmp_path / "b"))[0], linear(values, 0, 4096))


def test_other_voi_functions(tmp_path):
    tags = {"WindowCenter": 1000, "WindowWidth": 400}
    put(tmp_path / "a" / "x.dcm", VOILUTFunction="LINEAR_EXACT", **tags)
    put(tmp_path / "a" / "y.dcm", VOILUTFunction="SIGMOID", **tags)
    exact, sigmoid = levels(load("dicom_folder", path=tmp_path))
    np.testing.assert_array_equal(exact, np.rint(np.clip((STORED - 1000.0) / 400 + 0.5, 0, 1) * 255).astype(int))
    expected = 255 / (1 + np.exp(-4 * (STORED - 1000.0) / 400))
    assert np.abs(sigmoid - expected).max() <= 0.5 + 1e-9
    put(tmp_path / "a" / "y.dcm", VOILUTFunction="OTHER", **tags)
    with pytest.raises(InputError, match=r"y.dcm: has VOI LUT function OTHER"):
        load("dicom_folder", path=tmp_path)


def test_colour(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    put(tmp_path / "a" / "x.dcm", pixels, bits=8)
    np.testing.assert_array_equal(
        np.rint((load("dicom_folder", path=tmp_path, channels=3).image[0] + 1) * 127.5), pixels
    )
    assert load("dicom_folder", path=tmp_path).image.shape == (1, 4, 4, 1)


def test_people_come_from_the_tag_and_are_never_parted(tmp_path):
    for i in range(12):
        put(tmp_path / f"c{i % 2}" / f"{i:02}", patient=f"Q{i // 3}")
    (tmp_path / "c0" / "README").write_text("not an image")
    records = load("dicom_folder", path=tmp_path, crop=(2, 4), size=2)
    assert records.image.shape == (12, 2, 2, 1)
    assert len(np.unique(records.identity)) == 4
    first, second = split_records(records, (0.5, 0.5), seed=0)
    assert not set(first.identity) & set(second.identity)
    assert len(np.unique(load("dicom_folder", path=tmp_path, patients="unknown").identity)) == 12


def test_a_table_goes_before_the_tag(tmp_path):
    for name in "xyz":
        put(tmp_path / f"{name}.dcm", patient="P1")
    (tmp_path / "t.csv").write_text("path,label,identity\nz.dcm,ill,a\nx.dcm,well,b\n")
    records = load("dicom_folder", path=tmp_path, table=tmp_path / "t.csv")
    assert (records.label.tolist(), records.identity.tolist()) == ([0, 1], [0, 1])
    (tmp_path / "t.csv").write_text("path,label\nz.dcm,ill\nx.dcm,well\n")
    assert load("dicom_folder", path=tmp_path, table=tmp_path / "t.csv").identity.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"patient": None}, "has no PatientID"),
        ({"patient": " "}, "has no PatientID"),
        ({"WindowCenter": None}, "has no WindowCenter"),
        ({"WindowWidth": 0}, "window width 0"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "rescale slope 0"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR photometric interpretation"),
        ({"NumberOfFrames": 2}, "holds 2 frames"),
        ({"HighBit": 15}, "stores bits up to 15 of 12"),
        ({"BurnedInAnnotation": "YES"}, "burned-in annotation"),
        ({"Rows": 7}, "x.dcm: (cannot be decoded|not a complete DICOM image)"),
        ({"Rows": None}, "x.dcm: (cannot be decoded|not a complete DICOM image)"),
        ({"ModalityLUTSequence": Sequence([pydicom.Dataset()])}, "has a ModalityLUTSequence"),
    ],
)
def test_files_that_cannot_be_read_rightly_are_refused(tmp_path, tags, message):
    put(tmp_path / "a" / "x.dcm", **tags)
    with pytest.raises(InputError, match=message) as caught:
        load("dicom_folder", path=tmp_path)
    assert "x.dcm" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path):
    file = put(tmp_path / "a" / "x.dcm")
    whole = file.read_bytes()
    for content in (b"", b"hello", whole[:140], whole[: len(whole) - 8], bytes(128) + b"DICM" + b"\xff" * 50):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.dcm: ") as caught:
            load("dicom_folder", path=tmp_path)
        assert "\n" not in str(caught.value)
    put(file)
    header = pydicom.dcmread(file)
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51junk"])
    header["PixelData"].is_undefined_length = True
    header.save_as(file)
    with pytest.raises(InputError, match=r"x.dcm: .*(JPEG 2000|cannot be decoded|not a complete)"):
        load("dicom_folder", path=tmp_path)


def test_neither_warnings_nor_log_nor_errors_quote_a_tag(tmp_path, caplog, monkeypatch):
    put(tmp_path / "a" / "x.dcm", RescaleSlope="1")
    read = pydicom.dcmread

    def talkative(*args):
        """Says of a tag what pydicom says of odd ones."""
        pydicom.misc.warn_and_log("Invalid value for VR PN: 'Doe^Jane'")
        return read(*args)

    monkeypatch.setattr(pydicom, "dcmread", talkative)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load("dicom_folder", path=tmp_path)
    assert not said
    assert "Doe" not in caplog.text
    broken = (tmp_path / "a" / "x.dcm").read_bytes().replace(b"DS\x02\x001 ", b"DS\x02\x00Q ")
    (tmp_path / "a" / "x.dcm").write_bytes(broken)
    with pytest.raises(InputError, match=r"x\.dcm: not a complete DICOM image \(\w+\)$"):
        load("dicom_folder", path=tmp_path)


def test_options_are_checked(tmp_path):
    put(tmp_path / "a" / "x.dcm", BurnedInAnnotation="YES")
    assert len(load("dicom_folder", path=tmp_path, burned_in=True)) == 1
    for wrong in ({"window": "lung"}, {"window": (1,)}, {"window": (0, 0)}, {"bits": 12}, {"patients": "name"}):
        with pytest.raises(InputError, match=rf"^{next(iter(wrong))} is "):
            load("dicom_folder", path=tmp_path, **wrong)
    (tmp_path / "a" / "scan.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"scan.png: format is not read; expected DICOM"):
        load("dicom_folder", path=tmp_path)


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"needs pydicom; .*pip install pydicom"):
        load("dicom_folder", path=tmp_path)
