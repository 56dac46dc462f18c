"""What all tests share: deterministic examples, threads, the device."""

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
