"""Columns, schemas, CSV in and out: nothing is lost, guessed or dropped."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from diffusion_privacy.data.table_csv import csv_text, read_csv
from diffusion_privacy.data.table_sources import TABLES, load_table
from diffusion_privacy.data.tables import Column, Schema, Table
from diffusion_privacy.errors import InputError

PEOPLE = (
    'age,"height, cm", job ,smoker,code\n41,170.25,nurse ,no,007\n29,181.5,"cook, chef",yes,012\n'
    "63,159.,nurse ,no,007\n"
)


def file(tmp_path, text, name="people.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_inference_and_round_trip(tmp_path):
    table = read_csv(file(tmp_path, PEOPLE))
    kinds = [column.kind for column in table.schema.columns]
    assert kinds == ["integer", "numeric", "categorical", "categorical", "categorical"]
    assert table.schema.header == ("age", "height, cm", " job ", "smoker", "code")
    assert table.schema.column(" job ").categories == ("cook, chef", "nurse ")
    assert table.schema.column("code").categories == ("007", "012")
    assert table.schema.origin == "inferred"
    assert (len(table), table.dropped, table.schema.column("height, cm").decimals) == (3, 0, 2)
    text = csv_text(table.schema.header, table.rows())
    # The same bytes, but for a number's missing digits.
    assert text == PEOPLE.replace("181.5", "181.50").replace("159.", "159.00")
    again = read_csv(file(tmp_path, text), schema=table.schema)
    assert again.schema == table.schema
    for name in table.schema.header:
        np.testing.assert_array_equal(again.data[name], table.data[name])


def test_header_and_category_names_survive_byte_for_byte(tmp_path):
    """Property: any text but line breaks, nulls and byte-order marks, with blanks, quotes, commas and all scripts."""
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0\ufeff"), min_size=1, max_size=8)
    columns = st.lists(text, min_size=1, max_size=4, unique=True)

    @hypothesis.settings(max_examples=150)
    @hypothesis.given(st.data(), columns, st.integers(1, 6))
    def check(data, names, count):
        made, values = [], {}
        for name in names:
            kind = data.draw(st.sampled_from(["numeric", "integer", "categorical"]))
            if kind == "categorical":
                made.append(Column(name, kind, tuple(data.draw(st.lists(text, min_size=1, max_size=4, unique=True)))))
                codes = st.integers(0, len(made[-1].categories) - 1)
                values[name] = np.array(data.draw(st.lists(codes, min_size=count, max_size=count)), np.int64)
            elif kind == "integer":
                made.append(Column(name, kind))
                whole = st.integers(-(10**17), 10**17)
                values[name] = np.array(data.draw(st.lists(whole, min_size=count, max_size=count)), np.int64)
            else:
                made.append(Column(name, kind))
                number = st.floats(allow_nan=False, allow_infinity=False)
                values[name] = np.array(data.draw(st.lists(number, min_size=count, max_size=count)), np.float64)
        table = Table(Schema(tuple(made)), values, "drawn")
        path = tmp_path / "drawn.csv"
        path.write_bytes(csv_text(table.schema.header, table.rows()).encode())
        again = read_csv(path, schema=table.schema)
        for name in names:
            np.testing.assert_array_equal(again.data[name], values[name])
        assert path.read_bytes() == csv_text(again.schema.header, again.rows()).encode()

    check()


GAPS = "age,job,pay\n41,nurse,10\n,cook,20\n30,?,\n"


def test_missing_values_are_an_error_that_names_row_and_column(tmp_path):
    path = file(tmp_path, GAPS)
    with pytest.raises(InputError, match=r"people.csv: row 2, column 'age' is missing \(''\); expected a value, or"):
        read_csv(path)
    with pytest.raises(InputError, match="row 3, column 'job' is missing"):
        read_csv(path, missing={"age": "median"})


def test_policies_for_missing_values(tmp_path):
    path = file(tmp_path, GAPS)
    dropped = read_csv(path, missing="drop")
    assert (len(dropped), dropped.dropped, dropped.place.tolist()) == (1, 2, [0])
    mixed = read_csv(path, missing={"age": "median", "job": "category", "pay": "drop"})
    assert (len(mixed), mixed.dropped, mixed.take([1]).place.tolist()) == (2, 1, [1])
    assert mixed.data["age"].tolist() == [41, 41]
    filled = read_csv(path, missing={"age": "median", "job": "category", "pay": "median"})
    assert filled.place is None
    assert filled.data["age"].tolist() == [41, 36, 30]
    assert filled.data["pay"].tolist() == [10, 20, 15]
    assert filled.schema.column("job").categories == ("cook", "nurse", "?")
    assert filled.rows()[2] == ["30", "?", "15"]
    with pytest.raises(InputError, match="'job' is categorical; missing='median' is for numbers"):
        read_csv(path, missing="median")
    with pytest.raises(InputError, match="'age' is integer; missing='category' is for categories"):
        read_csv(path, missing="category")
    with pytest.raises(InputError, match="expected a column and one of error, drop"):
        read_csv(path, missing={"wage": "drop"})


def test_a_declared_category_is_not_missing(tmp_path):
    schema = Schema((Column("land", "categorical", ("NA", "DE")),))
    assert read_csv(file(tmp_path, "land\nNA\nDE\n"), schema=schema).data["land"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "holds no header"),
        ("a,b\n", {}, "holds no rows"),
        ("a,b\n1,2\n3\n", {}, "row 2 has 1 cells; expected 2"),
        ("a,a\n1,2\n", {}, "column 'a' stands 2 times"),
        (b"a\n\xff\xfe\n", {}, "not a readable CSV file"),
        ('a\n"1\n', {}, "not a readable CSV file"),
        ("a\n1\ninf\n2\n", {}, "row 2, column 'a' is 'inf'; expected a finite number"),
        ("a\n1\n2x\n", {"kinds": {"a": "numeric"}}, "row 2, column 'a' is '2x'; expected a finite number"),
        ("a\n1\n2.5\n", {"kinds": {"a": "integer"}}, "row 2, column 'a' is '2.5'; expected a whole number"),
        ("a\n1e999\n", {"kinds": {"a": "numeric"}}, "row 1, column 'a' is '1e999'"),
        ("a\n1\nx\n3\n4\n", {"max_categories": 3}, "4 different values; row 2 is 'x', no number"),
        ("a\n1\n", {"kinds": {"b": "integer"}}, "kinds of 'b'"),
        ("a\n1\n", {"kinds": {"a": "text"}}, "kinds of 'a' is 'text'"),
        ("a\n\n?\n", {"missing": "drop"}, "every row has a missing value"),
        ("a\n?\nx\n", {"missing": {"a": "impute"}}, "expected a column and one of"),
        ("a\n?\nx\n", {"missing": ("drop",)}, r"missing is \('drop',\); expected one of error, drop"),
        ("a\nNA\n", {"marks": "NA"}, "marks is 'NA'; expected a list of texts"),
        ("1\n2\n", {"header": "ab"}, "header is 'ab'; expected a list of texts"),
        ("a,b\n1,2\n", {"delimiter": ""}, "delimiter is ''; expected one character"),
        ("a,b\n1,2\n", {"delimiter": ";;"}, "delimiter is ';;'; expected one character"),
        ("a,b\n1,2\n", {"strip": "no"}, "strip is 'no'; expected True or False"),
        ("a,b\n1,2\n", {"comment": ""}, "comment is ''; expected what begins such lines"),
        ("a,b\n1,2\n", {"max_categories": "9"}, "max_categories is '9'; expected a whole number"),
        ("a;b\n1,5;2\n", {}, "its header is one name with ';' in it; .* give delimiter = ';'"),
        ("a\tb\n1\t2\n", {}, r"its header is one name with '\\t' in it"),
        ("a,b\n1,2\n", {"delimiter": ";"}, "its header is one name with ',' in it"),
        ('"a\nb"\n1\n', {}, "holds a line break"),
        (
            "a\nx\n",
            {"schema": Schema((Column("a", "categorical", ("y",)),))},
            "row 1, column 'a' is 'x'; expected one of",
        ),
        ("a\nx\n", {"schema": Schema((Column("b", "categorical", ("y",)),))}, "expected the schema's"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message) as caught:
        read_csv(file(tmp_path, text), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "real"}, "kind is 'real'"),
        ({"kind": "categorical"}, "at least one category"),
        ({"kind": "categorical", "categories": ("x", "x")}, "twice"),
        ({"kind": "numeric", "categories": ("x",)}, "expected no categories"),
        ({"kind": "numeric", "lower": 1.0, "upper": 1.0}, "expected lower < upper"),
        ({"kind": "numeric", "scale": 0.0}, "expected a number > 0"),
        ({"kind": "numeric", "centre": float("nan")}, "finite"),
    ],
)
def test_bad_columns_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Column("c", **fields)


def test_tables_check_their_values():
    schema = Schema((Column("x", "numeric"), Column("c", "categorical", ("a", "b"))))
    good = {"x": np.array([1.0, 2.0]), "c": np.array([0, 1])}
    assert Table(schema, good, "t").take([1]).rows() == [["2.0", "b"]]
    for name, values, message in (
        ("x", np.array([1.0, np.nan]), "row 2 is nan"),
        ("c", np.array([0, 2]), "row 2 has category 2"),
        ("c", np.array([0.0, 1.0]), "no int64 vector"),
        ("c", np.array([0]), "of 2 values"),
    ):
        with pytest.raises(InputError, match=message):
            Table(schema, good | {name: values}, "t")
    with pytest.raises(InputError, match="at least one"):
        Table(schema, {"x": np.zeros(0), "c": np.zeros(0, np.int64)}, "t")
    with pytest.raises(ValueError, match="read-only"):
        Table(schema, good, "t").data["x"][0] = 3.0


def test_statistics_come_from_public_rows():
    schema = Schema((Column("x", "numeric", lower=-9.0, upper=9.0), Column("y", "integer")), "inferred")
    public = Table(schema, {"x": np.array([1.0, 3.0]), "y": np.array([4, 4])}, "public")
    made = schema.standardised_by(public)
    assert (made.origin, made.vouched().origin) == ("inferred", "declared")
    assert made.column("x").standard == (2.0, 1.0)
    assert made.column("x").range == (-9.0, 9.0)
    assert made.column("y").range == (3.5, 4.5)
    assert made.column("y").standard == (4.0, 1.0)
    private = Table(made, {"x": np.array([-10.0, 3.0, 1.0]), "y": np.array([4, 5, 4])}, "private")
    assert private.outside() == 2
    with pytest.raises(InputError, match="expected the columns"):
        made.standardised_by(Table(Schema((Column("x", "numeric"),)), {"x": np.zeros(1)}, "other"))


def test_tables_of_scikit_learn():
    diabetes, cancer = load_table("diabetes"), load_table("breast_cancer")
    assert (len(diabetes), len(diabetes.schema.columns)) == (442, 11)
    assert diabetes.rows()[0][:6] == ["59", "2", "32.1", "101.00", "157", "93.2"]
    # Stated, not looked up: they must still be those with which the numbers are written.
    for table in (diabetes, cancer):
        for column in table.schema.columns:
            if column.kind != "categorical":
                digits = [np.format_float_positional(v, trim="-").partition(".")[2] for v in table.data[column.name]]
                assert (column.decimals or 0) == max(map(len, digits)), column.name
    assert diabetes.schema.column("progression").kind == "integer"
    assert (len(cancer), len(cancer.schema.columns)) == (569, 31)
    assert cancer.schema.column("diagnosis").categories == ("malignant", "benign")
    assert np.bincount(cancer.data["diagnosis"]).tolist() == [212, 357]
    assert cancer.rows()[0][0] == "17.990"


def test_named_tables_check_their_arguments(tmp_path):
    packed = tmp_path / "adult.data.gz"
    packed.write_bytes(gzip.compress(b"39, State-gov"))
    for source, params, message in (
        ("iris", {}, "expected one of csv, diabetes"),
        ("diabetes", {"path": "x"}, "takes no 'path'"),
        ("adult", {}, "needs 'path'"),
        ("adult", {"path": packed}, "adult: .*adult.data.gz is not a readable text file"),
        ("heart_disease", {"path": packed}, "heart_disease: .*adult.data.gz is not a readable text file"),
        ("adult", {"path": __file__, "missing": ("drop",)}, r"missing is \('drop',\); expected one of"),
    ):
        with pytest.raises(InputError, match=message):
            load_table(source, **params)
    assert set(TABLES) == {"csv", "diabetes", "breast_cancer", "adult", "heart_disease"}


def need(path):
    if not path.exists():
        pytest.skip(f"{path.name} is not among the development data")
    return path


def test_adult_as_published(shared_data, tmp_path):
    lines = need(shared_data / "adult" / "adult.data").read_text().splitlines()[:3000]
    path = file(tmp_path, "\n".join(lines) + "\n\n", "adult.data")
    with pytest.raises(InputError, match="row 15, column 'native-country' is missing"):
        load_table("adult", path=path)
    kept = load_table("adult", path=path, missing="drop")
    gaps = sum("?" in line for line in lines)
    assert (len(kept), kept.dropped) == (len(lines) - gaps, gaps)
    policies = dict.fromkeys(("workclass", "occupation", "native-country"), "category")
    whole = load_table("adult", path=path, missing=policies)
    assert [", ".join(row) for row in whole.rows()] == lines
    assert whole.outside() == 0
    test = load_table("adult", path=need(shared_data / "adult" / "adult.test"), missing="drop")
    assert (len(test), test.dropped) == (16281 - 1221, 1221)
    assert test.schema.column("income").categories == ("<=50K.", ">50K.")


def test_heart_disease_as_published(shared_data):
    folder = need(shared_data / "heart_disease")
    for site, count in (("cleveland", 303), ("hungarian", 294), ("switzerland", 123), ("va", 200)):
        path = folder / f"processed.{site}.data"
        with pytest.raises(InputError, match=r"row \d+, column '\w+' is missing \('\?'\)"):
            load_table("heart_disease", path=path)
        categories = dict.fromkeys(("fbs", "restecg", "exang", "slope", "ca", "thal"), "category")
        policy = categories | dict.fromkeys(("trestbps", "chol", "thalach", "oldpeak"), "median")
        whole = load_table("heart_disease", path=path, missing=policy)
        assert (len(whole), whole.dropped, whole.outside()) == (count, 0, 0)
        if site == "cleveland":
            table = load_table("heart_disease", path=path, missing="drop")
            assert (len(table), table.dropped) == (297, 6)
            assert [",".join(row) for row in whole.rows()] == path.read_text().splitlines()
