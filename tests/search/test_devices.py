"""What stands between an index and a GPU is one line that says what helps; simulated, since most machines have none."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest
import torch

import agmh_fast as af
from agmh_fast.ops import compiled
from agmh_fast.search import device_order, devices, index
from agmh_fast.search.device_arguments import DeviceArguments, StreamArguments

NO_KERNEL = (
    "check, /src/csrc/torch_hamming_cuda.cpp:55, hamming_topk: no kernel image is available for execution on the "
    "device; agmh_fast was not built for this GPU: build it with TORCH_CUDA_ARCH_LIST set to its compute capability"
)
OLD_FOR_BUILD = (
    "check, /src/csrc/torch_hamming_cuda.cpp:55, hamming_topk: CUDA driver version is insufficient for CUDA runtime "
    "version; the driver is too old for the CUDA toolkit that agmh_fast was built with: update it"
)


def _refused(device="cuda"):
    """The one line that an index on the device is refused with."""
    with pytest.raises(af.InputError) as error:
        af.HammingIndex(8, device=device)
    said = str(error.value)
    assert said.startswith(f"device='{device}': ")
    assert "\n" not in said
    return said


@pytest.fixture
def no_cuda(monkeypatch):
    """no_cuda(error): torch finds no GPU, and says `error` where it is asked why."""

    def simulate(error):
        def init():
            raise error

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", init)

    return simulate


@pytest.fixture
def one_gpu(monkeypatch):
    """one_gpu(search): a machine with one GPU, where the first search does what `search` does."""

    def simulate(search):
        monkeypatch.setattr(devices, "_tried", set())
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(compiled, "has_cuda_kernel", lambda op: True)
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **options: zeros(*shape, **options))
        monkeypatch.setattr(devices, "topk_op", search)

    return simulate


def _failing(message):
    def search(*_):
        raise RuntimeError(message)

    return search


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
            "no NVIDIA driver is installed or running; install one, or use device='cpu'",
        ),
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
            "downloading and installing a new\nversion from the URL",
            "the NVIDIA driver is too old (it supports CUDA 11.4) for torch's CUDA 13.0; update it",
        ),
        ("No CUDA GPUs are available", "No CUDA GPUs are available; use device='cpu'"),
    ],
)
def test_what_keeps_torch_from_a_gpu(no_cuda, said, expected):
    no_cuda(RuntimeError(said))
    assert _refused() == f"device='cuda': there is no CUDA device: {expected}"


def test_a_torch_without_cuda(no_cuda, monkeypatch):
    no_cuda(AssertionError("Torch not compiled with CUDA enabled"))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA; install one that has it, or use device='cpu'" in _refused()


def test_an_extension_without_cuda(one_gpu, monkeypatch):
    one_gpu(lambda *_: None)
    monkeypatch.setattr(compiled, "has_cuda_kernel", lambda op: False)
    said = _refused()
    assert "agmh_fast._C was built without CUDA" in said
    assert "AGMH_FAST_CUDA=1 pip install" in said
    monkeypatch.setattr(compiled, "missing", lambda: "the compiled module agmh_fast._C does not load")
    assert "agmh_fast._C does not load" in _refused()


def test_a_build_for_other_gpus(one_gpu):
    one_gpu(_failing(NO_KERNEL))
    expected = "device='cuda': agmh_fast was not built for a NVIDIA H100; build it with: TORCH_CUDA_ARCH_LIST=9.0 pip"
    assert _refused().startswith(expected)
    assert _refused()  # what failed once is tried again: it may have been mended


def test_a_driver_too_old_for_the_build(one_gpu):
    one_gpu(_failing(OLD_FOR_BUILD))
    said = _refused()
    assert said.startswith("device='cuda': hamming_topk: CUDA driver version is insufficient")
    assert said.endswith("update it")


def test_a_gpu_that_is_not_there(one_gpu):
    one_gpu(lambda *_: None)
    assert "no CUDA device of this number, only 0 to 0" in _refused("cuda:3")


def test_a_gpu_is_tried_once(one_gpu):
    tried = []
    one_gpu(lambda *_: tried.append(1))
    for device in ("cuda", "cuda:0", torch.device("cuda", 0)):
        assert devices.check_device(device) == torch.device("cuda", 0)
    assert tried == [1]


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.25 GiB. GPU 0 has"), ": 1.25 GiB"),
        (RuntimeError("allocate, /c.h:28, hamming_topk: out of memory, 4096 bytes were asked for"), ": 4096 bytes"),
        (
            RuntimeError("[enforce fail] can't allocate memory: tried to allocate 800 bytes"),
            ": 800 bytes",
        ),
        (RuntimeError("CUDA error: out of memory"), ""),
    ],
)
def test_memory_that_runs_out_is_named_and_the_index_goes_on(monkeypatch, error, size):
    monkeypatch.setattr(index, "_in_host_memory", lambda device: False)
    held = af.HammingIndex(16)
    held.add(np.arange(20, dtype=np.uint8).reshape(10, 2))
    before, query = pickle.dumps(held), np.zeros((1, 2), np.uint8)
    expected = held.search(query, 10).ids.tolist()

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as short:
        for op in ("topk_op", "range_op", "_write"):
            short.setattr(f"agmh_fast.search.tensor_engine.{op}", fail)
        for call in (
            lambda: held.search(query, 3),
            lambda: held.range_search(query, 3),
            lambda: held.add(query),
            lambda: held.add(query, [3_000]),
        ):
            with pytest.raises(MemoryError) as raised:
                call()
            asked = f"{size} were asked for" if size else ""
            assert str(raised.value) == f"out of memory on cpu{asked}; the index is as it was"
    assert pickle.dumps(held) == before
    assert held.search(query, 10).ids.tolist() == expected


def test_memory_that_runs_out_before_a_search_is_named_too(monkeypatch):
    """Where what the caller gave is brought to the device."""
    arguments = DeviceArguments(torch.device("cpu"))
    on_host, ids = np.zeros((2, 2), np.uint8), torch.arange(4, dtype=torch.int32)
    mask = torch.ones(2, 6, dtype=torch.bool)[:, ::2]

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.25 GiB. GPU 0 has")

    for method, call in (
        ("to", lambda: arguments.queries(on_host, 16)),
        ("to", lambda: arguments.allowed(on_host[0] > 0, 2)),
        ("to", lambda: arguments.ids(ids)),
        ("contiguous", lambda: arguments.ids(ids[::2])),
        ("contiguous", lambda: arguments.allowed(mask, 2)),
        ("cpu", lambda: arguments.answer(on_host, [ids])),
    ):
        with monkeypatch.context() as short:
            short.setattr(torch.Tensor, method, fail)
            with pytest.raises(MemoryError, match=r"^out of memory on cpu: 1\.25 GiB were asked for"):
                call()
    with monkeypatch.context() as short:
        short.setattr(torch.Tensor, "cpu", fail)
        with pytest.raises(MemoryError, match=r"^out of memory on meta: "):
            StreamArguments(torch.device("meta")).allowed(ids.to("meta"), 2)


def test_a_gpu_without_room_for_a_first_search(one_gpu, monkeypatch):
    one_gpu(lambda *_: None)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(MemoryError, match=r"^out of memory on cuda:0: 2\.00 MiB were asked for"):
        devices.check_device("cuda")


def test_a_capture_is_looked_for_on_the_device_asked_about(monkeypatch):
    """cuda:1 captures while cuda:0 is the current device."""
    current = [0]

    @contextlib.contextmanager
    def enter(device):
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", enter)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[-1] == 1)
    assert device_order.capturing(torch.device("cuda", 1))
    assert not device_order.capturing(torch.device("cuda", 0))
    assert not device_order.capturing(torch.device("cpu"))


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match=r"^an illegal memory access$"), devices.memory_errors(torch.device("cpu")):
        raise RuntimeError("an illegal memory access")


def test_tensors_on_another_device_are_named(monkeypatch):
    monkeypatch.setattr(index, "_in_host_memory", lambda device: False)
    held = af.HammingIndex(16)
    held.add(torch.zeros(3, 2, dtype=torch.uint8))
    codes, ids = torch.zeros(2, 2, dtype=torch.uint8), torch.arange(2)
    calls = {
        "codes": lambda: held.add(codes.to("meta")),
        "ids": lambda: held.add(codes, ids.to("meta")),
        "queries": lambda: held.search(codes.to("meta"), 1),
        "mask": lambda: held.search(codes, 1, mask=torch.ones(3, dtype=torch.bool, device="meta")),
    }
    for name, call in calls.items():
        with pytest.raises(af.InputError) as error:
            call()
        assert str(error.value) == f"{name} is on meta, the index on cpu: move one of them"
