"""Programs of earlier runs: a model of the same settings as one before it is not traced and compiled once more.

A study trains several models that differ in their records and seeds alone, a certificate hundreds. The steps are the
same for all of them, and everything in which the runs differ is an argument.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from jax.sharding import Mesh

_P = ParamSpec("_P")
_R = TypeVar("_R")

_KEPT = 4
"""A study trains one kind of model after another; each has few programs."""

_forget: list[Callable[[], None]] = []


def kept(make: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a maker of programs: equal arguments get the same one as before, as far as the last few are concerned.

    Arguments are equal where they say so by value (frozen dataclasses, flax modules, meshes), down to their fields.
    One with a part that is compared by identity, or that closes over something, or is not hashable because it holds
    arrays, gets a program of its own: that part may have been changed since, and must not stay in memory.
    """
    remembered = functools.lru_cache(maxsize=_KEPT)(make)
    _forget.append(remembered.cache_clear)

    @functools.wraps(make)
    def program(*arguments: Any, **named: Any) -> _R:
        known = all(by_value(a, closures=False) and _hashable(a) for a in (*arguments, *named.values()))
        chosen: Callable[..., _R] = remembered if known else make
        return chosen(*arguments, **named)

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


def by_value(value: Any, *, closures: bool = True) -> bool:
    """Whether ``value`` equals another one only if both compute alike.

    Args:
      value: whose comparison is asked about; functions and classes are equal to themselves alone. A class that writes
        its own ``__eq__`` is believed.
      closures: believe of functions and classes that what they close over, and their defaults, never changes. Globals
        that they call are believed not to in any case.
    """
    # Equal meshes are one object, which is why they have the comparison of an object.
    if value is None or isinstance(value, bool | enum.Enum | np.dtype | Mesh):
        return True
    deeper = functools.partial(by_value, closures=closures)
    kind = type(value)
    if isinstance(value, types.FunctionType):
        defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        return closures or (value.__closure__ is None and all(map(deeper, defaults)))
    if isinstance(value, type):
        return closures or "<locals>" not in value.__qualname__
    if isinstance(value, types.MethodType):
        return deeper(value.__self__)
    if isinstance(value, tuple | frozenset):
        # Tuples with named fields are equal to those of other names.
        return kind in (tuple, frozenset) and all(map(deeper, value))
    if isinstance(value, Mapping):
        return all(map(deeper, (*value.keys(), *value.values())))
    if kind is object or "__eq__" not in vars(kind):
        # None, or one of a parent, which does not look at what the child has besides.
        return False
    if dataclasses.is_dataclass(value) and kind.__dataclass_params__.eq:
        # Its fields may be compared by identity, or not at all.
        return all(field.compare and deeper(getattr(value, field.name)) for field in dataclasses.fields(value))
    return True
