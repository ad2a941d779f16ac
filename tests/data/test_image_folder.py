"""PNG and JPEG folders: exact grey levels, classes by folder or table, and every way to break one."""

import dataclasses
import hashlib

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from diffusion_privacy.data.assemble import bytes_hash  # noqa: E402
from diffusion_privacy.data.pipeline import Batches  # noqa: E402
from diffusion_privacy.data.records import (  # noqa: E402
    CLASSES_KEPT,
    FILE_HASH,
    LIST_OF_CLASSES,
    SHARED_NAMES,
    split_records,
)
from diffusion_privacy.data.sources import load  # noqa: E402
from diffusion_privacy.errors import InputError  # noqa: E402

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12


def put(file, pixels=GREY, mode=None, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, **options)
    return file


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images; the order on disk is not the sorted order."""
    put(tmp_path / "ill" / "b.png", GREY + 1)
    put(tmp_path / "ill" / "a.PNG", GREY)
    put(tmp_path / "healthy" / "p1" / "x.png", GREY + 2, "RGB")
    (tmp_path / "ill" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "ill" / "notes.txt").write_text("x")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def levels(records):
    return np.round((records.image.astype(np.float64) + 1) * 127.5).astype(int)


def test_folders_are_classes_and_files_come_by_the_hash_of_their_names(folder):
    names = sorted(("b.png", "a.PNG", "p1/x.png"), key=lambda name: hashlib.sha256(name.encode()).digest())
    records = load("image_folder", path=folder)
    assert records.label.tolist() == [int(name != "p1/x.png") for name in names]
    assert records.num_classes == 2
    assert records.identity.tolist() == records.index.tolist() == [0, 1, 2]
    content = {"p1/x.png": GREY + 2, "a.PNG": GREY, "b.png": GREY + 1}
    np.testing.assert_array_equal(levels(records)[..., 0], [content[name] for name in names])
    colour = load("image_folder", path=str(folder), channels=3, classes=[1], limit=1)
    [first, *_] = [name for name in names if name != "p1/x.png"]
    assert colour.index.tolist() == [names.index(first)]
    np.testing.assert_array_equal(levels(colour)[0], np.repeat(content[first][..., None], 3, axis=2))


def _by_class(root, count=40):
    """So many files of each of two classes, with names that sort by class."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for i in range(count):
            put(root / name / f"{name}_{i:03}.png", rng.integers(0, 256, (4, 5), dtype=np.uint8))
    return root


def test_a_files_place_does_not_tell_its_class(tmp_path):
    label = load("image_folder", path=_by_class(tmp_path)).label
    # Runs of a random order of 40 + 40: mean 41, deviation 4.4; class after class has 2. False alarm below 1e-4.
    assert 41 - 18 < 1 + np.count_nonzero(np.diff(label)) < 41 + 18


def test_a_file_in_another_class_folder_moves_nobody(tmp_path):
    shares = (0.5, 0.3, 0.2)
    before = load("image_folder", path=_by_class(tmp_path))
    parts = split_records(before, shares, 0)
    private = parts[1].source_hash[3]
    file = next(p for p in tmp_path.rglob("*.png") if bytes_hash(p.read_bytes()) == private)
    file.rename(tmp_path / ({"cat", "dog"} - {file.parent.name}).pop() / file.name)
    after = load("image_folder", path=tmp_path)
    assert np.flatnonzero(after.label != before.label).tolist() == [parts[1].index[3]]
    for part, other in zip(parts, split_records(after, shares, 0), strict=True):
        assert part.source_hash.tolist() == other.source_hash.tolist()


def test_names_that_classes_share_stay_when_a_content_is_exchanged(tmp_path):
    for name in "ab":
        for i in range(20):
            put(tmp_path / name / f"{i}.png", np.full((4, 5), 2 * i + (name == "b"), np.uint8))
    before = load("image_folder", path=tmp_path)
    assert before.assumed == (LIST_OF_CLASSES, SHARED_NAMES)
    for value in (100, 150, 200, 250):
        put(tmp_path / "a" / "7.png", np.full((4, 5), value, np.uint8))
        after = load("image_folder", path=tmp_path)
        assert (after.source_hash != before.source_hash).sum() == 1
        assert after.label.tolist() == before.label.tolist()


