"""Binary codes packed eight bits a byte, as `numpy.packbits` does: checks, packing, unpacking."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.ops.arrays import numpy_in_numpy_out

MAX_BITS = 4096


@numpy_in_numpy_out
def pack_codes(x: Tensor) -> Tensor:
    """Pack signs or bits into bytes: (N, bits) -> (N, ceil(bits / 8)) uint8, as `numpy.packbits(..., axis=1)` does.

    x: floating: bit 1 where the value is >= 0 (NaN is an error); bool: True is 1; any integer type: {0, 1} or {−1, +1},
    1 is 1. 1 to 4096 bits; unused low bits of the last byte are 0. NumPy or torch, any device; the result is of the
    same kind and place. On a GPU the check of values waits for the device; inside torch.compile it is left out. Raises
    InputError for other shapes, types and values.
    """
    require(isinstance(x, Tensor), f"x must be a NumPy array or a torch tensor, got {type(x).__name__}")
    require(x.dim() == 2, f"x must be (N, bits), got shape {tuple(x.shape)}")
    require(1 <= x.shape[1] <= MAX_BITS, f"x must have 1 to {MAX_BITS} bits a row, got shape {tuple(x.shape)}")
    return pack_bits(_sign_bits(x.detach()))


@numpy_in_numpy_out
def unpack_codes(codes: Tensor, bits: int) -> Tensor:
    """Unpack bytes into signs: (N, ceil(bits / 8)) uint8 -> (N, bits) int8, +1 for bit 1 and −1 for bit 0.

    NumPy or torch, any device. The inverse of `pack_codes`. Raises InputError for a wrong width or set padding bits.
    """
    codes = check_codes("codes", codes, check_bits(bits))
    return unpack_bits(codes, bits).to(torch.int8) * 2 - 1


def pack_bits(bits: Tensor) -> Tensor:
    """(N, bits) bool -> packed uint8, unchecked and of any width."""
    if bits.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.from_numpy(np.packbits(bits.numpy(), axis=1))
    octets = pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    return (octets << _shifts(bits.device)).sum(2, dtype=torch.uint8)


def unpack_bits(codes: Tensor, bits: int) -> Tensor:
    """Packed uint8 -> (N, bits) uint8 of 0 and 1, unchecked."""
    octets = (codes[:, :, None] >> _shifts(codes.device)) & 1
    return octets.flatten(1)[:, :bits]


def check_bits(bits: object) -> int:
    """`bits` as an int, 1 to 4096."""
    return require_int("bits", bits, 1, MAX_BITS)


def check_codes(name: str, codes: object, bits: int) -> Tensor:
    """The tensor if it is (N, ceil(bits / 8)) uint8 with all padding bits zero; InputError otherwise.

    On a GPU, where looking at values would stall the stream, and inside torch.compile, padding bits are cleared
    instead.
    """
    return _check_padding(name, check_layout(name, codes, bits), bits)


def check_layout(name: str, codes: object, bits: int) -> Tensor:
    """The tensor if it is (N, ceil(bits / 8)) uint8; InputError otherwise."""
    if not isinstance(codes, Tensor):
        raise InputError(f"{name} must be a NumPy array or a torch tensor of packed codes, got {type(codes).__name__}")
    if codes.layout != torch.strided:
        raise InputError(f"{name} must be a dense tensor, got {codes.layout}; call .to_dense()")
    if codes.dtype != torch.uint8 or codes.dim() != 2 or codes.shape[1] != (bits + 7) // 8:
        check_rows(name, dtype_name(codes), tuple(codes.shape), bits)
    return codes


def check_rows(name: str, dtype: str, shape: tuple[int, ...], bits: int) -> None:
    """Raise InputError unless an array of this dtype and shape is (N, ceil(bits / 8)) uint8."""
    width = (bits + 7) // 8
    if dtype != "uint8":
        how = "pack it with agmh_fast.pack_codes"
        if dtype.lstrip("<>").startswith(("int32", "int64", "uint32", "uint64", "i4", "i8", "u4", "u8")):
            how = "view its words as bytes: .view(uint8)"
        if dtype == "int8" and shape[-1:] == (width,):
            how = 'if its bytes have 128 taken off (sentence-transformers\' "binary"), give codes.view(uint8) ^ 128'
        raise InputError(f"{name} must be uint8 rows of packed codes, got {dtype}; {how}")
    require(len(shape) == 2, f"{name} must be (rows, bytes), got shape {shape}; one code is codes[None]")
    wide = f"{name} must have {width} bytes a row for {bits} bits (ceil(bits / 8)), got shape {shape}"
    require(shape[1] == width, wide)


def _check_padding(name: str, codes: Tensor, bits: int) -> Tensor:
    padding = (1 << (-bits % 8)) - 1
    if padding == 0:
        return codes
    if codes.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.cat([codes[:, :-1], codes[:, -1:] & (255 - padding)], dim=1)
    check_tensor_padding(name, codes, bits)
    return codes


def check_tensor_padding(name: str, codes: Tensor, bits: int) -> None:
    """Raise InputError for a row with bits set beyond `bits`; waits for a device, if there are such bits at all."""
    padding = (1 << (-bits % 8)) - 1
    bad = (codes[:, -1] & padding).nonzero() if padding else codes[:0]
    if len(bad):
        raise padding_error(name, int(bad[0]), bits)


def padding_error(name: str, row: int, bits: int) -> InputError:
    """What to raise for a row with bits set beyond those of a code."""
    return InputError(
        f"{name}: row {row} has bits set beyond the {bits} bits of a code; the unused low bits of the last byte must "
        "be 0, as numpy.packbits leaves them"
    )


def _sign_bits(x: Tensor) -> Tensor:
    """(N, bits) bool of the values of x, after a check of them."""
    if x.dtype == torch.bool:
        return x
    require(not x.is_complex(), f"x must be real, got {dtype_name(x)}")
    trusted = torch.compiler.is_compiling()
    if x.is_floating_point():
        if not trusted and bool(torch.isnan(x).any()):
            raise InputError(f"x: row {int(torch.isnan(x).any(1).nonzero()[0])} holds NaN, which has no sign")
        return x >= 0
    values = x.to(torch.int64)
    signed = x.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    if not trusted and not all_of(values, 0, 1) and not (signed and all_of(values, -1, 1)):
        raise InputError("x: integers must be all of {0, 1} or all of {-1, +1}; for signs of other numbers give floats")
    return values > 0


def all_of(values: Tensor, low: int, high: int) -> bool:
    """Whether every value is one of these two; on a GPU it waits for the device."""
    return bool(((values == low) | (values == high)).all())


def _shifts(device: torch.device) -> Tensor:
    """What moves each bit of a byte to the lowest place, first bit first."""
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)


def dtype_name(x: Tensor) -> str:
    """The name of its dtype, as NumPy has it."""
    return str(x.dtype).removeprefix("torch.")
