"""The tables that a config can name. A new one is a function that returns `Table` and one line in `TABLES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from diffusion_privacy.data.assemble import construct, existing_file, one_line
from diffusion_privacy.data.table_csv import check_missing, read_csv
from diffusion_privacy.data.tables import Column, Kind, Schema, Table
from diffusion_privacy.errors import InputError

_ADULT_CATEGORIES: dict[str, str] = {
    "workclass": "Private, Self-emp-not-inc, Self-emp-inc, Federal-gov, Local-gov, State-gov, Without-pay, "
    "Never-worked",
    "education": "Bachelors, Some-college, 11th, HS-grad, Prof-school, Assoc-acdm, Assoc-voc, 9th, 7th-8th, 12th, "
    "Masters, 1st-4th, 10th, Doctorate, 5th-6th, Preschool",
    "marital-status": "Married-civ-spouse, Divorced, Never-married, Separated, Widowed, Married-spouse-absent, "
    "Married-AF-spouse",
    "occupation": "Tech-support, Craft-repair, Other-service, Sales, Exec-managerial, Prof-specialty, "
    "Handlers-cleaners, Machine-op-inspct, Adm-clerical, Farming-fishing, Transport-moving, Priv-house-serv, "
    "Protective-serv, Armed-Forces",
    "relationship": "Wife, Own-child, Husband, Not-in-family, Other-relative, Unmarried",
    "race": "White, Asian-Pac-Islander, Amer-Indian-Eskimo, Other, Black",
    "sex": "Female, Male",
    "native-country": "United-States, Cambodia, England, Puerto-Rico, Canada, Germany, Outlying-US(Guam-USVI-etc), "
    "India, Japan, Greece, South, China, Cuba, Iran, Honduras, Philippines, Italy, Poland, Jamaica, Vietnam, Mexico, "
    "Portugal, Ireland, France, Dominican-Republic, Laos, Ecuador, Taiwan, Haiti, Columbia, Hungary, Guatemala, "
    "Nicaragua, Scotland, Thailand, Yugoslavia, El-Salvador, Trinadad&Tobago, Peru, Hong, Holand-Netherlands",
}
_ADULT_RANGES = {
    "age": (0, 90),
    "fnlwgt": (0, 2_000_000),
    "education-num": (1, 16),
    "capital-gain": (0, 99_999),
    "capital-loss": (0, 5_000),
    "hours-per-week": (1, 99),
}
_ADULT = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
_HEART = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca"),
    *("thal", "num"),
)
_HEART_CATEGORIES = {
    "sex": "0 1",
    "cp": "1 2 3 4",
    "fbs": "0 1",
    "restecg": "0 1 2",
    "exang": "0 1",
    "slope": "1 2 3",
    "ca": "0 1 2 3",
    "thal": "3 6 7",
    "num": "0 1 2 3 4",
}
_HEART_RANGES = {
    "age": (0, 110),
    "trestbps": (0, 250),
    "chol": (0, 700),
    "thalach": (40, 230),
    "oldpeak": (-4, 8),
}

# Digits behind the point as the two tables of scikit-learn are published with, None for whole numbers: stated and not
# looked up in the rows, since every released line is written with them.
_DIABETES_DECIMALS: dict[str, int | None] = {
    "age": None,
    "bmi": 1,
    "bp": 2,
    "s1": None,
    "s2": 1,
    "s3": 1,
    "s4": 2,
    "s5": 4,
    "s6": None,
    "progression": None,
}
_TUMOUR_DECIMALS = {
    "mean": (3, 2, 2, 1, 5, 5, 7, 6, 4, 5),
    "error": (4, 4, 4, 3, 6, 6, 7, 6, 6, 7),
    "worst": (3, 2, 2, 1, 5, 5, 6, 6, 4, 5),
}
"""Of radius, texture, perimeter, area, smoothness, compactness, concavity, concave points, symmetry, dimension."""


def diabetes() -> Table:
    """The 442 patients that ship inside scikit-learn, in original units: 10 columns and ``progression``.

    Efron, Hastie, Johnstone & Tibshirani, "Least Angle Regression", 2004. ``sex`` (1, 2) is categorical. No public
    ranges are documented: state them, or take them from a public split.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    numbers = {name: bunch.data[:, j] for j, name in enumerate(bunch.feature_names) if name != "sex"}
    sex = bunch.data[:, bunch.feature_names.index("sex")].astype(np.int64) - 1
    columns, data = [], {}
    for name in bunch.feature_names:
        columns.append(
            Column(name, "categorical", ("1", "2")) if name == "sex" else _measured(name, _DIABETES_DECIMALS[name])
        )
        data[name] = sex if name == "sex" else _typed(columns[-1], numbers[name])
    columns.append(_measured("progression", _DIABETES_DECIMALS["progression"]))
    data["progression"] = _typed(columns[-1], bunch.target)
    return Table(Schema(tuple(columns)), data, "diabetes")


