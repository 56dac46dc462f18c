"""What all tests share: deterministic examples, processes and threads, the device, the summary."""

import ctypes
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch
from emulated import COMPILER, KERNELS, NINJA, ROOT, Simt, build
from problems import OpDevice

from rnnfast._library import HAS_CUDA

hypothesis.settings.register_profile(
    "rnnfast",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("rnnfast")

# Inductor's cache does not know ATEN_CPU_CAPABILITY: what it wrote for one instruction set would be
# compiled for another, and fail.
_CACHE = Path(__file__).parents[1] / "build" / f"inductor-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_CACHE))

_NO_CUDA = not (HAS_CUDA and torch.cuda.is_available())


MOST_PROCESSES = 8
"""Each holds its own torch, a gigabyte at times."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``, as in ``make test``: a process for each core that this one may run on."""
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="all combinations of the parameters, not those alone in which every two values meet",
    )
    parser.addoption(
        "--fuzz", type=int, default=100_000, help="so many hostile calls of the raw ops"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what `covering` marks as exhaustive."""
    if config.getoption("--exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def pytest_configure() -> None:
    """Side by side with others, a process takes its share of the cores: two at least, so that
    layers are shared by threads everywhere. There are more threads than cores then, and torch's
    own wait for each other without a core: spinning, they take twice as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of processes that are started from here
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        torch.set_num_threads(max(2, len(os.sched_getaffinity(0)) // processes))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped, in one line; what failed stands below it."""
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        text = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped: {text}")


_DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(_NO_CUDA, reason="no CUDA device, or built without CUDA"),
        ],
    ),
]


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device with kernels."""
    return request.param


@pytest.fixture(scope="session")
def _library() -> None:
    """The CUDA kernels on the emulator."""
    if COMPILER is None or NINJA is None or not (ROOT / "csrc").is_dir():
        pytest.skip("needs a C++ compiler, ninja and the sources")
    torch.ops.load_library(str(build(ROOT / "build" / "simt" / torch.__version__)))


@contextmanager
def _op_device(request: pytest.FixtureRequest) -> Iterator[OpDevice]:
    where, _, kernel = request.param.partition("-")
    if where != "emulator":
        yield OpDevice(where, by_unit=where == "cuda")
        return
    request.getfixturevalue("_library")
    simt = Simt(kernel)
    with simt.in_place_of_the_cpu():
        yield OpDevice("cpu", simt.dtype, simt.tolerance, by_unit=True)


@pytest.fixture(
    params=[*_DEVICES, *(f"emulator-{kernel}" for kernel in (*KERNELS, "fma", "small"))]
)
def op_device(request: pytest.FixtureRequest) -> Iterator[OpDevice]:
    """Every device with kernels, and each of the CUDA kernels on the emulator."""
    with _op_device(request) as device:
        yield device


@pytest.fixture(params=[*_DEVICES, "emulator-step"])
def rows_device(request: pytest.FixtureRequest) -> Iterator[OpDevice]:
    """The same for recurrences, whose kernels run everything."""
    with _op_device(request) as device:
        yield device


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@pytest.fixture
def memory_in_use() -> Callable[[], int]:
    """Tells how many bytes are allocated and not freed."""
    try:
        malloc_info = ctypes.CDLL(None).mallinfo2
    except (AttributeError, TypeError):
        pytest.skip("needs glibc's mallinfo2")
    malloc_info.restype = _MallocInfo

    def in_use() -> int:
        gc.collect()
        info = malloc_info()
        return int(info.uordblks + info.hblkhd)

    return in_use
