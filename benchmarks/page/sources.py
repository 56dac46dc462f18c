"""What lies in a folder of results: every JSON file, as what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report, results
from benchmarks.peers import record as peers

RESULTS = results.REPOSITORY / "benchmarks" / "results"


@dataclass(frozen=True)
class Run:
    """One file. name: its path inside the folder. facts: where it ran. Of `layers`, `peers` and
    `rows` (of `benchmarks.compile_times` and `benchmarks.tune`) one is there.
    """

    name: str
    facts: dict[str, Any]
    layers: results.Record | None = None
    peers: peers.Record | None = None
    rows: tuple[dict[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        """The folder it lies in, empty for that of `make bench`."""
        return self.name.rpartition("/")[0]

    @property
    def on_gpu(self) -> bool:
        return "gpu" in self.facts

    @property
    def machine(self) -> str:
        return report.machine(results.Record(self.facts, ()))

    @property
    def baseline(self) -> str:
        """Who computes torch.nn's side."""
        return "torch.nn, cuDNN" if self.on_gpu else "torch.nn"

    def parts(self) -> list[results.Record]:
        """One record for each precision, eager and as a CUDA graph."""
        return self.layers.parts() if self.layers else []


def load(folder: Path = RESULTS) -> list[Run]:
    """Every result below a folder: CPUs first, in the order of their names.

    Raises ValueError for a file in a format that is not known.
    """
    runs = [_load(path, folder) for path in sorted(folder.rglob("*.json"))]
    return sorted(runs, key=lambda run: (run.on_gpu, run.kind, len(run.name)))


def _load(path: Path, folder: Path) -> Run:
    name = path.relative_to(folder).as_posix()
    data = json.loads(path.read_text())
    if data.get("format") == peers.FORMAT:
        return Run(name, data["environment"], peers=peers.read(path))
    if "rows" in data:
        return Run(name, data["environment"], rows=tuple(data["rows"]))
    return Run(name, data["environment"], layers=results.read(path))


SIZES: dict[str, Callable[[results.Measurement], int]] = {
    "T": lambda m: m.problem.T,
    "B": lambda m: m.problem.B,
    "H": lambda m: m.problem.H,
    "threads": lambda m: m.threads,
}


def varied(
    measurements: Sequence[results.Measurement],
) -> Iterator[tuple[str, list[results.Measurement]]]:
    """For each size, the largest group that differs in nothing else, if it has several values."""
    for axis, size in SIZES.items():
        groups: dict[tuple[int, ...], list[results.Measurement]] = {}
        for m in measurements:
            rest = tuple(other(m) for name, other in SIZES.items() if name != axis)
            groups.setdefault(rest, []).append(m)
        largest = max(groups.values(), key=lambda group: len(set(map(size, group))), default=[])
        if len(set(map(size, largest))) > 1:
            yield axis, sorted(largest, key=size)


def of(runs: list[Run], *kinds: str) -> Iterator[Run]:
    return (run for run in runs if run.kind in kinds)
