"""The processes beside a benchmark: they compute, and none is left when it ends or is killed."""

import subprocess
import sys
from pathlib import Path

from waiting import until

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.busy import busy


def test_busy_processes_compute_until_the_end() -> None:
    with busy(2) as processes:
        for process in processes:
            assert until(lambda pid=process: computed(pid) > 0)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_busy_processes_do_not_outlive_a_run_that_is_killed() -> None:
    script = "from benchmarks.busy import busy\nwith busy(1) as p: print(*p, flush=True); input()"
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert run.stdout is not None
    process = int(run.stdout.readline())
    run.kill()
    run.communicate()
    assert until(lambda: not Path(f"/proc/{process}").exists() or state(process) == "Z")


def state(process: int) -> str:
    """As Linux writes it: R, S, Z."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def computed(process: int) -> int:
    """Ticks of the processor that it has had."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11])
