"""Sequences that begin anew inside a row, and end before it does, against torch.nn on each stretch.

Catches a state that passes a reset, in either direction or layer, a gradient that does, an output
or a final state of the wrong row, padding that counts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import assert_close, cotangents
from side_by_side import LAYERS, build, states, tensors
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import segments

T, B, I, H = 9, 4, 5, 6  # noqa: E741
OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "bidirectional": True, "batch_first": True},
]
modules = pytest.mark.parametrize("name", LAYERS)
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def random_resets(seed: int = 0) -> Tensor:
    """``[T, B]``: one row without, one at every step, one at the first, one at random."""
    generator = torch.Generator().manual_seed(seed)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[:, 1] = True
    resets[0, 2] = True
    resets[:, 3] = torch.rand(T, generator=generator) < 0.4
    return resets


def pieces(resets: Tensor, lengths: list[int]) -> list[list[tuple[int, int]]]:
    """Of each element of the batch the stretches, as (begin, end)."""
    result = []
    for b, length in enumerate(lengths):
        begins = [t for t in range(length) if t == 0 or resets[t, b]]
        result.append(list(zip(begins, [*begins[1:], length], strict=True)))
    return result


def part(hx: Any, b: int) -> Any:
    """The states of one element."""
    return tuple(s[:, b : b + 1] for s in hx) if isinstance(hx, tuple) else hx[:, b : b + 1]


def pick(first: Any, second: Any, from_first: Tensor) -> Any:
    """Of each layer and direction the state of `first` or `second`."""
    if isinstance(first, tuple):
        return tuple(pick(a, b, from_first) for a, b in zip(first, second, strict=True))
    return torch.where(from_first.view(-1, 1, 1), first, second)


def wanted(
    module: nn.RNNBase, x: Tensor, hx: Any, reset_states: Any, resets: Tensor, lengths: list[int]
) -> list[Tensor]:
    """``[output, *states_n]`` by torch.nn, piece by piece."""
    directions = 1 + int(module.bidirectional)
    reverse = torch.arange(module.num_layers * directions) % directions == 1
    outputs, finals = [], []
    for b, stretches in enumerate(pieces(resets, lengths)):
        rows = x[b] if module.batch_first else x[:, b]
        end = stretches[-1][1]
        pieces_n, results = [], []
        for begin, stop in stretches:
            first = torch.where(reverse, stop == end, begin == 0 and not resets[0, b])
            initial = pick(part(hx, b), part(reset_states, b), first)
            piece = rows[begin:stop].unsqueeze(0 if module.batch_first else 1)
            output, state = module(piece, initial)
            results.append(output.reshape(stop - begin, -1))
            pieces_n.append(tensors(state))
        output = torch.cat(results)
        outputs.append(torch.cat([output, output.new_zeros(len(rows) - end, output.shape[1])]))
        finals.append(
            [
                torch.where(reverse.view(-1, 1, 1), early, late)
                for early, late in zip(pieces_n[0], pieces_n[-1], strict=True)
            ]
        )
    output = torch.stack(outputs, 0 if module.batch_first else 1)
    return [output, *(torch.cat(parts, 1) for parts in zip(*finals, strict=True))]


def zeros_like(hx: Any) -> Any:
    return tuple(map(torch.zeros_like, hx)) if isinstance(hx, tuple) else torch.zeros_like(hx)


def widened(hx: Any) -> Any:
    """States of one element, for all of the batch."""
    if isinstance(hx, tuple):
        return tuple(s.expand(-1, B, -1) for s in hx)
    return hx.expand(-1, B, -1)


def beginnings(given: str, hx: Any, other: Any, learned: Any) -> dict[str, Any]:
    """The arguments of a call that begins so."""
    return {
        "nothing": {},
        "hx": {"hx": hx},
        "reset_states": {"reset_states": other},
        "both": {"hx": hx, "reset_states": other},
        "learned": {"reset_states": learned},
    }[given]


@modules
@options
@pytest.mark.parametrize("given", ["nothing", "hx", "reset_states", "both", "learned"])
@pytest.mark.parametrize("lengths", [None, [5, 9, 1, 7]], ids=["full", "lengths"])
def test_nothing_passes_a_reset(
    name: str, options: dict[str, Any], given: str, lengths: list[int] | None
) -> None:
    theirs, ours = build(name, I, H, **options, dtype=torch.float64)
    batch_first = options.get("batch_first", False)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    leaf: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn((B, T, I) if batch_first else (T, B, I), **leaf)
    hx, other = states(name, count, B, H, **leaf), states(name, count, B, H, **leaf)
    learned = states(name, count, 1, H, **leaf)
    arguments = beginnings(given, hx, other, learned)
    resets, zeros = random_resets(), zeros_like(hx)
    begins_with = widened(learned) if given == "learned" else arguments.get("reset_states", zeros)
    expected = wanted(
        theirs,  # type: ignore[arg-type]
        x,
        arguments.get("hx", zeros),
        begins_with,
        resets,
        lengths or [T] * B,
    )
    mask = resets.t() if batch_first else resets
    found = tensors(ours(x, resets=mask, lengths=lengths, **arguments))
    assert_close(found, expected, 1e-12)
    grads = [
        torch.autograd.grad(
            values,
            [x, *module.parameters(), *tensors(list(arguments.values()))],
            cotangents(values),
        )
        for values, module in ((found, ours), (expected, theirs))
    ]
    assert_close(*grads, 1e-11)


@modules
@options
@pytest.mark.parametrize("given", ["nothing", "hx", "reset_states", "both", "learned"])
def test_one_step_is_no_stretch(
    name: str, options: dict[str, Any], given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked for on the CPU, and the values are those of stretches."""
    layer = getattr(rnnfast, name)(I, H, **options, dtype=torch.float64)
    batch_first = options.get("batch_first", False)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    leaf: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn((B, 1, I) if batch_first else (1, B, I), **leaf)
    hx, other = states(name, count, B, H, **leaf), states(name, count, B, H, **leaf)
    learned = states(name, count, 1, H, **leaf)
    arguments = beginnings(given, hx, other, learned)
    resets = torch.tensor([[True, False, True, False]])
    mask = resets.t() if batch_first else resets
    expected = tensors(layer(x, resets=mask, lengths=[1] * B, **arguments))  # by stretches
    monkeypatch.setattr(segments, "find", None)
    found = tensors(layer(x, resets=mask, **arguments))
    assert_close(found, expected, 1e-12)
    leaves = [x, *layer.parameters(), *tensors(list(arguments.values()))]
    grads = [torch.autograd.grad(v, leaves, cotangents(v)) for v in (found, expected)]
    assert_close(*grads, 1e-11)


