"""A run of many rows that outlives what breaks the device: it starts over in a new process."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HANGS = 12.0
"""Seconds that nothing takes."""


class Run:
    """The file of results; starts over behind what breaks the device."""

    def __init__(self, path: Path, facts: dict[str, Any], resumed: bool) -> None:
        self.path = path
        self.data: dict[str, Any] = {"format": 1, "environment": facts, "rows": []}
        if resumed and path.exists():
            self.data = json.loads(path.read_text())
        rows = self.data["rows"]
        self.done = {row["layer"] for row in rows if "broken" not in row or not row["entry"]}
        self.broke = {(r["layer"], r["pass"], r["entry"]) for r in rows if "broken" in r}
        self.current = {"layer": "", "pass": "", "entry": ""}
        self.since = time.monotonic()

    def watch(self) -> None:
        """Ends, from a thread of its own, what hangs."""
        threading.Thread(target=self._watch, daemon=True).start()

    def begin(self, layer: str, pass_name: str = "", entry: str = "") -> None:
        """To be called before the device is asked for anything."""
        self.current = {"layer": layer, "pass": pass_name, "entry": entry}
        self.since = time.monotonic()

    def add(self, layer: str, rows: Sequence[dict[str, Any]]) -> None:
        self.data["rows"] += [{"layer": layer, **row} for row in rows]
        self.write()

    def write(self) -> None:
        lines = ",\n".join(json.dumps(row) for row in self.data["rows"])
        facts = json.dumps(self.data["environment"])
        self.path.write_text(f'{{"format": 1,\n"environment": {facts},\n"rows": [\n{lines}\n]}}\n')

    def broken(self, why: str) -> None:
        """Writes down what was running, and goes on in a new process without it."""
        print(f"BROKEN by {self.current}: {why}", flush=True)
        self.data["rows"].append({**self.current, "broken": True, "failed": why})
        self.write()
        again = [sys.executable, "-u", "-m", "benchmarks.tune", "--resume"]
        os.execv(sys.executable, [*again, *(a for a in sys.argv[1:] if a != "--resume")])

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            if time.monotonic() - self.since > HANGS:
                self.broken(f"nothing for {HANGS:.0f} s")
