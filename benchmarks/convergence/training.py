"""All arms of one seed, step by step beside each other: the same weights, batches and masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor, nn

import rnnfast
from benchmarks.convergence.tasks import TASKS, Batch, Reader, Task

POINTS = 12
"""So many times, evenly spaced, a run is looked at."""
EARLY = 10
PARTED = 1e-3
"""Runs have parted where their losses first differ by more than this, relatively."""

TORCH, OURS, NUDGED = "torch.nn", "rnnfast", "torch.nn, nudged"
TORCH_BF16, OURS_BF16 = "torch.nn, bfloat16", "rnnfast, bfloat16"
BFLOAT16 = (TORCH_BF16, OURS_BF16)
ARMS = {TORCH: "", NUDGED: TORCH, OURS: TORCH, TORCH_BF16: "", OURS_BF16: TORCH_BF16}
"""Each with the arm that its losses are compared to."""


@dataclass
class Learner:
    """A model and its optimizer; what it lost at every step, and at the points on unseen data."""

    model: Reader
    bfloat16: bool
    optimizer: torch.optim.Optimizer
    states: Any = None
    losses: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)

    def outputs(self, batch: Batch, states: Any = None) -> tuple[Tensor, Any]:
        """In float32, as losses are computed."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            outputs, states = self.model(batch[0], states)
        return outputs.float(), states

    def step(self, task: Task, batch: Batch) -> None:
        outputs, states = self.outputs(batch, self.states)
        loss = task.loss(outputs, batch[1])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        if task.carries:
            self.states = tuple(state.detach() for state in states)

    @torch.inference_mode()
    def evaluate(self, task: Task) -> None:
        self.model.eval()
        outputs, _ = self.outputs(task.valid)
        self.valid.append(task.loss(outputs, task.valid[1]).item())
        self.model.train()

    @torch.inference_mode()
    def score(self, task: Task) -> float:
        self.model.eval()
        outputs, _ = self.outputs(task.test)
        return task.score.of(outputs, task.test[1])


@torch.no_grad()
def nudge(model: nn.Module) -> nn.Module:
    """Every parameter goes up by one unit in the last place: what rounding may do."""
    for parameter in model.parameters():
        parameter.copy_(parameter.nextafter(torch.tensor(math.inf)))
    return model


def learners(task: Task, seed: int, arms: Sequence[str] = tuple(ARMS)) -> dict[str, Learner]:
    """One for each of the arms, from the weights of the seed."""
    torch.manual_seed(seed)
    first = task.model()
    made = {}
    for arm in arms:
        model = copy.deepcopy(first)
        if arm in (OURS, OURS_BF16):
            rnnfast.convert(model)
        elif arm == NUDGED:
            nudge(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate, fused=True)
        made[arm] = Learner(model, arm in BFLOAT16, optimizer)
    return made


def train(task: Task, seed: int, arms: Sequence[str] = tuple(ARMS)) -> list[dict[str, Any]]:
    """Trains the arms with one seed; a row for each."""
    all_learners = learners(task, seed, arms)
    batches = task.batches(Generator().manual_seed(seed))
    for step, batch in enumerate(islice(batches, task.steps), 1):
        for learner in all_learners.values():
            torch.manual_seed(seed * task.steps + step)  # the same dropout in all
            learner.step(task, batch)
            if step % (task.steps // POINTS) == 0:
                learner.evaluate(task)
    return [row(task, seed, arm, all_learners) for arm in arms]


def row(task: Task, seed: int, arm: str, arms: dict[str, Learner]) -> dict[str, Any]:
    """One run: training losses as means between the points, validation losses at them, the score
    at the end. Beside the arm it is compared to: the largest difference of the first steps' losses,
    and the step at which the two part, or none.
    """
    learner, every = arms[arm], task.steps // POINTS
    means = torch.tensor(learner.losses[: every * POINTS]).view(POINTS, every).mean(1)
    found = {
        "task": task.name,
        "arm": arm,
        "seed": seed,
        "train": rounded(means.tolist()),
        "valid": rounded(learner.valid),
        "score": rounded([learner.score(task)])[0],
    }
    if ARMS[arm]:
        pairs = zip(learner.losses, arms[ARMS[arm]].losses, strict=True)
        gaps = [abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]
        found["early"] = rounded([max(gaps[:EARLY])], 2)[0]
        found["parted"] = next((i for i, gap in enumerate(gaps, 1) if gap > PARTED), None)
    return found


def rounded(values: list[float], digits: int = 7) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


def prepared(name: str, quick: bool) -> Task:
    """The task, or the first steps of it."""
    task = TASKS[name]()
    return replace(task, steps=POINTS) if quick else task


def job(name: str, seed: int, quick: bool, arms: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one seed of one task, in this process or in one that was started for it."""
    torch.set_num_threads(1)
    return train(prepared(name, quick), seed, arms)
