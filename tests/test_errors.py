"""What torch.nn refuses is refused, with the same type of exception and the same words.

torch.nn runs beside: the texts are those of the torch that is installed. Where torch.nn is
careless, and computes on or fails in its depths, our own error is written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from side_by_side import CELLS, LAYERS, assert_same, assert_same_error, build, error, states
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast

BAD_OPTIONS: list[dict[str, Any]] = [
    *({"dropout": value} for value in (-0.1, 1.1, True, "0.5", "x", None)),
    *({"num_layers": value} for value in (0, -1, 1.5, "2")),
    *({"input_size": value} for value in (0, -3, 3.0, None, np.int64(3))),
    *({"hidden_size": value} for value in (0, -3, 3.0, None, np.int64(3))),
    *({"bias": value} for value in (1, None)),
    *({"batch_first": value} for value in (1, "yes")),
    {"dtype": torch.int32},
    {"unknown": 1},
    {"mode": "GRU"},
]
OWN_BAD_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "RNN": [{"nonlinearity": "sigmoid"}, {"proj_size": 0}, {"proj_size": 2}],
    "GRU": [{"nonlinearity": "tanh"}, {"proj_size": 0}, {"proj_size": 2}],
    "LSTM": [{"nonlinearity": "tanh"}, {"proj_size": -1}, {"proj_size": 4}, {"proj_size": 9}],
}


def construct(library: Any, name: str, options: dict[str, Any]) -> nn.Module:
    return getattr(library, name)(**{"input_size": 3, "hidden_size": 4, **options})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{options}")
        for name in LAYERS
        for options in BAD_OPTIONS + OWN_BAD_OPTIONS[name]
    ],
)
def test_constructor_refuses_what_torch_refuses(name: str, options: dict[str, Any]) -> None:
    assert_same_error(
        lambda: construct(nn, name, options), lambda: construct(rnnfast, name, options)
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(LAYERS), st.lists(st.integers(0, 100), min_size=2, max_size=4))
def test_constructor_checks_in_torchs_order(name: str, picks: list[int]) -> None:
    bad = BAD_OPTIONS + OWN_BAD_OPTIONS[name]
    options: dict[str, Any] = {}
    for pick in picks:
        options |= bad[pick % len(bad)]
    assert_same_error(
        lambda: construct(nn, name, options), lambda: construct(rnnfast, name, options)
    )


@pytest.mark.parametrize("name", LAYERS)
def test_constructor_without_sizes_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match="input_size"):
        getattr(rnnfast, name)()


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_proj_size_by_position_is_refused_at_once(name: str) -> None:
    # torch.nn constructs this, and fails in every forward.
    options = (4, 2, *(("tanh",) if name == "RNN" else ()), False, True, 0.0, False, 2)
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        getattr(rnnfast, name)(3, *options)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_on_one_layer_warns(name: str) -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout") as theirs:
        getattr(nn, name)(3, 4, dropout=0.3)
    with pytest.warns(UserWarning, match="dropout option adds dropout") as ours:
        getattr(rnnfast, name)(3, 4, dropout=0.3)
    assert str(ours[0].message) == str(theirs[0].message)


# Calls of a layer (5 -> 6 features, float32, T=4, B=3). `hx` makes states as the class takes them.
X = torch.zeros(4, 3, 5)
BAD_CALLS = {
    "4-D": lambda m, hx: m(X[None]),
    "1-D": lambda m, hx: m(X[0, 0]),
    "dtype": lambda m, hx: m(X.double()),
    "features": lambda m, hx: m(X[..., :4]),
    "features without batch": lambda m, hx: m(X[:, 0, :4]),
    "2-D hx with batch": lambda m, hx: m(X, hx(1, 6)),
    "3-D hx without batch": lambda m, hx: m(X[:, 0], hx(1, 1, 6)),
    "batch of hx": lambda m, hx: m(X, hx(1, 2, 6)),
    "batch of 1 in hx": lambda m, hx: m(X, hx(1, 1, 6)),
    "layers of hx": lambda m, hx: m(X, hx(2, 3, 6)),
    "features of hx": lambda m, hx: m(X, hx(1, 3, 5)),
    "features of hx without batch": lambda m, hx: m(X[:, 0], hx(1, 5)),
    "dtype of hx": lambda m, hx: m(X, hx(1, 3, 6, dtype=torch.float64)),
    "dtype, then hx": lambda m, hx: m(X.double(), hx(2, 3, 6)),
    "2-D hx, then dtype": lambda m, hx: m(X.double(), hx(1, 6)),
    "device": lambda m, hx: m(X.to("meta")),
    "device of hx": lambda m, hx: m(X, hx(1, 3, 6, device="meta")),
    "no step": lambda m, hx: m(X[:0]),
    "no step, hx given": lambda m, hx: m(X[:0], hx(1, 3, 6)),
    "no step without batch": lambda m, hx: m(X[:0, 0]),
    "list": lambda m, hx: m([1.0]),
    "tuple": lambda m, hx: m((X,)),
    "None": lambda m, hx: m(None),
    "numpy": lambda m, hx: m(X.numpy()),
    "hx a number": lambda m, hx: m(X, 0.5),
    "no input": lambda m, hx: m(),
    "three arguments": lambda m, hx: m(X, None, None),
    "keyword h0": lambda m, hx: m(X, h0=None),
}


def with_states(name: str, call: Any, module: nn.Module) -> Any:
    return lambda: call(module, lambda *shape, **o: states(name, *shape, **o))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", BAD_CALLS)
def test_call_refuses_what_torch_refuses(name: str, case: str) -> None:
    theirs, ours = (with_states(name, BAD_CALLS[case], m) for m in build(name, 5, 6))
    assert_same_error(theirs, ours)


@pytest.mark.parametrize("name", LAYERS)
def test_no_step_is_refused_with_batch_first(name: str) -> None:
    theirs, ours = build(name, 5, 6, batch_first=True)
    assert_same_error(
        lambda: theirs(X.transpose(0, 1)[:, :0]), lambda: ours(X.transpose(0, 1)[:, :0])
    )


@pytest.mark.parametrize("name", ["RNN", "GRU"])
@pytest.mark.parametrize("hx", [(X,), [X]], ids=["tuple", "list"])
def test_a_sequence_of_states_is_no_tensor(name: str, hx: Any) -> None:
    theirs, ours = build(name, 5, 6)
    assert_same_error(lambda: theirs(X, hx), lambda: ours(X, hx))


def test_lstm_refuses_what_is_no_pair_of_states() -> None:
    theirs, ours = build("LSTM", 5, 6)
    h = torch.zeros(1, 3, 6)
    assert_same_error(lambda: theirs(X, (h,)), lambda: ours(X, (h,)))
    assert_same_error(lambda: theirs(X, h), lambda: ours(X, h))
    assert_same_error(lambda: theirs(X, (h, h[0])), lambda: ours(X, (h, h[0])))
    assert_same_error(lambda: theirs(X, (h, h[..., :4])), lambda: ours(X, (h, h[..., :4])))
    with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
        ours(X, (h, h, h))
    for one_tensor in (torch.zeros(2, 1, 3, 6), {0: h, 1: h}):
        assert_same_error(lambda hx=one_tensor: theirs(X, hx), lambda hx=one_tensor: ours(X, hx))


def packed(data: torch.Tensor, *batch_sizes: int) -> PackedSequence:
    return PackedSequence(data, torch.tensor(batch_sizes))


ROWS = torch.zeros(6, 5)
BAD_PACKED_CALLS = {
    "dtype": lambda m, hx: m(packed(ROWS.double(), 3, 2, 1)),
    "features": lambda m, hx: m(packed(ROWS[:, :4], 3, 2, 1)),
    "3-D": lambda m, hx: m(packed(ROWS[None], 3, 2, 1)),
    "batch of hx": lambda m, hx: m(packed(ROWS, 3, 2, 1), hx(1, 2, 6)),
    "features of hx": lambda m, hx: m(packed(ROWS, 3, 2, 1), hx(1, 3, 5)),
}


@pytest.mark.parametrize("case", BAD_PACKED_CALLS)
def test_packed_call_refuses_what_torch_refuses(case: str) -> None:
    for name in ("RNN", "GRU"):
        theirs, ours = (with_states(name, BAD_PACKED_CALLS[case], m) for m in build(name, 5, 6))
        assert_same_error(theirs, ours)
    # nn.LSTM checks nothing here, and fails somewhere else. Ours answers as it does when padded.
    gru = error(with_states("GRU", BAD_PACKED_CALLS[case], rnnfast.GRU(5, 6)))
    lstm = error(with_states("LSTM", BAD_PACKED_CALLS[case], rnnfast.LSTM(5, 6)))
    assert gru is not None
    assert lstm is not None
    assert lstm == (gru[0], gru[1].replace("Expected hidden size", "Expected hidden[0] size"))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sizes", [(3, 2), (3, 2, 2), (2, 1)])
def test_batch_sizes_that_do_not_add_up_are_refused(name: str, sizes: tuple[int, ...]) -> None:
    # torch.nn drops the rows that are too many, in silence.
    with pytest.raises(
        RuntimeError, match="batch_sizes must add up to the number of rows of data, 6"
    ):
        getattr(rnnfast, name)(5, 6)(packed(ROWS, *sizes))


@pytest.mark.parametrize("name", LAYERS)
def test_unsorted_lengths_are_refused_where_torch_does(name: str) -> None:
    with pytest.raises(RuntimeError, match="lengths"):
        pack_padded_sequence(X, [1, 4, 2])
    sequence = pack_padded_sequence(X, [1, 4, 2], enforce_sorted=False)
    assert getattr(rnnfast, name)(5, 6)(sequence)[0].data.shape == (7, 6)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_weight_of_a_wrong_shape_is_refused_not_read_past(name: str, weight: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    setattr(ours, weight, nn.Parameter(torch.zeros(3, 3)))
    for training in (True, False):
        refused = pytest.raises(RuntimeError, match=r"rnnfast::layer: [wb]_[ih]h must have sizes")
        with torch.set_grad_enabled(training), refused:
            ours(X)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("moved", [False, True])
def test_deleted_weight_is_missed(name: str, moved: bool) -> None:
    # torch.nn computes on with the copy that it keeps.
    ours = getattr(rnnfast, name)(5, 6)
    del ours.weight_hh_l0
    if moved:
        ours.float()
    with pytest.raises(AttributeError, match="has no attribute 'weight_hh_l0'"):
        ours(X)


@pytest.mark.parametrize("name", LAYERS)
def test_a_tensor_is_no_parameter(name: str) -> None:
    theirs, ours = build(name, 5, 6)
    value = torch.zeros(6, 5)
    assert_same_error(
        lambda: setattr(theirs, "weight_ih_l0", value), lambda: setattr(ours, "weight_ih_l0", value)
    )


# Calls of a cell (5 -> 6 features, float32, B=3).
BAD_CELL_CALLS = {
    "3-D": lambda m, hx: m(X),
    "0-D": lambda m, hx: m(X[0, 0, 0]),
    "3-D hx": lambda m, hx: m(X[0], hx(1, 3, 6)),
    "features": lambda m, hx: m(X[0, :, :4]),
    "features without batch": lambda m, hx: m(X[0, 0, :4]),
    "batch of hx": lambda m, hx: m(X[0], hx(2, 6)),
    "features of hx": lambda m, hx: m(X[0], hx(3, 7)),
    "2-D hx without batch": lambda m, hx: m(X[0, 0], hx(1, 6)),
    "dtype": lambda m, hx: m(X[0].double()),
    "dtype of hx": lambda m, hx: m(X[0], hx(3, 6, dtype=torch.float64)),
    "device": lambda m, hx: m(X[0].to("meta")),
    "list": lambda m, hx: m([1.0]),
    "None": lambda m, hx: m(None),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("case", BAD_CELL_CALLS)
def test_cell_refuses_what_torch_refuses(name: str, case: str) -> None:
    theirs, ours = (with_states(name, BAD_CELL_CALLS[case], m) for m in build(name, 5, 6))
    assert_same_error(theirs, ours)


def test_lstm_cell_names_the_state_that_is_wrong() -> None:
    theirs, ours = build("LSTMCell", 5, 6)
    h = torch.zeros(3, 6)
    assert_same_error(lambda: theirs(X[0], (h, h[None])), lambda: ours(X[0], (h, h[None])))
    assert_same_error(lambda: theirs(X[0], (h, h[:, :5])), lambda: ours(X[0], (h, h[:, :5])))
    assert_same_error(lambda: theirs(X[0], (h, h[:2])), lambda: ours(X[0], (h, h[:2])))


H = torch.zeros(3, 6)
NO_PAIRS = {
    "h alone": H,
    "h alone, of as many rows as states": H[:2],
    "h and c stacked": torch.stack([H, H]),
    "h alone in a tuple": (H,),
    "three": (H, H, H),
    "none": (),
    "an iterator": None,
    "a number": 1.0,
}


@pytest.mark.parametrize("case", NO_PAIRS)
def test_lstm_cell_refuses_one_tensor_in_place_of_the_pair(case: str) -> None:
    theirs, ours = build("LSTMCell", 5, 6)
    x = torch.zeros(3, 5)

    def call(cell: nn.Module) -> Any:
        return cell(x, iter((H, H)) if case == "an iterator" else NO_PAIRS[case])

    assert_same_error(lambda: call(theirs), lambda: call(ours))
    stacked = torch.randn(2, 6)  # which torch takes for a step without a batch
    assert_same(theirs(x[0], stacked), ours(x[0], stacked))
    assert_same(theirs(x, [H, H]), ours(x, [H, H]))


def test_rnn_cell_refuses_an_unknown_nonlinearity_when_called() -> None:
    theirs, ours = build("RNNCell", 5, 6, nonlinearity="sigmoid")
    assert_same_error(lambda: theirs(X[0]), lambda: ours(X[0]))


@pytest.mark.parametrize("name", CELLS)
def test_cell_of_a_negative_size(name: str) -> None:
    theirs, ours = getattr(nn, name), getattr(rnnfast, name)
    assert_same_error(lambda: theirs(-1, 4), lambda: ours(-1, 4))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("layernorm", "layer_norm"), ("batchfirst", "batch_first"), ("zone_out", "zoneout")],
)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_misspelt_option_is_named_beside_the_one_that_is_meant(
    name: str, wrong: str, meant: str
) -> None:
    with pytest.raises(TypeError) as theirs:
        getattr(nn, name)(3, 4, **{wrong: 1})
    with pytest.raises(TypeError) as ours:
        getattr(rnnfast, name)(3, 4, **{wrong: 1})
    assert str(ours.value) == f"{theirs.value}: did you mean '{meant}'?"
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'colour'$"):
        getattr(rnnfast, name)(3, 4, colour=1)
