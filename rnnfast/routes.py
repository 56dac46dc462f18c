"""Which of three implementations serves a call, with the reason; what autocast asks for.

``fused`` are the ops of :mod:`rnnfast.ops`, ``torch`` is the operator that torch.nn calls, and
``reference`` is :mod:`rnnfast.reference`. ``docs/design.md`` says when each is chosen.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from rnnfast._library import _C, HAS_BFLOAT16, KERNEL_DEVICES
from rnnfast.spec import CellSpec

_KERNEL_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_AUTOCAST_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
# Any other class may do anything with its data. The last two stand for plain tensors in tracing.
_PLAIN_TYPES = frozenset(
    {Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor, FunctionalTensor}
)

_BATCHED = torch._C._dispatch_key_parse("Batched")
# Those that transforms.py has rules for.
_RULES = frozenset({_functorch.TransformType.Vmap, _functorch.TransformType.Grad})
_transforms_active = torch._C._are_functorch_transforms_active
_unpack_dual: Callable[[Tensor], Any] = forward_ad.unpack_dual
_tracing_state = torch._C._get_tracing_state
_is_compiling = torch.compiler.is_compiling
_any_autocasting = torch._C._is_any_autocast_enabled


class Route(NamedTuple):
    """Which implementation serves a call, and why."""

    kind: str
    """``fused``, ``torch`` or ``reference``."""
    reason: str


FUSED = Route("fused", "plain tensors of one dtype and device that the kernels serve")
_EXPORTED = Route("torch", "torch.export: torch's operator, which all tools know")
_ONE_STEP = Route("torch", "one step, compiled or traced: of torch's own operations")
_GRADIENTS = Route("torch", "one step whose gradients are asked for: torch's operator keeps less")
_ONE_LAUNCH = Route("fused", "one step on a GPU: products and gates in one launch")
_OTHER_SIZES = Route("torch", "weights of other sizes: torch's to judge")
_SEVERAL_LAUNCHES = Route("torch", "one step on a GPU, of sizes that no single launch serves")
_TRACED = Route("torch", "torch.jit.trace or ONNX export: torch's own operator is recorded")
TRANSFORMED = Route("fused", "torch.func: one call of the kernels for all, or one for each")
AUTOCAST = Route("fused", "autocast: inputs and weights are cast for the kernels at every call")


def transformed(tensors: Sequence[Tensor]) -> str | None:
    """Names the transform that wants to differentiate or batch torch's own operations, if any."""
    if _transforms_active():
        return "a torch.func transform is active"
    if _is_compiling():  # Dynamo compiles no forward-mode AD but that of torch.func
        return None
    if forward_ad._current_level >= 0 and any(_unpack_dual(t).tangent is not None for t in tensors):
        return "forward-mode AD: a tensor has a tangent"
    return None


def all_have_rules() -> bool:
    """Whether transforms.py has rules for all transforms that are active, forward-mode AD too."""
    if _is_compiling() or forward_ad._current_level >= 0:
        return False
    return all(level.key() in _RULES for level in retrieve_all_functorch_interpreters())


def batched_by_autograd(tensors: Sequence[Tensor]) -> bool:
    """Whether some are of ``autograd.grad(is_grads_batched=True)``, which no mode tells of."""
    return any(torch._C._dispatch_keys(t).has(_BATCHED) for t in tensors)


def _autocasting(x: Tensor) -> bool:
    if not _any_autocasting():  # costs a quarter of what follows
        return False
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def exporting() -> bool:
    """Whether torch.export traces. Its public name is always True to the Dynamo of torch 2.11."""
    return torch.compiler._is_exporting_flag


_fused_exports = 0  # blocks of export_fused


@contextmanager
def export_fused() -> Iterator[None]:
    """In the block, ``torch.export`` records our operator in the place of torch's.

    For programs that run where rnnfast is, or the libraries of its operators, as with AOTInductor:
    each layer is one node, of any length and batch. What reads exported programs and knows torch's
    operators alone (ONNX, other runtimes) needs them without this, or decomposed:
    ``program.run_decompositions({torch.ops.rnnfast.layer.default: rnnfast.ops.decomposed})``.
    """
    global _fused_exports
    _fused_exports += 1
    try:
        yield
    finally:
        _fused_exports -= 1


def exports_torchs() -> bool:
    """Whether torch.export records torch's operators in the place of ours."""
    return _fused_exports == 0 and exporting()


