"""The asymmetric hashing objective from label-group sums: no m×N matrix, docs/math.md §4.

Similarity depends on label groups only: s_ij = 1 where the groups of i and j share a label, else ν. With t_i = Σ_j
s_ij b_j and Γ = Σ_j b_j b_jᵀ, both formed once an outer iteration, an image costs O(L²):

    Σ_j (L s_ij − u_i·b_j)² = L² Σ_j s_ij² − 2L u_i·t_i + u_iᵀ Γ u_i

L bits, N database items, m sampled items, G label groups (classes, or distinct label sets). Sums are kept in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.ops import compiled, hashing_triton
from agmh_fast.ops.codes import MAX_BITS, all_of
from agmh_fast.ops.registry import Op
from agmh_fast.ops.threads import get_num_threads
from agmh_fast.reference import hashing as reference

# Rows of the database whose L float64 codes stay in a CPU's second-level cache during a sweep.
_CPU_ROWS = 4096


class HashingLoss(NamedTuple):
    """Scalars: total = pairwise + quantization."""

    total: Tensor
    pairwise: Tensor
    quantization: Tensor


class HashingState:
    """Database codes, label groups, and the sums that the loss and the discrete step of one outer iteration need.

    labels: (N,) integer class labels, or (N, classes) multi-hot (bool or 0/1). bits: 1..4096. gamma: weight of the
    quantization loss. seed: of the normal numbers that `codes` (N, bits) starts as. Everything lives on the labels'
    device. Raises InputError for anything else.
    """

    def __init__(self, labels: Tensor, bits: int, gamma: float = 200.0, seed: int = 0) -> None:
        self.bits = require_int("bits", bits, 1, MAX_BITS)
        require(gamma >= 0, f"gamma must be 0 or more, got {gamma}")
        self.gamma = float(gamma)
        self.labels = _checked_labels(labels)
        self.groups, self.overlap = _label_groups(self.labels)
        self.num_groups = int(self.groups.max()) + 1
        self.group_sizes = torch.bincount(self.groups, minlength=self.num_groups).double()
        generator = torch.Generator().manual_seed(seed)
        self._codes = torch.randn(len(self), self.bits, generator=generator).to(labels.device)
        self.sampled: Tensor | None = None

    def __len__(self) -> int:
        return self.groups.shape[0]

    @property
    def codes(self) -> Tensor:
        """Database codes (N, bits) float32; ±1 after the first discrete step. Setting them calls for
        `begin_iteration`.
        """
        return self._codes

    @codes.setter
    def codes(self, codes: Tensor) -> None:
        shape = (len(self), self.bits)
        require(tuple(codes.shape) == shape, f"codes must be {shape}, got {tuple(codes.shape)}")
        require(bool(torch.isfinite(codes).all()), "codes must be finite; there is a NaN or an infinity")
        self._codes = codes.detach().to(self.groups.device, torch.float32).contiguous()
        self.sampled = None

    def begin_iteration(self, sampled: Tensor) -> None:
        """Fix ν, the group sums and the Gram matrix for the database positions `sampled` (m,), all different.

        Raises InputError for positions that are not in the database, are none or come twice.
        """
        sampled = torch.as_tensor(sampled, device=self.groups.device)
        require(
            sampled.dim() == 1 and len(sampled) > 0, f"sampled must be (m,) with m >= 1, got {tuple(sampled.shape)}"
        )
        require(
            not (sampled.is_floating_point() or sampled.dtype == torch.bool),
            f"sampled must be integers, got {sampled.dtype}",
        )
        low, high = int(sampled.min()), int(sampled.max())
        require(
            low >= 0 and high < len(self), f"sampled must be positions from 0 to {len(self) - 1}, got {low} to {high}"
        )
        require(torch.unique(sampled).numel() == sampled.numel(), "sampled names a database position twice")
        self.sampled = sampled.long()
        chosen = torch.bincount(self.groups[self.sampled], minlength=self.num_groups).double()
        alike = self.meeting(self.group_sizes[:, None])[:, 0]
        similar = float(chosen @ alike)
        dissimilar = len(sampled) * len(self) - similar
        self.nu = -similar / dissimilar if dissimilar > 0 else 0.0
        sums, self.gram = self._code_sums()
        # t and Σ_j s² of every group; a row of each is what an image needs.
        self.targets = (1 - self.nu) * self.meeting(sums) + self.nu * sums.sum(dim=0)
        self.square_sums = alike + (len(self) - alike) * self.nu**2

    @property
    def rows(self) -> slice:
        """The items whose codes this process updates: all of them."""
        return slice(0, len(self))

    def whole(self, codes: Tensor) -> Tensor:
        """The codes (N, bits) of all items, of which `codes` are those of `rows`."""
        return codes

    def _code_sums(self) -> tuple[Tensor, Tensor]:
        """Sums of the codes of each group (G, bits), and their Gram matrix (bits, bits), in float64."""
        codes = self._codes[self.rows].double()
        sums = codes.new_zeros(self.num_groups, self.bits).index_add_(0, self.groups[self.rows], codes)
        return sums, codes.T @ codes

    def meeting(self, sums: Tensor) -> Tensor:
        """For each group the sum of `sums` (G, ·) over the groups that share a label with it."""
        return sums if self.overlap is None else self.overlap @ sums


def _checked_labels(labels: Tensor) -> Tensor:
    if labels.dim() not in (1, 2) or labels.shape[0] == 0:
        raise InputError(
            f"labels must be (N,) classes or (N, classes) multi-hot with N >= 1, got {tuple(labels.shape)}"
        )
    if labels.dim() == 1:
        require(
            not (labels.is_floating_point() or labels.dtype == torch.bool),
            f"labels (N,) must be integers, got {labels.dtype}",
        )
        require(int(labels.min()) >= 0, f"labels must be 0 or more, got {int(labels.min())}")
    else:
        require(all_of(labels, 0, 1), "multi-hot labels must hold only 0 and 1")
    return labels


def _label_groups(labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Group of every item (N,), and for multi-hot labels which groups share a label (G, G) float64; None means only
    itself.
    """
    if labels.dim() == 1:
        return torch.unique(labels, return_inverse=True)[1], None
    sets, groups = torch.unique(labels.to(torch.uint8), dim=0, return_inverse=True)
    return groups, reference.share_label(sets, sets).double()


