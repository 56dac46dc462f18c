"""Tests, measures and sanitizes on a GPU, within minutes: `make gpu-check`.

    bash tools/gpu-check.sh                      all parts, the most important first
    bash tools/gpu-check.sh correct compare      some of them: correct compare tune users ...
    bash tools/gpu-check.sh --dry                a rehearsal on a machine without a GPU

correct    tests/gpu on the kernels that the plan chooses, or on RNNFAST_TEST_KERNELS
compare    the layers of benchmarks.cuda --grid beside cuDNN: GPU.json
tune       every kernel that could run a layer, one after the other: GPU-tune.json
users      layers of models in use beside cuDNN: GPU-users.json
steps      single steps that carry the state, chained in a graph, beside cuDNN: GPU-steps.json
micro      what the GPU's primitives cost: GPU-micro.json
sanitize   compute-sanitizer on every kernel; memcheck alone is a part, too

Needs a Python with torch for CUDA, numpy and pytest; and nvcc, unless `make gpu-pack` has built for
this machine. Fetches nothing. Each stage has a time limit, and none stops the others. Results go to
$OUT, else to benchmarks/results; GPU.txt and GPU.log hold tables and all output.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
STARTED = time.monotonic()
SUMMARY_SECONDS = 10
LINES, TAIL = 60, 14
"""Of one stage in the summary: what it is asked for; the end of what did not end well."""


@dataclass(frozen=True)
class Stage:
    """One command. seconds: its limit. keep: the lines of its output that the summary shows."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    keep: str = "$^"


@dataclass(frozen=True)
class Outcome:
    stage: Stage
    status: str
    seconds: float
    output: str

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def __str__(self) -> str:
        return f"{self.stage.name}: {self.status}, {self.seconds:.0f} s"


@dataclass(frozen=True)
class Machine:
    """What the stages are made for. arch: of the GPU, as 9.0."""

    name: str
    arch: str
    dry: bool
    out: Path

    def file(self, what: str = "", suffix: str = ".json") -> Path:
        """GPU.json, GPU-what.json."""
        slug = re.sub(r"\W+", "-", self.name.lower()).strip("-")
        return self.out / f"{slug}{'-' if what else ''}{what}{suffix}"


