"""One kernel, one precision, and torch's switches for TF32."""

from collections.abc import Iterator

import pytest
import torch
from on_gpu import KERNELS, PRECISIONS, allow_tf32


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    torch.manual_seed(0)
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    allow_tf32(False)
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Asks for one kernel during the test."""
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", request.param)
    return str(request.param)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for `step` during the test."""
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", "step")


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    """A name of PRECISIONS, with the switches for TF32 set to it."""
    allow_tf32(PRECISIONS[request.param][1])
    return str(request.param)
