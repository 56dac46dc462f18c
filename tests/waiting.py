"""Waiting for what another process does: as long as a busy machine may need, and no longer."""

import time
from collections.abc import Callable


def until(holds: Callable[[], bool]) -> bool:
    """Whether it came to hold within minutes."""
    deadline = time.monotonic() + 300
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()
