"""Which database images are kept from training, so that the best model can be chosen without the test queries."""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast.errors import require
from agmh_fast.ops.hashing import HashingState
from agmh_fast.train.randomness import held_out_draw

SELECTIONS = {
    "validation": "mAP of database images held out of training",
    "test": "mAP of the test queries, as published",
    "last": "the last one, without a choice",
}


def held_out(state: HashingState, share: float, seed: int) -> Tensor:
    """Database positions (v,) int64, ascending, of some `share` (below a half) of the images, spread over the classes.

    No class is held out whole, where images have one label each. Raises InputError where none can be held out.
    """
    groups = state.groups.cpu()
    # With several labels, images are relevant to each other that share one, whatever else they have.
    fits = groups.bincount()[groups] > 1 if state.overlap is None else torch.ones(len(groups), dtype=torch.bool)
    candidates = fits.nonzero()[:, 0]
    order, start = held_out_draw(len(candidates), seed)
    mixed = candidates[order]
    by_group = mixed[groups[mixed].argsort(stable=True)]
    # Every (1/share)-th of this order: of neighbours, and so of the images of a class, never all.
    marks = (torch.arange(len(by_group) + 1, dtype=torch.float64) * share + start).floor()
    chosen = by_group[marks[1:] > marks[:-1]]
    require(len(chosen) > 0, "select: there are too few images to hold some out for validation: choose test or last")
    return chosen.sort().values
