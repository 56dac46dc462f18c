"""The library `avx512amx` with its instructions in plain C++, for any CPU: builds it, and is the
plugin (``pytest -p twin``) of processes of pytest that run with it in the place of their own.
"""

import fcntl
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
NINJA = shutil.which("ninja") or shutil.which("ninja", path=Path(sys.executable).parent)
# Sums that are rounded once: with the instruction where there is one.
FMA = ["-mfma"] if platform.machine() == "x86_64" and torch.cpu._is_avx2_supported() else []
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-psabi", "-DRNNFAST_TWIN", *FMA]
FLAGS += [f"-I{ROOT / 'csrc'}"]
FOLDER = "RNNFAST_TEST_PACKAGE"  # in the environment of those processes
NINJA_FILE = """\
rule compile
  command = {compiler} {flags} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} -shared -fopenmp $in -o $out {libraries}
build twin.o: compile {source}
build twin.so: link twin.o
"""


def build() -> Path:
    """The library, in a folder of this torch's own."""
    folder = ROOT / "build" / "twin" / torch.__version__
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, "-g0 -fPIC -fopenmp -ffp-contract=fast -fvisibility=hidden"]
    flags += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    source = ROOT / "csrc" / "cpu" / "avx512amx.cpp"
    libraries = [f"-L{path} -Wl,-rpath,{path}" for path in cpp_extension.library_paths()]
    text = NINJA_FILE.format(
        compiler=COMPILER,
        flags=" ".join(flags),
        source=source,
        libraries=" ".join([*libraries, "-ltorch -ltorch_cpu -lc10"]),
    )
    with (folder / "lock").open("w") as lock:  # pytest-xdist builds it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(text, encoding="utf-8")
        command = [str(NINJA), "-C", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "twin.so"


def package(folder: Path) -> Path:
    """The package as if built for a CPU with tiles, in `folder`."""
    import rnnfast

    skip = shutil.ignore_patterns("_cpu_*.so", "_cuda*.so", "__pycache__")
    source = Path(rnnfast.__file__).parent
    target = Path(shutil.copytree(source, folder / "rnnfast", ignore=skip))
    (_C,) = target.glob("_C.*so")
    shutil.copy(build(), target / _C.name.replace("_C", "_cpu_avx512amx"))
    return target


def environment(folder: Path) -> dict[str, str]:
    """For a process that finds `package(folder)`, and this plugin."""
    paths = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    found = os.pathsep.join(path for path in paths if path)
    result = {**os.environ, FOLDER: str(folder), "PYTHONPATH": found}
    result.pop("ATEN_CPU_CAPABILITY", None)
    return result


def choose(folder: Path) -> None:
    """Makes the import of rnnfast believe in a CPU with tiles."""
    (library,) = (folder / "rnnfast").glob("_C.*so")
    spec = importlib.util.spec_from_file_location("rnnfast._C", library)
    assert spec is not None
    assert spec.loader is not None
    facts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(facts)
    facts.has_bfloat16_tiles = lambda: True
    sys.modules["rnnfast._C"] = facts
    torch.backends.cpu.get_cpu_capability = lambda: "AVX512"

    from rnnfast import _library

    assert _library.INSTRUCTION_SET == "avx512amx"
    assert Path(_library.__file__).is_relative_to(folder)


if FOLDER in os.environ:
    choose(Path(os.environ[FOLDER]))
