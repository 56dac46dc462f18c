"""A plain call runs in one step of C++, with the values of the long way; others go the long way.

Catches a call that is special (a mode, a transform, autocast, another dtype, a wrong size, weights
that are no longer the parameters) and is served as if it were not: the error would be lost, or what
the user asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from side_by_side import LAYERS, gradients, tensors
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast import _C

I, H, T, B = 4, 5, 3, 2  # noqa: E741
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "batch_first": True, "dtype": torch.float64},
    {"dtype": torch.bfloat16},
]
layers = pytest.mark.parametrize("name", LAYERS)


def make(name: str, **options: Any) -> tuple[Any, Tensor, Any]:
    """A module, an input and a state for it."""
    torch.manual_seed(0)
    module = getattr(rnnfast, name)(I, H, **options)
    shape = (B, T) if module.batch_first else (T, B)
    count = module.num_layers * (1 + module.bidirectional)
    like = {"dtype": module.weight_hh_l0.dtype, "requires_grad": True}
    x = torch.randn(*shape, I, **like)
    h, c = (torch.randn(count, B, H, **like) for _ in range(2))
    return module, x, (h, c) if name == "LSTM" else h


def long_way(module: Any, *arguments: Any) -> Any:
    """The call as Python makes it, without the one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module), "_checks_are_torchs", False)
        return module(*arguments)


