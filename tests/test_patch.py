"""patch, unpatch and patched: torch's own classes run our kernels; what the calls mean.

Each test is named after what someone saw who had other classes in the place of torch's.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.config
from patch_ways import X, every_class, layers, leave_as_they_were, make, runs_ours, ways
from side_by_side import CELLS, LAYERS, assert_same, batch, loss_gradients, model_of, tensors
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield from leave_as_they_were()


# What runs ours


@every_class
def test_layers_that_exist_already_run_ours(name: str) -> None:
    model = model_of(name, library=nn)
    x = batch(name)
    expected, gradients = model(x), loss_gradients(model, x)
    rnnfast.patch()
    assert type(model.rnn) is getattr(nn, name)
    assert_same(expected, model(x))
    assert_same(tuple(gradients), tuple(loss_gradients(model, x)))
    assert runs_ours(lambda: model(x))
    rnnfast.unpatch()
    assert not runs_ours(lambda: model(x))
    assert_same(expected, model(x))


@pytest.mark.parametrize("name", CELLS)
@ways
def test_cells_take_what_ours_take(name: str, way: str) -> None:
    cell = make(way, lambda: getattr(nn, name)(5, 6))
    for mapped, row in zip(tensors(torch.vmap(cell)(X)), tensors(cell(X[1])), strict=True):
        assert_same(row, mapped[1])


class Base(nn.Module):
    def encode(self, x: Tensor) -> Tensor:
        return self(x)[0]


class ForecastGRU(Base, nn.GRU):
    """As a forecasting library has it."""

    def forward(self, x: Tensor, hx: Any = None, lengths: Any = None) -> Any:
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return super().forward(x, hx)


@ways
def test_a_subclass_that_calls_super_forward_is_accelerated(way: str) -> None:
    expected = (module := ForecastGRU(5, 6)).encode(X)
    patched = make(way, lambda: ForecastGRU(5, 6))
    patched.load_state_dict(module.state_dict())
    assert type(patched) is ForecastGRU
    assert runs_ours(lambda: patched(X))
    assert_same(expected, patched.encode(X))
    assert runs_ours(lambda: patched(X, lengths=[2, 4, 1]))


class Checked(nn.LSTM):
    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        raise ArithmeticError


@ways
def test_checks_of_a_users_subclass_are_called(way: str) -> None:
    with pytest.raises(ArithmeticError):
        make(way, lambda: Checked(5, 6))(X)


@layers
@ways
def test_copies_and_pickles_run_ours(name: str, way: str) -> None:
    module = make(way, lambda: getattr(nn, name)(5, 6))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is getattr(nn, name)
        assert runs_ours(lambda other=other: other(X))


# What the calls mean


@every_class
def test_objects_made_in_a_block_run_ours_after_it(name: str) -> None:
    cls = getattr(nn, name)
    torch.manual_seed(0)
    expected, their_next = cls(5, 6), torch.rand(1)
    torch.manual_seed(0)
    with rnnfast.patched():
        inside = cls(5, 6)
        assert torch.equal(torch.rand(1), their_next)
        by_another_name = getattr(nn.modules.rnn, name)(5, 6)
    x = X[0] if name in CELLS else X
    assert type(inside) is type(by_another_name) is cls
    assert_same(expected(x), inside(x))
    if name in LAYERS:
        assert runs_ours(lambda: inside(x))
        assert runs_ours(lambda: by_another_name(x))
        assert not runs_ours(lambda: expected(x))
        assert not runs_ours(lambda: cls(5, 6)(x))


def test_revert_ends_it_for_a_model_and_convert_goes_on() -> None:
    with rnnfast.patched():
        model = nn.Sequential(nn.GRU(5, 6))
    assert runs_ours(lambda: model(X))
    rnnfast.revert(model)
    assert not runs_ours(lambda: model(X))
    rnnfast.convert(model)
    assert type(model[0]) is rnnfast.GRU
    assert runs_ours(lambda: model(X))


@ways
def test_freeze_takes_them(way: str) -> None:
    model = make(way, lambda: nn.Sequential(nn.GRU(5, 6)))
    expected = model(X)
    rnnfast.freeze(model)
    assert rnnfast.ops.is_frozen(model[0].weight_hh_l0)
    with torch.no_grad():
        assert_same(expected, model(X))
    rnnfast.unfreeze(model)
    rnnfast.unpatch()
    if way == "patch":
        with pytest.raises(ValueError, match="no RNN, GRU, LSTM or cell of rnnfast"):
            rnnfast.freeze(model)


@ways
def test_parametrized_and_weight_normed_layers(way: str) -> None:
    module = nn.GRU(5, 5)
    parametrizations.orthogonal(module, "weight_ih_l0")
    expected = module(X)
    if way == "patch":
        rnnfast.patch()
        assert runs_ours(lambda: module(X))
        assert_same(expected, module(X))
    other = make(way, lambda: nn.LSTM(5, 5))
    parametrizations.weight_norm(other, "weight_hh_l0")
    assert runs_ours(lambda: other(X))


def test_calls_nest() -> None:
    module = nn.GRU(5, 6)
    rnnfast.patch()
    rnnfast.patch()
    with rnnfast.patched():
        with pytest.raises(ZeroDivisionError), rnnfast.patched():
            raise ZeroDivisionError
        rnnfast.unpatch()
        assert not runs_ours(lambda: module(X))
        inside = nn.GRU(5, 6)
        with pytest.raises(ValueError, match="num_layers must be greater than zero"):
            nn.GRU(5, 6, 0)
    rnnfast.unpatch()
    assert runs_ours(lambda: inside(X))
    assert not runs_ours(lambda: nn.GRU(5, 6)(X))


def test_rnnfasts_own_classes_are_not_touched() -> None:
    with rnnfast.patched():
        for name in (*LAYERS, *CELLS):
            ours = getattr(rnnfast, name)(5, 6)
            assert type(ours) is getattr(rnnfast, name)
            assert vars(ours).keys() == vars(getattr(nn, name)(5, 6)).keys() - {"_runs_rnnfast"}
        layer = nn.TransformerEncoderLayer(4, 2)
    assert not any(isinstance(m, nn.RNNBase) for m in layer.modules())


def test_patched_as_a_decorator() -> None:
    @rnnfast.patched()
    def build() -> nn.Module:
        return nn.Sequential(nn.GRU(5, 6))

    for _ in range(2):
        model = build()
        assert runs_ours(lambda model=model: model(X))


def test_blocks_of_several_threads_overlap() -> None:
    first_in, second_out = threading.Event(), threading.Event()
    built: list[nn.Module] = []

    def hold() -> None:
        with rnnfast.patched():
            first_in.set()
            second_out.wait(10)
            built.append(nn.GRU(5, 6))

    thread = threading.Thread(target=hold)
    thread.start()
    first_in.wait(10)
    with rnnfast.patched():
        pass
    second_out.set()
    thread.join()
    assert runs_ours(lambda: built[0](X))
    assert not runs_ours(lambda: nn.GRU(5, 6)(X))


def test_calls_go_on_in_threads_while_another_patches() -> None:
    module = nn.GRU(5, 6)
    expected = module(X)
    stop = threading.Event()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            while not stop.is_set():
                assert_same(expected, module(X))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        rnnfast.patch()
        rnnfast.unpatch()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


@layers
def test_errors_are_torchs(name: str) -> None:
    module = getattr(nn, name)(5, 6)
    bad: list[Callable[[], Any]] = [
        lambda: module(X[..., :4]),
        lambda: module(X.double()),
        lambda: module(X[None]),
        lambda: module(),
        lambda: module(X, h0=1),
        lambda: module(X[:0]),
        lambda: module(X, 1.0),
    ]

    def texts() -> list[str]:
        found = []
        for call in bad:
            with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError)) as caught:
                call()
            found.append(f"{caught.type}: {caught.value}")
        return found

    expected = texts()
    rnnfast.patch()
    assert texts() == expected
