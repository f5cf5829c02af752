"""A model whose batch statistics are those of the batches of all ranks."""

from __future__ import annotations

from torch import nn

from agmh_fast.modules.agmh import AGMH
from agmh_fast.modules.descriptor import SyncedBatchNorm2d, untouched


def synchronize_statistics(model: AGMH) -> AGMH:
    """Have BatchNorms and attention of `model`, in training mode, take the statistics of all ranks; changed in place.

    torch.distributed must be initialised when the model is trained; every rank must then take every step. Parameters
    and state dict stay what they were. BatchNorms of a kind of your own stay as they are.
    """
    for module in list(model.modules()):
        if untouched(module, nn.BatchNorm2d) and module.affine:
            module.__class__ = SyncedBatchNorm2d
    model.attention.synced = True
    return model
