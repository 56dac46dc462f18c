"""What benchmarks.tune measured: a table of every variant, and whether the plan agrees with it.

python -m benchmarks.tuned benchmarks/results/tune/GPU.json            predicted and measured
python -m benchmarks.tuned benchmarks/results/tune/GPU.json --choices  what the plan gets wrong
python -m benchmarks.tuned benchmarks/results/tune/GPU.json --header   csrc/cuda/measured.inc
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import REPOSITORY
from rnnfast import _C

FOLDER = REPOSITORY / "benchmarks" / "results" / "tune"
ALLOWED = 1.1
"""How much longer than the best kernel the plan's choice may take."""

Row = dict[str, Any]
TF32 = {"float32", "tf32"}


def load(path: Path) -> dict[str, Any]:
    """What benchmarks.tune wrote. Raises ValueError for another format."""
    data: dict[str, Any] = json.loads(path.read_text())
    if data.get("format") != 1:
        raise ValueError(f"{path}: wanted format 1, got {data.get('format')}")
    return data


def key(plan: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """An entry of a plan, without what it is expected to take."""
    return tuple(sorted((k, v) for k, v in plan.items() if k != "microseconds"))


def measured(data: dict[str, Any]) -> dict[tuple[str, str], list[Row]]:
    """By layer and direction, `forward` or `backward`, a row for each kernel that ran as asked for
    and gave right values; the best first.

    The plan makes one choice for inference and training: a row has the mean of both.
    """
    found: dict[tuple[str, str], dict[Any, list[Row]]] = {}
    for row in data["rows"]:
        if row.get("right") and not row.get("refused", True):
            way = "backward" if row["pass"] == "backward" else "forward"
            found.setdefault((row["layer"], way), {}).setdefault(key(row["plan"]), []).append(row)
    return {
        name: sorted((_mean(rows) for rows in kernels.values()), key=lambda row: row["step_us"])
        for name, kernels in found.items()
    }


def _mean(rows: list[Row]) -> Row:
    times = ("step_us", "call_us")
    return rows[0] | {time: sum(row[time] for row in rows) / len(rows) for time in times}


def choices(row: Row, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What the plan of this build names for the row's layer, on the GPU of these facts."""
    major, minor = map(int, facts["compute_capability"].split("."))
    plans = _C.cuda_plan(
        row["cell"],
        "float32" if row["precision"] in (*TF32, "float32 exact") else row["precision"],
        row["T"],
        row["B"],
        row["H"],
        directions=1,
        backward=row["pass"] == "backward",
        tf32=row["precision"] in TF32,
        arch=10 * major + minor,
        processors=facts["multiprocessors"],
        shared_bytes=facts["shared_bytes"],
        max_cluster=16 if major >= 9 else 1,
    )
    return [dict(plan) for plan in plans]


def dearer_choices(data: dict[str, Any], allowed: float = ALLOWED) -> Iterator[str]:
    """A line for every layer and direction whose first choice took, in a step of its kernel,
    `allowed` times as long as the best, or was not measured.
    """
    refused = {
        (row["layer"], row["pass"] == "backward", key(row["plan"]))
        for row in data["rows"]
        if row.get("refused")
    }
    for (layer, name), rows in measured(data).items():
        tried = [key(p) for p in choices(rows[0], data["environment"])]
        first = next(p for p in tried if (layer, name == "backward", p) not in refused)
        best, taken = rows[0], next((row for row in rows if key(row["plan"]) == first), None)
        if taken is None:
            yield f"{layer} {name}: {dict(first)} was not measured, the best is {best['entry']}"
        elif taken["step_us"] > allowed * best["step_us"]:
            times = f"{taken['step_us']:.2f} us a step against {best['step_us']:.2f}"
            yield f"{layer} {name}: {taken['entry']} instead of {best['entry']}, {times}"


def table(data: dict[str, Any]) -> str:
    """Markdown: every variant, microseconds a step as cost.h expects them and as they were."""
    lines = ["| layer | direction | entry | instance | expected | measured | the call |"]
    lines.append("|---|---|---|---|---:|---:|---:|")
    for (layer, name), rows in measured(data).items():
        for row in rows:
            facts = {k: v for k, v in key(row["plan"]) if k != "kernel"}
            instance = ", ".join(f"{k} {v}" for k, v in facts.items())
            times = f"{row['plan']['microseconds']:.2f} | {row['step_us']:.2f}"
            call = row["call_us"] / row["T"]
            lines.append(
                f"| {layer} | {name} | {row['entry']} | {instance} | {times} | {call:.2f} |"
            )
    return "\n".join(lines)


MEASURED_ROWS = (1, 32, 128, 512, 1024)
"""kMeasuredRows of csrc/cuda/calibration.h."""
PRECISIONS = {"bfloat16": "kBf16", "float32": "kTf32", "float32 exact": "kFloat"}


def header(data: dict[str, Any]) -> str:
    """The lines of csrc/cuda/measured.inc: the microseconds a step of every instance, at the
    largest H that it ran.
    """
    gates = {facts["name"]: facts["gates"] for facts in _C.cells()}
    found: dict[tuple[Any, ...], dict[int, dict[int, list[float]]]] = {}
    for rows in measured(data).values():
        for row in rows:
            if row["T"] == 1 or row["B"] not in MEASURED_ROWS or row["precision"] not in PRECISIONS:
                continue
            plan = row["plan"]
            hidden = plan.get("hidden", row["H"])  # `step` has none
            instance = (plan["kernel"], hidden, plan.get("peers", 1), plan.get("part", 0))
            kind = (gates[row["cell"]], row["precision"], row["pass"] == "backward")
            by_hidden = found.setdefault((*instance, *kind), {}).setdefault(row["H"], {})
            by_hidden.setdefault(row["B"], []).append(row["step_us"])
    lines = ["// Written by python -m benchmarks.tuned --header, see calibration.h."]
    for (kernel, hidden, peers, part, count, precision, backward), sizes in sorted(found.items()):
        times = [sizes[max(sizes)].get(B, [0.0]) for B in MEASURED_ROWS]
        numbers = ", ".join(f"{sum(t) / len(t):.3f}f" for t in times)
        lines.append(
            f"{{Kernel::k{kernel.title()}, {hidden}, {peers}, {part}, {count},"
            f" Precision::{PRECISIONS[precision]}, {str(backward).lower()}, {{{numbers}}}}},"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuned", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", type=Path)
    parser.add_argument("--choices", action="store_true")
    parser.add_argument("--header", action="store_true")
    options = parser.parse_args(arguments)
    data = load(options.results)
    if options.header:
        print(header(data), end="")
        return 0
    if not options.choices:
        print(table(data))
        return 0
    wrong = list(dearer_choices(data))
    print("\n".join([*wrong, f"{len(wrong)} of {len(measured(data))} choices are dearer"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
