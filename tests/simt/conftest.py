"""What the tests of the CUDA kernels share."""

from collections.abc import Iterator

import pytest
import torch
from emulated import KERNELS, Simt


@pytest.fixture(params=KERNELS)
def simt(request: pytest.FixtureRequest, _library: None) -> Simt:
    """Every kernel."""
    return Simt(request.param)


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """TF32 is off unless a test asks for it."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