@modules
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both"])
def test_one_step_forgets_what_is_no_number(name: str, bidirectional: bool) -> None:
    layer = getattr(rnnfast, name)(I, H, bidirectional=bidirectional)
    x, hx = torch.randn(1, I), states(name, 1 + bidirectional, B, H)
    hx = tuple(s[:, 0] for s in hx) if isinstance(hx, tuple) else hx[:, 0]
    for state in tensors(hx):
        state[0] = float("nan")
    anew = torch.tensor([True])
    assert all(value.isfinite().all() for value in tensors(layer(x, hx, resets=anew)))
    assert any(value.isnan().any() for value in tensors(layer(x, hx, resets=~anew)))


@modules
@options
def test_lengths_in_any_order_are_packings(name: str, options: dict[str, Any]) -> None:
    theirs, ours = build(name, I, H, **options)
    batch_first = options.get("batch_first", False)
    x = torch.randn((B, T, I) if batch_first else (T, B, I), requires_grad=True)
    lengths = torch.tensor([3, 9, 1, 7])
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    output, states_n = theirs(packed)
    output = pad_packed_sequence(output, batch_first=batch_first, total_length=T)[0]
    expected = [output, *tensors(states_n)]
    for given in (lengths, lengths.tolist()):
        found = tensors(ours(x, lengths=given))
        assert_close(found, expected, 1e-6)
        padding = found[0] if batch_first else found[0].transpose(0, 1)
        assert all((padding[b, n:] == 0).all() for b, n in enumerate(lengths))


@modules
def test_resets_of_a_packed_sequence(name: str) -> None:
    theirs, ours = build(name, I, H, bidirectional=True, dtype=torch.float64)
    lengths, resets = [5, 9, 1, 7], random_resets()
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx = states(name, 2, B, H, dtype=torch.float64)
    expected = wanted(
        theirs,  # type: ignore[arg-type]
        x,
        hx,
        zeros_like(hx),
        resets,
        lengths,
    )
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    mask = pack_padded_sequence(resets, torch.tensor(lengths), enforce_sorted=False)
    for given in (mask, mask.data):
        output, states_n = ours(packed, hx, resets=given)
        assert isinstance(output, PackedSequence)
        assert_close([pad_packed_sequence(output)[0], *tensors(states_n)], expected, 1e-12)


@pytest.mark.parametrize("rows", [(1, B), (B, 1), (B, B), (1, 1)], ids=str)
def test_reset_states_for_each_row_or_one_for_all(rows: tuple[int, int]) -> None:
    """Each state by itself; also where the rows of a packed sequence are sorted."""
    layer, x = rnnfast.LSTM(I, H), torch.randn(T, B, I)
    lengths, resets = torch.tensor([5, 9, 1, 7]), random_resets()
    others = tuple(torch.randn(1, n, H) for n in rows)
    output, states_n = layer(x, resets=resets, lengths=lengths, reset_states=others)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    mask = pack_padded_sequence(resets, lengths, enforce_sorted=False)
    found, found_n = layer(packed, resets=mask, reset_states=others)
    assert_close([pad_packed_sequence(found)[0], *found_n], [output, *states_n], 1e-6)
    wrong = (torch.randn(1, B + 1, H), others[1])
    with pytest.raises(RuntimeError, match="Expected hidden"):
        layer(packed, resets=mask, reset_states=wrong)


