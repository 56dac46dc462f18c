"""The CUDA kernels as work on PyTorch's streams.

Catches a kernel that runs on another stream than the current one or on another device than its
tensors', a wait for the GPU, sums in an order that changes from run to run, an address in 32 bits,
and kernels that get in each other's way.
"""

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_gpu import (
    DEVICE,
    MARKS,
    PRECISIONS,
    STEPS,
    assert_equal,
    module,
    needs_gpu,
    spoil_free_memory,
    values_and_gradients,
)
from problems import MODES, TOLERANCE, Problem, assert_close, cotangents, gradients
from torch import Tensor

import rnnfast

pytestmark = MARKS

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
    graphed = module(rnnfast, mode, 16, 128)
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
