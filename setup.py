"""Builds the two compiled modules: `agmh_fast._engine` (pybind11) and `agmh_fast._C` (torch ops on the stable ABI).

Environment: AGMH_FAST_CUDA=0|1 forces the CUDA part off or on (default: on where a toolkit is found that fits torch),
CUDA_HOME names the toolkit folder, TORCH_CUDA_ARCH_LIST the architectures, MAX_JOBS the compilers run at once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0")
# Torch's names of those before 8.0, where the products on tensor cores that the kernels use do not exist.
TOO_OLD = ("Kepler", "Maxwell", "Pascal", "Volta", "Turing")
# Torch from this version on can load the module: the stable ABI's target, in torch's own coding of 2.11.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
WARNINGS = ["-Wall", "-Wextra"]


def stop(message: str) -> None:
    """End the build with one line."""
    raise SystemExit(f"agmh-fast: {message}")


# `pip` of a virtual environment that is not activated leaves the environment's own programs (ninja) off PATH.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
try:
    import torch
except ImportError:
    stop("torch is needed to build: pip install 'torch>=2.11', then pip install --no-build-isolation .")


class Unfit(Exception):
    """Why the CUDA part is left out."""


def toolkit_folders() -> list[Path]:
    """Folders that may hold a CUDA toolkit, best first."""
    if os.environ.get("CUDA_HOME"):
        return [Path(os.environ["CUDA_HOME"])]
    versioned = [path for path in Path("/usr/local").glob("cuda-*") if re.fullmatch(r"cuda-\d+(\.\d+)*", path.name)]
    versioned.sort(key=lambda path: [int(part) for part in path.name[5:].split(".")], reverse=True)
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*"), reverse=True)
    # The folder is resolved from nvcc itself: an `nvcc` on PATH may be a wrapper script that lies elsewhere.
    on_path = shutil.which("nvcc")
    resolved = [Path(on_path).resolve().parent.parent] if on_path else []
    return [*versioned, Path("/usr/local/cuda"), *wheels, *resolved]


def libcudart(folder: Path) -> Path | None:
    """The CUDA runtime library of a toolkit folder; the development name first."""
    for pattern in ("lib64/libcudart.so", "lib/libcudart.so", "lib64/libcudart.so.*", "lib/libcudart.so.*"):
        for path in sorted(folder.glob(pattern)):
            return path
    return None


def run_nvcc(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What nvcc says; one that cannot be started fails like any other."""
    command = [folder / "bin/nvcc", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def find_toolkit() -> tuple[Path, str]:
    """The toolkit folder and its version; raises Unfit where none fits the installed torch."""
    folders = toolkit_folders()
    parts = ("bin/nvcc", "include/cuda_runtime.h")
    complete = [folder for folder in folders if all((folder / part).exists() for part in parts) and libcudart(folder)]
    if not complete:
        named = os.environ.get("CUDA_HOME")
        where = f"CUDA_HOME={named}" if named else "CUDA_HOME, /usr/local/cuda-*, nvidia-cuda-nvcc"
        raise Unfit(f"no CUDA toolkit with nvcc, cuda_runtime.h and libcudart found ({where})")
    if torch.version.cuda is None:
        raise Unfit(f"the installed torch {torch.__version__} has no CUDA")
    unfit = []
    for folder in complete:
        said = run_nvcc(folder, "--version")
        found = re.search(r"release (\d+\.\d+)", said.stdout)
        if said.returncode != 0 or found is None:
            unfit.append(f"{folder}/bin/nvcc does not run")
        elif found[1].split(".")[0] != torch.version.cuda.split(".")[0]:
            unfit.append(f"{folder} is CUDA {found[1]}, torch was built for {torch.version.cuda}")
        else:
            return folder, found[1]
    raise Unfit("; ".join(dict.fromkeys(unfit)))


def check_nvcc(folder: Path) -> None:
    """Raise Unfit unless nvcc accepts the host compiler: a trial costs a second, a failed build a broken install."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / "trial.cu"
        trial.write_text("__global__ void trial() {}\n")
        said = run_nvcc(folder, "-std=c++20", "-c", trial, "-o", trial.with_suffix(".o"))
        if said.returncode != 0:
            why = said.stderr.strip() or said.stdout.strip() or f"exit status {said.returncode}"
            raise Unfit(f"{folder}/bin/nvcc fails: {why.splitlines()[0]}")


def architectures(folder: Path) -> str:
    """The default TORCH_CUDA_ARCH_LIST, less what this nvcc does not know."""
    said = run_nvcc(folder, "--list-gpu-arch").stdout.split()
    known = [arch for arch in ARCHITECTURES if f"compute_{arch.replace('.', '')}" in said]
    if not known:
        raise Unfit(f"{folder}/bin/nvcc knows none of the architectures {', '.join(ARCHITECTURES)}")
    return ";".join(known) + "+PTX"


def check_architectures() -> None:
    """Stop with one line where TORCH_CUDA_ARCH_LIST names what the kernels cannot be compiled for."""
    for entry in re.split(r"[;\s]+", os.environ["TORCH_CUDA_ARCH_LIST"]):
        major = re.match(r"\d+", entry)
        if entry.startswith(TOO_OLD) or (major is not None and int(major[0]) < 8):
            stop(f"TORCH_CUDA_ARCH_LIST names {entry}: the CUDA part needs 8.0 or later; AGMH_FAST_CUDA=0 omits it")


def cuda_toolkit() -> Path | None:
    """The toolkit to build with, or None after one line that says why the CUDA part is left out."""
    wanted = os.environ.get("AGMH_FAST_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        stop(f"AGMH_FAST_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        print("agmh-fast: building without CUDA (AGMH_FAST_CUDA=0)")
        return None
    try:
        folder, version = find_toolkit()
        check_nvcc(folder)
        if "TORCH_CUDA_ARCH_LIST" not in os.environ:
            os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(folder)
    except Unfit as reason:
        if wanted == "1":
            stop(f"AGMH_FAST_CUDA=1, but {reason}")
        print(f"agmh-fast: building without CUDA: {reason}")
        return None
    check_architectures()
    print(f"agmh-fast: building with CUDA {version} from {folder}")
    return folder


TOOLKIT = cuda_toolkit()
if TOOLKIT is not None:
    os.environ["CUDA_HOME"] = str(TOOLKIT)  # read by torch.utils.cpp_extension when it is imported
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


def relative(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def extensions() -> list[Extension]:
    """The two modules; both hold the engine, so that each works without the other."""
    try:
        import pybind11
    except ImportError:
        stop("pybind11 is needed to build: pip install pybind11")
    engine = relative("csrc/hamming/*.cpp")
    # What is listed here also goes into source distributions, whether or not CUDA is built.
    headers = [*relative("csrc/**/*.h"), *relative("csrc/hamming/cuda/*.cu*")]
    cxx = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", *WARNINGS]
    if TOOLKIT is not None:
        cxx.append("-DAGMH_FAST_CUDA")
    # For `agmh-fast info`.
    built_for = f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"' if TOOLKIT is not None else '""'
    bindings = Extension(
        "agmh_fast._engine",
        ["csrc/bindings.cpp", *engine],
        include_dirs=[pybind11.get_include(), str(ROOT / "csrc")],
        extra_compile_args=cxx,
        define_macros=[("AGMH_FAST_CUDA_ARCHITECTURES", built_for)],
        depends=headers,
        language="c++",
    )
    common: dict[str, object] = {"include_dirs": [str(ROOT / "csrc")], "depends": headers, "py_limited_api": True}
    parts = ("csrc/torch_*.cpp", "csrc/hashing/*.cpp", "csrc/attention/*.cpp")
    sources = [*(path for part in parts for path in relative(part)), *engine]
    if TOOLKIT is None:
        ops = CppExtension("agmh_fast._C", sources, extra_compile_args=[*cxx, TORCH_TARGET], **common)
    else:
        # USE_CUDA makes the stable headers declare the current stream.
        flags = {"cxx": [*cxx, TORCH_TARGET, "-DUSE_CUDA"], "nvcc": ["-O3", "-std=c++20"]}
        sources += relative("csrc/hamming/cuda/*.cu")
        ops = CUDAExtension("agmh_fast._C", sources, extra_compile_args=flags, **common)
    return [bindings, ops]


class Build(BuildExtension):
    """Checks for what a build needs first, and keeps the two modules' object files apart."""

    def build_extensions(self) -> None:
        check_compiler()
        self.folder = self.build_temp
        if TOOLKIT is not None:
            for ext in self.extensions:
                ext.library_dirs.append(str(development_library(TOOLKIT, Path(self.folder))))
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        # Both modules compile the same files with other flags; in one folder each build would undo the other.
        self.build_temp = os.path.join(self.folder, ext.name)
        super().build_extension(ext)


def development_library(folder: Path, build: Path) -> Path:
    """A folder with `libcudart.so`, the name that the linker looks for; toolkits from wheels lack it."""
    library = libcudart(folder)
    assert library is not None  # find_toolkit() asked for it
    if library.name == "libcudart.so":
        return library.parent
    link = build / "cudart" / "libcudart.so"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(library.resolve())
    return link.parent.resolve()


def check_compiler() -> None:
    """Stop with one line where the C++ compiler, Python's headers or ninja are missing."""
    compiler = os.environ.get("CXX", "c++").split() or [""]
    if shutil.which(compiler[0]) is None:
        stop(f"no C++ compiler: {compiler[0]!r} is not on PATH (Debian, Ubuntu: apt-get install g++)")
    include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(include, "Python.h")):
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        stop(f"Python.h is missing in {include} (Debian, Ubuntu: apt-get install {package})")
    if shutil.which("ninja") is None:
        stop("ninja is missing: pip install ninja")
    trial = [*compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    newest = "#include <bit>\n#include <memory>\nauto memory = std::make_unique_for_overwrite<int[]>(1);\n"
    said = subprocess.run(trial, input=newest, text=True, capture_output=True)
    if said.returncode != 0:
        stop(f"the C++ compiler {compiler[0]!r} does not compile C++20; GCC >= 11 or Clang >= 13 does (set CXX)")


def kernel_packages() -> dict[str, str]:
    """The top-level kernels/<op> folders as packages `agmh_fast.kernels.<op>`."""
    folders = sorted({path.parent for path in (ROOT / "kernels").glob("*/*.py")})
    return {f"agmh_fast.kernels.{folder.name}": f"kernels/{folder.name}" for folder in folders}


# Folders outside of agmh_fast/ that are installed inside it: kernels, and the recorded results for `agmh-fast bench`.
OUTSIDE = kernel_packages() | {"agmh_fast.results": "bench/results"}
setup(
    packages=[*find_packages(include=["agmh_fast", "agmh_fast.*"]), *OUTSIDE],
    package_dir=OUTSIDE,
    package_data={"agmh_fast": ["py.typed"], "agmh_fast.results": ["*.json"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": Build},
    zip_safe=False,
)
