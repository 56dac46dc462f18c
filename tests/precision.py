"""Errors of two implementations, compared as statistics.

Another CPU sums in another order, and rounds otherwise: no single error, and least of all the
largest of many, says which of two is the more precise. So errors are taken of many draws, and
compared by what hardly scatters: their mean square, and the quantile that one in a thousand
exceeds. A cheap function, a sum in one piece or a rounded reserve moves both; one wrong number
moves neither, and is caught by how far it is off.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

STRAY = 8.0
"""How far the largest error may be above the other side's largest. Of two samples of the same kind
one has hardly ever twice the other's; a number that is wrong is off by thousands of roundings."""


def seeds(shape: dict[str, Any], most: int) -> range:
    """Of so many draws of a problem that twenty thousand numbers are compared: two at least."""
    rows = sum(shape["lengths"]) if "lengths" in shape else shape["T"] * shape["B"]
    return range(max(2, min(most, -(-20_000 // (rows * shape["H"])))))


def relative_errors(values: Sequence[Tensor], exact: Sequence[Tensor]) -> Tensor:
    """Of every element, in units of the largest value of its tensor."""
    return torch.cat(
        [
            ((a.double() - b).abs() / b.abs().max().clamp(min=1e-30)).detach().flatten()
            for a, b in zip(values, exact, strict=True)
        ]
    )


def statistics(draws: Sequence[Tensor]) -> dict[str, float]:
    """Of the errors of all draws together; the quantile where ten or more are above it."""
    errors = torch.cat(list(draws))
    ordered = errors.sort().values
    found = {
        "root of the mean square": errors.square().mean().sqrt().item(),
        "largest": ordered[-1].item(),
    }
    if len(ordered) >= 10_000:
        found["one in a thousand"] = ordered[-len(ordered) // 1000].item()
    return found


def assert_no_less_precise(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], *, factor: float, floor: float, name: str = ""
) -> None:
    """Our errors, draw by draw, are at most `factor` times theirs.

    floor: an error that no one could do without, of one rounding at the end: half a unit for a
    number as large as the largest of its tensor. Its mean square over the numbers is a few times
    smaller.
    """
    found, wanted = statistics(ours), statistics(theirs)
    least = {"root of the mean square": floor / 4, "one in a thousand": floor, "largest": floor}
    for what, error in found.items():
        allowed = (STRAY if what == "largest" else factor) * max(wanted[what], least[what])
        assert error <= allowed, f"{name}: {what}: {error:.3g}, torch's {wanted[what]:.3g}"
