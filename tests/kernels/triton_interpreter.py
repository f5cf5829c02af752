"""Triton kernels on CPU tensors: exact low-precision rounding, and a stop at the first mistake with memory.

    with interpreting():
        launcher(tensors)        # every kernel launched here runs in Triton's interpreter

Triton's own interpreter reads bfloat16 as raw integers, leaves tf32 unrounded, takes matrices that are too small for a
tensor core, and notices neither an address outside every tensor nor programs that race. Here bfloat16 and tf32 round as
the hardware does, and `KernelMemoryError` names the program, the access and the address. Outside the context kernels
compile as usual, so that one process can do both.

Programs may meet at atomic adds: these race with plain loads and stores of other programs only. An atomic that releases
publishes what its program stored before its last barrier; one that acquires at the same place lets its program load
what was published there: how a last program may sum up what the others stored.
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
    """The memory of one tensor argument, and which program last wrote (and when), read and added to each element."""

    start: int
    end: int
    itemsize: int
    writer: np.ndarray
    written: np.ndarray
    reader: np.ndarray
    adder: np.ndarray

    @classmethod
    def of(cls, tensor: Tensor) -> _Region:
        count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        count = count if tensor.numel() else 0
        start, itemsize = tensor.data_ptr(), tensor.element_size()
        writer, reader, adder = (np.full(count, _NOBODY, np.int32) for _ in range(3))
        return cls(start, start + count * itemsize, itemsize, writer, np.zeros(count, np.int64), reader, adder)


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


class _Order:
    """What each program of a launch can know of the others' stores, by the rules of releasing and acquiring atomics.

    Programs run one after another; time counts their stores. A program sees another's stores up to a time.
    """

    def __init__(self, programs: int) -> None:
        self.now = 0
        self._programs = programs
        self._barrier: dict[int, int] = {}
        self._seen: dict[int, np.ndarray] = {}
        self._published: dict[int, np.ndarray] = {}

    def barrier(self, program: int) -> None:
        """What the program stored so far goes with its next release."""
        self._barrier[program] = self.now

    def release(self, program: int, place: int) -> None:
        """Publish at an address what the program sees of others, and its own stores up to its last barrier."""
        known = self._seen.get(program, np.zeros(self._programs, np.int64)).copy()
        known[program] = self._barrier.get(program, 0)
        self._published[place] = np.maximum(known, self._published.get(place, 0))

    def acquire(self, program: int, place: int) -> None:
        """See what was published at an address."""
        if place in self._published:
            self._seen[program] = np.maximum(self._published[place], self._seen.get(program, 0))

    def hidden(self, program: int, writer: np.ndarray, written: np.ndarray) -> bool:
        """Whether any of these elements was stored by another program and not published to this one."""
        other = (writer != _NOBODY) & (writer != program)
        if program in self._seen:
            other &= written > self._seen[program][np.maximum(writer, 0)]
        return bool(other.any())


def _others(programs: np.ndarray, me: int) -> bool:
    """Whether any of these elements was touched by a program that is not `me`."""
    return bool(((programs != _NOBODY) & (programs != me)).any())


def _joined(programs: np.ndarray, me: int) -> np.ndarray:
    """Who touched each element, now that `me` has too."""
    return np.where((programs == _NOBODY) | (programs == me), me, _SEVERAL)


class _Builder(interpreter.InterpreterBuilder):
    """The interpreter's operations with the arithmetic mended and every access checked."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: list[_Region] = []
        self.order = _Order(0)
        self.codegen_fns["min_dot_size"] = lambda left, right: (16, 16, 16)

    def set_grid_dim(self, nx, ny, nz):
        super().set_grid_dim(nx, ny, nz)
        self.order = _Order(nx * ny * nz)

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
        wide = np.float64 if d.dtype.scalar == tl.float64 else np.float32
        left, right = (np.asarray(_widened(x).data, dtype=wide) for x in (a, b))
        if a.dtype.scalar == tl.float32 and input_precision == interpreter._ir.INPUT_PRECISION.TF32:
            left, right = _tf32(left), _tf32(right)
        return Handle(left @ right + d.data, d.dtype.scalar)

    def _touch(self, pointers: Handle, mask: np.ndarray, what: str) -> tuple[_Region, np.ndarray] | None:
        """The argument that a block of pointers lies in and the elements it names, or None if all are masked."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        shape = np.broadcast_shapes(pointers.data.shape, mask.shape)
        # The interpreter computes some masks as int32, which would index instead.
        addresses = np.broadcast_to(pointers.data, shape)[np.broadcast_to(mask, shape).astype(bool)]
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
            me = self._program()
            if self.order.hidden(me, region.writer[elements], region.written[elements]):
                raise KernelMemoryError(f"program {self.grid_idx} loads what another program of the launch stores")
            if _others(region.adder[elements], me):
                raise KernelMemoryError(f"program {self.grid_idx} loads what another program of the launch adds to")
            region.reader[elements] = _joined(region.reader[elements], me)
        return super().create_masked_load(ptrs, mask, other, *options)

    def create_masked_store(self, ptrs, value, mask, *options):
        if (touched := self._touch(ptrs, mask.data, "store")) is not None:
            region, elements = touched
            me = self._program()
            self._refuse_plain(region, elements, "stores")
            if _others(region.adder[elements], me):
                raise KernelMemoryError(f"program {self.grid_idx} stores what another of the launch adds to")
            self.order.now += 1
            region.writer[elements], region.written[elements] = me, self.order.now
        return super().create_masked_store(ptrs, value, mask, *options)

    def _refuse_plain(self, region: _Region, elements: np.ndarray, what: str) -> None:
        """Raise if another program loads these elements, or stores them unpublished."""
        me = self._program()
        stored = self.order.hidden(me, region.writer[elements], region.written[elements])
        if stored or _others(region.reader[elements], me):
            other = "stores" if stored else "loads"
            raise KernelMemoryError(f"program {self.grid_idx} {what} what another of the launch {other}")

    def create_barrier(self):
        self.order.barrier(self._program())

    def create_atomic_rmw(self, rmwOp, ptr, val, mask, sem, scope):
        if rmwOp not in (interpreter._ir.ATOMIC_OP.ADD, interpreter._ir.ATOMIC_OP.FADD) or _is_bfloat16(val):
            raise NotImplementedError("of atomics only integer, float32 and float16 adds are checked here")
        touched = self._touch(ptr, mask.data, "atomic add")
        if touched is None:
            return super().create_atomic_rmw(rmwOp, ptr, val, mask, sem, scope)
        region, elements = touched
        semantic, me = interpreter._ir.MEM_SEMANTIC, self._program()
        places = [region.start + int(element) * region.itemsize for element in np.unique(elements)]
        for place in places:
            if sem in (semantic.ACQUIRE, semantic.ACQUIRE_RELEASE):
                self.order.acquire(me, place)
            if sem in (semantic.RELEASE, semantic.ACQUIRE_RELEASE):
                self.order.release(me, place)
        self._refuse_plain(region, elements, "adds to")
        region.adder[elements] = _joined(region.adder[elements], me)
        return super().create_atomic_rmw(rmwOp, ptr, val, mask, sem, scope)

    def create_atomic_cas(self, ptr, cmp, val, sem, scope):
        raise NotImplementedError("compare and swap is not checked here: the kernels have none")


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
