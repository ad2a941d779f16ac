"""The two kinds of failure a user can cause, kept apart from programming errors."""

from __future__ import annotations


class InputError(ValueError):
    """The user's data, configuration or working directory is not usable as given.

    The message is one line that names the file or field and what was expected. `launch.py` prints it and exits with
    status 2; nothing has been overwritten when it is raised.
    """


class MissingDataError(InputError):
    """A file or folder of the data is not there. Where the config says how to obtain it, the message ends with that."""


class DivergenceError(ArithmeticError):
    """Training or sampling produced a non-finite number; the message names the step."""
