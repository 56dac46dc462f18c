"""What `python -m benchmarks.peers` leaves behind: JSON in the manner of `benchmarks.results`."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.bound import Bound
from benchmarks.problems import Problem
from benchmarks.timing import geometric_mean, summarise

FORMAT = "peers 1"
OURS, FROZEN, BASELINE = "rnnfast", "rnnfast, frozen", "torch.nn"


@dataclass(frozen=True)
class Entry:
    """One problem, cell and pass.

    samples: implementation -> seconds per call, one a block; those of one index were taken in the
    same round. errors: implementation -> the largest error against float64. left_out:
    implementation -> why it was not timed. bound: what this machine allows.
    """

    problem: Problem
    cell: str
    pass_name: str
    samples: dict[str, tuple[float, ...]]
    errors: dict[str, float]
    left_out: dict[str, str]
    bound: Bound

    def seconds(self, name: str) -> float:
        """The median; NaN where the implementation was left out."""
        return statistics.median(self.samples[name]) if name in self.samples else float("nan")

    @property
    def best_peer(self) -> str:
        """The fastest of all but rnnfast."""
        return min((name for name in self.samples if name not in (OURS, FROZEN)), key=self.seconds)

    @property
    def lead(self) -> float:
        """Time of the best peer over rnnfast's: above 1, nothing is faster than rnnfast."""
        return self.seconds(self.best_peer) / self.seconds(OURS)

    def speed_up(self, name: str) -> float:
        """Over torch.nn."""
        return self.seconds(BASELINE) / self.seconds(name)


@dataclass(frozen=True)
class Record:
    """One run. environment: as `results.environment` gives it, with the versions of all peers and
    the machine's figures (`machine`) that the bounds are made of.
    """

    environment: dict[str, Any]
    entries: tuple[Entry, ...] = field(default=())

    def names(self) -> list[str]:
        """All implementations that were timed or left out, in the order of the run."""
        return list(dict.fromkeys(name for e in self.entries for name in (*e.samples, *e.left_out)))

    def of(self, pass_name: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.pass_name == pass_name]


def mean_lead(entries: list[Entry]) -> float:
    """Geometric mean; NaN of none."""
    return geometric_mean([entry.lead for entry in entries]) if entries else float("nan")


def write(record: Record, path: Path) -> None:
    """One entry a line. Seconds keep five digits."""
    lines = ",\n".join(json.dumps(_to_json(entry)) for entry in record.entries)
    facts = json.dumps(record.environment, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'{{"format": {json.dumps(FORMAT)},\n"environment": {facts},\n'
        f'"measurements": [\n{lines}\n]}}\n'
    )


def read(path: Path) -> Record:
    """Reads what `write` wrote. Raises ValueError for another format."""
    data = json.loads(path.read_text())
    if data.get("format") != FORMAT:
        raise ValueError(f"{path}: wanted format {FORMAT!r}, got {data.get('format')!r}")
    return Record(data["environment"], tuple(map(_from_json, data["measurements"])))


def _to_json(entry: Entry) -> dict[str, Any]:
    return {
        "problem": {"name": entry.problem.name, **dataclasses.asdict(entry.problem)},
        "cell": entry.cell,
        "pass": entry.pass_name,
        "best_peer": entry.best_peer,
        "lead": _rounded(entry.lead),
        "seconds": {
            name: {
                **{k: _rounded(v) for k, v in dataclasses.asdict(summarise(samples)).items()},
                "samples": [_rounded(sample) for sample in samples],
            }
            for name, samples in entry.samples.items()
        },
        "errors": {name: _rounded(error) for name, error in entry.errors.items()},
        "left_out": entry.left_out,
        "bound": {k: _rounded(v) for k, v in dataclasses.asdict(entry.bound).items()},
    }


def _from_json(data: dict[str, Any]) -> Entry:
    fields = {key: value for key, value in data["problem"].items() if key != "name"}
    return Entry(
        Problem(**{**fields, "lengths": tuple(fields["lengths"])}),
        data["cell"],
        data["pass"],
        {name: tuple(found["samples"]) for name, found in data["seconds"].items()},
        data["errors"],
        data["left_out"],
        Bound(**data["bound"]),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
