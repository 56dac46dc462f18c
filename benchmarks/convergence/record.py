"""What a run of the study leaves behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.convergence.tasks import Task
from benchmarks.results import REPOSITORY

FORMAT = "convergence 1"
FOLDER = REPOSITORY / "benchmarks" / "results" / "convergence"


@dataclass(frozen=True)
class Record:
    """environment: what it ran on. tasks: by name, what `described` says. rows: of all runs, as
    `training.row` makes them.
    """

    environment: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]


def described(task: Task) -> dict[str, Any]:
    """What a report needs to know of a task; the data behind it may be missing there."""
    return {
        "title": task.title,
        "steps": task.steps,
        "score": task.score.name,
        "digits": task.score.digits,
    }


def write(record: Record, path: Path) -> None:
    """As JSON, a run on a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(map(json.dumps, record.rows))
    path.write_text(
        f'{{"format": "{FORMAT}",\n"environment": {json.dumps(record.environment, indent=1)},\n'
        f'"tasks": {json.dumps(record.tasks, indent=1)},\n"rows": [\n{rows}\n]}}\n'
    )


def read(path: Path) -> Record:
    """Reads what `write` wrote. Raises ValueError for another format."""
    data = json.loads(path.read_text())
    if data.pop("format") != FORMAT:
        raise ValueError(f"{path}: wanted format {FORMAT}")
    return Record(**data)
