"""The comparison of errors itself: luck passes it, and what it is there to catch does not."""

import pytest
import torch
from precision import assert_no_less_precise
from torch import Tensor

UNIT = torch.finfo(torch.float32).eps / 2


def draws(seed: int, size: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * UNIT * torch.randn(4000, generator=generator).abs() for _ in range(9)]


@pytest.mark.parametrize("seed", range(20))
def test_luck_passes(seed: int) -> None:
    """Errors of the same kind, and half as large again."""
    for size in (1.0, 1.5):
        assert_no_less_precise(draws(seed, size), draws(1000 + seed), factor=2, floor=UNIT)


def test_errors_below_one_rounding_are_all_alike() -> None:
    assert_no_less_precise(draws(0, 0.2), [0 * x for x in draws(1)], factor=2, floor=UNIT)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "defect", ["three times", "one wrong", "one in five hundred", "not a number"]
)
def test_defects_do_not(defect: str, seed: int) -> None:
    ours = draws(seed, 3.0 if defect == "three times" else 1.0)
    if defect == "one wrong":
        ours[4][7] = 100 * UNIT
    if defect == "one in five hundred":
        for errors in ours:
            errors[::500] = 10 * UNIT
    if defect == "not a number":
        ours[4][7] = torch.nan
    with pytest.raises(AssertionError, match="torch's"):
        assert_no_less_precise(ours, draws(1000 + seed), factor=2, floor=UNIT)
