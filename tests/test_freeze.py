"""``rnnfast.freeze``: the same numbers from weights that are packed once, whatever changes them.

Catches panels that outlive the numbers they were made of, that serve a call of another form, or
another tensor; and memory that is never given back.
"""

import copy
import ctypes
import logging
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast

MODES = ["RNN_TANH", "RNN_RELU", "GRU", "LSTM"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def make(mode: str = "GRU", *sizes: int, **options: object) -> rnnfast.base.Layers:
    """A layer of these sizes (24, 40), always the same."""
    torch.manual_seed(3)
    if mode.startswith("RNN"):
        options["nonlinearity"] = mode.removeprefix("RNN_").lower()
        mode = "RNN"
    return getattr(rnnfast, mode)(*(sizes or (24, 40)), **options)  # type: ignore[no-any-return]


def flat(results: object) -> list[Tensor]:
    """All tensors of what a layer returns."""
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, Tensor):
        return [results]
    assert isinstance(results, tuple)
    return [t for result in results for t in flat(result)]


def run(layer: nn.Module, *inputs: object) -> list[Tensor]:
    with torch.no_grad():
        return flat(layer(*inputs))


def assert_frozen_equals_thawed(layer: nn.Module, *inputs: object) -> None:
    """Twice frozen, to pack and to use it, against a call of a copy that is not frozen.

    float64 and float32 to the last few digits: a call of few rows sums in another order.
    """
    frozen, again = run(layer, *inputs), run(layer, *inputs)
    thawed = run(copy.deepcopy(layer), *inputs)
    for first, second, plain in zip(frozen, again, thawed, strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=0)
        torch.testing.assert_close(first, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 1), (1, 32), (12, 5)], ids=str)
def test_every_cell_and_dtype(mode: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    layer = rnnfast.freeze(make(mode, num_layers=2, bidirectional=True, dtype=dtype))
    assert_frozen_equals_thawed(layer, torch.randn(*shape, 24, dtype=dtype))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(1, 1), (16, 16), (17, 33), (130, 130)], ids=str)
def test_sizes_and_states(mode: str, sizes: tuple[int, int]) -> None:
    layer = rnnfast.freeze(make(mode, *sizes))
    x, state = torch.randn(6, 7, sizes[0]), torch.randn(1, 7, sizes[1])
    hx = (state, torch.randn_like(state)) if mode == "LSTM" else state
    assert_frozen_equals_thawed(layer, x[:1])  # w_hh is not needed, not packed
    assert_frozen_equals_thawed(layer, x[:1], hx)
    assert_frozen_equals_thawed(layer, x, hx)


def test_packed_sequences_and_unbatched_input() -> None:
    layer = rnnfast.freeze(make("LSTM", batch_first=True, bidirectional=True))
    sequences = [torch.randn(n, 24) for n in (3, 9, 1, 9)]
    assert_frozen_equals_thawed(layer, pack_sequence(sequences, enforce_sorted=False))
    assert_frozen_equals_thawed(layer, torch.randn(5, 24))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_any_number_of_threads_in_turn(threads: int) -> None:
    layer = rnnfast.freeze(make("RNN_TANH", 512, 64))
    before = torch.get_num_threads()
    try:
        for count in (threads, before, threads):  # how many panels stand side by side may change
            torch.set_num_threads(count)
            assert_frozen_equals_thawed(layer, torch.randn(2, 32, 512))
    finally:
        torch.set_num_threads(before)


def _step(layer: nn.RNNBase) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = torch.randn(4, 8, 24)  # rows enough that the same kernel serves with and without
    flat(layer(x))[0].sum().backward()
    optimizer.step()


def _load(layer: nn.RNNBase) -> None:
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})


def _other_data(layer: nn.RNNBase) -> None:
    for weight in layer.parameters():
        weight.data = torch.randn_like(weight)


