"""Products of bfloat16 by tiles: on CPUs that have them, and with a twin of their instructions in
plain C++ on any other.

Catches a tile that reads past the batch or spreads a NaN of its padding, tiles that a thread has
not configured or another library has taken away, and kernels that are chosen where a process may
not use them.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import twin
from precision import assert_no_less_precise, relative_errors
from problems import MODES, Problem, cotangents
from torch import Tensor, nn

import rnnfast
from rnnfast import _C, _library, installation

TESTS = Path(__file__).parent
AMX = ["avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512bf16", "fma", "amx-tile", "amx-bf16"]
needs_compiler = pytest.mark.skipif(
    twin.COMPILER is None or twin.NINJA is None or not (twin.ROOT / "csrc").is_dir(),
    reason="needs a C++ compiler, ninja and the sources",
)
needs_tiles = pytest.mark.skipif(
    not _library.HAS_TILES, reason="runs where the CPU has tiles, and in test_with_the_twin"
)


@needs_compiler
@pytest.mark.parametrize("instructions", ["twin", "amx"])
def test_products_bit_by_bit(instructions: str, tmp_path: Path) -> None:
    flags = twin.FLAGS
    if instructions == "amx":
        if not _C.has_bfloat16_tiles():
            pytest.skip("this CPU has no tiles, or this process may not use them")
        flags = ["-std=c++20", "-O2", *(f"-m{name}" for name in AMX), f"-I{twin.ROOT / 'csrc'}"]
    program = tmp_path / "tiles"
    source = TESTS / "native" / "tiles.cpp"
    subprocess.run([str(twin.COMPILER), *flags, str(source), "-o", str(program)], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_compiler
@pytest.mark.xdist_group("twin")
@pytest.mark.skipif(_library.HAS_TILES, reason="runs all of it with the CPU's own tiles")
@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("test_bfloat16.py", ""),
        ("test_tiles.py", ""),
        ("test_autocast.py", "autocast_is or autocast_gives"),
        ("test_values.py", "infinite_weight and bfloat16"),
    ],
)
def test_with_the_twin(part: str, names: str, tmp_path: Path) -> None:
    """The tests of bfloat16 in a process that takes this CPU for one with tiles."""
    twin.package(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "twin", "-p", "no:cacheprovider"]
    command += ["-c", str(twin.ROOT / "pyproject.toml"), f"--rootdir={twin.ROOT}"]
    # Errors are those of training, whose forward pass is inference's, see below.
    left_out = "bit_by_bit or with_the_twin or error_is_at_most or refused"
    command += ["-k", names or f"not ({left_out})", str(TESTS / part)]
    result = subprocess.run(
        command, env=twin.environment(tmp_path), cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def trained(problem: Problem) -> list[Tensor]:
    """Results and all gradients."""
    values = problem.rnnfast()
    grads = [g.to(values[0].dtype) for g in cotangents(values)]
    return [*values, *torch.autograd.grad(values, problem.leaves, grads)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(map(torch.equal, ours, theirs))


@needs_tiles
def test_explain_says_so() -> None:
    layer = rnnfast.LSTM(64, 64, dtype=torch.bfloat16)

    def kernel(T: int, B: int, dtype: torch.dtype = torch.bfloat16) -> str:
        module = layer.to(dtype)
        (found,) = rnnfast.explain(module, torch.zeros(T, B, 64, dtype=dtype)).layers
        assert found.kernel == "cpu/avx512amx"
        return str(found.plan["kernel"])

    assert kernel(30, 8) == kernel(3, 100) == "tiles"
    assert kernel(30, 7) == kernel(30, 8, torch.float32) == "packed"
    assert kernel(1, 16) == "rows"
    assert installation.describe()["CPU kernels"].startswith("avx512amx (")


@needs_tiles
def test_threads_that_never_configured_tiles() -> None:
    problem = Problem("LSTM", dtype=torch.bfloat16, T=20, B=33, I=40, H=48)
    wanted, found = trained(problem), []
    threads = [threading.Thread(target=lambda: found.append(trained(problem))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(same(results, wanted) for results in found)


@needs_tiles
def test_a_forked_child_has_tiles() -> None:
    problem = Problem("GRU", dtype=torch.bfloat16, T=20, B=64, I=40, H=48)
    wanted = trained(problem)
    child = os.fork()
    if child == 0:
        os._exit(0 if same(trained(problem), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_tiles
def test_in_turn_with_torchs_products_in_the_same_threads() -> None:
    """For oneDNN configures tiles for itself, and releases them."""
    problem = Problem("LSTM", dtype=torch.bfloat16, T=20, B=64, I=64, H=64)
    linear = nn.Linear(256, 256, dtype=torch.bfloat16)
    x = torch.randn(128, 256, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted, product = problem.rnnfast(), linear(x)
        theirs = problem.torch()
        for _ in range(20):
            assert torch.equal(linear(x), product)
            assert same(problem.rnnfast(), wanted)
            assert same(problem.torch(), theirs)
            assert same(problem.rnnfast(), wanted)


@needs_tiles
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_frozen_weights_serve_products_with_and_without_tiles(name: str) -> None:
    layer: Any = getattr(rnnfast, name)(37, 50, dtype=torch.bfloat16).requires_grad_(False)
    inputs = [torch.randn(T, B, 37, dtype=torch.bfloat16) for T, B in ((9, 33), (30, 3), (1, 9))]
    wanted = [layer(x)[0] for x in inputs]
    rnnfast.freeze(layer)
    for _ in range(2):
        found = [layer(x)[0] for x in inputs]
        assert same(found[:2], wanted[:2])
        torch.testing.assert_close(found[2], wanted[2], rtol=2e-2, atol=2e-2)


@contextmanager
def float32_in_bfloat16() -> Iterator[None]:
    """With torch's switch for recurrent layers in float32 on."""
    before = torch.backends.mkldnn.rnn.fp32_precision
    torch.backends.mkldnn.rnn.fp32_precision = "bf16"
    yield
    torch.backends.mkldnn.rnn.fp32_precision = before


