"""The CUDA kernels on a GPU: beside cuDNN and float64, and as work on PyTorch's streams.

Catches an error larger than cuDNN's, a kernel that runs on another stream than the current one or
on another device than its tensors', a wait for the GPU, sums in an order that changes from run to
run, an address in 32 bits, and kernels that get in each other's way.

RNNFAST_TEST_KERNELS   the kernels to ask for, separated by spaces: "auto" is the plan's own choice;
                       one that cannot run a problem leaves it to `step`
RNNFAST_TEST_DEVICE    "cpu" runs on the CPU's kernels what makes sense there: it tests the tests
"""

import copy
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from kinks import linear_network
from problems import MODES, TOLERANCE, Problem, assert_close, cotangents, gradients
from test_autograd import as_function
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast
from rnnfast._library import _C, HAS_CUDA

DEVICE = os.environ.get("RNNFAST_TEST_DEVICE", "cuda")
_KERNELS = os.environ.get("RNNFAST_TEST_KERNELS", " ".join(["auto", *_C.cuda_kernels()])).split()
KERNELS = _KERNELS if DEVICE == "cuda" else ["auto"]
_READY = DEVICE != "cuda" or (HAS_CUDA and torch.cuda.is_available())

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not _READY, reason="no CUDA device, or built without CUDA"),
    # What torch and cuDNN say of the side that is compared with; ours copies no weights, and a wait
    # of ours is an error, not this warning.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match"),
]
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="streams, graphs and memory of a GPU")

# Dtype, whether its products may round their operands to TF32, and an error that is none: a quarter
# of a rounding, where cuDNN happens to be exact; in float64, where the truth is rounded too, four.
PRECISIONS = {
    "float64": (torch.float64, False, 2**-50),
    "float32": (torch.float32, False, 2**-25),
    "tf32": (torch.float32, True, 2**-12),
    "bfloat16": (torch.bfloat16, False, 2**-9),
    "float16": (torch.float16, False, 2**-12),
}

SHAPES: dict[str, dict[str, Any]] = {
    "one step": {"T": 1, "B": 9, "I": 20, "H": 64},
    "odd": {"T": 7, "B": 3, "I": 5, "H": 6},
    "aligned": {"T": 20, "B": 8, "I": 32, "H": 64},
    "past a tile": {"T": 9, "B": 17, "I": 40, "H": 129},
    "long": {"T": 300, "B": 2, "I": 8, "H": 48},
    "h256": {"T": 33, "B": 16, "I": 64, "H": 256},
    "h512": {"T": 9, "B": 33, "I": 16, "H": 512},
    "h1024": {"T": 5, "B": 8, "I": 24, "H": 1024},
    "bidirectional": {"T": 6, "B": 5, "I": 12, "H": 72, "bidirectional": True},
    "two layers": {"T": 6, "B": 4, "I": 8, "H": 40, "layers": 2, "bidirectional": True},
    "no biases": {"T": 5, "B": 9, "I": 8, "H": 40, "bias": False},
    "no states": {"T": 5, "B": 9, "I": 8, "H": 40, "states_given": False},
    "packed": {"lengths": (12, 12, 9, 4, 1), "I": 10, "H": 96, "bidirectional": True},
    "packed tiles": {"lengths": (11,) * 9 + (6,) * 8 + (1,) * 3, "I": 24, "H": 256},
}

# For `step`, which prepares its products once for each number of rows: rows that are aligned to
# elements, to some bytes, to 16; sizes that change from step to step and from one direction to the
# other, and come back.
STEPS: dict[str, dict[str, Any]] = {
    "odd": {"T": 6, "B": 7, "I": 5, "H": 35},
    "odd and large": {"T": 4, "B": 33, "I": 8, "H": 513, "bidirectional": True},
    "aligned": {"T": 5, "B": 16, "I": 8, "H": 512},
    "one row": {"T": 4, "B": 1, "I": 8, "H": 130, "bidirectional": True},
    "packed": {"lengths": (6, 6, 5, 3, 1, 1), "I": 5, "H": 35},
    "packed both ways": {"lengths": (9, 9, 9, 4, 2, 1), "I": 8, "H": 136, "bidirectional": True},
    "packed and odd": {"lengths": (5, 4, 4, 1), "I": 8, "H": 513, "bidirectional": True},
}


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    torch.manual_seed(0)
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    allow_tf32(False)
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def allow_tf32(on: bool) -> None:
    """Sets torch's switches for TF32, of cuDNN and of products, until the end of the test."""
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_tf32 = on


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Asks for one kernel during the test."""
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", request.param)
    return str(request.param)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for `step` during the test."""
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", "step")


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    """A name of PRECISIONS, with the switches for TF32 set to it."""
    allow_tf32(PRECISIONS[request.param][1])
    return str(request.param)


