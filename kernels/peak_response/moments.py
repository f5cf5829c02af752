"""BatchNorm by the moments of attention: work on (D, C, K) and smaller, in float32. README.md has the formulas.

Sums over splits are formed in one order, a block of splits at a time so that their loads are in flight together.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["splits"])
def sum_of_splits(parts, stride, splits, at, mask, BLOCK_S: tl.constexpr):
    """Σ_split parts[split · stride + at] for a tile `at` of offsets."""
    s = tl.arange(0, BLOCK_S)
    acc = tl.zeros(at.shape, tl.float32)
    for start in range(0, splits, BLOCK_S):
        offset, known = (start + s).to(tl.int64) * stride, start + s < splits
        if len(at.shape) == 1:
            x = tl.load(parts + offset[:, None] + at[None, :], mask=known[:, None] & mask[None, :], other=0.0)
        else:
            where = known[:, None, None] & mask[None, :, :]
            x = tl.load(parts + offset[:, None, None] + at[None, :, :], mask=where, other=0.0)
        acc += tl.sum(x, 0)
    return acc


@triton.jit(do_not_specialize=["splits", "total"])
def covariance(
    products,
    sums,
    mean,
    cov,
    splits,
    total,
    K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program (slot tile, descriptor): mean (D, K) and covariance (D, K, K) of h from the sums of `gram`. The mean is
    near 0, so little cancels: every slot's softmax sums to 1, and 1/K is taken off.
    """
    d, descriptors = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    i, k = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_K)
    stride = tl.cast(descriptors, tl.int64) * K
    rows = sum_of_splits(sums, stride, splits, d * K + i, i < K, BLOCK_S) / total
    columns = sum_of_splits(sums, stride, splits, d * K + k, k < K, BLOCK_S) / total
    at, mask = (d * K + i[:, None]) * K + k[None, :], (i < K)[:, None] & (k < K)[None, :]
    second = sum_of_splits(products, stride * K, splits, at, mask, BLOCK_S) / total
    tl.store(mean + d * K + i, rows, mask=i < K)
    tl.store(cov + at, second - rows[:, None] * columns[None, :], mask=mask)


@triton.jit
def times_covariance(
    rows, cov, inside, C: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P Σ of a tile of channels: rows (BLOCK_C, 1) points at P, cov at Σ of the descriptor."""
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        p = tl.load(rows + j[None, :], mask=inside[:, None] & (j < K)[None, :], other=0.0)
        x = tl.load(cov + j[:, None] * K + k[None, :], mask=(j < K)[:, None] & (k < K)[None, :], other=0.0)
        acc = tl.dot(p, x, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _follow(running, at, inside, statistic, momentum):
    """Move a running statistic towards the batch's."""
    old = tl.load(running + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(running + at, (old + momentum * (statistic - old)).to(running.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def statistics(
    projection,
    gamma,
    beta,
    attention_mean,
    attention_cov,
    running_mean,
    running_var,
    mean,
    var,
    scaled,
    shift,
    momentum,
    eps,
    total,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (channel tile, descriptor): mean and biased variance of y, P' rounded, shift.

    y = P a = P h + P·1/K: the centred attention has the covariance of a, and sums that do not cancel. With moments of
    attention the running statistics follow, if there are any; without, they are the statistics.
    """
    d, c, k = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    at, inside = d * C + c, c < C
    tile, mask = at[:, None] * K + k[None, :], inside[:, None] & (k < K)[None, :]
    P = tl.load(projection + tile, mask=mask, other=0.0)
    if attention_cov is not None:
        mu = tl.load(attention_mean + d * K + k, mask=k < K, other=0.0)
        m = tl.sum(P * (mu + 1 / K)[None, :], 1)
        rows, cov = projection + at[:, None] * K, attention_cov + d * K * K
        v = tl.sum(times_covariance(rows, cov, inside, C, K, BLOCK_C, BLOCK_K, BLOCK_J, PRECISION) * P, 1)
        if running_mean is not None:
            _follow(running_mean, at, inside, m, momentum)
        if running_var is not None:
            _follow(running_var, at, inside, v * (total / (total - 1)), momentum)
    else:
        m = tl.load(running_mean + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(running_var + at, mask=inside, other=1.0).to(tl.float32)
    scale = tl.load(gamma + at, mask=inside, other=0.0) * tl.rsqrt(v + eps)
    rounded = (scale[:, None] * P).to(scaled.dtype.element_ty)
    # From the rounded P': only then does the mean cancel.
    x = rounded.to(tl.float32)
    offset = -tl.sum(x * mu[None, :], 1) if attention_cov is not None else tl.sum(x, 1) / K - scale * m
    tl.store(mean + at, m, mask=inside)
    tl.store(var + at, v, mask=inside)
    tl.store(scaled + tile, rounded, mask=mask)
    tl.store(shift + at, tl.load(beta + at, mask=inside, other=0.0) + offset, mask=inside)
