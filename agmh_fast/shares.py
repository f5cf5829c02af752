"""Even shares of a number of things in a row."""

from __future__ import annotations


def share(count: int, number: int, parts: int) -> slice:
    """Part `number` of 0..count-1 in so many parts that differ by one at most, the larger ones first."""
    least, more = divmod(count, parts)
    start = number * least + min(number, more)
    return slice(start, start + least + (number < more))
