"""Takes one synchronisation after the other out of the whole-sequence kernels: each time it shows.

``python tests/simt/mutate.py [TEXT]`` builds the kernels of one cell once per mutant (whose header
or line holds TEXT) and runs them on the emulator under many schedules; a mutant that still gives
the right numbers under all of them has survived. Exits with the number of survivors. Not a part of
the test suite: it takes minutes.
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

import recurrences
from emulated import COMPILER, FLAGS, ROOT, Simt, build
from problems import TOLERANCE, Problem

FOLDER = ROOT / "build" / "mutants"
PERSISTENT, SMALL, GRID = "persistent_gru.cu", "small_gru.cu", "grid_gru.cu"
FMA, SINGLE, ROWS = "fma_gru.cu", "single_gru.cu", "rows.cu"
# Four gates, H > 768, 16 rows: a shape whose partial sums have one buffer.
ONE_BUFFER = "grid_lstm.cu"
# The headers with synchronisations, and where they are compiled.
HEADERS = {
    "exchanger.h": PERSISTENT,
    "worker.h": PERSISTENT,
    "inputs.h": PERSISTENT,
    "persistent_forward.h": PERSISTENT,
    "persistent_backward.h": PERSISTENT,
    "small.h": SMALL,
    "small_forward.h": SMALL,
    "small_backward.h": SMALL,
    "grid_exchange.h": GRID,
    "grid_worker.h": ONE_BUFFER,
    "grid_forward.h": GRID,
    "grid_backward.h": GRID,
    "fma.h": FMA,
    "fma_forward.h": FMA,
    "fma_backward.h": FMA,
    "single.h": SINGLE,
    "rows.h": ROWS,
}
KERNELS = {
    PERSISTENT: ("cta", "cluster", "grid"),
    SMALL: ("small",),
    GRID: ("grid",),
    ONE_BUFFER: ("grid/1",),  # the second of the plan
    FMA: ("fma",),
    SINGLE: ("single",),
    ROWS: (),  # named by no layer
}
# A statement that synchronises, with the condition or the loop before it on its line.
STATEMENT = re.compile(
    r"^\s*(?:if \(dev::tid\(\) == 0\) |if constexpr \(.*?\) |for \(int g = 0; g < kGates; \+\+g\) "
    r")?"
    r"(?:dev::(?:cta_sync|group_sync|cluster_sync|warp_sync|mbar_\w+|cp_wait<[^>]+>|cp_commit"
    r"|store_release|wait_until|fence_words|poll_until)|group_barrier|ring\.wait"
    r"|self\.exchange\.clear)\(.*;(?:\s*//.*)?$"
)
# Inputs through the ring and, with the odd H, beside it; vectors of either type of number, in
# float32 also of one CTA.
SHAPES: list[dict[str, Any]] = [
    {"T": 8, "B": 9, "H": 56, "bidirectional": True, "dtype": torch.float16},
    {"T": 8, "B": 3, "H": 200, "dtype": torch.float16},
    {"T": 8, "B": 3, "H": 120, "dtype": torch.float32},
    {"T": 8, "B": 3, "H": 56, "dtype": torch.float32},
    {"lengths": (6, 6, 5, 2, 1), "H": 131, "dtype": torch.float16},
    # The ring of a grid goes round, with the units of two CTAs.
    {"T": 36, "B": 3, "H": 40, "I": 2, "dtype": torch.float16},
    {"T": 1, "B": 9, "H": 56, "dtype": torch.float16},
]
SHAPES_OF_ONE_BUFFER: list[dict[str, Any]] = [{"T": 8, "B": 9, "H": 800, "dtype": torch.float16}]
SEEDS = range(12)
PROCESSORS = 16  # fewer threads in a grid: two groups of CTAs
PROCESSORS_OF_ONE_BUFFER = 32
SECONDS = 600  # a kernel that is stuck is an error of the emulator, long before
# The instances that they need: others would only take time to compile.
INSTANCES = (
    "{Exchange::kCta, false, 64, 1, 1}",
    "{Exchange::kCluster, false, 128, 4, 1}",
    "{Exchange::kCluster, false, 256, 8, 1}",
    "{Exchange::kGrid, false, 256, 16, 1}",
)


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


def sources(folder: Path) -> None:
    """The sources with few instances."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    header = folder / "csrc" / "cuda" / "instances.h"
    text = header.read_text(encoding="utf-8")
    assert all(instance in text for instance in INSTANCES), "INSTANCES are not those of instances.h"
    rows = re.search(r"(?<=kForwardInstances\[\] = \{).*?(?=\};)", text, re.DOTALL)
    assert rows is not None
    text = text[: rows.start()] + ", ".join(INSTANCES) + text[rows.end() :]
    header.write_text(text, encoding="utf-8")


