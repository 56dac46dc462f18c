"""Whether this tree can be released, in one table: `make release-check`.

    python -m tools.release_check                     everything; an hour and more on two cores
    python -m tools.release_check version tree lint   a part

Each step that `make` runs writes to build/release/STEP.log. All steps run, whatever came before.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.table import show

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "release"
PATTERNS = {
    "pyproject.toml": r'^version = "(.*)"$',
    "CITATION.cff": r"^version: (.*)$",
    "CHANGELOG.md": r"^## \[(\d.*)\]",
    "docs/installing.md": r"rnnfast-([\d.]+)\+torch",
}
"""Where the version stands, and how: the first of each file."""


def versions(root: Path) -> dict[str, str]:
    """File -> the version that it says; empty where it says none."""
    found = {}
    for name, pattern in PATTERNS.items():
        stated = re.search(pattern, (root / name).read_text("utf-8"), re.MULTILINE)
        found[name] = stated[1] if stated else ""
    return found


def version_problem(root: Path) -> str:
    """What does not agree; nothing where all does."""
    found = versions(root)
    wanted = found["pyproject.toml"]
    if others := {name: version for name, version in found.items() if version != wanted}:
        said = ", ".join(f"{name} says {version or 'none'}" for name, version in others.items())
        return f"pyproject.toml says {wanted}, {said}"
    changes, citation = ((root / n).read_text("utf-8") for n in ("CHANGELOG.md", "CITATION.cff"))
    if "[Unreleased]" in changes:
        return "CHANGELOG.md has unreleased changes"
    released = re.search(rf"^## \[{re.escape(wanted)}\] - (.*)$", changes, re.MULTILINE)
    cited = re.search(r"^date-released: (.*)$", citation, re.MULTILINE)
    if not released or not cited or released[1] != cited[1]:
        return "CHANGELOG.md and CITATION.cff do not name the same date"
    return ""


def tree_problem(root: Path) -> str:
    command = ["git", "status", "--porcelain"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        return "this is no clone: git does not know it"
    changed = [line[3:] for line in done.stdout.splitlines()]
    return f"not committed: {', '.join(changed[:5])}" if changed else ""


def make_problem(target: str, *arguments: str) -> str:
    """The last line of a target of the Makefile that fails."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{target}.log"
    with log.open("w", encoding="utf-8") as file:
        command = ["make", "--no-print-directory", target, *arguments]
        failed = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False).returncode
    return f"see {log.relative_to(ROOT)}" if failed else ""


STEPS: dict[str, tuple[str, Callable[[], str]]] = {
    "version": ("the version is the same everywhere, and dated", lambda: version_problem(ROOT)),
    "tree": ("everything is committed", lambda: tree_problem(ROOT)),
    "lint": ("make lint", lambda: make_problem("lint")),
    "docs": ("make docs", lambda: make_problem("docs")),
    "test": ("make test, exhaustive", lambda: make_problem("test", "TESTS=--exhaustive")),
    "wheels": ("make wheels", lambda: make_problem("wheels")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.release_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}")
    options = parser.parse_args(arguments)
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"no step is called {', '.join(sorted(unknown))}: of {', '.join(STEPS)}")
    rows, holds = [], True
    for name in options.steps or STEPS:
        what, problem_of = STEPS[name]
        print(f"{what} ...", flush=True)
        began = time.monotonic()
        problem = problem_of()
        holds = holds and not problem
        seconds = f"{time.monotonic() - began:.0f}"
        rows.append([name, what, seconds, "no" if problem else "yes", problem])
    show("Release", ("step", "what", "seconds", "holds", "otherwise"), rows)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
