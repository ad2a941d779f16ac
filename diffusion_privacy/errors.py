"""The two kinds of failure a user can cause, kept apart from programming errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping


class InputError(ValueError):
    """The user's data, configuration or working directory is not usable as given.

    The message is one line that names the file or field and what was expected. `launch.py` prints it and exits with
    status 2; nothing has been overwritten when it is raised.
    """


class MissingDataError(InputError):
    """A file or folder of the data is not there. Where the config says how to obtain it, the message ends with that."""


class DivergenceError(ArithmeticError):
    """Training or sampling produced a non-finite number; the message names the step."""


@contextlib.contextmanager
def within(places: Mapping[str, str]) -> Iterator[None]:
    """Names the field of the config in what is refused within this block.

    What can be used without a config calls its settings by a name of its own (``training.steps must be at least 1``),
    and only who built it knows which of several groups that is (``config.detector.training.steps must …``).

    Args:
      places: where each such name, ``"training"`` say, lies in the config. The longest that a message begins with
        counts; a message that begins with none of them is left as it is.
    """
    try:
        yield
    except InputError as error:
        said = str(error)
        for name in sorted(places, key=len, reverse=True):
            if said.startswith((f"{name}.", f"{name}:", f"{name} ")):
                raise type(error)(places[name] + said.removeprefix(name)) from error
        raise


def require_like(field: str, value: object, default: object) -> None:
    """Raises InputError unless ``value`` is of the kind of a field's ``default``: what a config gives by name is not
    checked by any type, and a text for a number would show only where it is computed with.

    Args:
      field: names it in the message.
      value: a whole number serves as a float, and a list as a tuple.
      default: of the field. Kinds other than truth values, numbers, texts and tuples are let pass.
    """
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        fits, kind = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(default, float):
        fits, kind = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    elif isinstance(default, str):
        fits, kind = isinstance(value, str), "a text"
    elif isinstance(default, tuple):
        fits, kind = isinstance(value, list | tuple), "a list"
    else:
        return
    if not fits:
        raise InputError(f"{field} must be {kind}, got {value!r}")
