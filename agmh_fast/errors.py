"""The one exception for a mistake that its caller can mend."""

from __future__ import annotations

import operator


class InputError(ValueError):
    """Bad input: the message is one line that names the argument and says what to do.

    The command line prints it and exits with code 2; any other exception is a fault of ours and keeps its traceback.
    """


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as an int if it is a whole number in [low, high]; booleans are refused."""
    limit = f"of at least {low}" if high is None else f"from {low} to {high}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} must be a whole number {limit}, got {value!r}") from None
    fits = not isinstance(value, bool) and number >= low and (high is None or number <= high)
    require(fits, f"{name} must be a whole number {limit}, got {value!r}")
    return number
