"""RNN, GRU and LSTM are torch.nn's, seen from Python: built, called, kept and changed alike.

Each test runs torch.nn's class beside ours from the same seed. A failure is a difference that a
user meets who changes one word of a program.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest
import torch
from side_by_side import LAYERS, assert_same, build, gradients, states, tensors
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import rnnfast

CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bias": False, "batch_first": True},
    {"bidirectional": True, "batch_first": True, "dtype": torch.float64},
]
layers = pytest.mark.parametrize("name", LAYERS)
configurations = pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)


def positional(name: str, *options: Any) -> tuple[Any, ...]:
    """Arguments by position, from num_layers on; RNN has its nonlinearity after it."""
    layers, *rest = options
    return (5, 6, layers, *(("relu",) if name == "RNN" else ()), *rest)


# Constructed alike


@layers
@configurations
def test_same_seed_same_parameters_and_same_generator(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = getattr(nn, name)(5, 6, **options)
    their_next = torch.rand(3)
    torch.manual_seed(0)
    ours = getattr(rnnfast, name)(5, 6, **options)
    our_next = torch.rand(3)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for their, our in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(their, our)
        assert their.dtype == our.dtype
    assert torch.equal(their_next, our_next)


@layers
def test_reset_parameters_draws_alike(name: str) -> None:
    theirs, ours = build(name, 5, 6, 2)
    for module in (theirs, ours):
        torch.manual_seed(7)
        module.reset_parameters()
    assert torch.equal(theirs.weight_hh_l1, ours.weight_hh_l1)
    assert ours.weight_hh_l1.abs().max() <= 6**-0.5


@layers
@configurations
def test_attributes_are_torchs(name: str, options: dict[str, Any]) -> None:
    theirs, ours = build(name, 5, 6, **options)
    kinds = (int, float, str)
    plain = [{k: v for k, v in vars(m).items() if isinstance(v, kinds)} for m in (theirs, ours)]
    assert plain[0] == plain[1]
    assert vars(ours).keys() == vars(theirs).keys()
    for attribute in ("_flat_weights_names", "_all_weights"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    for attribute in ("_flat_weights", "_flat_weight_refs"):
        assert len(getattr(ours, attribute)) == len(getattr(theirs, attribute))
    assert type(ours).__constants__ == type(theirs).__constants__
    assert type(ours).__jit_unused_properties__ == ["all_weights"]
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert [[w.shape for w in group] for group in ours.all_weights] == [
        [w.shape for w in group] for group in theirs.all_weights
    ]
    assert ours.all_weights[0][1] is ours.weight_hh_l0


def test_modes_are_torchs() -> None:
    modes = [rnnfast.RNN(2, 3, nonlinearity=f).mode for f in ("tanh", "relu")]
    assert [*modes, rnnfast.GRU(2, 3).mode, rnnfast.LSTM(2, 3).mode] == [
        "RNN_TANH",
        "RNN_RELU",
        "GRU",
        "LSTM",
    ]
    assert rnnfast.RNN(2, 3, nonlinearity="relu").nonlinearity == "relu"


@layers
@pytest.mark.parametrize(
    "options",
    [
        (2,),
        (2, False),
        (2, False, True),
        (2, True, True, 0.5),
        (2, True, True, 0.5, True),
        (2, True, True, 0.5, True, 0, "meta", torch.float64),
    ],
    ids=str,
)
def test_arguments_by_position(name: str, options: tuple[Any, ...]) -> None:
    theirs, ours = build(name, *positional(name, *options))
    assert repr(ours) == repr(theirs)
    assert [(p.shape, p.dtype, p.device) for p in ours.parameters()] == [
        (p.shape, p.dtype, p.device) for p in theirs.parameters()
    ]
    assert (ours.bias, ours.batch_first, ours.dropout) == (
        theirs.bias,
        theirs.batch_first,
        theirs.dropout,
    )


@layers
def test_odd_arguments_that_torch_takes(name: str) -> None:
    theirs, ours = build(name, True, 4, bidirectional=1)
    assert repr(ours) == repr(theirs)
    theirs.bidirectional = True  # the operator of torch takes no 1; ours reads it as True
    assert_same(theirs(torch.ones(3, 2, 1)), ours(torch.ones(3, 2, 1)))


def test_signature_names_the_documented_arguments() -> None:
    names = list(inspect.signature(rnnfast.LSTM).parameters)
    assert names[:3] == ["input_size", "hidden_size", "num_layers"]
    assert {"device", "dtype", "proj_size", "bidirectional"} <= set(names)


@layers
def test_skip_init_works(name: str) -> None:
    # torch.nn's hide their arguments, so skip_init refuses them.
    module = nn.utils.skip_init(getattr(rnnfast, name), 5, 6)
    assert module.weight_hh_l0.device.type == "cpu"
    assert module.weight_hh_l0 is module._flat_weights[1]


# Called alike


@layers
@configurations
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("form", ["batched", "unbatched", "no sequence"])
def test_call_gives_what_torch_gives(
    name: str, options: dict[str, Any], given: bool, form: str
) -> None:
    theirs, ours = build(name, 5, 6, **options)
    weight = ours.weight_hh_l0
    batch = {"batched": (3,), "unbatched": (), "no sequence": (0,)}[form]
    shape = (*batch, 4, 5) if ours.batch_first else (4, *batch, 5)
    x = torch.randn(shape, dtype=weight.dtype, requires_grad=True)
    count = ours.num_layers * (2 if ours.bidirectional else 1)
    hx = states(name, count, *batch, 6, like=weight) if given else None
    result, expected = ours(x, hx), theirs(x, hx)
    assert_same(expected, result)
    for their, our in zip(
        gradients(expected, [x, *theirs.parameters()]),
        gradients(result, [x, *ours.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(our, their)


@layers
@configurations
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (2, 5, 1, 3)], ids=["sorted", "unsorted"])
def test_packed_call_gives_what_torch_gives(
    name: str, options: dict[str, Any], given: bool, lengths: tuple[int, ...]
) -> None:
    theirs, ours = build(name, 5, 6, **options)
    weight = ours.weight_hh_l0
    sequences = [torch.randn(n, 5, dtype=weight.dtype) for n in lengths]
    packed = pack_sequence(sequences, enforce_sorted=lengths[0] == 5)
    count = ours.num_layers * (2 if ours.bidirectional else 1)
    hx = states(name, count, 4, 6, like=weight) if given else None
    (output, hidden), expected = ours(packed, hx), theirs(packed, hx)
    assert_same(expected, (output, hidden))
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert getattr(output, field) is getattr(packed, field)


@layers
def test_packed_rows_of_a_sequence_are_those_of_the_sequence_alone(name: str) -> None:
    module = getattr(rnnfast, name)(5, 6, bidirectional=True, dtype=torch.float64)
    sequences = [torch.randn(n, 5, dtype=torch.float64) for n in (2, 4, 3)]
    output, hidden = module(pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = nn.utils.rnn.pad_packed_sequence(output)
    for index, sequence in enumerate(sequences):
        alone, alone_hidden = module(sequence)
        torch.testing.assert_close(padded[: lengths[index], index], alone)
        for all_states, own in zip(tensors(hidden), tensors(alone_hidden), strict=True):
            torch.testing.assert_close(all_states[:, index], own)


@layers
def test_keywords_lists_and_strange_strides(name: str) -> None:
    theirs, ours = build(name, 5, 6)
    x = torch.randn(5, 3, 4).transpose(0, 2)
    hx = states(name, 1, 6, 3)
    hx = [h.transpose(1, 2) for h in hx] if name == "LSTM" else hx.transpose(1, 2)
    assert_same(theirs(input=x, hx=hx), ours(input=x, hx=hx))
    expanded = torch.randn(1, 1, 5).expand(4, 3, 5)
    assert_same(theirs(expanded), ours(expanded))
    assert_same(theirs(torch.randn(100)[7:67].view(4, 3, 5) * 0), ours(torch.zeros(4, 3, 5)))


@layers
def test_hx_is_not_written_and_h_n_is_not_the_output(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    hx = states(name, 1, 3, 6)
    before = [h.clone() for h in tensors(hx)]
    output, hidden = ours(torch.randn(1, 3, 5), hx)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(hx), strict=True))
    storages = {t.untyped_storage().data_ptr() for t in (output, *tensors(hidden))}
    assert len(storages) == 1 + len(tensors(hidden))


@layers
def test_output_may_be_edited_before_backward(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 5)
    x = torch.randn(4, 3, 5)
    edited = ours(x)[0]
    edited += x
    (grad,) = torch.autograd.grad(edited.sum(), [ours.weight_hh_l0])
    (expected,) = torch.autograd.grad((ours(x)[0] + x).sum(), [ours.weight_hh_l0])
    torch.testing.assert_close(grad, expected)


@layers
def test_input_edited_before_backward_is_an_error(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    x = torch.randn(4, 3, 5)
    output = ours(x)[0]
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@layers
def test_backward_twice_needs_retain_graph(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    loss = ours(torch.randn(4, 3, 5))[0].sum()
    loss.backward(retain_graph=True)
    first = ours.weight_hh_l0.grad.clone()
    loss.backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@layers
def test_requires_grad_follows_what_requires_it(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    x = torch.randn(4, 3, 5)
    assert ours(x)[0].requires_grad
    with torch.no_grad():
        assert not ours(x)[0].requires_grad
    with torch.inference_mode():
        assert ours(x)[0].is_inference()
    ours.requires_grad_(False)
    assert not ours(x)[0].requires_grad
    assert ours(x.requires_grad_())[0].requires_grad
    ours.bias_hh_l0.requires_grad_(True)
    ours(x.detach())[0].sum().backward()
    assert ours.bias_hh_l0.grad is not None
    assert ours.weight_hh_l0.grad is None


@layers
def test_threads_may_share_a_module(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    x = torch.randn(4, 3, 5)
    expected = ours(x)[0].detach()
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(ours(x)[0].detach())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


@layers
def test_helpers_are_callable(name: str) -> None:
    theirs, ours = build(name, 5, 6, 2, bidirectional=True)
    x = torch.zeros(4, 3, 5)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    assert ours.check_input(x, None) is None
    hx = states(name, 4, 3, 6)
    assert ours.check_forward_args(x, hx, None) is None
    assert ours.permute_hidden(hx, None) is hx
    order = torch.tensor([2, 0, 1])
    assert_same(theirs.permute_hidden(hx, order), ours.permute_hidden(hx, order))
    assert ours.flatten_parameters() is None
    if name == "LSTM":
        assert ours.get_expected_cell_size(x, None) == (4, 3, 6)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_proj_size(options: dict[str, Any]) -> None:
    theirs, ours = build("LSTM", 5, 6, proj_size=2, **options)
    count = ours.num_layers * (2 if ours.bidirectional else 1)
    x, hx = torch.randn(4, 3, 5), (torch.randn(count, 3, 2), torch.randn(count, 3, 6))
    assert repr(ours) == repr(theirs)
    assert_same(theirs(x), ours(x))
    assert_same(theirs(x, hx), ours(x, hx))
    packed = pack_padded_sequence(x, [4, 2, 1])
    assert_same(theirs(packed, hx), ours(packed, hx))
    assert next(k for k in ours.state_dict() if "weight_hr" in k) == "weight_hr_l0"


# Dropout


@layers
def test_dropout_draws_what_torch_draws(name: str) -> None:
    theirs, ours = build(name, 5, 6, 3, dropout=0.4)
    x = torch.randn(4, 3, 5)
    packed = pack_padded_sequence(x, [4, 3, 1])
    for p in (0.4, 0.0, 1.0, 0.8):
        theirs.dropout = ours.dropout = p
        for data in (x, packed):
            torch.manual_seed(1)
            expected, their_next = theirs(data), torch.rand(1)
            torch.manual_seed(1)
            result, our_next = ours(data), torch.rand(1)
            assert_same(expected, result)
            assert torch.equal(their_next, our_next)


@layers
def test_dropout_only_in_training_and_between_layers(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6, 2, dropout=0.5)
    x = torch.randn(4, 3, 5)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    before = torch.get_rng_state()
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])
    with pytest.warns(UserWarning, match="dropout option"):
        single = getattr(rnnfast, name)(5, 6, dropout=0.5)
    torch.set_rng_state(before)
    assert torch.equal(single(x)[0], single(x)[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_packed_sequence_class_is_kept() -> None:
    output, _ = rnnfast.GRU(5, 6)(pack_sequence([torch.randn(3, 5)]))
    assert type(output) is PackedSequence
