"""Lists of ids in host memory: whether they may be ids, and which of them an index holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agmh_fast.errors import InputError

MAX_ID = 2**63 - 2
Find = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_ids(ascending: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value stands in an ascending array, and whether it is there (where not, the place means nothing)."""
    places = np.searchsorted(ascending, values)
    inside = places < len(ascending)
    held = np.zeros(len(values), bool)
    held[inside] = ascending[places[inside]] == values[inside]
    return places, held


def check_ids(ids: np.ndarray) -> None:
    """Raise InputError for an id that is negative, too large or given twice."""
    outside = ids[(ids < 0) | (ids > MAX_ID)]
    if len(outside):
        raise InputError(f"ids must be from 0 to 2**63 - 2, got {outside[0]}")
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise InputError(f"ids: {twice[0]} is given twice; ids must be unique")


def check_unused(find: Find, everyones: Sequence[np.ndarray], rank: int) -> None:
    """Raise InputError for an id that a rank is to add and this one holds, by `find`, or is to add as well."""
    own = np.sort(everyones[rank])
    for giver, ids in enumerate(everyones):
        _, held = find(ids)
        if held.any():
            where = "" if giver == rank else f", given on rank {giver},"
            raise InputError(f"ids: {ids[held][0]}{where} is in the index already; remove it first or give another")
        _, twice = find_ids(own, ids)
        if giver != rank and twice.any():
            raise InputError(f"ids: {ids[twice][0]} is given on rank {giver} too; ids must be unique")
