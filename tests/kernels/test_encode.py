"""The kernels from features to codes without a GPU: run in the interpreter against the reference, compiled for GPUs
that are not there.

Error budget: against float64 at most twice the error of plain PyTorch in that type, plus ten roundings of the type.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.descriptor import config, encode
from attention_cases import relative_error
from cuda_graphs import capture
from descriptor_cases import encode_inputs, in_layout, narrowed, widened
from peak_cases import matmul_precision
from triton_compile import SHARED_MEMORY, compile_launch, recording, runs_the_same_code
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast import pack_codes
from agmh_fast.ops.descriptor import encode_descriptors


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the kernels serve CPU tensors, in the interpreter."""
    monkeypatch.setitem(encode_descriptors.obstacles, "triton", lambda *args: None)
    with interpreting():
        yield


# (B, C_in, H, W, channels, bits): tiles of 128 positions that end in an image, at its end, and hold many images; more
# channels and inputs than a tile, and fewer; n odd, which 16-bit contiguous features are copied for.
ENCODE_SHAPES = [
    (3, 70, 7, 7, 300, 12),
    (2, 64, 14, 14, 40, 48),
    (2, 33, 16, 8, 17, 8),
    (150, 5, 1, 1, 9, 1),
    (33, 20, 2, 2, 520, 3),
    (1, 130, 15, 13, 20, 9),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ENCODE_SHAPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_codes_and_logits(shape, dtype):
    args = narrowed(encode_inputs(*shape), dtype)
    args = (in_layout(args[0], (ENCODE_SHAPES.index(shape) + (dtype == torch.bfloat16)) % 2 == 0), *args[1:])
    exact = af.encode_descriptors(*widened(args), impl="reference")[1]
    codes, logits = af.encode_descriptors(*args, impl="triton")
    plain = af.encode_descriptors(*args, impl="torch")[1]
    error = relative_error(logits, exact)
    assert error <= 2 * relative_error(plain, exact) + 10 * torch.finfo(torch.float32).eps
    # Products of 16-bit numbers are exact and nothing is rounded to 16 bits on the way.
    assert error < 1e-5
    assert torch.equal(codes, pack_codes(logits))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.usefixtures("on_cpu")
def test_tf32_is_as_exact_as_float16(last):
    """Its products keep ten bits of mantissa, as float16 does; exact float32 keeps all."""
    args = narrowed(encode_inputs(2, 70, 7, 7, 80, 12), torch.float32)
    args = (in_layout(args[0], last), *args[1:])
    exact = af.encode_descriptors(*widened(args), impl="reference")[1]
    errors = {}
    for mode in ("high", "highest"):
        with matmul_precision(mode):
            errors[mode] = relative_error(af.encode_descriptors(*args, impl="triton")[1], exact)
    assert errors["highest"] < 1e-5 < errors["high"] < 10 * torch.finfo(torch.float16).eps


@pytest.mark.usefixtures("on_cpu")
def test_no_bias_zero_logits_and_nan():
    args = narrowed(encode_inputs(3, 4, 2, 2, 6, 10), torch.float32)
    x, weight, bias, gamma, beta, mean, var, hash_weight = args
    codes, logits = af.encode_descriptors(x, weight, None, gamma, beta, mean - bias, var, hash_weight, impl="triton")
    assert relative_error(logits, af.encode_descriptors(*args, impl="reference")[1]) < 1e-5
    codes, logits = af.encode_descriptors(*args[:-1], 0 * hash_weight, impl="triton")
    assert not logits.any()
    assert codes.tolist() == [[255, 192]] * 3
    x[1, 2, 0, 1] = torch.nan
    codes, logits = af.encode_descriptors(*args, impl="triton")
    assert logits.isnan().any(dim=1).tolist() == [False, True, False]
    assert codes[1].tolist() == [0, 0]


@pytest.mark.usefixtures("on_cpu")
def test_no_images():
    args = narrowed(encode_inputs(0, 4, 2, 2, 6, 10), torch.float32)
    codes, logits = af.encode_descriptors(*args, impl="triton")
    assert (codes.shape, logits.shape) == ((0, 2), (0, 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_opcheck(dtype):
    args = narrowed(encode_inputs(3, 4, 2, 2, 6, 10), dtype)
    torch.library.opcheck(torch.ops.agmh_fast.triton_encode_descriptors.default, (*args, 1e-5))


# The tensor cores' instruction of each generation.
PRODUCT = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


def _launches(dtype, last=True, batch=32, size=14):
    """What encoding launches at the published sizes."""

    def new(*shape, kind=torch.float32):
        return torch.empty(*shape, dtype=kind, device="meta")

    x, vector = in_layout(new(batch, 2048, size, size, kind=dtype), last), new(3072)
    with recording() as launches:
        encode.encode(x, new(3072, 2048, kind=dtype), *[vector] * 5, new(48, 3072), 1e-5)
    return launches


@pytest.mark.parametrize(
    ("capability", "dtype", "mode", "last", "size"),
    [
        (80, torch.bfloat16, "high", True, 14),
        (90, torch.bfloat16, "high", True, 14),
        (100, torch.bfloat16, "high", True, 14),
        (90, torch.bfloat16, "high", False, 14),
        (80, torch.bfloat16, "high", False, 7),
        (90, torch.float32, "highest", True, 14),
    ],
    ids=str,
)
def test_machine_code(monkeypatch, capability, dtype, mode, last, size):
    """Nothing spills, everything fits, and the convolution uses the tensor cores unless float32 is to be exact."""
    monkeypatch.setattr(config, "capability", lambda device: capability)
    with matmul_precision(mode):
        launches = _launches(dtype, last, size=size)
    assert [launch.name for launch in launches] == ["project", "hash_codes"]
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, launch.name
        assert code.shared <= SHARED_MEMORY[capability], launch.name
    project, last_step = codes
    assert (project.count(PRODUCT[capability]) > 0) == (mode == "high")
    # Features are loaded in advance wherever four bytes of them lie side by side.
    assert project.count("LDGSTS") > 0
    assert last_step.matrix_products == 0


def test_another_batch_size_compiles_nothing_new():
    """Batch size and number of positions reach the kernels as run-time values that are not specialised."""
    for launches in zip(*(_launches(torch.bfloat16, batch=b) for b in (32, 47)), strict=True):
        assert runs_the_same_code(*launches), launches[0].name


def test_no_descriptors_are_stored():
    """Nothing that encoding touches is as large as the descriptors, or a tenth of them beside its inputs."""
    for launch in _launches(torch.bfloat16):
        for name, value in launch.arguments.items():
            if isinstance(value, torch.Tensor) and name not in ("x", "weight"):
                assert value.numel() < 32 * 3072 * 196 / 10, name


def _on_gpu(dtype, last, batch=32, size=14):
    args = narrowed(encode_inputs(batch, 2048, size, size, 3072, 48), dtype)
    return tuple(t.cuda() for t in (in_layout(args[0], last), *args[1:]))


@pytest.mark.gpu
@pytest.mark.parametrize(("last", "size"), [(True, 14), (False, 14), (False, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpu_agrees_with_the_reference(dtype, last, size):
    args = _on_gpu(dtype, last, size=size)
    exact = af.encode_descriptors(*widened(args), impl="reference")[1]
    codes, logits = af.encode_descriptors(*args, impl="triton")
    plain = af.encode_descriptors(*args, impl="torch")[1]
    assert relative_error(logits, exact) <= 2 * relative_error(plain, exact) + 1e-5
    assert torch.equal(codes, pack_codes(logits))


@pytest.mark.gpu
def test_gpu_runs_are_equal_bit_by_bit():
    args = _on_gpu(torch.bfloat16, True)
    assert torch.equal(*(af.encode_descriptors(*args, impl="triton")[1] for _ in range(2)))


@pytest.mark.gpu
def test_gpu_auto_takes_the_kernels():
    assert af.explain("encode_descriptors", _on_gpu(torch.bfloat16, True, batch=2)[0]).chosen == "triton"


@pytest.mark.gpu
def test_gpu_graph_replays():
    args = _on_gpu(torch.bfloat16, True)
    graph, captured = capture(lambda: af.encode_descriptors(*args, impl="triton"))
    args[0].copy_(torch.rand_like(args[0]))
    graph.replay()
    replayed = [result.clone() for result in captured]
    assert all(torch.equal(*pair) for pair in zip(replayed, af.encode_descriptors(*args, impl="triton"), strict=True))


@pytest.mark.gpu
def test_gpu_takes_little_memory():
    args = _on_gpu(torch.bfloat16, True)
    af.encode_descriptors(*args, impl="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    af.encode_descriptors(*args, impl="triton")
    assert torch.cuda.max_memory_allocated() - before < 32 * 3072 * 196 * 2 / 10
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_gpu_never_waits():
    """No value is looked at on the host."""
    args = _on_gpu(torch.bfloat16, True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        af.encode_descriptors(*args, impl="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
