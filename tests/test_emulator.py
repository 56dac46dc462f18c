"""The SIMT emulator that CUDA kernels are tested on: its primitives, and the errors it finds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def build_and_run(source: str, program: Path, *flags: str) -> str:
    """What the program prints and its exit code, both empty when all is well."""
    command = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-rdynamic"]
    command += ["-DRNNFAST_SIMT", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
    command += [str(ROOT / "tests" / "simt" / source), "-o", str(program), *flags]
    subprocess.run(command, check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    return result.stdout + result.stderr + (f"exit {result.returncode}" * (result.returncode != 0))


@pytest.mark.parametrize("switch", ["assembly", "ucontext"])
@pytest.mark.parametrize(
    "source", ["emulator_test.cpp", "numbers_test.cpp", "detector_test.cpp", "words_test.cpp"]
)
def test_emulator(source: str, switch: str, tmp_path: Path) -> None:
    flags = ["-DRNNFAST_SIMT_UCONTEXT"] if switch == "ucontext" else []
    assert build_and_run(source, tmp_path / "test", *flags) == ""


def test_guarded_tensors(tmp_path: Path) -> None:
    torch_dir = Path(torch.__file__).parent
    flags = [f"-isystem{torch_dir / 'include'}", f"-L{torch_dir / 'lib'}", "-lc10"]
    flags += [f"-Wl,-rpath,{torch_dir / 'lib'}"]
    assert build_and_run("guard_test.cpp", tmp_path / "test", *flags) == ""
