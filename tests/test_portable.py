"""The kernels that are built for any CPU, without torch: on this processor, and on an aarch64 that
an emulator stands for.

Catches arithmetic that only x86-64 does so, and a header that needs its intrinsics.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
CROSS = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FLAGS = ["-std=c++20", "-O1", "-fopenmp", "-ffp-contract=fast", "-Wall", "-Wextra"]


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the sources")
@pytest.mark.parametrize(
    ("compiler", "options", "run"),
    [
        pytest.param(
            HOST, [], [], id="host", marks=pytest.mark.skipif(not HOST, reason="needs a compiler")
        ),
        pytest.param(
            CROSS,
            ["-static"],  # so that the emulator needs no folder of libraries
            [EMULATOR],
            id="aarch64",
            marks=pytest.mark.skipif(
                not (CROSS and EMULATOR),
                reason="needs apt install g++-aarch64-linux-gnu qemu-user",
            ),
        ),
    ],
)
def test_maths_products_and_layers(
    compiler: str, options: list[str], run: list[str], tmp_path: Path
) -> None:
    program = tmp_path / "portable"
    source = ROOT / "tests" / "native" / "portable.cpp"
    command = [compiler, *FLAGS, *options, f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    result = subprocess.run([*run, str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "registers of 16 bytes" in result.stdout
