"""What a run leaves behind: the measurements, the machine they were taken on, as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.problems import Problem
from benchmarks.timing import Pair, Summary, geometric_mean, summarise
from benchmarks.workloads import Errors

FORMAT = 1
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Measurement:
    """One problem, cell and pass: the samples of both sides and their errors against float64, None
    where only times are known.

    ran: what computed the candidate, in the words of `rnnfast.explain`. precision, threads: of this
    one measurement, where the record holds several. graph: replayed as a CUDA graph.
    """

    problem: Problem
    cell: str
    pass_name: str
    pair: Pair
    errors: Errors | None
    ran: str
    precision: str = ""
    graph: bool = False
    threads: int = 0

    @property
    def baseline(self) -> Summary:
        return summarise(self.pair.baseline)

    @property
    def candidate(self) -> Summary:
        return summarise(self.pair.candidate)

    @property
    def speed_up(self) -> float:
        """The ratio of the medians: the figure that is published."""
        return self.baseline.median / self.candidate.median

    @property
    def pairwise(self) -> Summary:
        """The ratios of blocks taken side by side: the same figure, hardened against drift."""
        return summarise(self.pair.ratios)


@dataclass(frozen=True)
class Record:
    """One run. environment: what it ran on, as `environment()` gives it. micro: what a GPU's
    primitives cost, as benchmarks/micro prints them. memory: what benchmarks/memory.py measured.
    """

    environment: dict[str, Any]
    measurements: tuple[Measurement, ...]
    micro: tuple[dict[str, Any], ...] = ()
    memory: tuple[dict[str, Any], ...] = ()

    def parts(self) -> list[Record]:
        """One record for each precision, eager and as a CUDA graph, and number of threads: what one
        table shows.
        """
        groups: dict[tuple[str, bool, int], list[Measurement]] = {}
        for m in self.measurements:
            groups.setdefault((m.precision, m.graph, m.threads), []).append(m)
        records = []
        for (precision, graph, threads), measurements in sorted(groups.items()):
            dtype = precision or self.environment["dtype"]
            facts = {**self.environment, "dtype": f"{dtype}, CUDA graph" if graph else dtype}
            facts |= {"threads": threads} if threads else {}
            records.append(Record(facts, tuple(measurements)))
        return records

    def ratios(self) -> dict[tuple[str, str], list[float]]:
        """(cell, pass) -> the speed-ups of all problems of the record."""
        groups: dict[tuple[str, str], list[float]] = {}
        for measurement in self.measurements:
            key = (measurement.cell, measurement.pass_name)
            groups.setdefault(key, []).append(measurement.speed_up)
        return groups

    def geometric_means(self) -> dict[tuple[str, str], float]:
        """(cell, pass) -> geometric mean of the speed-ups over all problems of the record."""
        return {key: geometric_mean(ratios) for key, ratios in self.ratios().items()}


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    facts: dict[str, str] = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text, re.MULTILINE))
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:  # a virtual machine may hide the name, not the generation
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)


def git_commit() -> str:
    """The commit the benchmark ran from, with a plus sign where tracked files were changed. In a
    folder that `make gpu-pack` made, the one that it was made of.
    """
    carried = REPOSITORY / "commit"
    if carried.exists():
        return carried.read_text().strip()
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+" if changed.strip() else "")


def environment(dtype: torch.dtype, candidate: str, busy: int = 0) -> dict[str, Any]:
    """The facts without which a number means nothing, as they are at this call.

    candidate: what runs beside torch.nn. `load` is the mean number of busy processes during the
    last minute: before a run it should be near zero. busy: so many are started beside it.
    """
    return {
        "candidate": candidate,
        "cpu": cpu_model(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "tf32": "not applicable: CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": git_commit(),
        "load": round(os.getloadavg()[0], 2),
        "busy": busy,
    }


def gpu_environment(candidate: str) -> dict[str, Any]:
    """As `environment`, for the current GPU. Precisions differ from measurement to measurement."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        **environment(torch.float32, candidate),
        "dtype": "several",
        "tf32": "in measurements of precision tf32 alone",
        "gpu": gpu.name,
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "shared_bytes": gpu.shared_memory_per_block_optin,
        "driver": nvidia_smi("driver_version"),
        "clocks": nvidia_smi("clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def nvidia_smi(query: str) -> str:
    """What the driver's tool says of the first GPU, or "unknown"."""
    command = ("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    try:
        text: str = subprocess.check_output(command, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return text.splitlines()[0].strip()


def default_name(facts: dict[str, Any], quick: bool) -> str:
    """The file name of a run on this machine: processor, threads, and what is not the default."""
    processor = re.sub(r"\W+", "-", facts.get("gpu", facts["cpu"]).lower()).strip("-")
    name = processor if "gpu" in facts else f"{processor}-{facts['threads']}-threads"
    name += f"-{facts['dtype']}" if facts["dtype"] not in ("float32", "several") else ""
    name += f"-busy-{facts['busy']}" if facts.get("busy") else ""
    name += "-noise" if facts["candidate"] != "rnnfast" else ""
    return f"{name}{'-quick' if quick else ''}.json"


def write(record: Record, path: Path) -> None:
    """Writes the record as JSON, one measurement a line. Seconds keep five digits."""
    means = {" ".join(key): mean for part in record.parts() for key, mean in _means(part)}
    lines = ",\n".join(json.dumps(_to_json(measurement)) for measurement in record.measurements)
    path.parent.mkdir(parents=True, exist_ok=True)
    micro, memory = (
        ",\n".join(json.dumps(row) for row in rows) for rows in (record.micro, record.memory)
    )
    path.write_text(
        f'{{"format": {FORMAT},\n"environment": {json.dumps(record.environment, indent=1)},\n'
        f'"geometric_means": {json.dumps(means, indent=1)},\n"measurements": [\n{lines}\n],\n'
        f'"micro": [\n{micro}\n],\n"memory": [\n{memory}\n]}}\n'
    )


def read(path: Path) -> Record:
    """Reads what `write` wrote. Raises ValueError for another format."""
    return parse(path.read_text(), str(path))


def parse(text: str, name: str) -> Record:
    """The same of a text. name: what an error calls it."""
    data = json.loads(text)
    if data.get("format") != FORMAT:
        raise ValueError(f"{name}: wanted format {FORMAT}, got {data.get('format')}")
    measurements = tuple(_from_json(entries) for entries in data["measurements"])
    rows = (tuple(data.get(name, ())) for name in ("micro", "memory"))
    return Record(data["environment"], measurements, *rows)


def _means(part: Record) -> Iterator[tuple[tuple[str, ...], float]]:
    """The geometric means of one precision and number of threads, by cell, pass and what of these
    two is each measurement's own.
    """
    facts, own = part.environment, []
    if any(m.precision for m in part.measurements):
        own.append(facts["dtype"])
    if any(m.threads for m in part.measurements):
        own.append(f"{facts['threads']} threads")
    for key, mean in part.geometric_means().items():
        yield (*key, *own), mean


def _to_json(measurement: Measurement) -> dict[str, Any]:
    problem = measurement.problem
    return {
        "problem": {"name": problem.name, **dataclasses.asdict(problem)},
        "cell": measurement.cell,
        "pass": measurement.pass_name,
        "speed_up": _rounded(measurement.speed_up),
        "pairwise": {k: _rounded(v) for k, v in dataclasses.asdict(measurement.pairwise).items()},
        "seconds": {
            side: {
                **{k: _rounded(v) for k, v in dataclasses.asdict(summarise(samples)).items()},
                "samples": _all_rounded(samples),
            }
            for side, samples in dataclasses.asdict(measurement.pair).items()
        },
        "ran": measurement.ran,
        "precision": measurement.precision,
        "graph": measurement.graph,
        "threads": measurement.threads,
        "errors": measurement.errors
        and {k: _rounded(v) for k, v in dataclasses.asdict(measurement.errors).items()},
    }


def _from_json(entry: dict[str, Any]) -> Measurement:
    fields = {key: value for key, value in entry["problem"].items() if key != "name"}
    problem = Problem(**{**fields, "lengths": tuple(fields["lengths"])})
    seconds = {side: tuple(entry["seconds"][side]["samples"]) for side in ("baseline", "candidate")}
    return Measurement(
        problem,
        entry["cell"],
        entry["pass"],
        Pair(**seconds),
        Errors(**entry["errors"]) if entry["errors"] else None,
        entry["ran"],
        entry.get("precision", ""),
        entry.get("graph", False),
        entry.get("threads", 0),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _all_rounded(samples: Iterable[float]) -> list[float]:
    return [_rounded(sample) for sample in samples]