def nvidia_smi(query: str) -> str:
    """What the driver's tool says of the first GPU; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0].strip()


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# ---- the stages ----

TIMES = r"as fast as cuDNN|^\| (inference|training),|against torch.nn|[Ww]rong|Error"
COUNTS = r"^(FAILED|ERROR) |\d+ (passed|failed|error)"


def pytest(*arguments: str) -> list[str]:
    """A pytest command for what is installed: conftest.py needs hypothesis, -n needs xdist, beside
    which pytest-benchmark has nothing to do.
    """
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "--maxfail=60", "--tb=short"]
    options += ["-n", str(max(2, (os.cpu_count() or 1) - 2))] if installed("xdist") else []
    options += [] if installed("hypothesis") else ["--noconftest"]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def loads() -> Stage:
    code = "from rnnfast import installation; print(installation.describe())"
    return Stage("load", [sys.executable, "-c", code], 60, keep="CUDA kernels")


def build(machine: Machine) -> Stage:
    """`_C` alone, where the rest was made for this torch."""
    environment = {"RNNFAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": machine.arch}
    if built_for_this_torch(ROOT / "rnnfast"):
        environment = {"RNNFAST_CUDA": "0", "RNNFAST_CPU": ""}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return Stage("build", command, 260, environment, keep=r"error|warning: ")


def built_for_this_torch(folder: Path) -> bool:
    """Whether the kernels that lie there are."""
    if not (folder / "_cuda.so").exists():
        return False
    minor = ".".join(importlib.metadata.version("torch").split(".")[:2])
    return f'"{minor}.' in (folder / "_build.py").read_text()


def correct(machine: Machine) -> list[Stage]:
    environment = {"OMP_NUM_THREADS": "1"}  # of the oracle on the CPU, in every worker
    if machine.dry:
        environment |= {"RNNFAST_TEST_DEVICE": "cpu"}
        tests = pytest("tests/gpu", "-k", "odd and GRU or converted")
        return [Stage("correct", tests, 100, environment, COUNTS)]
    environment |= {"RNNFAST_TEST_KERNELS": os.environ.get("RNNFAST_TEST_KERNELS", "auto")}
    return [Stage("correct", pytest("tests/gpu"), 110, environment, COUNTS)]


def compare(machine: Machine) -> list[Stage]:
    command = [sys.executable, "-u", "-m", "benchmarks.cuda", "--output", str(machine.file())]
    if machine.dry:
        command += ["--device", "cpu", "--quick", "--cells", "gru"]
    else:
        command += ["--grid", "--seconds", "65"]
    return [Stage("compare", command, 85, keep=TIMES)]


def users(machine: Machine) -> list[Stage]:
    command = [sys.executable, "-u", "-m", "benchmarks.cuda", "--users", "--seconds", "70"]
    if machine.dry:
        return []
    command += ["--output", str(machine.file("users"))]
    return [Stage("users", command, 90, keep=TIMES)]


def steps(machine: Machine) -> list[Stage]:
    command = [sys.executable, "-u", "-m", "benchmarks.steps", "--device", "cuda"]
    if machine.dry:
        return []
    command += ["--output", str(machine.file("steps"))]
    return [Stage("steps", command, 60, keep=r"^\| |all: |Error")]


def tune(machine: Machine) -> list[Stage]:
    command = [sys.executable, "-u", "-m", "benchmarks.tune", "--output", str(machine.file("tune"))]
    if machine.dry:
        command += ["--dry"]
    return [Stage("tune", command, 55, keep=r"^[a-z_]+ .*: |WRONG|[Ee]rror")]


def micro(machine: Machine) -> list[Stage]:
    command = [sys.executable, "-m", "benchmarks.micro"]
    if machine.dry:
        return [Stage("micro", [*command, "--build"], 60, keep="compiles|nvcc")]
    command += ["--arch", machine.arch.replace(".", ""), "--json", str(machine.file("micro"))]
    keep = r"P=8 x\d+, 8 KB|bf16, \d+ warps|flags.* 8 KB|in a (stream|graph)|the rest"
    return [Stage("micro", command, 90, keep=keep)]


def sanitize(machine: Machine, *tools: str) -> list[Stage]:
    """They run side by side."""
    program = [sys.executable, "-m", "tools.sanitized"]
    if machine.dry:
        return [Stage("sanitize", [*program, "--device", "cpu"], 60, keep="largest error")]
    exact = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    stages = []
    for tool in tools or ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=rnnfast"]
        command += ["--print-limit", "10", "--error-exitcode", "9", *program]
        stages.append(Stage(tool, command, 120, exact, keep=r"SUMMARY|largest error"))
    return stages


def memcheck(machine: Machine) -> list[Stage]:
    return sanitize(machine, "memcheck")


PARTS = {
    "correct": correct,
    "compare": compare,
    "tune": tune,
    "users": users,
    "steps": steps,
    "micro": micro,
    "sanitize": sanitize,
    "memcheck": memcheck,
}
DEFAULT = ("correct", "compare", "tune", "users", "steps", "micro", "sanitize")


# ---- running them ----


class Running:
    """A stage under way, or the reason why it is not. Its output lies in a file."""

    def __init__(self, stage: Stage, seconds: float, output: Path) -> None:
        self.stage, self.output = stage, output
        self.begun, self.seconds = time.monotonic(), min(stage.seconds, seconds)
        self.process: subprocess.Popen[bytes] | None = None
        self.reason = "left out, no time" if seconds < 5 else ""
        if not self.reason:
            self._start()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.stage.environment}
        with self.output.open("w") as output:
            try:
                self.process = subprocess.Popen(
                    self.stage.command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self.reason = f"left out, {error}"

    def wait(self) -> Outcome:
        """Ends the stage with all its children where it takes too long."""
        if self.process is None:
            return Outcome(self.stage, self.reason, 0, "")
        try:
            left = self.begun + self.seconds - time.monotonic()
            code = self.process.wait(timeout=max(left, 0.1))
            status = "ok" if code == 0 else f"FAILED with exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"STOPPED after {self.seconds:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        text = self.output.read_text(errors="replace")
        return Outcome(self.stage, status, time.monotonic() - self.begun, text)


@dataclass
class Runner:
    """Runs stages within the seconds there are, and keeps what they said."""

    seconds: float
    log: IO[str]
    work: Path
    outcomes: list[Outcome] = field(default_factory=list)

    def left(self) -> float:
        return self.seconds - SUMMARY_SECONDS - (time.monotonic() - STARTED)

    def run(self, *stages: Stage) -> None:
        """Runs these stages side by side."""
        begun = [Running(s, self.left(), self.work / f"{s.name}.txt") for s in stages]
        for running in begun:
            outcome = running.wait()
            print(f"[{time.monotonic() - STARTED:3.0f} s] {outcome}", flush=True)
            self.log.write(f"\n======== {outcome}\n{outcome.output}\n")
            self.log.flush()
            self.outcomes.append(outcome)


def summary(outcomes: Sequence[Outcome]) -> str:
    """What each stage has to say, the times last: the end of a long output is what is read."""
    lines = []
    for outcome in outcomes:
        found = [x for x in outcome.output.splitlines() if re.search(outcome.stage.keep, x)]
        if not outcome.ok:
            found = found[:TAIL] or outcome.output.splitlines()[-TAIL:]
        if found:
            lines += [f"---- {outcome}", *(line[:200] for line in found[:LINES])]
    return "\n".join([*lines, "", *map(str, outcomes)])


def describe(machine: Machine) -> str:
    modules = ("torch", "numpy", "pytest", "hypothesis", "xdist", "rich", "ninja")
    missing = [name for name in modules if not installed(name)]
    facts = nvidia_smi("driver_version,memory.total,clocks.max.sm,temperature.gpu,power.draw")
    return f"{machine.name} {facts}; Python modules missing: {', '.join(missing) or 'none'}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/gpu-check.sh", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=560, help="default: %(default)s")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--dry", action="store_true", help="without a GPU")
    options = parser.parse_args(arguments)
    options.parts = options.parts or DEFAULT
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    name, arch = nvidia_smi("name"), nvidia_smi("compute_cap")
    if not name and not options.dry:
        print("nvidia-smi finds no GPU; --dry rehearses without one")
        return 1
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    machine = Machine("dry run" if options.dry else name, arch, options.dry, out)
    with tempfile.TemporaryDirectory() as work, machine.file(suffix=".log").open("w") as log:
        runner = Runner(options.seconds, log, Path(work))
        print(describe(machine), flush=True)
        runner.run(loads())  # what `make gpu-pack` made, or an installation
        if not runner.outcomes[-1].ok and not options.dry:
            runner.outcomes.clear()
            runner.run(build(machine))
        for part in options.parts:
            runner.run(*PARTS[part](machine))
        text = summary(runner.outcomes)
        log.write(text)
    measured = ("compare", "tune", "users", "steps", "micro")
    tables = [o.output for o in runner.outcomes if o.stage.name in measured]
    machine.file(suffix=".txt").write_text("\n".join(tables))
    print(text)
    return 0 if all(outcome.ok for outcome in runner.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
