"""What `resets`, `reset_states` and `lengths` refuse, in which words.

Catches a wrong mask or length that is taken in silence, and one that ends the process.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_segments import B, H, I, T, random_resets
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"resets": torch.zeros(T, B)},
            TypeError,
            r"resets: expected a tensor of dtype torch.bool, got torch.float32: resets.bool\(\)",
        ),
        ({"resets": torch.zeros(B, T, dtype=torch.bool)}, RuntimeError, "a value for each step"),
        ({"reset_states": torch.zeros(1, B, H)}, ValueError, "there are no resets"),
        ({"lengths": [0, 1, 2, 3]}, RuntimeError, "lengths must be from 1 to the number of steps"),
        ({"lengths": [1, 2, 3, T + 1]}, RuntimeError, "lengths must be from 1"),
        ({"lengths": [1, 2, 3]}, RuntimeError, "^lengths: expected a number for each of 4"),
        ({"lengths": torch.ones(B).long().to("meta")}, RuntimeError, "lengths: .* got one on meta"),
        (
            {"resets": random_resets().to("meta")},
            RuntimeError,
            "resets: expected a tensor that has values, got one on meta",
        ),
        ({"lengths": 3}, RuntimeError, "^lengths: expected a number for each of 4"),
        ({"lengths": [1.0, 2.0, 3.0, 4.0]}, RuntimeError, "torch.int64, got torch.float32"),
        (
            {"resets": random_resets(), "reset_states": torch.zeros(1, B, H + 1)},
            RuntimeError,
            "Expected hidden size",
        ),
        ({"resets": random_resets(), "hx": torch.zeros(1, 1, H)}, RuntimeError, "Expected hidden"),
        (
            {"resets": random_resets(), "reset_states": torch.zeros(1, 3, H)},
            RuntimeError,
            r"Expected hidden size \(1, 4, 6\), got \[1, 3, 6\]",
        ),
        (
            {
                "resets": random_resets(),
                "hx": torch.zeros(1, B, H),
                "reset_states": torch.zeros(1, B, H).double(),
            },
            RuntimeError,
            "reset_states: expected torch.float32 as hx, got torch.float64",
        ),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        rnnfast.GRU(I, H)(torch.randn(T, B, I), **arguments)


def test_lengths_that_are_no_number_without_a_batch_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"lengths: expected a number, of dtype torch\.int64"):
        rnnfast.GRU(I, H)(torch.randn(T, I), lengths=True)


@pytest.mark.parametrize("lengths", [[8, 8, 2, 2], [8, 9, 2, 1]], ids=["sizes", "order"])
def test_a_mask_of_another_packing_is_refused(lengths: list[int]) -> None:
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([9, 8, 2, 1]))
    resets = random_resets()
    mask = pack_padded_sequence(resets, torch.tensor(lengths), enforce_sorted=False)
    with pytest.raises(ValueError, match="packed otherwise than the input"):
        rnnfast.GRU(I, H)(packed, resets=mask)


@pytest.mark.parametrize("argument", ["hx", "reset_states"])
@pytest.mark.parametrize("value", [torch.zeros(1, B, H), (torch.zeros(1, B, H),) * 3, 3])
def test_what_is_no_pair_of_states_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(TypeError, match="expected a pair of states"):
        rnnfast.LSTM(I, H)(torch.randn(T, B, I), resets=random_resets(), **{argument: value})


@pytest.mark.parametrize("resets", [[True], True, 3])
def test_resets_that_are_no_tensor_are_refused(resets: Any) -> None:
    with pytest.raises(TypeError, match="resets: expected a tensor"):
        rnnfast.GRU(I, H)(torch.randn(T, B, I), resets=resets)


def test_lengths_of_a_packed_sequence_are_its_own() -> None:
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([9, 8, 2, 1]))
    with pytest.raises(ValueError, match="a PackedSequence has its own"):
        rnnfast.GRU(I, H)(packed, lengths=[9, 8, 2, 1])


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(6, dtype=torch.bool), None, None, 3, 3, False),
        (torch.zeros(9, dtype=torch.uint8), None, None, 3, 3, False),
        (torch.zeros(9, dtype=torch.bool), None, torch.tensor([3, 4, 2]), 3, 3, False),
        (torch.zeros(9, dtype=torch.bool), None, torch.tensor([2, 2, 2]), 3, 3, False),
        (torch.zeros(9, dtype=torch.bool), torch.tensor([1]), torch.tensor([3, 3, 3]), 3, 3, False),
        (torch.zeros(9, dtype=torch.bool), None, torch.tensor([3.0, 3.0, 3.0]), 3, 3, False),
        (torch.zeros(9, dtype=torch.bool), None, None, -3, -3, False),
        (None, torch.tensor([1, 2]), None, 2**40, 2, False),
        (None, torch.tensor([1, 2]), None, 2**62, 2**62, True),
        (None, torch.tensor([-1, 2]), None, 3, 2, True),
        (None, None, torch.tensor([3, 3, 3]), 3, 3, False),
        (None, torch.tensor([1]), None, 1, 2**28, False),
        (torch.zeros(0, dtype=torch.bool), None, torch.tensor([2**30] * 2), 2, 2**30, False),
        (torch.zeros(0, dtype=torch.bool), None, None, 0, 5, False),
    ],
    ids=str,
)
def test_the_raw_operator_refuses(arguments: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="rnnfast::segments"):
        torch.ops.rnnfast.segments(*arguments)


def test_the_lengths_of_one_step_are_looked_at() -> None:
    resets = torch.zeros(1, B, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="lengths must be from 1 to the number of steps, 1"):
        rnnfast.GRU(I, H)(torch.randn(1, B, I), resets=resets, lengths=[1, 1, 2, 1])
