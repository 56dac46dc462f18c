"""The CUDA toolkit of this machine, found as nvcc itself names it. Knows nothing of torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
"""What is built for where no GPU says otherwise; other GPUs newer than the last take its PTX."""


def find_nvcc() -> str | None:
    """The nvcc of CUDA_HOME, else of the PATH, else where CUDA installs itself; None without."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    for home in homes:
        if (home / "bin" / "nvcc").exists():
            return str(home / "bin" / "nvcc")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_home(nvcc: str) -> Path:
    """The folder that holds the toolkit, also where `nvcc` is a link or a script elsewhere."""
    said = _run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull])
    top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    return Path(top[1] if top else Path(nvcc).resolve().parents[1]).resolve()


def release(nvcc: str) -> str:
    """The version of CUDA, as 13.0; empty where nvcc does not say."""
    found = re.search(r"release (\d+\.\d+)", _run([nvcc, "--version"]))
    return found[1] if found else ""


def architectures(nvcc: str, present: Iterable[tuple[int, int]]) -> str:
    """The value of TORCH_CUDA_ARCH_LIST: the GPUs that are present, else all that nvcc knows."""
    known = set(re.findall(r"sm_(\d+)", _run([nvcc, "--list-gpu-code"]))) or set(ARCHITECTURES)
    here = {f"{major}{minor}" for major, minor in present if major >= 8} & known
    chosen = sorted(here, key=int) or [arch for arch in ARCHITECTURES if arch in known]
    return ";".join(f"{arch[:-1]}.{arch[-1]}" for arch in chosen) + ("" if here else "+PTX")


def problem(nvcc: str, sources: Iterable[str], flags: Mapping[str, Sequence[str]]) -> str:
    """Why these sources will not compile or link here; empty where nothing stands against it.

    Only the preprocessors run, so that a header that is missing shows in seconds, not at the end.

    `flags` are for the host's compiler, `cxx`, and for `nvcc`, as setuptools gets them.
    """
    home = find_home(nvcc)
    if not any((home / folder / "libcudart.so").exists() for folder in ("lib64", "lib")):
        return f"libcudart.so is not found in {home}"
    host = [*os.environ.get("CXX", "c++").split(), *flags["cxx"]]
    for source in sources:
        command = [nvcc, *flags["nvcc"]] if source.endswith(".cu") else host
        said = _run([*command, "-E", "-Icsrc", source, "-o", os.devnull])
        if found := re.search(r"error\s*:\s*(.*)", said):
            return f"{os.path.basename(command[0])} says of {source}: {found[1]}"
    return ""


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
