"""Hostile arguments, many of them: see fuzzing.py. `--fuzz 1000000` runs so many of the raw ops, on
one thread: beside other processes two wait for each other most of the time.

A crash, a hang, a write past the end of an argument, an exception that is none of torch's, values
other than the reference's: each fails with the number of the case, which runs it again alone.
"""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnfast

PROGRAM = Path(__file__).parent / "fuzzing.py"
FEWER = 20  # as many cases of the raw ops for one of the modules, and for one with two threads
RATE = 100  # cases a second at the very least, on a machine that does other things too


def run(kind: str, count: int, tmp_path: Path, threads: int = 1) -> str:
    where = tmp_path / "number"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "--kind", kind]
    command += ["--count", str(count), "--where", str(where)]
    command += ["--threads", str(threads)]
    try:
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60 + count / RATE
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"{kind} case {number(where)} hangs")
    if ran.returncode < 0:
        name = signal.Signals(-ran.returncode).name
        pytest.fail(f"{kind} case {number(where)} ends with {name}\n{ran.stderr[-2000:]}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def number(where: Path) -> int:
    return int(struct.unpack("<q", where.read_bytes())[0])


def test_hostile_arguments_of_the_ops(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    outcomes = run("ops", request.config.getoption("--fuzz"), tmp_path)
    assert "result" in outcomes
    assert "RuntimeError" in outcomes


def test_hostile_arguments_of_the_modules(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    outcomes = run("modules", request.config.getoption("--fuzz") // FEWER, tmp_path)
    assert "result" in outcomes


def test_hostile_arguments_and_two_threads(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    outcomes = run("ops", request.config.getoption("--fuzz") // FEWER, tmp_path, threads=2)
    assert "result" in outcomes


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_process_does_not_grow_over_10000_calls() -> None:
    module, x = rnnfast.LSTM(5, 6), torch.randn(4, 3, 5, requires_grad=True)

    def call(count: int) -> None:
        for _ in range(count):
            module(x)[0].sum().backward()

    call(2000)
    before = resident()
    call(10000)
    assert resident() - before < 4 << 20


def test_more_steps_than_memory_are_refused_or_nothing() -> None:
    """Tensors of few bytes and endless sizes: neither a crash nor the machine's memory."""
    layer = torch.ops.rnnfast.layer.default
    weights = [torch.randn(6, 4), torch.randn(6, 6)]
    with pytest.raises(RuntimeError, match="no memory for"):
        layer("rnn_tanh", torch.randn(1, 1, 4).expand(2**40, 1, 4), None, [], weights, False, False)
    steps = torch.ones(1, dtype=torch.int64).expand(2**40)
    with pytest.raises(RuntimeError, match="batch_sizes must be positive"):
        layer("rnn_tanh", torch.randn(3, 4), steps, [], weights, False, False)
    output, *_ = layer("rnn_tanh", torch.zeros(2**40, 0, 4), None, [], weights, False, False)
    assert output.shape == (2**40, 0, 6)
