"""The gradients of a network of rectifiers, by the units that were active in a run of it.

Where an input of relu is 0 but for rounding, two right runs may take different sides, and their
gradients then differ by far more than rounding. The truth that a run's gradients are held to is
that of the linear network which its own active units make up. Whether those are the right ones,
its results tell, which know no kink.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from problems import Problem
from torch import Tensor, nn

from rnnfast import reference
from rnnfast.spec import CELLS, States, Step


def linear_network(
    exact: Problem, low: Problem, run: Callable[[Problem], list[Tensor]]
) -> list[Tensor]:
    """``[output, h_n]`` of `exact`, of the units that are active when `low` is run."""
    D = 1 + exact.bidirectional
    x, final = exact.x, []
    per_layer = len(exact.weights) // exact.layers
    sizes = None if exact.batch_sizes is None else exact.batch_sizes.tolist()
    with pytest.MonkeyPatch.context() as patch:
        for i in range(exact.layers):
            output = run(first_layers(low, i + 1))[0].detach().cpu()
            masks = active(output, sizes, D)
            step = linear_step(masks)
            patch.setitem(CELLS, "rnn_relu", replace(CELLS["rnn_relu"], step=step))
            x, (h_n,) = reference.layer(
                "rnn_relu",
                x,
                sizes,
                [s[i * D : (i + 1) * D] for s in exact.states],
                exact.weights[i * per_layer : (i + 1) * per_layer],
                exact.bidirectional,
            )
            final.append(h_n)
    return [x, final[0] if len(final) == 1 else torch.cat(final)]


def linear_step(masks: Iterator[Tensor]) -> Step:
    def step(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
        return ((x_gates + h_gates) * next(masks),)

    return step


def active(output: Tensor, sizes: Sequence[int] | None, directions: int) -> Iterator[Tensor]:
    """Step after step, as each direction goes through them."""
    steps = output.unbind(0) if sizes is None else output.split(list(sizes))
    for d in range(directions):
        for step in steps if d == 0 else reversed(steps):
            yield step.chunk(directions, -1)[d] > 0


def first_layers(problem: Problem, count: int) -> Problem:
    """The same problem with fewer layers."""
    if count == problem.layers:
        return problem
    part = copy.copy(problem)
    part.layers = count
    part.states = tuple(s[: count * (1 + problem.bidirectional)] for s in problem.states)
    part.module = nn.RNN(
        problem.I,
        problem.H,
        count,
        nonlinearity="relu",
        bias=problem.bias,
        bidirectional=problem.bidirectional,
    ).to(problem.x)
    weights = problem.module.state_dict()
    part.module.load_state_dict({name: weights[name] for name in part.module.state_dict()})
    return part
