"""Builds what a machine with a GPU needs into one folder to carry there: `make gpu-pack`.

    python -m tools.gpu_pack                             into .gpu, for sm_90
    python -m tools.gpu_pack --pack .gpu-b --arch 8.0    a second one, for an A100
    python -m tools.gpu_pack --pythons python3.12        more Pythons than the one that runs this
    python -m tools.gpu_pack --python-only               what was compiled stays; all else anew

Needs a Python with the torch of that machine, one built with CUDA, and nvcc; no GPU. The kernels'
libraries know nothing of Python; `_C` does, so it is compiled once for each, of which only the
headers need be here. The folder holds the sources, too: `tools/gpu-check.sh` builds there what does
not fit after all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import git_commit

ROOT = Path(__file__).parents[1]
CARRIED = ("benchmarks", "csrc", "tests", "tools", "pyproject.toml", "setup.py", "README.md")
LEFT_OUT = ("__pycache__", "results", "peers", "*.so", "test_build.py")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
METADATA = "Metadata-Version: 2.1\nName: rnnfast\nVersion: {}\n"


def build(pack: Path, arch: str) -> None:
    """The package with its CUDA kernels and the portable CPU kernels, for this Python's torch."""
    base = ROOT / "build" / "gpu"  # one for all packs: only what has changed is compiled again
    library = base / "lib"
    command = [sys.executable, "setup.py", "--quiet", "build"]
    command += ["--build-base", str(base), "--build-lib", str(library)]
    environment = {
        "RNNFAST_CUDA": "1",
        "RNNFAST_CPU": "default",
        "TORCH_CUDA_ARCH_LIST": arch,
    }
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)
    shutil.copytree(library / "rnnfast", pack / "rnnfast")
    for path in (pack / "rnnfast").glob(f"*{SUFFIX}"):
        if path.name != f"_C{SUFFIX}":
            path.rename(path.with_name(path.name.removesuffix(SUFFIX) + ".so"))


def empty(pack: Path) -> None:
    """Leaves what was compiled, and for which torch."""
    for path in pack.iterdir():
        if path.name != "rnnfast" and path.is_dir():
            shutil.rmtree(path)
        elif path.name != "rnnfast":
            path.unlink()
    for path in (pack / "rnnfast").iterdir():
        if path.suffix != ".so" and path.name not in ("_build.py", "py.typed"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def sources(pack: Path) -> None:
    """Everything else, and which commit it is."""
    for path in (ROOT / "rnnfast").glob("*.py*"):
        if path.name != "_build.py":
            shutil.copy(path, pack / "rnnfast" / path.name)
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, pack / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copy(source, pack / name)
    (pack / "commit").write_text(git_commit() + "\n")
    version = subprocess.check_output(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, text=True, stderr=subprocess.DEVNULL
    )
    facts = pack / f"rnnfast-{version.strip()}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(METADATA.format(version.strip()))


def build_binding(pack: Path, python: str) -> None:
    """`_C` for another Python, out of its headers and this one's torch."""
    from torch.utils import cpp_extension

    code = "import sysconfig as s; print(s.get_path('include'), s.get_config_var('EXT_SUFFIX'))"
    headers, suffix = subprocess.check_output([python, "-c", code], text=True).split()
    if suffix == SUFFIX:
        return
    target = pack / "rnnfast" / f"_C{suffix}"
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-O2", "-g0", "-fopenmp", "-w"]
    command += ["-ffp-contract=fast", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_C"]
    command += ["-DTORCH_API_INCLUDE_EXTENSION_H", f"-I{headers}", f"-I{ROOT / 'csrc'}"]
    command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    objects = []
    for source in sorted((ROOT / "csrc").glob("*.cpp")):  # one by one: ccache knows them then
        objects.append(ROOT / "build" / "gpu" / f"{source.stem}{suffix}.o")
        subprocess.run([*command, "-c", str(source), "-o", str(objects[-1])], check=True)
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries += ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    subprocess.run([*command, *map(str, objects), *libraries, "-o", str(target)], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_pack", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pack", type=Path, default=ROOT / ".gpu", help="default: %(default)s")
    parser.add_argument("--arch", default="9.0", help="of the GPU; default: %(default)s")
    parser.add_argument("--pythons", nargs="*", default=[], metavar="PYTHON")
    parser.add_argument("--python-only", action="store_true")
    options = parser.parse_args(arguments)
    import torch

    if torch.version.cuda is None and not options.python_only:
        print(f"torch {torch.__version__} is built without CUDA: set TORCH to one with it")
        return 1
    pack = options.pack.resolve()
    if options.python_only:
        empty(pack)
    elif pack.exists():
        shutil.rmtree(pack)
    if not options.python_only:
        build(pack, options.arch)
        for python in options.pythons:
            build_binding(pack, python)
    sources(pack)
    code = "import rnnfast; assert rnnfast._library.HAS_CUDA; print(rnnfast.__file__)"
    subprocess.run([sys.executable, "-c", code], cwd=pack, check=True)
    size = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())
    print(f"{pack}: {size / 2**20:.1f} MiB, commit {(pack / 'commit').read_text().strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