def twins(mode: str, dtype: torch.dtype, **shape: Any) -> tuple[Problem, Problem]:
    """A problem on the device, and the same numbers in float64 on the CPU."""
    low, exact = Problem(mode, dtype=dtype, device=DEVICE, **shape), Problem(mode, **shape)
    with torch.no_grad():
        for a, b in zip(exact.leaves, low.leaves, strict=True):
            a.copy_(b)
    return low, exact


def groups(problem: Problem, values: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Results, gradients of the inputs and of the weights. The cotangents are exact in bfloat16, so
    that they are the same numbers in every dtype.
    """
    cot = cotangents([v.bfloat16() for v in values])
    cot = [g.to(v.dtype) for g, v in zip(cot, values, strict=True)]
    grads = torch.autograd.grad(values, problem.leaves, cot)
    inputs = 1 + len(problem.states)
    return {
        "results": [v.detach() for v in values],
        "gradients of inputs": list(grads[:inputs]),
        "gradients of weights": list(grads[inputs:]),
    }


def rms_error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Of all elements, each in units of the largest value of its tensor."""
    errors = [
        ((a.double().cpu() - b).abs() / b.abs().max().clamp(min=1e-30)).flatten()
        for a, b in zip(values, exact, strict=True)
    ]
    return float(torch.cat(errors).square().mean().sqrt())


def values_and_gradients(problem: Problem) -> list[Tensor | None]:
    """All that one call of ours and its backward pass compute."""
    values = problem.rnnfast()
    return [*values, *gradients(values, problem.leaves)]


def assert_equal(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    """Bit for bit."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b), f"tensor {i}: {int((a != b).sum())} of {a.numel()} differ"


def spoil_free_memory() -> None:
    """Leaves NaN in the memory that the next allocations get."""
    del [torch.full((size,), math.nan, device=DEVICE) for size in (10**3, 10**5, 10**7)][:]


# ---- values ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errors_are_at_most_twice_cudnns(
    mode: str, shape: dict[str, Any], precision: str, kernel: str
) -> None:
    check_errors(mode, shape, precision)


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("states_given", [True, False], ids=["states", "no states"])
@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_errors_of_products_step_by_step(
    mode: str,
    shape: dict[str, Any],
    states_given: bool,
    precision: str,
    request: pytest.FixtureRequest,
) -> None:
    if (precision, shape["H"], states_given, mode[:3]) == ("float32", 513, True, "RNN"):
        reason = "cuBLAS's own product: 2.02 (tanh) and 2.3 times cuDNN's error on an H200"
        request.applymarker(pytest.mark.xfail(strict=False, reason=reason))
    check_errors(mode, shape | {"states_given": states_given}, precision)


def check_errors(mode: str, shape: dict[str, Any], precision: str) -> None:
    """Ours are at most twice cuDNN's."""
    dtype, _, none = PRECISIONS[precision]
    low, exact = twins(mode, dtype, **shape)
    spoil_free_memory()
    ours, theirs = groups(low, low.rnnfast()), groups(low, low.torch())
    our_truth, their_truth = (truth(exact, low, run) for run in (Problem.rnnfast, Problem.torch))
    for name in our_truth:
        for a, b in zip(ours[name], theirs[name], strict=True):
            assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        own = rms_error(ours[name], our_truth[name])
        bound = 2 * rms_error(theirs[name], their_truth[name])
        assert own <= max(bound, none), name


def truth(
    exact: Problem, low: Problem, run: Callable[[Problem], list[Tensor]]
) -> dict[str, list[Tensor]]:
    """What `run` should make of `low`; the gradients of relu for the units active in that run."""
    found = groups(exact, exact.torch())
    if exact.mode == "RNN_RELU":
        found |= groups(exact, linear_network(exact, low, run)) | {"results": found["results"]}
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("H", [1, 2, 15, 17, 31, 33, 65, 127])
def test_sizes_that_nothing_divides(mode: str, H: int, kernel: str) -> None:
    for B, I in ((1, 1), (7, 3), (9, 33)):  # noqa: E741
        low, exact = twins(mode, torch.float32, T=4, B=B, I=I, H=H, bidirectional=True)
        found = values_and_gradients(low)
        truth = [*exact.torch(), *gradients(exact.torch(), exact.leaves)]
        back = [None if t is None else t.double().cpu() for t in found]
        assert_close(back, truth, 5 * TOLERANCE[torch.float32])


@needs_gpu
@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "dtype", "H", "function"),
    [
        ("small", torch.bfloat16, 64, "small"),
        ("fma", torch.float32, 64, "fma"),
        ("cta", torch.bfloat16, 64, "persistent"),
        ("cluster", torch.bfloat16, 256, "persistent"),
        ("grid", torch.bfloat16, 1024, "grid"),
    ],
    ids=["small", "fma", "cta", "cluster", "grid"],
)
def test_the_kernel_that_is_asked_for_runs(
    mode: str,
    name: str,
    dtype: torch.dtype,
    H: int,
    function: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or all others that ask for one test `step`."""
    if name == "cluster" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters need compute capability 9.0")
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", name)
    problem = Problem(mode, T=8, B=8, I=16, H=H, dtype=dtype, device=DEVICE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        values_and_gradients(problem)
        torch.cuda.synchronize()
    kernels = [event.name for event in profiler.events()]
    assert any(f"::{function}_forward" in kernel for kernel in kernels)
    assert any(f"::{function}_backward" in kernel for kernel in kernels)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [None, (9, 5, 5, 1)], ids=["dense", "packed"])
def test_inference_gives_what_training_gives(
    mode: str, dtype: torch.dtype, lengths: tuple[int, ...] | None, kernel: str
) -> None:
    shape = {"T": 9, "B": 4, "I": 24, "H": 136, "bidirectional": True, "lengths": lengths}
    problem = Problem(mode, dtype=dtype, device=DEVICE, **shape)
    training = [v.detach() for v in problem.rnnfast()]
    spoil_free_memory()
    with torch.inference_mode():
        inference = problem.rnnfast()
    assert_close([v.clone() for v in inference], training, TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_that_nobody_asks_for_are_left_out(mode: str, kernel: str) -> None:
    problem = Problem(mode, T=6, B=5, H=64, dtype=torch.float32, device=DEVICE)
    everything = gradients(problem.rnnfast(), problem.leaves)
    for i, leaf in enumerate(problem.leaves):
        (alone,) = gradients(problem.rnnfast(), [leaf])
        assert_close([alone], [everything[i]], TOLERANCE[torch.float32])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}], ids=str)
def test_nothing_to_compute(mode: str, sizes: dict[str, int], kernel: str) -> None:
    problem = Problem(mode, **{"T": 3, "B": 2} | sizes, dtype=torch.float32, device=DEVICE)
    output, states_n, _ = problem.layer(train=True)
    assert output.shape == (problem.T, problem.B, problem.H)
    assert_close(states_n, [s.detach() for s in problem.states], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["batch first", "one sequence", "expanded"])
def test_layouts_of_the_input(mode: str, layout: str) -> None:
    batch_first = layout == "batch first"
    theirs = _module(nn, mode, 5, 66, bidirectional=True, batch_first=batch_first)
    ours = rnnfast.convert(copy.deepcopy(theirs))
    x = torch.randn(4, 1 if layout == "expanded" else 7, 5, device=DEVICE)
    x = {"batch first": x, "one sequence": x[:, 0], "expanded": x.expand(4, 7, 5)}[layout]
    leaf, other = x.detach().requires_grad_(), x.detach().requires_grad_()
    results = [_flat(ours(leaf)), _flat(theirs(other))]
    assert_close(*results, 1e-3)
    grads = [gradients(results[0], [leaf]), gradients(results[1], [other])]
    assert_close(*grads, 1e-3)


# ---- one step ----


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(3,), (), (0,), (40,)], ids=str)
def test_cells(name: str, dtype: torch.dtype, bias: bool, batch: tuple[int, ...]) -> None:
    theirs = getattr(nn, name)(5, 66, bias=bias, device=DEVICE, dtype=dtype)
    ours = rnnfast.convert(copy.deepcopy(theirs))
    x = torch.randn(*batch, 5, device=DEVICE, dtype=dtype)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            values = [_flat_states(cell(x)) for cell in (ours, theirs)]
            values = [
                _flat_states(cell(x, _hx(v)))
                for cell, v in zip((ours, theirs), values, strict=True)
            ]
        assert_close(*values, TOLERANCE[dtype])
        assert all(v.requires_grad == (context is torch.enable_grad) for v in values[0])


def _hx(states: list[Tensor]) -> Any:
    return states[0] if len(states) == 1 else tuple(states)


@needs_gpu
@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_a_cell_is_one_launch(name: str) -> None:
    cell, x = getattr(rnnfast, name)(64, 64, device=DEVICE), torch.randn(3, 64, device=DEVICE)
    with torch.no_grad():
        cell(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            cell(x)
            torch.cuda.synchronize()
    kernels = [e.name for e in profiler.events() if "memset" not in e.name.lower()]
    assert sum("single_step" in kernel for kernel in kernels) == 1


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_steps_wait_for_what_they_read(mode: str, dtype: torch.dtype, graph: bool) -> None:
    """Launches of one step begin early: yet they see inputs, states and weights that the kernel
    before them stored, and store nothing that it still reads.
    """
    problem = Problem(mode, T=1, B=4, I=256, H=256, dtype=dtype, device=DEVICE)
    cell, x, _, states, weights, *_ = problem.layer_arguments(False)
    others = [w.neg() for w in weights]
    sources = [torch.randn_like(x) for _ in range(6)]
    own_x, own = torch.empty_like(x), [torch.empty_like(w) for w in weights]

    def steps(wait: bool) -> list[Tensor]:
        now, outputs = list(states), []
        for i, source in enumerate(sources * 4):
            for to, a, b in zip(own, weights, others, strict=True):
                if i % 3 == 0:
                    to.copy_(a if i % 2 else b)
            own_x.copy_(source)
            for _ in range(3):  # one right after the other
                if wait:
                    torch.cuda.synchronize()
                output, now, _ = torch.ops.rnnfast.layer(cell, own_x, None, now, own, False, False)
                outputs.append(output)
        return [*outputs, *now]

    wanted = steps(wait=True)
    for _ in range(5):
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                found = steps(wait=False)
            for _ in range(3):
                recorded.replay()
        else:
            found = steps(wait=False)
        assert_equal(found, wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_at_any_address(mode: str, dtype: torch.dtype) -> None:
    """In one flat buffer, one element off, as fully sharded models keep them."""
    problem = Problem(mode, T=1, B=4, I=64, H=64, dtype=dtype, device=DEVICE)
    cell, x, _, states, weights, *_ = problem.layer_arguments(False)
    flat = torch.cat([weights[0].new_empty(1), *(w.flatten() for w in weights)])
    moved = [
        piece.view(w.shape)
        for piece, w in zip(flat[1:].split([w.numel() for w in weights]), weights, strict=True)
    ]
    for wanted, found in zip(
        torch.ops.rnnfast.layer(cell, x, None, states, weights, False, False),
        torch.ops.rnnfast.layer(cell, x, None, states, moved, False, False),
        strict=True,
    ):
        assert_close(*([t] if isinstance(t, Tensor) else t for t in (found, wanted)), 1e-6)


# ---- other forms ----


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_runs_in_cudnn() -> None:
    theirs = nn.LSTM(5, 12, proj_size=4, device=DEVICE)
    ours = rnnfast.convert(copy.deepcopy(theirs))
    x = torch.randn(6, 3, 5, device=DEVICE)
    assert rnnfast.explain(ours, x).layers[0].route == "torch"
    assert_close(_flat(ours(x)), _flat(theirs(x)), 1e-6)


def test_tensors_on_two_devices_raise_torchs_error() -> None:
    other = "cpu" if DEVICE == "cuda" else "meta"
    with pytest.raises(RuntimeError):
        rnnfast.GRU(3, 4, device=DEVICE)(torch.randn(2, 2, 3, device=other)).cpu()


def _module(library: Any, mode: str, *sizes: int, **options: Any) -> Any:
    """A layer of torch.nn or rnnfast on the device."""
    name, _, nonlinearity = mode.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity.lower()
    return getattr(library, name)(*sizes, device=DEVICE, **options)


def _flat(result: Any) -> list[Tensor]:
    output, states_n = result
    return [output, *_flat_states(states_n)]


def _flat_states(states: Any) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else list(states)


# ---- gradients ----

SMALL: list[dict[str, Any]] = [
    {},
    {"bidirectional": True, "bias": False, "states_given": False},
    {"lengths": (3, 2, 2), "bidirectional": True},
    {"T": 1},
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_gradcheck(mode: str, shape: dict[str, Any], kernel: str) -> None:
    problem = Problem(mode, device=DEVICE, **{"T": 3, "B": 2, "I": 2, "H": 3} | shape)
    assert torch.autograd.gradcheck(as_function(problem), problem.leaves, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_gradgradcheck_which_cudnn_refuses(mode: str, shape: dict[str, Any]) -> None:
    problem = Problem(mode, device=DEVICE, **{"T": 3, "B": 2, "I": 2, "H": 3} | shape)
    assert torch.autograd.gradgradcheck(as_function(problem), problem.leaves, fast_mode=True)


# ---- determinism ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (40,) * 20 + (7,) * 5], ids=["dense", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_runs_are_bitwise_equal(
    mode: str, dtype: torch.dtype, lengths: tuple[int, ...] | None, kernel: str
) -> None:
    shape = {"T": 40, "B": 25, "I": 32, "H": 256, "bidirectional": True, "lengths": lengths}
    problem = Problem(mode, dtype=dtype, device=DEVICE, **shape)
    first = values_and_gradients(problem)
    torch.use_deterministic_algorithms(True, warn_only=True)  # a warning is an error here
    try:
        for _ in range(5):
            spoil_free_memory()
            assert_equal(values_and_gradients(problem), first)
    finally:
        torch.use_deterministic_algorithms(False)


# ---- streams, graphs, threads ----


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_work_goes_to_the_current_stream(mode: str, kernel: str) -> None:
    problem = Problem(mode, T=12, B=9, I=16, H=128, dtype=torch.bfloat16, device=DEVICE)
    expected = values_and_gradients(problem)
    inputs = problem.x.detach().clone()
    with torch.no_grad():
        problem.x.fill_(math.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # what does not wait for this stream reads NaN
        with torch.no_grad():
            problem.x.copy_(inputs)
        found = values_and_gradients(problem)
    stream.synchronize()
    assert_equal(found, expected)


@needs_gpu
@pytest.mark.parametrize("lengths", [None, (9, 9, 4, 1)], ids=["dense", "packed"])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_waits_for_the_gpu(mode: str, lengths: tuple[int, ...] | None, kernel: str) -> None:
    shape = {"T": 9, "B": 4, "I": 16, "H": 128, "bidirectional": True, "lengths": lengths}
    problem = Problem(mode, dtype=torch.float32, device=DEVICE, **shape)
    cot = cotangents(problem.rnnfast())
    expected = torch.autograd.grad(problem.rnnfast(), problem.leaves, cot)
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = torch.autograd.grad(problem.rnnfast(), problem.leaves, cot)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal(found, expected)


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The call as a graph, after a warm-up on a stream of its own; and the tensors it writes."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
        with torch.cuda.graph(graph, stream=side):
            results = call()
    torch.cuda.current_stream().wait_stream(side)
    return graph, results


def assert_replays_with_new_inputs(problem: Problem) -> None:
    """A graph of a call and its backward pass gives the bits of the eager call."""
    call = training(problem)
    graph, found = captured(call)
    for _ in range(3):
        with torch.no_grad():
            problem.x.normal_()
        graph.replay()
        assert_equal(found, call())


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (9, 9, 4, 1)], ids=["dense", "packed"])
def test_a_graph_replays_with_new_inputs(
    mode: str, lengths: tuple[int, ...] | None, kernel: str
) -> None:
    shape = {"T": 9, "B": 4, "I": 16, "H": 128, "bidirectional": True, "lengths": lengths}
    problem = Problem(mode, dtype=torch.bfloat16, device=DEVICE, **shape)
    assert_replays_with_new_inputs(problem)


@needs_gpu
@pytest.mark.usefixtures("step")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_steps_in_a_graph(mode: str, shape: dict[str, Any], precision: str) -> None:
    problem = Problem(mode, dtype=PRECISIONS[precision][0], device=DEVICE, **shape)
    assert_replays_with_new_inputs(problem)


def training(problem: Problem) -> Callable[[], list[Tensor]]:
    """Calls of ours with a backward pass, in which nothing comes from the host."""
    cot = cotangents(problem.rnnfast())

    def call() -> list[Tensor]:
        values = problem.rnnfast()
        return [*values, *torch.autograd.grad(values, problem.leaves, cot)]

    return call


@needs_gpu
@pytest.mark.usefixtures("step")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (20,) * 5 + (7,) * 3], ids=["dense", "packed"])
def test_steps_on_two_streams(mode: str, lengths: tuple[int, ...] | None, precision: str) -> None:
    """At the same time, few rows and a large H: products with a workspace of their own."""
    shape = {"T": 20, "B": 8, "I": 8, "H": 1024, "bidirectional": True, "lengths": lengths}
    dtype = PRECISIONS[precision][0]
    problems = [Problem(mode, dtype=dtype, device=DEVICE, seed=seed, **shape) for seed in (0, 1)]
    calls = [training(problem) for problem in problems]
    expected = [call() for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    found: list[list[list[Tensor]]] = [[], []]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)  # the host gets ahead of both
    for _ in range(5):
        for call, stream, results in zip(calls, streams, found, strict=True):
            with torch.cuda.stream(stream):
                results.append(call())
    torch.cuda.synchronize()
    for results, wanted in zip(found, expected, strict=True):
        for result in results:
            assert_equal(result, wanted)


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_graph_of_a_training_step(mode: str, kernel: str) -> None:
    graphed = _module(rnnfast, mode, 16, 128)
    eager = copy.deepcopy(graphed)
    start = copy.deepcopy(graphed.state_dict())
    x = torch.randn(9, 4, 16, device=DEVICE)
    steps = [_training_step(layer, x) for layer in (eager, graphed)]
    graph, _ = captured(steps[1])
    with torch.no_grad():
        for name, parameter in graphed.named_parameters():
            parameter.copy_(start[name])
    for _ in range(3):
        x.normal_()
        graph.replay()
        steps[0]()
    assert_equal(list(graphed.parameters()), list(eager.parameters()))
    assert not torch.equal(graphed.weight_hh_l0, start["weight_hh_l0"])


def _training_step(layer: Any, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        layer(x)[0].square().mean().backward()
        optimizer.step()

    return step


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_two_threads_with_a_stream_each(mode: str, kernel: str) -> None:
    shapes: list[dict[str, Any]] = [
        {"T": 30, "B": 20, "I": 16, "H": 256},
        {"lengths": (25,) * 9 + (3,) * 9, "I": 8, "H": 136, "bidirectional": True},
    ]
    problems = [Problem(mode, dtype=torch.bfloat16, device=DEVICE, **s) for s in shapes]
    expected = [values_and_gradients(problem) for problem in problems]
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work(problem: Problem, wanted: list[Tensor | None]) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(25):
                    found = values_and_gradients(problem)
                torch.cuda.current_stream().synchronize()
                assert_equal(found, wanted)
        except BaseException as error:
            failures.append(error)

    pairs = zip(problems, expected, strict=True)
    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "the kernels wait for each other"
    assert failures == []


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("mode", MODES)
def test_another_device_than_the_current_one(mode: str, kernel: str) -> None:
    shape = {"T": 9, "B": 4, "I": 16, "H": 128, "dtype": torch.float32}
    first, second = (Problem(mode, device=f"cuda:{index}", **shape) for index in (0, 1))
    with torch.no_grad():
        for a, b in zip(second.leaves, first.leaves, strict=True):
            a.copy_(b)
    found = values_and_gradients(second)
    assert torch.cuda.current_device() == 0
    assert all(t is not None and t.device.index == 1 for t in found)
    here = [None if t is None else t.to(first.x.device) for t in found]
    assert_close(here, values_and_gradients(first), TOLERANCE[torch.float32])


@needs_gpu
@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU"])
def test_tensors_of_more_than_2_31_elements(mode: str, kernel: str) -> None:
    T, B, H = 2100, 4096, 256
    if torch.cuda.mem_get_info()[0] < 110 * 2**30:
        pytest.skip("needs 110 GB of GPU memory")
    assert T * B * H > 2**31
    low = Problem(mode, T=T, B=B, I=1, H=H, dtype=torch.bfloat16, device=DEVICE)
    picked = [0, B // 2, B - 1]  # sequences of a batch know nothing of each other
    small = copy.copy(low)
    small.x = low.x.detach()[:, picked].requires_grad_()
    small.states = tuple(s.detach()[:, picked].requires_grad_() for s in low.states)
    results = []
    for problem, rows in ((low, picked), (small, slice(None))):
        values = [v[:, rows] for v in problem.rnnfast()]
        leaves = [problem.x, *problem.states]
        results.append([*values, *(g[:, rows] for g in gradients(values, leaves) if g is not None)])
        del values
        torch.cuda.empty_cache()
    assert_close(*results, TOLERANCE[torch.bfloat16])


# ---- the rest of PyTorch ----

AUTOCAST = [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.bfloat16]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("low", AUTOCAST, ids=str)
@pytest.mark.parametrize("lengths", [None, (5, 3, 1)], ids=["dense", "packed"])
def test_autocast(mode: str, low: torch.dtype, lengths: tuple[int, ...] | None) -> None:
    problem = Problem(
        mode, T=5, B=3, H=40, lengths=lengths, dtype=torch.float32, device=DEVICE, layers=2
    )
    with torch.autocast(DEVICE, dtype=low):
        ours, theirs = problem.rnnfast(), problem.torch()
    assert [v.dtype for v in ours] == [v.dtype for v in theirs]
    ours, theirs = (groups(problem, values) for values in (ours, theirs))
    for name, values in theirs.items():
        assert rms_error(ours[name], [v.double().cpu() for v in values]) < 2**-6, name


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles(backend: str) -> None:
    layer = rnnfast.GRU(16, 64, 2, bidirectional=True, device=DEVICE)
    x = torch.randn(7, 3, 16, device=DEVICE, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    leaves = [x, *layer.parameters()]
    ours, expected = _flat(compiled(x)), _flat(layer(x))
    assert_close(ours, expected, 1e-5)
    assert_close(gradients(ours, leaves), gradients(expected, leaves), 1e-5)


class Tagger(nn.Module):
    """A model as users have it: packed sequences in a stack with dropout, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 40, 2, bidirectional=True, dropout=0.5)
        self.readout = nn.Linear(80, 5)

    def forward(self, sequences: PackedSequence) -> Tensor:
        return self.readout(self.rnn(sequences)[0].data)


def test_a_converted_model_moves_trains_and_comes_back() -> None:
    theirs = Tagger()
    ours = rnnfast.convert(copy.deepcopy(theirs)).to(DEVICE)
    theirs.to(DEVICE)
    sequences = pack_sequence([torch.randn(n, 12, device=DEVICE) for n in (9, 6, 2)])
    values = []
    for model in (ours, theirs):
        model.rnn.dropout = 0.0  # not eval(): cuDNN has no backward pass then
        loss = model(sequences).square().sum()
        values.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(*values, 1e-2)
    before = ours.rnn.weight_hh_l0.detach().clone()
    ours.rnn.dropout = 0.5
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.1)
    ours(sequences).square().sum().backward()
    optimizer.step()
    assert not torch.equal(ours.rnn.weight_hh_l0, before)
    home = ours.cpu().eval()
    assert home(sequences.to("cpu")).isfinite().all()
