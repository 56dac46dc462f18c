"""Forks and threads: a child never waits for threads that stayed with its parent.

Catches a server or a pool of workers that hangs, and threads that nobody asked for.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("forking.py")
TIMEOUT = 600
pytestmark = pytest.mark.xdist_group("forks")


def run(program: str) -> None:
    """Runs a program of forking.py in a process of its own; a hang is an error."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", str(PROGRAMS), program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output[-4000:]


def test_a_tiny_layer_in_a_child_forked_a_second_after_threaded_work() -> None:
    run("tiny_a_second_later")


@pytest.mark.parametrize("way", ["fork", "pool", "executor", "data_loader"])
def test_layers_of_all_sizes_in_children_after_threaded_work(way: str) -> None:
    run(way)


def test_a_child_forks_again() -> None:
    run("grandchild")


def test_a_thread_of_python_forks() -> None:
    run("other_thread")


def test_torchs_threaded_operations_end_in_a_child() -> None:
    run("torchs_own")


def test_the_parent_keeps_its_threads_after_a_fork() -> None:
    run("parent_goes_on")


def test_a_child_has_threads_of_its_own() -> None:
    run("child_has_threads")


def test_a_fork_while_other_threads_freeze_and_run_layers() -> None:
    run("while_others_work")


def test_frozen_weights_change_apart_after_a_fork() -> None:
    run("frozen_weights_change_apart")


def test_twelve_threads_with_a_tiny_layer_start_no_others() -> None:
    run("twelve_threads")