def needs_gradients(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd is to record a call with these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def route(input: Tensor, others: Sequence[Tensor], proj_size: int = 0) -> Route:
    """Says which implementation serves a call with these tensors, here and now.

    Args:
        input: the sequence, or the step of a cell.
        others: all initial states and weights.
        proj_size: of an LSTM with a projection.
    """
    tensors = (input, *others)
    transform = transformed(tensors)
    if transform is not None:
        if not all_have_rules() or _kernels_route(input, tensors, proj_size).kind != "fused":
            return Route("reference", transform)
        return TRANSFORMED
    if not _is_compiling():
        if _tracing_state() is not None:
            return _TRACED
    elif torch.onnx.is_in_onnx_export():
        return _TRACED
    elif exports_torchs():
        return _EXPORTED
    return _kernels_route(input, tensors, proj_size)


def _kernels_route(input: Tensor, tensors: Sequence[Tensor], proj_size: int) -> Route:
    """What tensors of these kinds get where nothing but a call is asked for."""
    if proj_size:
        return Route("torch", f"proj_size={proj_size} has no kernel")
    dtype, device = input.dtype, input.device
    if not input.is_cpu and device.type not in KERNEL_DEVICES:
        return Route("torch", f"no kernels for {device.type} tensors")
    for t in tensors:
        if type(t) not in _PLAIN_TYPES:
            return Route("torch", f"a tensor is a {type(t).__name__}, not a plain tensor")
        if t.layout is not torch.strided:
            return Route("torch", f"no kernels for {t.layout} tensors")
        if t.device != device:
            return Route("torch", f"tensors on {device} and on {t.device}")
        if t.dtype != dtype:
            return _mixed_route(tensors)
    if _autocasting(input):
        return _mixed_route(tensors)
    if dtype not in _KERNEL_DTYPES:
        return Route("torch", f"no kernels for {dtype}")
    return FUSED


def _mixed_route(tensors: Sequence[Tensor]) -> Route:
    """The route of tensors of several dtypes, or under autocast, which makes them one."""
    if not _autocasting(tensors[0]):
        return Route("torch", "tensors of several dtypes: torch raises its error")
    if all(t.dtype in _AUTOCAST_DTYPES for t in tensors):
        return AUTOCAST
    return Route("torch", "a dtype that autocast leaves alone")


# What oneDNN's LSTM takes as input: bfloat16 only on CPUs that it has products of bfloat16 for.
_ONEDNN_LSTM = {torch.float32}
if torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _ONEDNN_LSTM.add(torch.bfloat16)


def autocast_dtype(
    spec: CellSpec, input: Tensor, states: Sequence[Tensor], onednn: bool
) -> torch.dtype:
    """The dtype in which torch.nn returns under autocast.

    Autocast makes torch's products come out low, and what is then added to a state takes the higher
    of both: that holds for all but the RNN, whose state is itself a sum of products, and LSTM
    layers that oneDNN runs whole. On a GPU the call that goes to cuDNN is cast as a whole, to
    float16 whatever dtype autocast was given (ATen/cudnn/AutocastRNN.cpp).
    """
    if input.device.type == "cuda":
        return torch.float16
    low: torch.dtype = torch.get_autocast_dtype(input.device.type)
    if spec.states == 1 and not spec.reads_h:
        return low
    if onednn and spec.states > 1 and input.dtype in _ONEDNN_LSTM:
        return low
    result: torch.dtype = torch.promote_types(low, states[-1].dtype if states else input.dtype)
    return result


def autocast_products(input: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype to run in under autocast, where torch.nn returns in `dtype`.

    There torch multiplies in the lower type whatever it returns in; so do we where that is faster.
    """
    device = input.device.type
    low: torch.dtype = torch.get_autocast_dtype(device)
    faster = HAS_BFLOAT16 and device == "cpu" and low == torch.bfloat16 and dtype == torch.float32
    return low if faster else dtype


def route_cell(
    spec: CellSpec, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> Route:
    """As :func:`route`, for one step of a cell.

    On a GPU, where torch's operator is two products and a kernel, the ops have a kernel that is all
    of them.
    """
    tensors = (input, *states, *weights)
    transform = transformed(tensors)
    if transform is not None:
        return Route("reference", transform)
    if _is_compiling() or _tracing_state() is not None:
        return _ONE_STEP
    chosen = route(input, tensors[1:])
    if chosen is not FUSED:
        return Route("torch", chosen.reason)
    rows = spec.gates * weights[1].size(1)
    sizes = ((rows, input.size(1)), (rows, rows // spec.gates), (rows,), (rows,))
    if any(w.shape != size for w, size in zip(weights, sizes, strict=False)):
        return _OTHER_SIZES
    if not input.is_cuda:
        return FUSED
    if needs_gradients(tensors):
        return _GRADIENTS
    if not input.numel():
        return Route("torch", "there is nothing to compute")
    problem = (input.size(0), input.size(1), weights[1].size(1))
    tf32 = torch.backends.cudnn.allow_tf32
    wanted = os.environ.get("RNNFAST_CUDA_KERNEL", "auto")
    dtype = str(input.dtype).removeprefix("torch.")
    best = _best_for_one_step(spec.name, dtype, input.device, *problem, tf32, wanted)
    return _ONE_LAUNCH if best == "single" else _SEVERAL_LAUNCHES


@lru_cache(maxsize=1024)
def _best_for_one_step(
    cell: str,
    dtype: str,
    device: torch.device,
    B: int,
    I: int,  # noqa: E741
    H: int,
    tf32: bool,
    wanted: str,
) -> str:
    """The kernel that the plan names; the last two arguments are what else it depends on."""
    problem = {"T": 1, "B": B, "I": I, "H": H, "directions": 1}
    return str(cuda_plan(cell, dtype, device, problem)["kernel"])


def cuda_plan(
    cell: str, dtype: str, device: torch.device, problem: Mapping[str, Any], resets: bool = False
) -> dict[str, Any]:
    """The first kernel that a layer's forward pass would try on that GPU.

    resets: rows begin anew where a mask that stays there says so.
    """
    gpu: Any = torch.cuda.get_device_properties(device)
    first, *_ = _C.cuda_plan(
        cell,
        dtype,
        **{name: problem[name] for name in ("T", "B", "I", "H", "directions")},
        backward=False,
        tf32=torch.backends.cudnn.allow_tf32,
        arch=10 * gpu.major + gpu.minor,
        processors=gpu.multi_processor_count,
        shared_bytes=gpu.shared_memory_per_block_optin,
        max_cluster=16 if gpu.major >= 9 else 1,
        kernel=os.environ.get("RNNFAST_CUDA_KERNEL", "auto"),
        resets=resets,
    )
    return dict(first)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which operations on the device of `x` keep their dtypes."""
    return torch.autocast(x.device.type, enabled=False) if _autocasting(x) else nullcontext()


def casts(tensors: Sequence[Tensor]) -> bool:
    return _autocasting(tensors[0]) and all(t.dtype in _AUTOCAST_DTYPES for t in tensors)
