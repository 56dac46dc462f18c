"""torch.func's vmap over layers: ensembles, batches of inputs, gradients for each sample; beside a
loop over layers that are called one by one, and torch.nn's layers where these take the transform.

    python -m benchmarks.ensembles              a table for each size
    python -m benchmarks.ensembles --quick

Values are compared before anything is timed; all sides take turns in one run. A loop's results are
stacked, as vmap's are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import rnnfast
from benchmarks import beside, table
from benchmarks.timing import Budget, summarise, take_turns

SHAPES = ((50, 32, 128, 128), (20, 128, 64, 64))
"""T, B, I, H."""
MEMBERS = 8
CELLS = ("RNN", "GRU", "LSTM")
WAYS = ("torch.nn, vmap", "rnnfast, a loop", "rnnfast, vmap")

Call = Callable[[], tuple[Tensor, ...]]


def stacked(results: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def ensemble(cell: str, shape: tuple[int, ...]) -> list[Call]:
    """Inference of several layers on one batch, in the order of WAYS."""
    T, B, features, hidden = shape
    ours = [getattr(rnnfast, cell)(features, hidden) for _ in range(MEMBERS)]
    x = torch.randn(T, B, features)

    def together(members: list[nn.Module]) -> Call:
        weights = {n: w.detach() for n, w in stack_module_state(members)[0].items()}
        run = vmap(lambda w: functional_call(members[0], w, (x,)))
        return lambda: (run(weights)[0],)

    loop = lambda: stacked([layer(x)[:1] for layer in ours])  # noqa: E731
    return [together([rnnfast.revert(copy.deepcopy(m)) for m in ours]), loop, together(ours)]


def inputs(cell: str, shape: tuple[int, ...]) -> list[Call]:
    """Inference of one layer on several batches."""
    T, B, features, hidden = shape
    ours = getattr(rnnfast, cell)(features, hidden)
    theirs, x = rnnfast.revert(copy.deepcopy(ours)), torch.randn(MEMBERS, T, B, features)
    together = [vmap(lambda x, layer=layer: layer(x)[:1]) for layer in (theirs, ours)]
    loop = lambda: stacked([ours(part)[:1] for part in x])  # noqa: E731
    return [lambda: together[0](x), loop, lambda: together[1](x)]


def per_sample(cell: str, shape: tuple[int, ...]) -> list[Call]:
    """The gradient of one layer's weights for each sequence of a batch."""
    T, B, features, hidden = shape
    ours = getattr(rnnfast, cell)(features, hidden)
    x, parameters = torch.randn(B, T, features), list(ours.parameters())

    def together(layer: nn.Module) -> Call:
        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            output: Tensor = functional_call(layer, weights, (x[:, None],))[0]
            return output.square().mean()

        weights = {n: w.detach() for n, w in layer.named_parameters()}
        each = vmap(grad(loss), (None, 0))
        return lambda: tuple(each(weights, x).values())

    def alone(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(ours(x[:, None])[0].square().mean(), parameters)

    loop = lambda: stacked([alone(part) for part in x])  # noqa: E731
    return [together(rnnfast.revert(copy.deepcopy(ours))), loop, together(ours)]


TASKS = {
    f"ensemble of {MEMBERS}": ensemble,
    f"{MEMBERS} batches, one layer": inputs,
    "gradients for each sample": per_sample,
}


def row(cell: str, task: str, shape: tuple[int, ...], budget: Budget) -> list[str]:
    """Milliseconds of each way; torch.nn's may raise."""
    calls: list[Any] = TASKS[task](cell, shape)
    with torch.set_grad_enabled(task == "gradients for each sample"):
        found = []
        for call in calls:
            try:
                found.append(call())
            except RuntimeError:
                found.append(None)
        for values in found:
            if values is not None:
                torch.testing.assert_close(values, found[1], rtol=1e-4, atol=1e-5)
        timed = [call for call, values in zip(calls, found, strict=True) if values is not None]
        times = iter([summarise(s).median for s in take_turns(timed, budget)])
    return [
        f"{cell}, {task}",
        *("raises" if v is None else f"{next(times) * 1e3:.3g}" for v in found),
    ]


def main() -> None:
    options, budget = beside.begin("benchmarks.ensembles", __doc__, CELLS)
    for shape in SHAPES:
        rows = [row(cell, task, shape, budget) for task in TASKS for cell in options.cells]
        title = f"milliseconds: T, B, I, H = {', '.join(map(str, shape))}"
        table.show(title, ["", *WAYS], rows)


if __name__ == "__main__":
    main()