def breast_cancer() -> Table:
    """The 569 tumours that ship inside scikit-learn: 30 measurements and ``diagnosis`` (malignant, benign).

    Wolberg, Mangasarian & Street, "Breast Cancer Wisconsin (Diagnostic)", 1995. Ranges as for `diabetes`.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    decimals = [places for part in _TUMOUR_DECIMALS.values() for places in part]
    columns = [_measured(str(name), places) for name, places in zip(bunch.feature_names, decimals, strict=True)]
    data = {column.name: _typed(column, bunch.data[:, j]) for j, column in enumerate(columns)}
    diagnosis = Column("diagnosis", "categorical", tuple(str(name) for name in bunch.target_names))
    data["diagnosis"] = bunch.target.astype(np.int64)
    return Table(Schema((*columns, diagnosis)), data, "breast_cancer")


def _measured(name: str, decimals: int | None) -> Column:
    return Column(name, "integer") if decimals is None else Column(name, "numeric", decimals=decimals)


def _typed(column: Column, values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.int64) if column.kind == "integer" else values.astype(np.float64)


def adult(path: str | Path, *, missing: str | Mapping[str, str] = "error") -> Table:
    """UCI Adult (census income): ``adult.data`` or ``adult.test``, 15 columns without a header, "?" for missing.

    Becker & Kohavi, UCI Machine Learning Repository 1996. Categories are those of the documentation, ranges are public
    limits of the coding. The labels of the test file end in a full stop; that is kept, as the file has it. With
    ``missing="category"``, "?" is one more category of the categorical columns.

    Args:
      path: the file.
      missing: see `table_csv`.

    Raises:
      InputError: see `read_csv`.
    """
    file = existing_file(path, "adult")
    head = _text(file, "adult").rstrip()
    dot = "." if head.endswith(".") else ""
    columns = []
    for name in _ADULT:
        if name in _ADULT_RANGES:
            lower, upper = _ADULT_RANGES[name]
            # The weight spans too many whole numbers to be dequantised in float32.
            kind: Kind = "numeric" if name == "fnlwgt" else "integer"
            columns.append(Column(name, kind, lower=lower, upper=upper, decimals=0 if kind == "numeric" else None))
        else:
            names = [f"<=50K{dot}", f">50K{dot}"] if name == "income" else _ADULT_CATEGORIES[name].split(", ")
            columns.append(Column(name, "categorical", tuple(names)))
    schema = _with_missing(Schema(tuple(columns)), missing)
    return read_csv(file, header=_ADULT, schema=schema, missing=missing, comment="|", strip=True)


def heart_disease(path: str | Path, *, missing: str | Mapping[str, str] = "error") -> Table:
    """UCI heart disease, one of its four processed files: 14 columns without a header, "?" for missing.

    Janosi, Steinbrunn, Pfisterer & Detrano, UCI Machine Learning Repository 1989. ``num`` is 0 (no disease) to 4.
    Categories are those of the documentation, written as the file writes them ("1" or "1.0"); ranges are generous
    physiological limits.

    Args:
      path: the file.
      missing: see `table_csv`.

    Raises:
      InputError: see `read_csv`.
    """
    file = existing_file(path, "heart_disease")
    first = _text(file, "heart_disease").partition("\n")[0].split(",")
    point = ".0" if len(first) > 1 and first[1].strip().endswith(".0") else ""
    columns = []
    for name in _HEART:
        if name in _HEART_RANGES:
            lower, upper = _HEART_RANGES[name]
            whole = name != "oldpeak" and not point
            decimals = None if whole else 1
            columns.append(Column(name, "integer" if whole else "numeric", lower=lower, upper=upper, decimals=decimals))
        else:
            suffix = "" if name == "num" else point
            columns.append(Column(name, "categorical", tuple(c + suffix for c in _HEART_CATEGORIES[name].split())))
    schema = _with_missing(Schema(tuple(columns)), missing)
    return read_csv(file, header=_HEART, schema=schema, missing=missing, strip=True)


def _text(file: Path, table: str) -> str:
    """The content of a text file; InputError where it is none, a compressed one say."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table}: {file} is not a readable text file ({one_line(error)})") from error


def _with_missing(schema: Schema, missing: str | Mapping[str, str]) -> Schema:
    """ "?" as a category of the columns whose policy is ``category``, whether or not it occurs."""
    check_missing(missing)
    for column in schema.columns:
        policy = missing if isinstance(missing, str) else missing.get(column.name, "error")
        if policy == "category" and column.kind == "categorical":
            schema = schema.replaced(dataclasses.replace(column, categories=(*column.categories, "?")))
    return schema


TABLES: dict[str, Callable[..., Table]] = {
    "csv": read_csv,
    "diabetes": diabetes,
    "breast_cancer": breast_cancer,
    "adult": adult,
    "heart_disease": heart_disease,
}
"""Constructors by the name that a config gives."""


def load_table(source: str, **params: object) -> Table:
    """A named table; ``params`` are the arguments of its constructor, by name.

    Raises:
      InputError: an unknown table, an argument that it does not take or lacks, or what the constructor raises.
    """
    return construct(TABLES, "table", source, params)