def build_mutant(mutant: Mutant, objects: Path) -> Path:
    """The emulated library with the kernels of its source mutated."""
    folder = FOLDER / "mutant"
    sources(folder)
    header = folder / "csrc" / "cuda" / mutant.header
    lines = header.read_text(encoding="utf-8").splitlines()
    lines[mutant.line] = ";"
    header.write_text("\n".join(lines) + "\n", encoding="utf-8")
    compiled, library = folder / "mutated.o", folder / "rnnfast_simt.so"
    run = [str(COMPILER), *FLAGS.split(), f"-I{folder / 'csrc'}", f"-I{ROOT / 'tests'}", "-w"]
    source = folder / "csrc" / "cuda" / HEADERS[mutant.header]
    subprocess.run([*run, "-x", "c++", "-c", str(source), "-o", str(compiled)], check=True)
    others = [str(o) for o in objects.glob("*.o") if o.name != f"{source.name}.o"]
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    link = [str(COMPILER), "-shared", str(compiled), *others, "-o", str(library), *paths]
    subprocess.run([*link, "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", "-lpthread"], check=True)
    return library


def results(simt: Simt, problem: Problem) -> list[torch.Tensor]:
    """Values, reserve and gradients."""
    output, states_n, reserve = simt.layer(*problem.layer_arguments(True))
    cell, x, sizes, states, weights, both, _ = problem.layer_arguments(True)
    needs = [True] * (1 + len(states) + len(weights))
    grads = simt.layer_backward(cell, output, states_n, x, sizes, weights, both, reserve, needs)
    return [output, *states_n, *reserve, *grads]


def probe_rows() -> None:
    """The same of the kernels of whole rows, beside the reference; rows of more than one warp."""
    problem = recurrences.Problem("gru", H=70, batch_sizes=(3, 2), norm=True, dtype=torch.float32)
    for seed in SEEDS:
        simt = Simt("auto", seed)
        output, states_n, reserve = simt.recurrence(*problem.arguments(True))
        values = [output, *states_n]
        grads = problem.gradients(values, reserve, simt.recurrence_backward)
        problem.compare_with(values, grads, TOLERANCE[problem.dtype])


def probe(library: str, source: str) -> int:
    """Raises where a kernel of this source differs from `step`, or from itself under another
    schedule, is stuck, or breaks a rule.
    """
    torch.ops.load_library(library)
    torch.backends.cudnn.allow_tf32 = False
    processors = PROCESSORS_OF_ONE_BUFFER if source == ONE_BUFFER else PROCESSORS
    torch.ops.rnnfast_simt.set_processors(processors)
    if source == ROWS:
        probe_rows()
        return 0
    for shape in SHAPES_OF_ONE_BUFFER if source == ONE_BUFFER else SHAPES:
        problem = Problem("LSTM" if source == ONE_BUFFER else "GRU", **shape)
        wanted = results(Simt("step"), problem)
        for kernel in KERNELS[source]:
            of_seeds = [results(Simt(kernel, seed), problem) for seed in SEEDS]
            for given, right, *others in zip(of_seeds[0], wanted, *of_seeds[1:], strict=True):
                bound = 0.02 * float(right.abs().max() + 1)
                torch.testing.assert_close(given, right, rtol=0, atol=bound)
                assert all(torch.equal(other, given) for other in others)
    return 0


def main(text: str = "") -> int:
    """Run every mutant whose header or line holds `text` in a process of its own."""
    objects = FOLDER / "whole"
    sources(FOLDER / "sources")
    whole = build(objects, FOLDER / "sources" / "csrc")
    chosen = [m for m in mutants() if text in f"{m.header}: {m.text}"]
    for source in sorted({HEADERS[m.header] for m in chosen}):
        assert probe_process(whole, source) == 0, f"the kernels of {source} fail as they are"
    survivors = 0
    for mutant in chosen:
        code = probe_process(build_mutant(mutant, objects), HEADERS[mutant.header])
        survivors += not code
        verdict = "no verdict" if code is None else "caught    " if code else "SURVIVED  "
        print(f"{verdict} {mutant.header}:{mutant.line + 1}: {mutant.text}", flush=True)
    print(f"{survivors} survived")
    return survivors


def probe_process(library: Path, source: str) -> int | None:
    """The exit code of `probe`, or None if it was too slow for one."""
    command = [sys.executable, __file__, "--probe", str(library), source]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, timeout=SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(probe(*sys.argv[2:]) if sys.argv[1:2] == ["--probe"] else main(*sys.argv[1:]))
