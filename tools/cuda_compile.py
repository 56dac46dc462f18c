"""Compiles the CUDA kernels for every architecture, without torch and without a GPU.

    python -m tools.cuda_compile                   every csrc/cuda/*.cu for every architecture
    python -m tools.cuda_compile --arch 80 90      for these only
    python -m tools.cuda_compile --list            what would be compiled, and with which nvcc

Warnings are errors. Prints what each kernel takes, and exits with 1 where something does not
compile, or where a kernel of the time loop spills registers to memory or has static shared memory
that the plan does not count with. Its dynamic shared memory is within bounds, or it would not
compile; the plan keeps it from GPUs that have less.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table import show
from tools.toolkit import ARCHITECTURES, find_nvcc

ROOT = Path(__file__).parents[1]
HOT = r"^(persistent|small|fma|grid|units)_(forward|backward)|^single_step"
"""Kernels whose name matches run the whole time loop: a spill in them costs every step."""

SPILLS = {
    "fma_backward<FmaShape<Gru, 5>": 96,
}
"""Bytes that hot kernels may spill. This one is faster for it: on an H200 0.65 microseconds a step
for 128 rows of H = 128, where the kernels that do not spill take 0.85 and more.
"""

GATES = {"Elman": "1", "Gru": "3", "Lstm": "4"}

STATIC_BUDGET = 1024
"""Bytes of static shared memory a hot kernel may have: its buffers are dynamic, and the plan, which
sizes them, knows nothing of static ones."""


BLOCK_BYTES = {"80": 163, "86": 99, "89": 99, "90": 227, "100": 227, "120": 99}
"""KB of shared memory that a block may have: where a kernel wants more, the plan leaves it out."""


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture. Sizes in bytes."""

    kernel: str
    architecture: str
    registers: int
    spilled: int
    shared: int

    def __str__(self) -> str:
        return f"{self.registers} {self.spilled} {self.shared}"


@dataclass(frozen=True)
class Compilation:
    """One source on one architecture. error: what nvcc said, empty where it succeeded."""

    source: Path
    architecture: str
    usages: tuple[Usage, ...]
    error: str


