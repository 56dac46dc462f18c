"""Compiles the host's files of the CUDA library against this Python's torch: `make cuda-host`.

Writes nothing and needs no GPU: the kernels know nothing of torch (tools/cuda_compile.py), these
files do, so each torch has to be asked. Needs a torch for CUDA, and the toolkit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools import toolkit

ROOT = Path(__file__).parents[1]


def main() -> int:
    nvcc = toolkit.find_nvcc()
    if nvcc is None:
        print("nvcc is not found: install the CUDA toolkit, or set CUDA_HOME")
        return 1
    os.environ["CUDA_HOME"] = str(toolkit.find_home(nvcc))  # before torch looks for it
    import torch
    from torch.utils import cpp_extension

    from tools import building

    if torch.version.cuda is None:
        print(f"torch {torch.__version__} is built without CUDA")
        return 1
    command = [*os.environ.get("CXX", "c++").split(), "-std=c++20", "-fsyntax-only", "-Wall"]
    command += ["-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", "-DTORCH_EXTENSION_NAME=_cuda"]
    command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    command += building.cuda_includes()
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cpp")):
        if subprocess.run([*command, str(source)], check=False).returncode:
            return 1
        print(f"{source.name} compiles against torch {torch.__version__}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