def _check_embedding(name: str, embedding: Tensor, rows: int, bits: int) -> None:
    if not embedding.is_floating_point():
        raise InputError(f"{name} must be floating point, got {embedding.dtype}")
    if embedding.dim() != 2 or embedding.shape[0] != rows or embedding.shape[1] != bits:
        raise InputError(f"{name} must be ({rows}, {bits}), got {tuple(embedding.shape)}")


def _begun(state: HashingState) -> Tensor:
    if state.sampled is None:
        raise InputError("state: call state.begin_iteration(sampled) first, and again after codes were set")
    return state.sampled


hashing_loss = Op("asymmetric_hashing_loss")


def check_loss(embedding: Tensor, items: Tensor, state: HashingState) -> None:
    """Raise InputError unless embedding (B, bits) and items (B,) fit the state; no value of a tensor is read."""
    _begun(state)
    if items.dim() != 1 or items.is_floating_point() or items.dtype == torch.bool or items.shape[0] == 0:
        raise InputError(
            f"items must be (B,) integer database positions with B >= 1, got {tuple(items.shape)} {items.dtype}"
        )
    _check_embedding("embedding", embedding, items.shape[0], state.bits)


def _scaled(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients that forward formed, each times what came down to its loss."""
    (gradients,) = ctx.saved_tensors
    embedding = None
    for k, grad in enumerate(upstream):
        if grad is not None:
            embedding = gradients[k] * grad if embedding is None else embedding + gradients[k] * grad
    if embedding is not None and embedding.dtype != ctx.dtype:
        embedding = embedding.to(ctx.dtype)
    return None, embedding, *ctx.others


_scaled_once = once_differentiable(_scaled)


class _FusedLoss(torch.autograd.Function):
    """Total, pairwise and quantization loss by an op that forms their gradients with them; backward scales these.

    The op takes the embedding (B, L) first and returns the three scalars and the three gradients (3, B, L), at least
    in float32: rounding them to the embedding's dtype waits until they are scaled, as a gradient scaler expects.
    """

    @staticmethod
    def forward(ctx: Any, op: str, embedding: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        total, pairwise, quantization, gradients = getattr(torch.ops.agmh_fast, op)(embedding, *arguments)
        ctx.save_for_backward(gradients)
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.others = embedding.dtype, (None,) * len(arguments)
        return total, pairwise, quantization

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        # What refuses a second derivative costs more than the product, and is needed with create_graph only.
        return (_scaled_once if torch.is_grad_enabled() else _scaled)(ctx, *upstream)


def _kernel_loss_obstacle(embedding: Tensor, items: Tensor, state: HashingState) -> str | None:
    return hashing_triton.loss_obstacle(embedding, items, state.groups)


@hashing_loss.register("triton", obstacle=_kernel_loss_obstacle)
def _loss_by_kernels(embedding: Tensor, items: Tensor, state: HashingState) -> HashingLoss:
    arguments = items, state.groups, state.targets, state.square_sums, state.gram, state.codes, state.gamma
    return HashingLoss(*_FusedLoss.apply("triton_hashing_loss", embedding, *arguments))


def _compiled_loss_obstacle(embedding: Tensor, items: Tensor, state: HashingState) -> str | None:
    if embedding.device.type != "cpu":
        return f"embedding is on {embedding.device}"
    return compiled.cpu_obstacle("the labels", state.groups)


@hashing_loss.register("cpu", obstacle=_compiled_loss_obstacle)
def _loss_compiled(embedding: Tensor, items: Tensor, state: HashingState) -> HashingLoss:
    sums = state.targets, state.square_sums, state.gram
    arguments = items.long(), state.groups, *sums, state.codes, state.gamma, get_num_threads()
    return HashingLoss(*_FusedLoss.apply("hashing_loss", embedding, *arguments))


@hashing_loss.register("torch")
def _loss_from_groups(embedding: Tensor, items: Tensor, state: HashingState) -> HashingLoss:
    batch, bits, count = items.shape[0], state.bits, len(state)
    u, group = embedding.double(), state.groups[items]
    mixed = ((u @ state.gram - 2 * bits * state.targets[group]) * u).sum()
    pairwise = (bits**2 * state.square_sums[group].sum() + mixed) * (12 / (bits * batch * count))
    distance = (u - state.codes[items]).square().sum()
    quantization = distance * (12 * state.gamma / (bits * batch * count))
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    pairwise, quantization = pairwise.to(dtype), quantization.to(dtype)
    return HashingLoss(pairwise + quantization, pairwise, quantization)


@hashing_loss.register("reference")
def _loss_dense(embedding: Tensor, items: Tensor, state: HashingState) -> HashingLoss:
    codes = state.codes.to(embedding.dtype)
    pairwise = reference.pairwise_loss(embedding, codes, _dense_similarity(state, items, embedding.dtype))
    quantization = reference.quantization_loss(embedding, codes[items], len(state), state.gamma)
    return HashingLoss(pairwise + quantization, pairwise, quantization)


def _dense_similarity(state: HashingState, items: Tensor, dtype: torch.dtype) -> Tensor:
    """s (B, N) for the iteration's ν."""
    similar = reference.share_label(state.labels[items], state.labels)
    return similar.to(dtype) * (1 - state.nu) + state.nu


discrete_step = Op("update_database_codes")


def check_step(state: HashingState, embeddings: Tensor, sampled: Tensor) -> None:
    """Raise InputError unless embeddings (m, bits) are finite and `sampled` is what the iteration began with."""
    begun = _begun(state)
    require(torch.equal(begun, sampled.to(begun)), "sampled must be the positions that begin_iteration was given")
    _check_embedding("embeddings", embeddings, len(begun), state.bits)
    require(
        bool(torch.isfinite(embeddings).all()),
        "embeddings must be finite; there is a NaN or an infinity: lower the learning rate",
    )


def _sweep_inputs(state: HashingState, embeddings: Tensor, sampled: Tensor) -> tuple[Tensor, ...]:
    """Codes of the state's rows; in float64 L Σ_i s_ij u_i of each group (G, L); of each row its group, and its row of
    U or −1; U (m, L) and Ω (L, L) in float64.
    """
    u, rows = embeddings.double().contiguous(), state.rows
    sums = u.new_zeros(state.num_groups, state.bits).index_add_(0, state.groups[sampled], u)
    targets = state.bits * ((1 - state.nu) * state.meeting(sums) + state.nu * sums.sum(dim=0))
    own = sampled.new_full((len(state),), -1)
    own[sampled] = torch.arange(len(sampled), device=u.device)
    return state.codes[rows], targets, state.groups[rows], own[rows], u, (u.T @ u).fill_diagonal_(0)


def _kernel_step_obstacle(state: HashingState, *_: object) -> str | None:
    return hashing_triton.step_obstacle(state.codes)


@discrete_step.register("triton", obstacle=_kernel_step_obstacle)
def _step_by_kernel(state: HashingState, embeddings: Tensor, sampled: Tensor) -> Tensor:
    inputs = _sweep_inputs(state, embeddings, sampled)
    return torch.ops.agmh_fast.triton_discrete_step(*inputs, state.gamma)


def _engine_obstacle(state: HashingState, *_: object) -> str | None:
    return compiled.cpu_obstacle("the labels", state.groups)


@discrete_step.register("cpu", obstacle=_engine_obstacle)
def _step_compiled(state: HashingState, embeddings: Tensor, sampled: Tensor) -> Tensor:
    inputs = _sweep_inputs(state, embeddings, sampled)
    return torch.ops.agmh_fast.discrete_step(*inputs, state.gamma, get_num_threads())


@discrete_step.register("torch")
def _step_from_groups(state: HashingState, embeddings: Tensor, sampled: Tensor) -> Tensor:
    old, targets, groups, own, u, gram = _sweep_inputs(state, embeddings, sampled)
    updated = torch.empty_like(old)
    step = _CPU_ROWS if u.device.type == "cpu" else max(1, len(old))
    for rows in torch.arange(len(old), device=u.device).split(step):
        # Bits along rows: a step of the sweep then reads and writes contiguous memory.
        score = targets[groups[rows]].T.contiguous()
        mine = own[rows]
        score += torch.where(mine >= 0, state.gamma * u[mine.clamp_min(0)].T, 0)
        codes = old[rows].double().T.contiguous()
        for bit in range(state.bits):
            codes[bit] = torch.where(score[bit] >= gram[bit] @ codes, 1.0, -1.0)
        updated[rows] = codes.T.to(updated.dtype)
    return updated


@discrete_step.register("reference")
def _step_dense(state: HashingState, embeddings: Tensor, sampled: Tensor) -> Tensor:
    s = _dense_similarity(state, sampled, torch.float64)
    codes = reference.discrete_step(state.codes.double(), embeddings.double(), sampled, s, state.gamma)
    return codes.to(torch.float32)[state.rows]


@compiled.on_load
def _describe() -> None:
    """Shapes and dtypes of the compiled ops, for torch.compile."""
    torch.library.register_fake("agmh_fast::hashing_loss")(hashing_triton.loss_fake)
    torch.library.register_fake("agmh_fast::discrete_step")(hashing_triton.step_fake)
