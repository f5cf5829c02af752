"""Without the compiled modules everything else works, and what needs them says how to build them."""

from __future__ import annotations

import sys
import types

import pytest
import torch

import agmh_fast as af
from agmh_fast.ops import compiled, hamming


def test_ops_pass_over_a_missing_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "agmh_fast._C", None)
    monkeypatch.setattr(compiled, "_state", {})
    x = af.pack_codes(torch.randn(9, 48))
    assert "pip install" in compiled.missing()
    assert not compiled.has_cuda_kernel("hamming_distance")
    choice = hamming.topk_op.explain(x, x, 2, 48)
    assert choice.chosen == "torch"
    assert "pip install" in choice.passed_over["cpu"]
    assert torch.equal(hamming.hamming_topk(x, x, 2)[1], hamming.hamming_topk(x, x, 2, impl="reference")[1])
    with pytest.raises(af.InputError, match="pip install"):
        hamming.hamming_topk(x, x, 2, impl="cpu")


def test_ops_say_how_to_build_the_cuda_part(monkeypatch):
    monkeypatch.setattr(compiled, "has_cuda_kernel", lambda op: False)
    codes_on_a_gpu = types.SimpleNamespace(device=torch.device("cuda", 0))
    for op in hamming.OPS:
        arguments = (
            (codes_on_a_gpu, None, 8, None, None, 1, []) if op is hamming.stable_ranking_op else (codes_on_a_gpu,)
        )
        said = op.obstacle("cuda", *arguments)
        assert said == compiled.WITHOUT_CUDA
        assert "AGMH_FAST_CUDA=1 pip install" in said


def test_the_index_names_a_missing_engine(monkeypatch):
    monkeypatch.setitem(sys.modules, "agmh_fast._engine", None)
    with pytest.raises(af.InputError, match="pip install"):
        af.HammingIndex(8)


def test_thread_numbers():
    try:
        af.set_num_threads(3)
        assert af.get_num_threads() == 3
        with pytest.raises(af.InputError, match="threads must be"):
            af.set_num_threads(0)
        assert af.get_num_threads() == 3
    finally:
        af.set_num_threads(None)
    assert af.get_num_threads() == torch.get_num_threads()
