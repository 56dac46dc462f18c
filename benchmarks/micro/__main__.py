"""Builds micro.cu, runs it, and shows what the GPU's primitives cost.

    python -m benchmarks.micro                          every group
    python -m benchmarks.micro cluster exchange         some of them
    python -m benchmarks.micro --build                  compiles only: needs no GPU
    python -m benchmarks.micro --json FILE              also writes the rows, with what failed

Each group is a process with a time limit: one that hangs costs no other. Needs neither torch nor
rnnfast.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import show
from tools.cuda_compile import ROOT
from tools.toolkit import find_nvcc

GROUPS = ("device", "launch", "tensor", "barrier", "cluster", "exchange", "grid")
SECONDS = 20
Row = dict[str, Any]


def build(nvcc: str, arch: str, program: Path) -> str:
    """Compiles micro.cu; what nvcc said, empty where it succeeded."""
    flags = ["-O3", "-std=c++20", f"-arch=sm_{arch}", "-Werror", "all-warnings"]
    flags += ["-Xcompiler", f"-iquote,{ROOT / 'csrc'},-Wall,-Wextra"]
    source = Path(__file__).with_name("micro.cu")
    command = [nvcc, *flags, str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def measure(program: Path, group: str, seconds: float = SECONDS) -> list[Row]:
    """The rows of one group; a last one with `error` where it did not end well."""
    error = ""
    try:
        done = subprocess.run(
            [str(program), group], capture_output=True, text=True, timeout=seconds, check=False
        )
        output = done.stdout
        if done.returncode:
            error = done.stderr.strip() or f"exit status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else ""
        error = f"stopped after {seconds} s"
    rows = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    return [*rows, {"group": group, "name": "the rest", "error": error}] if error else rows


def cells(row: Row) -> list[str]:
    """A row of the table: name, cycles, nanoseconds, and the rate, the fact or the error."""
    figures = [f"{row[key]:.5g}" if key in row else "" for key in ("cycles", "ns")]
    if "error" in row:
        last = str(row["error"])
    elif "rate" in row:
        last = f"{row['rate']:.4g} {row['unit']}"
    else:
        last = f"{row['value']:g}" if "value" in row else ""
    return [row["name"], *figures, last]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], metavar="GROUP")
    parser.add_argument("--arch", default="90", help="of the GPU; default: %(default)s")
    parser.add_argument("--build", action="store_true", help="compile only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc is not found: install the CUDA toolkit, or set CUDA_HOME")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "micro"
        trouble = build(nvcc, options.arch, program)
        if trouble or options.build:
            print(trouble or f"micro.cu compiles for sm_{options.arch}")
            return 1 if trouble else 0
        rows: list[Row] = []
        for group in options.groups or GROUPS:
            found = measure(program, group)
            show(group, ["primitive", "cycles", "ns", "rate or value"], [cells(r) for r in found])
            rows += found
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
