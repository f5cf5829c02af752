"""The asymmetric hashing objective with dense similarities, docs/math.md §4 (ADSH: Jiang and Li, AAAI 2018).

Items are similar when they share a label. B images of a batch, m sampled items, N database items, L bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def share_label(a: Tensor, b: Tensor) -> Tensor:
    """(m, N) bool from labels (m,) and (N,) int, or multi-hot (m, classes) and (N, classes)."""
    if a.dim() == 1:
        return a[:, None] == b[None, :]
    return a.double() @ b.double().T > 0


def similarity(sampled_labels: Tensor, database_labels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """s (m, N): 1 where a label is shared, else ν = −(similar pairs) / (dissimilar pairs)."""
    similar = share_label(sampled_labels, database_labels)
    pairs = similar.sum().to(dtype)
    dissimilar = similar.numel() - pairs
    nu = -pairs / dissimilar if dissimilar > 0 else torch.zeros((), dtype=dtype)
    return torch.where(similar, torch.ones((), dtype=dtype), nu)


def pairwise_loss(embedding: Tensor, codes: Tensor, s: Tensor) -> Tensor:
    """12/(L·B·N) Σ_ij (L s_ij − u_i·b_j)²; embedding (B, L), codes (N, L), s (B, N)."""
    (batch, bits), count = embedding.shape, codes.shape[0]
    return (bits * s - embedding @ codes.T).square().sum() * 12 / (bits * batch * count)


def quantization_loss(embedding: Tensor, own_codes: Tensor, count: int, gamma: float) -> Tensor:
    """12γ/(L·B·N) Σ_i ‖u_i − b_ω(i)‖²; own_codes (B, L) are the database codes of the batch's items, count is N."""
    batch, bits = embedding.shape
    return gamma * (embedding - own_codes).square().sum() * 12 / (bits * batch * count)


def discrete_step(codes: Tensor, embeddings: Tensor, sampled: Tensor, s: Tensor, gamma: float) -> Tensor:
    """One sweep of coordinate descent over the bits: new codes (N, L) in {−1, +1}.

    codes (N, L), embeddings (m, L) of the sampled items, sampled (m,) their positions, s (m, N).
    B[:, l] ← sign(q_l − B' U'ᵀ u_l) with Q = L Sᵀ U + γ Ū; a prime leaves column l out; sign(0) = +1.
    """
    codes, bits = codes.clone(), codes.shape[1]
    spread = torch.zeros_like(codes)
    spread[sampled] = embeddings
    target = bits * s.T @ embeddings + gamma * spread
    for bit in range(bits):
        others = [i for i in range(bits) if i != bit]
        score = target[:, bit] - codes[:, others] @ (embeddings[:, others].T @ embeddings[:, bit])
        codes[:, bit] = torch.where(score >= 0, 1.0, -1.0).to(codes.dtype)
    return codes
