"""What a peer is: a function that makes a `Side` of a workload and a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.workloads import Workload


class Unavailable(Exception):  # noqa: N818  nothing went wrong: the peer has no such pass
    """The peer cannot run here, or not this pass. The message is the reason."""


@dataclass(frozen=True)
class Side:
    """One pass of one implementation, everything about it prepared.

    run: the call to time. values: what the pass computes, under the names of `workloads.values`.
    """

    run: Callable[[], object]
    values: Callable[[], dict[str, Tensor]]


Peer = Callable[[Workload, str], Side]


def parameters(workload: Workload) -> dict[str, Tensor]:
    """The layer's weights as torch.nn holds them, under the names of the formulas:
    w_ih [G*H, I], w_hh [G*H, H], b_ih [G*H], b_hh [G*H].
    """
    layer = workload.baseline
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    return {
        short: layer.get_parameter(f"{name}_l0").detach().clone() for short, name in names.items()
    }


def reorder_gates(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The blocks of H rows of `tensor` [G*H, ...] in the order that another library has them in."""
    return tensor.unflatten(0, (len(order), -1))[list(order)].flatten(0, 1).contiguous()
