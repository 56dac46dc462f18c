"""What the tests of the CUDA kernels share."""

from collections.abc import Iterator

import pytest
import torch
from emulated import COMPILER, KERNELS, NINJA, ROOT, Simt, build


@pytest.fixture(scope="session")
def _library() -> None:
    if COMPILER is None or NINJA is None or not (ROOT / "csrc").is_dir():
        pytest.skip("needs a C++ compiler, ninja and the sources")
    torch.ops.load_library(str(build(ROOT / "build" / "simt" / torch.__version__)))


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
