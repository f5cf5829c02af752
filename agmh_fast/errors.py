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
    number = value if type(value) is int else _whole(value)
    if number is None or number < low or (high is not None and number > high):
        limit = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be a whole number {limit}, got {shown(value)}")
    return number


def _whole(value: object) -> int | None:
    """The whole number that a NumPy integer, a tensor of one integer or another stand-in for an int is."""
    try:
        boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
        return None if boolean else operator.index(value)  # type: ignore[arg-type]
    except Exception:  # whatever the value's own methods raise
        return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, of one that says nothing its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: object) -> str:
    """`value` for a message: on one line, and short."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # integers of thousands of digits, faulty __repr__
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
