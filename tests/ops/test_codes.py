"""Packing and unpacking: equal to numpy.packbits, exact both ways, and errors that name the row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agmh_fast as af
from agmh_fast.ops import codes as ops
from agmh_fast.reference import codes as reference

WIDTHS = [1, 7, 8, 12, 24, 32, 48, 64, 100, 256, 257, 768, 1024, 4096]


@pytest.mark.parametrize("bits", WIDTHS)
def test_pack_equals_numpy_packbits(bits):
    signs = torch.randn(13, bits)
    expected = np.packbits(signs.numpy() >= 0, axis=1)
    assert np.array_equal(af.pack_codes(signs).numpy(), expected)
    assert np.array_equal(af.pack_codes(signs.numpy()), expected)
    assert np.array_equal(reference.pack_bits(reference.sign_bits(signs)).numpy(), expected)
    assert np.array_equal(af.unpack_codes(expected, bits), np.where(signs.numpy() >= 0, 1, -1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_unpacking_inverts_packing(rows, bits, seed):
    signs = torch.from_numpy(np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (rows, bits)))
    codes = af.pack_codes(signs)
    assert codes.dtype == torch.uint8
    assert codes.shape == (rows, (bits + 7) // 8)
    unpacked = af.unpack_codes(codes, bits)
    assert unpacked.dtype == torch.int8
    assert torch.equal(unpacked, signs)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64],
)
def test_every_type_packs_alike(dtype):
    bits = torch.rand(5, 21) < 0.5
    values = bits.to(dtype) if not dtype.is_floating_point else bits.to(dtype) * 2 - 1
    expected = torch.from_numpy(np.packbits(bits.numpy(), axis=1))
    assert torch.equal(af.pack_codes(values), expected)
    if dtype in (torch.int8, torch.int16, torch.int64):
        assert torch.equal(af.pack_codes(values * 2 - 1), expected)


def test_zero_counts_as_positive_only_for_real_numbers():
    assert af.pack_codes(torch.tensor([[0.0, -0.0, -1e-30, float("inf"), -float("inf")]])).tolist() == [[0b11010000]]
    assert af.pack_codes(torch.tensor([[0, 1]])).tolist() == [[0b01000000]]


def test_gradients_and_layouts_are_no_obstacle():
    values = torch.randn(9, 40, requires_grad=True)
    assert torch.equal(af.pack_codes(values.T), torch.from_numpy(np.packbits(values.detach().numpy().T >= 0, axis=1)))


@pytest.mark.parametrize("bits", [5, 48, 257])
def test_torch_path_equals_numpy_path(bits, monkeypatch):
    values = torch.randn(6, bits)
    expected = ops.pack_bits(values >= 0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(ops.pack_bits(values >= 0), expected)


def test_compiles_in_one_graph():
    compiled = torch.compile(lambda x: af.unpack_codes(af.pack_codes(x), 45), fullgraph=True, backend="eager")
    x = torch.randn(4, 45)
    assert torch.equal(compiled(x), af.unpack_codes(af.pack_codes(x), 45))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([[1.0], [float("nan")]]), "row 1 holds NaN"),
        (torch.tensor([[1, 0, -1]]), "all of"),
        (torch.tensor([[2, 0]]), "all of"),
        (torch.tensor([[255, 1]], dtype=torch.uint8), "all of"),
        (torch.tensor([[1j]]), "real"),
        (torch.zeros(3), r"\(N, bits\)"),
        (torch.zeros(3, 0), "1 to 4096"),
        (torch.zeros(3, 4097), "1 to 4096"),
        ([[1.0]], "NumPy array or a torch tensor"),
        (np.array([["a"]]), "dtype"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(af.InputError, match=message):
        af.pack_codes(values)


def test_bad_codes_are_named():
    codes = np.zeros((3, 2), np.uint8)
    with pytest.raises(af.InputError, match="codes must have 3 bytes"):
        af.unpack_codes(codes, 17)
    codes[2, 1] = 1
    with pytest.raises(af.InputError, match="row 2 has bits set beyond the 12 bits"):
        af.unpack_codes(codes, 12)
    with pytest.raises(af.InputError, match="bits must be"):
        af.unpack_codes(codes, 0)
    with pytest.raises(af.InputError, match="uint8"):
        af.unpack_codes(codes.astype(np.int64), 16)