@pytest.mark.parametrize("lengths", [(n for n in [5, 9, 1, 7]), {5, 9}, "abcd", [[1], [2, 3]]])
def test_lengths_are_numbers(lengths: Any) -> None:
    with pytest.raises(TypeError, match=r"^lengths: expected a tensor or list of integers, got "):
        rnnfast.GRU(I, H)(torch.randn(T, B, I), lengths=lengths)


@modules
def test_one_sequence_without_a_batch(name: str) -> None:
    _, ours = build(name, I, H)
    x, resets = torch.randn(T, I), random_resets()[:, 3]
    hx = states(name, 1, 1, H)
    alone = part(hx, 0)
    bare = tuple(s[:, 0] for s in alone) if isinstance(alone, tuple) else alone[:, 0]
    found = ours(x, bare, resets=resets, lengths=7)
    expected = ours(x[:, None], hx, resets=resets[:, None], lengths=[7])
    assert_close(
        [found[0], *tensors(found[1])],
        [expected[0][:, 0], *(s[:, 0] for s in tensors(expected[1]))],
        0,
    )


@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_and_a_frozen_layer(name: str, dtype: torch.dtype) -> None:
    layer = getattr(rnnfast, name)(I, H, dtype=dtype)
    x, resets = torch.randn(T, B, I, dtype=dtype), random_resets()
    expected = [p.float() for p in tensors(layer.float()(x.float(), resets=resets))]
    layer = layer.to(dtype)
    with torch.no_grad():
        plain = tensors(layer(x, resets=resets))
        rnnfast.freeze(layer)
        frozen = tensors(layer(x, resets=resets))
    assert all(p.dtype == dtype for p in plain)
    assert all(map(torch.equal, plain, frozen))
    tolerance = 8 * torch.finfo(dtype).eps
    for found, right in zip(plain, expected, strict=True):
        torch.testing.assert_close(found.float(), right, rtol=tolerance, atol=tolerance)


@modules
@pytest.mark.parametrize("layers", [1, 2])
def test_compiles_whole(name: str, layers: int) -> None:
    layer = getattr(rnnfast, name)(I, H, layers)
    x, resets = torch.randn(T, B, I, requires_grad=True), random_resets()
    lengths = torch.tensor([5, 9, 1, 7])
    compiled = torch.compile(
        lambda x, resets, lengths: layer(x, resets=resets, lengths=lengths),
        fullgraph=True,
        backend="aot_eager",
    )
    leaves = [x, *layer.parameters()]
    for seed in range(3):
        resets = random_resets(seed)
        ours = tensors(compiled(x, resets, lengths))
        eager = tensors(layer(x, resets=resets, lengths=lengths))
        assert_close(ours, eager, 1e-6)
        grads = [torch.autograd.grad(v, leaves, cotangents(v)) for v in (ours, eager)]
        assert_close(*grads, 1e-5)


def test_second_derivatives_and_forward_mode() -> None:
    layer = rnnfast.GRU(3, 2, dtype=torch.float64)
    resets = torch.tensor([[0, 0], [0, 1], [1, 0]], dtype=torch.bool)

    def run(x: Tensor, h: Tensor) -> Any:
        return layer(x, h, resets=resets, lengths=[3, 2])

    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, h), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x, h))


def test_lengths_are_read_on_the_cpu_whatever_the_default_device() -> None:
    layer, x = rnnfast.GRU(I, H), torch.randn(T, B, I)
    expected = layer(x, lengths=[5, 9, 1, 7])
    with torch.device("meta"):
        found = layer(x, lengths=[5, 9, 1, 7])
    assert_close(found, expected, 0)


@pytest.mark.parametrize("what", ["resets", "lengths"])
def test_other_sizes_do_not_compile_anew(what: str) -> None:
    layer = rnnfast.GRU(I, H)
    graphs = 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    def call(x: Tensor, given: Tensor) -> Tensor:
        return layer(x, **{what: given})[0]  # type: ignore[no-any-return]

    compiled = torch.compile(call, dynamic=True, fullgraph=True, backend=count)
    for steps in range(5, 12):
        given = random_resets()[:1].expand(steps, B) if what == "resets" else torch.arange(1, B + 1)
        x = torch.randn(steps, B, I)
        assert_close([compiled(x, given)], [call(x, given)], 1e-6)
    assert graphs <= 2


def test_no_rows() -> None:
    layer = rnnfast.LSTM(I, H, bidirectional=True)
    x = torch.randn(T, 0, I)
    output, (h_n, c_n) = layer(x, resets=torch.zeros(T, 0, dtype=torch.bool))
    assert (output.shape, h_n.shape, c_n.shape) == ((T, 0, 2 * H), (2, 0, H), (2, 0, H))
