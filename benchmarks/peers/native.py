"""Compiles the C++ of this folder and loads it: a run takes the machine as it finds it."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def load(source: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library made of the file `source` of this folder. Raises OSError with what the compiler
    or the linker said.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        command = ["g++", "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp"]
        command += [source, "-o", str(library), *flags]
        here = Path(__file__).parent
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here)
        if done.returncode:
            raise OSError(f"{source} does not compile: {done.stderr.strip()[:500]}")
        return ctypes.CDLL(str(library))
