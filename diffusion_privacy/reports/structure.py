"""Checks JSON values against the type annotations that document them.

Understands what a JSON document can be: TypedDict, ``list[T]``, ``dict[str, T]``, ``Literal``, ``T | None``, str, int,
float, bool, ``Any`` (any JSON value) and ``Annotated[T, Range(...)]``. A field of a TypedDict that came later is
``NotRequired[T]``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from diffusion_privacy.errors import InputError

Rules = Mapping[type, Callable[[Mapping[str, Any], str], None]]

_NAMES: dict[Any, str] = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Range:
    """Closed range of a number, for use inside ``Annotated``."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.low:g}" if math.isinf(self.high) else f"in [{self.low:g}, {self.high:g}]"


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _show(value: object) -> str:
    """A short form of a value for a one-line message."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value).replace("\n", " ")
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _fail(path: str, expected: str, value: object) -> None:
    raise InputError(f"{path}: expected {expected}, got {_show(value)}")


def _check_scalar(value: object, kind: Any, path: str) -> None:
    # bool is a subclass of int in Python, but true is not a number in JSON.
    is_bool = isinstance(value, bool)
    good = {
        str: isinstance(value, str),
        bool: is_bool,
        int: isinstance(value, int) and not is_bool,
        float: not is_bool and (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))),
    }[kind]
    if not good:
        _fail(path, _NAMES[kind], value)


def _check_any(value: object, path: str) -> None:
    """Any JSON value, all the way down."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                _fail(f"{path} (key)", "text", key)
            _check_any(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_any(item, f"{path}[{i}]")
    elif isinstance(value, float):
        _check_scalar(value, float, path)
    elif not (value is None or isinstance(value, (str, int))):
        _fail(path, "a JSON value", value)


def _check_fields(value: object, kind: Any, path: str, open_kinds: frozenset[type], rules: Rules) -> None:
    if not isinstance(value, Mapping):
        _fail(path, "an object", value)
        return
    fields = _fields(kind)
    for name, wanted in fields.items():
        if name not in value and get_origin(wanted) is not NotRequired:
            raise InputError(f"{path}.{name}: expected this field, it is missing")
    for name, item in value.items():
        if name in fields:
            check(item, fields[name], f"{path}.{name}", open_kinds, rules)
        elif kind in open_kinds:
            _check_any({name: item}, path)
        else:
            raise InputError(f"{path}.{name}: expected one of the fields {', '.join(sorted(fields))}")
    if kind in rules:
        rules[kind](value, path)


def _check_items(value: object, kind: Any, path: str, open_kinds: frozenset[type], rules: Rules) -> None:
    """``list[T]`` and ``dict[str, T]``; a tuple passes for a list, as JSON writes both alike."""
    if get_origin(kind) is list:
        if not isinstance(value, (list, tuple)):
            _fail(path, "a list", value)
            return
        for i, item in enumerate(value):
            check(item, get_args(kind)[0], f"{path}[{i}]", open_kinds, rules)
        return
    if not isinstance(value, Mapping):
        _fail(path, "an object", value)
        return
    for key, item in value.items():
        if not isinstance(key, str):
            _fail(f"{path} (key)", "text", key)
        check(item, get_args(kind)[1], f"{path}.{key}", open_kinds, rules)


def check(value: object, kind: Any, path: str, open_kinds: frozenset[type], rules: Rules) -> None:
    """Raise `InputError` naming ``path`` and what was expected when ``value`` is not a ``kind``.

    Args:
      value: what to check.
      kind: a type annotation of the forms named above.
      path: where ``value`` stands, e.g. ``"release.models.careless"``.
      open_kinds: TypedDicts that take fields they do not name.
      rules: for a TypedDict, a function that raises when its fields contradict each other.
    """
    origin = get_origin(kind)
    if kind is Any:
        _check_any(value, path)
    elif is_typeddict(kind):
        _check_fields(value, kind, path, open_kinds, rules)
    elif origin is NotRequired:
        check(value, get_args(kind)[0], path, open_kinds, rules)
    elif origin in (list, dict):
        _check_items(value, kind, path, open_kinds, rules)
    elif origin in (types.UnionType, typing.Union):
        (inner,) = (arm for arm in get_args(kind) if arm is not types.NoneType)
        if value is not None:
            check(value, inner, path, open_kinds, rules)
    elif origin is Literal:
        if value not in get_args(kind):
            _fail(path, "one of " + ", ".join(repr(choice) for choice in get_args(kind)), value)
    elif origin is Annotated:
        inner, bounds = get_args(kind)
        check(value, inner, path, open_kinds, rules)
        if not bounds.low <= value <= bounds.high:
            _fail(path, f"a number {bounds}", value)
    else:
        _check_scalar(value, kind, path)


def write_json(path: Path, value: Mapping[str, Any], validate: Callable[[object], None]) -> None:
    """Validate, then write ``path`` as indented JSON in one step: a reader sees the old file or the whole new one."""
    validate(value)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def read_json(path: Path, validate: Callable[[object], None]) -> Any:
    """The content of ``path``, validated; `InputError` names the file and what is wrong, NaN and infinity included."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"{path}: expected a readable release file ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON ({error})") from error
    try:
        validate(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return value
