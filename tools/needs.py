"""What a build needs of this machine, and one sentence for whoever lacks it.

    python -m tools.needs venv compiler headers      the Makefile asks before it fetches anything

Knows nothing of torch and setuptools, and runs on any Python 3: these are what may be missing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata

SETUPTOOLS, TORCH = (77,), (2, 11)
NEWER_PYTHON = (3, 10)
ISOLATED = (
    "torch is not found. Where it is installed, pip hides it from builds, so type:"
    " pip install --no-build-isolation . ; elsewhere install torch 2.11 or newer first"
)
PROBE = "#include <omp.h>\n#include <bit>\nint main() { return omp_get_max_threads() > 0; }\n"


def python() -> str:
    if sys.version_info >= NEWER_PYTHON:
        return ""
    return f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}"


def venv() -> str:
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return ""
    return "Python's venv is missing: on Debian and Ubuntu, apt install python3-venv"


def headers() -> str:
    if os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return ""
    return "Python.h is missing: on Debian and Ubuntu, apt install python3-dev"


def compiler() -> str:
    """The compiler that torch would take must know C++20 and OpenMP."""
    name = os.environ.get("CXX", "c++").split()
    if not name or not shutil.which(name[0]):
        missing = name[0] if name else "CXX"
        return f"the C++ compiler {missing} is missing: on Debian and Ubuntu, apt install g++"
    command = [*name, "-std=c++20", "-fopenmp", "-x", "c++", "-", "-o", os.devnull]
    done = subprocess.run(command, input=PROBE, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    said = re.search(r"error: (.*)", done.stderr) or re.search("(.*)", done.stderr)
    reason = said[1] if said else "no reason given"
    return f"{' '.join(name)} cannot build C++20 with OpenMP ({reason}): g++ 10 or newer can"


def ninja() -> str:
    if shutil.which("ninja"):
        return ""
    return "ninja is missing: pip install ninja"


def setuptools() -> str:
    found = _version("setuptools")
    if found is None:
        return "setuptools is missing: pip install 'setuptools>=77'"
    if found < SETUPTOOLS:
        old = metadata.version("setuptools")
        return f"setuptools {old} is too old: pip install 'setuptools>=77'"
    return ""


def torch() -> str:
    if importlib.util.find_spec("torch") is None:
        return ISOLATED
    found = _version("torch")
    if found is not None and found < TORCH:
        return f"torch 2.11 or newer is needed, this is {metadata.version('torch')}"
    return ""


def _version(name: str) -> tuple[int, ...] | None:
    try:
        text = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


CHECKS = {c.__name__: c for c in (python, venv, headers, compiler, ninja, setuptools, torch)}


def missing(*names: str) -> list[str]:
    """A sentence for each of these that is not there."""
    # ninja lies beside this Python, also where nobody has activated its environment.
    beside = os.path.dirname(sys.executable)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), beside])
    return [sentence for name in names if (sentence := CHECKS[name]())]


def require(*names: str) -> None:
    """Ends the program with these sentences, where there are any."""
    if sentences := missing(*names):
        raise SystemExit("\n".join(f"rnnfast: {sentence}" for sentence in sentences))


if __name__ == "__main__":
    require("python", *(sys.argv[1:] or [name for name in CHECKS if name != "python"]))
