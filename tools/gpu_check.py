"""Builds, tests, sanitizes and measures on a GPU, within ten minutes: `make gpu-check`.

    bash tools/gpu-check.sh                  everything, under --seconds 560
    bash tools/gpu-check.sh --only tests     some stages: build tests memcheck ... timing
    bash tools/gpu-check.sh --dry            a rehearsal on a machine without a GPU

Needs a Python with torch for CUDA, numpy and pytest, and nvcc; fetches nothing. Each stage has a
time limit, the most important come first, and none stops the others. Results go to $OUT, else to
benchmarks/results: GPU.json (times and primitives), GPU.txt (their tables), GPU.log (all output).
"""

from __future__ import annotations

import argparse
import contextlib
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
    work: Path

    @property
    def path(self) -> Path:
        """GPU.json; GPU.txt and GPU.log lie beside it."""
        slug = re.sub(r"\W+", "-", self.name.lower()).strip("-")
        return self.out / f"{slug}.json"


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


def pytest(*arguments: str) -> list[str]:
    """A pytest command for what is installed: conftest.py needs hypothesis, -n needs xdist."""
    options = ["-q", "-p", "no:cacheprovider", "--maxfail=40", "--tb=short"]
    options += ["-n", "4"] if installed("xdist") else []
    options += [] if installed("hypothesis") else ["--noconftest"]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def build(machine: Machine) -> Stage:
    if machine.dry:
        return Stage("build", [sys.executable, "-c", "import rnnfast"], 60)
    environment = {"RNNFAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": machine.arch}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return Stage("build", command, 260, environment, keep=r"error|warning: ")


def checks(machine: Machine) -> list[Stage]:
    """Tests of the plan's own choices, and the sanitizers: they run side by side."""
    counts = r"^(FAILED|ERROR) |\d+ (passed|failed|error)"
    if machine.dry:
        device = {"RNNFAST_TEST_DEVICE": "cpu"}
        tests = pytest("tests/test_cuda.py", "-k", "odd and GRU")
        program = [sys.executable, "-m", "tools.sanitized", "--device", "cpu"]
        stages = [Stage("tests", tests, 100, device, counts)]
        return [*stages, Stage("sanitized", program, 60, keep="largest error")]
    quick = {"RNNFAST_TEST_KERNELS": "auto"}
    stages = [Stage("tests", pytest("tests/test_cuda.py"), 120, quick, counts)]
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", "--tool", tool, "--kernel-name", "kns=rnnfast"]
        command += ["--print-limit", "10", "--error-exitcode", "9"]
        command += [sys.executable, "-m", "tools.sanitized"]
        exact = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        stages.append(Stage(tool, command, 120, exact, keep=r"SUMMARY|largest error"))
    return stages


def micro(machine: Machine) -> Stage:
    command = [sys.executable, "-m", "benchmarks.micro"]
    if machine.dry:
        return Stage("micro", [*command, "--build"], 60, keep="compiles|nvcc")
    command += ["--arch", machine.arch.replace(".", ""), "--json", str(machine.work / "micro.json")]
    keep = r"P=8 x\d+, 8 KB|bf16, \d+ warps|flags.* 8 KB|in a (stream|graph)|the rest"
    return Stage("micro", command, 90, keep=keep)


def timing(machine: Machine, seconds: float) -> Stage:
    command = [sys.executable, "-u", "-m", "benchmarks.cuda", "--output", str(machine.path)]
    if machine.dry:
        command += ["--device", "cpu", "--quick", "--cells", "gru"]
    else:
        command += [
            "--seconds",
            str(int(seconds - 20)),
            "--micro",
            str(machine.work / "micro.json"),
        ]
    return Stage("timing", command, seconds, keep=r"^\| |against torch.nn|[Ww]rong|Error")


def all_tests(seconds: float) -> Stage:
    chosen = ["tests", "-m", "cuda"] if installed("hypothesis") else ["tests/test_cuda.py"]
    counts = r"^(FAILED|ERROR) |\d+ (passed|failed|error)"
    return Stage("all tests", pytest(*chosen), seconds, keep=counts)


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
    only: Sequence[str]
    log: IO[str]
    work: Path
    outcomes: list[Outcome] = field(default_factory=list)

    def left(self) -> float:
        return self.seconds - SUMMARY_SECONDS - (time.monotonic() - STARTED)

    def run(self, *stages: Stage) -> None:
        """Runs these stages side by side."""
        chosen = [stage for stage in stages if not self.only or stage.name in self.only]
        begun = [Running(s, self.left(), self.work / f"{s.name}.txt") for s in chosen]
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
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE")
    parser.add_argument("--dry", action="store_true", help="without a GPU")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    name, arch = nvidia_smi("name"), nvidia_smi("compute_cap")
    if not name and not options.dry:
        print("nvidia-smi finds no GPU; --dry rehearses without one")
        return 1
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        machine = Machine("dry run" if options.dry else name, arch, options.dry, out, Path(work))
        with machine.path.with_suffix(".log").open("w") as log:
            runner = Runner(options.seconds, options.only, log, Path(work))
            print(describe(machine), flush=True)
            runner.run(build(machine))
            runner.run(*checks(machine))
            runner.run(micro(machine))
            runner.run(timing(machine, min(220, max(runner.left() - 60, 30))))
            if not options.dry:
                runner.run(all_tests(runner.left()))
            text = summary(runner.outcomes)
            log.write(text)
        tables = [o.output for o in runner.outcomes if o.stage.name in ("micro", "timing")]
        machine.path.with_suffix(".txt").write_text("\n".join(tables))
    print(text)
    return 0 if all(outcome.ok for outcome in runner.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