def _rounded(layer: nn.RNNBase) -> None:
    for _ in range(3):  # until the last memory is that of the first
        layer.half().float()


def _one_element(layer: nn.RNNBase) -> None:
    with torch.no_grad():
        layer.weight_hh_l0[-1, -1] += 1  # type: ignore[operator]


def _through_a_view(layer: nn.RNNBase) -> None:
    with torch.no_grad():
        layer.weight_ih_l0.view(-1)[-1].mul_(3)  # type: ignore[operator]


def _same_place(layer: nn.RNNBase) -> None:
    """Other numbers where the old ones were, in a storage of their own."""
    layer.first_weights = [weight.detach() for weight in layer.parameters()]  # type: ignore[assignment]
    for weight in layer.parameters():
        place = (ctypes.c_float * weight.numel()).from_address(weight.data_ptr())
        weight.data = torch.frombuffer(place, dtype=torch.float32).view_as(weight)
        place[:] = torch.randn(weight.numel()).tolist()


def _turned(layer: nn.RNNBase) -> None:
    """Square matrices, in place: the same memory, read the other way round."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight = getattr(layer, name)
        weight.data = weight.data.t()


@pytest.mark.parametrize(
    "change", [_step, _load, _other_data, _rounded, _one_element, _through_a_view, _same_place]
)
@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
def test_changes_count_at_the_next_call(mode: str, change: Callable[[nn.RNNBase], None]) -> None:
    layer, x = rnnfast.freeze(make(mode)), torch.randn(6, 8, 24)
    before = run(layer, x)
    change(layer)
    assert not torch.equal(run(layer, x)[0], before[0]), "the change shows"
    assert_frozen_equals_thawed(layer, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_and_inference_in_turn(dtype: torch.dtype) -> None:
    """They may multiply different types."""
    layer = rnnfast.freeze(make("LSTM", dtype=dtype))
    x = torch.randn(6, 8, 24, dtype=dtype)
    for _ in range(2):
        assert_frozen_equals_thawed(layer, x)
        for got, expected in zip(flat(layer(x)), flat(copy.deepcopy(layer)(x)), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("anew", [rnnfast.unfreeze, rnnfast.freeze], ids=["thawed", "frozen"])
def test_what_is_packed_is_kept_until_thawed_or_frozen_anew(
    anew: Callable[[nn.Module], nn.Module],
) -> None:
    """Seen by a change that autograd does not count, which is the user's to tell of."""
    layer, x = rnnfast.freeze(make("GRU")), torch.randn(6, 8, 24)
    before = run(layer, x)[0]
    for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
        weight.data.mul_(2)  # type: ignore[union-attr]
    torch.testing.assert_close(run(layer, x)[0], before, rtol=0, atol=0)
    assert_frozen_equals_thawed(anew(layer), x)
    assert not torch.equal(run(layer, x)[0], before)


def test_a_matrix_turned_round_counts() -> None:
    layer, x = rnnfast.freeze(make("RNN_TANH", 40, 40)), torch.randn(6, 8, 40)
    run(layer, x)
    _turned(layer)
    assert_frozen_equals_thawed(layer, x)


