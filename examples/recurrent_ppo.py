"""Recurrent PPO: a policy with memory, trained on rollouts in which episodes end and begin.

The task: at the start of a corridor a sign says left or right; where the corridor ends, two to
seven steps later, the agent must turn that way. The rollouts of 32 environments side by side hold
many episodes each. `gru(x, h, resets=begins)` trains on all of them in one call; torch.nn.GRU has
no such argument, so with it a loop over the steps clears the state where an episode begins.

python examples/recurrent_ppo.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from common import parse
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

ENVIRONMENTS, LENGTH, HIDDEN = 32, 64, 32
DISCOUNT, TRACE, CLIP, EPOCHS = 0.95, 0.9, 0.2, 4


class Corridors:
    """So many corridors; one that is left begins anew."""

    def __init__(self) -> None:
        self.sign = torch.zeros(ENVIRONMENTS)
        self.left = torch.zeros(ENVIRONMENTS, dtype=torch.long)  # steps to the end
        self.begins = torch.ones(ENVIRONMENTS, dtype=torch.bool)
        self._begin(self.begins)

    def _begin(self, which: Tensor) -> None:
        self.begins = which
        self.sign = torch.where(which, torch.randint(2, (ENVIRONMENTS,)) * 2.0 - 1, self.sign)
        self.left = torch.where(which, torch.randint(2, 8, (ENVIRONMENTS,)), self.left - 1)

    def observe(self) -> Tensor:
        """``[B, 3]``: the sign, where it can be seen; whether this is the end; one."""
        return torch.stack(
            [self.sign * self.begins, (self.left == 0).float(), torch.ones(ENVIRONMENTS)], -1
        )

    def step(self, action: Tensor) -> Tensor:
        """The rewards ``[B]``: of the turn at the end, 1 or -1."""
        at_end = self.left == 0
        right = (action * 2.0 - 1) == self.sign
        self._begin(at_end)
        return at_end * (right * 2.0 - 1)


class Policy(nn.Module):
    """A GRU, and from its states the probabilities of both turns and the value."""

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.gru = library.GRU(3, HIDDEN)
        self.readout = nn.Linear(HIDDEN, 3)
        self.takes_resets = library is not nn

    def forward(self, x: Tensor, h: Tensor, begins: Tensor) -> tuple[Categorical, Tensor, Tensor]:
        """``[T, B, 3]``, ``[1, B, H]``, ``[T, B]`` -> the turns, the values, the last state."""
        if self.takes_resets:
            output, h = self.gru(x, h, resets=begins)
        else:
            outputs = []
            for step, begin in zip(x, begins, strict=True):
                one, h = self.gru(step[None], h * ~begin[:, None])
                outputs.append(one)
            output = torch.cat(outputs)
        turns, values = self.readout(output).split([2, 1], -1)
        return Categorical(logits=turns), values[..., 0], h


class Rollout(NamedTuple):
    """``[T, B, ...]`` of all environments, and the state ``[1, B, H]`` before the first step."""

    x: Tensor
    begins: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    rewards: Tensor
    h: Tensor
    next_value: Tensor


@torch.no_grad()
def collect(policy: Policy, corridors: Corridors, h: Tensor) -> tuple[Rollout, Tensor]:
    """Walks for LENGTH steps; returns the last state, too."""
    first, steps = h, []
    for _ in range(LENGTH):
        x, begins = corridors.observe(), corridors.begins
        turns, values, h = policy(x[None], h, begins[None])
        action = turns.sample()[0]
        rewards = corridors.step(action)
        steps.append((x, begins, action, turns.log_prob(action)[0], values[0], rewards))
    _, values, _ = policy(corridors.observe()[None], h, corridors.begins[None])
    next_value = values[0] * ~corridors.begins
    columns = (torch.stack(column) for column in zip(*steps, strict=True))
    return Rollout(*columns, first, next_value), h


def advantages(rollout: Rollout, begins_next: Tensor) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016): what was better than expected."""
    result, trace = torch.zeros_like(rollout.rewards), torch.zeros(ENVIRONMENTS)
    next_value, goes_on = rollout.next_value, ~begins_next
    for t in reversed(range(LENGTH)):
        surprise = rollout.rewards[t] + DISCOUNT * next_value * goes_on - rollout.values[t]
        trace = surprise + DISCOUNT * TRACE * goes_on * trace
        result[t], next_value, goes_on = trace, rollout.values[t], ~rollout.begins[t]
    return result


def improve(
    policy: Policy, optimizer: torch.optim.Optimizer, rollout: Rollout, better: Tensor
) -> None:
    """A few epochs on one rollout, with PPO's clipped objective (Schulman et al. 2017)."""
    targets = rollout.values + better
    better = (better - better.mean()) / (better.std() + 1e-8)
    for _ in range(EPOCHS):
        turns, values, _ = policy(rollout.x, rollout.h, rollout.begins)
        ratio = (turns.log_prob(rollout.actions) - rollout.log_probabilities).exp()
        gain = torch.minimum(ratio * better, ratio.clamp(1 - CLIP, 1 + CLIP) * better).mean()
        loss = F.mse_loss(values, targets) / 2 - gain - 0.01 * turns.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains the policy; returns the part of right turns in the last rollouts."""
    library, steps = parse(__doc__, arguments, steps=60)
    policy, corridors = Policy(library), Corridors()
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    h, right = torch.zeros(1, ENVIRONMENTS, HIDDEN), []
    for step in range(1, steps + 1):
        rollout, h = collect(policy, corridors, h)
        improve(policy, optimizer, rollout, advantages(rollout, corridors.begins))
        turns = rollout.rewards[rollout.rewards != 0]
        right.append((turns > 0).float().mean().item())
        if step % max(steps // 6, 1) == 0:
            print(f"rollout {step:3d}   right turns {100 * right[-1]:.0f} %")
    last = right[-max(steps // 10, 1) :]
    return sum(last) / len(last)


if __name__ == "__main__":
    main()
