"""Other programs that want the processors: processes that do nothing but compute."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

PROGRAM = """\
import os
parent = os.getppid()
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
"""Computes until whoever started it is gone."""


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """So many processes compute until the block is left; gives their ids."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            command = [sys.executable, "-c", PROGRAM]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