@needs_tiles
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [{}, {"lengths": (12, 9, *[7] * 20, 1)}], ids=str)
def test_torchs_switch_lets_float32_be_multiplied_as_bfloat16(
    mode: str, shape: dict[str, Any]
) -> None:
    """In both passes; all else stays float32, so no error is above that of torch.nn's layer in
    bfloat16. Without the switch nothing changes.
    """
    shape = {"T": 12, "B": 23, "I": 65, "H": 80, "bidirectional": True, **shape}
    problem = Problem(mode, dtype=torch.float32, **shape)
    half = Problem(mode, dtype=torch.bfloat16, **shape)
    with torch.no_grad():
        for a, b in zip(half.leaves, problem.leaves, strict=True):
            a.copy_(b)
    plain = trained(problem)
    with float32_in_bfloat16():
        found = trained(problem)
        with torch.inference_mode():
            inference = problem.rnnfast()
        (layer,) = rnnfast.explain(rnnfast.GRU(65, 80), torch.zeros(12, 23, 65)).layers
    assert layer.plan["kernel"] == "tiles"
    assert same(inference, found[: len(inference)])
    assert same(trained(problem), plain)
    assert all(t.dtype == torch.float32 for t in found)
    assert not torch.equal(found[0], found[0].bfloat16().float())
    values = half.torch()
    grads = [g.to(torch.bfloat16) for g in cotangents(values)]
    theirs = [*values, *torch.autograd.grad(values, half.leaves, grads)]
    errors = [[relative_errors(side, plain)] for side in (found, theirs)]
    assert errors[0][0].max() > 1e-4
    assert_no_less_precise(*errors, factor=1.25, floor=0.0)


# 8 KB for the handlers of signals: less than the state of the tiles takes.
REFUSED = """
import ctypes

class Stack(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = ctypes.create_string_buffer(8192)
stack = Stack(ctypes.addressof(memory), 0, len(memory))
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
import torch, rnnfast
from rnnfast._library import INSTRUCTION_SET
rnnfast.LSTM(32, 32, dtype=torch.bfloat16)(torch.zeros(9, 9, 32, dtype=torch.bfloat16))
print(INSTRUCTION_SET)
"""


@pytest.mark.skipif(not _C.has_bfloat16_tiles(), reason="there are no tiles to refuse")
def test_a_process_that_is_refused_the_tiles() -> None:
    result = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True)
    assert result.stdout.strip() == "avx512bf16", result.stderr
