"""Lists of ids in host memory: which of them an index holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agmh_fast.errors import InputError

Find = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_ids(ascending: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value stands in an ascending array, and whether it is there (where not, the place means nothing)."""
    places = np.searchsorted(ascending, values)
    inside = places < len(ascending)
    held = np.zeros(len(values), bool)
    held[inside] = ascending[places[inside]] == values[inside]
    return places, held


def check_unused(find: Find, everyones: Sequence[np.ndarray], rank: int) -> None:
    """Raise InputError for an id of another rank's that this one holds, by `find`, or is about to add."""
    for other, ids in enumerate(everyones):
        if other == rank:
            continue
        _, held = find(ids)
        if held.any():
            raise InputError(f"ids: {ids[held][0]}, given on rank {other}, is in the index already")
        _, twice = find_ids(np.sort(everyones[rank]), ids)
        if twice.any():
            raise InputError(f"ids: {ids[twice][0]} is given on rank {other} too; ids must be unique")
