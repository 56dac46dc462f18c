"""What must hold of a wheel: what is in it, what it does beside its torch, and beside another."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-10
EXCLUDED = ("libc10*.so", "libtorch*.so", "libgomp.so.*")
EXCLUDED += ("libcuda*.so.*", "libcublas*.so.*", "libnvrtc*.so.*")
"""What torch and its packages bring: a second copy in the process would not know of the first. Of
OpenMP's runtime least of all, as each has threads of its own.
"""


class CheckError(Exception):
    """What a check found, in one sentence."""


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def local_version(torch: str, cuda: str = "") -> str:
    """What follows the + of a wheel for this torch, and for this CUDA: torch2.13.cu130.

    The dot before cu130 lets 2.13 be read as a number, so that versions are ordered by it.
    """
    return f"torch{minor(torch)}" + (f".cu{cuda.replace('.', '')}" if cuda else "")


def libraries(cuda: bool) -> set[str]:
    """What a whole wheel holds, of every instruction set of this kind of processor."""
    sets = {path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        sets = {"default"}
    return {"_C", *(f"_cpu_{name}" for name in sets)} | ({"_cuda"} if cuda else set())


def content(wheel: Path, torch: str, cuda: str = "") -> None:
    """Name, version, pin, libraries; and that it was repaired and nothing of torch's is in it."""
    _, version, _, tags = parse_wheel_filename(wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (facts,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(facts))
    if metadata["Version"] != str(version) or version.local != local_version(torch, cuda):
        raise CheckError(f"its version is {metadata['Version']}, not +{local_version(torch, cuda)}")
    required = map(Requirement, metadata.get_all("Requires-Dist", []))
    pins = [str(r.specifier) for r in required if r.name == "torch" and r.marker is None]
    if pins != [f"=={minor(torch)}.*"]:
        raise CheckError(f"it demands torch {' and '.join(pins) or 'of any version'}")
    built = {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    if missing := libraries(bool(cuda)) - built:
        raise CheckError(f"{', '.join(sorted(missing))} is not in it")
    if bundled := [name for name in names if ".so" in name and not name.startswith("rnnfast/")]:
        raise CheckError(f"{bundled[0]} is in it, which torch brings")
    if not all(tag.platform.startswith("manylinux_") for tag in tags):
        raise CheckError("it is not repaired: its tag names no manylinux")


@dataclass(frozen=True)
class Venv:
    """An environment that holds one torch and what that needs, nothing else."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        (site,) = self.folder.glob("lib/python3*/site-packages")
        return site

    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs this Python in an empty folder, with no path but that of what is installed."""
        with tempfile.TemporaryDirectory() as folder:
            return subprocess.run(
                [self.python, *arguments],
                cwd=folder,
                env={**_plain_environment(), **environment},
                capture_output=True,
                text=True,
                check=False,
            )

    def must(self, *arguments: str | Path, **environment: str) -> str:
        """What it says, where it succeeds."""
        done = self.run(*arguments, **environment)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise CheckError(f"`python {' '.join(map(str, arguments))}` fails: {said[-1]}")
        return done.stdout

    def pip(self, *arguments: str | Path) -> str:
        return self.must("-m", "pip", "--quiet", *arguments)

    def torch(self) -> tuple[str, str]:
        """The versions of torch and of its CUDA; the latter is empty where it has none."""
        code = "import torch; print(torch.__version__, torch.version.cuda or '', sep=',')"
        version, cuda = self.must("-W", "ignore", "-c", code).strip().split(",")
        return version, cuda

    def entries(self) -> set[str]:
        """What an install can add: the packages and the programs."""
        return {
            path.name for folder in (self.site, self.python.parent) for path in folder.iterdir()
        }


def _plain_environment() -> dict[str, str]:
    """Without paths of ours, and with no place where pip could find another torch."""
    hidden = ("PYTHON", "PIP_", "ATEN_CPU_CAPABILITY")
    plain = {name: text for name, text in os.environ.items() if not name.startswith(hidden)}
    return {**plain, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@contextlib.contextmanager
def installed(wheel: Path, venv: Venv, *options: str) -> Iterator[None]:
    """While in the block; whatever stays afterwards is an error."""
    before = venv.entries()
    venv.pip("install", "--no-index", *options, wheel)
    try:
        yield
    finally:
        venv.pip("uninstall", "--yes", "rnnfast")
    if left := venv.entries() - before:
        raise CheckError(f"uninstall leaves {', '.join(sorted(left))}")


def works(wheel: Path, venv: Venv) -> None:
    """Installs it as a user does, beside its torch and nothing else, and tries it."""
    trial = ROOT / "tools" / "wheel_trial.py"
    with installed(wheel, venv):
        venv.pip("check")
        venv.must("-m", "rnnfast")
        for capability in ("default", "avx2", ""):
            chosen = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
            # Isolated, as tools/ would come first on its path.
            judge(json.loads(venv.must("-I", "-W", "ignore", trial, **chosen)), wheel, venv)


def judge(facts: dict[str, Any], wheel: Path, venv: Venv) -> None:
    """What tools/wheel_trial.py says of an installed wheel."""
    version = parse_wheel_filename(wheel.name)[1]
    if facts["rnnfast"] != str(version):
        raise CheckError(f"rnnfast.__version__ is {facts['rnnfast']}")
    if not Path(facts["file"]).is_relative_to(venv.site):
        raise CheckError(f"{facts['file']} runs in its place")
    if facts["cuda"] != (".cu" in str(version.local)):
        raise CheckError(f"HAS_CUDA is {facts['cuda']}")
    if not facts["difference"] <= TOLERANCE:
        raise CheckError(f"{facts['kernels']} differs from torch.nn by {facts['difference']}")
    runtimes, theirs = facts["openmp"], (venv.site / "torch").resolve()
    if len(runtimes) != 1 or not Path(runtimes[0]).is_relative_to(theirs):
        raise CheckError(f"OpenMP's runtimes in one process are {runtimes}")


def refuses(wheel: Path, venv: Venv) -> None:
    """Beside another torch pip does not install it, and if forced, import says why."""
    version = parse_wheel_filename(wheel.name)[1]
    wanted = str(version.local).removeprefix("torch").partition(".cu")[0]
    there = venv.torch()[0]
    done = venv.run("-m", "pip", "install", "--no-index", wheel)
    if done.returncode == 0 or f"torch=={wanted}.*" not in done.stdout + done.stderr:
        venv.run("-m", "pip", "uninstall", "--yes", "rnnfast")
        raise CheckError(f"pip installs it beside torch {there}")
    with installed(wheel, venv, "--no-deps"):
        done = venv.run("-W", "ignore", "-c", "import rnnfast")
    sentence = (done.stderr.strip().splitlines() or [""])[-1]
    named = f"built for torch {wanted}", f"this is torch {there}", f"for torch {minor(there)}"
    if not sentence.startswith("ImportError: rnnfast") or not all(n in sentence for n in named):
        raise CheckError(f"beside torch {there} import says: {sentence or 'nothing'}")
