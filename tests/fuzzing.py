"""Hostile arguments for the raw ops and the modules: `python tests/fuzzing.py --help`.

A case is a number: it seeds the arguments, so that a case that crashed can be run again alone. Each
begins as a good call, in which some things are then spoilt. What may happen is a result of the
documented sizes, or one of torch's exceptions; no argument may have changed, nor what lies around
it in memory. The number of the case that runs is in a file, for whoever looks after a crash.
"""

from __future__ import annotations

import argparse
import math
import mmap
import random
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnfast
from rnnfast import reference
from rnnfast.spec import CELLS

ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33)
LAYER, BACKWARD = torch.ops.rnnfast.layer.default, torch.ops.rnnfast.layer_backward.default
RECURRENCE = torch.ops.rnnfast.recurrence.default
RECURRENCE_BACKWARD = torch.ops.rnnfast.recurrence_backward.default
GUARD = 64  # elements before and after each tensor


class Case:
    """The arguments of one call, and what their memory held."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.generator = torch.Generator().manual_seed(number)
        self.blocks: list[tuple[Tensor, Tensor]] = []

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def tensor(self, *sizes: int, dtype: torch.dtype) -> Tensor:
        """Random values, in any strides, between guards."""
        count = math.prod(sizes)
        spread = self.random.choice((1, 1, 1, 2))
        block = torch.randn(2 * GUARD + count * spread, generator=self.generator).to(dtype)
        self.blocks.append((block, block.clone()))
        values = block[GUARD : GUARD + count * spread : spread]
        if len(sizes) > 1 and self.chance(0.2):  # transposed
            i, j = self.random.sample(range(len(sizes)), 2)
            order = list(range(len(sizes)))
            order[i], order[j] = j, i
            return (
                values.reshape([sizes[k] for k in order]).permute(order)
                if count
                else (values.reshape(sizes))
            )
        if self.chance(0.05):
            return block[GUARD : GUARD + 1].reshape([1] * len(sizes)).expand(sizes)
        return values.unflatten(0, sizes) if count and sizes else values.reshape(sizes)

    def unchanged(self) -> bool:
        return all(
            torch.equal(block.view(torch.uint8), before.view(torch.uint8))
            for block, before in self.blocks
        )

    def layer(self) -> list[Any]:
        """Good arguments of ``rnnfast::layer``."""
        choose, dtype = self.random.choice, self.random.choice(DTYPES)
        cell = choose(sorted(CELLS))
        spec = CELLS[cell]
        bidirectional = self.chance(0.3)
        directions = 1 + bidirectional
        T, B, features, H = (choose(SIZES) for _ in range(4))
        batch_sizes, shape = None, (T, B, features)
        if self.chance(0.3):
            steps = sorted(self.random.randint(1, 6) for _ in range(choose((1, 2, 5))))[::-1]
            batch_sizes, B = torch.tensor(steps), steps[0]
            shape = (sum(steps), features)
        x = self.tensor(*shape, dtype=dtype)
        states = []
        if self.chance(0.6):
            states = [self.tensor(directions, B, H, dtype=dtype) for _ in range(spec.states)]
        rows, biases = spec.gates * H, self.chance(0.7)
        sizes = [(rows, features), (rows, H), (rows,), (rows,)][: 4 if biases else 2]
        weights = [self.tensor(*s, dtype=dtype) for _ in range(directions) for s in sizes]
        return [cell, x, batch_sizes, states, weights, bidirectional, self.chance(0.5)]

    def backward(self) -> list[Any]:
        """Good arguments of ``rnnfast::layer_backward``."""
        cell, x, batch_sizes, states, weights, bidirectional, _ = self.layer()
        output, states_n, reserve = LAYER(
            cell, x, batch_sizes, states, weights, bidirectional, True
        )
        dtype = x.dtype
        grads = [None if self.chance(0.2) else self.tensor(*s.shape, dtype=dtype) for s in states_n]
        grad = None if self.chance(0.2) else self.tensor(*output.shape, dtype=dtype)
        needs = [self.chance(0.7) for _ in range(1 + len(states_n) + len(weights))]
        return [cell, grad, grads, x, batch_sizes, weights, bidirectional, reserve, needs]

    def recurrence(self) -> list[Any]:
        """Good arguments of ``rnnfast::recurrence``."""
        choose, dtype = self.random.choice, self.random.choice(DTYPES)
        cell = choose(sorted(CELLS))
        spec = CELLS[cell]
        T, B, H = (choose(SIZES) for _ in range(3))
        rows, batch_sizes, gates = T * B, None, spec.gates * H
        if self.chance(0.3):
            steps = sorted(self.random.randint(1, 6) for _ in range(choose((1, 2, 5))))[::-1]
            batch_sizes, B, rows = torch.tensor(steps), steps[0], sum(steps)

        def maybe(*sizes: int) -> Tensor | None:
            return self.tensor(*sizes, dtype=dtype) if self.chance(0.5) else None

        shape = (gates,) if self.chance(0.3) else (gates, H)
        vectors = (gates, H, H) if spec.emit is not None else (gates,)
        norm = [self.tensor(n, dtype=dtype) for n in vectors if self.chance(0.5) or n == gates]
        states = [self.tensor(B, H, dtype=dtype) for _ in range(spec.states)]
        return [
            *(cell, self.tensor(rows, gates, dtype=dtype), batch_sizes, B),
            *(states if self.chance(0.6) else [], self.tensor(*shape, dtype=dtype), maybe(gates)),
            norm if len(norm) == len(vectors) and self.chance(0.5) else [],
            maybe(*([rows] if self.chance(0.5) else []), spec.states * H),
            *(maybe(B, H), self.chance(0.3), choose((None, 0.1)), self.chance(0.5)),
        ]

    def recurrence_backward(self) -> list[Any]:
        """Good arguments of ``rnnfast::recurrence_backward``."""
        given = self.recurrence()
        output, states_n, reserve = RECURRENCE(*given[:-1], True)
        cell, _, batch_sizes, B, _, w_hh, _, norm, keep, drop, reverse, clip, _ = given
        grads = [
            None if self.chance(0.2) else self.tensor(*s.shape, dtype=s.dtype) for s in states_n
        ]
        grad = None if self.chance(0.2) else self.tensor(*output.shape, dtype=output.dtype)
        of_call = [cell, grad, grads, batch_sizes, B, w_hh, norm, keep, drop]
        return [*of_call, reverse, reserve, clip]

    def segments(self) -> list[Any]:
        """Good arguments of ``rnnfast::segments``."""
        T, B = (self.random.choice(SIZES[1:]) for _ in range(2))
        rows, lengths, batch_sizes = T * B, None, None
        if self.chance(0.2):
            steps = sorted(self.random.randint(1, 6) for _ in range(T))[::-1]
            batch_sizes, B, rows = torch.tensor(steps), steps[0], sum(steps)
        elif self.chance(0.5):
            lengths = torch.randint(1, T + 1, (B,), generator=self.generator)
        resets = None
        if lengths is None or self.chance(0.7):
            resets = torch.rand(rows, generator=self.generator) < 0.3
        batch_first = batch_sizes is None and self.chance(0.5)
        return [resets, lengths, batch_sizes, T, B, batch_first]

    def spoil(self, value: Any) -> Any:
        """Something else in the place of an argument."""
        choose = self.random.choice
        if isinstance(value, list) and value and self.chance(0.8):
            value = list(value)
            i = self.random.randrange(len(value))
            if self.chance(0.3):
                return choose((value[:i], value[i:], [*value, value[i]], []))
            value[i] = self.spoil(value[i])
            return value
        if not isinstance(value, Tensor):
            return choose((None, True, 0, -1, "gru", "", [], torch.zeros(()), 2**62))
        return self.spoil_tensor(value)

    def spoil_tensor(self, t: Tensor) -> Any:
        if max(t.shape, default=0) > 2**30:
            return t  # endless already: what is made of it may take as long
        dim = self.random.randrange(t.dim()) if t.dim() else 0
        ways: list[Any] = [
            lambda: None,
            lambda: t[None],
            lambda: t[0],
            lambda: t.flatten(),
            lambda: t.narrow(dim, 0, t.size(dim) // 2),
            lambda: torch.cat([t, t], dim),
            lambda: t.transpose(0, -1),
            lambda: t.to(self.random.choice((*DTYPES, torch.int64, torch.complex64, torch.bool))),
            lambda: t.to("meta"),
            lambda: t.to_sparse(),
            lambda: t[:1].expand(2**40, *t.shape[1:]),
            lambda: t.as_strided(t.shape, [1] * t.dim()),  # overlapping
            lambda: t * math.nan,
            lambda: t * math.inf,
            lambda: t - 1,
            lambda: t * 2**40,
            lambda: t.flip(0),
            lambda: t.conj(),
            lambda: t.requires_grad_(),
            lambda: torch.zeros(0),
            lambda: t.view(torch.int16),
        ]
        try:
            return self.random.choice(ways)()
        except ERRORS:
            return t

    def spoilt(self, arguments: list[Any]) -> bool:
        """Spoils some of the arguments, or none."""
        count = self.random.choice((0, 1, 1, 1, 2, 3))
        for _ in range(count):
            i = self.random.randrange(len(arguments))
            arguments[i] = self.spoil(arguments[i])
        return count > 0


def check_layer(arguments: list[Any], results: Any) -> None:
    cell, x, batch_sizes, states, weights, bidirectional, train = arguments
    output, states_n, reserve = results
    directions, H = 1 + bool(bidirectional), weights[1].size(1)
    assert output.shape == (*x.shape[:-1], directions * H)
    assert output.is_contiguous()
    assert len(states_n) == CELLS[cell].states
    assert bool(reserve) == bool(train)
    if x.device.type == "meta" or x.dtype != torch.float64 or not x.numel() or not H:
        return
    sizes = None if batch_sizes is None else batch_sizes.tolist()

    def expected(change: float = 1.0) -> Tensor:
        changed = [t * change for t in (x, *states, *weights)]
        of_states = changed[1 : 1 + len(states)]
        rest = changed[1 + len(states) :]
        return reference.layer(cell, changed[0], sizes, of_states, rest, bool(bidirectional))[0]

    truth = expected()
    if torch.allclose(output, truth, rtol=1e-9, atol=1e-9, equal_nan=True):
        return
    # Large weights make a layer chaotic: it moves as far where its arguments move by a rounding.
    moved = (expected(1 + 4 * torch.finfo(torch.float64).eps) - truth).abs().amax().item()
    torch.testing.assert_close(output, truth, rtol=1e-9, atol=1e-9 + 10 * moved, equal_nan=True)


def check_segments(arguments: list[Any], results: Any) -> None:
    _, lengths, batch_sizes, *of_ints, _ = arguments
    T, B = map(int, of_ints)  # torch takes a tensor of one number for one
    rows, sizes, elements, carries, first, last = results
    whole = int(batch_sizes.sum()) if batch_sizes is not None else T * B
    covered = whole if lengths is None else int(lengths.sum())
    assert len(rows) == len(rows.unique()) == int(sizes.sum()) == covered
    assert covered == 0 or (int(rows.min()) >= 0 and int(rows.max()) < whole)
    assert bool((sizes[1:] <= sizes[:-1]).all())
    assert carries.shape == (2, len(elements))
    assert elements[first].tolist() == elements[last].tolist() == list(range(B))


def check_recurrence(arguments: list[Any], results: Any) -> None:
    cell, x_gates, _, B, _, w_hh, *_, train = arguments
    output, states_n, reserve = results
    H = w_hh.size(0) // CELLS[cell].gates
    assert output.shape == (x_gates.size(0), H)
    assert [s.shape for s in states_n] == [(int(B), H)] * CELLS[cell].states
    assert bool(reserve) == bool(train)


def check_recurrence_backward(arguments: list[Any], results: Any) -> None:
    cell, B, w_hh = arguments[0], int(arguments[4]), arguments[5]
    H = w_hh.size(0) // CELLS[cell].gates
    assert results[0].shape[1] == w_hh.size(0)
    assert [g.shape for g in results[-CELLS[cell].states :]] == [(B, H)] * CELLS[cell].states


def check_backward(arguments: list[Any], results: Any) -> None:
    x, weights, needs = arguments[3], arguments[5], arguments[8]
    assert len(results) == sum(map(bool, needs))
    shapes = [x.shape, *[None] * (len(needs) - 1 - len(weights)), *(w.shape for w in weights)]
    wanted = [s for s, needed in zip(shapes, needs, strict=True) if needed]
    for grad, shape in zip(results, wanted, strict=True):
        assert shape is None or grad.shape == shape


OPS: tuple[tuple[Any, Any, Any], ...] = (
    (LAYER, check_layer, Case.layer),
    (BACKWARD, check_backward, Case.backward),
    (torch.ops.rnnfast.segments.default, check_segments, Case.segments),
    (RECURRENCE, check_recurrence, Case.recurrence),
    (RECURRENCE_BACKWARD, check_recurrence_backward, Case.recurrence_backward),
)


def run_op(number: int) -> str:
    """One call of a raw op."""
    case = Case(number)
    op, check, make = case.random.choices(OPS, (6, 4, 3, 4, 4))[0]
    arguments = make(case)
    spoilt = case.spoilt(arguments)
    try:
        results = op(*arguments)
    except ERRORS as error:
        if not spoilt:
            raise AssertionError("good arguments are refused") from error
        outcome = type(error).__name__
    else:
        check(arguments, results)
        outcome = "result"
    assert case.unchanged()
    return outcome


def run_module(number: int) -> str:
    """One call of a module of ours and of torch.nn's: what torch takes gives torch's values."""
    case = Case(number)
    name = case.random.choice(("RNN", "GRU", "LSTM"))
    T, B, features, H = (case.random.choice(SIZES[1:9]) for _ in range(4))
    options = {"bidirectional": case.chance(0.3), "batch_first": case.chance(0.3)}
    theirs = getattr(nn, name)(features, H, case.random.choice((1, 2)), **options)
    ours = rnnfast.convert(getattr(nn, name)(features, H, theirs.num_layers, **options))
    ours.load_state_dict(theirs.state_dict())
    count = theirs.num_layers * (1 + options["bidirectional"])
    x: Any = case.tensor(
        *((B, T) if options["batch_first"] else (T, B)), features, dtype=torch.float32
    )
    hx: Any = None
    if case.chance(0.6):
        hx = case.tensor(count, B, H, dtype=torch.float32)
        if name == "LSTM":
            hx = [hx, case.tensor(count, B, H, dtype=torch.float32)]
    arguments = [x, hx]
    spoilt = case.spoilt(arguments)
    x = arguments[0]
    packs = isinstance(x, Tensor) and x.dim() > 1 and x.layout is torch.strided
    packs = packs and x.numel() < 2**30
    if packs and case.chance(0.1):
        arguments[0] = PackedSequence(x.flatten(0, -2), torch.tensor([B] * T))
    found: list[Any] = []
    for module in (theirs, ours):
        try:
            with torch.no_grad():
                found.append(module(*arguments))
        except ERRORS as error:
            found.append(error)
    assert case.unchanged()
    their, our = found
    if isinstance(our, Exception):
        # torch.nn's LSTM computes with packed arguments that it does not check.
        packed = isinstance(arguments[0], PackedSequence)
        assert isinstance(their, Exception) or (spoilt and packed), f"{our!r}"
        return type(our).__name__
    if isinstance(their, Exception):
        return "result where torch raises"
    a, b = (r[0].data if isinstance(r[0], PackedSequence) else r[0] for r in (their, our))
    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4, equal_nan=True)
    return "result"


def run(first: int, count: int, where: Path | None, kind: str = "ops") -> Counter[str]:
    """Runs so many cases; the number of each is written to a file before."""
    if where is not None:
        where.write_bytes(bytes(8))
    outcomes: Counter[str] = Counter()
    call = run_op if kind == "ops" else run_module
    with open(where or "/dev/zero", "r+b") as file:
        place = mmap.mmap(file.fileno(), 8) if where else mmap.mmap(-1, 8)
        for number in range(first, first + count):
            place[:] = struct.pack("<q", number)
            try:
                outcomes[call(number)] += 1
            except AssertionError as error:
                raise AssertionError(f"{kind} case {number}: {error}") from error
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kind", choices=("ops", "modules"), default="ops")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--where", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    outcomes = run(options.first, options.count, options.where, options.kind)
    print(", ".join(f"{count} {name}" for name, count in outcomes.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
