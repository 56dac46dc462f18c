"""Takes one synchronisation after the other out of the whole-sequence kernels: each time it shows.

``python tests/simt/mutate.py [TEXT]`` builds the kernels of GRU once per mutant (whose line holds
TEXT) and runs them on the emulator under many schedules; a mutant that still gives the right
numbers under all of them has survived. Exits with the number of survivors. Not a part of the test
suite: it takes minutes.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import cpp_extension

sys.path.insert(0, str(Path(__file__).parents[1]))

from emulated import COMPILER, FLAGS, ROOT, Simt, build
from problems import Problem

FOLDER = ROOT / "build" / "mutants"
HEADERS = (
    "exchanger.h",
    "persistent.h",
    "grid_exchange.h",
    "grid_worker.h",
    "grid_forward.h",
    "grid_backward.h",
)
# A statement that synchronises, with the condition before it on its line.
STATEMENT = re.compile(
    r"^\s*(?:if \(dev::tid\(\) == 0\) )?"
    r"(?:dev::(?:cta_sync|group_sync|cluster_sync|mbar_\w+|store_release|wait_until)"
    r"|dev::(?:fence_words|poll_until)|self\.exchange\.clear"
    r"|group_barrier)\(.*;$"
)
SHAPES: list[dict[str, Any]] = [
    {"T": 6, "B": 9, "H": 60, "bidirectional": True},
    {"T": 5, "B": 3, "H": 200},
    {"lengths": (6, 6, 5, 2, 1), "H": 130},
    {"T": 36, "B": 3, "H": 20, "I": 2},  # the ring of a grid goes round
]
SEEDS = range(12)


class Mutant(NamedTuple):
    """One line of one header without its statement."""

    header: str
    line: int
    text: str


def mutants() -> list[Mutant]:
    """All of them, in the order of the sources."""
    found = []
    for header in HEADERS:
        lines = (ROOT / "csrc" / "cuda" / header).read_text(encoding="utf-8").splitlines()
        found += [
            Mutant(header, i, text.strip()) for i, text in enumerate(lines) if STATEMENT.match(text)
        ]
    return found


def build_mutant(mutant: Mutant, objects: Path) -> Path:
    """The emulated library with the kernels of GRU mutated."""
    folder = FOLDER / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    header = folder / "csrc" / "cuda" / mutant.header
    lines = header.read_text(encoding="utf-8").splitlines()
    lines[mutant.line] = ";"
    header.write_text("\n".join(lines) + "\n", encoding="utf-8")
    compiled, library = folder / "gru.o", folder / "rnnfast_simt.so"
    run = [str(COMPILER), *FLAGS.split(), f"-I{folder / 'csrc'}", f"-I{ROOT / 'tests'}", "-w"]
    family = "grid" if mutant.header.startswith("grid_") else "persistent"
    source = folder / "csrc" / "cuda" / f"{family}_gru.cu"
    subprocess.run([*run, "-x", "c++", "-c", str(source), "-o", str(compiled)], check=True)
    others = [str(o) for o in objects.glob("*.o") if o.name != f"{source.name}.o"]
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    link = [str(COMPILER), "-shared", str(compiled), *others, "-o", str(library), *paths]
    subprocess.run([*link, "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", "-lpthread"], check=True)
    return library


def results(simt: Simt, problem: Problem) -> list[torch.Tensor]:
    """Values, reserve and gradients."""
    output, states_n, reserve = simt.layer(*problem.layer_arguments(True))
    cell, x, sizes, _, weights, both, _ = problem.layer_arguments(True)
    needs = [True] * (2 + len(weights))
    grads = simt.layer_backward(cell, output, states_n, x, sizes, weights, both, reserve, needs)
    return [output, *states_n, *reserve, *grads]


def probe(library: str) -> int:
    """Raises where a whole-sequence kernel differs from `step`, is stuck, or breaks a rule."""
    torch.ops.load_library(library)
    torch.backends.cudnn.allow_tf32 = False
    for shape in SHAPES:
        problem = Problem("GRU", dtype=torch.float16, **shape)
        wanted = results(Simt("step"), problem)
        for kernel in ("cta", "cluster", "grid"):
            for seed in SEEDS:
                given = results(Simt(kernel, seed), problem)
                for a, b in zip(given, wanted, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(b.abs().max() + 1))
    return 0


def main(text: str = "") -> int:
    """Run every mutant whose line holds `text` in a process of its own."""
    objects = FOLDER / "whole"
    whole = build(objects)
    assert probe_process(whole) == 0, "the kernels fail as they are"
    survivors = 0
    for mutant in [m for m in mutants() if text in m.text]:
        caught = probe_process(build_mutant(mutant, objects)) != 0
        survivors += not caught
        verdict = "caught  " if caught else "SURVIVED"
        print(f"{verdict} {mutant.header}:{mutant.line + 1}: {mutant.text}", flush=True)
    print(f"{survivors} survived")
    return survivors


def probe_process(library: Path) -> int:
    command = [sys.executable, __file__, "--probe", str(library)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, timeout=300, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return 1


if __name__ == "__main__":
    sys.exit(probe(sys.argv[2]) if sys.argv[1:2] == ["--probe"] else main(*sys.argv[1:]))