def test_classes_are_stated_or_said_to_be_read_off_the_records(folder):
    assert load("image_folder", path=folder).assumed == (LIST_OF_CLASSES,)
    assert load("image_folder", path=folder, num_classes=2).assumed == ()
    # Which of three folders is missing is not said by their number.
    assert load("image_folder", path=folder, num_classes=3).assumed == (LIST_OF_CLASSES,)
    named = load("image_folder", path=folder, class_names=["healthy", "dead", "ill"], classes=[2])
    assert (named.num_classes, set(named.label.tolist())) == (3, {2})
    assert named.assumed == (CLASSES_KEPT,)
    for wrong, message in (
        ({"class_names": ["healthy"]}, "ill: is no class of class_names"),
        ({"class_names": "ab"}, "class_names is 'ab'"),
        ({"class_names": ["ill", "ill"]}, "expected different names"),
        ({"class_names": ["healthy", "ill"], "num_classes": 3}, "num_classes is 3; expected 2"),
    ):
        with pytest.raises(InputError, match=message):
            load("image_folder", path=folder, **wrong)


def test_a_table_states_classes_by_numbers_or_by_names(folder):
    table = folder / "table.csv"
    table.write_text("path,label\nill/b.png,sick\nill/a.PNG,fine\n")
    given = {"path": folder, "table": table}
    # A name's number is its rank among those that occur, whatever their number is said to be.
    assert load("image_folder", **given, num_classes=2).assumed == (LIST_OF_CLASSES,)
    named = load("image_folder", **given, class_names=["fine", "dead", "sick"])
    assert (named.label.tolist(), named.num_classes, named.assumed) == ([2, 0], 3, ())
    with pytest.raises(InputError, match=r"label in row 2 is 'sick'; expected one of fine, dead"):
        load("image_folder", **given, class_names=["fine", "dead"])
    table.write_text("path,label\nill/b.png,1\nill/a.PNG,0\n")
    assert load("image_folder", **given).assumed == (LIST_OF_CLASSES,)
    assert load("image_folder", **given, num_classes=3).assumed == ()


def test_colour_to_grey_and_resize(tmp_path):
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[..., 0] = 200
    put(tmp_path / "a" / "x.png", pixels)
    assert np.unique(levels(load("image_folder", path=tmp_path))).tolist() == [60]  # 0.299 · 200
    assert load("image_folder", path=tmp_path, size=8).image.shape == (1, 8, 8, 1)
    put(tmp_path / "a" / "y.jpg", np.zeros((9, 7, 3), np.uint8))
    both = load("image_folder", path=tmp_path, size=(6, 3), channels=3)
    assert both.image.shape == (2, 6, 3, 3)
    np.testing.assert_array_equal(levels(both)[0, ..., 0], 200)
    np.testing.assert_array_equal(levels(both)[1], 0)
    with pytest.raises(InputError, match=r"y.jpg: is 9 x 7 .*expected 4 x 5 as x.png, or give size"):
        load("image_folder", path=tmp_path)


