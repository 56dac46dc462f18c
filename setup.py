"""Builds the C++ extensions; all that is declarative stands in pyproject.toml.

``rnnfast._C``         the operators' schemas and facts about the build
``rnnfast._cpu_*``     the same kernels, once per CPU instruction set; one of them is loaded
``rnnfast._cuda``      the CUDA kernels: built where this torch has CUDA and nvcc is found;
                       RNNFAST_CUDA=0 leaves them out, RNNFAST_CUDA=1 insists on them
``RNNFAST_CPU``        instruction sets to build for, separated by spaces (default: all of them)
``RNNFAST_OPTIMIZE``   what the C++ compiler is told (default: -O3), for builds that are only tested
``MAX_JOBS``           the number of compilers that run side by side (default: one per core)
``RNNFAST_LOCAL_VERSION``  what follows a + in the version: tools/wheels.py names the torch there
"""

import os
import platform
from glob import glob

from tools import needs, toolkit

needs.require("python", "setuptools", "torch")
NVCC = toolkit.find_nvcc()
if NVCC:  # before torch looks for it, which takes any folder above an nvcc for the toolkit
    os.environ["CUDA_HOME"] = str(toolkit.find_home(NVCC))

import torch  # noqa: E402
from setuptools import setup  # noqa: E402
from setuptools.command.egg_info import egg_info  # noqa: E402
from torch.utils import cpp_extension  # noqa: E402
from torch.utils.cpp_extension import CppExtension, CUDAExtension  # noqa: E402

from tools import building  # noqa: E402

MAJOR, MINOR = torch.__version__.split(".")[:2]
HEADERS = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True))
# One C++ for every torch: of themselves, 2.11 takes 17 and 2.13 takes 20.
OPTIMIZE = os.environ.get("RNNFAST_OPTIMIZE", "-O3").split()
CXX = ["-std=c++20", *OPTIMIZE, "-g0", "-fopenmp", "-Wall", "-Wextra"]
CXX += ["-ffp-contract=fast", "-fvisibility=hidden"]
CXX += [f"-isystem{path}" for path in cpp_extension.include_paths()]  # no warnings from torch
OPTIONS = {"include_dirs": [os.path.abspath("csrc")], "depends": HEADERS}
NVCC_FLAGS = ["-O3", "-std=c++20", "-Xfatbin=-compress-all", "--Werror=all-warnings"]
NVCC_FLAGS += ["-Xcompiler=-fvisibility=hidden"]
INSTRUCTION_SETS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"]
    INSTRUCTION_SETS["avx512bf16"] = [*INSTRUCTION_SETS["avx512"], "-mavx512bf16"]
    INSTRUCTION_SETS["avx512amx"] = [*INSTRUCTION_SETS["avx512bf16"], "-mamx-tile", "-mamx-bf16"]


def instruction_sets() -> list[str]:
    """Those to build for."""
    wanted = os.environ.get("RNNFAST_CPU", " ".join(INSTRUCTION_SETS)).split()
    if unknown := set(wanted) - set(INSTRUCTION_SETS):
        known = " ".join(INSTRUCTION_SETS)
        got = " ".join(sorted(unknown))
        raise SystemExit(f"rnnfast: RNNFAST_CPU must be of {known}, got {got!r}")
    return wanted


def cpu_extension(name: str, sources: list[str], flags: list[str]) -> CppExtension:
    return CppExtension(
        name,
        sources,
        extra_compile_args=CXX + flags,
        extra_link_args=["-fopenmp", *OPTIMIZE],
        **OPTIONS,
    )


def cuda_extensions() -> list[CUDAExtension]:
    """The CUDA extension, or nothing. Needs no GPU: machines that build may have none."""
    # What compiles fast comes first, so that what is wrong shows early.
    sources = [*sorted(glob("csrc/cuda/*.cpp")), "csrc/cuda/step.cu"]
    sources += sorted(set(glob("csrc/cuda/*.cu")) - set(sources))
    flags = {"cxx": [*CXX, *building.cuda_includes()], "nvcc": NVCC_FLAGS}
    if not building.builds_cuda(NVCC, sources, flags):
        return []
    return [CUDAExtension("rnnfast._cuda", sources, extra_compile_args=flags, **OPTIONS)]


class Build(building.Build):
    """Adds the CUDA kernels: not before there is something to build, as it takes a look at nvcc."""

    def finalize_options(self) -> None:
        self.distribution.ext_modules = [*cuda_extensions(), *CPU]
        super().finalize_options()


class Metadata(egg_info):
    """Adds the local version. Not unless asked: pip wants of a source release the version of its
    name.
    """

    def finalize_options(self) -> None:
        local = os.environ.get("RNNFAST_LOCAL_VERSION", "")
        self.tag_build = f"+{local}" if local else ""
        super().finalize_options()


CPU = [cpu_extension("rnnfast._C", sorted(glob("csrc/*.cpp")), [])]
CPU += [
    cpu_extension(f"rnnfast._cpu_{name}", [f"csrc/cpu/{name}.cpp"], INSTRUCTION_SETS[name])
    for name in reversed(instruction_sets())  # what takes longest first
]
setup(
    ext_modules=CPU,
    cmdclass={"build_ext": Build, "egg_info": Metadata},
    # By a path, not by a finder: that would be asked after a folder `rnnfast` in the working
    # directory, such as the one above a clone, has been taken for a package.
    options={"editable_wheel": {"mode": "compat"}},
    install_requires=[f"torch=={MAJOR}.{MINOR}.*"],
)
