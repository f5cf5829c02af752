"""Machine code without a GPU: what a launcher would launch, compiled for a GPU that is not there, and what it costs.

with recording() as launches:
    launcher(meta_tensors)                       # nothing runs; kernels, arguments and options are kept
code = compile_launch(launches[0], 90)           # for sm_90
code.registers, code.spills, code.shared, code.count("HGMMA")
"""

from __future__ import annotations

import collections
import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
# Bytes of shared memory that a block can have, by compute capability.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments of one launch; `options` are num_warps and num_stages."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__


@dataclass(frozen=True)
class MachineCode:
    """Resources of a compiled kernel: registers a thread, bytes of stack and of shared memory, instructions by name."""

    registers: int
    stack: int
    shared: int
    instructions: collections.Counter[str]

    def count(self, *prefixes: str) -> int:
        """Instructions whose name begins with one of the prefixes."""
        return sum(number for name, number in self.instructions.items() if name.startswith(prefixes))

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count("STL", "LDL")

    @property
    def matrix_products(self) -> int:
        """Tensor-core instructions of any generation."""
        return self.count("DMMA", "HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTCMMA")


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Keep what is launched inside instead of running it."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = kernel.arg_names
        arguments = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        options = {name: value for name, value in kwargs.items() if name not in names}
        launches.append(Launch(kernel, grid, arguments, options))

    original, JITFunction.run = JITFunction.run, run
    try:
        yield launches
    finally:
        JITFunction.run = original


def _source(launch: Launch) -> ASTSource:
    """The launch as the JIT would specialise it: None and one are constants, multiples of 16 are known to be."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        free = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not free):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
        elif parameter.annotation_type:
            signature[name] = parameter.annotation_type
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            signature[name] = "fp32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and not free):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_launch(launch: Launch, capability: int) -> MachineCode:
    """Compile for the compute capability (80, 90, 100, ...) and read the resources off the machine code."""
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(_source(launch), target=target, options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, listing = (
            subprocess.run([_TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    return MachineCode(
        numbers["REG"], numbers["STACK"], compiled.metadata.shared, collections.Counter(_OPCODE.findall(listing))
    )


def runs_the_same_code(first: Launch, second: Launch) -> bool:
    """Whether a launch needs nothing compiled that the other did not: they differ in run-time values only that are not
    specialised.
    """
    differing = {
        name for name, value in first.arguments.items() if isinstance(value, int) and value != second.arguments[name]
    }
    free = {parameter.name for parameter in first.kernel.params if parameter.do_not_specialize}
    return differing <= free and first.options == second.options
