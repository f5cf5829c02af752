"""The hashing loss and the discrete step, by the published forms and ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from contestants import PUBLISHED, Contestant, Named, Outputs, Workload, serving
from targets import scaled
from torch import Tensor

import agmh_fast.functional as af
from agmh_fast.reference import hashing as reference
from agmh_fast.train import HashingState

BATCH = 32


def hashing_state(count: int, bits: int, device: torch.device) -> tuple[HashingState, Tensor]:
    """A database of 101 classes at the start of an outer iteration with 2000 sampled items."""
    torch.manual_seed(0)
    state = HashingState(torch.randint(0, 101, (count,)).to(device), bits)
    sampled = torch.randperm(count)[:2000].to(device)
    state.codes = state.codes.sign()
    state.begin_iteration(sampled)
    return state, sampled


def hashing_loss(device: torch.device, dtype: torch.dtype) -> Workload:
    """Pairwise and quantization loss of 32 images, 48 bits, N = 75 750."""
    count, bits = scaled(75_750, 4000), 48
    state, sampled = hashing_state(count, bits, device)
    embedding, items = torch.tanh(torch.randn(BATCH, bits, device=device)).requires_grad_(), sampled[:BATCH]
    similarity = reference.similarity(state.labels[sampled], state.labels, torch.float32)[:BATCH]

    def published(u: Tensor, codes: Tensor, s: Tensor) -> Outputs:
        pairwise = reference.pairwise_loss(u, codes, s)
        return (pairwise + reference.quantization_loss(u, codes[items], count, state.gamma),)

    def common(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        return {"loss": outputs[0], "embedding": grads[0]}

    def through(impl: str) -> Contestant:
        return Contestant(
            lambda: (af.asymmetric_hashing_loss(embedding, items, state, impl=impl).total,), [embedding], common
        )

    def exact() -> Named:
        u, s = embedding.detach().double().requires_grad_(), similarity.double()
        return Contestant(lambda: published(u, state.codes.double(), s), [u], common).results()

    contestants = {
        PUBLISHED: Contestant(lambda: published(embedding, state.codes, similarity), [embedding], common),
        **{impl: through(impl) for impl in serving("asymmetric_hashing_loss", embedding, items, state)},
    }
    # The batch's embedding, targets (float64) and codes, the Gram matrix (float64); backward reads them again.
    bytes_moved = BATCH * bits * (4 + 8 + 4) + 8 * bits**2
    # Sums of N float32 products in whatever order.
    band = torch.finfo(dtype).eps * count**0.5
    return Workload(contestants, exact, band, bytes_moved, bytes_moved + 4 * BATCH * bits)


def discrete_step(count: int, bits: int, device: torch.device, dtype: torch.dtype) -> Workload:
    """A sweep over the bits of N codes for 2000 sampled items; S is given to the published form for free."""
    state, sampled = hashing_state(count, bits, device)
    embeddings = torch.tanh(torch.randn(2000, bits, device=device))
    dense = count * len(sampled) <= 2 * 10**8
    similarity = reference.similarity(state.labels[sampled], state.labels, torch.float32) if dense else None

    def published() -> Outputs:
        """As published, in float32: for every bit B' times U'ᵀu, without the bit's own column."""
        B, spread = state.codes.clone(), torch.zeros_like(state.codes)
        spread[sampled] = embeddings
        Q = (bits * similarity).T @ embeddings + state.gamma * spread
        for bit in range(bits):
            others = [i for i in range(bits) if i != bit]
            B[:, bit] = (Q[:, bit] - B[:, others] @ embeddings[:, others].T @ embeddings[:, bit]).sign()
        return (B,)

    def common(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        return {"codes": outputs[0]}

    def through(impl: str) -> Contestant:
        return Contestant(lambda: (af.OPS["update_database_codes"](state, embeddings, sampled, impl=impl),), [], common)

    def exact() -> Named:
        # In float64 the reference takes minutes for a larger one.
        impl = "reference" if dense and count < 10_000 else "torch"
        return {"codes": af.OPS["update_database_codes"](state, embeddings, sampled, impl=impl)}

    contestants = {PUBLISHED: Contestant(published, [], common)} if dense else {}
    contestants |= {impl: through(impl) for impl in serving("update_database_codes", state, embeddings, sampled)}
    # Codes in and out, two int64 an item that say which targets and embeddings are its own.
    bytes_moved = count * (8 * bits + 16)
    return Workload(contestants, exact, 0, bytes_moved, baseline=PUBLISHED if dense else "torch")
