"""Inference: backbone features -> packed codes, in two kernels. The descriptors are never stored.

The 1×1 convolution is a product over all B·n positions; its epilogue applies BatchNorm's scale and shift and ReLU and
adds the positions of each image. README.md has the formulas.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.common.layout import aligned, alignment, dense, strides
from agmh_fast.kernels.common.tuning import fastest
from agmh_fast.kernels.descriptor import config
from agmh_fast.kernels.descriptor.fwd import channel
from torch import Tensor


@triton.jit(do_not_specialize=["n", "total"])
def project(
    x,
    weight,
    bias,
    gamma,
    beta,
    mean,
    var,
    parts,
    eps,
    sb,
    n,
    total,
    SP: tl.constexpr,
    SC: tl.constexpr,
    ALIGN: tl.constexpr,
    C_IN: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (position tile · channel tiles + channel tile), positions being those of the whole batch: for each image
    Σ ReLU(BN(W x + b)) over its positions in the tile.

    That of image b goes to row tile + b of parts: along the positions each step enters a new tile, a new image or both,
    so that no two pairs share a row.
    """
    n, total = aligned(n, ALIGN), aligned(total, ALIGN)
    tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0) // tiles
    c, k = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    t = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    live, known = t < total, c < C
    column = (t // n).to(tl.int64) * sb + t % n * SP
    # ALIGN positions of one image are neighbours in memory, which the division hides.
    if ALIGN > 1:
        column = tl.max_contiguous(tl.multiple_of(column, ALIGN), ALIGN)
    left, right = weight + c[:, None] * C_IN + k[None, :], x + column[None, :] + k[:, None] * SC
    # Channels are rows: a thread of the epilogue then has few of them, and their scales, and most of its sums.
    acc = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    for i in range(0, C_IN, BLOCK_K):
        if C_IN % BLOCK_K == 0:
            a = tl.load(left, mask=known[:, None], other=0.0)
            b = tl.load(right, mask=live[None, :], other=0.0)
        else:
            inside = i + k < C_IN
            a = tl.load(left, mask=known[:, None] & inside[None, :], other=0.0)
            b = tl.load(right, mask=live[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        left += BLOCK_K
        right += BLOCK_K * SC
    centre, _, scale, shift = channel(mean, var, gamma, beta, eps, c, C)
    if bias is not None:
        centre -= tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    z = (acc - centre[:, None]) * scale[:, None] + shift[:, None]
    # Not a maximum: that would turn NaN into 0.
    z = tl.where(z <= 0, 0.0, z)
    for image in range(tile * BLOCK_N // n, (min((tile + 1) * BLOCK_N, total) - 1) // n + 1):
        own = (t >= image * n) & (t < (image + 1) * n)
        part = tl.sum(tl.where(own[None, :], z, 0.0), 1)
        tl.store(parts + tl.cast(tile + image, tl.int64) * C + c, part, mask=known)


@triton.jit(do_not_specialize=["n", "bits"])
def hash_codes(
    parts,
    weight,
    logits,
    codes,
    n,
    bits,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (image, byte): the image's parts added in order, eight logits Θ v, and their signs in one byte."""
    b, byte = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bit, c = tl.arange(0, 8), tl.arange(0, BLOCK_C)
    known = byte * 8 + bit < bits
    first, last = (b * n // BLOCK_N).to(tl.int32), (((b + 1) * n - 1) // BLOCK_N).to(tl.int32)
    acc = tl.zeros((8, BLOCK_C), tl.float32)
    for i in range(0, C, BLOCK_C):
        v = tl.zeros((BLOCK_C,), tl.float32)
        for tile in range(first, last + 1):
            v += tl.load(parts + (tile + b) * C + i + c, mask=i + c < C, other=0.0)
        at = (byte * 8 + bit).to(tl.int64)[:, None] * C + (i + c)[None, :]
        w = tl.load(weight + at, mask=known[:, None] & (i + c < C)[None, :], other=0.0)
        acc += w.to(tl.float32) * v[None, :]
    logit = tl.sum(acc, 1) / n
    tl.store(logits + b * bits + byte * 8 + bit, logit, mask=known)
    signs = ((logit >= 0) & known).to(tl.int32) << (7 - bit)
    tl.store(codes + b * tl.num_programs(1) + byte, tl.sum(signs, 0).to(codes.dtype.element_ty))


def _copyable(x: Tensor) -> Tensor:
    """x, dense; channels_last where positions could only be loaded two bytes at a time, too few to copy in advance."""
    x = dense(x)
    odd = x.element_size() == 2 and x.shape[2] * x.shape[3] % 2 == 1
    return x.contiguous(memory_format=torch.channels_last) if odd else x


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    hash_weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Packed codes (B, ceil(bits/8)) uint8 and logits (B, bits) float32 of x (B, C_in, H, W); weight (D·C, C_in) of x's
    dtype.
    """
    batch, inputs, height, width = x.shape
    (channels, _), bits = weight.shape, hash_weight.shape[0]
    n, x = height * width, _copyable(x)
    default = config.choose_encode(x)
    tile = fastest(
        "descriptor.encode", (channels, bits), x, default, config.encode_alternatives,
        lambda: encode(x, weight, bias, gamma, beta, mean, var, hash_weight, eps),
    )  # fmt: skip
    total, new = batch * n, x.new_empty
    sb, _, sp, sc = strides(x, 1)
    tiles = triton.cdiv(total, tile.positions)
    parts = new(tiles + batch, channels, dtype=torch.float32)
    project[(tiles * triton.cdiv(channels, tile.channels),)](
        x, weight.contiguous(), bias, gamma, beta, mean, var, parts, eps, sb, n, total,
        SP=sp, SC=sc, ALIGN=alignment(n, sc), C_IN=inputs, C=channels, BLOCK_N=tile.positions, BLOCK_C=tile.channels,
        BLOCK_K=tile.inner, PRECISION=tile.precision, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    logits = new(batch, bits, dtype=torch.float32)
    codes = new(batch, triton.cdiv(bits, 8), dtype=torch.uint8)
    hash_codes[(batch, codes.shape[1])](
        parts, hash_weight.contiguous(), logits, codes, n, bits, C=channels, BLOCK_N=tile.positions, BLOCK_C=512,
        num_warps=4,
    )  # fmt: skip
    return codes, logits
