"""Triton kernels on CPU tensors: exact low-precision rounding, and a stop at the first mistake with memory.

    with interpreting():
        launcher(tensors)        # every kernel launched here runs in Triton's interpreter

Triton's own interpreter reads bfloat16 as raw integers, leaves tf32 unrounded, takes matrices that are too small for a
tensor core, and notices neither an address outside every tensor nor programs that race. Here bfloat16 and tf32 round as
the hardware does, and `KernelMemoryError` names the program, the access and the address. Outside the context kernels
compile as usual, so that one process can do both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

# The compiler copies builtins when it is imported: that must not happen while they are the interpreter's.
import triton.compiler.code_generator  # noqa: F401
import triton.language as tl
from torch import Tensor
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

Handle = interpreter.TensorHandle
_NOBODY, _SEVERAL = -1, -2


class KernelMemoryError(Exception):
    """A kernel touched memory outside its arguments, or two of its programs raced for an element."""


@dataclass
class _Region:
    """The memory of one tensor argument, and which program last wrote and read each of its elements."""

    start: int
    end: int
    itemsize: int
    writer: np.ndarray
    reader: np.ndarray

    @classmethod
    def of(cls, tensor: Tensor) -> _Region:
        count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        count = count if tensor.numel() else 0
        start, itemsize = tensor.data_ptr(), tensor.element_size()
        writer, reader = (np.full(count, _NOBODY, np.int32) for _ in range(2))
        return cls(start, start + count * itemsize, itemsize, writer, reader)


def _is_bfloat16(handle: Handle) -> bool:
    return getattr(handle.dtype, "scalar", handle.dtype) == tl.bfloat16


def _widened(handle: Handle) -> Handle:
    """bfloat16 bits as float32; other types as they are."""
    if not _is_bfloat16(handle):
        return handle
    return Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _bfloat16(values: np.ndarray) -> Handle:
    """float values as bfloat16 bits, rounded to nearest even."""
    rounded = torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)
    return Handle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)


def _tf32(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to the ten mantissa bits of tf32, ties away from zero."""
    return ((np.ascontiguousarray(values).view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


class _Builder(interpreter.InterpreterBuilder):
    """The interpreter's operations with the arithmetic mended and every access checked."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: list[_Region] = []
        self.codegen_fns["min_dot_size"] = lambda left, right: (16, 16, 16)

    def _in_float32(self, operation: Any, operands: tuple[Handle, ...]) -> Handle:
        if not any(map(_is_bfloat16, operands)):
            return operation(*operands)
        result = operation(*map(_widened, operands))
        return Handle(result.data, tl.int1) if result.data.dtype == bool else _bfloat16(result.data)

    def binary_op(self, lhs, rhs, op):
        return self._in_float32(lambda a, b: super(_Builder, self).binary_op(a, b, op), (lhs, rhs))

    def unary_op(self, arg, op):
        return self._in_float32(lambda a: super(_Builder, self).unary_op(a, op), (arg,))

    def create_rsqrt(self, arg):
        return self._in_float32(super().create_rsqrt, (arg,))

    def create_fma(self, x, y, z):
        return self._in_float32(super().create_fma, (x, y, z))

    def get_bf16(self, value):
        return _bfloat16(np.array([value]))

    def cast_impl(self, src, dst_type):
        if dst_type.scalar != tl.bfloat16:
            return super().cast_impl(_widened(src), dst_type)
        return src if _is_bfloat16(src) else _bfloat16(src.data)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if _is_bfloat16(src) or dst_type.scalar == tl.bfloat16:
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        left, right = (np.asarray(_widened(x).data, dtype=np.float32) for x in (a, b))
        if a.dtype.scalar == tl.float32 and input_precision == interpreter._ir.INPUT_PRECISION.TF32:
            left, right = _tf32(left), _tf32(right)
        return Handle(left @ right + d.data, d.dtype.scalar)

    def _touch(self, pointers: Handle, mask: np.ndarray, what: str) -> tuple[_Region, np.ndarray] | None:
        """The argument that a block of pointers lies in and the elements it names, or None if all are masked."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        shape = np.broadcast_shapes(pointers.data.shape, mask.shape)
        addresses = np.broadcast_to(pointers.data, shape)[np.broadcast_to(mask, shape)]
        if not addresses.size:
            return None
        low, high = int(addresses.min()), int(addresses.max()) + size
        for region in self.regions:
            if region.start <= low and high <= region.end:
                return region, (addresses - np.uint64(region.start)) // np.uint64(region.itemsize)
        raise KernelMemoryError(f"program {self.grid_idx}: {what} out of bounds, addresses {low:#x} to {high:#x}")

    def _program(self) -> int:
        x, y, z = self.grid_idx
        return (x * self.grid_dim[1] + y) * self.grid_dim[2] + z

    def create_masked_load(self, ptrs, mask, other, *options):
        if (touched := self._touch(ptrs, mask.data, "load")) is not None:
            region, elements = touched
            me, writer, reader = self._program(), region.writer[elements], region.reader[elements]
            if ((writer != _NOBODY) & (writer != me)).any():
                raise KernelMemoryError(f"program {self.grid_idx} loads what another program of the launch stores")
            region.reader[elements] = np.where((reader == _NOBODY) | (reader == me), me, _SEVERAL)
        return super().create_masked_load(ptrs, mask, other, *options)

    def create_masked_store(self, ptrs, value, mask, *options):
        if (touched := self._touch(ptrs, mask.data, "store")) is not None:
            region, elements = touched
            me = self._program()
            for name, owner in (("stores", region.writer[elements]), ("loads", region.reader[elements])):
                if ((owner != _NOBODY) & (owner != me)).any():
                    raise KernelMemoryError(f"program {self.grid_idx} stores what another of the launch {name}")
            region.writer[elements] = me
        return super().create_masked_store(ptrs, value, mask, *options)

    def create_atomic_rmw(self, rmwOp, ptr, val, mask, sem, scope):
        raise NotImplementedError("atomics are not checked here: the kernels are deterministic and have none")


class _Reductions(interpreter.ReduceOps):
    """As hardware does it, a NaN loses every comparison: NumPy refuses rows that are NaN throughout."""

    def min_max(self, input, val_reduce_op, idx_reduce_op=None):
        first = input[0] if isinstance(input, tuple) else input
        data = first.handle.data
        lowest = val_reduce_op is np.nanmax
        if data.dtype.kind == "f" and np.isnan(data).any():
            data = np.where(np.isnan(data), data.dtype.type(-np.inf if lowest else np.inf), data)
            first = tl.tensor(Handle(data, first.handle.dtype), first.type)
        return super().min_max(first, val_reduce_op, idx_reduce_op)


def _interpreted(kernel: JITFunction) -> interpreter.InterpretedFunction:
    return interpreter.InterpretedFunction(kernel.fn)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Run every kernel launched inside on CPU tensors, checked; a failure is an InterpreterError naming its cause."""
    builder = _Builder()

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        builder.regions = [_Region.of(tensor) for tensor in _tensors([*args, *kwargs.values()])]
        # Patched once here: the functions of the standard library then need no patching call by call.
        scope = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        try:
            _interpreted(kernel).run(*args, grid=grid, warmup=warmup, **kwargs)
        finally:
            scope.restore()

    def call(kernel: JITFunction, *args: Any, **kwargs: Any) -> Any:
        return _interpreted(kernel).rewrite()(*args, **kwargs)

    replaced = [
        (JITFunction, "run", run),
        (JITFunction, "__call__", call),
        (interpreter, "interpreter_builder", builder),
        (interpreter, "interpreter_semantic", TritonSemantic(builder)),
        (interpreter, "ReduceOps", _Reductions),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    rewritten, interpreter.InterpretedFunction.rewritten_fn = interpreter.InterpretedFunction.rewritten_fn, _rewritten
    for owner, name, value in replaced:
        setattr(owner, name, value)
    # Rewritten kernels look these two up among their own module's names, where the interpreter puts them once.
    for function in _rewritten.values():
        function.__globals__.update(interpreter_builder=builder, interpreter_semantic=interpreter.interpreter_semantic)
    try:
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)
        interpreter.InterpretedFunction.rewritten_fn = rewritten


_rewritten: dict[Any, Any] = {}
