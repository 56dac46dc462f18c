"""Tensors over 2^31 elements: the kernels' address arithmetic on such sizes, without such tensors.

Catches a product of sizes that is taken in 32 bits.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


@pytest.mark.skipif(
    COMPILER is None or not (ROOT / "csrc").is_dir(), reason="needs a C++ compiler and the sources"
)
def test_offsets_are_64_bit(tmp_path: Path) -> None:
    program = tmp_path / "offsets"
    source = ROOT / "tests" / "native" / "offsets.cpp"
    command = [str(COMPILER), "-std=c++20", "-O1", "-ftrapv", f"-I{ROOT / 'csrc'}", str(source)]
    subprocess.run([*command, "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
