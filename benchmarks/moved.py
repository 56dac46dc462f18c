"""Which rows of a run moved against the last committed run of the same machine.

    python -m benchmarks.moved benchmarks/results/MACHINE.json

`make bench` prints the same at its end. The same machine: processor, instruction set, threads,
precision, busy neighbours and minor version of torch. A row moved where the 20th to 80th
percentiles of its speed-ups, block beside block, lie apart in the two runs: the spread inside each
run is all the noise that is known, and what differs between runs of one commit is not in it.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results, table
from benchmarks.report import CELL_LABELS, milliseconds
from benchmarks.results import Measurement, Record

FOLDER = "benchmarks/results/"
HEADER = (
    *("T, B, I, H", "cell", "pass", "speed-up before (p20 p80)", "now (p20 p80)", "changed"),
    *("ours, ms", "torch.nn, ms"),
)


@dataclass(frozen=True)
class Moved:
    """One row of two runs."""

    before: Measurement
    now: Measurement

    @property
    def change(self) -> float:
        """The speed-up of now over that of before: below 1 it was lost."""
        return self.now.speed_up / self.before.speed_up

    def texts(self) -> list[str]:
        m = self.now
        sides = (
            f"{milliseconds(getattr(self.before, side).median)} → "
            f"{milliseconds(getattr(m, side).median)}"
            for side in ("candidate", "baseline")
        )
        name = ", ".join(filter(None, (m.pass_name, m.precision, "CUDA graph" * m.graph)))
        speed_ups = (_speed_up(self.before), _speed_up(m))
        change = f"{100 * (self.change - 1):+.0f} %"
        return [m.problem.label, CELL_LABELS[m.cell], name, *speed_ups, change, *sides]


def _speed_up(m: Measurement) -> str:
    return f"{m.speed_up:.2f} ({m.pairwise.p20:.2f} {m.pairwise.p80:.2f})"


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs can be compared; takes their environments."""
    return _machine(one) == _machine(other)


def _machine(facts: dict[str, Any]) -> tuple[Any, ...]:
    names = ("candidate", "cpu", "isa", "threads", "dtype", "gpu")
    minor = ".".join(facts["torch"].split(".")[:2])
    return (*(facts.get(name) for name in names), facts.get("busy", 0), minor)


def moved(before: Record, now: Record) -> list[Moved]:
    """The rows of both whose spreads lie apart, what was lost most first."""
    known = {_key(m): m for m in before.measurements}
    pairs = (Moved(known[_key(m)], m) for m in now.measurements if _key(m) in known)
    return sorted((pair for pair in pairs if _apart(pair)), key=lambda pair: pair.change)


def _key(m: Measurement) -> tuple[object, ...]:
    return m.problem.name, m.cell, m.pass_name, m.precision, m.graph


def _apart(pair: Moved) -> bool:
    before, now = pair.before.pairwise, pair.now.pairwise
    return now.p80 < before.p20 or before.p80 < now.p20


def committed(
    facts: dict[str, Any], repository: Path = results.REPOSITORY
) -> tuple[str, Record] | None:
    """The result in the last commit that changed one of this machine, and its name, or None."""
    found = [
        (name, record)
        for name, record in _results(repository)
        if same_machine(facts, record.environment)
    ]
    if not found:
        return None
    return max(
        found, key=lambda entry: int(_git(repository, "log", "-1", "--format=%ct", "--", entry[0]))
    )


def _results(repository: Path) -> Iterator[tuple[str, Record]]:
    """Those of HEAD, as the files may have been written over since."""
    for name in _git(repository, "ls-tree", "--name-only", "HEAD", FOLDER).split("\n"):
        if name.endswith(".json"):
            yield name, results.parse(_git(repository, "show", f"HEAD:{name}"), name)


def _git(repository: Path, *arguments: str) -> str:
    """What git prints; nothing where there is no git, or no repository."""
    try:
        command = ("git", "-C", str(repository), *arguments)
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return ""


def show(now: Record, repository: Path = results.REPOSITORY) -> None:
    """Prints what moved, or that nothing is known of this machine."""
    found = committed(now.environment, repository)
    if not found:
        print("no result of this machine and this torch is committed: nothing to compare with")
        return
    name, before = found
    commit = before.environment["commit"]
    rows = moved(before, now)
    shared = len({_key(m) for m in before.measurements} & {_key(m) for m in now.measurements})
    title = f"{len(rows)} of {shared} rows moved against {name}, commit {commit}"
    if rows:
        table.show(title, HEADER, [row.texts() for row in rows])
    else:
        print(title)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moved", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("result", type=Path, help="a JSON file of python -m benchmarks")
    show(results.read(parser.parse_args(arguments).result))


if __name__ == "__main__":
    main()
