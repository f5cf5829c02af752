"""Binary codes: signs of embeddings, packed bits (numpy.packbits order: big-endian), and back."""

from __future__ import annotations

import torch
from torch import Tensor


def sign_bits(embeddings: Tensor) -> Tensor:
    """Bit 1 where the value is >= 0: (N, bits) floating -> (N, bits) bool. Source: Lu et al. 2023, sign of Θv."""
    return embeddings >= 0


def pack_bits(bits: Tensor) -> Tensor:
    """(N, bits) bool -> (N, ceil(bits / 8)) uint8: bit l is bit 7 − l mod 8 of byte l // 8; unused bits are 0."""
    count, length = bits.shape
    packed = torch.zeros(count, (length + 7) // 8, dtype=torch.uint8, device=bits.device)
    for position in range(length):
        packed[:, position // 8] += bits[:, position].to(torch.uint8) * 2 ** (7 - position % 8)
    return packed


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """(N, ceil(bits / 8)) uint8 -> (N, bits) bool, the inverse of `pack_bits`."""
    columns = [(packed[:, position // 8] >> (7 - position % 8)) & 1 for position in range(bits)]
    return torch.stack(columns, dim=1).bool()