def parse_usage(text: str, architecture: str) -> list[Usage]:
    """The kernels in the output of ``-Xptxas -v``, by their mangled names."""
    usages, kernel, spilled = [], "", 0
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel, spilled = found[1], 0
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = max(spilled, int(found[1]), int(found[2]))
        elif kernel and (found := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            size = int(shared[1]) if shared else 0
            usages.append(Usage(kernel, architecture, int(found[1]), spilled, size))
            kernel = ""
    return usages


def compile_source(nvcc: str, source: Path, architecture: str) -> Compilation:
    # -iquote, not -I: csrc/math.h must not stand before the system's <math.h>.
    flags = ["-O3", "-std=c++20", "-Xcompiler", f"-iquote,{ROOT / 'csrc'}"]
    flags += ["-Werror", "all-warnings", "-Xptxas", "-v"]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *flags, f"-arch=sm_{architecture}", "-cubin", str(source)]
        command += ["-o", f"{folder}/kernels.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode:
        return Compilation(source, architecture, (), output.strip())
    return Compilation(source, architecture, tuple(parse_usage(output, architecture)), "")


def dynamic_shared(names: Iterable[str]) -> dict[str, int]:
    """Kernel -> bytes of dynamic shared memory, of whole-sequence kernels, as layouts.cpp says."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        source, program = ROOT / "tools" / "layouts.cpp", f"{folder}/layouts"
        command = [compiler, "-std=c++20", "-iquote", str(ROOT / "csrc"), str(source)]
        subprocess.run([*command, "-o", program], check=True)
        lines = subprocess.check_output([program], text=True).splitlines()
    sizes = {tuple(words[:4]): int(words[4]) for words in map(str.split, lines)}
    shapes = re.compile(r"\b((?:Grid)?Shape)<(Elman|Gru|Lstm)\b.*?, (\w+Operand), (\d+)>")
    found = {}
    for name in names:
        if shape := shapes.search(name):
            found[name] = sizes[shape[1], GATES[shape[2]], shape[3], shape[4]]
    return found


def demangled(names: Sequence[str]) -> dict[str, str]:
    """Mangled name -> the name as the source has it, without namespace and parameters."""
    if not names or not shutil.which("c++filt"):
        return {name: name for name in names}
    text = "\n".join(names)
    done = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    return dict(zip(names, map(_short, done.stdout.splitlines()), strict=True))


def _short(name: str) -> str:
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    name = re.sub(r"rnnfast::|cuda::|dev::|\((?:int|unsigned int|bool)\)", "", name)
    name = name.replace("__nv_bfloat16", "Bf16").replace("__half", "Half").replace(" >", ">")
    return re.sub(r"\(.*\)$", "", name)


def complaints(
    compilations: Iterable[Compilation],
    names: dict[str, str],
    hot: str,
    dynamic: dict[str, int],
) -> list[str]:
    """Everything for which the run fails, one line each, compiler output indented below."""
    lines = []
    for compilation in compilations:
        where = f"{compilation.source.name} for sm_{compilation.architecture}"
        if compilation.error:
            lines.append(f"{where} does not compile:\n{_indented(compilation.error)}")
        for usage in compilation.usages:
            name = names[usage.kernel]
            runs = dynamic.get(name, 0) <= BLOCK_BYTES[usage.architecture] * 1024
            if not re.search(hot, name) or not runs:
                continue
            if usage.spilled > SPILLS.get(name.rpartition(",")[0], 0):
                lines.append(f"{where}: {name} spills {usage.spilled} bytes")
            if usage.shared > STATIC_BUDGET:
                lines.append(f"{where}: {name} has {usage.shared} bytes of static shared memory")
    return lines


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-40:])


def rows(
    usages: Iterable[Usage],
    names: dict[str, str],
    archs: Sequence[str],
    dynamic: dict[str, int],
) -> list[list[str]]:
    """One row a kernel, one column an architecture."""
    found: dict[str, dict[str, Usage]] = {}
    for usage in usages:
        found.setdefault(names[usage.kernel], {})[usage.architecture] = usage
    return [
        [name, str(dynamic.get(name, 0)), *(str(of[arch]) if arch in of else "-" for arch in archs)]
        for name, of in sorted(found.items())
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_compile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sources", nargs="*", type=Path, help="default: csrc/cuda/*.cu")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--hot", default=HOT, metavar="REGEX", help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="compile nothing")
    options = parser.parse_args(arguments)
    options.sources = options.sources or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    nvcc = find_nvcc()
    if options.list:
        print(f"nvcc: {nvcc or 'not found'}")
        print("\n".join(f"{s} sm_{arch}" for s in options.sources for arch in options.arch))
        return 0
    if nvcc is None:
        print("nvcc is not found: install the CUDA toolkit (13.0 or newer), or set CUDA_HOME")
        return 1
    if not options.sources:
        print("csrc/cuda holds no .cu file")
        return 1
    jobs = [(nvcc, source, arch) for source in options.sources for arch in options.arch]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or 2)) as pool:
        compilations = list(pool.map(lambda job: compile_source(*job), jobs))
    usages = [usage for compilation in compilations for usage in compilation.usages]
    names = demangled(sorted({usage.kernel for usage in usages}))
    dynamic = dynamic_shared(names.values()) if usages else {}
    if usages:
        title = "dynamic shared bytes; registers, spilled bytes, static shared bytes"
        header = ["kernel", "dynamic", *(f"sm_{arch}" for arch in options.arch)]
        table = rows(usages, names, options.arch, dynamic)
        show(title, header, table)
    failures = complaints(compilations, names, options.hot, dynamic)
    print("\n".join(failures) or f"{len(jobs)} compilations: no warnings, no spills in time loops")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