@layers
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_one_step_gives_the_values_of_the_long_way(
    name: str, options: dict[str, Any], given: bool
) -> None:
    module, x, hx = make(name, **options)
    hx = hx if given else None
    leaves = [x, *(tensors(hx) if given else ()), *module.parameters()]
    ours = _C.layers(module, x, None, hx)
    assert ours is not None
    expected = long_way(module, x, hx)
    assert isinstance(ours[1], tuple) == (name == "LSTM")
    for one, other in zip(tensors(ours), tensors(expected), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
        assert one.requires_grad == other.requires_grad
    for one, other in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        assert torch.equal(one, other)


@layers
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_packed_rows_take_one_step_too(name: str, given: bool) -> None:
    module, _, hx = make(name, num_layers=2, bidirectional=True)
    hx = hx if given else None
    data, batch_sizes = torch.randn(4, I), torch.tensor([2, 1, 1])
    ours = _C.layers(module, data, batch_sizes, hx)
    assert ours is not None
    packed = nn.utils.rnn.PackedSequence(data, batch_sizes)
    output, hidden = long_way(module, packed, hx)
    for one, other in zip(tensors(ours), tensors((output.data, hidden)), strict=True):
        assert torch.equal(one, other)


@layers
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inf"])
def test_steps_that_carry_their_state(name: str, context: Callable[[], Any]) -> None:
    module, x, _ = make(name)
    whole = module(x)[0]
    hidden: Any = None
    with context():
        for t in range(T):
            result = _C.layers(module, x[t : t + 1], None, hidden)
            assert result is not None
            output, hidden = result
            torch.testing.assert_close(output[0], whole[t])
            assert not output.requires_grad


@layers
@pytest.mark.parametrize("batch_first", [False, True], ids=["T first", "B first"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_a_sequence_without_a_batch_takes_one_step_too(
    name: str, batch_first: bool, given: bool
) -> None:
    module, x, hx = make(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    x, states = x.select(0 if batch_first else 1, 0), [h[:, 0] for h in tensors(hx)]
    alone = (tuple(states) if name == "LSTM" else states[0]) if given else None
    ours = _C.layers(module, x, None, alone)
    assert ours is not None
    expected = long_way(module, x, alone)
    leaves = [x, *(states if given else ()), *module.parameters()]
    for one, other in zip(tensors(ours), tensors(expected), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    for one, other in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        assert torch.equal(one, other)
    if given:  # the states of a batch do not go with it, nor numbers
        number = torch.zeros(())
        assert _C.layers(module, x, None, hx) is None
        assert _C.layers(module, x, None, (number,) * 2 if name == "LSTM" else number) is None


class _Subclass(Tensor):
    pass


class _DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


class _FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


@contextmanager
def transform() -> Iterator[None]:
    with torch._functorch.eager_transforms.grad_increment_nesting():
        yield


MODES: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "dispatch mode": _DispatchMode,
    "function mode": _FunctionMode,
    "default device": lambda: torch.device("cpu"),
    "forward-mode AD": forward_ad.dual_level,
    "transform": transform,
}


@layers
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_goes_the_long_way(name: str, mode: str) -> None:
    module, x, hx = make(name)
    with MODES[mode]():
        assert _C.layers(module, x, None, hx) is None
    assert _C.layers(module, x, None, hx) is not None


INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "another dtype": lambda x: x.double(),
    "no floating dtype": lambda x: x.long(),
    "complex, conjugated": lambda x: torch.complex(x, x).conj(),
    "negated": lambda x: torch.complex(x, x).conj().imag,
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "subclass": lambda x: x.as_subclass(_Subclass),
    "nested": lambda x: torch.nested.nested_tensor(list(x.detach())),
    "one dimension": lambda x: x[0, 0],
    "two dimensions, of another size": lambda x: x[0].mT,
    "four dimensions": lambda x: x[None],
    "no steps": lambda x: x[:0],
    "too many features": lambda x: torch.cat([x, x], -1),
    "no tensor": lambda x: x.tolist(),
    "nothing": lambda x: None,
}


@layers
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("change", INPUTS)
def test_an_input_that_is_special_or_wrong_goes_the_long_way(name: str, change: str) -> None:
    module, x, hx = make(name)
    changed = INPUTS[change](x)
    assert _C.layers(module, changed, None, None) is None
    assert _C.layers(module, changed, None, hx) is None


@layers
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("change", INPUTS)
def test_a_state_that_is_special_or_wrong_goes_the_long_way(name: str, change: str) -> None:
    if change in ("no steps", "nothing"):
        pytest.skip("no state, or no error")
    module, x, hx = make(name)
    for k in range(len(tensors(hx))):
        states: list[Any] = list(tensors(hx))
        states[k] = INPUTS[change](states[k])
        assert _C.layers(module, x, None, tuple(states) if name == "LSTM" else states[0]) is None


def test_states_in_another_form_go_the_long_way() -> None:
    module, x, (h, c) = make("LSTM")
    for wrong in (h, (h,), (h, c, c), [h, c], (h, None), (c[:, :1], c)):
        assert _C.layers(module, x, None, wrong) is None
    gru, x, h = make("GRU")
    for wrong in ((h,), [h], h[:, :1], h[0]):
        assert _C.layers(gru, x, None, wrong) is None


@pytest.mark.parametrize(
    "sizes",
    [
        torch.tensor([2, 1]),
        torch.tensor([2, 1, 2]),
        torch.tensor([2, 1, 1], dtype=torch.int32),
        torch.tensor([[2, 1, 1]]),
        torch.tensor([2, 9, 1, 9, 1, 9])[::2],
        torch.tensor([], dtype=torch.int64),
        torch.tensor([2, 1, 1], device="meta"),
        [2, 1, 1],
    ],
    ids=str,
)
def test_batch_sizes_that_do_not_fit_go_the_long_way(sizes: Any) -> None:
    module, _, hx = make("GRU")
    assert _C.layers(module, torch.randn(4, I), torch.tensor([2, 1, 1]), hx) is not None
    assert _C.layers(module, torch.randn(4, I), sizes, hx) is None


def _parametrise(module: Any) -> None:
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")


def _replace(module: Any) -> None:
    module.weight_hh_l0 = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    module._flat_weights[1] = nn.Parameter(torch.ones_like(module.weight_hh_l0))


def _widen(module: Any) -> None:
    module.weight_hh_l0.data = module.weight_hh_l0.data.double()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "parametrised": _parametrise,
    "replaced": _replace,
    "deleted": lambda module: module.__delattr__("weight_hh_l0"),
    "of another dtype": _widen,
    "of a subclass": lambda module: setattr(
        module, "weight_hh_l0", nn.Parameter(module.weight_hh_l0.data.as_subclass(_Subclass))
    ),
    "no layers": lambda module: setattr(module, "num_layers", 0),
    "more layers": lambda module: setattr(module, "num_layers", 2),
    "huge size": lambda module: setattr(module, "input_size", 2**80),
    "another size": lambda module: setattr(module, "input_size", I + 1),
    "unknown mode": lambda module: setattr(module, "mode", "SRU"),
    "no mode": lambda module: module.__delattr__("mode"),
    "projection": lambda module: setattr(module, "proj_size", 1),
}


@layers
@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_was_changed_goes_the_long_way(name: str, change: str) -> None:
    module, x, hx = make(name)
    CHANGES[change](module)
    assert _C.layers(module, x, None, None) is None
    assert _C.layers(module, x, None, hx) is None


def test_things_that_are_no_modules_are_refused() -> None:
    x = torch.zeros(T, B, I)
    for thing in (None, 3, object(), nn.Linear(2, 3)):
        assert _C.layers(thing, x, None, None) is None  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="4 arguments"):
        _C.layers(nn.Linear(2, 3), x)  # type: ignore[call-arg]


@layers
def test_dropout_is_torchs_business_and_counts_in_training_only(name: str) -> None:
    module, x, _ = make(name, num_layers=2, dropout=0.5)
    assert _C.layers(module, x, None, None) is None
    assert _C.layers(module.eval(), x, None, None) is not None


@layers
def test_checks_of_a_subclass_are_called(name: str) -> None:
    class Strict(getattr(rnnfast, name)):  # type: ignore[misc]
        def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
            raise LookupError("checked")

    class Free(getattr(rnnfast, name)):  # type: ignore[misc]
        pass

    x = torch.zeros(T, B, I)
    with pytest.raises(LookupError, match="checked"):
        Strict(I, H)(x)
    assert Free._checks_are_torchs
    assert Free(I, H)(x)[0].shape == (T, B, H)
