"""Programs of earlier runs: a model of the same settings as one before it is not traced and compiled once more.

A study trains several models that differ in their records and seeds alone, a certificate hundreds. The steps are the
same for all of them, and everything in which the runs differ is an argument.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from jax.sharding import Mesh

_P = ParamSpec("_P")
_R = TypeVar("_R")

_KEPT = 4
"""A study trains one kind of model after another; each has few programs."""

_forget: list[Callable[[], None]] = []


def kept(make: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a maker of programs: equal arguments get the same one as before, as far as the last few are concerned.

    The maker is called with positional arguments. They are equal where they say so by value (frozen dataclasses, flax
    modules, meshes), down to their fields. One that is compared by identity, or not hashable because it holds arrays,
    gets a program of its own: it may have been changed since, and its arrays must not stay in memory.
    """
    remembered = functools.lru_cache(maxsize=_KEPT)(make)
    _forget.append(remembered.cache_clear)

    @functools.wraps(make)
    def program(*arguments: Any) -> _R:
        chosen: Callable[..., _R] = remembered if all(by_value(a) and _hashable(a) for a in arguments) else make
        return chosen(*arguments)

    return cast(Callable[_P, _R], program)


def forget() -> None:
    """Drops all programs that `kept` keeps; for who has changed a function that they were traced from."""
    for clear in _forget:
        clear()


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def by_value(value: Any) -> bool:
    """Whether ``value`` equals another one only if both compute alike, as long as functions have no state."""
    # Equal meshes are one object, which is why they have the comparison of an object.
    if value is None or isinstance(value, types.FunctionType | type | enum.Enum | Mesh):
        return True
    if isinstance(value, tuple):
        return all(map(by_value, value))
    if isinstance(value, types.MethodType):
        return by_value(value.__self__)
    if dataclasses.is_dataclass(value) and type(value).__eq__ is not object.__eq__:
        # Its fields may be compared by identity all the same.
        return all(by_value(getattr(value, field.name)) for field in dataclasses.fields(value) if field.compare)
    return type(value).__eq__ is not object.__eq__
