"""The kernels of the grid family on the emulator.

Thousands of threads at a time are slow there, so sizes and steps are few; what a shape of kernel
differs in from the others is run for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from emulated import Simt
from problems import MODES, TOLERANCE, Problem, assert_close
from test_parity import assert_gradients_close, backward_arguments, check, kept, name

from rnnfast import _C, ops

DTYPES = [torch.bfloat16, torch.float16]
HOPPER = {"arch": 90, "shared_bytes": 227 << 10, "max_cluster": 16}
# On 8 processors an instance for H <= 256 has one group of CTAs per direction, which takes the
# batch in parts of 16 rows: one direction on 8, both on 16. Ends of rows within and between parts.
SMALL: list[tuple[int, dict[str, Any]]] = [
    (8, {"T": 3, "B": 9, "H": 30}),
    (8, {"T": 2, "B": 1, "H": 1, "I": 1, "states_given": False}),
    (8, {"T": 1, "B": 17, "H": 33, "bias": False}),
    (16, {"T": 3, "B": 19, "H": 34, "bidirectional": True, "states_given": False}),
    (16, {"lengths": (4, 3) + (2,) * 15 + (1,) * 16, "H": 7, "bidirectional": True}),
    (32, {"lengths": (3,) * 16 + (2,) * 17, "H": 18, "bidirectional": True}),
]


class Instance(NamedTuple):
    """A shape of kernel, and a problem for which the plan takes it."""

    hidden: int
    peers: int
    rows: int
    processors: int
    B: int


INSTANCES = [
    Instance(256, 8, 16, 8, 3),
    Instance(512, 16, 16, 16, 3),
    Instance(768, 24, 8, 24, 3),
    Instance(768, 24, 16, 24, 9),
    Instance(1024, 64, 8, 64, 3),
    Instance(1024, 32, 8, 32, 3),
    Instance(1024, 32, 16, 32, 9),
    Instance(2048, 128, 16, 128, 3),
]


@pytest.fixture(autouse=True)
def _processors(_library: None) -> Iterator[None]:
    yield
    torch.ops.rnnfast_simt.set_processors(132)


def entries(
    problem: Problem, hidden: int, processors: int, backward: bool
) -> dict[str, dict[str, Any]]:
    """The plan's entries of kernels for so many units, by their names."""
    plans = _C.cuda_plan(
        problem.cell,
        name(problem.dtype),
        2,
        problem.B,
        problem.H,
        1 + problem.bidirectional,
        backward=backward,
        tf32=False,
        kernel="grid",
        processors=processors,
        **HOPPER,
    )
    return {f"grid/{i}": p for i, p in enumerate(plans) if p.get("hidden") == hidden}


def entry(problem: Problem, instance: Instance, backward: bool) -> str | None:
    """Which of the plan's entries is that instance; backward, if there is none of its own for such
    units, one of its size.
    """
    of_size = entries(problem, instance.hidden, instance.processors, backward)
    wanted = (instance.peers, instance.rows)
    own = [key for key, p in of_size.items() if (p["peers"], p["rows"]) == wanted]
    return next(iter([*own, *(of_size if backward else ())]), None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("processors", "shape"), SMALL, ids=name)
def test_values_and_gradients(
    mode: str, dtype: torch.dtype, processors: int, shape: dict[str, Any]
) -> None:
    torch.ops.rnnfast_simt.set_processors(processors)
    check(Problem(mode, dtype=dtype, **shape), Simt("grid"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("instance", INSTANCES, ids=name)
def test_every_instance(mode: str, dtype: torch.dtype, instance: Instance) -> None:
    """Just below the size that it serves."""
    problem = Problem(
        mode, T=2, B=instance.B, I=2, H=instance.hidden - 3, dtype=dtype, states_given=False
    )
    forward, backward = (entry(problem, instance, b) for b in (False, True))
    if forward is None:
        pytest.skip("no such kernel for this cell")
    assert backward is not None
    torch.ops.rnnfast_simt.set_processors(instance.processors)
    torch.ops.rnnfast_simt.launched()
    found = kept(problem, Simt(forward))
    arguments = backward_arguments(problem, Simt(backward), found)
    gradients = Simt(backward).layer_backward(*arguments)
    assert torch.ops.rnnfast_simt.launched() == ["grid", "grid"]
    # The CPU kernels, which other tests prove, on the same numbers and from the same reserve.
    output, states_n, _ = ops.layer(*problem.layer_arguments(True))
    assert_close(found[0], [output, *states_n], TOLERANCE[dtype])
    arguments[7] = [t.float() for t in arguments[7]]
    assert_gradients_close(gradients, list(ops.layer_backward(*arguments)), TOLERANCE[dtype])


def test_a_batch_in_parts() -> None:
    """As many rows as a group takes, in several parts, where all CTAs fit at once."""
    problem = Problem("GRU", B=40, H=30, dtype=torch.bfloat16)
    for processors, expected in ((8, (48, 1)), (132, (16, 3))):
        (plan,) = entries(problem, 256, processors, False).values()
        assert (plan["rows"], plan["tiles"]) == expected


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
@pytest.mark.parametrize("shape", [{"T": 36, "B": 3}, {"lengths": (36, 20, 19) + (18,) * 15}])
def test_the_ring_goes_round(mode: str, shape: dict[str, Any]) -> None:
    """More steps than the exchange has memory for, twice, and the same bits by every schedule."""
    torch.ops.rnnfast_simt.set_processors(8)
    problem = Problem(mode, I=2, H=20, dtype=torch.bfloat16, **shape)
    check(problem, Simt("grid"))
    values, reserve = kept(problem, Simt("grid"))
    arguments = backward_arguments(problem, Simt("grid"), (values, reserve))
    gradients = Simt("grid").layer_backward(*arguments)
    for seed in range(1, 4):
        again, again_reserve = kept(problem, Simt("grid", seed))
        assert_close([*again, *again_reserve], [*values, *reserve], 0)
        assert_close(Simt("grid", seed).layer_backward(*arguments), gradients, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_a_nan_is_not_a_missing_word(dtype: torch.dtype) -> None:
    """All bits of the words that are awaited are ones before they come, as those of some NaNs."""
    problem = Problem("GRU", T=2, B=2, I=2, H=6, dtype=dtype)
    cell, x, sizes, states, weights, both, _ = problem.layer_arguments(True)
    nans = torch.full_like(states[0], -1, dtype=torch.int16).view(dtype)
    assert nans.isnan().all()
    nans[:, 1] = 0  # rows know nothing of each other
    simt = Simt("grid")
    output, _, reserve = simt.layer(cell, x, sizes, [nans], weights, both, True)
    assert output[:, 0].isnan().all()
    assert output[:, 1].isfinite().all()
    grad = torch.zeros_like(output)
    grad[:, 0] = nans[0, 0]
    needs = [True] * (2 + len(weights))
    grads = simt.layer_backward(cell, grad, [None], x, sizes, weights, both, reserve, needs)
    assert grads[0][:, 0].isnan().all()
    assert grads[0][:, 1].isfinite().all()