def test_a_table_gives_label_and_person(folder):
    table = folder / "table.csv"
    table.write_text("path,label,identity\nill/b.png,sick,kim\nhealthy/p1/x.png,fine,\nill/a.PNG,sick,kim\n")
    records = load("image_folder", path=folder, table=table)
    assert records.label.tolist() == [1, 0, 1]
    assert records.identity.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(levels(records)[..., 0], [GREY + 1, GREY + 2, GREY])
    table.write_text("path,label\nill/b.png,10\nill/a.PNG,2\n")
    numbered = load("image_folder", path=folder, table=table, num_classes=11)
    assert numbered.label.tolist() == [10, 2]
    assert numbered.identity.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nill/none.png,1\n", "path in row 2 is 'ill/none.png'; expected a file in"),
        ("path,label\nill/notes.txt,1\n", "expected PNG, JPEG or TIFF"),
        ("path,label\nill/b.png,\n", "label in row 2 is blank"),
        ("path,label\nill/b.png,-1\n", "label -1 is out of range"),
        ("path,label\nill/b.png,7\n", r"label 7 is out of range; expected 0\.\.0"),
        ("path,name\nill/b.png,7\n", "column 'label' stands 0 times"),
        ("path,label\nill/b.png,0\nill/./b.png,0\n", "path in row 3 is that of row 2; expected each file once"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder, text, message):
    (folder / "table.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        load("image_folder", path=folder, table=folder / "table.csv")


def png_16_bit_colour():
    """A 1 x 1 PNG with 16 bits a channel, which Pillow would read as 8 bits."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")


def test_images_that_would_lose_something_are_refused(tmp_path):
    file = tmp_path / "a" / "x.png"
    put(file, GREY.astype(np.uint16) * 250)
    with pytest.raises(InputError, match=r"x.png: has I;16 pixels .*expected 8-bit"):
        load("image_folder", path=tmp_path)
    file.write_bytes(png_16_bit_colour())
    with pytest.raises(InputError, match=r"x.png: has RGB pixels or more than 8 bits"):
        load("image_folder", path=tmp_path, channels=3)
    put(file, np.full((4, 5, 4), 128, np.uint8))
    with pytest.raises(InputError, match="transparent pixels"):
        load("image_folder", path=tmp_path)
    opaque = np.full((4, 5, 4), 255, np.uint8)
    opaque[..., :3] = 7
    put(file, opaque)
    assert np.unique(levels(load("image_folder", path=tmp_path))).tolist() == [7]


def test_no_image_is_passed_over_for_its_suffix(tmp_path):
    for name in ("x.jfif", "y.JPE"):
        put(tmp_path / "a" / name, format="JPEG")
    assert len(load("image_folder", path=tmp_path)) == 2
    for suffix in ("heic", "avif", "webp"):
        other = tmp_path / "a" / f"z.{suffix}"
        other.write_bytes(b"x")
        with pytest.raises(InputError, match=rf"z.{suffix}: format is not read"):
            load("image_folder", path=tmp_path)
        other.unlink()


def test_what_unpacking_leaves_is_no_class_and_a_link_to_nothing_no_record_less(tmp_path):
    put(tmp_path / "ill" / "x.png")
    (tmp_path / "__MACOSX" / "ill").mkdir(parents=True)
    records = load("image_folder", path=tmp_path)
    assert (records.label.tolist(), records.num_classes) == ([0], 1)
    (tmp_path / "ill" / "y.png").symlink_to(tmp_path / "unmounted" / "y.png")
    with pytest.raises(InputError, match=r"y.png: is a link to a file that is not there"):
        load("image_folder", path=tmp_path)


def test_a_moving_picture_is_refused(tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(GREY + 1)
    (tmp_path / "a").mkdir()
    first.save(tmp_path / "a" / "x.png", save_all=True, append_images=[second])
    with pytest.raises(InputError, match=r"x.png: holds several pages or frames"):
        load("image_folder", path=tmp_path)


def test_broken_images_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    for name in ("x.png", "x.jpg", "x.tif"):
        file = put(tmp_path / name.replace(".", "_") / "a" / name, noise)
        whole = file.read_bytes()
        for content in (b"", b"hello", whole[: len(whole) // 2], whole[:20]):
            file.write_bytes(content)
            with pytest.raises(InputError, match="not a complete PNG, JPEG or TIFF image") as caught:
                load("image_folder", path=file.parents[1])
            assert str(file) in str(caught.value)
            assert "\n" not in str(caught.value)


def test_folders_of_another_layout_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match=r"^path: .* does not exist; expected a folder"):
        load("image_folder", path=tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a folder"):
        load("image_folder", path=folder / "ill" / "a.PNG")
    (folder / "ill" / "scan.dcm").write_bytes(b"x")
    with pytest.raises(InputError, match=r"scan.dcm: format is not read"):
        load("image_folder", path=folder)
    put(folder / "loose.png")
    with pytest.raises(InputError, match=r"loose.png: lies beside the class sub-folders"):
        load("image_folder", path=folder)
    empty = tmp_path / "empty"
    (empty / "class").mkdir(parents=True)
    with pytest.raises(InputError, match="zero records"):
        load("image_folder", path=empty)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"channels": 2}, "channels is 2"),
        ({"size": 0}, "size is 0"),
        ({"size": (1, 2, 3)}, r"size is \(1, 2, 3\)"),
        ({"size": "8"}, "size is '8'"),
        ({"num_classes": 1}, "label 1 is out of range"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"person": 5}, "person is 5, no regular expression"),
        ({"columns": "path"}, "columns is 'path'; expected names of path, label, identity"),
        ({"attributes": "Smiling"}, "attributes is 'Smiling'; expected a list of columns"),
        ({"bits": 16, "window": ("0", "9")}, r"window is \('0', '9'\); expected"),
    ],
)
def test_parameters_are_checked(folder, params, message):
    with pytest.raises(InputError, match=message):
        load("image_folder", path=folder, **params)


def test_a_file_is_one_record_however_it_is_read(folder):
    small, colour = load("image_folder", path=folder, size=3), load("image_folder", path=folder, channels=3)
    hashes = load("image_folder", path=folder).source_hash
    assert len(set(hashes)) == 3
    assert set(hashes) == {
        bytes_hash(file.read_bytes()) for file in folder.rglob("*.*") if file.suffix.lower() == ".png"
    }
    assert small.hash_kind == small.take([0]).hash_kind == FILE_HASH
    assert (small.source_hash == hashes).all()
    assert (colour.source_hash == hashes).all()
    assert small.take([2, 0]).source_hash.tolist() == hashes[[2, 0]].tolist()
    assert (small.with_images(small.image / 2).source_hash == hashes).all()
    (folder / "ill" / "b.png").rename(folder / "healthy" / "renamed.png")
    assert set(load("image_folder", path=folder, size=4).source_hash) == set(hashes)


WIDE = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3_000


@pytest.mark.parametrize("name", ["x.tif", "x.png"])
def test_16_bit_grey_keeps_its_levels(tmp_path, name):
    put(tmp_path / "a" / name, WIDE)
    records = load("image_folder", path=tmp_path, bits=16)
    assert records.levels == 65_536
    np.testing.assert_array_equal(np.rint((records.image[0, ..., 0].astype(np.float64) + 1) * 32767.5), WIDE)
    windowed = load("image_folder", path=tmp_path, bits=16, window=(3_000, 6_000))
    assert np.unique(windowed.image).tolist() == [-1.0, 1.0]
    assert "window: stored levels 3000 … 6000" in windowed.preparation[0]
    assert (windowed.source_hash == records.source_hash).all()
    half = load("image_folder", path=tmp_path, bits=16, size=(2, 5))
    assert half.image.shape == (1, 2, 5, 1)
    with pytest.raises(InputError, match=rf"{name}: has I;16 pixels .*or give bits = 16"):
        load("image_folder", path=tmp_path)
    put(tmp_path / "a" / "y.png", GREY)
    with pytest.raises(InputError, match=r"y.png: has L pixels of 8 bits; expected grey of 16 bits"):
        load("image_folder", path=tmp_path, bits=16)


def test_big_endian_and_8_bit_tiff(tmp_path):
    Image.frombytes("I;16B", (5, 4), WIDE.astype(">u2").tobytes()).save(_parent(tmp_path / "a" / "x.tif"))
    records = load("image_folder", path=tmp_path, bits=16)
    np.testing.assert_array_equal(np.rint((records.image[0, ..., 0].astype(np.float64) + 1) * 32767.5), WIDE)
    put(tmp_path / "b" / "a" / "x.tiff", GREY)
    np.testing.assert_array_equal(levels(load("image_folder", path=tmp_path / "b"))[0, ..., 0], GREY)


def _parent(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_tiff_files_that_would_lose_something_are_refused(tmp_path):
    file = _parent(tmp_path / "a" / "x.tif")
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(file, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"x.tif: holds several pages"):
        load("image_folder", path=tmp_path)
    Image.fromarray(WIDE).save(file, tiffinfo={262: 0})
    with pytest.raises(InputError, match=r"x.tif: stores white as 0"):
        load("image_folder", path=tmp_path, bits=16)
    Image.fromarray(GREY.astype(np.float32)).save(file)
    with pytest.raises(InputError, match=r"x.tif: has F pixels"):
        load("image_folder", path=tmp_path)


@pytest.mark.parametrize(
    "params",
    [{"bits": 12}, {"bits": 16, "window": (5, 5)}, {"bits": 16, "window": (0, 70_000)}, {"window": (0, 255)}],
)
def test_bits_and_window_are_checked(folder, params):
    with pytest.raises(InputError, match=r"^(bits|window) is "):
        load("image_folder", path=folder, **params)


def test_people_by_file_name(tmp_path):
    names = ("person1_bacteria_1", "person1_bacteria_2", "person1_virus_9", "IM-0115-0001", "NORMAL2-IM-0115-0002")
    for i, name in enumerate(names):
        put(tmp_path / "a" / f"{name}.png", GREY + i)
    pattern = r"(person\d+_(?:bacteria|virus))|IM-(\d+)"
    records = load("image_folder", path=tmp_path, person=pattern)
    assert len(np.unique(records.identity)) == 3
    by_name = records.identity[np.argsort(levels(records)[:, 0, 0, 0])]
    assert by_name[3] == by_name[4]  # IM-0115 and NORMAL2-IM-0115
    assert by_name[0] == by_name[1] != by_name[2]
    put(tmp_path / "a" / "other.png")
    with pytest.raises(InputError, match=r"other.png: person .* is not found in its name"):
        load("image_folder", path=tmp_path, person=pattern)
    for wrong in ("(", "IM-"):
        with pytest.raises(InputError, match=r"^person is "):
            load("image_folder", path=tmp_path, person=wrong)


def test_a_table_with_other_names_of_columns(folder):
    table = folder / "table.csv"
    table.write_text("Image Index,Finding Labels,Patient ID,,\nill/b.png,Mass|Edema,7,,\nill/a.PNG,No Finding,7,,\n")
    columns = {"path": "Image Index", "label": "Finding Labels", "identity": "Patient ID"}
    records = load("image_folder", path=folder, table=table, columns=columns)
    assert (records.label.tolist(), records.identity.tolist()) == ([0, 1], [0, 0])
    with pytest.raises(InputError, match=r"person is .*has a column of people"):
        load("image_folder", path=folder, table=table, columns=columns, person=r"(\w)")
    with pytest.raises(InputError, match="column 'Index' stands 0 times"):
        load("image_folder", path=folder, table=table, columns={**columns, "path": "Index"})
    for wrong in ({"table": table, "columns": {"file": "x"}}, {"columns": columns}):
        with pytest.raises(InputError, match=r"^columns is .*beside a table"):
            load("image_folder", path=folder, **wrong)


def test_attributes_are_columns_of_the_table(tmp_path):
    for name in "abc":
        put(tmp_path / f"{name}.png")

    def write(*rows):
        (tmp_path / "t.csv").write_text("\n".join(["path,label,hat,old", *rows]) + "\n")
        return {"path": tmp_path, "table": str(tmp_path / "t.csv"), "attributes": ["old", "hat"]}

    found = load("image_folder", **write("a.png,1,0,1", "b.png,0,1,1", "c.png,1,0,0"), classes=[1])
    assert found.attribute_names == ("old", "hat")
    assert found.attributes.tolist() == [[1, 0], [0, 0]]
    assert found.take([1]).attributes.tolist() == [[0, 0]]
    assert Batches(found, 2, seed=0, shuffle=False).batch(0)["attributes"].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    other = dataclasses.replace(found, attributes=1 - found.attributes)
    assert other.digest != found.digest
    assert (other.source_hash == found.source_hash).all()
    with pytest.raises(InputError, match=r"t.csv: old in row 3 is '-1'; expected 0 or 1"):
        load("image_folder", **write("a.png,1,0,1", "b.png,0,1,-1"))
    with pytest.raises(InputError, match=r"t.csv: column 'bald' stands 0 times"):
        load("image_folder", **{**write("a.png,0,0,1"), "attributes": ["bald"]})
    with pytest.raises(InputError, match="expected none without a table"):
        load("image_folder", path=tmp_path, attributes=["old"])
    for fields in ({"attribute_names": ("old", "old")}, {"attributes": None}, {"attribute_names": ("old",)}):
        with pytest.raises(InputError, match="attribute"):
            dataclasses.replace(found, **fields)
    with pytest.raises(InputError, match="attribute 'hat' of record 1 is 2"):
        dataclasses.replace(found, attributes=np.array([[0, 1], [0, 2]], np.int32))
