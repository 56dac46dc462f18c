"""Builds the C++ extensions; all that is declarative stands in pyproject.toml.

``rnnfast._C``         the operators' schemas and facts about the build
``rnnfast._cpu_*``     the same kernels, once per CPU instruction set; one of them is loaded
``rnnfast._cuda``      the CUDA kernels: built where this torch has CUDA and nvcc is found;
                       RNNFAST_CUDA=0 leaves them out, RNNFAST_CUDA=1 insists on them
``RNNFAST_CPU``        instruction sets to build for, separated by spaces (default: all of them)
``MAX_JOBS``           the number of compilers that run side by side (default: one per core)
"""

import copy
import os
import platform
from glob import glob

import torch
from setuptools import setup
from torch.utils import cpp_extension
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

MAJOR, MINOR = torch.__version__.split(".")[:2]
HEADERS = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True))
CXX = ["-O3", "-g0", "-fopenmp", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX += [f"-isystem{path}" for path in cpp_extension.include_paths()]  # no warnings from torch
OPTIONS = {"include_dirs": [os.path.abspath("csrc")], "depends": HEADERS}
# Searched last, for what the toolkit may lack: cuBLAS and others come as packages beside torch's.
SITE_PACKAGES = os.path.dirname(os.path.dirname(torch.__file__))
CUDA_PACKAGES = sorted(glob(os.path.join(SITE_PACKAGES, "nvidia", "*", "include")))
NVCC = ["-O3", "-std=c++20", "-Xfatbin=-compress-all", "--Werror=all-warnings"]
NVCC += ["-Xcompiler=-fvisibility=hidden"]
INSTRUCTION_SETS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"]
    INSTRUCTION_SETS["avx512bf16"] = [*INSTRUCTION_SETS["avx512"], "-mavx512bf16"]


def instruction_sets() -> list[str]:
    """Those to build for."""
    wanted = os.environ.get("RNNFAST_CPU", " ".join(INSTRUCTION_SETS)).split()
    if unknown := set(wanted) - set(INSTRUCTION_SETS):
        known = " ".join(INSTRUCTION_SETS)
        raise SystemExit(f"RNNFAST_CPU must be of {known}, got {' '.join(sorted(unknown))!r}")
    return wanted


def cpu_extension(name: str, sources: list[str], flags: list[str]) -> CppExtension:
    return CppExtension(
        name,
        sources,
        extra_compile_args=CXX + flags,
        extra_link_args=["-fopenmp"],
        **OPTIONS,
    )


def cuda_extensions() -> list[CUDAExtension]:
    """The CUDA extension, or nothing. Never asks for a GPU: machines that build have none."""
    wanted = os.environ.get("RNNFAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"RNNFAST_CUDA must be 0 or 1, got {wanted!r}")
    sources = sorted(glob("csrc/cuda/*.cu") + glob("csrc/cuda/*.cpp"))
    missing = []
    if not sources:
        missing.append("csrc/cuda holds no sources")
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is built without CUDA")
    if CUDA_HOME is None or not os.path.exists(os.path.join(CUDA_HOME, "bin", "nvcc")):
        missing.append("nvcc is not found (set CUDA_HOME)")
    if wanted == "1" and missing:
        raise SystemExit(f"RNNFAST_CUDA=1, but {' and '.join(missing)}")
    if wanted == "0" or missing:
        return []
    # Without a default, cpp_extension asks the GPU, and fails where there is none.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;8.6;8.9;9.0;10.0;12.0+PTX")
    # The packages' headers of the runtime must not come before the toolkit's own.
    toolkit = os.path.join(CUDA_HOME, "include")
    includes = [f"-isystem{toolkit}", *(f"-idirafter{path}" for path in CUDA_PACKAGES)]
    flags = {"cxx": [*CXX, "-std=c++20", *includes], "nvcc": NVCC}
    return [CUDAExtension("rnnfast._cuda", sources, extra_compile_args=flags, **OPTIONS)]


class Build(BuildExtension):
    """Builds the extensions side by side, and records for which torch in rnnfast/_build.py."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)

    def build_extension(self, ext) -> None:
        # Each extension gets a folder of its own: ninja's files have the same name in all of them.
        worker = copy.copy(self)
        worker.build_temp = os.path.join(self.build_temp, ext.name)
        super(Build, worker).build_extension(ext)

    def run(self) -> None:
        super().run()
        folder = os.path.dirname(self.get_ext_fullpath("rnnfast._C"))
        with open(os.path.join(folder, "_build.py"), "w") as file:
            file.write("# Written by setup.py.\n")
            file.write(f'TORCH = "{torch.__version__}"\n')


setup(
    ext_modules=[
        cpu_extension("rnnfast._C", sorted(glob("csrc/*.cpp")), []),
        *(
            cpu_extension(f"rnnfast._cpu_{name}", [f"csrc/cpu/{name}.cpp"], INSTRUCTION_SETS[name])
            for name in instruction_sets()
        ),
        *cuda_extensions(),
    ],
    cmdclass={"build_ext": Build},
    install_requires=[f"torch=={MAJOR}.{MINOR}.*"],
)