def test_training_goes_on() -> None:
    frozen, thawed = make("GRU"), make("GRU")
    rnnfast.freeze(frozen)
    for layer in (frozen, thawed):
        torch.manual_seed(5)
        for _ in range(3):
            _step(layer)
    for a, b in zip(frozen.parameters(), thawed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_only_what_is_frozen_and_until_it_is_thawed() -> None:
    first, second = make("GRU"), make("GRU")
    model = nn.Sequential(first, nn.Linear(3, 3))
    assert rnnfast.freeze(model) is model
    matrices = {id(first.weight_ih_l0), id(first.weight_hh_l0)}
    everything = [*model.parameters(), *second.parameters(), *copy.deepcopy(first).parameters()]
    for weight in everything:
        assert rnnfast.ops.is_frozen(weight) == (id(weight) in matrices)
    assert rnnfast.unfreeze(model) is model
    assert not any(rnnfast.ops.is_frozen(weight) for weight in everything)


def test_explain_says_so() -> None:
    layer, x = make("GRU", num_layers=2), torch.randn(1, 1, 24)
    with torch.no_grad():
        assert "frozen" not in str(rnnfast.explain(layer, x))
        plans = [e.plan for e in rnnfast.explain(rnnfast.freeze(layer), x).layers]
    assert [(p["kernel"], p["weights"]) for p in plans] == [("packed", "frozen")] * 2


def test_explain_asks_for_every_matrix_of_a_layer() -> None:
    layer, x = rnnfast.freeze(make("GRU", bidirectional=True)), torch.randn(1, 1, 24)
    rnnfast.ops.set_frozen(layer.weight_hh_l0_reverse, False)
    with torch.no_grad():
        assert "frozen" not in str(rnnfast.explain(layer, x))


def test_fake_weights_are_neither_frozen_nor_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with FakeTensorMode(), torch.no_grad():
        layer, x = make("GRU"), torch.randn(1, 1, 24)
        rnnfast.freeze(layer)
        assert "frozen" not in str(rnnfast.explain(layer, x))
    assert "weight_ih_l0 of the model is not kept: it is a FakeTensor on cpu" in caplog.text


def test_a_model_without_layers_of_ours_is_refused() -> None:
    for function in (rnnfast.freeze, rnnfast.unfreeze):
        with pytest.raises(ValueError, match=r"rnnfast\.convert"):
            function(nn.Sequential(nn.GRU(3, 4)))


def test_weights_that_cannot_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    with torch.inference_mode():
        layer = make("GRU")
    with pytest.raises(RuntimeError, match="inference mode"):
        rnnfast.freeze(layer)
    parametrized = parametrizations.weight_norm(make("GRU"), "weight_hh_l0")
    with caplog.at_level(logging.WARNING, "rnnfast"):
        rnnfast.freeze(parametrized)
        rnnfast.freeze(make("GRU", device="meta"))
    assert "weight_hh_l0 of the model is not kept: it is made anew" in caplog.text
    assert "weight_ih_l0 of the model is not kept: it is a Parameter on meta" in caplog.text
    assert_frozen_equals_thawed(parametrized, torch.randn(4, 3, 24))
    with pytest.raises(NotImplementedError, match="set_frozen"):
        rnnfast.ops.set_frozen(torch.eye(3).to_sparse(), True)


def test_weights_that_die_leave_nothing(memory_in_use: Callable[[], int]) -> None:
    before = memory_in_use()
    for _ in range(20):  # of 6 MB and as much packed; new ones may lie where old ones were
        layer = make("GRU", 512, 512)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.normal_()
        assert not rnnfast.ops.is_frozen(layer.weight_ih_l0)
        assert_frozen_equals_thawed(rnnfast.freeze(layer), torch.randn(2, 40, 512))
        del layer, weight
    assert memory_in_use() - before < (64 + 24) << 20  # what the ops keep for the next call


def test_threads_share_a_frozen_model() -> None:
    layer, x = rnnfast.freeze(make("LSTM", 64, 64)), torch.randn(3, 20, 64)
    expected = run(copy.deepcopy(layer), x)[0]
    wrong = []

    def serve() -> None:
        torch.set_num_threads(1)
        for _ in range(200):
            if not torch.allclose(run(layer, x)[0], expected, atol=1e-6):
                wrong.append(True)

    workers = [threading.Thread(target=serve) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_compiled_model_sees_changes_too() -> None:
    layer, x = rnnfast.freeze(make("GRU")), torch.randn(4, 3, 24)
    expected = run(layer, x)[0]
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(run(compiled, x)[0], expected)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    torch.testing.assert_close(run(compiled, x)[0], run(copy.deepcopy(layer), x)[0])
