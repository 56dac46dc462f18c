"""What all tests share: deterministic examples, threads, the device."""

import ctypes
import gc
from collections.abc import Callable

import hypothesis
import pytest
import torch

from rnnfast._library import HAS_CUDA

hypothesis.settings.register_profile(
    "rnnfast",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("rnnfast")

_NO_CUDA = not (HAS_CUDA and torch.cuda.is_available())


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(_NO_CUDA, reason="no CUDA device, or built without CUDA"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Every device with kernels."""
    return request.param


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
