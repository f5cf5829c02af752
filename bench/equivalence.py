"""A short run of every implementation of the training and Hamming ops against the reference, small and odd
shapes: what compute-sanitizer is to look at.

    python bench/equivalence.py [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from attention_cases import make_features, make_params, with_own_statistics
from back_ends import back_end, sieves

import agmh_fast.functional as af
from agmh_fast.train import HashingState

Case = tuple[str, tuple[Any, ...], Callable[[str], list[Tensor]]]


def _with_gradients(outputs: Tensor | tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of their sum after a sine, which weighs every element differently."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    total = torch.stack([out.double().sin().sum() for out in outputs]).sum()
    return [*(out.detach() for out in outputs), *torch.autograd.grad(total, leaves, materialize_grads=True)]


def _for(impl: str, *tensors: Tensor) -> list[Tensor]:
    """The tensors, in float64 for the reference; gradients reach the same leaves."""
    return [tensor.double() if impl == "reference" else tensor for tensor in tensors]


def _error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error; of what is nearly zero (a bias that cancels) by the scale of the rest."""
    scale = 1e-3 * max(float(e.double().norm()) for e in expected)
    return max(
        float((a.double() - e.double()).norm()) / max(float(e.double().norm()), scale, 1e-30)
        for a, e in zip(actual, expected, strict=True)
    )


def attention(device: torch.device, dtype: torch.dtype, last: bool) -> Iterator[Case]:
    """Peaks and dispersion loss of 3 descriptors of 33 channels, 7 slots, 5 × 7 positions."""
    features = make_features(3, 33, 2, 5, 7, torch.float32).to(device, dtype)
    features = features.contiguous(memory_format=torch.channels_last) if last else features
    made = make_params(3, 33, 7, 2, torch.float32)
    params = type(made)(*(t.detach().to(device).requires_grad_(t.requires_grad) for t in made))
    leaves = [features.requires_grad_(), *params[:8]]
    for op in (af.peak_response, af.attention_dispersion):

        def run(impl: str, op: Callable[..., Tensor] = op) -> list[Tensor]:
            x, *given = _for(impl, features, *with_own_statistics(params))
            return _with_gradients(op(x, type(params)(*given), impl=impl), leaves)

        yield op.__name__, (features, params), run


def descriptor(device: torch.device, dtype: torch.dtype, last: bool) -> Iterator[Case]:
    """Training's BatchNorm, ReLU and mean of 33 channels, and encoding with 20 of them into 13 bits."""
    y = torch.randn(3, 33, 5, 7).to(device, dtype)
    y = y.contiguous(memory_format=torch.channels_last) if last else y
    gamma, beta = (torch.randn(33, device=device, requires_grad=True) for _ in range(2))
    mean, var = torch.randn(33, device=device), torch.rand(33, device=device) + 0.5
    leaves = [y.requires_grad_(), gamma, beta]

    def run(impl: str) -> list[Tensor]:
        given = _for(impl, y, gamma, beta, mean.clone(), var.clone())
        return _with_gradients(af.batch_norm_relu_mean(*given, impl=impl), leaves)

    yield "batch_norm_relu_mean", (y, gamma, beta, mean, var), run
    weight, bias = torch.randn(33, 20, device=device, dtype=dtype), torch.randn(33, device=device, dtype=dtype)
    x, theta = torch.randn(3, 20, 5, 7).to(device, dtype), torch.randn(13, 33, device=device)
    arguments = (x, weight, bias, gamma.detach(), beta.detach(), mean, var, theta)

    def encode(impl: str) -> list[Tensor]:
        return [af.encode_descriptors(*_for(impl, *arguments), impl=impl)[1]]

    yield "encode_descriptors", arguments, encode


def hashing(device: torch.device) -> Iterator[Case]:
    """Loss and discrete step of 203 items, 37 bits."""
    state = HashingState(torch.randint(0, 5, (203,)).to(device), 37)
    sampled = torch.randperm(203)[:50].to(device)
    state.begin_iteration(sampled)
    embedding, items = torch.randn(9, 37, device=device).tanh().requires_grad_(), sampled[:9]
    embeddings = torch.randn(50, 37, device=device).tanh()
    yield (
        "asymmetric_hashing_loss",
        (embedding, items, state),
        lambda impl: _with_gradients(af.asymmetric_hashing_loss(embedding, items, state, impl=impl).total, [embedding]),
    )
    step = af.OPS["update_database_codes"]
    arguments = (state, embeddings, sampled)
    yield step.name, arguments, lambda impl: [step(*arguments, impl=impl)]


def hamming(device: torch.device) -> Iterator[Case]:
    """37 × 703 codes of 13 and of 8 bytes: distances, lists by appending and by counting, masks, tallies and ranks. And
    enough items for tensor cores to sift, which are asked to.
    """
    for width in (13, 8):
        q, x = (torch.randint(0, 256, (count, width), dtype=torch.uint8, device=device) for count in (37, 703))
        labels = tuple(torch.randint(0, 5, (count,), device=device) for count in (37, 703))
        shared, each = (torch.rand(*shape, device=device) < 0.4 for shape in ((703,), (37, 703)))
        calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
            (af.hamming_distance, (), {}),
            (af.hamming_topk, (9,), {}),
            (af.hamming_topk, (9,), {"mask": each, "max_distance": 4 * width}),
            (af.hamming_topk, (500,), {}),
            (af.hamming_topk, (500,), {"mask": shared}),
            (af.hamming_range, (4 * width,), {}),
            (af.hamming_range, (4 * width,), {"mask": each}),
            (af.hamming_histogram, labels, {}),
            (af.hamming_stable_ranking, labels, {}),
        ]
        for op, rest, options in calls:

            def run(
                impl: str,
                op: Callable[..., Any] = op,
                arguments: tuple[Any, ...] = (q, x, *rest),
                options: dict[str, Any] = options,
            ) -> list[Tensor]:
                found = op(*arguments, **options, impl=impl)
                return [found] if isinstance(found, Tensor) else list(found)

            yield op.__name__, (q, x, 8 * width, *labels, len(x), []), run

        many = torch.randint(0, 256, (9000, width), dtype=torch.uint8, device=device)

        for name in sieves(device) or ["popc"]:

            def sift(impl: str, name: str = name, q: Tensor = q, many: Tensor = many) -> list[Tensor]:
                with back_end(name):
                    return list(af.hamming_topk(q, many, 2, impl=impl))

            yield "hamming_topk", (q, many), sift


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    # By dtype: ten thousand roundings of float32; what a flip of a sign or of an arg max by a bfloat16 rounding moves.
    allowed = {torch.float32: 1e-3, torch.bfloat16: 0.2}
    failures, ran = 0, set()
    for dtype, band in allowed.items():
        cases = [
            case
            for last in (False, True)
            for make in (attention, descriptor)
            for case in make(device, dtype, last)
        ]  # fmt: skip
        if dtype == torch.float32:
            cases += [*hashing(device), *hamming(device)]
        for name, arguments, run in cases:
            op = af.OPS[name]
            expected = run("reference")
            for impl in op.implementations:
                if impl == "reference" or op.obstacle(impl, *arguments) is not None:
                    continue
                error = _error(run(impl), expected)
                right = error <= band
                ran.add(impl)
                failures += not right
                print(f"{name}, {impl}, {dtype}: error {error:.1e}{'' if right else ': WRONG'}", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
        if "triton" not in ran:
            print("no Triton kernel ran: there is nothing to look at")
            return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
